import Core

// The catalog and the maps: objects tree, names tree, and the extent map of every disk, walked once
// from the root; then compared with each other and with what the log says happened since.

struct CatalogCheck {
  let members: PoolMembers
  let reader: NodeReader
  let events: LogEvents
  let owners: Ownership
  let options: CheckOptions
  let findings: Findings

  private struct Totals {
    var disks: UInt64 = 0
    var deleted: UInt64 = 0
    var freeing: UInt64 = 0
    var volumes: UInt64 = 0
  }

  func run() throws(CheckFailure) {
    let deleted = try walkNames()
    let totals = try walkObjects()
    if !reader.isIncomplete {
      try compareObjects()
      compareTotals(totals, deleted: deleted)
    }
    try compareNames()
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
      guard let entries = NameEntry.decode(value), !entries.isEmpty else {
        findings.complain("the names of directory \(key.hi) with hash \(key.lo) can't be decoded")
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
    try events.names.add(
      SpillRecord(
        a: key.hi, b: key.lo, c: UInt64(entry.name.withUnsafeBytes { crc32c($0) }), d: 0,
        e: entry.object.raw))
  }

  private func event(
    _ object: ObjectID, _ type: ObjectEvent, _ d: UInt64 = 0, _ e: UInt64 = 0
  ) throws(CheckFailure) {
    try events.objects.add(SpillRecord(a: object.raw, b: 0, c: type.rawValue, d: d, e: e))
  }

  // MARK: Objects

  private func walkObjects() throws(CheckFailure) -> Totals {
    let coverage = try LogCoverage(events)
    let verifier = try HomeVerifier(members: members, findings: findings)
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
      let id = ObjectID(key.hi)
      findings.counters.objects += 1
      let isDeleted = state(of: id, names)
      if isDeleted {
        totals.deleted += 1
      } else if record.kind == .disk {
        totals.disks += 1
      }
      let held = try map(id, record, coverage, verifier)
      if isDeleted { totals.freeing += held }
      try event(id, .exists, UInt64(record.kind.rawValue) | UInt64(record.links) << 8)
    }
    findings.counters.metadataNodes += walk.nodes
    return totals
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

  /// Walks the map of an object, verifies its data and counters. Returns the blocks it holds.
  private func map(
    _ id: ObjectID, _ record: ObjectRecord, _ coverage: LogCoverage, _ verifier: HomeVerifier
  ) throws(CheckFailure) -> UInt64 {
    if id.raw >= members.root.nextObject {
      findings.complain("object \(id.raw) has an id that was not given out yet")
    }
    let wasIncomplete = reader.isIncomplete
    let walk = try TreeWalk(
      reader, root: record.map, kind: .extents, owner: id, findings: findings
    ) { pointer throws(CheckFailure) in try owners.addNode(pointer, of: id) }
    var used: UInt64 = 0
    var exclusive: UInt64 = 0
    var end: UInt64 = 0
    while let (key, value) = try walk.next() {
      guard let extent = Extent(key, value), extent.first >= end else {
        findings.complain(
          "the map of object \(id.raw) holds an extent at block \(key.hi) that makes no sense")
        continue
      }
      end = extent.first + extent.count
      used += extent.count
      if extent.birth > record.branchInstant { exclusive += extent.count }
      if extent.birth > members.root.nextInstant {
        findings.complain("an extent of object \(id.raw) at block \(key.hi) is born in the future")
      }
      try self.extent(id, extent, coverage, verifier)
    }
    let dead = try deadList(id, record)
    findings.counters.metadataNodes += walk.nodes + dead
    findings.counters.dataBlocks += used
    if reader.isIncomplete == wasIncomplete {
      compare(id, "blocks in use", record.usedBlocks, used)
      compare(id, "blocks of its own", record.exclusiveBlocks, exclusive)
      compare(id, "metadata blocks", record.metadataBlocks, 2 * (walk.nodes + dead))
    }
    return used + 2 * (walk.nodes + dead)
  }

  private func extent(
    _ id: ObjectID, _ extent: Extent, _ coverage: LogCoverage, _ verifier: HomeVerifier
  ) throws(CheckFailure) {
    guard members.isHome(extent.address, count: extent.count) else {
      findings.complain(
        "the map of object \(id.raw) leads to volume \(extent.address.volume), offset "
          + "\(extent.address.byteOffset), which no volume has")
      return
    }
    try owners.add(
      extent.address, count: extent.count, kind: .data, object: id, block: extent.first)
    verifier.verify(
      extent.address, checksums: extent.checksums, object: id, block: extent.first, what: "data"
    ) { coverage.covers(id, block: $0) }
  }

  /// Walks a dead list's nodes; what its entries mean comes with snapshots.
  private func deadList(_ id: ObjectID, _ record: ObjectRecord) throws(CheckFailure) -> UInt64 {
    guard !record.deadList.isNone else { return 0 }
    let walk = try TreeWalk(
      reader, root: record.deadList, kind: .deadList, owner: id, findings: findings
    ) { pointer throws(CheckFailure) in try owners.addNode(pointer, of: id) }
    while try walk.next() != nil {}
    return walk.nodes
  }

  private func compare(_ id: ObjectID, _ what: String, _ stored: UInt64, _ counted: UInt64) {
    if stored != counted {
      findings.complain(
        "object \(id.raw) is recorded with \(stored) \(what), but \(counted) were counted")
    }
  }

  private func compareTotals(_ totals: Totals, deleted: UInt64) {
    func expect(_ what: String, _ stored: UInt64, _ counted: UInt64) {
      if stored != counted {
        findings.complain("the root records \(stored) \(what), but \(counted) were counted")
      }
    }
    expect("disks", members.root.disks, totals.disks)
    expect("deleted objects", members.root.deletedObjects, deleted)
    expect("blocks of deleted objects", members.root.freeingBlocks, totals.freeing)
    // A new pool's volumes, and one that was added while a checkpoint was under way, are entered
    // by the next checkpoint.
    if totals.volumes > UInt64(members.root.volumes) {
      expect("volumes", UInt64(members.root.volumes), totals.volumes)
    }
  }

  // MARK: Objects and names together, and what the log did to them

  private struct ObjectState {
    var kind: UInt64?
    var links: UInt64 = 0
    var isDeleted = false
    var names: UInt64 = 0
    var namedKind: UInt64?
    var lives: Bool { kind != nil && !isDeleted }
  }

  private func compareObjects() throws(CheckFailure) {
    let objects = try events.objects.sorted()
    let contents = try events.contents.sorted()
    while let id = min(objects.head?.a, contents.head?.a) {
      var state = ObjectState()
      while let r = objects.head, r.a == id, r.b == 0 {
        note(r, &state)
        objects.advance()
      }
      checkRoot(id, state)
      var wasKnown = state.kind != nil
      while let r = objects.head, r.a == id {
        replay(r, &state)
        if r.c == ObjectEvent.create.rawValue { wasKnown = true }
        objects.advance()
      }
      if contents.head?.a == id, !wasKnown {
        findings.complain("the log holds blocks of object \(id), which never was")
      }
      while contents.head?.a == id { contents.advance() }
    }
    try objects.finish()
    try contents.finish()
  }

  private func min(_ a: UInt64?, _ b: UInt64?) -> UInt64? {
    guard let a, let b else { return a ?? b }
    return Swift.min(a, b)
  }

  private func note(_ r: SpillRecord, _ state: inout ObjectState) {
    switch ObjectEvent(rawValue: r.c) {
    case .exists:
      state.kind = r.d & 0xFF
      state.links = r.d >> 8
    case .deleted: state.isDeleted = true
    case .named:
      state.names += 1
      state.namedKind = r.d
    default: break
    }
  }

  /// What must hold between the trees as of the checkpoint.
  private func checkRoot(_ id: UInt64, _ state: ObjectState) {
    guard let kind = state.kind else {
      if state.names > 0 { findings.complain("a name leads to object \(id), which has no record") }
      if state.isDeleted {
        findings.complain("object \(id) is on the list of deleted ones, but has no record")
      }
      return
    }
    if state.isDeleted {
      if state.names > 0 { findings.complain("object \(id) is deleted, but a name leads to it") }
      return
    }
    if let named = state.namedKind, named != kind {
      findings.complain("object \(id) is of another kind than its name says")
    }
    guard id != ObjectID.root.raw else { return }
    if state.names != state.links {
      findings.complain("object \(id) has \(state.names) names, but counts \(state.links)")
    } else if state.names == 0 {
      findings.complain("object \(id) has no name and is not on the list of deleted ones")
    }
  }

  private func replay(_ r: SpillRecord, _ state: inout ObjectState) {
    switch ObjectEvent(rawValue: r.c) {
    case .create:
      if state.kind != nil { findings.complain("the log creates object \(r.a), which exists") }
      state.kind = r.d
      state.isDeleted = false
    case .remove:
      if !state.lives { findings.complain("the log removes object \(r.a), which is not there") }
      state.isDeleted = true
    default:
      if !state.lives { findings.complain("the log changes object \(r.a), which is not there") }
    }
  }

  /// Each name is taken and given up in turn.
  private func compareNames() throws(CheckFailure) {
    let names = try events.names.sorted()
    while let first = names.head {
      var taken = false
      while let r = names.head, (r.a, r.b, r.c) == (first.a, first.b, first.c) {
        let isRemoval = r.d & 1 != 0
        if isRemoval != taken, !reader.isIncomplete {
          findings.complain(
            isRemoval
              ? "the log takes a name of object \(r.e) away that it does not have"
              : "the log gives object \(r.e) a name that is taken")
        }
        taken = !isRemoval
        names.advance()
      }
    }
    try names.finish()
  }
}

/// A decoded extent of a map.
private struct Extent {
  var first: UInt64
  var count: UInt64
  var address: BlockAddress
  var birth: Instant
  var checksums: [UInt32]

  /// Nil when the value makes no sense.
  init?(_ key: NodeKey, _ value: UnsafeRawBufferPointer) {
    guard key.lo == 0, value.count > ExtentFormat.headerSize, let p = value.baseAddress else {
      return nil
    }
    let length = Int(p.u16(16))
    guard (1...ExtentFormat.maximumLength).contains(length),
      value.count == ExtentFormat.size(length), p.u16(18) == 0,
      p.u32(20) == UInt32(length * blockSize), key.hi <= BlockIndex.limit - UInt64(length)
    else { return nil }
    first = key.hi
    count = UInt64(length)
    address = BlockAddress(raw: p.u64(0))
    birth = p.u64(8)
    checksums = (0..<length).map { p.u32(ExtentFormat.headerSize + 4 * $0) }
  }
}
