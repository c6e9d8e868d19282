// Bringing chunks into memory and dropping them.

extension SpaceMap {
  var backend: any ChunkStore {
    guard let store else { invariantBroken("a space map without a store") }
    return store
  }

  /// The slot of a chunk that must be in memory because it has reserved, held or changed blocks.
  func residentSlot(_ key: UInt64, _ what: StaticString) -> Int {
    guard let slot = table.find(key) else {
      invariantBroken(
        "\(what): chunk \(key & 0xFFFF_FFFF_FFFF) of volume \(key >> 48) is not loaded")
    }
    return slot
  }

  /// The slot of a chunk, loaded when need be. The slot is valid until the next load. A chunk whose
  /// bitmap is damaged is in quarantine: it has no blocks to give, and stays in memory. Where a
  /// device only refuses to read it, `.damaged` is thrown: it is tried again.
  func load(_ volume: VolumeSpace, _ chunk: Int) throws(SpaceWait) -> Int {
    let key = UInt64(volume.index) << 48 | UInt64(chunk)
    if let slot = table.find(key) { return slot }
    let bounds = volume.bounds(ofChunk: chunk)
    let stored: UnsafeRawBufferPointer?
    do throws(SpaceWait) {
      stored = try storedBitmap(volume, chunk)
    } catch {
      guard case .damaged(let pointer) = error, !backend.isRefused(pointer) else { throw error }
      return try quarantine(volume, chunk)
    }
    makeRoom()
    let slot = table.add(
      ChunkInfo(
        key: key, first: UInt16(bounds.first), end: UInt16(bounds.end), isSparse: volume.isSparse))
    if let stored, let from = stored.baseAddress {
      let words = table.used(slot)
      for w in 0..<SpaceFormat.chunkBlocks / 64 { words[w] = from.u64(w * 8) }
      table.infos[slot].used = UInt16(countBits(stored))
    }
    unseal(slot)
    if !volume.isSparse && !isForeign(volume.group(table.infos[slot].group)) {
      let info = table.infos[slot]
      table.infos[slot].available = info.end - info.first - info.used - info.held
    }
    return slot
  }

  func isForeign(_ group: GroupState) -> Bool { group.owner != 0 && group.owner != owner }

  /// A chunk's bitmap in the space tree, checked; nil: no block is in use. Valid until the next
  /// call on the store.
  private func storedBitmap(
    _ volume: VolumeSpace, _ chunk: Int
  ) throws(SpaceWait) -> UnsafeRawBufferPointer? {
    let g = chunk / SpaceFormat.chunksPerGroup
    let group = volume.group(g)
    if group.owner == 0 || group.free == volume.capacity(ofGroup: g) { return nil }
    let key = SpaceKey.chunk(volume: volume.index, chunk: UInt64(chunk))
    guard let stored = try backend.value(key) else { return nil }
    let bounds = volume.bounds(ofChunk: chunk)
    try check(stored, bounds)
    // What the group word says must hold for the chunk alone at least.
    let inUse = countBits(stored)
    let sealed = sealedCount(UInt64(volume.index) << 48 | UInt64(chunk))
    let mayBeFree = volume.isSparse || isForeign(group) ? group.free : group.available
    guard inUse <= volume.capacity(ofGroup: g) - group.free,
      bounds.end - bounds.first - inUse <= mayBeFree + (volume.isSparse ? 0 : sealed)
    else { throw .damaged(.none) }
    return stored
  }

  private func countBits(_ bitmap: UnsafeRawBufferPointer) -> Int {
    guard let p = bitmap.baseAddress else { return 0 }
    var n = 0
    for w in 0..<SpaceFormat.chunkBlocks / 64 { n += p.u64(w * 8).nonzeroBitCount }
    return n
  }

  /// A bitmap has its size and no bits outside of its bounds.
  private func check(
    _ value: UnsafeRawBufferPointer, _ bounds: (first: Int, end: Int)
  ) throws(SpaceWait) {
    guard value.count == SpaceFormat.bitmapBytes, let p = value.baseAddress else {
      throw .damaged(.none)
    }
    var outside: UInt64 = 0
    forEachWord(0, bounds.first) { w, mask in outside |= p.u64(w * 8) & mask }
    forEachWord(bounds.end, SpaceFormat.chunkBlocks - bounds.end) { w, mask in
      outside |= p.u64(w * 8) & mask
    }
    if outside != 0 { throw .damaged(.none) }
  }

  /// Drops chunks until the table is within its limit, as far as there are any to drop.
  private func makeRoom() {
    while table.count >= configuration.chunkLimit {
      let evenBacked = table.count >= configuration.chunkLimit * 4
      guard let slot = table.victim(evenBacked: evenBacked), seal(slot) else { return }
      let info = table.infos[slot]
      if info.isSparse {
        forgetBacking(volumes[info.volume], info.group, Int(info.available))
      }
      table.remove(slot)
    }
  }

  func markDirty(_ slot: Int) {
    if table.infos[slot].isDirty { return }
    table.infos[slot].isDirty = true
    dirtyChunks.append(Int32(slot))
  }

  func markDirty(_ volume: VolumeSpace, group g: Int) {
    totalsAreDirty = true
    let page = volume.page(ofGroup: g)
    if page.isDirty { return }
    page.isDirty = true
    dirtyPages.append(.groups(volume: volume.index, page: g / SpaceFormat.groupsPerPage))
  }

  // MARK: Quarantine

  /// Puts a chunk whose bitmap can't be read into quarantine. How many of its blocks are free is
  /// not known, but how many the group has, and the other chunks of the group, is: what is left
  /// must not be promised to anybody.
  private func quarantine(_ volume: VolumeSpace, _ chunk: Int) throws(SpaceWait) -> Int {
    let g = chunk / SpaceFormat.chunksPerGroup
    var lost = volume.group(g).available
    let first = g * SpaceFormat.chunksPerGroup
    for other in first..<min(first + SpaceFormat.chunksPerGroup, volume.chunkCount)
    where other != chunk {
      lost -= try availableBlocks(volume, other)
    }
    lost = max(0, lost)
    makeRoom()
    let key = UInt64(volume.index) << 48 | UInt64(chunk)
    let slot = table.add(ChunkInfo(key: key, first: 0, end: 0, isSparse: volume.isSparse))
    table.infos[slot].isQuarantined = true
    table.infos[slot].lost = Int32(lost)
    table.infos[slot].pins = 1
    volume.addAvailable(-lost, group: g)
    backedFree -= lost
    return slot
  }

  private func availableBlocks(_ volume: VolumeSpace, _ chunk: Int) throws(SpaceWait) -> Int {
    let key = UInt64(volume.index) << 48 | UInt64(chunk)
    if let slot = table.find(key) { return Int(table.infos[slot].available) }
    if volume.isSparse { return 0 }
    do throws(SpaceWait) {
      let bounds = volume.bounds(ofChunk: chunk)
      let stored = try storedBitmap(volume, chunk)
      return bounds.end - bounds.first - (stored.map(countBits) ?? 0) - sealedCount(key)
    } catch {
      guard case .damaged(let pointer) = error, !backend.isRefused(pointer) else { throw error }
      return 0
    }
  }

  /// Released blocks of a chunk in quarantine stay in use, until a check with repair builds the
  /// bitmap anew; the pool goes on.
  func leak(_ volume: VolumeSpace, _ count: Int) {
    volume.used += count
    volume.held -= count
    used += count
    releasedPending -= count
    leaked += count
  }
}
