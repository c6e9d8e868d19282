import Core
import Testing

@testable import Checker

/// Disk 100 with three snapshots, clones of the second, a clone of a clone, and a rollback whose
/// leftovers are gone; leaves are split, whole subtrees overwritten and trimmed.
private func sample() -> (PoolBuilder, BranchBuilder) {
  let (pool, branches) = BranchBuilder.empty()
  branches.disk(100, "golden")
  branches.write(100, 0..<300, 1000)
  branches.write(100, 700..<1000, 1000)
  branches.snapshot(100, 200, "first")
  branches.write(100, 10..<14, 2000)
  branches.write(100, 280..<310, 2000)
  branches.trim(100, 40..<45)
  branches.snapshot(100, 201, "second")
  branches.write(100, 11..<12, 3000)
  branches.split(100, leaf: 64)
  branches.write(100, 70..<71, 3000)
  branches.trim(100, 704..<1000)
  branches.clone(201, 110, "clone")
  branches.write(110, 500..<501, 4000)
  branches.write(110, 5..<6, 4000)
  branches.clone(201, 111, "idle")
  branches.clone(201, 112, "overwritten")
  branches.write(112, 0..<320, 5000)
  branches.write(112, 700..<1000, 5000)
  branches.snapshot(110, 210, "of a clone")
  branches.snapshot(110, 211, "unchanged")
  branches.clone(211, 113, "deep")
  branches.trim(113, 64..<1024)
  branches.snapshot(100, 202, "third")
  branches.write(100, 0..<1, 6000)
  return (pool, branches)
}

private func expectClean(
  _ make: () -> (PoolBuilder, BranchBuilder), location: SourceLocation = #_sourceLocation
) {
  let (pool, _) = make()
  pool.build()
  let report = pool.check()
  #expect(
    report.complaints == [] && report.failure == nil && report.notes == [],
    sourceLocation: location)
}

/// Builds the sample with a fault and expects a complaint with these words.
private func expectFound(
  _ words: String, only: Bool = true, location: SourceLocation = #_sourceLocation,
  _ change: (PoolBuilder, BranchBuilder) -> Void
) {
  let (pool, branches) = sample()
  change(pool, branches)
  pool.build()
  let report = pool.check()
  if only { return expectOne(report, words, location: location) }
  #expect(
    report.complaints.contains { $0.contains(words) }, "\(report.complaints)",
    sourceLocation: location)
}

@Test func aSoundTreeOfSnapshotsIsClean() {
  expectClean(sample)
  let (pool, branches) = sample()
  pool.build()
  let report = pool.check()
  #expect(report.counters.objects == 10 && report.counters.names == 10)
  let homes = Set(branches.objects.values.flatMap { $0.blocks.values.map(\.address) })
  #expect(report.counters.dataBlocks == UInt64(homes.count))
  #expect(report.counters.verifiedBlocks == UInt64(homes.count))
  #expect(report.counters.metadataNodes == UInt64(pool.nodes.count))
}

@Test func aSoundTreeOfSnapshotsIsCleanWhenEverySortGoesThroughFiles() {
  let (pool, _) = sample()
  pool.build()
  var options = CheckOptions()
  options.sortMemory = 0
  options.temporaryDirectory = "/tmp"
  #expect(pool.check(options).complaints == [])
}

@Test func aDeadListMayHoldARunInSeveralEntries() {
  expectClean {
    let (pool, branches) = sample()
    branches.deadRun = 3
    return (pool, branches)
  }
}

@Test func aRollbackLeavesADeletedDiskBehind() {
  expectClean {
    let (pool, branches) = sample()
    branches.rollback(100, to: 201, former: 150)
    branches.write(100, 3..<4, 7000)
    return (pool, branches)
  }
}

@Test func aHiddenSnapshotKeepsWhatItsChildrenNeed() {
  expectClean {
    let (pool, branches) = sample()
    branches.delete(201)
    return (pool, branches)
  }
}

@Test func aDeletedDiskWhoseSnapshotsAreStillThereIsClean() {
  expectClean {
    let (pool, branches) = sample()
    branches.delete(100)
    return (pool, branches)
  }
}

@Test func aDeletedBranchMayBeARemainder() {
  for disk: UInt64 in [110, 112, 113, 100] {
    expectClean {
      let (pool, branches) = sample()
      branches.delete(disk)
      branches.trim(disk, 0..<290)
      branches.changeDead[disk] = { $0.removeFirst($0.count / 2) }
      return (pool, branches)
    }
  }
}

@Test func aMergeUnderWayIsCleanAtEveryStep() {
  for (free, move) in [(0, 0), (1, 0), (2, 0), (1000, 0), (1000, 1), (1000, 1000)] {
    expectClean {
      let (pool, branches) = sample()
      branches.merge(202, free: free, move: move)
      return (pool, branches)
    }
    expectClean {
      let (pool, branches) = sample()
      branches.merge(200, free: free, move: move)
      return (pool, branches)
    }
    expectClean {
      let (pool, branches) = sample()
      branches.merge(210, free: free, move: move)
      return (pool, branches)
    }
  }
}

@Test func severalSnapshotsInARowMayBeMergedAtOnce() {
  for (free, move) in [(0, 0), (3, 0), (1000, 2), (1000, 1000)] {
    expectClean {
      let (pool, branches) = BranchBuilder.empty()
      branches.disk(100, "golden")
      branches.write(100, 0..<400, 1000)
      branches.snapshot(100, 200, "kept")
      for i: UInt64 in 0..<3 {
        branches.write(100, (i * 20)..<(i * 20 + 100), 2000 + i * 1000)
        branches.snapshot(100, 201 + i, "s\(i)")
      }
      branches.write(100, 30..<33, 9000)
      for id: UInt64 in [201, 202, 203] { branches.merge(id, free: free, move: move) }
      return (pool, branches)
    }
  }
}

@Test func aDeletedSnapshotWhoseOnlyChildInheritsFromItIsWhole() {
  expectClean {
    let (pool, branches) = BranchBuilder.empty()
    branches.disk(100, "golden")
    branches.write(100, 0..<100, 1000)
    branches.snapshot(100, 200, "first")
    branches.delete(200)
    return (pool, branches)
  }
}

// MARK: Faults

@Test func aMissingDeadEntryIsFound() {
  expectFound("missing on its dead list") { _, branches in
    branches.changeDead[210] = { $0.removeAll { if case .blocks = $0 { true } else { false } } }
  }
  expectFound("2 blocks that the parent of object 100 refers to") { _, branches in
    branches.changeDead[100] = {
      $0.remove(at: $0.firstIndex { if case .node = $0 { true } else { false } }!)
    }
  }
}

@Test func anExtraDeadEntryIsFound() {
  expectFound("are not its parent's alone") { _, branches in
    branches.changeDead[210] = {
      let home = branches.objects[210]!.blocks[0]!
      $0.append(.blocks(first: home.address, count: 1, birth: home.birth))
      $0.sort { ($0.birth, $0.address) < ($1.birth, $1.address) }
    }
  }
  expectFound("born at 3, after its branch") { _, branches in
    branches.changeDead[210] = {
      $0.append(.blocks(first: BlockAddress(volume: 0, block: 8000), count: 1, birth: 3))
    }
  }
  expectFound("which no volume has") { _, branches in
    branches.delete(113)
    branches.changeDead[113] = {
      $0.append(.blocks(first: BlockAddress(volume: 0, block: 9000), count: 1, birth: 5))
    }
  }
}

@Test func aWrongBirthOnADeadListIsFound() {
  let (pool, branches) = sample()
  branches.changeDead[112] = {
    guard case .blocks(let first, let count, 1) = $0[0] else { return }
    $0[0] = .blocks(first: first, count: count, birth: 2)
    $0.sort { ($0.birth, $0.address) < ($1.birth, $1.address) }
  }
  pool.build()
  let report = pool.check()
  #expect(report.complaints.contains { $0.contains("missing on its dead list") })
  #expect(report.complaints.contains { $0.contains("are not its parent's alone") })
}

@Test func aDeadListWithoutAParentIsFound() {
  expectFound("has a dead list, but branches from nothing", only: false) { _, branches in
    branches.changeDead[200] = {
      $0.append(.blocks(first: BlockAddress(volume: 0, block: 8000), count: 1, birth: 1))
    }
  }
}

@Test func aSharedBlockThatTheParentDoesNotHaveIsFound() {
  // A block of its own that claims to be as old as the golden image.
  expectFound("which is not after its branch", only: false) { _, branches in
    branches.changeBirth = { $0 == 210 ? min($1, 1) : $1 }
  }
}

@Test func aBlockOfASnapshotBornAfterItsInstantIsFound() {
  expectFound("born at 4, after its instant 2", only: false) { _, branches in
    branches.changeBirth = { $0 == 201 ? 4 : $1 }
  }
}

@Test func aBlockThatTwoBranchesOwnIsFound() {
  expectFound("owned twice", only: false) { _, branches in
    // 110 says that the blocks of the golden image that its leaf refers to are its own.
    branches.changeBirth = { $0 == 210 ? max($1, 3) : $1 }
  }
}

@Test func edgesOfTheTreeMustAgree() {
  expectFound("is not among the children", only: false) { _, branches in
    branches.changeEdges = { $0.removeAll { $0.child == 111 } }
  }
  expectFound("counts 4 children, but 3 are listed", only: false) { _, branches in
    branches.changeEdges = { $0.removeAll { $0.child == 111 } }
  }
  expectFound("where it does not branch from", only: false) { _, branches in
    branches.changeEdges = { $0.append((200, 111)) }
  }
  expectFound("is listed as a parent, but is no snapshot") { _, branches in
    branches.changeEdges = { $0.append((110, 300)) }
    branches.disk(300, "lone")
    branches.changeRecord[300] = { $0.parentSnapshot = ObjectID(110) }
  }
  expectFound("snapshot 201 counts 5 children, but 4") { _, branches in
    branches.changeRecord[201] = { $0.children += 1 }
  }
  expectFound("disk 100 counts 4 snapshots, but has names of 3") { _, branches in
    branches.changeRecord[100] = { $0.dependents += 1 }
  }
}

@Test func instantsThatDoNotAscendAreFound() {
  expectFound("but the instant of snapshot 201", only: false) { _, branches in
    branches.changeRecord[112] = { $0.branchInstant += 1 }
  }
  // Two snapshots that are each other's parents.
  expectFound("is not after that one's", only: false) { _, branches in
    branches.changeRecord[200] = { $0.parentSnapshot = ObjectID(201) }
    branches.changeEdges = { $0.append((201, 200)) }
  }
  expectFound("has no instant", only: false) { _, branches in
    branches.changeRecord[200] = { $0.instant = 0 }
  }
  expectFound("is in the future", only: false) { _, branches in
    branches.changeRecord[202] = { $0.instant = 1 << 40 }
  }
  expectFound("has an instant, but is no snapshot") { _, branches in
    branches.changeRecord[100] = { $0.instant = 2 }
  }
}

@Test func aCycleOfDeletedSnapshotsEnds() {
  let (pool, branches) = sample()
  branches.merge(200, free: 0, move: 0)
  branches.merge(210, free: 0, move: 0)
  branches.changeRecord[200] = { $0.parentSnapshot = ObjectID(210) }
  branches.changeRecord[210] = { $0.parentSnapshot = ObjectID(200) }
  pool.build()
  #expect(pool.check().outcome == .damageFound)
}

@Test func anObjectThatInheritsHasNothingOfItsOwn() {
  expectFound("object 111 inherits its map, but has a map", only: false) { _, branches in
    branches.write(111, 0..<1, 1)
    branches.changeRecord[111] = { $0.inheritsMap = true }
  }
  expectFound("object 111 inherits its map, but counts blocks") { _, branches in
    branches.changeRecord[111] = { $0.usedBlocks = 3 }
  }
  expectFound("object 111 inherits its map, but is no disk", only: false) { _, branches in
    branches.changeRecord[111] = { $0.kind = .snapshot }
  }
}

@Test func wrongCountersOfBranchesAreFoundOneByOne() {
  let counters: [(String, WritableKeyPath<ObjectRecord, UInt64>)] = [
    ("blocks in use", \.usedBlocks), ("blocks of its own", \.exclusiveBlocks),
    ("metadata blocks", \.metadataBlocks), ("data blocks on its dead list", \.dead.dataBlocks),
    ("blocks of nodes on its dead list", \.dead.nodeBlocks),
    ("dead blocks of its parent alone", \.deadOfParentOnly),
  ]
  for (words, path) in counters {
    expectFound(words) { _, branches in branches.changeRecord[112] = { $0[keyPath: path] += 1 } }
  }
  expectFound("the root records 6 snapshots, but 5 were counted") { pool, _ in
    pool.changeRoot = { $0.snapshots += 1 }
  }
  // Out of date: it means nothing.
  expectClean {
    let (pool, branches) = sample()
    branches.changeRecord[112] = {
      $0.parentBranchInstant = 0
      $0.deadOfParentOnly = 12345
    }
    return (pool, branches)
  }
}

@Test func aMergeThatFreedTooMuchOrCountsWronglyIsFound() {
  expectFound("belong to nobody", only: false) { _, branches in
    branches.merge(202, free: 0, move: 0)
    branches.changeDead[100] = { $0.removeAll { $0.birth > 2 } }
    branches.changeRecord[202] = { $0.exclusiveBlocks = 0 }
  }
  expectFound("of the snapshots that are merged into it") { _, branches in
    branches.merge(202, free: 1, move: 0)
    branches.changeRecord[202] = { $0.exclusiveBlocks += 1 }
  }
  expectFound("missing on its dead list", only: false) { _, branches in
    branches.merge(202, free: 0, move: 0)
    branches.changeDead[202] = { $0.removeFirst() }
  }
}

@Test func hiddenAndDeletedSnapshotsHaveTheirPlaces() {
  expectFound("is hidden, but has 1 children", only: false) { _, branches in
    branches.delete(201)
    branches.changeRecord[202] = { $0.isHidden = true }
  }
  expectFound("is hidden, but a name leads to it", only: false) { _, branches in
    branches.changeRecord[201] = { $0.isHidden = true }
  }
  expectFound("has no name and is not on the list", only: false) { _, branches in
    branches.delete(201)
    branches.changeRecord[201] = {
      $0.isHidden = false
      $0.links = 0
    }
  }
}

// MARK: The log

/// The sample, and a log behind its checkpoint.
private func logged(_ records: [LogRecord]) -> CheckReport {
  let (pool, _) = sample()
  pool.build()
  pool.log.frame(records: records)
  return pool.check()
}

private func snapshot(_ id: UInt64, of disk: UInt64, _ name: String) -> LogRecord {
  .snapshot(
    object: ObjectID(id), disk: ObjectID(disk), group: ObjectID(id), time: 0, size: 1 << 30,
    name: Array(name.utf8))
}

private func clones(
  _ first: UInt64, _ count: Int, of snapshot: UInt64, _ name: String, from number: UInt32 = 1
) -> LogRecord {
  .clone(
    CloneBatch(
      first: ObjectID(first), count: count, snapshot: ObjectID(snapshot), parent: .root, time: 0,
      mode: 0, size: 1 << 30, firstNumber: number, name: Array(name.utf8)))
}

private func remove(
  _ id: UInt64, _ kind: ObjectKind, under parent: UInt64, _ name: String, snapshots: UInt32 = 0
) -> LogRecord {
  .remove(
    object: ObjectID(id), kind: kind, parent: ObjectID(parent), snapshots: snapshots,
    origin: ObjectID(0), name: Array(name.utf8))
}

private func rollback(_ disk: UInt64, to snapshot: UInt64, former: UInt64) -> LogRecord {
  .rollback(
    object: ObjectID(disk), snapshot: ObjectID(snapshot), former: ObjectID(former), size: 1 << 30,
    time: 0)
}

@Test func marksAreFollowedThroughTheLog() {
  let report = logged([
    snapshot(500, of: 100, "fourth"), clones(501, 300, of: 500, "batch"),
    snapshot(900, of: 501, "fourth"), rollback(100, to: 200, former: 901),
    .rename(
      object: ObjectID(500), kind: .snapshot, parent: ObjectID(100), name: Array("fourth".utf8),
      newParent: ObjectID(100), newName: Array("4".utf8)),
    snapshot(902, of: 100, "fourth"), remove(500, .snapshot, under: 100, "4"),
    remove(200, .snapshot, under: 100, "first"), snapshot(903, of: 100, "first"),
    .change(object: ObjectID(903), DiskAttributeChange()),
    remove(100, .disk, under: 1, "golden", snapshots: 4),
    remove(501, .disk, under: 1, "batch-1", snapshots: 1),
    clones(910, 1, of: 211, "golden", from: 0), clones(911, 1, of: 211, "batch-1", from: 0),
  ])
  #expect(report.complaints == [] && report.failure == nil)
}

@Test func marksOfTheLogThatCanNotBeAreFound() {
  let faults: [(String, [LogRecord])] = [
    ("a name that is taken", [snapshot(500, of: 100, "second")]),
    ("takes a snapshot of object 700, which is not there", [snapshot(500, of: 700, "x")]),
    ("takes a snapshot of object 201, which is of another", [snapshot(500, of: 201, "x")]),
    ("creates object 110, which exists", [snapshot(110, of: 100, "x")]),
    ("a name that is taken", [clones(500, 1, of: 201, "idle", from: 0)]),
    (
      "a name that is taken", [clones(500, 9, of: 201, "c"), clones(520, 9, of: 201, "c", from: 9)]
    ),
    ("makes a branch of object 110, which is of another", [clones(500, 2, of: 110, "x")]),
    ("makes a branch of object 600, which is not there", [clones(500, 2, of: 600, "x")]),
    (
      "creates object 505, which exists",
      [clones(500, 9, of: 201, "c"), snapshot(505, of: 100, "x")]
    ),
    ("rolls back object 600, which is not there", [rollback(600, to: 200, former: 601)]),
    ("makes a branch of object 600", [rollback(100, to: 600, former: 601)]),
    ("creates object 111, which exists", [rollback(100, to: 200, former: 111)]),
    (
      "removes disk 100 with 2 snapshots, but it has 3",
      [remove(100, .disk, under: 1, "golden", snapshots: 2)]
    ),
    ("takes object 201 for one of another kind", [remove(201, .disk, under: 100, "second")]),
    (
      "a name of object 201 away that it does not have",
      [remove(201, .snapshot, under: 100, "third")]
    ),
  ]
  for (words, records) in faults {
    let report = logged(records)
    #expect(report.complaintCount == 1, "\(words): \(report.complaints)")
    #expect(report.complaints.first?.contains(words) == true, "\(words): \(report.complaints)")
  }
}

@Test func eachLayersLargeWritesAreVerified() {
  let home = BlockAddress(volume: 1, block: 8000)
  func check(_ records: (PoolBuilder) -> Void) -> CheckReport {
    let (pool, _) = sample()
    pool.build()
    records(pool)
    return pool.check()
  }
  // Written over only after the mark: the snapshot still has it.
  #expect(
    check { pool in
      largeWrite(pool, object: 100, block: 640, count: 8, at: home, damaged: true)
      pool.log.frame(records: [snapshot(500, of: 100, "fourth")])
      largeWrite(pool, object: 100, block: 640, count: 8, at: home + 8)
    }.damagedBlocks.map(\.diskOffset) == [647 * 4096])
  // Before the mark: nobody has it.
  #expect(
    check { pool in
      largeWrite(pool, object: 100, block: 640, count: 8, at: home, damaged: true)
      largeWrite(pool, object: 100, block: 640, count: 8, at: home + 8)
      pool.log.frame(records: [snapshot(500, of: 100, "fourth")])
    }.complaints == [])
  // Void: its disk was rolled back, or its snapshot deleted.
  #expect(
    check { pool in
      largeWrite(pool, object: 100, block: 640, count: 8, at: home, damaged: true)
      pool.log.frame(records: [rollback(100, to: 200, former: 500)])
      largeWrite(pool, object: 100, block: 640, count: 8, at: home + 4)
      pool.log.frame(records: [
        snapshot(501, of: 100, "fourth"), remove(501, .snapshot, under: 100, "fourth"),
      ])
      largeWrite(pool, object: 100, block: 640, count: 8, at: home)
    }.complaints == [])
}

@Test func aHomeThatASnapshotsDiskMayHaveTornIsCoveredByTheLog() {
  let (pool, branches) = sample()
  pool.build()
  let home = branches.objects[202]!.blocks[11]!.address
  pool.volumes[home.volume].flip(home.byteOffset)
  #expect(pool.check().damagedBlocks.first?.disk == "golden@third")
  pool.log.frame([LogBuilder.Write(object: 110, block: 11, stamp: 1)])
  #expect(pool.check().damagedBlocks.count == 1)
  pool.log.frame([LogBuilder.Write(object: 100, block: 11, stamp: 1)], durable: 1)
  #expect(pool.check().complaints == [])
}
