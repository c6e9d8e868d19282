// The pool as the API shows and changes it. All sizes are bytes, all times seconds.

/// The reply to `GET /v1/status`.
package struct Status: Codable, Equatable, Sendable {
  package enum State: String, Codable, Sendable {
    case recovering, online, full, suspended
    case readOnly = "read_only"
  }

  package struct Log: Codable, Equatable, Sendable {
    package var size: UInt64
    package var used: UInt64
    /// Age of the oldest record that is not destaged yet.
    package var oldestSeconds: Double

    enum CodingKeys: String, CodingKey {
      case size, used
      case oldestSeconds = "oldest_seconds"
    }

    package init(size: UInt64, used: UInt64, oldestSeconds: Double) {
      self.size = size
      self.used = used
      self.oldestSeconds = oldestSeconds
    }
  }

  package struct Space: Codable, Equatable, Sendable {
    package var size: UInt64
    package var used: UInt64
    package var free: UInt64
    package var metadata: UInt64
    /// Promised to acknowledged writes that are not destaged yet, and kept for metadata.
    package var reserved: UInt64
    /// Deleted, and free after the next checkpoints.
    package var freeing: UInt64
    /// Of deleted snapshots that clones still need.
    package var held: UInt64

    package init(
      size: UInt64, used: UInt64, free: UInt64, metadata: UInt64, reserved: UInt64,
      freeing: UInt64, held: UInt64
    ) {
      self.size = size
      self.used = used
      self.free = free
      self.metadata = metadata
      self.reserved = reserved
      self.freeing = freeing
      self.held = held
    }
  }

  package struct Transfer: Codable, Equatable, Sendable {
    package var count: UInt64
    package var bytes: UInt64

    package init(count: UInt64, bytes: UInt64) {
      self.count = count
      self.bytes = bytes
    }
  }

  package struct Destage: Codable, Equatable, Sendable {
    package var bytes: UInt64
    package var backlogBytes: UInt64

    enum CodingKeys: String, CodingKey {
      case bytes
      case backlogBytes = "backlog_bytes"
    }

    package init(bytes: UInt64, backlogBytes: UInt64) {
      self.bytes = bytes
      self.backlogBytes = backlogBytes
    }
  }

  package struct Checkpoint: Codable, Equatable, Sendable {
    package var number: UInt64
    package var ageSeconds: Double

    enum CodingKeys: String, CodingKey {
      case number
      case ageSeconds = "age_seconds"
    }

    package init(number: UInt64, ageSeconds: Double) {
      self.number = number
      self.ageSeconds = ageSeconds
    }
  }

  package struct Errors: Codable, Equatable, Sendable {
    package var checksum: UInt64
    package var io: UInt64

    package init(checksum: UInt64, io: UInt64) {
      self.checksum = checksum
      self.io = io
    }
  }

  package struct Recovery: Codable, Equatable, Sendable {
    package var seconds: Double
    package var frames: UInt64

    package init(seconds: Double, frames: UInt64) {
      self.seconds = seconds
      self.frames = frames
    }
  }

  package var pool: String
  package var uuid: String
  package var version: String
  package var state: State
  package var uptimeSeconds: Double
  package var log: Log
  package var space: Space
  package var disks: UInt64
  package var snapshots: UInt64
  /// Resident memory of the daemon.
  package var memoryBytes: UInt64
  package var writes: Transfer
  package var reads: Transfer
  package var destage: Destage
  package var checkpoint: Checkpoint
  package var errors: Errors
  package var recovery: Recovery
  package var latency: PoolTimes
  /// At most 16 since start, the slowest first.
  package var slowest: [SlowRequest]
  /// The same of this minute and the one before, counted from the daemon's start.
  package var slowestRecently: [SlowRequest]

  enum CodingKeys: String, CodingKey {
    case pool, uuid, version, state
    case uptimeSeconds = "uptime_seconds"
    case log, space, disks, snapshots
    case memoryBytes = "memory_bytes"
    case writes, reads, destage, checkpoint, errors, recovery, latency, slowest
    case slowestRecently = "slowest_recently"
  }

  package init(
    pool: String, uuid: String, version: String, state: State, uptimeSeconds: Double, log: Log,
    space: Space, disks: UInt64, snapshots: UInt64, memoryBytes: UInt64, writes: Transfer,
    reads: Transfer, destage: Destage, checkpoint: Checkpoint, errors: Errors, recovery: Recovery,
    latency: PoolTimes, slowest: [SlowRequest], slowestRecently: [SlowRequest]
  ) {
    self.pool = pool
    self.uuid = uuid
    self.version = version
    self.state = state
    self.uptimeSeconds = uptimeSeconds
    self.log = log
    self.space = space
    self.disks = disks
    self.snapshots = snapshots
    self.memoryBytes = memoryBytes
    self.writes = writes
    self.reads = reads
    self.destage = destage
    self.checkpoint = checkpoint
    self.errors = errors
    self.recovery = recovery
    self.latency = latency
    self.slowest = slowest
    self.slowestRecently = slowestRecently
  }
}

/// The reply to `POST /v1/scrub` (at its end) and `GET /v1/scrub` (as it goes).
package struct Scrub: Codable, Equatable, Sendable {
  /// How many damaged places are listed at most.
  package static let maximumDamage = 100

  package var running: Bool
  package var blocksTotal: UInt64
  package var blocksVerified: UInt64
  /// Metadata blocks rewritten from their good copy.
  package var healed: UInt64
  package var damagedBlocks: UInt64
  /// Damaged places as sentences with disk name and offset; the first ones.
  package var damage: [String]

  enum CodingKeys: String, CodingKey {
    case running
    case blocksTotal = "blocks_total"
    case blocksVerified = "blocks_verified"
    case healed
    case damagedBlocks = "damaged_blocks"
    case damage
  }

  package init(
    running: Bool, blocksTotal: UInt64, blocksVerified: UInt64, healed: UInt64,
    damagedBlocks: UInt64, damage: [String]
  ) {
    self.running = running
    self.blocksTotal = blocksTotal
    self.blocksVerified = blocksVerified
    self.healed = healed
    self.damagedBlocks = damagedBlocks
    self.damage = damage
  }
}

/// The body of `PUT /v1/destage`: halt destaging, for tests and measurements of a full log; a flush
/// or a restart lets it go on.
package struct Destaging: Codable, Equatable, Sendable {
  package var held: Bool

  enum CodingKeys: String, CodingKey, CaseIterable { case held }

  package init(held: Bool) { self.held = held }
}

/// The body of `POST /v1/volumes`: take a device or file into the pool's space.
package struct AddVolume: Codable, Equatable, Sendable {
  /// Absolute path on the daemon's host.
  package var path: String
  /// In bytes: make a sparse file of this size when there is nothing at `path`.
  package var size: UInt64?
  /// Take it although it holds data.
  package var force: Bool?

  enum CodingKeys: String, CodingKey, CaseIterable { case path, size, force }

  package init(path: String, size: UInt64? = nil, force: Bool? = nil) {
    self.path = path
    self.size = size
    self.force = force
  }

  package init(from decoder: any Decoder) throws {
    try decoder.refuseUnknownKeys(CodingKeys.self)
    let keyed = try decoder.container(keyedBy: CodingKeys.self)
    path = try keyed.decode(String.self, forKey: .path)
    size = try keyed.decodeIfPresent(UInt64.self, forKey: .size)
    force = try keyed.decodeIfPresent(Bool.self, forKey: .force)
  }
}

/// The reply to `POST /v1/volumes`: the volume, which is in service.
package struct Volume: Codable, Equatable, Sendable {
  package var path: String
  package var uuid: String
  /// In bytes.
  package var size: UInt64

  package init(path: String, uuid: String, size: UInt64) {
    self.path = path
    self.uuid = uuid
    self.size = size
  }
}

/// The reply to `GET /healthz`.
package struct Health: Codable, Equatable, Sendable {
  /// `ok` (HTTP 200) or `unavailable` (HTTP 503).
  package var status: String
  package var state: Status.State

  package init(status: String, state: Status.State) {
    self.status = status
    self.state = state
  }
}

/// The body of requests that take no parameters: absent, or an empty object.
package struct NoFields: Codable, Sendable {
  enum CodingKeys: CodingKey, CaseIterable {}

  package init() {}

  package init(from decoder: any Decoder) throws {
    try decoder.refuseUnknownKeys(CodingKeys.self)
  }

  package func encode(to encoder: any Encoder) throws {
    _ = encoder.container(keyedBy: CodingKeys.self)
  }
}
