// Control requests as jobs: each is tried until it has what it needs, and changes nothing before.
// Structural changes are records in the log like data; a job replies when its frame counts. One
// structural job is on its way at a time, so that two can't take the same name.

final class ControlJob {
  let request: ControlRequest
  let token: UInt64
  /// The internal request that the job waits for has ended with this; nil while it is under way.
  var ended: BlockStatus?
  var isWaiting = false
  var isDone = false
  var tries = 0
  /// The disk whose removal is on its way.
  var removing: VirtualDisk?
  var stage = 0
  // list
  var targets: [NameTarget] = []
  var infos: [DiskInfo] = []
  var nextKey: TreeKey?
  var listed: Set<ObjectID> = []
  var snapshotInfos: [SnapshotInfo] = []
  /// How many blocks only the snapshot that is listed next refers to, as far as its child's dead list has
  /// been counted, and where to go on in that.
  var exclusive: (blocks: UInt64, next: TreeKey)?
  // clone
  var progress = 0
  // rollback, shrinking
  var paused: VirtualDisk?
  /// Whether it waits for destaging, and how far that must get: a frame, or a number of cycles.
  var awaitsCycle = false
  var goal: FrameSequence = 0

  init(_ request: ControlRequest, token: UInt64) {
    self.request = request
    self.token = token
  }

  var mayRunWhileStopping: Bool {
    switch request {
    case .stop, .status: true
    default: false
    }
  }
}

extension Engine {
  package func control(_ request: ControlRequest, token: UInt64) {
    if case .close(let handle) = request {
      // Also of a disk that was deleted under it; its place is not given away before that.
      if let disk = pool.disks.holder(of: handle), disk.connections > 0 { disk.connections -= 1 }
      return reply(token, .done)
    }
    let job = ControlJob(request, token: token)
    jobs.append(job)
    switch request {
    case .flush, .addVolume: awaitCycle(job)
    default: break
    }
  }

  private func awaitCycle(_ job: ControlJob) {
    job.awaitsCycle = true
    cycleAwaiters += 1
  }

  func runJobs() {
    guard !jobs.isEmpty else { return }
    var finished = false
    for job in jobs where !job.isWaiting && !job.isDone {
      do throws(SpaceWait) {
        guard let answer = try run(job) else { continue }
        end(job, answer)
        finished = true
      } catch {
        switch error {
        case .node(let pointer): startLoad(pointer)
        case .damaged:
          end(job, .failed(.ioError("metadata is damaged")))
          finished = true
        case .memory: awaitMemory()
        case .backing, .noSpace: break
        }
      }
    }
    if finished { jobs.removeAll { $0.isDone } }
  }

  private func end(_ job: ControlJob, _ answer: ControlReply) {
    giveUpTurn(job)
    if job.awaitsCycle { cycleAwaiters -= 1 }
    reply(job.token, answer)
    job.isDone = true
  }

  /// The answer, or nil when the job must wait for something that is under way.
  private func run(_ job: ControlJob) throws(SpaceWait) -> ControlReply? {
    if isStopping, !job.mayRunWhileStopping { return .failed(.stopping) }
    do {
      switch job.request {
      case .create(let name, let size): return try create(job, name, size)
      case .list(let cursor, let limit): return try list(job, cursor, limit)
      case .show(let name):
        let (target, record) = try find(name)
        return .disk(try info(target.object, record, origin: try origin(of: record)))
      case .rename(let name, let new): return try rename(job, name, new)
      case .resize(let name, let size, let shrink, let force):
        return try resize(job, name, size, shrink: shrink, force: force)
      case .delete(let name, let withSnapshots, let force):
        return try delete(job, name, withSnapshots: withSnapshots, force: force)
      case .set(let name, let change): return try set(job, name, change)
      case .open(let name): return try open(name)
      case .snapshot(let names): return try snapshot(job, names)
      case .listSnapshots(let disk, let cursor, let limit):
        return try listSnapshots(job, disk, cursor, limit)
      case .deleteSnapshot(let name): return try deleteSnapshot(job, name)
      case .renameSnapshot(let name, let new): return try renameSnapshot(job, name, to: new)
      case .holdSnapshot(let name, let hold): return try holdSnapshot(job, name, hold)
      case .rollback(let name, let force): return try rollback(job, name, force: force)
      case .clone(let name, let new, let count): return try clone(job, name, new, count)
      case .diff(let old, let new, let from, let limit):
        return try diff(old, new, from: from, limit: limit)
      case .close: return .done
      case .status: return .status(status())
      case .latency(let cursor, let limit): return diskLatencies(cursor, limit)
      case .flush: return flush(job)
      case .scrub: return try scrub(job)
      case .scrubProgress: return .scrub(scrubber?.report ?? ScrubReport())
      case .addVolume(let device, let uuid, let description):
        return addVolume(job, device, uuid, description)
      case .holdDestage(let hold):
        destager.isHeld = hold
        return .done
      case .stop: return stop()
      }
    } catch let error as ControlError {
      return .failed(error)
    } catch let wait as SpaceWait {
      throw wait
    } catch {
      return .failed(.ioError("\(error)"))
    }
  }

  // MARK: Looking up

  func find(_ name: String) throws -> (NameTarget, ObjectRecord) {
    let path = try NameRules.segments(of: name)
    let found = try pool.catalog.resolve(path)
    guard let target = found.target, target.kind == .disk,
      let record = try pool.catalog.record(of: target.object)
    else { throw ControlError.noSuchDisk(name) }
    return (target, record)
  }

  private func info(
    _ object: ObjectID, _ record: ObjectRecord, origin: String?
  ) throws(SpaceWait) -> DiskInfo {
    let disk = pool.disks.find(object)
    let used = try used(object, record)
    let layer = disk?.layer
    let own =
      layer?.map != nil ? layer!.exclusiveBlocks : layer?.base != nil ? 0 : record.exclusiveBlocks
    return DiskInfo(
      name: try pool.catalog.path(of: record), id: object, size: record.size,
      used: used << blockShift, exclusive: (own + UInt64(layer?.loggedBlocks ?? 0)) << blockShift,
      origin: origin,
      created: record.created, snapshots: Int(record.dependents),
      connections: disk?.connections ?? 0,
      generation: record.generation, readOnly: record.readOnly, durability: record.durability,
      comment: String(decoding: record.comment, as: UTF8.self))
  }

  /// The name of the snapshot that a disk was cloned from; nil where there is none, or none any more.
  private func origin(of record: ObjectRecord) throws(SpaceWait) -> String? {
    guard record.origin.raw != 0, let snapshot = try pool.catalog.record(of: record.origin),
      try pool.catalog.record(of: snapshot.parent) != nil
    else { return nil }
    return try pool.catalog.path(of: snapshot)
  }

  private func open(_ name: String) throws -> ControlReply {
    let disk = pool.disk(try findForOpen(name))
    try pool.load(disk)
    disk.connections += 1
    return .opened(
      disk.handle, size: disk.record!.size,
      readOnly: disk.record!.readOnly || disk.record!.kind == .snapshot)
  }

  /// One page of the datastore: first what only the overlay knows, then the names tree.
  private func list(_ job: ControlJob, _ cursor: UInt64?, _ limit: Int) throws -> ControlReply {
    let limit = max(1, min(limit, 4096))
    if job.stage == 0 {
      try takeTargets(job, cursor, limit)
      job.stage = 1
    }
    // Clones of one snapshot mostly come in a row.
    var last: (origin: ObjectID, name: String?)?
    while let target = job.targets.last, job.infos.count < limit {
      if target.kind == .disk, let record = try pool.catalog.record(of: target.object) {
        if last?.origin != record.origin {
          last = (record.origin, try origin(of: record))
        }
        job.infos.append(try info(target.object, record, origin: last?.name))
      }
      job.targets.removeLast()
    }
    return .disks(job.infos, next: keepTargets(job, cursor))
  }

  /// Names that a page of a listing is made from, the next one last.
  func takeTargets(_ job: ControlJob, _ cursor: UInt64?, _ limit: Int) throws {
    if let cursor {
      guard let at = listCursors.firstIndex(where: { $0.id == cursor }) else {
        throw ControlError.ioError("too many listings were begun behind this one; ask again")
      }
      job.nextKey = listCursors[at].key
      job.listed = listCursors[at].listed
      job.targets = listCursors[at].targets
      if !job.targets.isEmpty { return }
    } else {
      job.targets = pool.catalog.overlayTargets()
      job.listed = Set(job.targets.map(\.object))
    }
    let page = try pool.catalog.page(after: job.nextKey, limit: limit)
    // What the overlay had at the start may have come to the tree since.
    job.targets += page.targets.filter { !job.listed.contains($0.object) }
    job.nextKey = page.next
    job.targets.reverse()
  }

  /// Keeps what is left of a listing under a new cursor, in the place of the old one; nil when it is
  /// at its end.
  func keepTargets(_ job: ControlJob, _ cursor: UInt64?) -> UInt64? {
    listCursors.removeAll { $0.id == cursor }
    guard job.nextKey != nil || !job.targets.isEmpty else { return nil }
    let id = nextListCursor
    nextListCursor += 1
    listCursors.append(
      ListCursor(id: id, key: job.nextKey, targets: job.targets, listed: job.listed))
    if listCursors.count > 32 { listCursors.removeFirst() }
    return id
  }

  // MARK: Structural changes

  /// Whether the job may log now: it is its turn, and there is room.
  func mayLog(_ job: ControlJob) -> Bool {
    (structuralJob == nil || structuralJob === job)
      && pool.log.hasRoom(table: 16 * 1024, payload: 0) && !pool.log.isBroken
  }

  /// Whether there is room for what a new disk or a mark brings with it: behind a mark each logged
  /// write needs a home of its own, also one that would have gone to a block that the disk had alone,
  /// so all that is promised must be there. False until some cycles have given back what was deleted or
  /// trimmed before; throws when that has not helped.
  func hasRoomForCopies(_ job: ControlJob) throws(ControlError) -> Bool {
    if pool.space.available + pool.space.backable >= pool.reservedBlocks + 16 { return true }
    let mayHelp = destager.hasWork || !destager.isIdle || spaceKeeper.isPunching
    guard mayHelp, !destager.isHeld, !destager.isWaitingForDevice,
      !job.awaitsCycle || destager.cycles < job.goal
    else { throw .noSpace }
    if !job.awaitsCycle {
      // One may be about to end, and what the next one frees may have to be punched first.
      job.goal = destager.cycles + 3
      awaitCycle(job)
    }
    // Meanwhile others go on, those that delete something above all.
    giveUpTurn(job)
    return false
  }

  /// Appends records in one frame and makes the job wait until it counts.
  func log(_ job: ControlJob, _ records: [LogRecord]) -> ControlReply? {
    var frame: LogWriter.Frame?
    let none = BlockRequest(
      operation: .flush, disk: DiskHandle(place: .max, generation: 0), offset: 0, length: 0,
      memory: nil, token: 0)
    guard let slot = requests.take(none) else {
      job.removing?.isBeingDeleted = false
      return nil
    }
    for record in records { frame = pool.log.append(record) }
    requests[slot].isInternal = true
    requests[slot].isOfJob = true
    attachJob(slot, frame!)
    structuralJob = job
    job.isWaiting = true
    job.stage += 1
    return nil
  }

  /// The outcome of the job's records, once they are through. Where their frame did not count, the
  /// job is tried again in the next epoch.
  func outcome(_ job: ControlJob) -> ControlReply? {
    if job.ended == .ok { return .done }
    job.removing?.isBeingDeleted = false
    if job.ended == .noSpace { return .failed(.noSpace) }
    job.tries += 1
    if job.tries >= 100 {
      return .failed(.ioError("the log could not be written; nothing was changed"))
    }
    job.stage = 0
    job.ended = nil
    giveUpTurn(job)
    loadEnded = true
    return nil
  }

  /// Lets others log, if it is the job's turn: what it has looked up does not hold any more then.
  private func giveUpTurn(_ job: ControlJob) {
    guard structuralJob === job else { return }
    structuralJob = nil
    job.progress = 0
    resume(job)
  }

  /// Requests that are under way end first, and new ones wait, until the job gives up its turn: none
  /// may see the disk both before and after it. False while there are any.
  func pause(_ disk: VirtualDisk, _ job: ControlJob) -> Bool {
    structuralJob = job
    disk.isPaused = true
    job.paused = disk
    return disk.requests == 0
  }

  /// The disk takes requests again.
  private func resume(_ job: ControlJob) {
    guard let disk = job.paused else { return }
    job.paused = nil
    disk.isPaused = false
    loadEnded = true
  }

  func jobRequestEnded(_ status: BlockStatus) {
    guard let job = structuralJob else { invariantBroken("a control job's request has no job") }
    job.ended = status
    job.isWaiting = false
    // It may end behind the turn's look at the jobs.
    loadEnded = true
  }

  private func checkSize(_ size: UInt64) throws(ControlError) {
    guard size > 0, size % UInt64(sectorSize) == 0, size <= BlockIndex.limit << blockShift else {
      throw .badSize(
        "a disk's size is a multiple of 512 bytes, from 512 to \(BlockIndex.limit >> 38)P")
    }
  }

  /// Records that make the directories that a path still lacks, and the directory of its last
  /// segment.
  func directories(
    _ path: [[UInt8]], _ found: Catalog.Resolution, name: String
  ) throws -> (records: [LogRecord], parent: ObjectID) {
    var records: [LogRecord] = []
    var parent = found.parent
    let first = path.count - found.missing
    if found.missing > 0, try pool.catalog.lookup(path[first], in: parent) != nil {
      throw ControlError.badName("a part of the path “\(name)” is a disk; choose another path")
    }
    for segment in path[first...].dropLast() {
      let id = pool.catalog.takeObjectID()
      records.append(
        .create(
          object: id, parent: parent, kind: .directory, mode: 0o755, size: 0, time: wallClock,
          name: segment))
      parent = id
    }
    return (records, parent)
  }

  private func create(_ job: ControlJob, _ name: String, _ size: UInt64) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    let path = try NameRules.segments(of: name)
    try checkSize(size)
    guard mayLog(job) else { return nil }
    let found = try pool.catalog.resolve(path)
    if found.target != nil { throw ControlError.alreadyExists(name) }
    guard try hasRoomForCopies(job) else { return nil }
    var (records, parent) = try directories(path, found, name: name)
    records.append(
      .create(
        object: pool.catalog.takeObjectID(), parent: parent, kind: .disk, mode: 0o644, size: size,
        time: wallClock, name: path.last!))
    return log(job, records)
  }

  private func delete(
    _ job: ControlJob, _ name: String, withSnapshots: Bool, force: Bool
  ) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    guard mayLog(job) else { return nil }
    let (target, record) = try find(name)
    try refuseInUse(target.object, name, force: force)
    let snapshots = record.dependents
    if snapshots > 0 {
      guard withSnapshots else { throw ControlError.hasSnapshots(name, count: Int(snapshots)) }
      try refuseHeld(target.object, name)
      if !force { try refuseSnapshotsInUse(target.object, name) }
    }
    // Nothing of the disk is logged behind its removal.
    job.removing = pool.disk(target.object)
    job.removing?.isBeingDeleted = true
    return log(
      job,
      [
        .remove(
          object: target.object, kind: .disk, parent: record.parent, snapshots: snapshots,
          origin: record.origin, name: record.name)
      ])
  }

  func refuseInUse(_ object: ObjectID, _ name: String, force: Bool) throws(ControlError) {
    let connections = pool.disks.find(object)?.connections ?? 0
    if connections > 0, !force { throw .inUse(name, connections: connections) }
  }

  private func refuseSnapshotsInUse(_ object: ObjectID, _ name: String) throws(ControlError) {
    for snapshot in pool.disks.snapshots(of: object) where snapshot.connections > 0 {
      throw .inUse(
        SnapshotName(disk: name, snapshot: NameRules.printable(snapshot.record!.name)).description,
        connections: snapshot.connections)
    }
  }

  private func rename(_ job: ControlJob, _ name: String, _ new: String) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    let path = try NameRules.segments(of: new)
    guard mayLog(job) else { return nil }
    let (target, record) = try find(name)
    let found = try pool.catalog.resolve(path)
    if found.target != nil { throw ControlError.alreadyExists(new) }
    var (records, parent) = try directories(path, found, name: new)
    records.append(
      .rename(
        object: target.object, kind: .disk, parent: record.parent, name: record.name,
        newParent: parent, newName: path.last!))
    return log(job, records)
  }

  private func set(
    _ job: ControlJob, _ name: String, _ change: DiskAttributeChange
  ) throws -> ControlReply? {
    if job.stage == 1 { return outcome(job) }
    if (change.comment?.utf8.count ?? 0) > LogRecord.maximumComment {
      throw ControlError.badName("a comment is at most \(LogRecord.maximumComment) bytes")
    }
    guard mayLog(job) else { return nil }
    let (target, _) = try find(name)
    return log(job, [.change(object: target.object, change)])
  }

  /// One record. Shrinking into a block also zeroes the rest of that block, in the same frame, so
  /// that nothing old is read when the disk grows again.
  private func resize(
    _ job: ControlJob, _ name: String, _ size: UInt64, shrink: Bool, force: Bool
  ) throws -> ControlReply? {
    if job.stage == 2 || job.ended.map({ $0 != .ok }) == true {
      guard let answer = outcome(job) else { return nil }
      return answer
    }
    try checkSize(size)
    guard mayLog(job) else { return nil }
    let (target, record) = try find(name)
    if size < record.size {
      if !shrink { throw ControlError.wouldShrink(name) }
      try refuseInUse(target.object, name, force: force)
      let disk = pool.disk(target.object)
      // What came to the log behind the new size would be there when the disk grows again.
      guard pause(disk, job) else { return nil }
      if job.stage == 0, size % 4096 != 0 {
        try pool.load(disk)
        let zero = BlockRequest(
          operation: .zero, disk: disk.handle, offset: size,
          length: min(roundUp(size, to: 4096), record.size) - size, memory: nil, token: 0)
        guard let slot = requests.take(zero) else { return nil }
        requests[slot].isInternal = true
        requests[slot].isOfJob = true
        requests[slot].resizeTo = size
        requests[slot].state = .waiting
        job.isWaiting = true
        job.stage = 2
        begin(slot)
        return nil
      }
    }
    job.stage = 1
    job.ended = nil
    return log(job, [.resize(object: target.object, size: size)])
  }

  // MARK: Flush, volumes, stop

  private func flush(_ job: ControlJob) -> ControlReply? {
    if job.stage == 0 {
      // Empty frames behind it start no cycle, and need none.
      job.goal = pool.log.appliedDataSequence
      job.stage = 1
      destager.isHeld = false
    }
    if job.stage == 1 {
      guard pool.root.cutSequence >= job.goal, pool.catalog.deletedObjects == 0 else { return nil }
      // What was released until now becomes free at the end of a cycle. What comes in the meantime is
      // not waited for: there may be no end of it.
      let hasMore = !destager.isIdle || pool.space.releasedPending > 0
      job.goal = destager.cycles + (hasMore ? 1 : 0)
      job.stage = 2
    }
    return destager.cycles >= job.goal && !spaceKeeper.isPunching ? .done : nil
  }

  private func addVolume(
    _ job: ControlJob, _ device: DeviceIndex, _ uuid: UUIDBytes, _ description: DeviceDescription
  ) -> ControlReply? {
    if job.stage == 0 {
      guard destager.isIdle else { return nil }
      let index = pool.configuration.volumes.count
      guard device == .volume(index) else {
        return .failed(.badName("the volume is not the next one of the pool"))
      }
      pool.configuration.volumes.append(VolumeMember(member: uuid, description: description))
      pool.space.addVolume(index, description)
      pool.paths.hit(.volumeAdded)
      job.goal = pool.root.checkpoint + 1
      job.stage = 1
      destager.start()
      return nil
    }
    return pool.root.checkpoint >= job.goal ? .done : nil
  }

  private func stop() -> ControlReply? {
    isStopping = true
    // Writes that wait for room in the log are done first.
    destager.isHeld = false
    let log = pool.log
    let isQuiet =
      activeWrites.isEmpty && log.isQuiet && pool.ops.inFlight == 0
      && (!log.lacksWatermark || !log.isOpen || log.isBroken)
    guard isQuiet else { return nil }
    stopped()
    return .done
  }

  // MARK: Status

  private func status() -> PoolStatus {
    var s = PoolStatus()
    let space = pool.space
    s.uuid = pool.configuration.pool
    s.name = pool.configuration.name
    s.state =
      destager.isWaitingForDevice || pool.log.isBroken
      ? .suspended : space.available <= pool.reservedBlocks && space.backable == 0 ? .full : .online
    s.uptimeNanoseconds = uptime
    s.logSize = pool.log.geometry.capacity
    s.logUsed = pool.log.usedBytes
    s.logOldestNanoseconds = pool.index.count > 0 ? logAge.age(now) : 0
    let blocks: (Int) -> UInt64 = { UInt64(max(0, $0)) << blockShift }
    s.spaceSize = blocks(space.total)
    s.spaceUsed = blocks(space.used + space.releasedPending)
    s.spaceFree = blocks(space.available + space.backable - pool.reservedBlocks)
    s.spaceUnbacked = min(blocks(space.backable), s.spaceFree)
    s.spaceMetadata = blocks(space.metadata)
    s.spaceReserved = blocks(pool.reservedBlocks + space.reserved)
    s.spaceFreeing = pool.catalog.freeingBlocks << blockShift
    s.spaceHeld = pool.catalog.heldBlocks << blockShift
    s.disks = pool.catalog.diskCount
    s.snapshots = pool.catalog.snapshotCount
    s.writes = statistics.writes
    s.writtenBytes = statistics.writtenBytes
    s.reads = statistics.reads
    s.readBytes = statistics.readBytes
    s.destagedBytes = destager.destagedBlocks << blockShift
    s.destageBacklogBytes = blocks(pool.index.blocksLogged)
    s.checkpointNumber = pool.root.checkpoint
    s.checkpointAgeNanoseconds = wallClock > pool.root.written ? wallClock - pool.root.written : 0
    s.checksumErrors = pool.checksumErrors
    s.ioErrors = pool.ioErrors
    s.recoveryNanoseconds = statistics.recoveryNanoseconds
    s.recoveryFrames = statistics.recoveryFrames
    let figures = latency.figures
    s.latency = [
      OperationLatency(figures.pointee.read), OperationLatency(figures.pointee.write),
      OperationLatency(figures.pointee.flush),
    ]
    (s.slowest, s.slowestRecently) = slowOperations()
    return s
  }
}
