import Core
import Testing

/// Overwritten blocks go home in the order of the log where homes are quick to write.
@Suite("The scan of the log")
struct EngineScanTests {
  private let pool = MemoryPool(logMiB: 64, volumesMiB: [160]) { $0.cacheBytes = 16 << 20 }
  private let count: UInt64 = 2_000

  /// Overwrites every second block, in an order of its own, and brings all home. Reads of devices
  /// meanwhile.
  private func overwrite(_ disk: DiskHandle, round: UInt64) -> Int {
    for i in 0..<count / 2 {
      let block = (i * 617) % (count / 2) * 2
      let data = pattern(round &* 10_000 + block, 4096)
      #expect(pool.io(.write, disk, block << 12, 4096, data: data).status == .ok)
    }
    let before = pool.deviceReads
    #expect(isDone(pool.control(.flush)))
    return pool.deviceReads - before
  }

  private func filled() -> DiskHandle {
    #expect(isDone(pool.control(.create(name: "a", size: count << 12))))
    let disk = pool.open("a")
    for i in 0..<count {
      #expect(pool.io(.write, disk, i << 12, 4096, data: pattern(0, 4096)).status == .ok)
    }
    #expect(isDone(pool.control(.flush)))
    return disk
  }

  private func expectContent(_ disk: DiskHandle, round: UInt64) {
    for block in 0..<count {
      let expected =
        block % 2 == 0
        ? pattern(round &* 10_000 + block, 4096) : pattern(0, 4096)
      #expect(pool.io(.read, disk, block << 12, 4096).data == expected)
    }
  }

  private var scanned: UInt64 { pool.engine.rarePaths[.logScanned] }

  @Test("After a cycle whose homes were written quickly, the next reads the log in large pieces")
  func quick() {
    let disk = filled()
    let bySweep = overwrite(disk, round: 1)
    #expect(scanned == 0 && bySweep > Int(count / 4))
    let byScan = overwrite(disk, round: 2)
    #expect(scanned > 0 && byScan < Int(count / 10))
    expectContent(disk, round: 2)
    pool.restart()
    expectContent(pool.open("a"), round: 2)
  }

  @Test("Where homes take milliseconds each, every cycle sweeps in the order of the index")
  func slow() {
    let disk = filled()
    var last: UInt64 = 0
    pool.delay = { op in
      guard op.kind == .write, op.device.raw > 0 else { return 0 }
      last = max(last, pool.now) + 2_000_000
      return last - pool.now
    }
    _ = overwrite(disk, round: 1)
    _ = overwrite(disk, round: 2)
    #expect(scanned == 0)
    expectContent(disk, round: 2)
  }

  @Test("A part of the log that can't be read is left to the sweep, which tries it again")
  func unreadable() {
    let disk = filled()
    _ = overwrite(disk, round: 1)
    var refused = 0
    pool.fault = { op in
      guard op.kind == .read, op.device.raw == 0, op.length > 4096, refused < 1 else { return 0 }
      refused += 1
      return 5
    }
    _ = overwrite(disk, round: 2)
    #expect(refused == 1)
    expectContent(disk, round: 2)
  }

  @Test("What a snapshot shares is not overwritten")
  func mixed() {
    let disk = filled()
    _ = overwrite(disk, round: 1)
    #expect(isDone(pool.control(.snapshot([SnapshotName(disk: "a", snapshot: "s")]))))
    #expect(isDone(pool.control(.flush)))
    #expect(pool.io(.read, disk, 0, 4096).status == .ok)
    // What the snapshot shares gets other homes, in the sweep; then the disk owns its blocks.
    _ = overwrite(disk, round: 2)
    let before = scanned
    _ = overwrite(disk, round: 3)
    #expect(scanned > before)
    #expect(
      isDone(pool.control(.clone(SnapshotName(disk: "a", snapshot: "s"), name: "b", count: nil))))
    _ = overwrite(disk, round: 4)
    expectContent(disk, round: 4)
    expectContent(pool.open("b"), round: 1)
  }
}
