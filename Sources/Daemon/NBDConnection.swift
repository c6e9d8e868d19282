import Core
import Glibc
import NBDServer

/// One socket with its session, and what the ring has under way for it.
///
///     open ──wantsClose, or the socket failed──▶ shutting ──nothing under way──▶ closed
///                                                    ──all requests back──▶ gone
///
/// Shutting the socket makes its receive and send end, whatever the peer does. The slot, and with
/// it the session's memory, lives until the engine has given back every request.
final class NBDConnection {
  static let vectorEntries = 64

  let descriptor: Int32
  let session: NBDSession
  /// Distinguishes the connections that have used the same slot.
  let generation: UInt32
  let vector: UnsafeMutableBufferPointer<iovec>
  let message: UnsafeMutablePointer<msghdr>

  var isReceiving = false
  var isSending = false
  /// The end of the send under way lets go on what nothing else does.
  var isSendAwaited = false
  var sendingBytes = 0
  /// When the receive or send under way was started (monotonic nanoseconds).
  var receivingSince: UInt64 = 0
  var sendingSince: UInt64 = 0
  /// Whether the receive under way goes to pool memory and not to the session's own.
  var receivesPayload = false
  /// The socket did not take all of the last message: wait until it takes more.
  var mustSendPatiently = false
  /// The last receive left the socket empty.
  var isDrained = true

  /// In the list of connections to look at.
  var isTouched = false
  /// In the queue of those that the engine had no slot for.
  var isBlocked = false
  /// In the queue of those that wait for memory.
  var isWaiting = false

  /// The socket failed, or the connection was given up.
  var isDead = false
  var isShut = false
  var isClosed = false

  /// When it was accepted.
  let since: UInt64

  init(descriptor: Int32, session: NBDSession, generation: UInt32, since: UInt64) {
    self.since = since
    self.descriptor = descriptor
    self.session = session
    self.generation = generation
    vector = .allocate(capacity: Self.vectorEntries)
    message = .allocate(capacity: 1)
    message.initialize(to: msghdr())
  }

  deinit {
    if !isClosed { close(descriptor) }
    vector.deallocate()
    message.deallocate()
  }

  /// Once true, always true.
  var isEnding: Bool { isDead || isShut || session.wantsClose }

  /// Starts the end, as often as it is called.
  func shut() {
    if isShut { return }
    isShut = true
    shutdown(descriptor, Int32(SHUT_RDWR))
  }

  /// Whether the peer alone keeps memory busy: it has not read, or not sent, for `limit` ns.
  func isStuck(now: UInt64, limit: UInt64) -> Bool {
    (isSending && now > sendingSince + limit)
      || (isReceiving && receivesPayload && now > receivingSince + limit)
  }
}
