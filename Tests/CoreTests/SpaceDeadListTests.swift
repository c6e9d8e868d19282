import Core
import Testing

private func hex(_ bytes: some Sequence<UInt8>) -> String {
  bytes.map { String($0 >> 4, radix: 16) + String($0 & 15, radix: 16) }.joined()
}

/// One block, or one node, of a dead list, whatever entry it is part of.
private struct Dead: Hashable, Comparable {
  var birth: Instant
  var first: UInt64
  /// 0 for a data block.
  var second: UInt64 = 0

  static func < (a: Self, b: Self) -> Bool { (a.birth, a.first) < (b.birth, b.first) }

  static func all(_ entry: DeadEntry) -> [Dead] {
    switch entry {
    case .blocks(let first, let count, let birth):
      (0..<UInt64(count)).map { Dead(birth: birth, first: first.raw + $0) }
    case .node(let first, let second, let birth):
      [Dead(birth: birth, first: first.raw, second: second.raw)]
    }
  }
}

/// A set that things go into once and leave once.
private struct Once {
  private(set) var all: Set<Dead> = []
  mutating func add(_ entry: DeadEntry) {
    for one in Dead.all(entry) { #expect(all.insert(one).inserted, "\(one) comes twice") }
  }
}

extension ToySpace {
  fileprivate func deadList(_ owner: UInt64 = 9, birth: Instant = 4) -> DeadList {
    DeadList(tree: Tree(store: store, kind: .deadList, owner: ObjectID(owner), birth: birth))
  }

  fileprivate func append(_ entry: DeadEntry, to list: DeadList) {
    run { () throws(SpaceWait) in
      switch entry {
      case .blocks(let first, let count, let birth):
        try list.append(blocks: first, count: count, birth: birth)
      case .node(let first, let second, let birth):
        let pointer = NodePointer(
          first: first, second: second, birth: birth, checksum: 1, level: 0)
        try list.append(node: pointer)
      }
    }
  }

  fileprivate func entries(_ list: DeadList, bornAfter instant: Instant = 0) -> [DeadEntry] {
    var cursor = list.entries(from: TreeKey(hi: instant, lo: .max))
    var all: [DeadEntry] = []
    while let entry = run({ () throws(SpaceWait) in try cursor.next() }) { all.append(entry) }
    return all
  }

  /// Takes everything born after the instant, `limit` entries a call; counts the calls that threw
  /// when they had told something in `interrupted`.
  fileprivate func take(
    _ list: DeadList, bornAfter instant: Instant, limit: Int, interrupted: inout Int
  ) -> Set<Dead> {
    var taken = Once()
    var done = false
    while !done {
      var told = 0
      done = run { () throws(SpaceWait) in
        if told > 0 { interrupted += 1 }
        told = 0
        return try list.takeSome(
          bornAfter: instant, limit: limit,
          blocks: {
            told += 1
            taken.add(.blocks(first: $0, count: $1, birth: $2))
          },
          nodes: {
            told += 1
            taken.add(.node(first: $0, second: $1, birth: $2))
          })
      }
      #expect(told <= limit)
      if random.oneIn(4) { startWrites(limit: 8) }
    }
    return taken.all
  }

  fileprivate func take(_ list: DeadList, bornAfter instant: Instant, limit: Int) -> Set<Dead> {
    var interrupted = 0
    return take(list, bornAfter: instant, limit: limit, interrupted: &interrupted)
  }

  fileprivate func move(_ list: DeadList, into other: DeadList, limit: Int) {
    while !run({ () throws(SpaceWait) in try list.moveSome(into: other, limit: limit) }) {
      if random.oneIn(4) { startWrites(limit: 8) }
    }
  }

  fileprivate var random: SeededRandom {
    get { allocator.random }
    set { allocator.random = newValue }
  }
}

private func counts(_ all: Set<Dead>) -> DeadCounts {
  let nodes = all.count { $0.second != 0 }
  return DeadCounts(dataBlocks: UInt64(all.count - nodes), nodeBlocks: 2 * UInt64(nodes))
}

private func expand(_ entries: [DeadEntry]) -> [Dead] { entries.flatMap(Dead.all) }

private func run(_ block: UInt64, _ count: Int, _ birth: Instant) -> DeadEntry {
  .blocks(first: BlockAddress(volume: 0, block: block), count: count, birth: birth)
}

private func node(_ block: UInt64, _ birth: Instant) -> DeadEntry {
  .node(
    first: BlockAddress(volume: 0, block: block), second: BlockAddress(volume: 1, block: block),
    birth: birth)
}

/// Entries that do not overlap, in a random order; births are 1...50.
private func scattered(_ count: Int, _ random: inout SeededRandom, from block: UInt64 = 10_000)
  -> [DeadEntry]
{
  var block = block
  var all: [DeadEntry] = []
  for _ in 0..<count {
    let birth = 1 + random.below(50)
    if random.oneIn(3) {
      all.append(node(block, birth))
      block += 1
    } else {
      let length = 1 + random.below(20)
      all.append(run(block, Int(length), birth))
      block += length
    }
    if random.oneIn(2) { block += random.below(5) }
  }
  for i in stride(from: all.count - 1, to: 0, by: -1) {
    all.swapAt(i, Int(random.below(UInt64(i + 1))))
  }
  return all
}

/// A space with a list of scattered entries, committed.
private func plantedList(_ count: Int, seed: UInt64, cacheBytes: Int = 1 << 20)
  -> (space: ToySpace, list: DeadList, all: Set<Dead>)
{
  let space = ToySpace(seed: seed, cacheBytes: cacheBytes)
  let list = space.deadList()
  var random = SeededRandom(seed: seed)
  var all = Once()
  for entry in scattered(count, &random) {
    space.append(entry, to: list)
    all.add(entry)
  }
  space.commit([list.tree])
  return (space, list, all.all)
}

@Suite struct SpaceDeadListFormatTests {
  @Test func aDeadListHasTheBytesOfTheFormat() {
    let space = ToySpace(seed: 1)
    let list = space.deadList()
    space.append(run(0x1002, 3, 7), to: list)
    space.append(node(0x300, 7), to: list)
    space.append(run(0x1000, 2, 7), to: list)
    space.append(
      .blocks(first: BlockAddress(volume: 1, block: 0x2000), count: 1, birth: 2), to: list)
    space.commit([list.tree])
    let block = space.device[list.tree.root.first]!
    let expected =
      "534c4e4f" + "01" + "05" + "00" + "00" + "b8878460" + "0300" + "f00f"
      + "0002000000000000" + "0002000000000100" + "0900000000000000" + "0400000000000000"
      + "0100000000000000" + "0000000000000000"
      + "0200000000000000" + "0020000000000100" + "f00f" + "0400"
      + "0700000000000000" + "0003000000000000" + "f40f" + "0800"
      + "0700000000000000" + "0010000000000000" + "fc0f" + "0400"
    #expect(hex(block.prefix(124)) == expected)
    #expect(block[124..<4080].allSatisfy { $0 == 0 })
    #expect(hex(block.suffix(16)) == "01000000" + "0003000000000100" + "05000000")
    #expect(list.counts == DeadCounts(dataBlocks: 6, nodeBlocks: 2))
  }

  @Test func valuesThatMakeNoEntryAreRefused() {
    func entry(_ birth: Instant, _ address: UInt64, _ value: [UInt8]) -> DeadEntry? {
      value.withUnsafeBytes { DeadEntry(birth: birth, address: address, value: $0) }
    }
    let last = BlockAddress(volume: 3, block: (1 << 48) - 1).raw
    #expect(entry(1, 512, [1, 0, 0, 0]) == run(512, 1, 1))
    #expect(entry(1, 512, [0, 32, 0, 0]) == run(512, 8192, 1))
    #expect(entry(1, last, [1, 0, 0, 0]) != nil)
    #expect(entry(.max, 512, [1, 2, 0, 0, 0, 0, 1, 0]) != nil)
    #expect(entry(0, 512, [1, 0, 0, 0]) == nil)
    #expect(entry(1, 511, [1, 0, 0, 0]) == nil)
    #expect(entry(1, 1 << 48 | 511, [1, 0, 0, 0]) == nil)
    #expect(entry(1, last, [2, 0, 0, 0]) == nil)
    #expect(entry(1, 512, [0, 0, 0, 0]) == nil)
    #expect(entry(1, 512, [1, 32, 0, 0]) == nil)
    #expect(entry(1, 512, [1, 0, 0, 255]) == nil)
    #expect(entry(1, 512, []) == nil)
    #expect(entry(1, 512, [1, 0, 0]) == nil)
    #expect(entry(1, 512, [1, 0, 0, 0, 0]) == nil)
    #expect(entry(1, 512, [0, 2, 0, 0, 0, 0, 0, 0]) == nil)  // the same address twice
    #expect(entry(1, 512, [255, 1, 0, 0, 0, 0, 1, 0]) == nil)
    #expect(entry(1, 511, [0, 2, 0, 0, 0, 0, 1, 0]) == nil)
    #expect(entry(1, 512, [0, 2, 0, 0, 0, 0, 1, 0, 0]) == nil)
  }

  /// The root leaf of a list, changed and sealed again.
  private func fault(_ change: (UnsafeMutableRawPointer) -> Void) -> NodeFault? {
    let space = ToySpace(seed: 1)
    let list = space.deadList()
    for entry in [run(600, 4, 3), node(604, 3), run(605, 4, 3), run(606, 2, 5)] {
      space.append(entry, to: list)
    }
    space.commit([list.tree])
    var block = space.device[list.tree.root.first]!
    var pointer = list.tree.root
    return block.withUnsafeMutableBytes {
      let p = $0.baseAddress!
      change(p)
      sealBlock(p, checksumAt: 8)
      pointer.checksum = p.reading.u32(8)
      return NodeFormat.fault(in: p, of: pointer)
    }
  }

  @Test func aSealedLeafWithBadEntriesIsRefused() {
    let values = blockSize - 20
    #expect(fault { _ in } == nil)
    #expect(fault { $0.put(UInt64(0), at: 64) } == .value)  // birth
    #expect(fault { $0.put(UInt64(500), at: 72) } == .value)  // address
    #expect(fault { $0.put(UInt32(5), at: values) } == .value)  // overlaps the node
    #expect(fault { $0.put(UInt32(0), at: values) } == .value)
    #expect(fault { $0.put(UInt32(8193), at: blockSize - 4) } == .value)
    #expect(fault { $0.put(UInt64(604), at: values + 4) } == .value)  // both copies in one place
    #expect(fault { $0.put(UInt64(0), at: values + 4) } == .value)
    #expect(fault { $0.put(UInt32(100), at: blockSize - 8) } == nil)  // of another birth
  }

  @Test(arguments: [20, 600])
  func nodesOfRandomBytesWithARightChecksumNeverStopTheProcess(count: Int) {
    let (space, list, _) = plantedList(count, seed: 12)
    var random = SeededRandom(seed: 78)
    var (accepted, walks) = (0, 0)
    for _ in 0..<800 {
      var block = space.device[list.tree.root.first]!
      for _ in 0...random.below(3) {
        let reach: UInt64 = random.oneIn(2) ? 64 : random.oneIn(2) ? 400 : 4096
        block[Int(random.below(reach))] = UInt8(truncatingIfNeeded: random.next())
      }
      var pointer = list.tree.root
      let fault = block.withUnsafeMutableBytes {
        let p = $0.baseAddress!
        sealBlock(p, checksumAt: 8)
        pointer.checksum = p.reading.u32(8)
        pointer.level = p.reading.u8(6)
        pointer.birth = p.reading.u64(40)
        return NodeFormat.fault(in: p, of: pointer)
      }
      guard fault == nil, pointer.birth > 0 else { continue }
      accepted += 1
      let other = ToySpace(seed: 3)
      other.allocator.isLax = true
      other.device = space.device
      other.device[pointer.first] = block
      other.device[pointer.second] = block
      let tree = Tree(
        store: other.store, kind: .deadList, owner: ObjectID(9), root: pointer, birth: 1 << 60)
      // The counts are as wrong as the nodes.
      let damaged = DeadList(tree: tree, counts: .init(dataBlocks: .max))
      let target = other.deadList(10)
      walks += walk(other, damaged, target, &random)
      while other.spill(limit: 100) {}
      #expect(!damaged.tree.isDirty && !target.tree.isDirty)
    }
    #expect(accepted > 50 && walks > 400)
  }

  /// Random operations as far as damage lets them go; returns how many came to their end.
  private func walk(
    _ space: ToySpace, _ list: DeadList, _ target: DeadList, _ random: inout SeededRandom
  ) -> Int {
    var done = 0
    for _ in 0..<10 {
      let (birth, kind) = (1 + random.below(50), random.below(5))
      let (address, abandon) = (BlockAddress(raw: 10_000 + random.below(5000)), random.oneIn(2))
      for _ in 0..<20 {
        do throws(SpaceWait) {
          switch kind {
          case 0:
            var cursor = list.entries(from: TreeKey(hi: birth, lo: .max))
            for _ in 0..<20 { _ = try cursor.next() }
          case 1: try list.append(blocks: address, count: 3, birth: birth)
          case 2: _ = try list.moveSome(into: target, limit: 10, abandonDamaged: abandon)
          case 3: _ = try list.discardSome(maxLeaves: 1)
          default:
            _ = try list.takeSome(
              bornAfter: birth, limit: 20, abandonDamaged: abandon, blocks: { _, _, _ in },
              nodes: { _, _, _ in })
          }
          done += 1
          break
        } catch {
          guard case .node(let pointer) = error else { break }
          space.loadOrDamage(pointer)
        }
      }
    }
    return done
  }
}

@Suite struct SpaceDeadListTests {
  @Test func entriesAreInTheOrderOfBirthsAndThenOfAddresses() {
    let (space, list, all) = plantedList(2000, seed: 1)
    #expect(list.tree.height > 1)
    #expect(expand(space.entries(list)) == all.sorted())
    #expect(expand(space.entries(list, bornAfter: 20)) == all.sorted().filter { $0.birth > 20 })
    #expect(space.entries(list, bornAfter: 50).isEmpty)
    #expect(space.entries(list, bornAfter: .max).isEmpty)
    #expect(list.counts == counts(all))
  }

  @Test func neighbouringRunsOfOneBirthAreJoined() {
    let space = ToySpace(seed: 1)
    let list = space.deadList()
    for block in 0..<3000 as Range<UInt64> { space.append(run(1000 + block, 1, 3), to: list) }
    #expect(space.entries(list) == [run(1000, 3000, 3)])
    // To the left, into a gap, not across births, not to nodes, not beyond the longest run.
    space.append(run(990, 9, 3), to: list)
    #expect(space.entries(list) == [run(990, 9, 3), run(1000, 3000, 3)])
    space.append(run(999, 1, 3), to: list)
    #expect(space.entries(list) == [run(990, 3010, 3)])
    space.append(run(4000, 5, 4), to: list)
    space.append(node(4000, 3), to: list)
    space.append(run(4001, 5, 3), to: list)
    #expect(
      space.entries(list)
        == [run(990, 3010, 3), node(4000, 3), run(4001, 5, 3), run(4000, 5, 4)])
    space.append(run(4006, 8187, 3), to: list)
    space.append(run(12_193, 1, 3), to: list)
    #expect(space.entries(list)[2...3] == [run(4001, 8192, 3), run(12_193, 1, 3)])
    space.append(run(600, 1, 3), to: list)
    space.append(run(601, 1, 3), to: list)
    #expect(space.entries(list)[0] == run(600, 2, 3))
    #expect(list.counts == DeadCounts(dataBlocks: 3010 + 5 + 8192 + 1 + 2, nodeBlocks: 2))
    space.commit([list.tree])
  }

  @Test func aBlockThatIsOnTheListAlreadyIsDamage() throws {
    let space = ToySpace(seed: 1)
    let list = space.deadList()
    space.append(run(1000, 10, 3), to: list)
    space.append(node(2000, 3), to: list)
    let other = space.deadList(10)
    space.append(run(1005, 1, 3), to: other)
    for (address, count) in [(1000, 1), (1009, 4), (991, 10), (1995, 6), (1990, 100)] {
      do throws(SpaceWait) {
        try list.append(
          blocks: BlockAddress(raw: UInt64(address)), count: count, birth: 3)
        Issue.record("\(address) was accepted")
      } catch {
        guard case .damaged = error else { throw error }
      }
    }
    #expect(throws: SpaceWait.self) { _ = try other.moveSome(into: list, limit: 1) }
    #expect(space.entries(list) == [run(1000, 10, 3), node(2000, 3)])
    #expect(space.entries(other) == [run(1005, 1, 3)])
    #expect(list.counts == DeadCounts(dataBlocks: 10, nodeBlocks: 2))
  }

  @Test func takingStopsAtTheInstantAndAtTheLimit() {
    let (space, list, all) = plantedList(1000, seed: 5)
    var told = 0
    let done = space.run { () throws(SpaceWait) in
      try list.takeSome(
        bornAfter: 30, limit: 7, blocks: { _, _, _ in told += 1 }, nodes: { _, _, _ in told += 1 })
    }
    #expect(!done && told == 7)
    _ = space.take(list, bornAfter: 30, limit: 1000)
    #expect(expand(space.entries(list)) == all.filter { $0.birth <= 30 }.sorted())
    #expect(space.take(list, bornAfter: 30, limit: 5).isEmpty)
    #expect(list.counts == counts(all.filter { $0.birth <= 30 }))
  }

  /// With a cache of a few nodes and an allocator that refuses often, calls throw in their midst.
  @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64])
  func everyEntryIsToldOnceWhateverInterrupts(seed: UInt64) {
    let (space, list, all) = plantedList(6000, seed: seed, cacheBytes: 32 << 12)
    space.allocator.refuseOneIn = 3
    let loads = space.loads
    var taken: Set<Dead> = []
    var interrupted = 0
    for instant in stride(from: 40, through: 0, by: -20) as StrideThrough<Int> {
      let some = space.take(
        list, bornAfter: Instant(instant), limit: seed % 2 == 0 ? 2000 : 1 + Int(seed),
        interrupted: &interrupted)
      #expect(some == all.filter { $0.birth > instant && $0.birth <= instant + 20 })
      taken.formUnion(some)
      #expect(list.counts == counts(all.subtracting(taken)))
      space.commit([list.tree])
    }
    #expect(taken == all && list.isEmpty && list.counts == DeadCounts())
    #expect(space.loads > loads && (seed % 2 == 1 || interrupted > 10))
    #expect(space.allocator.inUse.isEmpty)
  }

  @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64])
  func everyEntryMovesOnceWhateverInterrupts(seed: UInt64) {
    let (space, list, all) = plantedList(2500, seed: seed, cacheBytes: 32 << 12)
    let other = space.deadList(10)
    var random = SeededRandom(seed: seed)
    var both = all
    for entry in scattered(2500, &random, from: 1_000_000) {
      space.append(entry, to: other)
      both.formUnion(Dead.all(entry))
    }
    space.commit([list.tree, other.tree])
    space.allocator.refuseOneIn = 3
    let loads = space.loads
    // Half way, every entry is on one of the two.
    _ = space.run { () throws(SpaceWait) in try list.moveSome(into: other, limit: 1000) }
    let halves = expand(space.entries(list)) + expand(space.entries(other))
    #expect(halves.count == both.count && Set(halves) == both)
    space.move(list, into: other, limit: seed % 2 == 0 ? 3000 : 1 + Int(seed))
    #expect(list.isEmpty && list.counts == DeadCounts())
    #expect(other.counts == counts(both))
    #expect(expand(space.entries(other)) == both.sorted())
    #expect(space.loads > loads)
    space.commit([list.tree, other.tree])
    #expect(Set(space.allocator.inUse.keys) == space.durable)
  }

  @Test func listsThatInterleaveAreJoinedAgainWhenOneMovesIntoTheOther() {
    let space = ToySpace(seed: 1)
    let (even, odd) = (space.deadList(), space.deadList(10))
    for i in 0..<2000 as Range<UInt64> {
      space.append(run(1000 + 2 * i, 1, 3), to: even)
      space.append(run(1001 + 2 * i, 1, 3), to: odd)
    }
    space.move(even, into: odd, limit: 100)
    let entries = space.entries(odd)
    #expect(expand(entries).count == 4000)
    // A run that two leaves hold the ends of stays in parts.
    #expect(entries.count < 40)
    #expect(odd.counts == DeadCounts(dataBlocks: 4000))
  }

  @Test func discardingTellsNothingAndFreesTheListsOwnNodes() {
    let (space, list, _) = plantedList(3000, seed: 8, cacheBytes: 32 << 12)
    space.allocator.refuseOneIn = 3
    var calls = 0
    while !space.run({ () throws(SpaceWait) in try list.discardSome(maxLeaves: 3) }) { calls += 1 }
    #expect(calls > 5 && list.isEmpty && list.counts == DeadCounts())
    #expect(space.allocator.inUse.isEmpty)
  }

  @Test func aReopenedListGoesOnWithItsCounts() {
    let (space, list, all) = plantedList(500, seed: 9)
    let (root, counts) = (list.tree.root, list.counts)
    space.restart()
    let tree = Tree(
      store: space.store, kind: .deadList, owner: ObjectID(9), root: root, birth: 5)
    let again = DeadList(tree: tree, counts: counts)
    #expect(expand(space.entries(again)) == all.sorted())
    #expect(space.take(again, bornAfter: 0, limit: 100) == all)
    #expect(again.counts == DeadCounts())
  }

  /// A leaf in the midst, the first, the last, or the root is damaged in both copies.
  @Test(arguments: [0, 1, 2, 3], [false, true])
  func damageIsThrownAndGivenUpOnlyOnDemand(which: Int, moving: Bool) {
    let (space, list, all) = plantedList(3000, seed: 10)
    let leaves = space.live([list.tree]).filter { $0.level == 0 }
    func firstKey(_ p: NodePointer) -> Dead {
      space.device[p.first]!.withUnsafeBytes {
        Dead(birth: $0.baseAddress!.u64(64), first: $0.baseAddress!.u64(72))
      }
    }
    let ordered = leaves.sorted { firstKey($0) < firstKey($1) }
    let bad = [ordered[0], ordered[ordered.count / 2], ordered.last!, list.tree.root][which]
    space.device[bad.first] = nil
    space.device[bad.second] = [UInt8](repeating: 2, count: blockSize)
    space.restart()
    let tree = Tree(
      store: space.store, kind: .deadList, owner: ObjectID(9), root: list.tree.root, birth: 5)
    let again = DeadList(tree: tree, counts: list.counts)
    let target = space.deadList(10)
    var (taken, thrown) = (Once(), 0)
    for _ in 0..<100_000 {
      do throws(SpaceWait) {
        let done =
          moving
          ? try again.moveSome(into: target, limit: 50, abandonDamaged: thrown > 1)
          : try again.takeSome(
            bornAfter: 0, limit: 50, abandonDamaged: thrown > 1,
            blocks: { taken.add(.blocks(first: $0, count: $1, birth: $2)) },
            nodes: { taken.add(.node(first: $0, second: $1, birth: $2)) })
        if done { break }
      } catch {
        switch error {
        case .node(let p): space.loadOrDamage(p)
        case .damaged(let p):
          #expect(p == bad)
          thrown += 1
        default: Issue.record("unexpected \(error)")
        }
      }
    }
    let got = moving ? Set(expand(space.entries(target))) : taken.all
    #expect(again.isEmpty && again.counts == DeadCounts() && thrown == 2)
    #expect(got.isSubset(of: all))
    #expect(which == 3 ? got.isEmpty : got.count > all.count * 8 / 10 && got.count < all.count)
  }
}
