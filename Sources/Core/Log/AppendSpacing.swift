// How much of the log stays free behind a frame.
//
// A disk that turns has passed the place behind a frame by the time that its clients, told of it,
// have come back with their next writes: the next frame would wait for nearly a whole revolution.
// A gap as long as what passes under the head meanwhile lets it be written at once. The idea is
// that of T. Chiueh, "Trail: a track-based logging disk architecture for zero-overhead writes",
// ICCD 1993; without knowledge of tracks, as a log is only ever written forwards.
//
// Whether a device turns, and how long the clients take, shows only in how long frames take. So
// where they take long, each gap is tried for a few frames, and the one kept that was clearly best.
//
//     no gap, frames take long ─▶ trial of each gap in turn ─▶ the best ─▶ in half a minute again

package struct AppendSpacing: Sendable {
  /// In blocks: none, 128 KiB, 256 KiB and 512 KiB. 200 MB pass in a second on the outer tracks.
  private static let gaps = [0, 32, 64, 128]
  /// Frames after which their times are looked at.
  private static let sampleCount: UInt64 = 12
  /// Below this (nanoseconds) a frame did not wait for half a revolution of any disk.
  private static let slow: UInt64 = 2_500_000
  private static let interval: UInt64 = 30_000_000_000

  /// What the next frame leaves free behind it, in blocks.
  package private(set) var gap = 0
  private let isFixed: Bool
  private var sum: UInt64 = 0
  private var count: UInt64 = 0
  /// The mean of each gap that the trial under way has been through.
  private var means: [UInt64] = []
  private var isTrial = false
  private var nextTrial: UInt64 = 0

  /// `fixed`: always this gap, in blocks.
  package init(fixed: Int? = nil) {
    isFixed = fixed != nil
    gap = fixed ?? 0
    means.reserveCapacity(Self.gaps.count)
  }

  /// A durable frame, placed `gap` blocks behind the one before, took so many nanoseconds.
  package mutating func note(_ time: UInt64, behind gap: Int, now: UInt64) {
    guard !isFixed, gap == self.gap else { return }
    sum += time
    count += 1
    guard count == Self.sampleCount else { return }
    let mean = sum / count
    (sum, count) = (0, 0)
    if isTrial {
      means.append(mean)
      if means.count < Self.gaps.count { self.gap = Self.gaps[means.count] } else { decide(now) }
    } else if now >= nextTrial, mean >= Self.slow || gap > 0 {
      isTrial = true
      means.removeAll(keepingCapacity: true)
      self.gap = Self.gaps[0]
    }
  }

  /// A gap costs room in the log: it is kept only where it saves a third of the time.
  private mutating func decide(_ now: UInt64) {
    var best = 0
    for i in 1..<means.count where means[i] < means[best] { best = i }
    gap = means[best] * 3 <= means[0] * 2 ? Self.gaps[best] : 0
    isTrial = false
    nextTrial = now + Self.interval
  }
}
