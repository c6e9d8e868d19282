extension SpaceMap {
  /// Compares every counter with the bitmaps in memory, and the states of blocks with each other;
  /// stops the process when they differ. For tests and the simulator: takes time in proportion to
  /// what is in memory.
  package func verify() {
    var chunks: [UInt64: (reserved: Int, held: Int, available: Int, lost: Int)] = [:]
    for slot in 0..<table.slotCount where table.infos[slot].isPresent {
      let info = table.infos[slot]
      verifyChunk(slot)
      let group = (UInt64(info.volume) << 48) | UInt64(info.group)
      let sum = chunks[group] ?? (0, 0, 0, 0)
      chunks[group] = (
        sum.reserved + Int(info.reserved), sum.held + Int(info.held),
        sum.available + Int(info.available), sum.lost + Int(info.lost)
      )
      invariant(
        info.isDirty == dirtyChunks.contains(Int32(slot)), "the list of dirty chunks is wrong")
    }
    for key in sealed.keys {
      let slot = table.find(key)
      invariant(slot.map { table.infos[$0].isQuarantined } ?? true, "a chunk in memory is sealed")
      let g = (key & 0xFFFF_FFFF_FFFF) / UInt64(SpaceFormat.chunksPerGroup)
      let group = (key >> 48) << 48 | g
      chunks[group, default: (0, 0, 0, 0)].held += sealedCount(key)
    }
    var queued = Array(repeating: 0, count: volumes.count)
    for run in deltas { queued[run.address.volume] += run.count }
    for volume in volumes { verifyVolume(volume, queued: queued[volume.index], chunks) }
    invariant(used == volumes.reduce(0) { $0 + $1.used }, "`used` is not the volumes' sum")
    invariant(reserved == volumes.reduce(0) { $0 + $1.reserved }, "`reserved` is not the sum")
    invariant(releasedPending == volumes.reduce(0) { $0 + $1.held }, "`releasedPending` is wrong")
    invariant(backedFree == volumes.reduce(0) { $0 + $1.available }, "`backedFree` is wrong")
    invariant(metadata <= used && metadata >= 0, "more metadata than blocks in use")
  }

  private func verifyChunk(_ slot: Int) {
    let info = table.infos[slot]
    var (used, reserved, held, overlap) = (0, 0, 0, UInt64(0))
    for w in 0..<SpaceFormat.chunkBlocks / 64 {
      let (u, r, h) = (table.used(slot)[w], table.reserved(slot)[w], table.held(slot)[w])
      used += u.nonzeroBitCount
      reserved += r.nonzeroBitCount
      held += h.nonzeroBitCount
      overlap |= u & r | u & h | r & h
    }
    invariant(overlap == 0, "a block is in two states")
    invariant(
      used == info.used && reserved == info.reserved && held == info.held,
      "the counters of chunk \(info.chunk) differ from its bitmaps")
    var outside: UInt64 = 0
    let check = { (w: Int, mask: UInt64) in outside |= ~self.table.freeWord(slot, w) & mask }
    forEachWord(0, Int(info.first), check)
    forEachWord(Int(info.end), SpaceFormat.chunkBlocks - Int(info.end), check)
    invariant(outside == 0, "label blocks, or blocks behind the end, are in use")
    var available = 0
    for unit in 0..<SpaceFormat.chunkBlocks / unitBlocks where table.isBacked(slot, unit: unit) {
      available += table.freeInUnit(slot, unit)
    }
    invariant(available == info.available, "chunk \(info.chunk) miscounts what is available")
  }

  private func verifyVolume(
    _ v: VolumeSpace, queued: Int,
    _ chunks: [UInt64: (reserved: Int, held: Int, available: Int, lost: Int)]
  ) {
    var (inUse, available, reserved, held) = (0, 0, 0, 0)
    for g in 0..<v.groupCount {
      let state = v.group(g)
      let sum = chunks[UInt64(v.index) << 48 | UInt64(g)] ?? (0, 0, 0, 0)
      let expected = v.isSparse ? sum.available : state.free - sum.reserved - sum.held - sum.lost
      if state.owner == 0 || state.owner == owner {
        invariant(state.available == expected, "group \(g) miscounts what is available")
      }
      inUse += v.capacity(ofGroup: g) - state.free
      available += state.available
      reserved += sum.reserved
      held += sum.held
    }
    for page in v.pages {
      guard let page else { continue }
      var sum = 0
      for i in 0..<SpaceFormat.groupsPerPage { sum += page.groups[i].available }
      invariant(sum == page.available, "a page miscounts what is available")
    }
    invariant(v.used == inUse - queued, "volume \(v.index) miscounts what is in use")
    invariant(v.available == available, "volume \(v.index) miscounts what is available")
    invariant(v.reserved == reserved, "volume \(v.index) miscounts what is reserved")
    invariant(v.held == held + queued, "volume \(v.index) miscounts what waits to be free")
  }
}

extension SpaceMap {
  /// Chunks whose bitmaps are in memory.
  package var chunksInMemory: Int { table.count }
  /// Chunks that have left memory with held blocks.
  package var chunksSealed: Int { sealed.count }

  /// About how much memory the map takes.
  package var memoryBytes: Int {
    var pages = 0
    for v in volumes { pages += v.pages.count * 8 + v.pages.count { $0 != nil } * 1100 }
    let lists =
      6 * sealed.capacity + deltas.capacity + releases.capacity + punches.capacity
      + nodes.pairs.capacity
    return table.memoryBytes + pages + lists * 16 + volumes.count * 256 + blockSize
  }
}
