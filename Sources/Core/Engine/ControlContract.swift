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
  /// One instant for all that are named: all are taken or none.
  case snapshot([SnapshotName])
  /// Up to `limit` snapshots, of one disk or of all, oldest first within a disk; `cursor` as for
  /// `list`.
  case listSnapshots(disk: String?, cursor: UInt64?, limit: Int)
  case deleteSnapshot(SnapshotName)
  case renameSnapshot(SnapshotName, to: String)
  /// A held snapshot can't be deleted.
  case holdSnapshot(SnapshotName, Bool)
  /// The disk becomes what the snapshot is. Refused while clients are connected, unless forced;
  /// then they see the new content from some moment on, and never a mixture.
  case rollback(SnapshotName, force: Bool)
  /// With a count, NAME-1 ... NAME-count, all or none.
  case clone(SnapshotName, name: String, count: Int?)
  /// What changed from a snapshot to a later one or to the disk as it is: up to `limit` ranges from
  /// byte `from` on.
  case diff(SnapshotName, to: SnapshotOrDisk, from: UInt64, limit: Int)
  /// For front ends: counts as a connection until `close`. A NAME or a NAME@SNAP.
  case open(name: String)
  case close(DiskHandle)
  case status
  /// What is counted of up to `limit` disks, in no order; `cursor` as for `list`. Disks that had no
  /// request since they came into memory are left out.
  case latency(cursor: UInt64?, limit: Int)
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
  /// Of a snapshot: it can't be deleted.
  package var held: Bool?
  package init(
    durability: Durability? = nil, readOnly: Bool? = nil, comment: String? = nil, held: Bool? = nil
  ) {
    self.durability = durability
    self.readOnly = readOnly
    self.comment = comment
    self.held = held
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

/// DISK@SNAP.
package struct SnapshotName: Hashable, Sendable, CustomStringConvertible {
  package var disk: String
  package var snapshot: String
  package init(disk: String, snapshot: String) {
    self.disk = disk
    self.snapshot = snapshot
  }
  package var description: String { "\(disk)@\(snapshot)" }
}

package enum SnapshotOrDisk: Hashable, Sendable {
  case snapshot(SnapshotName)
  case disk(String)
}

package struct SnapshotInfo: Sendable {
  package var disk: String
  package var name: String
  package var id: ObjectID
  /// Nanoseconds since 1970.
  package var created: UInt64
  /// In bytes: of the disk then.
  package var size: UInt64
  /// Bytes that the snapshot refers to.
  package var used: UInt64
  /// Bytes that deleting it would free.
  package var exclusive: UInt64
  package var clones: Int
  /// The id of the first snapshot that was made in the same call.
  package var group: ObjectID
  package var isHeld: Bool

  package init(
    disk: String, name: String, id: ObjectID, created: UInt64, size: UInt64, used: UInt64,
    exclusive: UInt64, clones: Int, group: ObjectID, isHeld: Bool
  ) {
    self.disk = disk
    self.name = name
    self.id = id
    self.created = created
    self.size = size
    self.used = used
    self.exclusive = exclusive
    self.clones = clones
    self.group = group
    self.isHeld = isHeld
  }
}

/// A range that is different at two points; both in bytes.
package struct ChangedRange: Equatable, Sendable {
  package var offset: UInt64
  package var length: UInt64
  /// It reads as zeros at the later point.
  package var isZero: Bool
  package init(offset: UInt64, length: UInt64, isZero: Bool) {
    self.offset = offset
    self.length = length
    self.isZero = isZero
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
  /// By `OperationKind`, since start.
  package var latency: [OperationLatency] = []
  /// The slowest operations since start, the slowest first.
  package var slowest: [SlowOperation] = []
  /// Of this minute and the one before.
  package var slowestRecently: [SlowOperation] = []
  package init() {}
}

/// How long operations of one kind took.
package struct OperationLatency: Equatable, Sendable {
  package var total: LatencySummary
  package var queue: LatencySummary
  package var service: LatencySummary

  package init(_ figures: OperationFigures) {
    total = LatencySummary(figures.total)
    queue = LatencySummary(figures.queue)
    service = LatencySummary(figures.service)
  }
}

/// What is counted of one disk or snapshot since it came into memory: when it was first opened, or
/// when it was opened again after it had neither client nor anything in the log.
package struct DiskLatency: Sendable {
  package var name: String
  package var id: ObjectID
  package var connections: Int
  /// Of the engine, when the figures were taken.
  package var uptimeNanoseconds: UInt64
  package var figures: DiskFigures

  package init(
    name: String, id: ObjectID, connections: Int, uptimeNanoseconds: UInt64, figures: DiskFigures
  ) {
    self.name = name
    self.id = id
    self.connections = connections
    self.uptimeNanoseconds = uptimeNanoseconds
    self.figures = figures
  }
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
  case snapshots([SnapshotInfo], next: UInt64?)
  /// `next` is the byte to go on from, nil at the end.
  case changes([ChangedRange], next: UInt64?)
  case opened(DiskHandle, size: UInt64, readOnly: Bool)
  case status(PoolStatus)
  /// `next` is the cursor to go on from, nil at the end.
  case latency([DiskLatency], next: UInt64?)
  case scrub(ScrubReport)
  case failed(ControlError)
}

/// Why a control request was refused; `description` is a plain sentence with what to do.
package enum ControlError: Error, Equatable, Sendable, CustomStringConvertible {
  case noSuchDisk(String)
  case noSuchSnapshot(SnapshotName)
  case alreadyExists(String)
  case snapshotExists(SnapshotName)
  case isHeld(SnapshotName)
  case notOfOneLine(String, String)
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
    case .noSuchSnapshot(let n):
      "there is no snapshot “\(n)”; `sluice snapshot list \(n.disk)` shows those of the disk"
    case .snapshotExists(let n):
      "a snapshot “\(n)” exists already; choose another name, or delete that one first"
    case .isHeld(let n):
      "snapshot “\(n)” is held; `sluice snapshot release \(n)` first if it is to be deleted"
    case .notOfOneLine(let a, let b):
      "“\(a)” is not an earlier state of “\(b)”; name two points of one disk, the older one first"
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
