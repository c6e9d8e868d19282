import Core

/// What the names tree, the objects tree and the log say of each object, brought together.
struct ObjectStates {
  let findings: Findings
  /// Snapshots that have a name, of disks that are not deleted.
  private(set) var snapshots: UInt64 = 0

  private struct State {
    var kind: ObjectKind?
    var links: UInt64 = 0
    var isHidden = false
    /// What the record counts, and what was found.
    var countedChildren: UInt64 = 0
    var countedSnapshots: UInt64 = 0
    var children: UInt64 = 0
    var snapshots: UInt64 = 0
    /// Names of disks and directories that are filed under it.
    var entries: UInt64 = 0
    var parentSnapshot: UInt64 = 0
    var parents: UInt64 = 0
    var isParentListed = false
    var isDeleted = false
    var names: UInt64 = 0
    var namedKind: UInt64?
    var namedUnder: UInt64 = 0
    var disk: UInt64 = 0
    var lives: Bool { kind != nil && !isDeleted }
  }

  init(findings: Findings) { self.findings = findings }

  mutating func run(_ events: LogEvents) throws(CheckFailure) {
    let objects = try events.objects.sorted()
    let contents = try events.contents.sorted()
    while let id = first(objects.head?.a, contents.head?.a) {
      var state = State()
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

  private func first(_ a: UInt64?, _ b: UInt64?) -> UInt64? {
    guard let a, let b else { return a ?? b }
    return min(a, b)
  }

  private func note(_ r: SpillRecord, _ state: inout State) {
    switch ObjectEvent(rawValue: r.c) {
    case .exists:
      state.kind = ObjectKind(rawValue: UInt8(r.d & 0xFF))
      state.links = r.d >> 8 & 0xFFFF_FFFF
      state.isHidden = r.d >> 48 & 1 != 0
      state.countedChildren = r.e >> 32
      state.countedSnapshots = r.e & 0xFFFF_FFFF
      state.parentSnapshot = r.f
    case .deleted: state.isDeleted = true
    case .named:
      state.names += 1
      state.namedKind = r.d
      state.namedUnder = r.e
    case .taken: state.disk = r.d
    case .holds where r.d == UInt64(ObjectKind.snapshot.rawValue): state.snapshots += 1
    case .holds: state.entries += 1
    case .child: state.children += 1
    case .childOf:
      state.parents += 1
      if r.d == state.parentSnapshot { state.isParentListed = true }
    default: break
    }
  }

  // MARK: As of the checkpoint

  /// What must hold between the trees.
  private mutating func checkRoot(_ id: UInt64, _ state: State) {
    checkFiled(id, state)
    guard let kind = state.kind else {
      if state.names > 0 { findings.complain("a name leads to object \(id), which has no record") }
      if state.parents > 0 {
        findings.complain("object \(id) is listed as a snapshot's child, but has no record")
      }
      if state.isDeleted {
        findings.complain("object \(id) is on the list of deleted ones, but has no record")
      }
      return
    }
    checkPlace(id, state)
    if kind == .disk, !state.isDeleted { snapshots += state.snapshots }
    // The snapshots of a disk that is being freed lose their names before it does its count.
    let lacksNames = state.isDeleted && state.snapshots < state.countedSnapshots
    if kind == .disk, state.snapshots != state.countedSnapshots, !lacksNames {
      findings.complain(
        "disk \(id) counts \(state.countedSnapshots) snapshots, but has names of "
          + "\(state.snapshots)")
    }
    if kind == .snapshot, state.children != state.countedChildren {
      findings.complain(
        "snapshot \(id) counts \(state.countedChildren) children, but \(state.children) are listed")
    }
    if state.isHidden {
      checkHidden(id, state)
    } else if state.isDeleted {
      if state.names > 0 { findings.complain("object \(id) is deleted, but a name leads to it") }
      if kind == .snapshot, state.children > 1 {
        findings.complain(
          "snapshot \(id) is on the list of deleted ones, but has \(state.children) children")
      }
    } else {
      checkNames(id, state, kind)
    }
  }

  /// What is filed under an object is what an object of its kind can have.
  private func checkFiled(_ id: UInt64, _ state: State) {
    let isDirectory = state.kind == .directory || id == ObjectID.root.raw
    if state.entries > 0, !isDirectory {
      findings.complain("names of disks or directories are filed under object \(id), no directory")
    }
    if state.snapshots > 0, state.kind != .disk {
      findings.complain("names of snapshots are filed under object \(id), which is no disk")
    }
    if state.children > 0, state.kind != .snapshot {
      findings.complain("object \(id) is listed as a parent, but is no snapshot")
    }
  }

  /// The edge to the parent in the tree of snapshots is in record and names tree alike.
  private func checkPlace(_ id: UInt64, _ state: State) {
    if state.parentSnapshot != 0, !state.isParentListed {
      findings.complain(
        "object \(id) branches from snapshot \(state.parentSnapshot), but is not among the children "
          + "that are listed there")
    }
    if state.parents > (state.isParentListed ? 1 : 0) {
      findings.complain("object \(id) is listed as a child where it does not branch from")
    }
  }

  private func checkHidden(_ id: UInt64, _ state: State) {
    if state.kind != .snapshot { findings.complain("object \(id) is hidden, but is no snapshot") }
    if state.names > 0 { findings.complain("object \(id) is hidden, but a name leads to it") }
    if state.isDeleted {
      findings.complain("snapshot \(id) is hidden, but on the list of those being freed")
    }
    if state.children < 2 {
      findings.complain("snapshot \(id) is hidden, but has \(state.children) children")
    }
  }

  private func checkNames(_ id: UInt64, _ state: State, _ kind: ObjectKind) {
    if let named = state.namedKind, named != UInt64(kind.rawValue) {
      findings.complain("object \(id) is of another kind than its name says")
    }
    if kind == .snapshot, state.names > 0, state.namedUnder != state.disk {
      findings.complain(
        "snapshot \(id) is one of disk \(state.disk), but named under object \(state.namedUnder)")
    }
    guard id != ObjectID.root.raw else { return }
    if state.names != state.links {
      findings.complain("object \(id) has \(state.names) names, but counts \(state.links)")
    } else if state.names == 0 {
      findings.complain("object \(id) has no name and is not on the list of deleted ones")
    }
  }

  // MARK: In the log

  private func replay(_ r: SpillRecord, _ state: inout State) {
    switch ObjectEvent(rawValue: r.c) {
    case .create, .leftBehind:
      let isLeft = r.c == ObjectEvent.leftBehind.rawValue
      if state.kind != nil { findings.complain("the log creates object \(r.a), which exists") }
      state.kind = isLeft ? .disk : ObjectKind(rawValue: UInt8(truncatingIfNeeded: r.d))
      state.isDeleted = isLeft
    case .remove:
      if !state.lives { findings.complain("the log removes object \(r.a), which is not there") }
      checkKind(r, state)
      if state.kind == .disk, state.lives, r.e != state.snapshots {
        findings.complain(
          "the log removes disk \(r.a) with \(r.e) snapshots, but it has \(state.snapshots)")
      }
      state.isDeleted = true
    case .snapshot:
      require(.disk, r, state, "takes a snapshot of")
      state.snapshots += 1
    case .removeSnapshot:
      require(.disk, r, state, "removes a snapshot of")
      state.snapshots -= min(state.snapshots, 1)
    case .rollback: require(.disk, r, state, "rolls back")
    case .branch: require(.snapshot, r, state, "makes a branch of")
    default:
      if !state.lives { findings.complain("the log changes object \(r.a), which is not there") }
      if r.c == ObjectEvent.rename.rawValue { checkKind(r, state) }
    }
  }

  private func checkKind(_ r: SpillRecord, _ state: State) {
    if let kind = state.kind, UInt64(kind.rawValue) != r.d {
      findings.complain("the log takes object \(r.a) for one of another kind")
    }
  }

  private func require(_ kind: ObjectKind, _ r: SpillRecord, _ state: State, _ what: String) {
    if !state.lives {
      findings.complain("the log \(what) object \(r.a), which is not there")
    } else if state.kind != kind {
      findings.complain("the log \(what) object \(r.a), which is of another kind")
    }
  }
}
