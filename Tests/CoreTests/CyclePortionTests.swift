import Testing

@testable import Core

/// How much of the log a cycle takes.
struct CyclePortionTests {
  private static let log: UInt64 = 10_000 << 20

  private func share(_ portion: CyclePortion) -> UInt64 {
    portion.bytes(of: Self.log, blocks: 16_000, withoutHome: 1_000) * 1000 / Self.log
  }

  @Test func littleWhereFewNodesAreWritten() {
    var portion = CyclePortion(least: 64 << 20)
    #expect(share(portion) == 100)
    portion.note(blocks: 100_000, firstHomes: 0, nodes: 1_000)
    #expect(share(portion) == 100)
    #expect(
      portion.bytes(of: 100 << 20, blocks: 0, withoutHome: 0) == 64 << 20, "never less than 64 MiB")
  }

  @Test func moreWhereNodesAreMany() {
    var portion = CyclePortion(least: 64 << 20)
    for expected in [200, 400, 800, 1000, 1000] as [UInt64] {
      portion.note(blocks: 100_000, firstHomes: 0, nodes: 10_000)
      #expect(share(portion) == expected)
    }
    // Neither many nor few.
    portion.note(blocks: 100_000, firstHomes: 0, nodes: 4_000)
    #expect(share(portion) == 1000)
    for expected in [500, 250, 125, 100] as [UInt64] {
      portion.note(blocks: 100_000, firstHomes: 0, nodes: 1_000)
      #expect(share(portion) == expected)
    }
  }

  @Test func allWhereManyGetFirstHomes() {
    var portion = CyclePortion(least: 64 << 20)
    portion.note(blocks: 16_000, firstHomes: 1_000, nodes: 1)
    #expect(share(portion) == 100)
    portion.note(blocks: 16_000, firstHomes: 1_001, nodes: 1)
    #expect(share(portion) == 1000)
    portion.note(blocks: 16_000, firstHomes: 0, nodes: 1)
    #expect(share(portion) == 100)
    #expect(portion.bytes(of: Self.log, blocks: 16_000, withoutHome: 1_001) == Self.log)
  }

  @Test func smallCyclesSayNothing() {
    var portion = CyclePortion(least: 64 << 20)
    portion.note(blocks: 100, firstHomes: 100, nodes: 100)
    #expect(share(portion) == 100)
  }
}
