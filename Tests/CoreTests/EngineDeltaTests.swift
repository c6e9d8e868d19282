import Glibc
import Testing

@testable import Core

// Clones that have changed little: what they take, what they count, and when they get maps of their own.

/// A golden disk of many extents and its snapshot, `golden@s`.
private final class GoldenPool {
  let pool: MemoryPool
  /// Every second block of the golden disk is written, so that each is an extent.
  let extents: UInt64
  var size: UInt64 { extents * 2 << 12 }

  init(extents: UInt64, volumeMiB: Int = 160, deltaNodes: Int = 64) {
    self.extents = extents
    pool = MemoryPool(logMiB: 64, volumesMiB: [volumeMiB, volumeMiB]) {
      $0.cacheBytes = 64 << 20
      $0.deltaNodes = deltaNodes
    }
    #expect(isDone(pool.control(.create(name: "golden", size: extents * 2 << 12))))
    let disk = pool.open("golden")
    let data = pattern(1, 4096)
    for i in 0..<extents { write(disk, 2 * i, data) }
    #expect(isDone(pool.control(.snapshot([SnapshotName(disk: "golden", snapshot: "s")]))))
    #expect(isDone(pool.control(.flush)))
  }

  func write(_ disk: DiskHandle, _ block: UInt64, _ data: [UInt8]) {
    #expect(pool.io(.write, disk, block << 12, data.count, data: data).status == .ok)
  }

  func clone(_ name: String, count: Int? = nil) {
    let origin = SnapshotName(disk: "golden", snapshot: "s")
    #expect(isDone(pool.control(.clone(origin, name: name, count: count))))
  }

  func flush() { #expect(isDone(pool.control(.flush))) }

  var spaceUsed: UInt64 {
    guard case .status(let status) = pool.control(.status) else { return 0 }
    return status.spaceUsed
  }

  var folds: UInt64 { pool.engine.rarePaths[.deltaFolded] }

  /// Blocks that the disk refers to, and those that it owns.
  func counts(_ name: String) -> [UInt64] {
    guard case .disk(let info) = pool.control(.show(name: name)) else { return [] }
    return [info.used >> 12, info.exclusive >> 12]
  }

  func exclusiveOfSnapshot() -> UInt64 {
    guard
      case .snapshots(let list, _) = pool.control(
        .listSnapshots(disk: "golden", cursor: nil, limit: 9))
    else { return 0 }
    return (list.first?.exclusive ?? 0) >> 12
  }

  func block(_ disk: DiskHandle, _ block: UInt64) -> [UInt8] {
    pool.io(.read, disk, block << 12, 4096).data
  }

  /// Bytes by which `clones` new clones with `writes` scattered blocks each make the pool fuller, a clone.
  func bytesPerClone(clones: Int, writes: Int) -> Double {
    clone("c", count: clones)
    flush()
    let before = spaceUsed
    var random = SeededRandom(seed: 5)
    let data = pattern(2, 4096)
    for i in 1...clones {
      let disk = pool.open("c-\(i)")
      var blocks: Set<UInt64> = []
      while blocks.count < writes { blocks.insert(random.below(2 * extents)) }
      for block in blocks.sorted() { write(disk, block, data) }
      #expect(isDone(pool.control(.close(disk))))
    }
    flush()
    return Double(spaceUsed - before) / Double(clones)
  }
}

@Suite struct EngineDeltaTests {
  @Test func aClonesFirstScatteredWritesTakeAtMostTwoAndAHalfTimesTheirSize() {
    let golden = GoldenPool(extents: 12_000)
    let bytes = golden.bytesPerClone(clones: 100, writes: 36)
    #expect(bytes >= 36 * 4096)
    #expect(bytes <= 2.5 * 36 * 4096)
    // One leaf with both its copies, and what the catalog keeps.
    #expect(bytes <= 36 * 4096 + 8192 + 4096)
    #expect(golden.folds == 0)
  }

  @Test func aCloneCountsWhatItRefersToAndWhatItOwns() {
    let golden = GoldenPool(extents: 500, volumeMiB: 32)
    golden.clone("c")
    golden.flush()
    #expect(golden.counts("c") == [500, 0])
    let disk = golden.pool.open("c")
    let data = pattern(3, 4096)
    // Four over blocks of the golden disk, two where it has none; then zeros over ten of its blocks, one of
    // which the clone had overwritten, and over one of the others.
    for block: UInt64 in [0, 2, 4, 100, 101, 301] { golden.write(disk, block, data) }
    golden.flush()
    #expect(golden.counts("c") == [502, 6])
    #expect(golden.pool.io(.trim, disk, 90 << 12, 20 << 12).status == .ok)
    golden.flush()
    let expected: [UInt64] = [502 - 10 - 1, 4]
    #expect(golden.counts("c") == expected)
    golden.write(disk, 94, data)
    golden.flush()
    golden.pool.restart()
    #expect(golden.counts("c") == [expected[0] + 1, 5])
    // A mark gives what the clone was a map of its own.
    #expect(golden.folds == 0)
    #expect(isDone(golden.pool.control(.snapshot([SnapshotName(disk: "c", snapshot: "own")]))))
    golden.flush()
    #expect(golden.folds == 1)
    #expect(golden.counts("c") == [expected[0] + 1, 0])
    let handle = golden.pool.open("c@own")
    let zeros = [UInt8](repeating: 0, count: 4096)
    for block: UInt64 in [90, 96, 98, 100, 101, 108] {
      #expect(golden.block(handle, block) == zeros)
    }
    for block: UInt64 in [0, 2, 4, 94, 301] { #expect(golden.block(handle, block) == data) }
    #expect(golden.block(handle, 88) == pattern(1, 4096))
  }

  @Test func aDeltaThatGrowsIsFoldedAndReadsAsBefore() {
    let golden = GoldenPool(extents: 1000, volumeMiB: 32, deltaNodes: 1)
    golden.clone("c")
    let disk = golden.pool.open("c")
    let data = pattern(4, 4096)
    func write(_ blocks: StrideTo<UInt64>) {
      for block in blocks { golden.write(disk, block, data) }
      golden.flush()
    }
    write(stride(from: 0, to: 300, by: 10))
    #expect(golden.folds == 0)
    #expect(golden.pool.io(.trim, disk, 400 << 12, 100 << 12).status == .ok)
    write(stride(from: 600, to: 1600, by: 10))
    #expect(golden.folds == 1)
    #expect(golden.counts("c") == [1000 - 50, 130])
    golden.pool.restart()
    let again = golden.pool.open("c")
    for block in stride(from: UInt64(0), to: 2000, by: 2) {
      let isWritten = block % 10 == 0 && (block < 300 || 600..<1600 ~= block)
      let expected =
        isWritten
        ? data : 400..<500 ~= block ? [UInt8](repeating: 0, count: 4096) : pattern(1, 4096)
      #expect(golden.block(again, block) == expected, "block \(block)")
    }
  }

  @Test("What a cycle has gathered of a clone is not lost when its delta is folded meanwhile")
  func gatheredBeforeAFold() {
    let golden = GoldenPool(extents: 4000, deltaNodes: 16)
    let pool = golden.pool
    golden.clone("c")
    let disk = pool.open("c")
    for i: UInt64 in 1..<1000 { golden.write(disk, 8 * i, pattern(2, 4096)) }
    golden.flush()
    #expect(golden.folds == 0)
    // The first block is gathered. Some of the hole makes the delta too large; the rest, for which it is
    // folded, is replaced before that is done, so that the cycle goes on without.
    _ = pool.control(.holdDestage(true))
    golden.write(disk, 0, pattern(3, 4096))
    func trim() {
      #expect(pool.io(.trim, disk, 2001 << 12, 3000 << 12).status == .ok)
    }
    trim()
    pool.engine.control(.flush, token: 1 << 40)
    let layer = pool.engine.pool.disks.resolve(disk)!.layer
    pool.run { layer.fold != nil }
    trim()
    #expect(layer.fold != nil && golden.folds == 0)
    pool.run { pool.replies[1 << 40] != nil }
    #expect(golden.folds == 1)
    for _ in 0..<2 {
      let disk = pool.open("c")
      let isThere = golden.block(disk, 0) == pattern(3, 4096)
      let isHole = golden.block(disk, 5000).allSatisfy { $0 == 0 }
      #expect(isThere && isHole)
      golden.flush()
      #expect(pool.engine.pool.space.leaked == 0)
      pool.restart()
    }
  }

  @Test func whatACloneWithADeltaHidesIsFreedWithTheGoldenImage() {
    let golden = GoldenPool(extents: 300, volumeMiB: 32)
    golden.clone("c")
    let disk = golden.pool.open("c")
    for block: UInt64 in 0..<40 { golden.write(disk, block, pattern(5, 4096)) }
    golden.flush()
    // Of the golden disk's own branch nothing is left.
    #expect(isDone(golden.pool.control(.rename(name: "golden", to: "old"))))
    #expect(isDone(golden.pool.control(.delete(name: "old", withSnapshots: true, force: true))))
    golden.flush()
    #expect(golden.folds == 1)
    #expect(golden.counts("c") == [320, 320])
    guard case .status(let status) = golden.pool.control(.status) else { return }
    #expect(status.spaceUsed - status.spaceMetadata == 320 << 12)
    #expect(golden.block(disk, 299 * 2) == pattern(1, 4096))
    #expect(golden.block(disk, 39) == pattern(5, 4096))
  }

  @Test func whatOnlyASnapshotHasIsKnownWhileItsChildHasADelta() {
    let golden = GoldenPool(extents: 300, volumeMiB: 32)
    let disk = golden.pool.open("golden")
    #expect(golden.exclusiveOfSnapshot() == 0)
    for block: UInt64 in [0, 1, 2, 3, 10] { golden.write(disk, block, pattern(5, 4096)) }
    #expect(golden.pool.io(.trim, disk, 20 << 12, 10 << 12).status == .ok)
    golden.flush()
    #expect(golden.exclusiveOfSnapshot() == 3 + 5)
    #expect(isDone(golden.pool.control(.close(disk))))
    golden.pool.restart()
    #expect(golden.exclusiveOfSnapshot() == 3 + 5)
    #expect(golden.counts("golden") == [300 + 2 - 5, 5])
  }

  @Test func whatChangedSinceASnapshotIsToldFromTheDelta() {
    let golden = GoldenPool(extents: 1000, volumeMiB: 32)
    let disk = golden.pool.open("golden")
    golden.write(disk, 7, pattern(6, 8192))
    #expect(golden.pool.io(.trim, disk, 1000 << 12, 3 << 12).status == .ok)
    golden.flush()
    let request = ControlRequest.diff(
      SnapshotName(disk: "golden", snapshot: "s"), to: .disk("golden"), from: 0, limit: 100)
    guard case .changes(let ranges, let next) = golden.pool.control(request) else {
      Issue.record("there is no diff")
      return
    }
    #expect(next == nil)
    #expect(ranges.map { $0.offset >> 12 } == [7, 1000, 1002])
    #expect(ranges.map { $0.length >> 12 } == [2, 1, 1])
    #expect(ranges.map(\.isZero) == [false, true, true])
  }

  @Test func aDeletedCloneGivesItsDeltaBack() {
    let golden = GoldenPool(extents: 300, volumeMiB: 32)
    let before = golden.spaceUsed
    golden.clone("c")
    let disk = golden.pool.open("c")
    for block in stride(from: UInt64(0), to: 500, by: 7) {
      golden.write(disk, block, pattern(5, 4096))
    }
    #expect(golden.pool.io(.trim, disk, 20 << 12, 100 << 12).status == .ok)
    golden.flush()
    #expect(isDone(golden.pool.control(.delete(name: "c", withSnapshots: true, force: true))))
    golden.flush()
    #expect(golden.folds == 0)
    #expect(golden.spaceUsed == before)
  }

  /// Not a test: SLUICE_MEASURE_DELTAS=1 prints what docs/decisions/0004 shows.
  @Test(.enabled(if: getenv("SLUICE_MEASURE_DELTAS") != nil))
  func whatAScatteredWriteTakes() {
    for writes in [12, 36, 100, 300, 1000, 3000] {
      let factors = [Int.max, 0].map { nodes in
        let golden = GoldenPool(extents: 42_000, volumeMiB: 600, deltaNodes: nodes)
        let bytes = golden.bytesPerClone(clones: writes > 300 ? 4 : 20, writes: writes)
        return (bytes / Double(writes << 12) * 100).rounded() / 100
      }
      print("\(writes) blocks: delta \(factors[0]) times, own map \(factors[1]) times")
    }
  }
}
