import Core
import Testing

private let mebi = 256  // blocks

/// A map on plain volumes with a toy store, opened.
private func makeMap(
  _ volumes: [DeviceDescription], _ configuration: SpaceMap.Configuration = .init()
) throws -> (SpaceMap, ToyStore) {
  let map = SpaceMap(configuration)
  for (i, v) in volumes.enumerated() { map.addVolume(i, v) }
  let store = ToyStore(map: map, seed: 1)
  map.attach(store)
  try map.open()
  return (map, store)
}

/// A map of what `store` has with its next root, as after a restart.
private func reopen(
  _ store: ToyStore, _ volume: DeviceDescription, _ configuration: SpaceMap.Configuration = .init()
) throws -> (SpaceMap, ToyStore) {
  let map = SpaceMap(configuration)
  map.addVolume(0, volume)
  let again = ToyStore(map: map, durable: store.checkpoint(), seed: 1, missRate: 0)
  map.attach(again)
  try map.open()
  return (map, again)
}

@Suite struct SpaceMapTests {
  @Test func theLabelAreaIsNeverHandedOut() throws {
    let (map, _) = try makeMap([device(64 * mebi)])
    while let run = try map.allocateRun(near: nil, want: 100, minimum: 1) {
      #expect(run.address.block >= 512)
      #expect(run.end.block <= UInt64(64 * mebi))
    }
    #expect(map.available == 0)
    map.verify()
  }

  @Test func blocksBehindTheEndOfAVolumeThatIsNoWholeChunkAreNeverHandedOut() throws {
    let size = 8192 + 1000
    let (map, _) = try makeMap([device(size)])
    #expect(map.total == size - 512)
    var sum = 0
    while let run = try map.allocateRun(near: nil, want: 8192, minimum: 1) {
      #expect(run.end.block <= UInt64(size))
      sum += run.count
    }
    #expect(sum + map.metadataReserve == map.total)
  }

  @Test func aRunGoesOnRightBehindTheOneBefore() throws {
    let (map, _) = try makeMap([device(1024 * mebi)])
    let a = try #require(try map.allocateRun(near: nil, want: 64, minimum: 16))
    let other = try #require(try map.allocateRun(near: nil, want: 64, minimum: 16))
    let b = try #require(try map.allocateRun(near: a.end, want: 64, minimum: 16))
    #expect(b.address == a.end)
    #expect(other.address != a.end)
  }

  @Test func aRunWhosePlaceIsTakenStaysInTheChunk() throws {
    let (map, _) = try makeMap([device(4096 * mebi)])
    let a = try #require(try map.allocateRun(near: nil, want: 64, minimum: 16))
    let next = try #require(try map.allocateRun(near: a.end, want: 64, minimum: 16))
    let b = try #require(try map.allocateRun(near: a.end, want: 64, minimum: 16))
    #expect(b.address == next.end)
  }

  @Test func volumesAreFilledEvenly() throws {
    let (map, _) = try makeMap([device(512 * mebi), device(512 * mebi), device(1024 * mebi)])
    var perVolume = [0, 0, 0]
    for _ in 0..<1000 {
      let run = try #require(try map.allocateRun(near: nil, want: 256, minimum: 256))
      perVolume[run.address.volume] += run.count
    }
    #expect(perVolume[2] > 150_000)
    #expect(abs(perVolume[0] - perVolume[1]) <= 512)
  }

  @Test func scatteredRunsComeFromAllGroupsInTurn() throws {
    var configuration = SpaceMap.Configuration()
    configuration.scatteredRun = 9
    let (map, _) = try makeMap(
      [device(64 * 1024 * mebi), device(64 * 1024 * mebi)], configuration)
    var runs = Array(repeating: 0, count: 2 * 64)
    var near: BlockAddress?
    for _ in 0..<3 * runs.count {
      let run = try #require(try map.allocateRun(near: near, want: 256, minimum: 1))
      #expect(run.count == 9)
      runs[run.address.volume * 64 + Int(run.address.block) / SpaceFormat.groupBlocks] += 1
      near = run.end
    }
    #expect(runs.allSatisfy { $0 == 3 })
  }

  @Test func whatACheckpointChangesInManyChunksDoesNotStayInMemory() throws {
    var configuration = SpaceMap.Configuration()
    configuration.chunkLimit = 64
    let chunks = 3000
    let (map, _) = try makeMap([device((chunks + 200) * 8192, discard: true)], configuration)
    let places = (100..<chunks).map { BlockAddress(volume: 0, block: UInt64($0 * 8192 + 64)) }
    func checkpoint() throws {
      while try !map.commitSome(limit: 16) { #expect(map.chunksInMemory < 200) }
      map.rootDurable(limit: 0)
      while !map.freeReleased(limit: 100) {}
      map.verify()
    }
    for place in places {
      #expect(try map.reserve(place, 40))
      map.noteAllocated(place, 40)
      _ = try map.storeExcess()
    }
    try checkpoint()
    let used = map.used - map.metadata
    #expect(used == 40 * places.count)
    for place in places { map.noteReleased(place, 40) }
    while try !map.commitSome(limit: 16) { #expect(map.chunksInMemory < 200) }
    #expect(map.chunksSealed > chunks - 400)
    #expect(map.releasedPending >= 40 * places.count)
    // They are out of memory, but not to be had.
    #expect(try !map.reserve(places[0], 40))
    map.verify()
    try checkpoint()
    #expect(map.used == map.metadata && map.chunksSealed > 0)
    while let range = map.nextPunch() { map.punchDone(range, error: 0) }
    #expect(map.chunksSealed == 0 && map.releasedPending == 0)
    #expect(try map.reserve(places[1], 40))
    map.verify()
  }

  @Test func aSealedBitmapThatTurnsOutDamagedGivesNothingAndStopsNothing() throws {
    var configuration = SpaceMap.Configuration()
    configuration.chunkLimit = 8
    let (map, store) = try makeMap([device(200 * 8192, discard: true)], configuration)
    let places = (100..<190).map { BlockAddress(volume: 0, block: UInt64($0 * 8192 + 64)) }
    for place in places {
      #expect(try map.reserve(place, 40))
      map.noteAllocated(place, 40)
    }
    try map.commit()
    map.rootDurable()
    // A group that has nothing in use has no bitmaps to read.
    for (i, place) in places.enumerated() where i % 10 != 5 { map.noteReleased(place, 40) }
    try map.commit()
    // What comes into memory drives the others out.
    for chunk in 20..<40 {
      #expect(try map.reserve(BlockAddress(volume: 0, block: UInt64(chunk * 8192)), 1))
    }
    #expect(map.chunksSealed > 60)
    for chunk in [120, 121] as [UInt64] {
      store.corrupt(.chunk(volume: 0, chunk: chunk), [1, 2, 3])
      #expect(try !map.reserve(BlockAddress(volume: 0, block: chunk * 8192 + 64), 40))
    }
    map.verify()
    map.rootDurable()
    while let range = map.nextPunch() { map.punchDone(range, error: 0) }
    #expect(map.releasedPending == 0 && map.chunksSealed == 0)
    #expect(try !map.reserve(BlockAddress(volume: 0, block: 120 * 8192 + 64), 40))
    #expect(try map.reserve(places[0], 40))
    map.verify()
  }

  @Test func theMetadataReserveIsKeptFromDataAndGivenToNodes() throws {
    let (map, _) = try makeMap([device(64 * mebi)])
    while try map.allocateRun(near: nil, want: 64, minimum: 1) != nil {}
    #expect(map.metadataReserve == (64 * mebi - 512) / 4)
    #expect(map.backedFree == map.metadataReserve)
    try map.prepareNodes(100)
    for _ in 0..<100 { _ = map.takeNode() }
    #expect(map.metadata == 200)
    map.verify()
  }

  @Test func aFullPoolGivesTheLargestFragmentThatIsLeft() throws {
    var configuration = SpaceMap.Configuration()
    configuration.reserveMinimum = 0
    configuration.reservePerMille = 0
    let (map, _) = try makeMap([device(2 * 8192)], configuration)
    var runs: [BlockRun] = []
    while let run = try map.allocateRun(near: nil, want: 256, minimum: 1) { runs.append(run) }
    #expect(map.backedFree == 0)
    // Fragments of 8 and one of 40 blocks.
    for i in stride(from: 0, to: 60, by: 2) {
      map.returnRun(BlockRun(runs[i].address, 8))
    }
    map.returnRun(BlockRun(runs[33].address + 3, 40))
    let run = try #require(try map.allocateRun(near: nil, want: 256, minimum: 20))
    #expect(run == BlockRun(runs[33].address + 3, 40))
    #expect(try map.allocateRun(near: nil, want: 256, minimum: 20) == nil)
    var small = 0
    while let run = try map.allocateRun(near: nil, want: 256, minimum: 1) { small += run.count }
    #expect(small == 240)
    map.verify()
  }

  @Test func theTwoCopiesOfANodeAreOnDifferentVolumes() throws {
    let (map, _) = try makeMap([device(512 * mebi), device(512 * mebi)])
    try map.prepareNodes(500)
    for _ in 0..<500 {
      let pair = map.takeNode()
      #expect(pair.0.volume != pair.1.volume)
    }
  }

  @Test func onOneVolumeTheTwoCopiesOfANodeAreAtLeast32MiBApart() throws {
    let (map, _) = try makeMap([device(128 * mebi)])
    try map.prepareNodes(500)
    for _ in 0..<500 {
      let pair = map.takeNode()
      #expect(abs(Int(pair.0.block) - Int(pair.1.block)) >= 8192)
    }
  }

  @Test func onATinyVolumeTheTwoCopiesOfANodeDiffer() throws {
    let (map, _) = try makeMap([device(512 + 4000)])
    try map.prepareNodes(2000)
    for _ in 0..<2000 {
      let pair = map.takeNode()
      #expect(pair.0 != pair.1)
    }
    #expect(throws: SpaceWait.noSpace) { try map.prepareNodes(1) }
    #expect(map.backedFree == 0)
    map.verify()
  }

  @Test func metadataKeepsToItsChunks() throws {
    let (map, _) = try makeMap([device(8192 * mebi)])
    var chunks: Set<UInt64> = []
    for _ in 0..<40 {
      _ = try map.allocateRun(near: nil, want: 256, minimum: 16)
      try map.prepareNodes(20)
      for _ in 0..<20 {
        let pair = map.takeNode()
        chunks.insert(pair.0.block / 8192)
        chunks.insert(pair.1.block / 8192)
      }
    }
    #expect(chunks.count == 2)
  }

  @Test func nodesLeaveThePlacesBetweenDataAlone() throws {
    let (map, _) = try makeMap([device(2048 * mebi)])
    try map.prepareNodes(1)
    var places: [BlockAddress] = []
    var end: BlockAddress?
    // Half a group, a block in ten of it free.
    for _ in 0..<16 {
      let run = try #require(try map.allocateRun(near: end, want: 8192, minimum: 4096))
      end = run.end
      for offset in stride(from: UInt64(5), to: UInt64(run.count), by: 10) {
        places.append(run.address + offset)
        map.returnRun(BlockRun(run.address + offset, 1))
      }
    }
    // More than the chunks that nodes have begun can hold.
    for _ in 0..<20_000 {
      try map.prepareNodes(1)
      _ = map.takeNode()
    }
    #expect(places.allSatisfy { map.allocate(at: $0) })
    map.verify()
  }

  @Test func nodesTakeWhateverIsLeft() throws {
    let (map, _) = try makeMap([device(256 * mebi)])
    let free = map.backedFree
    for _ in 0..<free / 2 {
      try map.prepareNodes(1)
      _ = map.takeNode()
    }
    #expect(map.backedFree == free % 2)
    map.verify()
  }

  @Test func dataGoesOnBesideAChunkThatNodesHaveBegun() throws {
    let (map, _) = try makeMap([device(1024 * mebi)])
    let run = try #require(try map.allocateRun(near: nil, want: 64, minimum: 16))
    try map.prepareNodes(1)
    let node = map.takeNode()
    #expect(node.first.block / 8192 == run.address.block / 8192)
    let next = try #require(try map.allocateRun(near: run.end, want: 64, minimum: 1))
    #expect(![node.first, node.second].contains { $0.block / 8192 == next.address.block / 8192 })
  }

  @Test func releasedBlocksAreNotReusedBeforeTheRootIsDurable() throws {
    let (map, store) = try makeMap([device(64 * mebi)])
    let run = try #require(try map.allocateRun(near: nil, want: 64, minimum: 64))
    map.noteAllocated(run.address, run.count)
    try map.commit()
    _ = store.checkpoint()
    map.rootDurable()
    map.noteReleased(run.address, run.count)
    while let other = try map.allocateRun(near: run.address, want: 64, minimum: 1) {
      #expect(other.end <= run.address || run.end <= other.address)
    }
    try map.commit()
    #expect(map.releasedPending >= 64)
    map.rootDurable()
    let again = try #require(try map.allocateRun(near: run.address, want: 64, minimum: 1))
    #expect(again == run)
  }

  @Test func aReleaseNotedAfterTheCommitWaitsForTheNextRoot() throws {
    let (map, _) = try makeMap([device(64 * mebi)])
    let run = try #require(try map.allocateRun(near: nil, want: 64, minimum: 64))
    map.noteAllocated(run.address, run.count)
    try map.commit()
    map.rootDurable()
    map.noteReleased(run.address, 30)
    try map.commit()
    // Right behind the blocks that were released before the commit.
    map.noteReleased(run.address + 30, 34)
    map.rootDurable()
    #expect(try !map.reserve(run.address + 30, 1))
    #expect(try map.reserve(run.address, 30))
    try map.commit()
    map.rootDurable()
    #expect(try map.reserve(run.address + 30, 34))
    map.verify()
  }

  @Test func spaceThatWasSearchedInVainIsFoundWhenMoreBecomesFree() throws {
    var configuration = SpaceMap.Configuration()
    configuration.reserveMinimum = 0
    configuration.reservePerMille = 0
    let (map, _) = try makeMap([device(2 * 8192)], configuration)
    var runs: [BlockRun] = []
    while let run = try map.allocateRun(near: nil, want: 256, minimum: 1) { runs.append(run) }
    let run = runs[20]
    for i in 0..<8 { map.returnRun(BlockRun(run.address + UInt64(i * 8), 4)) }
    #expect(try map.allocateRun(near: nil, want: 64, minimum: 32) == nil)
    for i in 0..<8 { map.returnRun(BlockRun(run.address + UInt64(i * 8 + 4), 4)) }
    let found = try map.allocateRun(near: nil, want: 64, minimum: 32)
    #expect(found == BlockRun(run.address, 64))
  }

  @Test func aSearchForSecondCopiesHidesNoSpaceFromData() throws {
    var configuration = SpaceMap.Configuration()
    configuration.reserveMinimum = 0
    configuration.reservePerMille = 0
    let (map, _) = try makeMap([device(6000)], configuration)
    try map.prepareNodes(10)
    #expect(try map.allocateRun(near: nil, want: 256, minimum: 256) != nil)
  }

  @Test func replayReservesOnlyWhatIsFree() throws {
    let (map, _) = try makeMap([device(256 * mebi)])
    let at = BlockAddress(volume: 0, block: 8192 - 20)
    #expect(try map.reserve(at, 40))
    #expect(try !map.reserve(at + 39, 2))
    #expect(try !map.reserve(BlockAddress(volume: 0, block: 500), 20))
    #expect(try !map.reserve(BlockAddress(volume: 0, block: UInt64(256 * mebi) - 1), 2))
    #expect(try !map.reserve(BlockAddress(volume: 1, block: 600), 2))
    #expect(try !map.reserve(BlockAddress(volume: 0, block: .max >> 16), .max))
    #expect(map.reserved == 40)
    map.noteAllocated(at, 40)
    map.verify()
  }

  @Test func manyLargeEmptyVolumesCostNextToNothing() throws {
    let (map, _) = try makeMap(Array(repeating: device(1 << 32), count: 65))
    #expect(map.total == 65 * ((1 << 32) - 512))
    #expect(map.memoryBytes < 32_000)
    for _ in 0..<65 { _ = try map.allocateRun(near: nil, want: 256, minimum: 16) }
    #expect(map.chunksInMemory == 65)
    #expect(map.memoryBytes < 65 * 8192)
  }

  @Test func openRefusesTotalsThatContradictTheGroups() throws {
    let (map, store) = try makeMap([device(64 * mebi)])
    let run = try #require(try map.allocateRun(near: nil, want: 64, minimum: 64))
    map.noteAllocated(run.address, run.count)
    try map.commit()
    let durable = store.checkpoint()
    let damaged: [(SpaceKey, [UInt8])] = [
      (.totals, Array(repeating: 7, count: 16)), (.totals, [1]),
      (.groups(volume: 0, page: 0), Array(repeating: 0xFF, count: 512)),
      (.groups(volume: 0, page: 0), Array(repeating: 0, count: 511)),
      (.groups(volume: 0, page: 1), Array(repeating: 0, count: 512)),
      (.groups(volume: 9, page: 0), Array(repeating: 0, count: 512)),
    ]
    for (key, bytes) in damaged {
      var broken = durable
      broken.entries[key] = bytes
      let reopened = SpaceMap()
      reopened.addVolume(0, device(64 * mebi))
      reopened.attach(ToyStore(map: reopened, durable: broken, seed: 1, missRate: 0))
      #expect(throws: SpaceWait.damaged(.none)) { try reopened.open() }
    }
  }

  @Test func aDamagedBitmapCostsItsSpaceAndNothingElse() throws {
    let (map, store) = try makeMap([device(256 * mebi)])
    let run = try #require(try map.allocateRun(near: nil, want: 64, minimum: 64))
    map.noteAllocated(run.address, run.count)
    try map.commit()
    var durable = store.checkpoint()
    let key = SpaceKey.chunk(volume: 0, chunk: run.address.block / 8192)
    durable.entries[key] = Array(repeating: 0xFF, count: 1000)
    let again = SpaceMap()
    again.addVolume(0, device(256 * mebi))
    let store2 = ToyStore(map: again, durable: durable, seed: 1, missRate: 0)
    again.attach(store2)
    try again.open()
    let used = again.used
    again.noteReleased(run.address, run.count)
    while let other = try again.allocateRun(near: nil, want: 1000, minimum: 1) {
      #expect(other.address.block / 8192 != key.lo)
      again.noteAllocated(other.address, other.count)
    }
    try again.commit()
    again.rootDurable()
    #expect(again.leaked >= 64)
    #expect(again.used > used)
    again.verify()
  }

  @Test func aBitmapThatItsDeviceRefusesToReadIsWaitedFor() throws {
    let (map, store) = try makeMap([device(256 * mebi)])
    let run = try #require(try map.allocateRun(near: nil, want: 64, minimum: 64))
    map.noteAllocated(run.address, run.count)
    try map.commit()
    let (again, store2) = try reopen(store, device(256 * mebi))
    store2.isDown = true
    #expect(try again.allocateRun(near: run.end, want: 64, minimum: 1) == nil)
    again.noteReleased(run.address, run.count)
    #expect(throws: SpaceWait.damaged(.none)) { try again.commit() }
    store2.isDown = false
    let other = try #require(try again.allocateRun(near: nil, want: 64, minimum: 64))
    again.returnRun(other)
    try again.commit()
    again.rootDurable()
    #expect(again.leaked == 0)
    #expect(try again.reserve(run.address, run.count))
    again.verify()
  }

  @Test func theBestRunOfASearchStaysWhileOtherChunksAreLoaded() throws {
    var configuration = SpaceMap.Configuration()
    configuration.chunkLimit = 2
    configuration.reserveMinimum = 0
    configuration.reservePerMille = 0
    let (map, store) = try makeMap([device(32 * 8192)], configuration)
    // Runs of 100 blocks in the sixth chunk, of 50 in all others.
    for chunk in 0..<32 {
      let free = chunk == 5 ? 100 : 50
      for at in stride(from: chunk == 0 ? 1024 : 0, to: 8192 - 2 * free, by: 2 * free) {
        let address = BlockAddress(volume: 0, block: UInt64(chunk * 8192 + at))
        #expect(try map.reserve(address, free))
        map.noteAllocated(address, free)
      }
    }
    try map.commit()
    let (again, _) = try reopen(store, device(32 * 8192), configuration)
    let run = try #require(try again.allocateRun(near: nil, want: 4096, minimum: 1))
    #expect(run.count >= 100)
    again.returnRun(run)
    again.verify()
  }

  @Test func aRefusedBitmapIsNotCountedAsLostBecauseAnotherIsDamaged() throws {
    let (map, store) = try makeMap([device(256 * mebi)])
    for chunk in [2, 3] {
      let address = BlockAddress(volume: 0, block: UInt64(chunk * 8192))
      #expect(try map.reserve(address, 64))
      map.noteAllocated(address, 64)
    }
    try map.commit()
    let (again, store2) = try reopen(store, device(256 * mebi))
    store2.corrupt(.chunk(volume: 0, chunk: 2), [1, 2, 3])
    store2.refused = .chunk(volume: 0, chunk: 3)
    let before = again.backedFree
    #expect(throws: SpaceWait.self) { try again.reserve(BlockAddress(volume: 0, block: 16384), 1) }
    #expect(again.backedFree == before)
    store2.refused = nil
    #expect(try !again.reserve(BlockAddress(volume: 0, block: 16384), 1))
    #expect(try again.reserve(BlockAddress(volume: 0, block: 3 * 8192 + 64), 8000))
    again.verify()
  }
}
