import Core
import Testing

@testable import Checker

// Snapshots, clones and rollbacks in the log behind the checkpoint.

/// The sample, and a log behind its checkpoint.
private func logged(_ records: [LogRecord]) -> CheckReport {
  let (pool, _) = branchSample()
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
  let home = BlockAddress(volume: 1, block: 3900)
  func check(_ records: (PoolBuilder) -> Void) -> CheckReport {
    let (pool, _) = branchSample()
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
  let (pool, branches) = branchSample()
  pool.build()
  let home = branches.objects[202]!.blocks[11]!.address
  pool.volumes[home.volume].flip(home.byteOffset)
  #expect(pool.check().damagedBlocks.first?.disk == "golden@third")
  pool.log.frame([LogBuilder.Write(object: 110, block: 11, stamp: 1)])
  #expect(pool.check().damagedBlocks.count == 1)
  pool.log.frame([LogBuilder.Write(object: 100, block: 11, stamp: 1)], durable: 1)
  #expect(pool.check().complaints == [])
}

@Test func theHomesOfADiskThatTheLogDeletesOrRollsBackAreNoDamage() {
  func damage(_ records: [LogRecord]) -> [String] {
    let (pool, branches) = branchSample()
    pool.build()
    let home = branches.objects[100]!.blocks[0]!.address
    pool.volumes[home.volume].flip(home.byteOffset)
    pool.log.frame(records: records)
    let report = pool.check()
    #expect(report.complaintCount == report.damagedBlocks.count)
    return report.damagedBlocks.compactMap(\.disk)
  }
  #expect(damage([rollback(110, to: 210, former: 500)]) == ["golden"])
  #expect(damage([rollback(100, to: 200, former: 500)]) == [])
  #expect(damage([remove(100, .disk, under: 1, "golden", snapshots: 3)]) == [])
}
