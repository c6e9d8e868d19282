import ControlAPI
import ControlServer
import Core
import Glibc
import Testing

@Suite("Listening and connecting")
struct ListeningTests {
  private func server(_ addresses: [ListenAddress]) -> ControlServer {
    ControlServer(service: TestServer.service(FakeEngine()), addresses: addresses)
  }

  @Test("The socket has mode 0660 while it is served and is gone afterwards")
  func socketMode() async throws {
    try await blocking {
      let directory = try temporaryDirectory()
      defer { removeDirectory(directory) }
      let path = "\(directory)/api.sock"
      let server = server([.unix(path: path)])
      _ = try server.start()
      var info = stat()
      #expect(stat(path, &info) == 0 && info.st_mode & 0o7777 == 0o660)
      server.stop()
      #expect(stat(path, &info) != 0)
    }
  }

  @Test("A socket that a killed daemon left is replaced, one that is answered is not")
  func staleSocket() async throws {
    try await blocking {
      let directory = try temporaryDirectory()
      defer { removeDirectory(directory) }
      let path = "\(directory)/api.sock"
      close(try listeningSocket(path))
      let first = server([.unix(path: path)])
      _ = try first.start()
      defer { first.stop() }
      #expect(throws: ControlServerError.inUse(.unix(path: path))) {
        try server([.unix(path: path)]).start()
      }
      let client = ControlClient(address: .unix(path: path))
      #expect(try client.send(.init("GET", "/healthz"), as: Health.self).status == "ok")
    }
  }

  @Test("An address that can't be had is named, and the others are given up")
  func addressInUse() async throws {
    try await TestServer.run { running throws in
      let path = "\(running.directory)/second.sock"
      #expect(throws: ControlServerError.inUse(running.tcp)) {
        try server([.unix(path: path), running.tcp]).start()
      }
      var info = stat()
      #expect(stat(path, &info) != 0)
      let absent = ListenAddress.unix(path: "\(running.directory)/absent/x.sock")
      #expect(
        throws: ControlServerError.cannotListen(absent, reason: "No such file or directory")
      ) { try server([absent]).start() }
    }
  }

  @Test("A file that is not a socket is not removed")
  func fileInTheWay() async throws {
    try await blocking {
      let directory = try temporaryDirectory()
      defer { removeDirectory(directory) }
      let path = "\(directory)/api.sock"
      close(open(path, O_CREAT | O_WRONLY, 0o600))
      #expect(throws: ControlServerError.self) { try server([.unix(path: path)]).start() }
      var info = stat()
      #expect(stat(path, &info) == 0)
    }
  }

  @Test("A client tells an absent daemon, a silent one and a stranger apart")
  func badDaemons() async throws {
    try await blocking {
      let directory = try temporaryDirectory()
      defer { removeDirectory(directory) }
      let absent = ListenAddress.unix(path: "\(directory)/absent.sock")
      #expect(throws: ControlClientError.notServed(absent)) {
        try ControlClient(address: absent).send(.init("GET", "/healthz"))
      }
      let silent = ListenAddress.unix(path: "\(directory)/silent.sock")
      let socket = try listeningSocket("\(directory)/silent.sock")
      defer { close(socket) }
      #expect(throws: ControlClientError.timedOut(silent)) {
        try ControlClient(address: silent, timeoutSeconds: 1).send(.init("GET", "/healthz"))
      }
    }
  }

  @Test("What is not HTTP, or ends too early, is not taken for a reply")
  func strangers() async throws {
    try await blocking {
      let directory = try temporaryDirectory()
      defer { removeDirectory(directory) }
      for (text, isStranger) in [
        ("NBDMAGIC", true), ("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[]", false), ("", false),
        ("HTTP/1.1 500 No\r\nContent-Length: 2\r\n\r\n{}", true),
      ] {
        let address = ListenAddress.unix(path: "\(directory)/s.sock")
        let socket = try listeningSocket("\(directory)/s.sock")
        let pending = try ControlClient(address: address).begin(.init("GET", "/healthz"))
        let connection = accept(socket, nil, nil)
        var request = [UInt8](repeating: 0, count: 4096)
        #expect(recv(connection, &request, request.count, 0) > 0)
        _ = text.withCString { write(connection, $0, strlen($0)) }
        shutdown(connection, Int32(SHUT_WR))
        let expected: ControlClientError =
          isStranger ? .notUnderstood(address) : .connectionLost(address)
        #expect(throws: expected, "\(text)") { try pending.wait() }
        close(connection)
        close(socket)
        unlink("\(directory)/s.sock")
      }
    }
  }
}
