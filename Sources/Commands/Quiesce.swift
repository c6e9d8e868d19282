// Quiesced snapshots: the guests' file systems are frozen before the mark and thawed after it.
//
//     sync all ─▶ freeze all ─▶ the mark ─▶ thaw all
//        │            │            │           ▲
//        │            └────────────┴───────────┘ whatever happens: an error, a time limit, a signal
//        └ error or time limit: nothing is frozen yet
//
// A guest that does not answer may freeze later: it gets its thaw all the same, which its agent
// does behind the freeze. Until the thaws are done or given up, SIGINT, SIGTERM and SIGHUP only
// end the waiting.

import ControlAPI
import ControlServer
import Glibc
import NIOCore
import Synchronization

/// How long the daemon may take for the mark while guests stand still, in seconds.
private let markTimeout = 10.0
/// How long all guests may take to thaw, in seconds.
private let thawTimeout = 5.0

/// Freezes the guests' file systems, runs `body`, and thaws them whatever happens.
///
/// - Parameters:
///   - sockets: where the guests' agents are.
///   - timeoutSeconds: for freezing all of them.
func whileQuiesced<T>(
  _ sockets: [String], timeoutSeconds: Double, _ body: (Interrupt) throws -> T
) throws -> T {
  let interrupt = try Interrupt()
  let guests = sockets.map { GuestAgent(path: $0) }
  let outcome = Result {
    try freeze(guests, timeoutSeconds, interrupt)
    return try body(interrupt)
  }
  let complaints = thaw(guests, isMarked: (try? outcome.get()) != nil)
  switch outcome {
  case .success(let value):
    guard complaints.isEmpty else {
      throw CommandError("the snapshot was taken, but \(complaints.joined(separator: "; "))")
    }
    return value
  case .failure(let error):
    for complaint in complaints { Output.report(complaint) }
    throw error
  }
}

private func freeze(
  _ guests: [GuestAgent], _ timeoutSeconds: Double, _ interrupt: Interrupt
) throws {
  let deadline = monotonicSeconds() + timeoutSeconds
  for command in [GuestAgent.Command.sync, .freeze] {
    for guest in guests { guest.ask(command) }
    wait(for: guests, until: deadline, interrupt)
    if interrupt.isReceived { throw CommandError("interrupted; no snapshot was taken") }
    for guest in guests {
      guard case .failure(let failure) = guest.answer else { continue }
      throw CommandError(
        "the guest agent at \(guest.path) \(failure.reason); no snapshot was taken: "
          + "check the agent, or leave out --quiesce")
    }
    for guest in guests where guest.answer == nil {
      let what = command == .sync ? "did not answer" : "did not freeze its guest"
      throw CommandError(
        "the guest agent at \(guest.path) \(what) within \(shown(timeoutSeconds)) s; no snapshot "
          + "was taken: check that it runs in the guest and that nothing else uses its socket")
    }
  }
}

/// Thaws the guests that may be frozen; returns sentences about those that may still be, or that
/// were not any more when the mark was made.
private func thaw(_ guests: [GuestAgent], isMarked: Bool) -> [String] {
  let frozen = guests.filter(\.mayBeFrozen)
  let counts = frozen.map { (try? $0.answer?.get()) ?? 0 }
  for guest in frozen { guest.ask(.thaw) }
  let deadline = monotonicSeconds() + thawTimeout
  wait(for: frozen, until: deadline, nil)
  // An agent that was started anew meanwhile is found by a second connection.
  let lost = frozen.filter {
    if case .failure(.connectionLost) = $0.answer { true } else { false }
  }
  for guest in lost { guest.ask(.thaw) }
  wait(for: lost, until: deadline, nil)
  return zip(frozen, counts).compactMap { guest, count in
    let advice = "thaw it with guest-fsfreeze-thaw, or fsfreeze --unfreeze in the guest"
    switch guest.answer {
    case .success(let thawed):
      return isMarked && thawed == 0 && count > 0
        ? "the guest of \(guest.path) had thawed before, so that its file systems may not be "
          + "consistent: take the snapshot again" : nil
    case .failure(let failure):
      return "the guest of \(guest.path) may still be frozen, its agent \(failure.reason): "
        + advice
    case nil:
      return "the guest of \(guest.path) may still be frozen, its agent did not confirm the thaw "
        + "within \(Int(thawTimeout)) s: \(advice)"
    }
  }
}

/// Returns when all guests have answered, or, where it can be interrupted, when that is so or one
/// of them has failed; or at the deadline.
private func wait(for guests: [GuestAgent], until deadline: Double, _ interrupt: Interrupt?) {
  while true {
    let waiting = guests.filter { $0.answer == nil }
    if waiting.isEmpty { return }
    if let interrupt, interrupt.isReceived || guests.contains(where: \.hasFailed) { return }
    let left = deadline - monotonicSeconds()
    if left <= 0 { return }
    var polled = waiting.map { pollfd(fd: $0.socket, events: $0.events, revents: 0) }
    if let interrupt {
      polled.append(pollfd(fd: interrupt.descriptor, events: Int16(POLLIN), revents: 0))
    }
    _ = poll(&polled, nfds_t(polled.count), Int32(left * 1000) + 1)
    for (guest, entry) in zip(waiting, polled) where entry.revents != 0 { guest.advance() }
  }
}

extension GuestAgent {
  fileprivate var hasFailed: Bool {
    if case .failure = answer { true } else { false }
  }
}

/// A number without a fraction that is none.
private func shown(_ seconds: Double) -> String {
  seconds == seconds.rounded() ? "\(Int(seconds))" : "\(seconds)"
}

extension Daemon {
  /// Sends a request; gives up waiting for its reply after `markTimeout` or when interrupted.
  func send(_ request: ControlClient.Request, until interrupt: Interrupt) throws -> [UInt8] {
    try explained {
      let reply = try client.begin(request)
      let isDone = Flag()
      reply.whenComplete { _ in
        isDone.isSet.store(true, ordering: .releasing)
        interrupt.wake()
      }
      let deadline = monotonicSeconds() + markTimeout
      while !isDone.isSet.load(ordering: .acquiring) {
        let left = deadline - monotonicSeconds()
        guard left > 0, !interrupt.isReceived else {
          let what =
            interrupt.isReceived
            ? "interrupted" : "the daemon did not answer within \(Int(markTimeout)) s"
          throw CommandError(
            "\(what); a snapshot that `sluice snapshot list` shows all the same is not quiesced")
        }
        var polled = pollfd(fd: interrupt.descriptor, events: Int16(POLLIN), revents: 0)
        _ = poll(&polled, 1, Int32(left * 1000) + 1)
      }
      return try reply.wait()
    }
  }

  private final class Flag: Sendable { let isSet = Atomic(false) }
}
