import ControlAPI
import ControlServer
import Core
import Glibc
import Testing

@Suite("The HTTP API over a real socket")
struct ServerTests {
  typealias Request = ControlClient.Request

  @Test("A disk is created, shown, resized, renamed, set and deleted")
  func lifeOfADisk() async throws {
    try await TestServer.run { server throws in
      let client = server.client
      let path = "/v1/disks/vm%2Froot"
      let created = try client.send(
        Request("POST", "/v1/disks", body: CreateDisk(name: "vm/root", size: 1 << 30)),
        as: Disk.self)
      #expect(created.name == "vm/root" && created.size == 1 << 30)
      #expect(created.id == "0000000000000010" && created.created == "2026-03-01T12:00:00Z")
      #expect(try client.send(Request("GET", path), as: Disk.self) == created)
      let resized = try client.send(
        Request("PATCH", path, body: ChangeDisk(size: 2 << 30)), as: Disk.self)
      #expect(resized.size == 2 << 30)
      let set = try client.send(
        Request(
          "PATCH", path, body: ChangeDisk(durability: .flush, readOnly: true, comment: "é")),
        as: Disk.self)
      #expect(set.durability == .flush && set.readOnly && set.comment == "é")
      let renamed = try client.send(
        Request("PATCH", path, body: ChangeDisk(name: "vm/new")), as: Disk.self)
      #expect(renamed.name == "vm/new")
      _ = try client.send(Request("DELETE", "/v1/disks/vm%2Fnew"))
      #expect(try client.send(Request("GET", "/v1/disks"), as: [Disk].self).isEmpty)
    }
  }

  @Test("A name that another client made is reached by its spelling, encoded once more")
  func encodedNames() async throws {
    try await TestServer.run { server throws in
      server.engine.state.withLock { $0.add(name: "my%20disk", size: 512) }
      let disk = try server.client.send(Request("GET", "/v1/disks/my%2520disk"), as: Disk.self)
      #expect(disk.name == "my%20disk")
      #expect(throws: Problem.self) {
        try server.client.send(Request("GET", "/v1/disks/my%20disk"))
      }
    }
  }

  @Test("An engine's refusal arrives as its problem")
  func refusals() async throws {
    try await TestServer.run { server throws in
      let error = ControlError.inUse("a", connections: 3)
      server.engine.state.withLock { $0.refusal = error }
      for request in [
        Request("GET", "/v1/disks"), Request("DELETE", "/v1/disks/a"), Request("POST", "/v1/flush"),
        Request("POST", "/v1/scrub"), Request("GET", "/v1/disks/a"),
      ] {
        #expect(throws: Problem(error)) { try server.client.send(request) }
      }
      let reply = try server.request("DELETE", "/v1/disks/a")
      #expect(reply.hasPrefix("HTTP/1.1 409 "))
      #expect(reply.lowercased().contains("content-type: application/problem+json"))
    }
  }

  @Test("Every disk is listed once, in pages, 100,000 of them")
  func longList() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 100_000)) { server throws in
      let disks = try server.client.send(Request("GET", "/v1/disks"), as: [Disk].self)
      #expect(Set(disks.map(\.name)).count == 100_000 && disks.count == 100_000)
      #expect(server.engine.state.withLock(\.lists) > 100)
    }
  }

  @Test("A list that fails on its way breaks the connection and is never taken for a whole one")
  func brokenList() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 2000)) { server throws in
      server.engine.state.withLock { $0.pagesUntilError = 3 }
      #expect(throws: ControlClientError.connectionLost(server.address)) {
        try server.client.send(Request("GET", "/v1/disks"))
      }
    }
  }

  @Test("Status has the engine's figures and the daemon's own")
  func status() async throws {
    try await TestServer.run { server throws in
      server.engine.state.withLock {
        $0.status.logSize = 10 << 30
        $0.status.uptimeNanoseconds = 1_500_000_000
        $0.status.state = .readOnly
      }
      let status = try server.client.send(Request("GET", "/v1/status"), as: Status.self)
      #expect(status.log.size == 10 << 30 && status.uptimeSeconds == 1.5)
      #expect(status.state == .readOnly && status.version == "test")
      #expect(status.memoryBytes > 1 << 20)
      let text = String(
        decoding: try server.client.send(Request("GET", "/v1/status")), as: UTF8.self)
      for key in ["oldest_seconds", "backlog_bytes", "age_seconds", "memory_bytes"] {
        #expect(text.contains("\"\(key)\":"))
      }
      #expect(text.contains(#""state":"read_only""#))
    }
  }

  @Test("Health follows the pool's state")
  func health() async throws {
    try await TestServer.run { server throws in
      #expect(try server.request("GET", "/healthz").hasPrefix("HTTP/1.1 200 "))
      server.engine.state.withLock { $0.status.state = .suspended }
      #expect(try server.request("GET", "/healthz").hasPrefix("HTTP/1.1 503 "))
    }
  }

  @Test("Flush, scrub and volumes reach their functions")
  func maintenance() async throws {
    try await TestServer.run { server throws in
      server.engine.state.withLock { $0.scrub.damage = ["disk “a” at 4096: checksum"] }
      #expect(try server.client.send(Request("POST", "/v1/flush")).isEmpty)
      #expect(server.engine.state.withLock(\.flushes) == 1)
      for method in ["GET", "POST"] {
        let scrub = try server.client.send(Request(method, "/v1/scrub"), as: Scrub.self)
        #expect(scrub.damage == ["disk “a” at 4096: checksum"])
      }
      let added = try server.client.send(
        Request("POST", "/v1/volumes", body: AddVolume(path: "/x", size: 4096)), as: Volume.self)
      #expect(added == Volume(path: "/x", uuid: "u", size: 4096))
      #expect(throws: Problem(.refused, "/full holds data; use --force")) {
        try server.client.send(Request("POST", "/v1/volumes", body: AddVolume(path: "/full")))
      }
    }
  }

  @Test(
    "A request under a foreign host, or from a foreign page, is refused and changes nothing",
    arguments: [
      ["Host: evil.example"], ["Host: evil.example:7440"], ["Host: 10.1.2.3"], [],
      ["Host: localhost", "Host: evil.example"], ["Host: localhost.evil.example"], ["Host: "],
      ["Host: [::1"], ["Host: localhost:x"], ["Host: localhost", "Origin: http://evil.example"],
      ["Host: localhost", "Origin: null"], ["Host: localhost", "Origin: http://localhost:1"],
      ["Host: localhost", "Origin: http://localhost", "Origin: http://evil.example"],
    ])
  func foreignRequests(headers: [String]) async throws {
    try await TestServer.run { server throws in
      for address in [server.address, server.tcp] {
        let reply = try server.request("POST", "/v1/flush", headers: headers, to: address)
        #expect(reply.hasPrefix("HTTP/1.1 403 ") || reply.hasPrefix("HTTP/1.1 400 "), "\(reply)")
      }
      #expect(server.engine.state.withLock(\.flushes) == 0)
    }
  }

  @Test(
    "A request under one of our names, from nowhere or a page of ours, is taken",
    arguments: [
      ["Host: localhost"], ["Host: 127.0.0.1:7440"], ["Host: [::1]:9"],
      ["Host: LOCALHOST:7440", "Origin: http://localhost:7440"],
    ])
  func ownRequests(headers: [String]) async throws {
    try await TestServer.run { server throws in
      for address in [server.address, server.tcp] {
        let reply = try server.request("POST", "/v1/flush", headers: headers, to: address)
        #expect(reply.hasPrefix("HTTP/1.1 204 "), "\(reply)")
      }
    }
  }

  @Test("A body that is not JSON is refused, also where none is needed")
  func notJSON() async throws {
    try await TestServer.run { server throws in
      let json = ["Host: localhost", "Content-Type: application/json; charset=utf-8"]
      let form = ["Host: localhost", "Content-Type: text/plain"]
      let good = #"{"name":"a","size":512}"#
      let replies = [
        (try server.request("POST", "/v1/disks", headers: form, body: good), 415),
        (try server.request("POST", "/v1/disks", headers: ["Host: localhost"], body: good), 415),
        (try server.request("POST", "/v1/flush", headers: form, body: "x"), 415),
        (try server.request("POST", "/v1/flush", headers: json, body: "x"), 400),
        (try server.request("POST", "/v1/flush", headers: json, body: #"{"a":1}"#), 400),
        (try server.request("POST", "/v1/disks", headers: json, body: "{"), 400),
        (try server.request("POST", "/v1/disks", headers: json), 400),
        (try server.request("DELETE", "/v1/disks/a", headers: form, body: "x"), 415),
        (try server.request("POST", "/v1/flush", headers: json, body: "{}"), 204),
        (try server.request("POST", "/v1/disks", headers: json, body: good), 201),
      ]
      for (reply, status) in replies {
        #expect(reply.hasPrefix("HTTP/1.1 \(status) "), "\(reply)")
      }
      #expect(server.engine.state.withLock(\.flushes) == 1)
    }
  }

  @Test("A body over 1 MiB is refused, announced or not")
  func largeBodies() async throws {
    try await TestServer.run { server throws in
      let headers = ["Host: localhost", "Content-Type: application/json"]
      let body = String(repeating: " ", count: maximumBody + 1)
      let announced = try server.request("POST", "/v1/disks", headers: headers, body: body)
      #expect(announced.hasPrefix("HTTP/1.1 413 "), "\(announced.prefix(200))")
      let lines = ["POST /v1/disks HTTP/1.1"] + headers + ["Transfer-Encoding: chunked"]
      let chunk = String(body.utf8.count, radix: 16) + "\r\n" + body + "\r\n0\r\n\r\n"
      let chunked = try server.exchange(
        (lines + ["Connection: close"]).joined(separator: "\r\n") + "\r\n\r\n" + chunk)
      #expect(chunked.hasPrefix("HTTP/1.1 413 "), "\(chunked.prefix(200))")
      let enormous = ["Content-Length: 99999999999999999999999"]
      let reply = try server.exchange(
        (["POST /v1/disks HTTP/1.1"] + headers + enormous).joined(separator: "\r\n") + "\r\n\r\n")
      #expect(reply.hasPrefix("HTTP/1.1 4") || reply.isEmpty)
    }
  }

  @Test("A request that mixes changes, or names what is not there, is refused")
  func badRequests() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 1)) { server throws in
      func kind(_ request: Request) throws -> Problem.Kind? {
        do { _ = try server.client.send(request) } catch let problem as Problem {
          return problem.kind
        }
        return nil
      }
      let disk = "/v1/disks/disk-0"
      for change in [
        ChangeDisk(), ChangeDisk(name: "b", size: 512), ChangeDisk(size: 512, comment: ""),
        ChangeDisk(name: "b", force: true),
        ChangeDisk(comment: String(repeating: "x", count: 513)),
      ] { #expect(try kind(Request("PATCH", disk, body: change)) == .badRequest) }
      #expect(try kind(Request("PATCH", disk, body: ChangeDisk(name: "a b"))) == .badName)
      #expect(try kind(Request("PATCH", disk, body: ChangeDisk(size: 512))) == .wouldShrink)
      #expect(
        try kind(Request("POST", "/v1/disks", body: CreateDisk(name: "%20", size: 1))) == .badName)
      #expect(
        try kind(Request("POST", "/v1/disks", body: CreateDisk(name: "b", size: 1))) == .badSize)
      #expect(try kind(Request("GET", "/v1/disks/..")) == .badName)
      #expect(try kind(Request("GET", "/v1/disks/%ff")) == .badName)
      #expect(try kind(Request("DELETE", "\(disk)?force=yes")) == .badRequest)
      #expect(try kind(Request("GET", "/v1/nothing")) == .noSuchResource)
      #expect(try kind(Request("PUT", "/v1/disks")) == .noSuchResource)
      #expect(try kind(Request("POST", "/v1/volumes", body: AddVolume(path: "x"))) == .badRequest)
      #expect(server.engine.state.withLock { $0.disks.keys.sorted() } == ["disk-0"])
    }
  }

  @Test("Garbage, half a request and an endless header leave the server serving")
  func garbage() async throws {
    try await TestServer.run { server throws in
      _ = try server.exchange("\u{0}\u{1}\u{2}garbage\r\n\r\n")
      let endless = "GET /healthz HTTP/1.1\r\nX: " + String(repeating: "x", count: 90_000)
      _ = try server.exchange(endless + "\r\n\r\n")
      #expect(try server.request("GET", "/healthz").hasPrefix("HTTP/1.1 200 "))
    }
  }
}
