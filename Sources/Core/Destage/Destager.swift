// Destaging: the background cycle that moves what the log holds to its homes and switches vSpace
// to a new state, so that log space can be reused. It is the only one that changes vSpace.
//
//     idle ─▶ begin ─▶ structural ─▶ sweep ⇄ maps ─▶ deleted
//       ▲                        for each frozen       │
//       │                        layer, then the rest  ▼
//       └─ freeing ◀─ finish ◀─ root ◀─ flushVolumes ◀─ logDurable ◀─ nodes ⇄ commit
//
// A cycle has a cut C, the last frame that counted when it began, or an earlier one where only room in
// the log is wanted (CyclePortion.swift). It applies exactly the records at or before C (R17): first the
// structural ones, in order; then it destages the layers that marks at or before C have ended, in the
// order of the marks, each of which makes its snapshot final (R12); then it moves the rest of the log
// index at or before C (Sweep.swift). What has come behind C in the meantime is durable before the
// root is written (`logDurable`) and will be replayed: it may have replaced blocks of this cut whose
// homes now stay behind.
//
// Every step is bounded, and repeatable after a wait for metadata.

package final class Destager {
  private enum Phase {
    case idle, begin, structural, sweep, maps, deleted
    case commit, nodes, logDurable, flushVolumes, root, finish, freeing
  }

  private let pool: Pool
  private var phase = Phase.idle
  /// The cycle applies all records up to here.
  private var cut = LogCut()
  private var portion: CyclePortion
  private var isForRoom = false
  private let nodes: NodeWriter
  private let maps: ChangedMaps
  let sweep: Sweep
  private let reaper: Reaper
  private let checkpoint: CheckpointWriter

  /// The frozen layer that is being destaged; nil while the rest of the index is.
  private var layer: Layer?
  private var durableGoal: FrameSequence = 0

  /// Transfers in flight at most: few while there are requests, for they wait behind them in the
  /// devices' queues.
  package var window = Destager.wideWindow {
    didSet {
      sweep.window = window
      nodes.window = window
    }
  }
  package static let wideWindow = 64
  package static let narrowWindow = 12
  package static let trickle = 2
  /// The cycle moves no further blocks, nor does it map large writes, but for the batch that it is at.
  package var rests: Bool {
    get { sweep.rests }
    set { sweep.rests = newValue }
  }

  /// Set while homes must not be overwritten: log frames up to the cut are not durable in the log
  /// (a flush of it failed), but will be at home.
  package var relocateAll = false
  package var isHeld = false
  package var destagedBlocks: UInt64 { sweep.blocksMoved }
  package private(set) var cycles: UInt64 = 0
  /// Work done so far, for back-pressure: three units for a block that goes home (gathered, read,
  /// written), one for a node.
  package var progress: UInt64 { sweep.work + nodes.written + reaped }
  private var reaped: UInt64 = 0
  private(set) package var isWaitingForDevice = false
  /// Since when a device has refused everything; `.max` while none does.
  private(set) package var stalledSince: UInt64 = .max
  private var retryAt: UInt64 = 0
  private var now: UInt64 = 0
  private var wallClock: UInt64 = 0

  package init(_ pool: Pool) {
    self.pool = pool
    portion = CyclePortion(least: pool.configuration.leastCyclePortion)
    nodes = NodeWriter(pool)
    maps = ChangedMaps(pool, nodes)
    sweep = Sweep(pool, nodes, maps)
    reaper = Reaper(pool)
    checkpoint = CheckpointWriter(pool)
  }

  package var isIdle: Bool { phase == .idle }
  /// The cycle has its cut and waits until the log has it durable.
  package var isBeginning: Bool { phase == .begin }
  /// The cycle is about to end and waits until the log has made durable what it left out.
  package var isAwaitingLog: Bool { phase == .logDurable }
  package var currentCut: FrameSequence { isIdle ? 0 : cut.sequence }
  /// When a stalled step wants to be tried again.
  package var wakeup: UInt64 { isWaitingForDevice ? retryAt : .max }

  /// Work that the cycle has still to do, roughly; in units of `progress`.
  package var remainingWork: Int {
    if isIdle { return 0 }
    let left = sweep.hasEnded ? 0 : 3 * blocksToMove - Int(sweep.work - before.work)
    return max(left, sweep.remainingWork) + pool.store.dirtyCount + 64
  }
  /// Blocks that the cycle was to move when it began, roughly.
  private var blocksToMove = 0
  /// Counts of all cycles before this one.
  private var before = Counts()
  private struct Counts {
    var work: UInt64 = 0
    var blocks: UInt64 = 0
    var firstHomes: UInt64 = 0
    var nodes: UInt64 = 0
  }

  /// How much of what the log held at its start the cycle takes, 0...1.
  package private(set) var share = 1.0
  package var takesAll: Bool { share == 1 }

  /// Whether there is anything that a cycle would do.
  package var hasWork: Bool {
    pool.index.count > 0 || pool.catalog.pendingCount > 0 || pool.catalog.deletedObjects > 0
      || pool.space.releasedPending > 0
      || pool.log.appliedDataSequence > pool.root.cutSequence
  }

  /// Starts a cycle with what counts now; with a part of it, where that is worth it, if all that is
  /// wanted is room in the log.
  package func start(forRoom: Bool = false) {
    guard isIdle, !isHeld else { return }
    phase = .begin
    isForRoom = forRoom
  }

  // MARK: The cycle

  /// Goes on as far as it can without waiting, but only some hundred blocks at a time, at some 2 µs
  /// each (a batch is planned in one go), so that requests never wait long. Returns the wait that metadata must end, if any; true
  /// in `again` means that it would go on at once.
  package func step(now: UInt64, wallClock: UInt64) -> (wait: SpaceWait?, again: Bool) {
    self.now = now
    self.wallClock = wallClock
    sweep.beginTurn(now: now)
    if isWaitingForDevice {
      if now < retryAt { return (nil, false) }
      isWaitingForDevice = false
    }
    do throws(SpaceWait) {
      for _ in 0..<16 {
        let takesLong =
          phase == .structural || phase == .sweep || phase == .deleted || phase == .freeing
        if try !advance() { return (nil, false) }
        if takesLong { break }
      }
      return (nil, true)
    } catch {
      guard case .damaged(let pointer) = error, pool.store.wasRefused(pointer) else {
        return (error, false)
      }
      // The device is asked again: taken for lost, what the node leads to would be given up.
      pool.store.forgetRefusals()
      waitForDevice()
      return (nil, false)
    }
  }

  /// One step; false when it waits for a device or has nothing to do.
  private func advance() throws(SpaceWait) -> Bool {
    try pool.payOwed()
    switch phase {
    case .idle: return false
    case .begin: return begin()
    case .structural: return try applyStructural()
    case .sweep: return try moveBlocks()
    case .maps: return try finishMaps()
    case .deleted: return try freeDeleted()
    case .commit: return try commit()
    case .nodes: return try writeNodes()
    case .logDurable: return awaitLog()
    case .flushVolumes: return false
    case .root: return false
    case .finish: return finish()
    case .freeing: return freeReleased()
    }
  }

  private func begin() -> Bool {
    // What is not durable in the log and has to go home must be in the cut, all of it.
    if durableGoal == 0 || relocateAll {
      cut = chooseCut()
      durableGoal = cut.sequence
      if !relocateAll, pool.log.durableSequence < durableGoal { pool.log.requestSync() }
    }
    let early = pool.fault == .inPlaceBeforeLogDurable
    guard pool.log.durableSequence >= cut.sequence || relocateAll || early else { return false }
    durableGoal = 0
    blocksToMove = Int(Double(pool.index.blocksLogged) * share)
    before = Counts(
      work: sweep.work, blocks: sweep.blocksMoved, firstHomes: sweep.firstHomes,
      nodes: nodes.written)
    phase = .structural
    return true
  }

  private func chooseCut() -> LogCut {
    let all = pool.log.appliedCut
    share = 1
    guard isForRoom, !relocateAll, !sweep.homesAreSlow else { return all }
    let part = pool.log.cut(
      behind: portion.bytes(
        of: pool.log.geometry.capacity, blocks: pool.index.blocksLogged,
        withoutHome: pool.layers.blocksWithoutHome))
    guard part.sequence < all.sequence else { return all }
    let tail = pool.log.geometry.start(ofSegment: pool.log.tailSegment)
    share = Double(part.position - tail) / Double(pool.log.usedBytes)
    pool.paths.hit(.partOfLogDestaged)
    return part
  }

  private func applyStructural() throws(SpaceWait) -> Bool {
    try recordVolumes()
    let limit = pool.fault == .checkpointNotExactPrefix ? FrameSequence.max : cut.sequence
    for _ in 0..<32 {
      guard try pool.catalog.applyNext(upTo: limit, applied: markApplied) else {
        sweepNextLayer()
        return true
      }
    }
    nodes.spillIfNeeded()
    return true
  }

  /// The trees have a mark: what it ended is the snapshot's now, or the deleted object's.
  private func markApplied(_ record: LogRecord) {
    let object: ObjectID
    switch record {
    case .snapshot(let snapshot, _, _, _, _, _): object = snapshot
    case .rollback(_, _, let former, _, _): object = former
    default: return
    }
    guard applied < pool.frozen.count else { invariantBroken("a mark has ended no layer") }
    pool.frozen[applied].object = object
    applied += 1
  }
  /// Of `pool.frozen`, layers whose marks the trees have.
  private var applied = 0

  /// Sweeps the next frozen layer whose mark is within the cut, or else the rest of the index.
  private func sweepNextLayer() {
    phase = .sweep
    while applied > 0, pool.frozen[0].state == .abandoned {
      pool.layers.remove(pool.frozen.removeFirst())
      applied -= 1
    }
    layer = applied > 0 ? pool.frozen[pool.fault == .layersOutOfOrder ? applied - 1 : 0] : nil
    sweep.begin(layer, cut: cut, relocates: relocateAll, cycle: cycles)
  }

  /// The snapshot's map is written: it is final, and what is born from now on is not in it (R10).
  private func finalise(_ layer: Layer) throws(SpaceWait) {
    guard var record = try pool.catalog.treeRecord(of: layer.object) else {
      throw .damaged(.none)
    }
    if record.inheritsMap {
      invariant(record.map.isNone, "a snapshot becomes final with a delta")
      guard let parent = try pool.catalog.treeRecord(of: record.parentSnapshot) else {
        throw .damaged(.none)
      }
      record.takeOver(parent)
    }
    record.instant = pool.nextInstant
    try pool.catalog.put(record, of: layer.object)
    if pool.fault != .birthByCheckpoint { pool.nextInstant += 1 }
    layer.state = .final
    layer.inheritsMap = false
    pool.returnRun(layer)
    pool.frozen.removeAll { $0 === layer }
    applied -= 1
    pool.paths.hit(.layerDestaged)
  }

  /// Enters volumes that the catalog does not have yet, new ones and those of a new pool.
  private func recordVolumes() throws(SpaceWait) {
    let volumes = pool.configuration.volumes
    while volumesRecorded < volumes.count {
      try pool.catalog.record(
        volumes[volumesRecorded], index: volumesRecorded)
      volumesRecorded += 1
    }
  }
  private var volumesRecorded = 0

  // MARK: Blocks

  private func moveBlocks() throws(SpaceWait) -> Bool {
    if try pool.space.storeExcess() { return true }
    switch try sweep.step() {
    case .goesOn: return true
    case .waits: return false
    case .done:
      phase = .maps
      return true
    }
  }

  package func readCompleted(_ i: Int, error: Int32) {
    note(sweep.readCompleted(i, error: error))
  }

  package func writeCompleted(_ i: Int, error: Int32) {
    note(sweep.writeCompleted(i, error: error))
  }

  private func note(_ outcome: WorkOutcome) {
    switch outcome {
    case .underWay: break
    case .done: stalledSince = .max
    case .refused: waitForDevice()
    }
  }

  private func waitForDevice() {
    isWaitingForDevice = true
    if stalledSince == .max { stalledSince = now }
    pool.paths.hit(.suspended)
    retryAt = now + 1_000_000_000
  }

  /// No space for a home that was promised one: a file system filled from outside. The cycle goes
  /// on when some is found (R23).
  package func waitForSpace(now: UInt64) {
    isWaitingForDevice = true
    retryAt = now + 100_000_000
  }

  // MARK: Maps, deleted objects

  /// Writes out what was changed in the maps, and goes on behind that with the sweep, with the next
  /// layer, or with what was deleted.
  private func finishMaps() throws(SpaceWait) -> Bool {
    try foldFinal()
    switch try maps.step() {
    case .goesOn: return true
    case .waits: return false
    case .done: break
    }
    if !sweep.hasEnded {
      phase = .sweep
    } else if let layer {
      try finalise(layer)
      sweepNextLayer()
    } else {
      phase = .deleted
    }
    return true
  }

  /// A layer that is about to be final may have a delta of earlier cycles, which is to be folded.
  private func foldFinal() throws(SpaceWait) {
    guard sweep.hasEnded, let layer, !layer.hasChangedMap,
      let record = try pool.catalog.treeRecord(of: layer.object), record.hasDelta
    else { return }
    if layer.map == nil { try pool.load(layer) }
    if layer.map != nil { maps.add(layer) }
  }

  /// The dead list of an object, if it is in memory.
  package func deadList(of object: ObjectID) -> DeadList? {
    reaper.list(of: object) ?? pool.layer(of: object)?.dead
  }

  /// Frees the space of deleted objects, a bounded part of it in each cycle.
  private func freeDeleted() throws(SpaceWait) -> Bool {
    if !reaper.isSaving {
      for _ in 0..<4 {
        let wasAtWork = reaper.isAtWork
        guard try reaper.advance() else {
          phase = .commit
          return true
        }
        reaped += 1
        let hasOnlyBegun = !wasAtWork && reaper.isAtWork
        if let layer = reaper.layerToFold {
          // It is written out as those of a sweep are, and the reaper goes on behind that.
          layer.mustFold = true
          maps.add(layer)
          phase = .maps
          return true
        }
        // A job that is saved before it has done anything would begin anew in each cycle.
        if reaper.wantsSave
          || !hasOnlyBegun && (pool.space.wantsCheckpoint || pool.store.needsSpill)
        {
          reaper.isSaving = true
          break
        }
      }
    }
    guard reaper.isSaving else { return true }
    var isDirty = false
    for tree in reaper.trees where nodes.writeOut(tree) { isDirty = true }
    if isDirty { return false }
    try reaper.save()
    if pool.space.wantsCheckpoint || pool.store.needsSpill { phase = .commit }
    return true
  }

  // MARK: Metadata

  /// Makes room in the cache: writes out what is dirty.
  package func spill() { nodes.spill() }

  package func nodeWriteCompleted(_ token: Int, error: Int32) {
    switch nodes.completed(token, error: error) {
    case .refused: waitForDevice()
    case .underWay: break
    case .done: if !nodes.hasRefused { stalledSince = .max }
    }
  }

  private func commit() throws(SpaceWait) -> Bool {
    if pool.store.needsSpill {
      nodes.spill()
      return false
    }
    nodes.hasMoved = false
    if try pool.space.commitSome(limit: Self.bitmapsAtATime) { phase = .nodes }
    return true
  }
  /// At some 5 µs each, and 16 times a turn.
  private static let bitmapsAtATime = 16

  private func writeNodes() throws(SpaceWait) -> Bool {
    if pool.store.dirtyCount > 0 { nodes.write(only: nil) }
    guard pool.store.dirtyCount == 0, nodes.inFlight == 0 else { return false }
    if nodes.hasMoved {
      phase = .commit
      return true
    }
    durableGoal = pool.log.appliedSequence
    if pool.log.durableSequence < durableGoal { pool.log.requestSync() }
    phase = .logDurable
    return true
  }

  /// What replaced blocks of this cut in the index must be durable before their homes stay behind.
  private func awaitLog() -> Bool {
    guard pool.log.durableSequence >= durableGoal || relocateAll else { return false }
    durableGoal = 0
    phase = .flushVolumes
    if case .done = checkpoint.flush() { writeRoot() }
    return false
  }

  package func volumeFlushCompleted(_ v: Int, error: Int32) {
    switch checkpoint.flushCompleted(v, error: error) {
    case .underWay: break
    case .done: writeRoot()
    case .refused:
      hasLostFlush = true
      waitForDevice()
    }
  }
  /// A volume's flush failed: nothing that was written to it since the last checkpoint counts. The
  /// homes and nodes are not to be believed, so the cycle can't end; a clean restart replays (R7).
  package private(set) var hasLostFlush = false

  private func writeRoot() {
    phase = .root
    var root = pool.root
    root.pool = pool.configuration.pool
    root.unit = pool.configuration.unit
    root.checkpoint += 1
    root.cutSequence = cut.sequence
    root.nextPosition = cut.position
    root.cutEpoch = cut.epoch
    root.cutChain = cut.chain
    root.volumes = UInt32(pool.configuration.volumes.count)
    root.nextObject = pool.catalog.appliedNextObject
    root.nextInstant = pool.nextInstant
    root.objects = pool.catalog.objects.root
    root.names = pool.catalog.names.root
    root.space = pool.spaceTree.root
    root.usedBlocks = UInt64(pool.space.used)
    root.metadataBlocks = UInt64(pool.space.metadata)
    root.disks = pool.catalog.appliedDiskCount
    root.snapshots = pool.catalog.appliedSnapshotCount
    root.heldBlocks = pool.catalog.heldBlocks
    root.freeingBlocks = pool.catalog.freeingBlocks
    root.deletedObjects = pool.catalog.deletedObjects
    root.written = wallClock
    checkpoint.write(root)
  }

  package func rootWriteCompleted(_ v: Int, error: Int32) {
    switch checkpoint.rootWritten(v, error: error) {
    case .underWay: break
    case .done: phase = .finish
    case .refused: waitForDevice()
    }
  }

  private func finish() -> Bool {
    stalledSince = .max
    pool.root = checkpoint.root
    pool.log.checkpoint = pool.root.checkpoint
    pool.log.release(upTo: cut.position)
    pool.catalog.dropOverlay(upTo: cut.sequence)
    pool.space.rootDurable(limit: 0)
    pool.store.beginCheckpoint(pool.root.checkpoint + 1)
    relocateAll = false
    if isForRoom {
      portion.note(
        blocks: sweep.blocksMoved - before.blocks, firstHomes: sweep.firstHomes - before.firstHomes,
        nodes: nodes.written - before.nodes)
    }
    if pool.fault == .birthByCheckpoint { pool.nextInstant += 1 }
    for place in 0..<pool.disks.placeCount {
      if let disk = pool.disks.at(place: place) { pool.unloadIfIdle(disk) }
    }
    phase = .freeing
    return true
  }

  /// What the cycle has released becomes free; only then has it ended for those who wait for space.
  private func freeReleased() -> Bool {
    guard pool.healing == 0 else { return false }
    if pool.space.chunksSealed > 0 { pool.paths.hit(.sealedBitmap) }
    guard pool.space.freeReleased(limit: 4096) else { return true }
    cycles += 1
    phase = .idle
    return false
  }

  /// Tries again what a device refused, once its time has come.
  package func retryFailed(now: UInt64) {
    guard isWaitingForDevice, now >= retryAt else { return }
    isWaitingForDevice = false
    nodes.retry()
    checkpoint.retry()
    sweep.retry()
  }
}
