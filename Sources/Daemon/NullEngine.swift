import Core
import Glibc

/// An engine that stores nothing: every request is acknowledged at once, reads return zeros, and
/// every name is a disk of 16 GiB. The ceiling that benchmarks compare with.
package final class NullEngine: BlockEngine {
  package static let diskSize: UInt64 = 16 << 30

  private var completions = RingQueue<BlockCompletion>(capacity: 256)
  private var replies = RingQueue<(token: UInt64, reply: ControlReply)>(capacity: 16)
  private var status = PoolStatus()
  package private(set) var isStopped = false

  package init() {}

  package var wakeup: UInt64 { .max }
  package var isReady: Bool { true }
  package var failure: String? { nil }

  package func submit(_ request: BlockRequest) -> Bool {
    var count: UInt32 = 0
    let end = request.offset &+ request.length
    guard end >= request.offset, end <= Self.diskSize else {
      completions.push(BlockCompletion(token: request.token, status: .invalid))
      return true
    }
    switch request.operation {
    case .read:
      status.reads += 1
      status.readBytes += request.length
      if let memory = request.memory {
        memset(memory + Int(request.offset % UInt64(blockSize)), 0, Int(request.length))
      }
    case .write:
      status.writes += 1
      status.writtenBytes += request.length
    case .status:
      request.memory?.storeBytes(
        of: ExtentStatus(length: request.length, isHole: true), as: ExtentStatus.self)
      count = 1
    case .zero, .trim, .flush: break
    }
    completions.push(BlockCompletion(token: request.token, status: .ok, count: count))
    return true
  }

  package func control(_ request: ControlRequest, token: UInt64) {
    replies.push((token, reply(to: request)))
  }

  private func reply(to request: ControlRequest) -> ControlReply {
    switch request {
    case .open:
      return .opened(
        DiskHandle(place: 1, generation: 1), size: Self.diskSize, readOnly: false)
    case .list: return .disks([], next: nil)
    case .show(let name): return .failed(.noSuchDisk(name))
    case .status:
      var figures = status
      figures.state = .online
      return .status(figures)
    case .scrub, .scrubProgress: return .scrub(ScrubReport())
    case .latency: return .latency([], next: nil)
    case .stop:
      isStopped = true
      return .done
    default: return .done
    }
  }

  package func complete(_ completion: DeviceCompletion) {
    invariantBroken("a completion for an engine that asks nothing of devices")
  }

  package func step(now: UInt64, wallClock: UInt64) {}
  package func nextDeviceOp() -> DeviceOp? { nil }
  package func nextCompletion() -> BlockCompletion? { completions.pop() }
  package func nextControlReply() -> (token: UInt64, reply: ControlReply)? { replies.pop() }
}
