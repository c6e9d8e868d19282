import Core
import DeviceIO
import Synchronization

/// How other threads talk to the engine: control requests in, replies by closure. Posting never
/// waits for the engine, and the engine's thread holds the lock only to swap two arrays.
package final class Mailbox: Sendable {
  /// Called on the engine's thread: it must not block, only hand the reply on.
  package typealias Reply = @Sendable (ControlReply) -> Void

  struct Letter: Sendable {
    /// A device to attach before the request is made.
    var device: (file: DeviceFile, index: DeviceIndex)?
    var request: ControlRequest
    var reply: Reply
  }

  private struct State {
    var letters: [Letter] = []
    var isClosed = false
  }

  /// Requests that may wait here at a time; more are refused.
  private static let capacity = 4096

  private let state = Mutex(State())
  private let waker: Waker

  init(waker: Waker) { self.waker = waker }

  /// Asks the engine for `request`; `reply` is called exactly once.
  package func send(_ request: ControlRequest, reply: @escaping Reply) {
    post(Letter(request: request, reply: reply))
  }

  /// Asks the engine for `request`, and waits for its reply.
  package func send(_ request: ControlRequest) async -> ControlReply {
    await withCheckedContinuation { done in send(request) { done.resume(returning: $0) } }
  }

  /// Gives the engine's ring a new device, then asks for `request` (`addVolume`).
  package func attach(
    _ file: DeviceFile, as index: DeviceIndex, then request: ControlRequest,
    reply: @escaping Reply
  ) {
    post(Letter(device: (file, index), request: request, reply: reply))
  }

  private func post(_ letter: Letter) {
    let refusal: ControlError? = state.withLock {
      if $0.isClosed { return .stopping }
      if $0.letters.count == Self.capacity { return .ioError("too many requests wait") }
      $0.letters.append(letter)
      return nil
    }
    if let refusal { return letter.reply(.failed(refusal)) }
    waker.wake()
  }

  /// All that has been posted since the last call.
  func take() -> [Letter] {
    state.withLock {
      if $0.letters.isEmpty { return [] }
      var taken: [Letter] = []
      swap(&taken, &$0.letters)
      return taken
    }
  }

  /// Refuses what waits and what comes from now on.
  func close() {
    state.withLock { $0.isClosed = true }
    for letter in take() { letter.reply(.failed(.stopping)) }
  }
}
