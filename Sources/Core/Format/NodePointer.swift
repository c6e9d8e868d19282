/// Where a metadata block is, and what it must look like when it is read: the checksum of a block
/// lives in what points to it. Two addresses, because every metadata block is written twice (R20).
///
/// 32 bytes on disk, little-endian:
///
///     0  u64  address of the first copy (volume << 48 | block)
///     8  u64  address of the second copy
///    16  u64  birth: the instant at which the block came to be (R10)
///    24  u32  CRC32C of the block, its own checksum field taken as zero
///    28  u8   level: 0 for a leaf
///    29  u8[3] zero
///
/// All zero: no block (an empty tree).
package struct NodePointer: Hashable, Sendable {
  package var first: BlockAddress
  package var second: BlockAddress
  package var birth: Instant
  package var checksum: UInt32
  package var level: UInt8

  package static let encodedSize = 32
  package static let none = Self(first: .none, second: .none, birth: 0, checksum: 0, level: 0)
  package var isNone: Bool { first.isNone }

  package init(
    first: BlockAddress, second: BlockAddress, birth: Instant, checksum: UInt32, level: UInt8
  ) {
    self.first = first
    self.second = second
    self.birth = birth
    self.checksum = checksum
    self.level = level
  }

  package init(decoding p: UnsafeRawPointer) {
    first = BlockAddress(raw: p.u64(0))
    second = BlockAddress(raw: p.u64(8))
    birth = p.u64(16)
    checksum = p.u32(24)
    level = p.u8(28)
  }

  package func encode(to p: UnsafeMutableRawPointer) {
    p.put(first.raw, at: 0)
    p.put(second.raw, at: 8)
    p.put(birth, at: 16)
    p.put(checksum, at: 24)
    p.put(UInt32(level), at: 28)
  }
}
