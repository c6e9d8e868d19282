// Labels: who a member device is.
//
// A pool opens from its devices alone, on any host: each device says in its first block (and in a
// copy of it, the second) which pool it belongs to and what it is there.
//
// One block, little-endian:
//
//       0  u64     magic "SLUICELB"
//       8  u32     format version (1)
//      12  u32     CRC32C of the block with this field zero
//      16  u64[2]  pool UUID
//      32  u64[2]  member UUID
//      48  u8      role: 1 log, 2 volume
//      49  u8      node slot: which unit the log belongs to (0 on volumes)
//      50  u16     volume index (0 on logs)
//      52  u32     log: log2 of the segment size
//      56  u64     size of the device in blocks, as it was labelled
//      64  u64     created, nanoseconds since 1970
//      72  u8      length of the pool's name
//      73  u8[63]  pool name, UTF-8
//     136          zeros
//
// Valid when magic and CRC match. A version above ours is "newer", refused with a sentence; a
// device whose real size is below the labelled size is "truncated".
//
// What follows the label on a volume (`VolumeLayout`) and on a log (`LogLayout`) is at fixed
// places. No two nodes ever write the same 4 KiB block.

/// What a member device is for.
package enum DeviceRole: UInt8, Sendable {
  case log = 1
  case volume = 2
}

/// Why a device is not opened as a member.
package enum LabelError: Error, Equatable, Sendable {
  case notSluice
  case damaged
  case newerFormat(UInt32)
  case truncated(labelled: UInt64, actual: UInt64)
}

package struct DeviceLabel: Equatable, Sendable {
  package static let magic: UInt64 = 0x424C_4543_4955_4C53
  package static let version: UInt32 = 1
  package static let maximumNameLength = 63

  package var pool: UUIDBytes
  package var member: UUIDBytes
  package var role: DeviceRole
  package var nodeSlot: UInt8
  package var volumeIndex: UInt16
  package var segmentShift: UInt32
  package var sizeInBlocks: UInt64
  package var created: UInt64
  package var poolName: String

  package init(
    pool: UUIDBytes, member: UUIDBytes, role: DeviceRole, nodeSlot: UInt8 = 0,
    volumeIndex: UInt16 = 0, segmentShift: UInt32 = 0, sizeInBlocks: UInt64, created: UInt64,
    poolName: String
  ) {
    self.pool = pool
    self.member = member
    self.role = role
    self.nodeSlot = nodeSlot
    self.volumeIndex = volumeIndex
    self.segmentShift = segmentShift
    self.sizeInBlocks = sizeInBlocks
    self.created = created
    self.poolName = poolName
  }

  /// Fills one block.
  package func encode(to p: UnsafeMutableRawPointer) {
    p.initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
    p.put(Self.magic, at: 0)
    p.put(Self.version, at: 8)
    p.put(pool.high, at: 16)
    p.put(pool.low, at: 24)
    p.put(member.high, at: 32)
    p.put(member.low, at: 40)
    p.put(role.rawValue, at: 48)
    p.put(nodeSlot, at: 49)
    p.put(volumeIndex, at: 50)
    p.put(segmentShift, at: 52)
    p.put(sizeInBlocks, at: 56)
    p.put(created, at: 64)
    let name = Array(poolName.utf8.prefix(Self.maximumNameLength))
    p.put(UInt8(name.count), at: 72)
    for (i, byte) in name.enumerated() { p.put(byte, at: 73 + i) }
    sealBlock(p, checksumAt: 12)
  }

  /// Reads one block; `actualSizeInBlocks` is the device's.
  package init(decoding p: UnsafeRawPointer, actualSizeInBlocks: UInt64) throws(LabelError) {
    guard p.u64(0) == Self.magic else { throw .notSluice }
    guard blockIsSealed(p, checksumAt: 12) else { throw .damaged }
    guard p.u32(8) <= Self.version else { throw .newerFormat(p.u32(8)) }
    guard let role = DeviceRole(rawValue: p.u8(48)), p.u8(72) <= Self.maximumNameLength else {
      throw .damaged
    }
    pool = UUIDBytes(high: p.u64(16), low: p.u64(24))
    member = UUIDBytes(high: p.u64(32), low: p.u64(40))
    self.role = role
    nodeSlot = p.u8(49)
    volumeIndex = p.u16(50)
    segmentShift = p.u32(52)
    sizeInBlocks = p.u64(56)
    created = p.u64(64)
    poolName = String(
      decoding: UnsafeRawBufferPointer(start: p + 73, count: Int(p.u8(72))), as: UTF8.self)
    switch role {
    case .log:
      guard LogLayout.segmentShifts ~= segmentShift,
        sizeInBlocks < BlockIndex.limit,
        LogLayout.segments(sizeInBlocks: sizeInBlocks, shift: segmentShift)
          >= LogLayout.minimumSegments
      else { throw .damaged }
    case .volume:
      guard sizeInBlocks > VolumeLayout.reserved, sizeInBlocks < 1 << 48 else { throw .damaged }
    }
    if sizeInBlocks > actualSizeInBlocks {
      throw .truncated(labelled: sizeInBlocks, actual: actualSizeInBlocks)
    }
  }
}

/// Fixed places on a volume, in blocks.
package enum VolumeLayout {
  package static let label: UInt64 = 0
  package static let labelCopy: UInt64 = 1
  /// 64 lease sectors, one writer each (for the cluster).
  package static let leases: UInt64 = 16
  /// 64 root slots, one a unit; each is a ring of `rootRing` blocks, which holds two generations
  /// of the root, each twice (R20).
  package static let roots: UInt64 = 256
  package static let rootRing: UInt64 = 4
  package static let units: UInt64 = 64
  /// The label area; homes start behind it.
  package static let reserved: UInt64 = 512

  /// Copies of a root or of an epoch record, in neighbouring blocks.
  package static let rootCopies: UInt64 = 2

  /// The block of the first copy of unit `unit`'s root for checkpoint `number`.
  package static func root(unit: UInt64, checkpoint number: UInt64) -> UInt64 {
    roots + unit * rootRing + number * rootCopies % rootRing
  }
}

/// Fixed places on a log device, in blocks.
package enum LogLayout {
  package static let label: UInt64 = 0
  package static let labelCopy: UInt64 = 1
  /// Ring of epoch records, each written twice.
  package static let epochs: UInt64 = 16
  package static let epochRing: UInt64 = 16
  package static let epochCopies: UInt64 = 2

  /// The block of the first copy of the epoch record with this counter.
  package static func epochRecord(_ counter: UInt64) -> UInt64 {
    epochs + counter * epochCopies % epochRing
  }
  /// Segments start here.
  package static let data: UInt64 = 256
  /// A segment is 1 MiB to 64 MiB.
  package static let segmentShifts: ClosedRange<UInt32> = 20...26
  package static let minimumSegments: UInt64 = 8

  /// The segment size for a log of `bytes`: a sixteenth of it, within the limits.
  package static func segmentShift(forBytes bytes: UInt64) -> UInt32 {
    var shift = segmentShifts.upperBound
    while shift > segmentShifts.lowerBound, bytes >> UInt64(shift) < 16 { shift -= 1 }
    return shift
  }

  /// How many whole segments of `1 << shift` bytes a log of this size holds.
  package static func segments(sizeInBlocks: UInt64, shift: UInt32) -> UInt64 {
    sizeInBlocks <= data ? 0 : (sizeInBlocks - data) >> (UInt64(shift) - blockShift)
  }

  /// The smallest log: label area and `minimumSegments` of 1 MiB.
  package static let minimumBytes: UInt64 = (data << blockShift) + minimumSegments << 20
}

/// Puts the CRC32C of a block, its own field taken as zero, into that field.
package func sealBlock(_ p: UnsafeMutableRawPointer, checksumAt offset: Int) {
  p.put(UInt32(0), at: offset)
  p.put(crc32cBlock(p), at: offset)
}

/// Whether the block's CRC32C matches the one in its field.
package func blockIsSealed(_ p: UnsafeRawPointer, checksumAt offset: Int) -> Bool {
  p.u32(offset) == checksumOmitting(p, count: blockSize, field: offset)
}

/// CRC32C of `count` bytes with the four bytes at `field` taken as zero.
package func checksumOmitting(_ p: UnsafeRawPointer, count: Int, field: Int) -> UInt32 {
  var zero: UInt32 = 0
  let before = crc32c(.init(start: p, count: field))
  let middle = withUnsafeBytes(of: &zero) { crc32c($0, seed: before) }
  return crc32c(.init(start: p + field + 4, count: count - field - 4), seed: middle)
}
