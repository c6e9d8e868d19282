import Core
import Testing

@testable import Checker

private typealias Write = LogBuilder.Write

/// Checks that exactly one complaint is made, and what it says.
func expectOne(
  _ report: CheckReport, _ words: String, location: SourceLocation = #_sourceLocation
) {
  #expect(report.failure == nil, sourceLocation: location)
  #expect(report.complaintCount == 1, "\(report.complaints)", sourceLocation: location)
  #expect(
    report.complaints.first?.contains(words) == true, "\(report.complaints)",
    sourceLocation: location)
}

@Test func aSoundPoolIsClean() {
  let pool = PoolBuilder.sample()
  pool.build()
  let report = pool.check()
  #expect(report.complaints == [] && report.notes == [] && report.failure == nil)
  #expect(report.outcome == .clean)
  #expect(report.counters.objects == 2 && report.counters.names == 2)
  #expect(report.counters.dataBlocks == 305 && report.counters.verifiedBlocks == 305)
  #expect(report.counters.metadataNodes == UInt64(pool.nodes.count))
  #expect(pool.volumes.allSatisfy { $0.writes == [] } && pool.log.device.writes == [])
}

@Test func aSoundPoolOfOneVolumeIsClean() {
  let pool = PoolBuilder(volumes: 1)
  pool.disks = [.init(id: 100, name: "only", blocks: [0: 1])]
  pool.build()
  #expect(pool.check().complaints == [])
}

@Test func aSoundPoolIsCleanWhenEverySortGoesThroughFiles() {
  let pool = PoolBuilder.sample()
  pool.build()
  for i: UInt64 in 0..<40 { pool.log.frame([Write(block: i, stamp: i)], durable: i) }
  var options = CheckOptions()
  options.sortMemory = 0
  options.temporaryDirectory = "/tmp"
  let report = pool.check(options)
  #expect(report.complaints == [] && report.failure == nil)
  #expect(report.counters.spilledBytes > 0)
}

@Test func volumesMayBeNamedInAnyOrder() {
  let pool = PoolBuilder.sample()
  pool.build()
  let report = Checker(log: pool.log.device, volumes: pool.volumes.reversed()).run()
  #expect(report.outcome == .clean)
}

@Test func aMissingVolumeADoubleOneAndAForeignOneAreRefused() {
  let pool = PoolBuilder.sample()
  pool.build()
  let log = pool.log.device
  let (a, b) = (pool.volumes[0], pool.volumes[1])
  #expect(Checker(log: log, volumes: [b]).run().failure?.contains("volume 0") == true)
  #expect(Checker(log: log, volumes: [a]).run().failure?.contains("2 volumes") == true)
  #expect(Checker(log: log, volumes: [a, b, b]).run().failure?.contains("two devices") == true)
  #expect(Checker(log: a, volumes: [a, b]).run().failure?.contains("labelled as a volume") == true)
  #expect(
    Checker(log: log, volumes: [a, log]).run().failure?.contains("labelled as a log") == true)
  #expect(Checker(log: log, volumes: []).run().outcome == .couldNotRun)
  let other = LogBuilder(pool: UUIDBytes(high: 8, low: 8))
  #expect(
    Checker(log: other.device, volumes: [a, b]).run().failure?.contains("belongs to") == true)
}

@Test func aDamagedLabelCopyIsHealedFromTheOther() {
  for copy: UInt64 in [0, 1] {
    let pool = PoolBuilder.sample()
    pool.build()
    pool.volumes[1].flip(copy * 4096 + 60)
    expectOne(pool.check(), "copy of the label is damaged")
    #expect(pool.volumes[1].writes == [])
    let repaired = pool.check(PoolBuilder.repairing)
    #expect(repaired.repaired.count == 1 && repaired.outcome == .damageFound)
    #expect(pool.check().outcome == .clean)
  }
}

@Test func aDeviceWithoutAnyGoodLabelIsRefused() {
  let pool = PoolBuilder.sample()
  pool.build()
  for copy: UInt64 in [0, 1] { pool.volumes[1].flip(copy * 4096 + 60) }
  #expect(pool.check().outcome == .couldNotRun)
}

@Test func aRootMissingOnOneVolumeAfterACrashIsANote() {
  let pool = PoolBuilder.sample()
  pool.build()
  pool.volumes[1].zero(VolumeLayout.root(unit: 0, checkpoint: 1) * 4096, 2 * 4096)
  let report = pool.check()
  #expect(report.outcome == .clean && report.notes.count == 1)
}

@Test func aRootMissingOnOneVolumeThatTheLogKnowsAsDurableIsDamageAndHealed() {
  let pool = PoolBuilder.sample()
  pool.build()
  pool.log.frame()
  for copies: UInt64 in 1...2 {
    for copy in 0..<copies {
      pool.volumes[1].flip((VolumeLayout.root(unit: 0, checkpoint: 1) + copy) * 4096 + 99)
    }
    expectOne(
      pool.check(), copies == 1 ? "one copy of the root" : "was durable here and is lost")
    #expect(pool.check(PoolBuilder.repairing).repaired.count == 1)
    #expect(pool.check().outcome == .clean)
  }
}

@Test func aVolumeThatWasAddedAndHasNoRootYetIsANote() {
  let pool = PoolBuilder.sample()
  pool.build()
  pool.log.frame()
  let device = MemoryDevice(blocks: 9000)
  let label = DeviceLabel(
    pool: pool.log.label.pool, member: UUIDBytes(high: 9, low: 2), role: .volume, volumeIndex: 2,
    sizeInBlocks: 9000, created: 5, poolName: "test")
  for copy: UInt64 in [0, 1] { device.put(block: copy) { label.encode(to: $0) } }
  let report = Checker(log: pool.log.device, volumes: pool.volumes + [device]).run()
  #expect(report.outcome == .clean && report.notes.count == 1)
}

@Test func aPoolWithoutAnyRootCanNotBeChecked() {
  let pool = PoolBuilder.sample()
  pool.build()
  for volume in pool.volumes {
    for copy: UInt64 in 0..<2 {
      volume.flip((VolumeLayout.root(unit: 0, checkpoint: 1) + copy) * 4096 + 99)
    }
  }
  #expect(pool.check().failure?.contains("root") == true)
}

@Test func anyDamagedCopyOfAnyNodeIsFoundAndHealed() {
  let pool = PoolBuilder.sample()
  pool.build()
  var random = SeededRandom(seed: 0x40DE)
  for (pointer, _) in pool.nodes {
    for address in [pointer.first, pointer.second] {
      let at = address.byteOffset + random.below(4096)
      pool.volumes[address.volume].flip(at, bit: UInt8(random.below(8)))
      expectOne(pool.check(), "volume \(address.volume), offset \(address.byteOffset)")
      #expect(pool.check(PoolBuilder.repairing).repaired.count == 1)
      #expect(pool.check().outcome == .clean)
    }
  }
}

@Test func aNodeWhoseCopiesAreBothDamagedIsDamageWithoutFalseLeaks() {
  let pool = PoolBuilder.sample()
  pool.build()
  for (pointer, kind) in pool.nodes where kind == .extents {
    for address in [pointer.first, pointer.second] {
      pool.volumes[address.volume].flip(address.byteOffset + 100)
    }
    let report = pool.check(PoolBuilder.repairing)
    #expect(report.complaintCount == 1 && report.repaired == [])
    #expect(report.complaints[0].contains("both copies of a node of the map of object"))
    for address in [pointer.first, pointer.second] {
      pool.volumes[address.volume].flip(address.byteOffset + 100)
    }
  }
  #expect(pool.check().outcome == .clean)
}

@Test func aDamagedDataBlockIsNamedByDiskAndOffset() {
  let pool = PoolBuilder.sample()
  pool.build()
  let home = pool.homes[101]![8]!
  pool.volumes[home.volume].flip(home.byteOffset + 4095, bit: 7)
  let report = pool.check(PoolBuilder.repairing)
  #expect(report.complaintCount == 1 && report.repaired == [])
  #expect(
    report.damagedBlocks == [
      DamagedBlock(
        device: "volume \(home.volume)", offset: home.byteOffset, length: 4096, disk: "beta",
        diskOffset: 8 * 4096)
    ])
}

@Test func neighbouringDamagedBlocksAreOneFinding() {
  let pool = PoolBuilder.sample()
  pool.build()
  for block: UInt64 in 10..<14 {
    let home = pool.homes[100]![block]!
    pool.volumes[home.volume].unreadable.insert(home.block)
  }
  let report = pool.check()
  #expect(report.complaintCount == 1 && report.damagedBlockCount == 4)
  #expect(report.damagedBlocks.first?.length == 4 * 4096)
}

@Test func aHomeThatADestageMayHaveTornIsCoveredByTheLog() {
  let pool = PoolBuilder.sample()
  pool.build()
  let home = pool.homes[100]![20]!
  pool.volumes[home.volume].flip(home.byteOffset)
  pool.log.frame([Write(object: 100, block: 19, stamp: 1), Write(object: 101, block: 20, stamp: 1)])
  #expect(pool.check().complaintCount == 1)
  pool.log.frame([Write(object: 100, block: 20, stamp: 2)], durable: 1)
  let report = pool.check()
  #expect(report.complaints == [] && report.counters.coveredByLog == 2)
}

@Test func aTornTailDoesNotCoverAHome() {
  let pool = PoolBuilder.sample()
  pool.build()
  let home = pool.homes[100]![20]!
  pool.volumes[home.volume].flip(home.byteOffset)
  let frame = pool.log.frame([Write(object: 100, block: 20, stamp: 2)])
  pool.log.device.flip(pool.log.offset(frame.position) + 4096)
  #expect(pool.check().damagedBlocks.first?.disk == "alpha")
}

@Test func aBlockOwnedTwiceIsFound() {
  let pool = PoolBuilder.sample()
  pool.shareHomes = true
  pool.build()
  let report = pool.check()
  #expect(report.complaints.contains { $0.contains("owned twice") })
}

@Test func aLeakedBlockIsFound() {
  let pool = PoolBuilder.sample()
  pool.leak = [BlockAddress(volume: 1, block: 8500), BlockAddress(volume: 1, block: 8502)]
  pool.build()
  expectOne(pool.check(), "2 blocks of volume 1, the first at offset \(8500 * 4096)")
}

@Test func anOwnedBlockThatIsFreeInTheBitmapIsFound() {
  let pool = PoolBuilder.sample()
  pool.lose = [BlockAddress(volume: 0, block: 520)]
  pool.build()
  let report = pool.check()
  #expect(report.complaints.contains { $0.contains("free in the space tree, but belong to") })
}

@Test func bitsOfTheLabelAreaAreFound() {
  let pool = PoolBuilder.sample()
  pool.leak = [BlockAddress(volume: 0, block: 300)]
  pool.build()
  #expect(pool.check().complaints.contains { $0.contains("label area") })
}

@Test func wrongCountersAreFoundOneByOne() {
  let rootCounters: [(String, WritableKeyPath<RootRecord, UInt64>)] = [
    ("space in use in the root", \.usedBlocks), ("metadata in the root", \.metadataBlocks),
    ("disks", \.disks), ("deleted objects", \.deletedObjects),
    ("blocks of deleted objects", \.freeingBlocks),
  ]
  for (words, path) in rootCounters {
    let pool = PoolBuilder.sample()
    pool.changeRoot = { $0[keyPath: path] += 1 }
    pool.build()
    expectOne(pool.check(), words)
  }
  let diskCounters: [(String, WritableKeyPath<ObjectRecord, UInt64>)] = [
    ("blocks in use", \.usedBlocks), ("blocks of its own", \.exclusiveBlocks),
    ("metadata blocks", \.metadataBlocks),
  ]
  for (words, path) in diskCounters {
    let pool = PoolBuilder.sample()
    pool.changeRecord = { $0[keyPath: path] += 1 }
    pool.build()
    expectOne(pool.check(), words)
  }
}

@Test func wrongGroupWordsAreFound() {
  for (words, change) in [
    ("free blocks", { (page: inout [UInt32]) in page[0] += 1 }),
    ("never used", { page in page[0] = 0 }),
    ("granted to a unit", { page in page[0] = page[0] & 0xFF_FFFF | 99 << 24 }),
    ("behind the volume's end", { page in page[5] = GroupWord(free: 1, owner: 1).raw }),
  ] {
    let pool = PoolBuilder(volumes: 1)
    pool.disks = [.init(id: 100, name: "only", blocks: [0: 1])]
    pool.changeWords = change
    pool.build()
    expectOne(pool.check(), words)
  }
}

@Test func aDeletedDiskHoldsItsSpaceUntilItIsFreed() {
  let pool = PoolBuilder.sample()
  pool.disks[1].isDeleted = true
  pool.build()
  #expect(pool.check().complaints == [])
}

@Test func namesAndObjectsMustAgree() {
  var pool = PoolBuilder.sample()
  pool.extraNames = [("ghost", 555)]
  pool.build()
  expectOne(pool.check(), "a name leads to object 555, which has no record")
  pool = PoolBuilder.sample()
  pool.extraNames = [("second", 100)]
  pool.build()
  expectOne(pool.check(), "object 100 has 2 names, but counts 1")
}

@Test func anObjectIdThatWasNotGivenOutIsFound() {
  let pool = PoolBuilder.sample()
  pool.changeRoot = { $0.nextObject = 101 }
  pool.build()
  expectOne(pool.check(), "object 101 has an id that was not given out yet")
}

@Test func theCatalogIsFollowedThroughTheLog() {
  let pool = PoolBuilder.sample()
  pool.build()
  func create(_ id: UInt64, _ name: String) -> LogRecord {
    .create(
      object: ObjectID(id), parent: .root, kind: .disk, mode: 0, size: 1 << 20, time: 0,
      name: Array(name.utf8))
  }
  func remove(_ id: UInt64, _ name: String) -> LogRecord {
    .remove(
      object: ObjectID(id), kind: .disk, parent: .root, snapshots: 0, origin: ObjectID(0),
      name: Array(name.utf8))
  }
  pool.log.frame(records: [
    remove(101, "beta"), create(200, "beta"), .resize(object: ObjectID(200), size: 4096),
    .rename(
      object: ObjectID(200), kind: .disk, parent: .root, name: Array("beta".utf8),
      newParent: .root, newName: Array("gamma".utf8)),
    create(201, "beta"), remove(200, "gamma"),
  ])
  pool.log.frame([Write(object: 201, block: 3, stamp: 3)])
  #expect(pool.check().complaints == [])
  pool.log.frame(records: [create(202, "alpha")])
  expectOne(pool.check(), "a name that is taken")
  pool.log.frame(records: [.resize(object: ObjectID(200), size: 0)])
  #expect(pool.check().complaints.contains { $0.contains("changes object 200") })
}

@Test func blocksOfADiskThatNeverWasAreFound() {
  let pool = PoolBuilder.sample()
  pool.build()
  pool.log.frame([Write(object: 300, block: 3, stamp: 3)])
  expectOne(pool.check(), "blocks of object 300")
}

/// Puts a large write of `count` blocks at home and logs it.
func largeWrite(
  _ pool: PoolBuilder, object: UInt64, block: UInt64, count: Int, at home: BlockAddress,
  damaged: Bool = false
) {
  var sums: [UInt32] = []
  for i in 0..<count {
    let bytes = content(block + UInt64(i) + 77)
    sums.append(checksum(bytes).littleEndian)
    pool.put(home + UInt64(i), damaged && i == count - 1 ? content(1) : bytes)
  }
  sums.withUnsafeBytes {
    let record = LogRecord.extent(
      object: ObjectID(object), generation: 1, block: BlockIndex(block), count: count,
      address: home, checksums: $0.baseAddress!)
    _ = pool.log.frame(records: [record])
  }
}

@Test func largeWritesOfTheLogAreVerifiedAtTheirHomes() {
  let pool = PoolBuilder.sample()
  pool.build()
  let home = BlockAddress(volume: 1, block: 8000)
  largeWrite(pool, object: 101, block: 640, count: 250, at: home)
  #expect(pool.check().complaints == [])
  largeWrite(pool, object: 101, block: 1000, count: 64, at: home + 300, damaged: true)
  let report = pool.check()
  #expect(report.complaintCount == 1)
  #expect(report.damagedBlocks.first?.offset == (home + 363).byteOffset)
  #expect(report.damagedBlocks.first?.diskOffset == 1063 * 4096)
  // A newer version of the damaged block: the home may hold anything.
  pool.log.frame([Write(object: 101, block: 1063, stamp: 5)])
  #expect(pool.check().complaints == [])
}

@Test func aLargeWriteOntoABlockOfAnotherDiskIsFound() {
  let pool = PoolBuilder.sample()
  pool.build()
  largeWrite(pool, object: 101, block: 640, count: 1, at: pool.homes[100]![50]!)
  let report = pool.check()
  #expect(report.complaints.contains { $0.contains("owned twice") })
}

@Test func anyFlippedBitOfVSpaceIsFoundOrChangesNothing() {
  let pool = PoolBuilder.sample()
  pool.build()
  let owned =
    pool.nodes.flatMap { [$0.pointer.first, $0.pointer.second] }
    + pool.homes.values.flatMap(\.values)
  var random = SeededRandom(seed: 0xF11B)
  for _ in 0..<120 {
    let address = owned[Int(random.below(UInt64(owned.count)))]
    let (at, bit) = (address.byteOffset + random.below(4096), UInt8(random.below(8)))
    pool.volumes[address.volume].flip(at, bit: bit)
    #expect(pool.check().outcome == .damageFound, "volume \(address.volume), byte \(at)")
    pool.volumes[address.volume].flip(at, bit: bit)
  }
}

@Test func sealedNonsenseInTheTreesNeverStopsTheChecker() {
  var random = SeededRandom(seed: 0x5EA1)
  for _ in 0..<25 {
    let pool = PoolBuilder.sample()
    pool.changeRecord = { record in
      record.map = random.oneIn(2) ? record.deadList : record.map
      record.map.level = UInt8(random.below(4))
      record.deadList = record.map
    }
    pool.changeRoot = { root in
      switch random.below(4) {
      case 0: root.space = root.names
      case 1: swap(&root.objects, &root.names)
      case 2: root.objects.second = BlockAddress(raw: random.next())
      default: root.names = .none
      }
      if random.oneIn(3) { root.nextPosition = random.below(1 << 20) & ~4095 }
    }
    pool.build()
    #expect(pool.check(PoolBuilder.repairing).outcome != .clean)
  }
}
