import Core
import Testing

@Suite struct SpaceFormatTests {
  /// A pool with one volume of 40,000 blocks in which blocks 512-515 and 8191-8192 are mapped.
  private func written() throws -> ToyStore.Durable {
    let map = SpaceMap()
    map.addVolume(0, device(40_000))
    let store = ToyStore(map: map, seed: 1)
    map.attach(store)
    try map.open()
    for (block, count) in [(512, 4), (8191, 2)] {
      let at = BlockAddress(volume: 0, block: UInt64(block))
      #expect(try map.reserve(at, count))
      map.noteAllocated(at, count)
    }
    try map.commit()
    return store.checkpoint()
  }

  @Test func aBitmapHasTheBitOfTheFirstBlockInTheLowestBitOfTheFirstByte() throws {
    let durable = try written()
    let first = try #require(durable.entries[.chunk(volume: 0, chunk: 0)])
    #expect(first.count == 1024)
    #expect(first[..<64].allSatisfy { $0 == 0 })
    #expect(first[64] & 0x0F == 0x0F)
    #expect(first[1023] & 0x80 == 0x80)
    let second = try #require(durable.entries[.chunk(volume: 0, chunk: 1)])
    #expect(second[0] & 1 == 1)
  }

  @Test func groupWordsAndTotalsAreTheDocumentedBytes() throws {
    let durable = try written()
    let nodes = durable.leaves.count * 2
    let totals = try #require(durable.entries[.totals])
    #expect(totals == [UInt8(6 + nodes), 0, 0, 0, 0, 0, 0, 0, UInt8(nodes), 0, 0, 0, 0, 0, 0, 0])
    let page = try #require(durable.entries[.groups(volume: 0, page: 0)])
    #expect(page.count == 512)
    let free = 40_000 - 512 - 6 - nodes
    #expect(page[..<4] == [UInt8(free & 0xFF), UInt8(free >> 8), 0, 1])
    #expect(page[4...].allSatisfy { $0 == 0 })
  }

  @Test func keysOrderGroupsBeforeBitmapsBeforeTotals() {
    #expect(SpaceKey.groups(volume: 3, page: 7) == SpaceKey(hi: 0, lo: 3 << 48 | 7))
    #expect(SpaceKey.chunk(volume: 3, chunk: 7) == SpaceKey(hi: 1, lo: 3 << 48 | 7))
    #expect(SpaceKey.groups(volume: 9, page: 9) < .chunk(volume: 0, chunk: 0))
    #expect(SpaceKey.chunk(volume: 0xFFFF, chunk: 9) < .totals)
  }

  @Test func aGroupWordPacksFreeBlocksAndOwner() {
    let word = GroupWord(free: 262_144, owner: 1)
    #expect(word.raw == 0x0104_0000)
    #expect(word.free == 262_144 && word.owner == 1)
  }

  @Test func bitsOfTheSetAreExactlyTheBlocksReferredTo() throws {
    let durable = try written()
    var set = 0
    for (key, value) in durable.entries where key.hi == 1 {
      for byte in value { set += byte.nonzeroBitCount }
    }
    #expect(set == 6 + durable.leaves.count * 2)
  }
}
