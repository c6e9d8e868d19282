import Core

/// All disks and snapshots of a run, by the names that they have or may have.
struct CatalogModel {
  private(set) var disks: [ModelDisk] = []
  private(set) var snapshots: [ModelDisk] = []
  private var seenIDs: [ObjectID: Int] = [:]
  private var lastNumber: UInt16 = 0

  private var nextSerial: Int { disks.count + snapshots.count }

  mutating func add(
    name: String, size: UInt64, pool: Durability, origin: ModelDisk? = nil,
    batch: ModelBatch? = nil
  ) -> ModelDisk {
    lastNumber += 1
    let disk = ModelDisk(
      serial: nextSerial, number: lastNumber, name: name, size: size, pool: pool, origin: origin,
      batch: batch)
    disks.append(disk)
    return disk
  }

  mutating func addSnapshot(of disk: ModelDisk, name: String, batch: ModelBatch) -> ModelDisk {
    let snapshot = ModelDisk(serial: nextSerial, of: disk, name: name, batch: batch)
    snapshots.append(snapshot)
    return snapshot
  }

  /// Disks and snapshots.
  var all: [ModelDisk] { disks + snapshots }

  /// Disks that exist and are not about to change their existence.
  var present: [ModelDisk] { disks.filter { $0.existence == .present && !$0.isBeingDeleted } }
  var presentSnapshots: [ModelDisk] {
    snapshots.filter { $0.existence == .present && !$0.isBeingDeleted }
  }

  /// Present disks without a pending change.
  var calm: [ModelDisk] { disks.filter(\.isCalm) }
  var calmSnapshots: [ModelDisk] { snapshots.filter(\.isCalm) }

  /// What is in doubt, or may be there or not.
  var isInDoubt: Bool { all.contains { $0.existence != .gone && $0.isInDoubt } }

  /// The snapshots of a disk that are not gone, oldest first.
  func snapshots(of disk: ModelDisk) -> [ModelDisk] {
    snapshots.filter { $0.disk === disk && $0.existence != .gone }
  }

  func clones(of snapshot: ModelDisk) -> [ModelDisk] {
    disks.filter { $0.origin === snapshot && $0.existence != .gone }
  }

  /// Whether some disk has the name, or may come to have it.
  func isTaken(_ name: String) -> Bool { disks.contains { hasName($0, name) } }

  func isTaken(_ name: String, of disk: ModelDisk) -> Bool {
    snapshots.contains { $0.disk === disk && hasName($0, name) }
  }

  private func hasName(_ disk: ModelDisk, _ name: String) -> Bool {
    guard disk.existence != .gone else { return false }
    if disk.name == name { return true }
    if case .rename(let new) = disk.pending { return new == name }
    return false
  }

  /// Remembers an id, and that nothing else ever had it.
  mutating func note(_ id: ObjectID, of disk: ModelDisk) throws(Violation) {
    if let other = seenIDs[id], other != disk.serial {
      throw Violation("\(disk.title) has id \(id.raw), which another object had before")
    }
    seenIDs[id] = disk.serial
  }

  /// A disk is gone, and its snapshots with it.
  func dropSnapshots(of disk: ModelDisk) {
    for snapshot in snapshots(of: disk) { snapshot.vanish() }
  }

  // MARK: What is shown

  /// Checks what the engine says of a disk's place among snapshots.
  func checkPlace(_ disk: ModelDisk, _ info: DiskInfo) throws(Violation) {
    let own = snapshots(of: disk)
    if !own.contains(where: \.isInDoubt), info.snapshots != own.count {
      throw Violation("\(disk.title) is shown with \(info.snapshots) snapshots, not \(own.count)")
    }
    guard let origin = disk.origin else {
      if let shown = info.origin {
        throw Violation("\(disk.title) is shown as a clone of \(shown)")
      }
      return
    }
    if origin.isInDoubt || origin.disk!.isInDoubt { return }
    let wanted = origin.existence == .gone ? nil : origin.fullName
    if info.origin != wanted {
      throw Violation(
        "\(disk.title) is shown as a clone of \(info.origin ?? "nothing"), not of "
          + (wanted ?? "nothing that exists"))
    }
  }

  func checkPlace(_ snapshot: ModelDisk, _ info: SnapshotInfo) throws(Violation) {
    let own = clones(of: snapshot)
    if !own.contains(where: \.isInDoubt), info.clones != own.count {
      throw Violation("\(snapshot.title) is shown with \(info.clones) clones, not \(own.count)")
    }
  }

  // MARK: After a crash

  /// Makes the model agree with complete lists after a crash: whatever was pending has happened
  /// or not, everything else must be there as it was.
  mutating func resolve(
    _ list: [DiskInfo], _ snapshotList: [SnapshotInfo], _ table: inout WriteTable,
    _ harness: inout HarnessCounters
  ) throws(Violation) {
    let made = all.filter {
      if case .create = $0.pending { $0.batch != nil } else { false }
    }
    var infos: [(ModelDisk, DiskInfo)] = []
    try resolveDisks(list, &infos, &table)
    try resolveSnapshots(snapshotList)
    for (disk, info) in infos { try checkPlace(disk, info) }
    for disk in made {
      if made.contains(where: { $0.batch === disk.batch && $0.existence != disk.existence }) {
        throw Violation("\(disk.title) is there in part: not all that was to be made with it is")
      }
      let isThere = disk.existence == .present
      if disk.isSnapshot {
        harness[isThere ? .groupKept : .groupLost] += 1
      } else {
        harness[isThere ? .batchKept : .batchLost] += 1
      }
      if isThere, disk.isSnapshot {
        // A mark is durable, and the log is a prefix.
        table.raiseDurable(to: disk.batch!.asked)
        disk.batch!.made = table.now
        disk.disk!.branchedAt = table.now
      }
    }
  }

  private mutating func resolveDisks(
    _ list: [DiskInfo], _ infos: inout [(ModelDisk, DiskInfo)], _ table: inout WriteTable
  ) throws(Violation) {
    var byName: [String: DiskInfo] = [:]
    for info in list {
      if byName.updateValue(info, forKey: info.name) != nil {
        throw Violation("“\(info.name)” is listed twice")
      }
    }
    for disk in disks where disk.existence != .gone {
      guard let info = try settle(disk, &byName, &table) else {
        dropSnapshots(of: disk)
        continue
      }
      try disk.check(info)
      try note(info.id, of: disk)
      infos.append((disk, info))
    }
    if let stranger = list.first(where: { byName[$0.name] != nil }) {
      throw Violation("disk “\(stranger.name)” is listed, but was deleted or never created")
    }
  }

  /// Settles one disk's pending change and takes its entry out of `byName`; nil when it is gone.
  private func settle(
    _ disk: ModelDisk, _ byName: inout [String: DiskInfo], _ table: inout WriteTable
  ) throws(Violation) -> DiskInfo? {
    let old = byName.removeValue(forKey: disk.name)
    let change = disk.pending
    disk.pending = nil
    disk.isInDoubt = false
    switch change {
    case .create, .delete:
      if old == nil { disk.vanish() } else { disk.existence = .present }
      return old
    case .rename(let new):
      if let moved = byName.removeValue(forKey: new) {
        if old != nil { throw Violation("“\(disk.name)” was renamed, but has both names") }
        disk.commit(.rename(to: new))
        return moved
      }
    case .resize(let new, let cut): settleResize(disk, old?.size == new, new, cut, &table)
    case .set(let change):
      guard let old else { break }
      var seen = DiskAttributeChange()
      if change.durability == old.durability { seen.durability = old.durability }
      if change.readOnly == old.readOnly { seen.readOnly = old.readOnly }
      if change.comment == old.comment { seen.comment = old.comment }
      disk.commit(.set(seen))
    case .rollback(let snapshot):
      // Where the sizes are the same, only the content tells.
      if let old, snapshot.size != disk.size {
        disk.decideRollback(old.size == snapshot.size, at: table.tick())
        disk.size = old.size == snapshot.size ? snapshot.size : disk.size
      }
    case nil: break
    }
    guard let old else { throw Violation("disk “\(disk.name)” is gone") }
    return old
  }

  private func settleResize(
    _ disk: ModelDisk, _ happened: Bool, _ size: UInt64, _ cut: Stamp.Version?,
    _ table: inout WriteTable
  ) {
    if happened { disk.commit(.resize(to: size, cut: cut)) }
    guard let cut else { return }
    table.end(cut, happened ? .acknowledged : .refused)
    if happened { disk.acknowledge(cut, table) } else { disk.refuse(cut, table) }
  }

  private mutating func resolveSnapshots(_ list: [SnapshotInfo]) throws(Violation) {
    var byName: [SnapshotName: SnapshotInfo] = [:]
    for info in list {
      let name = SnapshotName(disk: info.disk, snapshot: info.name)
      if byName.updateValue(info, forKey: name) != nil {
        throw Violation("“\(name)” is listed twice")
      }
    }
    for snapshot in snapshots where snapshot.existence != .gone {
      guard let info = try settle(snapshot, &byName) else { continue }
      try snapshot.check(info)
      try checkPlace(snapshot, info)
      try note(info.id, of: snapshot)
    }
    if let stranger = byName.keys.sorted(by: { $0.description < $1.description }).first {
      throw Violation("snapshot “\(stranger)” is listed, but was deleted or never made")
    }
  }

  private func settle(
    _ snapshot: ModelDisk, _ byName: inout [SnapshotName: SnapshotInfo]
  ) throws(Violation) -> SnapshotInfo? {
    let old = byName.removeValue(forKey: snapshot.snapshotName)
    let change = snapshot.pending
    snapshot.pending = nil
    snapshot.isInDoubt = false
    switch change {
    case .create, .delete:
      if old == nil { snapshot.vanish() } else { snapshot.existence = .present }
      if case .create = change { snapshot.model.seal() }
      return old
    case .rename(let new):
      let name = SnapshotName(disk: snapshot.disk!.name, snapshot: new)
      if let moved = byName.removeValue(forKey: name) {
        if old != nil { throw Violation("“\(snapshot.fullName)” was renamed, but has both names") }
        snapshot.commit(.rename(to: new))
        return moved
      }
    case .set(let change):
      if let old, old.isHeld == change.held { snapshot.commit(.set(change)) }
    case .resize, .rollback: invariantBroken("a snapshot does not change")
    case nil: break
    }
    guard let old else { throw Violation("snapshot “\(snapshot.fullName)” is gone") }
    return old
  }
}
