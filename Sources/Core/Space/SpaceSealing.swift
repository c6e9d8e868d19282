// Held blocks of chunks that are not in memory.
//
// A checkpoint may release blocks in any number of chunks: a discard of 16 TiB touches half a
// million, 3 KiB each. A chunk whose new bitmap is stored may leave memory although some of its blocks
// must not be handed out before the root is durable; they are remembered here as runs, and
// are held again when it is loaded.

extension SpaceMap {
  /// More runs than that are not worth it: the chunk stays.
  private static let mostSealedRuns = 64

  /// A run within a chunk: start << 16 | count.
  private static func pack(_ start: Int, _ end: Int) -> UInt32 {
    UInt32(start) << 16 | UInt32(end - start)
  }
  private static func unpack(_ run: UInt32) -> (start: Int, count: Int) {
    (Int(run >> 16), Int(run & 0xFFFF))
  }

  /// Takes note of the held blocks of a chunk that is about to leave memory; false when they are in
  /// too many pieces.
  func seal(_ slot: Int) -> Bool {
    if table.infos[slot].held == 0 { return true }
    guard let runs = heldRuns(slot) else { return false }
    sealed[table.infos[slot].key] = runs
    table.infos[slot].held = 0
    return true
  }

  private func heldRuns(_ slot: Int) -> [UInt32]? {
    let words = table.held(slot)
    let chunkEnd = Int(table.infos[slot].end)
    var runs: [UInt32] = []
    var at = Int(table.infos[slot].first)
    func skip(_ bit: UInt64) {
      while at < chunkEnd {
        let rest = (bit == 0 ? words[at >> 6] : ~words[at >> 6]) >> UInt64(at & 63)
        let same = min(rest.trailingZeroBitCount, 64 - (at & 63))
        at += same
        if at & 63 != 0 || same == 0 { return }
      }
    }
    while true {
      skip(0)
      if at >= chunkEnd { return runs }
      let start = at
      skip(1)
      if runs.count == Self.mostSealedRuns { return nil }
      runs.append(Self.pack(start, min(at, chunkEnd)))
    }
  }

  /// Holds the blocks again of a chunk that was just loaded.
  func unseal(_ slot: Int) {
    guard let runs = sealed.removeValue(forKey: table.infos[slot].key) else { return }
    let words = table.held(slot)
    for run in runs {
      let (start, count) = Self.unpack(run)
      forEachWord(start, count) { w, mask in words[w] |= mask }
      table.infos[slot].held += UInt16(count)
    }
  }

  /// How many blocks of a chunk that is not in memory are held.
  func sealedCount(_ key: UInt64) -> Int {
    sealed[key]?.reduce(0) { $0 + Self.unpack($1).count } ?? 0
  }

  /// held → free, wherever the chunk is. In quarantine, which it may have come to when it was loaded
  /// again, they are lost like its other free blocks.
  func unhold(_ piece: Piece) {
    let slot = table.find(piece.key)
    if let slot, !table.infos[slot].isQuarantined {
      return unholdBlocks(slot, piece.start, piece.count)
    }
    takeSealed(piece)
    let volume = volumes[Int(piece.key >> 48)]
    volume.held -= piece.count
    releasedPending -= piece.count
    if let slot {
      table.infos[slot].lost += Int32(piece.count)
    } else {
      addAvailable(volume, piece, piece.count)
    }
  }

  private func takeSealed(_ piece: Piece) {
    var left: [UInt32] = []
    var found = 0
    for run in sealed[piece.key] ?? [] {
      let (start, count) = Self.unpack(run)
      let from = max(start, piece.start)
      let to = min(start + count, piece.start + piece.count)
      guard from < to else {
        left.append(run)
        continue
      }
      found += to - from
      if start < from { left.append(Self.pack(start, from)) }
      if to < start + count { left.append(Self.pack(to, start + count)) }
    }
    invariant(found == piece.count, "blocks become free that were not held")
    sealed[piece.key] = left.isEmpty ? nil : left
  }

  /// free → held, for the punch of blocks that are known to be free.
  func holdFree(_ piece: Piece) {
    if let slot = table.find(piece.key) { return holdFree(slot, piece.start, piece.count) }
    sealed[piece.key, default: []].append(Self.pack(piece.start, piece.start + piece.count))
    let volume = volumes[Int(piece.key >> 48)]
    volume.held += piece.count
    releasedPending += piece.count
    addAvailable(volume, piece, -piece.count)
  }

  /// Of a chunk that is not in memory: in a sparse file nothing of it counts as backed.
  private func addAvailable(_ volume: VolumeSpace, _ piece: Piece, _ n: Int) {
    guard !volume.isSparse else { return }
    volume.addAvailable(n, group: piece.group)
    backedFree += n
  }
}
