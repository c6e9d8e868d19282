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

  @Test("Where a frame waits for a revolution, the shortest gap that saves it is found and kept")
  func revolution() {
    var (spacing, clock) = (AppendSpacing(), UInt64(0))
    append(&spacing, frames: 100, clock: &clock, taking: rotating)
    #expect(spacing.gap == 64)
    append(&spacing, frames: 50_000, clock: &clock, taking: rotating)
    #expect(spacing.gap == 64)
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

  @Test("A gap that saves nothing any more is given up")
  func change() {
    var (spacing, clock) = (AppendSpacing(), UInt64(0))
    append(&spacing, frames: 100, clock: &clock, taking: rotating)
    #expect(spacing.gap > 0)
    append(&spacing, frames: 500, clock: &clock) { _, _ in 100 * Self.milli }
    #expect(spacing.gap == 0)
  }

  @Test("Clients that come back later than a gap get a longer one soon")
  func slowerClients() {
    var (spacing, clock) = (AppendSpacing(), UInt64(0))
    append(&spacing, frames: 100, clock: &clock, taking: rotating)
    let (gap, changed) = (spacing.gap, clock)
    append(&spacing, frames: 400, clock: &clock) { gap, _ in rotating(gap, clients: 2) }
    #expect(spacing.gap > gap && clock - changed < 5_000 * Self.milli)
  }

  @Test("A fixed gap stays")
  func fixed() {
    var (spacing, clock) = (AppendSpacing(fixed: 7), UInt64(0))
    append(&spacing, frames: 100, clock: &clock, taking: rotating)
    #expect(spacing.gap == 7)
  }
}
