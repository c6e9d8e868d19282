// Recovery: from labelled devices to an engine that serves. Every opening goes this way, a clean
// one as well.
//
//     flush log and volumes (R6) ─▶ read root rings and epoch records ─▶ newest root; written to
//     the volumes that lack it ─▶ open vSpace ─▶ replay the log ─▶ write its tail once more,
//     durable ─▶ reserve the homes of large writes ─▶ new epoch, durable ─▶ serve
//
// Nothing is written before the newest root is chosen and found to be no older than what the log
// names (R19). The caller holds the exclusive locks of the members.

final class Recovery {
  enum Stage {
    case begin, flushing, reading, space, replaying, rewritingTail, reserving
    case completingRoots, epoch
  }

  let pool: Pool
  var stage = Stage.begin
  var outstanding = 0
  var error: Int32 = 0
  var failedDevice = 0
  let roots: AlignedMemory
  let epochBlocks: AlignedMemory
  let rootMemory = AlignedMemory(bytes: Int(VolumeLayout.rootCopies) * blockSize)
  /// Of each volume, its newest root's checkpoint, 0 for none; and whether both copies are there.
  var newestRoots: [(checkpoint: UInt64, isWhole: Bool)] = []
  /// Pairs of ring blocks of which one could not be read.
  private var halved: Set<Int> = []
  var replay: LogReplay?
  var startedAt: UInt64 = 0
  /// The log holds large writes.
  var hasHomes = false
  var reserveCursor = IndexKey(raw: 0)
  var spaceBlocked = false
  /// What of the log's tail is still to be written once more, the next part last; whether its next
  /// piece is in memory.
  var tail: [Range<UInt64>] = []
  var tailWasRead = false
  lazy var tailMemory = AlignedMemory(bytes: Self.tailPiece)
  static let tailPiece = 1 << 20

  init(_ pool: Pool) {
    self.pool = pool
    let volumes = max(1, pool.configuration.volumes.count)
    roots = AlignedMemory(bytes: volumes * Int(VolumeLayout.rootRing) * blockSize)
    epochBlocks = AlignedMemory(bytes: Int(LogLayout.epochRing) * blockSize)
  }

  func completed(_ index: Int, error: Int32) {
    if stage == .replaying {
      replay?.readCompleted(index, error: error)
      return
    }
    outstanding -= 1
    guard error != 0 else { return }
    if stage == .reading { return readSingly(index, error) }
    self.error = error
    failedDevice = index
  }

  /// Reads a device's ring; what each of its records says, a neighbour says as well, so one block that
  /// can't be read must not take the others with it.
  func readRing(_ device: Int) {
    let ring = ring(of: device)
    outstanding += 1
    pool.ops.issue(
      .read, DeviceIndex(UInt16(device)), offset: ring.first << blockShift,
      length: ring.count << blockShift, memory: ring.memory, owner: .recovery, index: device)
  }

  /// A ring could not be read at once, or a block of it (`index`: block + 1 << 16 | device) not at all:
  /// it counts as empty, if the other of its pair can be read.
  private func readSingly(_ index: Int, _ error: Int32) {
    let device = index & 0xFFFF
    let ring = ring(of: device)
    if index == device {
      for i in 0..<ring.count {
        outstanding += 1
        pool.ops.issue(
          .read, DeviceIndex(UInt16(device)), offset: (ring.first + i) << blockShift,
          length: UInt64(blockSize), memory: ring.memory + Int(i) * blockSize, owner: .recovery,
          index: Int(i + 1) << 16 | device)
      }
      return
    }
    let block = (index >> 16) - 1
    (ring.memory + block * blockSize)
      .initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
    if !halved.insert((block / 2) << 16 | device).inserted {
      self.error = error
      failedDevice = device
    }
  }

  private func ring(
    of device: Int
  ) -> (first: UInt64, count: UInt64, memory: UnsafeMutableRawPointer) {
    if device == 0 { return (LogLayout.epochs, LogLayout.epochRing, epochBlocks.base) }
    let count = VolumeLayout.rootRing
    return (
      VolumeLayout.roots + pool.configuration.unit * count, count,
      roots.base + (device - 1) * Int(count) * blockSize
    )
  }

  /// Root ring entry `i` of volume `v`.
  func rootBlock(_ v: Int, _ i: Int) -> UnsafeRawPointer {
    UnsafeRawPointer(roots.base + (v * Int(VolumeLayout.rootRing) + i) * blockSize)
  }
}

extension Engine {
  func stepRecovery(_ recovery: Recovery) {
    if recovery.startedAt == 0 { recovery.startedAt = now }
    for _ in 0..<64 {
      guard failure == nil, self.recovery != nil else { return }
      if recovery.stage != .replaying, recovery.outstanding > 0 { return }
      do throws(SpaceWait) {
        if try !advanceRecovery(recovery) { return }
      } catch {
        return awaitRecovery(recovery, error)
      }
    }
  }

  private func awaitRecovery(_ recovery: Recovery, _ wait: SpaceWait) {
    switch wait {
    case .node(let pointer): startLoad(pointer)
    case .damaged:
      fail("metadata of the pool is damaged; run `sluice check` on it, and `sluice check --repair`")
    case .memory: awaitMemory()
    case .backing, .noSpace: fail("the pool has no room for its own recovery; add a volume")
    }
  }

  /// One step; false when it waits.
  private func advanceRecovery(_ recovery: Recovery) throws(SpaceWait) -> Bool {
    if recovery.error != 0, recovery.stage != .replaying {
      fail(
        "\(deviceName(recovery.failedDevice)) can't be read, written or flushed (error \(recovery.error)); "
          + "check the device and start again")
      return false
    }
    switch recovery.stage {
    case .begin: flushMembers(recovery)
    case .flushing: readRoots(recovery)
    case .reading: return chooseRoot(recovery)
    case .space:
      try pool.space.open(metadata: pool.root.space)
      startReplay(recovery)
    case .replaying: return stepReplay(recovery)
    case .rewritingTail: rewriteTail(recovery)
    case .reserving:
      try reserveHomes(recovery)
      completeRoots(recovery)
    case .completingRoots:
      recovery.stage = .epoch
      openEpoch()
      if epochInFlight == nil { startWithoutEpoch(recovery) }
      return false
    case .epoch: return false
    }
    return true
  }

  private func deviceName(_ index: Int) -> String {
    index == 0 ? "the log device" : "volume \(index - 1)"
  }

  private func flushMembers(_ recovery: Recovery) {
    recovery.stage = .flushing
    guard pool.fault != .noFlushInRecovery else { return }
    for device in 0...pool.configuration.volumes.count {
      recovery.outstanding += 1
      pool.ops.flush(DeviceIndex(UInt16(device)), owner: .recovery, index: device)
    }
  }

  private func readRoots(_ recovery: Recovery) {
    recovery.stage = .reading
    for device in 0...pool.configuration.volumes.count { recovery.readRing(device) }
  }

  /// The newest root of any volume: all that it points to was durable before its first copy was
  /// written.
  private func chooseRoot(_ recovery: Recovery) -> Bool {
    var newest: RootRecord?
    var older: RootRecord?
    for v in 0..<pool.configuration.volumes.count {
      var own: RootRecord?
      var copies: UInt64 = 0
      for i in 0..<Int(VolumeLayout.rootRing) {
        guard
          let root = RootRecord(
            decoding: recovery.rootBlock(v, i), pool: pool.configuration.pool,
            unit: pool.configuration.unit)
        else { continue }
        if root.checkpoint > own?.checkpoint ?? 0 {
          older = own
          own = root
          copies = 0
        } else if root.checkpoint != own?.checkpoint,
          root.checkpoint > older?.checkpoint ?? 0
        {
          older = root
        }
        if root.checkpoint == own?.checkpoint { copies += 1 }
      }
      recovery.newestRoots.append((own?.checkpoint ?? 0, copies == VolumeLayout.rootCopies))
      if let own, own.checkpoint > newest?.checkpoint ?? 0 { newest = own }
    }
    if pool.fault == .olderRootAccepted { newest = older ?? newest }
    guard let root = newest else {
      fail(
        "no volume holds a root of this pool; was `pool create` interrupted? Create it anew, or "
          + "run `sluice check`")
      return false
    }
    guard Int(root.volumes) <= pool.configuration.volumes.count else {
      fail(
        "the pool has \(root.volumes) volumes, only \(pool.configuration.volumes.count) were given; "
          + "open it with all its devices")
      return false
    }
    readEpochs(recovery)
    pool.adopt(root)
    recovery.stage = .space
    return true
  }

  private func readEpochs(_ recovery: Recovery) {
    var newest: EpochRecord?
    for i in 0..<Int(LogLayout.epochRing) {
      if let record = EpochRecord(
        decoding: recovery.epochBlocks.base + i * blockSize, tag: pool.log.geometry.tag),
        record.counter > newest?.counter ?? 0
      {
        newest = record
      }
    }
    epochs = newest?.epochs ?? []
    epochCounter = newest?.counter ?? 0
  }

  // MARK: Replay

  private func startReplay(_ recovery: Recovery) {
    let replay = LogReplay(
      geometry: pool.log.geometry, ops: pool.ops, root: pool.root, epochs: epochs,
      fault: pool.fault)
    replay.apply = { [unowned self] table, length, sequence, payloadBlock in
      applyTable(table, length: length, sequence: sequence, payloadBlock: payloadBlock)
    }
    recovery.replay = replay
    recovery.stage = .replaying
    replay.start()
  }

  private func stepReplay(_ recovery: Recovery) -> Bool {
    guard let replay = recovery.replay else { return false }
    switch replay.step() {
    case .working: return false
    case .failed(let why):
      fail(why)
      return false
    case .done: break
    }
    if replay.highestCheckpoint > pool.root.checkpoint, pool.fault != .olderRootAccepted {
      fail(
        "the newest root of the pool is checkpoint \(pool.root.checkpoint), but the log names "
          + "\(replay.highestCheckpoint): a volume was swapped or rolled back; bring back the right one"
      )
      return false
    }
    if let volume = staleVolume(recovery, durable: replay.highestCheckpoint) {
      fail(
        "volume \(volume) does not have checkpoint \(pool.root.checkpoint), the newest of the pool, "
          + "although it was durable there: it was swapped or rolled back; bring back the right one. If "
          + "it is the right one, `sluice check --repair` writes the checkpoint's root to it anew")
      return false
    }
    pool.log.adopt(
      sequence: replay.lastSequence, position: replay.lastPosition, chain: replay.lastChain,
      epoch: replay.lastEpoch, tailSegment: pool.log.geometry.segment(of: pool.root.nextPosition))
    pool.log.checkpoint = pool.root.checkpoint
    pool.nextInstant = max(pool.nextInstant, replay.lastInstant)
    pool.paths.add(replay.paths)
    statistics.recoveryFrames = replay.frames
    recovery.replay = nil
    recovery.tail = replay.tail.reversed()
    recovery.stage = .rewritingTail
    return true
  }

  /// A volume that lacks the newest root other than by a crash while that was written: frames name it
  /// durable, or the one before it is missing as well. What such a volume holds is of another time.
  private func staleVolume(_ recovery: Recovery, durable: UInt64) -> Int? {
    guard pool.fault != .olderRootAccepted else { return nil }
    let newest = pool.root.checkpoint
    return (0..<Int(pool.root.volumes)).first {
      let own = recovery.newestRoots[$0].checkpoint
      return own < newest && (durable >= newest || own > 0 && own + 1 < newest)
    }
  }

  /// Writes the frames once more that nothing calls durable, as they are, before an epoch begins
  /// behind them that counts on them. The flush that recovery began with does not do: what a failed
  /// flush or write has left behind, no later flush makes durable.
  private func rewriteTail(_ recovery: Recovery) {
    let isLeftOut = pool.fault == .tailNotRewritten || pool.fault == .noFlushInRecovery
    guard let part = recovery.tail.last, !isLeftOut else {
      recovery.stage = .reserving
      return
    }
    let geometry = pool.log.geometry
    let start = part.lowerBound
    let segmentEnd = geometry.start(ofSegment: geometry.segment(of: start) + 1)
    let end = min(start + UInt64(Recovery.tailPiece), segmentEnd, part.upperBound)
    recovery.outstanding += 1
    pool.ops.issue(
      recovery.tailWasRead ? .writeDurable : .read, .log, offset: geometry.deviceOffset(start),
      length: end - start, memory: recovery.tailMemory.base, owner: .recovery, index: 0)
    if recovery.tailWasRead {
      pool.paths.hit(.tailRewritten)
      recovery.tail.removeLast()
      if end < part.upperBound { recovery.tail.append(end..<part.upperBound) }
    }
    recovery.tailWasRead.toggle()
  }

  /// Homes of large writes that no map has yet must not be handed out (R17).
  private func reserveHomes(_ recovery: Recovery) throws(SpaceWait) {
    while recovery.hasHomes, let entry = pool.index.next(from: recovery.reserveCursor) {
      if entry.kind == .home {
        guard try pool.space.reserve(BlockAddress(raw: entry.location), 1) else {
          return fail("a logged write's home is in use by something else; run `sluice check`")
        }
      }
      recovery.reserveCursor = IndexKey(raw: entry.end)
    }
    pool.index.displacedHome = { [unowned self] entry in
      freeHome(BlockRun(BlockAddress(raw: entry.location), 1))
    }
  }

  /// A crash in the midst of writing a root leaves it on some volumes only; a later crash must not
  /// find an older one alone.
  private func completeRoots(_ recovery: Recovery) {
    recovery.stage = .completingRoots
    for copy in 0..<Int(VolumeLayout.rootCopies) {
      pool.root.encode(to: recovery.rootMemory.base + copy * blockSize)
    }
    let block = VolumeLayout.root(unit: pool.root.unit, checkpoint: pool.root.checkpoint)
    for v in 0..<pool.configuration.volumes.count {
      let own = recovery.newestRoots[v]
      if own.checkpoint == pool.root.checkpoint, own.isWhole { continue }
      pool.paths.hit(.rootCompleted)
      recovery.outstanding += 1
      pool.ops.issue(
        .writeDurable, .volume(v), offset: block << blockShift,
        length: UInt64(recovery.rootMemory.count), memory: recovery.rootMemory.base,
        owner: .recovery, index: v + 1)
    }
  }

  // MARK: Epochs

  /// Writes the record of a new epoch, which begins behind the last frame that counts. Leaves
  /// `epochInFlight` nil when the log has no room for it before a checkpoint.
  func openEpoch() {
    guard epochInFlight == nil else { return }
    guard let position = pool.log.nextEpochStart(),
      epochs.count < EpochRecord.maximumEntries
    else { return }
    let number = (epochs.last?.number ?? 0) + 1
    let first = pool.log.appliedSequence + 1
    var seed = [number, first, pool.log.geometry.tag]
    let epoch = Epoch(
      number: number, firstSequence: first, position: position,
      chain: seed.withUnsafeMutableBytes { crc32c(UnsafeRawBufferPointer($0)) })
    // An epoch without a frame is forgotten, so that no two begin with one sequence.
    var list = epochs.filter { $0.firstSequence < first }
    if pool.fault == .epochNotRaised, let last = epochs.last {
      list = epochs
      list[list.count - 1] = last
    } else {
      list.append(epoch)
    }
    epochCounter += 1
    let record = EpochRecord(tag: pool.log.geometry.tag, counter: epochCounter, epochs: list)
    for copy in 0..<Int(LogLayout.epochCopies) {
      record.encode(to: epochMemory.base + copy * blockSize)
    }
    epochInFlight = epoch
    pendingEpochs = list
    pool.ops.issue(
      .writeDurable, .log, offset: LogLayout.epochRecord(epochCounter) << blockShift,
      length: UInt64(epochMemory.count),
      memory: epochMemory.base, owner: .epochRecord, index: 0)
  }

  func epochRecordWritten(_ index: Int, error: Int32) {
    guard let epoch = epochInFlight else { return }
    epochInFlight = nil
    if error != 0 {
      pool.ioErrors += 1
      if recovery != nil {
        return fail(
          "the log device can't be written (error \(error)); check the device and start again")
      }
      probeAt = now + 1_000_000_000
      return
    }
    epochs = pendingEpochs
    probeAt = .max
    logBrokenSince = .max
    pool.log.begin(epoch, instant: pool.nextInstant)
    freeVoidHomes()
    if let recovery {
      statistics.recoveryNanoseconds = now - recovery.startedAt
      becomeReady()
    } else {
      if !wasOpenedLate { pool.paths.hit(.reEpoch) }
      wasOpenedLate = false
    }
    loadEnded = true
  }

  /// The log is so full that no epoch fits: destage what was replayed first. Reads are served
  /// meanwhile, writes wait.
  private func startWithoutEpoch(_ recovery: Recovery) {
    pool.paths.hit(.recoveryBeforeNewEpoch)
    statistics.recoveryNanoseconds = now - recovery.startedAt
    wasOpenedLate = true
    probeAt = now
    becomeReady()
    destager.start()
  }

  /// Epochs that no recovery needs any more: all that end at or before the cut.
  func pruneEpochs() {
    while epochs.count > 1, epochs[1].firstSequence <= pool.root.cutSequence + 1 {
      epochs.removeFirst()
    }
  }
}
