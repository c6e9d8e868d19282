// The engine's messages as those of the API, and its errors as problems: the one place for both.

import ControlAPI
import Core

extension Disk {
  init(_ info: DiskInfo) {
    self.init(
      name: info.name, id: hexadecimal(info.id), size: info.size,
      used: info.used, exclusive: info.exclusive, origin: info.origin,
      created: rfc3339(nanosecondsSince1970: info.created), snapshots: info.snapshots,
      connections: info.connections, generation: info.generation, readOnly: info.readOnly,
      durability: DiskDurability(info.durability), comment: info.comment)
  }
}

extension Snapshot {
  init(_ info: SnapshotInfo) {
    self.init(
      disk: info.disk, name: info.name, id: hexadecimal(info.id), size: info.size,
      created: rfc3339(nanosecondsSince1970: info.created), used: info.used,
      exclusive: info.exclusive, clones: info.clones, group: hexadecimal(info.group),
      held: info.isHeld)
  }
}

extension Change {
  init(_ range: ChangedRange) {
    self.init(
      offset: range.offset, length: range.length, type: range.isZero ? .zero : .data)
  }
}

extension SnapshotName {
  init(_ name: DiskSnapshot) {
    self.init(disk: name.disk.spelled, snapshot: name.snapshot)
  }
}

extension SnapshotOrDisk {
  init(_ state: DiskState) {
    self =
      switch state {
      case .disk(let name): .disk(name.spelled)
      case .snapshot(let name): .snapshot(SnapshotName(name))
      }
  }
}

/// An object id in 16 digits.
func hexadecimal(_ id: ObjectID) -> String {
  let digits = String(id.raw, radix: 16)
  return String(repeating: "0", count: 16 - digits.count) + digits
}

extension DiskDurability {
  init(_ durability: Durability) {
    self =
      switch durability {
      case .always: .always
      case .flush: .flush
      }
  }

  package var engineValue: Durability {
    switch self {
    case .always: .always
    case .flush: .flush
    }
  }
}

extension Status.State {
  init(_ state: PoolState) {
    self =
      switch state {
      case .recovering: .recovering
      case .online: .online
      case .full: .full
      case .suspended: .suspended
      case .readOnly: .readOnly
      }
  }
}

extension Status {
  package init(_ s: PoolStatus, version: String, memoryBytes: UInt64) {
    func seconds(_ nanoseconds: UInt64) -> Double { Double(nanoseconds / 1_000_000) / 1000 }
    self.init(
      pool: s.name, uuid: s.uuid.description, version: version, state: State(s.state),
      uptimeSeconds: seconds(s.uptimeNanoseconds),
      log: Log(size: s.logSize, used: s.logUsed, oldestSeconds: seconds(s.logOldestNanoseconds)),
      space: Space(
        size: s.spaceSize, used: s.spaceUsed, free: s.spaceFree, metadata: s.spaceMetadata,
        reserved: s.spaceReserved, freeing: s.spaceFreeing, held: s.spaceHeld),
      disks: s.disks, snapshots: s.snapshots, memoryBytes: memoryBytes,
      writes: Transfer(count: s.writes, bytes: s.writtenBytes),
      reads: Transfer(count: s.reads, bytes: s.readBytes),
      destage: Destage(bytes: s.destagedBytes, backlogBytes: s.destageBacklogBytes),
      checkpoint: Checkpoint(
        number: s.checkpointNumber, ageSeconds: seconds(s.checkpointAgeNanoseconds)),
      errors: Errors(checksum: s.checksumErrors, io: s.ioErrors),
      recovery: Recovery(seconds: seconds(s.recoveryNanoseconds), frames: s.recoveryFrames),
      latency: PoolTimes(s.latency), slowest: s.slowest.map { SlowRequest($0) },
      slowestRecently: s.slowestRecently.map { SlowRequest($0) })
  }
}

extension Scrub {
  init(_ report: ScrubReport) {
    self.init(
      running: report.running, blocksTotal: report.blocksTotal,
      blocksVerified: report.blocksVerified, healed: report.healed,
      damagedBlocks: report.damagedBlocks, damage: report.damage)
  }
}

extension Problem {
  package init(_ error: ControlError) {
    let kind: Kind =
      switch error {
      case .noSuchDisk: .noSuchDisk
      case .noSuchSnapshot: .noSuchSnapshot
      case .alreadyExists, .snapshotExists: .alreadyExists
      case .isHeld: .isHeld
      case .notOfOneLine: .notOfOneLine
      case .inUse: .inUse
      case .hasSnapshots: .hasSnapshots
      case .wouldShrink: .wouldShrink
      case .badName: .badName
      case .badSize: .badSize
      case .noSpace: .noSpace
      case .suspended: .suspended
      case .stopping: .stopping
      case .ioError: .ioError
      }
    self.init(kind, error.description)
  }

  /// A reply that does not fit the request: a refusal, or else a defect of the engine.
  static func unexpected(_ reply: ControlReply) -> Problem {
    if case .failed(let error) = reply { return Problem(error) }
    return .unfitting
  }

  static let unfitting = Problem(
    .unexpected, "the engine's reply does not fit the request; please report this defect")
}
