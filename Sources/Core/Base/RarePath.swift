/// Paths that are seldom taken, counted so that the simulator can prove that they were.
package enum RarePath: Int, CaseIterable, Sendable {
  case logWrap
  case tornTail
  case tornPayload
  case segmentSummaryReplay
  case segmentScanReplay
  case reEpoch
  case staleFrameVoid
  case recoveryBeforeNewEpoch
  case damagedLogBlock
  case relocatedHome
  case relocatedNode
  case sealedBitmap
  case healedNode
  case noSpace
  case scarceAdmission
  case nodeSpill
  case absorbedRewrite
  case largeWrite
  case largeWriteFallback
  case partialWrite
  case partialWriteWaited
  case throttled
  case destagingRested
  case partOfLogDestaged
  case logFull
  case checksumRetry
  case rootCompleted
  case punched
  case zombieFreed
  case suspended
  case volumeAdded
  case readAhead
  case readShared
  case layerDestaged
  case layeredRead
  case snapshotMerged
  case snapshotHidden
  case rolledBack
  case readAheadAwaited
  case deltaFolded
  case tailRewritten
  case gapLeft
  case gapTrial
  case logScanned
}

package struct RarePathCounters: Sendable {
  package private(set) var counts = [UInt64](repeating: 0, count: RarePath.allCases.count)
  package init() {}
  @inline(__always) package mutating func hit(_ path: RarePath) { counts[path.rawValue] += 1 }
  package subscript(_ path: RarePath) -> UInt64 {
    get { counts[path.rawValue] }
    set { counts[path.rawValue] = newValue }
  }
  package mutating func add(_ other: Self) {
    for i in counts.indices { counts[i] += other.counts[i] }
  }
}
