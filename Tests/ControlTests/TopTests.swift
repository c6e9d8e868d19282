import Commands
import ControlAPI
import ControlServer
import Core
import Testing

private typealias Request = ControlClient.Request

private func disk(_ number: Int, _ figures: DiskFigures = DiskFigures()) -> DiskLatency {
  DiskLatency(
    name: "dir/disk-\(number)", id: ObjectID(UInt64(16 + number)), connections: 1,
    uptimeNanoseconds: 5_000_000_000, figures: figures)
}

@Suite("Figures of latency over the API, and sluice top")
struct TopTests {
  private func busy(_ count: Int) -> DiskFigures {
    var figures = DiskFigures()
    for i in 0..<count {
      figures.record(.read, OperationTime(total: UInt64(i) * 1000, queue: 0), bytes: 8192)
      figures.record(
        .write, OperationTime(total: UInt64(i) * 3000, queue: UInt64(i) * 1000), bytes: 4096)
    }
    return figures
  }

  @Test(
    "A disk's figures written by hand are those that the encoder writes", arguments: [0, 7, 999])
  func appended(count: Int) throws {
    let times = DiskTimes(
      name: "a\"b", id: "0100000000000010", connections: 3, uptimeMicroseconds: 1 << 50,
      read: DiskOperations(busy(count).read), write: DiskOperations(busy(count).write),
      flush: DiskOperations(busy(0).flush))
    var bytes: [UInt8] = []
    times.appendJSON(to: &bytes)
    #expect(try JSONText.decode(DiskTimes.self, from: bytes) == times)
    #expect(try JSONText.encode(times) == bytes)
  }

  @Test("All pages of the disks' figures come in one array")
  func pages() async throws {
    let engine = FakeEngine()
    engine.state.withLock { $0.latencies = (0..<600).map { disk($0) } }
    try await TestServer.run(engine: engine) { server in
      let disks = try server.client.send(Request("GET", "/v1/latency"), as: [DiskTimes].self)
      #expect(Set(disks.map(\.id)).count == 600)
      #expect(disks.allSatisfy { $0.write.count == 1 && $0.write.buckets.count == 1 })
    }
  }

  @Test("Status has the pool's times in microseconds, and the slowest operations with their stages")
  func status() async throws {
    let engine = FakeEngine()
    var stages = InlineArray<9, UInt64>(repeating: 0)
    stages[RequestStage.admission.rawValue] = 7_000_000
    stages[RequestStage.log.rawValue] = 1_234_567
    let slow = SlowOperation(
      disk: ObjectID(16), name: "vm", operation: .write, offset: 4096, length: 512,
      status: .ioError, ended: 1_772_366_400_000_000_000, total: 8_234_567, stages: stages)
    let figures = busy(100)
    engine.state.withLock {
      $0.status.latency = [figures.read, figures.write, figures.flush].map { OperationLatency($0) }
      $0.status.slowest = [slow]
    }
    try await TestServer.run(engine: engine) { server in
      let status = try server.client.send(Request("GET", "/v1/status"), as: Status.self)
      let write = status.latency.write
      #expect(write.count == 100 && write.total.max == 297 && write.queue.max == 99)
      #expect(write.total.p50 <= write.total.p99 && write.total.p99 <= write.total.p999)
      #expect(status.latency.flush.count == 0 && status.slowestRecently.isEmpty)
      let found = try #require(status.slowest.first)
      #expect(found.stages == ["admission": 7000, "log": 1234.5] && found.status == "io_error")
      #expect(found.queue == 7000 && found.total == 8234.5 && found.at == "2026-03-01T12:00:00Z")
    }
  }

  private func sample(_ disks: [DiskLatency], seconds: Double) throws -> TopSample {
    var status = PoolStatus()
    status.name = "demo"
    status.uptimeNanoseconds = UInt64(seconds * 1e9)
    status.logSize = 1000
    status.logUsed = 250
    status.destagedBytes = UInt64(seconds) << 20
    let shown = try JSONText.encode(Status(status, version: "1", memoryBytes: 0))
    return TopSample(
      status: try JSONText.decode(Status.self, from: shown),
      disks: disks.map {
        var disk = $0
        disk.uptimeNanoseconds = UInt64(seconds * 1e9)
        return DiskTimes(disk)
      })
  }

  @Test("Rates and quantiles are those of the interval, not those since start")
  func interval() throws {
    var figures = DiskFigures()
    for _ in 0..<1000 {
      figures.record(.write, OperationTime(total: 50_000_000, queue: 0), bytes: 4096)
    }
    let before = try sample([disk(0, figures), disk(1, figures)], seconds: 10)
    for _ in 0..<200 {
      figures.record(.write, OperationTime(total: 1_000_000, queue: 250_000), bytes: 4096)
    }
    let after = try sample([disk(0, figures), disk(1, busy(10)), disk(2, busy(3))], seconds: 12)
    let rates = PoolRates(from: before, to: after, at: "now")
    #expect(rates.disks.map(\.name) == ["dir/disk-0", "dir/disk-1", "dir/disk-2"])
    let write = rates.disks[0].write
    #expect(write.perSecond == 100 && write.bytesPerSecond == 409_600)
    #expect(abs(write.p50 - 1000) <= 1000 / 16 && write.p99 == write.p50 && write.mean == 1000)
    #expect(write.queueShare == 0.25 && rates.disks[0].queueShare == 0.25)
    // A disk whose figures were begun anew, and one that had none.
    #expect(rates.disks[1].write.perSecond == 5 && rates.disks[2].read.perSecond == 1.5)
    #expect(rates.logFill == 0.25 && rates.destageBytesPerSecond == 1_048_576)
  }

  @Test(
    "The view fits the terminal, and says what it leaves out", arguments: [30, 40, 60, 80, 132])
  func width(columns: Int) throws {
    let many = (0..<40).map { disk($0 * 1_000_000, busy($0 + 1)) }
    let empty = try sample([], seconds: 1)
    let rates = PoolRates(from: empty, to: try sample(many, seconds: 2), at: "now")
    let lines = TopView.lines(rates, screen: (columns: columns, rows: 24))
    #expect(lines.count <= 24 && lines.allSatisfy { $0.count <= columns })
    let titles = try #require(lines.first { $0.hasPrefix("DISK") })
    #expect(titles.contains("READ/S") && (columns < 40 || titles.contains("WRITE/S")))
    #expect(columns < 132 || titles.hasSuffix("QUEUE"))
    // The busiest one, by the end of its name at least.
    #expect(lines.contains { $0.split(separator: " ").first?.hasSuffix("000") == true })
    #expect(lines.contains { $0.contains("less busy disks") })
    #expect(TopView.lines(rates, screen: nil).count > 40)
  }

  @Test("A disk without operations in the interval is not shown")
  func idle() throws {
    let before = try sample([disk(0, busy(5))], seconds: 1)
    let rates = PoolRates(from: before, to: try sample([disk(0, busy(5))], seconds: 2), at: "now")
    #expect(rates.disks.isEmpty)
    #expect(TopView.lines(rates, screen: nil).last == "no disk had an operation")
  }

  @Test(
    "Microseconds are shown as milliseconds with about three digits",
    arguments: [
      (0, "0.000"), (7.4, "0.007"), (999.6, "1.000"), (12_345, "12.34"), (123_456, "123.4"),
      (1_234_567, "1234"),
    ])
  func shownMilliseconds(micro: Double, text: String) { #expect(milliseconds(micro) == text) }

  @Test("Without a terminal each look is plain text, as many as were asked for")
  func batch() async throws {
    let engine = FakeEngine()
    engine.state.withLock { $0.latencies = [disk(0)] }
    try await withDaemon(engine) { server, run throws in
      let one = try run("top", "--once", "--interval", "0.1")
      #expect(one.code == 0 && one.err.isEmpty && one.out.hasPrefix("pool test, online"))
      #expect(one.out.contains("dir/disk-0") && !one.out.contains("\u{1B}"))
      let two = try run("top", "-n", "2", "--interval", "0.1", "--json")
      let lines = two.out.split(separator: "\n")
      #expect(lines.count == 2)
      for line in lines {
        let rates = try JSONText.decode(PoolRates.self, from: Array(line.utf8))
        #expect(rates.disks.count == 1 && rates.disks[0].write.perSecond == 10)
      }
      server.engine.state.withLock { $0.refusal = .suspended }
      #expect(try run("top", "--once").code == 1)
    }
  }
}
