// Moves what the log index holds to its homes: in each cycle once for every layer that a mark has
// ended, then for the rest.
//
//     begin ─▶ scan ⇄ batch ─▶ sweep ⇄ batch ─▶ done
//                      batch: read ─▶ write ─▶ map
//
// The index is swept in key order, and every entry at or before the cut is moved. An entry behind the
// cut has replaced what was there: it is left for the next cycle (absorbed). Where homes can be written
// quickly in any order, most of the rest is moved before that, in the order of the log (LogScan.swift).
//
// Entries leave the index when the map in memory names their home; the log keeps their frames
// until the root is durable (R18). A block owned alone is overwritten in place; its log record is
// durable (R14), so a torn home is always covered.

final class Sweep {
  private enum Stage {
    case scan, sweep, reading, writing, mapping
  }

  private let pool: Pool
  private let nodes: NodeWriter
  private let maps: ChangedMaps
  let batch = DestageBatch()
  private let scan: LogScan
  private let transfers: BatchTransfers
  private var homes: HomePlacer

  private var stage = Stage.sweep
  private var cut: FrameSequence = 0
  private var relocates = false
  private var cycle: UInt64 = 0
  private var cursor = IndexKey(raw: 0)
  private var end = IndexKey(raw: .max)
  /// All that there is was gathered.
  private(set) var hasEnded = false
  /// Items of the batch that the maps have.
  private var mapped = 0

  private(set) var blocksMoved: UInt64 = 0
  private(set) var firstHomes: UInt64 = 0
  /// Three units for a block that goes home: gathered, read, written.
  var work: UInt64 { gatherWork + transfers.work }
  private var gatherWork: UInt64 = 0
  /// Of the batch.
  var remainingWork: Int { transfers.remainingWork }

  /// No further blocks are moved, nor large writes mapped, but for the batch that is on its way.
  var rests = false
  /// Transfers in flight at most.
  var window = Destager.wideWindow {
    didSet {
      transfers.window = window
      // Times say something of a device only with its queue in use.
      if window < Destager.narrowWindow { (readBegan, readsDone, writeBegan) = (nil, 0, nil) }
    }
  }

  private var now: UInt64 = 0
  private var writeTimes = HomeWriteTimes()
  var homesAreSlow: Bool { writeTimes.areSlow }
  /// When the batch's reads and writes were begun, until they have been measured; and how many reads
  /// have ended.
  private var readBegan: UInt64?
  private var readsDone = 0
  private var writeBegan: UInt64?

  init(_ pool: Pool, _ nodes: NodeWriter, _ maps: ChangedMaps) {
    self.pool = pool
    self.nodes = nodes
    self.maps = maps
    scan = LogScan(pool, batch)
    homes = HomePlacer(pool)
    transfers = BatchTransfers(pool, batch, scan)
  }

  /// Starts with what the index has of a frozen layer, or with all of it. `relocates`: nothing is
  /// overwritten in place.
  func begin(_ layer: Layer?, cut: LogCut, relocates: Bool, cycle: UInt64) {
    stage = .sweep
    hasEnded = false
    self.cut = cut.sequence
    self.relocates = relocates
    self.cycle = cycle
    cursor = layer?.firstKey ?? IndexKey(raw: 0)
    end = layer.map { IndexKey(slot: $0.slot + 1, block: BlockIndex(0)) } ?? IndexKey(raw: .max)
    if layer == nil, mayScan {
      scan.begin(cut: cut.sequence, end: cut.position, always: pool.configuration.alwaysScans)
      if scan.isActive { stage = .scan }
    }
  }

  /// To be called before anything else in each turn of the engine.
  func beginTurn(now: UInt64) {
    self.now = now
    measureReads()
  }

  /// Goes on for some hundred blocks. `done`: what was changed in the maps is to be written out now,
  /// because all has been moved (`hasEnded`) or because too much is dirty.
  func step() throws(SpaceWait) -> StepOutcome {
    switch stage {
    case .scan, .sweep:
      if rests, batch.items.isEmpty, !hasEnded {
        pool.paths.hit(.destagingRested)
        return .waits
      }
      return stage == .scan ? try scanLog() : try sweepIndex()
    case .reading, .writing: return .waits
    case .mapping: return try mapBatch()
    }
  }

  // MARK: Scan

  private func scanLog() throws(SpaceWait) -> StepOutcome {
    if scan.isResolving {
      let all = try scan.resolve { (layer, block) throws(SpaceWait) in
        guard layer.base == nil, try isLive(layer), !pool.wantsFold(layer) else { return nil }
        return try layer.ownHome(of: block)
      }
      guard all else { return .goesOn }
      if !batch.items.isEmpty {
        for item in batch.items { maps.add(pool.layers[item.key.slot]!) }
        gatherWork += UInt64(batch.items.count)
        pool.paths.hit(.logScanned)
        batch.planTargets()
        write()
        return .waits
      }
    }
    guard mayScan, !pool.store.needsSpill, scan.planReads() else {
      scan.finish()
      stage = .sweep
      return .goesOn
    }
    read()
    return .waits
  }

  private var mayScan: Bool {
    !relocates && (pool.configuration.alwaysScans || writeTimes.allowScan(cycle: cycle))
  }

  // MARK: Sweep

  private func sweepIndex() throws(SpaceWait) -> StepOutcome {
    if hasEnded { return .done }
    for _ in 0..<256 {
      if batch.isFull { return readBatch() }
      guard let entry = pool.index.next(from: cursor), entry.key < end else {
        hasEnded = true
        return batch.items.isEmpty ? .done : readBatch()
      }
      if entry.sequence > cut && pool.fault != .checkpointNotExactPrefix {
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
        // What was gathered comes into the delta before the fold goes through that: behind it, it would
        // be lost with the delta.
        if layer.fold == nil, !batch.items.isEmpty { return readBatch() }
        maps.add(layer)
        try pool.foldSome(layer)
        return .goesOn
      }
      try gather(entry, layer)
    }
    if pool.store.needsSpill {
      // What is dirty now is written out with the batch's maps; the batch itself goes first.
      if !batch.items.isEmpty { return readBatch() }
      pool.paths.hit(.nodeSpill)
      return .done
    }
    return .goesOn
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
      maps.add(layer)
      let next = try pool.removeSome(layer, start.block, count: entry.end - start.raw)
      let done = next.raw - start.block.raw
      pool.account(pool.index.remove(from: start, length: done), layer)
      cursor = IndexKey(raw: start.raw + done)
    case .home:
      maps.add(layer)
      try mapLargeWrite(entry, layer)
    case .log:
      var item = DestageItem(
        key: entry.key, logBlock: entry.location, checksum: entry.checksum, isNew: false,
        sequence: entry.sequence, target: .none)
      if !relocates, let home = try layer.ownHome(of: entry.key.block) {
        item.target = home
      } else {
        item.target = try homes.newHome(of: entry.key, layer, after: batch.items.last)
        item.isNew = true
        firstHomes += 1
      }
      maps.add(layer)
      batch.items.append(item)
      gatherWork += 1
      cursor = IndexKey(raw: entry.end)
    }
  }

  /// A large write is home already: the map takes it over.
  private func mapLargeWrite(_ entry: IndexEntry, _ layer: Layer) throws(SpaceWait) {
    var checksums = InlineArray<128, UInt32>(repeating: 0)
    checksums[0] = entry.checksum
    var count = 1
    while count < 128,
      let next = pool.index.next(from: IndexKey(raw: entry.key.raw + UInt64(count))),
      next.key.raw == entry.key.raw + UInt64(count), next.kind == .home,
      next.location == entry.location + UInt64(count), next.sequence <= cut
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
    blocksMoved += UInt64(count)
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

  // MARK: A batch on its way

  private func readBatch() -> StepOutcome {
    batch.planReads(segmentBlocks: pool.log.geometry.segmentBlocks)
    batch.planTargets()
    read()
    return .waits
  }

  private func read() {
    stage = .reading
    readBegan = scan.isActive || window < Destager.narrowWindow ? nil : now
    transfers.read()
  }

  private func write() {
    stage = .writing
    writeBegan = window < Destager.narrowWindow ? nil : now
    transfers.write()
  }

  func readCompleted(_ i: Int, error: Int32) -> WorkOutcome {
    let outcome = transfers.readCompleted(i, error: error)
    switch outcome {
    case .underWay: break
    case .done where scan.isActive:
      scan.collect()
      stage = .scan
      return .underWay
    case .done:
      if readBegan != nil { readsDone = batch.transfers.count }
      write()
    case .refused where scan.isActive:
      // The sweep tries again what is left to it.
      scan.finish()
      stage = .sweep
      return .underWay
    case .refused:
      // The time would be that of waiting.
      readBegan = nil
    }
    return outcome
  }

  func writeCompleted(_ i: Int, error: Int32) -> WorkOutcome {
    let outcome = transfers.writeCompleted(i, error: error)
    if outcome == .done {
      mapped = 0
      stage = .mapping
    }
    return outcome
  }

  /// Tries again what a device refused.
  func retry() {
    transfers.retryReads()
    if transfers.wantsRewrite { write() }
  }

  private func measureReads() {
    guard let began = readBegan, readsDone > 0 else { return }
    batch.note(reads: readsDone, took: now - began)
    readBegan = nil
    readsDone = 0
  }

  private func measureWrites() {
    guard let began = writeBegan else { return }
    writeBegan = nil
    writeTimes.note(
      now - began, writes: batch.transfers.count, isScan: scan.isActive, cycle: cycle)
  }

  // MARK: Maps

  private func mapBatch() throws(SpaceWait) -> StepOutcome {
    measureWrites()
    if pool.store.dirtyCount > pool.store.dirtyLimit + DestageBatch.capacities.lowerBound {
      // However large the batch, what is dirty stays bounded.
      nodes.spill()
      if nodes.inFlight > 0 { return .waits }
    }
    var budget = 256
    while mapped < batch.items.count, budget > 0 {
      let group = nextGroup()
      let first = batch.items[mapped]
      let layer = pool.layers[first.key.slot]!
      if layer.state == .abandoned && first.isNew {
        // Deleted or rolled back since it was gathered: its index entries are gone, its map will be
        // freed. What was overwritten in place is mapped all the same: as of the cut, it is there.
        for i in 0..<group { pool.space.cancelReservation(batch.items[mapped + i].target, 1) }
      } else {
        try map(group, layer)
      }
      mapped += group
      budget -= group
      blocksMoved += UInt64(group)
    }
    nodes.spillIfNeeded()
    if mapped == batch.items.count {
      batch.clear()
      stage = scan.isActive ? .scan : .sweep
    }
    return .goesOn
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
      invariant(layer.fold == nil, "a delta is changed while it is folded")
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
}
