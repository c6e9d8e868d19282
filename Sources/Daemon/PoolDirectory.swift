import Core
import DeviceIO
import FoundationEssentials
import Glibc

/// Why a pool can't be made or opened; `description` is a plain sentence with what to do.
package struct PoolError: Error, Equatable, Sendable, CustomStringConvertible {
  package var description: String
  package init(_ description: String) { self.description = description }
}

/// `pool.json`: a hint where the member devices are on this host. The labels on the devices are
/// the truth; a wrong hint is found out and refused, and `pool open` writes it anew.
package struct PoolDirectory: Codable, Equatable, Sendable {
  package var uuid: String
  package var name: String
  package var log: String
  /// In the order of the volumes' indices.
  package var space: [String]

  package init(uuid: String, name: String, log: String, space: [String]) {
    self.uuid = uuid
    self.name = name
    self.log = log
    self.space = space
  }

  static func file(_ directory: String) -> String { directory + "/pool.json" }

  /// Reads the hint of the pool in `directory`; relative paths in it start there.
  package init(readingFrom directory: String) throws(PoolError) {
    let path = Self.file(directory)
    guard let data = FileManager.default.contents(atPath: path) else {
      throw PoolError(
        "there is no pool in “\(directory)” (no pool.json); make one with `sluice pool create`, or "
          + "find it with `sluice pool scan`")
    }
    do { self = try JSONDecoder().decode(Self.self, from: data) } catch {
      throw PoolError(
        "“\(path)” is damaged; write it anew with `sluice pool open \(directory) DEVICE...`")
    }
  }

  /// Writes the hint: all of it or nothing, durable.
  package func write(to directory: String) throws(PoolError) {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    let temporary = Self.file(directory) + ".new"
    do {
      let data = try encoder.encode(self)
      let fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
      guard fd >= 0 else { throw PoolError(errorText(errno)) }
      defer { close(fd) }
      let written = data.withUnsafeBytes { Glibc.write(fd, $0.baseAddress!, $0.count) }
      guard written == data.count, fsync(fd) == 0, rename(temporary, Self.file(directory)) == 0
      else { throw PoolError(errorText(errno)) }
    } catch {
      throw PoolError("“\(Self.file(directory))” can't be written: \(error); check the directory")
    }
  }

  /// A member's path as it is opened.
  package static func resolve(_ path: String, in directory: String) -> String {
    path.hasPrefix("/") ? path : directory + "/" + path
  }

  /// What the hint says of a device given as `path`: relative for files in the directory, so that
  /// it can be moved, else absolute.
  package static func hint(for path: String, in directory: String) -> String {
    let inside = directory + "/"
    if path.hasPrefix(inside), !path.dropFirst(inside.count).contains("/") {
      return String(path.dropFirst(inside.count))
    }
    guard !path.hasPrefix("/"), let real = realpath(path, nil) else { return path }
    defer { free(real) }
    return String(cString: real)
  }
}
