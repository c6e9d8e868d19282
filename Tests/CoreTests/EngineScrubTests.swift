import Testing

@testable import Core

@Suite("The scrub")
struct EngineScrubTests {
  private static let piece = 256 << 10

  private func makePool(disks: [String]) -> MemoryPool {
    let pool = MemoryPool(logMiB: 64, volumesMiB: [160])
    for name in disks { #expect(isDone(pool.control(.create(name: name, size: 64 << 20)))) }
    return pool
  }

  private func fill(_ pool: MemoryPool, _ disk: DiskHandle, pieces: UInt64, seed: UInt64) {
    for i in 0..<pieces {
      let data = pattern(seed + i, Self.piece)
      let status = pool.io(.write, disk, i << 18, Self.piece, data: data).status
      #expect(status == .ok)
    }
  }

  private func report(_ reply: ControlReply?) -> ScrubReport {
    guard case .scrub(let report) = reply else {
      Issue.record("no report of a scrub: \(String(describing: reply))")
      return ScrubReport()
    }
    return report
  }

  /// Damages each block of volume 0 that `isMeant`; how many.
  private func damage(_ pool: MemoryPool, where isMeant: (UnsafeRawPointer) -> Bool) -> Int {
    var count = 0
    pool.devices[1].withUnsafeMutableBytes { bytes in
      for at in stride(from: 0, to: bytes.count, by: blockSize)
      where isMeant(UnsafeRawPointer(bytes.baseAddress! + at)) {
        bytes[at + 100] ^= 1
        count += 1
      }
    }
    return count
  }

  @Test("finds what is damaged of a clone that nobody uses")
  func deltas() {
    let pool = makePool(disks: ["a"])
    let name = SnapshotName(disk: "a", snapshot: "s")
    #expect(pool.io(.write, pool.open("a"), 0, 4096, data: pattern(1, 4096)).status == .ok)
    #expect(isDone(pool.control(.snapshot([name]))))
    #expect(isDone(pool.control(.clone(name, name: "c", count: nil))))
    let own = pattern(77, 4096)
    #expect(pool.io(.write, pool.open("c"), 8192, 4096, data: own).status == .ok)
    #expect(isDone(pool.control(.flush)))
    pool.restart()
    let found = damage(pool) { UnsafeRawBufferPointer(start: $0, count: 4096).elementsEqual(own) }
    #expect(found == 1)
    let report = report(pool.control(.scrub))
    #expect(report.damagedBlocks == 1)
    #expect(report.damage.first?.contains("“c”") == true, "\(report.damage)")
  }

  @Test("names a disk whose map is damaged, goes on with the others, and can be run again")
  func damagedMap() {
    let pool = makePool(disks: ["a", "b"])
    for name in ["a", "b"] { fill(pool, pool.open(name), pieces: 4, seed: 1) }
    #expect(isDone(pool.control(.flush)))
    let a = pool.engine.pool.disks.resolve(pool.open("a"))!.object
    pool.restart()
    let found = damage(pool) {
      $0.u32(0) == NodeFormat.magic && $0.u8(NodeFormat.Field.kind) == NodeKind.extents.rawValue
        && $0.u64(NodeFormat.Field.owner) == a.raw
    }
    #expect(found >= 2)
    for _ in 0..<2 {
      let report = report(pool.control(.scrub))
      #expect(report.damagedBlocks == 1 && report.blocksVerified == 4 << 6)
      #expect(report.damage.first?.contains("“a”") == true, "\(report.damage)")
    }
    #expect(isDone(pool.control(.delete(name: "a", withSnapshots: false, force: false))))
  }

  @Test("is no client, and leaves nothing in memory")
  func isNoClient() {
    let pool = makePool(disks: ["a", "b"])
    for name in ["a", "b"] { fill(pool, pool.open(name), pieces: 16, seed: 1) }
    #expect(isDone(pool.control(.flush)))
    pool.restart()
    pool.delay = { $0.token >> 56 == UInt64(OpOwner.readPart.rawValue) ? 50_000_000 : 0 }
    pool.engine.control(.scrub, token: 1 << 40)
    for _ in 0..<20 { pool.turn() }
    #expect(isDone(pool.control(.delete(name: "a", withSnapshots: false, force: false))))
    #expect(pool.replies[1 << 40] == nil)
    pool.run { pool.replies[1 << 40] != nil }
    #expect(report(pool.replies[1 << 40]).damagedBlocks == 0)
    #expect(isDone(pool.control(.flush)))
    #expect(report(pool.control(.scrub)).blocksVerified == 16 << 6)
    #expect(pool.engine.pool.disks.count == 0)
  }

  @Test("leaves a snapshot alone that is being freed")
  func freedSnapshot() {
    let pool = makePool(disks: ["golden"])
    let name = SnapshotName(disk: "golden", snapshot: "s")
    fill(pool, pool.open("golden"), pieces: 128, seed: 1)
    #expect(isDone(pool.control(.snapshot([name]))))
    #expect(isDone(pool.control(.clone(name, name: "c", count: 2))))
    fill(pool, pool.open("c-2"), pieces: 128, seed: 1000)
    #expect(isDone(pool.control(.delete(name: "golden", withSnapshots: true, force: true))))
    #expect(isDone(pool.control(.flush)))
    pool.restart()
    // It reads the hidden snapshot first, and is slow.
    pool.delay = { $0.token >> 56 == UInt64(OpOwner.readPart.rawValue) ? 500_000_000 : 0 }
    pool.engine.control(.scrub, token: 1 << 40)
    for _ in 0..<20 { pool.turn() }
    #expect(isDone(pool.control(.delete(name: "c-1", withSnapshots: false, force: false))))
    #expect(isDone(pool.control(.flush)))
    #expect(isDone(pool.control(.create(name: "n", size: 128 << 20))))
    fill(pool, pool.open("n"), pieces: 400, seed: 2000)
    #expect(isDone(pool.control(.flush)))
    #expect(pool.replies[1 << 40] == nil)
    pool.run { pool.replies[1 << 40] != nil }
    let report = report(pool.replies[1 << 40])
    #expect(report.damagedBlocks == 0 && report.damage == [])
    #expect(pool.engine.pool.checksumErrors == 0)
  }
}
