import Core
import Testing

@Suite struct BufferPoolTests {
  @Test func `runs of every length are aligned, apart from each other, and all come back`() {
    let pool = BufferPool(bytes: 8 << 20)
    var random = SeededRandom(seed: 7)
    var held: [(UnsafeMutableRawPointer, Int)] = []
    var refusals = 0
    for _ in 0..<20_000 {
      if Int.random(in: 0..<100, using: &random) < 55 {
        let pages = Int.random(in: 1...65, using: &random)
        if let run = pool.allocate(pages: pages) {
          #expect(UInt(bitPattern: run) % 4096 == 0)
          held.append((run, pages))
        } else {
          refusals += 1
        }
      } else if !held.isEmpty {
        let i = Int.random(in: 0..<held.count, using: &random)
        let (run, pages) = held.remove(at: i)
        pool.free(run, pages: pages)
      }
    }
    pool.verify()
    #expect(refusals > 0)
    let ranges = held.map { (UInt(bitPattern: $0.0), UInt(bitPattern: $0.0) + UInt($0.1) * 4096) }
      .sorted { $0.0 < $1.0 }
    for (a, b) in zip(ranges, ranges.dropFirst()) { #expect(a.1 <= b.0) }
    for (run, pages) in held { pool.free(run, pages: pages) }
    pool.verify()
    #expect(pool.freePages == pool.totalPages)
  }

  @Test func `the whole arena can be handed out in pieces of 256 KiB, and then nothing`() {
    let pool = BufferPool(bytes: 4 << 20)
    for _ in 0..<16 { #expect(pool.allocate(pages: 64) != nil) }
    #expect(pool.freePages == 0)
    #expect(pool.allocate(pages: 1) == nil)
    #expect(pool.fewestFreePages == 0)
  }

  @Test func `a run of 65 pages crosses two chunks, in either direction`() {
    let pool = BufferPool(bytes: 512 << 10)
    let low = pool.allocate(pages: 1)
    #expect(pool.allocate(pages: 65) != nil)
    #expect(pool.allocate(pages: 63) == nil)
    #expect(pool.allocate(pages: 62) != nil)
    #expect(low != nil && pool.freePages == 0)
    pool.verify()
  }

  @Test func `a run whose length is no power of two is found in a chunk that just holds it`() {
    let pool = BufferPool(bytes: 512 << 10)
    _ = pool.allocate(pages: 64)
    _ = pool.allocate(pages: 14)
    #expect(pool.allocate(pages: 50) != nil)
    #expect(pool.freePages == 0)
  }

  @Test func `small runs gather in broken chunks and leave whole ones whole`() {
    let pool = BufferPool(bytes: 1 << 20)
    for _ in 0..<64 { #expect(pool.allocate(pages: 1) != nil) }
    for _ in 0..<3 { #expect(pool.allocate(pages: 64) != nil) }
  }

  @Test func `memory is writable over its whole length`() throws {
    let pool = BufferPool(bytes: 512 << 10)
    let run = try #require(pool.allocate(pages: 65))
    run.initializeMemory(as: UInt8.self, repeating: 0xA5, count: 65 * 4096)
    #expect(run.load(fromByteOffset: 65 * 4096 - 1, as: UInt8.self) == 0xA5)
    #expect(pool.contains(run) && !pool.contains(run + (512 << 10)))
    pool.free(run, pages: 65)
  }
}
