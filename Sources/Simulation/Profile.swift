import Core

// What the simulator does to an engine, as data: each profile is a kind of pool, workload and
// misfortune, with the ranges that a seed draws its run from. A new situation is a new row.

/// What a client of the workload may do next.
package enum ClientOperation: Sendable {
  /// 512 bytes to some blocks, at any sector.
  case smallWrite
  /// Exactly one block.
  case blockWrite
  /// One block anywhere on the disk, so that each write touches metadata of its own.
  case scatteredWrite
  /// Several whole blocks.
  case blocksWrite
  /// 128 to 256 KiB, aligned: goes straight home (R5).
  case largeWrite
  /// 1 MiB in pieces, as front ends cut it.
  case hugeWrite
  /// Any size and alignment.
  case oddWrite
  case zero
  case trim
  /// Trim of a large part of the disk.
  case bigTrim
  case flush
  case read
  case bigRead
  case extents
  /// Close the connection and open another.
  case reconnect
  /// A request that must be refused.
  case bad
}

/// What the administrator may do next.
package enum AdminOperation: Sendable {
  case create, delete, forceDelete, rename, grow, shrink, set, setReadOnly
  case show, list, status, flush, scrub, scrubProgress, addVolume, holdDestage
  case snapshot, snapshotGroup, deleteSnapshot, renameSnapshot, holdSnapshot, rollback
  case clone, cloneBatch, deleteWithSnapshots, listSnapshots, diff
  /// A request that must be refused.
  case bad, badSnapshot
}

/// What may go wrong while the pool is served.
package enum FaultKind: Sendable {
  case logReadErrors, logWriteErrors, logFlushErrors
  case volumeReadErrors, volumeWriteErrors, volumeFlushErrors
  /// Blocks of a volume that can't be written any more.
  case badBlocks
  case volumeGone, volumeHangs, logHangs
  case slowVolume, slowLog
  /// Something else fills the file system under a sparse volume, and frees it later.
  case filledOutside
  /// A bit of stored data flips.
  case flippedData
  /// A bit of one copy of volume metadata flips.
  case flippedMetadata
  /// A bit flips in log blocks that a durable watermark covers.
  case flippedLog
}

/// How a run is interrupted.
package enum CrashKind: Sendable {
  case powerCut, kill, cleanStop
}

package struct Weighted<Value: Sendable>: Sendable {
  var value: Value
  var weight: UInt64
  init(_ value: Value, _ weight: UInt64) {
    self.value = value
    self.weight = weight
  }
}

extension Array {
  func draw<Value>(_ random: inout SeededRandom) -> Value where Element == Weighted<Value> {
    var place = random.below(reduce(0) { $0 + $1.weight })
    for row in self {
      if place < row.weight { return row.value }
      place -= row.weight
    }
    invariantBroken("a draw from weights went past their end")
  }
}

package struct Profile: Sendable {
  package var name: String
  /// How often it is drawn, relative to the others.
  var weight: UInt64 = 10

  // The pool; sizes in MiB.
  var logMiB: ClosedRange<UInt64> = 9...32
  var volumeMiB: ClosedRange<UInt64> = 96...256
  var volumes: ClosedRange<UInt64> = 1...3
  var spareVolumes: UInt64 = 1
  var sparseOneIn: UInt64 = 2
  var cacheKiB: [UInt64] = [1024, 4096, 16_384]
  var durability: [Weighted<Durability>] = [.init(.always, 1)]
  /// Bytes behind each sparse volume, as percent of its size.
  var backingPercent: UInt64 = 100

  // The disks; sizes in KiB.
  var disks: ClosedRange<UInt64> = 2...5
  var diskKiB: ClosedRange<UInt64> = 1024...16_384
  /// Where most of the work happens, in KiB a disk.
  var hotKiB: ClosedRange<UInt64> = 256...2048
  /// One disk in so many is huge and nearly empty; 0: none.
  var giantOneIn: UInt64 = 6

  // The workload.
  var connections: ClosedRange<UInt64> = 2...8
  var depth: ClosedRange<UInt64> = 1...8
  /// Mean pause of a client between requests, in microseconds.
  var thinkMicroseconds: ClosedRange<UInt64> = 1...400
  var operations = Profile.mixedOperations
  /// One write in so many asks for FUA; 0: none.
  var forcedOneIn: UInt64 = 12
  var administration = Profile.mixedAdministration
  /// So many disks at most, clones included; a batch may make this many more.
  var mostDisks = 20
  /// So many snapshots at most.
  var mostSnapshots = 12
  /// So many clones in one batch.
  var batch: ClosedRange<UInt64> = 1...6
  /// Destaging is held for so long at most, in nanoseconds.
  var longestHold: UInt64 = 30_000_000
  /// One control request for so many client operations.
  var administerEvery: UInt64 = 40
  /// Whether ENOSPC may occur at all.
  var mayFill = false

  // Misfortune.
  var faults: [Weighted<FaultKind>] = []
  /// One fault for so many client operations.
  var faultEvery: UInt64 = 300
  var crashes: ClosedRange<UInt64> = 3...7
  var crashKinds: [Weighted<CrashKind>] = [
    .init(.powerCut, 6), .init(.kill, 3), .init(.cleanStop, 1),
  ]
  /// One restart in so many is interrupted by another crash.
  var crashInRecoveryOneIn: UInt64 = 3
  /// One power cut in so many flips a bit of a log frame that no watermark covers yet, so that
  /// its loss is excused; 0: never.
  var flipTailOneIn: UInt64 = 0
  /// Whole-block writes must be acknowledged within this many microseconds; 0: no limit. Set
  /// where volumes are slow and the log is fast and ample: no write waits for a checkpoint.
  var ackLimitMicroseconds: UInt64 = 0
  var volumeSlowness: UInt64 = 1

  package init(name: String) { self.name = name }
}

extension Profile {
  static let mixedOperations: [Weighted<ClientOperation>] = [
    .init(.smallWrite, 20), .init(.blockWrite, 25), .init(.blocksWrite, 15),
    .init(.largeWrite, 4), .init(.hugeWrite, 1), .init(.oddWrite, 5), .init(.zero, 3),
    .init(.trim, 4), .init(.bigTrim, 1), .init(.flush, 4), .init(.read, 15),
    .init(.bigRead, 3), .init(.extents, 2), .init(.reconnect, 1), .init(.bad, 1),
  ]

  static let mixedAdministration: [Weighted<AdminOperation>] = [
    .init(.create, 6), .init(.delete, 2), .init(.forceDelete, 2), .init(.rename, 4),
    .init(.grow, 3), .init(.shrink, 2), .init(.set, 3), .init(.setReadOnly, 1),
    .init(.show, 4), .init(.list, 3), .init(.status, 3), .init(.flush, 4), .init(.scrub, 1),
    .init(.scrubProgress, 1), .init(.addVolume, 1), .init(.holdDestage, 1), .init(.bad, 3),
    .init(.snapshot, 3), .init(.snapshotGroup, 1), .init(.deleteSnapshot, 2),
    .init(.renameSnapshot, 1), .init(.holdSnapshot, 1), .init(.rollback, 1), .init(.clone, 1),
    .init(.cloneBatch, 1), .init(.deleteWithSnapshots, 1), .init(.listSnapshots, 1),
    .init(.diff, 1), .init(.badSnapshot, 1),
  ]

  /// Mostly marks.
  private static let marking: [Weighted<AdminOperation>] = [
    .init(.create, 2), .init(.delete, 1), .init(.rename, 1), .init(.grow, 1), .init(.shrink, 1),
    .init(.set, 1), .init(.show, 3), .init(.list, 2), .init(.status, 2), .init(.flush, 3),
    .init(.scrub, 1), .init(.holdDestage, 3), .init(.bad, 1),
    .init(.snapshot, 20), .init(.snapshotGroup, 10), .init(.deleteSnapshot, 18),
    .init(.renameSnapshot, 2), .init(.holdSnapshot, 3), .init(.rollback, 16), .init(.clone, 6),
    .init(.cloneBatch, 2), .init(.deleteWithSnapshots, 4), .init(.listSnapshots, 4),
    .init(.diff, 8), .init(.badSnapshot, 3),
  ]

  /// Mostly clones.
  private static let cloning: [Weighted<AdminOperation>] = [
    .init(.create, 1), .init(.delete, 10), .init(.forceDelete, 20), .init(.rename, 1),
    .init(.show, 5), .init(.list, 2), .init(.status, 2), .init(.flush, 3), .init(.holdDestage, 2),
    .init(.snapshot, 14), .init(.snapshotGroup, 2), .init(.deleteSnapshot, 14),
    .init(.rollback, 3), .init(.clone, 8), .init(.cloneBatch, 10), .init(.deleteWithSnapshots, 16),
    .init(.listSnapshots, 2), .init(.diff, 3), .init(.badSnapshot, 3),
  ]

  /// What keeps old content, on top of a profile's own administration.
  private static let fewMarks: [Weighted<AdminOperation>] = [
    .init(.snapshot, 1), .init(.deleteSnapshot, 1),
  ]

  /// Small writes and rewrites in one place: absorption, wrap-around, summaries.
  private static let rewriting: [Weighted<ClientOperation>] = [
    .init(.smallWrite, 15), .init(.blockWrite, 50), .init(.blocksWrite, 15), .init(.flush, 3),
    .init(.read, 15), .init(.trim, 2),
  ]

  private static let filling: [Weighted<ClientOperation>] = [
    .init(.blockWrite, 20), .init(.blocksWrite, 25), .init(.largeWrite, 20),
    .init(.hugeWrite, 12), .init(.oddWrite, 5), .init(.zero, 3), .init(.trim, 5),
    .init(.bigTrim, 2), .init(.flush, 2), .init(.read, 10), .init(.extents, 2),
  ]

  /// All profiles that a seed may draw.
  package static let all: [Profile] = [
    Profile(name: "mixed") { $0.weight = 20 },
    Profile(name: "small-log") {
      $0.weight = 15
      $0.logMiB = 9...10
      $0.operations = rewriting
      $0.connections = 4...8
    },
    Profile(name: "tiny-cache") {
      $0.cacheKiB = [1024]
      $0.diskKiB = 16_384...65_536
      $0.hotKiB = 4096...8192
    },
    Profile(name: "scattered") {
      $0.weight = 8
      $0.cacheKiB = [256]
      $0.logMiB = 14...20
      $0.disks = 24...32
      $0.giantOneIn = 1
      $0.operations = [.init(.scatteredWrite, 60), .init(.read, 5), .init(.bigTrim, 1)]
      $0.connections = 6...10
      $0.depth = 4...8
      $0.crashes = 1...3
    },
    Profile(name: "full-pool") {
      $0.weight = 30
      $0.volumes = 1...2
      $0.volumeMiB = 40...56
      $0.spareVolumes = 1
      $0.disks = 3...5
      $0.diskKiB = 16_384...32_768
      $0.hotKiB = 4096...16_384
      $0.operations = filling
      $0.mayFill = true
    },
    Profile(name: "full-files") {
      $0.volumes = 1...2
      $0.volumeMiB = 256...1024
      $0.sparseOneIn = 1
      $0.backingPercent = 20
      $0.disks = 3...5
      $0.diskKiB = 16_384...65_536
      $0.hotKiB = 4096...16_384
      $0.operations = filling
      $0.mayFill = true
      $0.faults = [.init(.filledOutside, 1)]
    },
    Profile(name: "flush-durability") {
      $0.weight = 15
      $0.durability = [.init(.flush, 3), .init(.always, 1)]
    },
    // Nothing is flushed by clients: the log's volatile tail is long when destaging meets it.
    Profile(name: "lazy-log") {
      $0.durability = [.init(.flush, 1)]
      $0.logMiB = 9...12
      $0.operations = [
        .init(.smallWrite, 10), .init(.blockWrite, 30), .init(.blocksWrite, 40), .init(.read, 10),
      ]
      $0.forcedOneIn = 0
      $0.hotKiB = 256...1024
      $0.connections = 4...8
      $0.administration = [.init(.show, 4), .init(.status, 4)] + fewMarks
      $0.crashKinds = [.init(.powerCut, 1)]
    },
    // A killed engine leaves its writes in the devices' caches; the power goes soon after.
    Profile(name: "lazy-kill") {
      $0.weight = 6
      $0.durability = [.init(.flush, 1)]
      $0.operations = [.init(.smallWrite, 10), .init(.blockWrite, 30), .init(.read, 10)]
      $0.forcedOneIn = 0
      $0.connections = 2...4
      $0.administration = [.init(.show, 4), .init(.status, 4)] + fewMarks
      $0.crashes = 10...30
      $0.crashKinds = [.init(.kill, 1), .init(.powerCut, 1)]
      $0.crashInRecoveryOneIn = 2
    },
    Profile(name: "failing-log") {
      $0.faults = [
        .init(.logWriteErrors, 3), .init(.logFlushErrors, 2), .init(.logReadErrors, 1),
        .init(.logHangs, 1), .init(.slowLog, 1),
      ]
      $0.durability = [.init(.always, 2), .init(.flush, 1)]
    },
    Profile(name: "failing-volumes") {
      $0.faults = [
        .init(.volumeReadErrors, 1), .init(.volumeWriteErrors, 3),
        .init(.volumeFlushErrors, 2), .init(.badBlocks, 3), .init(.volumeGone, 1),
        .init(.volumeHangs, 1), .init(.slowVolume, 1),
      ]
    },
    Profile(name: "bit-rot") {
      $0.weight = 14
      $0.faults = [
        .init(.flippedData, 3), .init(.flippedMetadata, 3), .init(.flippedLog, 4),
      ]
      $0.faultEvery = 150
    },
    Profile(name: "rotten-tail") {
      $0.weight = 6
      $0.administration = [.init(.show, 1), .init(.status, 1), .init(.flush, 1)]
      $0.flipTailOneIn = 2
      $0.crashKinds = [.init(.powerCut, 1)]
    },
    Profile(name: "slow-volumes") {
      $0.weight = 6
      $0.logMiB = 64...96
      $0.volumeSlowness = 300
      $0.cacheKiB = [16_384]
      $0.giantOneIn = 0
      $0.operations = [.init(.blockWrite, 60), .init(.blocksWrite, 30), .init(.flush, 5)]
      $0.administration =
        [.init(.show, 4), .init(.status, 4), .init(.flush, 8)] + fewMarks
      $0.ackLimitMicroseconds = 20_000
      $0.crashes = 1...2
    },
    Profile(name: "restless") {
      $0.weight = 12
      $0.crashes = 8...14
      $0.crashInRecoveryOneIn = 1
      $0.hotKiB = 128...512
      $0.connections = 1...4
    },
    // Writes of killed processes land while nobody waits for them but the lock.
    Profile(name: "killed") {
      $0.weight = 6
      $0.crashes = 8...14
      $0.crashKinds = [.init(.kill, 1)]
      $0.hotKiB = 128...512
      $0.connections = 4...8
      $0.depth = 4...8
    },
    // Trees of snapshots, with crashes everywhere.
    Profile(name: "snapshots") {
      $0.weight = 22
      $0.volumeMiB = 192...384
      $0.disks = 2...4
      $0.diskKiB = 512...4096
      $0.hotKiB = 64...512
      $0.giantOneIn = 12
      $0.durability = [.init(.always, 4), .init(.flush, 1)]
      $0.administerEvery = 7
      $0.administration = marking
      $0.mostSnapshots = 24
      $0.crashes = 4...9
      $0.crashInRecoveryOneIn = 4
    },
    // The same with devices that fail and bits that flip.
    Profile(name: "troubled-snapshots") {
      $0.weight = 12
      $0.volumeMiB = 192...384
      $0.disks = 2...4
      $0.diskKiB = 512...4096
      $0.hotKiB = 64...512
      $0.durability = [.init(.always, 3), .init(.flush, 1)]
      $0.administerEvery = 10
      $0.administration = marking
      $0.mostSnapshots = 20
      $0.faultEvery = 200
      $0.faults = [
        .init(.logWriteErrors, 3), .init(.logFlushErrors, 2), .init(.logReadErrors, 1),
        .init(.volumeReadErrors, 2), .init(.volumeWriteErrors, 3), .init(.volumeFlushErrors, 2),
        .init(.badBlocks, 2), .init(.volumeGone, 1), .init(.volumeHangs, 1),
        .init(.flippedData, 3), .init(.flippedLog, 4),
      ]
    },
    // Clones of clones by the dozen, each with a few writes of its own.
    Profile(name: "clone-farm") {
      $0.weight = 14
      $0.volumeMiB = 192...384
      $0.disks = 1...2
      $0.diskKiB = 256...2048
      $0.hotKiB = 64...512
      $0.giantOneIn = 20
      $0.administerEvery = 6
      $0.administration = cloning
      $0.mostDisks = 60
      $0.mostSnapshots = 20
      $0.batch = 1...40
      $0.connections = 6...12
      $0.depth = 1...4
      $0.operations = mixedOperations + [.init(.reconnect, 12)]
    },
    // Destaging is held until the log is full, with marks in it.
    Profile(name: "held") {
      $0.weight = 20
      $0.logMiB = 9...10
      $0.volumeMiB = 192...384
      $0.disks = 2...4
      $0.diskKiB = 1024...8192
      $0.hotKiB = 256...2048
      $0.operations = filling
      $0.administerEvery = 12
      $0.administration = marking + [.init(.holdDestage, 12)]
      $0.longestHold = 300_000_000
    },
    // Snapshots fill what is left of the space.
    Profile(name: "full-snapshots") {
      $0.weight = 10
      $0.volumes = 1...2
      $0.volumeMiB = 40...56
      $0.spareVolumes = 1
      $0.disks = 2...3
      $0.diskKiB = 8192...16_384
      $0.hotKiB = 2048...8192
      $0.operations = filling
      $0.mayFill = true
      $0.administerEvery = 12
      $0.administration = marking
    },
    // The group commit is long, so much is under way when a mark comes.
    Profile(name: "slow-marks") {
      $0.weight = 8
      $0.disks = 3...5
      $0.diskKiB = 256...1024
      $0.hotKiB = 16...64
      $0.giantOneIn = 0
      $0.connections = 8...12
      $0.depth = 1...2
      $0.thinkMicroseconds = 1...50
      $0.operations = [
        .init(.smallWrite, 10), .init(.blockWrite, 60), .init(.blocksWrite, 5), .init(.read, 5),
        .init(.reconnect, 4),
      ]
      $0.faults = [.init(.slowLog, 1)]
      $0.administerEvery = 10
      $0.administration = [
        .init(.create, 1), .init(.snapshotGroup, 10), .init(.deleteSnapshot, 10),
        .init(.rollback, 2), .init(.clone, 1), .init(.deleteWithSnapshots, 1),
      ]
      $0.mostSnapshots = 24
    },
    Profile(name: "many-disks") {
      $0.weight = 6
      $0.disks = 8...16
      $0.diskKiB = 256...2048
      $0.hotKiB = 128...256
      $0.administerEvery = 5
      $0.administration = mixedAdministration
    },
  ]

  private init(name: String, _ change: (inout Profile) -> Void) {
    self.init(name: name)
    change(&self)
  }

  package static func named(_ name: String) -> Profile? { all.first { $0.name == name } }

  /// The profile of a seed.
  static func draw(_ random: inout SeededRandom) -> Profile {
    all.map { Weighted($0, $0.weight) }.draw(&random)
  }

  /// A pool as this profile and the seed have it.
  func drawPool(seed: UInt64, planted: PlantedFault?, random: inout SeededRandom) -> PoolPlan {
    let mebi: UInt64 = 1 << 20
    var log = DevicePlan(size: random.within(logMiB) * mebi)
    log.startsDirty = random.oneIn(2)
    log.canDiscard = false
    log.timing.flush = random.pick([100_000, 400_000, 2_000_000])
    if ackLimitMicroseconds > 0 {
      log.timing.flush = 100_000
      log.timing.spikeOneIn = 0
    }
    let count = random.within(volumes)
    var drawn: [DevicePlan] = []
    for _ in 0..<(count + spareVolumes) {
      var volume = DevicePlan(size: random.within(volumeMiB) * mebi + random.below(64) * 4096)
      volume.isSparseFile = random.oneIn(sparseOneIn)
      volume.canDiscard = volume.isSparseFile || random.oneIn(2)
      volume.startsDirty = !volume.isSparseFile && random.oneIn(2)
      if volume.isSparseFile { volume.backing = volume.size * backingPercent / 100 }
      volume.timing.read = 80_000 * volumeSlowness
      volume.timing.write = 30_000 * volumeSlowness
      // Some devices take milliseconds: much may be written while freed blocks are on their way out.
      volume.timing.discard = (seed % 3 == 1 ? 10_000_000 : 30_000) * volumeSlowness
      volume.timing.flush = random.pick([100_000, 400_000, 4_000_000]) * volumeSlowness
      drawn.append(volume)
    }
    var plan = PoolPlan(seed: seed, log: log, volumes: Array(drawn.prefix(Int(count))))
    plan.spareVolumes = Array(drawn.dropFirst(Int(count)))
    plan.cacheBytes = Int(random.pick(cacheKiB)) * 1024
    plan.durability = durability.draw(&random)
    plan.planted = planted
    plan.deltaNodes = [0, 1, 64, 64][Int(seed % 4)]
    plan.alwaysScans = seed % 5 == 2
    plan.dividesLog = seed % 3 == 0
    plan.chunkLimit = seed / 2 % 3 == 1 ? 2 : nil
    plan.logGap = seed % 7 == 3 ? 1 + Int(seed / 7 * 29 % 128) : nil
    return plan
  }
}

extension SeededRandom {
  mutating func within(_ range: ClosedRange<UInt64>) -> UInt64 {
    range.lowerBound + below(range.upperBound - range.lowerBound + 1)
  }

  mutating func pick<T>(_ choices: [T]) -> T { choices[Int(below(UInt64(choices.count)))] }
}
