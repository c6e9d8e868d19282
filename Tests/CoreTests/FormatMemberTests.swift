import Testing

@testable import Core

// Golden bytes of what is at fixed places of member devices: labels, roots, epoch records. The
// expected bytes were made from docs/formats by a program of its own, not by these encoders.

private let pool = UUIDBytes(high: 0x0123_4567_89AB_4DEF, low: 0x8EDC_BA98_7654_3210)
private let member = UUIDBytes(high: 0x1111_2222_3333_4444, low: 0xAAAA_BBBB_CCCC_DDDD)

private let logLabel = DeviceLabel(
  pool: pool, member: member, role: .log, nodeSlot: 3, segmentShift: 20, sizeInBlocks: 4096,
  created: 0x17F0_0000_0000_0001, poolName: "bench pool")
private let logLabelBytes = golden(
  """
  534c554943454c4201000000a6e7cb8fef4dab89674523011032547698badc8e
  4444333322221111ddddccccbbbbaaaa01030000140000000010000000000000
  010000000000f0170a62656e636820706f6f6c0000000000
  """)

private let volumeLabel = DeviceLabel(
  pool: pool, member: member, role: .volume, volumeIndex: 7, sizeInBlocks: 0x1000_0000,
  created: 0x17F0_0000_0000_0002, poolName: "bär")
private let volumeLabelBytes = golden(
  """
  534c554943454c42010000003184eea0ef4dab89674523011032547698badc8e
  4444333322221111ddddccccbbbbaaaa02000700000000000000001000000000
  020000000000f0170462c3a472000000
  """)

private let root: RootRecord = {
  var root = RootRecord()
  root.pool = pool
  root.unit = 2
  root.checkpoint = 41
  root.cutSequence = 1000
  root.nextPosition = 0x1_2345_6000
  root.cutEpoch = 9
  root.cutChain = 0xCAFE_F00D
  root.volumes = 2
  root.nextObject = 77
  root.nextInstant = 88
  root.objects = NodePointer(
    first: BlockAddress(volume: 0, block: 0x200), second: BlockAddress(volume: 1, block: 0x200),
    birth: 5, checksum: 0xDEAD_BEEF, level: 2)
  root.names = NodePointer(
    first: BlockAddress(volume: 0, block: 0x201), second: BlockAddress(volume: 1, block: 0x201),
    birth: 6, checksum: 0x0102_0304, level: 1)
  root.space = NodePointer(
    first: BlockAddress(volume: 0, block: 0x202), second: BlockAddress(volume: 1, block: 0x202),
    birth: 7, checksum: 0xA0B0_C0D0, level: 3)
  root.usedBlocks = 5000
  root.metadataBlocks = 60
  root.disks = 12
  root.freeingBlocks = 34
  root.written = 0x17F0_0000_0000_0003
  root.deletedObjects = 1
  return root
}()
private let rootBytes = golden(
  """
  534c55494345525401000000046b2a84ef4dab89674523011032547698badc8e
  02000000000000002900000000000000e8030000000000000060452301000000
  09000000000000000df0feca020000004d000000000000005800000000000000
  000200000000000000020000000001000500000000000000efbeadde02000000
  0102000000000000010200000000010006000000000000000403020101000000
  020200000000000002020000000001000700000000000000d0c0b0a003000000
  88130000000000003c000000000000000c000000000000000000000000000000
  2200000000000000030000000000f0170100000000000000
  """)

private let epochs = EpochRecord(
  tag: member.low, counter: 17,
  epochs: [
    Epoch(number: 3, firstSequence: 500, position: 0x20_0000, chain: 0x1122_3344),
    Epoch(number: 5, firstSequence: 731, position: 0x50_0000, chain: 0x5566_7788),
  ])
private let epochBytes = golden(
  """
  534c554943454550010000008111e719ddddccccbbbbaaaa1100000000000000
  02000000000000000300000000000000f4010000000000000000200000000000
  44332211000000000500000000000000db020000000000000000500000000000
  8877665500000000
  """)

private func decodeLabel(
  _ bytes: [UInt8], actual: UInt64 = 1 << 40
) -> Result<DeviceLabel, LabelError> {
  bytes.withUnsafeBytes { buffer in
    Result { () throws(LabelError) in
      try DeviceLabel(decoding: buffer.baseAddress!, actualSizeInBlocks: actual)
    }
  }
}

private func decodeRoot(_ bytes: [UInt8], pool expected: UUIDBytes = pool) -> RootRecord? {
  bytes.withUnsafeBytes { RootRecord(decoding: $0.baseAddress!, pool: expected, unit: 2) }
}

private func decodeEpochs(_ bytes: [UInt8], tag: UInt64 = member.low) -> EpochRecord? {
  bytes.withUnsafeBytes { EpochRecord(decoding: $0.baseAddress!, tag: tag) }
}

/// The block with its checksum made right again: what an attacker writes, not what rots.
private func resealed(_ bytes: [UInt8]) -> [UInt8] {
  var bytes = bytes
  bytes.withUnsafeMutableBytes { sealBlock($0.baseAddress!, checksumAt: 12) }
  return bytes
}

private func changed(_ bytes: [UInt8], _ at: Int, _ value: some FixedWidthInteger) -> [UInt8] {
  var bytes = bytes
  bytes.withUnsafeMutableBytes { $0.baseAddress!.put(value, at: at) }
  return resealed(bytes)
}

@Test func aLogsLabelHasItsGoldenBytes() {
  #expect(hexLines(encoded { logLabel.encode(to: $0) }) == hexLines(logLabelBytes))
  #expect(decodeLabel(logLabelBytes) == .success(logLabel))
}

@Test func aVolumesLabelHasItsGoldenBytes() {
  #expect(hexLines(encoded { volumeLabel.encode(to: $0) }) == hexLines(volumeLabelBytes))
  #expect(decodeLabel(volumeLabelBytes) == .success(volumeLabel))
}

@Test func aRootHasItsGoldenBytes() {
  #expect(hexLines(encoded { root.encode(to: $0) }) == hexLines(rootBytes))
  #expect(decodeRoot(rootBytes) == root)
}

@Test func anEpochRecordHasItsGoldenBytes() {
  #expect(hexLines(encoded { epochs.encode(to: $0) }) == hexLines(epochBytes))
  #expect(decodeEpochs(epochBytes) == epochs)
}

@Test func aFullEpochRecordFitsItsBlock() {
  let full = EpochRecord(
    tag: 1, counter: 2,
    epochs: (1...UInt64(EpochRecord.maximumEntries)).map {
      Epoch(number: $0, firstSequence: $0 * 3, position: $0 << 20, chain: UInt32($0))
    })
  #expect(decodeEpochs(encoded { full.encode(to: $0) }, tag: 1) == full)
}

@Test func everyFlippedBitOfALabelIsRefused() {
  for bytes in [logLabelBytes, volumeLabelBytes] {
    for (byte, bit) in flips(dense: 160, size: blockSize) {
      var bad = bytes
      bad[byte] ^= 1 << bit
      guard case .failure = decodeLabel(bad) else {
        Issue.record("bit \(bit) of byte \(byte) went unnoticed")
        return
      }
    }
  }
}

@Test func everyFlippedBitOfARootIsRefused() {
  for (byte, bit) in flips(dense: 256, size: blockSize) {
    var bad = rootBytes
    bad[byte] ^= 1 << bit
    #expect(decodeRoot(bad) == nil, "bit \(bit) of byte \(byte)")
  }
}

@Test func everyFlippedBitOfAnEpochRecordIsRefused() {
  for (byte, bit) in flips(dense: 112, size: blockSize) {
    var bad = epochBytes
    bad[byte] ^= 1 << bit
    #expect(decodeEpochs(bad) == nil, "bit \(bit) of byte \(byte)")
  }
}

@Test func aTornBlockIsRefused() {
  for sectors in 1..<8 {
    let other = [UInt8](repeating: 0x5A, count: blockSize)
    func torn(_ new: [UInt8]) -> [UInt8] {
      Array(new[..<(sectors * sectorSize)] + other[(sectors * sectorSize)...])
    }
    #expect(decodeLabel(torn(logLabelBytes)) == .failure(.damaged))
    #expect(decodeRoot(torn(rootBytes)) == nil)
    #expect(decodeEpochs(torn(epochBytes)) == nil)
  }
}

@Test func aDeviceWithoutOurMagicIsForeign() {
  #expect(decodeLabel([UInt8](repeating: 0, count: blockSize)) == .failure(.notSluice))
  #expect(decodeLabel(rootBytes) == .failure(.notSluice))
}

@Test func aLabelOfALaterFormatIsToldApart() {
  #expect(decodeLabel(changed(logLabelBytes, 8, UInt32(2))) == .failure(.newerFormat(2)))
}

@Test func aDeviceSmallerThanItsLabelSaysIsTruncated() {
  #expect(decodeLabel(logLabelBytes, actual: 4096) == .success(logLabel))
  #expect(
    decodeLabel(logLabelBytes, actual: 4095)
      == .failure(.truncated(labelled: 4096, actual: 4095)))
}

@Test func aSealedLabelThatMakesNoSenseIsDamaged() {
  let cases: [(String, [UInt8])] = [
    ("role 0", changed(logLabelBytes, 48, UInt8(0))),
    ("role 3", changed(logLabelBytes, 48, UInt8(3))),
    ("name of 64 bytes", changed(logLabelBytes, 72, UInt8(64))),
    ("segments of 512 KiB", changed(logLabelBytes, 52, UInt32(19))),
    ("segments of 128 MiB", changed(logLabelBytes, 52, UInt32(27))),
    ("segments of 2^300 bytes", changed(logLabelBytes, 52, UInt32(300))),
    ("log of no blocks", changed(logLabelBytes, 56, UInt64(0))),
    ("log of seven segments", changed(logLabelBytes, 56, UInt64(256 + 7 * 256 + 255))),
    ("log of 2^64 blocks", changed(logLabelBytes, 56, UInt64.max)),
    ("volume of its label area", changed(volumeLabelBytes, 56, UInt64(512))),
    ("volume of 2^48 blocks", changed(volumeLabelBytes, 56, UInt64(1) << 48)),
  ]
  for (what, bytes) in cases {
    #expect(decodeLabel(bytes, actual: .max) == .failure(.damaged), "\(what)")
  }
}

@Test func aRootOfAnotherPoolOrUnitIsRefused() {
  #expect(decodeRoot(rootBytes, pool: member) == nil)
  #expect(decodeRoot(changed(rootBytes, 32, UInt64(3))) == nil)
  #expect(decodeRoot(changed(rootBytes, 40, UInt64(0))) == nil)
  #expect(decodeRoot(changed(rootBytes, 76, UInt32(0))) == nil)
  #expect(decodeRoot(changed(rootBytes, 8, UInt32(2))) == nil)
}

@Test func aRootOfImpossibleNumbersIsRefused() {
  for field in [40, 48, 56, 64, 88] {
    #expect(decodeRoot(changed(rootBytes, field, UInt64.max - 4095)) == nil, "field \(field)")
  }
  #expect(decodeRoot(changed(rootBytes, 56, UInt64(0x1_2345_6001))) == nil)
}

@Test func anEpochRecordThatMakesNoSenseIsRefused() {
  #expect(decodeEpochs(epochBytes, tag: 1) == nil)
  let cases: [(String, [UInt8])] = [
    ("no entry", changed(epochBytes, 32, UInt32(0))),
    ("121 entries", changed(epochBytes, 32, UInt32(121))),
    ("2^32 - 1 entries", changed(epochBytes, 32, UInt32.max)),
    ("equal epochs", changed(epochBytes, 72, UInt64(3))),
    ("a sequence that goes back", changed(epochBytes, 80, UInt64(499))),
    ("a position that goes back", changed(epochBytes, 88, UInt64(0x10_0000))),
    ("a counter that overflows", changed(epochBytes, 24, UInt64.max)),
    ("an epoch that overflows", changed(epochBytes, 72, UInt64.max)),
    ("a sequence that overflows", changed(epochBytes, 80, UInt64.max)),
    ("a position that overflows", changed(epochBytes, 88, UInt64.max)),
  ]
  for (what, bytes) in cases { #expect(decodeEpochs(bytes) == nil, "\(what)") }
}

@Test func randomlyChangedBlocksNeverStopTheDecoders() {
  var random = SeededRandom(seed: 0x51AB)
  let guarded = GuardedMemory(capacity: blockSize)
  for round in 0..<4000 {
    var bytes = [logLabelBytes, volumeLabelBytes, rootBytes, epochBytes][round % 4]
    for _ in 0...random.below(4) { mutate(&bytes, &random) }
    let sealed = resealed(bytes)
    for form in [bytes, sealed] {
      guarded.with(form) { buffer in
        let p = buffer.baseAddress!
        if let label = try? DeviceLabel(decoding: p, actualSizeInBlocks: 1 << 47) {
          #expect(label.sizeInBlocks <= 1 << 47 && label.poolName.utf8.count <= 63 * 3)
        }
        if let r = RootRecord(decoding: p, pool: pool, unit: 2) {
          #expect(r.checkpoint > 0 && r.volumes > 0)
        }
        if let e = EpochRecord(decoding: p, tag: member.low) {
          #expect((1...EpochRecord.maximumEntries).contains(e.epochs.count))
        }
      }
    }
  }
}
