// Chunks in memory. A chunk is 8,192 blocks of one volume; each block is in one of five states:
//
//      free ──reserve──▶ reserved ──allocate──▶ used ──release──▶ held ──root durable──▶ free
//        ▲                  │                                      ▲                       │
//        └────cancel────────┘                                      └──punch (whole units)──┘
//
// `used` is what the next checkpoint stores; the other states exist in memory only, so a crash
// turns reserved and held blocks into what the last durable root says. One bitmap for each of used,
// reserved and held, so that every transition can check where it comes from; no bit set means free.
// Blocks of the label area and behind the volume's end lie outside first ..< end and are never
// touched. A fourth, coarse bitmap tells which units of 32 blocks the file system is known to back.
//
// A chunk that is dirty, or has reserved blocks, or is pinned, stays in memory. What it has in held
// blocks must be sealed before it goes (SpaceSealing.swift).

/// 128 KiB, the unit in which files are backed and punched.
let unitBlocks = 32
private let wordsPerBitmap = SpaceFormat.chunkBlocks / 64
private let unitsPerChunk = SpaceFormat.chunkBlocks / unitBlocks
private let wordsPerSlot = 3 * wordsPerBitmap + unitsPerChunk / 64
private let slotsPerSlab = 64

/// The counters of a chunk in memory.
struct ChunkInfo {
  /// volume << 48 | chunk.
  var key: UInt64
  /// The blocks first ..< end exist and are not label.
  var first: UInt16
  var end: UInt16
  var used: UInt16 = 0
  var reserved: UInt16 = 0
  var held: UInt16 = 0
  /// Free and backed.
  var available: UInt16 = 0
  var pins: UInt16 = 0
  var isPresent = true
  /// `used` differs from what the space tree holds.
  var isDirty = false
  /// Used since the clock hand passed.
  var isRecent = true
  /// Holds metadata nodes; data goes elsewhere where it can.
  var isMetadata = false
  /// The bitmap is damaged: first ..< end is empty, nothing comes from here or goes here.
  var isQuarantined = false
  /// Of a chunk in quarantine: the free blocks that the group counted for it.
  var lost: Int32 = 0
  /// In a sparse file, where free blocks need backing.
  var isSparse: Bool

  var volume: Int { Int(key >> 48) }
  var chunk: Int { Int(key & 0xFFFF_FFFF_FFFF) }
  var group: Int { chunk / SpaceFormat.chunksPerGroup }
  var isHeldFast: Bool { isDirty || reserved > 0 || pins > 0 }
}

/// The chunks in memory: slots in slabs, found by an open-addressing hash.
struct ChunkTable: ~Copyable {
  private var slabs: [UnsafeMutablePointer<UInt64>] = []
  private(set) var infos: UnsafeMutablePointer<ChunkInfo>
  private(set) var slotCount = 0
  private var infoCapacity = 64
  /// Slots plus one; 0 is empty. The size is a power of two and at least twice `slotCount`.
  private var buckets: [Int32]
  private var freeSlots: [Int32] = []
  private(set) var count = 0
  private var hand = 0
  private var lastKey = UInt64.max
  private var lastSlot = 0

  init() {
    infos = .allocate(capacity: 64)
    buckets = Array(repeating: 0, count: 128)
  }

  deinit {
    for slab in slabs { slab.deallocate() }
    infos.deallocate()
  }

  var memoryBytes: Int {
    slabs.count * slotsPerSlab * wordsPerSlot * 8 + buckets.count * 4
      + infoCapacity * MemoryLayout<ChunkInfo>.stride
  }

  // MARK: Memory of a slot

  @inline(__always) private func base(_ slot: Int) -> UnsafeMutablePointer<UInt64> {
    slabs[slot / slotsPerSlab] + (slot % slotsPerSlab) * wordsPerSlot
  }
  @inline(__always) func used(_ slot: Int) -> UnsafeMutablePointer<UInt64> { base(slot) }
  @inline(__always) func reserved(_ slot: Int) -> UnsafeMutablePointer<UInt64> {
    base(slot) + wordsPerBitmap
  }
  @inline(__always) func held(_ slot: Int) -> UnsafeMutablePointer<UInt64> {
    base(slot) + 2 * wordsPerBitmap
  }
  /// One bit for each unit of 32 blocks.
  @inline(__always) func backed(_ slot: Int) -> UnsafeMutablePointer<UInt64> {
    base(slot) + 3 * wordsPerBitmap
  }

  // MARK: Finding, adding, dropping

  @inline(__always) private func bucket(of key: UInt64) -> Int {
    Int(truncatingIfNeeded: (key &* 0x9E37_79B9_7F4A_7C15) >> 32) & (buckets.count - 1)
  }

  mutating func find(_ key: UInt64) -> Int? {
    if key == lastKey { return lastSlot }
    var b = bucket(of: key)
    while buckets[b] != 0 {
      let slot = Int(buckets[b]) - 1
      if infos[slot].key == key {
        infos[slot].isRecent = true
        lastKey = key
        lastSlot = slot
        return slot
      }
      b = (b + 1) & (buckets.count - 1)
    }
    return nil
  }

  /// Adds a chunk with all bitmaps zero (a block device's: backed all over).
  mutating func add(_ info: ChunkInfo) -> Int {
    let slot: Int
    if let s = freeSlots.popLast() {
      slot = Int(s)
    } else {
      slot = slotCount
      slotCount += 1
      grow()
    }
    base(slot).update(repeating: 0, count: wordsPerSlot)
    if !info.isSparse { backed(slot).update(repeating: .max, count: unitsPerChunk / 64) }
    (infos + slot).initialize(to: info)
    link(slot)
    count += 1
    return slot
  }

  private mutating func grow() {
    if slotCount > slabs.count * slotsPerSlab {
      let words = slotsPerSlab * wordsPerSlot
      let slab = UnsafeMutablePointer<UInt64>.allocate(capacity: words)
      slab.initialize(repeating: 0, count: words)
      slabs.append(slab)
    }
    if slotCount > infoCapacity {
      let larger = UnsafeMutablePointer<ChunkInfo>.allocate(capacity: infoCapacity * 2)
      larger.moveInitialize(from: infos, count: infoCapacity)
      infos.deallocate()
      infos = larger
      infoCapacity *= 2
    }
    if slotCount * 2 > buckets.count {
      buckets = Array(repeating: 0, count: buckets.count * 2)
      for slot in 0..<(slotCount - 1) where infos[slot].isPresent { link(slot) }
    }
  }

  private mutating func link(_ slot: Int) {
    var b = bucket(of: infos[slot].key)
    while buckets[b] != 0 { b = (b + 1) & (buckets.count - 1) }
    buckets[b] = Int32(slot + 1)
  }

  mutating func remove(_ slot: Int) {
    invariant(
      infos[slot].isPresent && !infos[slot].isHeldFast && infos[slot].held == 0,
      "a chunk in use is dropped")
    var hole = bucket(of: infos[slot].key)
    while Int(buckets[hole]) != slot + 1 {
      invariant(buckets[hole] != 0, "a chunk in memory is not in the hash")
      hole = (hole + 1) & (buckets.count - 1)
    }
    // Backward shift: entries behind the hole move up unless that would put them before their
    // own bucket.
    let mask = buckets.count - 1
    var b = (hole + 1) & mask
    while buckets[b] != 0 {
      let home = bucket(of: infos[Int(buckets[b]) - 1].key)
      if (b &- home) & mask >= (b &- hole) & mask {
        buckets[hole] = buckets[b]
        hole = b
      }
      b = (b + 1) & mask
    }
    buckets[hole] = 0
    if lastKey == infos[slot].key { lastKey = .max }
    infos[slot].isPresent = false
    freeSlots.append(Int32(slot))
    count -= 1
  }

  /// The next chunk to drop by the clock, looking at 256 slots at most; chunks with backed free
  /// blocks of a sparse file only when `evenBacked`, because dropping them forgets the backing.
  mutating func victim(evenBacked: Bool) -> Int? {
    var steps = min(slotCount * 2, 256)
    while steps > 0 {
      steps -= 1
      hand = hand + 1 < slotCount ? hand + 1 : 0
      let slot = hand
      guard infos[slot].isPresent, !infos[slot].isHeldFast else { continue }
      if infos[slot].isSparse && infos[slot].available > 0 && !evenBacked { continue }
      if infos[slot].isRecent {
        infos[slot].isRecent = false
        if lastKey == infos[slot].key { lastKey = .max }
        continue
      }
      return slot
    }
    return nil
  }
}

// MARK: Bits

/// Calls `body` with each word that start ..< start + count touches, and the mask of its bits.
@inline(__always)
func forEachWord(_ start: Int, _ count: Int, _ body: (_ word: Int, _ mask: UInt64) -> Void) {
  var at = start
  let end = start + count
  while at < end {
    let bit = at & 63
    let n = min(64 - bit, end - at)
    let mask = (n == 64 ? UInt64.max : (1 << UInt64(n)) - 1) << UInt64(bit)
    body(at >> 6, mask)
    at += n
  }
}

extension ChunkTable {
  /// A bit for each backed block of word `w`.
  @inline(__always) private func backedMask(_ backed: UnsafeMutablePointer<UInt64>, _ w: Int)
    -> UInt64
  {
    let two = (backed[w >> 5] >> UInt64((w & 31) * 2)) & 3
    return (two & 1 == 0 ? 0 : 0xFFFF_FFFF) | (two & 2 == 0 ? 0 : 0xFFFF_FFFF_0000_0000)
  }

  /// The free bits of word `w`, backed or not; the caller keeps to first ..< end.
  @inline(__always) func freeWord(_ slot: Int, _ w: Int) -> UInt64 {
    let p = base(slot)
    return ~(p[w] | p[w + wordsPerBitmap] | p[w + 2 * wordsPerBitmap])
  }

  /// How many of the blocks are in backed units.
  func backedCount(_ slot: Int, _ start: Int, _ count: Int) -> Int {
    guard infos[slot].isSparse else { return count }
    let backed = backed(slot)
    var n = 0
    forEachWord(start, count) { w, mask in n += (mask & backedMask(backed, w)).nonzeroBitCount }
    return n
  }

  /// Whether all of the blocks are free (backed or not).
  func isFree(_ slot: Int, _ start: Int, _ count: Int) -> Bool {
    guard start >= infos[slot].first, start + count <= infos[slot].end else { return false }
    var free = true
    forEachWord(start, count) { w, mask in free = free && freeWord(slot, w) & mask == mask }
    return free
  }

  /// Free blocks of a unit, backed or not.
  func freeInUnit(_ slot: Int, _ unit: Int) -> Int {
    let start = max(unit * unitBlocks, Int(infos[slot].first))
    let end = min(unit * unitBlocks + unitBlocks, Int(infos[slot].end))
    guard start < end else { return 0 }
    var n = 0
    forEachWord(start, end - start) { w, mask in n += (freeWord(slot, w) & mask).nonzeroBitCount }
    return n
  }

  func hasHeld(_ slot: Int, unit: Int) -> Bool {
    var found = false
    forEachWord(unit * unitBlocks, unitBlocks) { w, mask in
      found = found || held(slot)[w] & mask != 0
    }
    return found
  }

  @inline(__always) func isBacked(_ slot: Int, unit: Int) -> Bool {
    backed(slot)[unit >> 6] >> UInt64(unit & 63) & 1 != 0
  }
  @inline(__always) func setBacked(_ slot: Int, unit: Int, _ on: Bool) {
    if on {
      backed(slot)[unit >> 6] |= 1 << UInt64(unit & 63)
    } else {
      backed(slot)[unit >> 6] &= ~(1 << UInt64(unit & 63))
    }
  }

  /// The length of the run of free backed blocks that starts exactly at `start`, at most `limit`.
  func runLength(_ slot: Int, at start: Int, limit: Int) -> Int {
    let end = min(Int(infos[slot].end), start + limit)
    guard start >= infos[slot].first else { return 0 }
    let backed = backed(slot)
    var at = start
    while at < end {
      let free = freeWord(slot, at >> 6) & backedMask(backed, at >> 6)
      let n = (~(free >> UInt64(at & 63))).trailingZeroBitCount
      let inWord = min(n, 64 - (at & 63))
      at += inWord
      if inWord == 0 || at & 63 != 0 { break }
    }
    return max(0, min(at, end) - start)
  }

  /// The first run of at least `want` free backed blocks at or behind `from`, going round to the
  /// chunk's start, cut to `want`; where there is none, the longest run. Count 0: nothing is free.
  func findRun(_ slot: Int, from: Int, want: Int) -> (start: Int, count: Int) {
    let first = Int(infos[slot].first)
    let end = Int(infos[slot].end)
    let middle = min(max(from, first), end)
    var best = (start: 0, count: 0)
    if scan(slot, middle, end, want, &best) { return best }
    _ = scan(slot, first, min(end, middle + want), want, &best)
    return best
  }

  /// Looks for a run within start ..< end; true when it is as long as wanted. A word takes a few
  /// instructions, however many runs it has, unless one of them is longer than what was found so far.
  private func scan(
    _ slot: Int, _ start: Int, _ end: Int, _ want: Int, _ best: inout (start: Int, count: Int)
  ) -> Bool {
    let backed = backed(slot)
    var at = start
    /// Of the run that reaches up to `at`.
    var run = 0
    while at < end {
      let bit = at & 63
      let left = min(64 - bit, end - at)
      let word = freeBits(slot, backed, at, left)
      let ones = (~word).trailingZeroBitCount
      let joined = run + ones
      if joined > best.count { best = (at - run, min(joined, want)) }
      if joined >= want { return true }
      if ones >= left {
        run = joined
      } else {
        if holdsRun(word, longerThan: best.count) {
          if scanWord(word, at, want, &best) { return true }
        }
        run = (~(word << UInt64(64 - left))).leadingZeroBitCount
      }
      at += left
    }
    return false
  }

  /// The free backed blocks among `count` from `at` on, all in one word; `at` is bit 0.
  @inline(__always) private func freeBits(
    _ slot: Int, _ backed: UnsafeMutablePointer<UInt64>, _ at: Int, _ count: Int
  ) -> UInt64 {
    let word = (freeWord(slot, at >> 6) & backedMask(backed, at >> 6)) >> UInt64(at & 63)
    return count == 64 ? word : word & ((1 << UInt64(count)) - 1)
  }

  /// Whether a word has more than `count` ones in a row.
  @inline(__always) private func holdsRun(_ word: UInt64, longerThan count: Int) -> Bool {
    guard count < 64 else { return false }
    // A bit stays where `length` ones in a row start.
    var starts = word
    var length = 1
    while starts != 0, length <= count {
      let step = min(length, count + 1 - length)
      starts &= starts >> UInt64(step)
      length += step
    }
    return starts != 0
  }

  /// Looks for a run within one word, whose bit 0 is block `at`.
  private func scanWord(
    _ word: UInt64, _ at: Int, _ want: Int, _ best: inout (start: Int, count: Int)
  ) -> Bool {
    var rest = word
    var bit = 0
    while rest != 0 {
      let zeros = rest.trailingZeroBitCount
      bit += zeros
      rest >>= UInt64(zeros)
      let ones = (~rest).trailingZeroBitCount
      if ones > best.count { best = (at + bit, min(ones, want)) }
      if ones >= want { return true }
      bit += ones
      rest = ones == 64 ? 0 : rest >> UInt64(ones)
    }
    return false
  }

  /// The first free backed blocks at or behind `from`, going round to the chunk's start, at most
  /// `limit`. Count 0: nothing is free.
  func firstRun(_ slot: Int, from: Int, limit: Int) -> (start: Int, count: Int) {
    let found = findRun(slot, from: from, want: 1)
    guard found.count > 0 else { return found }
    return (found.start, runLength(slot, at: found.start, limit: limit))
  }
}
