import CURing
import Core
import Glibc

/// The system refused a ring; `description` is a plain sentence with what to do.
package struct RingError: Error, Equatable, Sendable, CustomStringConvertible {
  package let errno: Int32

  package var description: String {
    switch errno {
    case EPERM:
      "io_uring is forbidden on this host; allow it (sysctl kernel.io_uring_disabled=0, or the "
        + "container's seccomp profile)"
    case ENOSYS: "this kernel has no io_uring; Sluice needs Linux 5.15 or later"
    case ENOMEM: "there is no memory for an io_uring; raise the limit of locked memory (ulimit -l)"
    default: "io_uring can't be set up: \(errorText(errno))"
    }
  }
}

/// One io_uring: prepared entries out, completions in. Submits by itself only when its submission
/// queue is full. One thread, also for creation.
struct Ring: ~Copyable {
  private static let batch = 256

  private let ring: UnsafeMutablePointer<io_uring>
  private let reaped: UnsafeMutablePointer<sluice_completion>
  private var reapedCount = 0
  private var reapedNext = 0
  /// Entries submitted or prepared whose completions have not been taken.
  private(set) var underWay = 0

  /// `completions` is more than can ever be under way, so that none overflows.
  init(entries: UInt32, completions: UInt32) throws(RingError) {
    ring = .allocate(capacity: 1)
    reaped = .allocate(capacity: Self.batch)
    ring.initialize(to: io_uring())
    let result = sluice_ring_init(ring, entries, completions)
    guard result == 0 else {
      ring.deallocate()
      reaped.deallocate()
      throw RingError(errno: -result)
    }
  }

  deinit {
    io_uring_queue_exit(ring)
    ring.deallocate()
    reaped.deallocate()
  }

  /// Whether an entry may have no completion when it succeeds (Linux 5.17).
  var hasQuietEntries: Bool { sluice_ring_has_quiet(ring) != 0 }

  /// Whether the kernel has taken every entry.
  var isSubmitted: Bool { sluice_ring_is_submitted(ring) != 0 }

  /// An entry has ended that has no completion.
  mutating func endedQuietly() { underWay -= 1 }

  /// An entry to prepare; a full queue is submitted first.
  mutating func entry() -> UnsafeMutablePointer<io_uring_sqe> {
    underWay += 1
    var tries = 0
    while true {
      if let entry = sluice_ring_entry(ring) { return entry }
      let result = sluice_ring_submit(ring)
      tries += 1
      invariant(
        tries < 100_000
          && (result >= 0 || result == -EINTR || result == -EAGAIN || result == -EBUSY),
        "the ring takes no submission: \(errorText(-result))")
    }
  }

  /// Submits; waits at most `nanoseconds` for a completion when none is there (0: polls).
  mutating func enter(waiting nanoseconds: UInt64) {
    let ready = reapedNext < reapedCount || sluice_ring_ready(ring) > 0
    let wait = nanoseconds > 0 && !ready
    let limit = nanoseconds >= UInt64(Int64.max) ? Int64.max : Int64(nanoseconds)
    let result = sluice_ring_enter(ring, wait ? 1 : 0, limit)
    switch -result {
    case 0, ETIME, EINTR, EAGAIN, EBUSY: break
    default: invariantBroken("the ring fails: \(errorText(-result))")
    }
  }

  /// The next completion, until nil.
  @inline(__always)
  mutating func next() -> sluice_completion? {
    if reapedNext == reapedCount {
      reapedCount = Int(sluice_ring_reap(ring, reaped, UInt32(Self.batch)))
      reapedNext = 0
      if reapedCount == 0 { return nil }
    }
    defer { reapedNext += 1 }
    underWay -= 1
    return reaped[reapedNext]
  }
}
