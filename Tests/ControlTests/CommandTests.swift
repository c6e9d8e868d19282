import ControlAPI
import Core
import Glibc
import Testing

/// What the executable said and how it ended.
struct CommandResult {
  var code: Int32
  var out: String
  var err: String
}

/// Runs the executable next to the test's own with only the given environment. It blocks.
///
/// - Parameters:
///   - isRead: whether anybody reads its standard output.
///   - whileRunning: called with the process's id once it is started.
func runProgram(
  _ arguments: [String], environment: [String] = [], scratch: String, isRead: Bool = true,
  whileRunning: (pid_t) -> Void = { _ in }
) throws -> CommandResult {
  var own = [UInt8](repeating: 0, count: 4096)
  let length = readlink("/proc/self/exe", &own, own.count)
  let folder = String(decoding: own[..<max(0, length)], as: UTF8.self)
  let program = folder[..<(folder.lastIndex(of: "/") ?? folder.endIndex)] + "/sluice"
  var actions = posix_spawn_file_actions_t()
  posix_spawn_file_actions_init(&actions)
  defer { posix_spawn_file_actions_destroy(&actions) }
  for (descriptor, name) in [(STDOUT_FILENO, "out"), (STDERR_FILENO, "err")] {
    posix_spawn_file_actions_addopen(
      &actions, descriptor, "\(scratch)/\(name)", O_CREAT | O_TRUNC | O_WRONLY, 0o600)
  }
  var ends: [Int32] = [-1, -1]
  if !isRead {
    guard pipe(&ends) == 0 else { throw TestFailure(what: "pipe") }
    close(ends[0])
    posix_spawn_file_actions_adddup2(&actions, ends[1], STDOUT_FILENO)
  }
  defer { if !isRead { close(ends[1]) } }
  var argv = ([String(program)] + arguments).map { strdup($0) } + [nil]
  var envp = environment.map { strdup($0) } + [nil]
  defer { for text in argv + envp { free(text) } }
  // The test's thread blocks all signals, which a new process would inherit.
  var attributes = posix_spawnattr_t()
  posix_spawnattr_init(&attributes)
  defer { posix_spawnattr_destroy(&attributes) }
  var none = sigset_t()
  sigemptyset(&none)
  posix_spawnattr_setsigmask(&attributes, &none)
  posix_spawnattr_setflags(&attributes, Int16(POSIX_SPAWN_SETSIGMASK))
  var pid = pid_t()
  let error = posix_spawn(&pid, String(program), &actions, &attributes, &argv, &envp)
  guard error == 0 else { throw TestFailure(what: "spawn \(program): \(error)") }
  whileRunning(pid)
  var status: Int32 = 0
  waitpid(pid, &status, 0)
  return CommandResult(
    code: status & 0x7F == 0 ? status >> 8 & 0xFF : -(status & 0x7F),
    out: try contents("\(scratch)/out"), err: try contents("\(scratch)/err"))
}

private func contents(_ path: String) throws -> String {
  let file = open(path, O_RDONLY)
  guard file >= 0 else { throw TestFailure(what: "open \(path)") }
  defer { close(file) }
  var bytes: [UInt8] = []
  var part = [UInt8](repeating: 0, count: 1 << 16)
  while case let n = read(file, &part, part.count), n > 0 { bytes += part[..<n] }
  return String(decoding: bytes, as: UTF8.self)
}

/// Runs commands against a server over a fake engine.
func withDaemon(
  _ engine: FakeEngine = FakeEngine(),
  _ body: @escaping @Sendable (TestServer, (String...) throws -> CommandResult) throws -> Void
) async throws {
  try await TestServer.run(engine: engine) { server in
    try body(server) { (arguments: String...) in
      try runProgram(arguments + ["--pool", server.directory], scratch: server.directory)
    }
  }
}

@Suite("The command line as a program")
struct CommandTests {
  @Test("A disk goes through its life")
  func lifeOfADisk() async throws {
    try await withDaemon { server, run throws in
      let created = try run("disk", "create", "vm/root", "--size", "64G", "--json")
      #expect(created.code == 0 && created.err.isEmpty)
      let disk = try JSONText.decode(Disk.self, from: Array(created.out.utf8))
      #expect(disk.name == "vm/root" && disk.size == 64 << 30)
      #expect(try run("disk", "resize", "vm/root", "32G").code == 1)
      #expect(try run("disk", "resize", "vm/root", "32G", "--shrink").code == 0)
      #expect(try run("disk", "set", "vm/root", "durability=flush", "comment=a=b").code == 0)
      #expect(try run("disk", "rename", "vm/root", "new").code == 0)
      let shown = try run("disk", "show", "new")
      #expect(shown.out.contains("32 GiB (34359738368 bytes)") && shown.out.contains("a=b"))
      let listed = try run("disk", "list")
      #expect(listed.out.contains("new") && listed.out.contains("durable on flush"))
      let silent = try run("disk", "delete", "new")
      #expect(silent.code == 0 && silent.out.isEmpty && silent.err.isEmpty)
      #expect(try run("disk", "list", "--json").out == "[]\n")
    }
  }

  @Test("A size is rounded up to whole sectors, with a notice")
  func rounding() async throws {
    try await withDaemon { server, run throws in
      let result = try run("disk", "create", "a", "--size", "1000")
      #expect(result.code == 0 && result.out.isEmpty && result.err.contains("1024 bytes"))
      #expect(server.engine.state.withLock { $0.disks["a"]?.size } == 1024)
    }
  }

  @Test("The daemon's refusal is one sentence on standard error and exit code 1")
  func refusal() async throws {
    try await withDaemon { server, run throws in
      server.engine.state.withLock { $0.refusal = .hasSnapshots("a", count: 2) }
      let result = try run("disk", "delete", "a")
      let sentence = ControlError.hasSnapshots("a", count: 2).description
      #expect(result.code == 1 && result.out.isEmpty && result.err == "sluice: \(sentence)\n")
    }
  }

  @Test("Status shows the pool, and as JSON the promised keys")
  func status() async throws {
    try await withDaemon { server, run throws in
      #expect(try run("status").out.contains("online"))
      let json = try run("status", "--json")
      let status = try JSONText.decode(Status.self, from: Array(json.out.utf8))
      #expect(status.pool == "test" && json.code == 0)
    }
  }

  @Test("Scrub exits with 0 when clean, 2 with damage, 1 when it could not run; flush with 0")
  func scrub() async throws {
    try await withDaemon { server, run throws in
      #expect(try run("flush").code == 0)
      #expect(server.engine.state.withLock(\.flushes) == 1)
      #expect(try run("scrub").code == 0)
      server.engine.state.withLock {
        $0.scrub.damagedBlocks = 1
        $0.scrub.damage = ["disk “a” at byte 4096: wrong checksum"]
      }
      let damaged = try run("scrub")
      #expect(damaged.code == 2 && damaged.out.contains("at byte 4096") && damaged.err.isEmpty)
      server.engine.state.withLock { $0.refusal = .suspended }
      #expect(try run("scrub").code == 1)
    }
  }

  @Test("The list of 100,000 disks is complete as a table and as JSON")
  func longList() async throws {
    try await withDaemon(FakeEngine(diskCount: 100_000)) { server, run throws in
      #expect(try run("disk", "list").out.utf8.count { $0 == 10 } == 100_001)
      // One line a disk, one with each bracket.
      #expect(try run("disk", "list", "--json").out.utf8.count { $0 == 10 } == 100_002)
    }
  }

  @Test(
    "Wrong usage is one sentence with the way to the help, and exit code 64",
    arguments: [
      ["frob"], ["disk", "create"], ["disk", "create", "a"],
      ["disk", "create", "a b", "--size", "1"],
      ["disk", "create", "a%20b", "--size", "1"], ["disk", "create", "..", "--size", "1"],
      ["disk", "create", "a", "--size", "64GB"], ["disk", "create", "a", "--size", "0"],
      ["disk", "create", "a", "--size", "8P"], ["disk", "show", "a//b"],
      ["disk", "show", "a", "b"],
      ["disk", "rename", "a", "b%20"], ["disk", "resize", "a", "1G", "--force"],
      ["disk", "set", "a"], ["disk", "set", "a", "x=1"], ["disk", "set", "a", "comment"],
      ["disk", "set", "a", "read_only=yes"], ["disk", "set", "a", "read_only=on", "read_only=off"],
      ["status", "--api", "nowhere"], ["status", "--api", "unix:/x", "--pool", "/x"],
      ["status", "--frob"], ["status"], ["serve"], ["top", "--interval", "0", "--pool", "/x"],
      ["top", "--once", "-n", "2", "--pool", "/x"], ["top", "-n", "0", "--pool", "/x"],
      ["snapshot", "create"], ["snapshot", "create", "a"], ["snapshot", "create", "a@"],
      ["snapshot", "create", "a@.."], ["snapshot", "create", "a@b/c"],
      ["snapshot", "create", "@s"],
      ["snapshot", "create", "a@s", "b"], ["snapshot", "create", "a@s", "a@s"],
      ["snapshot", "create", "s t", "a"], ["snapshot", "create", "s", "a", "a"],
      ["snapshot", "create", "a@s", "--quiesce"],
      ["snapshot", "create", "a@s", "--quiesce", "x", "x"],
      ["snapshot", "create", "a@s", "--quiesce", String(repeating: "x", count: 120)],
      ["snapshot", "create", "a@s", "--quiesce", "x", "--quiesce-timeout", "0"],
      ["snapshot", "create", "--quiesce", "x", "s", "a"],
      ["snapshot", "list", "a@s"], ["snapshot", "delete", "a"], ["snapshot", "rollback", "a"],
      ["snapshot", "rename", "a@s", "b@t"], ["snapshot", "rename", "a@s", "t/u"],
      ["snapshot", "rename", "a@s", String(repeating: "x", count: 256)],
      ["snapshot", "hold", "a@s@t"], ["snapshot", "release"], ["snapshot", "diff", "a"],
      ["snapshot", "diff", "a@s", "a@"], ["clone", "a@s"], ["clone", "a", "b"],
      ["clone", "a@s", "b@c"], ["clone", "a@s", "b%20c"], ["clone", "a@s", "b", "--count", "0"],
      ["clone", "a@s", "b", "--count", "100001"], ["clone", "a@s", "b", "--count", "x"],
      ["clone", "a@s", String(repeating: "x", count: 254), "--count", "10"],
    ])
  func wrongUsage(arguments: [String]) async throws {
    try await blocking {
      let directory = try temporaryDirectory()
      defer { removeDirectory(directory) }
      let result = try runProgram(arguments, scratch: directory)
      #expect(result.code == 64 && result.out.isEmpty)
      #expect(result.err.hasPrefix("sluice: ") && result.err.hasSuffix(" --help`\n"))
      #expect(result.err.utf8.count { $0 == 10 } == 1, "\(result.err)")
    }
  }

  @Test(
    "Every command explains itself with --help",
    arguments: [
      [], ["disk"], ["disk", "create"], ["disk", "list"], ["disk", "show"], ["disk", "rename"],
      ["disk", "resize"], ["disk", "set"], ["disk", "delete"], ["status"], ["flush"], ["scrub"],
      ["snapshot"], ["snapshot", "create"], ["snapshot", "list"], ["snapshot", "delete"],
      ["snapshot", "rollback"], ["snapshot", "rename"], ["snapshot", "hold"],
      ["snapshot", "release"], ["snapshot", "diff"], ["clone"], ["top"],
    ])
  func help(command: [String]) async throws {
    try await blocking {
      let directory = try temporaryDirectory()
      defer { removeDirectory(directory) }
      let result = try runProgram(command + ["--help"], scratch: directory)
      #expect(result.code == 0 && result.err.isEmpty)
      #expect(result.out.contains("USAGE: \((["sluice"] + command).joined(separator: " "))"))
    }
  }

  @Test("The daemon is found by the environment, and options come before it")
  func environment() async throws {
    try await TestServer.run { server throws in
      func status(_ arguments: [String], _ environment: [String]) throws -> Int32 {
        try runProgram(["status"] + arguments, environment: environment, scratch: server.directory)
          .code
      }
      #expect(try status([], ["SLUICE_POOL=\(server.directory)"]) == 0)
      #expect(try status([], ["SLUICE_API=\(server.tcp)", "SLUICE_POOL=/absent"]) == 0)
      #expect(try status(["--api", "\(server.address)"], ["SLUICE_API=unix:/absent"]) == 0)
      #expect(try status([], ["SLUICE_API=unix:/absent"]) == 1)
      #expect(try status([], ["SLUICE_API=absent"]) == 64)
      #expect(try status([], ["SLUICE_API="]) == 64)
    }
  }

  @Test("A pool that is not served, or not there, is told apart")
  func absentDaemon() async throws {
    try await blocking {
      let directory = try temporaryDirectory()
      defer { removeDirectory(directory) }
      func message(_ pool: String) throws -> String {
        let result = try runProgram(["status", "--pool", pool], scratch: directory)
        #expect(result.code == 1)
        return result.err
      }
      #expect(try message("/absent").contains("no directory /absent"))
      #expect(try message(directory).contains("pool.json"))
      close(open("\(directory)/pool.json", O_CREAT | O_WRONLY, 0o600))
      #expect(try message(directory).contains("sluice serve --pool \(directory)"))
    }
  }

  @Test("A reader that goes away ends a list quietly")
  func closedOutput() async throws {
    try await TestServer.run(engine: FakeEngine(diskCount: 5000)) { server in
      let result = try runProgram(
        ["disk", "list", "--pool", server.directory], scratch: server.directory, isRead: false)
      #expect(result.code == 1 && result.err.isEmpty)
    }
  }
}
