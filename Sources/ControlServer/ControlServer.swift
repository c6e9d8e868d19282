// The daemon's HTTP server: Hummingbird on one event-loop thread, on any number of addresses.
//
// Limits, per address: 256 connections, 80 KiB of headers, bodies of 1 MiB; a connection on which
// nothing is asked, or a request does not go on, is closed after a minute. Replies are written as
// fast as the client reads.

import ControlAPI
import Glibc
import Hummingbird
import HummingbirdCore
import Logging
import NIOCore
import NIOPosix
import ServiceLifecycle
import Synchronization

/// Why the server could not start; the description says what to do.
package enum ControlServerError: Error, Equatable, Sendable, CustomStringConvertible {
  case inUse(ListenAddress)
  case cannotListen(ListenAddress, reason: String)

  package var description: String {
    switch self {
    case .inUse(let address):
      "another program listens on \(address) already; stop it, or choose another address"
    case .cannotListen(let address, let reason):
      "can't listen on \(address): \(reason); choose another address with --api"
    }
  }
}

/// The one thread of all servers and clients of this process. It is never shut down: Hummingbird
/// still uses it for a moment after a server has ended.
let eventLoops = MultiThreadedEventLoopGroup(numberOfThreads: 1)

package final class ControlServer: Sendable {
  private static let maximumConnections = 256
  private static let idleTimeout = TimeAmount.seconds(60)
  /// How long `stop` lets requests in flight finish.
  private static let stopTimeout = TimeAmount.seconds(5)

  private let service: ControlService
  private let addresses: [ListenAddress]
  private let running = Mutex<Running?>(nil)

  private struct Running {
    var services: ServiceGroup
    var bound: BoundAddresses
    var ended: EventLoopFuture<Void>
  }

  /// - Parameter addresses: at least one; port 0 takes any free port.
  package init(service: ControlService, addresses: [ListenAddress]) {
    self.service = service
    self.addresses = addresses
  }

  /// Listens on all addresses or on none, and serves until `stop`. UNIX sockets get mode 0660; one
  /// that a daemon left behind is replaced. Call it once, never from a task: it blocks.
  ///
  /// - Returns: the addresses, with the ports that were taken.
  package func start() throws -> [ListenAddress] {
    for address in addresses {
      try address.checkPath()
      if case .unix(let path) = address, isAnswered(path) {
        throw ControlServerError.inUse(address)
      }
    }
    let ready = eventLoops.next().makePromise(of: [ListenAddress].self)
    let ended = eventLoops.next().makePromise(of: Void.self)
    let bound = BoundAddresses(addresses, allBound: ready)
    let services = makeServices(bound: bound, ready: ready)
    running.withLock {
      $0 = Running(services: services, bound: bound, ended: ended.futureResult)
    }
    // The mode must be right from the first moment, and bind(2) takes it from the umask.
    let old = umask(0o117)
    defer { umask(old) }
    Task {
      do { try await services.run() } catch { ready.fail(error) }
      ended.succeed()
    }
    do {
      return try ready.futureResult.wait()
    } catch {
      stop()
      throw error
    }
  }

  /// Takes no more requests, lets those in flight finish (at most 5 s) and removes the sockets.
  /// Stop the engine first, so that a scrub does not hold it up. Never from a task: it blocks.
  package func stop() {
    guard let running = running.withLock({ $0.take() }) else { return }
    Task { await running.services.triggerGracefulShutdown() }
    let finished = eventLoops.next().makePromise(of: Void.self)
    running.ended.cascade(to: finished)
    let timeout = eventLoops.next().scheduleTask(in: Self.stopTimeout) { finished.succeed() }
    try? finished.futureResult.wait()
    timeout.cancel()
    for case .unix(let path) in running.bound.addresses { unlink(path) }
  }

  private func makeServices(
    bound: BoundAddresses, ready: EventLoopPromise<[ListenAddress]>
  ) -> ServiceGroup {
    // The caller reports failures; the libraries' own log lines would only repeat them.
    var logger = Logger(label: "sluice.api") { StreamLogHandler.standardError(label: $0) }
    logger.logLevel = .critical
    let routes = Routes(service: service)
    let listeners = addresses.enumerated().map { index, address in
      let application = Application(
        router: routes.router(listeningAt: address),
        server: .http1(configuration: .init(idleTimeout: Self.idleTimeout)),
        configuration: .init(
          address: address.bindAddress,
          availableConnectionsDelegate: MaximumAvailableConnections(
            Self.maximumConnections, logger: logger)),
        onServerRunning: { bound.set(index, port: $0.localAddress?.port) },
        eventLoopGroupProvider: .shared(eventLoops), logger: logger)
      return Listener(application: application, address: address, ready: ready)
    }
    return ServiceGroup(configuration: .init(services: listeners, logger: logger))
  }
}

/// One address; says which one it was when it fails.
private struct Listener<Responder: HTTPResponder>: Service
where Responder.Context == BasicRequestContext {
  var application: Application<Responder>
  var address: ListenAddress
  var ready: EventLoopPromise<[ListenAddress]>

  func run() async throws {
    do {
      try await application.run()
    } catch {
      // The first failure is the cause; those of listeners that stop because of it come later.
      ready.fail(explain(error))
      throw error
    }
  }

  private func explain(_ error: any Error) -> ControlServerError {
    switch error {
    case let error as IOError where error.errnoCode == EADDRINUSE: .inUse(address)
    case let error as IOError:
      .cannotListen(address, reason: String(cString: strerror(error.errnoCode)))
    case is SocketAddressError.UnknownHost:
      .cannotListen(address, reason: "the host is not known")
    case is UnixDomainSocketPathWrongType:
      .cannotListen(address, reason: "there is a file that is not a socket")
    default: .cannotListen(address, reason: "\(error)")
    }
  }
}

/// Gathers the addresses as they are bound.
private final class BoundAddresses: Sendable {
  private let state: Mutex<[ListenAddress?]>
  private let allBound: EventLoopPromise<[ListenAddress]>
  private let asked: [ListenAddress]

  init(_ asked: [ListenAddress], allBound: EventLoopPromise<[ListenAddress]>) {
    state = Mutex(asked.map { _ in nil })
    self.allBound = allBound
    self.asked = asked
  }

  /// Those that are bound, with their ports.
  var addresses: [ListenAddress] { state.withLock { $0.compactMap(\.self) } }

  func set(_ index: Int, port: Int?) {
    state.withLock { bound in
      if case .tcp(let host, let asked) = asked[index] {
        bound[index] = .tcp(host: host, port: port ?? asked)
      } else if case .unix(let path) = asked[index] {
        // Against a umask that another thread set meanwhile.
        chmod(path, 0o660)
        bound[index] = asked[index]
      }
    }
    let bound = addresses
    if bound.count == asked.count { allBound.succeed(bound) }
  }
}

extension ListenAddress {
  fileprivate var bindAddress: BindAddress {
    switch self {
    case .unix(let path): .unixDomainSocket(path: path)
    case .tcp(let host, let port): .hostname(host, port: port)
    }
  }
}

/// Whether a program accepts connections on the UNIX socket at `path`.
package func isAnswered(_ path: String) -> Bool {
  let socket = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
  guard socket >= 0 else { return false }
  defer { close(socket) }
  var address = sockaddr_un()
  address.sun_family = sa_family_t(AF_UNIX)
  let bytes = Array(path.utf8)
  guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return false }
  withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
  return withUnsafePointer(to: &address) {
    $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      connect(socket, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) == 0
    }
  }
}
