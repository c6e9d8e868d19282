import Testing

@testable import Core

/// How fast writers are let in while the log is filled to its mark.
struct PacingTests {
  private static let log: UInt64 = 1 << 30

  private func earn(
    _ pacing: inout Pacing, upTo progress: UInt64, remaining: Int, fill: Int = 700
  ) {
    pacing.earn(progress: progress, remaining: remaining, fill: fill, capacity: Self.log)
  }

  @Test func nothingWithoutProgress() {
    var pacing = Pacing()
    let (began, again) = (pacing.begin(), pacing.begin())
    #expect(began && !again)
    earn(&pacing, upTo: 0, remaining: 1000)
    #expect(!pacing.hasCredit)
    // Nor does it end before something was done.
    earn(&pacing, upTo: 0, remaining: 1000, fill: 599)
    let anew = pacing.begin()
    #expect(!anew)
  }

  /// All of the remaining work done step by step lets in what room there was, and not more.
  @Test func workIsPaidWithItsShareOfTheRoom() {
    var pacing = Pacing()
    _ = pacing.begin()
    let steps = 10_000
    var letIn = 0
    for step in 1...steps {
      // A quarter of the log up to the end, of which what was let in is taken.
      let fill = 700 + letIn * 1000 / Int(Self.log)
      earn(&pacing, upTo: UInt64(step), remaining: steps - step, fill: fill)
      while pacing.hasCredit {
        pacing.spend(8192)
        letIn += 8192
      }
    }
    let room = Int(Self.log) / 4
    #expect(letIn > room * 9 / 10 && letIn < room * 11 / 10, "\(letIn) of \(room) bytes")
  }

  @Test func aPauseEarnsNoBurst() {
    var pacing = Pacing()
    _ = pacing.begin()
    earn(&pacing, upTo: 1_000_000, remaining: 64)
    pacing.spend(8 << 20)
    #expect(!pacing.hasCredit)
  }

  @Test func belowTheMarkCreditIsForgotten() {
    var pacing = Pacing()
    _ = pacing.begin()
    earn(&pacing, upTo: 100, remaining: 1000)
    #expect(pacing.hasCredit)
    earn(&pacing, upTo: 200, remaining: 900, fill: 599)
    let began = pacing.begin()
    #expect(!pacing.hasCredit && began)
  }

  @Test func debtsEndWithTheCycle() {
    var pacing = Pacing()
    _ = pacing.begin()
    pacing.spend(1 << 30)
    pacing.cycleEnded()
    earn(&pacing, upTo: 1, remaining: 1000)
    #expect(pacing.hasCredit)
  }
}
