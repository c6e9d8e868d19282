import Glibc

// The one fixed memory budget of all front ends' requests.
//
//     arena:   | chunk 0 (64 pages) | chunk 1 | chunk 2 | ...        4 KiB pages, 256 KiB chunks
//     bitmaps: | 0b1110..           | ~0      | ...                  1 = free, one word a chunk
//
// A run of 1...64 pages lies within one chunk; one of 65 pages (an unaligned piece of 256 KiB)
// starts in one chunk and ends in the next. Chunks are sorted into classes by the longest run that
// is free in them, rounded down to a power of two; a set of chunks per class is one bit per chunk.
// An allocation takes the lowest chunk of the first class that fits, so that small runs gather in
// broken chunks and whole ones are left for large runs. Both directions cost some dozen
// instructions, whatever the arena's size: no loop is longer than `chunkCount / 64`, except for
// runs of 65 pages, which are rare.
//
// Invariants: a page's bit is set if and only if no run holds it; `freePages` is the number of set
// bits; each chunk is in the set of exactly the class that its bitmap has.

/// Aligned memory for requests' payloads: runs of whole pages out of an arena of fixed size.
/// One thread.
package final class BufferPool {
  /// Bytes of a page.
  package static let pageSize = blockSize
  /// Pages of the longest run: `maximumPiece`, and one more where it does not start on a block.
  package static let maximumPages = maximumPiece / blockSize + 1
  private static let chunkPages = 64
  private static let classCount = 8

  private let mapping: UnsafeMutableRawPointer
  private let mappingBytes: Int
  /// The arena's start, on a 2 MiB boundary so that huge pages can back it.
  private let base: UnsafeMutableRawPointer
  private let chunkCount: Int
  private let bitmaps: UnsafeMutablePointer<UInt64>
  /// `classCount` sets of chunks, `setWords` words each.
  private let sets: UnsafeMutablePointer<UInt64>
  private let setWords: Int

  /// Pages that no run holds.
  package private(set) var freePages: Int
  /// Pages of the whole arena.
  package var totalPages: Int { chunkCount * Self.chunkPages }
  /// The fewest pages that were ever free.
  package private(set) var fewestFreePages: Int

  /// An arena of `bytes`, a multiple of 256 KiB, at least 512 KiB. Memory that is never used costs
  /// address space only.
  package init(bytes: Int = 64 << 20) {
    let chunkBytes = Self.chunkPages * Self.pageSize
    invariant(
      bytes >= 2 * chunkBytes && bytes % chunkBytes == 0,
      "a buffer pool of \(bytes) bytes is not made of chunks of \(chunkBytes)")
    let hugePage = 2 << 20
    mappingBytes = bytes + hugePage
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
    guard
      let memory = mmap(nil, mappingBytes, PROT_READ | PROT_WRITE, flags, -1, 0),
      memory != MAP_FAILED
    else { invariantBroken("no address space for a buffer pool of \(bytes) bytes") }
    mapping = memory
    let start = roundUp(UInt(bitPattern: memory), to: UInt(hugePage))
    base = memory + Int(start - UInt(bitPattern: memory))
    _ = madvise(base, bytes, MADV_HUGEPAGE)

    chunkCount = bytes / chunkBytes
    setWords = (chunkCount + 63) / 64
    bitmaps = .allocate(capacity: chunkCount)
    bitmaps.initialize(repeating: ~0, count: chunkCount)
    sets = .allocate(capacity: Self.classCount * setWords)
    sets.initialize(repeating: 0, count: Self.classCount * setWords)
    freePages = chunkCount * Self.chunkPages
    fewestFreePages = freePages
    for chunk in 0..<chunkCount { insert(chunk, inClass: Self.classCount - 1) }
  }

  deinit {
    munmap(mapping, mappingBytes)
    bitmaps.deallocate()
    sets.deallocate()
  }

  // MARK: Queries

  /// Whether `memory` points into the arena.
  package func contains(_ memory: UnsafeRawPointer) -> Bool {
    let offset = memory - UnsafeRawPointer(base)
    return offset >= 0 && offset < totalPages * Self.pageSize
  }

  /// Pages that `bytes` take.
  @inline(__always)
  package static func pages(forBytes bytes: Int) -> Int { (bytes + pageSize - 1) / pageSize }

  // MARK: Changes

  /// A run of `pages` (1...65) on a 4 KiB boundary, or nil when there is none. Its content is
  /// undefined.
  package func allocate(pages: Int) -> UnsafeMutableRawPointer? {
    invariant(
      pages > 0 && pages <= Self.maximumPages, "a run of \(pages) pages is not in 1...65")
    if pages > freePages { return nil }
    if pages > Self.chunkPages { return allocateAcross() }
    guard let chunk = chunkWithRun(of: pages) else { return nil }
    let bits = bitmaps[chunk]
    let page = Self.runs(of: pages, in: bits).trailingZeroBitCount
    invariant(page < Self.chunkPages, "chunk \(chunk) is in a class that its bitmap has not")
    setBitmap(chunk, to: bits & ~Self.mask(page, pages))
    took(pages)
    return address(chunk, page)
  }

  /// Gives back a run of `pages` that `allocate` returned.
  package func free(_ memory: UnsafeMutableRawPointer, pages: Int) {
    let offset = memory - base
    invariant(
      contains(memory) && offset % Self.pageSize == 0 && pages > 0 && pages <= Self.maximumPages,
      "memory that is not a run of the buffer pool was freed")
    var chunk = offset / Self.pageSize / Self.chunkPages
    var page = offset / Self.pageSize % Self.chunkPages
    var left = pages
    while left > 0 {
      invariant(chunk < chunkCount, "a run beyond the buffer pool's end was freed")
      let count = min(left, Self.chunkPages - page)
      let mask = Self.mask(page, count)
      invariant(bitmaps[chunk] & mask == 0, "a run of the buffer pool was freed twice")
      setBitmap(chunk, to: bitmaps[chunk] | mask)
      left -= count
      page = 0
      chunk += 1
    }
    freePages += pages
  }

  /// Checks the invariants; for tests.
  package func verify() {
    var free = 0
    for chunk in 0..<chunkCount {
      free += bitmaps[chunk].nonzeroBitCount
      for c in 0..<Self.classCount {
        let isMember = sets[c * setWords + chunk / 64] >> UInt64(chunk % 64) & 1 == 1
        invariant(
          isMember == (c == Self.sizeClass(bitmaps[chunk])), "chunk \(chunk) is in a wrong class")
      }
    }
    invariant(free == freePages, "\(free) pages are free, \(freePages) are counted")
  }

  // MARK: Finding

  /// The lowest chunk of the best class that has a free run of `pages`.
  private func chunkWithRun(of pages: Int) -> Int? {
    let enough = pages <= 1 ? 1 : Int.bitWidth - (pages - 1).leadingZeroBitCount + 1
    for c in enough..<Self.classCount {
      for word in 0..<setWords where sets[c * setWords + word] != 0 {
        return word * 64 + sets[c * setWords + word].trailingZeroBitCount
      }
    }
    // The class below holds chunks whose longest run may still do.
    if pages & (pages - 1) == 0 { return nil }
    for word in 0..<setWords {
      var members = sets[(enough - 1) * setWords + word]
      while members != 0 {
        let chunk = word * 64 + members.trailingZeroBitCount
        if Self.runs(of: pages, in: bitmaps[chunk]) != 0 { return chunk }
        members &= members - 1
      }
    }
    return nil
  }

  /// A run of 65 pages: a whole chunk with the first page of the next, or with the last page of the
  /// one before.
  private func allocateAcross() -> UnsafeMutableRawPointer? {
    for chunk in 0..<chunkCount where bitmaps[chunk] == ~0 {
      if chunk + 1 < chunkCount, bitmaps[chunk + 1] & 1 == 1 {
        setBitmap(chunk, to: 0)
        setBitmap(chunk + 1, to: bitmaps[chunk + 1] & ~1)
        took(Self.maximumPages)
        return address(chunk, 0)
      }
      let last = UInt64(1) << 63
      if chunk > 0, bitmaps[chunk - 1] & last != 0 {
        setBitmap(chunk, to: 0)
        setBitmap(chunk - 1, to: bitmaps[chunk - 1] & ~last)
        took(Self.maximumPages)
        return address(chunk - 1, Self.chunkPages - 1)
      }
    }
    return nil
  }

  /// Bit i is set where `pages` free pages start at page i.
  @inline(__always)
  private static func runs(of pages: Int, in bits: UInt64) -> UInt64 {
    var result = bits
    var length = 1
    while length < pages && result != 0 {
      let step = min(length, pages - length)
      result &= result >> UInt64(step)
      length += step
    }
    return result
  }

  /// 0 for a full chunk, else 1 + log2 of the longest free run, rounded down.
  @inline(__always)
  private static func sizeClass(_ bits: UInt64) -> Int {
    var runs = bits
    var step: UInt64 = 1
    var result = 0
    while runs != 0 {
      result += 1
      if step == 64 { break }
      runs &= runs >> step
      step *= 2
    }
    return result
  }

  @inline(__always)
  private static func mask(_ page: Int, _ count: Int) -> UInt64 {
    (count == 64 ? ~0 : (1 << UInt64(count)) - 1) << UInt64(page)
  }

  @inline(__always)
  private func address(_ chunk: Int, _ page: Int) -> UnsafeMutableRawPointer {
    base + (chunk * Self.chunkPages + page) * Self.pageSize
  }

  @inline(__always)
  private func took(_ pages: Int) {
    freePages -= pages
    fewestFreePages = min(fewestFreePages, freePages)
  }

  // MARK: Sets

  private func setBitmap(_ chunk: Int, to bits: UInt64) {
    let old = Self.sizeClass(bitmaps[chunk])
    let new = Self.sizeClass(bits)
    bitmaps[chunk] = bits
    if old == new { return }
    sets[old * setWords + chunk / 64] &= ~(1 << UInt64(chunk % 64))
    insert(chunk, inClass: new)
  }

  private func insert(_ chunk: Int, inClass c: Int) {
    sets[c * setWords + chunk / 64] |= 1 << UInt64(chunk % 64)
  }
}
