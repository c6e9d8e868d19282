import Core

/// A disk as the clients know it: what it is called, what it looks like, and what it may hold.
final class ModelDisk {
  /// A control request that may or may not have happened yet.
  enum Change {
    case create
    case delete
    case rename(to: String)
    /// `cut` is the write that stands for what shrinking takes away.
    case resize(to: UInt64, cut: Stamp.Version?)
    case set(DiskAttributeChange)
  }

  enum Existence { case creating, present, gone }

  let number: UInt16
  var name: String
  /// In bytes.
  var size: UInt64
  var durability = Durability.always
  var readOnly = false
  var comment = ""
  /// Known once a reply has carried it; never changes, never used again.
  var id: ObjectID?
  var existence = Existence.creating
  var pending: Change?
  /// A change failed with an I/O error: what became of it shows after the next crash.
  var isInDoubt = false
  var model: DiskModel
  /// Where most of the work happens: sector ranges.
  var hotRanges: [Range<UInt64>] = []
  /// When `readOnly` was changed last; open handles may be older.
  var readOnlyChanged = false
  /// When a rename was confirmed last.
  var renamedAt: WriteTable.Tick = 0

  private let poolIsWeak: Bool

  init(number: UInt16, name: String, size: UInt64, pool: Durability) {
    self.number = number
    self.name = name
    self.size = size
    poolIsWeak = pool == .flush
    model = DiskModel(number: number)
  }

  var sectors: UInt64 { size / UInt64(sectorSize) }

  /// Sectors that exist whatever becomes of a pending resize.
  var certainSectors: UInt64 {
    if case .resize(let new, _) = pending { return min(size, new) / UInt64(sectorSize) }
    return sectors
  }

  /// Whether writes may be weak: durability is, or may just be becoming, `flush`, the disk's own or
  /// the whole pool's.
  var isWeak: Bool {
    if poolIsWeak { return true }
    if case .set(let change) = pending, change.durability == .flush { return true }
    return durability == .flush
  }

  var isBeingResized: Bool {
    if case .resize = pending { return true }
    return false
  }

  var isBeingDeleted: Bool {
    if case .delete = pending { return true }
    return existence == .gone
  }

  /// Applies a change that has certainly happened.
  func commit(_ change: Change) {
    pending = nil
    isInDoubt = false
    switch change {
    case .create: existence = .present
    case .delete: existence = .gone
    case .rename(let new): name = new
    case .resize(let new, _): size = new
    case .set(let change):
      durability = change.durability ?? durability
      comment = change.comment ?? comment
      if let new = change.readOnly, new != readOnly {
        readOnly = new
        readOnlyChanged = true
      }
    }
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
    if let id, info.id != id {
      throw Violation("\(what) changed its id from \(id.raw) to \(info.id.raw)")
    }
    id = info.id
  }
}

/// All disks of a run, by the names that they have or may have.
struct CatalogModel {
  private(set) var disks: [ModelDisk] = []
  private var seenIDs: [ObjectID: UInt16] = [:]

  mutating func add(name: String, size: UInt64, pool: Durability) -> ModelDisk {
    let disk = ModelDisk(number: UInt16(disks.count + 1), name: name, size: size, pool: pool)
    disk.pending = .create
    disks.append(disk)
    return disk
  }

  func disk(number: UInt16) -> ModelDisk { disks[Int(number) - 1] }

  /// Disks that exist and are not about to change their existence.
  var present: [ModelDisk] { disks.filter { $0.existence == .present && !$0.isBeingDeleted } }

  /// Present disks without a pending change.
  var calm: [ModelDisk] { disks.filter { $0.existence == .present && $0.pending == nil } }

  /// Whether some disk has the name, or may come to have it.
  func isTaken(_ name: String) -> Bool {
    disks.contains { disk in
      guard disk.existence != .gone else { return false }
      if disk.name == name { return true }
      if case .rename(let new) = disk.pending { return new == name }
      return false
    }
  }

  /// Remembers an id, and that it was never another disk's.
  mutating func note(_ id: ObjectID, of disk: ModelDisk) throws(Violation) {
    if let other = seenIDs[id], other != disk.number {
      throw Violation("disk “\(disk.name)” has id \(id.raw), which another disk had before")
    }
    seenIDs[id] = disk.number
  }

  /// Makes the model agree with a complete list after a crash: whatever was pending has happened
  /// or not, everything else must be there as it was.
  mutating func resolve(
    _ list: [DiskInfo], _ table: inout WriteTable
  ) throws(Violation) {
    var byName: [String: DiskInfo] = [:]
    for info in list {
      if byName.updateValue(info, forKey: info.name) != nil {
        throw Violation("“\(info.name)” is listed twice")
      }
    }
    for disk in disks where disk.existence != .gone {
      guard let info = try settle(disk, &byName, &table) else { continue }
      try disk.check(info)
      try note(info.id, of: disk)
    }
    if let stranger = list.first(where: { byName[$0.name] != nil }) {
      throw Violation("disk “\(stranger.name)” is listed, but was deleted or never created")
    }
  }

  /// Settles one disk's pending change and takes its entry out of `byName`; nil when it is gone.
  private func settle(
    _ disk: ModelDisk, _ byName: inout [String: DiskInfo], _ table: inout WriteTable
  ) throws(Violation) -> DiskInfo? {
    let old = byName.removeValue(forKey: disk.name)
    let change = disk.pending
    disk.pending = nil
    disk.isInDoubt = false
    switch change {
    case .create, .delete:
      disk.existence = old == nil ? .gone : .present
      return old
    case .rename(let new):
      if let moved = byName.removeValue(forKey: new) {
        if old != nil { throw Violation("“\(disk.name)” was renamed, but has both names") }
        disk.commit(.rename(to: new))
        return moved
      }
    case .resize(let new, let cut):
      let happened = old?.size == new
      if happened { disk.commit(.resize(to: new, cut: cut)) }
      if let cut {
        if happened {
          table.end(cut, .acknowledged)
          disk.model.acknowledge(cut, table)
        } else {
          table.end(cut, .refused)
          disk.model.refuse(cut, table)
        }
      }
    case .set(let change):
      guard let old else { break }
      var seen = DiskAttributeChange()
      if change.durability == old.durability { seen.durability = old.durability }
      if change.readOnly == old.readOnly { seen.readOnly = old.readOnly }
      if change.comment == old.comment { seen.comment = old.comment }
      disk.commit(.set(seen))
    case nil: break
    }
    guard let old else { throw Violation("disk “\(disk.name)” is gone") }
    return old
  }
}
