/// Gives out and takes back the address pairs of metadata nodes. `takeNode` and `releaseNode` are
/// called in the midst of a tree operation: they must not touch any tree.
package protocol NodeAllocator: AnyObject {
  /// Sees to it that the next `count` calls of `takeNode` succeed. Called before a tree operation
  /// changes anything; may itself read and change trees. Throws like any walk, or `.noSpace`.
  func prepareNodes(_ count: Int) throws(SpaceWait)
  /// The addresses of the two copies of a new node.
  func takeNode() -> (first: BlockAddress, second: BlockAddress)
  /// The tree in the works no longer refers to this pair; the last durable root may.
  func releaseNode(_ first: BlockAddress, _ second: BlockAddress)
}

/// One dirty node to write, to both addresses. The memory does not change until
/// `writebackDone` or `writebackFailed`.
package struct NodeWrite {
  package let slot: UInt32
  package let memory: UnsafeMutableRawPointer
  package let first: BlockAddress
  package let second: BlockAddress
}

/// A load under way: read one copy of `pointer` into `memory`, then `finishLoad`.
package struct NodeLoad {
  package let slot: UInt32
  package let memory: UnsafeMutableRawPointer
  package let pointer: NodePointer
}

package enum LoadStart {
  /// Read the first copy into the load's memory.
  case started(NodeLoad)
  /// Somebody else loads it: try the walk again when any load has ended.
  case alreadyLoading
  /// It is in memory: try the walk again.
  case present
  /// Both copies are known to be bad.
  case damaged
  /// No slot is free: try again later.
  case noMemory
}

package enum LoadOutcome: Equatable {
  /// In memory and verified.
  case ready
  /// This copy is bad: read the other one into the same memory.
  case tryOther
  /// In memory and verified from the second copy; copy `bad` (0: first, 1: second) is to be
  /// rewritten from memory. Pin the slot while that is done.
  case readyHeal(bad: Int)
  /// Neither copy is good; walks that need the node throw `.damaged` from now on.
  case damaged
}

package final class NodeStore {
  package let cache: BlockCache
  package unowned var allocator: (any NodeAllocator)?
  /// The number of the checkpoint in the works.
  package private(set) var checkpoint: UInt64
  /// Dirty nodes now, and the count from which on `needsSpill` asks for writing some back.
  package private(set) var dirtyCount = 0
  package var dirtyLimit: Int
  package var needsSpill: Bool { dirtyCount > dirtyLimit }

  package init(cache: BlockCache, checkpoint: UInt64) {
    self.cache = cache
    self.checkpoint = checkpoint
    dirtyLimit = 0
  }

  /// After the root of the last checkpoint is durable: nothing may be dirty.
  package func beginCheckpoint(_ number: UInt64) { checkpoint = number }

  package func beginLoad(_ pointer: NodePointer) -> LoadStart { .noMemory }
  package func finishLoad(_ load: NodeLoad, copy: Int, error: Int32) -> LoadOutcome { .damaged }

  /// Up to `limit` dirty nodes without dirty children, sealed and ready to be written. Call it
  /// again after they are done, until `dirtyCount` (or the tree's) is zero.
  package func writeback(into writes: inout [NodeWrite], limit: Int, only tree: Tree? = nil) {}
  /// Both copies are written: the node is clean, its parent (or `Tree.root`) points to it.
  package func writebackDone(_ write: NodeWrite) {}
  /// A copy could not be written: the node is dirty again, at new addresses if `relocate`.
  package func writebackFailed(_ write: NodeWrite, relocate: Bool) throws(SpaceWait) {}
}
