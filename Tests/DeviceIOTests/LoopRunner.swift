import Core
import Daemon
import DeviceIO
import Glibc
import Synchronization

/// A daemon's loop on a thread of its own, around a `MemoryEngine`, on a UNIX socket and a TCP port.
final class LoopRunner: Sendable {
  typealias Limits = EventLoop<MemoryEngine>.Limits
  typealias Outcome = EventLoop<MemoryEngine>.Outcome

  private struct State {
    var mailbox: Mailbox?
    var isReady = false
    var outcome: Outcome?
    /// Measured when the loop's run had ended.
    var memoryAtEnd = -1
  }

  let controls = EngineControls()
  let socketPath: String
  let port: UInt16
  private let state = Mutex(State())
  private let limits: Limits
  private let listeners: Mutex<[Listener]>

  init(limits wished: Limits = Limits()) throws {
    var limits = wished
    if limits.payloadMemory == Limits().payloadMemory { limits.payloadMemory = 8 << 20 }
    self.limits = limits
    socketPath = "/tmp/sluice-test-\(getpid())-\(monotonicNanoseconds()).sock"
    let tcp = try Listener.listen(on: .tcp(host: "127.0.0.1", port: 0))
    guard case .tcp(_, let port) = tcp[0].address else { throw ListenError.badAddress("") }
    self.port = port
    listeners = Mutex(tcp + (try Listener.listen(on: .unix(path: socketPath))))
    var thread = pthread_t()
    let context = Unmanaged.passRetained(self).toOpaque()
    pthread_create(
      &thread, nil,
      { raw in
        if let raw { Unmanaged<LoopRunner>.fromOpaque(raw).takeRetainedValue().serve() }
        return nil
      }, context)
    pthread_detach(thread)
    wait { $0.isReady }
  }

  private func serve() {
    guard let reactor = try? Reactor() else { return }
    if limits.obeysSignals { StopSignals.install(waking: reactor.waker) }
    let taken = listeners.withLock { l in
      defer { l = [] }
      return l
    }
    let loop = EventLoop(
      engine: MemoryEngine(controls), reactor: reactor, listeners: taken, limits: limits
    ) { [self] in state.withLock { $0.isReady = true } }
    state.withLock { $0.mailbox = loop.mailbox }
    let outcome = loop.run()
    let memory = loop.payloadMemoryInUse
    state.withLock {
      $0.memoryAtEnd = memory
      $0.outcome = outcome
    }
  }

  private func wait(_ condition: (State) -> Bool) {
    while !state.withLock({ condition($0) }) { usleep(200) }
  }

  var mailbox: Mailbox? { state.withLock { $0.mailbox } }

  /// Waits for the end of the loop.
  func outcome() -> Outcome? {
    wait { $0.outcome != nil }
    return state.withLock { $0.outcome }
  }

  /// Payload memory that was in use when the loop ended; 0 when nothing leaks.
  var memoryAtEnd: Int { state.withLock { $0.memoryAtEnd } }

  /// A clean stop; the outcome.
  func stop() -> Outcome? {
    mailbox?.send(.stop) { _ in }
    return outcome()
  }

  /// Waits until `condition` holds; false after `seconds`.
  func eventually(seconds: Int = 20, _ condition: () -> Bool) -> Bool {
    let deadline = monotonicNanoseconds() + UInt64(seconds) * 1_000_000_000
    while !condition() {
      if monotonicNanoseconds() > deadline { return false }
      usleep(500)
    }
    return true
  }
}
