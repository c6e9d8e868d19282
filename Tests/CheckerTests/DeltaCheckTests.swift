import Core
import Testing

@testable import Checker

/// The sample, with deltas of a clone, of a clone of a clone that is all holes, and of the disk itself.
private func deltaSample() -> (PoolBuilder, BranchBuilder) {
  let (pool, branches) = branchSample()
  for id: UInt64 in [112, 113, 100] { branches.keepDelta(id) }
  branches.write(111, 20..<23, 7000)
  branches.write(111, 600..<602, 7000)
  branches.trim(111, 250..<285)
  branches.keepDelta(111)
  return (pool, branches)
}

private func expectFound(
  _ words: String, location: SourceLocation = #_sourceLocation,
  _ change: (PoolBuilder, BranchBuilder) -> Void
) {
  let (pool, branches) = deltaSample()
  change(pool, branches)
  pool.build()
  expectOne(pool.check(), words, location: location)
}

@Test func soundDeltasAreClean() {
  let (pool, branches) = deltaSample()
  pool.build()
  let report = pool.check()
  #expect(report.complaints == [] && report.failure == nil && report.notes == [])
  let homes = Set(branches.objects.values.flatMap { $0.blocks.values.map(\.address) })
  #expect(report.counters.dataBlocks == UInt64(homes.count))
  #expect(report.counters.verifiedBlocks == UInt64(homes.count))
  #expect(report.counters.metadataNodes == UInt64(pool.nodes.count))
}

@Test func deletedObjectsAndParentsWithDeltasAreClean() {
  for id: UInt64 in [111, 113, 202] {
    let (pool, branches) = deltaSample()
    branches.delete(id)
    pool.build()
    #expect(pool.check().complaints == [], "object \(id)")
  }
}

@Test func wrongCountersOfDeltasAreFoundOneByOne() {
  let counters: [(String, WritableKeyPath<ObjectRecord, UInt64>)] = [
    ("blocks in use", \.usedBlocks), ("blocks of its own", \.exclusiveBlocks),
    ("metadata blocks", \.metadataBlocks),
  ]
  for (words, path) in counters {
    expectFound(words) { _, branches in branches.changeRecord[111] = { $0[keyPath: path] += 1 } }
  }
  expectFound("object 111 inherits its map, but counts blocks on a dead list") { _, branches in
    branches.changeRecord[111] = { $0.deadOfParentOnly = 1 }
  }
}

@Test func aHoleOverNothingIsFound() {
  expectFound("has a hole at block 1500 where the snapshot") { _, branches in
    branches.changeDelta[111] = { $0.append((NodeKey(hi: 1500, lo: 0), BranchBuilder.hole(7))) }
  }
}

@Test func whatADeltaHoldsIsBornBehindItsBranch() {
  let (pool, branches) = deltaSample()
  branches.changeBirth = { id, birth in id == 111 ? 1 : birth }
  pool.build()
  let complaints = pool.check().complaints
  #expect(complaints.count { $0.contains("born at 1, which is not after its branch") } > 3)
}

@Test func aHoleExtentInAWholeMapIsDamage() {
  let (pool, branches) = branchSample()
  branches.changeRecord[110] = { record in
    record.map = pool.leaf(
      [(NodeKey(hi: 3, lo: 0), BranchBuilder.hole(2))], kind: .extents, owner: ObjectID(110),
      birth: record.branchInstant + 1)
  }
  pool.build()
  #expect(pool.check().complaints.contains { $0.contains("it holds a malformed value") })
}

@Test func aDeltaInThePlaceOfAMapIsDamage() {
  let (pool, branches) = deltaSample()
  branches.changeRecord[111] = { $0.inheritsMap = false }
  pool.build()
  #expect(
    pool.check().complaints.contains {
      $0.contains("the map of object 111 are damaged") && $0.contains("a tree of another kind")
    })
}
