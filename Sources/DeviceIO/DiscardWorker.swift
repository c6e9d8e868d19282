import CURing
import Core
import Glibc
import Synchronization

/// A thread that discards ranges of block devices: their ioctl blocks, and the ring has no request
/// for it that older kernels know. One discard at a time; results are fetched by the ring's thread.
final class DiscardWorker: Sendable {
  struct Job: Sendable {
    let file: DeviceFile
    let offset: UInt64
    let length: UInt64
    let slot: Int
  }

  private struct State {
    var jobs: [Job] = []
    var results: [(slot: Int, error: Int32)] = []
    var isStopping = false
  }

  private let state = Mutex(State())
  /// Counts jobs (and the stop); the thread blocks on it.
  private let arrivals: Waker
  private let ring: Waker

  /// Starts the thread; `ring` is woken for each result.
  init(waking ring: Waker) throws(RingError) {
    self.ring = ring
    arrivals = try Waker()
    var thread = pthread_t()
    let context = Unmanaged.passRetained(self)
    let failed = pthread_create(
      &thread, nil,
      { raw in
        guard let raw else { return nil }
        Unmanaged<DiscardWorker>.fromOpaque(raw).takeRetainedValue().run()
        return nil
      }, context.toOpaque())
    guard failed == 0 else {
      context.release()
      throw RingError(errno: failed)
    }
    pthread_detach(thread)
  }

  func submit(_ job: Job) {
    state.withLock { $0.jobs.append(job) }
    arrivals.wake()
  }

  func stop() {
    state.withLock { $0.isStopping = true }
    arrivals.wake()
  }

  /// The next finished job, until nil.
  func nextResult() -> (slot: Int, error: Int32)? { state.withLock { $0.results.popLast() } }

  private func run() {
    while true {
      let (job, isStopping) = state.withLock { s in
        (s.jobs.isEmpty ? nil : s.jobs.removeFirst(), s.isStopping)
      }
      if let job {
        let error = sluice_block_device_discard(job.file.descriptor, job.offset, job.length)
        state.withLock { $0.results.append((job.slot, error)) }
        ring.wake()
      } else if isStopping {
        return
      } else {
        var count: UInt64 = 0
        _ = read(arrivals.descriptor, &count, 8)
      }
    }
  }
}
