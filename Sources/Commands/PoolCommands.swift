// sluice pool: the options of making, growing, showing and finding pools.

import ArgumentParser
import ControlAPI
import Glibc

/// PATH or PATH:SIZE: a member device or file, made with that size when it does not exist.
package struct MemberPath: Equatable, Sendable {
  package var path: String
  package var size: ByteSize?

  package init(path: String, size: ByteSize? = nil) {
    self.path = path
    self.size = size
  }

  /// - Parameter exists: whether there is something at a path. Names of devices may end in a
  ///   colon and digits (`/dev/disk/by-path/…-scsi-0:0:0:0`); what exists is a path.
  package init(_ text: String, exists: (String) -> Bool = isThere) throws {
    if !exists(text), let colon = text.lastIndex(of: ":"),
      let size = ByteSize(String(text[text.index(after: colon)...]))
    {
      guard size.bytes >= 1 << 20 else {
        throw ValidationError("“\(text)” is too small: a pool's devices have at least 1 MiB")
      }
      self.init(path: String(text[..<colon]), size: size)
    } else {
      self.init(path: text)
    }
    guard !path.isEmpty else { throw ValidationError("“\(text)” has no path: write PATH:SIZE") }
  }

  package static func isThere(_ path: String) -> Bool { access(path, F_OK) == 0 }
}

/// What `pool create` was asked to do, checked.
package struct PoolCreateOptions: Equatable, Sendable {
  package var directory: String
  /// Nil: `vlog.img` in the directory.
  package var log: MemberPath?
  /// Empty: `vspace0.img` in the directory.
  package var space: [MemberPath]
  package var name: String
  /// Whether devices that hold data are taken.
  package var force: Bool
}

package struct PoolCreate: ParsableCommand {
  package static let configuration = CommandConfiguration(
    commandName: "create", abstract: "Make a pool.",
    discussion: """
      Without --log and --space, files in DIR are made: a log of 10 GiB or a tenth of the file
      system's free space, whichever is less, and a sparse vSpace of 1 TiB.
      """)

  /// The longest name of a pool, in bytes.
  static let maximumName = 63

  @Argument(help: .init("The pool's directory, which is made.", valueName: "dir"))
  var directory: String

  @Option(help: .init("The log's device or file.", valueName: "path[:size]"))
  var log: String?

  @Option(help: .init("A device or file of the space; may repeat.", valueName: "path[:size]"))
  var space: [String] = []

  @Option(help: "The pool's name (default: the directory's).")
  var name: String?

  @Flag(help: "Take devices and files that hold data; it is lost.")
  var force = false

  package init() {}

  package func validate() throws { _ = try options() }

  package func run() throws { try createPool(options()) }

  /// The options as one value. Throws a `ValidationError` that says which is wrong and why.
  package func options() throws -> PoolCreateOptions {
    let name = name ?? directory.split(separator: "/").last.map(String.init) ?? ""
    let rule = "1 to \(Self.maximumName) letters, digits, “.”, “_”, “-”"
    guard let checked = try? DiskName(creating: name), !checked.spelled.contains("/"),
      name.utf8.count <= Self.maximumName
    else { throw ValidationError("a pool can't be named “\(name)”: give --name with \(rule)") }
    let options = PoolCreateOptions(
      directory: directory, log: try log.map { try MemberPath($0) },
      space: try space.map { try MemberPath($0) }, name: name, force: force)
    var seen: Set<String> = []
    for member in [options.log].compactMap(\.self) + options.space
    where !seen.insert(member.path).inserted {
      throw ValidationError("\(member.path) is given twice")
    }
    return options
  }
}

/// What `pool add` was asked to do, checked.
package struct PoolAddOptions: Equatable, Sendable {
  package var directory: String
  package var space: MemberPath
  package var force: Bool
}

package struct PoolAdd: ParsableCommand {
  package static let configuration = CommandConfiguration(
    commandName: "add", abstract: "Add space to a pool, also while it is served.")

  @Argument(help: .init("The pool's directory.", valueName: "dir"))
  var directory: String

  @Option(help: .init("The new device or file.", valueName: "path[:size]"))
  var space: String

  @Flag(help: "Take it although it holds data, which is lost.")
  var force = false

  package init() {}

  package func validate() throws { _ = try options() }

  package func run() throws { try addToPool(options()) }

  package func options() throws -> PoolAddOptions {
    PoolAddOptions(directory: directory, space: try MemberPath(space), force: force)
  }
}

package struct PoolShow: ParsableCommand {
  package static let configuration = CommandConfiguration(
    commandName: "show", abstract: "Show a pool's devices and what their labels say.")

  @Argument(help: .init("The pool's directory.", valueName: "dir"))
  package var directory: String

  @Flag(help: "Print it as JSON.")
  package var json = false

  package init() {}

  package func run() throws { try showPool(directory, json: json) }
}

package struct PoolScan: ParsableCommand {
  package static let configuration = CommandConfiguration(
    commandName: "scan", abstract: "Find pools by the labels on devices and files.")

  @Argument(
    help: .init("Devices or files (default: this host's block devices).", valueName: "device"))
  package var devices: [String] = []

  @Flag(help: "Print them as JSON.")
  package var json = false

  package init() {}

  package func run() throws { try scanForPools(devices, json: json) }
}

package struct PoolOpen: ParsableCommand {
  package static let configuration = CommandConfiguration(
    commandName: "open", abstract: "Make the directory of a pool that its devices' labels describe."
  )

  @Argument(help: .init("The directory, which is made.", valueName: "dir"))
  package var directory: String

  @Argument(help: .init("All devices and files of the pool.", valueName: "device"))
  package var devices: [String]

  package init() {}

  package func run() throws { try openPool(directory, devices: devices) }
}

package struct PoolList: ParsableCommand {
  package static let configuration = CommandConfiguration(
    commandName: "list", abstract: "List the pools on this host's block devices.",
    discussion: "The same as `sluice pool scan` without devices.")

  @Flag(help: "Print them as JSON.")
  package var json = false

  package init() {}

  package func run() throws { try scanForPools([], json: json) }
}

struct PoolCommands: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "pool", abstract: "Make, grow, show and find pools.",
    subcommands: [
      PoolCreate.self, PoolAdd.self, PoolShow.self, PoolList.self, PoolScan.self, PoolOpen.self,
    ])
}
