/// Paths of the engine that ordinary work seldom takes, and that crashes and faults depend on.
///
/// The engine counts each one where it is taken; the simulator adds the counts of all its seeds
/// and fails when a path that it must provoke was never taken, so that no test passes by not
/// having been there. Counting costs one addition, in production too.
package enum RarePath: Int, CaseIterable, Sendable {
  /// The log went on at its start after its end.
  case logWrap
  /// Recovery dropped an unfinished frame at the log's tail.
  case tornTail
  /// Recovery read a segment by its summary instead of its frames.
  case summaryReplay
  /// A failed log write or flush ended an epoch and a new one began (R7).
  case reEpoch
  /// A home that could not be written was given another place (R15).
  case relocatedHome
  /// A write was refused because the pool is full (R22).
  case noSpace
  /// Dirty metadata went to its place before the checkpoint because there was too much of it.
  case spill
  /// A large aligned write went straight to its home (R5).
  case largeWrite
  /// A large aligned write went through the log because space was short (R5).
  case largeWriteLogged
  /// A partial write read and merged the rest of its block (R4).
  case blockCompleted
  /// A home write was left out because a newer durable version waits in the log (R17).
  case absorbed
  /// A block of zeros became a hole.
  case zeroDetected
  /// Writers were slowed because the log filled.
  case backPressure
  /// A walk met metadata that was not in memory and was tried anew.
  case parkedWalk
  /// A damaged copy of metadata was rewritten from the good one (R20).
  case healedNode
  /// A damaged data block was reported as an I/O error.
  case damagedBlock
  /// Recovery passed over a root whose write had not finished (R19).
  case unfinishedRoot
  /// A freed run was punched or discarded (R16).
  case punched
  /// A sparse file's file system had no space for a run (R23).
  case backingFull
  /// A member device did not answer and the pool waited for it (R15).
  case suspended
}

/// How often each rare path was taken; fixed size, no allocation.
package struct RarePathCounters: Sendable {
  private static let capacity = 64
  private var counts: InlineArray<64, UInt64>

  package init() {
    invariant(
      RarePath.allCases.count <= Self.capacity,
      "more rare paths than the counters have room for")
    counts = InlineArray(repeating: 0)
  }

  @inline(__always)
  package subscript(path: RarePath) -> UInt64 {
    get { counts[path.rawValue] }
    set { counts[path.rawValue] = newValue }
  }

  /// Counts `path` once more.
  @inline(__always)
  package mutating func took(_ path: RarePath) { counts[path.rawValue] &+= 1 }

  package mutating func add(_ other: RarePathCounters) {
    for path in RarePath.allCases { self[path] &+= other[path] }
  }
}
