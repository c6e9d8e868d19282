import Core
import Glibc
import Synchronization

/// What a test sets and reads while the loop's thread runs the engine.
final class EngineControls: Sendable {
  /// While true, requests are taken and not completed.
  let holds = Atomic<Bool>(false)
  /// Requests that the engine takes at a time.
  let slots = Atomic<Int>(1 << 20)
  let outstanding = Atomic<Int>(0)
  let refusals = Atomic<Int>(0)
  let openDisks = Atomic<Int>(0)
  let fails = Atomic<Bool>(false)
}

/// One disk of 64 MiB in memory, under every name; completes in `step`.
final class MemoryEngine: BlockEngine {
  static let diskSize = 64 << 20

  private let controls: EngineControls
  private let disk = UnsafeMutableRawPointer.allocate(byteCount: diskSize, alignment: blockSize)
  private var taken: [BlockRequest] = []
  private var completions: [BlockCompletion] = []
  private var replies: [(token: UInt64, reply: ControlReply)] = []
  private(set) var isStopped = false

  init(_ controls: EngineControls) {
    self.controls = controls
    disk.initializeMemory(as: UInt8.self, repeating: 0, count: Self.diskSize)
  }

  deinit { disk.deallocate() }

  var wakeup: UInt64 { taken.isEmpty ? .max : 0 }
  var isReady: Bool { true }
  var failure: String? {
    controls.fails.load(ordering: .relaxed) ? "the test's engine is broken" : nil
  }

  func submit(_ request: BlockRequest) -> Bool {
    if taken.count >= controls.slots.load(ordering: .relaxed) {
      controls.refusals.add(1, ordering: .relaxed)
      return false
    }
    taken.append(request)
    controls.outstanding.add(1, ordering: .relaxed)
    return true
  }

  func control(_ request: ControlRequest, token: UInt64) {
    var reply = ControlReply.done
    switch request {
    case .open(let name) where name == "none": reply = .failed(.noSuchDisk(name))
    case .open:
      controls.openDisks.add(1, ordering: .relaxed)
      reply = .opened(
        DiskHandle(place: 3, generation: 5), size: UInt64(Self.diskSize), readOnly: false)
    case .close: controls.openDisks.subtract(1, ordering: .relaxed)
    case .show(let name): reply = .failed(.noSuchDisk(name))
    case .status: reply = .status(PoolStatus())
    case .stop:
      controls.holds.store(false, ordering: .relaxed)
      execute()
      isStopped = true
    default: break
    }
    replies.append((token, reply))
  }

  func complete(_ completion: DeviceCompletion) {}

  func step(now: UInt64, wallClock: UInt64) {
    if !controls.holds.load(ordering: .relaxed) { execute() }
  }

  private func execute() {
    for request in taken {
      if let memory = request.memory {
        let payload = memory + Int(request.offset) % blockSize
        let place = disk + Int(request.offset)
        if request.operation == .read { memcpy(payload, place, Int(request.length)) }
        if request.operation == .write { memcpy(place, payload, Int(request.length)) }
      }
      completions.append(BlockCompletion(token: request.token, status: .ok))
    }
    controls.outstanding.subtract(taken.count, ordering: .relaxed)
    taken.removeAll(keepingCapacity: true)
  }

  func nextDeviceOp() -> DeviceOp? { nil }
  func nextCompletion() -> BlockCompletion? { completions.popLast() }
  func nextControlReply() -> (token: UInt64, reply: ControlReply)? { replies.popLast() }
}
