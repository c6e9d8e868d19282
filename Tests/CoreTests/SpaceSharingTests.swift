import Core
import Testing

/// A tree with snapshots: each is a root that was kept, and the nodes that the tree gave up since.
private final class Lineage {
  let space: ToySpace
  let tree: Tree
  var random: SeededRandom
  var model: [TreeKey: [UInt8]] = [:]
  var snapshots: [(instant: Instant, root: NodePointer, model: [TreeKey: [UInt8]])] = []
  var dead: [NodePointer] = []

  init(seed: UInt64) {
    space = ToySpace(seed: seed)
    tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7))
    random = SeededRandom(seed: seed)
    tree.sharedRelease = { [unowned self] in dead.append($0) }
  }

  func change(_ steps: Int, keys: UInt64 = 2000) {
    for _ in 0..<steps {
      let key = TreeKey(hi: random.below(keys))
      if random.oneIn(3) {
        space.run { () throws(SpaceWait) in try tree.remove(key) }
        model[key] = nil
      } else {
        let value = toyValue(random.next(), Int(random.below(100)))
        space.run { () throws(SpaceWait) in try tree.insertOrReplace(key, value) }
        model[key] = value
      }
    }
  }

  /// Keeps the root; the tree has to be clean for it.
  func snapshot() {
    while tree.isDirty { space.spill(limit: 10, only: tree) }
    snapshots.append((tree.birth, tree.root, model))
    tree.branchInstant = tree.birth
    tree.birth += 1
  }

  /// Deletes the newest snapshot: what only it referred to is on the dead list, born since the one
  /// before.
  func deleteNewest() {
    snapshots.removeLast()
    let before = snapshots.last?.instant ?? 0
    tree.branchInstant = before
    for p in dead where p.birth > before { space.allocator.releaseNode(p.first, p.second) }
    dead.removeAll { $0.birth > before }
  }

  func contents(_ tree: Tree) -> [TreeKey: [UInt8]] {
    var all: [TreeKey: [UInt8]] = [:]
    var cursor = tree.cursor()
    while let item = space.run({ () throws(SpaceWait) in
      try cursor.next().map { ($0.key, $0.value.array) }
    }) {
      all[item.0] = item.1
    }
    return all
  }

  func open(_ root: NodePointer) -> Tree {
    Tree(store: space.store, kind: .objects, owner: ObjectID(7), root: root)
  }

  /// Every root reads as its model, and nothing is in use that no root refers to.
  func check() {
    space.commit([tree] + snapshots.map { open($0.root) })
    #expect(contents(tree) == model)
    for s in snapshots { #expect(contents(open(s.root)) == s.model) }
    #expect(Set(space.allocator.inUse.keys) == space.durable)
  }
}

@Suite struct SpaceSharingTests {
  @Test func aSnapshotStaysAsItWas() {
    let l = Lineage(seed: 1)
    l.change(3000)
    l.snapshot()
    l.change(3000)
    l.check()
  }

  @Test func manySnapshotsWithinOneCheckpointKeepTheirContents() {
    let l = Lineage(seed: 2)
    l.change(1000)
    for _ in 0..<10 {
      l.snapshot()
      l.change(20)
    }
    l.check()
    #expect(!l.dead.isEmpty)
  }

  @Test(arguments: [3, 4, 5] as [UInt64])
  func deletingSnapshotsGivesBackAllTheirNodes(seed: UInt64) {
    let l = Lineage(seed: seed)
    for _ in 0..<30 {
      l.change(Int(l.random.below(400)))
      if l.random.oneIn(2) { l.snapshot() }
      if l.random.oneIn(3) && !l.snapshots.isEmpty {
        l.space.commit([l.tree] + l.snapshots.map { l.open($0.root) })
        l.deleteNewest()
      }
      if l.random.oneIn(3) { l.check() }
    }
    while !l.snapshots.isEmpty { l.deleteNewest() }
    l.check()
    #expect(l.dead.isEmpty)
  }

  @Test func aNodeOfThisCheckpointThatASnapshotTookIsNotChanged() {
    let l = Lineage(seed: 6)
    l.change(10)
    l.snapshot()
    let before = l.tree.root
    l.change(10)
    while l.space.spill(limit: 10) {}
    #expect(l.tree.root.first != before.first)
    #expect(l.contents(l.open(before)) == l.snapshots[0].model)
  }

  @Test func aCloneSharesItsOriginUntilItIsChanged() {
    let l = Lineage(seed: 7)
    l.change(3000)
    l.snapshot()
    l.check()
    let clone = Tree(
      store: l.space.store, kind: .objects, owner: ObjectID(7), root: l.tree.root,
      branchInstant: l.tree.branchInstant, birth: l.tree.birth)
    var given: [NodePointer] = []
    clone.sharedRelease = { given.append($0) }
    let used = l.space.allocator.inUse.count
    l.space.run { () throws(SpaceWait) in
      try clone.insertOrReplace(TreeKey(hi: 5), [1, 2, 3])
    }
    #expect(clone.height > 1 && given.count == clone.height)
    #expect(l.space.allocator.inUse.count == used + clone.height)
    #expect(l.contents(l.tree) == l.model)
    l.model[TreeKey(hi: 5)] = [1, 2, 3]
    #expect(l.contents(clone) == l.model)

    // Destroying the clone frees what is its own and nothing else.
    var entries = 0
    var steps = 0
    while !l.space.run({ () throws(SpaceWait) in
      try clone.pruneSome(maxNodes: 1) { _ in entries += 1 }
    }) {
      steps += 1
      #expect(steps < 1000)
    }
    #expect(clone.isEmpty && entries > 0 && entries < 200)
    while l.space.spill(limit: 10) {}
    #expect(l.space.allocator.inUse.count == used)
    #expect(l.contents(l.tree) == l.snapshots[0].model)
  }

  @Test func destroyingATreeTellsEveryEntryOnceAndFreesEveryNode() {
    let l = Lineage(seed: 8)
    l.change(5000)
    l.check()
    var seen: [TreeKey: [UInt8]] = [:]
    var calls = 0
    var done = false
    while !done {
      done = l.space.run { () throws(SpaceWait) in
        try l.tree.pruneSome(maxNodes: 3) {
          #expect(seen.updateValue($0.value.array, forKey: $0.key) == nil)
        }
      }
      calls += 1
      if calls % 5 == 0 { l.space.commit([l.tree]) }
    }
    #expect(seen == l.model && calls > 5)
    l.space.commit([l.tree])
    #expect(l.tree.isEmpty && l.space.allocator.inUse.isEmpty)
  }

  @Test func aDamagedSubtreeIsAbandonedOnlyOnDemand() {
    let l = Lineage(seed: 9)
    l.change(3000)
    l.check()
    // The first leaf is damaged in both copies.
    var cursor = l.tree.cursor()
    let first = try? cursor.next()?.key
    #expect(first == l.model.keys.min())
    let bad = l.space.live([l.tree]).filter { $0.level == 0 }.min { $0.first < $1.first }!
    l.space.device[bad.first] = [UInt8](repeating: 1, count: blockSize)
    l.space.device[bad.second] = [UInt8](repeating: 2, count: blockSize)
    l.space.restart()
    let tree = Tree(store: l.space.store, kind: .objects, owner: ObjectID(7), root: l.tree.root)
    var (entries, thrown) = (0, 0)
    for _ in 0..<1000 {
      do throws(SpaceWait) {
        if try tree.pruneSome(maxNodes: 10, abandonDamaged: thrown > 0, { _ in entries += 1 }) {
          break
        }
      } catch {
        switch error {
        case .node(let p): l.space.loadOrDamage(p)
        case .damaged(let p):
          #expect(p == bad)
          thrown += 1
        default: Issue.record("unexpected \(error)")
        }
      }
    }
    #expect(tree.isEmpty && thrown == 1)
    #expect(entries < l.model.count && entries > l.model.count - 250)
  }

  @Test(arguments: [3, 100])
  func aSubtreeThatItsDeviceRefusesToReadIsGivenUpOnlyAfterSomeTries(refusals: Int) {
    let l = Lineage(seed: 9)
    l.change(3000)
    l.check()
    let bad = l.space.live([l.tree]).filter { $0.level == 0 }.min { $0.first < $1.first }!
    let (first, second) = (l.space.device[bad.first], l.space.device[bad.second])
    (l.space.device[bad.first], l.space.device[bad.second]) = (nil, nil)
    l.space.restart()
    let tree = Tree(store: l.space.store, kind: .objects, owner: ObjectID(7), root: l.tree.root)
    var (entries, refused) = (0, 0)
    for _ in 0..<1000 {
      do throws(SpaceWait) {
        if try tree.pruneSome(maxNodes: 10, abandonDamaged: true, { _ in entries += 1 }) { break }
      } catch {
        switch error {
        case .node(let p): l.space.loadOrDamage(p)
        case .damaged(let p):
          #expect(p == bad && l.space.store.isRefused(p))
          l.space.store.forgetRefusals()
          refused += 1
          if refused == refusals {
            (l.space.device[bad.first], l.space.device[bad.second]) = (first, second)
          }
        default: Issue.record("unexpected \(error)")
        }
      }
    }
    #expect(tree.isEmpty)
    if refusals == 3 {
      #expect(entries == l.model.count && refused == 3)
    } else {
      #expect(entries < l.model.count && entries > l.model.count - 250 && refused == 59)
    }
  }
}
