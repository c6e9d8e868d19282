import CURing
import Glibc

/// Wakes the ring's thread from any other thread, and from a signal handler.
package final class Waker: Sendable {
  /// An eventfd that the ring reads.
  let descriptor: Int32

  init() throws(RingError) {
    descriptor = sluice_event_descriptor()
    guard descriptor >= 0 else { throw RingError(errno: -descriptor) }
  }

  deinit { close(descriptor) }

  package func wake() { Self.wake(descriptor) }

  /// For signal handlers, which can't hold the object.
  package var signalDescriptor: Int32 { descriptor }

  /// Async-signal-safe; keeps errno.
  package static func wake(_ descriptor: Int32) {
    let saved = errno
    var one: UInt64 = 1
    _ = write(descriptor, &one, 8)
    errno = saved
  }
}
