import Testing

@testable import Core

@Suite("Control requests beside a load")
struct EngineControlTests {
  private func submit(
    _ pool: MemoryPool, _ disk: DiskHandle, _ offset: UInt64, _ memory: AlignedMemory,
    token: UInt64
  ) {
    let isTaken = pool.engine.submit(
      BlockRequest(
        operation: .write, disk: disk, offset: offset, length: UInt64(memory.count),
        memory: memory.base, token: token))
    #expect(isTaken)
  }

  @Test(
    "A disk that is cut short under a write reads as zeros when it grows again",
    arguments: [512 << 20, 512 << 20 + 512])
  func shrinkUnderAWrite(size: UInt64) {
    let pool = MemoryPool()
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 30))))
    let disk = pool.open("a")
    let memory = AlignedMemory(bytes: 256 << 10)
    memory.base.initializeMemory(as: UInt8.self, repeating: 7, count: memory.count)
    pool.delay = { $0.token >> 56 == UInt64(OpOwner.largeWrite.rawValue) ? 100_000_000 : 0 }
    submit(pool, disk, 700 << 20, memory, token: 1 << 50)
    pool.turn()
    #expect(
      isDone(pool.control(.resize(name: "a", size: size, shrink: true, force: true))))
    pool.run { pool.takeCompletions().contains { $0.token == 1 << 50 } || pool.now > 1 << 34 }
    pool.delay = { _ in 0 }
    // Whoever comes now is told.
    #expect(pool.io(.write, disk, 700 << 20, 4096, data: pattern(1, 4096)).status == .invalid)
    #expect(
      isDone(pool.control(.resize(name: "a", size: 1 << 30, shrink: false, force: false))))
    let isZero = pool.io(.read, disk, 700 << 20, 256 << 10).data.allSatisfy { $0 == 0 }
    #expect(isZero)
    #expect(isDone(pool.control(.flush)))
    guard case .disk(let info) = pool.control(.show(name: "a")) else { return }
    #expect(info.used <= 4096)
  }

  @Test("A listing that was given up says so")
  func lostCursor() {
    let pool = MemoryPool()
    for i in 0..<30 { #expect(isDone(pool.control(.create(name: "d\(i)", size: 1 << 20)))) }
    guard case .disks(_, let first?) = pool.control(.list(cursor: nil, limit: 10)) else {
      Issue.record("a list of 30 disks is one page of 10")
      return
    }
    for _ in 0..<40 { _ = pool.control(.list(cursor: nil, limit: 10)) }
    for request in [
      ControlRequest.list(cursor: first, limit: 10),
      .listSnapshots(disk: nil, cursor: first, limit: 10),
    ] {
      guard case .failed = pool.control(request) else {
        Issue.record("a listing without its cursor is taken for complete")
        return
      }
    }
  }

  @Test("What is logged counts once after a restart")
  func usedOfWhatIsLogged() {
    let pool = MemoryPool()
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 30))))
    #expect(isDone(pool.control(.flush)))
    _ = pool.control(.holdDestage(true))
    let disk = pool.open("a")
    for i: UInt64 in 0..<10 {
      #expect(pool.io(.write, disk, i << 13, 4096, data: pattern(i, 4096)).status == .ok)
    }
    pool.restart()
    for _ in 0..<2 {
      guard case .disk(let info) = pool.control(.show(name: "a")) else { return }
      #expect(info.used == 10 << 12)
    }
  }

  @Test("A disk with a snapshot that a client reads is not deleted with its snapshots")
  func snapshotInUse() {
    let pool = MemoryPool()
    let name = SnapshotName(disk: "a", snapshot: "s")
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 30))))
    #expect(isDone(pool.control(.snapshot([name]))))
    let backup = pool.open("a@s")
    let request = ControlRequest.delete(name: "a", withSnapshots: true, force: false)
    guard case .failed(.inUse) = pool.control(request) else {
      Issue.record("a snapshot is deleted under its reader")
      return
    }
    #expect(isDone(pool.control(.close(backup))))
    #expect(isDone(pool.control(request)))
  }

  @Test("What only a snapshot refers to is counted a part at a time")
  func exclusive() {
    let pool = MemoryPool(logMiB: 64, volumesMiB: [160])
    func snapshot(_ name: String) {
      #expect(isDone(pool.control(.snapshot([SnapshotName(disk: "a", snapshot: name)]))))
    }
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 30))))
    let disk = pool.open("a")
    snapshot("s1")
    for round: UInt64 in 1...2 {
      // Every second block of those that lie together, so that each is an entry.
      for i: UInt64 in stride(from: 0, to: 12_000, by: round == 1 ? 1 : 2) {
        let data = pattern(round, 4096)
        #expect(pool.io(.write, disk, i << 13, 4096, data: data).status == .ok)
      }
      if round == 1 { snapshot("s2") }
      #expect(isDone(pool.control(.flush)))
    }
    let deletion = ControlRequest.deleteSnapshot(SnapshotName(disk: "a", snapshot: "s1"))
    #expect(isDone(pool.control(deletion)))
    #expect(isDone(pool.control(.flush)))
    for isCached in [false, true] {
      if !isCached { pool.restart() }
      let began = pool.now
      guard
        case .snapshots(let list, _) = pool.control(
          .listSnapshots(disk: "a", cursor: nil, limit: 9))
      else { return }
      #expect(list.map(\.exclusive) == [6000 << 12])
      #expect(pool.now - began >= 2_000_000)
    }
  }
}
