import Core

/// Tells which blocks of disks have records in the log behind the checkpoint: their homes may be
/// torn by a destage that a crash interrupted, and the log has what counts (R4, R14). That holds for
/// zeros and large writes as well: the data record that an interrupted destage wrote home from may
/// lie in front of the checkpoint by now, because a newer record made it needless (R17).
///
/// Asked in ascending order of object and block.
final class LogCoverage {
  private let records: SpillReader
  private let objects: SpillReader
  private var object: UInt64 = 0
  private var isVoid = false
  /// Up to where records that began so far reach.
  private var end: UInt64 = 0

  init(_ events: LogEvents) throws(CheckFailure) {
    records = try events.contents.sorted()
    objects = try events.objects.sorted()
  }

  func covers(_ id: ObjectID, block: UInt64) -> Bool {
    if id.raw != object {
      (object, end) = (id.raw, 0)
      isVoid = isVoid(id.raw)
    }
    while let r = records.head, (r.a, r.b) <= (id.raw, block) {
      if r.a == id.raw { end = max(end, r.b + r.d & 0xFF_FFFF_FFFF_FFFF) }
      records.advance()
    }
    return isVoid || block < end
  }

  private func isVoid(_ id: UInt64) -> Bool {
    var found = false
    while let r = objects.head, r.a <= id {
      if r.a == id, r.c == ObjectEvent.remove.rawValue || r.c == ObjectEvent.rollback.rawValue {
        found = true
      }
      objects.advance()
    }
    return found
  }
}
