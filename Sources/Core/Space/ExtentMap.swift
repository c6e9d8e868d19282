/// What a disk's map says about a run of blocks.
package enum MapRun {
  /// Reads as zeros. The hole may be longer than `count`.
  case hole(count: Int)
  /// `count` blocks at `address` and on, with their CRC32Cs; valid until the next call.
  case mapped(
    address: BlockAddress, count: Int, birth: Instant, checksums: UnsafePointer<UInt32>)
}

/// The extent map of one disk over a tree of kind `.extents`.
package struct ExtentMap {
  package let tree: Tree
  package init(tree: Tree) { self.tree = tree }

  /// The run that starts at `block`, of at most `limit` blocks (1 or more).
  package func lookup(_ block: BlockIndex, limit: Int) throws(SpaceWait) -> MapRun {
    .hole(count: limit)
  }
  /// Maps `checksums.count` (1...128) blocks from `first` to `address` and on. Whatever was mapped
  /// there is told to `released`, in ascending order of blocks.
  package func assign(
    _ first: BlockIndex, to address: BlockAddress, checksums: UnsafeBufferPointer<UInt32>,
    birth: Instant, released: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) {}
  /// Makes a hole of [first, first + count), at most `maxLeaves` leaves of the tree at a time;
  /// returns the block to go on from (the end when done). What was done before a throw stays done.
  package func removeSome(
    _ first: BlockIndex, count: UInt64, maxLeaves: Int,
    released: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) -> BlockIndex { first + count }
  /// New checksums for blocks that were overwritten in place; all must be mapped.
  package func updateChecksums(_ first: BlockIndex, _ checksums: UnsafeBufferPointer<UInt32>)
    throws(SpaceWait)
  {}
}
