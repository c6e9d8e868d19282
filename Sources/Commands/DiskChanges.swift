// sluice disk rename, resize, set: changes to one disk.

import ArgumentParser
import ControlAPI
import ControlServer

struct DiskRename: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "rename", abstract: "Give a disk another name; connected clients go on.")

  @Argument(help: "The disk's name.")
  var name: String

  @Argument(help: "Its new name.")
  var new: String

  @Flag(help: "Print the disk as JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    _ = try diskName(name)
    _ = try diskName(new, creating: true)
  }

  func run() throws {
    let body = ChangeDisk(name: try diskName(new, creating: true).spelled)
    try send(body, to: name, through: daemon, json: json)
  }
}

struct DiskResize: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "resize", abstract: "Change a disk's size; clients see it when they connect anew.")

  @Argument(help: "The disk's name.")
  var name: String

  @Argument(help: "Its new size, such as 128G; rounded up to 512 bytes.")
  var size: String

  @Flag(help: "Make it smaller: what lies behind the new end is lost.")
  var shrink = false

  @Flag(help: "Shrink it although clients are connected.")
  var force = false

  @Flag(help: "Print the disk as JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    _ = try diskName(name)
    _ = try diskSize(size)
    if force && !shrink { throw ValidationError("--force goes with --shrink") }
  }

  func run() throws {
    let (size, notice) = try diskSize(size)
    let body = ChangeDisk(size: size.bytes, shrink: shrink, force: force)
    try send(body, to: name, through: daemon, json: json)
    if let notice { Output.report(notice) }
  }
}

struct DiskSet: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "set", abstract: "Set attributes of a disk.",
    discussion: """
      durability=always|flush  when writes are acknowledged: on stable storage, or when written
      read_only=on|off         whether writes are refused
      comment=TEXT             at most 512 bytes
      """)

  @Argument(help: "The disk's name.")
  var name: String

  @Argument(help: "KEY=VALUE, one or more.")
  var attributes: [String]

  @Flag(help: "Print the disk as JSON.")
  var json = false

  @OptionGroup var daemon: DaemonOptions

  func validate() throws {
    _ = try diskName(name)
    _ = try change()
  }

  func run() throws { try send(change(), to: name, through: daemon, json: json) }

  private func change() throws -> ChangeDisk {
    var change = ChangeDisk()
    var seen: Set<Substring> = []
    for attribute in attributes {
      guard let equals = attribute.firstIndex(of: "=") else {
        throw ValidationError("“\(attribute)” is not of the form KEY=VALUE")
      }
      let key = attribute[..<equals]
      guard seen.insert(key).inserted else { throw ValidationError("“\(key)” is given twice") }
      try Self.set(key, to: String(attribute[attribute.index(after: equals)...]), in: &change)
    }
    return change
  }

  private static func set(
    _ key: Substring, to value: String, in change: inout ChangeDisk
  ) throws {
    switch (key, value) {
    case ("durability", _):
      change.durability = DiskDurability(rawValue: value)
      if change.durability == nil {
        throw ValidationError("durability is always or flush, not “\(value)”")
      }
    case ("read_only", "on"): change.readOnly = true
    case ("read_only", "off"): change.readOnly = false
    case ("read_only", _): throw ValidationError("read_only is on or off, not “\(value)”")
    case ("comment", _):
      guard value.utf8.count <= maximumCommentBytes else {
        throw ValidationError("a comment has at most \(maximumCommentBytes) bytes")
      }
      change.comment = value
    default:
      throw ValidationError("there is no attribute “\(key)”: use durability, read_only or comment")
    }
  }
}

private func send(
  _ change: ChangeDisk, to name: String, through options: DaemonOptions, json: Bool
) throws {
  let path = diskPath(try diskName(name))
  let reply = try options.daemon().send(.init("PATCH", path, body: change))
  if json { try Output.write(reply) }
}
