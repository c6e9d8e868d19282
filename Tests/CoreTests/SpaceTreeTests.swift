import Core
import Testing

/// A tree with a model beside it that does the same.
private struct Modelled {
  let space: ToySpace
  var tree: Tree
  var model: [TreeKey: [UInt8]] = [:]
  var random: SeededRandom

  init(seed: UInt64, cacheBytes: Int = 1 << 20) {
    space = ToySpace(seed: seed, cacheBytes: cacheBytes)
    tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7))
    random = SeededRandom(seed: seed &+ 1)
  }

  mutating func insert(_ key: TreeKey, _ value: [UInt8]) {
    let existed = space.run { () throws(SpaceWait) in
      try tree.insertOrReplace(key, value)
    }
    #expect(existed == (model.updateValue(value, forKey: key) != nil))
  }

  mutating func remove(_ key: TreeKey) {
    let existed = space.run { () throws(SpaceWait) in try tree.remove(key) }
    #expect(existed == (model.removeValue(forKey: key) != nil))
  }

  func check() {
    if space.cacheBytes >= 1 << 20 {
      let counts = space.run { () throws(SpaceWait) in try tree.verify() }
      #expect(counts.entries == model.count)
    }
    let keys = model.keys.sorted()
    var cursor = tree.cursor()
    for key in keys {
      let got = space.run { () throws(SpaceWait) in
        try cursor.next().map { ($0.key, $0.value.array) }
      }
      guard got?.0 == key && got?.1 == model[key] else {
        Issue.record("the cursor gives \(got?.0 as Any) for \(key)")
        return
      }
    }
    #expect(space.run { () throws(SpaceWait) in try cursor.next() == nil })
  }
}

@Suite struct SpaceTreeTests {
  @Test func whatIsInsertedIsFoundAndWhatIsRemovedIsNot() {
    var t = Modelled(seed: 1)
    for i in 0..<5000 as Range<UInt64> {
      t.insert(TreeKey(hi: i &* 7919 % 5003, lo: i), toyValue(i, Int(i % 90)))
    }
    t.check()
    for i in stride(from: 0, to: 5000 as UInt64, by: 2) {
      t.remove(TreeKey(hi: i &* 7919 % 5003, lo: i))
    }
    t.check()
  }

  @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64])
  func randomOperationsAgreeWithAModel(seed: UInt64) {
    var t = Modelled(seed: seed, cacheBytes: seed % 2 == 0 ? 300 << 10 : 2 << 20)
    t.space.allocator.refuseOneIn = 50
    var committed: (root: NodePointer, model: [TreeKey: [UInt8]]) = (.none, [:])
    let range: UInt64 = seed % 3 == 0 ? 1000 : 20000
    for step in 0..<30_000 {
      let key = TreeKey(hi: t.random.below(range), lo: t.random.below(3))
      // Phases of growth and of decay.
      let grow = (step / 5000) % 2 == 0 ? 70 : 30 as UInt64
      switch t.random.below(100) {
      case 0..<grow:
        let big = t.random.oneIn(20)
        t.insert(key, toyValue(t.random.next(), Int(t.random.below(big ? 1025 : 60))))
      case grow..<90: t.remove(key)
      case 90..<93:
        let floor = t.space.run { () throws(SpaceWait) in try t.tree.floor(key)?.key }
        if step % 16 == 0 { #expect(floor == t.model.keys.filter { $0 <= key }.max()) }
        let ceiling = t.space.run { () throws(SpaceWait) in try t.tree.ceiling(key)?.key }
        if step % 16 == 0 { #expect(ceiling == t.model.keys.filter { $0 >= key }.min()) }
      case 93..<96:
        if var value = t.model[key], value.count > 4 {
          let offset = Int(t.random.below(UInt64(value.count - 3)))
          let found = t.space.run { () throws(SpaceWait) in
            try t.tree.patch(key, offset: offset, [1, 2, 3])
          }
          #expect(found)
          value.replaceSubrange(offset..<offset + 3, with: [1, 2, 3])
          t.model[key] = value
        }
      default:
        let value = t.space.run { () throws(SpaceWait) in try t.tree.lookup(key)?.array }
        #expect(value == t.model[key])
      }
      if t.random.oneIn(30) { t.space.startWrites(limit: Int(t.random.below(8))) }
      if t.random.oneIn(10) { t.space.endWrite() }
      if t.random.oneIn(300) { t.space.spill(limit: Int(t.random.below(20))) }
      if t.random.oneIn(2000) {
        t.space.commit([t.tree])
        committed = (t.tree.root, t.model)
        // Nothing has leaked: what is in use is what the tree refers to.
        #expect(Set(t.space.allocator.inUse.keys) == t.space.durable)
      }
      if t.random.oneIn(6000) {
        t.space.restart()
        t.tree = Tree(
          store: t.space.store, kind: .objects, owner: ObjectID(7), root: committed.root)
        t.model = committed.model
        t.space.allocator.restart(live: t.space.live([t.tree]))
      }
      if step % 3000 == 0 {
        t.check()
        t.space.cache.verify()
      }
    }
    t.check()
    #expect(t.space.loads > 0 && t.space.spills > 0)
  }
}

@Suite struct SpaceTreeShapeTests {
  private func fill(_ keys: some Sequence<UInt64>) -> (tree: Tree, fill: Double) {
    let space = ToySpace(seed: 1, cacheBytes: 16 << 20)
    let tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7))
    for i in keys {
      space.run { () throws(SpaceWait) in
        try tree.insertOrReplace(TreeKey(hi: i), toyValue(1, 28))
      }
    }
    let counts = space.run { () throws(SpaceWait) in try tree.verify() }
    return (tree, Double(counts.leafBytes) / Double(counts.leaves * NodeFormat.capacity))
  }

  @Test func ascendingInsertionsFillLeavesWholly() {
    #expect(fill(0..<20_000).fill > 0.98)
  }

  @Test func ascendingRunsInTheMiddleFillLeavesWellToo() {
    let runs = (0..<20 as Range<UInt64>).reversed().flatMap { r in
      (0..<1000 as Range<UInt64>).map { r * 100_000 + $0 }
    }
    #expect(fill(runs).fill > 0.9)
  }

  @Test func randomInsertionsFillLeavesToTwoThirds() {
    #expect(fill((0..<20_000 as Range<UInt64>).map { $0 &* 48271 % 65521 }).fill > 0.6)
  }

  @Test func aTreeThatShrinksGivesUpItsNodes() {
    let space = ToySpace(seed: 1, cacheBytes: 16 << 20)
    let tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7))
    let keys = (0..<20_000 as Range<UInt64>).map { $0 &* 48271 % 65521 }
    space.run { () throws(SpaceWait) in
      for i in keys { try tree.insertOrReplace(TreeKey(hi: i), toyValue(1, 28)) }
      for i in keys.dropFirst(1000) { try tree.remove(TreeKey(hi: i)) }
    }
    let counts = space.run { () throws(SpaceWait) in try tree.verify() }
    #expect(counts.entries == 1000 && counts.leaves < 40 && tree.height == 2)
    space.run { () throws(SpaceWait) in
      for i in keys { try tree.remove(TreeKey(hi: i)) }
    }
    #expect(tree.isEmpty && tree.height == 0 && space.store.dirtyCount == 0)
    #expect(tree.nodeDelta == 0 && space.allocator.inUse.isEmpty)
  }

  @Test func valuesOfEverySizeAreKept() {
    let space = ToySpace(seed: 1)
    let tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7))
    for size in (0...1024).reversed() {
      space.run { () throws(SpaceWait) in
        try tree.insertOrReplace(TreeKey(hi: UInt64(size)), toyValue(UInt64(size), size))
      }
    }
    space.commit([tree])
    for size in 0...1024 {
      #expect(
        space.run { () throws(SpaceWait) in
          try tree.lookup(TreeKey(hi: UInt64(size)))?.array
        } == toyValue(UInt64(size), size))
    }
  }

  @Test func theGreatestKeysHaveTheirPlace() {
    let space = ToySpace(seed: 1)
    let tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7))
    let top = TreeKey(hi: .max, lo: .max)
    space.run { () throws(SpaceWait) in
      try tree.insertOrReplace(top, [1])
      try tree.insertOrReplace(.least, [2])
    }
    var cursor = tree.cursor()
    #expect(space.run { () throws(SpaceWait) in try cursor.next()?.key } == .least)
    #expect(space.run { () throws(SpaceWait) in try cursor.next()?.key } == top)
    #expect(space.run { () throws(SpaceWait) in try cursor.next() == nil })
    #expect(space.run { () throws(SpaceWait) in try tree.ceiling(top)?.key } == top)
    #expect(space.run { () throws(SpaceWait) in try tree.floor(top)?.key } == top)
  }

  @Test func aCursorGoesOnBehindWhatWasChanged() {
    let space = ToySpace(seed: 1)
    let tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7))
    space.run { () throws(SpaceWait) in
      for i in 0..<1000 as Range<UInt64> { try tree.insertOrReplace(TreeKey(hi: i), [1]) }
    }
    var cursor = tree.cursor(from: TreeKey(hi: 100))
    var seen: [UInt64] = []
    while let key = space.run({ () throws(SpaceWait) in try cursor.next()?.key }) {
      seen.append(key.hi)
      // Removes what was returned, and every other key to come.
      space.run { () throws(SpaceWait) in
        try tree.remove(key)
        try tree.remove(TreeKey(hi: key.hi + 1))
      }
    }
    #expect(seen == Array(stride(from: 100, to: 1000, by: 2)))
  }
}
