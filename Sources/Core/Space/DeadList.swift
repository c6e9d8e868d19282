// The dead list of one edge of the snapshot tree (R11): the data blocks and metadata nodes that
// the parent snapshot refers to and that the child (the next snapshot, a clone or the head) refers
// to no more. DeadListFormat has the entries.
//
//     s1 ──────────▶ s2 ──────────▶ head
//          list of s2     list of the head: in s2, not in the head any more
//
// When s2 is deleted, what only it referred to is on the list of its child and was born after s1:
// what was born earlier is in s1 as well. So these entries are freed (`takeSome`); the others are
// in s1 and not in the child, and so is what the list of s2 itself holds: both together are the
// list of the edge from s1 to the child (`moveSome`). Nothing is walked but what is freed or moved.
//
// Invariants
//  1. A block is on a list once. Of two lists, only those of edges that leave the same snapshot,
//     which was cloned, can name the same block; these are never moved into one another.
//  2. An operation that throws has changed nothing but what the callers were told of before: an
//     entry is handed out or moved in the same step that removes it, and between the two nothing
//     can fail. So each goes out exactly once however often a call is interrupted.
//  3. The list's own nodes are never shared with a snapshot: its tree has no branch instant.

/// How much a dead list names, for an object record to keep.
package struct DeadCounts: Equatable, Sendable {
  /// Data blocks of 4 KiB.
  package var dataBlocks: UInt64
  /// Blocks of 4 KiB that hold metadata nodes, both copies of each counted.
  package var nodeBlocks: UInt64

  /// By default those of an empty list.
  package init(dataBlocks: UInt64 = 0, nodeBlocks: UInt64 = 0) {
    self.dataBlocks = dataBlocks
    self.nodeBlocks = nodeBlocks
  }

  /// Counts from a record may be wrong, which the checker finds out: they stop at the ends of
  /// their range rather than the process.
  mutating func add(_ entry: DeadEntry) {
    switch entry {
    case .blocks(_, let count, _): Self.add(UInt64(count), to: &dataBlocks)
    case .node: Self.add(2, to: &nodeBlocks)
    }
  }

  mutating func subtract(_ entry: DeadEntry) {
    switch entry {
    case .blocks(_, let count, _): dataBlocks -= min(dataBlocks, UInt64(count))
    case .node: nodeBlocks -= min(nodeBlocks, 2)
    }
  }

  private static func add(_ count: UInt64, to sum: inout UInt64) {
    let (result, overflow) = sum.addingReportingOverflow(count)
    sum = overflow ? .max : result
  }
}

/// One dead list over a tree of kind `.deadList`. Its operations are synchronous and throw like
/// those of any tree; after a wait has been met, the same call is made again.
package final class DeadList {
  /// What holds the entries; its root and its `nodeDelta` are for the owner to keep.
  package let tree: Tree
  /// What the list names now; all zero whenever it has become empty.
  package private(set) var counts: DeadCounts

  /// The list that `tree` holds, with the counts that were kept for it.
  package init(tree: Tree, counts: DeadCounts = DeadCounts()) {
    invariant(tree.kind == .deadList, "a dead list over another kind of tree")
    invariant(tree.branchInstant == 0, "a dead list that shares nodes with a snapshot")
    self.tree = tree
    self.counts = counts
  }

  /// Whether nothing is on the list.
  package var isEmpty: Bool { tree.isEmpty }

  private static let greatest = TreeKey(hi: .max, lo: .max)

  // MARK: Adding

  /// Adds `count` data blocks (1 ... `DeadListFormat.maximumRun`) from `address` on, born at
  /// `birth` (1 or later). A neighbour of the same birth in the same leaf is joined. Throws
  /// `.damaged`, like for any content that makes no sense, when the leaf names one of the blocks
  /// already; whatever it throws, nothing has changed.
  package func append(blocks address: BlockAddress, count: Int, birth: Instant) throws(SpaceWait) {
    invariant(
      birth > 0 && DeadListFormat.isRun(address, count),
      "\(count) blocks at \(address.raw), born at \(birth), can't be on a dead list")
    try append(.blocks(first: address, count: count, birth: birth))
  }

  /// Adds both copies of a metadata node, born at instant 1 or later. Throws as above.
  package func append(node: NodePointer) throws(SpaceWait) {
    invariant(
      node.birth > 0 && DeadListFormat.isPair(node.first, node.second),
      "a node at \(node.first.raw) and \(node.second.raw) can't be on a dead list")
    try append(.node(first: node.first, second: node.second, birth: node.birth))
  }

  /// Adds an entry; throws as above.
  package func append(_ entry: DeadEntry) throws(SpaceWait) {
    try tree.store.prepare(tree.changeCost)
    try preparedAdd(entry)
  }

  /// Adds an entry after `store.prepare`; nothing has changed when it throws.
  private func preparedAdd(_ entry: DeadEntry) throws(SpaceWait) {
    let depth = try tree.descend(entry.key)
    if depth > 0 {
      try tree.requireStill(depth)
      if try join(entry, depth) {
        counts.add(entry)
        return
      }
    }
    var word: UInt64 = 0
    try withUnsafeMutableBytes(of: &word) { bytes throws(SpaceWait) in
      let length = entry.encode(to: bytes.baseAddress!)
      try tree.preparedInsert(entry.key, UnsafeRawBufferPointer(rebasing: bytes[..<length]))
    }
    counts.add(entry)
  }

  /// Makes the entry a part of its neighbours in the leaf that the path ends at; false, and
  /// nothing has changed, when they are not of one piece.
  private func join(_ entry: DeadEntry, _ depth: Int) throws(SpaceWait) -> Bool {
    let (leaf, index) = (tree.pathNode(depth - 1), tree.pathIndex(depth - 1))
    let left = index >= 0 ? try decode(leaf, index) : nil
    let right = index + 1 < leaf.count ? try decode(leaf, index + 1) : nil
    if let left, left.birth == entry.birth, left.end > entry.address {
      throw .damaged(leaf.ownPointer)
    }
    if let right, right.birth == entry.birth, entry.end > right.address {
      throw .damaged(leaf.ownPointer)
    }
    let onLeft = left.flatMap { Self.joined($0, entry) }
    let onRight = right.flatMap { Self.joined(onLeft ?? entry, $0) }
    if let onLeft {
      setCount(onRight ?? onLeft, at: index, depth)
      if onRight != nil { tree.cut(index + 1..<index + 2, depth) }
    } else if let onRight {
      // The right neighbour grows downwards: its key stays within the leaf's range, as the new one
      // leads to this leaf, and above the keys before it.
      tree.makePathDirty(depth)
      tree.pathNode(depth - 1).setKey(index + 1, onRight.key)
      setCount(onRight, at: index + 1, depth)
    } else {
      return false
    }
    return true
  }

  /// The run that both make, the second right behind the first; nil when they can't be one.
  private static func joined(_ a: DeadEntry, _ b: DeadEntry) -> DeadEntry? {
    guard case .blocks(let first, let m, let birth) = a, case .blocks(let next, let n, birth) = b,
      first + UInt64(m) == next, m + n <= DeadListFormat.maximumRun
    else { return nil }
    return .blocks(first: first, count: m + n, birth: birth)
  }

  /// Stores the value of a run over that of another one, in the leaf of the path.
  private func setCount(_ entry: DeadEntry, at index: Int, _ depth: Int) {
    tree.path[depth - 1].index = Int32(truncatingIfNeeded: index)
    var word: UInt64 = 0
    withUnsafeMutableBytes(of: &word) { bytes in
      let length = entry.encode(to: bytes.baseAddress!)
      tree.patchFound(depth, offset: 0, UnsafeRawBufferPointer(rebasing: bytes[..<length]))
    }
  }

  // MARK: Removing

  /// Removes up to `limit` (1 or more) of the entries born after `instant` and tells each to
  /// `blocks` (first address, number of blocks, birth) or `nodes` (first copy, second copy,
  /// birth), once, in the midst of the change: they must not touch any tree. True when none is
  /// left; false says that there may be more. What was told before a throw stays done. With
  /// `abandonDamaged`, what damaged nodes of the list name is never told, and stays in use until a
  /// check with repair; otherwise they throw.
  package func takeSome(
    bornAfter instant: Instant, limit: Int, abandonDamaged: Bool = false,
    blocks: (BlockAddress, Int, Instant) -> Void,
    nodes: (BlockAddress, BlockAddress, Instant) -> Void
  ) throws(SpaceWait) -> Bool {
    invariant(limit > 0, "no entry of a dead list is to be taken")
    var left = limit
    while left > 0 && !isEmpty {
      try tree.store.prepare(tree.changeCost)
      guard let depth = try descend(Self.greatest, abandonDamaged) else {
        left -= 1
        continue
      }
      let taken = try takeLast(depth, instant, left) { entry in
        switch entry {
        case .blocks(let first, let count, let birth): blocks(first, count, birth)
        case .node(let first, let second, let birth): nodes(first, second, birth)
        }
      }
      if taken == 0 { return true }
      left -= taken
    }
    forgetCountsIfEmpty()
    return isEmpty
  }

  /// Takes up to `limit` entries from the end of the leaf of the path, which is the tree's last.
  private func takeLast(
    _ depth: Int, _ instant: Instant, _ limit: Int, _ body: (DeadEntry) -> Void
  ) throws(SpaceWait) -> Int {
    let leaf = tree.pathNode(depth - 1)
    let end = leaf.count
    var first = end
    while first > 0 && end - first < limit && leaf.key(first - 1).hi > instant {
      first -= 1
      _ = try decode(leaf, first)
    }
    guard first < end else { return 0 }
    try tree.requireStill(depth)
    for i in first..<end {
      let entry = try decode(leaf, i)
      counts.subtract(entry)
      body(entry)
    }
    tree.cut(first..<end, depth)
    return end - first
  }

  /// Moves up to `limit` (1 or more) entries to `other`, a list over the same store; true when
  /// this one is empty. Each entry is on one of the lists at any time. What was moved before a
  /// throw stays moved. `abandonDamaged` as for `takeSome`, for nodes of this list: damaged ones
  /// of `other` throw.
  package func moveSome(
    into other: DeadList, limit: Int, abandonDamaged: Bool = false
  ) throws(SpaceWait) -> Bool {
    invariant(limit > 0, "no entry of a dead list is to be moved")
    invariant(
      other.tree !== tree && other.tree.store === tree.store,
      "a dead list is moved into itself, or to another store")
    var left = limit
    while left > 0 && !isEmpty {
      left -= 1
      try tree.store.prepare(tree.changeCost + other.tree.changeCost)
      // From the front: what comes in ascending order leaves full leaves behind.
      guard let depth = try descend(.least, abandonDamaged) else { continue }
      try tree.requireStill(depth)
      let entry = try decode(tree.pathNode(depth - 1), 0)
      // From here on either both happen or, if the other list has to wait, neither.
      try other.preparedAdd(entry)
      tree.cut(0..<1, depth)
      counts.subtract(entry)
    }
    forgetCountsIfEmpty()
    return isEmpty
  }

  /// Empties the list of an edge whose parent still refers to all that is on it, as when a clone
  /// is deleted: nothing is told, the list's own nodes are freed, up to `maxLeaves` leaves a call.
  /// True when it is empty. What was done before a throw stays done; damaged nodes are given up.
  package func discardSome(maxLeaves: Int) throws(SpaceWait) -> Bool {
    defer { forgetCountsIfEmpty() }
    return try tree.pruneSome(maxNodes: maxLeaves, abandonDamaged: true) { item in
      if let entry = DeadEntry(item) { counts.subtract(entry) }
    }
  }

  /// The depth of the path to `key`, the tree not being empty; nil when a damaged node was given
  /// up on the way. After `store.prepare`.
  private func descend(_ key: TreeKey, _ abandonDamaged: Bool) throws(SpaceWait) -> Int? {
    do throws(SpaceWait) {
      return try tree.descend(key)
    } catch {
      guard abandonDamaged, tree.isGivenUp(error) else { throw error }
      try tree.preparedAbandon(towards: key)
      return nil
    }
  }

  /// Given up nodes, or counts that were wrong from the start, must not outlive the entries.
  private func forgetCountsIfEmpty() {
    if isEmpty { counts = DeadCounts() }
  }

  /// An entry of a leaf; leaves have been checked when they were loaded.
  private func decode(_ leaf: TreeNode, _ index: Int) throws(SpaceWait) -> DeadEntry {
    guard let entry = DeadEntry(leaf.treeEntry(index)) else { throw .damaged(leaf.ownPointer) }
    return entry
  }

  // MARK: Visiting

  /// Goes through the entries from `key` on, in the order of births (`hi`) and then of addresses.
  package func entries(from key: TreeKey = .least) -> DeadListCursor {
    DeadListCursor(tree: tree, from: key)
  }
}

/// Walks a dead list forwards; changes of the list between two calls are allowed.
package struct DeadListCursor {
  private let tree: Tree
  private var cursor: TreeCursor
  /// Where the next entry is looked for.
  package private(set) var position: TreeKey

  init(tree: Tree, from key: TreeKey) {
    self.tree = tree
    cursor = tree.cursor(from: key)
    position = key
  }

  /// The next entry, nil at the end. Throws like any walk, and `.damaged` for an entry that makes
  /// no sense; after a throw it can be called again.
  package mutating func next() throws(SpaceWait) -> DeadEntry? {
    guard let item = try cursor.next() else { return nil }
    guard let entry = DeadEntry(item) else { throw .damaged(tree.root) }
    position = item.key.successor
    return entry
  }
}

extension DeadEntry {
  /// The entry of a leaf; nil when it makes no sense.
  init?(_ item: TreeEntry) {
    self.init(birth: item.key.hi, address: item.key.lo, value: item.value.bytes)
  }
}
