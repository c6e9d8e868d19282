import Glibc

// One node in memory: access to its entries, and the changes of a single node.
//
// In memory a node has the layout of NodeFormat but for three things, which `seal` sets right:
// values may lie in any order and leave gaps, the bytes of these gaps are counted in the header's
// reserved field, and the entry of a child that is dirty names the child's cache slot.

package struct TreeKey: Hashable, Comparable, Sendable {
  package var hi: UInt64
  package var lo: UInt64
  @inline(__always) package init(hi: UInt64, lo: UInt64 = 0) {
    self.hi = hi
    self.lo = lo
  }
  @inline(__always) package static func < (a: Self, b: Self) -> Bool {
    a.hi < b.hi || (a.hi == b.hi && a.lo < b.lo)
  }
  package static let least = Self(hi: 0, lo: 0)
}

/// A value inside a node in memory: valid until the next call of any tree, store or cache.
package struct TreeValue {
  package let base: UnsafeRawPointer
  package let count: Int
  package var bytes: UnsafeRawBufferPointer { .init(start: base, count: count) }
}

package struct TreeEntry {
  package let key: TreeKey
  package let value: TreeValue
}

struct TreeNode {
  typealias Field = NodeFormat.Field

  let p: UnsafeMutableRawPointer
  @inline(__always) init(_ p: UnsafeMutableRawPointer) { self.p = p }

  @inline(__always) var kind: UInt8 { p.reading.u8(Field.kind) }
  @inline(__always) var level: UInt8 { p.reading.u8(Field.level) }
  @inline(__always) var isLeaf: Bool { level == 0 }
  @inline(__always) var count: Int {
    get { Int(p.reading.u16(Field.count)) }
    nonmutating set { p.put(UInt16(truncatingIfNeeded: newValue), at: Field.count) }
  }
  @inline(__always) var heapStart: Int {
    get { Int(p.reading.u16(Field.heapStart)) }
    nonmutating set { p.put(UInt16(truncatingIfNeeded: newValue), at: Field.heapStart) }
  }
  /// Bytes of the heap that no entry refers to.
  @inline(__always) var garbage: Int {
    get { Int(p.reading.u16(Field.reserved)) }
    nonmutating set { p.put(UInt16(truncatingIfNeeded: newValue), at: Field.reserved) }
  }
  var first: BlockAddress { BlockAddress(raw: p.reading.u64(Field.first)) }
  var second: BlockAddress { BlockAddress(raw: p.reading.u64(Field.second)) }
  var owner: ObjectID { ObjectID(p.reading.u64(Field.owner)) }
  var birth: Instant { p.reading.u64(Field.birth) }
  var checkpoint: UInt64 { p.reading.u64(Field.checkpoint) }

  /// What points to the node once it is sealed.
  var ownPointer: NodePointer {
    NodePointer(
      first: first, second: second, birth: birth,
      checksum: p.reading.u32(Field.checksum), level: level)
  }

  /// Makes an empty node.
  func initialize(kind: NodeKind, level: UInt8) {
    p.initializeMemory(as: UInt8.self, repeating: 0, count: NodeFormat.headerSize)
    p.put(NodeFormat.magic, at: 0)
    p.put(NodeFormat.version, at: 4)
    p.put(kind.rawValue, at: Field.kind)
    p.put(level, at: Field.level)
    heapStart = blockSize
  }

  func identify(
    first: BlockAddress, second: BlockAddress, owner: ObjectID, birth: Instant, checkpoint: UInt64
  ) {
    p.put(first.raw, at: Field.first)
    p.put(second.raw, at: Field.second)
    p.put(owner.raw, at: Field.owner)
    p.put(birth, at: Field.birth)
    p.put(checkpoint, at: Field.checkpoint)
  }

  // MARK: Keys

  @inline(__always) var stride: Int {
    isLeaf ? NodeFormat.leafEntrySize : NodeFormat.interiorEntrySize
  }
  @inline(__always) func entry(_ i: Int) -> UnsafeMutableRawPointer {
    p + (NodeFormat.headerSize &+ i &* stride)
  }
  @inline(__always) func key(_ i: Int) -> TreeKey {
    let e = entry(i).reading
    return TreeKey(hi: e.u64(0), lo: e.u64(8))
  }
  @inline(__always) func setKey(_ i: Int, _ key: TreeKey) {
    entry(i).put(key.hi, at: 0)
    entry(i).put(key.lo, at: 8)
  }

  /// The last entry whose key is not above `key`; -1 when all are.
  @inline(__always) func lastNotAbove(_ key: TreeKey) -> Int {
    let stride = self.stride
    let wanted = UInt128(truncatingIfNeeded: key.hi) &<< 64 | UInt128(truncatingIfNeeded: key.lo)
    var low = p.reading + NodeFormat.headerSize
    var n = count
    if n == 0 { return -1 }
    let start = low
    while n > 1 {
      let half = n &>> 1
      let middle = low + half &* stride
      let there =
        UInt128(truncatingIfNeeded: middle.u64(0)) &<< 64
        | UInt128(truncatingIfNeeded: middle.u64(8))
      low = there <= wanted ? middle : low
      n &-= half
    }
    if low == start, key < self.key(0) { return -1 }
    return (low - start) / stride
  }

  // MARK: Leaves

  @inline(__always) func valueOffset(_ i: Int) -> Int { Int(entry(i).reading.u16(16)) }
  @inline(__always) func valueLength(_ i: Int) -> Int { Int(entry(i).reading.u16(18)) }
  @inline(__always) func value(_ i: Int) -> TreeValue {
    TreeValue(base: UnsafeRawPointer(p + valueOffset(i)), count: valueLength(i))
  }
  @inline(__always) func treeEntry(_ i: Int) -> TreeEntry {
    TreeEntry(key: key(i), value: value(i))
  }

  /// Bytes that entries and values take.
  var used: Int {
    isLeaf
      ? count * NodeFormat.leafEntrySize + blockSize - heapStart - garbage
      : count * NodeFormat.interiorEntrySize
  }
  var free: Int { NodeFormat.capacity - used }

  private func setSlot(_ i: Int, offset: Int, length: Int) {
    entry(i).put(UInt16(truncatingIfNeeded: offset), at: 16)
    entry(i).put(UInt16(truncatingIfNeeded: length), at: 18)
  }

  /// Inserts an entry at `i`; the caller has checked that `free` suffices.
  func insert(
    _ i: Int, _ key: TreeKey, _ value: UnsafeRawBufferPointer, _ scratch: UnsafeMutableRawPointer
  ) {
    let size = NodeFormat.leafEntrySize
    invariant(free >= size + value.count && i <= count, "an entry does not fit into its leaf")
    if NodeFormat.headerSize + (count + 1) * size + value.count > heapStart { compact(scratch) }
    let e = entry(i)
    memmove(e + size, e, (count - i) * size)
    count += 1
    setKey(i, key)
    store(i, value)
  }

  /// Appends copies of `range` of `other`; the caller has checked that they fit.
  func append(_ range: Range<Int>, of other: TreeNode, _ scratch: UnsafeMutableRawPointer) {
    for i in range { insert(count, other.key(i), other.value(i).bytes, scratch) }
  }

  /// Replaces the value of entry `i`; the caller has checked that the difference fits.
  func replace(
    _ i: Int, _ value: UnsafeRawBufferPointer, _ scratch: UnsafeMutableRawPointer
  ) {
    let old = valueLength(i)
    if value.count <= old {
      garbage += old - value.count
      setSlot(i, offset: valueOffset(i), length: value.count)
      if let base = value.baseAddress {
        (p + valueOffset(i)).copyMemory(from: base, byteCount: value.count)
      }
      return
    }
    invariant(free + old >= value.count, "a longer value does not fit into its leaf")
    garbage += old
    setSlot(i, offset: heapStart, length: 0)
    if heapStart - value.count < NodeFormat.headerSize + count * NodeFormat.leafEntrySize {
      compact(scratch)
    }
    store(i, value)
  }

  private func store(_ i: Int, _ value: UnsafeRawBufferPointer) {
    heapStart -= value.count
    setSlot(i, offset: heapStart, length: value.count)
    if let base = value.baseAddress {
      (p + heapStart).copyMemory(from: base, byteCount: value.count)
    }
  }

  /// Removes entries of a leaf.
  func remove(_ range: Range<Int>) {
    for i in range { garbage += valueLength(i) }
    let size = NodeFormat.leafEntrySize
    memmove(entry(range.lowerBound), entry(range.upperBound), (count - range.upperBound) * size)
    count -= range.count
    if count == 0 {
      heapStart = blockSize
      garbage = 0
    }
  }

  /// Moves the values together, in the order of their keys, to the end of the block.
  func compact(_ scratch: UnsafeMutableRawPointer) {
    scratch.copyMemory(from: p + heapStart, byteCount: blockSize - heapStart)
    let source = scratch - heapStart
    var at = blockSize
    var i = count
    while i > 0 {
      i -= 1
      let length = valueLength(i)
      at -= length
      (p + at).copyMemory(from: source + valueOffset(i), byteCount: length)
      setSlot(i, offset: at, length: length)
    }
    heapStart = at
    garbage = 0
  }

  private var isCompact: Bool {
    var at = heapStart
    for i in 0..<count {
      if valueOffset(i) != at { return false }
      at += valueLength(i)
    }
    return at == blockSize
  }

  // MARK: Interior nodes

  @inline(__always) func childBytes(_ i: Int) -> UnsafeMutableRawPointer { entry(i) + 16 }
  @inline(__always) func pointer(_ i: Int) -> NodePointer {
    NodePointer(decoding: childBytes(i))
  }

  /// The cache slot of a dirty child; nil for a clean one.
  @inline(__always) func dirtyChild(_ i: Int) -> CacheSlot? {
    let e = childBytes(i).reading
    return e.u8(29) != 0 ? e.u32(24) : nil
  }
  func setDirtyChild(_ i: Int, _ slot: CacheSlot) {
    childBytes(i).put(slot, at: 24)
    childBytes(i).put(UInt8(1), at: 29)
  }
  /// The entry of the dirty child in `slot`.
  func index(ofDirtyChild slot: CacheSlot) -> Int? {
    for i in 0..<count where dirtyChild(i) == slot { return i }
    return nil
  }
  func setPointer(_ i: Int, _ pointer: NodePointer) {
    pointer.encode(to: childBytes(i))
  }

  /// Opens room for `n` entries at `i`, with undefined content.
  func openChildren(_ i: Int, _ n: Int) {
    let size = NodeFormat.interiorEntrySize
    invariant(count + n <= NodeFormat.maximumChildren, "an entry does not fit into its node")
    memmove(entry(i + n), entry(i), (count - i) * size)
    count += n
  }

  /// Removes entry `i`; when it was the first one, the next one takes over its lower bound.
  func removeChild(_ i: Int) {
    let size = NodeFormat.interiorEntrySize
    let bound = key(i)
    memmove(entry(i), entry(i + 1), (count - i - 1) * size)
    count -= 1
    if i == 0 && count > 0 { setKey(0, bound) }
  }

  // MARK: Writing

  /// Makes the node canonical and stores its checksum, which is returned.
  func seal(_ scratch: UnsafeMutableRawPointer) -> UInt32 {
    if isLeaf && !isCompact { compact(scratch) }
    p.put(UInt64(0), at: Field.reserved)
    let end = NodeFormat.headerSize + count * stride
    memset(p + end, 0, heapStart - end)
    sealBlock(p, checksumAt: Field.checksum)
    return p.reading.u32(Field.checksum)
  }
}
