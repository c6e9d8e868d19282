import DeviceIO
import Glibc
import Synchronization

/// SIGTERM and SIGINT as a clean stop. A second one ends the process at once, which the log makes
/// safe. A handler and not a signalfd: it works whatever signals the other threads have blocked.
package enum StopSignals {
  private static let descriptor = Atomic<Int32>(-1)
  private static let received = Atomic<Bool>(false)

  /// Whether a signal has come since `install`.
  package static var isReceived: Bool { received.load(ordering: .acquiring) }

  /// From now on the signals wake `waker`, which is kept for ever.
  package static func install(waking waker: Waker) {
    _ = Unmanaged.passRetained(waker)
    // Also makes both globals, so that the handler need not.
    received.store(false, ordering: .releasing)
    descriptor.store(waker.signalDescriptor, ordering: .releasing)
    for number in [SIGTERM, SIGINT] {
      var action = sigaction()
      action.__sigaction_handler.sa_handler = { _ in
        StopSignals.received.store(true, ordering: .releasing)
        Waker.wake(StopSignals.descriptor.load(ordering: .acquiring))
      }
      action.sa_flags = SA_RESTART | Int32(bitPattern: UInt32(SA_RESETHAND))
      sigaction(number, &action, nil)
    }
  }
}

/// Lets this process have as many descriptors as its hard limit allows; returns the limit.
@discardableResult
package func raiseDescriptorLimit() -> Int {
  var limit = rlimit()
  guard getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit) == 0 else { return 1024 }
  limit.rlim_cur = limit.rlim_max
  _ = setrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
  _ = getrlimit(__rlimit_resource_t(RLIMIT_NOFILE.rawValue), &limit)
  return Int(clamping: limit.rlim_cur)
}
