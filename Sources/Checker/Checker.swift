import Core

/// Offline verification of a pool: recomputes from the newest root and the log what everything
/// must be, and compares. It shares only decoders with the engine, so that an error of the engine's
/// does not hide itself.
///
/// 1. Labels and roots (`MemberCheck`).
/// 2. The log, as recovery will read it (`LogCheck`); its records go to sorts.
/// 3. Catalog and maps (`CatalogCheck`): every node in both copies, every data block at its home,
///    except where the log holds a newer version. A map is walked next to that of the snapshot that
///    it branches from (`BranchWalk`), so that shared subtrees are read once, with their owner.
/// 4. Large writes of the log that are at home already (`LoggedExtents`).
/// 5. Owners of blocks against the space tree (`Ownership`).
///
/// Exact, of every object that is not being freed: what it shares is what its parent refers to, at
/// the same place; its dead list is what its parent refers to and it does not, data and nodes, each
/// once, with its birth; its counters. So each block has one owner, and all that refer to it branch
/// from the owner. Counters of an object with a parent are compared with the parent's recorded
/// ones, so that one wrong counter shows at each child again.
///
/// A merge under way is taken as done: both dead lists are one, of which what was born after the
/// branch is in use and nobody else's. That is exact as well, but for how the blocks are divided
/// between the records' counters until then.
///
/// Not exact: the used and metadata counters of a deleted object that shares with a snapshot, its
/// dead list, which may have been emptied in part, and what the root says that deleted objects
/// hold, while there is such an object. An extent of a shared leaf that reaches over the leaf's end
/// into an object's own next one is not noticed.
///
/// Memory is bounded whatever the pool's size: one node of each level of a tree, and sorts that go
/// to files. Nothing is written without `CheckOptions.repair`.
package struct Checker {
  package typealias Options = CheckOptions

  private let log: any CheckDevice
  private let volumes: [any CheckDevice]
  private let options: CheckOptions

  /// The pool's members, opened and locked by the caller; volumes in any order.
  package init(
    log: any CheckDevice, volumes: [any CheckDevice], options: CheckOptions = CheckOptions()
  ) {
    self.log = log
    self.volumes = volumes
    self.options = options
  }

  package func run() -> CheckReport {
    let findings = Findings(limit: options.maximumSentences)
    var names: DiskNames?
    do throws(CheckFailure) {
      try run(findings, &names)
      return findings.report { names?.name($0) ?? "object \($0.raw)" }
    } catch {
      var report = findings.report { names?.name($0) ?? "object \($0.raw)" }
      report.failure = error.description
      return report
    }
  }

  private func run(_ findings: Findings, _ names: inout DiskNames?) throws(CheckFailure) {
    let memberCheck = MemberCheck(options: options, findings: findings)
    let members = try memberCheck.run(log: log, volumes: volumes)
    findings.counters.volumes = members.volumes.count
    let outcome = try LogCheck(members: members, options: options, findings: findings).run()
    memberCheck.checkRoots(members, durableCheckpoint: outcome.durableCheckpoint)
    if Int(members.root.volumes) < members.volumes.count {
      findings.note(
        "volumes from \(members.root.volumes) on are labelled, but the newest checkpoint does not "
          + "know them yet")
    }

    let reader = NodeReader(members: members, options: options, findings: findings)
    names = DiskNames(reader: reader, root: members.root.objects, events: outcome.events)
    let owners = Ownership(members: members, options: options, findings: findings)
    try CatalogCheck(
      members: members, reader: reader, events: outcome.events, owners: owners, options: options,
      findings: findings
    ).run()
    try LoggedExtents(
      members: members, events: outcome.events, options: options, findings: findings,
      owners: owners
    ).run()
    let space = try TreeWalk(
      reader, root: members.root.space, kind: .space, owner: TreeOwner.space, findings: findings
    ) { pointer throws(CheckFailure) in try owners.addNode(pointer, of: TreeOwner.space) }
    while try space.next() != nil {}
    findings.counters.metadataNodes += space.nodes
    if reader.isIncomplete {
      findings.note("blocks without an owner were not looked for, as not all owners can be read")
    }
    try owners.compare(
      reader: reader, space: members.root.space, isComplete: !reader.isIncomplete)
    let events = outcome.events
    let spilled =
      owners.spilled + events.contents.spilled + events.objects.spilled + events.names.spilled
    findings.counters.spilledBytes = UInt64(spilled * MemoryLayout<SpillRecord>.stride)
  }
}

/// Names of disks for sentences: from the catalog, else from the log's create records.
struct DiskNames {
  let reader: NodeReader
  let root: NodePointer
  let events: LogEvents

  func name(_ id: ObjectID) -> String {
    var path = ""
    var at = id
    for _ in 0..<64 {
      guard let record = record(at) else {
        if path.isEmpty, let bytes = events.createdNames[at.raw] {
          path = String(decoding: bytes, as: UTF8.self)
        }
        break
      }
      let name = String(decoding: record.name, as: UTF8.self)
      if record.kind == .snapshot {
        path = "@" + name
      } else {
        path = name + (path.isEmpty || path.hasPrefix("@") ? "" : "/") + path
      }
      at = record.parent
      if at == .root { break }
    }
    return path.isEmpty ? "object \(id.raw)" : path
  }

  private func record(_ id: ObjectID) -> ObjectRecord? {
    let key = NodeKey(hi: id.raw, lo: 0)
    guard
      let walk = try? TreeWalk(
        again: reader, root: root, kind: .objects, owner: TreeOwner.objects, from: key),
      let entry = try? walk.next(), entry.key == key
    else { return nil }
    return ObjectRecord(decoding: entry.value)
  }
}
