import Core
import Glibc

/// One connection of the NBD server, without any I/O in it: the driver moves bytes between the
/// socket and the session, and requests between the session and the engine.
///
/// A turn of the driver's loop, in any order that suits it:
///
///  1. input: `receiveSpace()` says where the next receive lands (empty: don't receive now);
///     `received(count)` when it ended, or `endOfStream()` when the peer has closed;
///  2. to the engine: `nextBlockRequest()` until nil, `nextControlRequest()` until nil;
///  3. from the engine: `completed(_:)` for each block completion with one of the session's
///     tokens, `controlReplied(_:)` for the reply to the control request;
///  4. output: `fillSendVector(into:)`, send, then `sent(count)`;
///  5. the end: when `wantsClose`, shut the socket, wait until no send or receive of the driver is
///     under way, call `closed()`; go on with 2 and 3 until `canBeDestroyed`, then drop the session.
///
/// After calls of kind 1, 3 and 4 and after `resume()`, look at all of 1, 2, 4 and 5 anew: each can
/// make another possible. At most one receive and one send may be under way at a time.
///
/// Thread: one. Limits: `maximumRequests` requests taken and not yet replied to, `memoryLimit` bytes
/// of payload memory; beyond either the session takes no input until replies have gone out.
///
/// How a request goes: its header is read in the staging buffer (Commands.swift) and gets a slot.
/// It becomes pieces (Pieces.swift): one, or several if it is longer than `maximumPiece`. A piece
/// takes memory only when it can go to the engine at once, or, for a write, when its payload is
/// there or on its way from the socket straight into that memory. Only the newest request makes
/// pieces, and input stalls while it can't. A completed piece becomes a reply (Replies.swift), whose
/// payload is sent from the piece's memory. What was sent frees memory, piece and slot.
///
/// What holds at all times:
///  - a request that waits for memory holds none, except a simple read reply of several pieces:
///    nothing else can be sent in the middle of it, so it reuses its own memory and needs no other
///    to go on;
///  - memory that a send or a receive of the driver may touch is neither moved nor freed;
///  - while a receive is under way the session is not stalled, and so does not parse.
package final class NBDSession {
  /// Requests that one connection may have taken and not yet seen the reply sent, at most.
  package static let maximumRequests = 128
  /// Payload memory that one session holds at most, in bytes, unless told otherwise.
  package static let defaultMemoryLimit = 8 << 20
  /// More than requests, so that each request of a full table can have one.
  static let maximumPieces = 192
  static let stagingBytes = 128 << 10

  enum Phase: UInt8, Comparable {
    case clientFlags
    case options
    case transmission
    /// No more input; what was taken is served and replied to.
    case draining
    /// The peer broke the protocol, or can't be told of an error: nothing more is sent.
    case broken
    /// The driver's part is over.
    case closed

    static func < (a: Self, b: Self) -> Bool { a.rawValue < b.rawValue }
  }

  /// Why input is not parsed further.
  enum Stall: UInt8 {
    case none
    /// Own tables or memory limit: ends with a completion, or with a reply sent.
    case own
    /// The provider had no memory: ends with `resume()`.
    case provider
    /// The handshake's output is full: ends when it was sent.
    case output
    /// The answer to an option needs a control reply.
    case control
  }

  enum ReceiveTarget: UInt8 { case none, staging, piece }

  // What the session was given.
  let provider: any BufferProvider
  let tokenBase: UInt64
  let memoryLimit: Int

  // Input: bytes `stagingHead ..< stagingTail` are received and not yet parsed.
  let staging: UnsafeMutableRawPointer
  var stagingHead = 0
  var stagingTail = 0
  var receiveTarget = ReceiveTarget.none
  var receiveBytes = 0
  var inputEnded = false

  var phase = Phase.clientFlags
  var stall = Stall.none
  var handshake = Handshake()
  var handshakeOutput = HandshakeOutput()

  // The export, once it was opened.
  var handle: DiskHandle?
  var exportSize: UInt64 = 0
  var isReadOnly = false
  var usesStructuredReplies = false
  /// Those that the client has selected for it. The id of each is its place, from 1 on.
  var contexts: [MetadataContext] = []

  // Tables.
  let requests: UnsafeMutablePointer<Request>
  let pieces: UnsafeMutablePointer<Piece>
  let freeRequests = IndexStack(capacity: NBDSession.maximumRequests)
  let freePieces = IndexStack(capacity: NBDSession.maximumPieces)
  let queuedPieces = IndexRing(capacity: 256)
  /// Pieces that wait to ask what changed, and the one that does (Changes.swift).
  let queuedChanges = IndexRing(capacity: 256)
  var askedPiece = noIndex
  var submittedPieces = 0
  let output = OutputQueue(items: NBDSession.maximumRequests + NBDSession.maximumPieces)
  var sendUnderWay = false

  // The newest request, while it takes payload or makes pieces.
  var current = noIndex
  /// Of `current`, a status request: the contexts that have got their piece.
  var currentContext = 0
  /// Bytes of `current` for which no piece was made yet; of a failed write, bytes to skip.
  var remaining: UInt32 = 0
  /// The piece of `current` whose payload is coming in, and how much of it is there.
  var filling = noIndex
  var filled = 0

  /// The simple read reply in the middle of which nothing else may be sent.
  var openRead = noIndex
  /// Requests whose replies wait for it.
  let waitingReplies = IndexRing(capacity: NBDSession.maximumRequests)

  /// Payload memory held now, in bytes.
  package var memoryInFlight: Int { heldMemory }
  var heldMemory = 0

  /// A session at the start of its handshake; the greeting is ready to be sent.
  ///
  /// - Parameters:
  ///   - memory: where payload memory comes from; kept until the session is dropped.
  ///   - tokenBase: the upper 48 bits of the session's tokens; the lower 16 must be zero.
  ///   - memoryLimit: bytes of payload memory held at a time, at least `2 * maximumPiece`.
  package init(
    memory: any BufferProvider, tokenBase: UInt64, memoryLimit: Int = NBDSession.defaultMemoryLimit
  ) {
    invariant(tokenBase & 0xFFFF == 0, "token base \(tokenBase) uses the session's own bits")
    invariant(memoryLimit >= 2 * maximumPiece, "memory limit \(memoryLimit) holds no request")
    provider = memory
    self.tokenBase = tokenBase
    self.memoryLimit = memoryLimit
    staging = .allocate(byteCount: Self.stagingBytes, alignment: blockSize)
    requests = .allocate(capacity: Self.maximumRequests)
    requests.initialize(repeating: Request(), count: Self.maximumRequests)
    pieces = .allocate(capacity: Self.maximumPieces)
    pieces.initialize(repeating: Piece(), count: Self.maximumPieces)
    greet()
  }

  deinit {
    freeQueued()
    freeFilling()
    dropOutput()
    staging.deallocate()
    requests.deallocate()
    pieces.deallocate()
  }

  // MARK: Input

  /// Where the next receive lands; empty while the session takes no input. The memory stays in
  /// place until `received`, `endOfStream` or `closed`; asking again returns the same.
  package func receiveSpace() -> UnsafeMutableRawBufferPointer {
    guard stall == .none, !inputEnded, phase < .draining else {
      return UnsafeMutableRawBufferPointer(start: nil, count: 0)
    }
    if receiveTarget == .none {
      if filling != noIndex {
        receiveTarget = .piece
        receiveBytes = Int(pieces[Int(filling)].length) - filled
      } else {
        makeStagingRoom()
        receiveTarget = .staging
        receiveBytes = Self.stagingBytes - stagingTail
      }
      invariant(receiveBytes > 0, "input is wanted and there is no room for it")
    }
    let start =
      receiveTarget == .piece
      ? pieces[Int(filling)].payload + filled : staging + stagingTail
    return UnsafeMutableRawBufferPointer(start: start, count: receiveBytes)
  }

  /// A receive into `receiveSpace()` ended with `count` bytes (0: nothing came, no end either).
  package func received(_ count: Int) {
    invariant(count >= 0 && count <= receiveBytes, "received \(count) bytes in \(receiveBytes)")
    let target = receiveTarget
    endReceive()
    guard phase < .draining, !inputEnded else {
      freeFilling()
      return settleEnd()
    }
    if target == .piece { filled += count } else { stagingTail += count }
    if count > 0 { parse() }
  }

  /// The peer will send nothing more. What it has sent whole is still served and replied to.
  package func endOfStream() {
    endReceive()
    inputEnded = true
    if phase >= .draining { freeFilling() } else if stall == .none { parse() }
    settleEnd()
  }

  /// True when the session waits for memory that its provider did not have. Call `resume()` after
  /// memory has been given back (by any session).
  package var isStalled: Bool { stall == .provider }

  /// Memory may be there again: goes on where it ran out. Harmless when nothing waits.
  package func resume() {
    if stall == .provider { parse() }
  }

  private func endReceive() {
    receiveTarget = .none
    receiveBytes = 0
  }

  /// Moves what is left of the staging buffer to its front when the room behind it is short.
  private func makeStagingRoom() {
    let left = stagingTail - stagingHead
    if left == 0 {
      stagingHead = 0
      stagingTail = 0
    } else if stagingTail > Self.stagingBytes / 2 {
      memmove(staging, staging + stagingHead, left)
      stagingHead = 0
      stagingTail = left
    }
  }

  // MARK: Engine

  /// The next request to submit, until nil. Its token is `tokenBase | own 16 bits`.
  package func nextBlockRequest() -> BlockRequest? {
    let index = queuedPieces.popFirst()
    if index == noIndex { return nil }
    pieces[Int(index)].state = .submitted
    submittedPieces += 1
    return blockRequest(index)
  }

  /// Puts back the request that `nextBlockRequest()` returned last: the engine did not take it.
  /// `nextBlockRequest()` will return it again, first.
  package func unsubmitted(_ request: BlockRequest) {
    let index = pieceIndex(request.token)
    submittedPieces -= 1
    if phase >= .broken {
      freePiece(index)
      return settleEnd()
    }
    pieces[Int(index)].state = .queued
    queuedPieces.putBack(index)
  }

  /// A block request ended.
  package func completed(_ completion: BlockCompletion) {
    let index = pieceIndex(completion.token)
    submittedPieces -= 1
    if phase >= .broken {
      freePiece(index)
      return settleEnd()
    }
    if completion.status == .stopping {
      // An error would reach the guest; a client that finds the connection closed connects again.
      freePiece(index)
      breakConnection()
      return settleEnd()
    }
    pieceCompleted(index, completion)
    if stall == .own { parse() }
    if phase >= .draining { settleEnd() }
  }

  /// The next control request, or nil; there is at most one under way, and `controlReplied` must
  /// follow for each (also for `close`).
  package func nextControlRequest() -> ControlRequest? {
    guard let request = handshake.request else { return nil }
    handshake.request = nil
    return request
  }

  /// The engine's reply to the control request.
  package func controlReplied(_ reply: ControlReply) {
    takeControlReply(reply)
    settleEnd()
  }

  private func pieceIndex(_ token: UInt64) -> UInt16 {
    let index = UInt16(truncatingIfNeeded: token)
    invariant(
      token & ~0xFFFF == tokenBase && index < Self.maximumPieces
        && pieces[Int(index)].state == .submitted,
      "the engine gave back token \(token), which the session has not submitted")
    return index
  }

  // MARK: Output

  /// Fills `vector` with bytes to send, in order, and returns how many entries it used; 0 when
  /// there is nothing to send, or a send is under way already. The memory stays in place until
  /// `sent` or `closed`.
  package func fillSendVector(into vector: UnsafeMutableBufferPointer<iovec>) -> Int {
    guard !sendUnderWay, phase < .broken, vector.count > 0 else { return 0 }
    var used = 0
    if handshakeOutput.pending > 0 {
      vector[0] = iovec(iov_base: handshakeOutput.first, iov_len: handshakeOutput.pending)
      used = 1
    }
    used = output.fill(vector, used: used)
    sendUnderWay = used > 0
    return used
  }

  /// The send of the last vector ended, and the socket took its first `count` bytes (0: none).
  package func sent(_ count: Int) {
    invariant(count >= 0 && sendUnderWay, "\(count) bytes were sent, and no send was under way")
    sendUnderWay = false
    if phase >= .broken {
      dropOutput()
      return settleEnd()
    }
    let ofHandshake = min(count, handshakeOutput.pending)
    var left = count - ofHandshake
    while left > 0, let item = output.advance(&left) { itemSent(item) }
    invariant(left == 0, "\(left) bytes more were sent than there were")
    if ofHandshake > 0 {
      handshakeOutput.sent(ofHandshake)
      handshakeSent()
    }
    if stall == .own { parse() }
    if phase >= .draining { settleEnd() }
  }

  /// Whether the end of the send under way lets go on what nothing else does: there is more to send, it
  /// frees what input waits for, or the connection ends with it.
  package var awaitsSend: Bool {
    stall != .none || phase != .transmission || output.exceedsVector
  }

  // MARK: End

  /// The server stops: takes no more input, serves what was taken, then wants to be closed.
  package func finish() {
    guard phase < .draining else { return }
    stagingHead = stagingTail
    inputEnded = true
    if stall == .none { parse() }
    settleEnd()
  }

  /// True when the driver should close the connection: all is said, or the peer broke the protocol.
  package var wantsClose: Bool {
    switch phase {
    case .broken: true
    case .draining: freeRequests.isFull && output.isEmpty && handshakeOutput.pending == 0
    default: false
    }
  }

  /// The connection is gone, for whatever reason, and no send or receive of the driver touches the
  /// session's memory any more.
  package func closed() {
    guard phase != .closed else { return }
    phase = .closed
    sendUnderWay = false
    endReceive()
    freeQueued()
    freeFilling()
    dropOutput()
    forgetHandshake()
    settleEnd()
  }

  /// True after `closed()`, when every engine request has come back and the disk was closed.
  package var canBeDestroyed: Bool {
    phase == .closed && submittedPieces == 0 && handle == nil && handshake.awaiting == .nothing
  }

  /// The name of the disk or snapshot that is served, once transmission has begun.
  package var exportName: String? { handle == nil || phase < .transmission ? nil : handshake.name }

  /// Gives up on the peer: it broke the protocol, or can't be told of an error.
  func breakConnection() {
    guard phase < .broken else { return }
    phase = .broken
    stall = .none
    freeQueued()
    if receiveTarget == .none { freeFilling() }
    if !sendUnderWay { dropOutput() }
  }

  /// Ends input: a request whose payload did not come whole is forgotten.
  func beginDraining() {
    guard phase < .draining else { return }
    phase = .draining
    if current == noIndex { return }
    let request = current
    endCurrent()
    requests[Int(request)].isAbandoned = true
    if filling == noIndex { return settle(request) }
    if receiveTarget == .none { freeFilling() }
  }

  /// Closes the disk once nothing more can be asked of it.
  func settleEnd() {
    guard phase >= .draining, let open = handle, submittedPieces == 0, queuedPieces.isEmpty,
      queuedChanges.isEmpty, handshake.awaiting == .nothing
    else { return }
    handle = nil
    handshake.request = .close(open)
    handshake.awaiting = .finalClose
  }

  private func freeQueued() {
    while case let index = queuedPieces.popFirst(), index != noIndex { freePiece(index) }
    while case let index = queuedChanges.popFirst(), index != noIndex { freePiece(index) }
  }

  private func dropOutput() {
    handshakeOutput.release()
    while let item = output.popFirst() {
      if item.piece != noIndex { freePiece(item.piece) }
    }
    for i in 0..<Self.maximumPieces where pieces[i].state == .done { freePiece(UInt16(i)) }
  }
}
