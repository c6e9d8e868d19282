package struct TreeKey: Hashable, Comparable, Sendable {
  package var hi: UInt64
  package var lo: UInt64
  @inline(__always) package init(hi: UInt64, lo: UInt64 = 0) {
    self.hi = hi
    self.lo = lo
  }
  @inline(__always) package static func < (a: Self, b: Self) -> Bool {
    a.hi < b.hi || (a.hi == b.hi && a.lo < b.lo)
  }
}

/// A value inside a node in memory: valid until the next call of any tree, store or cache.
package struct TreeValue {
  package let base: UnsafeRawPointer
  package let count: Int
  package var bytes: UnsafeRawBufferPointer { .init(start: base, count: count) }
}

package struct TreeEntry {
  package let key: TreeKey
  package let value: TreeValue
}

/// One copy-on-write B+tree in memory. A tree with dirty nodes must be kept until it is clean.
package final class Tree {
  package let store: NodeStore
  package let kind: NodeKind
  package let owner: ObjectID
  /// Where the tree is; final when `isDirty` is false. `.none`: empty.
  package private(set) var root: NodePointer
  /// Blocks born at or before this instant are shared with a snapshot (R10).
  package var branchInstant: Instant
  /// The birth of nodes that are made now; later than `branchInstant`.
  package var birth: Instant
  package var isDirty: Bool { false }
  package var isEmpty: Bool { root.isNone }
  /// Told of each node that the tree no longer refers to and that a snapshot still may.
  package var sharedRelease: ((NodePointer) -> Void)?

  package init(
    store: NodeStore, kind: NodeKind, owner: ObjectID, root: NodePointer = .none,
    branchInstant: Instant = 0, birth: Instant = 1
  ) {
    self.store = store
    self.kind = kind
    self.owner = owner
    self.root = root
    self.branchInstant = branchInstant
    self.birth = birth
  }

  package func lookup(_ key: TreeKey) throws(SpaceWait) -> TreeValue? { nil }
  /// The entry with the greatest key that is not above `key`.
  package func floor(_ key: TreeKey) throws(SpaceWait) -> TreeEntry? { nil }
  /// The entry with the smallest key that is not below `key`.
  package func ceiling(_ key: TreeKey) throws(SpaceWait) -> TreeEntry? { nil }
  /// Stores `value` (0...1,024 bytes) under `key`; true if the key was there before. `value` may
  /// not lie in a node.
  @discardableResult
  package func insertOrReplace(_ key: TreeKey, _ value: UnsafeRawBufferPointer) throws(SpaceWait)
    -> Bool
  { false }
  /// True if the key was there.
  @discardableResult
  package func remove(_ key: TreeKey) throws(SpaceWait) -> Bool { false }
  /// Overwrites bytes of a value in place; false if the key is not there.
  package func patch(_ key: TreeKey, offset: Int, _ bytes: UnsafeRawBufferPointer)
    throws(SpaceWait) -> Bool
  { false }
  /// Frees up to `maxNodes` leaves of a tree that is to be destroyed, telling each entry to
  /// `entry`; shared parts are left alone. True when the tree is empty. What was done before a
  /// throw stays done.
  package func pruneSome(maxNodes: Int, _ entry: (TreeEntry) -> Void) throws(SpaceWait) -> Bool {
    true
  }
  /// A cursor that starts at the first entry with a key not below `key`.
  package func cursor(from key: TreeKey) -> TreeCursor { TreeCursor(tree: self, key: key) }
}

/// Walks a tree forwards; changes between two calls are allowed.
package struct TreeCursor {
  let tree: Tree
  var key: TreeKey?
  init(tree: Tree, key: TreeKey) {
    self.tree = tree
    self.key = key
  }
  /// The next entry, nil at the end. After a throw it can be called again.
  package mutating func next() throws(SpaceWait) -> TreeEntry? { nil }
}
