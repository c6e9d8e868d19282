import Core
import Testing

@testable import Checker

/// Disk 100 with three snapshots, clones of the second, a clone of a clone, and a rollback whose
/// leftovers are gone; leaves are split, whole subtrees overwritten and trimmed.
func branchSample() -> (PoolBuilder, BranchBuilder) {
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
  let (pool, branches) = branchSample()
  change(pool, branches)
  pool.build()
  let report = pool.check()
  if only { return expectOne(report, words, location: location) }
  #expect(
    report.complaints.contains { $0.contains(words) }, "\(report.complaints)",
    sourceLocation: location)
}

@Test func aSoundTreeOfSnapshotsIsClean() {
  expectClean(branchSample)
  let (pool, branches) = branchSample()
  pool.build()
  let report = pool.check()
  #expect(report.counters.objects == 10 && report.counters.names == 10)
  let homes = Set(branches.objects.values.flatMap { $0.blocks.values.map(\.address) })
  #expect(report.counters.dataBlocks == UInt64(homes.count))
  #expect(report.counters.verifiedBlocks == UInt64(homes.count))
  #expect(report.counters.metadataNodes == UInt64(pool.nodes.count))
}

@Test func aSoundTreeOfSnapshotsIsCleanWhenEverySortGoesThroughFiles() {
  let (pool, _) = branchSample()
  pool.build()
  var options = CheckOptions()
  options.sortMemory = 0
  options.temporaryDirectory = "/tmp"
  #expect(pool.check(options).complaints == [])
}

@Test func aDeadListMayHoldARunInSeveralEntries() {
  expectClean {
    let (pool, branches) = branchSample()
    branches.deadRun = 3
    return (pool, branches)
  }
}

@Test func aRollbackLeavesADeletedDiskBehind() {
  expectClean {
    let (pool, branches) = branchSample()
    branches.rollback(100, to: 201, former: 150)
    branches.write(100, 3..<4, 7000)
    return (pool, branches)
  }
}

@Test func aHiddenSnapshotKeepsWhatItsChildrenNeed() {
  expectClean {
    let (pool, branches) = branchSample()
    branches.delete(201)
    return (pool, branches)
  }
}

@Test func aDeletedDiskWhoseSnapshotsAreStillThereIsClean() {
  expectClean {
    let (pool, branches) = branchSample()
    branches.delete(100)
    return (pool, branches)
  }
}

@Test func aDeletedBranchMayBeARemainder() {
  for disk: UInt64 in [110, 112, 113, 100] {
    expectClean {
      let (pool, branches) = branchSample()
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
      let (pool, branches) = branchSample()
      branches.merge(202, free: free, move: move)
      return (pool, branches)
    }
    expectClean {
      let (pool, branches) = branchSample()
      branches.merge(200, free: free, move: move)
      return (pool, branches)
    }
    expectClean {
      let (pool, branches) = branchSample()
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
      $0.append(.blocks(first: BlockAddress(volume: 0, block: 3900), count: 1, birth: 3))
    }
  }
  expectFound("which no volume has") { _, branches in
    branches.delete(113)
    branches.changeDead[113] = {
      $0.append(.blocks(first: BlockAddress(volume: 0, block: 4000), count: 1, birth: 5))
    }
  }
}

@Test func aWrongBirthOnADeadListIsFound() {
  let (pool, branches) = branchSample()
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
      $0.append(.blocks(first: BlockAddress(volume: 0, block: 3900), count: 1, birth: 1))
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
  let (pool, branches) = branchSample()
  branches.merge(200, free: 0, move: 0)
  branches.merge(210, free: 0, move: 0)
  branches.changeRecord[200] = { $0.parentSnapshot = ObjectID(210) }
  branches.changeRecord[210] = { $0.parentSnapshot = ObjectID(200) }
  pool.build()
  #expect(pool.check().outcome == .damageFound)
}

@Test func anObjectThatInheritsHasNothingOfItsOwn() {
  expectFound("node of the delta of object 111 are damaged", only: false) { _, branches in
    branches.write(111, 0..<1, 1)
    branches.changeRecord[111] = { $0.inheritsMap = true }
  }
  expectFound("object 111 inherits its map, but has a dead list", only: false) { _, branches in
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
    let (pool, branches) = branchSample()
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

// MARK: Random histories

/// Some history of disks, snapshots, clones, rollbacks and deletions.
private func history(_ random: inout SeededRandom) -> (PoolBuilder, BranchBuilder) {
  let (pool, branches) = BranchBuilder.empty()
  var disks: [UInt64] = [100]
  var snapshots: [UInt64] = []
  var next: UInt64 = 200
  branches.disk(100, "d100")
  branches.write(100, 0..<(1 + random.below(200)), 1000)
  for step in 0..<(5 + random.below(25)) {
    next += 1
    let disk = disks[Int(random.below(UInt64(disks.count)))]
    let block = random.below(900)
    switch random.below(12) {
    case 0..<4: branches.write(disk, block..<(block + 1 + random.below(60)), 1000 * (step + 2))
    case 4: branches.trim(disk, block..<(block + 1 + random.below(400)))
    case 5: branches.split(disk, leaf: block & ~63)
    case 6...8:
      branches.snapshot(disk, next, "s\(next)")
      snapshots.append(next)
    case 9 where !snapshots.isEmpty:
      branches.rollback(
        disk, to: snapshots[Int(random.below(UInt64(snapshots.count)))], former: next)
    default:
      guard !snapshots.isEmpty else { continue }
      branches.clone(
        snapshots[Int(random.below(UInt64(snapshots.count)))], next, "d\(next)")
      disks.append(next)
    }
  }
  for disk in disks where random.oneIn(4) {
    branches.delete(disk)
    if random.oneIn(2) { branches.trim(disk, 0..<random.below(1024)) }
  }
  for snapshot in snapshots where random.oneIn(3) {
    let children = branches.children(snapshot)
    if children.count == 1, !children[0].inherits, !children[0].isDeleted {
      branches.merge(snapshot, free: Int(random.below(5)), move: Int(random.below(5)))
    } else if children.count != 1 {
      branches.delete(snapshot)
    }
  }
  return (pool, branches)
}

@Test func randomHistoriesAreClean() {
  for seed: UInt64 in 1...40 {
    var random = SeededRandom(seed: seed)
    let (pool, _) = history(&random)
    pool.build()
    let report = pool.check()
    #expect(report.complaints == [] && report.failure == nil, "seed \(seed): \(report.complaints)")
  }
}

@Test func anyEntryThatADeadListLacksIsFound() {
  for seed: UInt64 in 1...20 {
    var random = SeededRandom(seed: seed)
    let (pool, branches) = history(&random)
    var changed = false
    for (id, object) in branches.objects.sorted(by: { $0.key < $1.key })
    where !object.inherits && !object.isDeleted && object.parent != 0 {
      branches.changeDead[id] = { entries in
        guard !changed, !entries.isEmpty else { return }
        entries.remove(at: Int(random.below(UInt64(entries.count))))
        changed = true
      }
    }
    pool.build()
    #expect(!changed || pool.check().outcome == .damageFound, "seed \(seed)")
  }
}
