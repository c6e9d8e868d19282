import Core
import Testing

/// An engine over members in memory that do every operation at once, in order.
final class MemoryPool {
  var devices: [[UInt8]]
  var engine: Engine
  var now: UInt64 = 1
  let layout: PoolLayout
  let isSparse: Bool
  var configure: (inout PoolConfiguration) -> Void
  private(set) var completions: [BlockCompletion] = []
  private(set) var replies: [UInt64: ControlReply] = [:]
  private var nextToken: UInt64 = 1
  /// An errno instead of the operation; 0 to carry it out.
  var fault: (DeviceOp) -> Int32 = { _ in 0 }
  private(set) var deviceReads = 0
  /// How many nanoseconds an operation takes.
  var delay: (DeviceOp) -> UInt64 = { _ in 0 }
  private var delayed: [(due: UInt64, op: DeviceOp)] = []

  init(
    logMiB: Int = 17, volumesMiB: [Int] = [64], isSparse: Bool = false,
    configure: @escaping (inout PoolConfiguration) -> Void = { $0.cacheBytes = 16 << 20 }
  ) {
    var random = SeededRandom(seed: 7)
    devices = ([logMiB] + volumesMiB).map { [UInt8](repeating: 0, count: $0 << 20) }
    layout = PoolLayout(
      pool: UUIDBytes(random: &random), name: "test", created: 1,
      log: .init(member: UUIDBytes(random: &random), sizeInBlocks: UInt64(logMiB) << 8),
      volumes: volumesMiB.map {
        .init(member: UUIDBytes(random: &random), sizeInBlocks: UInt64($0) << 8)
      })
    self.isSparse = isSparse
    self.configure = configure
    engine = Self.makeEngine(layout, isSparse, configure)
    for write in layout.writes() {
      let at = Int(write.offset)
      devices[Int(write.device.raw)].replaceSubrange(
        at..<at + write.memory.count,
        with: UnsafeRawBufferPointer(start: write.memory.base, count: write.memory.count))
    }
    run { self.engine.isReady }
  }

  static func makeEngine(
    _ layout: PoolLayout, _ isSparse: Bool, _ configure: (inout PoolConfiguration) -> Void
  ) -> Engine {
    var configuration = PoolConfiguration(
      pool: layout.pool, name: layout.name, log: LogGeometry(label: layout.logLabel)!,
      volumes: layout.volumes.map {
        VolumeMember(
          member: $0.member,
          description: DeviceDescription(
            size: $0.sizeInBlocks << 12, isSparseFile: isSparse, canDiscard: isSparse))
      })
    configure(&configuration)
    return Engine(configuration)
  }

  /// As after kill -9: memory is gone, the devices are as they are.
  func restart() {
    engine = Self.makeEngine(layout, isSparse, configure)
    run { self.engine.isReady }
  }

  /// As `restart`, of an engine that may refuse: why it did.
  func reopen() -> String? {
    engine = Self.makeEngine(layout, isSparse, configure)
    for _ in 0..<200_000 {
      turn()
      if engine.isReady { return nil }
      if let why = engine.failure { return why }
    }
    return "the engine did not get there"
  }

  func run(until done: () -> Bool) {
    for _ in 0..<200_000 {
      turn()
      if done() { return }
      if let why = engine.failure {
        Issue.record("the engine failed: \(why)")
        return
      }
    }
    Issue.record("the engine did not get there")
  }

  /// One step of the engine, and a millisecond.
  func turn() {
    engine.observe(now: now)
    for (_, op) in delayed.filter({ $0.due <= now }) { engine.complete(perform(op)) }
    delayed.removeAll { $0.due <= now }
    engine.step(now: now, wallClock: now)
    while let op = engine.nextDeviceOp() {
      let delay = delay(op)
      if delay > 0 {
        delayed.append((now + delay, op))
      } else {
        engine.complete(perform(op))
      }
    }
    while let c = engine.nextCompletion() { completions.append(c) }
    while let (token, reply) = engine.nextControlReply() { replies[token] = reply }
    now += 1_000_000
  }

  private func perform(_ op: DeviceOp) -> DeviceCompletion {
    let device = Int(op.device.raw)
    let (at, n) = (Int(op.offset), Int(op.length))
    let error = fault(op)
    if error != 0 { return DeviceCompletion(token: op.token, error: error) }
    switch op.kind {
    case .read:
      deviceReads += 1
      devices[device].withUnsafeBytes {
        op.memory!.copyMemory(from: $0.baseAddress! + at, byteCount: n)
      }
    case .write, .writeDurable:
      devices[device].withUnsafeMutableBytes {
        ($0.baseAddress! + at).copyMemory(from: op.memory!, byteCount: n)
      }
    case .flush, .discard, .allocate: break
    }
    return DeviceCompletion(token: op.token, error: 0)
  }

  func takeCompletions() -> [BlockCompletion] {
    defer { completions.removeAll() }
    return completions
  }

  func control(_ request: ControlRequest) -> ControlReply {
    let token = nextToken
    nextToken += 1
    engine.control(request, token: token)
    run { self.replies[token] != nil }
    return replies[token] ?? .failed(.stopping)
  }

  func open(_ name: String) -> DiskHandle {
    guard case .opened(let handle, _, _) = control(.open(name: name)) else {
      Issue.record("disk \(name) can't be opened")
      return DiskHandle(place: 0, generation: 0)
    }
    return handle
  }

  /// One block request to its end; `data` as the front end hands it over.
  func io(
    _ operation: BlockOperation, _ disk: DiskHandle, _ offset: UInt64, _ length: Int,
    data: [UInt8]? = nil
  ) -> (status: BlockStatus, data: [UInt8]) {
    let memory = AlignedMemory(bytes: roundUp(max(length, 4096) + 8192, to: 4096))
    let start = memory.base + Int(offset % 4096)
    if let data {
      data.withUnsafeBytes { start.copyMemory(from: $0.baseAddress!, byteCount: length) }
    }
    let token = nextToken
    nextToken += 1
    engine.observe(now: now)
    let isTaken = engine.submit(
      BlockRequest(
        operation: operation, disk: disk, offset: offset, length: UInt64(length),
        memory: memory.base, token: token))
    #expect(isTaken)
    run { self.completions.contains { $0.token == token } }
    let status = completions.first { $0.token == token }?.status ?? .stopping
    completions.removeAll()
    return (status, Array(UnsafeRawBufferPointer(start: start, count: length)))
  }
}

/// Bytes that tell where they belong.
func pattern(_ seed: UInt64, _ count: Int) -> [UInt8] {
  var random = SeededRandom(seed: seed)
  var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: random.next() | 1), count: count)
  for at in stride(from: 0, to: count, by: 512) {
    bytes[at] = UInt8(truncatingIfNeeded: random.next() | 1)
  }
  return bytes
}

@Suite struct EngineTests {
  @Test func aWriteIsReadBackFromTheLogAndAfterDestaging() {
    let pool = MemoryPool()
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 30))))
    let disk = pool.open("a")
    let data = pattern(1, 8192)
    #expect(pool.io(.write, disk, 4096, 8192, data: data).status == .ok)
    #expect(pool.io(.read, disk, 4096, 8192).data == data)
    #expect(isDone(pool.control(.flush)))
    #expect(pool.io(.read, disk, 4096, 8192).data == data)
    #expect(pool.io(.read, disk, 0, 4096).data == [UInt8](repeating: 0, count: 4096))
  }

  @Test func everythingAcknowledgedIsThereAfterARestart() {
    let pool = MemoryPool()
    _ = pool.control(.create(name: "dir/a", size: 1 << 30))
    var disk = pool.open("dir/a")
    for i in 0..<50 {
      let data = pattern(UInt64(i), 4096)
      #expect(pool.io(.write, disk, UInt64(i) * 12288, 4096, data: data).status == .ok)
    }
    for flushFirst in [false, true] {
      if flushFirst { #expect(isDone(pool.control(.flush))) }
      pool.restart()
      disk = pool.open("dir/a")
      for i in 0..<50 {
        #expect(pool.io(.read, disk, UInt64(i) * 12288, 4096).data == pattern(UInt64(i), 4096))
      }
    }
  }

  @Test func partialWritesKeepTheRestOfTheirBlocks() {
    let pool = MemoryPool()
    _ = pool.control(.create(name: "a", size: 1 << 20))
    let disk = pool.open("a")
    var model = pattern(3, 16384)
    #expect(pool.io(.write, disk, 0, 16384, data: model).status == .ok)
    for (offset, length) in [(512, 512), (4000, 200), (1, 9000), (12288 + 7, 1)] {
      let data = pattern(UInt64(offset), length)
      model.replaceSubrange(offset..<offset + length, with: data)
      #expect(pool.io(.write, disk, UInt64(offset), length, data: data).status == .ok)
      #expect(pool.io(.read, disk, 0, 16384).data == model)
    }
    model.replaceSubrange(1000..<9000, with: repeatElement(0, count: 8000))
    #expect(pool.io(.zero, disk, 1000, 8000).status == .ok)
    #expect(pool.io(.read, disk, 0, 16384).data == model)
    pool.restart()
    #expect(pool.io(.read, pool.open("a"), 0, 16384).data == model)
  }

  @Test func aLargeWriteGoesHomeAtOnceAndSurvives() {
    let pool = MemoryPool()
    _ = pool.control(.create(name: "a", size: 1 << 30))
    let data = pattern(9, 262_144)
    #expect(pool.io(.write, pool.open("a"), 1 << 20, 262_144, data: data).status == .ok)
    #expect(pool.engine.rarePaths[.largeWrite] == 1)
    #expect(pool.io(.read, pool.open("a"), 1 << 20, 262_144).data == data)
    pool.restart()
    #expect(pool.io(.read, pool.open("a"), 1 << 20, 262_144).data == data)
    #expect(isDone(pool.control(.flush)))
    pool.restart()
    #expect(pool.io(.read, pool.open("a"), 1 << 20, 262_144).data == data)
  }

  @Test func deletingADiskGivesItsSpaceBack() {
    let pool = MemoryPool()
    _ = pool.control(.flush)
    let before = used(pool)
    _ = pool.control(.create(name: "a", size: 1 << 30))
    let disk = pool.open("a")
    for i in 0..<1000 {
      _ = pool.io(.write, disk, UInt64(i * 37 % 4001) * 4096, 4096, data: pattern(UInt64(i), 4096))
    }
    _ = pool.control(.flush)
    #expect(used(pool) > before + 3_900_000)
    _ = pool.control(.close(disk))
    #expect(isDone(pool.control(.delete(name: "a", withSnapshots: false, force: false))))
    #expect(isDone(pool.control(.flush)))
    #expect(used(pool) <= before + 1 << 20)
  }

  @Test func whatWasDeletedJustNowIsRoomForANewDisk() {
    let pool = MemoryPool()
    _ = pool.control(.create(name: "a", size: 1 << 30))
    let disk = pool.open("a")
    // Larger pieces leave a rest.
    for (length, from) in [(65536, UInt64(0)), (4096, 1 << 29)] {
      var at = from
      while pool.io(.write, disk, at, length, data: pattern(at, length)).status == .ok {
        at += UInt64(length)
      }
    }
    let new = ControlRequest.create(name: "b", size: 1 << 30)
    guard case .failed(.noSpace) = pool.control(new) else {
      Issue.record("a full pool has room for a disk")
      return
    }
    _ = pool.control(.close(disk))
    #expect(isDone(pool.control(.delete(name: "a", withSnapshots: false, force: false))))
    #expect(isDone(pool.control(new)))
  }

  @Test func theLogWrapsManyTimes() {
    let pool = MemoryPool()
    _ = pool.control(.create(name: "a", size: 1 << 30))
    let disk = pool.open("a")
    for i in 0..<600 {
      let data = pattern(UInt64(i), 65536)
      #expect(
        pool.io(.write, disk, UInt64(i % 100) * 65536, 65536, data: data).status == .ok)
    }
    #expect(pool.engine.rarePaths[.logWrap] >= 2)
    pool.restart()
    let again = pool.open("a")
    for i in 500..<600 {
      #expect(
        pool.io(.read, again, UInt64(i % 100) * 65536, 65536).data == pattern(UInt64(i), 65536))
    }
  }

  @Test func manyLargeWritesAtOnceGoHomeOnASparseVolume() {
    let pool = MemoryPool(isSparse: true)
    _ = pool.control(.create(name: "a", size: 1 << 30))
    let disk = pool.open("a")
    for round in 0..<3 {
      let memory = AlignedMemory(bytes: 16 << 18)
      memory.base.initializeMemory(as: UInt8.self, repeating: 9, count: memory.count)
      for i in 0..<16 {
        let isTaken = pool.engine.submit(
          BlockRequest(
            operation: .write, disk: disk, offset: UInt64((2 << 20) + (i << 18)), length: 1 << 18,
            memory: memory.base + (i << 18), token: UInt64(1000 + i)))
        #expect(isTaken)
      }
      pool.run { pool.completions.count == 16 }
      #expect(pool.takeCompletions().allSatisfy { $0.status == .ok })
      if round == 1 { _ = pool.control(.flush) }
    }
  }

  @Test func writesThatWaitForAVanishedVolumeFailInTheEndAndGoOnWhenItIsBack() {
    let pool = MemoryPool()
    _ = pool.control(.create(name: "a", size: 1 << 30))
    let disk = pool.open("a")
    pool.fault = { $0.device == .log ? 0 : 6 }
    var failed: UInt64?
    let began = pool.now
    for i in 0..<1000 where failed == nil {
      let data = pattern(UInt64(i), 65536)
      let status = pool.io(.write, disk, UInt64(i) * 65536, 65536, data: data).status
      if status != .ok {
        #expect(status == .ioError)
        failed = UInt64(i)
      }
    }
    guard let failed else {
      Issue.record("a log without space behind it takes writes without end")
      return
    }
    #expect(failed > 50 && pool.now - began >= 60_000_000_000)
    pool.fault = { _ in 0 }
    #expect(isDone(pool.control(.flush)))
    #expect(
      pool.io(.write, disk, failed * 65536, 65536, data: pattern(failed, 65536)).status == .ok)
    for i in 0...failed {
      #expect(pool.io(.read, disk, i * 65536, 65536).data == pattern(i, 65536))
    }
  }

  @Test func aSequentialReaderFindsWhatComesNextInTheCache() {
    let pool = MemoryPool()
    _ = pool.control(.create(name: "a", size: 1 << 30))
    var disk = pool.open("a")
    for i in 0..<64 {
      let data = pattern(UInt64(i), 65536)
      #expect(pool.io(.write, disk, UInt64(i) * 65536, 65536, data: data).status == .ok)
    }
    #expect(isDone(pool.control(.flush)))
    pool.restart()
    disk = pool.open("a")
    let before = pool.deviceReads
    for i in 0..<1024 {
      let expected = pattern(UInt64(i / 16), 65536)[i % 16 * 4096..<(i % 16 + 1) * 4096]
      #expect(pool.io(.read, disk, UInt64(i) * 4096, 4096).data == Array(expected))
    }
    #expect(pool.deviceReads - before < 100)
    #expect(pool.engine.rarePaths[.readAhead] >= 8)
  }

  private func used(_ pool: MemoryPool) -> UInt64 {
    guard case .status(let status) = pool.control(.status) else { return 0 }
    return status.spaceUsed
  }
}

func isDone(_ reply: ControlReply) -> Bool {
  if case .done = reply { return true }
  Issue.record("\(reply)")
  return false
}
