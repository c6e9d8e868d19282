// The end of a cycle on the devices: every volume is flushed, then the root is written to each.
//
//     flush ─▶ flushCompleted ... ─▶ write ─▶ rootWritten ... ─▶ done

final class CheckpointWriter {
  private let pool: Pool
  private let memory: AlignedMemory
  private(set) var root = RootRecord()
  private var outstanding = 0
  /// Volumes that refused the root.
  private var refused: [Int] = []
  private var hasLostFlush = false

  init(_ pool: Pool) {
    self.pool = pool
    memory = AlignedMemory(bytes: Int(VolumeLayout.rootCopies) * blockSize)
  }

  /// Flushes all volumes. `done` when there is nothing to wait for.
  func flush() -> WorkOutcome {
    outstanding = pool.configuration.volumes.count
    if pool.fault == .volumeNotFlushed { outstanding -= 1 }
    for v in 0..<outstanding { pool.ops.flush(.volume(v), owner: .volumeFlush, index: v) }
    return outstanding == 0 ? .done : .underWay
  }

  /// `refused`, once all have ended, when one failed: it has lost what it covered.
  func flushCompleted(_ v: Int, error: Int32) -> WorkOutcome {
    if error != 0 {
      pool.ioErrors += 1
      hasLostFlush = true
    }
    outstanding -= 1
    guard outstanding == 0 else { return .underWay }
    return hasLostFlush ? .refused : .done
  }

  /// Writes the root to all volumes, each time both of its copies.
  func write(_ root: RootRecord) {
    self.root = root
    for copy in 0..<Int(VolumeLayout.rootCopies) {
      root.encode(to: memory.base + copy * blockSize)
    }
    outstanding = pool.configuration.volumes.count
    for v in 0..<outstanding { issue(v) }
  }

  private func issue(_ v: Int) {
    let block = VolumeLayout.root(unit: root.unit, checkpoint: root.checkpoint)
    pool.ops.issue(
      .writeDurable, .volume(v), offset: block << blockShift, length: UInt64(memory.count),
      memory: memory.base, owner: .rootWrite, index: v)
  }

  /// `refused` for each volume that refuses it: `retry` writes it there again.
  func rootWritten(_ v: Int, error: Int32) -> WorkOutcome {
    if error != 0 {
      pool.ioErrors += 1
      refused.append(v)
      return .refused
    }
    outstanding -= 1
    return outstanding == 0 ? .done : .underWay
  }

  /// Writes the root once more where it was refused.
  func retry() {
    let volumes = refused
    refused.removeAll()
    for v in volumes { issue(v) }
  }
}
