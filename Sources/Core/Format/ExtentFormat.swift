// Extents: the values of a disk's map, a tree of kind `.extents`, and of a delta over a snapshot's
// map, kind `.delta`. Key: hi = first block of the disk, lo = 0. Extents do not overlap. What none
// covers reads as zeros; in a delta, as what the snapshot has.
//
//       0  u64  home address of the first block
//       8  u64  birth: the instant at which the blocks were allocated (R10)
//      16  u16  length in blocks, 1...128
//      18  u8   encoding (0: as is)
//      19  u8   flags (0)
//      20  u32  physical length in bytes: 4096 times the length
//      24  u32  CRC32C of each block
//
// A hole extent, in deltas only, says that blocks read as zeros although the snapshot has something
// there: address, birth and physical length are 0, and there are no checksums.

package enum ExtentFormat {
  package static let headerSize = 24
  package static let maximumLength = 128
  package static let maximumSize = headerSize + 4 * maximumLength

  /// Bytes of an extent of `length` blocks.
  @inline(__always) package static func size(_ length: Int) -> Int { headerSize + 4 * length }

  /// Writes all but the checksums; without an address, a hole extent.
  package static func encode(
    to p: UnsafeMutableRawPointer, address: BlockAddress, birth: Instant, length: Int
  ) {
    p.put(address.raw, at: 0)
    p.put(birth, at: 8)
    p.put(UInt16(length), at: 16)
    p.put(UInt16(0), at: 18)
    p.put(UInt32(address.isNone ? 0 : length * blockSize), at: 20)
  }

  /// Whether the key of an interior node's entry can be the first block of an extent.
  static func isValidBound(_ entry: UnsafeRawPointer) -> Bool {
    entry.u64(0) < BlockIndex.limit && entry.u64(8) == 0
  }

  /// Whether the values of a leaf, whose bounds and order have been checked, are extents that do
  /// not overlap; hole extents only where they may be.
  static func isValidLeaf(_ p: UnsafeRawPointer, _ count: Int, holes: Bool) -> Bool {
    var end: UInt64 = 0
    for i in 0..<count {
      let entry = p + NodeFormat.headerSize + i * NodeFormat.leafEntrySize
      let value = p + Int(entry.u16(16))
      let size = Int(entry.u16(18))
      guard size >= headerSize, entry.u64(8) == 0 else { return false }
      let length = Int(value.u16(16))
      let first = entry.u64(0)
      guard (1...maximumLength).contains(length), value.u16(18) == 0, first >= end,
        first <= BlockIndex.limit - UInt64(length),
        isData(value, size, length) || holes && isHole(value, size)
      else { return false }
      end = first + UInt64(length)
    }
    return true
  }

  private static func isData(_ value: UnsafeRawPointer, _ size: Int, _ length: Int) -> Bool {
    let address = BlockAddress(raw: value.u64(0))
    return size == Self.size(length) && value.u32(20) == UInt32(length * blockSize)
      && !address.isNone && address.block <= 1 << 48 - UInt64(length)
  }

  private static func isHole(_ value: UnsafeRawPointer, _ size: Int) -> Bool {
    size == headerSize && value.u64(0) == 0 && value.u64(8) == 0 && value.u32(20) == 0
  }
}
