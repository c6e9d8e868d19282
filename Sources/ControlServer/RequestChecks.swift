// What a request must satisfy before a route sees it.
//
// A page of another site that is open in the operator's browser can send requests to loopback
// addresses, and, with a name that it re-binds to 127.0.0.1, even read the replies. So a request
// must name a host that is ours (Host), and one that a page sent must come from a page of ours
// (Origin). Bodies must be JSON by their content type, which a foreign page can't send without
// asking first.

import ControlAPI
import Glibc
import HTTPTypes
import Hummingbird
import NIOCore

/// The largest request body, in bytes.
package let maximumBody = 1 << 20

struct HostCheck: RouterMiddleware {
  typealias Context = BasicRequestContext

  /// Where this server listens.
  let address: ListenAddress
  /// This machine's name, under which a server beyond loopback may be called.
  let hostName: String

  init(address: ListenAddress) {
    self.address = address
    var name = [CChar](repeating: 0, count: 256)
    hostName =
      gethostname(&name, name.count - 1) == 0
      ? String(decoding: name.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self) : ""
  }

  func handle(
    _ request: Request, context: Context, next: (Request, Context) async throws -> Response
  ) async throws -> Response {
    // A second Host header stays among the fields; the first one is the authority.
    guard let authority = request.head.authority, request.headers[.host] == nil,
      let host = Self.host(of: authority), isOurs(host)
    else {
      throw Problem(
        .foreignOrigin,
        "the request's Host header does not name this server; connect to it as \(address)")
    }
    for origin in request.headers[values: .origin] where !isSame(origin, authority) {
      throw Problem(
        .foreignOrigin,
        "the request comes from a page of another site; only pages of this server may send it")
    }
    return try await next(request, context)
  }

  /// The host of `host[:port]`, without brackets; nil when it has another form.
  static func host(of authority: String) -> String? {
    if authority.hasPrefix("[") {
      guard let end = authority.firstIndex(of: "]") else { return nil }
      let rest = authority[authority.index(after: end)...]
      guard rest.isEmpty || isPort(rest) else { return nil }
      return String(authority.dropFirst()[..<end])
    }
    guard let colon = authority.firstIndex(of: ":") else { return authority }
    return isPort(authority[colon...]) ? String(authority[..<colon]) : nil
  }

  /// Any port will do: a forwarded one (ssh -L) differs from the one that we listen on.
  private static func isPort(_ text: Substring) -> Bool {
    text.first == ":" && UInt16(text.dropFirst()) != nil
  }

  private func isOurs(_ host: String) -> Bool {
    if ListenAddress.isLoopback(host: host) { return true }
    guard case .tcp(let listening, _) = address else { return false }
    if host.lowercased() == listening.lowercased() { return true }
    // Beyond loopback also by the machine's name and by any address: the trick needs a name.
    return !address.isLocal
      && (host.lowercased() == hostName.lowercased() || Self.isIPAddress(host))
  }

  private static func isIPAddress(_ host: String) -> Bool {
    var storage = in6_addr()
    return inet_pton(AF_INET, host, &storage) == 1 || inet_pton(AF_INET6, host, &storage) == 1
  }

  private func isSame(_ origin: String, _ authority: String) -> Bool {
    let origin = origin.lowercased()
    return origin == "http://\(authority.lowercased())"
      || origin == "https://\(authority.lowercased())"
  }
}

extension HTTPField.Name {
  fileprivate static let host = Self("Host")!
}

/// Takes in bodies: JSON by their type, at most `maximumBody` bytes.
struct BodyCheck: RouterMiddleware {
  typealias Context = BasicRequestContext

  func handle(
    _ request: Request, context: Context, next: (Request, Context) async throws -> Response
  ) async throws -> Response {
    var request = request
    guard request.hasBody else {
      request.body = RequestBody(buffer: ByteBuffer())
      return try await next(request, context)
    }
    // Sending it on to the closure below is safe: nothing else reads the body any more then.
    nonisolated(unsafe) var parts = request.body.makeAsyncIterator()
    var body = ByteBuffer()
    var problem = problem(with: request)
    while problem == nil, var part = try await parts.next() {
      body.writeBuffer(&part)
      if body.readableBytes > maximumBody { problem = .bodyTooLarge }
    }
    guard let problem else {
      request.body = RequestBody(buffer: body)
      return try await next(request, context)
    }
    // The rest is read and dropped behind the reply: many clients send all before they read.
    let reply = ByteBuffer(bytes: try JSONText.encode(problem))
    return Response(
      status: .init(code: problem.status), headers: [.contentType: Problem.contentType],
      body: ResponseBody(contentLength: reply.readableBytes) { writer in
        try await writer.write(reply)
        try await writer.finish(nil)
        while try await parts.next() != nil {}
      })
  }

  private func problem(with request: Request) -> Problem? {
    if let length = request.headers[.contentLength], Int(length) ?? .max > maximumBody {
      return .bodyTooLarge
    }
    let media = request.headers[.contentType]?.split(separator: ";").first?.lowercased()
    guard media?.filter({ $0 != " " }) == "application/json" else {
      return Problem(
        .notJSON, "the body must be JSON: send it with Content-Type: application/json")
    }
    return nil
  }
}

extension Request {
  fileprivate var hasBody: Bool {
    headers[.contentLength].map { $0 != "0" } ?? headers.contains(.transferEncoding)
  }

  /// The body, which `BodyCheck` took in, as `T`.
  ///
  /// - Parameter absent: what a request without a body stands for; without it one is required.
  func json<T: Decodable>(_ type: T.Type, absent: T? = nil) async throws -> T {
    let bytes = try await body.collect(upTo: maximumBody)
    if bytes.readableBytes == 0 {
      if let absent { return absent }
      throw Problem(.badRequest, "the request needs a body: send one as application/json")
    }
    do {
      return try JSONText.decode(type, from: Array(buffer: bytes))
    } catch {
      throw Problem(.badRequest, "the body was not understood: \(JSONText.reason(error))")
    }
  }
}

extension Problem {
  fileprivate static let bodyTooLarge = Problem(
    .tooLarge, "the body is larger than \(ByteSize(bytes: UInt64(maximumBody))); send less")
}

/// Turns every error into a problem. It is the outermost middleware, so that all replies match.
struct ProblemReplies: RouterMiddleware {
  typealias Context = BasicRequestContext

  func handle(
    _ request: Request, context: Context, next: (Request, Context) async throws -> Response
  ) async throws -> Response {
    let problem: Problem
    do {
      return try await next(request, context)
    } catch let error as Problem {
      problem = error
    } catch let error as HTTPError where error.status == .notFound {
      problem = Problem(
        .noSuchResource, "there is no \(request.method) \(request.uri.path) in this API")
    } catch {
      problem = Problem(.unexpected, "the request failed: \(error)")
    }
    return try Response.json(problem, status: problem.status, type: Problem.contentType)
  }
}

extension Response {
  static func json(
    _ value: some Encodable, status: Int = 200, type: String = "application/json",
    headers: HTTPFields = [:]
  ) throws -> Response {
    var headers = headers
    headers[.contentType] = type
    headers[.cacheControl] = "no-store"
    let body = ByteBuffer(bytes: try JSONText.encode(value) + [UInt8(ascii: "\n")])
    return Response(
      status: .init(code: status), headers: headers, body: .init(byteBuffer: body))
  }
}
