import Glibc

// The cache of vSpace blocks: data and metadata nodes, in one arena of fixed size.
//
// An entry is keyed by (address, CRC32C) (R9): disks that share a block share its entry. That alone
// does not keep old content from being hit: a block that ends with a CRC32C of what is before it,
// as ext4's superblock and directories do, has the same one whatever it holds. So an entry goes
// when a map takes new content at its address (`overwritten`). A block read as data and the same
// block read as a node are different entries, for only the latter has been verified as a node.
//
//                insert            markValid            makeDirty
//        free ────────────▶ loading ────────▶ valid ────────────────▶ dirty
//          ▲                   │                │ ▲                   │  │
//          └───────────────────┴────remove──────┘ └─────makeClean─────┘  │
//          └─────────────────────────────remove──────────────────────────┘
//
// Invariants
//  1. Loading and valid slots are in the hash table, free and dirty ones are not: a dirty node
//     is found through its parent, because its checksum is not known yet.
//  2. Only valid slots are in a queue; a slot is evicted from a queue and only while not pinned.
//  3. Every slot is free, loading, dirty, or in exactly one queue.
//
// Eviction is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP
// 2023): new data blocks enter a small queue (a tenth of the slots) and move on to the main queue
// only when they were used again, or when they come back soon after they were evicted, which a
// table of fingerprints tells. One scan through a disk so never pushes out what is in use.
// Metadata nodes enter the main queue at once.

/// A slot of the cache: its index.
package typealias CacheSlot = UInt32

/// What a cached block was verified as.
package enum CacheRole: UInt8 {
  case data, node
}

package final class BlockCache {
  enum State: UInt8 { case free, loading, valid, dirty }
  enum Queue: UInt8 { case none, small, main }

  private struct Meta {
    var address: UInt64 = 0
    var checksum: UInt32 = 0
    /// Low half of the key's hash.
    var tag: UInt32 = 0
    /// Neighbours in a queue, towards its tail and its head; `next` also links free slots.
    var next = BlockCache.none
    var previous = BlockCache.none
    var pins: UInt16 = 0
    var state = State.free
    var role = CacheRole.data
    /// Where the slot is; while loading, where it will be.
    var queue = Queue.none
    /// Uses since it entered the queue, up to 3.
    var uses: UInt8 = 0
  }

  private struct List {
    var head = BlockCache.none
    var tail = BlockCache.none
    var count = 0
  }

  static let none: CacheSlot = .max

  /// Number of slots, of 4 KiB each.
  package let slotCount: Int
  private let arena: UnsafeMutableRawPointer
  private let meta: UnsafeMutablePointer<Meta>
  /// Open addressing, linear probing: tag << 32 | slot + 1; 0 is empty.
  private let table: UnsafeMutablePointer<UInt64>
  private let tableMask: UInt32
  /// Fingerprints of data blocks that were evicted from the small queue, by their tag.
  private let ghosts: UnsafeMutablePointer<UInt32>
  private let ghostMask: UInt32
  private var small = List()
  private var main = List()
  private let smallTarget: Int
  private var firstFree = BlockCache.none
  /// Slots from here on have never been used: their memory is untouched.
  private var untouched: CacheSlot = 0
  private var recycled = 0

  /// Counts evictions and removals: while it stands still, no slot changes its content's place.
  package private(set) var turnover: UInt64 = 0

  /// A cache of `bytes` (whole blocks, at least 16); memory is touched when it is first used.
  package init(bytes: Int) {
    slotCount = bytes / blockSize
    invariant(slotCount >= 16 && slotCount < 1 << 30, "a cache of \(bytes) bytes")
    let hugePage = 2 << 20
    arena = .allocate(
      byteCount: slotCount * blockSize, alignment: slotCount >= 4096 ? hugePage : blockSize)
    // Walks touch a few lines each of many blocks: with larger pages they take half the time. A
    // system that has none refuses, and nothing is lost.
    _ = madvise(arena, slotCount * blockSize, MADV_HUGEPAGE)
    meta = .allocate(capacity: slotCount)
    meta.initialize(repeating: Meta(), count: slotCount)
    var size = 32
    while size < 2 * slotCount { size *= 2 }
    table = .allocate(capacity: size)
    table.initialize(repeating: 0, count: size)
    tableMask = UInt32(size - 1)
    ghosts = .allocate(capacity: size / 2)
    ghosts.initialize(repeating: 0, count: size / 2)
    ghostMask = UInt32(size / 2 - 1)
    smallTarget = slotCount / 10
  }

  deinit {
    arena.deallocate()
    meta.deallocate()
    table.deallocate()
    ghosts.deallocate()
  }

  /// Slots that hold nothing.
  package var freeCount: Int { recycled + slotCount - Int(untouched) }

  // MARK: Lookup

  /// The slot of a valid entry, which counts as used; nil when it is absent or being loaded.
  @inline(__always)
  package func find(_ address: BlockAddress, checksum: UInt32, role: CacheRole = .data)
    -> CacheSlot?
  {
    let slot = locate(address.raw, checksum, role)
    guard slot != Self.none, meta[Int(slot)].state == .valid else { return nil }
    if meta[Int(slot)].uses < 3 { meta[Int(slot)].uses += 1 }
    return slot
  }

  /// The slot of an entry that is being loaded.
  package func findLoading(_ address: BlockAddress, checksum: UInt32, role: CacheRole = .data)
    -> CacheSlot?
  {
    let slot = locate(address.raw, checksum, role)
    guard slot != Self.none, meta[Int(slot)].state == .loading else { return nil }
    return slot
  }

  /// The 4,096 bytes of a slot, on a 4 KiB boundary.
  @inline(__always)
  package func memory(_ slot: CacheSlot) -> UnsafeMutableRawPointer {
    arena + Int(slot) &* blockSize
  }

  func state(_ slot: CacheSlot) -> State { meta[Int(slot)].state }

  // MARK: Entries

  /// A slot for a block that the caller is going to read into its memory: then `markValid`, or
  /// `remove` when it can't be read. Nil when all slots are pinned, dirty or being loaded. The
  /// block must not be in the cache.
  package func insert(_ address: BlockAddress, checksum: UInt32, role: CacheRole = .data)
    -> CacheSlot?
  {
    invariant(
      locate(address.raw, checksum, role) == Self.none, "a block is inserted into the cache twice")
    guard reserve(1) else { return nil }
    let slot = takeFree()
    let tag = Self.hash(address.raw, checksum, role)
    let isGhost = ghosts[Int(tag & ghostMask)] == tag && tag != 0
    meta[Int(slot)] = Meta(
      address: address.raw, checksum: checksum, tag: tag, state: .loading, role: role,
      queue: role == .node || isGhost ? .main : .small)
    addToTable(slot)
    return slot
  }

  /// The block has been read and verified: from now on it can be found, and evicted.
  package func markValid(_ slot: CacheSlot) {
    invariant(meta[Int(slot)].state == .loading, "a cache slot becomes valid without a load")
    meta[Int(slot)].state = .valid
    link(slot)
  }

  /// Forgets the block; the slot is free at once. It must not be pinned.
  package func remove(_ slot: CacheSlot) {
    invariant(meta[Int(slot)].pins == 0, "a pinned cache slot is removed")
    switch meta[Int(slot)].state {
    case .free: invariantBroken("a free cache slot is removed")
    case .loading: removeFromTable(slot)
    case .valid:
      removeFromTable(slot)
      unlink(slot)
    case .dirty: break
    }
    turnover &+= 1
    addFree(slot)
  }

  /// Keeps the slot's content where it is until `unpin`; pins are counted.
  @inline(__always)
  package func pin(_ slot: CacheSlot) {
    invariant(
      meta[Int(slot)].state != .free && meta[Int(slot)].pins < .max, "a pin of a free cache slot")
    meta[Int(slot)].pins += 1
  }

  @inline(__always)
  package func unpin(_ slot: CacheSlot) {
    invariant(meta[Int(slot)].pins > 0, "more unpins than pins of a cache slot")
    meta[Int(slot)].pins -= 1
  }

  @inline(__always)
  package func isPinned(_ slot: CacheSlot) -> Bool { meta[Int(slot)].pins > 0 }

  /// Evicts until at least `count` slots are free; false when there are not so many.
  package func reserve(_ count: Int) -> Bool {
    while freeCount < count {
      guard let slot = evict() else { return false }
      addFree(slot)
    }
    return true
  }

  /// Counts blocks that got new content: a read that was under way meanwhile may bring the old one,
  /// and its checksum does not tell.
  package private(set) var overwrites: UInt64 = 0
  /// By a hash of the address, the newest of these.
  private var newestOverwrite = [UInt64](repeating: 0, count: 8192)

  @inline(__always)
  private func overwriteIndex(_ address: BlockAddress) -> Int {
    Int(truncatingIfNeeded: (address.raw &* 0x9E37_79B9_7F4A_7C15) >> 51)
  }

  /// Whether a block may have got new content since `overwrites` was `count`; sometimes true though
  /// it has not.
  package func mayBeOverwritten(_ address: BlockAddress, since count: UInt64) -> Bool {
    newestOverwrite[overwriteIndex(address)] > count
  }

  /// A map names new data at the address: what was kept of it with the same checksum is old.
  package func overwritten(_ address: BlockAddress, checksum: UInt32) {
    overwrites &+= 1
    newestOverwrite[overwriteIndex(address)] = overwrites
    let slot = locate(address.raw, checksum, .data)
    if slot != Self.none { remove(slot) }
  }

  // MARK: Dirty nodes

  /// A free slot for a new dirty node; the caller has reserved it.
  func insertDirty() -> CacheSlot {
    let slot = takeFree()
    meta[Int(slot)] = Meta(state: .dirty, role: .node)
    return slot
  }

  /// A valid node is going to be changed: it can't be found or evicted until `makeClean`.
  func makeDirty(_ slot: CacheSlot) {
    invariant(
      meta[Int(slot)].state == .valid && meta[Int(slot)].role == .node
        && meta[Int(slot)].pins == 0, "a cache slot becomes dirty that is no unpinned node")
    removeFromTable(slot)
    unlink(slot)
    meta[Int(slot)].state = .dirty
  }

  /// A dirty node has been written, and has this key now.
  func makeClean(_ slot: CacheSlot, address: BlockAddress, checksum: UInt32) {
    invariant(
      meta[Int(slot)].state == .dirty && meta[Int(slot)].pins == 0,
      "a cache slot becomes clean that is not dirty, or pinned")
    guard locate(address.raw, checksum, .node) == Self.none else {
      // The same content is here already, left from an earlier write to this address.
      turnover &+= 1
      addFree(slot)
      return
    }
    meta[Int(slot)] = Meta(
      address: address.raw, checksum: checksum, tag: Self.hash(address.raw, checksum, .node),
      state: .valid, role: .node, queue: .main)
    addToTable(slot)
    link(slot)
  }

  // MARK: Eviction

  private func evict() -> CacheSlot? {
    let slot =
      small.count > smallTarget
      ? evictFromSmall() ?? evictFromMain() : evictFromMain() ?? evictFromSmall()
    guard let slot else { return nil }
    removeFromTable(slot)
    turnover &+= 1
    return slot
  }

  private func evictFromSmall() -> CacheSlot? {
    var budget = small.count
    while budget > 0 {
      budget -= 1
      let slot = small.tail
      unlink(slot)
      if meta[Int(slot)].pins > 0 {
        link(slot)
      } else if meta[Int(slot)].uses > 1 {
        meta[Int(slot)].uses = 0
        meta[Int(slot)].queue = .main
        link(slot)
      } else {
        let tag = meta[Int(slot)].tag
        ghosts[Int(tag & ghostMask)] = tag
        return slot
      }
    }
    return nil
  }

  private func evictFromMain() -> CacheSlot? {
    // When all slots have been used much, the search ends before it has met them often: then age
    // alone decides, and no eviction takes long.
    let patience = min(64, main.count)
    for met in 0..<2 * main.count {
      let slot = main.tail
      unlink(slot)
      if meta[Int(slot)].pins == 0 && (meta[Int(slot)].uses == 0 || met >= patience) {
        return slot
      }
      if meta[Int(slot)].uses > 0 { meta[Int(slot)].uses -= 1 }
      link(slot)
    }
    return nil
  }

  private func link(_ slot: CacheSlot) {
    let isSmall = meta[Int(slot)].queue == .small
    var list = isSmall ? small : main
    meta[Int(slot)].previous = Self.none
    meta[Int(slot)].next = list.head
    if list.head != Self.none {
      meta[Int(list.head)].previous = slot
    } else {
      list.tail = slot
    }
    list.head = slot
    list.count += 1
    if isSmall { small = list } else { main = list }
  }

  private func unlink(_ slot: CacheSlot) {
    let m = meta[Int(slot)]
    let isSmall = m.queue == .small
    var list = isSmall ? small : main
    if m.previous != Self.none {
      meta[Int(m.previous)].next = m.next
    } else {
      list.head = m.next
    }
    if m.next != Self.none {
      meta[Int(m.next)].previous = m.previous
    } else {
      list.tail = m.previous
    }
    list.count -= 1
    if isSmall { small = list } else { main = list }
  }

  private func takeFree() -> CacheSlot {
    if firstFree != Self.none {
      let slot = firstFree
      firstFree = meta[Int(slot)].next
      recycled -= 1
      return slot
    }
    invariant(Int(untouched) < slotCount, "a cache slot is taken that was not reserved")
    untouched += 1
    return untouched - 1
  }

  private func addFree(_ slot: CacheSlot) {
    meta[Int(slot)] = Meta(next: firstFree)
    firstFree = slot
    recycled += 1
  }

  // MARK: Hash table

  @inline(__always)
  private static func hash(_ address: UInt64, _ checksum: UInt32, _ role: CacheRole) -> UInt32 {
    let mixed =
      (address ^ UInt64(checksum) &* 0x9E37_79B9_7F4A_7C15 ^ UInt64(role.rawValue) &<< 40)
      &* 0xBF58_476D_1CE4_E5B9
    return UInt32(truncatingIfNeeded: mixed ^ mixed &>> 32)
  }

  @inline(__always)
  private func locate(_ address: UInt64, _ checksum: UInt32, _ role: CacheRole) -> CacheSlot {
    let tag = Self.hash(address, checksum, role)
    var i = tag & tableMask
    while true {
      let entry = table[Int(i)]
      if entry == 0 { return Self.none }
      if UInt32(truncatingIfNeeded: entry &>> 32) == tag {
        let slot = UInt32(truncatingIfNeeded: entry) &- 1
        let m = meta + Int(slot)
        if m.pointee.address == address, m.pointee.checksum == checksum, m.pointee.role == role {
          return slot
        }
      }
      i = (i &+ 1) & tableMask
    }
  }

  private func addToTable(_ slot: CacheSlot) {
    let tag = meta[Int(slot)].tag
    var i = tag & tableMask
    while table[Int(i)] != 0 { i = (i + 1) & tableMask }
    table[Int(i)] = UInt64(tag) << 32 | UInt64(slot + 1)
  }

  /// Takes the entry out and moves later ones of its cluster forward, so that no probe breaks off.
  private func removeFromTable(_ slot: CacheSlot) {
    let wanted = UInt64(meta[Int(slot)].tag) << 32 | UInt64(slot + 1)
    var hole = meta[Int(slot)].tag & tableMask
    while table[Int(hole)] != wanted {
      invariant(table[Int(hole)] != 0, "a cache slot is missing from the hash table")
      hole = (hole + 1) & tableMask
    }
    var i = hole
    while true {
      i = (i + 1) & tableMask
      let entry = table[Int(i)]
      if entry == 0 { break }
      let home = UInt32(truncatingIfNeeded: entry >> 32) & tableMask
      if (i &- home) & tableMask >= (i &- hole) & tableMask {
        table[Int(hole)] = entry
        hole = i
      }
    }
    table[Int(hole)] = 0
  }

  // MARK: Verification

  /// Checks the invariants at the top of this file, for tests.
  package func verify() {
    var counts = (free: slotCount - Int(untouched), hashed: 0, queued: 0)
    for slot in 0..<untouched {
      let m = meta[Int(slot)]
      switch m.state {
      case .free: counts.free += 1
      case .dirty: break
      case .loading, .valid:
        counts.hashed += 1
        if m.state == .valid { counts.queued += 1 }
        invariant(
          locate(m.address, m.checksum, m.role) == slot, "a cached block is not in the hash table")
      }
    }
    invariant(counts.free == freeCount, "the count of free cache slots is wrong")
    invariant(counts.queued == small.count + main.count, "a valid cache slot is in no queue")
    var entries = 0
    for i in 0...Int(tableMask) where table[i] != 0 { entries += 1 }
    invariant(entries == counts.hashed, "the cache's hash table has stale entries")
    invariant(
      length(small, .small) == small.count && length(main, .main) == main.count,
      "a queue of the cache is broken")
  }

  private func length(_ list: List, _ queue: Queue) -> Int {
    var count = 0
    var slot = list.head
    while slot != Self.none && count <= slotCount {
      guard meta[Int(slot)].queue == queue, meta[Int(slot)].state == .valid else { return -1 }
      count += 1
      if meta[Int(slot)].next == Self.none && list.tail != slot { return -1 }
      slot = meta[Int(slot)].next
    }
    return count
  }
}
