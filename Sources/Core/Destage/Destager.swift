// Destaging: the background cycle that moves what the log holds to its homes and switches vSpace
// to a new state, so that log space can be reused. It is the only one that changes vSpace.
//
//     idle ─▶ begin ─▶ structural ─▶ sweep ⇄ (read ▶ write ▶ map) ─▶ maps ─▶ deleted
//       ▲                              ▲   for each frozen layer,      │        │
//       │                              └──── then for the rest ◀──────┘        │
//       │                              (which a scan of the log may begin)      │
//       └── finish ◀─ root ◀─ flushVolumes ◀─ logDurable ◀─ nodes ◀─ commit ◀──┘
//
// A cycle has a cut C, the last frame that counted when it began, or an earlier one where only room in
// the log is wanted (CyclePortion.swift). It applies exactly the records at or before C (R17): first the
// structural ones, in order; then it destages the layers that marks at or before C have ended, in the
// order of the marks, each of which makes its snapshot final (R12); then it sweeps the log index
// once in key order and moves every entry whose sequence is <= C. An
// entry with a later sequence has replaced what was there: it is left for the next cycle (absorbed),
// which is right because it is durable before the root is written (`logDurable`) and will be replayed.
// Where homes can be written quickly in any order, most of the rest is moved before that sweep, in
// the order of the log (LogScan.swift).
//
// Entries leave the index when the map in memory names their home; the log keeps their frames
// until the root is durable (R18). A block owned alone is overwritten in place; its log record is
// durable (R14), so a torn home is always covered.
//
// Every step is bounded, and repeatable after a wait for metadata.

package final class Destager {
  private enum Phase {
    case idle, begin, structural, scan, sweep, reading, writing, mapping, maps, deleted
    case commit, nodes, logDurable, flushVolumes, root, finish
  }

  private let pool: Pool
  private var phase = Phase.idle
  /// The cycle applies all records up to here.
  private var cut = LogCut()
  private var portion: CyclePortion
  private var isForRoom = false
  let batch = DestageBatch()
  private let scan: LogScan
  private let transfers: BatchTransfers
  private var homes: HomePlacer
  private let nodes: NodeWriter
  private let reaper: Reaper
  private let checkpoint: CheckpointWriter

  /// The frozen layer that is being destaged; nil while the rest of the index is.
  private var layer: Layer?
  private var cursor = IndexKey(raw: 0)
  private var sweepEnd = IndexKey(raw: .max)
  private var sweepEnded = false
  private var mapped = 0
  /// Layers swept since their maps were last written out, in order.
  private var visited: [Layer] = []
  private var durableGoal: FrameSequence = 0

  /// Transfers in flight at most: few while there are requests, for they wait behind them in the
  /// devices' queues.
  package var window = Destager.wideWindow {
    didSet {
      transfers.window = window
      // Times say something of a device only with its queue in use.
      if window < Self.narrowWindow { (readBegan, readsDone, writeBegan) = (nil, 0, nil) }
    }
  }
  package static let wideWindow = 64
  package static let narrowWindow = 12
  package static let trickle = 2
  /// The cycle moves no further blocks, nor does it map large writes, but for the batch that it is at.
  package var rests = false

  /// Set while homes must not be overwritten: log frames up to the cut are not durable in the log
  /// (a flush of it failed), but will be at home.
  package var relocateAll = false
  package var isHeld = false
  package private(set) var destagedBlocks: UInt64 = 0
  package private(set) var cycles: UInt64 = 0
  /// Work done so far, for back-pressure: three units for a block that goes home (gathered, read,
  /// written), one for a node.
  package var progress: UInt64 { blockWork + nodeWork }
  var blockWork: UInt64 { gatherWork + transfers.work }
  private var gatherWork: UInt64 = 0
  private var nodeWork: UInt64 = 0
  private(set) package var isWaitingForDevice = false
  /// Since when a device has refused everything; `.max` while none does.
  private(set) package var stalledSince: UInt64 = .max
  private var retryAt: UInt64 = 0
  private var now: UInt64 = 0
  private var wallClock: UInt64 = 0

  package init(_ pool: Pool) {
    self.pool = pool
    portion = CyclePortion(least: pool.configuration.leastCyclePortion)
    reaper = Reaper(pool)
    nodes = NodeWriter(pool)
    scan = LogScan(pool, batch)
    homes = HomePlacer(pool)
    transfers = BatchTransfers(pool, batch, scan)
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
    let left = sweepEnded ? 0 : workAtStart - Int(blockWork - blockWorkAtStart)
    return max(left, transfers.remainingWork) + pool.store.dirtyCount + 64
  }
  private var workAtStart = 0
  private var blockWorkAtStart: UInt64 = 0
  private var blocksAtStart: UInt64 = 0
  /// Of this cycle.
  private var firstHomes: UInt64 = 0
  private var nodesWritten: UInt64 = 0
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
    measureReads()
    if isWaitingForDevice {
      if now < retryAt { return (nil, false) }
      isWaitingForDevice = false
    }
    do throws(SpaceWait) {
      for _ in 0..<16 {
        let movesBlocks = phase == .scan || phase == .sweep || phase == .mapping
        if try !advance() { return (nil, false) }
        if movesBlocks { break }
      }
      return (nil, true)
    } catch {
      return (error, false)
    }
  }

  /// One step; false when it waits for a device or has nothing to do.
  private func advance() throws(SpaceWait) -> Bool {
    try pool.payOwed()
    switch phase {
    case .idle: return false
    case .scan where rests && batch.items.isEmpty, .sweep where rests && batch.items.isEmpty:
      pool.paths.hit(.destagingRested)
      return false
    case .begin: return begin()
    case .structural: return try applyStructural()
    case .scan: return try scanLog()
    case .sweep: return try sweep()
    case .reading, .writing: return false
    case .mapping: return try mapBatch()
    case .maps: return try finishMaps()
    case .deleted: return try freeDeleted()
    case .commit: return try commit()
    case .nodes: return try writeNodes()
    case .logDurable: return awaitLog()
    case .flushVolumes: return false
    case .root: return false
    case .finish: return finish()
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
    while let layer = visited.popLast() { layer.isVisited = false }
    batch.clear()
    scan.finish()
    workAtStart = Int(Double(3 * pool.index.blocksLogged) * share)
    (blockWorkAtStart, blocksAtStart, firstHomes, nodesWritten) = (blockWork, destagedBlocks, 0, 0)
    phase = .structural
    return true
  }

  private func chooseCut() -> LogCut {
    let all = pool.log.appliedCut
    share = 1
    guard isForRoom, !relocateAll, !writeTimes.areSlow else { return all }
    let part = pool.log.cut(behind: portion.bytes(of: pool.log.geometry.capacity))
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
    spillIfNeeded()
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
    sweepEnded = false
    while applied > 0, pool.frozen[0].state == .abandoned {
      pool.layers.remove(pool.frozen.removeFirst())
      applied -= 1
    }
    layer = applied > 0 ? pool.frozen[pool.fault == .layersOutOfOrder ? applied - 1 : 0] : nil
    cursor = layer?.firstKey ?? IndexKey(raw: 0)
    sweepEnd =
      layer.map { IndexKey(slot: $0.slot + 1, block: BlockIndex(0)) } ?? IndexKey(raw: .max)
    if layer == nil, mayScan {
      scan.begin(
        cut: cut.sequence, end: cut.position, always: pool.configuration.alwaysScans)
      if scan.isActive { phase = .scan }
    }
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

  // MARK: Scan

  private func scanLog() throws(SpaceWait) -> Bool {
    if scan.isResolving {
      let all = try scan.resolve { (layer, block) throws(SpaceWait) in
        guard layer.base == nil, try isLive(layer), !pool.wantsFold(layer) else { return nil }
        return try layer.ownHome(of: block)
      }
      guard all else { return true }
      if !batch.items.isEmpty {
        for item in batch.items { visit(pool.layers[item.key.slot]!) }
        gatherWork += UInt64(batch.items.count)
        pool.paths.hit(.logScanned)
        batch.planTargets()
        write()
        return false
      }
    }
    guard mayScan, !pool.store.needsSpill, scan.planReads() else {
      scan.finish()
      phase = .sweep
      return true
    }
    read()
    return false
  }

  private var mayScan: Bool {
    !relocateAll && (pool.configuration.alwaysScans || writeTimes.allowScan(cycle: cycles))
  }
  private var writeTimes = HomeWriteTimes()
  /// When the batch's writes were begun, until they have been measured.
  private var writeBegan: UInt64?

  private func measureWrites() {
    guard let began = writeBegan else { return }
    writeBegan = nil
    writeTimes.note(
      now - began, writes: batch.transfers.count, isScan: scan.isActive, cycle: cycles)
  }

  // MARK: Sweep

  private func sweep() throws(SpaceWait) -> Bool {
    for _ in 0..<256 {
      if batch.isFull { return readBatch() }
      guard let entry = pool.index.next(from: cursor), entry.key < sweepEnd else {
        sweepEnded = true
        if !batch.items.isEmpty { return readBatch() }
        phase = .maps
        return true
      }
      if entry.sequence > cut.sequence && pool.fault != .checkpointNotExactPrefix {
        try homes.leavePlace(for: entry)
        cursor = IndexKey(raw: entry.end)
        continue
      }
      guard let layer = pool.layers[entry.key.slot] else {
        invariantBroken("the log index names a layer that is not in memory")
      }
      if try !isLive(layer) {
        pool.dropLogged(layer)
        continue
      }
      if pool.wantsFold(layer) {
        visit(layer)
        try pool.foldSome(layer)
        return true
      }
      try gather(entry, layer)
    }
    if pool.store.needsSpill {
      // What is dirty now is written out with the batch's maps; the batch itself goes first.
      if !batch.items.isEmpty { return readBatch() }
      pool.paths.hit(.nodeSpill)
      phase = .maps
    }
    return true
  }

  /// Loads the layer; false when its object does not exist any more.
  private func isLive(_ layer: Layer) throws(SpaceWait) -> Bool {
    if layer.map == nil {
      if layer.state == .open, try pool.catalog.record(of: layer.object) == nil { return false }
      try pool.load(layer)
    }
    invariant(layer.base == nil, "a layer is destaged before what it is over")
    return true
  }

  private func gather(_ entry: IndexEntry, _ layer: Layer) throws(SpaceWait) {
    switch entry.kind {
    case .zero:
      // From the cursor on: what was in front of it has been done, or has been replaced.
      let start = IndexKey(raw: max(entry.key.raw, cursor.raw))
      visit(layer)
      let next = try pool.removeSome(layer, start.block, count: entry.end - start.raw)
      let done = next.raw - start.block.raw
      pool.account(pool.index.remove(from: start, length: done), layer)
      cursor = IndexKey(raw: start.raw + done)
    case .home:
      visit(layer)
      try mapLargeWrite(entry, layer)
    case .log:
      var item = DestageItem(
        key: entry.key, logBlock: entry.location, checksum: entry.checksum, isNew: false,
        sequence: entry.sequence, target: .none)
      if !relocateAll, let home = try layer.ownHome(of: entry.key.block) {
        item.target = home
      } else {
        item.target = try homes.newHome(of: entry.key, layer, after: batch.items.last)
        item.isNew = true
        firstHomes += 1
      }
      visit(layer)
      batch.items.append(item)
      gatherWork += 1
      cursor = IndexKey(raw: entry.end)
    }
  }

  private func visit(_ layer: Layer) {
    guard !layer.isVisited else { return }
    layer.isVisited = true
    visited.append(layer)
  }

  /// A large write is home already: the map takes it over.
  private func mapLargeWrite(_ entry: IndexEntry, _ layer: Layer) throws(SpaceWait) {
    var checksums = InlineArray<128, UInt32>(repeating: 0)
    checksums[0] = entry.checksum
    var count = 1
    while count < 128,
      let next = pool.index.next(from: IndexKey(raw: entry.key.raw + UInt64(count))),
      next.key.raw == entry.key.raw + UInt64(count), next.kind == .home,
      next.location == entry.location + UInt64(count), next.sequence <= cut.sequence
    {
      checksums[count] = next.checksum
      count += 1
    }
    try pool.assign(
      layer, entry.key.block, BlockAddress(raw: entry.location), checksums, count: count)
    for i in 0..<count {
      pool.overwritten(BlockAddress(raw: entry.location) + UInt64(i), checksums[i])
      forget(IndexKey(raw: entry.key.raw + UInt64(i)), layer, ifSequence: nil)
    }
    cursor = IndexKey(raw: entry.key.raw + UInt64(count))
    destagedBlocks += UInt64(count)
    gatherWork += 3 * UInt64(count)
  }

  /// The map names the block's home: the entry has done its work.
  private func forget(_ key: IndexKey, _ layer: Layer, ifSequence sequence: FrameSequence?) {
    guard case .covered(let entry, _) = pool.index.lookup(key), entry.kind != .zero,
      sequence == nil || entry.sequence == sequence,
      pool.index.removeBlock(key, ifSequence: entry.sequence)
    else { return }
    layer.loggedBlocks -= 1
    if entry.reserves { pool.reservedBlocks -= 1 }
  }

  // MARK: A batch

  private func readBatch() -> Bool {
    batch.planReads(segmentBlocks: pool.log.geometry.segmentBlocks)
    batch.planTargets()
    read()
    return false
  }

  private func read() {
    phase = .reading
    readBegan = scan.isActive || window < Self.narrowWindow ? nil : now
    transfers.read()
  }
  /// When the batch's reads were begun, until they have been measured; and how many have ended.
  private var readBegan: UInt64?
  private var readsDone = 0

  private func measureReads() {
    guard let began = readBegan, readsDone > 0 else { return }
    batch.note(reads: readsDone, took: now - began)
    readBegan = nil
    readsDone = 0
  }

  package func readCompleted(_ i: Int, error: Int32) {
    switch transfers.readCompleted(i, error: error) {
    case .underWay: break
    case .done where scan.isActive:
      scan.collect()
      phase = .scan
    case .done:
      stalledSince = .max
      if readBegan != nil { readsDone = batch.transfers.count }
      write()
    case .refused where scan.isActive:
      // The sweep tries again what is left to it.
      scan.finish()
      phase = .sweep
    case .refused:
      // The time would be that of waiting.
      readBegan = nil
      waitForDevice()
    }
  }

  private func write() {
    phase = .writing
    writeBegan = window < Self.narrowWindow ? nil : now
    transfers.write()
  }

  package func writeCompleted(_ i: Int, error: Int32) {
    switch transfers.writeCompleted(i, error: error) {
    case .underWay: break
    case .done:
      stalledSince = .max
      mapped = 0
      phase = .mapping
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

  private func mapBatch() throws(SpaceWait) -> Bool {
    measureWrites()
    if pool.store.dirtyCount > pool.store.dirtyLimit + DestageBatch.capacities.lowerBound {
      // However large the batch, what is dirty stays bounded.
      spill()
      if nodes.inFlight > 0 { return false }
    }
    var budget = 256
    while mapped < batch.items.count, budget > 0 {
      let group = nextGroup()
      let first = batch.items[mapped]
      let layer = pool.layers[first.key.slot]!
      if layer.state == .abandoned && first.isNew {
        // Deleted or rolled back since it was gathered: its index entries are gone, its map will be
        // freed. What was overwritten in place is mapped all the same: as of the cut, it is there.
        for i in 0..<group { cancelHome(batch.items[mapped + i]) }
      } else {
        try map(group, layer)
      }
      mapped += group
      budget -= group
      destagedBlocks += UInt64(group)
    }
    spillIfNeeded()
    if mapped == batch.items.count {
      batch.clear()
      phase = scan.isActive ? .scan : sweepEnded ? .maps : .sweep
    }
    return true
  }

  private func cancelHome(_ item: DestageItem) {
    pool.space.cancelReservation(item.target, 1)
  }

  /// How many items from `mapped` on are neighbours on the disk, and at home if they are new.
  private func nextGroup() -> Int {
    var n = 1
    let first = batch.items[mapped]
    while mapped + n < batch.items.count, n < 128 {
      let item = batch.items[mapped + n]
      guard item.key.raw == first.key.raw + UInt64(n), item.isNew == first.isNew,
        !item.isNew || item.target == first.target + UInt64(n)
      else { break }
      n += 1
    }
    return n
  }

  private func map(_ count: Int, _ layer: Layer) throws(SpaceWait) {
    let first = batch.items[mapped]
    var checksums = InlineArray<128, UInt32>(repeating: 0)
    for i in 0..<count { checksums[i] = batch.items[mapped + i].checksum }
    if first.isNew {
      try pool.assign(layer, first.key.block, first.target, checksums, count: count)
    } else {
      try checksums.span.withUnsafeBufferPointer { (all) throws(SpaceWait) in
        try (layer.map!.delta ?? layer.map!.full).updateChecksums(
          first.key.block, UnsafeBufferPointer(rebasing: all[..<count]))
      }
    }
    for i in 0..<count {
      let item = batch.items[mapped + i]
      pool.overwritten(item.target, item.checksum)
      forget(item.key, layer, ifSequence: item.sequence)
    }
  }

  // MARK: Maps, deleted objects

  /// Writes out the maps that were changed and enters their roots into the catalog. A disk that
  /// was deleted behind the cut still is in the catalog as of the cut, and takes part.
  private func finishMaps() throws(SpaceWait) -> Bool {
    try visitFinal()
    for layer in visited where pool.wantsFold(layer) {
      try pool.foldSome(layer)
      return true
    }
    var isDirty = false
    for layer in visited {
      for tree in [layer.map?.full.tree, layer.map?.delta?.tree, layer.dead?.tree]
      where writeOut(tree) { isDirty = true }
    }
    if isDirty { return false }
    while let layer = visited.last {
      try pool.record(layer)
      if layer.state != .open || !isConnected(layer) { pool.returnRun(layer) }
      visited.removeLast()
      layer.isVisited = false
    }
    spillIfNeeded()
    guard sweepEnded else {
      phase = .sweep
      return true
    }
    if let layer {
      try finalise(layer)
      sweepNextLayer()
    } else {
      phase = .deleted
    }
    return true
  }

  /// A layer that is about to be final may have a delta of earlier cycles, which is to be folded.
  private func visitFinal() throws(SpaceWait) {
    guard sweepEnded, let layer, !layer.isVisited,
      let record = try pool.catalog.treeRecord(of: layer.object), record.hasDelta
    else { return }
    if layer.map == nil { try pool.load(layer) }
    if layer.map != nil { visit(layer) }
  }

  private func isConnected(_ layer: Layer) -> Bool {
    pool.disks.find(layer.object).map { $0.connections > 0 } ?? false
  }

  /// Issues writes of a tree's dirty nodes; false when it has none.
  private func writeOut(_ tree: Tree?) -> Bool {
    guard let tree, tree.isDirty else { return false }
    nodes.write(only: tree, window: window)
    return true
  }

  /// The dead list of an object, if it is in memory.
  package func deadList(of object: ObjectID) -> DeadList? {
    reaper.list(of: object) ?? pool.layer(of: object)?.dead
  }

  /// Frees the space of deleted objects, a bounded part of it in each cycle.
  private func freeDeleted() throws(SpaceWait) -> Bool {
    if !reaper.isSaving {
      for _ in 0..<4 {
        do throws(SpaceWait) {
          guard try reaper.advance() else {
            phase = .commit
            return true
          }
        } catch {
          guard case .damaged(let pointer) = error, pool.store.isRefused(pointer) else {
            throw error
          }
          // Given up, what it points to would never be free: the device is asked again.
          pool.store.forgetRefusal(pointer)
          isWaitingForDevice = true
          retryAt = now + 1_000_000_000
          return false
        }
        nodeWork += 1
        if let layer = reaper.layerToFold {
          // It is written out as those of a sweep are, and the reaper goes on behind that.
          layer.mustFold = true
          visit(layer)
          phase = .maps
          return true
        }
        if reaper.wantsSave || pool.space.wantsCheckpoint || pool.store.needsSpill {
          reaper.isSaving = true
          break
        }
      }
    }
    guard reaper.isSaving else { return true }
    var isDirty = false
    for tree in reaper.trees where writeOut(tree) { isDirty = true }
    if isDirty { return false }
    try reaper.save()
    if pool.space.wantsCheckpoint || pool.store.needsSpill { phase = .commit }
    return true
  }

  // MARK: Metadata

  /// Writes some dirty nodes out early, so that what is dirty stays bounded.
  private func spillIfNeeded() {
    if pool.store.needsSpill { spill() }
  }

  /// Makes room in the cache: writes out what is dirty.
  package func spill() {
    pool.paths.hit(.nodeSpill)
    nodes.write(only: nil, window: window)
  }

  package func nodeWriteCompleted(_ token: Int, error: Int32) {
    switch nodes.completed(token, error: error) {
    case .refused: waitForDevice()
    case .underWay: break
    case .done:
      if !nodes.hasRefused { stalledSince = .max }
      nodeWork += 1
      nodesWritten += 1
    }
  }

  private func commit() throws(SpaceWait) -> Bool {
    try pool.space.commit()
    phase = .nodes
    return true
  }

  private func writeNodes() throws(SpaceWait) -> Bool {
    if pool.store.dirtyCount > 0 { nodes.write(only: nil, window: window) }
    guard pool.store.dirtyCount == 0, nodes.inFlight == 0 else { return false }
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
    pool.space.rootDurable()
    pool.store.beginCheckpoint(pool.root.checkpoint + 1)
    relocateAll = false
    cycles += 1
    if isForRoom {
      portion.note(
        blocks: destagedBlocks - blocksAtStart, firstHomes: firstHomes, nodes: nodesWritten)
    }
    if pool.fault == .birthByCheckpoint { pool.nextInstant += 1 }
    for place in 0..<pool.disks.placeCount {
      if let disk = pool.disks.at(place: place) { pool.unloadIfIdle(disk) }
    }
    phase = .idle
    return false
  }

  /// Tries again what a device refused, once its time has come.
  package func retryFailed(now: UInt64) {
    guard isWaitingForDevice, now >= retryAt else { return }
    isWaitingForDevice = false
    nodes.retry()
    checkpoint.retry()
    transfers.retryReads()
    if transfers.wantsRewrite { write() }
  }
}
