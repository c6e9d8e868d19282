// The allocator's part of a checkpoint.
//
// Storing a bitmap makes nodes of the space tree dirty; each takes new addresses and releases old
// ones, which changes bitmaps. `commit` goes round until nothing is left. It ends: values have a
// fixed size, so from the second round on they are only replaced, a node that is dirty already is
// changed in place, and a tree has only so many nodes.

extension SpaceMap {
  /// Nodes that one call of `ChunkStore.put` may take; prepared before it, so that the tree's own
  /// preparation finds them there and never looks into the tree while it is being changed.
  static let nodesPerPut = 64

  /// Works off what `noteReleased` queued; to be called again after each wait.
  package func applyDeltas() throws(SpaceWait) {
    var room = Int.max
    try applyDeltas(&room)
  }

  private func applyDeltas(_ room: inout Int) throws(SpaceWait) {
    while room > 0 {
      // First, as it may release nodes.
      _ = try storeExcess()
      guard let run = deltas.last else { break }
      let piece = firstPiece(run.address, run.count)
      invariant(piece.count == run.count, "a delta crosses chunks")
      let volume = volumes[run.address.volume]
      let slot = try load(volume, Int(piece.key & 0xFFFF_FFFF_FFFF))
      if table.infos[slot].isQuarantined {
        leak(volume, run.count)
      } else {
        holdReleased(slot, piece.start, piece.count)
        Self.append(run, to: &releases, from: settledReleases)
      }
      deltas.removeLast()
      room -= 1
    }
  }

  /// Stores some bitmaps before the commit where so many have changed that memory would be short;
  /// false when there was no need.
  package func storeExcess() throws(SpaceWait) -> Bool {
    if excess == 0 {
      guard dirtyChunks.count > configuration.chunkLimit / 2 + changedByStoring else {
        return false
      }
      excess = dirtyChunks.count
    }
    var room = 64
    try storeChunks(&room)
    excess = max(0, excess - 64)
    if excess == 0 { changedByStoring = dirtyChunks.count }
    return true
  }

  /// Stores every change in the space tree; to be called again after each wait. Afterwards only
  /// tree nodes are left to write. Call it again when nodes were given new addresses later.
  package func commit() throws(SpaceWait) { _ = try commitSome(limit: .max) }

  /// As `commit`, but stores about `limit` values only; true when all is stored.
  package func commitSome(limit: Int) throws(SpaceWait) -> Bool {
    invariant(isOpen, "a space map is committed before it is open")
    var room = limit
    repeat {
      try applyDeltas(&room)
      try storeChunks(&room)
      try storePages(&room)
      if room <= 0 && !(deltas.isEmpty && dirtyChunks.isEmpty && dirtyPages.isEmpty) {
        return false
      }
      try storeTotals()
    } while !deltas.isEmpty || !dirtyChunks.isEmpty || !dirtyPages.isEmpty || totalsAreDirty
    committedReleases = releases.count - durableReleases
    return true
  }

  private func storeChunks(_ room: inout Int) throws(SpaceWait) {
    // In ascending order: the tree's nodes are met once each, and appends fill them.
    let batch = takeSorted(&dirtyChunks) { table.infos[Int($0)].key < table.infos[Int($1)].key }
    var done = 0
    defer { dirtyChunks.append(contentsOf: batch[done...]) }
    while done < batch.count && room > 0 {
      try storeChunk(Int(batch[done]))
      done += 1
      room -= 1
    }
  }

  private func storeChunk(_ slot: Int) throws(SpaceWait) {
    try prepareNodes(Self.nodesPerPut)
    let info = table.infos[slot]
    // Clean before the call: the nodes that it takes may be in this very chunk, and make it dirty
    // again.
    table.infos[slot].isDirty = false
    table.infos[slot].pins += 1
    defer { table.infos[slot].pins -= 1 }
    do {
      try backend.put(
        .chunk(volume: info.volume, chunk: UInt64(info.chunk)),
        UnsafeRawBufferPointer(start: table.used(slot), count: SpaceFormat.bitmapBytes))
    } catch {
      table.infos[slot].isDirty = true
      throw error
    }
  }

  private func storePages(_ room: inout Int) throws(SpaceWait) {
    let batch = takeSorted(&dirtyPages, <)
    var done = 0
    defer { dirtyPages.append(contentsOf: batch[done...]) }
    while done < batch.count && room > 0 {
      let key = batch[done]
      try prepareNodes(Self.nodesPerPut)
      let volume = volumes[Int(key.lo >> 48)]
      let page = volume.page(ofGroup: Int(key.lo & 0xFFFF_FFFF_FFFF) * SpaceFormat.groupsPerPage)
      page.isDirty = false
      do {
        try putPage(key, page)
      } catch {
        page.isDirty = true
        throw error
      }
      done += 1
      room -= 1
    }
  }

  private func putPage(_ key: SpaceKey, _ page: GroupPage) throws(SpaceWait) {
    for i in 0..<SpaceFormat.groupsPerPage {
      scratch.base.put(page.groups[i].word.raw, at: i * 4)
    }
    try backend.put(
      key, UnsafeRawBufferPointer(start: scratch.base, count: SpaceFormat.pageBytes))
  }

  private func storeTotals() throws(SpaceWait) {
    guard totalsAreDirty else { return }
    try prepareNodes(Self.nodesPerPut)
    totalsAreDirty = false
    scratch.base.put(UInt64(used), at: 0)
    scratch.base.put(UInt64(metadata), at: 8)
    do {
      try backend.put(
        .totals, UnsafeRawBufferPointer(start: scratch.base, count: SpaceFormat.totalsBytes))
    } catch {
      totalsAreDirty = true
      throw error
    }
  }

  private func takeSorted<T>(_ list: inout [T], _ before: (T, T) -> Bool) -> [T] {
    var batch: [T] = []
    swap(&batch, &list)
    batch.sort(by: before)
    return batch
  }

  // MARK: After the root

  /// Entries of `releases` that later ones must not be merged into.
  var settledReleases: Int { durableReleases + committedReleases }

  /// The root of the last `commit` is durable on every volume: what was released before that
  /// commit is free, or goes to the punch queue. With a limit, `freeReleased` does the rest.
  package func rootDurable(limit: Int = .max) {
    durableReleases += committedReleases
    committedReleases = 0
    nodes.takesAnything = false
    freeReleased(limit: limit)
  }

  /// Frees up to `limit` more of the runs whose root is durable; true when none is left.
  @discardableResult
  package func freeReleased(limit: Int) -> Bool {
    let part = freedReleases..<freedReleases + min(limit, durableReleases - freedReleases)
    // Before anything becomes free: a unit with every block in use is backed by the file system.
    for i in part where volumes[releases[i].address.volume].isSparse { learnBacking(releases[i]) }
    for i in part {
      let piece = firstPiece(releases[i].address, releases[i].count)
      unhold(piece)
      unsettleBacking(volumes[releases[i].address.volume], piece.group)
    }
    for i in part { queuePunch(releases[i]) }
    freedReleases = part.upperBound
    guard freedReleases == durableReleases else { return false }
    // In one go: shifted for each part, a million of them would take a thousand times as long.
    releases.removeFirst(durableReleases)
    durableReleases = 0
    freedReleases = 0
    return true
  }

  /// Queues the whole units that the run touches and that are free now.
  private func queuePunch(_ run: BlockRun) {
    let volume = volumes[run.address.volume]
    guard volume.punches else { return }
    let piece = firstPiece(run.address, run.count)
    let chunk = Int(piece.key & 0xFFFF_FFFF_FFFF)
    let end = volume.bounds(ofChunk: chunk).end
    let slot = table.find(piece.key)
    for unit in piece.start / unitBlocks...(piece.start + piece.count - 1) / unitBlocks {
      if volume.isSparse && volume.available <= configuration.punchSlack { return }
      let start = unit * unitBlocks
      let count = min(unitBlocks, end - start)
      // Of a chunk that is not in memory no more is known than that the run itself is free.
      let isFree =
        slot.map { table.isFree($0, start, count) }
        ?? (piece.start <= start && start + count <= piece.start + piece.count)
      guard isFree, !isBeingBacked(volume, chunk, start) else { continue }
      if configuration.fault != .punchAfterReuse {
        holdFree(Piece(key: piece.key, start: start, count: count))
      }
      let base = UInt64(chunk * SpaceFormat.chunkBlocks)
      let address = BlockAddress(volume: volume.index, block: base + UInt64(start))
      Self.append(BlockRun(address, count), to: &punches, from: punchHead)
    }
  }

  /// Whether the unit at `start` is within the range that is being allocated.
  private func isBeingBacked(_ volume: VolumeSpace, _ chunk: Int, _ start: Int) -> Bool {
    guard let range = volume.backing.underWay else { return false }
    let run = blockRun(range)
    let block = UInt64(chunk * SpaceFormat.chunkBlocks + start)
    return run.address.block <= block && block < run.address.block + UInt64(run.count)
  }

  /// Whether freed ranges wait to be discarded.
  package var hasPunches: Bool { punchHead < punches.count }

  /// The next freed range to discard on its device, nil when there is none. At most 32 MiB.
  package func nextPunch() -> DeviceRange? {
    guard punchHead < punches.count else {
      punches.removeAll(keepingCapacity: true)
      punchHead = 0
      return nil
    }
    let run = punches[punchHead]
    punchHead += 1
    return deviceRange(run)
  }

  /// The discard ended; with an error the blocks are free all the same, and when the device can't
  /// do it at all (EOPNOTSUPP) it is not asked again.
  package func punchDone(_ range: DeviceRange, error: Int32) {
    if configuration.fault == .punchAfterReuse { return }
    let run = blockRun(range)
    let volume = volumes[run.address.volume]
    let piece = firstPiece(run.address, run.count)
    if error == 0 && volume.isSparse {
      if let slot = table.find(piece.key) {
        for unit in piece.start / unitBlocks...(piece.start + piece.count - 1) / unitBlocks {
          setBacked(slot, unit: unit, false)
        }
      }
      volume.backing.spaceReturned()
    }
    if error == errnoNotSupported { volume.punches = false }
    unhold(piece)
    unsettleBacking(volume, piece.group)
  }

  func deviceRange(_ run: BlockRun) -> DeviceRange {
    DeviceRange(
      device: .volume(run.address.volume), offset: run.address.byteOffset,
      length: UInt64(run.count) << blockShift)
  }

  func blockRun(_ range: DeviceRange) -> BlockRun {
    BlockRun(
      BlockAddress(volume: Int(range.device.raw) - 1, block: range.offset >> blockShift),
      Int(range.length >> blockShift))
  }
}
