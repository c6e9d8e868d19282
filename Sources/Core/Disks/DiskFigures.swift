// What is counted for each disk: operations, bytes, and how long they took.

/// The kinds of operations that are measured apart.
package enum OperationKind: Int, CaseIterable, Sendable {
  case read
  /// Zero and trim requests are writes without bytes.
  case write
  case flush
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

  package mutating func record(total: UInt64, queue: UInt64, bytes: UInt64) {
    self.total.record(total)
    self.queue.record(queue)
    service.record(total - queue)
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
  package mutating func record(
    _ kind: OperationKind, total: UInt64, queue: UInt64, bytes: UInt64
  ) {
    switch kind {
    case .read: read.record(total: total, queue: queue, bytes: bytes)
    case .write: write.record(total: total, queue: queue, bytes: bytes)
    case .flush: flush.record(total: total, queue: queue, bytes: bytes)
    }
  }
}
