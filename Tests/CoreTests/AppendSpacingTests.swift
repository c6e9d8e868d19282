import Testing

@testable import Core

@Suite("The gap behind frames of the log")
struct AppendSpacingTests {
  private static let milli: UInt64 = 1_000_000

  /// Frames one behind the other on a device where a frame takes so long, by the gap before it.
  private func append(
    _ spacing: inout AppendSpacing, frames: Int, clock: inout UInt64,
    taking time: (_ gap: Int, _ isOneAtATime: Bool) -> UInt64
  ) {
    var before = spacing.gap
    for _ in 0..<frames {
      let took = time(before, spacing.isOneAtATime)
      let gap = spacing.gap
      clock += took
      _ = spacing.note(took, behind: before, now: clock)
      before = gap
    }
  }

  /// 7200 revolutions a minute, 200 MB/s, clients that take so many milliseconds to come back.
  private func rotating(_ gap: Int, clients: Double) -> UInt64 {
    let (turn, passing) = (8.33, Double(gap) * 4096 / 200_000)
    let wait = passing >= clients ? passing - clients : turn + passing - clients
    return UInt64((wait + 0.4) * Double(Self.milli))
  }

  private func rotating(_ gap: Int, _: Bool) -> UInt64 { rotating(gap, clients: 1) }

  @Test("Where a frame waits for a revolution, a gap that saves it is found and kept")
  func revolution() {
    var (spacing, clock) = (AppendSpacing(), UInt64(0))
    append(&spacing, frames: 100, clock: &clock, taking: rotating)
    #expect(spacing.gap > 0)
    let found = clock
    append(&spacing, frames: 50_000, clock: &clock, taking: rotating)
    // 200 MB/s: the shortest that 1 ms is not too long for takes 1.31 ms and 0.4 of transfer.
    #expect(clock - found < 50_000 * 12 * Self.milli / 10)
  }

  @Test("Clients that come back later get a longer gap at once, quicker ones a shorter one")
  func changingClients() {
    var (spacing, clock) = (AppendSpacing(), UInt64(0))
    for clients in [0.4, 2.2, 0.9, 3] {
      append(&spacing, frames: 1_000, clock: &clock) { gap, _ in rotating(gap, clients: clients) }
      let began = clock
      append(&spacing, frames: 2_000, clock: &clock) { gap, _ in rotating(gap, clients: clients) }
      let mean = Double((clock - began) / 2_000) / Double(Self.milli)
      #expect(mean < 2.4, "clients that take \(clients) ms: \(mean) ms a frame")
    }
  }

  @Test("Where one client in ten is late, the gap still is about what the others need")
  func lateClients() {
    var random = SeededRandom(seed: 1)
    var (spacing, clock) = (AppendSpacing(), UInt64(0))
    append(&spacing, frames: 50_000, clock: &clock) { gap, _ in
      rotating(gap, clients: Int.random(in: 0..<10, using: &random) == 0 ? 6 : 1)
    }
    // The best there is: 0.71 ms and one time in ten 4 ms more.
    #expect(clock < 50_000 * 2 * Self.milli, "\(clock / 50_000) ns a frame")
  }

  @Test("A slow device that does not turn gets no gap, nor does a quick one")
  func others() {
    for time in [Self.milli / 10, 5 * Self.milli] {
      var (spacing, clock, trials) = (AppendSpacing(), UInt64(0), 0)
      // Frames that are on their way together wait for each other.
      append(&spacing, frames: 200, clock: &clock) { gap, isOneAtATime in
        trials += gap > 0 ? 1 : 0
        return isOneAtATime ? time : 2 * time
      }
      #expect(spacing.gap == 0 && !spacing.isOneAtATime)
      #expect((trials > 0) == (time > Self.milli))
    }
  }

  @Test("A frame that hangs decides nothing")
  func stall() {
    var (spacing, clock, count) = (AppendSpacing(), UInt64(0), 0)
    append(&spacing, frames: 400, clock: &clock) { _, _ in
      count += 1
      return count % 10 == 0 ? 60 * Self.milli : 3 * Self.milli
    }
    #expect(spacing.gap == 0)
  }

  @Test("A quick device that is slow now and then, or for a while, gets a gap in trials only")
  func disturbed() {
    var random = SeededRandom(seed: 1)
    for busy in 1...9 {
      var (spacing, clock, gaps) = (AppendSpacing(), UInt64(0), 0)
      append(&spacing, frames: 20_000, clock: &clock) { gap, _ in
        gaps += gap > 0 ? 1 : 0
        return Int.random(in: 0..<10, using: &random) < busy
          ? UInt64.random(in: 2...20, using: &random) * Self.milli : Self.milli / 5
      }
      #expect(gaps < 1_000, "\(busy) of ten frames slow: \(gaps) with a gap")
      // All of it is slow, but only for so many frames.
      (spacing, clock, gaps) = (AppendSpacing(), UInt64(0), 0)
      var left = 10 * busy
      append(&spacing, frames: 20_000, clock: &clock) { gap, _ in
        gaps += gap > 0 ? 1 : 0
        left -= 1
        return left >= 0 ? 9 * Self.milli : Self.milli / 5
      }
      #expect(gaps < 200, "slow for a while: \(gaps) with a gap")
    }
  }

  @Test("A gap that saves nothing any more is given up")
  func change() {
    for time in [Self.milli / 10, 100 * Self.milli] {
      var (spacing, clock) = (AppendSpacing(), UInt64(0))
      append(&spacing, frames: 1_000, clock: &clock, taking: rotating)
      #expect(spacing.gap > 0)
      append(&spacing, frames: 50_000, clock: &clock) { _, _ in time }
      #expect(spacing.gap == 0)
    }
  }

  @Test("A fixed gap stays")
  func fixed() {
    var (spacing, clock) = (AppendSpacing(fixed: 7), UInt64(0))
    append(&spacing, frames: 100, clock: &clock, taking: rotating)
    #expect(spacing.gap == 7)
  }
}
