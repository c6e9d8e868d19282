import Core

/// Tells which blocks of disks have records in the log behind the checkpoint: their homes may be
/// torn by a destage that a crash interrupted, and the log has what counts (R4, R14). That holds for
/// zeros and large writes as well: the data record that an interrupted destage wrote home from may
/// lie in front of the checkpoint by now, because a newer record made it needless (R17).
///
/// Asked in ascending order of object and block.
final class LogCoverage {
  private let records: SpillReader
  private var object: UInt64 = 0
  /// Up to where records that began so far reach.
  private var end: UInt64 = 0

  init(_ events: LogEvents) throws(CheckFailure) { records = try events.contents.sorted() }

  func covers(_ id: ObjectID, block: UInt64) -> Bool {
    if id.raw != object { (object, end) = (id.raw, 0) }
    while let r = records.head, (r.a, r.b) <= (id.raw, block) {
      if r.a == id.raw { end = max(end, r.b + r.d & 0xFF_FFFF_FFFF_FFFF) }
      records.advance()
    }
    return block < end
  }
}

/// Goes through the large writes that the log names as already at home (R5): those that are the
/// newest version of their blocks are verified there, and own their homes.
struct LoggedExtents {
  let members: PoolMembers
  let events: LogEvents
  let findings: Findings
  let owners: Ownership

  /// A record that reaches over the place of the sweep.
  private struct Active {
    var record: SpillRecord
    var end: UInt64
  }

  func run() throws(CheckFailure) {
    let records = try events.contents.sorted()
    let removals = try events.objects.sorted()
    var verifier = try HomeVerifier(members: members, findings: findings)
    while let head = records.head {
      let isRemoved = wasRemoved(head.a, removals)
      try sweep(object: head.a, records) { record, first, end throws(CheckFailure) in
        guard !isRemoved, record.d >> 56 == ContentType.extent.rawValue else { return }
        try extent(record, first, end, &verifier)
      }
    }
    try records.finish()
    try removals.finish()
  }

  private func wasRemoved(_ object: UInt64, _ removals: SpillReader) -> Bool {
    var removed = false
    while let r = removals.head, r.a <= object {
      if r.a == object, r.c == ObjectEvent.remove.rawValue { removed = true }
      removals.advance()
    }
    return removed
  }

  /// Calls `body` with the newest record of each range of one object's blocks.
  ///
  /// `active` holds the records over the place of the sweep that are or may become the newest:
  /// one is dropped when a newer one reaches as far, so ages fall where ends rise.
  private func sweep(
    object: UInt64, _ records: SpillReader,
    _ body: (SpillRecord, UInt64, UInt64) throws(CheckFailure) -> Void
  ) throws(CheckFailure) {
    var active: [Active] = []
    var place: UInt64 = 0
    while true {
      let next = records.head.flatMap { $0.a == object ? $0 : nil }
      while let newest = active.last, newest.end > place, place < next?.b ?? .max {
        let end = min(newest.end, next?.b ?? .max)
        try body(newest.record, place, end)
        place = end
        while let last = active.last, last.end <= place { active.removeLast() }
      }
      guard let next else { return }
      place = next.b
      while let last = active.last, last.end <= place { active.removeLast() }
      insert(Active(record: next, end: next.b + next.d & 0xFF_FFFF_FFFF_FFFF), into: &active)
      records.advance()
    }
  }

  /// Oldest and farthest first, newest and nearest last.
  private func insert(_ new: Active, into active: inout [Active]) {
    var i = active.count
    while i > 0, active[i - 1].record.c > new.record.c { i -= 1 }
    if i < active.count, active[i].end >= new.end { return }
    var from = i
    while from > 0, active[from - 1].end <= new.end { from -= 1 }
    active.replaceSubrange(from..<i, with: [new])
  }

  private func extent(
    _ record: SpillRecord, _ first: UInt64, _ end: UInt64, _ verifier: inout HomeVerifier
  ) throws(CheckFailure) {
    let object = ObjectID(record.a)
    let count = end - first
    let address = BlockAddress(raw: record.e) + (first - record.b)
    guard members.isHome(address, count: count) else {
      findings.complain(
        "the log puts blocks of object \(object.raw) at volume \(address.volume), offset "
          + "\(address.byteOffset), which no volume has")
      return
    }
    try owners.add(address, count: count, kind: .logged, object: object, block: first)
    let sums = checksums(at: record.f + 4 * (first - record.b), count: Int(count))
    guard let sums else { return }
    verifier.verify(
      address, checksums: sums, object: object, block: first, what: "a large write of the log"
    ) { _ in false }
  }

  /// Checksums of a record, read again from the log device.
  private func checksums(at offset: UInt64, count: Int) -> [UInt32]? {
    let memory = AlignedMemory(bytes: 2 * blockSize)
    let first = offset >> blockShift
    let at = Int(offset & UInt64(blockSize - 1))
    let blocks = (at + 4 * count + blockSize - 1) / blockSize
    guard members.log.read(block: first, count: blocks, into: memory.base) else { return nil }
    return (0..<count).map { memory.base.reading.u32(at + 4 * $0) }
  }
}

/// Verifies data blocks at their homes.
struct HomeVerifier {
  private static let blocks = 128
  let members: PoolMembers
  let findings: Findings
  private let memory: AlignedMemory

  init(members: PoolMembers, findings: Findings) throws(CheckFailure) {
    self.members = members
    self.findings = findings
    memory = AlignedMemory(bytes: Self.blocks * blockSize)
  }

  /// Verifies `checksums.count` blocks from `address`; those for which `isExempt` says so may hold
  /// anything. The range is on a volume.
  func verify(
    _ address: BlockAddress, checksums: [UInt32], object: ObjectID, block: UInt64, what: String,
    isExempt: (UInt64) -> Bool
  ) {
    let volume = members.volumes[address.volume]
    var at = 0
    while at < checksums.count {
      let count = min(Self.blocks, checksums.count - at)
      let first = address.block + UInt64(at)
      let isRead = volume.read(block: first, count: count, into: memory.base)
      for i in 0..<count {
        if isExempt(block + UInt64(at + i)) {
          findings.counters.coveredByLog += 1
          continue
        }
        let p = memory.base + i * blockSize
        let isGood =
          (isRead || volume.read(block: first + UInt64(i), count: 1, into: p))
          && crc32cBlock(p) == checksums[at + i]
        findings.counters.verifiedBlocks += 1
        if !isGood {
          findings.damage(
            device: volume.name, offset: (first + UInt64(i)) << blockShift, object: object,
            block: block + UInt64(at + i), what: what)
        }
      }
      at += count
    }
  }
}
