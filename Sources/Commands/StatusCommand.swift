import ArgumentParser
import ControlAPI
import ControlServer

struct StatusCommand: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "status", abstract: "Show the figures of the pool and its daemon.")

  @Flag(help: "Print them as JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func run() throws {
    let daemon = try daemon.daemon()
    let request = ControlClient.Request("GET", "/v1/status")
    if json { return try Output.write(daemon.send(request)) }
    try Output.print(Self.text(daemon.send(request, as: Status.self)))
  }

  static func text(_ s: Status) -> String {
    func size(_ bytes: UInt64) -> String { ByteSize(bytes: bytes).description }
    return labelled([
      ("pool", "\(s.pool) (\(s.uuid))"),
      ("state", s.state == .readOnly ? "read-only" : s.state.rawValue),
      ("daemon", "\(s.version), up \(duration(s.uptimeSeconds)), \(size(s.memoryBytes)) of memory"),
      (
        "recovery",
        "\(tenths(s.recovery.seconds)) s for \(s.recovery.frames) frames of the log at start"
      ),
      (
        "log",
        "\(size(s.log.used)) of \(size(s.log.size)) used, "
          + "oldest record \(duration(s.log.oldestSeconds)) old"
      ),
      (
        "space",
        "\(size(s.space.used)) of \(size(s.space.size)) used, \(size(s.space.free)) free, "
          + "\(size(s.space.reserved)) reserved"
      ),
      (
        "",
        "\(size(s.space.metadata)) metadata, \(size(s.space.freeing)) being freed, "
          + "\(size(s.space.held)) held"
      ),
      ("disks", "\(s.disks), with \(s.snapshots) snapshots"),
      ("writes", "\(s.writes.count), \(size(s.writes.bytes))"),
      ("reads", "\(s.reads.count), \(size(s.reads.bytes))"),
      ("write time", times(s.latency.write)), ("read time", times(s.latency.read)),
      ("flush time", times(s.latency.flush)),
      (
        "destaged", "\(size(s.destage.bytes)), \(size(s.destage.backlogBytes)) still to go"
      ),
      ("checkpoint", "number \(s.checkpoint.number), \(duration(s.checkpoint.ageSeconds)) ago"),
      ("errors", "\(s.errors.checksum) of checksums, \(s.errors.io) of devices"),
    ])
  }

  /// Quantiles in milliseconds.
  private static func times(_ t: OperationTimes) -> String {
    guard t.count > 0 else { return "none yet" }
    let share = t.total.sum > 0 ? Int(t.queue.sum / t.total.sum * 100) : 0
    return "p50 \(milliseconds(t.total.p50)) ms, p99 \(milliseconds(t.total.p99)) ms, "
      + "longest \(milliseconds(t.total.max)) ms; \(share)% of all in queues"
  }

  /// A number of seconds with one decimal.
  private static func tenths(_ seconds: Double) -> String {
    let tenths = UInt64(max(0, seconds) * 10)
    return "\(tenths / 10).\(tenths % 10)"
  }

  /// The two largest units: `3 d 4 h`, `5 min 1 s`, `0.3 s`.
  static func duration(_ seconds: Double) -> String {
    if seconds < 60 { return "\(tenths(seconds)) s" }
    let whole = UInt64(seconds)
    if whole < 3600 { return "\(whole / 60) min \(whole % 60) s" }
    if whole < 86400 { return "\(whole / 3600) h \(whole / 60 % 60) min" }
    return "\(whole / 86400) d \(whole / 3600 % 24) h"
  }
}
