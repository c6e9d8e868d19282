// How much of the log stays free behind a frame.
//
// A disk that turns has passed the place behind a frame by the time that its clients, told of it,
// have come back with their next writes: the next frame would wait for nearly a whole revolution.
// A gap as long as what passes under the head meanwhile lets it be written at once. The idea is
// that of T. Chiueh, "Trail: a track-based logging disk architecture for zero-overhead writes",
// ICCD 1993; without knowledge of tracks, as a log is only ever written forwards.
//
// Whether a device turns shows only in how long frames take, so it is tried out where three quarters
// of them take long: some frames without a gap, some with, and some without again, lest a device
// that was busy for a while be taken for one that turns. How long the gap must be is learned from
// the frames that come too late and wait for a revolution in spite of it.
//
//          most frames are slow               quicker with a gap
//     off ────────────────────────▶ trial ───────────────────────▶ on ─┐ longer after misses,
//      ▲                              │                          ▲   └─┘ shorter without
//      └──────────────────────────────┘                          │ now and then, and when the
//      ▲          no quicker                                     ▼ longest gap is too short
//      └───────────────────────────────────────────────────── check: some frames without a gap
//
// Frames with gaps go one at a time: one that is sent beside another would make the next wait until
// its own gap has passed, and what comes meanwhile can go together. So does all of a trial, as times
// compare only where as many frames are on their way.

package struct AppendSpacing: Sendable {
  /// In blocks. 200 MB pass in a second on outer tracks: 0.3 to 4 ms.
  private static let gaps = [16, 32, 48, 64, 96, 128, 192]
  /// The one a trial is made with: long enough for most clients, and yet a third of a revolution.
  private static let triedGap = 5
  /// Frames whose times are looked at together.
  private static let sampleCount = 16
  /// Below this (nanoseconds) a frame waited for less than a third of a revolution, at 7200 a minute.
  private static let slow: UInt64 = 2_500_000
  /// Of one sample, how many misses ask for a longer gap, and how many still allow a shorter one.
  private static let tooManyMisses = 5
  private static let fewMisses = 2
  /// Samples with few misses before a shorter gap is tried; twice as many each time it was too short.
  private static let patience = 2...256
  /// Nanoseconds between a decision and the next trial or check; twice as long each time it confirms.
  private static let interval: ClosedRange<UInt64> = 1_000_000_000...32_000_000_000

  private enum Phase { case off, trialBefore, trialWith, trialAfter, on, check }

  /// What the next frame leaves free behind it, in blocks.
  package private(set) var gap: Int
  private let isFixed: Bool
  private var phase = Phase.off
  private var times: [UInt64] = []
  /// Median times without a gap, and with one.
  private var without: UInt64 = 0
  private var with: UInt64 = 0
  /// Which of `gaps` is in use.
  private var chosen = Self.triedGap
  /// Frames of the sample that waited for a revolution; samples in a row with few of them.
  private var misses = 0
  private var calmSamples = 0
  /// Whether the gap in use came from a longer one.
  private var hasShortened = false
  private var patience = Self.patience.lowerBound
  private var interval = Self.interval.lowerBound
  /// When the last trial or check ended; nil before the first.
  private var decided: UInt64?

  package var isOneAtATime: Bool { gap > 0 || phase != .off }

  /// `fixed`: always this gap, in blocks.
  package init(fixed: Int? = nil) {
    isFixed = fixed != nil
    gap = fixed ?? 0
    times.reserveCapacity(Self.sampleCount)
  }

  /// A frame that was sent behind a gap of this many blocks took so many nanoseconds. True when that
  /// has ended a trial or a check.
  package mutating func note(_ time: UInt64, behind gap: Int, now: UInt64) -> Bool {
    guard !isFixed, gap == self.gap else { return false }
    times.append(time)
    if phase == .on, isLate(time) {
      misses += 1
      if misses == Self.tooManyMisses, lengthen() { return false }
    }
    guard times.count == Self.sampleCount else { return false }
    times.sort()
    defer { times.removeAll(keepingCapacity: true) }
    let median = times[Self.sampleCount / 2]
    // A stall, or a device that is busy for a while, leaves some frames as quick as they were.
    let areMostlySlow = times[Self.sampleCount / 4] >= Self.slow

    switch phase {
    case .off:
      if areMostlySlow, isDue(now, after: interval) { enter(.trialBefore, gap: 0) }
    case .trialBefore:
      without = median
      guard areMostlySlow else { return decide(.off, now) }
      enter(.trialWith, gap: Self.gaps[Self.triedGap])
    case .trialWith:
      with = median
      enter(.trialAfter, gap: 0)
    case .trialAfter:
      without = min(without, median)
      return decide(areMostlySlow && isWorthIt ? .on : .off, now)
    case .on:
      with = median
      let isTooShort = misses * 2 >= Self.sampleCount
      if misses <= Self.fewMisses { shorten() } else { calmSamples = 0 }
      misses = 0
      if isDue(now, after: isTooShort ? Self.interval.lowerBound : interval) {
        enter(.check, gap: 0)
      }
    case .check:
      // A stall must not make misses look like hits.
      without = min(without, median)
      return decide(areMostlySlow && isWorthIt ? .on : .off, now)
    }
    return false
  }

  /// A gap costs room in the log: it is kept only where it saves a third of the time.
  private var isWorthIt: Bool { with * 3 <= without * 2 }

  private func isDue(_ now: UInt64, after interval: UInt64) -> Bool {
    decided.map { now >= $0 + interval } ?? true
  }

  private mutating func enter(_ phase: Phase, gap: Int) {
    self.phase = phase
    self.gap = gap
  }

  /// Whether a frame waited for a revolution in spite of the gap.
  private func isLate(_ time: UInt64) -> Bool { time * 4 >= without * 3 }

  /// Takes the next longer gap. False when there is none.
  private mutating func lengthen() -> Bool {
    guard chosen + 1 < Self.gaps.count else { return false }
    if hasShortened, calmSamples == 0 { patience = min(patience * 2, Self.patience.upperBound) }
    hasShortened = false
    use(chosen + 1)
    return true
  }

  /// Takes the next shorter gap after enough samples that would allow it.
  private mutating func shorten() {
    calmSamples += 1
    guard calmSamples >= patience, chosen > 0 else { return }
    hasShortened = true
    use(chosen - 1)
  }

  private mutating func use(_ choice: Int) {
    chosen = choice
    calmSamples = 0
    misses = 0
    times.removeAll(keepingCapacity: true)
    gap = Self.gaps[choice]
  }

  /// Ends a trial or a check.
  private mutating func decide(_ outcome: Phase, _ now: UInt64) -> Bool {
    let isConfirmed = outcome == (phase == .check ? .on : .off)
    interval =
      isConfirmed ? min(interval * 2, Self.interval.upperBound) : Self.interval.lowerBound
    decided = now
    if phase != .check { patience = Self.patience.lowerBound }
    let choice = phase == .check ? chosen : Self.triedGap
    enter(outcome, gap: 0)
    if outcome == .on { use(choice) }
    return true
  }
}
