// How a tree changes: the path is made dirty from the root down, then the leaf is changed, then
// splits go up as far as parents are full, or merges as far as they get too empty. Room has been
// prepared and all nodes are in memory: nothing here fails.
//
// A node with less than a third of its room in use takes over a sibling when both together fill no
// more than three quarters: enough apart that one insertion never undoes it. The sibling is
// emptied, not changed, so a merge writes no node that would not be written anyway. A sibling
// that is not in memory is left alone: an underfull node is a loss of space, never an error.

extension Tree {
  private static var leastUsed: Int { NodeFormat.capacity / 3 }
  private static var mostMerged: Int { NodeFormat.capacity * 3 / 4 }

  // MARK: Making dirty

  /// Throws `.memory` when a node of the path is being written. Before anything is changed.
  @inline(__always)
  func requireStill(_ depth: Int) throws(SpaceWait) {
    for d in 0..<depth where store.isBeingWritten(path[d].slot) { throw .memory }
  }

  /// Whether a node of the path is being written.
  func isStill(_ depth: Int) -> Bool {
    for d in 0..<depth where store.isBeingWritten(path[d].slot) { return false }
    return true
  }

  /// Makes the first `depth` nodes of the path dirty.
  func makePathDirty(_ depth: Int) {
    for d in 0..<depth {
      let slot = path[d].slot
      if store.isDirty(slot) {
        store.checkStill(slot)
        invariant(
          node(slot).birth > branchInstant, "a snapshot was taken of a tree with dirty nodes")
        continue
      }
      let parent = d == 0 ? BlockCache.none : path[d - 1].slot
      let index = d == 0 ? 0 : pathIndex(d - 1)
      path[d].slot = store.makeDirty(slot, of: self, parent: parent, index: index)
      if d == 0 { setDirtyRoot(path[0].slot) }
    }
  }

  /// Makes the first leaf of an empty tree.
  func plantRoot(_ key: TreeKey, _ value: UnsafeRawBufferPointer) {
    let slot = store.makeNew(self, level: 0)
    node(slot).insert(0, key, value, store.scratch)
    setDirtyRoot(slot)
    lastInserted = key
  }

  // MARK: Inserting

  /// Puts the value into the leaf of the path, which is dirty; true if the key was there.
  func place(_ key: TreeKey, _ value: UnsafeRawBufferPointer, _ depth: Int) -> Bool {
    let leaf = pathNode(depth - 1)
    var at = pathIndex(depth - 1)
    let exists = at >= 0 && leaf.key(at) == key
    if exists {
      if leaf.free + leaf.valueLength(at) >= value.count {
        leaf.replace(at, value, store.scratch)
        return true
      }
      leaf.remove(at..<at + 1)
    } else {
      at += 1
    }
    if leaf.free >= NodeFormat.leafEntrySize + value.count {
      leaf.insert(at, key, value, store.scratch)
    } else {
      split(depth, at, key, value)
    }
    lastInserted = key
    return exists
  }

  /// Splits the leaf of the path around the new entry, which belongs at `at`.
  private func split(
    _ depth: Int, _ at: Int, _ key: TreeKey, _ value: UnsafeRawBufferPointer
  ) {
    let left = pathNode(depth - 1)
    let rightSlot = store.makeNew(self, level: 0)
    let right = node(rightSlot)
    let boundary = splitPoint(left, at, size: NodeFormat.leafEntrySize + value.count)
    // The boundary counts the new entry; it is the first of the right leaf, or further left.
    let isRight = boundary <= at
    let moved = (isRight ? boundary : boundary - 1)..<left.count
    right.append(moved, of: left, store.scratch)
    left.remove(moved)
    if isRight {
      right.insert(at - boundary, key, value, store.scratch)
    } else {
      left.insert(at, key, value, store.scratch)
    }
    addSibling(depth - 1, key: right.key(0), rightSlot)
  }

  /// How many entries, with a new one of `size` bytes at `at`, are to stay in the left leaf: both
  /// parts fit and neither is empty.
  private func splitPoint(_ leaf: TreeNode, _ at: Int, size: Int) -> Int {
    func entrySize(_ i: Int) -> Int {
      if i == at { return size }
      return NodeFormat.leafEntrySize + leaf.valueLength(i < at ? i : i - 1)
    }
    let count = leaf.count + 1
    if at > 0 && (at == leaf.count || leaf.key(at - 1) == lastInserted) {
      // An ascending run: what comes next belongs here as well, so leave this leaf full.
      var before = 0
      for i in 0..<at { before += entrySize(i) }
      let total = leaf.used + size
      if before + size <= NodeFormat.capacity && at + 1 < count { return at + 1 }
      if total - before <= NodeFormat.capacity { return at }
    }
    let half = (leaf.used + size) / 2
    var (boundary, sum) = (0, 0)
    while boundary < count - 1 && sum < half {
      sum += entrySize(boundary)
      boundary += 1
    }
    return max(boundary, 1)
  }

  /// The node at `d` of the path was split: `slot` is the new one to its right.
  private func addSibling(_ d: Int, key: TreeKey, _ slot: CacheSlot) {
    if d == 0 {
      growRoot(key, slot)
      return
    }
    let at = pathIndex(d - 1) + 1
    let parent = pathNode(d - 1)
    if parent.count < NodeFormat.maximumChildren {
      link(path[d - 1].slot, at, key, slot)
      return
    }
    let rightSlot = store.makeNew(self, level: parent.level)
    let right = node(rightSlot)
    // An ascending run leaves the left node full, see `splitPoint`.
    let boundary = at == parent.count ? parent.count : parent.count / 2
    moveChildren(boundary..<parent.count, from: path[d - 1].slot, to: rightSlot, at: 0)
    if at >= boundary && at > 0 && !(at == boundary && right.count > 0) {
      link(rightSlot, at - boundary, key, slot)
    } else {
      link(path[d - 1].slot, at, key, slot)
    }
    addSibling(d - 1, key: right.key(0), rightSlot)
  }

  /// Makes an entry for the dirty node in `child`.
  private func link(_ parent: CacheSlot, _ at: Int, _ key: TreeKey, _ child: CacheSlot) {
    let above = node(parent)
    above.openChildren(at, 1)
    above.setKey(at, key)
    above.setPointer(at, node(child).ownPointer)
    above.setDirtyChild(at, child)
    store.setParent(child, parent)
  }

  private func growRoot(_ key: TreeKey, _ rightSlot: CacheSlot) {
    let leftSlot = path[0].slot
    let level = node(leftSlot).level + 1
    invariant(level <= NodeFormat.maximumLevel, "a tree is higher than the format allows")
    let top = store.makeNew(self, level: level)
    link(top, 0, .least, leftSlot)
    link(top, 1, key, rightSlot)
    setDirtyRoot(top)
  }

  /// Moves entries between two dirty interior nodes.
  private func moveChildren(
    _ range: Range<Int>, from source: CacheSlot, to target: CacheSlot, at: Int
  ) {
    copyChildren(range, from: node(source), to: target, at: at)
    let left = node(source)
    invariant(range.upperBound == left.count, "children are moved from the middle of a node")
    left.count -= range.count
  }

  private func copyChildren(
    _ range: Range<Int>, from source: TreeNode, to target: CacheSlot, at: Int
  ) {
    guard !range.isEmpty else { return }
    let into = node(target)
    into.openChildren(at, range.count)
    into.entry(at).copyMemory(
      from: source.entry(range.lowerBound),
      byteCount: range.count * NodeFormat.interiorEntrySize)
    for i in at..<at + range.count {
      if let child = into.dirtyChild(i) { store.setParent(child, target) }
    }
  }

  // MARK: Removing

  /// Throws when the leaf of the path would take over a sibling that is not in memory, once the
  /// entry at `index` is gone: so single removals keep the tree dense.
  func requireSibling(_ depth: Int, removing index: Int) throws(SpaceWait) {
    let leaf = pathNode(depth - 1)
    let used = leaf.used - NodeFormat.leafEntrySize - leaf.valueLength(index)
    guard depth > 1, used > 0, used < Self.leastUsed else { return }
    let parent = pathNode(depth - 2)
    let at = pathIndex(depth - 2)
    for sibling in [at + 1, at - 1] where sibling >= 0 && sibling < parent.count {
      do throws(SpaceWait) {
        let slot = try child(parent, sibling)
        if store.isBeingWritten(slot) { continue }
        if node(slot).used + used <= Self.mostMerged { return }
      } catch {
        if case .damaged = error { continue }
        throw error
      }
    }
  }

  /// Removes entries of the path's leaf, and the leaf with the last one.
  func cut(_ range: Range<Int>, _ depth: Int) {
    if range.count == pathNode(depth - 1).count {
      dropLeaf(depth)
      return
    }
    makePathDirty(depth)
    pathNode(depth - 1).remove(range)
    shrink(from: depth - 1)
  }

  /// Removes the path's leaf without making it dirty first.
  func dropLeaf(_ depth: Int, merging: Bool = true) {
    makePathDirty(depth - 1)
    let slot = path[depth - 1].slot
    if depth == 1 {
      drop(slot, root)
      becomeClean(.none)
      return
    }
    removeEntry(depth - 2, pathIndex(depth - 2), slot)
    shrink(from: depth - 2, merging: merging)
  }

  /// Removes the entry of a child, and the child, whose own children have moved elsewhere.
  private func removeEntry(_ d: Int, _ index: Int, _ child: CacheSlot) {
    let parent = pathNode(d)
    let pointer = parent.pointer(index)
    parent.removeChild(index)
    drop(child, pointer)
  }

  private func drop(_ slot: CacheSlot, _ pointer: NodePointer) {
    if store.isDirty(slot) {
      store.drop(dirty: slot, of: self)
    } else {
      store.drop(clean: slot, pointer, of: self)
    }
  }

  /// Restores the tree's shape from the dirty node at `d` of the path upwards.
  func shrink(from d: Int, merging: Bool = true) {
    var d = d
    while d > 0 {
      if pathNode(d).count == 0 {
        removeEntry(d - 1, pathIndex(d - 1), path[d].slot)
      } else if !(merging && pathNode(d).used < Self.leastUsed && absorbSibling(d)) {
        break
      }
      d -= 1
    }
    if d == 0 { collapseRoot() }
  }

  /// Takes over the right or left sibling if it is in memory and fits.
  private func absorbSibling(_ d: Int) -> Bool {
    let parent = pathNode(d - 1)
    let at = pathIndex(d - 1)
    for sibling in [at + 1, at - 1] where sibling >= 0 && sibling < parent.count {
      guard let slot = try? child(parent, sibling), !store.isBeingWritten(slot),
        node(slot).used + pathNode(d).used <= Self.mostMerged
      else { continue }
      absorb(slot, d, isRight: sibling > at)
      if sibling < at {
        // The range of the sibling is this node's now.
        parent.setKey(at, parent.key(sibling))
        path[d - 1].index -= 1
      }
      removeEntry(d - 1, sibling, slot)
      return true
    }
    return false
  }

  private func absorb(_ sibling: CacheSlot, _ d: Int, isRight: Bool) {
    let (here, other) = (pathNode(d), node(sibling))
    if !here.isLeaf {
      copyChildren(
        0..<other.count, from: other, to: path[d].slot, at: isRight ? here.count : 0)
    } else if isRight {
      here.append(0..<other.count, of: other, store.scratch)
    } else {
      for i in 0..<other.count {
        here.insert(i, other.key(i), other.value(i).bytes, store.scratch)
      }
    }
  }

  /// A root with one child gives way to it.
  private func collapseRoot() {
    while dirtyRoot != BlockCache.none {
      let slot = dirtyRoot
      let top = node(slot)
      if top.isLeaf || top.count > 1 { return }
      if top.count == 0 {
        becomeClean(.none)
      } else if let child = top.dirtyChild(0) {
        top.count = 0
        store.setParent(child, BlockCache.none)
        setDirtyRoot(child)
      } else {
        becomeClean(top.pointer(0))
      }
      store.drop(dirty: slot, of: self)
    }
  }

  // MARK: Removing much

  /// Removes the entries of one leaf that are in [`from`, `below`), after `store.prepare`; returns
  /// the key to go on from, nil when no leaf can have any more. Goes to the leaf that `from`
  /// belongs to, and no other: that one must be in memory.
  func preparedRemoveLeafful(_ from: TreeKey, below: TreeKey) throws(SpaceWait) -> TreeKey? {
    guard from < below else { return nil }
    let depth = try descend(from)
    guard depth > 0 else { return nil }
    let (leaf, index) = (pathNode(depth - 1), pathIndex(depth - 1))
    let first = index >= 0 && leaf.key(index) == from ? index : index + 1
    var end = first
    while end < leaf.count && leaf.key(end) < below { end += 1 }
    let next = end < leaf.count ? nil : upperBound(depth)
    if first < end { cut(first..<end, depth) }
    return next.flatMap { $0 < below ? $0 : nil }
  }

  /// Frees up to `maxNodes` leaves of a tree that is to be destroyed, telling each entry to
  /// `entry` first; parts that are shared with a snapshot are given up silently, as the snapshot
  /// keeps them. True when the tree is empty. What was done before a throw stays done. With
  /// `abandonDamaged`, what damaged nodes point to is never freed, otherwise they throw.
  package func pruneSome(
    maxNodes: Int, abandonDamaged: Bool = false, _ entry: (TreeEntry) -> Void
  ) throws(SpaceWait) -> Bool {
    var left = maxNodes
    while left > 0 && !isEmpty {
      if dirtyRoot == BlockCache.none && root.birth <= branchInstant {
        becomeClean(.none)
        break
      }
      try store.prepare(changeCost)
      try pruneFirst(abandonDamaged, entry)
      left -= 1
    }
    return isEmpty
  }

  /// Removes the first leaf, or the first subtree that is shared or damaged. Nothing is merged:
  /// that could bring shared entries into nodes of this tree.
  private func pruneFirst(_ abandonDamaged: Bool, _ entry: (TreeEntry) -> Void) throws(SpaceWait) {
    var slot: CacheSlot
    do throws(SpaceWait) {
      slot = try rootSlot()
    } catch {
      guard abandonDamaged, isGivenUp(error) else { throw error }
      store.release(root, of: self)
      becomeClean(.none)
      return
    }
    var depth = 0
    while true {
      let node = self.node(slot)
      path[depth] = Step(slot: slot, index: 0)
      if store.isBeingWritten(slot) { throw .memory }
      if node.isLeaf {
        for i in 0..<node.count { entry(node.treeEntry(i)) }
        dropLeaf(depth + 1, merging: false)
        return
      }
      let isShared = node.dirtyChild(0) == nil && node.pointer(0).birth <= branchInstant
      do throws(SpaceWait) {
        if !isShared { slot = try child(node, 0) }
      } catch {
        guard abandonDamaged, isGivenUp(error) else { throw error }
        abandonChild(depth, at: 0)
        return
      }
      if isShared {
        abandonChild(depth, at: 0)
        return
      }
      depth += 1
    }
  }

  /// Whether the wait names a damaged node for good: one that its device only refuses to read is
  /// waited for.
  func isGivenUp(_ wait: SpaceWait) -> Bool {
    guard case .damaged(let pointer) = wait else { return false }
    return !store.isRefused(pointer)
  }

  /// Removes entry `index` of the interior node at `d` of the path without its child; a child
  /// that is this tree's alone is released.
  private func abandonChild(_ d: Int, at index: Int) {
    makePathDirty(d + 1)
    let pointer = pathNode(d).pointer(index)
    pathNode(d).removeChild(index)
    if pointer.birth > branchInstant { store.release(pointer, of: self) }
    shrink(from: d, merging: false)
  }

  /// Gives up the damaged node that a walk to `key` meets, after `store.prepare`: the node is
  /// released, what it points to is never freed. Does nothing when the way is sound; throws like
  /// any walk, before it has changed anything.
  func preparedAbandon(towards key: TreeKey) throws(SpaceWait) {
    var slot: CacheSlot
    do throws(SpaceWait) {
      slot = try rootSlot()
    } catch {
      guard isGivenUp(error) else { throw error }
      store.release(root, of: self)
      becomeClean(.none)
      return
    }
    var depth = 0
    while !node(slot).isLeaf {
      let node = self.node(slot)
      let index = max(node.lastNotAbove(key), 0)
      path[depth] = Step(slot: slot, index: Int32(truncatingIfNeeded: index))
      if store.isBeingWritten(slot) { throw .memory }
      do throws(SpaceWait) {
        slot = try child(node, index)
      } catch {
        guard isGivenUp(error) else { throw error }
        abandonChild(depth, at: index)
        return
      }
      depth += 1
    }
  }
}
