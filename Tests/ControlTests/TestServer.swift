import ControlAPI
import ControlServer
import Core
import Dispatch
import Glibc
import Testing

/// A server over a fake engine on a UNIX socket of its own, and a client to it.
struct TestServer: Sendable {
  var engine: FakeEngine
  var directory: String
  var address: ListenAddress
  /// The same server over TCP.
  var tcp: ListenAddress
  var client: ControlClient

  /// Starts one, runs `body` on a thread of its own, because server and client block, and stops.
  static func run<T: Sendable>(
    engine: FakeEngine = FakeEngine(), _ body: @escaping @Sendable (TestServer) throws -> T
  ) async throws -> T {
    try await blocking {
      let directory = try temporaryDirectory()
      defer { removeDirectory(directory) }
      let address = ListenAddress.unix(path: "\(directory)/api.sock")
      let server = ControlServer(
        service: service(engine), addresses: [address, .tcp(host: "127.0.0.1", port: 0)])
      let bound = try server.start()
      defer { server.stop() }
      let client = ControlClient(address: address, timeoutSeconds: 30)
      return try body(
        TestServer(
          engine: engine, directory: directory, address: address, tcp: bound[1], client: client))
    }
  }

  static func service(_ engine: FakeEngine) -> ControlService {
    ControlService(
      engine: { engine.call($0) },
      addVolume: { volume throws(Problem) in
        if volume.path == "/full" { throw Problem(.refused, "/full holds data; use --force") }
        return Volume(path: volume.path, uuid: "u", size: volume.size ?? 0)
      }, version: "test")
  }

  /// Sends bytes as they are and reads until the server closes.
  func exchange(_ text: String, to address: ListenAddress? = nil) throws -> String {
    let socket = try connectedSocket(to: address ?? self.address)
    defer { close(socket) }
    let bytes = Array(text.utf8)
    var sent = 0
    while sent < bytes.count {
      let n = bytes[sent...].withUnsafeBytes {
        Glibc.send(socket, $0.baseAddress!, $0.count, Int32(MSG_NOSIGNAL))
      }
      // A server that refuses early may not read the rest.
      if n <= 0 { break }
      sent += n
    }
    var reply: [UInt8] = []
    var part = [UInt8](repeating: 0, count: 65536)
    while true {
      let n = recv(socket, &part, part.count, 0)
      if n <= 0 { break }
      reply += part[..<n]
    }
    return String(decoding: reply, as: UTF8.self)
  }

  /// A request with `Connection: close` and the given headers and body; the reply's text.
  func request(
    _ method: String, _ path: String, headers: [String] = ["Host: localhost"], body: String? = nil,
    to address: ListenAddress? = nil
  ) throws -> String {
    var lines = ["\(method) \(path) HTTP/1.1"] + headers + ["Connection: close"]
    if let body { lines.append("Content-Length: \(body.utf8.count)") }
    return try exchange(
      lines.joined(separator: "\r\n") + "\r\n\r\n" + (body ?? ""), to: address)
  }
}

struct TestFailure: Error { var what: String }

/// Runs blocking code on a thread of its own, outside the cooperative ones, which the server needs.
func blocking<T: Sendable>(_ body: @escaping @Sendable () throws -> T) async throws -> T {
  try await withCheckedThrowingContinuation { continuation in
    // A queue of its own: the global ones run no more blocks at once than there are cores.
    DispatchQueue(label: "blocking").async { continuation.resume(with: Result(catching: body)) }
  }
}

func temporaryDirectory() throws -> String {
  var template = Array("/tmp/sluice-control-XXXXXX".utf8CString)
  guard mkdtemp(&template) != nil else { throw TestFailure(what: "mkdtemp") }
  return String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
}

/// Removes a directory and the files in it.
func removeDirectory(_ path: String) {
  if let entries = opendir(path) {
    while let entry = readdir(entries) {
      let name = withUnsafePointer(to: &entry.pointee.d_name) {
        $0.withMemoryRebound(to: CChar.self, capacity: 256) { String(cString: $0) }
      }
      unlink("\(path)/\(name)")
    }
    closedir(entries)
  }
  rmdir(path)
}

func unixAddress(_ path: String) -> sockaddr_un {
  var address = sockaddr_un()
  address.sun_family = sa_family_t(AF_UNIX)
  withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
  return address
}

private func connectedSocket(to address: ListenAddress) throws -> Int32 {
  let result: Int32
  let socket: Int32
  switch address {
  case .unix(let path):
    socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var name = unixAddress(path)
    result = withSocketAddress(&name) { connect(socket, $0, $1) }
  case .tcp(_, let port):
    socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
    var name = sockaddr_in()
    name.sin_family = sa_family_t(AF_INET)
    name.sin_port = in_port_t(port).bigEndian
    name.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    result = withSocketAddress(&name) { connect(socket, $0, $1) }
  }
  guard result == 0 else {
    close(socket)
    throw TestFailure(what: "connect to \(address): \(errno)")
  }
  return socket
}

/// A socket that listens on `path` and whose connections nobody takes care of.
func listeningSocket(_ path: String) throws -> Int32 {
  let socket = Glibc.socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
  var name = unixAddress(path)
  guard withSocketAddress(&name, { bind(socket, $0, $1) }) == 0, listen(socket, 8) == 0 else {
    throw TestFailure(what: "listen on \(path): \(errno)")
  }
  return socket
}

private func withSocketAddress<Address, T>(
  _ address: inout Address, _ body: (UnsafePointer<sockaddr>, socklen_t) -> T
) -> T {
  withUnsafePointer(to: &address) {
    $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      body($0, socklen_t(MemoryLayout<Address>.size))
    }
  }
}
