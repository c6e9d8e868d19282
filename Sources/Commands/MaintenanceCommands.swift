// sluice flush and sluice scrub: work on the whole pool that takes its time.

import ArgumentParser
import ControlAPI
import ControlServer
import Glibc
import Synchronization

struct FlushCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "flush",
    abstract: "Bring everything that was logged or deleted before to its place.",
    discussion: """
      Returns when it is destaged and checkpointed, and what was deleted is free space. Writes are
      durable without it.
      """)

  @OptionGroup var daemon: DaemonOptions

  func run() throws {
    var request = ControlClient.Request("POST", "/v1/flush")
    request.isLong = true
    _ = try daemon.daemon().send(request)
  }
}

struct ScrubCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "scrub", abstract: "Verify every block in use while the pool is served.",
    discussion: "Exits with 0 when all is well, 2 when damage was found, 1 when it could not run.")

  @Flag(help: "Print the result as JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func run() throws {
    let daemon = try daemon.daemon()
    var request = ControlClient.Request("POST", "/v1/scrub")
    request.isLong = true
    let reply = try daemon.explained {
      let pending = try daemon.client.begin(request)
      let done = Completion()
      pending.whenComplete { _ in done.isSet.store(true, ordering: .releasing) }
      if isatty(STDERR_FILENO) == 1 { showProgress(of: daemon, until: done) }
      return try pending.wait()
    }
    guard let scrub = try? JSONText.decode(Scrub.self, from: reply) else {
      throw CommandError.notUnderstood
    }
    if json { try Output.write(reply) } else { try Output.print(Self.text(scrub)) }
    if scrub.damagedBlocks > 0 { throw ExitCode(2) }
  }

  private final class Completion: Sendable { let isSet = Atomic(false) }

  private func showProgress(of daemon: Daemon, until done: Completion) {
    while !done.isSet.load(ordering: .acquiring) {
      usleep(250_000)
      guard
        let scrub = try? daemon.client.send(.init("GET", "/v1/scrub"), as: Scrub.self),
        scrub.running, scrub.blocksTotal > 0
      else { continue }
      let percent = min(100, Double(scrub.blocksVerified) / Double(scrub.blocksTotal) * 100)
      Output.writeError("\r\(Int(percent))% of \(scrub.blocksTotal) blocks verified ")
    }
    Output.writeError("\r\u{1B}[K")
  }

  static func text(_ scrub: Scrub) -> String {
    var lines = ["\(scrub.blocksVerified) blocks verified, \(scrub.healed) healed"]
    if scrub.damagedBlocks == 0 {
      lines[0] += ", no damage found"
    } else {
      lines[0] += ", \(scrub.damagedBlocks) damaged:"
      lines += scrub.damage
      if scrub.damage.count == Scrub.maximumDamage {
        lines.append("only the first \(Scrub.maximumDamage) places are listed")
      }
    }
    return lines.joined(separator: "\n")
  }
}
