import Core

// Bits that flip in what is stored. The model knows each one: a flip in a client's data excuses
// an I/O error for just that block, a flip in one copy of metadata excuses nothing, and a flip in
// a log frame is judged by whether a durable watermark covers the frame (R3).

/// What flipped bits may have hurt.
struct Damage {
  /// By the block of a disk: versions with damaged content. Whatever refers to one of them, the disk
  /// itself, snapshots or clones, may share the damaged place.
  private var blocks: [UInt64: [Stamp.Version]] = [:]
  /// Something flipped, whatever it was.
  private(set) var isPossible = false
  /// A log record table was hit: the engine may refuse to open the pool.
  var mayRefuseToOpen = false
  var metadataFlips = 0

  mutating func happened() { isPossible = true }

  mutating func hurt(_ version: Stamp.Version, sector: UInt64) {
    blocks[sector / 8, default: []].append(version)
  }

  /// Whether a block of the range may hold damaged content. A block that was written anew does not:
  /// the damaged version has left its model.
  func touches(_ disk: ModelDisk, _ sectors: Range<UInt64>) -> Bool {
    guard !blocks.isEmpty, !sectors.isEmpty else { return false }
    let range = (sectors.lowerBound / 8)..<((sectors.upperBound + 7) / 8)
    if range.count < blocks.count {
      return range.contains { block in
        blocks[block].map { disk.mayHold($0, block: block) } == true
      }
    }
    return blocks.contains { range.contains($0.key) && disk.mayHold($0.value, block: $0.key) }
  }
}

/// Follows the frames of the log: which are on stable storage, and which of these a later durable
/// frame says so of. A frame's header carries what was known durable when it was issued.
package struct LogWatch {
  private struct Frame {
    var slot: Int
    var blocks: Range<UInt64>
    var tick: WriteTable.Tick = 0
    var isDone = false
    /// How many frames of this incarnation were known durable, without a gap, at its issue.
    var watermark: Int
  }

  private var frames: [Frame] = []
  private var durable = 0
  private var covered = 0

  package init() {}

  mutating func restart() {
    frames = []
    durable = 0
    covered = 0
  }

  package mutating func issued(slot: Int, blocks: Range<UInt64>) {
    frames.append(Frame(slot: slot, blocks: blocks, watermark: durable))
  }

  package mutating func landed(slot: Int, ok: Bool, tick: WriteTable.Tick) {
    guard let i = frames.lastIndex(where: { $0.slot == slot && !$0.isDone }) else { return }
    guard ok else {
      // The epoch ends here (R7); what comes later is not judged.
      frames.removeSubrange(i...)
      durable = min(durable, i)
      covered = min(covered, i)
      return
    }
    frames[i].isDone = true
    frames[i].tick = tick
    covered = max(covered, frames[i].watermark)
    while durable < frames.count && frames[durable].isDone { durable += 1 }
  }

  /// A block of a frame that is covered by a watermark, newest frames preferred.
  package func coveredBlock(_ random: inout SeededRandom) -> UInt64? {
    guard covered > 0 else { return nil }
    let back = min(covered, 1 + Int(random.below(64)))
    return pick(frames[covered - back], &random)
  }

  /// A block of a frame that is durable but not covered, and when it became durable; and the blocks of
  /// this frame and of those behind it.
  package func uncoveredBlock(
    _ random: inout SeededRandom
  ) -> (block: UInt64, tick: WriteTable.Tick, tail: [UInt64])? {
    let open = frames.indices.filter { $0 >= covered && frames[$0].isDone }
    guard !open.isEmpty else { return nil }
    let index = random.pick(open)
    let frame = frames[index]
    return (pick(frame, &random), frame.tick, frames[index...].flatMap { Array($0.blocks) })
  }

  private func pick(_ frame: Frame, _ random: inout SeededRandom) -> UInt64 {
    random.oneIn(4)
      ? frame.blocks.lowerBound
      : frame.blocks.lowerBound + random.below(UInt64(frame.blocks.count))
  }
}

extension Simulation {
  /// Follows the log's frames where the profile flips bits there.
  func watchIssue(_ op: DeviceOp, slot: Int) {
    if op.device != .log, op.kind == .write { lastHomeWriteAt = table.tick() }
    guard op.device == .log, op.kind == .writeDurable, pool.plan.planted == nil else { return }
    let first = op.offset >> blockShift
    logWatch.issued(slot: slot, blocks: first..<(first + op.length >> blockShift))
  }

  func watchCompletion(_ op: DeviceOp, slot: Int, error: Int32) {
    guard op.device == .log, op.kind == .writeDurable, pool.plan.planted == nil else { return }
    logWatch.landed(slot: slot, ok: error == 0, tick: table.tick())
  }

  /// Flips a bit and notes whose data it was; false when the block holds no client data.
  private func flip(_ device: SimulatedDevice, block: UInt64, dataOnly: Bool) -> Bool {
    let memory = AlignedMemory(bytes: blockSize)
    let owners = stampOwners(device, block, memory)
    if dataOnly && owners.isEmpty { return false }
    damage.happened()
    for owner in owners {
      damage.hurt(owner.version, sector: owner.sector)
    }
    let bit = Int(faultRandom.below(UInt64(blockSize * 8)))
    device.flip(block: block, bit: bit)
    tell("FLIP bit \(bit) of block \(block) of device \(device.index.raw)")
    return !owners.isEmpty
  }

  private func stampOwners(
    _ device: SimulatedDevice, _ block: UInt64, _ memory: AlignedMemory
  ) -> [(version: Stamp.Version, sector: UInt64)] {
    device.readDurable(block: block, into: memory.base)
    return (0..<8).compactMap { Stamp.owner(memory.base + $0 * sectorSize) }
  }

  /// Zeros that a client wrote carry no stamp: nothing tells whose error damage to them excuses.
  private func isZero(_ device: SimulatedDevice, _ block: UInt64) -> Bool {
    let memory = AlignedMemory(bytes: blockSize)
    device.readDurable(block: block, into: memory.base)
    return isZeroBlock(memory.base)
  }

  /// What lost frames held may be home already, where a map that does not know of it expects what was
  /// there before: reading it is an I/O error.
  private func hurtHomes(of tail: [UInt64]) {
    let memory = AlignedMemory(bytes: blockSize)
    for block in tail {
      for owner in stampOwners(pool.devices[0], block, memory) {
        damage.hurt(owner.version, sector: owner.sector)
      }
    }
  }

  /// Data of a client that is stored on a volume.
  func flipData(_ volume: SimulatedDevice) {
    let blocks = volume.durableBlocks()
    guard !blocks.isEmpty else { return }
    for _ in 0..<8 {
      if flip(volume, block: faultRandom.pick(blocks), dataOnly: true) {
        harness[.flippedData] += 1
        return
      }
    }
  }

  /// One copy of one metadata block; once a run, because a second one may meet the other copy.
  func flipMetadata(_ volume: SimulatedDevice) {
    guard damage.metadataFlips == 0 else { return }
    let memory = AlignedMemory(bytes: blockSize)
    for block in volume.durableBlocks().reversed() where block >= 512 {
      guard stampOwners(volume, block, memory).isEmpty else { continue }
      if isZeroBlock(memory.base) || !faultRandom.oneIn(8) { continue }
      damage.metadataFlips += 1
      _ = flip(volume, block: block, dataOnly: false)
      harness[.flippedMetadata] += 1
      return
    }
  }

  /// A frame that a durable watermark covers: damaged data is an I/O error after the next
  /// restart, a damaged table keeps the pool shut.
  func flipLog() {
    guard let block = logWatch.coveredBlock(&faultRandom) else { return }
    if flip(pool.devices[0], block: block, dataOnly: !faultRandom.oneIn(8)) {
      harness[.flippedLog] += 1
    } else if damage.isPossible {
      damage.mayRefuseToOpen = true
    }
  }

  /// After a power cut, before the restart: a frame that no watermark covers is damaged, so that
  /// nothing tells it from one that was never finished. What it and its followers held may be
  /// lost, as a whole tail.
  func flipTail() {
    guard profile.flipTailOneIn > 0, crashes > 0 else { return }
    guard crashRandom.oneIn(profile.flipTailOneIn),
      let (block, tick, tail) = logWatch.uncoveredBlock(&faultRandom), tick > lastChangeAt,
      !isZero(pool.devices[0], block)
    else {
      table.raiseDurable(to: table.tick())
      return forgetUnacknowledged(false)
    }
    if !flip(pool.devices[0], block: block, dataOnly: false) { damage.mayRefuseToOpen = true }
    if lastHomeWriteAt > tick { hurtHomes(of: tail) }
    harness[.flippedTail] += 1
    table.raiseDurable(to: tick)
    forgetUnacknowledged(true)
  }
}
