import Core

// One run: a pool, an engine and clients that all follow from one seed.
//
//            ┌──────────────── crash ◄─────────────────┐  (at any device operation,
//            ▼                                         │   in any phase)
//   starting → recovering → listing → verifying → working → draining → ending → (last crash) ┐
//                                        │                                                   │
//                                        └── after the last crash: finished ◄────────────────┘
//
// A turn takes the next events, hands them to the engine, lets it step once, carries out what it
// asks for, and tells the clients what was completed. The phases are those of an operator who
// restarts a crashed daemon and looks at every disk before work goes on.

package final class Simulation {
  enum Phase: Equatable {
    /// No engine: the crash's consequences play out.
    case starting
    case recovering
    case listing
    case verifying
    case working
    /// The work is done; what is in flight ends.
    case draining
    /// The administrator flushes (and may delete everything) at the end.
    case ending
    /// A clean stop was asked for.
    case stopping
    case finished
  }

  let system: SimulatedSystem
  let profile: Profile
  let seed: UInt64
  let steps: UInt64
  /// Whether pools are checked offline after each crash.
  let checks: Bool
  let pool: SimulatedPool

  // What follows from the seed, a generator for each concern: one more draw here moves nothing
  // there.
  var workRandom: SeededRandom
  var adminRandom: SeededRandom
  var faultRandom: SeededRandom
  var crashRandom: SeededRandom

  var queue = EventQueue()
  var trace: Trace
  var engine: (any BlockEngine)?
  var phase = Phase.starting
  private var wakeAt: UInt64 = .max
  private var turns: UInt64 = 0
  /// Turns in a row in which the engine was called because it asked for it, and did nothing.
  private var idleTurns = 0
  private var hasDoneNothing = false

  // The model.
  var table = WriteTable()
  var catalog = CatalogModel()
  var witness = PrefixWitness()

  // Clients.
  var requests = RequestTable()
  var clients: [Client] = []
  var backlog: [Int] = []
  var calls: [UInt64: ControlCall] = [:]
  var lastCall: UInt64 = 0
  var verification = Verification()
  var listed: [DiskInfo] = []
  var listedSnapshots: [SnapshotInfo] = []
  var operations: UInt64 = 0
  var administrator = Administrator()

  // Misfortune.
  var damage = Damage()
  var activeFaults: [ActiveFault] = []
  var crashCountdown: UInt64?
  /// The verification after the next restart is to be interrupted.
  var crashesInVerification = false
  var crashKind = CrashKind.powerCut
  var nextCrashAt: UInt64 = .max
  var crashesLeft: UInt64 = 0
  var crashes: UInt64 = 0
  var consecutiveCrashes = 0
  var isLast = false
  var hasDeletedAll = false
  /// Bytes in use when there was nothing yet.
  var emptyUsed: UInt64 = 0
  /// What the last status found wrong.
  var leak: String?
  var firstDisksLeft: UInt64 = 0
  var logWatch = LogWatch()
  /// When the engine began to serve.
  var startedAt: WriteTable.Tick = 0
  /// When a change of the catalog was confirmed last.
  var lastChangeAt: WriteTable.Tick = 0
  /// When a volume was last written to without being asked for durability, as homes are.
  var lastHomeWriteAt: WriteTable.Tick = 0

  var rarePaths = RarePathCounters()
  var harness = HarnessCounters()

  package init(
    system: SimulatedSystem, seed: UInt64, steps: UInt64, profile: Profile? = nil,
    planted: PlantedFault? = nil, checks: Bool = true, verbose: Bool = false
  ) {
    self.system = system
    self.seed = seed
    self.steps = steps
    self.checks = checks
    trace = Trace(verbose: verbose)
    var random = SeededRandom(seed: seed)
    let drawn = Profile.draw(&random)
    self.profile = profile ?? drawn
    let plan = self.profile.drawPool(seed: seed, planted: planted, random: &random)
    pool = SimulatedPool(plan: plan)
    workRandom = SeededRandom(seed: random.next())
    adminRandom = SeededRandom(seed: random.next())
    faultRandom = SeededRandom(seed: random.next())
    crashRandom = SeededRandom(seed: random.next())
    crashesLeft = crashRandom.within(self.profile.crashes)
    firstDisksLeft = adminRandom.within(self.profile.disks)
    drawClients()
  }

  /// Runs to the end, or to the first thing that is broken.
  package func run() -> RunResult {
    var violation: String?
    do throws(Violation) {
      system.format(pool)
      tell("seed \(seed), profile \(profile.name), \(pool.describe)")
      queue.add(.start, after: 0)
      while phase != .finished { try turn() }
    } catch {
      violation = error.description
      tell("VIOLATION \(error.description)")
    }
    if let engine { rarePaths.add(system.rarePaths(engine)) }
    countInjected()
    return RunResult(
      seed: seed, profile: profile.name, violation: violation, hash: trace.hash,
      operations: operations, crashes: crashes, rarePaths: rarePaths, harness: harness)
  }

  private func countInjected() {
    harness[.readError] += pool.injected.readErrors
    harness[.writeError] += pool.injected.writeErrors
    harness[.flushError] += pool.injected.flushErrors
    harness[.spaceError] += pool.injected.spaceErrors
    harness[.absence] += pool.injected.absences
  }

  func tell(_ line: @autoclosure () -> String) { trace.tell(queue.now, line()) }

  // MARK: Turns

  private func turn() throws(Violation) {
    turns += 1
    guard turns < 40_000_000 else { throw Violation("the run does not come to an end") }
    if turns % 4096 == 0 { try checkPatience() }
    guard let event = queue.next() else { throw stuck() }
    try take(event.kind)
    // Events that come close together are one turn, so that frames gather several writes.
    let window = [0, 0, 5_000, 40_000][Int(crashRandom.below(4))]
    var gathered = 0
    let until = event.time + UInt64(window)
    while gathered < 32 && queue.nextTime <= until && phase != .finished {
      try take(queue.next()!.kind)
      gathered += 1
    }
    guard let engine else { return }
    engine.step(now: queue.now, wallClock: 1_750_000_000_000_000_000 + queue.now)
    try drain(engine)
    idleTurns = event.kind == .wake && gathered == 0 && hasDoneNothing ? idleTurns + 1 : 0
    guard idleTurns < 200_000 else {
      throw Violation("the engine wants to be called again and again, and does nothing")
    }
    if crashCountdown == 0 || (crashCountdown == 1 && phase == .verifying) {
      crashCountdown = nil
      try crash(crashKind)
      return
    }
    try advance(engine)
    scheduleWake()
  }

  private func take(_ kind: EventKind) throws(Violation) {
    switch kind {
    case .device(let slot): try takeDevice(slot)
    case .client(let i): try clientTurn(i)
    case .administrator: administratorTurn()
    case .wake: wakeAt = .max
    case .fault: endFaults()
    case .release: try releaseDestage()
    case .start: try start()
    }
  }

  /// A device operation ends. A planned crash may strike right before it, or right after the
  /// engine has dealt with it.
  private func takeDevice(_ slot: Int) throws(Violation) {
    if let left = crashCountdown, left > 0, engine != nil {
      crashCountdown = left - 1
      if left == 1 && crashRandom.oneIn(2) {
        crashCountdown = nil
        queue.add(.device(slot), after: 1)
        try crash(crashKind)
        return
      }
    }
    switch try pool.finish(slot, now: queue.now) {
    case .completed(let op, let completion):
      trace.note(queue.now, UInt64(op.kind.rawValue) << 32 | UInt64(op.device.raw), op.offset)
      trace.note(op.length, UInt64(UInt32(bitPattern: completion.error)), 1)
      tell("device \(op.device.raw) \(op.kind) \(op.offset)+\(op.length) -> \(completion.error)")
      watchCompletion(op, slot: slot, error: completion.error)
      engine?.complete(completion)
    case .landed: harness[.landedAfterKill] += 1
    case .goesOn(let time): queue.add(.device(slot), at: time)
    case .hangs: break
    }
  }

  /// Carries out what the engine asks for and hands on what it has finished.
  private func drain(_ engine: any BlockEngine) throws(Violation) {
    hasDoneNothing = true
    while let op = engine.nextDeviceOp() {
      hasDoneNothing = false
      let (slot, checksum) = try pool.issue(op, queue: &queue)
      watchIssue(op, slot: slot)
      trace.note(UInt64(op.kind.rawValue) << 32 | UInt64(op.device.raw), op.offset, op.length)
      trace.note(UInt64(checksum), queue.now, 2)
      tell("  issue \(op.kind) \(op.offset)+\(op.length) on device \(op.device.raw)")
    }
    while let completion = engine.nextCompletion() {
      hasDoneNothing = false
      trace.note(completion.token, UInt64(completion.status.rawValue), UInt64(completion.count))
      try completed(completion)
    }
    while let (token, reply) = engine.nextControlReply() {
      hasDoneNothing = false
      trace.note(token, queue.now, 3)
      try replied(token, reply)
    }
    while let slot = backlog.first {
      guard submitNow(slot) else { break }
      backlog.removeFirst()
    }
  }

  private func scheduleWake() {
    guard let engine, engine.wakeup != .max else { return }
    let time = max(engine.wakeup, queue.now + 1_000)
    guard time < wakeAt else { return }
    wakeAt = time
    queue.add(.wake, at: time)
  }

  func forgetWake() { wakeAt = .max }

  /// Makes sure that the engine sees what was just submitted.
  func wakeSoon() {
    guard wakeAt > queue.now + 1 else { return }
    wakeAt = queue.now + 1
    queue.add(.wake, at: wakeAt)
  }

  private func advance(_ engine: any BlockEngine) throws(Violation) {
    if let failure = engine.failure { return try gaveUp(failure) }
    switch phase {
    case .recovering where engine.isReady: try recovered()
    case .verifying: try advanceVerification()
    case .working where operations >= steps:
      phase = .draining
    case .draining where requests.inUse == 0 && calls.isEmpty:
      beginEnding()
    case .stopping where engine.isStopped:
      table.raiseDurable(to: table.tick())
      try crash(.cleanStop)
    default: break
    }
  }

  /// The engine can't go on. While devices fail that is a crash like any other; damage that was
  /// done to the log's record tables may keep the pool shut for good.
  private func gaveUp(_ failure: String) throws(Violation) {
    tell("the engine gave up: \(failure)")
    if damage.mayRefuseToOpen {
      phase = .finished
      return
    }
    guard isInTrouble else { throw Violation("the engine gave up: \(failure)") }
    harness[.gaveUp] += 1
    try crash(.kill)
  }

  // MARK: Liveness

  private func stuck() -> Violation {
    let waiting = requests.oldest.map { " — " + $0.describe } ?? ""
    return Violation(
      "nothing happens any more in phase \(phase): \(requests.inUse) requests and "
        + "\(calls.count) control requests wait, no device operation is in flight and the engine "
        + "does not want to be called\(waiting)")
  }

  /// No request waits for ever.
  private func checkPatience() throws(Violation) {
    let limit: UInt64 = 900_000_000_000
    if let oldest = requests.oldest, queue.now - oldest.submittedAt > limit {
      throw Violation("a request waits for more than 15 minutes: \(oldest.describe)")
    }
    if let call = calls.values.min(by: { $0.sentAt < $1.sentAt }), queue.now - call.sentAt > limit {
      throw Violation("a control request waits for more than 15 minutes: \(call.purpose)")
    }
  }
}

extension SimulatedPool {
  var describe: String {
    let members = volumes.map {
      "\($0.plan.size >> 20)M\($0.plan.isSparseFile ? " sparse" : "")"
    }.joined(separator: ", ")
    return "log \(plan.log.size >> 20)M, volumes \(members), "
      + "cache \(plan.cacheBytes >> 10)K, durability \(plan.durability), deltas of \(plan.deltaNodes) nodes"
      + (plan.logGap.map { ", log gaps of \($0) blocks" } ?? "")
      + (plan.alwaysScans ? ", scans of the log" : "")
      + (plan.dividesLog ? ", cycles of parts" : "")
      + (plan.chunkLimit.map { ", \($0) bitmaps in memory" } ?? "")
  }
}
