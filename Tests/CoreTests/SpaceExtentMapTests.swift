import Core
import Testing

/// What a model disk holds at a block.
private struct Home: Equatable {
  var address: UInt64
  var birth: Instant
  var checksum: UInt32
}

private struct Released: Hashable {
  var address: UInt64
  var birth: Instant
}

/// An extent map with a dictionary beside it.
private struct ModelledMap {
  let space: ToySpace
  var map: ExtentMap
  var model: [UInt64: Home] = [:]
  var random: SeededRandom
  var nextAddress: UInt64 = 1 << 20

  init(seed: UInt64, cacheBytes: Int = 4 << 20) {
    space = ToySpace(seed: seed, cacheBytes: cacheBytes)
    map = ExtentMap(
      tree: Tree(store: space.store, kind: .extents, owner: ObjectID(20)))
    random = SeededRandom(seed: seed &+ 99)
  }

  mutating func assign(_ first: UInt64, _ count: Int, address: UInt64? = nil, birth: Instant) {
    let address = address ?? nextAddress
    nextAddress = max(nextAddress, address + UInt64(count))
    let checksums = (0..<count).map { _ in UInt32(truncatingIfNeeded: random.next()) }
    var released: [Released] = []
    space.run { () throws(SpaceWait) in
      released = []
      try checksums.span.withUnsafeBufferPointer { c throws(SpaceWait) in
        try map.assign(
          BlockIndex(first), to: BlockAddress(raw: address), checksums: c, birth: birth
        ) { a, n, b in
          for i in 0..<UInt64(n) { released.append(Released(address: a.raw + i, birth: b)) }
        }
      }
    }
    var expected: [Released] = []
    for i in 0..<UInt64(count) {
      let new = Home(address: address + i, birth: birth, checksum: checksums[Int(i)])
      if let old = model.updateValue(new, forKey: first + i) {
        expected.append(Released(address: old.address, birth: old.birth))
      }
    }
    #expect(released == expected)
  }

  mutating func remove(_ first: UInt64, _ count: UInt64, maxLeaves: Int) {
    var released: [Released] = []
    var at = BlockIndex(first)
    while at.raw < first + count {
      let before = at
      at = space.run { () throws(SpaceWait) in
        try map.removeSome(before, count: first + count - before.raw, maxLeaves: maxLeaves) {
          a, n, b in
          for i in 0..<UInt64(n) { released.append(Released(address: a.raw + i, birth: b)) }
        }
      }
      #expect(at > before)
    }
    var expected: [Released] = []
    for key in model.keys.filter({ $0 >= first && $0 < first + count }).sorted() {
      let old = model.removeValue(forKey: key)!
      expected.append(Released(address: old.address, birth: old.birth))
    }
    #expect(released == expected)
  }

  mutating func overwrite(_ first: UInt64, _ count: Int) {
    let checksums = (0..<count).map { _ in UInt32(truncatingIfNeeded: random.next()) }
    space.run { () throws(SpaceWait) in
      try checksums.span.withUnsafeBufferPointer { c throws(SpaceWait) in
        try map.updateChecksums(BlockIndex(first), c)
      }
    }
    for i in 0..<count { model[first + UInt64(i)]!.checksum = checksums[i] }
  }

  /// Reads [first, end) and compares it with the model.
  func check(_ first: UInt64, _ end: UInt64) {
    var at = first
    while at < end {
      var wrong = false
      let count = space.run { () throws(SpaceWait) in
        let limit = Int(end - at)
        switch try map.lookup(BlockIndex(at), limit: limit) {
        case .hole(let count):
          for i in 0..<UInt64(count) where model[at + i] != nil { wrong = true }
          return count
        case .mapped(let address, let count, let birth, let checksums):
          for i in 0..<count {
            let home = Home(
              address: address.raw + UInt64(i), birth: birth, checksum: checksums[i])
            if model[at + UInt64(i)] != home { wrong = true }
          }
          return count
        }
      }
      guard !wrong, count > 0, at + UInt64(count) <= end else {
        Issue.record("the map is wrong in \(at)+\(count)")
        return
      }
      at += UInt64(count)
    }
  }

  /// The lengths of all extents, in order.
  func extents() -> [Int] {
    var lengths: [Int] = []
    var cursor = map.tree.cursor()
    while let length = space.run({ () throws(SpaceWait) in
      try cursor.next().map { Int($0.value.base.u16(16)) }
    }) {
      lengths.append(length)
    }
    return lengths
  }
}

@Suite struct SpaceExtentMapTests {
  @Test func adjacentAssignmentsOfOneBirthMakeOneExtent() {
    var m = ModelledMap(seed: 1)
    for i in 0..<128 as Range<UInt64> { m.assign(i, 1, address: 5000 + i, birth: 3) }
    #expect(m.extents() == [128])
    m.assign(128, 1, address: 5128, birth: 3)
    #expect(m.extents() == [128, 1])
    m.check(0, 200)
  }

  @Test func assignmentsInDescendingOrderJoinAsWell() {
    var m = ModelledMap(seed: 1)
    for i in (0..<100 as Range<UInt64>).reversed() { m.assign(i, 1, address: 5000 + i, birth: 3) }
    #expect(m.extents() == [100])
  }

  @Test func aGapThatIsFilledJoinsBothSides() {
    var m = ModelledMap(seed: 1)
    m.assign(0, 10, address: 5000, birth: 3)
    m.assign(20, 10, address: 5020, birth: 3)
    m.assign(10, 10, address: 5010, birth: 3)
    #expect(m.extents() == [30])
  }

  @Test func otherBirthsAndOtherPlacesDoNotJoin() {
    var m = ModelledMap(seed: 1)
    m.assign(0, 10, address: 5000, birth: 3)
    m.assign(10, 10, address: 5010, birth: 4)
    m.assign(20, 10, address: 5021, birth: 4)
    #expect(m.extents() == [10, 10, 10])
  }

  @Test func anAssignmentInsideAnExtentCutsItInThree() {
    var m = ModelledMap(seed: 1)
    m.assign(1000, 100, birth: 1)
    m.assign(1040, 5, birth: 2)
    #expect(m.extents() == [40, 5, 55])
    m.check(900, 1200)
  }

  @Test func anAssignmentReplacesEverythingBelowIt() {
    var m = ModelledMap(seed: 1)
    for i in 0..<100 as Range<UInt64> { m.assign(i * 2, 1, birth: i + 1) }
    m.assign(1, 128, birth: 7)
    m.check(0, 300)
    #expect(m.extents().prefix(3) == [1, 128, 1])
  }

  @Test func anOverwriteInPlaceKeepsTheExtents() {
    var m = ModelledMap(seed: 1)
    m.assign(0, 100, birth: 1)
    m.assign(100, 100, birth: 2)
    m.overwrite(50, 120)
    #expect(m.extents() == [100, 100])
    m.check(0, 200)
  }

  @Test func aHoleInsideAnExtentLeavesBothEnds() {
    var m = ModelledMap(seed: 1)
    m.assign(0, 100, birth: 1)
    m.remove(30, 20, maxLeaves: 1)
    #expect(m.extents() == [30, 50])
    m.check(0, 128)
  }

  @Test func aLargeHoleIsMadeInBoundedSteps() {
    var m = ModelledMap(seed: 1)
    for i in 0..<5000 as Range<UInt64> { m.assign(i * 3, 1, birth: 1) }
    let count = UInt64(1) << 39
    let next = m.space.run { () throws(SpaceWait) in
      try m.map.removeSome(BlockIndex(7), count: count, maxLeaves: 2) { _, _, _ in }
    }
    #expect(next.raw > 7 && next.raw < 15000)
    m.model = m.model.filter { $0.key < 7 || $0.key >= next.raw }
    m.check(0, 15000)
    m.remove(7, count, maxLeaves: 100)
    #expect(m.extents() == [1, 1, 1])
  }

  @Test func theLastBlockOfTheLargestDiskCanBeMapped() {
    var m = ModelledMap(seed: 1)
    m.assign(BlockIndex.limit - 128, 128, birth: 1)
    m.check(BlockIndex.limit - 200, BlockIndex.limit)
    m.remove(0, BlockIndex.limit, maxLeaves: 1)
    #expect(m.map.tree.isEmpty)
  }

  @Test(arguments: [1, 2, 3, 4, 5, 6] as [UInt64])
  func randomChangesAgreeWithAModel(seed: UInt64) {
    var m = ModelledMap(seed: seed, cacheBytes: seed % 2 == 0 ? 500 << 10 : 2 << 20)
    m.space.allocator.refuseOneIn = 60
    let disk: UInt64 = seed % 3 == 0 ? 3000 : 60_000
    var committed: (root: NodePointer, model: [UInt64: Home]) = (.none, [:])
    var birth: Instant = 1
    for step in 0..<15_000 {
      let small = m.random.below(3) > 0
      let first = m.random.below(disk - 128)
      let count = 1 + m.random.below(small ? 4 : 128)
      switch m.random.below(100) {
      case 0..<60:
        // Some homes follow the one of the block before, as runs do.
        let before = first > 0 && m.random.oneIn(2) ? m.model[first - 1] : nil
        m.assign(
          first, Int(count), address: before.map { $0.address + 1 }, birth: before?.birth ?? birth)
      case 60..<75:
        m.remove(first, count, maxLeaves: 1 + Int(m.random.below(3)))
      case 75..<85:
        var n: UInt64 = 0
        while n < count && m.model[first + n] != nil { n += 1 }
        m.overwrite(first, Int(n))
      case 85..<86:
        let wide = m.random.below(disk - first)
        if m.random.oneIn(20) { m.remove(first, wide, maxLeaves: 4) }
      default: m.check(first, first + count)
      }
      if m.random.oneIn(50) { birth += 1 }
      if m.random.oneIn(30) { m.space.startWrites(limit: Int(m.random.below(8))) }
      if m.random.oneIn(10) { m.space.endWrite() }
      if m.random.oneIn(200) { m.space.spill(limit: Int(m.random.below(20))) }
      if m.random.oneIn(1500) {
        m.space.commit([m.map.tree])
        committed = (m.map.tree.root, m.model)
        #expect(Set(m.space.allocator.inUse.keys) == m.space.durable)
      }
      if m.random.oneIn(5000) {
        m.space.restart()
        m.map = ExtentMap(
          tree: Tree(
            store: m.space.store, kind: .extents, owner: ObjectID(20), root: committed.root))
        m.model = committed.model
        m.space.allocator.restart(live: m.space.live([m.map.tree]))
      }
      if step % 2500 == 0 { m.check(0, disk) }
    }
    m.check(0, disk)
    m.space.commit([m.map.tree])
    #expect(Set(m.space.allocator.inUse.keys) == m.space.durable)
    #expect(m.space.loads > 0 && m.space.spills > 0)
  }
}
