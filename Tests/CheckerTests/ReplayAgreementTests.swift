import Core
import Testing

@testable import Checker

// The checker says what recovery will do, from code of its own. Here both read the same logs.

private enum Ending: Equatable {
  case upTo(FrameSequence)
  case refused
}

/// What the engine's replay makes of a log.
private func replay(_ log: LogBuilder) -> Ending {
  let ops = OpQueue()
  let replay = LogReplay(
    geometry: LogGeometry(label: log.label)!, ops: ops, root: log.root, epochs: log.recordedEpochs,
    fault: nil)
  replay.start()
  while true {
    while let op = ops.next() {
      log.device.bytes.withUnsafeBytes {
        op.memory!.copyMemory(
          from: $0.baseAddress! + Int(op.offset), byteCount: Int(op.length))
      }
      replay.readCompleted(ops.completed(op.token).index, error: 0)
    }
    switch replay.step() {
    case .working: continue
    case .done: return .upTo(replay.lastSequence)
    case .failed: return .refused
    }
  }
}

/// What the checker says that it will make of it.
private func foretold(_ log: LogBuilder) throws -> Ending {
  let (report, _) = try log.check()
  let isRefused = report.complaints.contains { $0.contains("recovery refuses") }
  return isRefused ? .refused : .upTo(report.counters.lastSequence)
}

/// Segments of three frames, each frame naming the one before it as durable, and a tail.
private func segments(summaries: [Bool]) -> LogBuilder {
  let log = LogBuilder()
  for hasSummary in summaries {
    for _ in 0..<3 {
      let s = log.sequence
      log.frame([.init(block: s, stamp: s)], durable: s - 1)
    }
    log.closeSegment(summary: hasSummary)
  }
  log.frame([.init(block: 1, stamp: 99)], durable: log.sequence - 1)
  return log
}

/// Opens the log anew when the last `lost` frames are void, and writes some more.
private func reopen(_ log: LogBuilder, lost: FrameSequence) {
  let first = log.sequence - lost
  let chain = log.frames[first - 1]!.headerChecksum
  log.begin(epoch: log.epoch + 1, firstSequence: first)
  log.chain = chain
  log.epochs[log.epochs.count - 1].chain = chain
  log.writeEpochs()
  for _ in 0..<3 {
    let s = log.sequence
    log.frame([.init(block: s, stamp: s)], durable: s - 1)
  }
}

@Test func theFirstFrameOfASegmentIsTakenFromItsSummaryToo() throws {
  for previous in [true, false] {
    let log = segments(summaries: [previous, true])
    log.device.flip(log.offset(log.frames[4]!.position) + 12)
    let (report, outcome) = try log.check()
    #expect(report.complaintCount == 1 && report.complaints[0].contains("stands in"))
    #expect(report.counters.lastSequence == 7)
    #expect(try contents(outcome).map(\.block).sorted() == [1, 1, 2, 3, 4, 5, 6])
    #expect(replay(log) == .upTo(7), "previous segment with a summary: \(previous)")
  }
}

@Test func aLostEpochRecordIsRefusedUntilItIsRebuilt() throws {
  for hasEarlier in [false, true] {
    let log = LogBuilder()
    if hasEarlier {
      log.frame([.init(block: 1, stamp: 1)])
      log.begin(epoch: 2)
    }
    for _ in 0..<3 {
      let s = log.sequence
      log.frame([.init(block: s, stamp: s)], durable: s - 1)
    }
    log.loseEpochRecord()
    #expect(replay(log) == .refused)
    #expect(try foretold(log) == .refused)
    var options = CheckOptions()
    options.repair = true
    _ = try log.check(options)
    #expect(replay(log) == .upTo(log.sequence - 1))
    #expect(try foretold(log) == .upTo(log.sequence - 1))
  }
}

@Test func recoveryDoesWhatTheCheckerSaysWhicheverFramesAreDamaged() throws {
  var random = SeededRandom(seed: 0xA62EE)
  var endings: [Bool: Int] = [:]
  for _ in 0..<400 {
    let log = segments(summaries: (0..<3).map { _ in random.oneIn(2) })
    if random.oneIn(2) { reopen(log, lost: random.below(3)) }
    var damaged: [FrameSequence] = []
    for _ in 0...random.below(2) {
      let s = 1 + random.below(log.sequence - 1)
      damaged.append(s)
      // In the header, the table or the payload.
      log.device.flip(log.offset(log.frames[s]!.position) + [12, 130, 4200][Int(random.below(3))])
    }
    let ending = replay(log)
    #expect(try foretold(log) == ending, "damaged: \(damaged)")
    endings[ending == .refused, default: 0] += 1
  }
  #expect(endings.values.allSatisfy { $0 > 50 } && endings.count == 2)
}
