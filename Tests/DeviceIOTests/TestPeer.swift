import Glibc
import Synchronization

/// A plain blocking NBD client, which may also misbehave.
final class TestPeer: Sendable {
  struct Failure: Error { let what: String }

  let descriptor: Int32
  private let cookies = Atomic<UInt64>(0)

  /// Connects to a UNIX socket.
  init(path: String) throws {
    descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    try connect(&address)
  }

  /// Connects to a port of this host.
  init(port: UInt16) throws {
    descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = port.bigEndian
    address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
    try connect(&address)
  }

  private func connect<A>(_ address: inout A) throws {
    // A test that hangs is of no use to anybody.
    var limit = timeval(tv_sec: 30, tv_usec: 0)
    setsockopt(descriptor, SOL_SOCKET, SO_RCVTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    setsockopt(descriptor, SOL_SOCKET, SO_SNDTIMEO, &limit, socklen_t(MemoryLayout<timeval>.size))
    let size = socklen_t(MemoryLayout<A>.size)
    let failed = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        Glibc.connect(descriptor, $0, size)
      }
    }
    if failed != 0 { throw Failure(what: "connect: \(errno)") }
  }

  deinit { close(descriptor) }

  // MARK: Bytes

  func send(_ bytes: [UInt8]) throws {
    var done = 0
    while done < bytes.count {
      let count = bytes.withUnsafeBytes {
        Glibc.send(
          descriptor, $0.baseAddress.map { $0 + done }, bytes.count - done,
          Int32(MSG_NOSIGNAL))
      }
      if count <= 0 { throw Failure(what: "send: \(errno)") }
      done += count
    }
  }

  func receive(_ count: Int) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count)
    var done = 0
    while done < count {
      let got = bytes.withUnsafeMutableBytes {
        recv(descriptor, $0.baseAddress.map { $0 + done }, count - done, 0)
      }
      if got <= 0 { throw Failure(what: got == 0 ? "closed" : "receive: \(errno)") }
      done += got
    }
    return bytes
  }

  /// Whether the server has closed the connection; reads what was sent before.
  func isClosedByServer() -> Bool {
    var bytes = [UInt8](repeating: 0, count: 65536)
    while true {
      let got = recv(descriptor, &bytes, bytes.count, 0)
      if got == 0 || (got < 0 && errno == ECONNRESET) { return true }
      if got < 0 { return false }
    }
  }

  // MARK: Protocol

  static func big<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    withUnsafeBytes(of: value.bigEndian) { Array($0) }
  }

  /// Handshake up to transmission; throws when the server refuses the name.
  @discardableResult
  func go(_ name: String) throws -> Self {
    _ = try receive(18)
    try send(Self.big(UInt32(3)))
    let data = Self.big(UInt32(name.utf8.count)) + Array(name.utf8) + [0, 0]
    try send(
      Self.big(0x4948_4156_454F_5054 as UInt64) + Self.big(UInt32(7))
        + Self.big(UInt32(data.count)) + data)
    while true {
      let header = try receive(20)
      let type = header[12..<16].reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
      let length = header[16..<20].reduce(0) { $0 << 8 | Int($1) }
      _ = try receive(length)
      if type == 1 { return self }
      if type & 0x8000_0000 != 0 { throw Failure(what: "refused: \(type)") }
    }
  }

  static func request(
    _ command: UInt16, cookie: UInt64 = 0, offset: UInt64 = 0, length: Int = 0,
    payload: [UInt8] = []
  ) -> [UInt8] {
    big(UInt32(0x2560_9513)) + big(UInt16(0)) + big(command) + big(cookie) + big(offset)
      + big(UInt32(length)) + payload
  }

  /// One request and its simple reply.
  func run(
    _ command: UInt16, offset: Int = 0, length: Int = 0, payload: [UInt8] = []
  ) throws -> [UInt8] {
    let cookie = cookies.add(1, ordering: .relaxed).newValue
    try send(
      Self.request(
        command, cookie: cookie, offset: UInt64(offset), length: length, payload: payload))
    let reply = try receive(16)
    let code = reply[4..<8].reduce(0) { $0 << 8 | Int($1) }
    if code != 0 { throw Failure(what: "error \(code)") }
    if Array(reply[8..<16]) != Self.big(cookie) { throw Failure(what: "another cookie") }
    return command == 0 ? try receive(length) : []
  }

  func write(_ bytes: [UInt8], at offset: Int) throws {
    _ = try run(1, offset: offset, length: bytes.count, payload: bytes)
  }

  func read(_ length: Int, at offset: Int) throws -> [UInt8] {
    try run(0, offset: offset, length: length)
  }

  func flush() throws { _ = try run(3) }

  func disconnect() throws { try send(Self.request(2)) }
}

/// Bytes that tell where they belong.
func patternBytes(_ count: Int, seed: Int) -> [UInt8] {
  Array(unsafeUninitializedCapacity: count) { bytes, used in
    for i in 0..<count { bytes[i] = UInt8(truncatingIfNeeded: (i &* 7 + i >> 8) &+ seed) }
    used = count
  }
}
