import Core
import Glibc

/// A pool on devices in memory that carry out at once what they are asked for: what is left is the
/// engine's own work.
final class MemoryPool {
  private static let volumeBytes = 4 << 30

  let engine: Engine
  private var devices: [UnsafeMutableRawPointer] = []
  private var now: UInt64 = 1
  private var controlToken: UInt64 = 0
  private var reply: ControlReply?
  private var underWay = 0

  init(logBytes: Int, cacheBytes: Int) {
    var random = SeededRandom(seed: 7)
    let sizes = [logBytes, Self.volumeBytes]
    // Given out by the kernel as they are touched.
    for size in sizes {
      let memory = mmap(
        nil, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
      invariant(memory != MAP_FAILED, "no memory for a device of \(size) bytes")
      devices.append(memory!)
    }
    let members = sizes.map {
      PoolLayout.Member(
        member: UUIDBytes(random: &random), sizeInBlocks: UInt64($0) >> blockShift)
    }
    let layout = PoolLayout(
      pool: UUIDBytes(random: &random), name: "cost", created: 1, log: members[0],
      volumes: [members[1]])
    for write in layout.writes() {
      (devices[Int(write.device.raw)] + Int(write.offset)).copyMemory(
        from: write.memory.base, byteCount: write.memory.count)
    }
    var configuration = PoolConfiguration(
      pool: layout.pool, name: layout.name, log: LogGeometry(label: layout.logLabel)!,
      volumes: [
        VolumeMember(
          member: members[1].member,
          description: DeviceDescription(
            size: UInt64(sizes[1]), isSparseFile: false, canDiscard: false))
      ])
    configuration.cacheBytes = cacheBytes
    engine = Engine(configuration)
    while !engine.isReady { turn() }
  }

  /// One step of the engine; devices take a tenth of a millisecond.
  func turn() {
    invariant(engine.failure == nil, "the engine failed: \(engine.failure ?? "")")
    engine.step(now: now, wallClock: now)
    while let op = engine.nextDeviceOp() {
      performDeviceOp(op)
      engine.complete(DeviceCompletion(token: op.token, error: 0))
    }
    while let completion = engine.nextCompletion() {
      invariant(completion.status == .ok, "a request failed: \(completion.status)")
      underWay -= 1
    }
    while let (_, reply) = engine.nextControlReply() { self.reply = reply }
    now += 100_000
  }

  /// A profile knows this function by its name, to leave out what it takes.
  @inline(never)
  private func performDeviceOp(_ op: DeviceOp) {
    let place = devices[Int(op.device.raw)] + Int(op.offset)
    switch op.kind {
    case .read: memcpy(op.memory!, place, Int(op.length))
    case .write, .writeDurable: memcpy(place, op.memory!, Int(op.length))
    case .flush, .discard, .allocate: break
    }
  }

  @discardableResult
  func control(_ request: ControlRequest) -> ControlReply {
    reply = nil
    controlToken += 1
    engine.control(request, token: controlToken)
    while reply == nil { turn() }
    if case .failed(let error) = reply! { invariantBroken("\(request) failed: \(error)") }
    return reply!
  }

  func open(_ name: String) -> DiskHandle {
    guard case .opened(let handle, _, _) = control(.open(name: name)) else {
      invariantBroken("disk \(name) can't be opened")
    }
    return handle
  }

  /// Submits a request and returns; `drain` waits for all that are under way.
  func submit(_ request: BlockRequest) {
    while !engine.submit(request) { turn() }
    underWay += 1
  }

  func drain() {
    while underWay > 0 { turn() }
  }
}
