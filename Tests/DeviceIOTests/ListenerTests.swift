import DeviceIO
import Glibc
import Testing

@Suite struct ListenerTests {
  private func temporary(_ name: String) -> String {
    "/tmp/sluice-listener-\(getpid())-\(name)-\(monotonicNanoseconds())"
  }

  @Test func `addresses are parsed, and what is none is refused`() throws {
    #expect(try ListenAddress("unix:/a/b") == .unix(path: "/a/b"))
    #expect(try ListenAddress("localhost:10809") == .tcp(host: "localhost", port: 10809))
    #expect(try ListenAddress("[::1]:7440") == .tcp(host: "::1", port: 7440))
    for bad in ["", "unix:", "host", "host:", ":80", "host:65536", "::1:80", "host:x", "a\0b:1"] {
      #expect(throws: ListenError.badAddress(bad)) { try ListenAddress(bad) }
    }
    #expect("\(try ListenAddress("[::1]:7440"))" == "[::1]:7440")
  }

  @Test func `only this host's own addresses count as local`() throws {
    for local in ["unix:/x", "localhost:1", "127.0.0.1:1", "127.8.9.1:1", "[::1]:1"] {
      #expect(try ListenAddress(local).isLocal)
    }
    for foreign in [
      "0.0.0.0:1", "[::]:1", "10.0.0.1:1", "127.0.0.1.example.org:1", "127.0.0.com:1",
    ] {
      #expect(try !ListenAddress(foreign).isLocal)
    }
  }

  @Test func `a socket path that is too long is refused with its length`() {
    let path = "/tmp/" + String(repeating: "x", count: 103)
    #expect(throws: ListenError.pathTooLong(path)) { try ListenAddress("unix:" + path) }
    #expect(throws: ListenError.pathTooLong(path)) { try Listener.listen(on: .unix(path: path)) }
    #expect(ListenError.pathTooLong(path).description.contains("108 bytes"))
  }

  @Test func `a UNIX socket is for owner and group, and goes with its listener`() throws {
    let path = temporary("mode")
    var listeners = try Listener.listen(on: .unix(path: path))
    var status = stat()
    #expect(stat(path, &status) == 0 && status.st_mode & 0o777 == 0o660)
    #expect(listeners.count == 1)
    listeners = []
    #expect(access(path, F_OK) != 0)
  }

  @Test func `a dead daemon's socket is replaced, a living one's and a plain file are not`() throws
  {
    let path = temporary("stale")
    let dead = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let bound = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
        bind(dead, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
      }
    }
    #expect(bound == 0)
    close(dead)
    var first = try Listener.listen(on: .unix(path: path))
    #expect(first.count == 1)
    #expect(throws: ListenError.answered(path)) { try Listener.listen(on: .unix(path: path)) }
    #expect(access(path, F_OK) == 0)
    first = []
    fclose(fopen(path, "w"))
    #expect(throws: ListenError.notASocket(path)) { try Listener.listen(on: .unix(path: path)) }
    unlink(path)
  }

  @Test func `a listener does not remove the socket of one that has taken its place`() throws {
    let path = temporary("taken")
    var first = try Listener.listen(on: .unix(path: path))
    unlink(path)
    let second = try Listener.listen(on: .unix(path: path))
    #expect(first.count == 1)
    first = []
    #expect(access(path, F_OK) == 0 && second.count == 1)
  }

  @Test func `a port in use is refused, and port 0 gives one that is not`() throws {
    let first = try Listener.listen(on: .tcp(host: "127.0.0.1", port: 0))
    #expect(throws: ListenError.failed(address: "\(first[0].address)", errno: EADDRINUSE)) {
      try Listener.listen(on: first[0].address)
    }
  }
}
