// Nodes of all trees: loads them into the cache, makes them dirty, and hands them out for writing.
//
//                    finishLoad                    dirty               writeback       move
//      on disk ─────────────────▶ clean in cache ─────────▶ dirty ──────────────▶ writing ─┐
//                                      ▲                      ▲                     │ ▲    │
//                                      │               new node (a split)           │ └────┘
//                                      └────────────────────────────────────────────┘
//                                                       writebackDone
//
// Copy on write. The first change of a node gives it a new pair of addresses; the old pair goes
// back to the allocator, or, when a snapshot still needs the node (its birth is not later than the
// tree's branch instant), to the tree's `sharedRelease`. A node that carries the number of the
// checkpoint in the works is referred to by no durable root: it is changed where it is, even if it
// has been written already (spilled) and was loaded again.
//
// Invariants
//  1. The parent of a dirty node is dirty. Its entry for the child holds the child's cache slot in
//     the place of a checksum, so no dirty node is ever written before its children.
//  2. A node is handed out for writing only when it has no dirty child; its parent, or the tree's
//     root, gets its checksum when the write is done.
//  3. Nothing changes a node while it is being written.

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

/// One dirty node to write, to both addresses. The memory does not change until `writebackDone`, but
/// by `move`.
package struct NodeWrite {
  package let slot: CacheSlot
  package let memory: UnsafeMutableRawPointer
  package let first: BlockAddress
  package let second: BlockAddress
}

/// A load under way: read one copy of `pointer` into `memory`, then `finishLoad`.
package struct NodeLoad {
  package let slot: CacheSlot
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
  /// rewritten from memory. Pin the slot while that is done: a pinned node is never changed.
  case readyHeal(bad: Int)
  /// Neither copy is good; walks that need the node throw `.damaged` from now on.
  case damaged
}

package final class NodeStore {
  private enum Phase: UInt8 { case clean, ready, blocked, writing }

  /// What is known of a slot while it holds a dirty node.
  private struct Dirty {
    var tree: Unmanaged<Tree>?
    /// Slot of the parent, `BlockCache.none` for a root.
    var parent = BlockCache.none
    /// Neighbours in the tree's list of nodes that can be written.
    var next = BlockCache.none
    var previous = BlockCache.none
    /// Dirty children; the node is blocked while there are any.
    var children: UInt16 = 0
    var phase = Phase.clean
  }

  package let cache: BlockCache
  /// Set once, before the first change of a tree.
  package unowned var allocator: (any NodeAllocator)?
  /// The number of the checkpoint in the works.
  package private(set) var checkpoint: UInt64
  /// Dirty nodes now, those being written included.
  package private(set) var dirtyCount = 0
  /// The count from which on `needsSpill` asks for writing some back: 64 MiB, or a quarter of the
  /// cache.
  package var dirtyLimit: Int
  package var needsSpill: Bool { dirtyCount > dirtyLimit }
  /// Grows with every change of any tree, for cursors.
  private(set) var changes: UInt64 = 0
  /// A tree went away with dirty nodes: what they point to would be lost.
  private var lostTree = false

  private let meta: UnsafeMutablePointer<Dirty>
  private var dirtyTrees: [Unmanaged<Tree>] = []
  /// The last damaged nodes that were met, oldest first.
  private var damaged: [NodePointer] = []
  private let damagedLimit = 64
  /// Those of them whose copies a device refused to read, and how often it did: it may read them yet.
  private var refused: [(pointer: NodePointer, times: Int)] = []
  private static let mostRefusals = 60
  /// A block for `TreeNode`'s use.
  let scratch: UnsafeMutableRawPointer
  /// A block for `ExtentMap`'s drafts.
  var draftArea: UnsafeMutableRawPointer { scratch + blockSize }

  /// `checkpoint`: the number of the first checkpoint that will be written.
  package init(cache: BlockCache, checkpoint: UInt64) {
    self.cache = cache
    self.checkpoint = checkpoint
    dirtyLimit = min(64 << 20, cache.slotCount * blockSize / 4) / blockSize
    meta = .allocate(capacity: cache.slotCount)
    meta.initialize(repeating: Dirty(), count: cache.slotCount)
    scratch = .allocate(byteCount: 2 * blockSize, alignment: blockSize)
  }

  deinit {
    meta.deallocate()
    scratch.deallocate()
  }

  /// The root of the last checkpoint is durable, and work on the next one begins. Nothing may be
  /// dirty.
  package func beginCheckpoint(_ number: UInt64) {
    invariant(dirtyCount == 0, "a checkpoint begins while \(dirtyCount) nodes are dirty")
    invariant(number > checkpoint, "checkpoint \(number) follows \(checkpoint)")
    checkpoint = number
  }

  // MARK: Reading

  /// The slot of a clean node; throws `.node` when it must be loaded, `.damaged` when it can't be.
  /// `level` is what the parent demands, `owner` nil where nodes may be another object's.
  @inline(__always)
  func resolve(
    _ p: UnsafeRawPointer, kind: NodeKind, level: UInt8, owner: ObjectID?
  ) throws(SpaceWait) -> CacheSlot {
    guard
      let slot = cache.find(BlockAddress(raw: p.u64(0)), checksum: p.u32(24), role: .node)
    else { throw missing(NodePointer(decoding: p)) }
    let node = TreeNode(cache.memory(slot))
    guard node.kind == kind.rawValue, node.level == level, owner == nil || owner == node.owner
    else { throw .damaged(NodePointer(decoding: p)) }
    return slot
  }

  @inline(never)
  private func missing(_ pointer: NodePointer) -> SpaceWait {
    isDamaged(pointer) ? .damaged(pointer) : .node(pointer)
  }

  /// A verified node in memory, valid until the next call of any tree, store or cache; for walks
  /// that are not a tree's, as a scrub. Dirty nodes are not found by pointer.
  package func node(_ pointer: NodePointer, kind: NodeKind, owner: ObjectID? = nil)
    throws(SpaceWait) -> UnsafeRawPointer
  {
    guard NodeFormat.isPlausible(pointer) else { throw .damaged(pointer) }
    var bytes = (UInt64(0), UInt64(0), UInt64(0), UInt64(0))
    return try withUnsafeMutableBytes(of: &bytes) { p throws(SpaceWait) in
      pointer.encode(to: p.baseAddress!)
      let slot = try resolve(
        UnsafeRawPointer(p.baseAddress!), kind: kind, level: pointer.level, owner: owner)
      return UnsafeRawPointer(cache.memory(slot))
    }
  }

  /// Whether walks throw `.damaged` for this node without trying to read it.
  package func isDamaged(_ pointer: NodePointer) -> Bool {
    if !NodeFormat.isPlausible(pointer) { return true }
    for known in damaged where known.first == pointer.first && known.checksum == pointer.checksum {
      return true
    }
    return false
  }

  /// Whether the node is only known to be damaged as far as its device refused to read it, and not
  /// often yet. Who gives up what damaged nodes point to tries again instead.
  package func isRefused(_ pointer: NodePointer) -> Bool {
    refused.contains { $0.pointer == pointer && $0.times < Self.mostRefusals }
  }

  /// Whether its device refused to read the node when it was last tried, however often it has.
  package func wasRefused(_ pointer: NodePointer) -> Bool {
    refused.contains { $0.pointer == pointer }
  }

  package var hasRefused: Bool { !refused.isEmpty }

  /// What was refused is read anew by whoever needs it.
  package func forgetRefusals() {
    damaged.removeAll { pointer in refused.contains { $0.pointer == pointer } }
  }

  /// Forgets what was found damaged, so that it is read anew, after a repair.
  package func forgetDamage() { damaged.removeAll(keepingCapacity: true) }

  /// Begins to load the node that a walk threw.
  package func beginLoad(_ pointer: NodePointer) -> LoadStart {
    if isDamaged(pointer) { return .damaged }
    let (address, checksum) = (pointer.first, pointer.checksum)
    if cache.find(address, checksum: checksum, role: .node) != nil { return .present }
    if cache.findLoading(address, checksum: checksum, role: .node) != nil {
      return .alreadyLoading
    }
    guard let slot = cache.insert(address, checksum: checksum, role: .node) else {
      return .noMemory
    }
    return .started(NodeLoad(slot: slot, memory: cache.memory(slot), pointer: pointer))
  }

  /// Copy 0 (the first) or 1 has been read into the load's memory, or failed with `error`.
  /// `firstRefused`: reading the first copy has failed; only what was read and is wrong is lost.
  package func finishLoad(
    _ load: NodeLoad, copy: Int, error: Int32, firstRefused: Bool = false
  ) -> LoadOutcome {
    if error == 0, NodeFormat.fault(in: load.memory, of: load.pointer) == nil {
      cache.markValid(load.slot)
      if !refused.isEmpty { refused.removeAll { $0.pointer == load.pointer } }
      return copy == 0 ? .ready : .readyHeal(bad: 0)
    }
    if copy == 0 { return .tryOther }
    cache.remove(load.slot)
    if damaged.count == damagedLimit { damaged.removeFirst() }
    damaged.append(load.pointer)
    if error != 0 || firstRefused { noteRefusal(load.pointer) }
    return .damaged
  }

  private func noteRefusal(_ pointer: NodePointer) {
    if let i = refused.firstIndex(where: { $0.pointer == pointer }) {
      refused[i].times += 1
      return
    }
    if refused.count == damagedLimit { refused.removeFirst() }
    refused.append((pointer, 1))
  }

  // MARK: Changing

  /// Sees to it that `count` nodes can be made dirty or new. Before any change of a tree, and
  /// before its nodes are looked for, as it may evict them.
  func prepare(_ count: Int) throws(SpaceWait) {
    invariant(!lostTree, "a tree was dropped while it had dirty nodes")
    guard let allocator else { invariantBroken("a tree is changed without a node allocator") }
    try allocator.prepareNodes(count)
    // Walks need room as well: with a cache full of dirty nodes, a change would wait for the nodes
    // of its path in turn, for ever.
    guard dirtyCount + count <= cache.slotCount / 4 * 3, cache.reserve(count) else {
      throw .memory
    }
    changes &+= 1
  }

  @inline(__always)
  func isDirty(_ slot: CacheSlot) -> Bool { meta[Int(slot)].phase != .clean }

  /// Whether the node is on its way to a device and so must not be changed.
  @inline(__always)
  func isBeingWritten(_ slot: CacheSlot) -> Bool { meta[Int(slot)].phase == .writing }

  /// A node that is about to be changed must not be on its way to a device.
  @inline(__always)
  func checkStill(_ slot: CacheSlot) {
    invariant(meta[Int(slot)].phase != .writing, "a node is changed while it is being written")
  }

  /// Makes the clean node of `tree` in `slot` dirty; returns its slot from now on. The parent is
  /// dirty already (`none` for the root), `index` is the node's entry there.
  func makeDirty(_ slot: CacheSlot, of tree: Tree, parent: CacheSlot, index: Int) -> CacheSlot {
    let node = TreeNode(cache.memory(slot))
    let isShared = node.birth <= tree.branchInstant
    if node.checkpoint == checkpoint && !isShared && !cache.isPinned(slot) {
      cache.makeDirty(slot)
      register(slot, tree, parent: parent, index: index)
      return slot
    }
    let old = parent == BlockCache.none ? tree.root : TreeNode(cache.memory(parent)).pointer(index)
    var new = slot
    if isShared || cache.isPinned(slot) {
      new = cache.insertDirty()
      cache.memory(new).copyMemory(from: node.p, byteCount: blockSize)
    } else {
      cache.makeDirty(slot)
    }
    identify(new, tree)
    release(old, of: tree)
    register(new, tree, parent: parent, index: index)
    return new
  }

  /// A new empty dirty node; the caller makes a parent's entry for it, or the root.
  func makeNew(_ tree: Tree, level: UInt8) -> CacheSlot {
    let slot = cache.insertDirty()
    TreeNode(cache.memory(slot)).initialize(kind: tree.kind, level: level)
    identify(slot, tree)
    register(slot, tree, parent: BlockCache.none, index: -1)
    return slot
  }

  private func identify(_ slot: CacheSlot, _ tree: Tree) {
    invariant(
      tree.birth > tree.branchInstant,
      "a node is born at \(tree.birth), not after the branch at \(tree.branchInstant)")
    guard let allocator else { invariantBroken("a tree is changed without a node allocator") }
    let (first, second) = allocator.takeNode()
    tree.nodeDelta += 1
    damaged.removeAll { $0.first == first }
    TreeNode(cache.memory(slot)).identify(
      first: first, second: second, owner: tree.owner, birth: tree.birth, checkpoint: checkpoint)
  }

  /// The tree no longer refers to the clean node that `pointer` names.
  func release(_ pointer: NodePointer, of tree: Tree) {
    tree.nodeDelta -= 1
    if pointer.birth > tree.branchInstant {
      allocator?.releaseNode(pointer.first, pointer.second)
    } else {
      guard let hook = tree.sharedRelease else {
        invariantBroken("a tree without `sharedRelease` gives up a shared node")
      }
      hook(pointer)
    }
  }

  /// The tree no longer refers to the node in `slot`, whose parent's entry is gone already.
  func drop(dirty slot: CacheSlot, of tree: Tree) {
    checkStill(slot)
    let m = meta[Int(slot)]
    invariant(m.children == 0, "a node is dropped that still has dirty children")
    let node = TreeNode(cache.memory(slot))
    allocator?.releaseNode(node.first, node.second)
    tree.nodeDelta -= 1
    if m.parent != BlockCache.none { lostChild(m.parent) }
    unregister(slot, tree)
    cache.remove(slot)
  }

  /// As `drop(dirty:)` for a clean node; its memory is given up where nobody else can need it.
  func drop(clean slot: CacheSlot, _ pointer: NodePointer, of tree: Tree) {
    release(pointer, of: tree)
    if pointer.birth > tree.branchInstant && !cache.isPinned(slot) { cache.remove(slot) }
  }

  /// The dirty node in `slot` has a new parent, whose entry for it is there already.
  func setParent(_ slot: CacheSlot, _ parent: CacheSlot) {
    let old = meta[Int(slot)].parent
    if old == parent { return }
    meta[Int(slot)].parent = parent
    if old != BlockCache.none { lostChild(old) }
    if parent != BlockCache.none { gainedChild(parent) }
  }

  // MARK: Lists of dirty nodes

  private func register(_ slot: CacheSlot, _ tree: Tree, parent: CacheSlot, index: Int) {
    meta[Int(slot)] = Dirty(tree: Unmanaged.passUnretained(tree), parent: parent)
    dirtyCount += 1
    tree.dirtyCount += 1
    if tree.dirtyCount == 1 {
      tree.dirtyIndex = dirtyTrees.count
      dirtyTrees.append(Unmanaged.passUnretained(tree))
    }
    linkReady(slot, tree)
    if parent != BlockCache.none {
      TreeNode(cache.memory(parent)).setDirtyChild(index, slot)
      gainedChild(parent)
    }
  }

  private func unregister(_ slot: CacheSlot, _ tree: Tree) {
    if meta[Int(slot)].phase == .ready { unlinkReady(slot, tree) }
    meta[Int(slot)] = Dirty()
    dirtyCount -= 1
    tree.dirtyCount -= 1
    if tree.dirtyCount == 0 {
      let last = dirtyTrees.removeLast()
      if tree.dirtyIndex < dirtyTrees.count {
        dirtyTrees[tree.dirtyIndex] = last
        last.takeUnretainedValue().dirtyIndex = tree.dirtyIndex
      }
    }
  }

  private func tree(of slot: CacheSlot) -> Tree {
    guard let tree = meta[Int(slot)].tree else { invariantBroken("a dirty node has no tree") }
    return tree.takeUnretainedValue()
  }

  private func gainedChild(_ parent: CacheSlot) {
    checkStill(parent)
    if meta[Int(parent)].phase == .ready {
      unlinkReady(parent, tree(of: parent))
      meta[Int(parent)].phase = .blocked
    }
    meta[Int(parent)].children += 1
  }

  private func lostChild(_ parent: CacheSlot) {
    invariant(meta[Int(parent)].children > 0, "a node loses a dirty child that it did not have")
    meta[Int(parent)].children -= 1
    if meta[Int(parent)].children == 0 { linkReady(parent, tree(of: parent)) }
  }

  private func linkReady(_ slot: CacheSlot, _ tree: Tree) {
    meta[Int(slot)].phase = .ready
    meta[Int(slot)].next = BlockCache.none
    meta[Int(slot)].previous = tree.lastReady
    if tree.lastReady != BlockCache.none {
      meta[Int(tree.lastReady)].next = slot
    } else {
      tree.firstReady = slot
    }
    tree.lastReady = slot
  }

  private func unlinkReady(_ slot: CacheSlot, _ tree: Tree) {
    let m = meta[Int(slot)]
    if m.previous != BlockCache.none {
      meta[Int(m.previous)].next = m.next
    } else {
      tree.firstReady = m.next
    }
    if m.next != BlockCache.none {
      meta[Int(m.next)].previous = m.previous
    } else {
      tree.lastReady = m.previous
    }
  }

  /// A tree that is dropped may take no dirty nodes with it, unless the store goes as well.
  func dropped(_ tree: Tree) { if tree.dirtyCount > 0 { lostTree = true } }

  // MARK: Writing

  /// Appends up to `limit` dirty nodes that have no dirty children (of `tree`, if given), sealed
  /// and ready to be written. Parents follow in later calls, when their children are done: call
  /// it again after each `writebackDone`, until `dirtyCount` (or the tree's) is zero.
  package func writeback(into writes: inout [NodeWrite], limit: Int, only tree: Tree? = nil) {
    invariant(!lostTree, "a tree was dropped while it had dirty nodes")
    var room = limit
    if let tree {
      writeback(tree, into: &writes, room: &room)
      return
    }
    var i = 0
    while room > 0 && i < dirtyTrees.count {
      writeback(dirtyTrees[i].takeUnretainedValue(), into: &writes, room: &room)
      i += 1
    }
  }

  private func writeback(_ tree: Tree, into writes: inout [NodeWrite], room: inout Int) {
    while room > 0 && tree.firstReady != BlockCache.none {
      let slot = tree.firstReady
      unlinkReady(slot, tree)
      meta[Int(slot)].phase = .writing
      let node = TreeNode(cache.memory(slot))
      _ = node.seal(scratch)
      writes.append(
        NodeWrite(slot: slot, memory: node.p, first: node.first, second: node.second))
      room -= 1
    }
  }

  /// Both copies are written: the node is clean, its parent (or `Tree.root`) points to it.
  package func writebackDone(_ write: NodeWrite) {
    let slot = write.slot
    invariant(meta[Int(slot)].phase == .writing, "a write ended of a node that was not written")
    let (tree, parent) = (tree(of: slot), meta[Int(slot)].parent)
    let node = TreeNode(cache.memory(slot))
    let pointer = node.ownPointer
    if parent == BlockCache.none {
      tree.becomeClean(pointer)
    } else {
      let above = TreeNode(cache.memory(parent))
      guard let index = above.index(ofDirtyChild: slot) else {
        invariantBroken("a dirty node is missing from its parent")
      }
      above.setPointer(index, pointer)
      lostChild(parent)
    }
    unregister(slot, tree)
    cache.makeClean(slot, address: pointer.first, checksum: pointer.checksum)
  }

  /// A copy could not be written: the node has new addresses and is to be written there.
  package func move(_ write: NodeWrite) throws(SpaceWait) -> NodeWrite {
    invariant(
      meta[Int(write.slot)].phase == .writing, "a node is moved that was not being written")
    guard let allocator else { invariantBroken("a node is moved without a node allocator") }
    try allocator.prepareNodes(1)
    let (first, second) = allocator.takeNode()
    damaged.removeAll { $0.first == first }
    allocator.releaseNode(write.first, write.second)
    let node = TreeNode(write.memory)
    node.identify(
      first: first, second: second, owner: node.owner, birth: node.birth, checkpoint: checkpoint)
    _ = node.seal(scratch)
    return NodeWrite(slot: write.slot, memory: write.memory, first: first, second: second)
  }

  // MARK: Verification

  /// What tests want to know of a dirty node.
  func dirtyState(_ slot: CacheSlot) -> (parent: CacheSlot, children: Int) {
    (meta[Int(slot)].parent, Int(meta[Int(slot)].children))
  }
}
