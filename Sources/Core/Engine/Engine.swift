// The engine: one pool, from requests to device operations and back. Deterministic: it has no
// clock, no randomness and no I/O of its own (see EngineContract.swift).
//
//     submit ─▶ read:  log index ─▶ extent map ─▶ cache ─▶ device          (EngineReads)
//            ─▶ write: whole blocks ─▶ space ─▶ open frame ─▶ frame counts ─▶ log index, ack
//                                                                            (EngineWrites)
//     frame:   its records ─▶ log index, catalog overlay, layers              (EngineRecords)
//     control ─▶ jobs: catalog look-ups and structural records               (EngineControl)
//     recovery: root ─▶ replay ─▶ new epoch                                  (EngineRecovery)
//     destaging goes on behind it all                                        (Destage/)
//
// A request that needs metadata that is not in memory waits in `parked` until a load has ended,
// and is then tried anew.

package final class Engine: BlockEngine {
  let pool: Pool
  let destager: Destager
  var requests: RequestTable
  var parts: ReadPartTable

  // Queues.
  private var completions = RingQueue<FinishedRequest>(capacity: 256)
  private var replies = RingQueue<(token: UInt64, reply: ControlReply)>(capacity: 16)
  /// Writes waiting for room in a frame, or for credit.
  var admission = RequestList()
  /// Requests waiting for a metadata block.
  var parked = RequestList()
  /// Writes waiting for vSpace, until a cycle or an allocation of backing has ended.
  var spaceWaiters = RequestList()
  /// A write has found no space, and none can be backed. What frees some may be the last that the log
  /// holds, so it takes a cycle of all that counts.
  var spaceIsWanted = false
  /// Partial writes, and writes that overlap one, waiting for the other to count.
  var blockWaiters = RequestList()
  /// Partial writes whose blocks others must not write meanwhile.
  var partialWrites: [Int32] = []
  /// Write-type requests that do not count yet, in no order.
  var activeWrites: [Int32] = []
  /// Flushes waiting until the log is durable up to a sequence (durability "flush").
  var syncWaiters: [(sequence: FrameSequence, slot: Int32)] = []
  var readRetries = RequestList()

  var jobs: [ControlJob] = []
  var nodeLoads: [NodeLoadState?] = []
  /// What bad copies of nodes are being rewritten from.
  var heals: [AlignedMemory?] = []
  var loadEnded = false
  /// A request waits for what another's read brings into the cache.
  var readIsAwaited = false
  /// When walks that found no free slot in the cache are tried again.
  private var memoryRetryAt: UInt64 = .max
  var recovery: Recovery?
  var scrubber: Scrubber?
  let spaceKeeper: SpaceKeeper
  let ahead = ReadAhead()
  /// The job whose structural records are on their way; others wait for it.
  var structuralJob: ControlJob?
  var pendingEpochs: [Epoch] = []
  /// The epoch could not be opened in recovery because the log was full.
  var wasOpenedLate = false
  /// Listings under way: where they go on, and what they began with out of the overlay.
  var listCursors: [ListCursor] = []
  var nextListCursor: UInt64 = 1

  // Time.
  private(set) var now: UInt64 = 0
  private(set) var wallClock: UInt64 = 0
  let latency: LatencyMonitor
  private var started: UInt64 = 0
  private var lastWrite: UInt64 = 0
  /// The last turn with requests, new ones or under way, and whether this one has new ones.
  private var lastRequest: UInt64 = 0
  private var hasRequests = false
  /// When the cycle that is under way first rested.
  private var restBegan: UInt64?
  var probeAt: UInt64 = .max
  /// Since when the log takes nothing; `.max` while it does.
  var logBrokenSince: UInt64 = .max

  /// How old what the log holds is.
  var logAge = LogAge()

  var pacing = Pacing()
  package private(set) var isReady = false
  package private(set) var isStopped = false
  package private(set) var failure: String?
  var isStopping = false
  var statistics = EngineStatistics()
  var epochs: [Epoch] = []
  var epochCounter: UInt64 = 0
  let epochMemory = AlignedMemory(bytes: Int(LogLayout.epochCopies) * blockSize)
  var epochInFlight: Epoch?
  private var destagerAgain = false
  /// Of the frame whose records are being applied.
  var applyingSequence: FrameSequence = 0
  /// Homes of large writes whose records are in frames that will not count, until a new epoch is
  /// durable.
  var voidHomes: [BlockRun] = []
  /// Homes that no large write refers to any more, by the frame that must be durable before they are
  /// free.
  var homesToFree = RingQueue<(sequence: FrameSequence, home: BlockRun)>(capacity: 64)
  /// A mark that a planted fault makes count with the next structural record only.
  var lateMark: (snapshot: ObjectID, disk: ObjectID)?
  /// Jobs that wait for the end of a cycle.
  var cycleAwaiters = 0
  var edgeMemory: [UnsafeMutableRawPointer] = []
  let edgeArena: AlignedMemory

  package init(_ configuration: PoolConfiguration) {
    pool = Pool(configuration)
    destager = Destager(pool)
    spaceKeeper = SpaceKeeper(pool)
    requests = RequestTable(capacity: configuration.requestSlots + 512)
    latency = LatencyMonitor(slots: requests.capacity)
    parts = ReadPartTable(capacity: configuration.requestSlots)
    let edges = 512
    edgeArena = AlignedMemory(bytes: edges * blockSize)
    for i in 0..<edges { edgeMemory.append(edgeArena.base + i * blockSize) }
    recovery = Recovery(pool)
  }

  /// Rare paths taken so far.
  package var rarePaths: RarePathCounters {
    var sum = pool.paths
    sum.add(pool.log.paths)
    if let catalog = pool.catalog { sum.add(catalog.paths) }
    return sum
  }

  // MARK: BlockEngine

  package func submit(_ request: BlockRequest) -> Bool {
    guard requests.used < pool.configuration.requestSlots, let slot = requests.take(request) else {
      return false
    }
    hasRequests = true
    requests[slot].state = .waiting
    latency.accept(slot)
    begin(slot)
    return true
  }

  package func complete(_ completion: DeviceCompletion) {
    let (owner, index) = pool.ops.completed(completion.token)
    let error = completion.error
    switch owner {
    case .frame:
      pool.log.frameCompleted(index, error: error)
      if error != 0 { logFailed() }
    case .summary: pool.log.summaryCompleted(error: error)
    case .logSync:
      pool.log.syncCompleted(error: error)
      if error != 0 { logFailed() }
    case .epochRecord: epochRecordWritten(index, error: error)
    case .readPart: partCompleted(Int32(index), error: error)
    case .largeWrite: largeWriteCompleted(Int32(index), error: error)
    case .nodeLoad: nodeLoadEnded(index, error: error)
    case .nodeHeal: nodeHealCompleted(index, error: error)
    case .nodeWrite:
      destager.nodeWriteCompleted(index, error: error)
      loadEnded = true
    case .destageRead: destager.readCompleted(index, error: error)
    case .destageWrite: destager.writeCompleted(index, error: error)
    case .volumeFlush: destager.volumeFlushCompleted(index, error: error)
    case .rootWrite: destager.rootWriteCompleted(index, error: error)
    case .backing:
      spaceKeeper.backingCompleted(index, error: error)
      destagerBlocked = false
      wakeSpaceWaiters(isTry: !mayCycleHelp)
    case .punch:
      spaceKeeper.punchCompleted(index, error: error)
      // What was punched can be given to those that wait for it, though no cycle may come.
      if !spaceKeeper.isPunching { wakeSpaceWaiters(isTry: !mayCycleHelp) }
    case .recovery: recovery?.completed(index, error: error)
    case .idle: break
    }
  }

  package func nextDeviceOp() -> DeviceOp? { pool.ops.next() }
  package func nextCompletion() -> BlockCompletion? {
    guard let done = completions.pop() else { return nil }
    measure(done)
    return done.completion
  }
  package func nextControlReply() -> (token: UInt64, reply: ControlReply)? { replies.pop() }

  package var wakeup: UInt64 {
    if destagerAgain || loadEnded { return now }
    guard !isStopped else { return .max }
    guard isReady else { return memoryRetryAt == .max ? .max : now + Self.pause }
    var at = min(probeAt, destager.wakeup, memoryRetryAt, pool.log.sealAt)
    if pool.log.isOpen, pool.log.lacksWatermark { at = min(at, lastWrite + Self.idleDelay) }
    if destager.isIdle, destager.hasWork, !destager.isHeld {
      at = min(at, lastWrite + Self.idleDestageDelay)
    }
    if !destager.isIdle, pool.ops.inFlight == 0 { at = min(at, now + Self.pause) }
    // What could not be done when its time came is looked at again, but not without a pause.
    if at <= now { at = now + Self.pause }
    return at
  }

  /// The fill from which on room in the log matters more than what single requests take.
  private static let nearlyFull = 800
  private static let pause: UInt64 = 1_000_000
  /// An idle log gets its closing watermark after this time (nanoseconds).
  private static let idleDelay: UInt64 = 5_000_000
  /// Nobody asks for anything when no request has come for so long.
  private static let quietDelay: UInt64 = 50_000_000
  /// What a cycle has done so far counts at its end only, so it does not rest any more after this time.
  private static let longestRest: UInt64 = 10_000_000_000
  /// Destaging starts when nothing was written for so long, whatever the log's fill.
  private static let idleDestageDelay: UInt64 = 2_000_000_000

  package func step(now: UInt64, wallClock: UInt64) {
    self.now = now
    self.wallClock = wallClock
    observe(now: now)
    if started == 0 { started = now }
    if hasRequests || requests.used > 0 {
      lastRequest = now
      hasRequests = false
    }
    guard failure == nil, !isStopped else { return }
    if let recovery { return stepRecovery(recovery) }
    pool.log.advance()
    applyFrames()
    freeDurableHomes()
    voidBrokenEpoch()
    if loadEnded || now >= memoryRetryAt {
      loadEnded = false
      memoryRetryAt = .max
      retryParked()
    }
    runJobs()
    stepDestager()
    admitWaiting()
    idle()
    pool.log.seal(wallClock: wallClock)
    pool.log.advance()
    if isReady, case .node(let pointer)? = spaceKeeper.maintain(now: now) { startLoad(pointer) }
    // By now all that waited for them knows.
    if pool.store.hasRefused, now >= refusedAskedAgainAt {
      refusedAskedAgainAt = now + 1_000_000_000
      pool.store.forgetRefusals()
    }
  }
  /// When metadata that a device refuses to read is asked for again.
  private var refusedAskedAgainAt: UInt64 = 0

  // MARK: Frames that count

  /// Applies the frames that count now, in order, and acknowledges their requests.
  private func applyFrames() {
    while let frame = pool.log.nextToApply() {
      let ok = applyTable(
        frame.sentTable, length: frame.tableLength, sequence: frame.sequence,
        payloadBlock: frame.payloadPosition)
      invariant(ok, "a table that was written can't be read")
      if frame.records > 0 {
        lastWrite = now
        logAge.note(frame.sequence, now)
      }
      let (first, sent) = (frame.firstRequest, frame.sent)
      pool.log.applied(frame)
      finishAll(first, .ok, sent: sent)
    }
    if !syncWaiters.isEmpty {
      let durable = pool.log.durableSequence
      let ready = syncWaiters.filter { $0.sequence <= durable }
      syncWaiters.removeAll { $0.sequence <= durable }
      for waiter in ready { finish(waiter.slot, .ok) }
    }
  }

  /// Requests of frames are linked in order; completes each part.
  private func finishAll(_ first: Int32, _ status: BlockStatus, sent: UInt64) {
    var slot = first
    while slot >= 0 {
      let next = requests[slot].next
      latency.enter(slot, .log, at: sent)
      writeEnded(slot, status)
      slot = next
    }
  }

  // MARK: A broken log (R7)

  func logFailed() {
    pool.ioErrors += 1
    if logBrokenSince == .max { logBrokenSince = now }
    if probeAt == .max { probeAt = now + 50_000_000 }
  }

  /// Once nothing of the broken epoch is in flight: fail what it held, then open a new epoch.
  private func voidBrokenEpoch() {
    if wasOpenedLate, !pool.log.isOpen {
      if destager.isIdle, pool.root.cutSequence < pool.log.appliedSequence { destager.start() }
      return openEpoch()
    }
    guard pool.log.isBroken else { return }
    while let frame = pool.log.nextVoid() {
      finishAll(frame.firstRequest, .ioError, sent: frame.sent)
    }
    guard !pool.log.isOpen else { return }
    for waiter in syncWaiters { finish(waiter.slot, .ioError) }
    syncWaiters.removeAll()
    // What counted without being durable in the log is moved home first; only then may the old
    // epoch end at it.
    if pool.log.appliedSequence > pool.log.durableSequence {
      let isHome = pool.root.cutSequence >= pool.log.appliedSequence
      if destager.isIdle || destager.isBeginning {
        if !isHome {
          destager.relocateAll = true
          destager.start()
        }
      } else if destager.isAwaitingLog {
        fail(
          "the log failed to flush in the midst of a checkpoint; start again: what was acknowledged "
            + "is replayed from the log")
      }
      if !isHome { return }
    }
    if now >= probeAt { openEpoch() }
  }

  // MARK: Waits

  /// The cache has no free slot: what waits for one is tried again after a pause, if no other event
  /// comes first.
  func awaitMemory() { memoryRetryAt = min(memoryRetryAt, now + Self.pause) }

  /// Tries again all that waited for metadata.
  private func retryParked() {
    var list = parked
    parked = RequestList()
    while let slot = list.removeFirst(requests) { begin(slot) }
    var retries = readRetries
    readRetries = RequestList()
    while let slot = retries.removeFirst(requests) { begin(slot) }
    destagerBlocked = false
  }
  private var destagerBlocked = false

  // MARK: Destaging

  /// Part of the log (or of its index) in use, 0...1000.
  var fill: Int {
    let log = pool.log.usedBytes * 1000 / pool.log.geometry.capacity
    let index = UInt64(pool.index.count) * 1000 / UInt64(pool.configuration.indexLimit)
    return Int(max(log, index))
  }

  private func stepDestager() {
    destagerAgain = false
    if destager.isIdle, destager.hasWork, !destager.isHeld, shouldDestage {
      destager.start(forRoom: !needsCycle && !isIdleLong)
    }
    // A wait that nothing is on its way to end, say for a slot of the cache, is tried again.
    if pool.ops.inFlight == 0 { destagerBlocked = false }
    guard !destager.isIdle, !destagerBlocked else { return }
    destager.window = destageWindow
    destager.rests = mayRest()
    let cyclesBefore = destager.cycles
    destager.retryFailed(now: now)
    let (wait, again) = destager.step(now: now, wallClock: wallClock)
    destagerAgain = again
    pacing.earn(
      progress: destager.progress, remaining: destager.remainingWork, share: destager.share,
      fill: fill, capacity: pool.log.geometry.capacity)
    if let wait {
      switch wait {
      case .node(let pointer):
        destagerBlocked = true
        startLoad(pointer)
      case .damaged: fail("metadata of the pool is damaged; run `sluice check` on the stopped pool")
      case .backing(let device, let offset, let length):
        destagerBlocked = true
        spaceKeeper.back(DeviceRange(device: device, offset: offset, length: length))
      case .memory:
        destager.spill()
        awaitMemory()
      case .noSpace: destager.waitForSpace(now: now)
      }
    }
    if destager.hasLostFlush {
      fail(
        "a volume failed to flush: what was written to it may be lost; the log still has it, so "
          + "check the device and start again")
    }
    if destager.cycles != cyclesBefore { cycleEnded() }
  }

  private var shouldDestage: Bool { needsDestaging || isIdleLong }

  private var isIdleLong: Bool { now >= lastWrite + Self.idleDestageDelay }

  /// Whether somebody or something waits for what a cycle brings, or soon will.
  private var needsDestaging: Bool { needsRoom || needsCycle }

  private var needsRoom: Bool { fill >= 400 || pool.log.freeSegments < 4 }

  /// Whether it takes a cycle of all that the log holds.
  private var needsCycle: Bool {
    cycleAwaiters > 0 || spaceIsWanted || !spaceWaiters.isEmpty
      || destager.relocateAll || pool.log.isBroken
      || pool.catalog.pendingCount >= Catalog.overlayLimit / 2
      || pool.catalog.deletedObjects > 0
      || pool.frozen.count >= Self.manyFrozen || epochs.count > 64
  }

  /// How many transfers destaging may have under way: requests wait behind them in the devices'
  /// queues, so few while there are any, and hardly one while nothing waits for destaging.
  private var destageWindow: Int {
    if fill >= Self.nearlyFull || now >= lastRequest + Self.quietDelay {
      return Destager.wideWindow
    }
    return needsDestaging ? Destager.narrowWindow : Destager.trickle
  }

  /// Frozen layers from which on a cycle starts, so that reads have few to look in.
  private static let manyFrozen = 16

  /// Whether the cycle makes way for requests: reads wait behind its transfers, and a flush of the log
  /// for what its device has taken before. Nobody waits for the cycle, and it is not for long.
  private func mayRest() -> Bool {
    guard !needsDestaging, now < lastRequest + Self.quietDelay else { return false }
    let began = restBegan ?? now
    restBegan = began
    return now < began + Self.longestRest
  }

  private func cycleEnded() {
    restBegan = nil
    pruneEpochs()
    logAge.forget(upTo: pool.root.cutSequence)
    if destager.takesAll { spaceIsWanted = false }
    wakeSpaceWaiters(isTry: destager.takesAll)
    loadEnded = true
    pacing.cycleEnded()
  }

  /// Whether a cycle is under way or would come that may free space.
  private var mayCycleHelp: Bool {
    !destager.isWaitingForDevice && !destager.isHeld && (!destager.isIdle || destager.hasWork)
  }

  /// They look for space again. `isTry`: what may free some has been done.
  func wakeSpaceWaiters(isTry: Bool) {
    var list = spaceWaiters
    spaceWaiters = RequestList()
    while let slot = list.removeFirst(requests) {
      if isTry { requests[slot].spaceTries += 1 }
      begin(slot)
    }
  }

  /// Whether a write may enter the log now.
  var mayAdmit: Bool {
    guard fill >= Pacing.mark, !destager.isHeld else { return true }
    if pacing.begin() { pool.paths.hit(.throttled) }
    return pacing.hasCredit
  }

  // MARK: Idle, ready, end

  /// The empty frame that tells recovery that the last one was durable (R3).
  private func idle() {
    let log = pool.log
    guard log.isOpen, !log.isBroken, log.isQuiet, !log.isSyncing, log.lacksWatermark,
      now >= lastWrite + Self.idleDelay || isStopping,
      log.hasRoom(table: 0, payload: 0)
    else { return }
    log.appendIdle()
  }

  func becomeReady() {
    recovery = nil
    isReady = true
    lastWrite = now
    loadEnded = true
  }

  func fail(_ why: String) {
    if failure == nil { failure = why }
  }

  func reply(_ token: UInt64, _ reply: ControlReply) { replies.push((token, reply)) }
  func stopped() { isStopped = true }
  var uptime: UInt64 { now - started }

  /// A request ended: tells the front end, the parent request or the job.
  func finish(_ slot: Int32, _ status: BlockStatus, count: UInt32 = 0) {
    let done = requests[slot]
    if let disk = pool.disks.holder(of: done.request.disk), done.countsOnDisk {
      disk.requests -= 1
    }
    requests.give(slot)
    if done.parent >= 0 {
      childEnded(done.parent, status)
    } else if done.isReadAhead {
      readAheadEnded(done.request)
    } else if done.isScrub {
      scrubReadEnded(done.request, status)
    } else if done.isOfJob {
      jobRequestEnded(status)
    } else {
      completions.push(
        FinishedRequest(
          completion: BlockCompletion(token: done.request.token, status: status, count: count),
          request: done.request, times: latency.end(slot)))
    }
  }
}

/// Where a listing goes on.
struct ListCursor {
  var id: UInt64
  /// Of the names tree; nil behind its end.
  var key: TreeKey?
  /// What was found and has not been told, the next one last.
  var targets: [NameTarget]
  /// What the listing began with out of the overlay.
  var listed: Set<ObjectID>
}

/// When frames came to count: a sample a second, so that the age of the oldest one is known.
struct LogAge {
  private var samples: [(sequence: FrameSequence, at: UInt64)] = []

  mutating func note(_ sequence: FrameSequence, _ now: UInt64) {
    if let last = samples.last, now < last.at + 1_000_000_000 { return }
    // A log that is never destaged keeps its oldest sample, and fewer of the others.
    if samples.count == 4096 {
      samples = samples.indices.filter { $0 % 2 == 0 }.map { samples[$0] }
    }
    samples.append((sequence, now))
  }

  /// What came up to `sequence` is home. The sample before the next one stands for what is left.
  mutating func forget(upTo sequence: FrameSequence) {
    let next = samples.firstIndex { $0.sequence > sequence } ?? samples.count
    samples.removeFirst(max(0, next - 1))
  }

  /// Nanoseconds since the oldest.
  func age(_ now: UInt64) -> UInt64 { samples.first.map { now - $0.at } ?? 0 }
}

/// Figures since start.
struct EngineStatistics {
  var writes: UInt64 = 0
  var writtenBytes: UInt64 = 0
  var reads: UInt64 = 0
  var readBytes: UInt64 = 0
  var recoveryNanoseconds: UInt64 = 0
  var recoveryFrames: UInt64 = 0
}
