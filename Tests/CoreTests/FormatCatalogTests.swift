import Testing

@testable import Core

// Golden bytes of catalog values and metadata pointers, and what their decoders refuse.

private let pointerA = NodePointer(
  first: BlockAddress(volume: 0, block: 0x200), second: BlockAddress(volume: 1, block: 0x200),
  birth: 5, checksum: 0xDEAD_BEEF, level: 2)
private let pointerB = NodePointer(
  first: BlockAddress(volume: 0, block: 0x201), second: BlockAddress(volume: 1, block: 0x201),
  birth: 6, checksum: 0x0102_0304, level: 1)

private let object: ObjectRecord = {
  var o = ObjectRecord()
  o.readOnly = true
  o.durability = .flush
  o.mode = 0o600
  o.uid = 1000
  o.gid = 100
  o.links = 2
  o.size = 1 << 30
  o.created = 11
  o.modified = 12
  o.changed = 13
  o.accessed = 14
  o.verifier = 15
  o.generation = 16
  o.branchInstant = 17
  o.origin = ObjectID(18)
  o.usedBlocks = 19
  o.exclusiveBlocks = 20
  o.map = pointerA
  o.deadList = pointerB
  o.parent = ObjectID(21)
  o.metadataBlocks = 22
  o.inheritsMap = true
  o.isHeld = true
  o.isHidden = true
  o.parentSnapshot = ObjectID(23)
  o.instant = 24
  o.parentBranchInstant = 25
  o.dead = DeadCounts(dataBlocks: 26, nodeBlocks: 28)
  o.deadOfParentOnly = 27
  o.group = ObjectID(29)
  o.children = 30
  o.dependents = 31
  o.name = Array("vm-01".utf8)
  o.comment = Array("note".utf8)
  return o
}()
private let objectBytes = hex(
  """
  011f040080010000e80300006400000002000000050000000000004000000000
  0b000000000000000c000000000000000d000000000000000e00000000000000
  0f00000000000000100000000000000011000000000000001200000000000000
  1300000000000000140000000000000000020000000000000002000000000100
  0500000000000000efbeadde0200000001020000000000000102000000000100
  0600000000000000040302010100000015000000000000001600000000000000
  1700000000000000180000000000000019000000000000001a00000000000000
  1b000000000000001c000000000000001d000000000000001e0000001f000000
  766d2d30316e6f7465
  """)

private let entries = [
  NameEntry(object: ObjectID(103), kind: .disk, name: Array("vm-01".utf8)),
  NameEntry(object: ObjectID(104), kind: .directory, name: Array("dir".utf8)),
]
private let entryBytes = hex("67000000000000000105766d2d303168000000000000000203646972")

private let volume = VolumeRecord(
  member: UUIDBytes(high: 0x1111_2222_3333_4444, low: 0xAAAA_BBBB_CCCC_DDDD),
  sizeInBlocks: 0x4000_0000)
private let volumeBytes = hex("4444333322221111ddddccccbbbbaaaa0000004000000000")

private func decodeObject(_ bytes: [UInt8]) -> ObjectRecord? {
  bytes.withUnsafeBytes { ObjectRecord(decoding: $0) }
}

private func decodeNames(_ bytes: [UInt8]) -> [NameEntry]? {
  bytes.withUnsafeBytes { NameEntry.decode($0) }
}

@Test func aMetadataPointerHasItsGoldenBytes() {
  let bytes = hex("000200000000000000020000000001000500000000000000efbeadde02000000")
  #expect(encoded(size: 32) { pointerA.encode(to: $0) } == bytes)
  #expect(bytes.withUnsafeBytes { NodePointer(decoding: $0.baseAddress!) } == pointerA)
}

@Test func noMetadataPointerIsAllZeros() {
  let zeros = [UInt8](repeating: 0, count: 32)
  #expect(encoded(size: 32) { NodePointer.none.encode(to: $0) } == zeros)
  #expect(zeros.withUnsafeBytes { NodePointer(decoding: $0.baseAddress!) }.isNone)
}

@Test func anObjectRecordHasItsGoldenBytes() {
  #expect(hexLines(object.encoded()) == hexLines(objectBytes))
  #expect(decodeObject(objectBytes) == object)
}

@Test func namesHaveTheirGoldenBytes() {
  #expect(hexLines(NameEntry.encode(entries)) == hexLines(entryBytes))
  #expect(decodeNames(entryBytes) == entries)
}

@Test func aVolumeRecordHasItsGoldenBytes() {
  #expect(volume.encoded() == volumeBytes)
  #expect(volumeBytes.withUnsafeBytes { VolumeRecord(decoding: $0) } == volume)
}

@Test func namesHashAsTheAuthorsOfFNVPublished() {
  #expect(NameEntry.hash([]) == 0xCBF2_9CE4_8422_2325)
  #expect(NameEntry.hash(Array("a".utf8)) == 0xAF63_DC4C_8601_EC8C)
  #expect(NameEntry.hash(Array("foobar".utf8)) == 0x8594_4171_F739_67E8)
}

@Test func anObjectRecordOfAnyOtherLengthIsRefused() {
  let guarded = GuardedMemory(capacity: blockSize)
  for length in 0..<objectBytes.count {
    let cut = Array(objectBytes[..<length])
    #expect(guarded.with(cut) { ObjectRecord(decoding: $0) } == nil, "\(length) bytes")
  }
  #expect(decodeObject(objectBytes + [0]) == nil)
}

@Test func anObjectRecordThatMakesNoSenseIsRefused() {
  func changed(_ at: Int, _ value: some FixedWidthInteger) -> [UInt8] {
    var bytes = objectBytes
    bytes.withUnsafeMutableBytes { $0.baseAddress!.put(value, at: at) }
    return bytes
  }
  for bytes in [
    changed(0, UInt8(0)), changed(0, UInt8(4)), changed(1, UInt8(32)), changed(2, UInt16(5)),
    changed(2, UInt16.max), changed(20, UInt32(6)), changed(20, UInt32.max),
    changed(20, UInt32(256)),
  ] {
    #expect(decodeObject(bytes) == nil)
  }
}

@Test func namesCutAnywhereAreRefusedButBetweenEntries() {
  let guarded = GuardedMemory(capacity: blockSize)
  for length in 0..<entryBytes.count {
    let back = guarded.with(Array(entryBytes[..<length])) { NameEntry.decode($0) }
    switch length {
    case 0: #expect(back == [])
    case 15: #expect(back == [entries[0]])
    default: #expect(back == nil, "\(length) bytes")
    }
  }
}

@Test func aNameOfNoBytesIsRefused() {
  var bytes = entryBytes
  bytes[9] = 0
  #expect(decodeNames(bytes) == nil)
}

@Test func randomlyChangedCatalogValuesNeverStopTheDecoders() {
  var random = SeededRandom(seed: 0xCA7)
  let guarded = GuardedMemory(capacity: blockSize)
  for round in 0..<20_000 {
    var bytes = [objectBytes, entryBytes, volumeBytes][round % 3]
    for _ in 0...random.below(5) { mutate(&bytes, &random) }
    if random.oneIn(4) { bytes.removeLast(Int(random.below(UInt64(bytes.count)))) }
    guarded.with(bytes) { value in
      if let o = ObjectRecord(decoding: value) {
        #expect(o.encoded().count == value.count)
        #expect(o.name.count <= LogRecord.maximumName)
        #expect(o.comment.count <= LogRecord.maximumComment)
      }
      if let names = NameEntry.decode(value) {
        #expect(NameEntry.encode(names) == Array(value))
      }
      if let v = VolumeRecord(decoding: value) { #expect(v.encoded() == Array(value)) }
    }
  }
}
