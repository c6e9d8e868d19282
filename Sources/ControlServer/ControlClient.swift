// The command line's HTTP client: one request a connection, blocking, on one event-loop thread.

import ControlAPI
import Glibc
import NIOCore
import NIOHTTP1
import NIOPosix

/// Why a request got no reply that can be used; the description says what to do.
package enum ControlClientError: Error, Equatable, Sendable, CustomStringConvertible {
  case notServed(ListenAddress)
  case noPermission(ListenAddress)
  case cannotConnect(ListenAddress, reason: String)
  case timedOut(ListenAddress)
  case connectionLost(ListenAddress)
  case notUnderstood(ListenAddress)

  package var description: String {
    switch self {
    case .notServed(let address):
      "no daemon answers at \(address); start one with `sluice serve --pool DIR`, "
        + "or name the right one with --pool or --api"
    case .noPermission(let address):
      "there is no permission to use \(address); run this as the daemon's user or group"
    case .cannotConnect(let address, let reason):
      "can't connect to \(address): \(reason); check --pool, --api, SLUICE_POOL and SLUICE_API"
    case .timedOut(let address):
      "the daemon at \(address) does not answer; check that it is not stopped or overloaded"
    case .connectionLost(let address):
      "the daemon at \(address) broke the connection; check that it still runs, then try again"
    case .notUnderstood(let address):
      "what answers at \(address) is not a Sluice daemon of this version; check the address"
    }
  }
}

package struct ControlClient: Sendable {
  package struct Request: Sendable {
    package var method: String
    package var path: String
    package var body: [UInt8]?
    /// Whether the reply may take any time, because the work does.
    package var isLong = false

    package init(_ method: String, _ path: String) {
      self.method = method
      self.path = path
    }

    package init(_ method: String, _ path: String, body: some Encodable) throws {
      self.init(method, path)
      self.body = try JSONText.encode(body)
    }
  }

  private let address: ListenAddress
  private let timeout: TimeAmount

  /// - Parameter timeoutSeconds: how long a connection, and any part of a reply, may take.
  package init(address: ListenAddress, timeoutSeconds: Int64 = 60) {
    self.address = address
    timeout = .seconds(timeoutSeconds)
  }

  /// The reply's body. Throws the daemon's `Problem`, or a `ControlClientError`. It blocks.
  package func send(_ request: Request) throws -> [UInt8] { try begin(request).wait() }

  /// The reply's body as `Reply`.
  package func send<Reply: Decodable>(_ request: Request, as: Reply.Type) throws -> Reply {
    let body = try send(request)
    do { return try JSONText.decode(Reply.self, from: body) } catch {
      throw ControlClientError.notUnderstood(address)
    }
  }

  /// Sends a request and goes on; the future fails as `send` throws.
  package func begin(_ request: Request) throws -> EventLoopFuture<[UInt8]> {
    try address.checkPath()
    let reply = eventLoops.next().makePromise(of: HTTPReply.self)
    let timeout = timeout
    let bootstrap = ClientBootstrap(group: eventLoops).connectTimeout(min(timeout, .seconds(10)))
      .channelInitializer { channel in
        channel.eventLoop.makeCompletedFuture {
          let pipeline = channel.pipeline.syncOperations
          try pipeline.addHTTPClientHandlers()
          if !request.isLong { try pipeline.addHandler(IdleStateHandler(readTimeout: timeout)) }
          try pipeline.addHandler(ReplyCollector(reply))
        }
      }
    let connected =
      switch address {
      case .unix(let path): bootstrap.connect(unixDomainSocketPath: path)
      case .tcp(let host, let port): bootstrap.connect(host: host, port: port)
      }
    let address = address
    connected.whenFailure { reply.fail(Self.explain(connecting: $0, to: address)) }
    connected.whenSuccess { Self.write(request, to: $0, host: address) }
    return reply.futureResult.flatMapThrowing { try Self.body(of: $0, from: address) }
      .flatMapErrorThrowing { throw Self.explain($0, from: address) }
  }

  private static func write(_ request: Request, to channel: any Channel, host: ListenAddress) {
    var headers = HTTPHeaders([("Connection", "close"), ("Accept", "application/json")])
    switch host {
    case .unix: headers.add(name: "Host", value: "localhost")
    case .tcp: headers.add(name: "Host", value: host.description)
    }
    if let body = request.body {
      headers.add(name: "Content-Type", value: "application/json")
      headers.add(name: "Content-Length", value: "\(body.count)")
    } else if request.method != "GET" {
      headers.add(name: "Content-Length", value: "0")
    }
    let head = HTTPRequestHead(
      version: .http1_1, method: .init(rawValue: request.method), uri: request.path,
      headers: headers)
    channel.write(HTTPClientRequestPart.head(head), promise: nil)
    if let body = request.body {
      let buffer = channel.allocator.buffer(bytes: body)
      channel.write(HTTPClientRequestPart.body(.byteBuffer(buffer)), promise: nil)
    }
    channel.writeAndFlush(HTTPClientRequestPart.end(nil), promise: nil)
  }

  private static func body(of reply: HTTPReply, from address: ListenAddress) throws -> [UInt8] {
    let bytes = Array(buffer: reply.body)
    if (200..<300).contains(reply.status) { return bytes }
    throw (try? JSONText.decode(Problem.self, from: bytes)) as (any Error)?
      ?? ControlClientError.notUnderstood(address)
  }

  private static func explain(
    connecting error: any Error, to address: ListenAddress
  ) -> ControlClientError {
    switch error {
    case ChannelError.connectTimeout: return .timedOut(address)
    case let error as IOError: return explain(errno: error.errnoCode, at: address)
    case let error as NIOConnectionError:
      if error.connectionErrors.isEmpty {
        return .cannotConnect(address, reason: "the host is not known")
      }
      guard let first = error.connectionErrors[0].error as? IOError else { break }
      return explain(errno: first.errnoCode, at: address)
    default: break
    }
    return .cannotConnect(address, reason: "\(error)")
  }

  private static func explain(errno: Int32, at address: ListenAddress) -> ControlClientError {
    switch errno {
    case ENOENT, ECONNREFUSED, ENOTDIR: .notServed(address)
    case EACCES, EPERM: .noPermission(address)
    default: .cannotConnect(address, reason: String(cString: strerror(errno)))
    }
  }

  private static func explain(_ error: any Error, from address: ListenAddress) -> any Error {
    switch error {
    case is Problem, is ControlClientError: error
    case is ReplyTimeout: ControlClientError.timedOut(address)
    case HTTPParserError.invalidEOFState: ControlClientError.connectionLost(address)
    case is HTTPParserError: ControlClientError.notUnderstood(address)
    default: ControlClientError.connectionLost(address)
    }
  }
}

private struct HTTPReply: Sendable {
  var status: Int
  var body = ByteBuffer()
}

private struct ReplyTimeout: Error {}
private struct ReplyBroken: Error {}

/// Gathers one reply and closes the connection.
private final class ReplyCollector: ChannelInboundHandler {
  typealias InboundIn = HTTPClientResponsePart

  /// The largest reply that is taken in, in bytes: some millions of disks.
  private static let maximumReply = 1 << 30

  private let promise: EventLoopPromise<HTTPReply>
  private var reply = HTTPReply(status: 0)

  init(_ promise: EventLoopPromise<HTTPReply>) { self.promise = promise }

  func channelRead(context: ChannelHandlerContext, data: NIOAny) {
    switch unwrapInboundIn(data) {
    case .head(let head): reply.status = Int(head.status.code)
    case .body(var part):
      guard reply.body.readableBytes + part.readableBytes <= Self.maximumReply else {
        return fail(ReplyBroken(), context)
      }
      reply.body.writeBuffer(&part)
    case .end:
      promise.succeed(reply)
      context.close(promise: nil)
    }
  }

  func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
    if event is IdleStateHandler.IdleStateEvent { fail(ReplyTimeout(), context) }
  }

  func errorCaught(context: ChannelHandlerContext, error: any Error) { fail(error, context) }

  func channelInactive(context: ChannelHandlerContext) { promise.fail(ReplyBroken()) }

  private func fail(_ error: any Error, _ context: ChannelHandlerContext) {
    promise.fail(error)
    context.close(promise: nil)
  }
}
