import Testing

@testable import Core

/// Devices that do not read metadata for a while, as when a path to a SAN is lost (R15).
@Suite("Metadata that can't be read")
struct EngineRefusedMetadataTests {
  private static let blocks: UInt64 = 1000

  /// A pool that has just been started, with one disk of scattered blocks at home.
  private func makePool() -> MemoryPool {
    let pool = MemoryPool(logMiB: 64, volumesMiB: [160]) { $0.cacheBytes = 16 << 20 }
    #expect(isDone(pool.control(.create(name: "a", size: 64 << 20))))
    write(pool, pool.open("a"), round: 0)
    #expect(isDone(pool.control(.flush)))
    pool.restart()
    return pool
  }

  private func write(_ pool: MemoryPool, _ disk: DiskHandle, round: UInt64) {
    for i in 0..<Self.blocks {
      let data = pattern(i + round, 4096)
      #expect(pool.io(.write, disk, (i * 617 % Self.blocks) << 13, 4096, data: data).status == .ok)
    }
  }

  private func expectContent(_ pool: MemoryPool, _ disk: DiskHandle, round: UInt64) {
    for i in 0..<Self.blocks {
      let (status, data) = read(pool, disk, i * 617 % Self.blocks)
      let isGood = status == .ok && data == pattern(i + round, 4096)
      #expect(isGood)
    }
  }

  private func read(
    _ pool: MemoryPool, _ disk: DiskHandle, _ place: UInt64
  ) -> (BlockStatus, [UInt8]) {
    let reply = pool.io(.read, disk, place << 13, 4096)
    return (reply.status, reply.data)
  }

  private func refuse(_ pool: MemoryPool) {
    pool.fault = { $0.token >> 56 == UInt64(OpOwner.nodeLoad.rawValue) ? 5 : 0 }
  }

  private func pass(_ pool: MemoryPool, seconds: UInt64) {
    let end = pool.now + seconds * 1_000_000_000
    while pool.now < end { pool.turn() }
  }

  @Test("A read that failed for it is served once the device reads again")
  func reads() {
    let pool = makePool()
    let disk = pool.open("a")
    refuse(pool)
    for place: UInt64 in [0, 400, 900] { #expect(read(pool, disk, place).0 == .ioError) }
    pool.fault = { _ in 0 }
    pass(pool, seconds: 2)
    expectContent(pool, disk, round: 0)
  }

  @Test("A cycle waits for it, and the pool goes on", arguments: [3, 20])
  func destaging(seconds: UInt64) {
    let pool = makePool()
    let disk = pool.open("a")
    refuse(pool)
    write(pool, disk, round: 1)
    pool.engine.control(.flush, token: 1 << 40)
    pass(pool, seconds: seconds)
    #expect(pool.engine.failure == nil)
    #expect(pool.engine.rarePaths[.suspended] >= Int(seconds) - 1)
    // What is in the log is still there to be read, and written.
    expectContent(pool, disk, round: 1)
    write(pool, disk, round: 2)
    pool.fault = { _ in 0 }
    pool.run { pool.replies[1 << 40] != nil }
    #expect(isDone(pool.control(.flush)))
    #expect(pool.engine.pool.space.leaked == 0)
    pool.restart()
    expectContent(pool, pool.open("a"), round: 2)
  }

  @Test("Large writes go where the space is known") func largeWrites() {
    let pool = makePool()
    let disk = pool.open("a")
    refuse(pool)
    let data = pattern(7, 256 << 10)
    for i: UInt64 in 0..<8 {
      #expect(pool.io(.write, disk, i << 18, data.count, data: data).status == .ok)
    }
    pass(pool, seconds: 5)
    pool.fault = { _ in 0 }
    #expect(isDone(pool.control(.flush)))
    #expect(pool.engine.pool.space.leaked == 0 && pool.engine.failure == nil)
    for i: UInt64 in 0..<8 {
      let isGood = pool.io(.read, disk, i << 18, data.count).data == data
      #expect(isGood)
    }
  }

  @Test("The place of a bad copy gets no new content while that is rewritten")
  func healing() {
    let pool = makePool()
    var disk = pool.open("a")
    // Each node's first copy is bad once; rewriting it takes a minute.
    var failed: Set<UInt64> = []
    pool.fault = {
      guard $0.token >> 56 == UInt64(OpOwner.nodeLoad.rawValue) else { return 0 }
      return failed.insert($0.token).inserted ? 5 : 0
    }
    var healed: [UInt64: UInt64] = [:]
    var late = 0
    pool.delay = { op in
      if op.token >> 56 == UInt64(OpOwner.nodeHeal.rawValue) {
        healed[op.offset] = pool.now + 60_000_000_000
        return 60_000_000_000
      }
      if op.kind == .write, op.device == .volume(0), healed[op.offset] ?? 0 > pool.now { late += 1 }
      return 0
    }
    expectContent(pool, disk, round: 0)
    #expect(!healed.isEmpty && pool.engine.rarePaths[.healedNode] == healed.count)
    for round: UInt64 in 1...6 {
      write(pool, disk, round: round)
      pool.engine.control(.flush, token: 1 << 40 + round)
      pass(pool, seconds: 5)
    }
    pool.run { pool.replies[1 << 40 + 6] != nil }
    #expect(late == 0)
    #expect(pool.now > healed.values.max()!)
    expectContent(pool, disk, round: 6)
    pool.restart()
    disk = pool.open("a")
    expectContent(pool, disk, round: 6)
  }
}
