// sluice serve: the daemon's options, read and checked as a whole before anything is opened.

import ArgumentParser
import ControlAPI

/// What `serve` was asked to do, checked.
package struct ServeOptions: Equatable, Sendable {
  /// The pool's directory as it was given.
  package var pool: String
  /// Where NBD is served; at least one, each once.
  package var nbd: [ListenAddress]
  /// Where the API is served; at least one, each once.
  package var api: [ListenAddress]
  package var cache: ByteSize
  /// The durability of every disk that has not its own.
  package var durability: DiskDurability
  /// For measuring: runs of data are so long at most, each in another allocation group.
  package var scatteredRun: Int?
}

package struct ServeCommand: ParsableCommand {
  package static let configuration = CommandConfiguration(
    commandName: "serve", abstract: "Serve a pool until SIGTERM.",
    discussion: """
      Prints “ready” when clients can connect. An ADDR is unix:PATH or HOST:PORT; the default is
      nbd.sock and api.sock in the pool's directory. Killing the daemon is safe at any moment.
      """)

  /// In bytes: what a cache may take of the 1 GiB that the daemon has in all.
  static let cacheSizes: ClosedRange<UInt64> = (1 << 20)...(512 << 20)

  @Option(help: .init("The pool's directory.", valueName: "dir"))
  var pool: String

  @Option(help: .init("Serve NBD here, instead of DIR/nbd.sock; may repeat.", valueName: "addr"))
  var nbd: [String] = []

  @Option(
    help: .init("Serve the API here, instead of DIR/api.sock; may repeat.", valueName: "addr"))
  var api: [String] = []

  @Option(help: "Memory for the read cache.")
  var cache = "100M"

  @Option(help: .init("When writes are acknowledged: always or flush.", valueName: "when"))
  var durability = "always"

  @Flag(help: "Listen beyond this host although nothing protects the connections.")
  var insecure = false

  @Option(help: .hidden) var scatter: Int?

  package init() {}

  package func validate() throws { _ = try options() }

  package func run() throws { try runServe(options()) }

  /// The options as one value. Throws a `ValidationError` that says which is wrong and why.
  package func options() throws -> ServeOptions {
    guard !pool.isEmpty else { throw ValidationError("--pool needs a directory") }
    guard let durability = DiskDurability(rawValue: durability) else {
      throw ValidationError("durability is always or flush, not “\(durability)”")
    }
    let options = ServeOptions(
      pool: pool, nbd: try addresses(nbd, default: nbdSocket(ofPool: pool)),
      api: try addresses(api, default: apiSocket(ofPool: pool)),
      cache: try byteSize(cache, of: "a cache", in: Self.cacheSizes), durability: durability,
      scatteredRun: scatter.map { max($0, 1) })
    var seen: Set<ListenAddress> = []
    for address in options.nbd + options.api where !seen.insert(address).inserted {
      throw ValidationError("the address \(address) is given twice")
    }
    return options
  }

  private func addresses(
    _ texts: [String], default standard: ListenAddress
  ) throws -> [ListenAddress] {
    do {
      let addresses = try texts.isEmpty ? [standard] : texts.map { try ListenAddress($0) }
      for address in addresses {
        try address.checkPath()
        guard address.isLocal || insecure else {
          throw ValidationError(
            "\(address) can be reached from other hosts and nothing protects it: "
              + "use a loopback address, or add --insecure if that is meant")
        }
      }
      return addresses
    } catch let error as AddressError {
      throw ValidationError(error.description)
    }
  }
}

/// Where the pool in `directory` serves NBD unless it is told otherwise.
package func nbdSocket(ofPool directory: String) -> ListenAddress {
  .unix(path: directory.hasSuffix("/") ? "\(directory)nbd.sock" : "\(directory)/nbd.sock")
}
