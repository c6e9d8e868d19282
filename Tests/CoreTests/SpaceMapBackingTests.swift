import Core
import Testing

private let gibi = 262_144  // blocks

private func makeMap(
  _ volumes: [DeviceDescription], _ configuration: SpaceMap.Configuration = .init(),
  durable: ToyStore.Durable = .init()
) throws -> (SpaceMap, ToyStore) {
  let map = SpaceMap(configuration)
  for (i, v) in volumes.enumerated() { map.addVolume(i, v) }
  let store = ToyStore(map: map, durable: durable, seed: 1, missRate: 0)
  map.attach(store)
  try map.open()
  return (map, store)
}

/// Allocates what `body` waits for in `file` until it gets through.
private func served<T>(
  _ map: SpaceMap, _ file: inout ToyFile, _ body: () throws(SpaceWait) -> T
) throws -> T {
  while true {
    do throws(SpaceWait) { return try body() } catch {
      guard case .backing(let device, let offset, let length) = error else { throw error }
      give(map, &file, DeviceRange(device: device, offset: offset, length: length))
    }
  }
}

private func give(_ map: SpaceMap, _ file: inout ToyFile, _ range: DeviceRange) {
  if file.allocate(range) {
    map.backingDone(range)
  } else {
    map.backingFailed(range, error: 28)
  }
}

@Suite struct SpaceMapBackingTests {
  @Test func aSparseFileHasNothingToGiveUntilItIsBacked() throws {
    let (map, _) = try makeMap([device(4 * gibi, sparse: true)])
    #expect(map.available == 0)
    #expect(map.backable == 4 * gibi - 512)
    let expected = SpaceWait.backing(
      device: .volume(0), offset: 2 << 20, length: 30 << 20)
    #expect(throws: expected) { try map.allocateRun(near: nil, want: 64, minimum: 16) }
    // The same range until it is answered.
    #expect(throws: expected) { try map.allocateRun(near: nil, want: 64, minimum: 16) }
    #expect(try map.nextBacking(target: 1000) == nil)
    map.backingDone(DeviceRange(device: .volume(0), offset: 2 << 20, length: 30 << 20))
    #expect(map.backedFree == 7680)
    #expect(try map.allocateRun(near: nil, want: 64, minimum: 16) != nil)
    map.verify()
  }

  @Test func anAnswerToARangeThatWasNotAskedForIsIgnored() throws {
    let (map, _) = try makeMap([device(4 * gibi, sparse: true)])
    map.backingDone(DeviceRange(device: .volume(0), offset: 2 << 20, length: 30 << 20))
    map.backingFailed(DeviceRange(device: .volume(7), offset: 0, length: 4096), error: 28)
    #expect(map.backedFree == 0)
  }

  @Test func backingGrowsFromTheLowestAddressesToTheTarget() throws {
    let (map, _) = try makeMap([device(4 * gibi, sparse: true)])
    var last: UInt64 = 0
    while let range = try map.nextBacking(target: 50_000) {
      #expect(range.offset > last)
      last = range.offset
      map.backingDone(range)
    }
    #expect(map.available >= 50_000)
    #expect(map.backedFree < 50_000 + map.metadataReserve + 8192)
  }

  @Test func aFullFileSystemIsUsedToItsLastUnit() throws {
    let (map, _) = try makeMap([device(4 * gibi, sparse: true)])
    var file = ToyFile(blocks: 4 * gibi, budget: 777)
    var asked = 0
    while let range = try map.nextBacking(target: .max) {
      give(map, &file, range)
      asked += 1
    }
    #expect(file.budget == 0)
    #expect(map.backedFree == 777 * 32)
    #expect(map.isBackingFull && map.backable == 0)
    #expect(asked < 40)
    var sum = 0
    while let run = try map.allocateRun(near: nil, want: 256, minimum: 1) { sum += run.count }
    #expect(sum == 777 * 32 - map.metadataReserve)
    file.budget = 10
    map.spaceMayHaveReturned()
    let range = try #require(try map.nextBacking(target: .max))
    give(map, &file, range)
    #expect(map.backable > 0)
  }

  @Test func aVolumeThatLosesItsFileSystemIsNotAskedAgainUntilToldSo() throws {
    let (map, _) = try makeMap([device(gibi, sparse: true)])
    let range = try #require(try map.nextBacking(target: 1))
    map.backingFailed(range, error: 5)
    #expect(try map.nextBacking(target: 1) == nil)
    #expect(try map.allocateRun(near: nil, want: 1, minimum: 1) == nil)
    map.spaceMayHaveReturned()
    #expect(try map.nextBacking(target: 1) == range)
  }

  @Test func aFileSystemThatCanNotAllocateIsTrusted() throws {
    let (map, _) = try makeMap([device(gibi, sparse: true)])
    let range = try #require(try map.nextBacking(target: 1))
    map.backingFailed(range, error: 95)
    #expect(map.backedFree == 7680)
  }

  @Test func afterARestartBlocksInUseNeedNoBackingAndFreeOnesDo() throws {
    let volume = device(4 * gibi, sparse: true)
    var file = ToyFile(blocks: 4 * gibi, budget: .max)
    let (map, store) = try makeMap([volume])
    for _ in 0..<40 {
      let run = try served(map, &file) { () throws(SpaceWait) in
        try map.allocateRun(near: nil, want: 256, minimum: 256)!
      }
      map.noteAllocated(run.address, 200)
      map.returnRun(BlockRun(run.address + 200, 56))
    }
    try served(map, &file) { () throws(SpaceWait) in try map.commit() }
    let (again, _) = try makeMap([volume], durable: store.checkpoint())
    #expect(again.used == map.used && again.backedFree == 0)
    // The file system is full, but what the file has already can be taken again, lowest first.
    file.budget = 0
    let before = file.units.count { $0 }
    while let range = try again.nextBacking(target: .max) { give(again, &file, range) }
    #expect(file.units.count { $0 } == before)
    #expect(again.backedFree > 40 * 32)
    #expect(again.backedFree + again.used <= before * 32)
    again.verify()
  }

  @Test func theSecondCopyOfANodeGetsItsOwnPartOfASparseFile() throws {
    let (map, _) = try makeMap([device(4 * gibi, sparse: true)])
    var file = ToyFile(blocks: 4 * gibi, budget: .max)
    try served(map, &file) { () throws(SpaceWait) in try map.prepareNodes(100) }
    for _ in 0..<100 {
      let pair = map.takeNode()
      #expect(abs(Int(pair.0.block) - Int(pair.1.block)) >= 8192)
    }
  }

  @Test func theCopiesOfANodeAreApartOnTwoSparseVolumes() throws {
    let (map, _) = try makeMap([device(gibi, sparse: true), device(gibi, sparse: true)])
    var asked: [DeviceRange] = []
    while true {
      do throws(SpaceWait) {
        try map.prepareNodes(100)
        break
      } catch {
        guard case .backing(let device, let offset, let length) = error else { throw error }
        asked.append(DeviceRange(device: device, offset: offset, length: length))
        map.backingDone(asked.last!)
      }
    }
    #expect(asked.count == 2)
    for _ in 0..<100 {
      let pair = map.takeNode()
      #expect(pair.0.volume != pair.1.volume)
    }
  }

  @Test func copiesOfANodeShareAFileSystemThatRefusesABetterPlace() throws {
    let (map, _) = try makeMap([device(4 * gibi, sparse: true)])
    var file = ToyFile(blocks: 4 * gibi, budget: 100)
    try served(map, &file) { () throws(SpaceWait) in try map.prepareNodes(1000) }
    #expect(file.budget < 100)
    map.verify()
  }

  @Test func freedUnitsOfASparseFileArePunchedAfterTheRootAndUsableAfterThePunch() throws {
    var configuration = SpaceMap.Configuration()
    configuration.punchSlack = 0
    let (map, _) = try makeMap([device(gibi, sparse: true, discard: true)], configuration)
    var file = ToyFile(blocks: gibi, budget: .max)
    let run = try served(map, &file) { () throws(SpaceWait) in
      try map.allocateRun(near: nil, want: 128, minimum: 128)!
    }
    map.noteAllocated(run.address, run.count)
    try served(map, &file) { () throws(SpaceWait) in try map.commit() }
    map.rootDurable()
    #expect(map.nextPunch() == nil)
    map.noteReleased(run.address, run.count)
    #expect(map.nextPunch() == nil)
    try served(map, &file) { () throws(SpaceWait) in try map.commit() }
    map.rootDurable()
    let range = try #require(map.nextPunch())
    // 128 blocks from the label on: four units.
    #expect(range == DeviceRange(device: .volume(0), offset: 2 << 20, length: 512 << 10))
    #expect(try !map.reserve(run.address, 1))
    let before = map.backedFree
    map.punchDone(range, error: 0)
    #expect(map.backedFree == before)
    #expect(map.releasedPending == 0)
    #expect(try map.reserve(run.address, 128))
    map.verify()
  }

  @Test func aSparseFileKeepsSomeFreedSpaceForItself() throws {
    var configuration = SpaceMap.Configuration()
    configuration.punchSlack = 1 << 20
    let (map, _) = try makeMap([device(gibi, sparse: true, discard: true)], configuration)
    var file = ToyFile(blocks: gibi, budget: .max)
    let run = try served(map, &file) { () throws(SpaceWait) in
      try map.allocateRun(near: nil, want: 1000, minimum: 1000)!
    }
    map.noteAllocated(run.address, run.count)
    try served(map, &file) { () throws(SpaceWait) in try map.commit() }
    map.rootDurable()
    map.noteReleased(run.address, run.count)
    try served(map, &file) { () throws(SpaceWait) in try map.commit() }
    let before = map.backedFree
    map.rootDurable()
    #expect(map.nextPunch() == nil)
    #expect(map.backedFree >= before + 1000)
  }

  @Test func aDiscardThatFailsGivesTheBlocksBackAllTheSame() throws {
    let (map, _) = try makeMap([device(gibi, discard: true)])
    for round in 0..<2 {
      let run = try #require(try map.allocateRun(near: nil, want: 64, minimum: 64))
      map.noteAllocated(run.address, run.count)
      try map.commit()
      map.rootDurable()
      map.noteReleased(run.address, run.count)
      try map.commit()
      map.rootDurable()
      // Asked once; a device that can't discard is not asked again.
      var asked = 0
      while let range = map.nextPunch() {
        map.punchDone(range, error: 95)
        asked += 1
      }
      #expect(asked == (round == 0 ? 1 : 0))
      #expect(map.releasedPending == 0)
    }
    map.verify()
  }

  @Test func freeUnitsOfAUsedFileAreBackedBeforeTheFileGrows() throws {
    var configuration = SpaceMap.Configuration()
    configuration.punchSlack = 0
    let (map, _) = try makeMap([device(8 * gibi, sparse: true, discard: true)], configuration)
    var file = ToyFile(blocks: 8 * gibi, budget: .max)
    var runs: [BlockRun] = []
    while map.used < gibi {
      let run = try served(map, &file) { () throws(SpaceWait) in
        try map.allocateRun(near: runs.last?.end, want: 4096, minimum: 64)!
      }
      map.noteAllocated(run.address, run.count)
      runs.append(run)
    }
    for run in runs where run.end.block < 100_000 { map.noteReleased(run.address, run.count) }
    try served(map, &file) { () throws(SpaceWait) in try map.commit() }
    map.rootDurable()
    while let range = map.nextPunch() {
      file.punch(range)
      map.punchDone(range, error: 0)
    }
    let range = try #require(try map.nextBacking(target: .max))
    #expect(range.offset < 100_000 * 4096)
  }

  @Test func whatIsKnownOfBackingGoesWithAChunkThatLeavesMemory() throws {
    var configuration = SpaceMap.Configuration()
    configuration.chunkLimit = 64
    let (map, _) = try makeMap([device(16 * gibi, sparse: true)], configuration)
    while let range = try map.nextBacking(target: 3 * 8192) { map.backingDone(range) }
    let before = map.backedFree
    // Chunks with reserved blocks can't leave.
    for chunk in 100..<400 {
      #expect(try map.reserve(BlockAddress(volume: 0, block: UInt64(chunk * 8192)), 1))
    }
    #expect(map.backedFree < before)
    map.verify()
    while let range = try map.nextBacking(target: 3 * 8192) { map.backingDone(range) }
    map.verify()
  }

  @Test func whatIsAllocatedEndsInFrontOfAUnitThatMayBePunched() throws {
    let (map, store) = try makeMap([device(4 * gibi, sparse: true)])
    var file = ToyFile(blocks: 4 * gibi, budget: 4 * gibi)
    give(map, &file, try #require(try map.nextBacking(target: .max)))
    // Half of the first unit behind the label, and the next two.
    let first = BlockAddress(volume: 0, block: 512)
    #expect(try map.reserve(first + 16, 80))
    map.noteAllocated(first + 16, 80)
    try served(map, &file) { () throws(SpaceWait) in try map.commit() }
    let (again, _) = try makeMap(
      [device(4 * gibi, sparse: true)], durable: store.checkpoint())
    again.noteReleased(first + 32, 32)
    let expected = SpaceWait.backing(
      device: .volume(0), offset: 512 << 12, length: 128 << 10)
    #expect(throws: expected) { try again.commit() }
  }
}
