import Core

/// The versions that one sector may hold: nearly always one or two, so those need no allocation.
/// An entry marked `hidden` can't be read any more unless a power cut brings it back.
struct Candidates {
  typealias Version = Stamp.Version

  private static let hiddenBit: UInt32 = 1 << 31
  private static let none: UInt32 = .max

  private var first: UInt32
  private var second: UInt32 = none
  private var rest: [UInt32] = []

  init(_ version: Version) { first = version }

  /// Whether there is exactly one.
  @inline(__always) var isSettled: Bool { second == Self.none }
  /// The oldest entry.
  @inline(__always) var leading: Version { first & ~Self.hiddenBit }

  mutating func add(_ version: Version) {
    if second == Self.none {
      second = version
    } else {
      rest.append(version)
    }
  }

  @inline(__always)
  func each(_ body: (_ version: Version, _ hidden: Bool) -> Void) {
    body(first & ~Self.hiddenBit, first & Self.hiddenBit != 0)
    guard second != Self.none else { return }
    body(second & ~Self.hiddenBit, second & Self.hiddenBit != 0)
    for entry in rest { body(entry & ~Self.hiddenBit, entry & Self.hiddenBit != 0) }
  }

  func contains(where matches: (_ version: Version, _ hidden: Bool) -> Bool) -> Bool {
    var found = false
    each { version, hidden in found = found || matches(version, hidden) }
    return found
  }

  enum Verdict { case keep, hide, show, remove }

  /// Changes or drops entries; at least one must stay.
  mutating func update(_ decide: (_ version: Version, _ hidden: Bool) -> Verdict) {
    func decided(_ entry: UInt32) -> UInt32 {
      switch decide(entry & ~Self.hiddenBit, entry & Self.hiddenBit != 0) {
      case .keep: entry
      case .hide: entry | Self.hiddenBit
      case .show: entry & ~Self.hiddenBit
      case .remove: Self.none
      }
    }
    first = decided(first)
    if second != Self.none {
      second = decided(second)
      for i in rest.indices { rest[i] = decided(rest[i]) }
      if !rest.isEmpty { rest.removeAll { $0 == Self.none } }
      if first == Self.none {
        first = second
        second = Self.none
      }
      if second == Self.none && !rest.isEmpty { second = rest.removeFirst() }
      if first == Self.none {
        first = second
        second = rest.isEmpty ? Self.none : rest.removeFirst()
      }
    }
    invariant(first != Self.none, "the model has no version left for a sector")
  }
}
