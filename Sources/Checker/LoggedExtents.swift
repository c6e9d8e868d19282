import Core

/// Goes through the large writes that the log names as already at home (R5): those that are the
/// newest version of their blocks are verified there, and own their homes.
///
/// A mark on a disk (a snapshot, a rollback) ends a layer of its content. Each layer's newest
/// versions count, as each is to become a map's; but those of a layer that a rollback left behind,
/// of a disk that was deleted, or of a snapshot that was deleted may be void, and their homes
/// another's by now.
struct LoggedExtents {
  let members: PoolMembers
  let events: LogEvents
  let options: CheckOptions
  let findings: Findings
  let owners: Ownership

  private static let blockBits: UInt64 = 40
  /// No log has room for as many marks on one disk.
  private static let maximumLayer: UInt64 = 1 << 24 - 2

  /// A record that reaches over the place of the sweep.
  private struct Active {
    var record: SpillRecord
    var end: UInt64
  }

  /// What the log did to one disk.
  private struct Marks {
    /// Where layers end, and the snapshot that a layer became; 0 for none.
    var layers: [(ordinal: UInt64, snapshot: UInt64)] = []
    var removedSnapshots: Set<UInt64> = []
    var isRemoved = false

    /// The layer that a record is in, and whether what it holds counts.
    func layer(of ordinal: UInt64) -> (index: Int, counts: Bool) {
      var (low, high) = (0, layers.count)
      while low < high {
        let middle = (low + high) / 2
        if layers[middle].ordinal < ordinal { low = middle + 1 } else { high = middle }
      }
      guard low < layers.count else { return (low, !isRemoved) }
      let snapshot = layers[low].snapshot
      return (low, !isRemoved && snapshot != 0 && !removedSnapshots.contains(snapshot))
    }
  }

  func run() throws(CheckFailure) {
    let records = try events.contents.sorted()
    let objects = try events.objects.sorted()
    let verifier = HomeVerifier(members: members, options: options, findings: findings)
    while let head = records.head {
      let marks = marks(of: head.a, objects)
      let end = BlockIndex.limit
      if marks.layers.isEmpty {
        try sweep(object: head.a, blocks: 0..<end, records) {
          record, first, end throws(CheckFailure) in
          guard !marks.isRemoved else { return }
          try extent(record, first, end, verifier)
        }
        continue
      }
      let layered = try layers(of: head.a, marks, records)
      while let head = layered.head {
        let base = head.b & ~(end - 1)
        try sweep(object: head.a, blocks: base..<(base + end), layered) {
          record, first, end throws(CheckFailure) in
          var inLayer = record
          inLayer.b -= base
          try extent(inLayer, first - base, end - base, verifier)
        }
      }
      try layered.finish()
    }
    try records.finish()
    try objects.finish()
  }

  private func marks(of object: UInt64, _ objects: SpillReader) -> Marks {
    var marks = Marks()
    while let r = objects.head, r.a <= object {
      if r.a == object {
        switch ObjectEvent(rawValue: r.c) {
        case .remove: marks.isRemoved = true
        case .snapshot: marks.layers.append((r.b, r.d))
        case .rollback: marks.layers.append((r.b, 0))
        case .removeSnapshot: marks.removedSnapshots.insert(r.d)
        default: break
        }
      }
      objects.advance()
    }
    return marks
  }

  /// The records of one object by layer, their blocks moved to where the layer begins; those of
  /// layers that do not count are left out.
  private func layers(
    of object: UInt64, _ marks: Marks, _ records: SpillReader
  ) throws(CheckFailure) -> SpillReader {
    let spill = SortedSpill(memory: options.sortMemory, directory: options.temporaryDirectory)
    while var record = records.head, record.a == object {
      let (index, counts) = marks.layer(of: record.c)
      if counts {
        record.b += min(UInt64(index), Self.maximumLayer) << Self.blockBits
        try spill.add(record)
      }
      records.advance()
    }
    owners.add(spilled: spill.spilled)
    return try spill.sorted()
  }

  /// Calls `body` with the newest record of each range of one object's blocks, of those in
  /// `blocks`.
  ///
  /// `active` holds the records over the place of the sweep that are or may become the newest:
  /// one is dropped when a newer one reaches as far, so ages fall where ends rise.
  private func sweep(
    object: UInt64, blocks: Range<UInt64>, _ records: SpillReader,
    _ body: (SpillRecord, UInt64, UInt64) throws(CheckFailure) -> Void
  ) throws(CheckFailure) {
    var active: [Active] = []
    var place = blocks.lowerBound
    while true {
      let next = records.head.flatMap { $0.a == object && blocks.contains($0.b) ? $0 : nil }
      while let newest = active.last, newest.end > place, place < next?.b ?? .max {
        let end = min(newest.end, next?.b ?? .max)
        if newest.record.d >> 56 == ContentType.extent.rawValue {
          try body(newest.record, place, end)
        }
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
    _ record: SpillRecord, _ first: UInt64, _ end: UInt64, _ verifier: HomeVerifier
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
    try verifier.verify(
      address, checksums: sums, object: object, block: first, what: "a large write of the log",
      others: { [] }, isExempt: { _ in false })
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
