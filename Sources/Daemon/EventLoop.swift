import Core
import DeviceIO
import Glibc
import NBDServer

// The engine's thread: one ring, one engine, all connections.
//
// A turn:
//   1. enter       submit what the last turn has prepared; wait for events, until the engine's
//                  `wakeup` at most                                         (the one system call)
//   2. dispatch    devices' completions ─▶ engine; sockets ─▶ front end; mailbox ─▶ engine
//   3. submit      the sessions' requests ─▶ engine
//   4. step        the engine does what the turn has made possible: one group commit
//   5. drain       device operations ─▶ ring; outcomes ─▶ sessions, mailbox
//   6. settle      replies and receives ─▶ ring
//
// The end: a signal or a `stop` request. Listeners close, sessions serve what they have taken and
// close (at most `farewell`), the engine stops, and the loop waits for what is under way on devices.
// Nothing of this is needed for safety; a kill at any moment is safe as well.

/// Runs an engine over real devices and sockets. Everything but `mailbox` belongs to the thread
/// that has made the loop and calls `run`.
package final class EventLoop<E: BlockEngine> {
  package struct Limits: Sendable {
    /// Connections at a time; one more is accepted and closed at once.
    package var connections = 1024
    /// Payload memory of all connections, in bytes; a multiple of 256 KiB.
    package var payloadMemory = 64 << 20
    /// How long a peer may stand still, in nanoseconds, with memory that others wait for, or with
    /// one of all the connections and no disk; then its connection is ended.
    package var patience: UInt64 = 10_000_000_000
    /// Whether SIGTERM and SIGINT end this loop (`StopSignals`).
    package var obeysSignals = true
    package init() {}
  }

  package enum Outcome: Equatable, Sendable {
    case stopped
    /// The engine can't go on; the sentence says why.
    case failed(String)
  }

  /// How long sessions may take to finish what they have taken.
  private static var farewell: UInt64 { 3_000_000_000 }
  /// How long to wait for devices after the engine's end.
  private static var deviceFarewell: UInt64 { 10_000_000_000 }

  private enum Phase {
    case running
    case finishing(deadline: UInt64)
    case stopping
  }

  /// Where other threads send control requests.
  package let mailbox: Mailbox
  package let engine: E
  package let reactor: Reactor
  private let frontEnd: NBDFrontEnd
  private let obeysSignals: Bool
  private var phase = Phase.running

  private var isReady = false
  /// Until the engine is ready, clients wait in the sockets' queues.
  private var listeners: [Listener]
  private var onReady: (() -> Void)?

  /// Replies to letters by slot; a control token of the mailbox is `mailboxTag | slot`.
  private var replies: [Mailbox.Reply?] = []
  private var freeReplies: [Int] = []
  private var stopReplies: [Mailbox.Reply] = []
  private let mailboxTag: UInt64 = 1 << 63
  private let stopToken = UInt64.max

  /// A loop around `engine`, whose devices are attached to `reactor`.
  ///
  /// - Parameters:
  ///   - listeners: for NBD; served once the engine is ready.
  ///   - reactor: made on this thread, with room for `limits.connections` and the listeners.
  ///   - onReady: called once on this thread, when requests are served.
  package init(
    engine: E, reactor: Reactor, listeners: [Listener], limits: Limits = Limits(),
    onReady: (() -> Void)? = nil
  ) {
    self.engine = engine
    self.reactor = reactor
    self.listeners = listeners
    self.onReady = onReady
    obeysSignals = limits.obeysSignals
    mailbox = Mailbox(waker: reactor.waker)
    frontEnd = NBDFrontEnd(
      reactor: reactor, pool: BufferPool(bytes: limits.payloadMemory),
      limit: limits.connections, patience: limits.patience)
  }

  /// NBD connections now.
  package var connectionCount: Int { frontEnd.connectionCount }
  /// Bytes of payload memory in use now.
  package var payloadMemoryInUse: Int { frontEnd.payloadMemoryInUse }

  /// Runs until a stop has been asked for and done, or the engine fails.
  package func run() -> Outcome {
    var mayWait = false  // The engine may have work of its own to start with.
    while !engine.isStopped && engine.failure == nil {
      mayWait = !turn(mayWait: mayWait)
      advancePhase()
    }
    let outcome = engine.failure.map(Outcome.failed) ?? .stopped
    finish()
    return outcome
  }

  // MARK: A turn

  /// Returns true when there is more to do at once.
  private func turn(mayWait: Bool) -> Bool {
    reactor.enter(waiting: mayWait ? patience() : 0)
    let now = monotonicNanoseconds()
    engine.observe(now: now)
    while let event = reactor.nextEvent() { dispatch(event, now: now) }
    frontEnd.submit(to: engine)
    engine.step(now: now, wallClock: wallClockNanoseconds())
    engine.observe(now: monotonicNanoseconds())
    drain()
    frontEnd.resumeWaiting(now: now)
    var hasMore = frontEnd.submit(to: engine)
    if frontEnd.settle(now: now) { hasMore = true }
    becomeReady()
    return hasMore
  }

  /// Nanoseconds that the ring may wait.
  private func patience() -> UInt64 {
    if frontEnd.awaitsSends, reactor.hasQuietSends { return 0 }
    var until = min(engine.wakeup, frontEnd.wakeup)
    if case .finishing(let deadline) = phase { until = min(until, deadline) }
    if until == .max { return .max }
    let now = monotonicNanoseconds()
    return until > now ? until - now : 0
  }

  private func dispatch(_ event: Reactor.Event, now: UInt64) {
    switch event {
    case .device(let completion): engine.complete(completion)
    case .received(let socket, let result, let hasMore):
      frontEnd.received(slot: socket, result: result, hasMore: hasMore)
    case .sent(let socket, let result): frontEnd.sent(slot: socket, result: result)
    case .accepted(let listener, let result):
      frontEnd.accepted(listener: listener, result: result, now: now)
    case .woken: readMailbox()
    }
  }

  private func drain() {
    // What the ring has no slot for stays with the engine; a completion frees one.
    while reactor.canTakeDeviceOp, let op = engine.nextDeviceOp() { reactor.submit(op) }
    while let completion = engine.nextCompletion() { frontEnd.completed(completion) }
    while let (token, reply) = engine.nextControlReply() { controlReplied(token, reply) }
  }

  private func becomeReady() {
    guard !isReady, engine.isReady else { return }
    isReady = true
    if case .running = phase {
      frontEnd.listen(on: listeners)
      listeners = []
    }
    onReady?()
    onReady = nil
  }

  // MARK: The mailbox

  private func readMailbox() {
    for letter in mailbox.take() {
      if let (file, index) = letter.device { reactor.attach(file, as: index) }
      if case .stop = letter.request {
        stopReplies.append(letter.reply)
      } else {
        let slot = freeReplies.popLast() ?? replies.count
        if slot == replies.count { replies.append(nil) }
        replies[slot] = letter.reply
        engine.control(letter.request, token: mailboxTag | UInt64(slot))
      }
    }
  }

  private func controlReplied(_ token: UInt64, _ reply: ControlReply) {
    if token == stopToken { return }
    guard token & mailboxTag != 0 else { return frontEnd.controlReplied(token: token, reply) }
    let slot = Int(token & ~mailboxTag)
    guard slot < replies.count, let answer = replies[slot] else {
      invariantBroken("the engine answered control token \(token), which nobody sent")
    }
    replies[slot] = nil
    freeReplies.append(slot)
    answer(reply)
  }

  // MARK: The end

  private func advancePhase() {
    switch phase {
    case .running:
      guard obeysSignals && StopSignals.isReceived || !stopReplies.isEmpty else { return }
      closeUnused()
      frontEnd.stop()
      phase = .finishing(deadline: monotonicNanoseconds() + Self.farewell)
      reactor.waker.wake()
    case .finishing(let deadline):
      guard frontEnd.connectionCount == 0 || monotonicNanoseconds() >= deadline else {
        return
      }
      frontEnd.abandon()
      engine.control(.stop, token: stopToken)
      phase = .stopping
      reactor.waker.wake()
    case .stopping: break
    }
  }

  /// Closes the listeners that were never served.
  private func closeUnused() {
    for listener in listeners { listener.close() }
    listeners = []
  }

  /// Waits until neither devices nor sockets touch memory any more, and answers who still waits.
  private func finish() {
    closeUnused()
    frontEnd.stop()
    frontEnd.abandon()
    mailbox.close()
    let deadline = monotonicNanoseconds() + Self.deviceFarewell
    while true {
      let now = monotonicNanoseconds()
      let hasMore = frontEnd.settle(now: now)
      if now >= deadline || (reactor.underWay == 0 && !hasMore) { break }
      reactor.enter(waiting: min(deadline - now, 100_000_000))
      while let event = reactor.nextEvent() {
        if case .device = event { continue }
        dispatch(event, now: now)
      }
    }
    for answer in replies { answer?(.failed(.stopping)) }
    for answer in stopReplies { answer(.done) }
    if reactor.underWay > 0 {
      // A device does not answer and may yet write to this memory: it must outlive the loop.
      _ = Unmanaged.passRetained(self)
    }
  }
}
