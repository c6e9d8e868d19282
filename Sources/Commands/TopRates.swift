// What happened between two looks at a pool: rates, and quantiles of just that time.

import ControlAPI
import Core

/// The figures of a pool at one moment.
package struct TopSample: Sendable {
  package var status: Status
  /// By id.
  package var disks: [String: DiskTimes]

  package init(status: Status, disks: [DiskTimes]) {
    self.status = status
    // A list that is read page by page may name a disk twice.
    self.disks = Dictionary(disks.map { ($0.id, $0) }, uniquingKeysWith: { _, later in later })
  }
}

/// Operations of one kind on one disk, or on all, in an interval.
package struct OperationRates: Codable, Equatable, Sendable {
  package var perSecond: Double
  package var bytesPerSecond: Double
  package var p50: Double
  package var p99: Double
  package var mean: Double
  /// The part of their time that they waited in queues, 0...1.
  package var queueShare: Double

  enum CodingKeys: String, CodingKey {
    case perSecond = "per_second"
    case bytesPerSecond = "bytes_per_second"
    case p50 = "p50_us"
    case p99 = "p99_us"
    case mean = "mean_us"
    case queueShare = "queue_share"
  }
}

/// A disk's load in an interval.
package struct DiskRates: Codable, Equatable, Sendable {
  package var name: String
  package var id: String
  package var connections: Int
  package var read: OperationRates
  package var write: OperationRates
  package var flush: OperationRates
  /// Of all its operations.
  package var queueShare: Double

  enum CodingKeys: String, CodingKey {
    case name, id, connections, read, write, flush
    case queueShare = "queue_share"
  }

  package var operationsPerSecond: Double { read.perSecond + write.perSecond + flush.perSecond }
}

/// A pool's load in an interval.
package struct PoolRates: Codable, Equatable, Sendable {
  /// When it ended.
  package var at: String
  package var seconds: Double
  package var pool: String
  package var state: Status.State
  package var log: Status.Log
  /// `log.used` as a part of `log.size`, 0...1.
  package var logFill: Double
  package var destage: Status.Destage
  package var destageBytesPerSecond: Double
  /// Sums over the disks; no quantiles.
  package var readsPerSecond: Double
  package var readBytesPerSecond: Double
  package var writesPerSecond: Double
  package var writeBytesPerSecond: Double
  package var flushesPerSecond: Double
  /// Those that had an operation, the busiest first.
  package var disks: [DiskRates]
  package var slowest: [SlowRequest]

  enum CodingKeys: String, CodingKey {
    case at, seconds, pool, state, log
    case logFill = "log_fill"
    case destage
    case destageBytesPerSecond = "destage_bytes_per_second"
    case readsPerSecond = "reads_per_second"
    case readBytesPerSecond = "read_bytes_per_second"
    case writesPerSecond = "writes_per_second"
    case writeBytesPerSecond = "write_bytes_per_second"
    case flushesPerSecond = "flushes_per_second"
    case disks, slowest
  }

  /// - Parameter at: when `after` was taken.
  package init(from before: TopSample, to after: TopSample, at: String) {
    let (then, now) = (before.status, after.status)
    self.at = at
    // A daemon that was started anew has done all of it since.
    let isSame = now.uptimeSeconds >= then.uptimeSeconds
    seconds = max(0.001, isSame ? now.uptimeSeconds - then.uptimeSeconds : now.uptimeSeconds)
    pool = now.pool
    state = now.state
    log = now.log
    logFill = log.size > 0 ? Double(log.used) / Double(log.size) : 0
    destage = now.destage
    let destaged = isSame ? then.destage.bytes : 0
    destageBytesPerSecond = Double(now.destage.bytes &- min(destaged, now.destage.bytes)) / seconds
    let poolSeconds = seconds
    disks = after.disks.values
      .map { DiskRates(from: isSame ? before.disks[$0.id] : nil, to: $0, seconds: poolSeconds) }
      .filter { $0.operationsPerSecond > 0 }
      .sorted { ($1.operationsPerSecond, $0.name) < ($0.operationsPerSecond, $1.name) }
    readsPerSecond = disks.map(\.read.perSecond).reduce(0, +)
    readBytesPerSecond = disks.map(\.read.bytesPerSecond).reduce(0, +)
    writesPerSecond = disks.map(\.write.perSecond).reduce(0, +)
    writeBytesPerSecond = disks.map(\.write.bytesPerSecond).reduce(0, +)
    flushesPerSecond = disks.map(\.flush.perSecond).reduce(0, +)
    slowest = now.slowestRecently
  }
}

extension DiskRates {
  /// - Parameter seconds: the interval, for a disk that had no figures before.
  fileprivate init(from before: DiskTimes?, to after: DiskTimes, seconds: Double) {
    // Figures that were begun anew are all of this interval.
    let former = before.flatMap { after.follows($0) ? $0 : nil }
    let seconds =
      former.map { max(1e-3, Double(after.uptimeMicroseconds - $0.uptimeMicroseconds) / 1e6) }
      ?? seconds
    name = after.name
    id = after.id
    connections = after.connections
    read = OperationRates(from: former?.read, to: after.read, seconds)
    write = OperationRates(from: former?.write, to: after.write, seconds)
    flush = OperationRates(from: former?.flush, to: after.flush, seconds)
    var (queued, total) = (0.0, 0.0)
    for kind in [\DiskTimes.read, \.write, \.flush] {
      queued += after[keyPath: kind].queue.sum - (former?[keyPath: kind].queue.sum ?? 0)
      total += after[keyPath: kind].total.sum - (former?[keyPath: kind].total.sum ?? 0)
    }
    queueShare = share(queued, of: total)
  }
}

extension DiskTimes {
  fileprivate func follows(_ before: DiskTimes) -> Bool {
    uptimeMicroseconds > before.uptimeMicroseconds && read.count >= before.read.count
      && write.count >= before.write.count && flush.count >= before.flush.count
  }
}

extension OperationRates {
  fileprivate init(from before: DiskOperations?, to after: DiskOperations, _ seconds: Double) {
    let count = after.count - (before?.count ?? 0)
    let bytes = after.bytes &- min(before?.bytes ?? 0, after.bytes)
    let distribution = LatencyHistogram(after)
    let since = before.flatMap { distribution.since(LatencyHistogram($0)) } ?? distribution
    let total = after.total.sum - (before?.total.sum ?? 0)
    self.init(
      perSecond: Double(count) / seconds, bytesPerSecond: Double(bytes) / seconds,
      p50: count == 0 ? 0 : microseconds(nanoseconds: since.quantile(0.5)),
      p99: count == 0 ? 0 : microseconds(nanoseconds: since.quantile(0.99)),
      mean: count == 0 ? 0 : max(0, (total / Double(count) * 10).rounded() / 10),
      queueShare: share(after.queue.sum - (before?.queue.sum ?? 0), of: total))
  }
}

extension LatencyHistogram {
  fileprivate init(_ operations: DiskOperations) {
    self.init(
      buckets: operations.buckets.lazy.filter { $0.count == 2 }.map {
        (from: $0[0], count: UInt32(clamping: $0[1]))
      },
      count: operations.count, sum: nanoseconds(operations.total.sum),
      max: nanoseconds(operations.total.max))
  }
}

private func nanoseconds(_ microseconds: Double) -> UInt64 {
  UInt64(max(0, min(microseconds, 1e15)) * 1000)
}

private func share(_ part: Double, of whole: Double) -> Double {
  whole > 0 ? (max(0, min(1, part / whole)) * 1000).rounded() / 1000 : 0
}
