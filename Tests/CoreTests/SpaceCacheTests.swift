import Core
import Testing

private func address(_ i: UInt64) -> BlockAddress { BlockAddress(volume: 1, block: 1000 + i) }

extension BlockCache {
  /// Inserts a block as if it had been read.
  fileprivate func fill(_ i: UInt64, role: CacheRole = .data) -> CacheSlot? {
    guard let slot = insert(address(i), checksum: UInt32(i), role: role) else { return nil }
    markValid(slot)
    return slot
  }

  fileprivate func has(_ i: UInt64, role: CacheRole = .data) -> Bool {
    find(address(i), checksum: UInt32(i), role: role) != nil
  }
}

@Suite struct SpaceCacheTests {
  @Test func aBlockIsFoundUnderItsAddressAndChecksumOnly() {
    let cache = BlockCache(bytes: 64 * blockSize)
    let slot = cache.fill(1)
    #expect(cache.find(address(1), checksum: 1) == slot)
    #expect(cache.find(address(1), checksum: 2) == nil)
    #expect(cache.find(address(2), checksum: 1) == nil)
    #expect(cache.find(address(1), checksum: 1, role: .node) == nil)
  }

  @Test func aBlockThatWasOverwrittenIsNotFoundUnderTheSameChecksum() {
    let cache = BlockCache(bytes: 64 * blockSize)
    _ = cache.fill(1)
    _ = cache.fill(1, role: .node)
    _ = cache.fill(2)
    let before = cache.overwrites
    cache.overwritten(address(1), checksum: 1)
    cache.overwritten(address(3), checksum: 3)
    #expect(!cache.has(1) && cache.has(1, role: .node) && cache.has(2))
    #expect(cache.overwrites == before + 2)
    cache.verify()
  }

  @Test func aBlockBeingLoadedIsNotFoundButKnown() {
    let cache = BlockCache(bytes: 64 * blockSize)
    let slot = cache.insert(address(1), checksum: 1)!
    #expect(cache.find(address(1), checksum: 1) == nil)
    #expect(cache.findLoading(address(1), checksum: 1) == slot)
    cache.markValid(slot)
    #expect(cache.find(address(1), checksum: 1) == slot)
    #expect(cache.findLoading(address(1), checksum: 1) == nil)
  }

  @Test func whatIsInUseSurvivesAScan() {
    let cache = BlockCache(bytes: 1000 * blockSize)
    for i in 0..<500 as Range<UInt64> { _ = cache.fill(i) }
    for _ in 0..<3 { for i in 0..<500 as Range<UInt64> { #expect(cache.has(i)) } }
    for i in 1000..<21_000 as Range<UInt64> {
      _ = cache.fill(i)
      _ = cache.has(i)
    }
    let left = (0..<500 as Range<UInt64>).filter { cache.has($0) }.count
    #expect(left >= 490)
    cache.verify()
  }

  @Test func metadataSurvivesAScanOfData() {
    let cache = BlockCache(bytes: 1000 * blockSize)
    for i in 0..<300 as Range<UInt64> { _ = cache.fill(i, role: .node) }
    for i in 1000..<21_000 as Range<UInt64> { _ = cache.fill(i) }
    #expect((0..<300 as Range<UInt64>).allSatisfy { cache.has($0, role: .node) })
  }

  @Test func aBlockThatComesBackSoonStays() {
    let cache = BlockCache(bytes: 100 * blockSize)
    for i in 0..<200 as Range<UInt64> { _ = cache.fill(i) }
    #expect(!cache.has(80))
    _ = cache.fill(80)
    for i in 1000..<1080 as Range<UInt64> { _ = cache.fill(i) }
    #expect(cache.has(80))
  }

  @Test func pinnedBlocksAreNeverEvicted() {
    let cache = BlockCache(bytes: 64 * blockSize)
    let pinned = (0..<63 as Range<UInt64>).map { cache.fill($0)! }
    for slot in pinned { cache.pin(slot) }
    for i in 100..<1000 as Range<UInt64> { #expect(cache.fill(i) != nil) }
    for i in 0..<63 as Range<UInt64> { #expect(cache.has(i)) }
    cache.verify()
  }

  @Test(arguments: [16, 60, 64, 65, 200])
  func aCacheFullOfMuchUsedBlocksTakesMore(slots: Int) {
    let cache = BlockCache(bytes: slots * blockSize)
    for i in 0..<UInt64(slots) { _ = cache.fill(i, role: .node) }
    for i in 100_000..<101_000 as Range<UInt64> {
      for _ in 0..<3 { for j in 0..<UInt64(slots) { _ = cache.has(j, role: .node) } }
      #expect(cache.fill(i, role: .node) != nil)
    }
  }

  @Test func aCacheFullOfPinnedAndLoadingBlocksTakesNoMore() {
    let cache = BlockCache(bytes: 64 * blockSize)
    for i in 0..<32 as Range<UInt64> { cache.pin(cache.fill(i)!) }
    for i in 32..<64 as Range<UInt64> { #expect(cache.insert(address(i), checksum: 0) != nil) }
    #expect(cache.fill(100) == nil)
    cache.unpin(cache.find(address(5), checksum: 5)!)
    #expect(cache.fill(100) != nil)
    #expect(!cache.has(5))
  }

  @Test func contentStaysInItsSlot() {
    let cache = BlockCache(bytes: 64 * blockSize)
    for i in 0..<64 as Range<UInt64> {
      let slot = cache.fill(i)!
      cache.memory(slot).storeBytes(of: i, as: UInt64.self)
      cache.memory(slot).storeBytes(of: i, toByteOffset: blockSize - 8, as: UInt64.self)
    }
    for i in 0..<64 as Range<UInt64> {
      let memory = cache.memory(cache.find(address(i), checksum: UInt32(i))!)
      #expect(memory.load(as: UInt64.self) == i)
      #expect(memory.load(fromByteOffset: blockSize - 8, as: UInt64.self) == i)
      #expect(UInt(bitPattern: memory) % UInt(blockSize) == 0)
    }
  }

  @Test(arguments: [1, 2, 3] as [UInt64])
  func randomOperationsKeepEveryInvariant(seed: UInt64) {
    let cache = BlockCache(bytes: 50 * blockSize)
    var random = SeededRandom(seed: seed)
    var pinned: [UInt64] = []
    var loading: [(UInt64, CacheSlot)] = []
    for step in 0..<20_000 {
      let i = random.below(120)
      switch random.below(8) {
      case 0..<4:
        let isThere =
          cache.findLoading(address(i), checksum: UInt32(i)) != nil || cache.has(i)
        if !isThere, let slot = cache.insert(address(i), checksum: UInt32(i)) {
          cache.memory(slot).storeBytes(of: i, as: UInt64.self)
          loading.append((i, slot))
        }
      case 4:
        if let slot = cache.find(address(i), checksum: UInt32(i)), pinned.count < 20 {
          cache.pin(slot)
          pinned.append(i)
        }
      case 5:
        if !pinned.isEmpty {
          let i = pinned.remove(at: Int(random.below(UInt64(pinned.count))))
          cache.unpin(cache.find(address(i), checksum: UInt32(i))!)
        }
      case 6:
        if let slot = cache.find(address(i), checksum: UInt32(i)), !cache.isPinned(slot) {
          cache.remove(slot)
          #expect(!cache.has(i))
        }
      default:
        if let slot = cache.find(address(i), checksum: UInt32(i)) {
          #expect(cache.memory(slot).load(as: UInt64.self) == i)
        }
      }
      if loading.count > Int(random.below(10)) {
        let (_, slot) = loading.removeFirst()
        if random.oneIn(5) { cache.remove(slot) } else { cache.markValid(slot) }
      }
      if step % 50 == 0 { cache.verify() }
      for i in pinned { #expect(cache.has(i)) }
    }
  }
}
