// What a disk's blocks are: a whole map, and over it, where a branch has changed little, its delta.
//
//     look-up ─▶ delta ─ nothing there ─▶ the parent snapshot's map
//
// A branch of a snapshot (a clone, a disk behind a mark) shares all of the snapshot's map. To change a
// block there it would have to copy the leaf and each node above it, 8 KiB a node with both copies: three
// times what a scattered write of 4 KiB itself takes. So a branch keeps its first changes in a
// small tree of its own, the delta, whose extents come before the snapshot's; some dozen fit
// one leaf. When it grows it is folded into a whole map (Destage/Fold.swift).
//
// Invariants
//  1. The blocks and nodes of a delta are its object's alone.
//  2. A hole extent covers only what the snapshot's map has.
//  3. While there is a delta, `full` is the snapshot's map, but in the midst of a fold, when it also has
//     some of what the delta has.

package struct DiskMap {
  /// The object's map, or that of the snapshot that it branches from.
  package let full: ExtentMap
  /// What the object has changed of it.
  package var delta: ExtentMap?

  package init(full: ExtentMap, delta: ExtentMap? = nil) {
    self.full = full
    self.delta = delta
  }

  /// What was born later is the object's alone.
  @inline(__always)
  package var branchInstant: Instant { full.tree.branchInstant }

  /// The run that starts at `block`, of at most `limit` blocks (1 or more).
  @inline(__always)
  package func lookup(_ block: BlockIndex, limit: Int) throws(SpaceWait) -> MapRun {
    guard let delta else { return try full.lookup(block, limit: limit) }
    return try lookup(delta, block, limit)
  }

  @inline(never)
  private func lookup(
    _ delta: ExtentMap, _ block: BlockIndex, _ limit: Int
  ) throws(SpaceWait) -> MapRun {
    switch try delta.cover(block, limit: limit) {
    case .gap(let count): return try full.lookup(block, limit: count)
    case .extent(let extent):
      let skip = block.raw - extent.first
      let count = min(limit, Int(extent.length - skip))
      if extent.isHole { return .hole(count: count) }
      return .mapped(
        address: extent.address + skip, count: count, birth: extent.birth,
        checksums: extent.checksums + Int(skip))
    }
  }

  /// How many blocks from `block` on, `limit` at most, the delta has nothing of.
  package func unchanged(_ block: BlockIndex, limit: Int) throws(SpaceWait) -> Int {
    guard let delta else { return limit }
    if case .gap(let count) = try delta.cover(block, limit: limit) { return count }
    return 0
  }

  /// Tells `body` what the whole map has in [first, first + count) and the delta does not hide.
  package func visible(
    _ first: BlockIndex, count: Int, _ body: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) {
    var at = first.raw
    let end = at + UInt64(count)
    while at < end {
      let n = try unchanged(BlockIndex(at), limit: Int(end - at))
      if n == 0, case .extent(let extent)? = try delta?.cover(BlockIndex(at), limit: 1) {
        at = extent.end
        continue
      }
      switch try full.lookup(BlockIndex(at), limit: n) {
      case .hole(let count): at += UInt64(count)
      case .mapped(let address, let count, let birth, _):
        body(address, count, birth)
        at += UInt64(count)
      }
    }
  }

  /// Blocks of the snapshot's map born after `instant` that the delta hides. Costs a look-up for each
  /// extent of the delta.
  package func hidden(bornAfter instant: Instant) throws(SpaceWait) -> UInt64 {
    guard let delta else { return 0 }
    var sum: UInt64 = 0
    var cursor = delta.tree.cursor()
    while let entry = try cursor.next() {
      let extent = Extent(entry)
      var at = extent.first
      while at < extent.end {
        switch try full.lookup(BlockIndex(at), limit: Int(extent.end - at)) {
        case .hole(let count): at += UInt64(count)
        case .mapped(_, let count, let birth, _):
          if birth > instant { sum += UInt64(count) }
          at += UInt64(count)
        }
      }
    }
    return sum
  }
}
