// sluice snapshot rollback, rename, hold, release, diff: what is done with one snapshot.

import ArgumentParser
import ControlAPI
import ControlServer

struct SnapshotRollback: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rollback", abstract: "Make a disk what a snapshot of it is.",
    discussion: """
      What was written to the disk since its newest snapshot is lost. Newer snapshots stay.
      """)

  @Argument(help: .init("The snapshot.", valueName: "disk@snap"))
  var name: String

  @Flag(help: "Roll back although clients are connected, which then see the new content.")
  var force = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws { _ = try snapshotName(name) }

  func run() throws {
    let path = "\(snapshotPath(try snapshotName(name)))/rollback"
    _ = try daemon.daemon().send(.init("POST", path, body: Rollback(force: force)))
  }
}

struct SnapshotRename: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rename", abstract: "Give a snapshot another name.")

  @Argument(help: .init("The snapshot.", valueName: "disk@snap"))
  var name: String

  @Argument(help: "Its new name, without the disk's.")
  var new: String

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    let name = try snapshotName(name)
    do { _ = try DiskSnapshot(disk: name.disk, snapshot: new) } catch {
      throw ValidationError(error.description)
    }
  }

  func run() throws { try send(ChangeSnapshot(name: new), to: name, through: daemon) }
}

struct SnapshotHold: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "hold", abstract: "Keep a snapshot from being deleted.")

  @Argument(help: .init("The snapshot.", valueName: "disk@snap"))
  var name: String

  @OptionGroup var daemon: DaemonOptions

  func validate() throws { _ = try snapshotName(name) }

  func run() throws { try send(ChangeSnapshot(held: true), to: name, through: daemon) }
}

struct SnapshotRelease: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "release", abstract: "Let a held snapshot be deleted again.")

  @Argument(help: .init("The snapshot.", valueName: "disk@snap"))
  var name: String

  @OptionGroup var daemon: DaemonOptions

  func validate() throws { _ = try snapshotName(name) }

  func run() throws { try send(ChangeSnapshot(held: false), to: name, through: daemon) }
}

private func send(
  _ change: ChangeSnapshot, to name: String, through options: DaemonOptions
) throws {
  _ = try options.daemon().send(
    .init("PATCH", snapshotPath(try snapshotName(name)), body: change))
}

struct SnapshotDiff: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "diff", abstract: "Show which ranges changed since a snapshot.",
    discussion: """
      A range of type “zero” reads as zeros in the later state. NBD clients get the same from the
      metadata contexts sluice:changed:SNAP and qemu:dirty-bitmap:SNAP.
      """)

  @Argument(help: .init("The older state.", valueName: "disk@old"))
  var old: String

  @Argument(
    help: .init(
      "The later one, DISK@NEW or DISK; the disk as it is now without it.", valueName: "new"))
  var new: String?

  @Flag(help: "Print an array of JSON objects, in bytes.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    _ = try snapshotName(old)
    _ = try later()
  }

  func run() throws {
    var path = "/v1/diff?from=\(percentEncodedSegment(try snapshotName(old).description))"
    if let new = try later() { path += "&to=\(percentEncodedSegment(new.description))" }
    let daemon = try daemon.daemon()
    let request = ControlClient.Request("GET", path)
    if json { return try Output.write(daemon.send(request)) }
    try Output.print(Self.text(daemon.send(request, as: [Change].self)))
  }

  private func later() throws -> DiskState? {
    guard let new else { return nil }
    do { return try DiskState(new) } catch { throw ValidationError(error.description) }
  }

  static func text(_ changes: [Change]) -> String {
    var table = Table(columns: [
      .init(title: "OFFSET", isNumber: true), .init(title: "LENGTH", isNumber: true),
      .init(title: "TYPE"),
    ])
    table.rows = changes.map { ["\($0.offset)", "\($0.length)", $0.type.rawValue] }
    return table.text
  }
}
