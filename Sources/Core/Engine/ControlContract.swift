// What the control plane (command line, HTTP API, and front ends that open disks by name) asks of
// the engine. These are messages; they may wait for metadata and for the log, never for a lock.

package enum Durability: UInt8, Sendable {
  /// Acknowledged means on stable storage.
  case always = 0
  /// Acknowledged means written; a FLUSH makes it durable.
  case flush = 1
}

package enum ControlRequest: Sendable {
  case create(name: String, size: UInt64)
  /// Up to `limit` disks after the place that `cursor` names (nil: from the start), in an order
  /// that is stable but not sorted.
  case list(cursor: UInt64?, limit: Int)
  case show(name: String)
  case rename(name: String, to: String)
  case resize(name: String, size: UInt64, shrink: Bool, force: Bool)
  case delete(name: String, withSnapshots: Bool, force: Bool)
  case set(name: String, change: DiskAttributeChange)
  /// For front ends: counts as a connection until `close`.
  case open(name: String)
  case close(DiskHandle)
  case status
  /// Everything logged or deleted before the call is destaged, checkpointed, and its space free.
  case flush
  /// Verify every block in use; replies once, at the end.
  case scrub
  case scrubProgress
  /// Take a new volume (already labelled) into service.
  case addVolume(device: DeviceIndex, uuid: UUIDBytes, description: DeviceDescription)
  /// Test hook: stop or resume destaging.
  case holdDestage(Bool)
  /// Clean stop: flushes what is in flight, writes the closing frame.
  case stop
}

package struct DiskAttributeChange: Sendable {
  package var durability: Durability?
  package var readOnly: Bool?
  package var comment: String?
  package init(durability: Durability? = nil, readOnly: Bool? = nil, comment: String? = nil) {
    self.durability = durability
    self.readOnly = readOnly
    self.comment = comment
  }
}

package struct DiskInfo: Sendable {
  package var name: String
  package var id: ObjectID
  /// In bytes, a multiple of 512.
  package var size: UInt64
  /// Bytes of space and log that the disk refers to.
  package var used: UInt64
  /// Bytes that deleting the disk would free.
  package var exclusive: UInt64
  /// DISK@SNAP that this disk is a clone of.
  package var origin: String?
  /// Nanoseconds since 1970.
  package var created: UInt64
  package var snapshots: Int
  package var connections: Int
  package var generation: UInt64
  package var readOnly: Bool
  package var durability: Durability
  package var comment: String

  package init(
    name: String, id: ObjectID, size: UInt64, used: UInt64, exclusive: UInt64, origin: String?,
    created: UInt64, snapshots: Int, connections: Int, generation: UInt64, readOnly: Bool,
    durability: Durability, comment: String
  ) {
    self.name = name
    self.id = id
    self.size = size
    self.used = used
    self.exclusive = exclusive
    self.origin = origin
    self.created = created
    self.snapshots = snapshots
    self.connections = connections
    self.generation = generation
    self.readOnly = readOnly
    self.durability = durability
    self.comment = comment
  }
}

package enum PoolState: UInt8, Sendable {
  case recovering, online, full, suspended, readOnly
}

/// The figures of `sluice status`; all sizes in bytes.
package struct PoolStatus: Sendable {
  package var uuid = UUIDBytes.zero
  package var name = ""
  package var state = PoolState.recovering
  package var uptimeNanoseconds: UInt64 = 0
  package var logSize: UInt64 = 0
  package var logUsed: UInt64 = 0
  package var logOldestNanoseconds: UInt64 = 0
  package var spaceSize: UInt64 = 0
  package var spaceUsed: UInt64 = 0
  package var spaceFree: UInt64 = 0
  /// Of `spaceFree`, what the file systems of sparse volumes have still to give (R23).
  package var spaceUnbacked: UInt64 = 0
  package var spaceMetadata: UInt64 = 0
  package var spaceReserved: UInt64 = 0
  package var spaceFreeing: UInt64 = 0
  package var spaceHeld: UInt64 = 0
  package var disks: UInt64 = 0
  package var snapshots: UInt64 = 0
  package var writes: UInt64 = 0
  package var writtenBytes: UInt64 = 0
  package var reads: UInt64 = 0
  package var readBytes: UInt64 = 0
  package var destagedBytes: UInt64 = 0
  package var destageBacklogBytes: UInt64 = 0
  package var checkpointNumber: UInt64 = 0
  package var checkpointAgeNanoseconds: UInt64 = 0
  package var checksumErrors: UInt64 = 0
  package var ioErrors: UInt64 = 0
  package var recoveryNanoseconds: UInt64 = 0
  package var recoveryFrames: UInt64 = 0
  package init() {}
}

package struct ScrubReport: Sendable {
  package var running = false
  package var blocksTotal: UInt64 = 0
  package var blocksVerified: UInt64 = 0
  package var healed: UInt64 = 0
  /// Damaged places, as sentences with disk name and offset; at most 100 are kept.
  package var damage: [String] = []
  package var damagedBlocks: UInt64 = 0
  package init() {}
}

package enum ControlReply: Sendable {
  case done
  case disk(DiskInfo)
  /// `next` is the cursor to go on from, nil at the end.
  case disks([DiskInfo], next: UInt64?)
  case opened(DiskHandle, size: UInt64, readOnly: Bool)
  case status(PoolStatus)
  case scrub(ScrubReport)
  case failed(ControlError)
}

/// Why a control request was refused; `description` is a plain sentence with what to do.
package enum ControlError: Error, Equatable, Sendable, CustomStringConvertible {
  case noSuchDisk(String)
  case alreadyExists(String)
  case inUse(String, connections: Int)
  case hasSnapshots(String, count: Int)
  case wouldShrink(String)
  case badName(String)
  case badSize(String)
  case noSpace
  case suspended
  case stopping
  case ioError(String)

  package var description: String {
    switch self {
    case .noSuchDisk(let n):
      "there is no disk “\(n)”; `sluice disk list` shows the names"
    case .alreadyExists(let n):
      "a disk “\(n)” exists already; choose another name, or delete that one first"
    case .inUse(let n, let c):
      "disk “\(n)” has \(c) connected client\(c == 1 ? "" : "s"); disconnect, or use --force"
    case .hasSnapshots(let n, let c):
      "disk “\(n)” has \(c) snapshot\(c == 1 ? "" : "s"); use --snapshots to delete them as well"
    case .wouldShrink(let n):
      "the new size of “\(n)” is smaller and would cut off data; use --shrink if that is meant"
    case .badName(let why): why
    case .badSize(let why): why
    case .noSpace: "the pool is full; delete disks or add a volume with `sluice pool add`"
    case .suspended:
      "the pool is suspended because a member device does not answer; see `sluice status`"
    case .stopping: "the pool is stopping; try again when it serves"
    case .ioError(let what):
      "input/output error: \(what); see `sluice status` and run `sluice scrub`"
    }
  }
}
