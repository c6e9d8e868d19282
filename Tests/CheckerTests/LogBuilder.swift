import Core

@testable import Checker

/// Writes a log by hand, frame by frame, the way that docs/formats/log.md describes it.
final class LogBuilder {
  let device: MemoryDevice
  let label: DeviceLabel
  var root = RootRecord()
  var epochs: [Epoch] = []
  var counter: UInt64 = 0

  var epoch: UInt64 = 0
  var sequence: FrameSequence = 1
  var position: UInt64 = 0
  var chain: UInt32 = 0
  var checkpoint: UInt64 = 1
  /// Of each frame: where it is.
  private(set) var frames: [FrameSequence: FrameHeader] = [:]
  private var tables: [(header: FrameHeader, table: [UInt8])] = []

  static let segment: UInt64 = 1 << 20

  init(segments: UInt64 = 8, pool: UUIDBytes = UUIDBytes(high: 1, low: 2)) {
    let blocks = 256 + segments * 256
    device = MemoryDevice(blocks: Int(blocks))
    label = DeviceLabel(
      pool: pool, member: UUIDBytes(high: 3, low: 0x77), role: .log, segmentShift: 20,
      sizeInBlocks: blocks, created: 5, poolName: "test")
    for copy: UInt64 in [0, 1] { device.put(block: copy) { label.encode(to: $0) } }
    root.pool = pool
    root.checkpoint = 1
    root.volumes = 1
    begin(epoch: 1)
  }

  func offset(_ position: UInt64) -> UInt64 {
    (256 + position / Self.segment % ((device.sizeInBytes >> 20) - 1) * 256) * 4096
      + position % Self.segment
  }

  /// Starts an epoch at the next segment's start (or here, in an unused log).
  func begin(epoch number: UInt64, firstSequence: FrameSequence? = nil) {
    if position % Self.segment != 0 { position = (position / Self.segment + 1) * Self.segment }
    epoch = number
    sequence = firstSequence ?? sequence
    tables = []
    epochs.append(
      Epoch(number: number, firstSequence: sequence, position: position, chain: chain))
    writeEpochs()
  }

  func writeEpochs() {
    counter += 1
    let record = EpochRecord(tag: label.member.low, counter: counter, epochs: epochs)
    for copy in 0..<LogLayout.epochCopies {
      device.put(block: LogLayout.epochRecord(counter) + copy) { record.encode(to: $0) }
    }
  }

  /// Damages the newest epoch record, both copies of it.
  func loseEpochRecord() {
    for copy in 0..<LogLayout.epochCopies {
      device.flip((LogLayout.epochRecord(counter) + copy) * 4096 + 50)
    }
  }

  /// The epochs of the newest record that is whole.
  var recordedEpochs: [Epoch] {
    (0..<LogLayout.epochRing).compactMap { i in
      device.bytes.withUnsafeBytes {
        EpochRecord(
          decoding: $0.baseAddress! + Int(LogLayout.epochs + i) * blockSize, tag: label.member.low)
      }
    }.max { $0.counter < $1.counter }?.epochs ?? []
  }

  /// One block of data of a disk, for `frame`.
  struct Write {
    var object: UInt64 = 100
    var block: UInt64
    var stamp: UInt64
  }

  /// Appends a frame with one record for each write, and the given other records.
  @discardableResult
  func frame(
    _ writes: [Write] = [], records: [LogRecord] = [], durable: FrameSequence = 0,
    change: (inout FrameHeader) -> Void = { _ in }
  ) -> FrameHeader {
    var table: [UInt8] = []
    func append(_ record: LogRecord) {
      let start = table.count
      table += [UInt8](repeating: 0, count: record.encodedSize)
      table.withUnsafeMutableBytes { record.encode(to: $0.baseAddress! + start) }
    }
    for (i, write) in writes.enumerated() {
      var sum = checksum(content(write.stamp)).littleEndian
      withUnsafeBytes(of: &sum) { bytes in
        append(
          .data(
            object: ObjectID(write.object), generation: 1, block: BlockIndex(write.block),
            count: 1, payload: UInt32(i), checksums: bytes.baseAddress!))
      }
    }
    records.forEach(append)
    return place(table, records: writes.count + records.count, writes, durable, change)
  }

  private func place(
    _ table: [UInt8], records: Int, _ writes: [Write], _ durable: FrameSequence,
    _ change: (inout FrameHeader) -> Void
  ) -> FrameHeader {
    var h = FrameHeader()
    let front = FrameHeader.frontBlocks(tableLength: table.count)
    h.tag = label.member.low
    h.epoch = epoch
    h.sequence = sequence
    h.position = position
    h.chain = chain
    h.blocks = UInt32(front + writes.count)
    h.tableLength = UInt32(table.count)
    h.tableChecksum = table.withUnsafeBytes { crc32c($0) }
    h.records = UInt32(records)
    h.payloadBlocks = UInt32(writes.count)
    h.durableSequence = durable
    h.checkpoint = checkpoint
    h.wallClock = 1_700_000_000_000_000_000 + sequence * 1_000_000_000
    h.instant = 1
    change(&h)
    let first = offset(h.position) / 4096
    device.bytes.withUnsafeMutableBytes { bytes in
      let p = bytes.baseAddress! + Int(first) * blockSize
      h.encode(to: p)
    }
    device.put(table, at: first << blockShift + UInt64(FrameHeader.size))
    for (i, write) in writes.enumerated() {
      device.put(content(write.stamp), at: (first + UInt64(front + i)) << blockShift)
    }
    frames[h.sequence] = h
    tables.append((h, table))
    sequence += 1
    position += UInt64(h.blocks) * 4096
    chain = h.headerChecksum
    return h
  }

  /// Ends the segment, with its summary unless told otherwise, and goes on in the next one.
  func closeSegment(summary: Bool = true, _ change: (inout [UInt8]) -> Void = { _ in }) {
    let end = (position / Self.segment + 1) * Self.segment
    if summary, !tables.isEmpty {
      var bytes: [UInt8] = []
      for (header, table) in tables {
        let start = bytes.count
        bytes += [UInt8](repeating: 0, count: 32 + roundUp(table.count, to: 8))
        bytes.withUnsafeMutableBytes {
          SummaryEntry(header: header).encode(to: $0.baseAddress! + start)
        }
        for (i, byte) in table.enumerated() { bytes[start + 32 + i] = byte }
      }
      change(&bytes)
      var h = FrameHeader()
      let blocks = roundUp(bytes.count, to: blockSize) / blockSize + 1
      h.kind = .summary
      h.tag = label.member.low
      h.epoch = epoch
      h.sequence = sequence - 1
      h.position = end - UInt64(blocks * blockSize)
      h.chain = chain
      h.blocks = UInt32(blocks)
      h.tableLength = UInt32(bytes.count)
      h.tableChecksum = bytes.withUnsafeBytes { crc32c($0) }
      h.records = UInt32(tables.count)
      device.put(bytes, at: offset(h.position))
      device.put(block: offset(end - 4096) / 4096) { h.encode(to: $0) }
    }
    position = end
    tables = []
  }

  /// The root's checkpoint holds everything up to and with the frame that was written last.
  func cutHere() {
    root.cutSequence = sequence - 1
    root.nextPosition = position
    root.cutEpoch = epoch
    root.cutChain = chain
  }

  /// Walks the log with a checker.
  func check(
    _ options: CheckOptions = CheckOptions()
  ) throws(CheckFailure) -> (report: CheckReport, outcome: LogOutcome) {
    let findings = Findings(limit: 100)
    let members = PoolMembers(
      log: Member(device, name: "the log"), logLabel: label, volumes: [], volumeLabels: [],
      root: root, volumesWithoutRoot: [])
    let outcome = try LogCheck(members: members, options: options, findings: findings).run()
    MemberCheck(options: options, findings: findings)
      .checkRoots(members, durableCheckpoint: outcome.durableCheckpoint)
    return (findings.report { "disk-\($0.raw)" }, outcome)
  }
}

/// The content records that a log left, in order of object, block and age.
func contents(_ outcome: LogOutcome) throws -> [(object: UInt64, block: UInt64, count: UInt64)] {
  var out: [(UInt64, UInt64, UInt64)] = []
  let reader = try outcome.events.contents.sorted()
  while let r = reader.head {
    out.append((r.a, r.b, r.d & 0xFF_FFFF_FFFF))
    reader.advance()
  }
  return out
}
