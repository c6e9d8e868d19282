import Core
import Daemon
import DeviceIO
import Glibc
import Synchronization
import Testing

/// Small disks' worth of sizes that meet pieces, pages and bytes in every way.
private let sizes = [1, 511, 4096, 4097, 65536, 262_144, 262_145, 1 << 20, (1 << 20) + 777]

@Suite(.serialized) struct EventLoopTests {
  private func limits(_ change: (inout LoopRunner.Limits) -> Void = { _ in }) -> LoopRunner.Limits {
    var limits = LoopRunner.Limits()
    limits.obeysSignals = false
    change(&limits)
    return limits
  }

  @Test(arguments: [false, true])
  func `what a client writes it reads back, over either kind of socket`(tcp: Bool) throws {
    let runner = try LoopRunner(limits: limits())
    let peer = tcp ? try TestPeer(port: runner.port) : try TestPeer(path: runner.socketPath)
    try peer.go("disk")
    for (i, size) in sizes.enumerated() {
      let data = patternBytes(size, seed: i)
      try peer.write(data, at: 4096 * i + i)
      try peer.flush()
      #expect(try peer.read(size, at: 4096 * i + i) == data)
    }
    try peer.disconnect()
    #expect(peer.isClosedByServer())
    #expect(runner.stop() == .stopped)
    #expect(runner.memoryAtEnd == 0)
    #expect(runner.controls.openDisks.load(ordering: .relaxed) == 0)
  }

  @Test func `200 connections are served at once`() throws {
    let runner = try LoopRunner(limits: limits())
    let peers = try (0..<200).map { _ in try TestPeer(path: runner.socketPath).go("disk") }
    for (i, peer) in peers.enumerated() {
      try peer.send(
        TestPeer.request(
          1, cookie: UInt64(i), offset: UInt64(i * 8192), length: 5000,
          payload: patternBytes(5000, seed: i)))
    }
    for (i, peer) in peers.enumerated() {
      let reply = try peer.receive(16)
      #expect(reply[4..<8] == [0, 0, 0, 0])
      #expect(try peer.read(5000, at: i * 8192) == patternBytes(5000, seed: i))
    }
    #expect(runner.stop() == .stopped)
    #expect(runner.memoryAtEnd == 0)
  }

  @Test func `more replies than one send takes all come, though nothing else happens`() throws {
    let runner = try LoopRunner(limits: limits())
    let peer = try TestPeer(path: runner.socketPath).go("disk")
    for count in [33, 64, 100, 127] {
      let requests = (0..<count).map {
        TestPeer.request(0, cookie: UInt64($0), offset: UInt64($0 * 4096), length: 4096)
      }
      try peer.send(requests.flatMap { $0 })
      #expect(try peer.receive(count * (16 + 4096)).count == count * (16 + 4096))
    }
    #expect(runner.stop() == .stopped)
  }

  @Test func `one connection more than the limit is closed at once, until another leaves`() throws {
    let runner = try LoopRunner(limits: limits { $0.connections = 3 })
    var peers = try (0..<3).map { _ in try TestPeer(path: runner.socketPath).go("disk") }
    #expect(try TestPeer(path: runner.socketPath).isClosedByServer())
    try peers[0].write([1, 2, 3], at: 0)
    try peers.removeLast().disconnect()
    #expect(
      runner.eventually { (try? TestPeer(path: runner.socketPath).go("disk")) != nil })
    #expect(runner.stop() == .stopped)
  }

  @Test func `connections that never ask for a disk can't keep the others out`() throws {
    let runner = try LoopRunner(
      limits: limits {
        $0.connections = 3
        $0.patience = 100_000_000
      })
    let served = try TestPeer(path: runner.socketPath).go("disk")
    let silent = try (0..<2).map { _ in try TestPeer(path: runner.socketPath) }
    // Two at a time: where only one of the silent ones was there for long enough, only that goes.
    var others: [TestPeer] = []
    #expect(
      runner.eventually {
        if let peer = try? TestPeer(path: runner.socketPath).go("disk") { others.append(peer) }
        return others.count == 2
      })
    #expect(silent.allSatisfy { $0.isClosedByServer() })
    try served.write([1], at: 0)
    #expect(runner.stop() == .stopped)
  }

  @Test func `an unknown name is refused and the connection may ask for another`() throws {
    let runner = try LoopRunner(limits: limits())
    #expect(throws: TestPeer.Failure.self) {
      try TestPeer(path: runner.socketPath).go("none")
    }
    try TestPeer(path: runner.socketPath).go("disk").write([9], at: 77)
    #expect(runner.stop() == .stopped)
  }

  @Test func `many clients with large requests share a memory smaller than one request`() throws {
    let runner = try LoopRunner(limits: limits { $0.payloadMemory = 512 << 10 })
    let peers = try (0..<8).map { _ in try TestPeer(path: runner.socketPath).go("disk") }
    let done = Atomic<Int>(0)
    try withThreads(peers.count) { i in
      for round in 0..<3 {
        let data = patternBytes((1 << 20) + 4097 * i, seed: i + round)
        try peers[i].write(data, at: i << 22 | round)
        guard try peers[i].read(data.count, at: i << 22 | round) == data else { return }
      }
      done.add(1, ordering: .relaxed)
    }
    #expect(done.load(ordering: .relaxed) == 8)
    #expect(runner.stop() == .stopped)
    #expect(runner.memoryAtEnd == 0)
  }

  @Test func `a client that never reads its replies holds bounded memory and stops nobody`() throws
  {
    let runner = try LoopRunner(limits: limits { $0.payloadMemory = 16 << 20 })
    let greedy = try TestPeer(path: runner.socketPath).go("disk")
    for i in 0..<120 { try greedy.send(TestPeer.request(0, cookie: UInt64(i), length: 1 << 20)) }
    let other = try TestPeer(path: runner.socketPath).go("disk")
    for i in 0..<20 {
      try other.write(patternBytes(1 << 20, seed: i), at: 1 << 20)
      #expect(try other.read(1 << 20, at: 1 << 20) == patternBytes(1 << 20, seed: i))
    }
    // And when it does read, it gets all of them.
    for _ in 0..<120 { _ = try greedy.receive(16 + 1 << 20) }
    #expect(runner.stop() == .stopped)
    #expect(runner.memoryAtEnd == 0)
  }

  @Test func `peers that stand still with the memory that others wait for are ended`() throws {
    let runner = try LoopRunner(
      limits: limits {
        $0.payloadMemory = 512 << 10
        $0.patience = 200_000_000
      })
    let reader = try TestPeer(path: runner.socketPath).go("disk")
    for i in 0..<16 { try reader.send(TestPeer.request(0, cookie: UInt64(i), length: 1 << 20)) }
    let writer = try TestPeer(path: runner.socketPath).go("disk")
    try writer.send(TestPeer.request(1, length: 262_144, payload: [1, 2, 3]))
    let other = try TestPeer(path: runner.socketPath).go("disk")
    try other.write(patternBytes(500_000, seed: 1), at: 0)
    #expect(try other.read(500_000, at: 0) == patternBytes(500_000, seed: 1))
    #expect(runner.stop() == .stopped)
    #expect(runner.memoryAtEnd == 0)
  }

  @Test func `memory of a dead client's requests is freed when the engine gives them back`() throws
  {
    let runner = try LoopRunner(limits: limits())
    do {
      let peer = try TestPeer(path: runner.socketPath).go("disk")
      runner.controls.holds.store(true, ordering: .relaxed)
      for i in 0..<20 {
        try peer.send(TestPeer.request(0, cookie: UInt64(i), length: 65536))
        try peer.send(
          TestPeer.request(
            1, cookie: UInt64(i), offset: 1 << 20, length: 5000,
            payload: patternBytes(5000, seed: 0)))
      }
      #expect(runner.eventually { runner.controls.outstanding.load(ordering: .relaxed) == 40 })
    }
    let other = try TestPeer(path: runner.socketPath).go("disk")
    #expect(runner.controls.openDisks.load(ordering: .relaxed) == 2)
    runner.controls.holds.store(false, ordering: .relaxed)
    #expect(runner.eventually { runner.controls.openDisks.load(ordering: .relaxed) == 1 })
    #expect(try other.read(5000, at: 1 << 20) == patternBytes(5000, seed: 0))
    #expect(runner.stop() == .stopped)
    #expect(runner.memoryAtEnd == 0)
  }

  @Test func `requests that the engine has no slot for wait their turn and none is lost`() throws {
    let runner = try LoopRunner(limits: limits())
    runner.controls.slots.store(3, ordering: .relaxed)
    let peers = try (0..<10).map { _ in try TestPeer(path: runner.socketPath).go("disk") }
    for peer in peers {
      var bytes: [UInt8] = []
      for i in 0..<50 { bytes += TestPeer.request(3, cookie: UInt64(i)) }
      try peer.send(bytes)
    }
    for peer in peers {
      var seen: Set<[UInt8]> = []
      for _ in 0..<50 { seen.insert(Array(try peer.receive(16)[8..<16])) }
      #expect(seen.count == 50)
    }
    #expect(runner.controls.refusals.load(ordering: .relaxed) > 0)
    #expect(runner.stop() == .stopped)
  }

  @Test func `garbage closes the connection that sent it and no other`() throws {
    let runner = try LoopRunner(limits: limits())
    let good = try TestPeer(path: runner.socketPath).go("disk")
    let early = try TestPeer(path: runner.socketPath)
    try early.send(patternBytes(5000, seed: 3))
    #expect(early.isClosedByServer())
    let late = try TestPeer(path: runner.socketPath).go("disk")
    try late.send(patternBytes(4096, seed: 3))
    #expect(late.isClosedByServer())
    try good.write([1], at: 0)
    #expect(runner.stop() == .stopped)
    #expect(runner.memoryAtEnd == 0)
  }

  @Test func `a client that sends byte by byte is served like any other`() throws {
    let runner = try LoopRunner(limits: limits())
    let peer = try TestPeer(path: runner.socketPath).go("disk")
    let request = TestPeer.request(
      1, cookie: 5, offset: 100, length: 60, payload: patternBytes(60, seed: 1))
    for byte in request { try peer.send([byte]) }
    #expect(try peer.receive(16)[4..<8] == [0, 0, 0, 0])
    #expect(try peer.read(60, at: 100) == patternBytes(60, seed: 1))
    #expect(runner.stop() == .stopped)
  }

  // MARK: Control and the end

  @Test func `control requests of other threads are answered, and refused after the end`()
    async throws
  {
    let runner = try LoopRunner(limits: limits())
    let mailbox = try #require(runner.mailbox)
    for _ in 0..<10 {
      guard case .status = await mailbox.send(.status) else {
        Issue.record("no status")
        return
      }
    }
    guard case .done = await mailbox.send(.stop) else {
      Issue.record("not stopped")
      return
    }
    #expect(runner.outcome() == .stopped)
    guard case .failed(.stopping) = await mailbox.send(.status) else {
      Issue.record("a stopped loop answered")
      return
    }
  }

  @Test func `a stop serves what it has taken, ends connections and removes the socket`() throws {
    let runner = try LoopRunner(limits: limits())
    let peer = try TestPeer(path: runner.socketPath).go("disk")
    runner.controls.holds.store(true, ordering: .relaxed)
    try peer.send(TestPeer.request(3, cookie: 1))
    #expect(runner.eventually { runner.controls.outstanding.load(ordering: .relaxed) == 1 })
    runner.mailbox?.send(.stop) { _ in }
    usleep(50_000)
    runner.controls.holds.store(false, ordering: .relaxed)
    #expect(try peer.receive(16)[4..<8] == [0, 0, 0, 0])
    #expect(peer.isClosedByServer())
    #expect(runner.outcome() == .stopped)
    #expect(access(runner.socketPath, F_OK) != 0)
    #expect(throws: TestPeer.Failure.self) { try TestPeer(path: runner.socketPath) }
  }

  @Test func `a client that keeps its connection open does not keep the loop from its end`() throws
  {
    let runner = try LoopRunner(limits: limits())
    let idle = try TestPeer(path: runner.socketPath).go("disk")
    let silent = try TestPeer(path: runner.socketPath)
    let start = monotonicNanoseconds()
    #expect(runner.stop() == .stopped)
    #expect(monotonicNanoseconds() - start < 2_500_000_000)
    #expect(idle.isClosedByServer() && silent.isClosedByServer())
  }

  @Test func `an engine that can't go on ends the loop with its sentence`() throws {
    let runner = try LoopRunner(limits: limits())
    let peer = try TestPeer(path: runner.socketPath).go("disk")
    runner.controls.fails.store(true, ordering: .relaxed)
    try peer.send(TestPeer.request(3, cookie: 1))
    #expect(runner.outcome() == .failed("the test's engine is broken"))
    #expect(peer.isClosedByServer())
  }

  @Test func `SIGTERM ends the loop cleanly`() throws {
    let runner = try LoopRunner(limits: limits { $0.obeysSignals = true })
    kill(getpid(), SIGTERM)
    #expect(runner.outcome() == .stopped)
  }
}

/// Runs `body` on `count` threads and waits for all; throws the first error.
private func withThreads(_ count: Int, _ body: @escaping @Sendable (Int) throws -> Void) throws {
  final class Job: Sendable {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }
  let failure = Mutex<(any Error)?>(nil)
  var threads: [pthread_t] = []
  for i in 0..<count {
    let job = Job {
      do { try body(i) } catch { failure.withLock { $0 = error } }
    }
    var thread = pthread_t()
    pthread_create(
      &thread, nil,
      { raw in
        if let raw { Unmanaged<Job>.fromOpaque(raw).takeRetainedValue().body() }
        return nil
      }, Unmanaged.passRetained(job).toOpaque())
    threads.append(thread)
  }
  for thread in threads { pthread_join(thread, nil) }
  if let error = failure.withLock({ $0 }) { throw error }
}
