import Testing

@testable import Core

/// How fast writers are let in while the log is filled to its mark.
struct PacingTests {
  private static let log: UInt64 = 1 << 30

  private func earn(
    _ pacing: inout Pacing, upTo progress: UInt64, remaining: Int, fill: Int = 700,
    share: Double = 1
  ) {
    pacing.earn(
      progress: progress, remaining: remaining, share: share, fill: fill, capacity: Self.log)
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

  /// Writers that take all that they are given, and cycles that free a tenth each: the fill goes up by
  /// a tenth and down again, about the same middle.
  @Test(arguments: [600, 700, 850])
  func smallCyclesKeepTheFill(_ start: Int) {
    var pacing = Pacing()
    _ = pacing.begin()
    let tenth = Self.log / 10
    let steps = 1000
    var used = Self.log / 1000 * UInt64(start)
    for cycle in 1...20 {
      let share = Double(tenth) / Double(used)
      var letIn = [0, 0]
      for step in 1...steps {
        var fill: Int { Int(used * 1000 / Self.log) }
        earn(
          &pacing, upTo: UInt64(cycle * steps + step), remaining: steps - step, fill: fill,
          share: share)
        if fill >= Pacing.mark { _ = pacing.begin() }
        while fill < Pacing.mark || pacing.hasCredit {
          pacing.spend(8192)
          used += 8192
          letIn[step * 2 / (steps + 1)] += 8192
        }
        if cycle > 5 { #expect((640...760).contains(fill)) }
      }
      used -= tenth
      pacing.cycleEnded()
      if cycle > 5 {
        #expect(letIn[0] > letIn[1] * 8 / 10 && letIn[1] > letIn[0] * 8 / 10, "\(letIn)")
      }
    }
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
