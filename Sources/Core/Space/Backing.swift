// Backing (R23): a volume that is a sparse file promises only what its file system has given.
//
// Free blocks of such a volume can be handed out only when their unit of 128 KiB is known to be
// allocated in the file. That knowledge is in memory only, one bit a unit for the chunks that are
// loaded; after a restart it is empty and comes back as ranges are allocated anew, which is cheap
// where the file has the blocks already. Blocks in use need none: they have been written.
//
// Each sparse volume has one allocation under way at most. Its search goes through the groups that
// are in use, lowest first, and then through those that were never used; a group that it has been
// through is settled, until something becomes free there. When the file system has no space
// (ENOSPC, EDQUOT) ranges are halved down to one unit, then units are skipped (others may be
// allocated already), and at the first group that was never used the volume counts as full.

let errnoNotSupported: Int32 = 95  // EOPNOTSUPP
private let errnoNoSpace: Int32 = 28  // ENOSPC
private let errnoQuota: Int32 = 122  // EDQUOT
private let unitsPerChunk = SpaceFormat.chunkBlocks / unitBlocks
private let unitsPerGroup = SpaceFormat.groupBlocks / unitBlocks

/// Where a sparse volume's search for blocks to back stands.
struct BackingState {
  /// The file system has no more, as far as is known.
  private(set) var isFull = false
  /// Units to ask for at a time.
  private(set) var attempt = unitsPerChunk
  /// Where the search is: a group, and the next unit in it.
  var group: Int?
  var unit = 0
  /// The range that is being allocated; its chunk is pinned.
  var underWay: DeviceRange?
  /// An allocation failed since space last returned: better places for copies are not insisted on.
  private(set) var wasRefused = false

  mutating func succeeded() { attempt = min(unitsPerChunk, attempt * 2) }
  /// False when it was a single unit that failed.
  mutating func halve(_ units: Int) -> Bool {
    wasRefused = true
    attempt = max(1, min(attempt, units / 2))
    return units > 1
  }
  /// The file system refuses, or nothing is left to back.
  mutating func giveUp(refused: Bool) {
    if refused { wasRefused = true }
    isFull = true
    restart()
  }
  /// Something became free in the volume: perhaps the file has its blocks.
  mutating func reconsider() { isFull = false }
  /// The file system may have more than it had.
  mutating func spaceReturned() {
    isFull = false
    wasRefused = false
  }
  /// Search from the lowest group that is not settled.
  mutating func restart() {
    group = nil
    unit = 0
  }
}

extension SpaceMap {
  /// The next range of a sparse file to allocate so that `target` blocks are `available`; nil
  /// when they are, when each volume has one under way, or when the file systems have no more.
  /// At most 32 MiB, within one chunk.
  package func nextBacking(target: Int) throws(SpaceWait) -> DeviceRange? {
    // With that many chunks in memory more backing would only push out what is known of others.
    if available >= target || table.count >= configuration.chunkLimit * 4 { return nil }
    return try startBacking { $0.backing.underWay == nil }
  }

  /// What a run waits for: the range under way of some volume, else a new one.
  func backingForRuns() throws(SpaceWait) -> DeviceRange? {
    for v in volumes { if let range = v.backing.underWay { return range } }
    return try startBacking { _ in true }
  }

  /// Backing that lets the second copy of nodes be on another volume, or apart on the same.
  func backingForSecond(
    _ search: RunSearch, otherVolume: Bool
  ) throws(SpaceWait) -> DeviceRange? {
    guard let first = search.apartFrom else { return nil }
    if otherVolume {
      for v in volumes where v.index != first.volume && v.isSparse && !v.backing.wasRefused {
        if let range = v.backing.underWay { return range }
      }
      return try startBacking { $0.index != first.volume && !$0.backing.wasRefused }
    }
    let volume = volumes[first.volume]
    guard volume.isSparse, !volume.backing.isFull, !volume.backing.wasRefused else { return nil }
    if let range = volume.backing.underWay { return range }
    // Half a group away, in the same group: space that is initialised together.
    let perGroup = SpaceFormat.chunksPerGroup
    let own = Int(first.block) / SpaceFormat.chunkBlocks
    for step in 0..<perGroup {
      let chunk = own / perGroup * perGroup + (own + perGroup / 2 + step) % perGroup
      guard chunk < volume.chunkCount, abs(chunk - own) >= search.chunksApart else { continue }
      let slot = try load(volume, chunk)
      if let start = firstUnbacked(slot, from: 0) {
        return begin(volume, slot, start, units: min(volume.backing.attempt, 32))
      }
    }
    return nil
  }

  /// Starts an allocation on the sparse volume with the least available blocks that qualifies.
  private func startBacking(
    where qualifies: (VolumeSpace) -> Bool
  ) throws(SpaceWait) -> DeviceRange? {
    var refused: [Int] = []
    while true {
      var chosen: VolumeSpace?
      for v in volumes
      where v.isSparse && !v.backing.isFull && v.backing.underWay == nil && v.unbacked > 0
        && !refused.contains(v.index) && qualifies(v)
      {
        if v.available < chosen?.available ?? .max { chosen = v }
      }
      guard let volume = chosen else { return nil }
      if let range = try searchBacking(volume) { return range }
      refused.append(volume.index)
    }
  }

  /// The next range of a volume to allocate; when there is none the volume counts as full.
  private func searchBacking(_ volume: VolumeSpace) throws(SpaceWait) -> DeviceRange? {
    while true {
      guard let g = volume.backing.group ?? nextUnsettled(volume) else {
        volume.backing.giveUp(refused: false)
        return nil
      }
      volume.backing.group = g
      while volume.backing.unit < unitsPerGroup {
        let chunk = g * SpaceFormat.chunksPerGroup + volume.backing.unit / unitsPerChunk
        if chunk >= volume.chunkCount { break }
        let slot = try load(volume, chunk)
        if let unit = firstUnbacked(slot, from: volume.backing.unit % unitsPerChunk) {
          volume.backing.unit = volume.backing.unit / unitsPerChunk * unitsPerChunk + unit
          return begin(volume, slot, unit, units: volume.backing.attempt)
        }
        volume.backing.unit = (volume.backing.unit / unitsPerChunk + 1) * unitsPerChunk
      }
      volume.updateGroup(g) { $0.isBackingSettled = true }
      volume.backing.restart()
    }
  }

  /// The lowest group in use whose free blocks may lack backing, else the lowest never used.
  private func nextUnsettled(_ volume: VolumeSpace) -> Int? {
    for (p, page) in volume.pages.enumerated() {
      guard let page else { continue }
      for i in 0..<SpaceFormat.groupsPerPage {
        let s = page.groups[i]
        if s.owner == owner && !s.isBackingSettled && s.free > s.available {
          return p * SpaceFormat.groupsPerPage + i
        }
      }
    }
    return volume.lowestUnused { !$0.isBackingSettled && $0.free > $0.available }
  }

  /// The first unit at or behind `from` with free blocks and no backing.
  private func firstUnbacked(_ slot: Int, from: Int) -> Int? {
    var unit = from
    while unit < unitsPerChunk {
      if !table.isBacked(slot, unit: unit) && table.freeInUnit(slot, unit) > 0 { return unit }
      unit += 1
    }
    return nil
  }

  /// Names up to `units` units from `unit` on as under way, trimmed behind the last that needs it. None
  /// of them is being punched: it could not be told which of the two the file saw last.
  private func begin(
    _ volume: VolumeSpace, _ slot: Int, _ unit: Int, units: Int
  ) -> DeviceRange {
    var last = unit
    for u in unit..<min(unit + units, unitsPerChunk) {
      let isFree = table.freeInUnit(slot, u) > 0
      if !isFree && table.hasHeld(slot, unit: u) { break }
      if isFree && !table.isBacked(slot, unit: u) { last = u }
    }
    let start = unit * unitBlocks
    let end = min((last + 1) * unitBlocks, Int(table.infos[slot].end))
    let base = UInt64(table.infos[slot].chunk * SpaceFormat.chunkBlocks)
    let address = BlockAddress(volume: volume.index, block: base + UInt64(start))
    let range = deviceRange(BlockRun(address, end - start))
    table.infos[slot].pins += 1
    volume.backing.underWay = range
    return range
  }

  // MARK: Outcomes

  package func backingDone(_ range: DeviceRange) {
    guard let (volume, slot, units) = finish(range) else { return }
    for unit in units { setBacked(slot, unit: unit, true) }
    volume.backing.succeeded()
  }

  /// A file system that can't allocate at all (EOPNOTSUPP) is taken at its word: its free blocks
  /// count as backed. Other errors than a lack of space end the search until
  /// `spaceMayHaveReturned`.
  package func backingFailed(_ range: DeviceRange, error: Int32) {
    if error == errnoNotSupported { return backingDone(range) }
    guard let (volume, slot, units) = finish(range) else { return }
    guard error == errnoNoSpace || error == errnoQuota else {
      return volume.backing.giveUp(refused: true)
    }
    if volume.backing.halve(units.count) { return }
    let info = table.infos[slot]
    if volume.group(info.group).owner == 0 { return volume.backing.giveUp(refused: true) }
    let unit = info.chunk % SpaceFormat.chunksPerGroup * unitsPerChunk + units.lowerBound
    if volume.backing.group == info.group && volume.backing.unit == unit {
      volume.backing.unit += 1
    }
  }

  /// Forget that file systems were full: something was deleted there, or some time has passed.
  package func spaceMayHaveReturned() {
    for v in volumes where v.isSparse {
      for page in v.pages {
        guard let page else { continue }
        for i in 0..<SpaceFormat.groupsPerPage { page.groups[i].isBackingSettled = false }
      }
      v.backing.restart()
      v.backing.spaceReturned()
    }
  }

  /// Ends the allocation under way; nil when it is not this one.
  private func finish(
    _ range: DeviceRange
  ) -> (volume: VolumeSpace, slot: Int, units: Range<Int>)? {
    let index = Int(range.device.raw) - 1
    guard volumes.indices.contains(index), volumes[index].backing.underWay == range else {
      return nil
    }
    let volume = volumes[index]
    volume.backing.underWay = nil
    let run = blockRun(range)
    let piece = firstPiece(run.address, run.count)
    let slot = residentSlot(piece.key, "backing")
    table.infos[slot].pins -= 1
    let end = piece.start + piece.count
    return (volume, slot, piece.start / unitBlocks..<(end + unitBlocks - 1) / unitBlocks)
  }

  // MARK: What is learnt and forgotten

  /// Before the held blocks of `run` become free: units with every block busy are backed.
  func learnBacking(_ run: BlockRun) {
    let piece = firstPiece(run.address, run.count)
    guard let slot = table.find(piece.key) else { return }
    for unit in piece.start / unitBlocks...(piece.start + piece.count - 1) / unitBlocks
    where table.freeInUnit(slot, unit) == 0 {
      setBacked(slot, unit: unit, true)
    }
  }

  /// Something became free in a group: the search looks through it again, and before others.
  func unsettleBacking(_ volume: VolumeSpace, _ g: Int) {
    guard volume.isSparse else { return }
    volume.updateGroup(g) { $0.isBackingSettled = false }
    if let current = volume.backing.group, g <= current || volume.group(current).owner == 0 {
      volume.backing.restart()
    }
    volume.backing.reconsider()
  }

  /// A chunk leaves memory, and what was known about its free blocks with it.
  func forgetBacking(_ volume: VolumeSpace, _ g: Int, _ available: Int) {
    volume.addAvailable(-available, group: g)
    backedFree -= available
    if available > 0 { unsettleBacking(volume, g) }
  }
}

extension SpaceWait {
  static func backing(_ range: DeviceRange) -> Self {
    .backing(device: range.device, offset: range.offset, length: range.length)
  }
}
