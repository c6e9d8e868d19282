import Glibc
import Synchronization

/// Seconds on the clock that never goes back, of which only differences mean anything.
func monotonicSeconds() -> Double {
  var time = timespec()
  clock_gettime(CLOCK_MONOTONIC, &time)
  return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
}

/// SIGINT, SIGTERM and SIGHUP as something that ends waiting, and not the process. One a process,
/// and for ever: its handlers and its pipe stay.
final class Interrupt: Sendable {
  private static let isReceived = Atomic(false)
  private static let writeEnd = Atomic<Int32>(-1)

  /// Readable from the first signal or `wake` on.
  let descriptor: Int32

  init() throws {
    var ends: [Int32] = [-1, -1]
    guard pipe(&ends) == 0 else {
      throw CommandError("no pipe could be made: \(String(cString: strerror(errno)))")
    }
    for end in ends { _ = fcntl(end, F_SETFL, O_NONBLOCK) }
    descriptor = ends[0]
    // Also makes both globals, so that the handler need not.
    Self.isReceived.store(false, ordering: .releasing)
    Self.writeEnd.store(ends[1], ordering: .releasing)
    for number in [SIGINT, SIGTERM, SIGHUP] {
      var action = sigaction()
      action.__sigaction_handler.sa_handler = { _ in
        Interrupt.isReceived.store(true, ordering: .releasing)
        Interrupt.write()
      }
      sigaction(number, &action, nil)
    }
  }

  var isReceived: Bool { Self.isReceived.load(ordering: .acquiring) }

  /// Waits until a signal or `wake` comes, or came since the last time; or until the deadline.
  func wait(until deadline: Double) {
    let left = deadline - monotonicSeconds()
    var polled = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
    if left > 0, !isReceived { _ = poll(&polled, 1, Int32(min(left, 3600) * 1000) + 1) }
    forgetWakes()
  }

  /// Makes the descriptor unreadable.
  func forgetWakes() {
    var bytes: UInt64 = 0
    while read(descriptor, &bytes, 8) == 8 {}
  }

  /// Ends a `poll` on the descriptor, from any thread.
  func wake() { Self.write() }

  private static func write() {
    var byte: UInt8 = 1
    _ = Glibc.write(writeEnd.load(ordering: .acquiring), &byte, 1)
  }
}
