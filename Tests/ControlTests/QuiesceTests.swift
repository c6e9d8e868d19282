import ControlAPI
import Core
import Glibc
import Testing

@Suite("Quiesced snapshots")
struct QuiesceTests {
  /// Takes a snapshot of one disk with guest agents of the given kinds, named a, b, c….
  ///
  /// - Returns: the outcome of the command, and what happened, in order.
  private func snapshot(
    _ kinds: [FakeAgent.Behaviour], timeout: Double = 5, refusal: ControlError? = nil,
    interrupting signal: (after: String, number: Int32)? = nil,
    onMark: (@Sendable () -> Void)? = nil
  ) async throws -> (result: CommandResult, events: [String], isTaken: Bool) {
    let engine = FakeEngine(diskCount: 1)
    let events = Events()
    engine.state.withLock {
      $0.refusal = refusal
      $0.onSnapshot = {
        events.add("mark")
        onMark?()
      }
    }
    return try await TestServer.run(engine: engine) { server throws in
      let agents = try kinds.enumerated().map { index, kind in
        try FakeAgent(
          String(UnicodeScalar(UInt8(97 + index))), kind, in: server.directory, events: events)
      }
      defer { for agent in agents { agent.stop() } }
      let result = try runProgram(
        ["snapshot", "create", "disk-0@s", "--quiesce-timeout", "\(timeout)", "--quiesce"]
          + agents.map(\.path) + ["--pool", server.directory], scratch: server.directory
      ) { process in
        guard let signal else { return }
        events.wait(for: signal.after)
        kill(process, signal.number)
      }
      let isTaken = engine.state.withLock { !$0.snapshots.isEmpty }
      return (result, events.all.filter { !$0.hasSuffix("left") }, isTaken)
    }
  }

  @Test("Guests are frozen before the mark and thawed after it")
  func order() async throws {
    let (result, events, isTaken) = try await snapshot([.good, .good, .freezesLate])
    #expect(result.code == 0 && result.err.isEmpty && isTaken)
    #expect(events.count == 7 && events[3] == "mark")
    #expect(Set(events[..<3]) == ["a freeze", "b freeze", "c freeze"])
    #expect(Set(events[4...]) == ["a thaw", "b thaw", "c thaw"])
  }

  @Test("A guest that hangs ends it in time, and all that may be frozen are thawed")
  func hangingGuest() async throws {
    let (result, events, isTaken) = try await snapshot([.good, .hangsInFreeze], timeout: 0.5)
    #expect(result.code == 1 && !isTaken)
    #expect(events.filter { $0 != "b freeze" } == ["a freeze", "a thaw"])
    let lines = result.err.split(separator: "\n")
    #expect(lines.count == 2 && lines[0].contains("/b may still be frozen"))
    #expect(lines[1].contains("/b did not freeze its guest within 0.5 s; no snapshot was taken"))
  }

  @Test("A guest that freezes too late is thawed behind it")
  func lateGuest() async throws {
    let (result, events, isTaken) = try await snapshot([.freezesLate], timeout: 0.3)
    #expect(result.code == 1 && !isTaken && events == ["a freeze", "a thaw"])
    #expect(result.err.utf8.count { $0 == 10 } == 1)
  }

  @Test("Where an agent does not answer, is not there or speaks nonsense, none is frozen")
  func absentAgent() async throws {
    let silent = try await snapshot([.good, .silent], timeout: 0.5)
    #expect(silent.result.code == 1 && silent.events.isEmpty && !silent.isTaken)
    #expect(silent.result.err.contains("/b did not answer within 0.5 s"))
    let nonsense = try await snapshot([.good, .speaksNonsense])
    #expect(nonsense.result.code == 1 && nonsense.events.isEmpty && !nonsense.isTaken)
    try await withDaemon(FakeEngine(diskCount: 1)) { server, run throws in
      let socket = "\(server.directory)/absent"
      let result = try run("snapshot", "create", "--quiesce", socket, "disk-0@s")
      #expect(result.code == 1 && result.err.contains("\(socket) can't be reached"))
      #expect(server.engine.state.withLock { $0.snapshots.isEmpty })
    }
  }

  @Test("A refusal is told in the agent's words, and the other guests are thawed")
  func refusal() async throws {
    let (result, events, isTaken) = try await snapshot([.good, .refusesFreeze])
    #expect(result.code == 1 && result.err.contains("/b refused: too cold") && !isTaken)
    #expect(events.last == "a thaw" && !events.contains("b thaw"))
  }

  @Test("A guest whose agent breaks off in its freeze is thawed through a new connection")
  func brokenAgent() async throws {
    let (result, events, isTaken) = try await snapshot([.breaksInFreeze])
    #expect(result.code == 1 && !isTaken && events == ["a freeze", "a thaw"])
    #expect(result.err.contains("/a broke the connection; no snapshot was taken"))
  }

  @Test("When the mark is refused, the guests are thawed and the refusal is told")
  func refusedMark() async throws {
    let (result, events, _) = try await snapshot([.good], refusal: .suspended)
    #expect(result.code == 1 && result.err.contains("suspended"))
    #expect(events == ["a freeze", "a thaw"])
  }

  @Test("A signal in the midst of it thaws the guests", arguments: [SIGINT, SIGTERM, SIGHUP])
  func interruption(number: Int32) async throws {
    let (result, events, isTaken) = try await snapshot(
      [.good, .freezesLate], interrupting: ("b freeze", number))
    #expect(result.code == 1 && result.err.contains("interrupted; no snapshot") && !isTaken)
    #expect(Set(events.suffix(2)) == ["a thaw", "b thaw"])
  }

  @Test("A signal during the mark thaws the guests without waiting for the daemon")
  func interruptedMark() async throws {
    let (result, events, _) = try await snapshot(
      [.good], interrupting: ("mark", SIGINT), onMark: { sleep(2) })
    #expect(result.code == 1 && result.err.contains("sluice snapshot list"))
    #expect(events == ["a freeze", "mark", "a thaw"])
  }

  @Test("A guest that was not frozen any more, or is not thawed, is told of")
  func failedThaw() async throws {
    let early = try await snapshot([.thawsByItself])
    #expect(early.result.code == 1 && early.isTaken)
    #expect(early.result.err.contains("the snapshot was taken, but the guest of"))
    #expect(early.result.err.contains("had thawed before"))
    let refused = try await snapshot([.refusesThaw])
    #expect(refused.result.code == 1 && refused.isTaken)
    #expect(refused.result.err.contains("may still be frozen, its agent refused: too warm"))
  }
}
