// The space tree: which blocks of the volumes are in use. Byte for byte in docs/formats/space.md.
//
// A volume is cut into chunks of 8,192 blocks (32 MiB) and allocation groups of 32 chunks (1 GiB).
// The space tree is a B+tree like any other of the pool (kind `space`); its keys are pairs of
// 64-bit numbers, its values have one fixed size for each kind of key, so that storing a value
// that is there already never splits a node.
//
//     key hi  key lo                       value
//     0       volume << 48 | group / 128   512 bytes: 128 group words (u32)
//     1       volume << 48 | chunk         1,024 bytes: one bit a block, 1 = in use
//     2       0                            16 bytes: u64 blocks in use, u64 of them metadata
//
// A group word holds the free blocks of the group in bits 0-23 and in bits 24-31 the unit that the
// group is granted to, plus one. A word of zero, or no value: never used, all of it free.
//
// Bit i of a bitmap is bit i % 8 of byte i / 8: the chunk's block i. No value: no block in use.
//
// Invariants, all as of the checkpoint that the tree's root belongs to:
//
//  1. A bit is set if and only if a durable structure of the pool refers to the block: a map, a
//     metadata node (both of its copies), a dead list. Runs that are only reserved are not here.
//  2. The label area (the first 512 blocks of a volume) and what lies behind a volume's end have
//     no bits set; decoders add them as busy. Volumes can thus grow, and the checker can compare.
//  3. The free blocks of a group are its blocks without label and end, less the bits set.
//  4. The totals are the sums over all bitmaps.

/// A key of the space tree.
package struct SpaceKey: Hashable, Comparable, Sendable {
  package var hi: UInt64
  package var lo: UInt64
  package init(hi: UInt64, lo: UInt64) {
    self.hi = hi
    self.lo = lo
  }

  /// The 128 group words that begin with group `page * 128`.
  package static func groups(volume: Int, page: Int) -> Self {
    Self(hi: 0, lo: UInt64(volume) << 48 | UInt64(page))
  }
  /// The bitmap of a chunk.
  package static func chunk(volume: Int, chunk: UInt64) -> Self {
    Self(hi: 1, lo: UInt64(volume) << 48 | chunk)
  }
  package static let totals = Self(hi: 2, lo: 0)

  package static func < (a: Self, b: Self) -> Bool { a.hi == b.hi ? a.lo < b.lo : a.hi < b.hi }
}

/// Sizes of the space tree's units and values.
package enum SpaceFormat {
  /// Blocks of a chunk, whose bitmap is one value.
  package static let chunkBlocks = 8192
  package static let chunksPerGroup = 32
  /// Blocks of an allocation group.
  package static let groupBlocks = chunkBlocks * chunksPerGroup
  package static let groupsPerPage = 128
  /// Blocks at the start of each volume that hold labels, root slots and leases.
  package static let labelBlocks = 512

  package static let bitmapBytes = chunkBlocks / 8
  package static let pageBytes = groupsPerPage * 4
  package static let totalsBytes = 16
}

/// What is stored for one allocation group.
package struct GroupWord: Hashable, Sendable {
  package var raw: UInt32
  package init(raw: UInt32) { self.raw = raw }
  package init(free: Int, owner: UInt8) {
    raw = UInt32(free) | UInt32(owner) << 24
  }
  package static let unused = Self(raw: 0)

  /// Blocks of the group that nothing refers to; holds nothing while `owner` is 0.
  package var free: Int { Int(raw & 0xFF_FFFF) }
  /// The unit that the group is granted to, plus one; 0: never used.
  package var owner: UInt8 { UInt8(raw >> 24) }
}
