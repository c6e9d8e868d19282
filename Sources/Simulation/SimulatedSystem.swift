import Core

/// What is under test: how to make a pool, start an engine on it, and look at both. The simulator
/// knows the engine by `BlockEngine` alone.
package struct SimulatedSystem: Sendable {
  /// Writes the labels of a new pool to its devices.
  package var format: @Sendable (SimulatedPool) -> Void
  /// Starts an engine on the pool; `seed` is for whatever randomness it needs, another for each
  /// start.
  package var start: @Sendable (_ pool: SimulatedPool, _ seed: UInt64) -> any BlockEngine
  /// Labels a spare device as a volume of the pool, as `pool add` does before it asks the engine,
  /// and returns the new member's UUID.
  package var label: @Sendable (_ pool: SimulatedPool, DeviceIndex) -> UUIDBytes
  /// The offline check: complaints about a pool that no engine has open.
  package var check: @Sendable (SimulatedPool) -> [String]
  /// How often the engine took its rare paths so far.
  package var rarePaths: @Sendable (any BlockEngine) -> RarePathCounters
  /// The paths that a run over many seeds must have taken.
  package var requiredPaths: [RarePath]
  /// What the simulator itself must have done in such a run.
  package var requiredHarnessPaths: [HarnessPath]
  /// The mistakes that can be built into this engine.
  package var plantable: [PlantedFault]

  package init(
    format: @escaping @Sendable (SimulatedPool) -> Void,
    start: @escaping @Sendable (SimulatedPool, UInt64) -> any BlockEngine,
    label: @escaping @Sendable (SimulatedPool, DeviceIndex) -> UUIDBytes = { _, _ in .zero },
    check: @escaping @Sendable (SimulatedPool) -> [String] = { _ in [] },
    rarePaths: @escaping @Sendable (any BlockEngine) -> RarePathCounters = { _ in
      RarePathCounters()
    },
    requiredPaths: [RarePath] = [], requiredHarnessPaths: [HarnessPath] = [],
    plantable: [PlantedFault] = []
  ) {
    self.format = format
    self.start = start
    self.label = label
    self.check = check
    self.rarePaths = rarePaths
    self.requiredPaths = requiredPaths
    self.requiredHarnessPaths = requiredHarnessPaths
    self.plantable = plantable
  }
}

/// What the simulator itself did, summed over seeds; like the engine's rare paths, each must
/// have happened in a run over many seeds.
package enum HarnessPath: Int, CaseIterable, Sendable {
  case powerCut, kill, cleanStop, crashInRecovery, crashInVerification
  case decidedWrite, landedAfterKill, lockWaited
  case readError, writeError, flushError, spaceError, absence
  case flippedData, flippedMetadata, flippedLog, flippedTail
  case ackedRead, ackedWrite, refusedRequest, eioExcused, noSpaceSeen, gaveUp
  case diskCreated, diskDeleted, diskRenamed, diskResized, volumeAdded, waitedForSlot
  case snapshotMade, groupMade, cloneMade, batchMade, diskRolledBack, diffChecked
  case snapshotDeleted, snapshotRenamed
  /// A crash left open whether a group or batch was made, or a disk rolled back, and the lists told, or
  /// the content.
  case groupKept, groupLost, batchKept, batchLost, rollbackKept, rollbackLost
}

package struct HarnessCounters: Sendable {
  private var counts = [UInt64](repeating: 0, count: HarnessPath.allCases.count)

  package init() {}

  package subscript(path: HarnessPath) -> UInt64 {
    get { counts[path.rawValue] }
    set { counts[path.rawValue] = newValue }
  }

  package mutating func add(_ other: HarnessCounters) {
    for i in counts.indices { counts[i] += other.counts[i] }
  }
}

/// How a run ended.
package struct RunResult: Sendable {
  package var seed: UInt64
  package var profile: String
  /// What was broken; nil when nothing was.
  package var violation: String?
  /// The fingerprint of everything that happened: the same for each replay.
  package var hash: UInt64
  package var operations: UInt64
  package var crashes: UInt64
  package var rarePaths: RarePathCounters
  package var harness: HarnessCounters
}
