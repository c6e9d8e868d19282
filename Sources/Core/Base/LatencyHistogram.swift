// Durations counted in log-linear buckets, after Gil Tene's HdrHistogram: each power of two is
// cut into equal steps, so that the error is a fixed part of the value over the whole range, and
// the bucket follows from the position of the highest bit.
//
//     unit 512 ns     bucket 0...15: one unit each
//                     then 8 buckets for each power of two: 8.2 µs, 9.2 µs ... 16.4 µs, 18.4 µs ...
//                     the last one: all from 128.8 s on
//
// A value is reported as the middle of its bucket: at most 1/16 (6.25%) off, or 256 ns where that
// is more (below 4 µs).

/// A distribution of durations in nanoseconds; 856 bytes, wherever its owner puts them. To record
/// a value allocates nothing and takes some ten instructions.
package struct LatencyHistogram: Sendable {
  package static let bucketCount = 208
  /// log2 of the finest resolution in nanoseconds.
  private static let unitShift: UInt64 = 9
  /// log2 of the steps for each power of two.
  private static let stepShift = 3

  /// When one is full all are halved: what is old counts less from then on.
  private var counts = InlineArray<208, UInt32>(repeating: 0)
  /// Values recorded, those of halved buckets as well.
  package private(set) var count: UInt64 = 0
  /// Of all values.
  package private(set) var sum: UInt64 = 0
  package private(set) var max: UInt64 = 0

  package init() {}

  /// The bucket of a value.
  @inline(__always)
  package static func bucket(of nanoseconds: UInt64) -> Int {
    let units = nanoseconds >> unitShift
    let highest = 63 - (units | 1 << UInt64(stepShift)).leadingZeroBitCount
    let shift = highest - stepShift
    let bucket = shift << stepShift + Int(truncatingIfNeeded: units >> UInt64(shift))
    return min(bucket, bucketCount - 1)
  }

  /// The least value of a bucket.
  package static func lowerBound(of bucket: Int) -> UInt64 {
    let steps = 1 << stepShift
    let shift = Swift.max(0, bucket / steps - 1)
    return UInt64(bucket - shift * steps) << (UInt64(shift) + unitShift)
  }

  /// What a bucket's values are reported as: its middle.
  private static func middle(of bucket: Int) -> UInt64 {
    let low = lowerBound(of: bucket)
    return low + (lowerBound(of: bucket + 1) - low) / 2
  }

  @inline(__always)
  package mutating func record(_ nanoseconds: UInt64) {
    record(nanoseconds, in: Self.bucket(of: nanoseconds))
  }

  /// - Parameter bucket: the value's.
  @inline(__always)
  package mutating func record(_ nanoseconds: UInt64, in bucket: Int) {
    if counts[bucket] == .max { halve() }
    counts[bucket] &+= 1
    count &+= 1
    sum &+= nanoseconds
    if nanoseconds > max { max = nanoseconds }
  }

  @inline(never)
  private mutating func halve() {
    for i in 0..<Self.bucketCount { counts[i] /= 2 }
  }

  /// What was recorded since `earlier`, a former state of this one. Nil where it is none: it was
  /// begun anew, or halved. The largest value is then known by its bucket only.
  package func since(_ earlier: Self) -> Self? {
    guard count >= earlier.count, sum >= earlier.sum else { return nil }
    var difference = Self()
    for i in 0..<Self.bucketCount {
      guard counts[i] >= earlier.counts[i] else { return nil }
      difference.counts[i] = counts[i] - earlier.counts[i]
      if difference.counts[i] > 0 {
        let isLast = i == Self.bucketCount - 1
        difference.max = isLast ? max : Swift.min(max, Self.lowerBound(of: i + 1) - 1)
      }
    }
    difference.count = count - earlier.count
    difference.sum = sum - earlier.sum
    return difference
  }

  /// The value that the part `q` (0...1) of all values does not exceed; 0 when there are none.
  package func quantile(_ q: Double) -> UInt64 {
    var total: UInt64 = 0
    for i in 0..<Self.bucketCount { total += UInt64(counts[i]) }
    guard total > 0 else { return 0 }
    let rank = Swift.max(1, UInt64((Swift.min(Swift.max(q, 0), 1) * Double(total)).rounded(.up)))
    var seen: UInt64 = 0
    for i in 0..<Self.bucketCount {
      seen += UInt64(counts[i])
      guard seen >= rank else { continue }
      return i == Self.bucketCount - 1 ? max : Swift.min(Self.middle(of: i), max)
    }
    return max
  }

  /// In nanoseconds; 0 when there are no values.
  package var mean: UInt64 { count == 0 ? 0 : sum / count }

  /// The buckets that hold something: the least value of each in nanoseconds, and its count.
  package var buckets: [(from: UInt64, count: UInt32)] {
    var buckets: [(from: UInt64, count: UInt32)] = []
    for i in 0..<Self.bucketCount where counts[i] > 0 {
      buckets.append((Self.lowerBound(of: i), counts[i]))
    }
    return buckets
  }

  /// One out of what `buckets` gave. A value that begins no bucket counts in the one that it lies
  /// in.
  package init(
    buckets: some Sequence<(from: UInt64, count: UInt32)>, count: UInt64, sum: UInt64, max: UInt64
  ) {
    for (from, number) in buckets { counts[Self.bucket(of: from)] &+= number }
    self.count = count
    self.sum = sum
    self.max = max
  }
}

/// The figures of a distribution that people look at, in nanoseconds.
package struct LatencySummary: Equatable, Sendable {
  package var count: UInt64 = 0
  package var sum: UInt64 = 0
  package var mean: UInt64 = 0
  package var p50: UInt64 = 0
  package var p99: UInt64 = 0
  package var p999: UInt64 = 0
  package var max: UInt64 = 0

  package init() {}

  package init(_ histogram: LatencyHistogram) {
    count = histogram.count
    sum = histogram.sum
    mean = histogram.mean
    p50 = histogram.quantile(0.5)
    p99 = histogram.quantile(0.99)
    p999 = histogram.quantile(0.999)
    max = histogram.max
  }
}
