// sluice top: what the disks do right now.

import ArgumentParser
import ControlAPI
import ControlServer
import Glibc
import Synchronization

struct TopCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "top",
    abstract: "Show live what the disks do: operations, throughput, latency, log fill.",
    discussion: """
      Each disk that had operations since the last look, the busiest first, and the slowest \
      operations of the last minutes with the stages that their time went to. P50 and P99 are the \
      latency in ms that half and 99% of the operations before them did not exceed; QUEUE is the \
      part of all the time that operations waited for others. Ends with q or Ctrl-C. Where \
      standard output is no terminal, each look is printed below the one before.
      """)

  @Option(help: "Seconds between two looks, 0.1 to 3600.")
  var interval = 1.0

  @Option(name: .shortAndLong, help: "End after so many looks.")
  var number: Int?

  @Flag(help: "Print one look at one interval and end; the same as --number 1.")
  var once = false

  @Flag(help: "Print each look as a line of JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    guard interval >= 0.1, interval <= 3600 else {
      throw ValidationError("--interval must be from 0.1 to 3600 seconds")
    }
    if let number, number < 1 { throw ValidationError("--number must be at least 1") }
    if number != nil, once { throw ValidationError("give --once or --number, not both") }
  }

  func run() throws {
    let daemon = try daemon.daemon()
    let interrupt = try Interrupt()
    guard let before = try sample(daemon, interrupt) else { return }
    let looks = once ? 1 : number ?? .max
    if json || terminalSize() == nil || once {
      try print(daemon, before, looks, interrupt)
    } else {
      try show(daemon, before, looks, interrupt)
    }
  }

  /// Nil when a signal came meanwhile.
  private func sample(_ daemon: Daemon, _ interrupt: Interrupt) throws -> TopSample? {
    guard
      let disks = try daemon.get("/v1/latency", as: [DiskTimes].self, unless: interrupt),
      let status = try daemon.get("/v1/status", as: Status.self, unless: interrupt)
    else { return nil }
    return TopSample(status: status, disks: disks)
  }

  /// One look below the other.
  private func print(
    _ daemon: Daemon, _ first: TopSample, _ looks: Int, _ interrupt: Interrupt
  ) throws {
    var before = first
    var next = monotonicSeconds()
    for look in 0..<looks {
      next = max(next + interval, monotonicSeconds())
      while !interrupt.isReceived, monotonicSeconds() < next { interrupt.wait(until: next) }
      guard !interrupt.isReceived, let after = try sample(daemon, interrupt) else { return }
      let rates = PoolRates(from: before, to: after, at: timestamp())
      before = after
      if json {
        try Output.write(JSONText.encode(rates) + [UInt8(ascii: "\n")])
      } else {
        let lines = TopView.lines(rates, screen: nil)
        try Output.print((look > 0 ? "\n" : "") + lines.joined(separator: "\n"))
      }
    }
  }

  /// The screen filled anew each time.
  private func show(
    _ daemon: Daemon, _ first: TopSample, _ looks: Int, _ interrupt: Interrupt
  ) throws {
    let screen = try LiveScreen()
    try screen.show(["sluice top: the first figures come in \(interval) s; q ends"])
    var before = first
    var next = monotonicSeconds()
    for _ in 0..<looks {
      next = max(next + interval, monotonicSeconds())
      if screen.isEnded(by: interrupt, until: next) { return }
      guard let after = try sample(daemon, interrupt) else { return }
      let rates = PoolRates(from: before, to: after, at: timestamp())
      before = after
      try screen.show(TopView.lines(rates, screen: terminalSize()))
    }
  }

  private func timestamp() -> String {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    return rfc3339(nanosecondsSince1970: UInt64(time.tv_sec) * 1_000_000_000)
  }
}

extension Daemon {
  /// What a request that changes nothing is answered with; nil when a signal came first.
  fileprivate func get<Reply: Decodable>(
    _ path: String, as: Reply.Type, unless interrupt: Interrupt
  ) throws -> Reply? {
    try explained {
      let pending = try client.begin(.init("GET", path))
      let done = Completion()
      pending.whenComplete { _ in
        done.isSet.store(true, ordering: .releasing)
        interrupt.wake()
      }
      while !done.isSet.load(ordering: .acquiring) {
        if interrupt.isReceived { return nil }
        interrupt.wait(until: monotonicSeconds() + 1)
      }
      let bytes = try pending.wait()
      guard let reply = try? JSONText.decode(Reply.self, from: bytes) else {
        throw CommandError.notUnderstood
      }
      return reply
    }
  }

  private final class Completion: Sendable { let isSet = Atomic(false) }
}
