/// A mistake that a storage engine can make, built in on purpose so that the simulator proves it
/// would catch it. The engine's configuration carries one at most; in production it is nil.
package enum PlantedFault: String, CaseIterable, Sendable {
  /// Writes are acknowledged when they enter a frame, before the frame is on stable storage.
  case ackBeforeDurable
  /// Space that the running checkpoint frees is handed out before its root is durable (R18).
  case freedBlocksReusedBeforeCheckpoint
  /// Recovery takes the last frames of the log without checking their payload (R1, R3).
  case logTailUnchecked
  /// Opening the log goes on in the old epoch (R2).
  case epochNotRaised
  /// A large write's extent record may enter a frame before its data is durable (R5).
  case extentRecordBeforeData
  /// Blocks are destaged in place before their log record is durable (R14).
  case inPlaceBeforeLogDurable
  /// The flush before a checkpoint's root leaves one volume out (R18).
  case volumeNotFlushed
  /// Recovery serves without having flushed log and volumes (R6).
  case noFlushInRecovery
  /// Recovery counts on frames that a device shows after a failed flush (R7).
  case tailNotRewritten
  /// The cache keeps an old block after it was overwritten (R9).
  case staleCacheAfterOverwrite
  /// A freed run is punched when it may have been allocated anew (R16).
  case punchAfterReuse
  /// An older root is taken although a newer one had been completed (R19).
  case olderRootAccepted
  /// A checkpoint holds records behind the log position that it names (R17).
  case checkpointNotExactPrefix
  /// Blocks are born one instant later than they are (R10).
  case birthOffByOne
  /// The instant moves on with each checkpoint, not with each mark (R10).
  case birthByCheckpoint
  /// Frozen layers are destaged newest first (R12).
  case layersOutOfOrder
  /// A mark counts later than its place in the log says (R12).
  case markOutOfOrder
  /// A block that a snapshot refers to is freed when the disk lets go of it (R11).
  case sharedBlockFreed
  /// Only half of the clones of a batch come into the trees (R13).
  case halfABatch
  /// The simulator's own: a restart does not wait until the killed process's writes are done (R6).
  case lockNotAwaited
}
