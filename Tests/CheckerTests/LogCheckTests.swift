import Core
import Testing

@testable import Checker

private typealias Write = LogBuilder.Write

/// A log of `count` frames of one block each; each names the one before it as durable.
private func log(frames count: Int) -> LogBuilder {
  let log = LogBuilder()
  for _ in 0..<count {
    let s = log.sequence
    log.frame([Write(block: s, stamp: s)], durable: s - 1)
  }
  return log
}

@Test func aLogThatWasNeverWrittenIsClean() throws {
  let (report, _) = try LogBuilder().check()
  #expect(report.outcome == .clean)
  #expect(report.counters.frames == 0 && report.counters.lastSequence == 0)
}

@Test func everyFrameOfASoundLogIsFound() throws {
  let (report, outcome) = try log(frames: 9).check()
  #expect(report.complaints == [])
  #expect(report.counters.frames == 9 && report.counters.lastSequence == 9)
  #expect(report.counters.loggedBlocks == 9)
  #expect(try contents(outcome).map(\.block) == Array(1...9))
}

@Test func theWalkStartsBehindTheCheckpointsCut() throws {
  let log = log(frames: 5)
  log.cutHere()
  log.device.zero(log.offset(0), 5 * 8192)
  log.frame([Write(block: 50, stamp: 50)], durable: 5)
  let (report, outcome) = try log.check()
  #expect(report.complaints == [] && report.counters.frames == 1)
  #expect(try contents(outcome).map(\.block) == [50])
}

@Test func theWalkCrossesSegmentsAndComparesTheirSummaries() throws {
  let log = log(frames: 3)
  log.closeSegment()
  log.frame([Write(block: 8, stamp: 8)], durable: 3)
  log.closeSegment(summary: false)
  log.frame([Write(block: 9, stamp: 9)], durable: 4)
  let (report, _) = try log.check()
  #expect(report.complaints == [])
  #expect(report.counters.frames == 5 && report.counters.summaries == 1)
}

@Test func theWalkGoesOnWhereTheRingStartsAnew() throws {
  let log = LogBuilder()
  for _ in 0..<7 {
    log.frame([Write(block: 1, stamp: 1)])
    log.closeSegment()
  }
  log.cutHere()
  for block: UInt64 in 10..<15 {
    log.frame([Write(block: block, stamp: block)], durable: log.sequence - 1)
    log.closeSegment()
  }
  let (report, outcome) = try log.check()
  #expect(report.complaints == [])
  #expect(try contents(outcome).map(\.block) == [10, 11, 12, 13, 14])
}

@Test func aSummaryThatDiffersFromItsFramesIsDamage() throws {
  let log = log(frames: 3)
  log.closeSegment { $0[70] ^= 1 }
  log.frame(durable: 3)
  let (report, _) = try log.check()
  #expect(report.complaintCount == 1)
  #expect(report.complaints[0].contains("does not equal the segment's frames"))
}

@Test func aTornSummaryIsDoneWithout() throws {
  let log = log(frames: 3)
  log.closeSegment()
  log.device.flip(log.offset((1 << 20) - 8192) + 3)
  log.frame(durable: 3)
  let (report, _) = try log.check()
  #expect(report.complaints == [] && report.counters.frames == 4)
  #expect(report.notes.contains { $0.contains("torn") })
}

@Test func aTornLastFrameIsTheTailAndNoDamage() throws {
  for place in ["header", "table", "payload"] {
    let log = log(frames: 5)
    let at = log.offset(log.frames[5]!.position)
    switch place {
    case "header": log.device.flip(at + 20)
    case "table": log.device.flip(at + 128)
    default: log.device.flip(at + 4096 + 77)
    }
    let (report, outcome) = try log.check()
    #expect(report.complaints == [], "\(place)")
    #expect(report.counters.lastSequence == 4, "\(place)")
    #expect(try contents(outcome).count == 4, "\(place)")
  }
}

@Test func aTornFrameWithLaterOnesBehindItIsTheTailWhenNoneClaimsItDurable() throws {
  let log = log(frames: 3)
  for block: UInt64 in 10..<14 { log.frame([Write(block: block, stamp: block)], durable: 2) }
  log.device.flip(log.offset(log.frames[4]!.position) + 4096)
  let (report, _) = try log.check()
  #expect(report.complaints == [] && report.counters.lastSequence == 3)
}

@Test func damagedPayloadThatALaterFrameClaimsDurableIsNamedByDiskAndOffset() throws {
  let log = log(frames: 6)
  let h = log.frames[3]!
  log.device.flip(log.offset(h.position) + 4096 + 5, bit: 7)
  let (report, outcome) = try log.check()
  #expect(report.complaintCount == 1 && report.counters.frames == 6)
  #expect(
    report.damagedBlocks == [
      DamagedBlock(
        device: "the log", offset: log.offset(h.position) + 4096, length: 4096, disk: "disk-100",
        diskOffset: 3 * 4096)
    ])
  #expect(try contents(outcome).count == 6)
}

@Test func unreadablePayloadIsDamageLikeAWrongOne() throws {
  let log = log(frames: 6)
  log.device.unreadable = [log.offset(log.frames[3]!.position) / 4096 + 1]
  let (report, _) = try log.check()
  #expect(report.damagedBlocks.map(\.diskOffset) == [3 * 4096] && report.counters.frames == 6)
}

@Test func aLaterFrameBehindSomeGapStillWitnesses() throws {
  let log = log(frames: 3)
  log.frame([Write(block: 4, stamp: 4)], durable: 3)
  log.frame([Write(block: 5, stamp: 5)], durable: 3)
  log.frame([Write(block: 6, stamp: 6)], durable: 5)
  for s: UInt64 in [4, 5] { log.device.flip(log.offset(log.frames[s]!.position) + 9) }
  let (report, _) = try log.check()
  #expect(report.complaintCount == 1)
  #expect(report.complaints[0].contains("frames 4 to 5 were durable"))
  #expect(
    report.complaints[0].contains("after 2023-11-14T22:13:23Z and before 2023-11-14T22:13:26Z"))
}

@Test func aDamagedTableInsideTheLogIsRefused() throws {
  let log = log(frames: 6)
  log.device.flip(log.offset(log.frames[3]!.position) + 130)
  let (report, outcome) = try log.check()
  #expect(report.outcome == .damageFound && report.complaints[0].contains("recovery refuses"))
  #expect(try contents(outcome).map(\.block) == [1, 2, 4, 5, 6])
  #expect(log.device.writes == [])
}

@Test func aSummaryStandsInForADamagedTable() throws {
  let log = log(frames: 6)
  log.closeSegment()
  log.frame(durable: 6)
  for s: UInt64 in [3, 6] { log.device.flip(log.offset(log.frames[s]!.position) + 12) }
  let (report, outcome) = try log.check()
  #expect(report.complaintCount == 2)
  #expect(report.complaints.allSatisfy { $0.contains("stands in") })
  #expect(try contents(outcome).map(\.block) == Array(1...6))
  #expect(report.counters.frames == 7)
}

@Test func aBridgeIsWrittenOnlyWhenTheLossIsAcceptedAndThenTheLogIsWalkedOver() throws {
  let log = log(frames: 6)
  for s: UInt64 in [3, 4] { log.device.flip(log.offset(log.frames[s]!.position) + 12) }
  var options = CheckOptions()
  options.repair = true
  _ = try log.check(options)
  #expect(log.device.writes == [])
  options.acceptLogLoss = true
  let (report, _) = try log.check(options)
  #expect(report.repaired.count == 1 && log.device.writes.count == 1 && log.device.flushes == 1)
  let (after, outcome) = try log.check()
  #expect(after.complaints == [] && after.counters.lastSequence == 6)
  #expect(after.notes.contains { $0.contains("bridge") })
  #expect(try contents(outcome).map(\.block) == [1, 2, 5, 6])
}

@Test func bridgesReachOverTheEndOfASegment() throws {
  let log = log(frames: 4)
  log.closeSegment(summary: false)
  for _ in 0..<3 { log.frame(durable: log.sequence - 1) }
  for s: UInt64 in [4, 5, 6] { log.device.flip(log.offset(log.frames[s]!.position) + 12) }
  var options = CheckOptions()
  options.repair = true
  options.acceptLogLoss = true
  _ = try log.check(options)
  #expect(log.device.writes.count == 2)
  let (after, _) = try log.check()
  #expect(after.complaints == [] && after.counters.lastSequence == 7)
}

@Test func framesOfAnOlderEpochBehindTheNextOnesStartAreVoid() throws {
  let log = log(frames: 6)
  log.begin(epoch: 2, firstSequence: 5)
  log.chain = log.frames[4]!.headerChecksum
  log.epochs[1].chain = log.chain
  log.writeEpochs()
  for block: UInt64 in [70, 71] { log.frame([Write(block: block, stamp: block)], durable: 4) }
  let (report, outcome) = try log.check()
  #expect(report.complaints == [] && report.counters.lastSequence == 6)
  #expect(try contents(outcome).map(\.block) == [1, 2, 3, 4, 70, 71])
}

@Test func framesLostBeforeALaterEpochBeganAreDamage() throws {
  let log = log(frames: 4)
  log.begin(epoch: 2)
  log.device.flip(log.offset(log.frames[4]!.position) + 12)
  let (report, _) = try log.check()
  #expect(report.complaintCount == 1)
  #expect(report.complaints[0].contains("frame 4 was durable"))
}

@Test func aLostEpochRecordIsToldByTheFramesOfItsEpochAndRebuilt() throws {
  let log = log(frames: 4)
  log.begin(epoch: 2)
  for s: UInt64 in 5...7 { log.frame([Write(block: s, stamp: s)], durable: s - 1) }
  log.loseEpochRecord()
  var options = CheckOptions()
  options.repair = true
  for pass in [CheckOptions(), options] {
    let (report, outcome) = try log.check(pass)
    #expect(report.complaintCount == 1)
    #expect(report.complaints.first?.contains("frames of epoch 2") == true)
    #expect(try contents(outcome).map(\.block) == Array(1...7))
  }
  #expect(log.device.writes.count == Int(LogLayout.epochCopies))
  let (after, _) = try log.check()
  #expect(after.complaints == [] && after.counters.lastSequence == 7)
}

@Test func aLostEpochRecordIsRebuiltWhenTheCutLiesInItsEpoch() throws {
  let log = log(frames: 4)
  log.begin(epoch: 2)
  for s: UInt64 in 5...7 { log.frame([Write(block: s, stamp: s)], durable: s - 1) }
  log.cutHere()
  log.frame([Write(block: 8, stamp: 8)], durable: 7)
  log.loseEpochRecord()
  var options = CheckOptions()
  options.repair = true
  let (report, outcome) = try log.check(options)
  #expect(report.complaintCount == 1 && report.repaired.count == 1)
  #expect(try contents(outcome).map(\.block) == [8])
  #expect(try log.check().report.complaints == [])
}

@Test func staleFramesOfAnEarlierLapAreNotReadAgain() throws {
  let log = log(frames: 3)
  log.closeSegment()
  for _ in 0..<7 {
    log.frame([Write(block: 1, stamp: 1)], durable: log.sequence - 1)
    log.closeSegment()
  }
  log.cutHere()
  let (report, _) = try log.check()
  #expect(report.complaints == [] && report.counters.frames == 0)
  #expect(report.counters.lastSequence == log.sequence - 1)
}

@Test func aRootOlderThanTheLogKnowsIsDamage() throws {
  let log = log(frames: 2)
  log.checkpoint = 3
  log.frame()
  let (report, _) = try log.check()
  #expect(report.complaintCount == 1)
  #expect(report.complaints[0].contains("checkpoint 3 as durable"))
}

@Test func aRootOlderThanTheLogKnowsIsDamageAlsoWhenItsPlaceWasWrittenOver() throws {
  let log = LogBuilder()
  for i: UInt64 in 0..<12 {
    log.frame([Write(block: i, stamp: i)], durable: log.sequence - 1)
    log.checkpoint = i / 2 + 1
    log.closeSegment()
  }
  let (report, _) = try log.check()
  #expect(report.complaints.contains { $0.contains("newer roots were lost") })
}

@Test func aTableWhoseRecordsMakeNoSenseIsReportedAndPassed() throws {
  let log = log(frames: 2)
  log.frame([Write(block: 3, stamp: 3)], durable: 2) { $0.records = 2 }
  log.frame([Write(block: 4, stamp: 4)], durable: 3)
  let (report, _) = try log.check()
  #expect(report.complaintCount == 1 && report.counters.lastSequence == 4)
  #expect(report.complaints[0].contains("make no sense"))
}

@Test func anyFlippedBitInTheLogIsCaughtOrIsInAPlaceThatDoesNotCount() throws {
  let log = log(frames: 4)
  log.closeSegment()
  for _ in 0..<3 { log.frame([Write(block: 9, stamp: 9)], durable: log.sequence - 1) }
  log.frame(durable: 7)
  let sound = log.device.bytes
  var random = SeededRandom(seed: 0xB17)
  for s: FrameSequence in 1...7 {
    let h = log.frames[s]!
    for _ in 0..<60 {
      // Behind header and table there is padding, which nothing covers and nothing reads.
      let span = UInt64(FrameHeader.size) + UInt64(h.tableLength) + 4096
      var at = random.below(span)
      if at >= span - 4096 { at = at - (span - 4096) + 4096 }
      log.device.bytes = sound
      log.device.flip(log.offset(h.position) + at, bit: UInt8(random.below(8)))
      let (report, _) = try log.check()
      #expect(report.outcome == .damageFound, "frame \(s), byte \(at)")
    }
  }
}

@Test func randomGarbageInTheLogNeverStopsTheChecker() throws {
  var random = SeededRandom(seed: 0x6A2BA6E)
  let log = log(frames: 5)
  log.closeSegment()
  for _ in 0..<5 { log.frame([Write(block: 9, stamp: 9)], durable: log.sequence - 1) }
  let sound = log.device.bytes
  var options = CheckOptions()
  options.repair = true
  options.acceptLogLoss = true
  for _ in 0..<150 {
    log.device.bytes = sound
    for _ in 0...random.below(6) {
      let at = Int(random.below(2)) * (1 << 20) + (1 << 20) + Int(random.below(90_000))
      for i in at..<(at + Int(random.below(300)) + 1) {
        log.device.bytes[i] = UInt8(random.below(256))
      }
    }
    log.root.nextPosition = random.oneIn(4) ? random.below(1 << 22) & ~4095 : 0
    _ = try log.check(options)
  }
}
