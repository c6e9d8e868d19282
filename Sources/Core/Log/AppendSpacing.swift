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
//     no gap, frames take long ─▶ trial of each gap in turn ─▶ the best ─▶ in half a minute again,
//                                                                          in a second if it fails
//
// Frames with gaps go one at a time: one that is sent beside another would make the next wait until
// its own gap has passed, and what comes meanwhile can go together. So does all of a trial, as times
// compare only where as many frames are on their way.

package struct AppendSpacing: Sendable {
  /// In blocks: none, 128 KiB, 256 KiB and 512 KiB. 200 MB pass in a second on the outer tracks.
  private static let gaps = [0, 32, 64, 128]
  /// Frames whose median time is looked at.
  private static let sampleCount = 12
  /// Below this (nanoseconds) a frame waited for less than a third of a revolution, at 7200 a minute.
  private static let slow: UInt64 = 2_500_000
  /// Between trials (nanoseconds): in general, and where the clients are slower than the gap now.
  private static let interval: UInt64 = 30_000_000_000
  private static let shortInterval: UInt64 = 1_000_000_000

  /// What the next frame leaves free behind it, in blocks.
  package private(set) var gap: Int
  private let isFixed: Bool
  private var times: [UInt64] = []
  /// The median time with each gap that the trial under way has been through.
  private var medians: [UInt64] = []
  private var isTrial = false
  /// When the last trial ended; nil before the first.
  private var decided: UInt64?

  package var isOneAtATime: Bool { gap > 0 || isTrial }

  /// `fixed`: always this gap, in blocks.
  package init(fixed: Int? = nil) {
    isFixed = fixed != nil
    gap = fixed ?? 0
    times.reserveCapacity(Self.sampleCount)
    medians.reserveCapacity(Self.gaps.count)
  }

  /// A frame that was sent behind a gap of this many blocks took so many nanoseconds. True when that
  /// has ended a trial.
  package mutating func note(_ time: UInt64, behind gap: Int, now: UInt64) -> Bool {
    guard !isFixed, gap == self.gap else { return false }
    times.append(time)
    guard times.count == Self.sampleCount else { return false }
    times.sort()
    let median = times[Self.sampleCount / 2]
    times.removeAll(keepingCapacity: true)
    if isTrial {
      medians.append(median)
      if medians.count == Self.gaps.count {
        decide(now)
        return true
      }
      self.gap = Self.gaps[medians.count]
    } else if isDue(now, median) {
      isTrial = true
      medians.removeAll(keepingCapacity: true)
      self.gap = Self.gaps[0]
    }
    return false
  }

  private func isDue(_ now: UInt64, _ median: UInt64) -> Bool {
    let isSlow = median >= Self.slow
    guard isSlow || gap > 0 else { return false }
    guard let decided else { return true }
    return now >= decided + (isSlow && gap > 0 ? Self.shortInterval : Self.interval)
  }

  /// A gap costs room in the log: it is kept only where it saves a third of the time.
  private mutating func decide(_ now: UInt64) {
    var best = 0
    for i in 1..<medians.count where medians[i] < medians[best] { best = i }
    gap = medians[best] * 3 <= medians[0] * 2 ? Self.gaps[best] : 0
    isTrial = false
    decided = now
  }
}
