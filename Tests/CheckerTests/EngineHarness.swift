import Core

@testable import Checker

/// Runs the real engine over devices in memory, so that the checker is shown what the engine
/// writes. Power cuts lose some of what was written and not flushed; everything is drawn from a
/// seed.
final class EngineHarness {
  private struct Unflushed {
    var offset: UInt64
    var before: [UInt8]
  }

  let log: MemoryDevice
  var volumes: [MemoryDevice]
  private let layout: PoolLayout
  /// When deltas are folded.
  private let deltaNodes: Int
  private(set) var engine: Engine
  private var waiting: [DeviceOp] = []
  private var unflushed: [[Unflushed]]
  private var now: UInt64 = 1
  private(set) var random: SeededRandom
  private var replies: [UInt64: ControlReply] = [:]
  private var done: [UInt64: BlockCompletion] = [:]
  private var token: UInt64 = 0
  private let buffer = AlignedMemory(bytes: maximumPiece + blockSize)

  init(
    seed: UInt64, logBlocks: Int = 4096, volumeBlocks: [Int] = [20_000, 20_000],
    deltaNodes: Int = 64
  ) {
    self.deltaNodes = deltaNodes
    random = SeededRandom(seed: seed)
    log = MemoryDevice(blocks: logBlocks)
    volumes = volumeBlocks.map { MemoryDevice(blocks: $0) }
    layout = PoolLayout(
      pool: UUIDBytes(random: &random), name: "harness", created: 1,
      log: .init(member: UUIDBytes(random: &random), sizeInBlocks: UInt64(logBlocks)),
      volumes: volumeBlocks.enumerated().map {
        .init(member: UUIDBytes(high: 7, low: UInt64($0)), sizeInBlocks: UInt64($1))
      })
    unflushed = Array(repeating: [], count: volumeBlocks.count + 1)
    engine = Self.engine(layout, deltaNodes)
    for write in layout.writes() {
      device(write.device).put(
        UnsafeRawBufferPointer(start: write.memory.base, count: write.memory.count),
        at: write.offset)
    }
  }

  private static func engine(_ layout: PoolLayout, _ deltaNodes: Int) -> Engine {
    var configuration = PoolConfiguration(
      pool: layout.pool, name: layout.name, log: LogGeometry(label: layout.logLabel)!,
      volumes: layout.volumes.map {
        VolumeMember(
          member: $0.member,
          description: DeviceDescription(
            size: $0.sizeInBlocks << blockShift, isSparseFile: false, canDiscard: true))
      })
    configuration.cacheBytes = 16 << 20
    configuration.deltaNodes = deltaNodes
    return Engine(configuration)
  }

  private func device(_ index: DeviceIndex) -> MemoryDevice {
    index == .log ? log : volumes[Int(index.raw) - 1]
  }

  // MARK: Running

  /// One turn of the loop; some of the waiting device operations are done, in any order.
  func turn() {
    engine.step(now: now, wallClock: now)
    now += 1_000_000
    while let op = engine.nextDeviceOp() { waiting.append(op) }
    for _ in 0..<min(waiting.count, 1 + Int(random.below(16))) {
      let op = waiting.remove(at: Int(random.below(UInt64(waiting.count))))
      run(op)
      engine.complete(DeviceCompletion(token: op.token, error: 0))
    }
    while let (token, reply) = engine.nextControlReply() { replies[token] = reply }
    while let completion = engine.nextCompletion() { done[completion.token] = completion }
  }

  private func run(_ op: DeviceOp) {
    let target = device(op.device)
    let range = Int(op.offset)..<Int(op.offset + op.length)
    switch op.kind {
    case .read:
      target.bytes.withUnsafeBytes {
        op.memory!.copyMemory(from: $0.baseAddress! + range.lowerBound, byteCount: range.count)
      }
    case .write, .writeDurable:
      if op.kind == .write {
        unflushed[Int(op.device.raw)].append(
          Unflushed(offset: op.offset, before: Array(target.bytes[range])))
      }
      target.put(UnsafeRawBufferPointer(start: op.memory, count: range.count), at: op.offset)
    case .flush: unflushed[Int(op.device.raw)].removeAll()
    case .discard: target.put([UInt8](repeating: 0xDD, count: range.count), at: op.offset)
    case .allocate: break
    }
  }

  /// Turns until `condition` holds; false when the engine gives up or makes no progress.
  func run(until condition: () -> Bool) -> Bool {
    for _ in 0..<200_000 {
      if condition() { return true }
      if engine.failure != nil { return false }
      turn()
    }
    return false
  }

  func start() -> Bool { run { self.engine.isReady } }

  /// Cuts the power: operations under way are done, torn, or not done; of what was not flushed
  /// some is lost. A new engine stands in the place of the old.
  func cutPower() {
    for op in waiting where op.kind == .write || op.kind == .writeDurable {
      guard random.oneIn(2) else { continue }
      var part = op
      part.length = random.below(op.length / UInt64(sectorSize) + 1) * UInt64(sectorSize)
      part.kind = .writeDurable
      if part.length > 0 { run(part) }
    }
    waiting = []
    for d in unflushed.indices {
      for write in unflushed[d].reversed() where random.oneIn(2) {
        device(DeviceIndex(UInt16(d))).put(write.before, at: write.offset)
      }
      unflushed[d] = []
    }
    replies = [:]
    done = [:]
    engine = Self.engine(layout, deltaNodes)
    underWay = []
  }

  // MARK: Requests

  func control(_ request: ControlRequest) -> ControlReply? {
    token += 1
    let mine = token
    engine.control(request, token: mine)
    _ = run { self.replies[mine] != nil }
    return replies[mine]
  }

  func open(_ name: String) -> DiskHandle? {
    guard case .opened(let handle, _, _) = control(.open(name: name)) else { return nil }
    return handle
  }

  /// Writes `blocks` blocks of random content; returns without waiting for the end when `async`.
  @discardableResult
  func request(
    _ operation: BlockOperation, _ disk: DiskHandle, block: UInt64, blocks: UInt64,
    flags: BlockFlags = []
  ) -> BlockStatus? {
    let stamp = random.next()
    for i in 0..<min(blocks, UInt64(maximumPiece / blockSize)) {
      (buffer.base + Int(i) * blockSize).copyMemory(from: content(stamp &+ i), byteCount: blockSize)
    }
    token += 1
    let mine = token
    let request = BlockRequest(
      operation: operation, flags: flags, disk: disk, offset: block << blockShift,
      length: blocks << blockShift, memory: buffer.base, token: mine)
    guard run(until: { self.engine.submit(request) }), run(until: { self.done[mine] != nil }) else {
      return nil
    }
    return done[mine]?.status
  }

  /// Submits some writes and a few turns, so that a power cut finds work under way.
  func leaveUnderWay(_ disk: DiskHandle) {
    for _ in 0..<random.below(12) {
      let blocks = 1 + random.below(3)
      let memory = AlignedMemory(bytes: maximumPiece + blockSize)
      underWay.append(memory)
      memory.base.copyMemory(from: content(random.next()), byteCount: blockSize)
      token += 1
      _ = engine.submit(
        BlockRequest(
          operation: .write, disk: disk, offset: random.below(3000) << blockShift,
          length: blocks << blockShift, memory: memory.base, token: token))
      if random.oneIn(2) { turn() }
    }
    for _ in 0..<random.below(6) { turn() }
  }
  private var underWay: [AlignedMemory] = []

  func check(_ options: CheckOptions = CheckOptions()) -> CheckReport {
    Checker(log: log, volumes: volumes, options: options).run()
  }
}
