/// Back-pressure: from a mark of the log's fill on, writes are let in only against credit, which
/// destaging earns: for each unit of its remaining work done, its share of the room that is left. So
/// writers slow down smoothly to what destaging frees, whatever the devices' speed.
struct Pacing {
  /// The mark, in thousandths of the log.
  static let mark = 600
  /// How full the log may be at a cycle's end: the rest is kept for that.
  private static let end = 950
  /// How full it is halfway through a cycle that frees a small part of it, while as much is let in as
  /// cycles free.
  private static let middle = 700
  /// In bytes: what a burst may take that comes after a pause.
  private static let mostCredit: Int64 = 8 << 20

  /// In bytes; below zero for what was let in beyond it.
  private var credit: Int64 = 0
  private var lastProgress: UInt64 = 0
  private var isActive = false

  var hasCredit: Bool { credit > 0 }

  /// The log is filled to the mark. True when it was not before.
  mutating func begin() -> Bool {
    if isActive { return false }
    isActive = true
    // What was let in freely is no debt.
    credit = max(credit, 0)
    return true
  }

  mutating func spend(_ bytes: Int) { credit -= Int64(bytes) }

  /// `progress`: what destaging has done since it was made, in its units of work; `remaining`: what
  /// its cycle has still to do, and `share` how much of what fills the log it will have freed then, 0...1.
  /// `fill` in thousandths of `capacity`, which is in bytes.
  mutating func earn(
    progress: UInt64, remaining: Int, share: Double, fill: Int, capacity: UInt64
  ) {
    let done = progress &- lastProgress
    lastProgress = progress
    guard done > 0 else { return }
    guard fill >= Self.mark else {
      isActive = false
      credit = 0
      return
    }
    let end = min(Self.end, Self.middle + Int(share * Double(fill)) / 2)
    let room = Int64(max(end - fill, 5)) * Int64(capacity) / 1000
    credit = min(credit + Int64(done) * room / Int64(max(remaining, 64)), Self.mostCredit)
  }

  /// A cycle has ended: its room is there, and debts are paid.
  mutating func cycleEnded() { credit = max(credit, 0) }
}
