// Choosing where runs come from.
//
// Locality first: exactly the wanted block, then behind it in its chunk, then the other chunks of
// its group. Without a neighbour, or when there is nothing: the volume with most free space, and in
// it the group that `VolumeSpace.pickGroup` names. A group whose search finds nothing as long as
// the target remembers how long its longest run can be (`bound`), so that it is not searched in
// vain again; a few groups are tried for the full length, then the target is quartered, down to the
// minimum. For the minimum every group that may serve is tried, so that no space stays unfound.
//
// Data keeps away from chunks that hold metadata nodes as long as there are others, metadata seeks
// them: nodes stay close together. Nodes are single blocks, so metadata takes the next free ones of its
// chunks, however few they are in one place: to look for longer runs would mean a search through the
// group for each few nodes, where space is in pieces. When its chunks are full it goes on in one that
// is mostly free: among data, free blocks may be places that were left for more data (HomePlacer).
// Either takes what the other has, in the end.

extension SpaceMap {
  /// What a search is for.
  struct RunSearch {
    var want: Int
    var minimum: Int
    var forMetadata = false
    /// Metadata: a chunk without nodes serves only with so many available blocks.
    var spare = 0
    /// Metadata: the chunks around this one don't serve, nor, with `otherVolume`, its volume.
    var apartFrom: BlockAddress?
    var otherVolume = false
    /// 2: at least 32 MiB lie between; 1: another chunk; 0: anywhere.
    var chunksApart = 2
  }

  /// How many groups are tried for each target but the minimum.
  private static let groupsTried = 4

  /// Up to `want` (at most 8,192) contiguous free backed blocks, marked as reserved; at least
  /// `minimum`.
  ///
  /// `near` is the block wanted first, usually the one right behind the disk's last run: it is
  /// tried first, then its chunk, its group, and then the volume with most free space. Never
  /// takes from the metadata reserve, unless the run is for blocks that were `promised` a home: of
  /// these, at the worst, up to half of what is left. Throws `.backing` when only blocks without backing are
  /// left; nil: no space.
  package func allocateRun(
    near: BlockAddress?, want: Int, minimum: Int, promised: Bool = false
  ) throws(SpaceWait) -> BlockRun? {
    invariant(minimum > 0 && want >= minimum, "a run of \(want), at least \(minimum), is asked for")
    let least = min(minimum, SpaceFormat.chunkBlocks)
    let free = promised ? max(available, backedFree / 2) : available
    let longest = max(least, configuration.scatteredRun ?? SpaceFormat.chunkBlocks)
    let most = min(want, longest, free)
    if most >= least {
      let search = RunSearch(want: most, minimum: least)
      let scatters = configuration.scatteredRun != nil
      if let run = try findRun(near: scatters ? nil : near, search) {
        take(run)
        if scatters { volumes[run.address.volume].moveToNextGroup() }
        return run
      }
    }
    if let range = try backingForRuns() { throw .backing(range) }
    return nil
  }

  /// This very block, marked as reserved, for one that was promised a home. False when it is not free
  /// and backed, or its chunk is not in memory.
  package func allocate(at address: BlockAddress) -> Bool {
    guard address.volume < volumes.count, address.block < volumes[address.volume].blocks,
      max(available, backedFree / 2) > 0
    else { return false }
    let volume = volumes[address.volume]
    let chunk = Int(address.block) / SpaceFormat.chunkBlocks
    guard volume.group(chunk / SpaceFormat.chunksPerGroup).available > 0,
      let slot = table.find(UInt64(volume.index) << 48 | UInt64(chunk)),
      table.runLength(slot, at: Int(address.block) % SpaceFormat.chunkBlocks, limit: 1) == 1
    else { return false }
    take(BlockRun(address, 1))
    return true
  }

  /// Marks a run that a search found as reserved.
  func take(_ run: BlockRun) {
    let piece = firstPiece(run.address, run.count)
    invariant(piece.count == run.count, "a run crosses chunks")
    reserveBlocks(residentSlot(piece.key, "take"), piece.start, piece.count)
  }

  /// A run for `search`; its chunk is in memory, its blocks are still free.
  func findRun(near: BlockAddress?, _ search: RunSearch) throws(SpaceWait) -> BlockRun? {
    if let near, near.volume < volumes.count, near.block < volumes[near.volume].blocks,
      let run = try findBehind(near, search)
    {
      return run
    }
    var target = search.want
    if let volume = volumeWithMost(search),
      let run = try findRun(in: volume, target: target, search)
    {
      return run
    }
    while true {
      for volume in volumesByAvailable() where serves(volume, search) {
        if let run = try findRun(in: volume, target: target, search) { return run }
      }
      if target == search.minimum { return nil }
      target = max(search.minimum, target / 4)
    }
  }

  private func serves(_ volume: VolumeSpace, _ search: RunSearch) -> Bool {
    guard volume.available >= search.minimum else { return false }
    guard search.otherVolume, let other = search.apartFrom else { return true }
    return other.volume != volume.index
  }

  /// The first choice, without sorting: the volume with most available blocks.
  private func volumeWithMost(_ search: RunSearch) -> VolumeSpace? {
    var best: VolumeSpace?
    for volume in volumes where volume.available > best?.available ?? 0 && serves(volume, search) {
      best = volume
    }
    return best
  }

  /// The volumes with most available blocks first, lower numbers first among equals.
  private func volumesByAvailable() -> [VolumeSpace] {
    if volumes.count == 1 { return volumes }
    return volumes.sorted {
      $0.available == $1.available ? $0.index < $1.index : $0.available > $1.available
    }
  }

  // MARK: Within a volume

  private func findRun(
    in volume: VolumeSpace, target: Int, _ search: RunSearch
  ) throws(SpaceWait) -> BlockRun? {
    var tries = 0
    var skipped: [Int] = []
    defer {
      // Bounds that this search lowered only to get past groups that don't serve *it*.
      for g in skipped { volume.updateGroup(g) { $0.bound = SpaceFormat.chunkBlocks } }
    }
    while let g = volume.pickGroup(target: target) {
      let spread = !volume.isSparse && !search.forMetadata
      let start = spread ? volume.rotor % SpaceFormat.chunksPerGroup : 0
      let found = try searchGroup(volume, g, startChunk: start, target: target, search)
      if let run = found.run {
        if !search.forMetadata {
          volume.currentGroup = g
          volume.rotor &+= 5
        }
        return run
      }
      volume.updateGroup(g) { $0.bound = min(found.longest, target - 1) }
      if found.isPartial { skipped.append(g) }
      tries += 1
      if tries >= Self.groupsTried && target > search.minimum { return nil }
    }
    return nil
  }

  /// Behind `near`: there, in its chunk, in its group.
  private func findBehind(
    _ near: BlockAddress, _ search: RunSearch
  ) throws(SpaceWait) -> BlockRun? {
    let volume = volumes[near.volume]
    guard serves(volume, search) else { return nil }
    let chunk = Int(near.block) / SpaceFormat.chunkBlocks
    let g = chunk / SpaceFormat.chunksPerGroup
    guard volume.group(g).available >= search.minimum else { return nil }
    if !isExcluded(volume, chunk, search), let slot = try usable(volume, chunk),
      search.forMetadata || !table.infos[slot].isMetadata
    {
      let at = Int(near.block) % SpaceFormat.chunkBlocks
      let exact = table.runLength(slot, at: at, limit: search.want)
      if exact >= search.minimum {
        return BlockRun(near, exact)
      }
      let found = find(slot, from: at, search)
      if found.count >= enough(search) { return run(volume, chunk, found) }
    }
    // Of metadata's chunks that is what they have in all, in whatever pieces.
    let target = max(search.minimum, search.want / 4)
    guard search.forMetadata || volume.group(g).bound >= target else { return nil }
    let found = try searchGroup(
      volume, g, startChunk: chunk % SpaceFormat.chunksPerGroup, target: target, search)
    if found.run == nil, !found.isPartial {
      volume.updateGroup(g) { $0.bound = min(found.longest, target - 1) }
    }
    return found.run
  }

  /// A run of at least `target` blocks in a group, if possible of `want`; or how long the longest
  /// run may be.
  private func searchGroup(
    _ volume: VolumeSpace, _ g: Int, startChunk: Int, target: Int, _ search: RunSearch
  ) throws(SpaceWait) -> (run: BlockRun?, longest: Int, isPartial: Bool) {
    var best: BlockRun?
    // The best one's chunk stays in memory while others are loaded.
    var bestSlot: Int?
    defer { if let bestSlot { table.infos[bestSlot].pins -= 1 } }
    var longest = 0
    var isPartial = false
    for sweep in 0..<2 {
      for i in 0..<SpaceFormat.chunksPerGroup {
        let chunk = g * SpaceFormat.chunksPerGroup + (startChunk + i) % SpaceFormat.chunksPerGroup
        guard chunk < volume.chunkCount else { continue }
        if isExcluded(volume, chunk, search) {
          isPartial = true
          continue
        }
        if sweep == 0 && !isPreferred(volume, chunk, search) { continue }
        guard let slot = try usable(volume, chunk) else {
          if !volume.isSparse { isPartial = true }
          continue
        }
        let available = Int(table.infos[slot].available)
        if available < target {
          longest = max(longest, available)
          continue
        }
        if !suits(table.infos[slot], search, target: target) {
          isPartial = true
          continue
        }
        let found = find(slot, from: 0, search)
        longest = max(longest, found.count)
        if found.count >= search.want || search.forMetadata && found.count > 0 {
          return (run(volume, chunk, found), longest, isPartial)
        }
        if found.count >= target && found.count > best?.count ?? 0 {
          best = run(volume, chunk, found)
          if let bestSlot { table.infos[bestSlot].pins -= 1 }
          table.infos[slot].pins += 1
          bestSlot = slot
        }
      }
      if best != nil { break }
    }
    return (best, longest, isPartial)
  }

  /// What a chunk has for a search.
  private func find(_ slot: Int, from: Int, _ search: RunSearch) -> (start: Int, count: Int) {
    search.forMetadata
      ? table.firstRun(slot, from: from, limit: search.want)
      : table.findRun(slot, from: from, want: search.want)
  }

  /// How long a run must be for its place behind what came before.
  private func enough(_ search: RunSearch) -> Int {
    search.forMetadata ? 1 : min(search.want, max(search.minimum, search.want / 4))
  }

  /// The first sweep over a group: data in chunks without metadata, metadata in chunks with it.
  private func isPreferred(_ volume: VolumeSpace, _ chunk: Int, _ search: RunSearch) -> Bool {
    let key = UInt64(volume.index) << 48 | UInt64(chunk)
    guard let slot = table.find(key) else { return !search.forMetadata }
    return table.infos[slot].isMetadata == search.forMetadata
  }

  /// Whether a chunk may serve: one of the search's own kind always, of the other in need.
  private func suits(_ chunk: ChunkInfo, _ search: RunSearch, target: Int) -> Bool {
    chunk.isMetadata == search.forMetadata
      || (search.forMetadata ? Int(chunk.available) >= search.spare : target == search.minimum)
  }

  /// Whether a chunk is too close to what the run shall be apart from.
  private func isExcluded(_ volume: VolumeSpace, _ chunk: Int, _ search: RunSearch) -> Bool {
    guard let other = search.apartFrom, other.volume == volume.index else { return false }
    return abs(Int(other.block) / SpaceFormat.chunkBlocks - chunk) < search.chunksApart
  }

  /// The chunk's slot; nil when nothing can come from it now: a chunk of a sparse file that is not in
  /// memory has no backed blocks, and a device may refuse to read its bitmap.
  private func usable(_ volume: VolumeSpace, _ chunk: Int) throws(SpaceWait) -> Int? {
    if let slot = table.find(UInt64(volume.index) << 48 | UInt64(chunk)) { return slot }
    if volume.isSparse { return nil }
    do throws(SpaceWait) {
      return try load(volume, chunk)
    } catch {
      guard case .damaged(let pointer) = error, backend.isRefused(pointer) else { throw error }
      return nil
    }
  }

  private func run(
    _ volume: VolumeSpace, _ chunk: Int, _ found: (start: Int, count: Int)
  ) -> BlockRun {
    BlockRun(
      BlockAddress(
        volume: volume.index, block: UInt64(chunk * SpaceFormat.chunkBlocks + found.start)),
      found.count)
  }
}
