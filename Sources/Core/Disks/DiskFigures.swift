// What is counted for each disk: operations, bytes, and how long they took.

/// The kinds of operations that are measured apart.
package enum OperationKind: Int, CaseIterable, Sendable {
  case read
  /// Zero and trim requests are writes without bytes.
  case write
  case flush
}

/// The time of one operation in nanoseconds, with the buckets that it counts in.
package struct OperationTime {
  package let total: UInt64
  package let queue: UInt64
  package let service: UInt64
  fileprivate let totalBucket: Int
  fileprivate let queueBucket: Int
  fileprivate let serviceBucket: Int

  /// - Parameter queue: at most the total.
  @inline(__always)
  package init(total: UInt64, queue: UInt64) {
    self.total = total
    self.queue = queue
    service = total - queue
    totalBucket = LatencyHistogram.bucket(of: total)
    queueBucket = LatencyHistogram.bucket(of: queue)
    serviceBucket = LatencyHistogram.bucket(of: service)
  }
}

/// How long operations of one kind took, in nanoseconds. For each operation the total is queue and
/// service.
package struct OperationFigures: Sendable {
  /// From acceptance until the front end was given the outcome.
  package var total = LatencyHistogram()
  /// The part of it in which the operation waited for its turn.
  package var queue = LatencyHistogram()
  /// The part of it in which it was worked on.
  package var service = LatencyHistogram()
  /// Payload of reads and writes.
  package var bytes: UInt64 = 0

  package init() {}

  @inline(__always)
  fileprivate mutating func record(_ time: OperationTime, bytes: UInt64) {
    total.record(time.total, in: time.totalBucket)
    queue.record(time.queue, in: time.queueBucket)
    service.record(time.service, in: time.serviceBucket)
    self.bytes &+= bytes
  }
}

/// One disk's figures, or the pool's; about 7.6 KiB.
package struct DiskFigures: Sendable {
  package var read = OperationFigures()
  package var write = OperationFigures()
  package var flush = OperationFigures()

  package init() {}

  @inline(__always)
  package mutating func record(_ kind: OperationKind, _ time: OperationTime, bytes: UInt64) {
    switch kind {
    case .read: read.record(time, bytes: bytes)
    case .write: write.record(time, bytes: bytes)
    case .flush: flush.record(time, bytes: bytes)
    }
  }
}
