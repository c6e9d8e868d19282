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
package final class NBDSession {
  /// Requests that one connection may have taken and not yet seen the reply sent, at most.
  package static let maximumRequests = 128
  /// Payload memory that one session holds at most, in bytes, unless told otherwise.
  package static let defaultMemoryLimit = 8 << 20

  /// A session at the start of its handshake; the greeting is ready to be sent.
  ///
  /// - Parameters:
  ///   - memory: where payload memory comes from; kept until the session is dropped.
  ///   - tokenBase: the upper 48 bits of the session's tokens; the lower 16 must be zero.
  ///   - memoryLimit: bytes of payload memory held at a time, at least `2 * maximumPiece`.
  package init(
    memory: any BufferProvider, tokenBase: UInt64, memoryLimit: Int = NBDSession.defaultMemoryLimit
  ) {
    invariantBroken("not written yet")
  }

  // MARK: Input

  /// Where the next receive lands; empty while the session takes no input. The memory stays in
  /// place until `received`, `endOfStream` or `closed`; asking again returns the same.
  package func receiveSpace() -> UnsafeMutableRawBufferPointer { invariantBroken("not written yet") }
  /// A receive into `receiveSpace()` ended with `count` bytes (0: nothing came, no end either).
  package func received(_ count: Int) { invariantBroken("not written yet") }
  /// The peer will send nothing more. What it has sent whole is still served and replied to.
  package func endOfStream() { invariantBroken("not written yet") }

  /// True when the session waits for memory that its provider did not have. Call `resume()` after
  /// memory has been given back (by any session).
  package var isStalled: Bool { invariantBroken("not written yet") }
  package func resume() { invariantBroken("not written yet") }

  // MARK: Engine

  /// The next request to submit, until nil. Its token is `tokenBase | own 16 bits`.
  package func nextBlockRequest() -> BlockRequest? { invariantBroken("not written yet") }
  /// Puts back the request that `nextBlockRequest()` returned last: the engine did not take it.
  /// `nextBlockRequest()` will return it again, first.
  package func unsubmitted(_ request: BlockRequest) { invariantBroken("not written yet") }
  /// A block request ended.
  package func completed(_ completion: BlockCompletion) { invariantBroken("not written yet") }
  /// The next control request, or nil; there is at most one under way, and `controlReplied` must
  /// follow for each (also for `close`).
  package func nextControlRequest() -> ControlRequest? { invariantBroken("not written yet") }
  package func controlReplied(_ reply: ControlReply) { invariantBroken("not written yet") }

  // MARK: Output

  /// Fills `vector` with bytes to send, in order, and returns how many entries it used; 0 when
  /// there is nothing to send, or a send is under way already. The memory stays in place until
  /// `sent` or `closed`.
  package func fillSendVector(into vector: UnsafeMutableBufferPointer<iovec>) -> Int {
    invariantBroken("not written yet")
  }
  /// The send of the last vector ended, and the socket took its first `count` bytes (0: none).
  package func sent(_ count: Int) { invariantBroken("not written yet") }

  // MARK: End

  /// The server stops: takes no more input, serves what was taken, then wants to be closed.
  package func finish() { invariantBroken("not written yet") }
  /// True when the driver should close the connection: all is said, or the peer broke the protocol.
  package var wantsClose: Bool { invariantBroken("not written yet") }
  /// The connection is gone, for whatever reason, and no send or receive of the driver touches the
  /// session's memory any more.
  package func closed() { invariantBroken("not written yet") }
  /// True after `closed()`, when every engine request has come back and the disk was closed.
  package var canBeDestroyed: Bool { invariantBroken("not written yet") }

  // MARK: Figures

  /// Payload memory held now, in bytes.
  package var memoryInFlight: Int { invariantBroken("not written yet") }
  /// The name of the disk or snapshot that is served, once transmission has begun.
  package var exportName: String? { invariantBroken("not written yet") }
}
