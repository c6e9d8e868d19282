/// The sans-I/O face of an engine: requests and completions in, device operations and outcomes
/// out. No call blocks, reads a clock or makes a system call. One thread calls it.
///
/// A turn of the loop: `complete` for each device completion, `submit` and `control` for what
/// clients sent, then `step` once, then drain the three queues. `step` is where gathered writes
/// become a frame, so one turn is one group commit. Who wants true figures of latency calls
/// `observe` at the turn's start and before the drain.
package protocol BlockEngine: AnyObject {
  /// Takes a block request; false when every request slot is in use: keep it, stop reading from
  /// that client, and try again after the next completion.
  func submit(_ request: BlockRequest) -> Bool
  /// Takes a control request; the reply comes by `nextControlReply` with the same token.
  func control(_ request: ControlRequest, token: UInt64)
  /// A device operation ended.
  func complete(_ completion: DeviceCompletion)
  /// Does the work that the turn's events made possible. `now` is monotonic nanoseconds,
  /// `wallClock` nanoseconds since 1970.
  func step(now: UInt64, wallClock: UInt64)

  /// Tells the time, in monotonic nanoseconds, to the figures of latency; nothing that the engine
  /// does depends on it. At the start of a turn's events, and again before outcomes are taken:
  /// what happens in between has the time of the start.
  func observe(now: UInt64)

  /// The next device operation to issue, until nil.
  func nextDeviceOp() -> DeviceOp?
  /// The next finished block request, until nil.
  func nextCompletion() -> BlockCompletion?
  /// The next finished control request, until nil.
  func nextControlReply() -> (token: UInt64, reply: ControlReply)?

  /// When `step` wants to be called although nothing happens (monotonic nanoseconds), or
  /// `UInt64.max`. `now` or earlier means at once, after polling for events.
  var wakeup: UInt64 { get }
  /// True once recovery is done and requests are served.
  var isReady: Bool { get }
  /// True after a `stop` request has been replied to: the loop may end.
  var isStopped: Bool { get }
  /// A sentence when the engine can't go on (damage found in recovery, say); the loop ends.
  var failure: String? { get }
}

extension BlockEngine {
  package func observe(now: UInt64) {}
}
