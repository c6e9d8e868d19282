import Glibc
import Synchronization

/// A listening socket. A UNIX socket's file goes with it, unless another has taken its place.
package final class Listener: Sendable {
  package let descriptor: Int32
  /// With the port that the system chose, where 0 was asked for.
  package let address: ListenAddress
  package let isTCP: Bool
  private let isClosed = Atomic<Bool>(false)
  /// The socket file's identity.
  private let inode: (device: UInt64, number: UInt64)

  private init(descriptor: Int32, address: ListenAddress, inode: (UInt64, UInt64) = (0, 0)) {
    self.descriptor = descriptor
    self.address = address
    self.inode = inode
    if case .tcp = address { isTCP = true } else { isTCP = false }
  }

  deinit { close() }

  /// Ends listening, as often as it is called. No accept may be under way.
  package func close() {
    if isClosed.exchange(true, ordering: .relaxed) { return }
    if case .unix(let path) = address, let current = Self.inode(path), current == inode {
      unlink(path)
    }
    Glibc.close(descriptor)
  }

  /// Listens on `address`: one socket, or for a host name one for each of its addresses.
  ///
  /// A UNIX socket gets mode 0660. One that is there already is replaced when nobody answers on it.
  package static func listen(on address: ListenAddress) throws(ListenError) -> [Listener] {
    switch address {
    case .unix(let path): [try listenUnix(path)]
    case .tcp(let host, let port): try listenTCP(host, port)
    }
  }

  // MARK: UNIX

  private static func listenUnix(_ path: String) throws(ListenError) -> Listener {
    guard path.utf8.count <= ListenAddress.maximumPath else { throw .pathTooLong(path) }
    let address = ListenAddress.unix(path: path)
    try removeStale(path)
    let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    guard fd >= 0 else { throw .failed(address: "\(address)", errno: errno) }
    // Narrowed before it has a name, so that there is no moment at which everybody may connect.
    _ = fchmod(fd, 0o660)
    var status = withUnixAddress(path) { bind(fd, $0, $1) }
    if status == 0 { status = chmod(path, 0o660) }
    if status == 0 { status = Glibc.listen(fd, 1024) }
    guard status == 0, let inode = inode(path) else {
      let code = errno
      Glibc.close(fd)
      throw code == EADDRINUSE ? .answered(path) : .failed(address: "\(address)", errno: code)
    }
    return Listener(descriptor: fd, address: address, inode: inode)
  }

  /// How long a socket may answer on after its daemon was killed, in units of 20 ms: the kernel
  /// takes a dead process's ring down in its own time, and until then the ring holds the socket.
  private static let farewells = 500

  /// Removes a socket that a dead daemon left behind.
  private static func removeStale(_ path: String) throws(ListenError) {
    for _ in 0..<farewells {
      var status = stat()
      guard lstat(path, &status) == 0 else { return }
      guard status.st_mode & S_IFMT == S_IFSOCK else { throw .notASocket(path) }
      if try !answers(path) {
        unlink(path)
        return
      }
      usleep(20_000)
    }
    throw .answered(path)
  }

  private static func answers(_ path: String) throws(ListenError) -> Bool {
    // Non-blocking: a daemon whose queue of connections is full answers too.
    let kind = SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue
    let fd = socket(AF_UNIX, Int32(kind), 0)
    guard fd >= 0 else { throw .failed(address: path, errno: errno) }
    defer { Glibc.close(fd) }
    let result = withUnixAddress(path) { connect(fd, $0, $1) }
    return result == 0 || (errno != ECONNREFUSED && errno != ENOENT)
  }

  /// `path` is short enough.
  private static func withUnixAddress(
    _ path: String, _ body: (UnsafePointer<sockaddr>, socklen_t) -> Int32
  ) -> Int32 {
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    return withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        body($0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
  }

  private static func inode(_ path: String) -> (UInt64, UInt64)? {
    var status = stat()
    return lstat(path, &status) == 0 ? (UInt64(status.st_dev), UInt64(status.st_ino)) : nil
  }

  // MARK: TCP

  private static func listenTCP(_ host: String, _ port: UInt16) throws(ListenError) -> [Listener] {
    var hints = addrinfo()
    hints.ai_family = AF_UNSPEC
    hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
    hints.ai_flags = AI_PASSIVE
    var found: UnsafeMutablePointer<addrinfo>?
    guard getaddrinfo(host, String(port), &hints, &found) == 0, let first = found else {
      throw .unknownHost(host)
    }
    defer { freeaddrinfo(first) }
    var listeners: [Listener] = []
    var failure: Int32 = 0
    var next: UnsafeMutablePointer<addrinfo>? = first
    while let info = next?.pointee {
      next = info.ai_next
      let fd = openTCP(info)
      if fd >= 0 {
        let bound = ListenAddress.tcp(host: host, port: boundPort(fd) ?? port)
        listeners.append(Listener(descriptor: fd, address: bound))
      } else if fd != -EAFNOSUPPORT && fd != -EADDRNOTAVAIL {
        failure = -fd
      } else if failure == 0 && listeners.isEmpty && next == nil {
        failure = -fd
      }
    }
    guard failure == 0, !listeners.isEmpty else {
      throw .failed(address: "\(ListenAddress.tcp(host: host, port: port))", errno: failure)
    }
    return listeners
  }

  /// A listening descriptor, or a negative errno.
  private static func openTCP(_ info: addrinfo) -> Int32 {
    let fd = socket(info.ai_family, info.ai_socktype | Int32(SOCK_CLOEXEC.rawValue), 0)
    if fd < 0 { return -errno }
    var on: Int32 = 1
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, 4)
    if info.ai_family == AF_INET6 {
      setsockopt(fd, Int32(IPPROTO_IPV6), IPV6_V6ONLY, &on, 4)
    }
    if bind(fd, info.ai_addr, info.ai_addrlen) == 0, Glibc.listen(fd, 1024) == 0 { return fd }
    let code = errno
    Glibc.close(fd)
    return -code
  }

  private static func boundPort(_ fd: Int32) -> UInt16? {
    var storage = sockaddr_storage()
    var length = socklen_t(MemoryLayout<sockaddr_storage>.size)
    let failed = withUnsafeMutablePointer(to: &storage) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(fd, $0, &length) }
    }
    guard failed == 0 else { return nil }
    // The port is at the same place in both kinds of address.
    return withUnsafeBytes(of: &storage) {
      UInt16(bigEndian: $0.loadUnaligned(fromByteOffset: 2, as: UInt16.self))
    }
  }

  /// Bytes that the system may hold for a UNIX socket's peer: with its default of 208 KiB a reply of
  /// 1 MiB takes several turns. TCP finds its own size.
  private static let sendBuffer: Int32 = 512 << 10

  /// What a new connection needs: room for replies, and on TCP that small messages leave at once.
  package func prepare(connection: Int32) {
    if isTCP {
      var on: Int32 = 1
      setsockopt(connection, Int32(IPPROTO_TCP), TCP_NODELAY, &on, 4)
      setsockopt(connection, SOL_SOCKET, SO_KEEPALIVE, &on, 4)
    } else {
      var size = Self.sendBuffer
      setsockopt(connection, SOL_SOCKET, SO_SNDBUF, &size, 4)
    }
  }
}
