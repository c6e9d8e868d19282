// Checks a whole tree, for tests and for the offline checker's own tests.

package struct TreeCounts: Equatable, Sendable {
  package var nodes = 0
  package var leaves = 0
  package var entries = 0
  package var dirty = 0
  /// Bytes in use in all leaves.
  package var leafBytes = 0
}

extension Tree {
  /// Walks all nodes and checks the invariants of Tree and NodeStore; throws when a node must be
  /// loaded first, and is then called again. `visit` is told of every clean node.
  package func verify(_ visit: (NodePointer) -> Void = { _ in }) throws(SpaceWait) -> TreeCounts {
    var counts = TreeCounts()
    if isEmpty {
      invariant(dirtyCount == 0, "an empty tree has dirty nodes")
      return counts
    }
    let slot = try rootSlot()
    if store.isDirty(slot) {
      invariant(store.dirtyState(slot).parent == BlockCache.none, "a root has a parent")
      let top = node(slot)
      invariant(top.isLeaf || top.count > 1, "a dirty root has a single child")
    } else {
      visit(root)
    }
    try verify(slot, from: .least, below: nil, &counts, visit)
    invariant(counts.dirty == dirtyCount, "the count of a tree's dirty nodes is wrong")
    return counts
  }

  private func verify(
    _ slot: CacheSlot, from: TreeKey, below: TreeKey?, _ counts: inout TreeCounts,
    _ visit: (NodePointer) -> Void
  ) throws(SpaceWait) {
    let node = self.node(slot)
    counts.nodes += 1
    if store.isDirty(slot) { counts.dirty += 1 }
    invariant(node.count > 0, "a node is empty")
    invariant(node.free >= 0, "a node is overfull")
    for i in 0..<node.count {
      let key = node.key(i)
      invariant(key >= from, "a key is below its node's range")
      if let below { invariant(key < below, "a key is above its node's range") }
      if i > 0 { invariant(node.key(i - 1) < key, "keys are not in order") }
    }
    if node.isLeaf {
      counts.leaves += 1
      counts.entries += node.count
      counts.leafBytes += node.used
      return
    }
    invariant(node.key(0) == from, "the first key of a node is not its lower bound")
    var dirtyChildren = 0
    for i in 0..<node.count {
      let child = try self.child(node, i)
      invariant(self.node(child).level + 1 == node.level, "a child has the wrong level")
      if store.isDirty(child) {
        dirtyChildren += 1
        invariant(store.isDirty(slot), "a clean node has a dirty child")
        invariant(store.dirtyState(child).parent == slot, "a dirty node has another parent")
      } else {
        visit(node.pointer(i))
      }
      try verify(
        child, from: node.key(i), below: i + 1 < node.count ? node.key(i + 1) : below, &counts,
        visit)
    }
    if store.isDirty(slot) {
      invariant(
        store.dirtyState(slot).children == dirtyChildren, "the count of dirty children is wrong")
    }
  }
}
