import Testing

@testable import Core

/// Looking for free blocks in a chunk's bitmaps, against looking at each block.
@Suite("Runs in a chunk")
struct ChunkTableTests {
  private static let first = 100
  private static let end = 8000

  /// A chunk of which one block in `oneIn` (1: each) ends a run of free or busy blocks, and one unit in
  /// five has no backing, or none.
  private func fill(_ table: inout ChunkTable, oneIn: UInt64, _ random: inout SeededRandom) -> Int {
    let isBacked = random.below(2) == 0
    let slot = table.add(
      ChunkInfo(key: 1, first: UInt16(Self.first), end: UInt16(Self.end), isSparse: true))
    var isBusy = false
    for block in 0..<SpaceFormat.chunkBlocks {
      if random.below(oneIn) == 0 { isBusy = random.below(2) == 0 }
      guard isBusy else { continue }
      let word = block >> 6
      let bit: UInt64 = 1 << UInt64(block & 63)
      switch random.below(3) {
      case 0: table.used(slot)[word] |= bit
      case 1: table.reserved(slot)[word] |= bit
      default: table.held(slot)[word] |= bit
      }
    }
    for unit in 0..<SpaceFormat.chunkBlocks / unitBlocks where isBacked || random.below(5) > 0 {
      table.setBacked(slot, unit: unit, true)
    }
    return slot
  }

  private func runs(_ table: borrowing ChunkTable, _ slot: Int, _ range: Range<Int>) -> [(
    start: Int, count: Int
  )] {
    var found: [(start: Int, count: Int)] = []
    var isOpen = false
    for block in range {
      let isFree =
        table.isFree(slot, block, 1) && table.isBacked(slot, unit: block / unitBlocks)
      if isFree, isOpen {
        found[found.count - 1].count += 1
      } else if isFree {
        found.append((block, 1))
      }
      isOpen = isFree
    }
    return found
  }

  @Test(
    "The run that is found is the first of the wanted length, else the longest", arguments: 0..<40)
  func findsRuns(seed: UInt64) {
    var random = SeededRandom(seed: seed)
    for oneIn: UInt64 in [1, 2, 5, 40, 400, 4000] {
      var table = ChunkTable()
      let slot = fill(&table, oneIn: oneIn, &random)
      for want in [1, 2, 3, 17, 63, 64, 65, 200, 1024, 8192] {
        let from = Int(random.below(8192))
        let middle = min(max(from, Self.first), Self.end)
        // Around the start a run may begin again up to the wanted length behind `from`.
        let behind = runs(table, slot, middle..<Self.end)
        let before = runs(table, slot, Self.first..<min(Self.end, middle + want))
        let long = (behind + before).first { $0.count >= want }
        let longest = (behind + before).map(\.count).max() ?? 0

        let found = table.findRun(slot, from: from, want: want)
        #expect(found.count == min(want, longest), "seed \(seed), \(want) from \(from)")
        if let long { #expect(found.start == long.start) }
        if found.count > 0 {
          #expect(table.runLength(slot, at: found.start, limit: want) == found.count)
        }
        let next = table.firstRun(slot, from: from, limit: want)
        let expected = (behind + before).first
        #expect(next.count == min(want, expected?.count ?? 0))
        if let expected { #expect(next.start == expected.start) } else { #expect(next.count == 0) }
      }
    }
  }
}
