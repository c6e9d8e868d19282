import ControlAPI
import ControlServer
import Core
import Testing

@Suite("Snapshots and clones over the API")
struct SnapshotServerTests {
  typealias Request = ControlClient.Request

  private func take(_ server: TestServer, _ names: String...) throws {
    _ = try server.client.send(
      Request("POST", "/v1/snapshots", body: CreateSnapshots(snapshots: names)))
  }

  private func list(_ server: TestServer, _ query: String = "") throws -> [Snapshot] {
    try server.client.send(Request("GET", "/v1/snapshots\(query)"), as: [Snapshot].self)
  }

  private func problem(_ server: TestServer, _ request: Request) throws -> Problem.Kind? {
    do { _ = try server.client.send(request) } catch let problem as Problem {
      return problem.kind
    }
    return nil
  }

  @Test("A snapshot is taken, listed, renamed, held, released and deleted")
  func lifeOfASnapshot() async throws {
    try await TestServer.run { server throws in
      server.engine.state.withLock { $0.add(name: "vm/root", size: 1 << 30) }
      try take(server, "vm/root@one")
      let path = "/v1/snapshots/vm%2Froot@one"
      let only = try #require(try list(server).first)
      #expect(only.disk == "vm/root" && only.name == "one" && only.size == 1 << 30)
      #expect(only.id == "0000000000000100" && only.group == only.id && !only.held)
      #expect(only.created == "2026-03-01T12:00:00Z")
      let hold = try Request("PATCH", path, body: ChangeSnapshot(held: true))
      #expect(try server.client.send(hold).isEmpty)
      #expect(try problem(server, Request("DELETE", path)) == .isHeld)
      _ = try server.client.send(Request("PATCH", path, body: ChangeSnapshot(name: "two")))
      #expect(try problem(server, Request("DELETE", path)) == .noSuchSnapshot)
      let renamed = "/v1/snapshots/vm%2Froot%40two"
      _ = try server.client.send(Request("PATCH", renamed, body: ChangeSnapshot(held: false)))
      #expect(try server.client.send(Request("DELETE", renamed)).isEmpty)
      #expect(try list(server).isEmpty)
    }
  }

  @Test("The snapshots of one call reach the engine as one request")
  func groups() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 3)) { server throws in
      try take(server, "disk-0@s", "disk-1@s", "disk-2@s")
      let groups = Set(try list(server).map(\.group))
      #expect(groups == ["0000000000000100"])
      let more = CreateSnapshots(snapshots: ["disk-0@t", "absent@t"])
      #expect(try problem(server, Request("POST", "/v1/snapshots", body: more)) == .noSuchDisk)
      #expect(try list(server, "?disk=disk-0").map(\.name) == ["s"])
      #expect(try problem(server, Request("GET", "/v1/snapshots?disk=absent")) == .noSuchDisk)
    }
  }

  @Test("Every snapshot is listed once, in pages, 20,000 of them")
  func longList() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 2)) { server throws in
      server.engine.state.withLock { state in
        let names = (0..<20_000).map { SnapshotName(disk: "disk-\($0 % 2)", snapshot: "s\($0)") }
        state.snapshots = names.map {
          SnapshotInfo(
            disk: $0.disk, name: $0.snapshot, id: ObjectID(1), created: 0, size: 512, used: 0,
            exclusive: 0, clones: 0, group: ObjectID(1), isHeld: false)
        }
      }
      #expect(Set(try list(server).map(\.name)).count == 20_000)
      #expect(try list(server, "?disk=disk-1").count == 10_000)
    }
  }

  @Test("Clones are made one by one and by number, all or none")
  func clones() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 1)) { server throws in
      try take(server, "disk-0@gold")
      func clone(_ name: String, _ count: Int? = nil) -> Request {
        let body = CreateClones(snapshot: "disk-0@gold", name: name, count: count)
        return try! Request("POST", "/v1/clones", body: body)
      }
      #expect(
        try server.client.send(clone("vm/a"), as: Clones.self)
          == Clones(count: 1, first: "vm/a", last: "vm/a"))
      #expect(
        try server.client.send(clone("vm/b", 3), as: Clones.self)
          == Clones(count: 3, first: "vm/b-1", last: "vm/b-3"))
      let disk = try server.client.send(Request("GET", "/v1/disks/vm%2Fb-3"), as: Disk.self)
      #expect(disk.origin == "disk-0@gold")
      let before = server.engine.state.withLock(\.disks.count)
      #expect(try problem(server, clone("vm/b", 5)) == .alreadyExists)
      for count in [0, -1, 100_001, Int.max] {
        #expect(try problem(server, clone("c", count)) == .badRequest)
      }
      #expect(try problem(server, clone("c d")) == .badName)
      #expect(try problem(server, clone(String(repeating: "x", count: 253), 100)) == .badName)
      #expect(server.engine.state.withLock(\.disks.count) == before)
    }
  }

  @Test("A difference is one list of whole ranges, however the engine cuts it")
  func diff() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 1)) { server throws in
      try take(server, "disk-0@old")
      try take(server, "disk-0@new")
      server.engine.state.withLock { state in
        // Runs of 300 neighbours, longer than a page, data and zeros in turns.
        state.changes = (0..<3000).map {
          ChangedRange(offset: UInt64($0) * 4096, length: 4096, isZero: $0 / 300 % 2 == 1)
        }
        state.changes.append(ChangedRange(offset: 1 << 30, length: 512, isZero: true))
      }
      let path = "/v1/diff?from=disk-0@old"
      let changes = try server.client.send(Request("GET", path), as: [Change].self)
      #expect(changes.count == 11)
      for (i, change) in changes.prefix(10).enumerated() {
        #expect(change.offset == UInt64(i) * 300 * 4096 && change.length == 300 * 4096)
        #expect(change.type == (i % 2 == 1 ? .zero : .data))
      }
      #expect(changes.last == Change(offset: 1 << 30, length: 512, type: .zero))
      server.engine.state.withLock { $0.changes = [] }
      for to in ["", "&to=disk-0%40new", "&to=disk-0"] {
        server.engine.state.withLock { $0.asked = [] }
        #expect(try server.client.send(Request("GET", path + to), as: [Change].self).isEmpty)
        let place = to.contains("new") ? "disk-0@new" : "disk-0"
        #expect(server.engine.state.withLock(\.asked) == ["diff disk-0@old \(place)"])
      }
    }
  }

  @Test("A rollback is refused while clients are connected, unless it is forced")
  func rollback() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 1)) { server throws in
      try take(server, "disk-0@s")
      server.engine.state.withLock { $0.disks["disk-0"]!.connections = 1 }
      let path = "/v1/snapshots/disk-0@s/rollback"
      #expect(try problem(server, Request("POST", path)) == .inUse)
      #expect(try server.client.send(Request("POST", path, body: Rollback(force: true))) == [])
      #expect(server.engine.state.withLock(\.asked) == ["rollback disk-0@s"])
    }
  }

  @Test("Requests that name no snapshot, or ask for nothing or too much, are refused")
  func badRequests() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 1)) { server throws in
      try take(server, "disk-0@s")
      let create = { (names: [String]) throws in
        try problem(
          server, Request("POST", "/v1/snapshots", body: CreateSnapshots(snapshots: names)))
      }
      #expect(try create([]) == .badRequest)
      #expect(try create(["disk-0@t", "disk-0@t"]) == .badRequest)
      #expect(try create(["disk-0@s"]) == .alreadyExists)
      for name in ["disk-0", "disk-0@", "@s", "disk-0@a/b", "disk-0@..", "disk-0@é", "d@s@t"] {
        #expect(try create([name]) == .badName, "\(name)")
      }
      let path = "/v1/snapshots/disk-0@s"
      for change in [ChangeSnapshot(), ChangeSnapshot(name: "t", held: true)] {
        #expect(try problem(server, Request("PATCH", path, body: change)) == .badRequest)
      }
      #expect(
        try problem(server, Request("PATCH", path, body: ChangeSnapshot(name: "d@t"))) == .badName)
      for path in ["/v1/snapshots/disk-0", "/v1/snapshots/%ff@s", "/v1/snapshots/a%252Fb@s"] {
        #expect(try problem(server, Request("DELETE", path)) == .badName)
      }
      #expect(try problem(server, Request("GET", "/v1/diff")) == .badRequest)
      #expect(try problem(server, Request("GET", "/v1/diff?from=disk-0")) == .badName)
      #expect(try problem(server, Request("GET", "/v1/diff?from=disk-0@x")) == .noSuchSnapshot)
      #expect(try problem(server, Request("GET", "/v1/diff?from=disk-0@s&to=a@")) == .badName)
      #expect(try problem(server, Request("GET", "/v1/snapshots?disk=a@b")) == .badName)
      #expect(try list(server).map(\.name) == ["s"])
    }
  }
}

@Suite("Snapshots and clones on the command line")
struct SnapshotCommandTests {
  @Test("A snapshot goes through its life")
  func lifeOfASnapshot() async throws {
    try await withDaemon(FakeEngine(diskCount: 2)) { server, run throws in
      let silent = try run("snapshot", "create", "disk-0@one")
      #expect(silent.code == 0 && silent.out.isEmpty && silent.err.isEmpty)
      let listed = try run("snapshot", "list")
      #expect(listed.out.contains("disk-0@one") && listed.out.contains("2026-03-01T12:00:00Z"))
      #expect(try run("snapshot", "rename", "disk-0@one", "two").code == 0)
      #expect(try run("snapshot", "hold", "disk-0@two").code == 0)
      let held = try run("snapshot", "delete", "disk-0@two")
      #expect(held.code == 1 && held.err.contains("snapshot release disk-0@two"))
      #expect(try run("snapshot", "list", "disk-0").out.contains("held"))
      #expect(try run("snapshot", "release", "disk-0@two").code == 0)
      #expect(try run("snapshot", "rollback", "disk-0@two").code == 0)
      #expect(try run("snapshot", "delete", "disk-0@two").code == 0)
      #expect(try run("snapshot", "list", "--json").out == "[]\n")
      #expect(try run("snapshot", "list", "absent").code == 1)
    }
  }

  @Test("A list has the promised keys, and a group its id")
  func listKeys() async throws {
    try await withDaemon(FakeEngine(diskCount: 2)) { server, run throws in
      let made = try run("snapshot", "create", "s", "disk-1", "disk-0", "--json")
      #expect(made.out == #"{"snapshots":["disk-1@s","disk-0@s"]}"# + "\n")
      let text = try run("snapshot", "list", "--json").out
      for key in [
        "disk", "name", "id", "created", "used", "exclusive", "clones", "group", "held",
      ] { #expect(text.contains("\"\(key)\":"), "\(key)") }
      let table = try run("snapshot", "list").out.split(separator: "\n")
      #expect(table.count == 3 && table[1].hasPrefix("disk-0@s"))
      #expect(table[1].hasSuffix("group 0000000000000100"))
    }
  }

  @Test("A rollback under clients, and a disk with snapshots, need to be forced")
  func refusals() async throws {
    try await withDaemon(FakeEngine(diskCount: 1)) { server, run throws in
      #expect(try run("snapshot", "create", "disk-0@s").code == 0)
      server.engine.state.withLock { $0.disks["disk-0"]!.connections = 2 }
      let refused = try run("snapshot", "rollback", "disk-0@s")
      #expect(refused.code == 1 && refused.err.contains("--force"))
      #expect(try run("snapshot", "rollback", "disk-0@s", "--force").code == 0)
      let deleted = try run("disk", "delete", "disk-0", "--force")
      #expect(deleted.code == 1 && deleted.err.contains("--snapshots"))
      #expect(try run("disk", "delete", "disk-0", "--force", "--snapshots").code == 0)
    }
  }

  @Test("Clones are made and shown with their origin")
  func clones() async throws {
    try await withDaemon(FakeEngine(diskCount: 1)) { server, run throws in
      #expect(try run("snapshot", "create", "disk-0@gold").code == 0)
      let made = try run("clone", "disk-0@gold", "vm", "--count", "3", "--json")
      #expect(made.out == #"{"count":3,"first":"vm-1","last":"vm-3"}"# + "\n")
      #expect(try run("clone", "disk-0@gold", "vm").out.isEmpty)
      #expect(try run("clone", "disk-0@gold", "vm").code == 1)
      #expect(try run("disk", "show", "vm-2").out.contains("disk-0@gold"))
      #expect(try run("disk", "list").out.contains("clone of disk-0@gold"))
    }
  }

  @Test("A difference is a table, or JSON with offset, length and type")
  func diff() async throws {
    try await withDaemon(FakeEngine(diskCount: 1)) { server, run throws in
      #expect(try run("snapshot", "create", "disk-0@a").code == 0)
      #expect(try run("snapshot", "create", "disk-0@b").code == 0)
      server.engine.state.withLock {
        $0.changes = [
          ChangedRange(offset: 0, length: 4096, isZero: true),
          ChangedRange(offset: 4096, length: 8192, isZero: false),
        ]
      }
      let json = try run("snapshot", "diff", "disk-0@a", "disk-0@b", "--json").out
      let changes = try JSONText.decode([Change].self, from: Array(json.utf8))
      #expect(changes.map(\.type) == [.zero, .data] && changes[1].length == 8192)
      #expect(try run("snapshot", "diff", "disk-0@a").out.contains("  4096    8192  data\n"))
      #expect(
        server.engine.state.withLock(\.asked)
          == ["diff disk-0@a disk-0@b", "diff disk-0@a disk-0"])
    }
  }
}
