/// Faults that the simulator plants into the engine to prove that it would notice them. Nil in
/// production.
package enum PlantedFault: String, CaseIterable, Sendable {
  case ackBeforeDurable
  case freedBlocksReusedBeforeCheckpoint
  case logTailUnchecked
  case epochNotRaised
  case extentRecordBeforeData
  case inPlaceBeforeLogDurable
  case volumeNotFlushed
  case noFlushInRecovery
  case staleCacheAfterOverwrite
  case punchAfterReuse
  case olderRootAccepted
  case checkpointNotExactPrefix
}
