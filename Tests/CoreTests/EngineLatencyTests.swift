import Core
import Testing

@Suite("Latency as the engine measures it")
struct EngineLatencyTests {
  private let millisecond: UInt64 = 1_000_000

  private func status(_ pool: MemoryPool) -> PoolStatus {
    guard case .status(let status) = pool.control(.status) else {
      Issue.record("no status")
      return PoolStatus()
    }
    return status
  }

  private func disks(_ pool: MemoryPool) -> [DiskLatency] {
    var found: [DiskLatency] = []
    var cursor: UInt64?
    repeat {
      guard case .latency(let page, let next) = pool.control(.latency(cursor: cursor, limit: 3))
      else {
        Issue.record("no figures")
        return []
      }
      found += page
      cursor = next
    } while cursor != nil
    return found
  }

  private func disk(_ pool: MemoryPool, _ name: String = "a") -> DiskHandle {
    #expect(isDone(pool.control(.create(name: name, size: 1 << 30))))
    return pool.open(name)
  }

  /// Hands a write over without waiting for it; the memory lives as long as the caller keeps it.
  private func submit(
    _ pool: MemoryPool, _ disk: DiskHandle, _ offset: UInt64, _ length: Int, token: UInt64
  ) -> AlignedMemory {
    let memory = AlignedMemory(bytes: roundUp(length + 4096, to: 4096))
    memory.base.initializeMemory(as: UInt8.self, repeating: 7, count: memory.count)
    pool.engine.observe(now: pool.now)
    let isTaken = pool.engine.submit(
      BlockRequest(
        operation: .write, disk: disk, offset: offset, length: UInt64(length),
        memory: memory.base, token: token))
    #expect(isTaken)
    return memory
  }

  @Test("A slow log shows in the service time of writes, in the stage of the log")
  func slowLog() throws {
    let pool = MemoryPool()
    let disk = disk(pool)
    pool.delay = { $0.device == .log ? 20_000_000 : 0 }
    for i in 0..<5 {
      let data = pattern(UInt64(i), 4096)
      #expect(pool.io(.write, disk, UInt64(i) << 12, 4096, data: data).status == .ok)
    }
    let write = status(pool).latency[1]
    #expect(write.total.count == 5)
    #expect(write.service.p50 >= 19 * millisecond && write.service.p50 <= 25 * millisecond)
    #expect(write.queue.max == 0)
    let slow = try #require(status(pool).slowest.first)
    #expect(slow.name == "a" && slow.operation == .write && slow.length == 4096)
    #expect(slow.stages[RequestStage.log.rawValue] >= 19 * millisecond)
  }

  @Test("A slow volume shows in the service time of reads that miss the cache")
  func slowVolume() throws {
    let pool = MemoryPool()
    let disk = disk(pool)
    #expect(pool.io(.write, disk, 0, 4096, data: pattern(1, 4096)).status == .ok)
    #expect(isDone(pool.control(.flush)))
    pool.restart()
    pool.delay = { $0.kind == .read && $0.device != .log ? 30_000_000 : 0 }
    let again = pool.open("a")
    let before = status(pool).latency[0].total.count
    #expect(pool.io(.read, again, 0, 4096).status == .ok)
    let read = status(pool).latency[0]
    #expect(read.total.count == before + 1 && read.queue.max == 0)
    #expect(read.service.max >= 29 * millisecond)
    let slow = try #require(status(pool).slowest.first { $0.operation == .read })
    #expect(slow.stages[RequestStage.data.rawValue] >= 29 * millisecond)
  }

  @Test("A write that the full log holds back has waited in the queue")
  func heldBack() throws {
    let pool = MemoryPool()
    let disk = disk(pool)
    #expect(isDone(pool.control(.holdDestage(true))))
    let memory = (0..<300).map {
      submit(pool, disk, UInt64($0) << 16, 65536, token: 1000 + UInt64($0))
    }
    for _ in 0..<500 { pool.turn() }
    #expect(pool.completions.count < 300)
    #expect(isDone(pool.control(.holdDestage(false))))
    pool.run { pool.completions.count == 300 }
    withExtendedLifetime(memory) {}
    #expect(pool.takeCompletions().allSatisfy { $0.status == .ok })
    let write = status(pool).latency[1]
    #expect(write.queue.max >= 499 * millisecond)
    #expect(write.service.max < 100 * millisecond)
    let slow = try #require(status(pool).slowest.first)
    #expect(slow.stages[RequestStage.admission.rawValue] >= 499 * millisecond)
    #expect(slow.queue + 100 * millisecond >= slow.total)
  }

  @Test("A write into a block that another one is changing waits for its turn")
  func ordering() throws {
    let pool = MemoryPool()
    let disk = disk(pool)
    pool.delay = { $0.device == .log ? 20_000_000 : 0 }
    let first = submit(pool, disk, 0, 512, token: 1001)
    let second = submit(pool, disk, 512, 512, token: 1002)
    pool.run { pool.completions.count == 2 }
    withExtendedLifetime((first, second)) {}
    let slow = try #require(status(pool).slowest.first)
    #expect(slow.offset == 512)
    #expect(slow.stages[RequestStage.turn.rawValue] >= 19 * millisecond)
    #expect(slow.stages[RequestStage.log.rawValue] >= 19 * millisecond)
  }

  @Test("The stages of an operation add up to its total")
  func stagesAddUp() {
    let pool = MemoryPool()
    let disk = disk(pool)
    pool.delay = { $0.kind == .flush ? 0 : 3_000_000 }
    for i in 0..<40 {
      let length = [512, 4096, 262_144][i % 3]
      _ = pool.io(.write, disk, UInt64(i) << 18, length, data: pattern(UInt64(i), length))
      _ = pool.io(.read, disk, UInt64(i) << 18, 4096)
    }
    _ = pool.io(.trim, disk, 0, 1 << 20)
    let status = status(pool)
    #expect(status.slowest.count == 16 && status.slowestRecently.count == 16)
    for slow in status.slowest {
      var sum: UInt64 = 0
      for stage in RequestStage.allCases { sum += slow.stages[stage.rawValue] }
      #expect(sum == slow.total && slow.total > 0)
    }
    #expect(zip(status.slowest, status.slowest.dropFirst()).allSatisfy { $0.total >= $1.total })
    for latency in status.latency {
      #expect(latency.total.sum == latency.queue.sum + latency.service.sum)
    }
  }

  @Test("What was slow is forgotten by the recent list after two minutes, and by no other")
  func recent() {
    let pool = MemoryPool()
    let disk = disk(pool)
    pool.delay = { $0.device == .log ? 50_000_000 : 0 }
    _ = pool.io(.write, disk, 0, 4096, data: pattern(1, 4096))
    pool.delay = { _ in 0 }
    for _ in 0..<3 {
      pool.now += 61_000_000_000
      _ = pool.io(.write, disk, 4096, 4096, data: pattern(2, 4096))
    }
    let status = status(pool)
    #expect((status.slowest.first?.total ?? 0) >= 49 * millisecond)
    #expect((status.slowestRecently.first?.total ?? .max) < 10 * millisecond)
  }

  @Test("Each disk has its own figures, in pages, under its name of now")
  func perDisk() throws {
    let pool = MemoryPool()
    let handles = (0..<8).map { disk(pool, "d\($0)") }
    for (i, handle) in handles.enumerated() where i != 3 {
      for n in 0...i {
        _ = pool.io(.write, handle, UInt64(n) << 12, 4096, data: pattern(9, 4096))
      }
      _ = pool.io(.read, handle, 0, 8192)
    }
    #expect(isDone(pool.control(.rename(name: "d5", to: "dir/five"))))
    let found = disks(pool).sorted { $0.name < $1.name }
    #expect(found.map(\.name) == ["d0", "d1", "d2", "d4", "d6", "d7", "dir/five"])
    for disk in found {
      let number = UInt64(disk.name == "dir/five" ? 5 : Int(disk.name.dropFirst())!)
      #expect(disk.figures.write.total.count == number + 1)
      #expect(disk.figures.write.bytes == (number + 1) * 4096)
      #expect(disk.figures.read.total.count == 1 && disk.figures.read.bytes == 8192)
      #expect(disk.connections == 1)
    }
  }

  @Test("A trim is a write without bytes; requests that are refused are not counted")
  func whatCounts() throws {
    let pool = MemoryPool()
    let disk = disk(pool)
    _ = pool.io(.write, disk, 0, 4096, data: pattern(1, 4096))
    _ = pool.io(.trim, disk, 0, 1 << 20)
    _ = pool.io(.flush, disk, 0, 0)
    #expect(pool.io(.read, disk, 1 << 30, 4096).status == .invalid)
    let figures = try #require(disks(pool).first).figures
    #expect(figures.write.total.count == 2 && figures.write.bytes == 4096)
    #expect(figures.flush.total.count == 1 && figures.read.total.count == 0)
  }

  @Test("The figures of a deleted disk go, and a disk in its place begins with none")
  func deleted() {
    let pool = MemoryPool()
    let first = disk(pool)
    _ = pool.io(.write, first, 0, 4096, data: pattern(1, 4096))
    _ = pool.control(.close(first))
    #expect(isDone(pool.control(.delete(name: "a", withSnapshots: false, force: false))))
    #expect(isDone(pool.control(.flush)))
    #expect(disks(pool).isEmpty)
    _ = disk(pool, "b")
    #expect(disks(pool).isEmpty)
  }
}

@Suite("Figures of many disks")
struct DiskFiguresTests {
  @Test("Of more disks than may have figures, those with clients keep theirs")
  func bounded() throws {
    let table = DiskTable(measuredLimit: 4)
    var layers = LayerTable()
    var disks: [VirtualDisk] = []
    for i in 0..<8 {
      let id = ObjectID(UInt64(100 + i))
      disks.append(table.add(id, layer: layers.add(id)))
      disks[i].connections = i < 3 ? 1 : 0
    }
    for disk in disks[0..<4] { #expect(table.measure(disk) != nil) }
    #expect(table.measure(disks[5]) != nil)
    #expect(disks[3].figures == nil)
    #expect(disks[0..<3].allSatisfy { $0.figures != nil })
    disks[5].connections = 1
    #expect(table.measure(disks[6]) == nil)
    table.remove(disks[0])
    #expect(table.measure(disks[6]) != nil)
  }
}
