import Testing

@testable import Core

// Golden bytes of frames, summaries and log records, and what their decoders refuse.

private let tag: UInt64 = 0xAAAA_BBBB_CCCC_DDDD

private func header(_ fill: (inout FrameHeader) -> Void) -> FrameHeader {
  var h = FrameHeader()
  h.tag = tag
  h.epoch = 5
  fill(&h)
  return h
}

private let dataHeader = header {
  $0.tableChecksum = 0xABCD_EF01
  $0.sequence = 731
  $0.position = 0x50_0000
  $0.chain = 0x5566_7788
  $0.blocks = 5
  $0.tableLength = 4000
  $0.records = 3
  $0.payloadBlocks = 3
  $0.durableSequence = 728
  $0.checkpoint = 41
  $0.wallClock = 0x17F0_0000_0000_0004
  $0.instant = 88
}
private let dataHeaderBytes = golden(
  """
  534c46520101000098c77fef01efcdabddddccccbbbbaaaa0500000000000000
  db0200000000000000005000000000008877665505000000a00f000003000000
  0300000000000000d8020000000000002900000000000000040000000000f017
  5800000000000000
  """, size: 128)

private let summaryHeader = header {
  $0.kind = .summary
  $0.tableChecksum = 0x10FE_DCBA
  $0.sequence = 790
  $0.position = 0x5F_C000
  $0.chain = 0x99AA_BBCC
  $0.blocks = 4
  $0.tableLength = 9000
  $0.records = 60
  $0.durableSequence = 780
  $0.checkpoint = 42
  $0.wallClock = 0x17F0_0000_0000_0005
  $0.instant = 90
}
private let summaryHeaderBytes = golden(
  """
  534c465201020000e93d4b1abadcfe10ddddccccbbbbaaaa0500000000000000
  160300000000000000c05f0000000000ccbbaa9904000000282300003c000000
  00000000000000000c030000000000002a00000000000000050000000000f017
  5a00000000000000
  """, size: 128)

private let bridgeHeader = header {
  $0.flags = FrameHeader.bridge
  $0.sequence = 801
  $0.position = 0x60_0000
  $0.chain = 0x1357_2468
  $0.blocks = 256
  $0.durableSequence = 790
  $0.checkpoint = 42
  $0.wallClock = 0x17F0_0000_0000_0006
  $0.instant = 91
}
private let bridgeHeaderBytes = golden(
  """
  534c46520101010002da863a00000000ddddccccbbbbaaaa0500000000000000
  2103000000000000000060000000000068245713000100000000000000000000
  000000000000000016030000000000002a00000000000000060000000000f017
  5b00000000000000
  """, size: 128)

private func decodeHeader(
  _ bytes: [UInt8], tag expected: UInt64 = tag, maximumBlocks: UInt64 = 256
) -> FrameHeader? {
  bytes.withUnsafeBytes {
    FrameHeader(decoding: $0.baseAddress!, tag: expected, maximumBlocks: maximumBlocks)
  }
}

private func resealed(_ bytes: [UInt8]) -> [UInt8] {
  var bytes = bytes
  bytes.withUnsafeMutableBytes {
    let p = $0.baseAddress!
    p.put(checksumOmitting(p.reading, count: FrameHeader.size, field: 8), at: 8)
  }
  return bytes
}

private func changed(_ bytes: [UInt8], _ at: Int, _ value: some FixedWidthInteger) -> [UInt8] {
  var bytes = bytes
  bytes.withUnsafeMutableBytes { $0.baseAddress!.put(value, at: at) }
  return resealed(bytes)
}

@Test func frameHeadersHaveTheirGoldenBytes() {
  for (header, bytes) in [
    (dataHeader, dataHeaderBytes), (summaryHeader, summaryHeaderBytes),
    (bridgeHeader, bridgeHeaderBytes),
  ] {
    var header = header
    let out = encoded(size: 128) { header.encode(to: $0) }
    #expect(hexLines(out) == hexLines(bytes))
    #expect(decodeHeader(bytes) == header)
  }
}

@Test func everyFlippedBitOfAFrameHeaderIsRefused() {
  for bytes in [dataHeaderBytes, summaryHeaderBytes, bridgeHeaderBytes] {
    for (byte, bit) in flips(dense: 128, size: 128) {
      var bad = bytes
      bad[byte] ^= 1 << bit
      #expect(decodeHeader(bad) == nil, "bit \(bit) of byte \(byte)")
    }
  }
}

@Test func aFrameHeaderOfAnotherLogIsRefused() {
  #expect(decodeHeader(dataHeaderBytes, tag: tag ^ 1) == nil)
}

@Test func aSealedFrameHeaderWhoseLengthsDisagreeIsRefused() {
  let cases: [(String, [UInt8])] = [
    ("no blocks", changed(dataHeaderBytes, 52, UInt32(0))),
    ("fewer blocks than parts", changed(dataHeaderBytes, 52, UInt32(4))),
    ("more payload than blocks", changed(dataHeaderBytes, 64, UInt32.max)),
    ("table longer than the frame", changed(dataHeaderBytes, 56, UInt32.max)),
    ("crooked position", changed(dataHeaderBytes, 40, UInt64(0x50_0001))),
    ("kind 0", changed(dataHeaderBytes, 5, UInt8(0))),
    ("kind 3", changed(dataHeaderBytes, 5, UInt8(3))),
    ("version 2", changed(dataHeaderBytes, 4, UInt8(2))),
    ("summary without room for its table", changed(summaryHeaderBytes, 52, UInt32(3))),
    ("summary of nothing", changed(summaryHeaderBytes, 56, UInt32(0))),
    ("position that overflows", changed(dataHeaderBytes, 40, UInt64.max - 4095)),
    ("sequence that overflows", changed(dataHeaderBytes, 32, UInt64.max)),
    ("durable sequence that overflows", changed(dataHeaderBytes, 72, UInt64.max)),
    ("summary of no blocks", changed(summaryHeaderBytes, 52, UInt32(0))),
    ("bridge longer than allowed", changed(bridgeHeaderBytes, 52, UInt32(257))),
    (
      "frame longer than allowed",
      changed(changed(dataHeaderBytes, 64, UInt32(255)), 52, UInt32(257))
    ),
  ]
  for (what, bytes) in cases { #expect(decodeHeader(bytes) == nil, "\(what)") }
}

@Test func aFrameMayHaveAGapBehindIt() {
  #expect(decodeHeader(changed(dataHeaderBytes, 52, UInt32(200)))?.blocks == 200)
}

@Test func aSummaryEntryHasItsGoldenBytes() {
  let entry = SummaryEntry(header: dataHeader)
  let bytes = golden("db02000000000000000050000000000005000000a00f00005800000000000000", size: 32)
  #expect(hexLines(encoded(size: 32) { entry.encode(to: $0) }) == hexLines(bytes))
  let back = bytes.withUnsafeBytes { SummaryEntry(decoding: $0.baseAddress!) }
  #expect(back.sequence == 731 && back.position == 0x50_0000 && back.instant == 88)
  #expect(back.blocks == 5 && back.tableLength == 4000)
  #expect(back.payloadPosition == 0x50_2000)
}

// Records. Those with checksums point into memory, so a record and its bytes are compared by
// encoding what was decoded.

private let goldenRecords: [(name: String, bytes: [UInt8])] = [
  (
    "data",
    hex(
      """
      0100300003000000640000000000000045230100000000000100000002000000
      a1000000b2000000c300000000000000
      """)
  ),
  (
    "zero",
    hex(
      """
      0200280000000000650000000000000000010000000000000100000000000000
      0000001000000000
      """)
  ),
  (
    "extent",
    hex(
      """
      0300300002000000660000000000000000020000000000000100000000000000
      0010000000000300d4000000e5000000
      """)
  ),
  (
    "create",
    hex(
      """
      04003800000000006700000000000000010000000000000001000500a4010000
      0000004000000000070000000000f017766d2d3031000000
      """)
  ),
  (
    "remove",
    hex(
      """
      0500300000000000670000000000000001000000000000000500010003000000
      6600000000000000766d2d3031000000
      """)
  ),
  (
    "rename",
    hex(
      """
      0600300000000000670000000000000001000000000000000500030001000000
      1000000000000000766d2d30316e6577
      """)
  ),
  ("resize", hex("070018000000000067000000000000000000008000000000")),
  (
    "change",
    hex("08002000000000006700000000000000070101000500000068c3a97921000000")
  ),
  (
    "snapshot",
    hex(
      """
      1000400000000000680000000000000067000000000000006800000000000000
      080000000000f017000000800000000006000000000000006d6f6e6461790000
      """)
  ),
  (
    "clone",
    hex(
      """
      11004800e8030000690000000000000068000000000000000100000000000000
      090000000000f0170100000004000000a4010000000000000000008000000000
      6465736b00000000
      """)
  ),
  (
    "rollback",
    hex(
      """
      1200300000000000670000000000000068000000000000005104000000000000
      00000080000000000a0000000000f017
      """)
  ),
]

private func known(_ checksums: UnsafeRawPointer) -> [LogRecord] {
  var change = DiskAttributeChange()
  change.durability = .flush
  change.readOnly = true
  change.comment = "héy!"
  return [
    .data(
      object: ObjectID(100), generation: 1, block: BlockIndex(0x12345), count: 3, payload: 2,
      checksums: checksums),
    .zero(object: ObjectID(101), generation: 1, block: BlockIndex(0x100), count: 0x1000_0000),
    .extent(
      object: ObjectID(102), generation: 1, block: BlockIndex(0x200), count: 2,
      address: BlockAddress(volume: 3, block: 0x1000), checksums: checksums + 12),
    .create(
      object: ObjectID(103), parent: .root, kind: .disk, mode: 0o644, size: 1 << 30,
      time: 0x17F0_0000_0000_0007, name: Array("vm-01".utf8)),
    .remove(
      object: ObjectID(103), kind: .disk, parent: .root, snapshots: 3, origin: ObjectID(102),
      name: Array("vm-01".utf8)),
    .rename(
      object: ObjectID(103), kind: .disk, parent: .root, name: Array("vm-01".utf8),
      newParent: ObjectID(16), newName: Array("new".utf8)),
    .resize(object: ObjectID(103), size: 2 << 30),
    .change(object: ObjectID(103), change),
    .snapshot(
      object: ObjectID(104), disk: ObjectID(103), group: ObjectID(104),
      time: 0x17F0_0000_0000_0008, size: 2 << 30, name: Array("monday".utf8)),
    .clone(
      CloneBatch(
        first: ObjectID(105), count: 1000, snapshot: ObjectID(104), parent: .root,
        time: 0x17F0_0000_0000_0009, mode: 0o644, size: 2 << 30, firstNumber: 1,
        name: Array("desk".utf8))),
    .rollback(
      object: ObjectID(103), snapshot: ObjectID(104), former: ObjectID(1105), size: 2 << 30,
      time: 0x17F0_0000_0000_000A),
  ]
}

private func encode(_ record: LogRecord) -> [UInt8] {
  encoded(size: record.encodedSize) { record.encode(to: $0) }
}

/// Decodes all records of a table and gives them back encoded, with whether the end was reached.
private func roundTrip(_ table: UnsafeRawBufferPointer) -> (records: [[UInt8]], isAtEnd: Bool) {
  guard let base = table.baseAddress else { return ([], true) }
  var cursor = RecordCursor(table: base, length: table.count)
  var out: [[UInt8]] = []
  while let record = cursor.next() { out.append(encode(record)) }
  return (out, cursor.isAtEnd)
}

@Test func logRecordsHaveTheirGoldenBytes() {
  let checksums: [UInt32] = [0xA1, 0xB2, 0xC3, 0xD4, 0xE5]
  checksums.withUnsafeBytes { words in
    for (record, expected) in zip(known(words.baseAddress!), goldenRecords) {
      #expect(hexLines(encode(record)) == hexLines(expected.bytes), "\(expected.name)")
    }
  }
}

@Test func aTableOfEveryKindOfRecordIsReadBack() {
  let table = goldenRecords.flatMap(\.bytes)
  let (records, isAtEnd) = table.withUnsafeBytes { roundTrip($0) }
  #expect(isAtEnd)
  #expect(records == goldenRecords.map(\.bytes))
}

@Test func aTableCutAnywhereIsNotReadPastItsEnd() {
  let guarded = GuardedMemory(capacity: blockSize)
  let table = goldenRecords.flatMap(\.bytes)
  var ends: Set<Int> = [0]
  var end = 0
  for record in goldenRecords {
    end += record.bytes.count
    ends.insert(end)
  }
  for length in 0...table.count {
    let (_, isAtEnd) = guarded.with(Array(table[..<length])) { roundTrip($0) }
    #expect(isAtEnd == ends.contains(length), "cut at \(length)")
  }
}

private func put(
  _ kind: String, _ at: Int, _ value: some FixedWidthInteger
) -> (String, [UInt8]) {
  var bytes = goldenRecords.first { $0.name == kind }!.bytes
  bytes.withUnsafeMutableBytes { $0.baseAddress!.put(value, at: at) }
  return ("\(kind) with \(value) at \(at)", bytes)
}

@Test func recordsThatMakeNoSenseAreRefused() {
  let cases: [(String, [UInt8])] = [
    put("data", 0, UInt8(0)), put("data", 0, UInt8(9)), put("data", 0, UInt8(255)),
    put("data", 2, UInt16(0)), put("data", 2, UInt16(8)), put("data", 2, UInt16(47)),
    put("data", 2, UInt16.max), put("data", 4, UInt32(0)), put("data", 4, UInt32(5)),
    put("data", 4, UInt32(257)), put("data", 4, UInt32.max),
    put("data", 16, BlockIndex.limit - 2), put("data", 16, UInt64.max),
    put("zero", 16, BlockIndex.limit), put("zero", 32, UInt64(0)), put("zero", 32, UInt64.max),
    put("zero", 32, BlockIndex.limit),
    put("extent", 16, BlockIndex.limit - 1), put("extent", 32, UInt64(0)),
    put("extent", 32, BlockAddress(volume: 1, block: 511).raw), put("extent", 32, UInt64.max),
    put("create", 24, UInt8(0)), put("create", 24, UInt8(9)), put("create", 26, UInt16(256)),
    put("create", 26, UInt16(9)), put("remove", 24, UInt16(9)), put("remove", 24, UInt16.max),
    put("rename", 24, UInt16(6)), put("rename", 26, UInt16.max), put("resize", 2, UInt16(16)),
    put("change", 16, UInt8(16)), put("change", 17, UInt8(2)), put("change", 20, UInt16(600)),
    put("change", 25, UInt8(0xFF)), put("remove", 26, UInt8(9)), put("rename", 28, UInt8(0)),
    put("snapshot", 48, UInt16(9)), put("snapshot", 2, UInt16(48)), put("clone", 4, UInt32(0)),
    put("clone", 4, UInt32(100_001)), put("clone", 40, UInt32(0)), put("clone", 40, UInt32.max),
    put("clone", 8, UInt64.max), put("clone", 44, UInt16(9)), put("rollback", 2, UInt16(56)),
  ]
  for (what, bytes) in cases {
    let (records, isAtEnd) = bytes.withUnsafeBytes { roundTrip($0) }
    #expect(records.isEmpty && !isAtEnd, "\(what)")
  }
}

@Test func randomlyChangedTablesNeverStopTheDecoder() {
  var random = SeededRandom(seed: 0x7AB1E)
  let guarded = GuardedMemory(capacity: blockSize)
  let whole = goldenRecords.flatMap(\.bytes)
  for _ in 0..<20_000 {
    var bytes = whole
    for _ in 0...random.below(6) { mutate(&bytes, &random) }
    if random.oneIn(3) { bytes.removeLast(Int(random.below(UInt64(bytes.count)))) }
    guarded.with(bytes) { table in
      var cursor = RecordCursor(table: table.baseAddress!, length: table.count)
      var consumed = 0
      while let record = cursor.next() {
        consumed += record.encodedSize
        check(record)
      }
      #expect(consumed <= table.count)
      #expect(cursor.isAtEnd == (consumed == table.count))
    }
  }
}

/// What callers rely on without checking it again.
private func check(_ record: LogRecord) {
  switch record {
  case .data(_, _, let block, let count, _, _):
    #expect(block.raw + UInt64(count) <= BlockIndex.limit && count > 0)
  case .zero(_, _, let block, let count):
    #expect(block.raw + count <= BlockIndex.limit && count > 0)
  case .extent(_, _, let block, let count, let address, _):
    #expect(block.raw + UInt64(count) <= BlockIndex.limit)
    #expect((address + UInt64(count)).block > VolumeLayout.reserved || count == 0)
  case .create(_, _, _, _, _, _, let name), .remove(_, _, _, _, _, let name),
    .snapshot(_, _, _, _, _, let name):
    #expect(name.count <= LogRecord.maximumName)
  default: break
  }
}

@Test func randomlyChangedHeadersThatAreSealedKeepTheirPromises() {
  var random = SeededRandom(seed: 0xF4A3)
  let guarded = GuardedMemory(capacity: 128)
  for round in 0..<20_000 {
    var bytes = [dataHeaderBytes, summaryHeaderBytes, bridgeHeaderBytes][round % 3]
    for _ in 0...random.below(4) { mutate(&bytes, &random) }
    guarded.with(resealed(bytes)) { buffer in
      guard let h = FrameHeader(decoding: buffer.baseAddress!, tag: tag, maximumBlocks: 256) else {
        return
      }
      #expect(h.blocks > 0 && h.blocks <= 256 && h.position % 4096 == 0)
      if h.kind == .data, h.flags & FrameHeader.bridge == 0 {
        let front = FrameHeader.frontBlocks(tableLength: Int(h.tableLength))
        #expect(front + Int(h.payloadBlocks) <= Int(h.blocks))
      }
      if h.kind == .summary { #expect(Int(h.tableLength) <= (Int(h.blocks) - 1) * blockSize) }
    }
  }
}
