// Control requests about snapshots and clones. Each that changes something is one frame: marks (see
// Disks/Layer.swift), or a change of names. None of them waits for data to be destaged.

extension Engine {
  /// Layers between a disk and its map from which on new marks wait for a cycle.
  private static let mostFrozen = 4096

  // MARK: Looking up

  /// A snapshot by name, as of the newest structural record.
  struct FoundSnapshot {
    var id: ObjectID
    var record: ObjectRecord
    var disk: ObjectID
    var diskRecord: ObjectRecord
  }

  func find(_ name: SnapshotName) throws -> FoundSnapshot {
    let (disk, diskRecord) = try find(name.disk)
    let segment = try snapshotSegment(name.snapshot)
    guard let target = try pool.catalog.lookup(segment, in: disk.object),
      let record = try pool.catalog.record(of: target.object)
    else { throw ControlError.noSuchSnapshot(name) }
    return FoundSnapshot(
      id: target.object, record: record, disk: disk.object, diskRecord: diskRecord)
  }

  private func snapshotSegment(_ name: String) throws -> [UInt8] {
    let segments = try NameRules.segments(of: name)
    guard segments.count == 1 else {
      throw ControlError.badName("a snapshot's name has no “/”; “\(name)” has")
    }
    return segments[0]
  }

  /// NAME or NAME@SNAP: a name has an `@` of its own only percent-encoded.
  func findForOpen(_ name: String) throws -> ObjectID {
    guard let at = name.lastIndex(of: "@") else { return try find(name).0.object }
    let snapshot = SnapshotName(
      disk: String(name[..<at]), snapshot: String(name[name.index(after: at)...]))
    return try find(snapshot).id
  }

  // MARK: Snapshots

  func snapshot(_ job: ControlJob, _ names: [SnapshotName]) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    guard mayLog(job) else { return nil }
    var disks: Set<ObjectID> = []
    var records: [LogRecord] = []
    var table = 0
    for name in names {
      let (target, record) = try find(name.disk)
      let segment = try snapshotSegment(name.snapshot)
      guard disks.insert(target.object).inserted else {
        throw ControlError.badName("disk “\(name.disk)” is named twice; name each disk once")
      }
      if try pool.catalog.lookup(segment, in: target.object) != nil {
        throw ControlError.snapshotExists(name)
      }
      // The ids are taken below, once nothing can fail any more.
      let mark = LogRecord.snapshot(
        object: ObjectID(0), disk: target.object, group: ObjectID(0), time: wallClock,
        size: record.size, name: segment)
      table += mark.encodedSize
      guard table <= Self.largestGroup else {
        throw ControlError.badName(
          "\(names.count) disks do not fit one snapshot; name fewer in one call")
      }
      records.append(mark)
    }
    guard !records.isEmpty, pool.log.hasRoom(table: table, payload: 0) else {
      return records.isEmpty ? .done : nil
    }
    guard try hasRoomForCopies(job) else { return nil }
    if pool.frozen.count >= Self.mostFrozen, !destager.isHeld { return nil }
    let first = pool.catalog.takeObjectID(count: records.count)
    for (i, record) in records.enumerated() {
      guard case .snapshot(_, let disk, _, let time, let size, let name) = record else { continue }
      records[i] = .snapshot(
        object: ObjectID(first.raw + UInt64(i)), disk: disk, group: first, time: time, size: size,
        name: name)
    }
    return log(job, records)
  }
  /// Bytes of the marks of one call; they are in one frame.
  private static let largestGroup = 56 * 1024

  func deleteSnapshot(_ job: ControlJob, _ name: SnapshotName) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    guard mayLog(job) else { return nil }
    let found = try find(name)
    if found.record.isHeld { throw ControlError.isHeld(name) }
    try refuseInUse(found.id, name.description, force: false)
    return log(
      job,
      [
        .remove(
          object: found.id, kind: .snapshot, parent: found.disk, snapshots: 0,
          origin: ObjectID(0), name: found.record.name)
      ])
  }

  func renameSnapshot(
    _ job: ControlJob, _ name: SnapshotName, to new: String
  ) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    let segment = try snapshotSegment(new)
    guard mayLog(job) else { return nil }
    let found = try find(name)
    if try pool.catalog.lookup(segment, in: found.disk) != nil {
      throw ControlError.snapshotExists(SnapshotName(disk: name.disk, snapshot: new))
    }
    return log(
      job,
      [
        .rename(
          object: found.id, kind: .snapshot, parent: found.disk, name: found.record.name,
          newParent: found.disk, newName: segment)
      ])
  }

  func holdSnapshot(_ job: ControlJob, _ name: SnapshotName, _ hold: Bool) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    guard mayLog(job) else { return nil }
    let found = try find(name)
    return log(job, [.change(object: found.id, DiskAttributeChange(held: hold))])
  }

  /// Whether a disk that is to be deleted with its snapshots has one that is held.
  func refuseHeld(_ disk: ObjectID, _ name: String) throws {
    for target in try snapshots(of: disk) {
      guard let record = try pool.catalog.record(of: target.object) else { continue }
      if record.isHeld {
        throw ControlError.isHeld(
          SnapshotName(disk: name, snapshot: NameRules.printable(record.name)))
      }
    }
  }

  // MARK: Rollback and clones

  func rollback(_ job: ControlJob, _ name: SnapshotName, force: Bool) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    guard mayLog(job) else { return nil }
    let found = try find(name)
    try refuseInUse(found.disk, name.disk, force: force)
    guard try hasRoomForCopies(job) else { return nil }
    guard pause(pool.disk(found.disk), job) else { return nil }
    return log(
      job,
      [
        .rollback(
          object: found.disk, snapshot: found.id, former: pool.catalog.takeObjectID(),
          size: found.record.size, time: wallClock)
      ])
  }

  func clone(
    _ job: ControlJob, _ name: SnapshotName, _ new: String, _ count: Int?
  ) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    let path = try NameRules.segments(of: new)
    guard (1...CloneBatch.maximumCount).contains(count ?? 1) else {
      throw ControlError.badName("one call makes 1 to \(CloneBatch.maximumCount) clones")
    }
    if let count { _ = try NameRules.segments(of: "\(new)-\(count)") }
    guard mayLog(job) else { return nil }
    let found = try find(name)
    // The parent directory is that of the first clone's name, for there is none without a number.
    var firstPath = path
    if count != nil { firstPath[path.count - 1] += Array("-1".utf8) }
    let place = try pool.catalog.resolve(firstPath)
    if place.target != nil { throw ControlError.alreadyExists(count == nil ? new : "\(new)-1") }
    guard try hasRoomForCopies(job) else { return nil }
    // Others have to wait while the rest of the names are looked up.
    structuralJob = job
    var batch = CloneBatch(
      first: ObjectID(0), count: count ?? 1, snapshot: found.id, parent: place.parent,
      time: wallClock, mode: 0o644, size: found.record.size, firstNumber: count == nil ? 0 : 1,
      name: path[path.count - 1])
    let pause = job.progress + Self.namesAtATime
    while place.missing <= 1, job.progress < batch.count {
      if job.progress == pause {
        loadEnded = true
        return nil
      }
      if try pool.catalog.lookup(batch.name(job.progress), in: place.parent) != nil {
        throw ControlError.alreadyExists("\(new)-\(job.progress + 1)")
      }
      job.progress += 1
    }
    var (records, parent) = try directories(firstPath, place, name: new)
    batch.parent = parent
    batch.first = pool.catalog.takeObjectID(count: batch.count)
    records.append(.clone(batch))
    return log(job, records)
  }

  /// Names of a batch of clones that are looked up before requests have their turn.
  private static let namesAtATime = 512

  // MARK: Lists

  func snapshots(of disk: ObjectID) throws(SpaceWait) -> [NameTarget] {
    var targets = pool.catalog.overlayTargets(of: disk)
    var key: TreeKey?
    repeat {
      let page = try pool.catalog.page(after: key, of: disk, limit: 4096)
      targets += page.targets
      key = page.next
    } while key != nil
    return targets.sorted { $0.object < $1.object }
  }

  func listSnapshots(
    _ job: ControlJob, _ disk: String?, _ cursor: UInt64?, _ limit: Int
  ) throws -> ControlReply? {
    if job.stage == 0 {
      if let disk, cursor == nil {
        job.targets = try snapshots(of: try find(disk).0.object).reversed()
      } else {
        try takeTargets(job, cursor, max(1, min(limit, 4096)))
      }
      job.stage = 1
    }
    let limit = max(1, min(limit, 4096))
    while let target = job.targets.last, job.snapshotInfos.count < limit {
      if target.kind == .snapshot, let record = try pool.catalog.record(of: target.object) {
        guard let exclusive = try exclusive(target.object, job) else {
          loadEnded = true
          return nil
        }
        job.snapshotInfos.append(try info(target.object, record, exclusive: exclusive))
        job.exclusive = nil
      }
      job.targets.removeLast()
    }
    return .snapshots(job.snapshotInfos, next: keepTargets(job, cursor))
  }

  private func info(
    _ object: ObjectID, _ record: ObjectRecord, exclusive: UInt64
  ) throws(SpaceWait) -> SnapshotInfo {
    let disk = try pool.catalog.record(of: record.parent)
    return SnapshotInfo(
      disk: try disk.map { d throws(SpaceWait) in try pool.catalog.path(of: d) } ?? "?",
      name: NameRules.printable(record.name), id: object, created: record.created,
      size: record.size, used: try used(object, record) << blockShift,
      exclusive: exclusive << blockShift, clones: Int(record.dependents),
      group: record.group, isHeld: record.isHeld)
  }

  /// Blocks that the object refers to, in vSpace and log.
  func used(_ object: ObjectID, _ record: ObjectRecord) throws(SpaceWait) -> UInt64 {
    var layer = pool.disks.find(object)?.layer
    var logged: UInt64 = 0
    while let l = layer {
      if l.map == nil { try pool.load(l) }
      logged += UInt64(l.loggedBlocks)
      if l.map != nil { return l.usedBlocks + logged }
      layer = l.base
    }
    if record.inheritsMap, record.map.isNone {
      let parent = record.parentSnapshot
      // Deleted snapshots count as well: what is on them is here, too.
      let stored = try pool.catalog.treeRecord(of: parent)
      guard let snapshot = stored ?? pool.catalog.created(parent) else { return logged }
      return try used(parent, snapshot) + logged
    }
    return record.usedBlocks + logged
  }

  /// Blocks that deleting the snapshot would free: what only it refers to, as of the last checkpoint.
  /// Nil if it is not counted yet; `job.exclusive` keeps how far that has come.
  private func exclusive(
    _ snapshot: ObjectID, _ job: ControlJob
  ) throws(SpaceWait) -> UInt64? {
    guard let record = try pool.catalog.treeRecord(of: snapshot), record.instant > 0 else {
      return 0
    }
    guard record.children > 0 else { return record.exclusiveBlocks }
    guard record.children == 1, let child = try pool.catalog.child(of: snapshot),
      let below = try pool.catalog.treeRecord(of: child)
    else { return 0 }
    if below.inheritsMap {
      // What the child's delta hides. In memory it may be newer than what its record leads to.
      let layer = pool.layer(of: child)
      guard layer?.fold == nil else { return 0 }
      if let map = layer?.map { return try map.hidden(bornAfter: record.branchInstant) }
      guard below.hasDelta else { return 0 }
      let maps = [(NodeKind.extents, record.map), (.delta, below.map)].map { kind, root in
        ExtentMap(tree: Tree(store: pool.store, kind: kind, owner: child, root: root))
      }
      return try DiskMap(full: maps[0], delta: maps[1]).hidden(bornAfter: record.branchInstant)
    }
    if below.parentBranchInstant == record.branchInstant { return below.deadOfParentOnly }
    // Its parent has changed since the count began: what is on the list is counted.
    let list =
      destager.deadList(of: child)
      ?? DeadList(
        tree: Tree(store: pool.store, kind: .deadList, owner: child, root: below.deadList),
        counts: below.dead)
    var (blocks, next) = job.exclusive ?? (0, TreeKey(hi: record.branchInstant, lo: .max))
    defer { job.exclusive = (blocks, next) }
    var entries = list.entries(from: next)
    for _ in 0..<Self.entriesAtATime {
      guard let entry = try entries.next() else { return blocks }
      if case .blocks(_, let count, _) = entry { blocks += UInt64(count) }
      next = entries.position
    }
    return nil
  }
  /// Entries of dead lists that are counted before requests have their turn.
  private static let entriesAtATime = 4096
}
