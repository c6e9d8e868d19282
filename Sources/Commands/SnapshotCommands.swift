// sluice snapshot: taking, listing and deleting them.

import ArgumentParser
import ControlAPI
import ControlServer

struct SnapshotCommands: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "snapshot", abstract: "Take, list, compare, roll back to and delete snapshots.",
    discussion: """
      A snapshot is written DISK@SNAP. SNAP is 1 to 255 letters, digits, “.”, “_” and “-”, and
      neither “.” nor “..”. NBD clients open DISK@SNAP read-only.
      """,
    subcommands: [
      SnapshotCreate.self, SnapshotList.self, SnapshotDelete.self, SnapshotRollback.self,
      SnapshotRename.self, SnapshotHold.self, SnapshotRelease.self, SnapshotDiff.self,
    ])
}

/// A snapshot's name as a usage error when it is none.
func snapshotName(_ text: String) throws -> DiskSnapshot {
  do { return try DiskSnapshot(text) } catch { throw ValidationError(error.description) }
}

/// The path of a snapshot in the API.
func snapshotPath(_ name: DiskSnapshot) -> String {
  "/v1/snapshots/\(percentEncodedSegment(name.description))"
}

struct SnapshotCreate: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Take snapshots, all at one instant or none.",
    usage: """
      sluice snapshot create <DISK@SNAP> ... [options]
      sluice snapshot create <SNAP> <DISK> ... [options]
      """,
    discussion: """
      With --quiesce the file systems of guests are frozen before and thawed after. A SOCKET is
      where a guest's QEMU guest agent is reached on this host. When a guest can't be frozen in
      time, none is left frozen and no snapshot is taken.
      """)

  /// In seconds.
  static let timeouts: ClosedRange<Double> = 0.1...600

  @Argument(help: .init("DISK@SNAP, one or more; or SNAP, then disks.", valueName: "name"))
  var names: [String] = []

  @Option(
    parsing: .upToNextOption,
    help: .init("Freeze these guests' file systems meanwhile; may repeat.", valueName: "socket"))
  var quiesce: [String] = []

  @Option(help: .init("How long freezing all of them may take.", valueName: "seconds"))
  var quiesceTimeout: Double = 10

  @Flag(help: "Print the names of the snapshots as JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    _ = try snapshots()
    guard Self.timeouts.contains(quiesceTimeout) else {
      throw ValidationError(
        "--quiesce-timeout is a number of seconds from \(Self.timeouts.lowerBound) to "
          + "\(Int(Self.timeouts.upperBound))")
    }
    var seen: Set<String> = []
    for socket in sockets {
      guard !socket.isEmpty else { throw ValidationError("--quiesce needs a socket's path") }
      do { try ListenAddress.unix(path: socket).checkPath() } catch {
        throw ValidationError(error.description)
      }
      guard seen.insert(socket).inserted else {
        throw ValidationError("the socket \(socket) is given twice")
      }
    }
  }

  func run() throws {
    let names = try snapshots()
    let request = try ControlClient.Request(
      "POST", "/v1/snapshots", body: CreateSnapshots(snapshots: names.map(\.description)))
    let daemon = try daemon.daemon()
    let reply: [UInt8]
    if sockets.isEmpty {
      reply = try daemon.send(request)
    } else {
      reply = try whileQuiesced(sockets, timeoutSeconds: quiesceTimeout) { interrupt in
        try daemon.send(request, until: interrupt)
      }
    }
    if json { try Output.write(reply) }
  }

  /// `--quiesce` takes all words up to the next option. What is DISK@SNAP by its form is no
  /// socket's path, unless that is relative, which a “./” before it makes clear.
  private var sockets: [String] { quiesce.filter { (try? DiskSnapshot($0)) == nil } }

  private func snapshots() throws -> [DiskSnapshot] {
    let words = names + quiesce.filter { (try? DiskSnapshot($0)) != nil }
    guard let first = words.first else {
      throw ValidationError(
        quiesce.isEmpty
          ? "no snapshot is named: write DISK@SNAP"
          : "no snapshot is named: write DISK@SNAP, before --quiesce and its sockets")
    }
    var found: [DiskSnapshot] = []
    if first.contains("@") {
      found = try words.map(snapshotName)
    } else {
      guard words.count > 1 else {
        throw ValidationError("“\(first)” names no snapshot: write DISK@SNAP, or SNAP and disks")
      }
      for disk in words.dropFirst() {
        let disk = try diskName(disk)
        do { found.append(try DiskSnapshot(disk: disk, snapshot: first)) } catch {
          throw ValidationError(error.description)
        }
      }
    }
    var seen: Set<DiskSnapshot> = []
    for name in found where !seen.insert(name).inserted {
      throw ValidationError("“\(name)” is named twice: name each snapshot once")
    }
    return found
  }
}

struct SnapshotList: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List snapshots: by disk, the oldest first.")

  @Argument(help: "A disk's name; all disks without it.")
  var disk: String?

  @Flag(help: "Print an array of JSON objects; disks are in no particular order.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    if let disk { _ = try diskName(disk) }
  }

  func run() throws {
    let daemon = try daemon.daemon()
    var path = "/v1/snapshots"
    if let disk { path += "?disk=\(percentEncodedSegment(try diskName(disk).spelled))" }
    let request = ControlClient.Request("GET", path)
    if json { return try Output.write(daemon.send(request)) }
    try Output.print(Self.text(daemon.send(request, as: [Snapshot].self)))
  }

  static func text(_ snapshots: [Snapshot]) -> String {
    var table = Table(columns: [
      .init(title: "SNAPSHOT"), .init(title: "CREATED"), .init(title: "SIZE", isNumber: true),
      .init(title: "USED", isNumber: true), .init(title: "EXCLUSIVE", isNumber: true),
      .init(title: "CLONES", isNumber: true), .init(title: "NOTES"),
    ])
    // Within a disk they come in order, which a stable sort keeps.
    let sorted = snapshots.enumerated().sorted {
      ($0.element.disk, $0.offset) < ($1.element.disk, $1.offset)
    }
    table.rows = sorted.map { _, snapshot in
      [
        "\(snapshot.disk)@\(snapshot.name)", snapshot.created,
        "\(ByteSize(bytes: snapshot.size))", "\(ByteSize(bytes: snapshot.used))",
        "\(ByteSize(bytes: snapshot.exclusive))", "\(snapshot.clones)", notes(on: snapshot),
      ]
    }
    return table.text
  }

  private static func notes(on snapshot: Snapshot) -> String {
    var notes: [String] = []
    if snapshot.held { notes.append("held") }
    if snapshot.group != snapshot.id { notes.append("group \(snapshot.group)") }
    return notes.joined(separator: ", ")
  }
}

struct SnapshotDelete: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "delete",
    abstract: "Delete a snapshot; its space is given back behind the scenes.",
    discussion: "Clones of it live on.")

  @Argument(help: .init("The snapshot.", valueName: "disk@snap"))
  var name: String

  @OptionGroup var daemon: DaemonOptions

  func validate() throws { _ = try snapshotName(name) }

  func run() throws {
    _ = try daemon.daemon().send(.init("DELETE", snapshotPath(try snapshotName(name))))
  }
}
