/// Units of the data plane. Bytes, blocks and addresses do not mix.

/// The unit of mapping, checksums and device I/O.
package let blockSize = 4096
/// log2 of `blockSize`.
package let blockShift: UInt64 = 12
/// Sequences, log positions, checkpoints and instants are below this: none is ever reached, and what
/// is read from a device and is not below is not valid. So sums of such numbers can't overflow.
package let counterLimit: UInt64 = 1 << 62
/// The unit of addressing that disks offer to guests, in bytes.
package let sectorSize = 512
/// The largest piece in which a front end hands data to the engine, in bytes.
package let maximumPiece = 256 * 1024

/// A 4 KiB block of a virtual disk, counted from the disk's start.
package struct BlockIndex: Hashable, Comparable, Sendable {
  package var raw: UInt64
  @inline(__always) package init(_ raw: UInt64) { self.raw = raw }
  @inline(__always) package static func < (a: Self, b: Self) -> Bool { a.raw < b.raw }
  @inline(__always) package static func + (a: Self, b: UInt64) -> Self { Self(a.raw + b) }
  /// The largest block index that the formats can hold (40 bits: disks of up to 4 PiB).
  package static let limit: UInt64 = 1 << 40
}

/// A 4 KiB block of vSpace: the volume's number in the upper 16 bits, the block on that volume
/// in the lower 48. Zero (volume 0, block 0) is a label and so never a home: it means "none".
package struct BlockAddress: Hashable, Comparable, Sendable {
  package var raw: UInt64
  @inline(__always) package init(raw: UInt64) { self.raw = raw }
  @inline(__always) package init(volume: Int, block: UInt64) {
    self.raw = UInt64(volume) << 48 | block
  }
  @inline(__always) package var volume: Int { Int(raw >> 48) }
  @inline(__always) package var block: UInt64 { raw & 0xFFFF_FFFF_FFFF }
  /// Offset on the volume in bytes.
  @inline(__always) package var byteOffset: UInt64 { block << blockShift }
  @inline(__always) package var isNone: Bool { raw == 0 }
  package static let none = Self(raw: 0)
  /// Whether `count` blocks from here can be homes on some volume: none of them in the label
  /// area, all of them within 48 bits. Adding up to `count` to such an address can't overflow.
  @inline(__always) package func isHome(count: UInt64) -> Bool {
    block >= VolumeLayout.reserved && count <= (1 << 48) - block
  }
  @inline(__always) package static func < (a: Self, b: Self) -> Bool { a.raw < b.raw }
  @inline(__always) package static func + (a: Self, b: UInt64) -> Self { Self(raw: a.raw + b) }
}

/// The 64-bit counter that every snapshot, clone and rollback mark advances; births are instants.
package typealias Instant = UInt64

/// The number of a frame of the log, counted from 1 over the whole life of the log.
package typealias FrameSequence = UInt64

/// The identity of a disk, directory or snapshot: 64 bits, never reused; the creating unit's
/// number is in the top 8 bits.
package struct ObjectID: Hashable, Comparable, Sendable {
  package var raw: UInt64
  @inline(__always) package init(_ raw: UInt64) { self.raw = raw }
  @inline(__always) package static func < (a: Self, b: Self) -> Bool { a.raw < b.raw }
  /// The datastore's root directory.
  package static let root = Self(1)
}

/// A member device of the pool as the engine names it: 0 is the log, 1 + v is volume v.
package struct DeviceIndex: Hashable, Sendable {
  package var raw: UInt16
  @inline(__always) package init(_ raw: UInt16) { self.raw = raw }
  package static let log = Self(0)
  @inline(__always) package static func volume(_ v: Int) -> Self { Self(UInt16(v + 1)) }
}

/// Rounds `value` up to a multiple of `unit`, which must be a power of two.
@inlinable @inline(__always)
package func roundUp<T: FixedWidthInteger>(_ value: T, to unit: T) -> T {
  (value + unit - 1) & ~(unit - 1)
}
