import Core

// The catalog and the maps: names tree, objects tree, and with each object its map and dead list
// (`MapCheck`), walked once from the root; then brought together by object (`ObjectStates`) and by
// branch (`compareBranches`), and compared with what the log says happened since.
//
//     branches    a snapshot   b 0: its own record   d instant   e branch instant
//                              b 1: c a child   d the child's branch instant   e its instant, or
//                                   .max where it has none   f 1 where it inherits its map

struct CatalogCheck {
  let members: PoolMembers
  let reader: NodeReader
  let events: LogEvents
  let owners: Ownership
  let options: CheckOptions
  let findings: Findings
  private let branches: SortedSpill

  private struct Totals {
    var disks: UInt64 = 0
    var deleted: UInt64 = 0
    var freeing: UInt64 = 0
    /// What deleted objects hold is told exactly: none of them shares with a snapshot.
    var held: UInt64 = 0
    var volumes: UInt64 = 0
  }

  init(
    members: PoolMembers, reader: NodeReader, events: LogEvents, owners: Ownership,
    options: CheckOptions, findings: Findings
  ) {
    self.members = members
    self.reader = reader
    self.events = events
    self.owners = owners
    self.options = options
    self.findings = findings
    branches = SortedSpill(memory: options.sortMemory, directory: options.temporaryDirectory)
  }

  func run() throws(CheckFailure) {
    let deleted = try walkNames()
    let totals = try walkObjects()
    if !reader.isIncomplete {
      var states = ObjectStates(findings: findings)
      try states.run(events)
      try compareBranches()
      compareTotals(totals, deleted: deleted, snapshots: states.snapshots)
    }
    try compareNames()
    owners.add(spilled: branches.spilled)
  }

  // MARK: Names

  /// Walks the names tree; returns how many objects are on the list of deleted ones.
  private func walkNames() throws(CheckFailure) -> UInt64 {
    let walk = try TreeWalk(
      reader, root: members.root.names, kind: .names, owner: TreeOwner.names, findings: findings
    ) { pointer throws(CheckFailure) in try owners.addNode(pointer, of: TreeOwner.names) }
    var deleted: UInt64 = 0
    while let (key, value) = try walk.next() {
      if key.hi == 0 {
        deleted += 1
        try event(ObjectID(key.lo), .deleted)
        continue
      }
      if value.isEmpty {
        try event(ObjectID(key.hi), .child, key.lo)
        try event(ObjectID(key.lo), .childOf, key.hi)
        continue
      }
      guard let entries = NameEntry.decode(value), !entries.isEmpty else {
        findings.complain("the names under object \(key.hi) with hash \(key.lo) can't be decoded")
        continue
      }
      for (i, entry) in entries.enumerated() { try name(entry, key, entries[..<i]) }
    }
    findings.counters.metadataNodes += walk.nodes
    return deleted
  }

  private func name(
    _ entry: NameEntry, _ key: NodeKey, _ before: ArraySlice<NameEntry>
  ) throws(CheckFailure) {
    findings.counters.names += 1
    let shown = String(decoding: entry.name, as: UTF8.self)
    if NameEntry.hash(entry.name) != key.lo {
      findings.complain("the name “\(shown)” is filed under a hash that is not its own")
    }
    if before.contains(where: { $0.name == entry.name }) {
      findings.complain("the name “\(shown)” is in its directory twice")
    }
    if entry.name.contains(0) || entry.name.contains(UInt8(ascii: "/")) || shown == "."
      || shown == ".."
    {
      findings.complain("the name “\(shown)” is not one that a directory may hold")
    }
    try event(entry.object, .named, UInt64(entry.kind.rawValue), key.hi)
    try event(ObjectID(key.hi), .holds, UInt64(entry.kind.rawValue))
    try events.names.add(
      SpillRecord(
        a: key.hi, b: key.lo, c: UInt64(entry.name.withUnsafeBytes { crc32c($0) }), d: 0,
        e: entry.object.raw))
  }

  private func event(
    _ object: ObjectID, _ type: ObjectEvent, _ d: UInt64 = 0, _ e: UInt64 = 0, _ f: UInt64 = 0
  ) throws(CheckFailure) {
    try events.objects.add(SpillRecord(a: object.raw, b: 0, c: type.rawValue, d: d, e: e, f: f))
  }

  // MARK: Objects

  private func walkObjects() throws(CheckFailure) -> Totals {
    let verifier = HomeVerifier(members: members, options: options, findings: findings)
    let maps = MapCheck(
      members: members, reader: reader, owners: owners,
      lineage: Lineage(reader: reader, root: members.root), coverage: try LogCoverage(events),
      verifier: verifier, options: options, findings: findings)
    let walk = try TreeWalk(
      reader, root: members.root.objects, kind: .objects, owner: TreeOwner.objects,
      findings: findings
    ) { pointer throws(CheckFailure) in try owners.addNode(pointer, of: TreeOwner.objects) }
    let names = try events.objects.sorted()
    var totals = Totals()
    while let (key, value) = try walk.next() {
      if key.hi == 0 {
        volume(key.lo, value)
        totals.volumes += 1
        continue
      }
      guard key.lo == 0, let record = ObjectRecord(decoding: value) else {
        findings.complain("the entry \(key.lo) of object \(key.hi) can't be decoded")
        continue
      }
      try object(ObjectID(key.hi), record, names, maps, &totals)
    }
    try verifier.finish(events)
    findings.counters.metadataNodes += walk.nodes
    return totals
  }

  private func object(
    _ id: ObjectID, _ record: ObjectRecord, _ names: SpillReader, _ maps: MapCheck,
    _ totals: inout Totals
  ) throws(CheckFailure) {
    findings.counters.objects += 1
    if id.raw >= members.root.nextObject {
      findings.complain("object \(id.raw) has an id that was not given out yet")
    }
    let isDeleted = state(of: id, names)
    if isDeleted {
      totals.deleted += 1
    } else if record.kind == .disk {
      totals.disks += 1
    }
    try maps.run(id, record, isDeleted: isDeleted)
    // Whether the counter is true is known of the map's walk.
    if isDeleted { totals.freeing &+= record.exclusiveBlocks }
    if record.isHidden { totals.held &+= record.exclusiveBlocks }
    let flags: UInt64 = (record.isHidden ? 1 : 0) | (record.inheritsMap ? 2 : 0)
    try event(
      id, .exists, UInt64(record.kind.rawValue) | UInt64(record.links) << 8 | flags << 48,
      UInt64(record.children) << 32 | UInt64(record.dependents), record.parentSnapshot.raw)
    if record.kind == .snapshot { try event(id, .taken, record.parent.raw) }
    try branch(id, record)
  }

  /// Whether the object is on the list of deleted ones.
  private func state(of id: ObjectID, _ names: SpillReader) -> Bool {
    var deleted = false
    while let r = names.head, r.a <= id.raw {
      if r.a == id.raw, r.c == ObjectEvent.deleted.rawValue { deleted = true }
      names.advance()
    }
    return deleted
  }

  private func volume(_ index: UInt64, _ value: UnsafeRawBufferPointer) {
    guard let record = VolumeRecord(decoding: value) else {
      findings.complain("the record of volume \(index) can't be decoded")
      return
    }
    guard index < UInt64(members.volumes.count) else {
      findings.complain("the pool has a record of volume \(index), but no such volume was named")
      return
    }
    let label = members.volumeLabels[Int(index)]
    if record.member != label.member {
      findings.complain("volume \(index) is another device than the one that the pool took in")
    }
    if record.sizeInBlocks != label.sizeInBlocks {
      findings.complain(
        "volume \(index) has \(label.sizeInBlocks) blocks by its label, but "
          + "\(record.sizeInBlocks) by the pool's record")
    }
  }

  // MARK: Branches

  private func branch(_ id: ObjectID, _ record: ObjectRecord) throws(CheckFailure) {
    if record.kind == .snapshot {
      try branches.add(
        SpillRecord(a: id.raw, b: 0, c: 0, d: record.instant, e: record.branchInstant))
      if record.instant == 0 {
        findings.complain("snapshot \(id.raw) has no instant")
      } else if record.instant >= members.root.nextInstant {
        findings.complain("the instant of snapshot \(id.raw) is in the future")
      }
    } else if record.instant != 0 {
      findings.complain("object \(id.raw) has an instant, but is no snapshot")
    }
    let parent = record.parentSnapshot.raw
    guard parent != 0 else {
      if record.branchInstant != 0, !record.inheritsMap {
        findings.complain(
          "object \(id.raw) has the branch instant \(record.branchInstant), but branches from "
            + "nothing")
      }
      return
    }
    try branches.add(
      SpillRecord(
        a: parent, b: 1, c: id.raw, d: record.branchInstant,
        e: record.kind == .snapshot ? record.instant : .max, f: record.inheritsMap ? 1 : 0))
  }

  /// Instants ascend along every branch, so that no object is before itself, and what was born
  /// after a child's branch instant was born after its parent.
  private func compareBranches() throws(CheckFailure) {
    let sorted = try branches.sorted()
    while let r = sorted.head {
      let instant = r.b == 0 ? r.d : nil
      if r.b == 0 { sorted.advance() }
      while let child = sorted.head, child.a == r.a {
        sorted.advance()
        // A parent without a record is told of with the objects.
        guard let instant else { continue }
        if child.d != instant, child.f == 0 {
          findings.complain(
            "object \(child.c) has the branch instant \(child.d), but the instant of snapshot "
              + "\(r.a), which it branches from, is \(instant)")
        }
        if child.e <= instant {
          findings.complain(
            "snapshot \(child.c) branches from snapshot \(r.a), but its instant \(child.e) is not "
              + "after that one's \(instant)")
        }
      }
    }
    try sorted.finish()
  }

  private func compareTotals(_ totals: Totals, deleted: UInt64, snapshots: UInt64) {
    func expect(_ what: String, _ stored: UInt64, _ counted: UInt64) {
      if stored != counted {
        findings.complain("the root records \(stored) \(what), but \(counted) were counted")
      }
    }
    expect("disks", members.root.disks, totals.disks)
    expect("snapshots", members.root.snapshots, snapshots)
    expect("deleted objects", members.root.deletedObjects, deleted)
    expect("blocks of deleted objects", members.root.freeingBlocks, totals.freeing)
    expect("blocks of hidden snapshots", members.root.heldBlocks, totals.held)
    // A new pool's volumes, and one that was added while a checkpoint was under way, are entered
    // by the next checkpoint.
    if totals.volumes > UInt64(members.root.volumes) {
      expect("volumes", UInt64(members.root.volumes), totals.volumes)
    }
  }

  // MARK: Names and the log

  /// Each name is taken and given up in turn.
  private func compareNames() throws(CheckFailure) {
    let names = try events.names.sorted()
    while let first = names.head {
      var holder: UInt64?
      while let r = names.head, (r.a, r.b, r.c) == (first.a, first.b, first.c) {
        let isRemoval = r.d & 1 != 0
        if isRemoval ? holder != r.e : holder != nil, !reader.isIncomplete {
          findings.complain(
            isRemoval
              ? "the log takes a name of object \(r.e) away that it does not have"
              : "the log gives object \(r.e) a name that is taken")
        }
        holder = isRemoval ? nil : r.e
        names.advance()
      }
    }
    try names.finish()
  }
}
