import Core

// What the administrator does with snapshots and clones, and what must come of it.

extension Simulation {
  func administerSnapshots(_ operation: AdminOperation) {
    switch operation {
    case .snapshot: takeSnapshots(of: 1)
    case .snapshotGroup: takeSnapshots(of: 2 + Int(adminRandom.below(5)))
    case .clone, .cloneBatch: clone(isBatch: operation == .cloneBatch)
    case .deleteWithSnapshots: deleteWithSnapshots()
    case .listSnapshots: startSnapshotList()
    case .badSnapshot: badSnapshot()
    case .diff: startDiff()
    case .deleteSnapshot, .renameSnapshot, .holdSnapshot, .rollback:
      let snapshots = catalog.calmSnapshots
      if !snapshots.isEmpty { administerSnapshot(operation, adminRandom.pick(snapshots)) }
    default: invariantBroken("\(operation) is not about snapshots")
    }
  }

  private func administerSnapshot(_ operation: AdminOperation, _ snapshot: ModelDisk) {
    switch operation {
    case .deleteSnapshot:
      let request = ControlRequest.deleteSnapshot(snapshot.snapshotName)
      if snapshot.isHeld { return administer(request, .refused([.isHeld])) }
      if isConnected(snapshot) { return refuseInUse(snapshot, request) }
      administrator.keepsClosed = snapshot
      change(snapshot, .delete, request)
    case .renameSnapshot:
      guard let new = freeSnapshotName(snapshot.disk!) else { return }
      change(snapshot, .rename(to: new), .renameSnapshot(snapshot.snapshotName, to: new))
    case .holdSnapshot:
      // Few are held for long.
      let new = DiskAttributeChange(held: !snapshot.isHeld)
      change(snapshot, .set(new), .holdSnapshot(snapshot.snapshotName, !snapshot.isHeld))
    case .rollback: rollBack(snapshot.disk!, to: snapshot)
    default: invariantBroken("\(operation) is not about one snapshot")
    }
  }

  private func freeSnapshotName(_ disk: ModelDisk) -> String? {
    let name = "s\(1 + adminRandom.below(40))"
    return catalog.isTaken(name, of: disk) ? nil : name
  }

  // MARK: Making

  private func takeSnapshots(of count: Int) {
    var disks = catalog.calm
    guard !disks.isEmpty else { return }
    let room = profile.mostSnapshots - catalog.presentSnapshots.count
    let batch = ModelBatch(asked: table.now)
    var taken: [ModelDisk] = []
    while taken.count < min(count, room), !disks.isEmpty {
      let disk = disks.remove(at: Int(adminRandom.below(UInt64(disks.count))))
      guard let name = freeSnapshotName(disk) else { continue }
      taken.append(catalog.addSnapshot(of: disk, name: name, batch: batch))
    }
    guard !taken.isEmpty else { return }
    administer(.snapshot(taken.map(\.snapshotName)), .make(taken))
  }

  private func clone(isBatch: Bool) {
    let snapshots = catalog.calmSnapshots
    guard !snapshots.isEmpty, catalog.present.count < profile.mostDisks else { return }
    let snapshot = adminRandom.pick(snapshots)
    let batch = ModelBatch(asked: table.now)
    var names: [String] = []
    var request: ControlRequest
    if isBatch {
      let prefix = adminRandom.pick(["farm", "lab/farm", "vm"])
      let count = Int(adminRandom.within(profile.batch))
      names = (1...count).map { "\(prefix)-\($0)" }
      request = .clone(snapshot.snapshotName, name: prefix, count: count)
      // One that exists already: none may be made.
      if names.contains(where: catalog.isTaken) {
        if catalog.disks.contains(where: { names.contains($0.name) && $0.isInDoubt }) { return }
        return administer(request, .refused([.alreadyExists]))
      }
    } else {
      guard let name = freeName() else { return }
      names = [name]
      request = .clone(snapshot.snapshotName, name: name, count: nil)
    }
    let made = names.map {
      catalog.add(
        name: $0, size: snapshot.size, pool: pool.plan.durability, origin: snapshot, batch: batch)
    }
    administer(request, .make(made))
  }

  /// All of a group or batch was made.
  func made(_ all: [ModelDisk], _ call: ControlCall) {
    lastChangeAt = table.tick()
    if profile.flipTailOneIn == 0 { table.raiseDurable(to: call.asked) }
    all[0].batch!.made = lastChangeAt
    for one in all {
      one.commit(.create)
      if let disk = one.disk {
        one.model.seal()
        disk.forks.removeAll { $0 === one }
        disk.branchedAt = lastChangeAt
      } else {
        one.branchedAt = lastChangeAt
      }
    }
    switch (all[0].isSnapshot, all.count) {
    case (true, 1): harness[.snapshotMade] += 1
    case (true, _): harness[.groupMade] += 1
    case (false, 1): harness[.cloneMade] += 1
    case (false, _): harness[.batchMade] += 1
    }
  }

  func makingFailed(
    _ call: ControlCall, _ all: [ModelDisk], _ error: ControlError
  ) throws(Violation) {
    if case .noSpace = error, profile.mayFill {
      for one in all { one.vanish() }
      return
    }
    guard isPassing(error, call) else {
      throw Violation("\(all[0].title) could not be made: \(error)")
    }
    for one in all { one.isInDoubt = true }
  }

  // MARK: Rollback and deletion

  private func rollBack(_ disk: ModelDisk, to snapshot: ModelDisk) {
    let isForced = adminRandom.oneIn(2)
    let request = ControlRequest.rollback(snapshot.snapshotName, force: isForced)
    if !isForced && isConnected(disk) { return refuseInUse(disk, request) }
    if !isForced { administrator.keepsClosed = disk }
    disk.beginRollback(to: snapshot, open: requests.openVersions(of: disk), table)
    change(disk, .rollback(to: snapshot), request)
  }

  private func deleteWithSnapshots() {
    let disks = catalog.calm.filter { disk in
      let snapshots = catalog.snapshots(of: disk)
      return !snapshots.isEmpty && snapshots.allSatisfy(\.isCalm)
    }
    guard catalog.present.count > 1, !disks.isEmpty else { return }
    let disk = adminRandom.pick(disks)
    let request = ControlRequest.delete(name: disk.name, withSnapshots: true, force: true)
    if catalog.snapshots(of: disk).contains(where: \.isHeld) {
      return administer(request, .refused([.isHeld]))
    }
    change(disk, .delete, request)
  }

  // MARK: Lists

  private func startSnapshotList() {
    administrator.listedSnapshots = []
    let disks = catalog.calm
    let disk = adminRandom.oneIn(2) && !disks.isEmpty ? adminRandom.pick(disks) : nil
    administer(
      .listSnapshots(disk: disk?.name, cursor: nil, limit: 1 + Int(adminRandom.below(9))),
      .listSnapshots(disk))
  }

  func continueSnapshotList(_ disk: ModelDisk?, _ cursor: UInt64) {
    administer(
      .listSnapshots(disk: disk?.name, cursor: cursor, limit: 1 + Int(adminRandom.below(9))),
      .listSnapshots(disk))
  }

  func checkSnapshotList(_ disk: ModelDisk?) throws(Violation) {
    let listed = administrator.listedSnapshots
    let wanted = catalog.snapshots.filter {
      $0.existence == .present && !$0.isInDoubt && (disk == nil || $0.disk === disk)
        && !$0.disk!.isInDoubt
    }
    for snapshot in wanted {
      let found = listed.filter { $0.disk == snapshot.disk!.name && $0.name == snapshot.name }
      guard found.count == 1 else {
        throw Violation("\(snapshot.title) is listed \(found.count) times")
      }
      try snapshot.check(found[0])
      try catalog.checkPlace(snapshot, found[0])
      try catalog.note(found[0].id, of: snapshot)
    }
    let inDoubt = catalog.all.contains { $0.existence != .gone && $0.isInDoubt }
    if listed.count > wanted.count && !inDoubt {
      throw Violation("\(listed.count) snapshots are listed, of \(wanted.count)")
    }
    if disk != nil, listed.map(\.id) != listed.map(\.id).sorted() {
      throw Violation("the snapshots of one disk are not listed oldest first")
    }
  }

  // MARK: Refusals

  private func badSnapshot() {
    let disks = catalog.calm
    guard let disk = disks.first else { return }
    let new = SnapshotName(disk: disk.name, snapshot: "never")
    let nowhere = SnapshotName(disk: "nothing-here", snapshot: "s")
    let snapshot = catalog.calmSnapshots.first
    switch adminRandom.below(9) {
    case 0: administer(.snapshot([new, nowhere]), .refused([.noSuchDisk]))
    case 1: administer(.snapshot([new, new]), .refused([.badName]))
    case 2: administer(.deleteSnapshot(new), .refused([.noSuchSnapshot]))
    case 3: administer(.rollback(new, force: true), .refused([.noSuchSnapshot]))
    case 4: administer(.clone(new, name: "copy", count: nil), .refused([.noSuchSnapshot]))
    case 5:
      administer(
        .snapshot([SnapshotName(disk: disk.name, snapshot: "a/b")]), .refused([.badName]))
    case 6:
      guard let snapshot, disks.count > 1 else { return }
      let other = disks.first { $0 !== snapshot.disk }!
      let names = [SnapshotName(disk: other.name, snapshot: "never"), snapshot.snapshotName]
      administer(.snapshot(names), .refused([.snapshotExists]))
    case 7:
      guard let snapshot else { return }
      administer(
        .clone(snapshot.snapshotName, name: disk.name, count: nil), .refused([.alreadyExists]))
    default:
      guard let snapshot, let other = disks.first(where: { $0 !== snapshot.disk }) else { return }
      administer(
        .diff(snapshot.snapshotName, to: .disk(other.name), from: 0, limit: 9),
        .refused([.notOfOneLine]))
    }
  }
}
