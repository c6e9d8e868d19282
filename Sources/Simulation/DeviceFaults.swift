import Core

/// How fast a device is, in nanoseconds; each operation's latency is drawn around these.
package struct DeviceTiming: Sendable {
  package var read: UInt64 = 80_000
  package var write: UInt64 = 30_000
  package var flush: UInt64 = 400_000
  package var discard: UInt64 = 30_000
  /// Added for each 4 KiB of a transfer.
  package var perBlock: UInt64 = 1_000
  /// One operation in so many takes `spike` times as long; 0: none.
  package var spikeOneIn: UInt64 = 200
  package var spike: UInt64 = 30

  package init() {}

  /// The latency of one operation: half to one and a half times the mean, so that operations
  /// overtake one another, and now and then a spike.
  func latency(
    of kind: DeviceOpKind, blocks: UInt64, random: inout SeededRandom
  ) -> UInt64 {
    let mean =
      switch kind {
      case .read: read + blocks * perBlock
      case .write: write + blocks * perBlock
      case .writeDurable: write + flush / 2 + blocks * perBlock
      case .flush: flush
      case .discard: discard
      case .allocate: write
      }
    var latency = mean / 2 + random.below(mean + 1)
    if spikeOneIn > 0 && random.oneIn(spikeOneIn) { latency *= 1 + random.below(spike) }
    return latency
  }
}

/// How a device fails at the moment. Rates are in failures a million operations.
package struct DeviceFaults: Sendable {
  package enum Presence: Sendable, Equatable {
    case here
    /// Operations fail with ENXIO.
    case gone
    /// Operations do not complete before the device comes back.
    case hanging
  }

  package var readErrors: UInt64 = 0
  package var writeErrors: UInt64 = 0
  package var flushErrors: UInt64 = 0
  package var allocateErrors: UInt64 = 0
  /// Ranges of blocks that can't be written any more, and, where marked so, not read either.
  package var badRanges: [BadRange] = []
  package var presence = Presence.here
  /// Multiplies every latency.
  package var slowness: UInt64 = 1

  package struct BadRange: Sendable {
    package var blocks: Range<UInt64>
    package var unreadable: Bool
    package init(blocks: Range<UInt64>, unreadable: Bool) {
      self.blocks = blocks
      self.unreadable = unreadable
    }
  }

  package init() {}

  /// Whether an operation on `blocks` fails now.
  func fails(
    _ kind: DeviceOpKind, _ blocks: Range<UInt64>, random: inout SeededRandom
  ) -> Bool {
    func bad(_ matters: (BadRange) -> Bool) -> Bool {
      badRanges.contains { matters($0) && $0.blocks.overlaps(blocks) }
    }
    let rate: UInt64
    switch kind {
    case .read:
      if bad({ $0.unreadable }) { return true }
      rate = readErrors
    case .write, .writeDurable:
      if bad({ _ in true }) { return true }
      rate = writeErrors
    case .flush: rate = flushErrors
    case .discard, .allocate: rate = allocateErrors
    }
    return rate > 0 && random.below(1_000_000) < rate
  }
}

/// What a power cut, or an error, leaves of one write.
enum WriteFate: Equatable {
  case lost
  case kept
  /// The sectors before (or, reversed, behind) a place.
  case cut(at: UInt64, reversed: Bool)
  /// Each sector by itself.
  case scattered

  init(random: inout SeededRandom) {
    switch random.below(8) {
    case 0, 1: self = .lost
    case 2, 3: self = .kept
    case 4, 5: self = .cut(at: random.below(1 << 20), reversed: random.oneIn(2))
    default: self = .scattered
    }
  }

  /// Which sectors (a bit each) of a block are written: `sectorInWrite` is the block's first
  /// sector counted from the write's start, of `sectors` in all.
  func mask(sectorInWrite: Int, sectors: Int, random: inout SeededRandom) -> UInt8 {
    switch self {
    case .lost: return 0
    case .kept: return 0xFF
    case .scattered: return UInt8(truncatingIfNeeded: random.next())
    case .cut(let place, let reversed):
      let cut = Int(place) % (sectors + 1)
      var mask: UInt8 = 0
      for s in 0..<8 where (sectorInWrite + s < cut) != reversed { mask |= 1 << UInt8(s) }
      return mask
    }
  }

  /// Overwrites the sectors of `memory` that are written with those of `source`.
  func apply(
    _ source: UnsafeRawPointer, onto memory: UnsafeMutableRawPointer, sectorInWrite: Int,
    sectors: Int, random: inout SeededRandom
  ) {
    let mask = mask(sectorInWrite: sectorInWrite, sectors: sectors, random: &random)
    for s in 0..<8 where mask & (1 << UInt8(s)) != 0 {
      (memory + s * sectorSize).copyMemory(
        from: source + s * sectorSize, byteCount: sectorSize)
    }
  }
}
