import Testing

@testable import Core

/// Members that come back other than they were left.
@Suite("Recovery from members that are damaged, unreadable or not the right ones")
struct EngineRecoveryTests {
  private static let blocks: UInt64 = 10

  private func write(_ pool: MemoryPool, _ disk: DiskHandle, round: UInt64) {
    for i in 0..<Self.blocks {
      let data = pattern(i + 100 * round, 4096)
      #expect(pool.io(.write, disk, i << 14, 4096, data: data).status == .ok)
    }
  }

  private func expectContent(_ pool: MemoryPool, round: UInt64) {
    let disk = pool.open("a")
    for i in 0..<Self.blocks {
      let isGood = pool.io(.read, disk, i << 14, 4096).data == pattern(i + 100 * round, 4096)
      #expect(isGood)
    }
  }

  /// The ring's records, by counter.
  private func epochRecords(_ pool: MemoryPool) -> [(block: Int, counter: UInt64)] {
    (0..<Int(LogLayout.epochRing)).compactMap { i in
      let block = Int(LogLayout.epochs) + i
      return pool.devices[0].withUnsafeBytes {
        EpochRecord(
          decoding: $0.baseAddress! + block * blockSize, tag: pool.layout.logLabel.member.low)
      }.map { (block, $0.counter) }
    }
  }

  private func zero(_ pool: MemoryPool, _ device: Int, block: Int) {
    pool.devices[device].replaceSubrange(
      block * blockSize..<(block + 1) * blockSize, with: repeatElement(0, count: blockSize))
  }

  @Test("A log whose newest epoch record was lost is refused, and nothing is written to it")
  func lostEpochRecord() {
    for restarts in 0...2 {
      let pool = MemoryPool()
      #expect(isDone(pool.control(.create(name: "a", size: 1 << 20))))
      for _ in 0..<restarts { pool.restart() }
      write(pool, pool.open("a"), round: 1)
      let records = epochRecords(pool)
      let newest = records.map(\.counter).max()!
      let copies = records.filter { $0.counter == newest }
      #expect(copies.count == Int(LogLayout.epochCopies))
      let before = pool.devices
      for copy in copies { zero(pool, 0, block: copy.block) }
      let damaged = pool.devices
      #expect(pool.reopen()?.contains("epoch record") == true, "after \(restarts) restarts")
      let isUntouched = pool.devices == damaged
      #expect(isUntouched)
      pool.devices = before
      #expect(pool.reopen() == nil)
      expectContent(pool, round: 1)
    }
  }

  @Test("A volume of an earlier time is refused, by one checkpoint or more", arguments: [1, 3])
  func staleVolume(checkpoints: UInt64) {
    let pool = MemoryPool(volumesMiB: [64, 64])
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 20))))
    let disk = pool.open("a")
    write(pool, disk, round: 0)
    #expect(isDone(pool.control(.flush)))
    let old = pool.devices[2]
    for round in 1...checkpoints {
      write(pool, disk, round: round)
      #expect(isDone(pool.control(.flush)))
    }
    // A frame names the checkpoint.
    write(pool, disk, round: checkpoints + 1)
    let right = pool.devices[2]
    pool.devices[2] = old
    #expect(pool.reopen()?.contains("volume 1") == true)
    let isUntouched = pool.devices[2] == old
    #expect(isUntouched)
    pool.devices[2] = right
    #expect(pool.reopen() == nil)
    expectContent(pool, round: checkpoints + 1)
  }

  @Test("One block of a ring that can't be read is as if it were empty; both of a pair are not")
  func unreadableRings() {
    let pool = MemoryPool()
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 20))))
    let disk = pool.open("a")
    write(pool, disk, round: 0)
    #expect(isDone(pool.control(.flush)))
    write(pool, disk, round: 1)
    let state = pool.devices
    func reopen(_ device: DeviceIndex, without blocks: Range<UInt64>) -> String? {
      pool.devices = state
      pool.fault = { op in
        let first = op.offset >> blockShift
        let isHit = (first..<first + op.length >> blockShift).overlaps(blocks)
        return op.kind == .read && op.device == device && isHit ? 5 : 0
      }
      return pool.reopen()
    }
    let rings = [
      (DeviceIndex.log, LogLayout.epochs, LogLayout.epochRing),
      (.volume(0), VolumeLayout.roots, VolumeLayout.rootRing),
    ]
    for (device, start, count) in rings {
      for block in start..<start + count {
        #expect(reopen(device, without: block..<block + 1) == nil, "block \(block) of \(device)")
        expectContent(pool, round: 1)
      }
      for pair in stride(from: start, to: start + count, by: 2) {
        #expect(reopen(device, without: pair..<pair + 2)?.contains("can't be read") == true)
      }
    }
  }

  @Test("A log that can't be read now is refused, one with a block that can't be read is not")
  func unreadableLog() {
    let pool = MemoryPool()
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 20))))
    write(pool, pool.open("a"), round: 1)
    let state = pool.devices
    // From some read on: the rings, the ends of segments, or the frames.
    for good in [2, 20, 36] {
      pool.devices = state
      var reads = 0
      pool.fault = {
        guard $0.kind == .read, $0.device == .log else { return 0 }
        reads += 1
        return reads > good ? 5 : 0
      }
      #expect(pool.reopen()?.contains("can't be read") == true, "after \(good) reads")
      pool.fault = { _ in 0 }
      #expect(pool.reopen() == nil)
      expectContent(pool, round: 1)
    }
    pool.devices = state
    let behind = LogLayout.data << blockShift + 700 << 10
    pool.fault = {
      $0.kind == .read && $0.device == .log && $0.offset <= behind && behind < $0.offset + $0.length
        ? 5 : 0
    }
    #expect(pool.reopen() == nil)
    expectContent(pool, round: 1)
  }

  @Test("A segment whose end is a summary of impossible size is read without it")
  func hostileSummary() {
    let pool = MemoryPool()
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 20))))
    write(pool, pool.open("a"), round: 1)
    let geometry = LogGeometry(label: pool.layout.logLabel)!
    var header = FrameHeader()
    header.kind = .summary
    header.tag = geometry.tag
    header.epoch = 1
    header.sequence = 1 << 40
    for (position, blocks) in [
      (geometry.start(ofSegment: 1) - UInt64(blockSize), UInt32(1)),
      (UInt64.max - UInt64(blockSize) + 1, 2),
    ] {
      header.position = position
      header.blocks = blocks
      let at = Int(geometry.deviceOffset(geometry.start(ofSegment: 1) - UInt64(blockSize)))
      pool.devices[0].withUnsafeMutableBytes { header.encode(to: $0.baseAddress! + at) }
      #expect(pool.reopen() == nil)
      expectContent(pool, round: 1)
    }
  }
}
