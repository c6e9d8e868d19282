// Extents: the values of a disk's map, a tree of kind `.extents`. Key: hi = first block of the
// disk, lo = 0. Extents do not overlap; what none covers is a hole and reads as zeros.
//
//       0  u64  home address of the first block
//       8  u64  birth: the instant at which the blocks were allocated (R10)
//      16  u16  length in blocks, 1...128
//      18  u8   encoding (0: as is)
//      19  u8   flags (0)
//      20  u32  physical length in bytes: 4096 times the length
//      24  u32  CRC32C of each block

package enum ExtentFormat {
  package static let headerSize = 24
  package static let maximumLength = 128
  package static let maximumSize = headerSize + 4 * maximumLength

  /// Bytes of an extent of `length` blocks.
  @inline(__always) package static func size(_ length: Int) -> Int { headerSize + 4 * length }

  /// Writes all but the checksums.
  package static func encode(
    to p: UnsafeMutableRawPointer, address: BlockAddress, birth: Instant, length: Int
  ) {
    p.put(address.raw, at: 0)
    p.put(birth, at: 8)
    p.put(UInt16(length), at: 16)
    p.put(UInt16(0), at: 18)
    p.put(UInt32(length * blockSize), at: 20)
  }

  /// Whether the key of an interior node's entry can be the first block of an extent.
  static func isValidBound(_ entry: UnsafeRawPointer) -> Bool {
    entry.u64(0) < BlockIndex.limit && entry.u64(8) == 0
  }

  /// Whether the values of a leaf, whose bounds and order have been checked, are extents that do
  /// not overlap.
  static func isValidLeaf(_ p: UnsafeRawPointer, _ count: Int) -> Bool {
    var end: UInt64 = 0
    for i in 0..<count {
      let entry = p + NodeFormat.headerSize + i * NodeFormat.leafEntrySize
      let value = p + Int(entry.u16(16))
      let size = Int(entry.u16(18))
      guard size > headerSize, entry.u64(8) == 0 else { return false }
      let length = Int(value.u16(16))
      let (first, address) = (entry.u64(0), BlockAddress(raw: value.u64(0)))
      guard (1...maximumLength).contains(length), size == Self.size(length), value.u16(18) == 0,
        value.u32(20) == UInt32(length * blockSize), !address.isNone,
        address.block <= 1 << 48 - UInt64(length), first >= end,
        first <= BlockIndex.limit - UInt64(length)
      else { return false }
      end = first + UInt64(length)
    }
    return true
  }
}
