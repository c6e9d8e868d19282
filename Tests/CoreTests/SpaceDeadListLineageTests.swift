import Core
import Testing

/// A disk with snapshots in a line, each edge with its dead list: the map of the head, data blocks
/// that are given out and taken back, and a model of what each snapshot refers to.
private final class DeadLineage {
  struct Snapshot {
    var instant: Instant
    var root: NodePointer
    /// Home of each mapped block.
    var model: [UInt64: UInt64]
    /// Of the edge from the snapshot before to this one.
    var list: DeadList
  }

  let space: ToySpace
  let map: ExtentMap
  var random: SeededRandom
  var model: [UInt64: UInt64] = [:]
  var snapshots: [Snapshot] = []
  /// Of the edge from the newest snapshot to the head.
  var list: DeadList
  /// Data blocks in use, and those that were given back.
  var data: Set<UInt64> = []
  var spare: [UInt64] = []
  var nextHome: UInt64 = 1 << 20
  /// What a change of the map has given up, for the list.
  var given: [DeadEntry] = []
  var freed = 0

  var tree: Tree { map.tree }
  var newest: Instant { snapshots.last?.instant ?? 0 }

  init(seed: UInt64, cacheBytes: Int) {
    space = ToySpace(seed: seed, cacheBytes: cacheBytes)
    map = ExtentMap(tree: Tree(store: space.store, kind: .extents, owner: ObjectID(7)))
    list = Self.newList(space)
    random = SeededRandom(seed: seed)
    tree.sharedRelease = { [unowned self] in
      given.append(.node(first: $0.first, second: $0.second, birth: $0.birth))
    }
  }

  static func newList(_ space: ToySpace) -> DeadList {
    DeadList(tree: Tree(store: space.store, kind: .deadList, owner: ObjectID(7)))
  }

  // MARK: Changing the head

  /// Homes that follow one another, or a single one that was used before.
  private func home(_ count: inout Int) -> UInt64 {
    if !spare.isEmpty && random.oneIn(2) {
      count = 1
      return spare.remove(at: Int(random.below(UInt64(spare.count))))
    }
    nextHome += UInt64(count)
    return nextHome - UInt64(count)
  }

  private func free(_ first: UInt64, _ count: Int) {
    for block in first..<first + UInt64(count) {
      #expect(data.remove(block) != nil, "block \(block) is freed twice")
      spare.append(block)
      freed += 1
    }
  }

  private func release(_ address: BlockAddress, _ count: Int, _ birth: Instant) {
    if birth > tree.branchInstant {
      free(address.raw, count)
    } else {
      given.append(.blocks(first: address, count: count, birth: birth))
    }
  }

  /// What was given up goes on the list, which may have to wait.
  private func enlist() {
    while let entry = given.last {
      space.run { () throws(SpaceWait) in
        switch entry {
        case .blocks(let first, let count, let birth):
          try list.append(blocks: first, count: count, birth: birth)
        case .node(let first, let second, let birth):
          try list.append(
            node: NodePointer(first: first, second: second, birth: birth, checksum: 0, level: 0))
        }
      }
      given.removeLast()
    }
  }

  func change(_ steps: Int) {
    for _ in 0..<steps {
      let block = random.below(8000)
      var count = random.oneIn(3) ? 1 + Int(random.below(60)) : 1
      if random.oneIn(6) {
        var at = BlockIndex(block)
        let end = block + UInt64(count)
        while at.raw < end {
          at = space.run { () throws(SpaceWait) in
            try map.removeSome(at, count: end - at.raw, maxLeaves: 1, released: release)
          }
        }
        for i in block..<end { model[i] = nil }
      } else {
        let first = home(&count)
        for i in 0..<UInt64(count) {
          #expect(data.insert(first + i).inserted)
          model[block + i] = first + i
        }
        let checksums = [UInt32](repeating: 5, count: count)
        space.run { () throws(SpaceWait) in
          try checksums.span.withUnsafeBufferPointer { c throws(SpaceWait) in
            try map.assign(
              BlockIndex(block), to: BlockAddress(raw: first), checksums: c, birth: tree.birth,
              released: release)
          }
        }
      }
      enlist()
      if random.oneIn(40) { space.startWrites(limit: 8) }
    }
  }

  // MARK: Snapshots

  /// Keeps the root, for which the tree has to be clean; the head's list is the snapshot's now.
  func snapshot() {
    while tree.isDirty { space.spill(limit: 10, only: tree) }
    snapshots.append(Snapshot(instant: tree.birth, root: tree.root, model: model, list: list))
    list = Self.newList(space)
    tree.branchInstant = tree.birth
    tree.birth += 1
  }

  /// Deletes a snapshot in small steps, while the head goes on changing.
  func delete(_ k: Int) {
    let own = snapshots.remove(at: k).list
    let before = k > 0 ? snapshots[k - 1].instant : 0
    let child = k < snapshots.count ? snapshots[k].list : list
    // What was born since belongs to the head alone again, if it is the head's.
    tree.branchInstant = newest
    let limit = 1 + Int(random.below(200))
    while !space.run({ () throws(SpaceWait) in
      try child.takeSome(
        bornAfter: before, limit: limit, blocks: { address, count, _ in free(address.raw, count) },
        nodes: { first, second, _ in space.allocator.releaseNode(first, second) })
    }) {
      if random.oneIn(3) { change(5) }
    }
    while !space.run({ () throws(SpaceWait) in try own.moveSome(into: child, limit: limit) }) {
      if random.oneIn(3) { change(5) }
    }
    #expect(own.isEmpty && own.counts == DeadCounts())
  }

  /// Deletes the head as well.
  func destroy() {
    while !space.run({ () throws(SpaceWait) in
      try map.pruneSome(maxLeaves: 3, released: release)
    }) {}
    #expect(given.isEmpty && list.isEmpty)
    model = [:]
  }

  // MARK: Checking

  private func open(_ root: NodePointer) -> Tree {
    Tree(store: space.store, kind: .extents, owner: ObjectID(7), root: root)
  }

  private func contents(_ tree: Tree) -> [UInt64: UInt64] {
    var all: [UInt64: UInt64] = [:]
    var cursor = tree.cursor()
    while let item = space.run({ () throws(SpaceWait) in
      try cursor.next().map { ($0.key.hi, $0.value.base.u64(0), $0.value.base.u16(16)) }
    }) {
      for i in 0..<UInt64(item.2) { all[item.0 + i] = item.1 + i }
    }
    return all
  }

  /// Every map is as the model has it, each list is exactly the difference of its edge, and what
  /// is in use is what maps and lists refer to.
  func check() {
    let lists = snapshots.map(\.list) + [list]
    space.commit([tree] + lists.map(\.tree) + snapshots.map { open($0.root) })
    let trees = snapshots.map { open($0.root) } + [tree]
    let models = snapshots.map(\.model) + [model]
    var parent: (nodes: Set<BlockAddress>, homes: Set<UInt64>) = ([], [])
    var homes: Set<UInt64> = []
    for (i, tree) in trees.enumerated() {
      #expect(contents(tree) == models[i])
      let nodes = Set(space.live([tree]).map(\.first))
      let (listedNodes, listedHomes) = listed(lists[i], i == 0 ? 0 : snapshots[i - 1].instant)
      #expect(listedNodes == parent.nodes.subtracting(nodes))
      #expect(listedHomes == parent.homes.subtracting(models[i].values))
      parent = (nodes, Set(models[i].values))
      homes.formUnion(models[i].values)
    }
    #expect(homes == data)
    #expect(Set(space.allocator.inUse.keys) == space.durable)
  }

  private func listed(_ list: DeadList, _ parent: Instant) -> (Set<BlockAddress>, Set<UInt64>) {
    var (nodes, homes): (Set<BlockAddress>, Set<UInt64>) = ([], [])
    var cursor = list.entries()
    while let entry = space.run({ () throws(SpaceWait) in try cursor.next() }) {
      #expect(entry.birth <= parent)
      switch entry {
      case .blocks(let first, let count, _):
        for i in 0..<UInt64(count) { #expect(homes.insert(first.raw + i).inserted) }
      case .node(let first, _, _):
        #expect(nodes.insert(first).inserted)
      }
    }
    let counts = DeadCounts(
      dataBlocks: UInt64(homes.count), nodeBlocks: 2 * UInt64(nodes.count))
    #expect(list.counts == counts)
    return (nodes, homes)
  }
}

@Suite struct SpaceDeadListLineageTests {
  @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64])
  func deletingSnapshotsInAnyOrderGivesBackExactlyWhatOnlyTheyHeld(seed: UInt64) {
    let l = DeadLineage(seed: seed, cacheBytes: seed % 2 == 0 ? 90 << 12 : 1 << 20)
    l.change(600)
    for _ in 0..<30 {
      l.space.allocator.refuseOneIn = l.random.below(2) * 4
      l.change(Int(l.random.below(80)))
      if l.random.oneIn(2) { l.snapshot() }
      if l.random.oneIn(3) && !l.snapshots.isEmpty {
        l.delete(Int(l.random.below(UInt64(l.snapshots.count))))
      }
      if l.random.oneIn(5) { l.check() }
    }
    l.check()
    while !l.snapshots.isEmpty {
      l.delete(Int(l.random.below(UInt64(l.snapshots.count))))
      if l.random.oneIn(3) { l.check() }
    }
    l.check()
    #expect(l.list.isEmpty)
    l.destroy()
    l.check()
    #expect(l.data.isEmpty && l.space.allocator.inUse.isEmpty && l.freed > 1000)
  }

  @Test(arguments: [false, true])
  func aLongLineOfSnapshotsIsDeletedFromEitherEnd(newestFirst: Bool) {
    let l = DeadLineage(seed: 20, cacheBytes: 1 << 20)
    for _ in 0..<60 {
      l.change(20)
      l.snapshot()
    }
    l.check()
    while !l.snapshots.isEmpty { l.delete(newestFirst ? l.snapshots.count - 1 : 0) }
    l.check()
    l.destroy()
    l.check()
    #expect(l.data.isEmpty && l.space.allocator.inUse.isEmpty)
  }

  @Test func snapshotsWithNothingBetweenThemHaveEmptyLists() {
    let l = DeadLineage(seed: 21, cacheBytes: 1 << 20)
    l.change(200)
    for _ in 0..<5 { l.snapshot() }
    l.check()
    for s in l.snapshots { #expect(s.list.isEmpty) }
    l.delete(2)
    l.delete(0)
    l.change(100)
    l.check()
    #expect(!l.list.isEmpty)
  }
}
