// sluice disk: what is asked about disks and done with them as a whole.

import ArgumentParser
import ControlAPI
import ControlServer

struct DiskCommands: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "disk", abstract: "Create, list, change and delete disks.",
    discussion: """
      A NAME is a path: segments of letters, digits, “.”, “_”, “-”, joined by “/”, at most 255
      bytes each. Names that other clients made are shown and taken percent-encoded.
      """,
    subcommands: [
      DiskCreate.self, DiskList.self, DiskShow.self, DiskRename.self, DiskResize.self,
      DiskSet.self, DiskDelete.self,
    ])
}

/// The sizes that a disk may have, in bytes: one sector to 4 PiB.
let diskSizes: ClosedRange<UInt64> = 512...(1 << 52)

/// Reads a disk's size and rounds it up to whole sectors.
///
/// - Returns: the size, and a notice to print when it was rounded.
func diskSize(_ text: String) throws -> (size: ByteSize, notice: String?) {
  let asked = try byteSize(text, of: "a disk", in: 1...diskSizes.upperBound)
  let size = asked.roundedUpToSector
  let notice = "the size was rounded up to whole 512-byte sectors, \(size.bytes) bytes"
  return (size, size == asked ? nil : notice)
}

struct DiskCreate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Create an empty disk; it takes no space until written to.")

  @Argument(help: "The new disk's name.")
  var name: String

  @Option(help: "Its size, such as 64G; rounded up to 512 bytes.")
  var size: String

  @Flag(help: "Print the disk as JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    _ = try diskName(name, creating: true)
    _ = try diskSize(size)
  }

  func run() throws {
    let (size, notice) = try diskSize(size)
    let body = CreateDisk(name: try diskName(name, creating: true).spelled, size: size.bytes)
    let reply = try daemon.daemon().send(.init("POST", "/v1/disks", body: body))
    if let notice { Output.report(notice) }
    if json { try Output.write(reply) }
  }
}

struct DiskList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List the disks, sorted by name.")

  @Flag(help: "Print an array of JSON objects, in no particular order.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func run() throws {
    let daemon = try daemon.daemon()
    let request = ControlClient.Request("GET", "/v1/disks")
    let reply = try daemon.send(request)
    if json { return try Output.write(reply) }
    guard let disks = try? Disk.list(decoding: reply) else { throw CommandError.notUnderstood }
    var table = Table(columns: [
      .init(title: "NAME"), .init(title: "SIZE", isNumber: true),
      .init(title: "USED", isNumber: true), .init(title: "EXCLUSIVE", isNumber: true),
      .init(title: "SNAPSHOTS", isNumber: true), .init(title: "CLIENTS", isNumber: true),
      .init(title: "NOTES"),
    ])
    table.rows = disks.sorted { $0.name < $1.name }.map { disk in
      [
        disk.name, "\(ByteSize(bytes: disk.size))", "\(ByteSize(bytes: disk.used))",
        "\(ByteSize(bytes: disk.exclusive))", "\(disk.snapshots)", "\(disk.connections)",
        notes(on: disk),
      ]
    }
    try Output.print(table.text)
  }

  /// What is not as with most disks.
  private func notes(on disk: Disk) -> String {
    var notes: [String] = []
    if disk.readOnly { notes.append("read-only") }
    if disk.durability == .flush { notes.append("durable on flush") }
    if let origin = disk.origin { notes.append("clone of \(origin)") }
    if !disk.comment.isEmpty { notes.append(printable(disk.comment)) }
    return notes.joined(separator: ", ")
  }
}

/// A comment without what would move a terminal's cursor.
func printable(_ text: String) -> String {
  String(
    String.UnicodeScalarView(
      text.unicodeScalars.map { $0.properties.generalCategory == .control ? " " : $0 }))
}

struct DiskShow: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "show", abstract: "Show one disk.")

  @Argument(help: "The disk's name.")
  var name: String

  @Flag(help: "Print it as JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws { _ = try diskName(name) }

  func run() throws {
    let daemon = try daemon.daemon()
    let request = ControlClient.Request("GET", diskPath(try diskName(name)))
    if json { return try Output.write(daemon.send(request)) }
    let disk = try daemon.send(request, as: Disk.self)
    try Output.print(
      labelled([
        ("name", disk.name), ("id", disk.id),
        ("size", "\(ByteSize(bytes: disk.size)) (\(disk.size) bytes)"),
        ("used", "\(ByteSize(bytes: disk.used))"),
        ("exclusive", "\(ByteSize(bytes: disk.exclusive))"), ("origin", disk.origin ?? "none"),
        ("created", disk.created), ("snapshots", "\(disk.snapshots)"),
        ("connections", "\(disk.connections)"), ("generation", "\(disk.generation)"),
        ("read only", disk.readOnly ? "on" : "off"), ("durability", disk.durability.rawValue),
        ("comment", printable(disk.comment)),
      ]))
  }
}

struct DiskDelete: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete", abstract: "Delete a disk; its space is given back behind the scenes.")

  @Argument(help: "The disk's name.")
  var name: String

  @Flag(help: "Delete its snapshots as well; clones of them live on.")
  var snapshots = false

  @Flag(help: "Delete it although clients are connected.")
  var force = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws { _ = try diskName(name) }

  func run() throws {
    let path = "\(diskPath(try diskName(name)))?snapshots=\(snapshots)&force=\(force)"
    _ = try daemon.daemon().send(.init("DELETE", path))
  }
}
