// The transitions between the states of blocks (ChunkTable.swift): the only code that changes
// bitmaps, and all counters with them. Each checks that every block comes from the right state.

extension SpaceMap {
  /// A part of a range that lies within one chunk.
  struct Piece {
    var key: UInt64
    /// Relative to the chunk.
    var start: Int
    var count: Int

    var group: Int { Int(key & 0xFFFF_FFFF_FFFF) / SpaceFormat.chunksPerGroup }
  }

  /// The part of `address` ..< `address + count` in the first chunk that it touches.
  @inline(__always)
  func firstPiece(_ address: BlockAddress, _ count: Int) -> Piece {
    let block = Int(address.block)
    let start = block % SpaceFormat.chunkBlocks
    return Piece(
      key: UInt64(address.volume) << 48 | UInt64(block / SpaceFormat.chunkBlocks), start: start,
      count: min(count, SpaceFormat.chunkBlocks - start))
  }

  /// Calls `body` for each chunk that the range touches, in ascending order.
  @inline(__always)
  func forEachPiece(_ address: BlockAddress, _ count: Int, _ body: (Piece) -> Void) {
    invariant(
      count > 0 && address.volume < volumes.count
        && address.block + UInt64(count) <= volumes[address.volume].blocks,
      "\(count) blocks at \(address.raw) are not in the pool")
    var at = address
    var left = count
    while left > 0 {
      let piece = firstPiece(at, left)
      body(piece)
      at = at + UInt64(piece.count)
      left -= piece.count
    }
  }

  // MARK: Available blocks

  private func addAvailable(_ slot: Int, _ n: Int) {
    if n == 0 { return }
    let info = table.infos[slot]
    table.infos[slot].available = UInt16(Int(info.available) + n)
    volumes[info.volume].addAvailable(n, group: info.group)
    backedFree += n
  }

  // MARK: Transitions

  /// free → reserved.
  func reserveBlocks(_ slot: Int, _ start: Int, _ count: Int) {
    invariant(table.isFree(slot, start, count), "blocks are reserved that are not free")
    let words = table.reserved(slot)
    forEachWord(start, count) { w, mask in words[w] |= mask }
    table.infos[slot].reserved += UInt16(count)
    volumes[table.infos[slot].volume].reserved += count
    reserved += count
    addAvailable(slot, -table.backedCount(slot, start, count))
  }

  /// reserved → free.
  func unreserveBlocks(_ slot: Int, _ start: Int, _ count: Int) {
    clear(table.reserved(slot), start, count, "blocks are given back that were not reserved")
    table.infos[slot].reserved -= UInt16(count)
    volumes[table.infos[slot].volume].reserved -= count
    reserved -= count
    addAvailable(slot, table.backedCount(slot, start, count))
  }

  /// reserved → used.
  func useBlocks(_ slot: Int, _ start: Int, _ count: Int) {
    clear(table.reserved(slot), start, count, "blocks are mapped that were not reserved")
    let words = table.used(slot)
    forEachWord(start, count) { w, mask in words[w] |= mask }
    let info = table.infos[slot]
    let volume = volumes[info.volume]
    table.infos[slot].reserved -= UInt16(count)
    table.infos[slot].used += UInt16(count)
    volume.reserved -= count
    volume.used += count
    reserved -= count
    used += count
    volume.updateGroup(info.group) { state in
      if state.owner == 0 { state.owner = owner }
      state.free -= count
    }
    markDirty(slot)
    markDirty(volume, group: info.group)
  }

  /// used → held. The volume's and the pool's counters have been moved by the caller.
  func holdReleased(_ slot: Int, _ start: Int, _ count: Int) {
    clear(table.used(slot), start, count, "blocks are released that were not in use")
    let words = table.held(slot)
    forEachWord(start, count) { w, mask in words[w] |= mask }
    let info = table.infos[slot]
    table.infos[slot].used -= UInt16(count)
    table.infos[slot].held += UInt16(count)
    volumes[info.volume].updateGroup(info.group) { $0.free += count }
    markDirty(slot)
    markDirty(volumes[info.volume], group: info.group)
  }

  /// held → free, in a chunk that is in memory.
  func unholdBlocks(_ slot: Int, _ start: Int, _ count: Int) {
    clear(table.held(slot), start, count, "blocks become free that were not held")
    table.infos[slot].held -= UInt16(count)
    volumes[table.infos[slot].volume].held -= count
    releasedPending -= count
    addAvailable(slot, table.backedCount(slot, start, count))
  }

  /// free → held, for the punch, in a chunk that is in memory.
  func holdFree(_ slot: Int, _ start: Int, _ count: Int) {
    invariant(table.isFree(slot, start, count), "blocks are punched that are not free")
    let words = table.held(slot)
    forEachWord(start, count) { w, mask in words[w] |= mask }
    table.infos[slot].held += UInt16(count)
    volumes[table.infos[slot].volume].held += count
    releasedPending += count
    addAvailable(slot, -table.backedCount(slot, start, count))
  }

  /// Whether a unit of a sparse file is backed; moves its free blocks into or out of `available`.
  func setBacked(_ slot: Int, unit: Int, _ on: Bool) {
    if table.isBacked(slot, unit: unit) == on { return }
    table.setBacked(slot, unit: unit, on)
    let free = table.freeInUnit(slot, unit)
    addAvailable(slot, on ? free : -free)
  }

  /// Clears bits that must all be set.
  private func clear(
    _ words: UnsafeMutablePointer<UInt64>, _ start: Int, _ count: Int, _ message: StaticString
  ) {
    forEachWord(start, count) { w, mask in
      invariant(words[w] & mask == mask, "\(message)")
      words[w] &= ~mask
    }
  }

  // MARK: Runs

  /// Gives a reserved run, or an unused part of one, back: allocatable again at once.
  package func returnRun(_ run: BlockRun) { cancelReservation(run.address, run.count) }

  /// The same for a range that was never mapped, of any length (a large write that failed).
  package func cancelReservation(_ address: BlockAddress, _ count: Int) {
    forEachPiece(address, count) { p in
      unreserveBlocks(residentSlot(p.key, "give back"), p.start, p.count)
    }
  }

  /// Recovery (R17): reserves blocks that a large write of the log was put into. False, and
  /// nothing changed, when one of them is not free: the log and the space tree contradict.
  package func reserve(_ address: BlockAddress, _ count: Int) throws(SpaceWait) -> Bool {
    guard count > 0, address.volume < volumes.count,
      address.block < volumes[address.volume].blocks,
      UInt64(count) <= volumes[address.volume].blocks - address.block
    else { return false }
    let volume = volumes[address.volume]
    var pinned: [Int] = []
    defer { for slot in pinned { table.infos[slot].pins -= 1 } }
    var at = address
    var left = count
    while left > 0 {
      let piece = firstPiece(at, left)
      let slot = try load(volume, Int(piece.key & 0xFFFF_FFFF_FFFF))
      table.infos[slot].pins += 1
      pinned.append(slot)
      let owner = volume.group(table.infos[slot].group).owner
      guard table.isFree(slot, piece.start, piece.count), owner == 0 || owner == self.owner else {
        return false
      }
      at = at + UInt64(piece.count)
      left -= piece.count
    }
    forEachPiece(address, count) { p in
      reserveBlocks(residentSlot(p.key, "reserve"), p.start, p.count)
    }
    return true
  }

  // MARK: Notes

  /// The maps refer to these reserved blocks now; part of the next checkpoint.
  package func noteAllocated(_ address: BlockAddress, _ count: Int) {
    forEachPiece(address, count) { p in
      useBlocks(residentSlot(p.key, "allocate"), p.start, p.count)
    }
  }

  /// The maps refer to these blocks no more; part of the next checkpoint. They stay busy until
  /// its root is durable, and until the punch is done where there is one.
  package func noteReleased(_ address: BlockAddress, _ count: Int) {
    forEachPiece(address, count) { p in
      let volume = volumes[Int(p.key >> 48)]
      volume.used -= p.count
      volume.held += p.count
      used -= p.count
      releasedPending += p.count
      totalsAreDirty = true
      let at = BlockAddress(
        volume: volume.index,
        block: (p.key & 0xFFFF_FFFF_FFFF) * UInt64(SpaceFormat.chunkBlocks) + UInt64(p.start))
      if let slot = table.find(p.key), !table.infos[slot].isQuarantined {
        holdReleased(slot, p.start, p.count)
        if configuration.fault == .freedBlocksReusedBeforeCheckpoint {
          unholdBlocks(slot, p.start, p.count)
        } else {
          Self.append(BlockRun(at, p.count), to: &releases, from: settledReleases)
        }
      } else {
        Self.append(BlockRun(at, p.count), to: &deltas, from: 0)
      }
    }
  }

  /// Appends a run, as part of the last one where it goes on within the same chunk; entries
  /// before `from` stay as they are.
  static func append(_ run: BlockRun, to list: inout [BlockRun], from: Int) {
    if list.count > from, let last = list.last, last.end == run.address,
      Int(run.address.block) % SpaceFormat.chunkBlocks != 0
    {
      list[list.count - 1].count += run.count
    } else {
      list.append(run)
    }
  }
}
