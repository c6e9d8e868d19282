import Core

// What one disk may hold, sector by sector.
//
// Each sector has the list of versions that a read may return: the last acknowledged write, and
// every write that is not certainly older or certainly absent. "Older" is told by ticks alone: x
// is older than y when x ended before y was submitted.
//
//   - A write enters the lists of its sectors when it is submitted.
//   - When it is acknowledged, whatever is older than it leaves.
//   - When a read returns a version, whatever ended before that read was submitted leaves too:
//     what a read has returned never goes back.
//   - A crash ends what was in flight; it stays in the lists, there or not there.
//
// With `flush` durability an acknowledged write is weak until a flush completes: what it replaces
// is hidden instead of leaving, and a power cut brings it back. What has survived such a cut must
// be a prefix: `PrefixWitness` collects the earliest end of a lost write and the latest
// submission of a surviving one.
//
// A read that was submitted before a version left may still return it: `ghosts` keeps what left
// while reads are open, with the tick at which it did.
//
// A 4 KiB block is all or nothing: no sector may show a write while another sector that the same
// write covers shows something certainly older.
//
// A snapshot's model is a copy of its disk's, taken when the request is sent. Until the reply, writes
// that begin enter it too, and nothing leaves it: any of them may be in front of the mark or
// behind it. What is read from it once is what it is for ever. A clone's model is a copy of the
// snapshot's; what it has inherited was there before all its own writes.

/// Gathers, over the verification after a power cut, whether what survived is a prefix.
package struct PrefixWitness {
  package typealias Version = Stamp.Version
  private var earliestLost: (end: WriteTable.Tick, version: Version)?
  private var latestKept: (start: WriteTable.Tick, version: Version)?

  package init() {}

  mutating func lost(_ version: Version, ended: WriteTable.Tick) {
    if let old = earliestLost, old.end <= ended { return }
    earliestLost = (ended, version)
  }

  mutating func kept(_ version: Version, submitted: WriteTable.Tick) {
    if let old = latestKept, old.start >= submitted { return }
    latestKept = (submitted, version)
  }

  /// A lost and a surviving write in the wrong order, if there are such.
  package var contradiction: (lost: Version, kept: Version)? {
    guard let lost = earliestLost, let kept = latestKept, lost.end < kept.start else {
      return nil
    }
    return (lost.version, kept.version)
  }
}

package struct DiskModel {
  package typealias Version = Stamp.Version
  package typealias Tick = WriteTable.Tick

  /// The disk's number in stamps; a snapshot has none, because nothing is written to it.
  private let number: UInt16?
  /// Of a snapshot: the disk, and when the mark was asked for.
  private var mark: (disk: UInt16, asked: Tick)?
  /// What was submitted before may be there or not, whatever became of it: it may be on the other side
  /// of the mark that a clone or a rollback came from, or have been rolled back itself.
  var firmFrom: Tick = 0
  /// Of the last rollback: a write that is missing may have been rolled back instead of lost.
  var wasRolledBack = false
  private var slots: [UInt64: Int32] = [:]
  /// The blocks that were ever written, in the order of their first write.
  private(set) var touched: [UInt64] = []
  /// Eight for each touched block.
  private var sectors: [Candidates] = []
  /// Trims and the like that are not over: a block that is first written meanwhile may be hit.
  private var openZeros: [Version] = []

  /// When the reads that are not over were submitted.
  private var openReads: [Tick] = []
  /// By place in `sectors`: what left while reads were open.
  private var ghosts: [Int: [Ghost]] = [:]

  private struct Ghost {
    var version: Version
    var left: Tick
  }

  package init(number: UInt16) { self.number = number }

  /// A copy under another number: of a snapshot (nil) or of a disk that begins as one.
  private init(_ model: DiskModel, number: UInt16?) {
    self.number = number
    slots = model.slots
    touched = model.touched
    sectors = model.sectors
    openZeros = number == nil ? model.openZeros : []
  }

  private var isSnapshot: Bool { number == nil }

  /// What a mark takes that is being made from now on. It will be durable with all that was
  /// acknowledged before it, so nothing that is hidden can be in it.
  package func marked(at asked: Tick) -> DiskModel {
    var copy = DiskModel(self, number: nil)
    copy.mark = number.map { ($0, asked) }
    for s in copy.sectors.indices where !copy.sectors[s].isSettled {
      copy.sectors[s].update { _, hidden in hidden ? .remove : .keep }
    }
    return copy
  }

  /// The mark has been made: nothing enters it any more.
  package mutating func seal() { openZeros.removeAll() }

  /// A disk that begins as this snapshot.
  package func branched(as number: UInt16, at tick: Tick) -> DiskModel {
    var copy = DiskModel(self, number: number)
    copy.firmFrom = tick
    return copy
  }

  /// Reads that began on `model`, in whose place this one is now, may go on here.
  mutating func takeReads(of model: DiskModel) { openReads = model.openReads }
  func hasReads(before tick: Tick) -> Bool { openReads.contains { $0 < tick } }

  /// Whether disk `number` has inherited the version as a clone.
  private static func isInherited(
    _ version: Version, by number: UInt16?, _ table: WriteTable
  ) -> Bool {
    guard let number, version != 0 else { return false }
    return table[version].disk != number
  }

  private static func isBefore(
    _ older: Version, _ newer: Version, on number: UInt16?, _ table: WriteTable
  ) -> Bool {
    table.isBefore(older, newer)
      || (newer != 0 && isInherited(older, by: number, table)
        && !isInherited(newer, by: number, table))
  }

  /// The blocks within a range of sectors that were ever written.
  private func touchedSlots(_ range: Range<UInt64>) -> [Int32] {
    guard !range.isEmpty else { return [] }
    let blocks = (range.lowerBound / 8)..<((range.upperBound + 7) / 8)
    if blocks.count <= touched.count {
      return blocks.compactMap { slots[$0] }
    }
    return touched.indices.filter { blocks.contains(touched[$0]) }.map { Int32($0) }
  }

  /// The sectors of a slot that lie within a range.
  private func within(_ slot: Int32, _ range: Range<UInt64>) -> Range<Int> {
    let start = touched[Int(slot)] * 8
    let low = max(start, range.lowerBound) - start
    let high = min(start + 8, range.upperBound) - start
    return (Int(slot) * 8 + Int(low))..<(Int(slot) * 8 + Int(high))
  }

  private mutating func slot(_ block: UInt64, _ table: WriteTable) -> Int32 {
    if let slot = slots[block] { return slot }
    let slot = Int32(touched.count)
    slots[block] = slot
    touched.append(block)
    for s in 0..<8 {
      var candidates = Candidates(0)
      for version in openZeros where table[version].covers(block * 8 + UInt64(s)) {
        candidates.add(version)
      }
      sectors.append(candidates)
    }
    return slot
  }

  // MARK: Writes

  package mutating func begin(_ version: Version, _ table: WriteTable) {
    let r = table[version]
    let range = r.firstSector..<r.endSector
    if r.pattern == .zeros {
      for slot in touchedSlots(range) {
        for s in within(slot, range) { sectors[s].add(version) }
      }
      openZeros.append(version)
      return
    }
    for block in (range.lowerBound / 8)..<((range.upperBound + 7) / 8) {
      let slot = slot(block, table)
      for s in within(slot, range) { sectors[s].add(version) }
    }
  }

  /// The write was acknowledged: what is older leaves, or hides when the write is weak.
  package mutating func acknowledge(_ version: Version, _ table: WriteTable) {
    let r = table[version]
    let durable = table.isDurable(version)
    let range = r.firstSector..<r.endSector
    let haunts = !openReads.isEmpty
    for slot in touchedSlots(range) {
      for s in within(slot, range) {
        let isOlder = { [number] in $0 != version && Self.isBefore($0, version, on: number, table) }
        if haunts { haunt(s, table, isOlder) }
        sectors[s].update { other, hidden in
          guard isOlder(other) else { return .keep }
          return durable ? .remove : .hide
        }
        if !durable { pruneOvertaken(s, table) }
      }
    }
    close(version)
  }

  /// Drops hidden versions that a durable one has overtaken.
  private mutating func pruneOvertaken(_ s: Int, _ table: WriteTable) {
    var newest: Version?
    sectors[s].each { version, _ in
      if table.isDurable(version), table[version].submitted >= firmFrom,
        newest.map({ table.isBefore($0, version) }) ?? true
      {
        newest = version
      }
    }
    guard let newest else { return }
    sectors[s].update { version, hidden in
      hidden && version != newest && table.isBefore(version, newest) ? .remove : .keep
    }
  }

  /// The write was acknowledged while a mark was being made of what is in front of it or not.
  package mutating func pass(_ version: Version) { close(version) }

  /// The write was refused: it is certainly not there.
  package mutating func refuse(_ version: Version, _ table: WriteTable) {
    let range = table[version].firstSector..<table[version].endSector
    for slot in touchedSlots(range) {
      for s in within(slot, range) {
        sectors[s].update { other, _ in other == version ? .remove : .keep }
      }
    }
    close(version)
  }

  private mutating func close(_ version: Version) { openZeros.removeAll { $0 == version } }

  /// Keeps the readable versions that are about to leave for the reads that are open.
  private mutating func haunt(
    _ s: Int, _ table: WriteTable, _ leaves: (Version) -> Bool
  ) {
    var leaving: [Ghost] = []
    sectors[s].each { version, hidden in
      if !hidden && leaves(version) {
        leaving.append(Ghost(version: version, left: table.now))
      }
    }
    if !leaving.isEmpty { ghosts[s, default: []] += leaving }
  }

  package mutating func readBegan(_ asked: Tick) { openReads.append(asked) }

  package mutating func readEnded(_ asked: Tick) {
    if let i = openReads.firstIndex(of: asked) { openReads.swapAt(i, openReads.count - 1) }
    _ = openReads.popLast()
    if openReads.isEmpty { ghosts.removeAll(keepingCapacity: true) }
  }

  /// The versions that a read submitted at `asked` may return although they have left since.
  private func ghosts(_ s: Int, _ asked: Tick, _ fits: (Version) -> Bool) -> [Version] {
    guard let list = ghosts[s] else { return [] }
    return list.filter { $0.left > asked && fits($0.version) }.map(\.version)
  }

  /// A crash; `table.crash` came first. What a power cut may bring back is shown again.
  package mutating func crash(powerCut: Bool, _ table: WriteTable) {
    openZeros.removeAll()
    openReads.removeAll()
    ghosts.removeAll()
    guard powerCut else { return }
    for s in sectors.indices where !sectors[s].isSettled {
      pruneOvertaken(s, table)
      sectors[s].update { _, hidden in hidden ? .show : .keep }
    }
  }

  /// A recovery serves: it has made durable whatever it found, so what is hidden never comes back.
  package mutating func recovered() {
    for s in sectors.indices where !sectors[s].isSettled {
      sectors[s].update { _, hidden in hidden ? .remove : .keep }
    }
  }

  // MARK: Questions

  /// Whether every block that the range touches certainly holds data that was written after
  /// `branched`, since when the disk shares nothing more (so it has space of its own).
  func certainlyHoldsData(
    _ range: Range<UInt64>, since branched: Tick, _ table: WriteTable
  ) -> Bool {
    for block in (range.lowerBound / 8)..<((range.upperBound + 7) / 8) {
      guard let slot = slots[block] else { return false }
      let holds = (0..<8).contains { s in
        let sector = block * 8 + UInt64(s)
        return !sectors[Int(slot) * 8 + s].contains { version, _ in
          table[version].state != .acknowledged || table.isZero(version, sector: sector)
            || table[version].submitted <= branched || Self.isInherited(version, by: number, table)
        }
      }
      if !holds { return false }
    }
    return true
  }

  /// A sector of the range that could not be zeros at any time since `asked`, if there is one.
  func sectorWithData(
    _ range: Range<UInt64>, asked: Tick, _ table: WriteTable
  ) -> UInt64? {
    for slot in touchedSlots(range) {
      for s in within(slot, range) {
        let sector = touched[Int(slot)] * 8 + UInt64(s % 8)
        let mayBeZero = sectors[s].contains { version, hidden in
          !hidden && table.isZero(version, sector: sector)
        }
        if mayBeZero { continue }
        if ghosts(s, asked, { table.isZero($0, sector: sector) }).isEmpty { return sector }
      }
    }
    return nil
  }

  /// Whether the block may hold any of the versions, or may come to hold one again.
  func mayHold(_ versions: [Version], block: UInt64) -> Bool {
    guard let slot = slots[block] else { return false }
    return (0..<8).contains { s in
      let place = Int(slot) * 8 + s
      return sectors[place].contains { version, _ in versions.contains(version) }
        || ghosts[place]?.contains { versions.contains($0.version) } == true
    }
  }

  private func candidates(_ block: UInt64, _ sector: Int) -> Candidates {
    slots[block].map { sectors[Int($0) * 8 + sector] } ?? Candidates(0)
  }

  /// Whether the block certainly reads otherwise in the other model.
  func certainlyDiffers(_ other: DiskModel, block: UInt64, _ table: WriteTable) -> Bool {
    (0..<8).contains { s in
      let (ours, theirs) = (candidates(block, s), other.candidates(block, s))
      let sector = block * 8 + UInt64(s)
      return !ours.contains { a, _ in
        theirs.contains { b, _ in
          a == b || (table.isZero(a, sector: sector) && table.isZero(b, sector: sector))
        }
      }
    }
  }

  /// Whether the whole block may read as zeros.
  func mayBeZero(block: UInt64, _ table: WriteTable) -> Bool {
    (0..<8).allSatisfy { s in
      candidates(block, s).contains { version, _ in
        table.isZero(version, sector: block * 8 + UInt64(s))
      }
    }
  }

  // MARK: Reads

  /// What the sectors of a block may be showing.
  private struct Sight {
    var shown = InlineArray<8, Version>(repeating: 0)
    /// Sectors (a bit each) that show what has left since the read was submitted.
    var late: UInt8 = 0
  }

  /// Checks what a read that was submitted at `asked` returned for the sectors `range` of one
  /// block, and notes what follows from it.
  package mutating func observe(
    _ memory: UnsafeRawPointer, _ range: Range<UInt64>, asked: Tick, _ table: WriteTable,
    _ witness: inout PrefixWitness
  ) throws(Violation) {
    let block = range.lowerBound / 8
    guard let sight = try look(memory, range, asked: asked, table), let slot = slots[block] else {
      return
    }
    for sector in range where sight.late & (1 << UInt8(sector % 8)) == 0 {
      settle(
        Int(slot) * 8 + Int(sector % 8), sight.shown[Int(sector % 8)], sector, asked, table,
        &witness)
    }
  }

  /// Whether a read may have returned this for the sectors `range` of one block.
  func fits(
    _ memory: UnsafeRawPointer, _ range: Range<UInt64>, asked: Tick, _ table: WriteTable
  ) throws(Violation) {
    _ = try look(memory, range, asked: asked, table)
  }

  /// Nil for a block that was never written.
  private func look(
    _ memory: UnsafeRawPointer, _ range: Range<UInt64>, asked: Tick, _ table: WriteTable
  ) throws(Violation) -> Sight? {
    let block = range.lowerBound / 8
    guard let slot = slots[block] else {
      try observeUntouched(memory, range, table)
      return nil
    }
    let base = Int(slot) * 8 - Int(block * 8)
    var sight = Sight()
    // More than one version may be shown only for zeros.
    var ambiguous = false
    for sector in range {
      let at = memory + Int(sector - range.lowerBound) * sectorSize
      let s = base + Int(sector)
      let content = Stamp.content(at, sector: sector, disk: table.disk)
      switch content {
      case .version(let version):
        if try !isReadable(version, s, sector, asked, table) {
          sight.late |= 1 << UInt8(sector % 8)
        }
        sight.shown[Int(sector % 8)] = version
      case .zero:
        let zeros = readableZeros(s, sector, table)
        let gone = ghosts(s, asked) { table.isZero($0, sector: sector) }
        guard let one = zeros.version ?? gone.first else {
          throw Violation("\(place(sector)) reads as zeros, but may hold \(list(s, table))")
        }
        if !gone.isEmpty { sight.late |= 1 << UInt8(sector % 8) }
        if zeros.count + gone.count > 1 { ambiguous = true }
        sight.shown[Int(sector % 8)] = one
      case .foreign(let what):
        throw Violation("\(place(sector)) holds \(what), but may hold \(list(s, table))")
      }
    }
    if !ambiguous { try checkWhole(sight.shown, range, table) }
    return sight
  }

  private func observeUntouched(
    _ memory: UnsafeRawPointer, _ range: Range<UInt64>, _ table: WriteTable
  ) throws(Violation) {
    for sector in range {
      let at = memory + Int(sector - range.lowerBound) * sectorSize
      let content = Stamp.content(at, sector: sector, disk: table.disk)
      guard content == .zero else {
        throw Violation("\(place(sector)) was never written, but holds \(content)")
      }
    }
  }

  /// Whether the version may be read now; false when it only could when the read was submitted.
  private func isReadable(
    _ version: Version, _ s: Int, _ sector: UInt64, _ asked: Tick, _ table: WriteTable
  ) throws(Violation) -> Bool {
    if sectors[s].isSettled && sectors[s].leading == version
      && !table.isZero(version, sector: sector)
    {
      return true
    }
    if table.mayExist(version), sectors[s].contains(where: { $0 == version && !$1 }) {
      if table.isZero(version, sector: sector) {
        throw Violation("\(place(sector)) shows \(table.describe(version)), which writes zeros")
      }
      return true
    }
    if !ghosts(s, asked, { $0 == version }).isEmpty { return false }
    throw Violation(
      "\(place(sector)) went back to \(table.describe(version)); it may hold \(list(s, table))")
  }

  /// How many readable versions are zeros there, and the one that proves least.
  private func readableZeros(
    _ s: Int, _ sector: UInt64, _ table: WriteTable
  ) -> (version: Version?, count: Int) {
    var found: Version?
    var count = 0
    sectors[s].each { version, hidden in
      guard !hidden, table.isZero(version, sector: sector), table.mayExist(version) else { return }
      count += 1
      if found.map({ table[version].ended > table[$0].ended }) ?? true { found = version }
    }
    return (found, count)
  }

  /// No write is there in part: see the top of this file.
  private func checkWhole(
    _ shown: InlineArray<8, Version>, _ range: Range<UInt64>, _ table: WriteTable
  ) throws(Violation) {
    let first = shown[Int(range.lowerBound % 8)]
    if range.allSatisfy({ shown[Int($0 % 8)] == first }) { return }
    for a in range {
      let w = shown[Int(a % 8)]
      for b in range where shown[Int(b % 8)] != w && table[w].covers(b) {
        let x = shown[Int(b % 8)]
        if Self.isBefore(x, w, on: number, table) || table[x].covers(a) {
          let all = range.map { "\(shown[Int($0 % 8)])" }.joined(separator: " ")
          throw Violation(
            "\(place(a)) shows \(table.describe(w)), but \(place(b)), which it covers too, "
              + "shows \(table.describe(x)); the block's versions are \(all)")
        }
      }
    }
  }

  /// Draws the conclusions from having read `shown`.
  private mutating func settle(
    _ s: Int, _ shown: Version, _ sector: UInt64, _ asked: Tick, _ table: WriteTable,
    _ witness: inout PrefixWitness
  ) {
    var earliest = table[shown].submitted
    if sectors[s].isSettled {
      witness.kept(shown, submitted: earliest)
      return
    }
    let isZero = table.isZero(shown, sector: sector)
    // Copies, because `sectors` is being changed.
    let (number, mark, wasRolledBack) = (number, mark, wasRolledBack)
    // Zeros look alike: the read may have shown any of them, also one that may be lost yet.
    let mayGo = sectors[s].contains { version, hidden in
      (version == shown
        || (isZero && !hidden && table.isZero(version, sector: sector)))
        && !Self.isInherited(version, by: number, table)
        && table[version].weak && table[version].ended >= table.durableBefore
    }
    let stays = isSnapshot || !mayGo
    if openReads.count > 1, !isSnapshot {
      haunt(s, table) { $0 != shown && table[$0].ended < asked && table[$0].state != .failed }
    }
    sectors[s].update { version, hidden in
      if version == shown { return .keep }
      let record = table[version]
      // Zeros look alike: any of them may be what was read.
      if isZero && !hidden && table.isZero(version, sector: sector) {
        earliest = min(earliest, record.submitted)
        return .keep
      }
      let isOwn = number == record.disk || version == 0
      let mayBeLost =
        if let mark {
          // Under way when the mark was made; what is older may be in doubt for other reasons.
          record.disk == mark.disk && record.ended > mark.asked
        } else {
          record.state == .uncertain && record.submitted >= table.workingSince && isOwn
            && !wasRolledBack
        }
      if mayBeLost && record.wasAcknowledged && table.isBefore(shown, version) {
        witness.lost(version, ended: record.ended)
      }
      if mark != nil { return .remove }
      // A failed write may still come until the next crash.
      guard !isOwn || (record.ended < asked && record.state != .failed) else { return .keep }
      return stays ? .remove : .hide
    }
    witness.kept(shown, submitted: earliest)
  }

  private func place(_ sector: UInt64) -> String {
    let owner = number.map { "of disk #\($0)" } ?? "of the snapshot"
    return "sector \(sector) \(owner) (block \(sector / 8))"
  }

  private func list(_ s: Int, _ table: WriteTable) -> String {
    var lines: [String] = []
    sectors[s].each { version, hidden in
      if !hidden { lines.append(table.describe(version)) }
    }
    return lines.joined(separator: ", or ")
  }
}
