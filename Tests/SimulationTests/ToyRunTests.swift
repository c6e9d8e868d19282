import Core
import Simulation
import Testing

private func run(
  _ seed: UInt64, steps: UInt64 = 500, _ durability: Durability = .always,
  planted: PlantedFault? = nil
) -> RunResult {
  Simulation(
    system: .toy, seed: seed, steps: steps,
    profile: .forToy(durability: [(durability, 1 as UInt64)]),
    planted: planted
  ).run()
}

/// The first of so many seeds that catches the fault.
private func catches(
  _ planted: PlantedFault, _ durability: Durability = .always, within seeds: UInt64
) -> UInt64? {
  (1...seeds).first { run($0, durability, planted: planted).violation != nil }
}

@Suite struct ToyRunTests {
  @Test("The same seed replays exactly, another seed is another story")
  func replay() {
    let first = run(11)
    let again = run(11)
    #expect(first.hash == again.hash)
    #expect(first.operations == again.operations && first.crashes == again.crashes)
    #expect(run(12).hash != first.hash)
  }

  @Test(
    "A correct engine passes, whatever its durability", arguments: [Durability.always, .flush])
  func correctEngine(durability: Durability) {
    var crashes: UInt64 = 0
    for seed in 1...12 as ClosedRange<UInt64> {
      let result = run(seed, durability)
      #expect(result.violation == nil, "seed \(seed): \(result.violation ?? "")")
      crashes += result.crashes
    }
    #expect(crashes > 30)
  }

  @Test("An engine that acknowledges before it is durable is caught")
  func ackBeforeDurable() { #expect(catches(.ackBeforeDurable, within: 20) != nil) }

  @Test("An engine that believes its log's tail without a checksum is caught")
  func logTailUnchecked() { #expect(catches(.logTailUnchecked, within: 120) != nil) }

  @Test("An engine that does not flush in recovery is caught")
  func noFlushInRecovery() {
    #expect(catches(.noFlushInRecovery, .flush, within: 200) != nil)
  }

  @Test("A restart that does not wait for the killed process's writes is caught")
  func lockNotAwaited() { #expect(catches(.lockNotAwaited, within: 200) != nil) }
}

@Suite struct LogWatchTests {
  @Test("A frame is covered once a durable frame was issued after it became durable")
  func coverage() {
    var watch = LogWatch()
    var random = SeededRandom(seed: 1)
    watch.issued(slot: 1, blocks: 10..<12)
    watch.landed(slot: 1, ok: true, tick: 5)
    #expect(watch.coveredBlock(&random) == nil)
    #expect(watch.uncoveredBlock(&random)?.tick == 5)
    watch.issued(slot: 2, blocks: 12..<13)
    #expect(watch.coveredBlock(&random) == nil)
    watch.landed(slot: 2, ok: true, tick: 6)
    #expect(watch.coveredBlock(&random).map { (10..<12).contains($0) } == true)
    #expect(watch.uncoveredBlock(&random)?.block == 12)
  }

  @Test("A gap before it keeps a durable frame uncovered")
  func gap() {
    var watch = LogWatch()
    var random = SeededRandom(seed: 1)
    watch.issued(slot: 1, blocks: 10..<11)
    watch.issued(slot: 2, blocks: 11..<12)
    watch.landed(slot: 2, ok: true, tick: 5)
    watch.issued(slot: 3, blocks: 12..<13)
    watch.landed(slot: 3, ok: true, tick: 6)
    #expect(watch.coveredBlock(&random) == nil)
  }
}
