// A copy-on-write B+tree: reading, and the operations that change it (TreeChange has how).
//
// Invariants
//  1. All leaves are at the same depth; no node is empty; an empty tree has no node.
//  2. The key of a node's first entry is the lower bound of its range (for the leftmost nodes,
//     the least key); a key belongs to the last child whose key is not above it.
//  3. A dirty root that is an interior node has two children or more when an operation ends.
//
// An operation that throws has changed nothing: first all room it may need is prepared, then all
// nodes are found, then they are changed, and from then on nothing can fail.

/// A tree in memory. One with dirty nodes must be kept until it is clean.
package final class Tree {
  /// A node on the way from the root to a leaf, and the entry that was taken there.
  struct Step {
    var slot: CacheSlot
    var index: Int32
  }

  package let store: NodeStore
  package let kind: NodeKind
  package let owner: ObjectID
  /// Where the tree is; `.none`: empty. Out of date while `isDirty`.
  package private(set) var root: NodePointer
  /// Blocks born at or before this instant are shared with a snapshot (R10).
  package var branchInstant: Instant
  /// The birth of nodes that are made now; later than `branchInstant` when the tree is changed.
  package var birth: Instant
  /// Nodes that the tree has more than when it was opened, or when the owner last took this into
  /// its books and set it to zero.
  package var nodeDelta = 0
  /// Told of each node that the tree no longer refers to and that a snapshot still may. In the
  /// midst of an operation: it must not touch any tree.
  package var sharedRelease: ((NodePointer) -> Void)?

  /// The root's slot while it is dirty.
  private(set) var dirtyRoot = BlockCache.none
  let path: UnsafeMutablePointer<Step>
  /// The key inserted last: ascending runs split leaves behind it.
  var lastInserted = TreeKey.least

  // The store's, see there.
  var dirtyCount = 0
  var dirtyIndex = 0
  var firstReady = BlockCache.none
  var lastReady = BlockCache.none

  /// The tree that `root` points to; with `.none` an empty one.
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
    path = .allocate(capacity: Int(NodeFormat.maximumLevel) + 1)
  }

  deinit {
    store.dropped(self)
    path.deallocate()
  }

  /// Whether nodes are to be written before `root` is right again.
  package var isDirty: Bool { dirtyCount > 0 }
  package var isEmpty: Bool { dirtyRoot == BlockCache.none && root.isNone }
  /// Levels of nodes from the root to the leaves; 0 when empty.
  package var height: Int {
    if dirtyRoot != BlockCache.none { return Int(node(dirtyRoot).level) + 1 }
    return root.isNone ? 0 : Int(root.level) + 1
  }

  // MARK: Walking

  @inline(__always)
  func node(_ slot: CacheSlot) -> TreeNode { TreeNode(store.cache.memory(slot)) }

  /// Nodes of extent maps and dead lists may be another object's: a clone starts from its origin's
  /// map, and what was a disk's becomes its snapshot's.
  @inline(__always)
  private var nodeOwner: ObjectID? { kind.hasExtents || kind == .deadList ? nil : owner }

  /// The slot of the root; the tree must not be empty.
  @inline(__always)
  func rootSlot() throws(SpaceWait) -> CacheSlot {
    if dirtyRoot != BlockCache.none { return dirtyRoot }
    let known = store.cache.find(root.first, checksum: root.checksum, role: .node)
    if let known, node(known).kind == kind.rawValue, node(known).level == root.level,
      nodeOwner == nil || nodeOwner == node(known).owner
    {
      return known
    }
    throw known != nil || store.isDamaged(root) ? .damaged(root) : .node(root)
  }

  /// The slot of a child of an interior node.
  @inline(__always)
  func child(_ node: TreeNode, _ index: Int) throws(SpaceWait) -> CacheSlot {
    if let slot = node.dirtyChild(index) { return slot }
    return try store.resolve(
      node.childBytes(index), kind: kind, level: node.level - 1, owner: nodeOwner)
  }

  /// Follows `key` to its leaf, noting the path; returns the path's length, 0 for an empty tree.
  /// The leaf's index is that of the last entry not above `key`, or -1.
  @inline(__always)
  func descend(_ key: TreeKey) throws(SpaceWait) -> Int {
    if isEmpty { return 0 }
    var slot = try rootSlot()
    var depth = 0
    while true {
      let node = self.node(slot)
      var index = node.lastNotAbove(key)
      if node.isLeaf {
        path[depth] = Step(slot: slot, index: Int32(truncatingIfNeeded: index))
        return depth + 1
      }
      if index < 0 { index = 0 }
      path[depth] = Step(slot: slot, index: Int32(truncatingIfNeeded: index))
      slot = try child(node, index)
      depth += 1
    }
  }

  @inline(__always) func pathNode(_ depth: Int) -> TreeNode { node(path[depth].slot) }
  @inline(__always) func pathIndex(_ depth: Int) -> Int { Int(path[depth].index) }

  /// The lower bound of the leaf to the right of the path; nil when there is none.
  func upperBound(_ depth: Int) -> TreeKey? {
    var d = depth - 2
    while d >= 0 {
      if pathIndex(d) + 1 < pathNode(d).count { return pathNode(d).key(pathIndex(d) + 1) }
      d -= 1
    }
    return nil
  }

  /// The lower bound of the leaf of the path; nil when it is the tree's first.
  func lowerBound(_ depth: Int) -> TreeKey? {
    var d = depth - 2
    while d >= 0 {
      if pathIndex(d) > 0 { return pathNode(d).key(pathIndex(d)) }
      d -= 1
    }
    return nil
  }

  // MARK: Reading

  /// The value under `key`, valid until the next call of any tree, store or cache.
  package func lookup(_ key: TreeKey) throws(SpaceWait) -> TreeValue? {
    let depth = try descend(key)
    guard depth > 0 else { return nil }
    let (leaf, index) = (pathNode(depth - 1), pathIndex(depth - 1))
    return index >= 0 && leaf.key(index) == key ? leaf.value(index) : nil
  }

  /// The entry with the greatest key that is not above `key`.
  package func floor(_ key: TreeKey) throws(SpaceWait) -> TreeEntry? {
    let depth = try descendToFloor(key)
    return depth == 0 ? nil : pathNode(depth - 1).treeEntry(pathIndex(depth - 1))
  }

  /// As `descend`, but ends at the entry with the greatest key not above `key`; 0 without one.
  @inline(__always)
  func descendToFloor(_ key: TreeKey) throws(SpaceWait) -> Int {
    let depth = try descend(key)
    if depth == 0 || pathIndex(depth - 1) >= 0 { return depth }
    return try descendToPreviousLeaf(depth)
  }

  /// From a leaf without entries up to the key to the last entry of the leaf before.
  @inline(never)
  private func descendToPreviousLeaf(_ depth: Int) throws(SpaceWait) -> Int {
    guard let bound = lowerBound(depth) else { return 0 }
    let below =
      bound.lo > 0 ? TreeKey(hi: bound.hi, lo: bound.lo - 1) : TreeKey(hi: bound.hi - 1, lo: .max)
    // No leaf is empty, and all keys of that leaf are below its upper bound.
    let depth = try descend(below)
    return pathIndex(depth - 1) >= 0 ? depth : 0
  }

  /// The entry with the smallest key that is not below `key`.
  package func ceiling(_ key: TreeKey) throws(SpaceWait) -> TreeEntry? {
    let depth = try descendToCeiling(key)
    return depth == 0 ? nil : pathNode(depth - 1).treeEntry(pathIndex(depth - 1))
  }

  /// Ends at the entry with the smallest key not below `key`; 0 without one.
  func descendToCeiling(_ key: TreeKey) throws(SpaceWait) -> Int {
    var depth = try descend(key)
    while depth > 0 {
      let (leaf, index) = (pathNode(depth - 1), pathIndex(depth - 1))
      if index >= 0 && leaf.key(index) == key { return depth }
      if index + 1 < leaf.count {
        path[depth - 1].index += 1
        return depth
      }
      guard let bound = upperBound(depth) else { return 0 }
      depth = try descend(bound)
      // Usually the bound is the first key; if not, the first key is the next one above it.
      if pathIndex(depth - 1) < 0 {
        path[depth - 1].index = 0
        return depth
      }
      if pathNode(depth - 1).key(pathIndex(depth - 1)) == bound { return depth }
    }
    return 0
  }

  /// A cursor that starts at the first entry with a key not below `key`.
  package func cursor(from key: TreeKey = .least) -> TreeCursor {
    TreeCursor(tree: self, key: key)
  }

  /// Where the part ends that both trees have in common from `key` on: the end of the highest node
  /// that the ways to `key` share. Nil when they share none.
  package func sharedEnd(with other: Tree, from key: TreeKey) throws(SpaceWait) -> TreeKey? {
    let depth = try descend(key)
    let otherDepth = try other.descend(key)
    // Without an entry up to the key in its leaf, what reaches over the key is in another one.
    guard depth > 0, otherDepth > 0, pathIndex(depth - 1) >= 0 else { return nil }
    for d in 0..<depth {
      let slot = path[d].slot
      guard let e = (0..<otherDepth).first(where: { other.path[$0].slot == slot }) else { continue }
      let greatest = TreeKey(hi: .max, lo: 0)
      return min(bound(d) ?? greatest, other.bound(e) ?? greatest)
    }
    return nil
  }

  /// The end of the range of the path's node at `d`; nil for the end of the tree.
  private func bound(_ d: Int) -> TreeKey? { d == 0 ? nil : upperBound(d + 1) }

  // MARK: Changing

  /// Nodes that one change of a leaf may make or copy: the path, a split on each level, a root.
  var changeCost: Int { 2 * height + 2 }

  /// Stores `value` (0...1,024 bytes) under `key`; true if the key was there before. `value` must
  /// not lie in a node.
  @discardableResult
  package func insertOrReplace(_ key: TreeKey, _ value: UnsafeRawBufferPointer)
    throws(SpaceWait) -> Bool
  {
    try store.prepare(changeCost)
    return try preparedInsert(key, value)
  }

  /// As above, for values that are built as arrays.
  @discardableResult
  package func insertOrReplace(_ key: TreeKey, _ value: [UInt8]) throws(SpaceWait) -> Bool {
    try value.span.bytes.withUnsafeBytes { b throws(SpaceWait) in try insertOrReplace(key, b) }
  }

  /// As `insertOrReplace`, after `store.prepare`.
  @discardableResult
  func preparedInsert(_ key: TreeKey, _ value: UnsafeRawBufferPointer) throws(SpaceWait) -> Bool {
    invariant(value.count <= NodeFormat.maximumValue, "a tree value of \(value.count) bytes")
    let depth = try descend(key)
    if depth == 0 {
      plantRoot(key, value)
      return false
    }
    try requireStill(depth)
    makePathDirty(depth)
    return place(key, value, depth)
  }

  /// Removes the entry; true if the key was there.
  @discardableResult
  package func remove(_ key: TreeKey) throws(SpaceWait) -> Bool {
    try store.prepare(changeCost)
    let depth = try descend(key)
    guard depth > 0, pathIndex(depth - 1) >= 0, pathNode(depth - 1).key(pathIndex(depth - 1)) == key
    else { return false }
    try requireStill(depth)
    try requireSibling(depth, removing: pathIndex(depth - 1))
    cut(pathIndex(depth - 1)..<pathIndex(depth - 1) + 1, depth)
    return true
  }

  /// Overwrites bytes of a value in place, from `offset` on; false if the key is not there.
  package func patch(_ key: TreeKey, offset: Int, _ bytes: UnsafeRawBufferPointer)
    throws(SpaceWait) -> Bool
  {
    try store.prepare(changeCost)
    let depth = try descend(key)
    guard depth > 0, pathIndex(depth - 1) >= 0, pathNode(depth - 1).key(pathIndex(depth - 1)) == key
    else { return false }
    try requireStill(depth)
    patchFound(depth, offset: offset, bytes)
    return true
  }

  /// As above, for an array.
  package func patch(_ key: TreeKey, offset: Int, _ bytes: [UInt8]) throws(SpaceWait) -> Bool {
    try bytes.span.bytes.withUnsafeBytes { b throws(SpaceWait) in
      try patch(key, offset: offset, b)
    }
  }

  /// Overwrites bytes of the value that the path ends at.
  func patchFound(_ depth: Int, offset: Int, _ bytes: UnsafeRawBufferPointer) {
    let index = pathIndex(depth - 1)
    invariant(
      offset >= 0 && offset + bytes.count <= pathNode(depth - 1).valueLength(index),
      "a patch reaches beyond its value")
    makePathDirty(depth)
    let leaf = pathNode(depth - 1)
    if let base = bytes.baseAddress {
      (leaf.p + leaf.valueOffset(index) + offset).copyMemory(from: base, byteCount: bytes.count)
    }
  }

  // MARK: The root

  func setDirtyRoot(_ slot: CacheSlot) { dirtyRoot = slot }

  /// The root is `pointer` from now on, a clean node or none.
  func becomeClean(_ pointer: NodePointer) {
    root = pointer
    dirtyRoot = BlockCache.none
  }
}

/// Walks a tree forwards; changes of the tree between two calls are allowed.
package struct TreeCursor {
  private let tree: Tree
  /// The smallest key that was not returned yet; nil at the end.
  private var key: TreeKey?
  /// The entry returned last, while neither tree nor cache have changed.
  private var leaf = BlockCache.none
  private var index = 0
  private var changes: UInt64 = 0
  private var turnover: UInt64 = 0

  init(tree: Tree, key: TreeKey) {
    self.tree = tree
    self.key = key
  }

  /// The next entry, nil at the end. After a throw it can be called again.
  package mutating func next() throws(SpaceWait) -> TreeEntry? {
    guard let key else { return nil }
    if leaf != BlockCache.none, changes == tree.store.changes,
      turnover == tree.store.cache.turnover, index + 1 < tree.node(leaf).count
    {
      index += 1
      return deliver()
    }
    let depth = try tree.descendToCeiling(key)
    guard depth > 0 else {
      self.key = nil
      return nil
    }
    leaf = tree.path[depth - 1].slot
    index = tree.pathIndex(depth - 1)
    changes = tree.store.changes
    turnover = tree.store.cache.turnover
    return deliver()
  }

  private mutating func deliver() -> TreeEntry {
    let entry = tree.node(leaf).treeEntry(index)
    if entry.key.lo < .max {
      key = TreeKey(hi: entry.key.hi, lo: entry.key.lo + 1)
    } else {
      key = entry.key.hi < .max ? TreeKey(hi: entry.key.hi + 1, lo: 0) : nil
    }
    return entry
  }
}
