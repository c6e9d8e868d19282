import Core
import Glibc
import Testing

@testable import Checker

// The checker against what the engine itself writes.

private func expectClean(
  _ harness: EngineHarness, _ when: String, location: SourceLocation = #_sourceLocation
) -> Bool {
  let report = harness.check()
  #expect(report.failure == nil, "\(when)", sourceLocation: location)
  #expect(report.complaints == [], "\(when)", sourceLocation: location)
  return report.outcome == .clean
}

/// A snapshot, or something with one of those there are, whose numbers are the steps they were made in.
private func branch(_ harness: EngineHarness, _ step: Int, _ random: inout SeededRandom) {
  let disk = random.oneIn(2) ? "a" : "b"
  let known = SnapshotName(disk: disk, snapshot: "s\(random.below(UInt64(step + 1)))")
  switch random.below(12) {
  case 0..<5:
    let group = random.oneIn(2) ? [disk] : ["a", "b"]
    _ = harness.control(.snapshot(group.map { SnapshotName(disk: $0, snapshot: "s\(step)") }))
  case 5: _ = harness.control(.rollback(known, force: true))
  case 6...8:
    _ = harness.control(.clone(known, name: "c\(step)", count: random.oneIn(2) ? nil : 3))
    if let clone = harness.open("c\(step)") {
      for i: UInt64 in 0..<10 {
        harness.request(.write, clone, block: i * 31 % 300, blocks: 1 + i % 3)
      }
      _ = harness.control(.close(clone))
      let own = SnapshotName(disk: "c\(step)", snapshot: "own")
      if random.oneIn(2) { _ = harness.control(.snapshot([own])) }
      if random.oneIn(2) {
        _ = harness.control(.delete(name: "c\(step)", withSnapshots: true, force: true))
      }
    }
  default: _ = harness.control(.deleteSnapshot(known))
  }
}

/// Some random work on the disks `a` and `b`, which exist; false when the engine stopped.
private func work(_ harness: EngineHarness, steps: Int) -> Bool {
  var random = harness.random
  let handles = ["a", "b"].compactMap { harness.open($0) }
  for step in 0..<steps {
    guard harness.engine.failure == nil, !handles.isEmpty else { break }
    let disk = handles[Int(random.below(UInt64(handles.count)))]
    let block = random.below(3000)
    switch random.below(25) {
    case 0..<12: harness.request(.write, disk, block: block, blocks: 1 + random.below(4))
    case 12: harness.request(.write, disk, block: block & ~63, blocks: 64)
    case 13: harness.request(.trim, disk, block: block, blocks: 1 + random.below(500))
    case 14: harness.request(.zero, disk, block: block, blocks: 1 + random.below(50))
    case 15: harness.request(.flush, disk, block: 0, blocks: 0)
    case 16:
      let name = "extra\(step)"
      _ = harness.control(.create(name: name, size: 1 << 24))
      if let extra = harness.open(name) {
        for i: UInt64 in 0..<20 { harness.request(.write, extra, block: i * 7, blocks: 1) }
        _ = harness.control(.close(extra))
      }
      if random.oneIn(2) {
        _ = harness.control(.delete(name: name, withSnapshots: false, force: true))
      }
    case 17:
      if random.oneIn(3) { _ = harness.control(.flush) }
      for _ in 0..<random.below(300) { harness.turn() }
    case 18:
      _ = harness.control(.create(name: "d/x\(step)", size: 1 << 20))
      _ = harness.control(.rename(name: "d/x\(step)", to: "y\(step)"))
    case 19..<24: branch(harness, step, &random)
    default:
      _ = harness.control(.resize(name: "b", size: 1 << 28, shrink: true, force: true))
    }
  }
  return harness.engine.failure == nil
}

@Test func aNewPoolIsCleanBeforeAndAfterItsFirstOpening() {
  let harness = EngineHarness(seed: 1)
  guard expectClean(harness, "as created") else { return }
  #expect(harness.start())
  guard expectClean(harness, "while it serves") else { return }
  _ = harness.control(.stop)
  _ = expectClean(harness, "after a clean stop")
}

/// Run with other seeds by the environment: SLUICE_CHECK_SEEDS=FIRST-LAST.
private let seeds: [UInt64] = {
  guard
    let range = getenv("SLUICE_CHECK_SEEDS").map({ String(cString: $0) })?.split(separator: "-"),
    range.count == 2, let first = UInt64(range[0]), let last = UInt64(range[1]), first <= last
  else { return Array(11...18) }
  return Array(first...last)
}()

@Test(arguments: seeds)
func whatTheEngineWritesIsCleanAlsoAfterPowerCuts(seed: UInt64) {
  // Deltas are folded at once, when they do not fit one leaf, or late.
  let harness = EngineHarness(seed: seed, deltaNodes: [0, 1, 64, 64][Int(seed % 4)])
  guard harness.start() else {
    Issue.record("the engine does not start: \(harness.engine.failure ?? "it hangs")")
    return
  }
  for name in ["a", "b"] { _ = harness.control(.create(name: name, size: 1 << 28)) }
  for round in 0..<6 {
    guard work(harness, steps: 80) else {
      Issue.record("round \(round): \(harness.engine.failure ?? "it hangs")")
      return
    }
    if round == 2 { #expect(harness.control(.flush) != nil) }
    if let disk = harness.open("a") { harness.leaveUnderWay(disk) }
    harness.cutPower()
    guard expectClean(harness, "seed \(seed), after power cut \(round)") else { return }
    guard harness.start() else {
      Issue.record("round \(round): \(harness.engine.failure ?? "it hangs")")
      return
    }
  }
  _ = harness.control(.flush)
  _ = harness.control(.stop)
  _ = expectClean(harness, "seed \(seed), at the end")
}

@Test func aDeletedDiskOfManyExtentsLeavesTrueCounters() {
  let harness = EngineHarness(seed: 5)
  guard harness.start() else {
    Issue.record("the engine does not start: \(harness.engine.failure ?? "it hangs")")
    return
  }
  _ = harness.control(.create(name: "a", size: 1 << 28))
  guard let disk = harness.open("a") else {
    Issue.record("the disk can't be opened")
    return
  }
  for i: UInt64 in 0..<2500 { harness.request(.write, disk, block: i * 3, blocks: 1) }
  _ = harness.control(.flush)
  harness.cutPower()
  #expect(harness.start())
  _ = harness.control(.delete(name: "a", withSnapshots: false, force: true))
  for _ in 0..<3 { _ = harness.control(.flush) }
  harness.cutPower()
  guard expectClean(harness, "after the delete") else { return }
  #expect(harness.check().counters.dataBlocks == 0)
}
