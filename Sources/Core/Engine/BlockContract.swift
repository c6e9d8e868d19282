// The thin contract between front ends (NBD, NFS, ...) and the engine: a handful of operations
// and outcomes. Front ends hold no storage logic; the engine knows no protocol.

/// An open disk: a place in the engine's table and the place's generation, so that a handle kept
/// too long is refused and never reaches another disk.
package struct DiskHandle: Hashable, Sendable {
  package var place: UInt32
  package var generation: UInt32
  package init(place: UInt32, generation: UInt32) {
    self.place = place
    self.generation = generation
  }
}

package enum BlockOperation: UInt8, Sendable {
  case read
  case write
  /// Make the range read as zeros. Space is given back, unless `keepAllocated`.
  case zero
  /// The range's content is no longer needed: its whole blocks read as zeros afterwards, and its
  /// edges keep what they hold.
  case trim
  /// Every write acknowledged before this is durable when it completes.
  case flush
  /// Describe the range as runs of data and holes (`ExtentStatus` items into `memory`).
  case status
}

package struct BlockFlags: OptionSet, Sendable {
  package let rawValue: UInt8
  package init(rawValue: UInt8) { self.rawValue = rawValue }
  /// Durable before it completes, whatever the disk's durability.
  package static let forceUnitAccess = Self(rawValue: 1)
  /// With `zero`: keep space reserved for the range (NBD's NO_HOLE).
  package static let keepAllocated = Self(rawValue: 2)
}

/// One request of a front end. Offsets and lengths are in bytes, any multiple of 1 (whole blocks
/// are fastest); the front end has checked that the range lies within the disk's size at open,
/// the engine checks it again.
///
/// Memory, for read and write: starts on a 4 KiB boundary and stands for the first covered
/// *block*: the payload is at `memory + offset % 4096`, and the memory spans all covered blocks
/// (`roundUp(offset % 4096 + length, 4096)` bytes; at most `maximumPiece + 4096`). The engine may scribble on all of it. For
/// status: 4,096 bytes that receive up to 256 `ExtentStatus`. The memory belongs to the engine
/// from `submit` until the completion.
package struct BlockRequest: Sendable {
  package var operation: BlockOperation
  package var flags: BlockFlags
  package var disk: DiskHandle
  package var offset: UInt64
  /// Reads and writes: at most `maximumPiece`. Others: any length within the disk.
  package var length: UInt64
  nonisolated(unsafe) package var memory: UnsafeMutableRawPointer?
  /// Given back with the completion; the front end's own.
  package var token: UInt64

  package init(
    operation: BlockOperation, flags: BlockFlags = [], disk: DiskHandle, offset: UInt64,
    length: UInt64, memory: UnsafeMutableRawPointer?, token: UInt64
  ) {
    self.operation = operation
    self.flags = flags
    self.disk = disk
    self.offset = offset
    self.length = length
    self.memory = memory
    self.token = token
  }
}

/// A run of a disk that is all data or all hole; 16 bytes, as written for `status` requests.
package struct ExtentStatus: Sendable {
  package var length: UInt64
  /// 0 data, 1 hole that reads as zeros.
  package var kind: UInt64
  package init(length: UInt64, isHole: Bool) {
    self.length = length
    self.kind = isHole ? 1 : 0
  }
  package var isHole: Bool { kind != 0 }
}

/// The outcomes of a block request; front ends map them to the wire in one place.
package enum BlockStatus: UInt8, Sendable {
  case ok
  /// The device failed, or a checksum did not match: EIO.
  case ioError
  /// The pool is full: ENOSPC.
  case noSpace
  /// A write to a read-only disk or snapshot: EPERM.
  case readOnly
  /// Outside the disk, or a handle that is no longer valid: EINVAL.
  case invalid
  /// The pool is stopping: ESHUTDOWN.
  case stopping
}

package struct BlockCompletion: Sendable {
  package var token: UInt64
  package var status: BlockStatus
  /// For `status` requests: how many `ExtentStatus` were written.
  package var count: UInt32
  package init(token: UInt64, status: BlockStatus, count: UInt32 = 0) {
    self.token = token
    self.status = status
    self.count = count
  }
}
