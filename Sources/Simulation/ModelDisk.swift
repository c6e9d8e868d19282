import Core

/// A disk or snapshot as the clients know it: what it is called, what it looks like, and what it may
/// hold.
final class ModelDisk {
  /// A control request that may or may not have happened yet.
  enum Change {
    case create
    case delete
    /// Of a snapshot: to the part of its name behind the `@`.
    case rename(to: String)
    /// `cut` is the write that stands for what shrinking takes away.
    case resize(to: UInt64, cut: Stamp.Version?)
    case set(DiskAttributeChange)
    case rollback(to: ModelDisk)
  }

  enum Existence { case creating, present, gone }

  /// Another content that the disk may have as a whole, because of a rollback.
  struct Alternative {
    enum Kind {
      /// A rollback is under way or in doubt: what the disk is if it has happened.
      case pending
      /// A rollback was confirmed at the tick: what the disk was before, for older reads.
      case former(WriteTable.Tick)
      /// A crash came in between: it is this, or the other.
      case undecided
    }
    var model: DiskModel
    var kind: Kind
    /// When a read had shown what only this content has.
    var seenAt: WriteTable.Tick?
  }

  /// In stamps; 0 for a snapshot.
  let number: UInt16
  /// In the order in which they were asked for, disks and snapshots together.
  let serial: Int
  /// For a snapshot: the disk that it is of.
  let disk: ModelDisk?
  /// The snapshot that a clone starts from.
  let origin: ModelDisk?
  /// What it was made with, for snapshots and clones.
  let batch: ModelBatch?

  /// For a snapshot: the part behind the `@`.
  var name: String
  /// In bytes.
  var size: UInt64
  var durability = Durability.always
  var readOnly = false
  var comment = ""
  /// A snapshot that can't be deleted.
  var isHeld = false
  /// Known once a reply has carried it; never changes, never used again.
  var id: ObjectID?
  var existence = Existence.creating
  var pending: Change?
  /// A change failed with an I/O error: what became of it shows after the next crash.
  var isInDoubt = false
  var model: DiskModel
  var alternative: Alternative?
  /// Snapshots of it that are being made.
  var forks: [ModelDisk] = []
  /// What was written before may be shared with a snapshot.
  var branchedAt: WriteTable.Tick = 0
  var rolledBackAt: WriteTable.Tick = 0
  /// Where most of the work happens: sector ranges.
  var hotRanges: [Range<UInt64>] = []
  /// When `readOnly` was changed last; open handles may be older.
  var readOnlyChanged = false
  /// When a rename was confirmed last.
  var renamedAt: WriteTable.Tick = 0

  private let poolIsWeak: Bool

  /// A disk; with an origin, a clone of it.
  init(
    serial: Int, number: UInt16, name: String, size: UInt64, pool: Durability,
    origin: ModelDisk? = nil, batch: ModelBatch? = nil
  ) {
    self.serial = serial
    self.number = number
    self.name = name
    self.size = size
    self.origin = origin
    self.batch = batch
    disk = nil
    poolIsWeak = pool == .flush
    model =
      origin.map { $0.model.branched(as: number, at: batch!.asked) } ?? DiskModel(number: number)
    hotRanges = origin?.hotRanges ?? []
    pending = .create
  }

  /// A snapshot of a disk that is being made.
  init(serial: Int, of disk: ModelDisk, name: String, batch: ModelBatch) {
    self.serial = serial
    self.disk = disk
    self.name = name
    self.batch = batch
    number = 0
    origin = nil
    size = disk.size
    readOnly = true
    poolIsWeak = false
    model = disk.model.marked(at: batch.asked)
    hotRanges = disk.hotRanges
    pending = .create
    disk.forks.append(self)
  }

  var isSnapshot: Bool { disk != nil }
  /// As it is opened.
  var fullName: String { disk.map { "\($0.name)@\(name)" } ?? name }
  var snapshotName: SnapshotName { SnapshotName(disk: disk!.name, snapshot: name) }
  var title: String {
    isSnapshot ? "snapshot “\(fullName)”" : "disk #\(number) “\(name)”"
  }

  var sectors: UInt64 { size / UInt64(sectorSize) }

  /// Sectors that exist whatever becomes of a pending resize.
  var certainSectors: UInt64 { min(size, pendingSize) / UInt64(sectorSize) }

  /// What the size may be becoming, or else is.
  var pendingSize: UInt64 {
    switch pending {
    case .resize(let new, _): new
    case .rollback(let snapshot): snapshot.size
    default: size
    }
  }

  /// Whether writes may be weak: durability is, or may just be becoming, `flush`, the disk's own or
  /// the whole pool's.
  var isWeak: Bool {
    if poolIsWeak { return true }
    if case .set(let change) = pending, change.durability == .flush { return true }
    return durability == .flush
  }

  var isBeingResized: Bool { pendingSize != size }

  var isBeingDeleted: Bool {
    if case .delete = pending { return true }
    return existence == .gone || disk?.isBeingDeleted == true
  }

  /// Whether its name, or a part of it, changes or has changed after `tick`.
  func isRenamed(since tick: WriteTable.Tick) -> Bool {
    if case .rename = pending { return true }
    return renamedAt > tick || disk?.isRenamed(since: tick) == true
  }

  /// Nothing about it is open.
  var isCalm: Bool {
    existence == .present && pending == nil && alternative == nil && disk?.isCalm != false
  }

  /// Applies a change that has certainly happened.
  func commit(_ change: Change) {
    pending = nil
    isInDoubt = false
    switch change {
    case .create: existence = .present
    case .delete: vanish()
    case .rename(let new): name = new
    case .resize(let new, _): size = new
    case .set(let change):
      durability = change.durability ?? durability
      comment = change.comment ?? comment
      isHeld = change.held ?? isHeld
      if let new = change.readOnly, new != readOnly {
        readOnly = new
        readOnlyChanged = true
      }
    case .rollback(let snapshot): size = snapshot.size
    }
  }

  /// It does not exist, or not any more.
  func vanish() {
    existence = .gone
    pending = nil
    isInDoubt = false
    alternative = nil
    forks = []
    if let disk { disk.forks.removeAll { $0 === self } }
    model = DiskModel(number: number)
  }

  /// Checks what the engine says of this disk, when nothing is pending.
  func check(_ info: DiskInfo) throws(Violation) {
    let what = "disk “\(name)”"
    if info.name != name { throw Violation("\(what) is shown as “\(info.name)”") }
    if info.size != size {
      throw Violation("\(what) is shown with \(info.size) bytes, not \(size)")
    }
    if info.durability != durability { throw Violation("\(what) has the wrong durability") }
    if info.readOnly != readOnly { throw Violation("\(what) has the wrong read-only attribute") }
    if info.comment != comment { throw Violation("\(what) has the wrong comment") }
    try check(info.id)
  }

  /// The same of a snapshot.
  func check(_ info: SnapshotInfo) throws(Violation) {
    let what = "snapshot “\(fullName)”"
    if info.disk != disk!.name || info.name != name {
      throw Violation("\(what) is shown as “\(info.disk)@\(info.name)”")
    }
    if info.size != size {
      throw Violation("\(what) is shown with \(info.size) bytes, not \(size)")
    }
    if info.isHeld != isHeld { throw Violation("\(what) is shown with the wrong hold") }
    if let group = batch!.group, group != info.group {
      throw Violation("\(what) has another group than what was made with it")
    }
    batch!.group = info.group
    try check(info.id)
  }

  private func check(_ id: ObjectID) throws(Violation) {
    if let old = self.id, old != id {
      throw Violation("\(title) changed its id from \(old.raw) to \(id.raw)")
    }
    self.id = id
  }
}

/// What one request makes: all of it or nothing.
final class ModelBatch {
  let asked: WriteTable.Tick
  /// When it was confirmed.
  var made: WriteTable.Tick = .max
  /// The engine's id of a group of snapshots.
  var group: ObjectID?
  /// What the snapshots of a group have shown: they are of one instant, so a write that is missing in
  /// one of them ended after whatever another has was submitted.
  var witness = PrefixWitness()

  init(asked: WriteTable.Tick) { self.asked = asked }
}

// MARK: Content

extension ModelDisk {
  func begin(_ version: Stamp.Version, _ table: WriteTable) {
    model.begin(version, table)
    for fork in forks { fork.model.begin(version, table) }
    switch alternative?.kind {
    case .pending, .undecided: alternative!.model.begin(version, table)
    case .former, nil: break
    }
  }

  func acknowledge(_ version: Stamp.Version, _ table: WriteTable) {
    model.acknowledge(version, table)
    for fork in forks { fork.model.pass(version) }
    switch alternative?.kind {
    case .pending: alternative!.model.pass(version)
    case .undecided: alternative!.model.acknowledge(version, table)
    case .former, nil: break
    }
  }

  func refuse(_ version: Stamp.Version, _ table: WriteTable) {
    model.refuse(version, table)
    for fork in forks { fork.model.refuse(version, table) }
    alternative?.model.refuse(version, table)
  }

  func readEnded(_ asked: WriteTable.Tick) {
    model.readEnded(asked)
    if case .former(let until) = alternative?.kind, !model.hasReads(before: until) {
      alternative = nil
    }
  }

  func crash(powerCut: Bool, _ table: WriteTable) {
    forks = []
    model.crash(powerCut: powerCut, table)
    alternative?.model.crash(powerCut: powerCut, table)
    switch alternative?.kind {
    case .former: alternative = nil
    case .pending: alternative!.kind = .undecided
    case .undecided, nil: break
    }
  }

  func recovered() {
    model.recovered()
    alternative?.model.recovered()
  }

  // MARK: Rollback

  /// A rollback is sent while the writes of `open` are under way: each of them ends before it, and
  /// is gone, or waits for it.
  func beginRollback(to snapshot: ModelDisk, open: [Stamp.Version], _ table: WriteTable) {
    var new = snapshot.model.branched(as: number, at: table.now)
    for version in open { new.begin(version, table) }
    alternative = Alternative(model: new, kind: .pending)
  }

  func endRollback(at tick: WriteTable.Tick) {
    guard var new = alternative?.model else { return }
    let old = model
    new.takeReads(of: old)
    new.wasRolledBack = true
    new.firmFrom = tick
    model = new
    (branchedAt, rolledBackAt) = (tick, tick)
    alternative =
      old.hasReads(before: tick) ? Alternative(model: old, kind: .former(tick)) : nil
  }

  /// After a crash: it has happened, or not.
  func decideRollback(_ happened: Bool, at tick: WriteTable.Tick) {
    guard let other = alternative else { return }
    alternative = nil
    guard happened else { return }
    model = other.model
    model.wasRolledBack = true
    model.firmFrom = tick
    (branchedAt, rolledBackAt) = (tick, tick)
  }

  // MARK: Reads

  /// Checks what a read that was submitted at `asked` returned for `range`.
  func observe(
    _ memory: UnsafeRawPointer, _ range: Range<UInt64>, asked: WriteTable.Tick,
    _ table: WriteTable, _ witness: inout PrefixWitness
  ) throws(Violation) {
    if alternative != nil {
      return try observeEither(memory, range, asked: asked, table, &witness)
    }
    guard let batch, isSnapshot else {
      return try Self.observe(&model, memory, range, asked: asked, table, &witness)
    }
    try Self.observe(&model, memory, range, asked: asked, table, &batch.witness)
    if let (lost, kept) = batch.witness.contradiction {
      throw Violation(
        "the snapshots of a group are of different instants: \(table.describe(lost)) is missing, "
          + "but \(table.describe(kept)) is there")
    }
  }

  /// The disk as a whole holds one of two contents, never a mixture.
  private func observeEither(
    _ memory: UnsafeRawPointer, _ range: Range<UInt64>, asked: WriteTable.Tick,
    _ table: WriteTable, _ witness: inout PrefixWitness
  ) throws(Violation) {
    let other = alternative!
    var problem: Violation?
    do throws(Violation) {
      try Self.check(model, memory, range, asked: asked, table)
    } catch {
      problem = error
    }
    var fitsOther = true
    do throws(Violation) {
      try Self.check(other.model, memory, range, asked: asked, table)
    } catch {
      fitsOther = false
      if let problem {
        throw Violation("\(problem); and as to a rollback: \(error)")
      }
    }
    var unused = PrefixWitness()
    let fits = problem == nil
    switch other.kind {
    case .pending:
      if fits, !fitsOther {
        if let seen = other.seenAt, asked > seen {
          throw Violation("what was there before a rollback has come back")
        }
        return try Self.observe(&model, memory, range, asked: asked, table, &witness)
      }
      guard !fits else { return }
      try Self.observe(&alternative!.model, memory, range, asked: asked, table, &unused)
      if other.seenAt == nil { alternative!.seenAt = table.now }
    case .former(let until):
      if !fits, asked > until { throw problem! }
      guard fits, !fitsOther else { return }
      try Self.observe(&model, memory, range, asked: asked, table, &witness)
    case .undecided:
      if fits { try Self.observe(&model, memory, range, asked: asked, table, &unused) }
      if fitsOther {
        try Self.observe(&alternative!.model, memory, range, asked: asked, table, &unused)
      }
      if fits != fitsOther { decideRollback(fitsOther, at: table.now) }
    }
  }

  private static func observe(
    _ model: inout DiskModel, _ memory: UnsafeRawPointer, _ range: Range<UInt64>,
    asked: WriteTable.Tick, _ table: WriteTable, _ witness: inout PrefixWitness
  ) throws(Violation) {
    for piece in blocks(range) {
      let at = memory + Int(piece.lowerBound - range.lowerBound) * sectorSize
      try model.observe(at, piece, asked: asked, table, &witness)
    }
  }

  private static func check(
    _ model: DiskModel, _ memory: UnsafeRawPointer, _ range: Range<UInt64>,
    asked: WriteTable.Tick, _ table: WriteTable
  ) throws(Violation) {
    for piece in blocks(range) {
      let at = memory + Int(piece.lowerBound - range.lowerBound) * sectorSize
      try model.fits(at, piece, asked: asked, table)
    }
  }

  /// A range of sectors cut at blocks.
  private static func blocks(_ range: Range<UInt64>) -> some Sequence<Range<UInt64>> {
    (range.lowerBound / 8..<(range.upperBound + 7) / 8).lazy.map {
      max($0 * 8, range.lowerBound)..<min($0 * 8 + 8, range.upperBound)
    }
  }

  // MARK: Questions

  /// Whether every block of the range certainly has space that the disk alone uses.
  func certainlyOwns(_ range: Range<UInt64>, _ table: WriteTable) -> Bool {
    forks.isEmpty && alternative == nil
      && model.certainlyHoldsData(range, since: branchedAt, table)
  }

  func sectorWithData(
    _ range: Range<UInt64>, asked: WriteTable.Tick, _ table: WriteTable
  ) -> UInt64? {
    alternative == nil ? model.sectorWithData(range, asked: asked, table) : nil
  }

  /// Whether the block may hold any of the versions.
  func mayHold(_ versions: [Stamp.Version], block: UInt64) -> Bool {
    model.mayHold(versions, block: block)
      || alternative?.model.mayHold(versions, block: block) == true
  }
}
