import Testing

@testable import Core

/// What destaging tells back-pressure of its work, and how it fits its batches to the log's device.
@Suite("Destaging's work")
struct EngineDestageTests {
  private func makePool(
    scans: Bool = false, dividesLog: Bool = false, durability: Durability = .always
  ) -> MemoryPool {
    MemoryPool(logMiB: 64, volumesMiB: [160]) {
      $0.cacheBytes = 16 << 20
      $0.alwaysScans = scans
      $0.durability = durability
      if dividesLog { $0.leastCyclePortion = 1 << 20 }
    }
  }

  private func makeDisk(_ pool: MemoryPool) -> DiskHandle {
    #expect(isDone(pool.control(.create(name: "a", size: 64 << 20))))
    return pool.open("a")
  }

  /// Every second block of some, in an order of its own, so that no two are read or written together.
  private func scatter(_ pool: MemoryPool, _ disk: DiskHandle, from: UInt64 = 0, count: UInt64) {
    for i in 0..<count {
      let block = from + (i * 617) % count * 2
      #expect(pool.io(.write, disk, block << 12, 4096, data: pattern(block, 4096)).status == .ok)
    }
  }

  private func expectAllDone(_ pool: MemoryPool) {
    let destager = pool.engine.destager
    #expect(destager.destagedBlocks > 0 && destager.remainingWork == 0)
    #expect(destager.sweep.work == 3 * destager.destagedBlocks)
  }

  @Test("A block's way home is three units of work, by whichever way it goes")
  func units() {
    let pool = makePool(scans: true)
    let disk = makeDisk(pool)
    // First homes, by a sweep; the same once more, by a scan.
    for _ in 0..<2 {
      scatter(pool, disk, count: 1200)
      #expect(isDone(pool.control(.flush)))
      expectAllDone(pool)
    }
    #expect(pool.engine.rarePaths[.logScanned] > 0)
    let large = pattern(3, 256 << 10)
    #expect(pool.io(.write, disk, 16 << 20, large.count, data: large).status == .ok)
    #expect(isDone(pool.control(.flush)))
    #expect(pool.engine.destager.destagedBlocks == 2464)
    expectAllDone(pool)
  }

  /// While a device refuses its part of the work for some seconds, nothing is earned by trying again.
  private func expectNothingEarned(whileRefusing isRefused: @escaping (DeviceOp) -> Bool) {
    let pool = makePool()
    scatter(pool, makeDisk(pool), count: 100)
    var isDown = true
    pool.fault = { isDown && isRefused($0) ? 5 : 0 }
    pool.engine.control(.flush, token: 1 << 40)
    for _ in 0..<1000 { pool.turn() }
    let before = pool.engine.destager.progress
    for _ in 0..<5000 { pool.turn() }
    #expect(pool.engine.rarePaths[.suspended] > 3)
    #expect(pool.engine.destager.progress == before)
    #expect(pool.engine.destager.remainingWork >= 100)
    isDown = false
    pool.run { pool.replies[1 << 40] != nil }
    expectAllDone(pool)
    #expect(pool.engine.destager.sweep.batch.capacity == 1024, "waiting was taken for reading")
  }

  @Test("Homes that are refused earn nothing") func refusedHomes() {
    expectNothingEarned { $0.kind == .write && $0.device.raw > 0 }
  }

  @Test("A log that can't be read earns nothing, and is not a slow one") func refusedReads() {
    expectNothingEarned { $0.kind == .read && $0.device.raw == 0 }
  }

  @Test("Where reads of the log take milliseconds, batches grow") func slowLog() {
    let pool = makePool()
    let disk = makeDisk(pool)
    var last: UInt64 = 0
    pool.delay = { op in
      guard op.kind == .read, op.device.raw == 0 else { return 0 }
      last = max(last, pool.now) + 2_000_000
      return last - pool.now
    }
    scatter(pool, disk, count: 1200)
    #expect(isDone(pool.control(.flush)))
    // The first batch was full, the second had the rest.
    #expect(pool.engine.destager.sweep.batch.capacity == 4096)
    pool.delay = { _ in 0 }
    for round in 1...3 {
      scatter(pool, disk, from: UInt64(round) * 2400, count: 1200)
      #expect(isDone(pool.control(.flush)))
    }
    #expect(pool.engine.destager.sweep.batch.capacity == 1024)
  }

  @Test("What is overwritten while its first homes are given stays between its neighbours")
  func onePiece() {
    let pool = makePool()
    let disk = makeDisk(pool)
    let count: UInt64 = 3000
    for block in 0..<count {
      #expect(pool.io(.write, disk, block << 12, 4096, data: pattern(block, 4096)).status == .ok)
    }
    // The cycle has its cut, and stands while its first batch is read.
    var isHeldUp = true
    pool.delay = { $0.kind == .read && $0.device.raw == 0 && isHeldUp ? 10_000_000_000 : 0 }
    pool.engine.control(.flush, token: 1 << 40)
    for _ in 0..<50 { pool.turn() }
    // Single blocks, and pairs.
    let late = (1200..<count).filter { $0 % 7 < 3 && $0 % 7 != 1 }
    for block in late {
      let data = pattern(block + 10_000, 4096)
      #expect(pool.io(.write, disk, block << 12, 4096, data: data).status == .ok)
    }
    isHeldUp = false
    pool.run { pool.replies[1 << 40] != nil }
    #expect(isDone(pool.control(.flush)))
    // So does the first block of a run: they are twice as long each time, from 16 on.
    let runStart: UInt64 = 16 * 127
    #expect(late.contains(runStart))
    #expect(home(pool, disk, runStart) == home(pool, disk, runStart - 1).map { $0 + 1 })

    let reads = scan(pool, count: count) { block in
      pattern(late.contains(block) ? block + 10_000 : block, 4096)
    }
    // 50 pieces, the map's leaves, and here and there the end of a run.
    #expect(reads < 150)
  }

  /// Where a block of a disk lies in vSpace; its map is in memory.
  private func home(_ pool: MemoryPool, _ disk: DiskHandle, _ block: UInt64) -> BlockAddress? {
    (try? pool.engine.pool.disks.resolve(disk)?.layer.ownHome(of: BlockIndex(block))) ?? nil
  }

  /// What `scatter` has written, after a restart.
  private func expectScattered(_ pool: MemoryPool, count: UInt64) {
    pool.restart()
    let reader = pool.open("a")
    for block in (0..<count).map({ 2 * $0 }) {
      #expect(pool.io(.read, reader, block << 12, 4096).data == pattern(block, 4096))
    }
  }

  /// Reads the first `count` blocks by 60 and compares them; how often that read from devices.
  private func scan(
    _ pool: MemoryPool, count: UInt64, expected: (UInt64) -> [UInt8]
  ) -> Int {
    pool.restart()
    let reader = pool.open("a")
    #expect(pool.io(.read, reader, 0, 4096).data == expected(0))
    let before = pool.deviceReads
    for first in stride(from: 0, to: count, by: 60) {
      let data = pool.io(.read, reader, first << 12, 60 << 12).data
      for block in first..<first + 60 {
        let at = Int(block - first) << 12
        #expect(Array(data[at..<at + 4096]) == expected(block), "block \(block)")
      }
    }
    return pool.deviceReads - before
  }

  @Test("What is overwritten of a large write that no map has yet stays between its neighbours")
  func overwrittenLargeWrite() {
    let pool = makePool()
    let disk = makeDisk(pool)
    let count: UInt64 = 3840
    for block in stride(from: 0, to: count, by: 64) {
      let data = pattern(block, 256 << 10)
      #expect(pool.io(.write, disk, block << 12, data.count, data: data).status == .ok)
    }
    for block in 1..<count where block % 5 == 3 {
      let data = pattern(block + 10_000, 4096)
      #expect(pool.io(.write, disk, block << 12, 4096, data: data).status == .ok)
    }
    #expect(isDone(pool.control(.flush)))
    let reads = scan(pool, count: count) { block in
      if block % 5 == 3 { return pattern(block + 10_000, 4096) }
      let first = block / 64 * 64
      let at = Int(block - first) << 12
      return Array(pattern(first, 256 << 10)[at..<at + 4096])
    }
    // 60 pieces, cut once more by reads of 60 blocks, and the map's leaves.
    #expect(reads < 200)
  }

  /// Writes `count` blocks in an order of its own while destaging is held.
  private func overfill(_ pool: MemoryPool, _ disk: DiskHandle, count: UInt64, round: UInt64) {
    #expect(isDone(pool.control(.holdDestage(true))))
    for i in 0..<count {
      let block = i * 617 % count
      let data = pattern(block + round, 4096)
      #expect(pool.io(.write, disk, block << 12, 4096, data: data).status == .ok)
    }
  }

  private func makeRoom(_ pool: MemoryPool) {
    #expect(isDone(pool.control(.holdDestage(false))))
    pool.run { pool.engine.fill < 400 && pool.engine.destager.isIdle }
  }

  @Test("For room in the log alone a cycle takes a part of it; the rest is replayed")
  func partOfTheLog() {
    let pool = makePool(dividesLog: true)
    let disk = makeDisk(pool)
    let count: UInt64 = 4380
    let (engine, destager) = (pool.engine, pool.engine.destager)
    // First homes: a cycle takes all, so that they lie in one piece.
    overfill(pool, disk, count: count, round: 0)
    makeRoom(pool)
    #expect(destager.cycles == 1 && !destager.hasWork)
    #expect(isDone(pool.control(.flush)))
    // One more that takes all, as the last one gave first homes.
    overfill(pool, disk, count: count, round: 1)
    makeRoom(pool)
    #expect(destager.cycles == 2 && !destager.hasWork)

    overfill(pool, disk, count: count, round: 2)
    let (used, blocks) = (engine.pool.log.usedBytes, destager.destagedBlocks)
    #expect(isDone(pool.control(.holdDestage(false))))
    pool.run { destager.cycles == 3 }
    let freed = Double(used - engine.pool.log.usedBytes) / Double(used)
    #expect(destager.share < 0.3 && abs(destager.share - freed) < 0.01)
    makeRoom(pool)
    let taken = destager.destagedBlocks - blocks
    #expect(destager.cycles == 4 && taken > count / 4 && taken < count / 2)
    #expect(engine.rarePaths[.partOfLogDestaged] == 2)
    // The rest is still in the log.
    #expect(scan(pool, count: count / 60 * 60) { pattern($0 + 2, 4096) } > Int(count) / 2)

    // Somebody waits for all of it.
    #expect(isDone(pool.control(.flush)))
    #expect(pool.engine.destager.cycles == 1 && !pool.engine.destager.hasWork)
  }

  @Test("After a failed flush of the log what it held goes home at once, though writes wait")
  func failedFlush() {
    let pool = makePool(durability: .flush)
    let disk = makeDisk(pool)
    scatter(pool, disk, count: 1000)
    pool.fault = { $0.kind == .flush && $0.device.raw == 0 ? 5 : 0 }
    #expect(pool.io(.flush, disk, 0, 0).status == .ioError)
    pool.fault = { _ in 0 }
    let before = pool.now
    #expect(pool.io(.write, disk, 0, 4096, data: pattern(1, 4096)).status == .ok)
    #expect(pool.now - before < 1_000_000_000)
  }

  @Test("Metadata that can't be written moves elsewhere, and the cycle ends")
  func badMetadataBlocks() {
    let pool = makePool()
    let disk = makeDisk(pool)
    scatter(pool, disk, count: 1000)
    var (bad, writes) = (Set<UInt64>(), 0)
    pool.fault = { op in
      guard op.kind == .write, op.device.raw == 1 else { return 0 }
      if bad.contains(op.offset) { return 5 }
      guard op.token >> 56 == UInt64(OpOwner.nodeWrite.rawValue) else { return 0 }
      // Those of maps, of the catalog, and of the space tree, which has to be stored again.
      writes += 1
      guard writes % 8 == 0 else { return 0 }
      bad.insert(op.offset)
      return 5
    }
    let before = pool.now
    #expect(isDone(pool.control(.flush)))
    #expect(bad.count > 4 && pool.engine.rarePaths[.relocatedNode] >= bad.count / 2)
    #expect(pool.now - before < 1_000_000_000, "it waited for the device")
    #expect(!pool.engine.destager.hasWork && pool.engine.rarePaths[.suspended] == 0)
    expectScattered(pool, count: 1000)
    scatter(pool, pool.open("a"), count: 1000)
    #expect(isDone(pool.control(.flush)))
  }

  @Test("Where all metadata is refused, the cycle waits for the device and moves few nodes")
  func refusedMetadata() {
    let pool = makePool()
    let disk = makeDisk(pool)
    scatter(pool, disk, count: 1000)
    pool.fault = { $0.token >> 56 == UInt64(OpOwner.nodeWrite.rawValue) ? 5 : 0 }
    pool.run { pool.engine.rarePaths[.suspended] > 0 }
    let moved = pool.engine.rarePaths[.relocatedNode]
    for _ in 0..<5000 { pool.turn() }
    // One a second, for it might be many bad places in a row.
    #expect(moved > 0 && pool.engine.rarePaths[.relocatedNode] <= moved + 6)
    pool.fault = { _ in 0 }
    #expect(isDone(pool.control(.flush)))
    expectScattered(pool, count: 1000)
  }

  @Test("Destaging that nobody waits for makes way while there are requests")
  func makesWay() {
    let pool = makePool()
    let disk = makeDisk(pool)
    scatter(pool, disk, count: 2400)
    // It begins after two seconds, and takes its time.
    pool.delay = { $0.kind == .read && $0.device.raw == 0 ? 200_000_000 : 0 }
    pool.run { !pool.engine.destager.isIdle }
    #expect(pool.engine.destager.window == Destager.wideWindow)
    let unlogged = UInt64(32 << 20)
    for _ in 0..<3 {
      #expect(pool.io(.read, disk, unlogged, 4096).status == .ok)
      pool.turn()
      #expect(pool.engine.destager.window == Destager.trickle)
    }
    for _ in 0..<60 { pool.turn() }
    #expect(pool.engine.destager.window == Destager.wideWindow)
    // A read that takes long counts for as long as it takes.
    let logged = AlignedMemory(bytes: 4096)
    let isTaken = pool.engine.submit(
      BlockRequest(
        operation: .read, disk: disk, offset: 0, length: 4096, memory: logged.base, token: 1 << 41))
    #expect(isTaken)
    for _ in 0..<150 {
      pool.turn()
      #expect(pool.engine.destager.window == Destager.trickle)
    }
    for _ in 0..<150 { pool.turn() }
    #expect(pool.engine.destager.window == Destager.wideWindow)
    // It rests beside requests, but for the batch that it is at.
    pool.delay = { _ in 0 }
    let destager = pool.engine.destager
    for operation in [BlockOperation.read, .write] {
      for turn in 0..<60 {
        let before = destager.progress
        #expect(pool.io(operation, disk, unlogged, 4096, data: pattern(1, 4096)).status == .ok)
        if turn > 50 { #expect(!destager.isIdle && destager.progress == before) }
      }
    }
    // Somebody waits.
    pool.engine.control(.flush, token: 1 << 40)
    #expect(pool.io(.read, disk, unlogged, 4096).status == .ok)
    pool.turn()
    #expect(destager.window == Destager.narrowWindow)
    for _ in 0..<200 where pool.replies[1 << 40] == nil {
      #expect(pool.io(.write, disk, unlogged, 4096, data: pattern(1, 4096)).status == .ok)
    }
    #expect(pool.replies[1 << 40] != nil, "a cycle that somebody waits for never ends")
  }

  @Test("A cycle has ended when all that it has released is free")
  func releasedIsFree() {
    let pool = MemoryPool(logMiB: 64, volumesMiB: [160]) { $0.cacheBytes = 16 << 20 }
    let disk = makeDisk(pool)
    let count: UInt64 = 12_000
    let data = pattern(1, 1 << 16)
    for i in 0..<count / 16 {
      #expect(pool.io(.write, disk, i << 16, 1 << 16, data: data).status == .ok)
    }
    #expect(isDone(pool.control(.flush)))
    // Runs that can't be merged, more of them than become free in one step.
    #expect(isDone(pool.control(.holdDestage(true))))
    for i in 0..<count / 2 { #expect(pool.io(.trim, disk, i << 13, 4096).status == .ok) }
    let (destager, space) = (pool.engine.destager, pool.engine.pool.space)
    let (cycles, used) = (destager.cycles, space.used)
    pool.engine.control(.flush, token: 1 << 40)
    pool.run { destager.cycles > cycles }
    #expect(space.releasedPending == 0)
    #expect(space.used < used - Int(count) / 3)
    pool.run { pool.replies[1 << 40] != nil }
  }

  @Test("A disk that was deleted while it was open leaves memory when it is closed")
  func deletedWhileOpen() {
    let pool = MemoryPool()
    let disk = makeDisk(pool)
    #expect(pool.io(.write, disk, 0, 4096, data: pattern(1, 4096)).status == .ok)
    #expect(isDone(pool.control(.flush)))
    #expect(isDone(pool.control(.delete(name: "a", withSnapshots: false, force: true))))
    #expect(isDone(pool.control(.flush)))
    #expect(pool.engine.pool.disks.holder(of: disk) != nil)
    #expect(isDone(pool.control(.close(disk))))
    #expect(isDone(pool.control(.create(name: "b", size: 1 << 20))))
    #expect(isDone(pool.control(.flush)))
    #expect(pool.engine.pool.disks.holder(of: disk) == nil)
  }
}
