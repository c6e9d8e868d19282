// How long operations take, as the API shows it. Times are microseconds with one decimal, counted
// in buckets: quantiles are at most 6.25% off, or 0.3 µs where that is more; `sum_us`, `mean_us` and
// `max_us` are exact. Zero and trim requests are writes without bytes.

/// Nanoseconds as microseconds with one decimal.
package func microseconds(nanoseconds: UInt64) -> Double { Double(tenths(nanoseconds)) / 10 }

/// Tenths of a microsecond.
private func tenths(_ nanoseconds: UInt64) -> UInt64 { nanoseconds / 100 }

/// A distribution of durations.
package struct Durations: Codable, Equatable, Sendable {
  package var sum: Double
  package var mean: Double
  package var p50: Double
  package var p99: Double
  package var p999: Double
  package var max: Double

  enum CodingKeys: String, CodingKey {
    case sum = "sum_us"
    case mean = "mean_us"
    case p50 = "p50_us"
    case p99 = "p99_us"
    case p999 = "p999_us"
    case max = "max_us"
  }

  /// All in microseconds.
  package init(sum: Double, mean: Double, p50: Double, p99: Double, p999: Double, max: Double) {
    self.sum = sum
    self.mean = mean
    self.p50 = p50
    self.p99 = p99
    self.p999 = p999
    self.max = max
  }

  fileprivate func appendJSON(to bytes: inout [UInt8]) {
    bytes.append(key: #"{"max_us":"#, tenths: max)
    bytes.append(key: #","mean_us":"#, tenths: mean)
    bytes.append(key: #","p50_us":"#, tenths: p50)
    bytes.append(key: #","p999_us":"#, tenths: p999)
    bytes.append(key: #","p99_us":"#, tenths: p99)
    bytes.append(key: #","sum_us":"#, tenths: sum)
    bytes.append(UInt8(ascii: "}"))
  }
}

/// How long operations of one kind took; for each of them `total` is `queue` and `service`.
package struct OperationTimes: Codable, Equatable, Sendable {
  package var count: UInt64
  /// From acceptance to the outcome.
  package var total: Durations
  /// Waiting for others: for room in the log or under back-pressure, for a write of the same blocks,
  /// for space, for the frames ahead.
  package var queue: Durations
  /// Being worked on.
  package var service: Durations

  package init(count: UInt64, total: Durations, queue: Durations, service: Durations) {
    self.count = count
    self.total = total
    self.queue = queue
    self.service = service
  }
}

/// The whole pool's times since start.
package struct PoolTimes: Codable, Equatable, Sendable {
  package var read: OperationTimes
  package var write: OperationTimes
  package var flush: OperationTimes

  package init(read: OperationTimes, write: OperationTimes, flush: OperationTimes) {
    self.read = read
    self.write = write
    self.flush = flush
  }
}

/// One of the slowest operations.
package struct SlowRequest: Codable, Equatable, Sendable {
  package var disk: String
  package var id: String
  /// `read`, `write`, `zero`, `trim` or `flush`.
  package var operation: String
  /// In bytes, as `length`.
  package var offset: UInt64
  package var length: UInt64
  /// `ok`, `io_error` or `no_space`.
  package var status: String
  /// When it ended; RFC 3339, UTC.
  package var at: String
  package var total: Double
  package var queue: Double
  package var service: Double
  /// Where the time went, in microseconds: what is not there took none. Queue: `turn`, `admission`,
  /// `space`, `gather`. Service: `metadata`, `data`, `home`, `log`, `reply`.
  package var stages: [String: Double]

  enum CodingKeys: String, CodingKey {
    case disk, id, operation, offset, length, status, at
    case total = "total_us"
    case queue = "queue_us"
    case service = "service_us"
    case stages = "stages_us"
  }

  package init(
    disk: String, id: String, operation: String, offset: UInt64, length: UInt64, status: String,
    at: String, total: Double, queue: Double, service: Double, stages: [String: Double]
  ) {
    self.disk = disk
    self.id = id
    self.operation = operation
    self.offset = offset
    self.length = length
    self.status = status
    self.at = at
    self.total = total
    self.queue = queue
    self.service = service
    self.stages = stages
  }
}

/// What one disk did of one kind.
package struct DiskOperations: Codable, Equatable, Sendable {
  package var count: UInt64
  package var bytes: UInt64
  package var total: Durations
  package var queue: Durations
  package var service: Durations
  /// The distribution of the totals: pairs of the least duration of a bucket in nanoseconds and the
  /// operations in it. A bucket ends where the next one may begin: 16 steps of 512 ns, then 8 for
  /// each power of two. Of two replies the difference is the distribution in between; once a count
  /// reaches 2^32 all are halved.
  package var buckets: [[UInt64]]

  package init(
    count: UInt64, bytes: UInt64, total: Durations, queue: Durations, service: Durations,
    buckets: [[UInt64]]
  ) {
    self.count = count
    self.bytes = bytes
    self.total = total
    self.queue = queue
    self.service = service
    self.buckets = buckets
  }

  fileprivate func appendJSON(to bytes: inout [UInt8]) {
    bytes.append(key: #"{"buckets":["#)
    for (i, bucket) in buckets.enumerated() {
      bytes.append(key: i == 0 ? "[" : ",[", number: bucket[0])
      bytes.append(key: ",", number: bucket[1])
      bytes.append(UInt8(ascii: "]"))
    }
    bytes.append(key: #"],"bytes":"#, number: self.bytes)
    bytes.append(key: #","count":"#, number: count)
    bytes.append(key: #","queue":"#)
    queue.appendJSON(to: &bytes)
    bytes.append(key: #","service":"#)
    service.appendJSON(to: &bytes)
    bytes.append(key: #","total":"#)
    total.appendJSON(to: &bytes)
    bytes.append(UInt8(ascii: "}"))
  }
}

/// An entry of `GET /v1/latency`: what a disk, or an exported snapshot, did since it came into the
/// daemon's memory.
package struct DiskTimes: Codable, Equatable, Sendable {
  package var name: String
  package var id: String
  package var connections: Int
  /// The daemon's uptime in microseconds when the figures were taken: from two replies the rates
  /// follow.
  package var uptimeMicroseconds: UInt64
  package var read: DiskOperations
  package var write: DiskOperations
  package var flush: DiskOperations

  enum CodingKeys: String, CodingKey {
    case name, id, connections
    case uptimeMicroseconds = "uptime_us"
    case read, write, flush
  }

  package init(
    name: String, id: String, connections: Int, uptimeMicroseconds: UInt64, read: DiskOperations,
    write: DiskOperations, flush: DiskOperations
  ) {
    self.name = name
    self.id = id
    self.connections = connections
    self.uptimeMicroseconds = uptimeMicroseconds
    self.read = read
    self.write = write
    self.flush = flush
  }

  /// Appends the same JSON as `JSONEncoder` would write, many times faster: a live view asks for it
  /// each second.
  package func appendJSON(to bytes: inout [UInt8]) {
    bytes.append(key: #"{"connections":"#, number: UInt64(connections))
    bytes.append(key: #","flush":"#)
    flush.appendJSON(to: &bytes)
    bytes.append(key: #","id":"#)
    JSONText.append(string: id, to: &bytes)
    bytes.append(key: #","name":"#)
    JSONText.append(string: name, to: &bytes)
    bytes.append(key: #","read":"#)
    read.appendJSON(to: &bytes)
    bytes.append(key: #","uptime_us":"#, number: uptimeMicroseconds)
    bytes.append(key: #","write":"#)
    write.appendJSON(to: &bytes)
    bytes.append(UInt8(ascii: "}"))
  }
}

extension [UInt8] {
  fileprivate mutating func append(key: StaticString) {
    append(contentsOf: UnsafeBufferPointer(start: key.utf8Start, count: key.utf8CodeUnitCount))
  }

  fileprivate mutating func append(key: StaticString, number: UInt64) {
    append(key: key)
    append(contentsOf: String(number).utf8)
  }

  /// A number of 0 or more with at most one decimal.
  fileprivate mutating func append(key: StaticString, tenths value: Double) {
    let tenths = UInt64((Swift.max(0, Swift.min(value, 1e15)) * 10).rounded())
    append(key: key, number: tenths / 10)
    if tenths % 10 > 0 { append(contentsOf: ".\(tenths % 10)".utf8) }
  }
}
