// Finding the daemon: --pool, --api, or the environment.

import ArgumentParser
import ControlAPI
import ControlServer
import Glibc

struct DaemonOptions: ParsableArguments {
  @Option(
    help: .init(
      "The pool's directory, whose daemon is asked (default: $SLUICE_POOL).", valueName: "dir"))
  var pool: String?

  @Option(
    help: .init(
      "The daemon's address, unix:PATH or HOST:PORT (default: $SLUICE_API).", valueName: "addr"))
  var api: String?

  func validate() throws {
    if pool != nil && api != nil {
      throw ValidationError("--pool and --api name the daemon twice: give one of them")
    }
    if let api { _ = try Self.address(api) }
  }

  /// The one that the options name, else the environment.
  func daemon() throws -> Daemon {
    if let api { return Daemon(address: try Self.address(api)) }
    if let pool { return try Self.daemon(ofPool: pool) }
    if let api = Self.environment("SLUICE_API") { return Daemon(address: try Self.address(api)) }
    if let pool = Self.environment("SLUICE_POOL") { return try Self.daemon(ofPool: pool) }
    throw ValidationError(
      "no daemon is named: give --pool DIR or --api ADDR, or set SLUICE_POOL or SLUICE_API")
  }

  private static func address(_ text: String) throws -> ListenAddress {
    do { return try ListenAddress(text) } catch { throw ValidationError(error.description) }
  }

  private static func daemon(ofPool directory: String) throws -> Daemon {
    let address = apiSocket(ofPool: directory)
    do { try address.checkPath() } catch { throw ValidationError(error.description) }
    return Daemon(address: address, pool: directory)
  }

  private static func environment(_ name: String) -> String? {
    guard let value = getenv(name) else { return nil }
    let text = String(cString: value)
    return text.isEmpty ? nil : text
  }
}

/// Where the daemon of the pool in `directory` listens unless it was told otherwise.
package func apiSocket(ofPool directory: String) -> ListenAddress {
  .unix(path: directory.hasSuffix("/") ? "\(directory)api.sock" : "\(directory)/api.sock")
}

/// A daemon to send requests to.
struct Daemon {
  var client: ControlClient
  /// The directory that it was found by.
  var pool: String?

  init(address: ListenAddress, pool: String? = nil) {
    client = ControlClient(address: address)
    self.pool = pool
  }

  func send(_ request: ControlClient.Request) throws -> [UInt8] {
    try explained { try client.send(request) }
  }

  func send<Reply: Decodable>(_ request: ControlClient.Request, as: Reply.Type) throws -> Reply {
    try explained { try client.send(request, as: Reply.self) }
  }

  /// Runs `body`; an error about the address becomes one about the pool that the user named.
  func explained<T>(_ body: () throws -> T) throws -> T {
    do { return try body() } catch let error as ControlClientError {
      guard let pool, case .notServed = error else { throw error }
      var info = stat()
      if stat(pool, &info) != 0 {
        throw CommandError("there is no directory \(pool); check --pool or SLUICE_POOL")
      }
      if stat("\(pool)/pool.json", &info) != 0 {
        throw CommandError(
          "\(pool) is not a pool's directory, it has no pool.json; check --pool or SLUICE_POOL")
      }
      throw CommandError(
        "no daemon serves the pool in \(pool); start it with `sluice serve --pool \(pool)`, "
          + "or give --api ADDR if it listens elsewhere")
    }
  }
}

/// A disk's name as a usage error when it is none.
func diskName(_ text: String, creating: Bool = false) throws -> DiskName {
  do { return creating ? try DiskName(creating: text) : try DiskName(text) } catch {
    throw ValidationError(error.description)
  }
}

/// A size as a usage error when it is none, or outside `range`.
func byteSize(
  _ text: String, of what: String, in range: ClosedRange<UInt64>
) throws -> ByteSize {
  guard let size = ByteSize(text) else {
    throw ValidationError("“\(text)” is not a size of \(what): \(ByteSize.rule)")
  }
  guard range.contains(size.bytes) else {
    throw ValidationError(
      "\(what) of \(size) is out of range: it must be from \(ByteSize(bytes: range.lowerBound)) "
        + "to \(ByteSize(bytes: range.upperBound))")
  }
  return size
}

/// The path of a disk in the API.
func diskPath(_ name: DiskName) -> String { "/v1/disks/\(percentEncodedSegment(name.spelled))" }
