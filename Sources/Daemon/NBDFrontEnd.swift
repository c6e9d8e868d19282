import Core
import DeviceIO
import Glibc
import NBDServer

// The driver of all NBD connections: moves bytes between sockets and sessions, and requests between
// sessions and the engine.
//
// A turn of the event loop:
//
//     ring's events ─▶ accepted, received, sent ─▶ sessions         (marks connections "touched")
//     submit(to:)       touched sessions' requests ─▶ engine
//     (engine.step)
//     completed, controlReplied   engine's outcomes ─▶ sessions     (touched)
//     resumeWaiting     memory to those who wait for it             (touched)
//     submit(to:)       what that has made possible, for the next step
//     settle            sends, receives and closes of all touched
//
// Names. A block request's token is `slot << 48 | generation << 16 | piece`; the lower 16 bits are
// the session's own. A control request's token is the same with zeros there (one at a time). The
// upper bit of a slot is 0: it tells sessions' tokens from the mailbox's.
//
// Memory: payloads come from one pool. A session that gets none is not read from and waits in a
// queue. A peer that does not read its replies keeps what its session may hold at most; when others
// wait for memory and it has not moved for `patience`, its connection is ended.

final class NBDFrontEnd {
  /// Slots that tokens can name.
  static let maximumConnections = 1 << 15
  /// How long no connection is taken after the process ran out of descriptors or memory.
  private static let acceptPause: UInt64 = 100_000_000

  private struct Name {
    var slot: Int
    var generation: UInt32
  }

  private let reactor: Reactor
  private let memory: PayloadMemory
  private let limit: Int
  private let patience: UInt64
  private var connections: [NBDConnection?]
  private var freeSlots: [Int]
  private var nextGeneration: UInt32 = 1
  private(set) var connectionCount = 0

  private var listeners: [Listener?] = []
  private var pausedListeners: [Int] = []
  private var acceptAgainAt = UInt64.max

  private var touched = RingQueue<Int>(capacity: 256)
  private var blocked = RingQueue<Name>(capacity: 64)
  /// Connections that have more to send behind a send under way, or wait for its end.
  private var awaitedSends = 0
  private var engineHasRoom = true
  /// Requests given to the engine so far.
  private var handedOver: UInt64 = 0
  private var waiting = RingQueue<Name>(capacity: 64)
  private var waitingSince: UInt64 = 0
  private var freedAtLastTry: UInt64 = 0
  private var isStopping = false

  /// - Parameters:
  ///   - limit: connections at a time; one more is closed as soon as it is accepted.
  ///   - patience: how long a peer may stand still with memory that others wait for.
  init(reactor: Reactor, pool: BufferPool, limit: Int, patience: UInt64) {
    invariant(limit > 0 && limit <= Self.maximumConnections, "\(limit) connections can't be named")
    self.reactor = reactor
    self.limit = limit
    self.patience = patience
    memory = PayloadMemory(pool: pool)
    connections = Array(repeating: nil, count: limit)
    freeSlots = Array((0..<limit).reversed())
  }

  var payloadMemoryInUse: Int {
    (memory.pool.totalPages - memory.pool.freePages) * BufferPool.pageSize
  }

  // MARK: Listening

  /// Takes connections of `more` from now on.
  func listen(on more: [Listener]) {
    for listener in more {
      listeners.append(listener)
      accept(listeners.count - 1)
    }
  }

  private func accept(_ index: Int) {
    guard let listener = listeners[index] else { return }
    reactor.accept(listener: index, descriptor: listener.descriptor)
  }

  func accepted(listener index: Int, result: Int32, now: UInt64) {
    guard !isStopping, let listener = listeners[index] else {
      if result >= 0 { close(result) }
      dropListener(index)
      return
    }
    switch -result {
    case EMFILE, ENFILE, ENOMEM, ENOBUFS:
      acceptAgainAt = now + Self.acceptPause
      pausedListeners.append(index)
      return
    case 1...: break  // The connection ended before it was taken.
    default:
      listener.prepare(connection: result)
      open(result, now: now)
    }
    accept(index)
  }

  private func dropListener(_ index: Int) {
    listeners[index]?.close()
    listeners[index] = nil
  }

  private func open(_ descriptor: Int32, now: UInt64) {
    guard let slot = freeSlots.popLast() else {
      close(descriptor)
      return evictSilent(now: now)
    }
    let generation = nextGeneration
    nextGeneration &+= 1
    let base = UInt64(slot) << 48 | UInt64(generation) << 16
    connections[slot] = NBDConnection(
      descriptor: descriptor, session: NBDSession(memory: memory, tokenBase: base),
      generation: generation, since: now)
    connectionCount += 1
    touch(slot)
  }

  /// Every slot is taken: ends the connections that have not asked for a disk in all this time, so
  /// that a client that tries again gets in.
  private func evictSilent(now: UInt64) {
    for (slot, connection) in connections.enumerated() {
      guard let connection, connection.session.exportName == nil,
        now > connection.since + patience
      else { continue }
      connection.isDead = true
      touch(slot)
    }
  }

  // MARK: Events of the ring

  func received(slot: Int, result: Int32, hasMore: Bool) {
    let connection = existing(slot)
    connection.isReceiving = false
    connection.isDrained = !hasMore
    switch result {
    case 1...: connection.session.received(Int(result))
    case 0: connection.session.endOfStream()
    case -EINTR, -EAGAIN: connection.session.received(0)
    default:
      connection.isDead = true
      connection.session.endOfStream()
    }
    touch(slot)
  }

  func sent(slot: Int, result: Int32) {
    let connection = existing(slot)
    connection.isSending = false
    if connection.isSendAwaited {
      connection.isSendAwaited = false
      awaitedSends -= 1
    }
    connection.mustSendPatiently = Int(result) < connection.sendingBytes
    if result < 0 && result != -EINTR && result != -EAGAIN { connection.isDead = true }
    connection.session.sent(max(0, Int(result)))
    touch(slot)
  }

  private func existing(_ slot: Int) -> NBDConnection {
    guard let connection = connections[slot] else {
      invariantBroken("an event of connection \(slot), which is not there")
    }
    return connection
  }

  private func touch(_ slot: Int) {
    guard let connection = connections[slot], !connection.isTouched else { return }
    connection.isTouched = true
    touched.push(slot)
  }

  private func find(_ name: Name) -> NBDConnection? {
    guard let connection = connections[name.slot], connection.generation == name.generation else {
      return nil
    }
    return connection
  }

  // MARK: The engine

  /// Hands the engine what the touched sessions have, in the order in which they were touched,
  /// behind those that it had no slot for. Returns whether it was anything.
  @discardableResult
  func submit<E: BlockEngine>(to engine: E) -> Bool {
    let before = handedOver
    while engineHasRoom, let name = blocked.first() {
      if let connection = find(name) {
        guard submitRequests(of: connection, to: engine) else { break }
        connection.isBlocked = false
        touch(name.slot)
      }
      _ = blocked.pop()
    }
    for i in 0..<touched.count {
      let slot = touched.at(i)
      let connection = existing(slot)
      if let request = connection.session.nextControlRequest() {
        handedOver += 1
        engine.control(request, token: UInt64(slot) << 48 | UInt64(connection.generation) << 16)
      }
      if connection.isBlocked { continue }
      if !blocked.isEmpty || !submitRequests(of: connection, to: engine) {
        block(slot, connection)
      }
    }
    return handedOver != before
  }

  /// False when the engine took not all of them.
  private func submitRequests<E: BlockEngine>(of connection: NBDConnection, to engine: E) -> Bool {
    while let request = connection.session.nextBlockRequest() {
      guard engineHasRoom, engine.submit(request) else {
        engineHasRoom = false
        connection.session.unsubmitted(request)
        return false
      }
      handedOver += 1
    }
    return true
  }

  private func block(_ slot: Int, _ connection: NBDConnection) {
    // Without a request of its own it need not queue.
    if let request = connection.session.nextBlockRequest() {
      connection.session.unsubmitted(request)
      connection.isBlocked = true
      blocked.push(Name(slot: slot, generation: connection.generation))
    }
  }

  func completed(_ completion: BlockCompletion) {
    let slot = Int(completion.token >> 48)
    let connection = slot < connections.count ? connections[slot] : nil
    guard let connection,
      connection.generation == UInt32(truncatingIfNeeded: completion.token >> 16)
    else { invariantBroken("the engine completed token \(completion.token), which nobody sent") }
    engineHasRoom = true
    connection.session.completed(completion)
    touch(slot)
  }

  func controlReplied(token: UInt64, _ reply: ControlReply) {
    let slot = Int(token >> 48)
    existing(slot).session.controlReplied(reply)
    touch(slot)
  }

  // MARK: The end of a turn

  /// Starts the sends and receives that the turn has made possible, and closes what is over.
  /// Returns true when a session has got more for the engine: the next turn must not wait.
  func settle(now: UInt64) -> Bool {
    // Those touched in here (by an end) are looked at in the next turn.
    for _ in 0..<touched.count {
      guard let slot = touched.pop() else { break }
      let connection = existing(slot)
      connection.isTouched = false
      settle(slot, connection, now: now)
    }
    if now >= acceptAgainAt {
      acceptAgainAt = .max
      for index in pausedListeners { accept(index) }
      pausedListeners = []
    }
    return !touched.isEmpty
  }

  private func settle(_ slot: Int, _ connection: NBDConnection, now: UInt64) {
    if connection.isEnding { return end(slot, connection) }
    send(slot, connection, now: now)
    if !connection.isBlocked { receive(slot, connection, now: now) }
    if connection.session.isStalled && !connection.isWaiting {
      if waiting.isEmpty { waitingSince = now }
      connection.isWaiting = true
      memory.isReserved = true
      waiting.push(Name(slot: slot, generation: connection.generation))
    }
  }

  private func send(_ slot: Int, _ connection: NBDConnection, now: UInt64) {
    if connection.isSending {
      // The send under way may be one whose end nothing tells of before something else happens.
      if connection.session.awaitsSend { awaitSend(connection) }
      return
    }
    let count = connection.session.fillSendVector(into: connection.vector)
    if count == 0 { return }
    connection.message.pointee.msg_iov = connection.vector.baseAddress
    connection.message.pointee.msg_iovlen = count
    connection.isSending = true
    connection.sendingSince = now
    connection.sendingBytes = connection.vector[..<count].reduce(0) { $0 + $1.iov_len }
    reactor.send(
      socket: slot, descriptor: connection.descriptor, message: connection.message,
      bytes: connection.sendingBytes,
      patiently: connection.mustSendPatiently || connection.session.awaitsSend || isStopping)
  }

  private func receive(_ slot: Int, _ connection: NBDConnection, now: UInt64) {
    if connection.isReceiving { return }
    let space = connection.session.receiveSpace()
    guard space.count > 0, let start = space.baseAddress else { return }
    connection.isReceiving = true
    connection.receivingSince = now
    connection.receivesPayload = memory.pool.contains(start)
    reactor.receive(
      socket: slot, descriptor: connection.descriptor, into: space,
      waitFirst: connection.isDrained)
  }

  private func end(_ slot: Int, _ connection: NBDConnection) {
    connection.shut()
    if connection.isReceiving || connection.isSending { return }
    if !connection.isClosed {
      connection.isClosed = true
      close(connection.descriptor)
      connection.session.closed()
      if !connection.session.canBeDestroyed { touch(slot) }
    }
    if connection.session.canBeDestroyed {
      invariant(!connection.isTouched, "a connection that is gone would be looked at again")
      connections[slot] = nil
      freeSlots.append(slot)
      connectionCount -= 1
    }
  }

  // MARK: Waiting for memory

  /// Gives memory that was freed to the sessions that wait for it, in order.
  func resumeWaiting(now: UInt64) {
    while let name = waiting.first() {
      if let connection = find(name) {
        if !connection.isDead, connection.session.isStalled {
          if memory.freed == freedAtLastTry { break }
          memory.isReserved = false
          connection.session.resume()
          memory.isReserved = true
          freedAtLastTry = memory.freed
          // Also when it ran out again: it may have got as far as a request or a receive.
          touch(name.slot)
          if connection.session.isStalled { break }
          waitingSince = now
        }
        connection.isWaiting = false
        touch(name.slot)
      }
      _ = waiting.pop()
      freedAtLastTry = .max
    }
    memory.isReserved = !waiting.isEmpty
    if !waiting.isEmpty && now > waitingSince + patience { evict(now: now) }
  }

  /// Ends the connection that keeps most memory busy without moving.
  private func evict(now: UInt64) {
    var victim = -1
    var most = 0
    for (slot, connection) in connections.enumerated() {
      guard let connection, connection.isStuck(now: now, limit: patience), !connection.isDead,
        connection.session.memoryInFlight > most
      else { continue }
      most = connection.session.memoryInFlight
      victim = slot
    }
    // One at a time: what it frees may be enough.
    waitingSince = now - patience * 9 / 10
    guard victim >= 0 else { return }
    existing(victim).isDead = true
    touch(victim)
  }

  /// Whether a send's end lets go on what nothing else does.
  var awaitsSends: Bool { !waiting.isEmpty || awaitedSends > 0 }

  private func awaitSend(_ connection: NBDConnection) {
    if connection.isSendAwaited { return }
    connection.isSendAwaited = true
    awaitedSends += 1
  }

  /// When `settle` and `resumeWaiting` want to be called although nothing happens, or `UInt64.max`.
  var wakeup: UInt64 {
    min(acceptAgainAt, waiting.isEmpty ? .max : waitingSince + patience + 1)
  }

  // MARK: The end

  /// Takes no more connections and no more requests; what was taken is served and replied to.
  func stop() {
    if isStopping { return }
    isStopping = true
    for index in pausedListeners { dropListener(index) }
    for (index, listener) in listeners.enumerated() where listener != nil {
      reactor.cancelAccept(listener: index)
    }
    for (slot, connection) in connections.enumerated() {
      connection?.session.finish()
      touch(slot)
    }
  }

  /// Gives up on all peers.
  func abandon() {
    for (slot, connection) in connections.enumerated() {
      connection?.isDead = true
      touch(slot)
    }
  }
}
