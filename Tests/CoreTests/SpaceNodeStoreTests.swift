import Core
import Testing

@Suite struct SpaceNodeStoreTests {
  @Test func aBadFirstCopyIsHealedFromTheSecond() {
    let (space, tree) = plantedTree(30)
    let root = tree.root
    space.device[root.first]![100] ^= 1
    space.restart()
    let again = Tree(store: space.store, kind: .objects, owner: ObjectID(7), root: root)
    #expect(throws: SpaceWait.node(root)) { try again.lookup(TreeKey(hi: 2, lo: 1)) }
    #expect(space.loadOrDamage(root) == .readyHeal(bad: 0))
    #expect(
      space.run { () throws(SpaceWait) in try again.lookup(TreeKey(hi: 2, lo: 1))?.array }
        == toyValue(1, 40))
  }

  @Test func aNodeThatIsBadTwiceIsDamagedUntilItIsForgotten() {
    let (space, tree) = plantedTree(30)
    let root = tree.root
    let good = space.device[root.first]!
    space.device[root.first] = nil
    space.device[root.second]![4000] ^= 1
    space.restart()
    let again = Tree(store: space.store, kind: .objects, owner: ObjectID(7), root: root)
    #expect(throws: SpaceWait.node(root)) { try again.lookup(.least) }
    #expect(space.loadOrDamage(root) == .damaged)
    #expect(throws: SpaceWait.damaged(root)) { try again.lookup(.least) }
    space.device[root.second] = good
    space.store.forgetDamage()
    #expect(throws: SpaceWait.node(root)) { try again.lookup(.least) }
    #expect(space.loadOrDamage(root) == .readyHeal(bad: 0))
    #expect(throws: Never.self) { try again.lookup(.least) }
  }

  @Test func aNodeWhoseOnlyGoodCopyWasRefusedIsReadAgain() {
    let (space, tree) = plantedTree(30)
    let root = tree.root
    space.device[root.second]![4000] ^= 1
    space.restart()
    guard case .started(let load) = space.store.beginLoad(root) else {
      Issue.record("the load did not start")
      return
    }
    #expect(space.store.finishLoad(load, copy: 0, error: 5) == .tryOther)
    space.device[root.second]!.withUnsafeBytes {
      load.memory.copyMemory(from: $0.baseAddress!, byteCount: blockSize)
    }
    let outcome = space.store.finishLoad(load, copy: 1, error: 0, firstRefused: true)
    #expect(outcome == .damaged && space.store.wasRefused(root))
    space.store.forgetRefusals()
    #expect(space.loadOrDamage(root) == .ready)
  }

  @Test func aSecondLoadOfTheSameNodeDoesNotStart() {
    let (space, tree) = plantedTree(30)
    space.restart()
    guard case .started(let load) = space.store.beginLoad(tree.root) else {
      Issue.record("the first load did not start")
      return
    }
    guard case .alreadyLoading = space.store.beginLoad(tree.root) else {
      Issue.record("a second load started")
      return
    }
    space.device[tree.root.first]!.withUnsafeBytes {
      load.memory.copyMemory(from: $0.baseAddress!, byteCount: blockSize)
    }
    #expect(space.store.finishLoad(load, copy: 0, error: 0) == .ready)
    guard case .present = space.store.beginLoad(tree.root) else {
      Issue.record("a load of a node in memory started")
      return
    }
  }

  @Test func aNodeOfAnotherOwnerOrKindIsDamage() {
    let (space, tree) = plantedTree(30)
    let stranger = Tree(store: space.store, kind: .objects, owner: ObjectID(8), root: tree.root)
    #expect(throws: SpaceWait.damaged(tree.root)) { try stranger.lookup(.least) }
    let other = Tree(store: space.store, kind: .names, owner: ObjectID(7), root: tree.root)
    #expect(throws: SpaceWait.damaged(tree.root)) { try other.lookup(.least) }
  }

  @Test func aRootPointerOfNonsenseIsDamage() {
    let (space, tree) = plantedTree(30)
    var pointer = tree.root
    pointer.level = 200
    let bad = Tree(store: space.store, kind: .objects, owner: ObjectID(7), root: pointer)
    #expect(throws: SpaceWait.damaged(pointer)) { try bad.lookup(.least) }
    guard case .damaged = space.store.beginLoad(pointer) else {
      Issue.record("a load of nonsense started")
      return
    }
  }

  @Test func aSpilledNodeIsChangedInItsPlaceWithinTheCheckpoint() {
    let (space, tree) = plantedTree(30)
    let committed = tree.root
    func change(_ byte: UInt8) {
      space.run { () throws(SpaceWait) in try tree.insertOrReplace(.least, [byte]) }
      while space.spill(limit: 10) {}
    }
    change(1)
    let spilled = tree.root
    #expect(spilled.first != committed.first)
    let used = space.allocator.inUse
    change(2)
    #expect(tree.root.first == spilled.first && tree.root.checksum != spilled.checksum)
    #expect(space.allocator.inUse == used)
    // In the next checkpoint it has to move.
    space.commit([tree])
    change(3)
    #expect(tree.root.first != spilled.first)
  }

  @Test func aSpilledNodeThatWasEvictedIsLoadedAndChangedInItsPlace() {
    let (space, tree) = plantedTree(30)
    space.run { () throws(SpaceWait) in try tree.insertOrReplace(.least, [1]) }
    while space.spill(limit: 10) {}
    let spilled = tree.root
    for i in 0..<UInt64(space.cache.slotCount) {
      let slot = space.cache.insert(BlockAddress(volume: 9, block: i), checksum: 0, role: .node)!
      space.cache.markValid(slot)
    }
    let loads = space.loads
    space.run { () throws(SpaceWait) in try tree.insertOrReplace(.least, [2]) }
    #expect(space.loads == loads + 1)
    while space.spill(limit: 10) {}
    #expect(tree.root.first == spilled.first)
    space.commit([tree])
    #expect(Set(space.allocator.inUse.keys) == space.durable)
  }

  @Test func aPinnedNodeIsNotChangedUnderTheDevice() {
    let (space, tree) = plantedTree(30)
    let slot = space.cache.find(
      tree.root.first, checksum: tree.root.checksum, role: .node)!
    space.cache.pin(slot)
    let before = [UInt8](UnsafeRawBufferPointer(start: space.cache.memory(slot), count: blockSize))
    space.run { () throws(SpaceWait) in try tree.insertOrReplace(.least, [1]) }
    space.commit([tree])
    let after = [UInt8](UnsafeRawBufferPointer(start: space.cache.memory(slot), count: blockSize))
    #expect(before == after)
    space.cache.unpin(slot)
    #expect(Set(space.allocator.inUse.keys) == space.durable)
  }

  @Test func aChangeOfANodeThatIsBeingWrittenWaits() {
    let (space, tree) = plantedTree(30)
    space.run { () throws(SpaceWait) in try tree.insertOrReplace(.least, [1]) }
    space.startWrites(limit: 1)
    #expect(throws: SpaceWait.memory) { try tree.insertOrReplace(.least, [2]) }
    #expect(throws: SpaceWait.memory) { try tree.remove(.least) }
    #expect(throws: SpaceWait.memory) { try tree.patch(.least, offset: 0, [2]) }
    #expect(throws: SpaceWait.memory) { try tree.pruneSome(maxNodes: 1) { _ in } }
    #expect((try? tree.lookup(.least)?.array) == [1])
    space.endWrite()
    #expect(throws: Never.self) { try tree.insertOrReplace(.least, [2]) }
  }

  @Test func parentsAreWrittenAfterTheirChildren() {
    let (space, tree) = plantedTree(20_000)
    #expect(tree.height == 3)
    for i in stride(from: 0, to: 20_000 as UInt64, by: 500) {
      space.run { () throws(SpaceWait) in
        try tree.insertOrReplace(TreeKey(hi: i * 2, lo: i), [1])
      }
    }
    while space.endWrite() {}
    var levels: [UInt8] = []
    while true {
      var writes: [NodeWrite] = []
      space.store.writeback(into: &writes, limit: 7)
      if writes.isEmpty { break }
      for write in writes {
        levels.append(write.memory.reading.u8(6))
        space.put(write)
        space.store.writebackDone(write)
      }
    }
    #expect(levels.last == 2 && levels.filter { $0 == 2 }.count == 1)
    #expect(!tree.isDirty)
    space.commit([tree])
    #expect(Set(space.allocator.inUse.keys) == space.durable)
  }

  @Test func aNodeThatCanNotBeWrittenMovesElsewhere() {
    let (space, tree) = plantedTree(20_000)
    for i in stride(from: 0, to: 20_000 as UInt64, by: 100) {
      space.run { () throws(SpaceWait) in
        try tree.insertOrReplace(TreeKey(hi: i * 2, lo: i), [1])
      }
    }
    while space.endWrite() {}
    var random = SeededRandom(seed: 5)
    var bad: Set<BlockAddress> = []
    while space.store.dirtyCount > 0 {
      var writes: [NodeWrite] = []
      space.store.writeback(into: &writes, limit: 10)
      for write in writes {
        var write = write
        while random.oneIn(4) {
          bad.insert(write.first)
          write = space.run { () throws(SpaceWait) in try space.store.move(write) }
        }
        #expect(!bad.contains(write.first))
        space.put(write)
        space.store.writebackDone(write)
      }
    }
    #expect(bad.count > 3)
    space.commit([tree])
    #expect(Set(space.allocator.inUse.keys) == space.durable)
    for i in stride(from: 0, to: 20_000 as UInt64, by: 100) {
      #expect(
        space.run { () throws(SpaceWait) in
          try tree.lookup(TreeKey(hi: i * 2, lo: i))?.array
        } == [1])
    }
  }

  @Test func onlyTheTreeAskedForIsWritten() {
    let (space, tree) = plantedTree(30)
    let other = Tree(store: space.store, kind: .names, owner: ObjectID(9))
    space.run { () throws(SpaceWait) in
      try tree.insertOrReplace(.least, [1])
      try other.insertOrReplace(.least, [2])
    }
    while space.spill(limit: 10, only: other) {}
    #expect(tree.isDirty && !other.isDirty && !other.root.isNone)
  }

  @Test func aChangeThatHasToWaitHasChangedNothing() {
    let (space, tree) = plantedTree(20_000)
    space.allocator.refuseOneIn = 3
    var random = SeededRandom(seed: 11)
    for _ in 0..<30 {
      // Nothing is in memory at first, so each attempt finds another node missing.
      space.restart()
      let again = Tree(
        store: space.store, kind: .objects, owner: ObjectID(7), root: tree.root, birth: 6)
      let used = space.allocator.inUse
      var thrown = 0
      for attempt in 0..<50 {
        do throws(SpaceWait) {
          let i = random.below(20_000)
          if attempt % 2 == 0 {
            try again.insertOrReplace(TreeKey(hi: i * 2, lo: i), toyValue(1, 1000))
          } else {
            try again.remove(TreeKey(hi: i * 2, lo: i))
          }
          break
        } catch {
          thrown += 1
          #expect(space.allocator.inUse == used && space.store.dirtyCount == 0)
          if case .node(let pointer) = error { space.load(pointer) }
        }
      }
      #expect(thrown > 2)
      space.allocator.restart(live: space.live([tree]))
    }
  }

  @Test func dirtyNodesNeverFillTheCache() {
    let space = ToySpace(seed: 1, cacheBytes: 64 * blockSize)
    let tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7))
    var waits = 0
    for i in 0..<20_000 as Range<UInt64> {
      do throws(SpaceWait) {
        try tree.insertOrReplace(TreeKey(hi: i &* 7919 % 20_000), toyValue(i, 20))
      } catch {
        switch error {
        case .memory:
          waits += 1
          space.spill(limit: 100)
        case .node(let pointer): space.load(pointer)
        default: Issue.record("unexpected \(error)")
        }
      }
      #expect(space.store.dirtyCount <= 48)
    }
    #expect(waits > 0 && space.store.dirtyLimit == 16)
  }
}
