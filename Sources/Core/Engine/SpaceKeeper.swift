/// Keeps blocks of sparse files allocated ahead of need, and gives back what is free (R16, R23).
final class SpaceKeeper {
  /// Blocks that are backed beyond what is promised: 64 MiB.
  private static let ahead = 16_384
  /// How often full file systems are looked at again, in nanoseconds.
  private static let recheck: UInt64 = 5_000_000_000

  private let pool: Pool
  private var backing: [DeviceRange?] = []
  private var punches: [DeviceRange?] = []
  private var checked: UInt64 = 0

  init(_ pool: Pool) { self.pool = pool }

  /// Whether freed space is being given back and can't be used yet.
  var isPunching: Bool { pool.space.hasPunches || punches.contains { $0 != nil } }
  var isBacking: Bool { backing.contains { $0 != nil } }

  /// Issues what there is to do; the wait that must end first, if any.
  func maintain(now: UInt64) -> SpaceWait? {
    while let range = pool.space.nextPunch() {
      pool.paths.hit(.punched)
      pool.ops.issue(
        .discard, range.device, offset: range.offset, length: range.length, memory: nil,
        owner: .punch, index: punches.place(range))
    }
    guard !isBacking else { return nil }
    if now >= checked + Self.recheck {
      checked = now
      pool.space.spaceMayHaveReturned()
    }
    let goal = pool.reservedBlocks + Self.ahead
    guard pool.space.available < goal, pool.space.backable > 0 else { return nil }
    do throws(SpaceWait) {
      if let range = try pool.space.nextBacking(target: goal + pool.space.metadataReserve) {
        back(range)
      }
      return nil
    } catch {
      return error
    }
  }

  /// Has a range allocated, unless it is being already.
  func back(_ range: DeviceRange) {
    guard !backing.contains(where: { $0 == range }) else { return }
    pool.ops.issue(
      .allocate, range.device, offset: range.offset, length: range.length, memory: nil,
      owner: .backing, index: backing.place(range))
  }

  func backingCompleted(_ index: Int, error: Int32) {
    guard let range = backing[index] else { return }
    backing[index] = nil
    if error == 0 {
      pool.space.backingDone(range)
    } else {
      pool.space.backingFailed(range, error: error)
    }
  }

  func punchCompleted(_ index: Int, error: Int32) {
    guard let range = punches[index] else { return }
    punches[index] = nil
    pool.space.punchDone(range, error: error)
  }
}
