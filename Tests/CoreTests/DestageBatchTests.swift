import Testing

@testable import Core

/// How many blocks destaging takes at a time, by how long the log's device takes for reads.
struct DestageBatchTests {
  private static let item = DestageItem(
    key: IndexKey(raw: 0), logBlock: 0, checksum: 0, isNew: false, sequence: 0, target: .none)

  private func note(_ batch: DestageBatch, reads: Int, each: UInt64) {
    batch.note(reads: reads, took: UInt64(reads) * each)
  }

  @Test func growsWhereHeadsMove() {
    let batch = DestageBatch()
    #expect(batch.capacity == 1024)
    note(batch, reads: 1024, each: 2_000_000)
    #expect(batch.capacity == 2048)
    for _ in 0..<10 { note(batch, reads: 1024, each: 2_000_000) }
    #expect(batch.capacity == DestageBatch.capacities.upperBound)
  }

  /// A disk that reads on from one block to the next is quicker for the large batch, which must not
  /// make it small again.
  @Test func staysLargeWhileNeighboursAreNear() {
    let batch = DestageBatch()
    for _ in 0..<10 { note(batch, reads: 1024, each: 2_000_000) }
    note(batch, reads: 8192, each: 300_000)
    #expect(batch.capacity == DestageBatch.capacities.upperBound)
  }

  @Test func shrinksOnAQuickDevice() {
    let batch = DestageBatch()
    for _ in 0..<3 { note(batch, reads: 1024, each: 600_000) }
    #expect(batch.capacity == 8192)
    note(batch, reads: 1024, each: 20_000)
    #expect(batch.capacity == 4096)
    for _ in 0..<10 { note(batch, reads: 1024, each: 20_000) }
    #expect(batch.capacity == 1024)
  }

  @Test func fewReadsSayNothing() {
    let batch = DestageBatch()
    note(batch, reads: 63, each: 8_000_000)
    #expect(batch.capacity == 1024)
  }

  /// Reads of many blocks each say how quickly the device reads on.
  @Test func longReadsSayNothing() {
    let batch = DestageBatch()
    batch.items = Array(repeating: Self.item, count: 1000)
    note(batch, reads: 100, each: 2_000_000)
    #expect(batch.capacity == 1024)
    note(batch, reads: 500, each: 2_000_000)
    #expect(batch.capacity == 2048)
  }

  @Test func isFullAtItsCapacity() {
    let batch = DestageBatch()
    batch.items = Array(repeating: Self.item, count: 1023)
    #expect(!batch.isFull)
    batch.items.append(Self.item)
    #expect(batch.isFull)
    note(batch, reads: 1024, each: 1_000_000)
    #expect(!batch.isFull)
  }
}
