import Core

// The map and the dead list of one object, with what its record says of them. An object that inherits its
// map has a delta at most (`DeltaCheck`).
//
// An object whose snapshot is being merged into it is taken as if that were done: it branches from
// what the snapshot branched from, the dead lists of both are one, and what is on them and was born
// after that branch is in use, but nobody's: it is what the merge has yet to free.

/// What the walks of maps share.
struct MapCheck {
  let members: PoolMembers
  let reader: NodeReader
  let owners: Ownership
  let lineage: Lineage
  let coverage: LogCoverage
  let verifier: HomeVerifier
  let options: CheckOptions
  let findings: Findings

  /// Checks what the object refers to, and what of it is its own.
  func run(_ id: ObjectID, _ record: ObjectRecord, isDeleted: Bool) throws(CheckFailure) {
    if record.inheritsMap { return try inherited(id, record, isDeleted: isDeleted) }
    let link = Link(id: id.raw, record: record, isDeleted: isDeleted)
    // Its only child's walk takes it in.
    if try lineage.isMerging(link) { return }
    let branch = try lineage.branch(of: record)
    var visit = Visit(check: self, id: id, record: record, branch: branch, isDeleted: isDeleted)
    try visit.run()
  }

  private func inherited(
    _ id: ObjectID, _ record: ObjectRecord, isDeleted: Bool
  ) throws(CheckFailure) {
    func expect(_ isRight: Bool, _ what: String) {
      if !isRight { findings.complain("object \(id.raw) inherits its map, but \(what)") }
    }
    expect(record.deadList.isNone, "has a dead list")
    expect(record.parentSnapshot.raw != 0, "branches from nothing")
    expect(record.kind == .disk, "is no disk")
    expect(
      record.dead == DeadCounts() && record.deadOfParentOnly == 0, "counts blocks on a dead list")
    guard record.map.isNone else {
      var delta = DeltaCheck(check: self, id: id, record: record, isDeleted: isDeleted)
      return try delta.run()
    }
    expect(
      record.usedBlocks == 0 && record.exclusiveBlocks == 0 && record.metadataBlocks == 0,
      "counts blocks of its own")
  }
}

/// One object on its walk.
private struct Visit: BranchVisitor {
  let check: MapCheck
  let id: ObjectID
  let record: ObjectRecord
  let branch: Branch
  let isDeleted: Bool
  private let dead: DeadListCheck
  private var nodes: UInt64 = 0
  private var blocks: UInt64 = 0
  /// Of the blocks, those born after the branch instant of the record itself.
  private var exclusive: UInt64 = 0
  /// Data on the lists that a merge has yet to free.
  private var unfreed: UInt64 = 0
  private var deadNodes: UInt64 = 0

  init(check: MapCheck, id: ObjectID, record: ObjectRecord, branch: Branch, isDeleted: Bool) {
    self.check = check
    self.id = id
    self.record = record
    self.branch = branch
    self.isDeleted = isDeleted
    dead = DeadListCheck(
      object: id, members: check.members, options: check.options, findings: check.findings)
  }

  private var findings: Findings { check.findings }

  /// Of a deleted object the map may be a remainder and the list partly emptied.
  mutating func run() throws(CheckFailure) {
    let failures = check.reader.failures
    var walk = BranchWalk(
      reader: check.reader, object: id, map: record.map, branch: branch, isRemainder: isDeleted,
      findings: findings)
    try walk.run(&self)
    try lists()
    findings.counters.metadataNodes += nodes + deadNodes
    findings.counters.dataBlocks += blocks
    if check.reader.failures == failures, !branch.isBroken {
      if !isDeleted, walk.isExact { try dead.compare() }
      counters(isExact: walk.isExact)
    }
    check.owners.add(spilled: dead.spilled)
  }

  // MARK: What the walk finds

  mutating func own(_ node: NodePointer) throws(CheckFailure) {
    nodes += 1
    if record.kind == .snapshot, node.birth > record.instant { late("a node", node.birth) }
    try check.owners.addNode(node, of: id)
  }

  mutating func own(_ extent: Extent) throws(CheckFailure) {
    blocks += extent.count
    if extent.birth > record.branchInstant { exclusive += extent.count }
    if record.kind == .snapshot, extent.birth > record.instant {
      late("block \(extent.first)", extent.birth)
    } else if extent.birth > check.members.root.nextInstant {
      findings.complain(
        "an extent of object \(id.raw) at block \(extent.first) is born in the future")
    }
    guard check.members.isHome(extent.address, count: extent.count) else {
      findings.complain(
        "the map of object \(id.raw) leads to volume \(extent.address.volume), offset "
          + "\(extent.address.byteOffset), which no volume has")
      return
    }
    try check.owners.add(
      extent.address, count: extent.count, kind: .data, object: id, block: extent.first)
    try check.verifier.verify(
      extent.address, checksums: extent.checksums(), object: id, block: extent.first, what: "data",
      others: heirs
    ) { check.coverage.covers(id, block: $0) }
  }

  mutating func gone(_ node: NodePointer) throws(CheckFailure) {
    if !isDeleted { try dead.expect(node) }
  }

  mutating func gone(_ extent: Extent, count: UInt64) throws(CheckFailure) {
    if !isDeleted { try dead.expect(extent.address, count: count, birth: extent.birth) }
  }

  private func late(_ what: String, _ birth: Instant) {
    findings.complain(
      "snapshot \(id.raw) holds \(what), born at \(birth), after its instant \(record.instant)")
  }

  /// Whose content of the log may be on its way to a home of a snapshot's: the disk's that it was
  /// taken of, and the only child's, should the snapshot be deleted by now.
  private func heirs() throws(CheckFailure) -> [ObjectID] {
    guard record.kind == .snapshot else { return [] }
    guard record.children == 1, let child = try check.lineage.child(of: id.raw) else {
      return [record.parent]
    }
    return [record.parent, ObjectID(child.id)]
  }

  // MARK: Dead lists

  /// Reads the object's list, and those of what is merged into it.
  private mutating func lists() throws(CheckFailure) {
    try list(of: id, record)
    for link in branch.merging { try list(of: ObjectID(link.id), link.record) }
  }

  private mutating func list(of id: ObjectID, _ record: ObjectRecord) throws(CheckFailure) {
    let owners = check.owners
    let walk = try TreeWalk(
      check.reader, root: record.deadList, kind: .deadList, owner: id, findings: findings
    ) { pointer throws(CheckFailure) in try owners.addNode(pointer, of: id) }
    if record.parentSnapshot.raw == 0, !record.deadList.isNone {
      findings.complain("object \(id.raw) has a dead list, but branches from nothing")
    }
    let failures = check.reader.failures
    var counts = DeadCounts()
    var ofParentOnly: UInt64 = 0
    while let (key, value) = try walk.next() {
      guard let entry = DeadEntry(birth: key.hi, address: key.lo, value: value) else { continue }
      switch entry {
      case .blocks(_, let count, let birth):
        counts.dataBlocks += UInt64(count)
        if birth > record.parentBranchInstant { ofParentOnly += UInt64(count) }
      case .node: counts.nodeBlocks += 2
      }
      try self.entry(entry, of: id)
    }
    deadNodes += walk.nodes
    guard check.reader.failures == failures else { return }
    compare(id, "data blocks on its dead list", record.dead.dataBlocks, counts.dataBlocks)
    compare(id, "blocks of nodes on its dead list", record.dead.nodeBlocks, counts.nodeBlocks)
    // Out of date once the parent was merged with what was before it.
    let parent = try check.lineage.link(record.parentSnapshot.raw)
    if !isDeleted, parent?.record.branchInstant == record.parentBranchInstant {
      compare(
        id, "dead blocks of its parent alone", record.deadOfParentOnly, ofParentOnly)
    }
  }

  private mutating func entry(_ entry: DeadEntry, of id: ObjectID) throws(CheckFailure) {
    guard check.isOnVolumes(entry) else {
      findings.complain(
        "the dead list of object \(id.raw) names volume \(entry.address.volume), offset "
          + "\(entry.address.byteOffset), which no volume has")
      return
    }
    guard entry.birth > branch.instant else { return isDeleted ? () : try dead.add(entry) }
    guard !branch.merging.isEmpty else {
      findings.complain(
        "the dead list of object \(id.raw) names volume \(entry.address.volume), offset "
          + "\(entry.address.byteOffset), born at \(entry.birth), after its branch")
      return
    }
    if case .blocks(_, let count, _) = entry { unfreed += UInt64(count) }
    try check.owners.add(entry, of: id)
  }

  // MARK: Counters

  private func compare(_ id: ObjectID, _ what: String, _ stored: UInt64, _ counted: UInt64) {
    if stored != counted {
      findings.complain(
        "object \(id.raw) is recorded with \(stored) \(what), but \(counted) were counted")
    }
  }

  private func counters(isExact: Bool) {
    compare(id, "blocks of its own", record.exclusiveBlocks, exclusive)
    if !branch.merging.isEmpty {
      let stored = branch.merging.reduce(record.exclusiveBlocks) { $0 &+ $1.record.exclusiveBlocks }
      compare(
        id, "blocks of its own and of the snapshots that are merged into it", stored,
        blocks + unfreed)
    }
    guard isExact else { return }
    guard let parent = branch.parent?.record else {
      compare(id, "blocks in use", record.usedBlocks, blocks)
      compare(id, "metadata blocks", record.metadataBlocks, 2 * nodes)
      return
    }
    // What it shares with its parent is what the parent refers to less what was given up. Of a map
    // that is being pruned, only what is left is known, and not how much of that is shared.
    guard !isDeleted else { return }
    compare(
      id, "blocks in use", record.usedBlocks,
      parent.usedBlocks &- dead.counts.dataBlocks &+ blocks)
    compare(
      id, "metadata blocks", record.metadataBlocks,
      parent.metadataBlocks &- dead.counts.nodeBlocks &+ 2 * nodes)
  }
}

extension MapCheck {
  fileprivate func isOnVolumes(_ entry: DeadEntry) -> Bool {
    switch entry {
    case .blocks(let first, let count, _): members.isHome(first, count: UInt64(count))
    case .node(let first, let second, _):
      members.isHome(first, count: 1) && members.isHome(second, count: 1)
    }
  }
}
