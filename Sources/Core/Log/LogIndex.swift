// The log index: where the newest durable version of each block is that has not been destaged.
//
// An ordered map of entries that never overlap, key = (disk slot, block). Data is one entry a
// block, with the block's checksum; a zeroed or discarded range is one entry, whatever its length.
// Ordered, because destaging sweeps it in the order of homes; a hash table would need a sort of
// millions of entries in the way of foreground requests.
//
// Shape: chunks of up to 128 entries (4 KiB) and one sorted directory of their first keys. A
// lookup is two binary searches; an insertion moves at most 4 KiB, and once in some 64 insertions
// a part of the directory (8 bytes for every 64 entries or so: 0.5 MiB at the limit of 4 M).
//
// Invariants
//  1. Entries ascend and do not overlap; no entry crosses a disk slot.
//  2. Every chunk in the directory has 1...128 entries; the directory's key is its first entry's.
//  3. `count` is the number of entries; `blocksLogged` those of kind log or home.

package enum IndexKind: UInt8, Sendable {
  /// The block's content is in the log; `location` is its position there, in blocks.
  case log = 0
  /// The block's content is at home already (a large write); `location` is its address.
  case home = 1
  /// The range reads as zeros; `location` is its length in blocks.
  case zero = 2
}

/// Disk slot (24 bits) and block (40 bits).
package struct IndexKey: Hashable, Comparable, Sendable {
  package var raw: UInt64
  @inline(__always) package init(raw: UInt64) { self.raw = raw }
  @inline(__always) package init(slot: UInt32, block: BlockIndex) {
    raw = UInt64(slot) << 40 | block.raw
  }
  @inline(__always) package var slot: UInt32 { UInt32(truncatingIfNeeded: raw >> 40) }
  @inline(__always) package var block: BlockIndex { BlockIndex(raw & (BlockIndex.limit - 1)) }
  @inline(__always) package static func < (a: Self, b: Self) -> Bool { a.raw < b.raw }
  package static let maximumSlots: UInt32 = 1 << 24
}

package struct IndexEntry: Equatable, Sendable {
  package var key: IndexKey
  package var location: UInt64
  package var checksum: UInt32
  package var kind: IndexKind
  /// Whether the entry holds one block of vSpace reserved for its home.
  package var reserves: Bool
  package var sequence: FrameSequence

  @inline(__always)
  package init(
    key: IndexKey, location: UInt64, checksum: UInt32, kind: IndexKind, reserves: Bool,
    sequence: FrameSequence
  ) {
    self.key = key
    self.location = location
    self.checksum = checksum
    self.kind = kind
    self.reserves = reserves
    self.sequence = sequence
  }

  /// In blocks.
  @inline(__always) package var length: UInt64 { kind == .zero ? location : 1 }
  @inline(__always) package var end: UInt64 { key.raw + length }
}

/// What an insertion or removal displaced.
package struct IndexDisplaced: Equatable, Sendable {
  /// Entries of kind log or home.
  package var blocks = 0
  /// Of these, those that held a reservation.
  package var reserved = 0
  /// Blocks that were displaced from vSpace homes no map refers to yet (kind home).
  package var homes = 0
}

package final class LogIndex {
  private static let chunkCapacity = 128
  private static let chunksPerSlab = 256

  private var slabs: [UnsafeMutablePointer<IndexEntry>] = []
  private var freeChunks: [UInt32] = []
  private var counts: [UInt8] = []

  private var firstKeys: UnsafeMutablePointer<UInt64>
  private var chunkIDs: UnsafeMutablePointer<UInt32>
  private var directoryCount = 0
  private var directoryCapacity = 1024

  package private(set) var count = 0
  package private(set) var blocksLogged = 0
  /// Called for each displaced entry of kind home, whose block no map refers to.
  package var displacedHome: ((IndexEntry) -> Void)?

  package init() {
    firstKeys = .allocate(capacity: directoryCapacity)
    chunkIDs = .allocate(capacity: directoryCapacity)
  }

  deinit {
    for slab in slabs { slab.deallocate() }
    firstKeys.deallocate()
    chunkIDs.deallocate()
  }

  // MARK: Queries

  /// What the index says about the block at `key`.
  package enum Lookup {
    /// An entry covers it, and `remaining` blocks from it on.
    case covered(IndexEntry, remaining: UInt64)
    /// Nothing is logged for it and the next `blocks` (up to the next entry, of any disk).
    case gap(blocks: UInt64)
  }

  package func lookup(_ key: IndexKey) -> Lookup {
    guard directoryCount > 0 else { return .gap(blocks: UInt64.max - key.raw) }
    let d = directoryIndex(of: key.raw)
    if d >= 0 {
      let chunk = pointer(chunkIDs[d])
      let n = Int(counts[Int(chunkIDs[d])])
      let i = upperBound(chunk, n, key.raw) - 1
      if i >= 0, chunk[i].end > key.raw {
        return .covered(chunk[i], remaining: chunk[i].end - key.raw)
      }
      if i + 1 < n { return .gap(blocks: chunk[i + 1].key.raw - key.raw) }
    }
    if d + 1 < directoryCount { return .gap(blocks: firstKeys[d + 1] - key.raw) }
    return .gap(blocks: UInt64.max - key.raw)
  }

  /// The first entry that covers `key` or lies behind it.
  package func next(from key: IndexKey) -> IndexEntry? {
    switch lookup(key) {
    case .covered(let entry, _): return entry
    case .gap(let blocks):
      guard blocks < UInt64.max - key.raw,
        case .covered(let entry, _) = lookup(IndexKey(raw: key.raw + blocks))
      else { return nil }
      return entry
    }
  }

  // MARK: Changes

  /// Puts `entry` in the place of whatever is logged for its range.
  package func insert(_ entry: IndexEntry) -> IndexDisplaced {
    var displaced = IndexDisplaced()
    if entry.kind != .zero, insertBlock(entry, &displaced) { return displaced }
    displaced = remove(from: entry.key, length: entry.length)
    put(entry)
    return displaced
  }

  /// Drops whatever is logged for the range; range entries that reach beyond it are cut.
  @discardableResult
  package func remove(from key: IndexKey, length: UInt64) -> IndexDisplaced {
    var displaced = IndexDisplaced()
    let end = key.raw + length
    while let entry = next(from: key), entry.key.raw < end {
      takeOut(entry)
      if entry.kind == .zero {
        if entry.key.raw < key.raw {
          var left = entry
          left.location = key.raw - entry.key.raw
          put(left)
        }
        if entry.end > end {
          var right = entry
          right.key = IndexKey(raw: end)
          right.location = entry.end - end
          put(right)
        }
      } else {
        account(entry, &displaced)
      }
    }
    return displaced
  }

  /// Drops the block's data entry if it is still the version `sequence`; whether it was.
  package func removeBlock(_ key: IndexKey, ifSequence sequence: FrameSequence) -> Bool {
    guard case .covered(let entry, _) = lookup(key), entry.kind != .zero,
      entry.sequence == sequence
    else { return false }
    takeOut(entry)
    return true
  }

  /// Sets or clears the reservation of the block's data entry.
  package func setReserves(_ key: IndexKey, _ reserves: Bool) {
    let d = directoryIndex(of: key.raw)
    guard d >= 0 else { return }
    let chunk = pointer(chunkIDs[d])
    let i = upperBound(chunk, Int(counts[Int(chunkIDs[d])]), key.raw) - 1
    if i >= 0, chunk[i].key == key, chunk[i].kind != .zero { chunk[i].reserves = reserves }
  }

  // MARK: Inside

  private func account(_ entry: IndexEntry, _ displaced: inout IndexDisplaced) {
    displaced.blocks += 1
    if entry.reserves { displaced.reserved += 1 }
    if entry.kind == .home {
      displaced.homes += 1
      displacedHome?(entry)
    }
  }

  /// With one search: replaces the block's data entry, or puts in a first one where nothing
  /// overlaps it and its chunk has room. False when it takes more than that.
  private func insertBlock(_ entry: IndexEntry, _ displaced: inout IndexDisplaced) -> Bool {
    guard directoryCount > 0 else { return false }
    let d = directoryIndex(of: entry.key.raw)
    guard d >= 0 else { return false }
    let id = chunkIDs[d]
    let chunk = pointer(id)
    let n = Int(counts[Int(id)])
    let i = upperBound(chunk, n, entry.key.raw)
    // The directory's key is the chunk's first: something is in front.
    let before = chunk[i - 1]
    if before.key == entry.key, before.kind != .zero {
      account(before, &displaced)
      chunk[i - 1] = entry
      return true
    }
    guard before.end <= entry.key.raw, n < Self.chunkCapacity else { return false }
    (chunk + i + 1).update(from: chunk + i, count: n - i)
    chunk[i] = entry
    counts[Int(id)] = UInt8(n + 1)
    count += 1
    blocksLogged += 1
    return true
  }

  @inline(__always)
  private func pointer(_ chunk: UInt32) -> UnsafeMutablePointer<IndexEntry> {
    slabs[Int(chunk) / Self.chunksPerSlab]
      + (Int(chunk) % Self.chunksPerSlab) * Self.chunkCapacity
  }

  /// The last directory place whose first key is <= `key`, or -1.
  @inline(__always)
  private func directoryIndex(of key: UInt64) -> Int {
    var low = 0
    var high = directoryCount
    while low < high {
      let middle = (low + high) >> 1
      if firstKeys[middle] <= key { low = middle + 1 } else { high = middle }
    }
    return low - 1
  }

  /// The first place in the chunk whose key is > `key`.
  @inline(__always)
  private func upperBound(_ chunk: UnsafeMutablePointer<IndexEntry>, _ n: Int, _ key: UInt64)
    -> Int
  {
    var low = 0
    var high = n
    while low < high {
      let middle = (low + high) >> 1
      if chunk[middle].key.raw <= key { low = middle + 1 } else { high = middle }
    }
    return low
  }

  /// Inserts an entry that overlaps nothing.
  private func put(_ entry: IndexEntry) {
    count += 1
    if entry.kind != .zero { blocksLogged += 1 }
    var d = directoryIndex(of: entry.key.raw)
    if d < 0 {
      if directoryCount == 0 {
        insertDirectory(0, key: entry.key.raw, chunk: newChunk())
        counts[Int(chunkIDs[0])] = 0
      }
      d = 0
    }
    if Int(counts[Int(chunkIDs[d])]) == Self.chunkCapacity {
      split(d, appending: entry.key.raw)
      if d + 1 < directoryCount, firstKeys[d + 1] <= entry.key.raw { d += 1 }
    }
    let id = chunkIDs[d]
    let chunk = pointer(id)
    let n = Int(counts[Int(id)])
    let i = upperBound(chunk, n, entry.key.raw)
    invariant(i == 0 || chunk[i - 1].end <= entry.key.raw, "index entries overlap")
    (chunk + i + 1).update(from: chunk + i, count: n - i)
    chunk[i] = entry
    counts[Int(id)] = UInt8(n + 1)
    if i == 0 { firstKeys[d] = entry.key.raw }
  }

  /// Splits a full chunk in halves; where the new entry goes behind everything, only the last
  /// quarter moves, so that ascending insertions leave chunks well filled.
  private func split(_ d: Int, appending key: UInt64) {
    let id = chunkIDs[d]
    let fresh = newChunk()
    let from = pointer(id)
    let to = pointer(fresh)
    let n = Self.chunkCapacity
    let keep = from[n - 1].key.raw < key ? n - n / 8 : n / 2
    to.update(from: from + keep, count: n - keep)
    counts[Int(id)] = UInt8(keep)
    counts[Int(fresh)] = UInt8(n - keep)
    insertDirectory(d + 1, key: to[0].key.raw, chunk: fresh)
  }

  /// Removes an entry that is in the index.
  private func takeOut(_ entry: IndexEntry) {
    let d = directoryIndex(of: entry.key.raw)
    invariant(d >= 0, "an index entry to remove is not there")
    let id = chunkIDs[d]
    let chunk = pointer(id)
    let n = Int(counts[Int(id)])
    let i = upperBound(chunk, n, entry.key.raw) - 1
    invariant(i >= 0 && chunk[i].key == entry.key, "an index entry to remove is not there")
    (chunk + i).update(from: chunk + i + 1, count: n - i - 1)
    counts[Int(id)] = UInt8(n - 1)
    count -= 1
    if entry.kind != .zero { blocksLogged -= 1 }
    if n == 1 {
      removeDirectory(d)
      freeChunks.append(id)
    } else {
      if i == 0 { firstKeys[d] = chunk[0].key.raw }
      if n - 1 < Self.chunkCapacity / 4 { mergeWithNext(d) }
    }
  }

  private func mergeWithNext(_ d: Int) {
    guard d + 1 < directoryCount else { return }
    let (a, b) = (chunkIDs[d], chunkIDs[d + 1])
    let (n, m) = (Int(counts[Int(a)]), Int(counts[Int(b)]))
    guard n + m <= Self.chunkCapacity * 3 / 4 else { return }
    (pointer(a) + n).update(from: pointer(b), count: m)
    counts[Int(a)] = UInt8(n + m)
    removeDirectory(d + 1)
    freeChunks.append(b)
  }

  private func newChunk() -> UInt32 {
    if let id = freeChunks.popLast() { return id }
    let firstID = UInt32(slabs.count * Self.chunksPerSlab)
    slabs.append(.allocate(capacity: Self.chunksPerSlab * Self.chunkCapacity))
    counts.append(contentsOf: repeatElement(0, count: Self.chunksPerSlab))
    for id in (firstID + 1..<firstID + UInt32(Self.chunksPerSlab)).reversed() {
      freeChunks.append(id)
    }
    return firstID
  }

  private func insertDirectory(_ d: Int, key: UInt64, chunk: UInt32) {
    if directoryCount == directoryCapacity {
      let capacity = directoryCapacity * 2
      let keys = UnsafeMutablePointer<UInt64>.allocate(capacity: capacity)
      let ids = UnsafeMutablePointer<UInt32>.allocate(capacity: capacity)
      keys.update(from: firstKeys, count: directoryCount)
      ids.update(from: chunkIDs, count: directoryCount)
      firstKeys.deallocate()
      chunkIDs.deallocate()
      (firstKeys, chunkIDs, directoryCapacity) = (keys, ids, capacity)
    }
    (firstKeys + d + 1).update(from: firstKeys + d, count: directoryCount - d)
    (chunkIDs + d + 1).update(from: chunkIDs + d, count: directoryCount - d)
    firstKeys[d] = key
    chunkIDs[d] = chunk
    directoryCount += 1
  }

  private func removeDirectory(_ d: Int) {
    (firstKeys + d).update(from: firstKeys + d + 1, count: directoryCount - d - 1)
    (chunkIDs + d).update(from: chunkIDs + d + 1, count: directoryCount - d - 1)
    directoryCount -= 1
  }

  /// Checks every invariant; for tests and the simulator.
  package func verify() {
    var entries = 0
    var blocks = 0
    var end: UInt64 = 0
    for d in 0..<directoryCount {
      let n = Int(counts[Int(chunkIDs[d])])
      let chunk = pointer(chunkIDs[d])
      invariant(n > 0 && n <= Self.chunkCapacity, "an index chunk has \(n) entries")
      invariant(firstKeys[d] == chunk[0].key.raw, "the index directory names a wrong first key")
      for i in 0..<n {
        invariant(chunk[i].key.raw >= end, "index entries overlap or are out of order")
        invariant(chunk[i].length > 0, "an index entry is empty")
        end = chunk[i].end
        entries += 1
        if chunk[i].kind != .zero { blocks += 1 }
      }
    }
    invariant(entries == count && blocks == blocksLogged, "the index counters are wrong")
  }
}
