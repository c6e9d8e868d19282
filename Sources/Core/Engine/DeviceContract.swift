// What the engine asks of member devices, and what comes back. In production DeviceIO runs these
// with io_uring, in simulation SimulatedDevice runs them; the engine can't tell which.

/// What to do on a device.
package enum DeviceOpKind: UInt8, Sendable {
  /// Read `length` bytes into `memory`.
  case read
  /// Write `length` bytes; done when the device has taken them, durable only after a later flush.
  case write
  /// Write `length` bytes; done when they are on stable storage (`RWF_DSYNC`).
  case writeDurable
  /// Make every write that was done before this was issued durable (`fdatasync`).
  case flush
  /// Give the range back to the device or file system; its content is undefined afterwards.
  case discard
  /// Reserve space for the range (`fallocate`, keeping content); nothing to do on block devices.
  case allocate
}

/// One operation. Offsets, lengths and memory of reads and writes are multiples of 4 KiB; memory
/// stays valid and untouched until the completion.
package struct DeviceOp: Sendable {
  package var kind: DeviceOpKind
  package var device: DeviceIndex
  /// In bytes from the start of the device.
  package var offset: UInt64
  /// In bytes.
  package var length: UInt64
  nonisolated(unsafe) package var memory: UnsafeMutableRawPointer?
  /// Given back with the completion; the engine's own.
  package var token: UInt64

  package init(
    kind: DeviceOpKind, device: DeviceIndex, offset: UInt64, length: UInt64,
    memory: UnsafeMutableRawPointer?, token: UInt64
  ) {
    self.kind = kind
    self.device = device
    self.offset = offset
    self.length = length
    self.memory = memory
    self.token = token
  }
}

/// How an operation ended: all of it was done, or `error` is a positive errno. A short transfer is
/// the runner's to continue; one that can't be continued is EIO.
package struct DeviceCompletion: Sendable {
  package var token: UInt64
  package var error: Int32
  package init(token: UInt64, error: Int32) {
    self.token = token
    self.error = error
  }
}

/// What a member device is, found when it was opened.
package struct DeviceDescription: Sendable {
  package var size: UInt64
  /// Whether the device is a sparse file, whose blocks need `allocate` before they are promised.
  package var isSparseFile: Bool
  /// Whether `discard` is worth issuing.
  package var canDiscard: Bool
  package init(size: UInt64, isSparseFile: Bool, canDiscard: Bool) {
    self.size = size
    self.isSparseFile = isSparseFile
    self.canDiscard = canDiscard
  }
}
