import Core

/// Every write of a run, by its version, as the clients saw it: when it was submitted, when it
/// ended and how. Times are ticks of one counter that advances with every submission and every
/// completion, so "before" and "after" are what an observer outside the engine can tell.
package struct WriteTable {
  package typealias Version = Stamp.Version
  package typealias Tick = UInt32

  package enum State {
    case pending
    case acknowledged
    /// Failed with EIO or ENOSPC: may be there in part, and may still come until the next crash.
    case failed
    /// Not acknowledged before a crash, or acknowledged without being durable before a power
    /// cut: there or not there.
    case uncertain
    /// Refused: certainly not there.
    case refused
  }

  /// What the sectors of a write hold.
  package enum Pattern {
    case stamps
    case zeros
    /// Stamps with whole blocks and single sectors of zeros in between.
    case mixed
  }

  package struct Record {
    var submitted: Tick
    /// `Tick.max` while it is in flight.
    var ended: Tick = .max
    var disk: UInt16
    var firstSector: UInt64
    var sectorCount: UInt64
    var pattern: Pattern
    var state = State.pending
    /// Acknowledged before it is durable (`flush` durability without FUA).
    var weak: Bool
    /// Durable before it is acknowledged whatever the disk's durability (FUA).
    var isForced = false
    /// Whether the client was told that it succeeded, whatever became of it.
    var wasAcknowledged = false

    var endSector: UInt64 { firstSector + sectorCount }

    package init(
      submitted: Tick, ended: Tick = .max, disk: UInt16, firstSector: UInt64,
      sectorCount: UInt64, pattern: Pattern, state: State = .pending, weak: Bool
    ) {
      self.submitted = submitted
      self.ended = ended
      self.disk = disk
      self.firstSector = firstSector
      self.sectorCount = sectorCount
      self.pattern = pattern
      self.state = state
      self.weak = weak
    }

    func covers(_ sector: UInt64) -> Bool { sector >= firstSector && sector < endSector }
  }

  private(set) var records: [Record]
  private(set) var now: Tick = 0
  /// Whatever ended before this tick is durable: the last flush that completed was submitted then,
  /// or a recovery began to serve then.
  private(set) var durableBefore: Tick = 0

  /// When the work began that the last crash ended: what is in doubt from before is so because nobody
  /// has looked at it since.
  var workingSince: Tick = 0

  package init() {
    records = [
      Record(
        submitted: 0, ended: 0, disk: 0, firstSector: 0, sectorCount: .max, pattern: .zeros,
        state: .acknowledged, weak: false)
    ]
  }

  subscript(version: Version) -> Record {
    @inline(__always) get { records[Int(version)] }
    @inline(__always) set { records[Int(version)] = newValue }
  }

  package mutating func tick() -> Tick {
    now += 1
    return now
  }

  package mutating func add(_ record: Record) -> Version {
    records.append(record)
    return Version(records.count - 1)
  }

  package mutating func raiseDurable(to tick: Tick) { durableBefore = max(durableBefore, tick) }

  /// The disk that the version was written to; nil when there is no such version.
  func disk(_ version: Version) -> UInt16? {
    Int(version) < records.count ? records[Int(version)].disk : nil
  }

  /// Whether the write may have been carried out at all.
  func mayExist(_ version: Version) -> Bool { records[Int(version)].state != .refused }

  /// What was written to a disk, or may have been, between two ticks: ranges of sectors.
  func writes(to disk: UInt16, from: Tick, to end: Tick) -> [Range<UInt64>] {
    records.dropFirst().compactMap { r in
      guard r.disk == disk, r.ended >= from, r.submitted <= end, r.state != .refused else {
        return nil
      }
      return r.firstSector..<r.endSector
    }
  }

  /// Whether no crash can take `version` away any more.
  func isDurable(_ version: Version) -> Bool {
    let r = records[Int(version)]
    guard r.state == .acknowledged else { return false }
    return !r.weak || r.ended < durableBefore
  }

  /// Whether `older` was over before `newer` began: only then must it not outlive it.
  func isBefore(_ older: Version, _ newer: Version) -> Bool {
    records[Int(older)].ended < records[Int(newer)].submitted
  }

  func isZero(_ version: Version, sector: UInt64) -> Bool {
    let pattern = records[Int(version)].pattern
    switch pattern {
    case .stamps: return false
    case .zeros: return true
    case .mixed:
      let block = Self.scramble(UInt64(version) << 40 ^ sector / 8)
      if block % 4 == 0 { return true }
      return Self.scramble(UInt64(version) << 44 ^ sector) % 16 == 0
    }
  }

  private static func scramble(_ x: UInt64) -> UInt64 {
    let y = (x ^ (x >> 30)) &* 0xBF58_476D_1CE4_E5B9
    return ((y ^ (y >> 27)) &* 0x94D0_49BB_1331_11EB) >> 40
  }

  /// Notes how a write ended.
  package mutating func end(_ version: Version, _ state: State) {
    records[Int(version)].ended = tick()
    records[Int(version)].state = state
    records[Int(version)].wasAcknowledged = state == .acknowledged
  }

  /// A disk's durability becomes `flush`: what is in flight may be acknowledged either way.
  package mutating func weakenPending(of disk: UInt16) {
    for i in records.indices
    where records[i].disk == disk && records[i].state == .pending && !records[i].isForced {
      records[i].weak = true
    }
  }

  /// Fills `memory` with the whole content that `version` writes.
  func fill(_ memory: UnsafeMutableRawPointer, version: Version) {
    let r = records[Int(version)]
    for i in 0..<r.sectorCount {
      let sector = r.firstSector + i
      let at = memory + Int(i) * sectorSize
      if isZero(version, sector: sector) {
        at.initializeMemory(as: UInt8.self, repeating: 0, count: sectorSize)
      } else {
        Stamp.fill(at, version: version, disk: r.disk, sector: sector)
      }
    }
  }

  /// A crash: what was not acknowledged will never be, and after a power cut what was
  /// acknowledged without being durable is in doubt as well.
  package mutating func crash(powerCut: Bool) {
    let end = tick()
    for i in records.indices {
      switch records[i].state {
      case .pending:
        records[i].state = .uncertain
        records[i].ended = end
      case .failed: records[i].state = .uncertain
      case .acknowledged:
        if powerCut && records[i].weak && records[i].ended >= durableBefore {
          records[i].state = .uncertain
        }
      case .uncertain, .refused: break
      }
    }
  }

  func describe(_ version: Version) -> String {
    if version == 0 { return "the initial zeros" }
    let r = records[Int(version)]
    let end = r.ended == .max ? "" : "\(r.ended)"
    return
      "write \(version) (disk #\(r.disk), sectors \(r.firstSector)+\(r.sectorCount), \(r.pattern), \(r.state)"
      + "\(r.weak ? ", weak" : ""), ticks \(r.submitted)...\(end))"
  }
}
