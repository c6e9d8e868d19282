import Core
import Testing

@testable import Checker

private func drain(_ spill: SortedSpill) throws -> [SpillRecord] {
  let reader = try spill.sorted()
  var out: [SpillRecord] = []
  while let record = reader.head {
    out.append(record)
    reader.advance()
  }
  try reader.finish()
  return out
}

@Test func whatFitsMemoryIsSortedThere() throws {
  let spill = SortedSpill(memory: 1 << 20, directory: "/nonexistent")
  for key: UInt64 in [5, 1, 4] { try spill.add(SpillRecord(a: key, b: 0, c: 0)) }
  #expect(try drain(spill).map(\.a) == [1, 4, 5])
  #expect(spill.spilled == 0)
}

@Test func aSortLargerThanMemoryGoesThroughFilesAndLosesNothing() throws {
  var random = SeededRandom(seed: 9)
  let spill = SortedSpill(memory: 48 * 100, directory: "/tmp")
  var all: [SpillRecord] = []
  for i in 0..<50_000 {
    let record = SpillRecord(
      a: random.below(50), b: random.below(1000), c: UInt64(i), d: random.next(), e: 1, f: 2)
    all.append(record)
    try spill.add(record)
  }
  #expect(try drain(spill) == all.sorted())
  #expect(spill.spilled == 50_000)
}

@Test func anEmptySortIsEmpty() throws {
  #expect(try drain(SortedSpill(memory: 1 << 20, directory: "/tmp")).isEmpty)
}

@Test func noRoomForTemporaryFilesIsSaid() throws {
  let spill = SortedSpill(memory: 0, directory: "/nonexistent")
  #expect(throws: CheckFailure.self) {
    for i: UInt64 in 0..<17 { try spill.add(SpillRecord(a: i, b: 0, c: 0)) }
  }
}
