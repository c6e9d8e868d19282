import Core
import Testing

@Suite("Histograms of latency")
struct LatencyHistogramTests {
  /// Durations of all magnitudes, from nothing to two minutes.
  private func values(_ seed: UInt64, _ count: Int) -> [UInt64] {
    var random = SeededRandom(seed: seed)
    return (0..<count).map { _ in random.below(1 << (1 + random.below(36))) }
  }

  private func histogram(_ values: [UInt64]) -> LatencyHistogram {
    var histogram = LatencyHistogram()
    for value in values { histogram.record(value) }
    return histogram
  }

  @Test("The buckets follow each other without gap or overlap")
  func buckets() {
    for i in 0..<LatencyHistogram.bucketCount {
      let low = LatencyHistogram.lowerBound(of: i)
      let end = LatencyHistogram.lowerBound(of: i + 1)
      #expect(low < end)
      #expect(LatencyHistogram.bucket(of: low) == i)
      #expect(LatencyHistogram.bucket(of: end - 1) == i)
    }
    #expect(LatencyHistogram.bucket(of: 0) == 0)
    #expect(LatencyHistogram.bucket(of: .max) == LatencyHistogram.bucketCount - 1)
  }

  @Test("A single value is reported within a sixteenth, or 256 ns, of what it was")
  func errorBound() {
    for value in values(1, 20_000) {
      // Two, so that the largest value does not give the exact one away.
      var histogram = histogram([value, value])
      histogram.record(1 << 36)
      let reported = histogram.quantile(0.5)
      let error = max(reported, value) - min(reported, value)
      #expect(error <= max(256, value / 16), "\(value) ns was reported as \(reported)")
    }
  }

  @Test("Quantiles are those of the sorted values, within the error, and in order")
  func quantiles() {
    let sorted = values(2, 10_000).sorted()
    let histogram = histogram(sorted)
    var last: UInt64 = 0
    for q in [0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1] {
      let exact = sorted[Int((q * Double(sorted.count)).rounded(.up)) - 1]
      let reported = histogram.quantile(q)
      #expect(max(reported, exact) - min(reported, exact) <= max(256, exact / 8))
      #expect(reported >= last)
      last = reported
    }
    #expect(histogram.max == sorted.last && histogram.quantile(1) <= histogram.max)
    #expect(histogram.count == 10_000 && histogram.sum == sorted.reduce(0, +))
  }

  @Test("An empty one has zeros")
  func empty() {
    let histogram = LatencyHistogram()
    #expect(histogram.quantile(0.5) == 0 && histogram.mean == 0 && histogram.max == 0)
    #expect(LatencySummary(histogram) == LatencySummary())
  }

  @Test("What is longer than two minutes is reported as the longest of all")
  func overlong() {
    #expect(histogram([1 << 40, 1 << 41]).quantile(0.5) == 1 << 41)
  }

  @Test("The difference to a former state holds what was recorded since")
  func difference() throws {
    let (a, b) = (values(5, 1000), values(6, 500))
    let since = try #require(histogram(a + b).since(histogram(a)))
    let expected = histogram(b)
    #expect(since.count == 500 && since.sum == expected.sum)
    #expect(since.buckets.elementsEqual(expected.buckets, by: ==))
    #expect(since.max >= expected.max && since.max <= expected.max + expected.max / 8 + 512)
    #expect(histogram(b).since(histogram(a)) == nil)
  }

  @Test("One made of another's buckets is the same")
  func rebuilt() {
    let one = histogram(values(7, 1000))
    let other = LatencyHistogram(
      buckets: one.buckets, count: one.count, sum: one.sum, max: one.max)
    #expect(same(one, other))
  }

  @Test("A bucket that is full halves all of them, and the quantiles stay")
  func halving() {
    let full = LatencyHistogram(
      buckets: [(from: UInt64(8192), count: UInt32.max), (from: 1 << 20, count: 1 << 31)],
      count: 1 << 40, sum: 0, max: 1 << 20)
    var more = full
    more.record(8192)
    #expect(more.count == full.count + 1)
    #expect(more.buckets.map { $0.count } == [1 << 31, 1 << 30])
    #expect(more.quantile(0.5) == full.quantile(0.5) && more.quantile(0.9) == full.quantile(0.9))
    #expect(more.since(full) == nil)
  }

  private func same(_ a: LatencyHistogram, _ b: LatencyHistogram) -> Bool {
    a.count == b.count && a.sum == b.sum && a.max == b.max
      && a.buckets.elementsEqual(b.buckets, by: ==)
  }
}
