// The catalog: names and objects, as of the last record that counts.
//
// Two layers. The trees hold what the current checkpoint cycle has applied; above them lies an
// overlay of what the log holds beyond that. A structural record (create, remove, rename, ...)
// changes the overlay at once when its frame counts, and the trees when the cycle whose cut
// includes it applies it; then its part of the overlay is dropped. So the trees are always an
// exact prefix of the log (R17), and lookups always see the newest state.
//
// Only the overlay is in memory; its size is bounded by asking for a checkpoint at
// `overlayLimit` records.

/// A structural record waiting for its checkpoint.
package struct StructuralChange {
  package var sequence: FrameSequence
  package var record: LogRecord
}

/// Where a name leads.
package struct NameTarget: Equatable, Sendable {
  package var object: ObjectID
  package var kind: ObjectKind
}

package final class Catalog {
  package static let overlayLimit = 32_768

  struct NameKey: Hashable {
    var parent: ObjectID
    var name: [UInt8]
  }

  private struct NameOverlay {
    var target: NameTarget?
    var sequence: FrameSequence
  }

  private struct ObjectOverlay {
    var created: ObjectRecord?
    var size: UInt64?
    var change = DiskAttributeChange()
    var home: (parent: ObjectID, name: [UInt8])?
    var isDeleted = false
    /// Snapshots of a disk, or clones of a snapshot, more than the trees count; by the number of the
    /// record, for those that the trees do not have.
    var dependents: [(number: UInt64, change: Int)] = []
    var sequence: FrameSequence
  }

  package let objects: Tree
  package let names: Tree
  private var nameOverlay: [NameKey: NameOverlay] = [:]
  private var objectOverlay: [ObjectID: ObjectOverlay] = [:]
  private var batches: [(batch: CloneBatch, sequence: FrameSequence)] = []
  private var pending = RingQueue<StructuralChange>(capacity: 64)
  /// Records taken and applied since the catalog was opened.
  private var taken: UInt64 = 0
  private var applied: UInt64 = 0
  /// How far the first pending record has been applied, where that takes more than one change.
  var progress = 0
  /// As of the newest record.
  package private(set) var diskCount: UInt64
  package private(set) var snapshotCount: UInt64
  package private(set) var nextObject: UInt64
  /// As of the trees.
  package internal(set) var appliedDiskCount: UInt64
  package internal(set) var appliedSnapshotCount: UInt64
  package internal(set) var appliedNextObject: UInt64
  /// Objects in the trees' list of those being freed.
  package internal(set) var deletedObjects: UInt64
  /// Data blocks that only these refer to, as of their records.
  package private(set) var freeingBlocks: UInt64
  /// The same of deleted snapshots that wait for their children.
  package private(set) var heldBlocks: UInt64

  /// For the simulator's own test.
  package var fault: PlantedFault?
  package var paths = RarePathCounters()

  package init(objects: Tree, names: Tree, root: RootRecord) {
    self.objects = objects
    self.names = names
    diskCount = root.disks
    appliedDiskCount = root.disks
    snapshotCount = root.snapshots
    appliedSnapshotCount = root.snapshots
    heldBlocks = root.heldBlocks
    nextObject = max(root.nextObject, TreeOwner.firstFree)
    appliedNextObject = nextObject
    deletedObjects = root.deletedObjects
    freeingBlocks = root.freeingBlocks
  }

  package var pendingCount: Int { pending.count }

  /// Whether the trees do not have the structural records of this frame yet.
  package func isPending(_ sequence: FrameSequence) -> Bool {
    pending.first().map { $0.sequence <= sequence } ?? false
  }

  /// A new object's id, or the first of `count`.
  package func takeObjectID(count: Int = 1) -> ObjectID {
    defer { nextObject += UInt64(count) }
    return ObjectID(nextObject)
  }

  // MARK: Lookups

  /// What `name` in directory `parent` leads to.
  package func lookup(_ name: [UInt8], in parent: ObjectID) throws(SpaceWait) -> NameTarget? {
    if let overlay = nameOverlay[NameKey(parent: parent, name: name)] { return overlay.target }
    for (batch, _) in batches where batch.parent == parent {
      if let i = batch.index(of: name) {
        return NameTarget(object: batch.object(i), kind: .disk)
      }
    }
    return try entries(parent, NameEntry.hash(name)).first { $0.name == name }
      .map { NameTarget(object: $0.object, kind: $0.kind) }
  }

  private func entries(_ parent: ObjectID, _ hash: UInt64) throws(SpaceWait) -> [NameEntry] {
    guard let value = try names.lookup(TreeKey(hi: parent.raw, lo: hash)) else { return [] }
    guard let entries = NameEntry.decode(value.bytes) else { throw .damaged(names.root) }
    return entries
  }

  /// Follows a path from the root directory. `missing` is the number of segments that do not
  /// exist; `parent` the directory of the first missing, or of the last segment.
  package struct Resolution {
    package var target: NameTarget?
    package var parent: ObjectID
    package var missing: Int
  }

  package func resolve(_ path: [[UInt8]]) throws(SpaceWait) -> Resolution {
    var parent = ObjectID.root
    for (i, segment) in path.enumerated() {
      guard let target = try lookup(segment, in: parent) else {
        return Resolution(target: nil, parent: parent, missing: path.count - i)
      }
      if i == path.count - 1 { return Resolution(target: target, parent: parent, missing: 0) }
      guard target.kind == .directory else {
        return Resolution(target: nil, parent: parent, missing: path.count - i)
      }
      parent = target.object
    }
    return Resolution(target: nil, parent: parent, missing: 0)
  }

  /// The object's record as of the newest structural record; nil when there is none.
  package func record(of object: ObjectID) throws(SpaceWait) -> ObjectRecord? {
    let overlay = objectOverlay[object]
    if overlay?.isDeleted == true { return nil }
    var record: ObjectRecord
    if let stored = try treeRecord(of: object) {
      // Deleted, and not all of its space is free yet.
      if stored.links == 0 { return nil }
      record = stored
    } else if let created = created(object) {
      record = created
    } else {
      return nil
    }
    // A deleted disk's snapshots go with it, one by one.
    if record.kind == .snapshot, try self.record(of: record.parent) == nil { return nil }
    guard let overlay else { return record }
    for (number, change) in overlay.dependents where number > applied {
      record.dependents = UInt32(clamping: Int64(record.dependents) + Int64(change))
    }
    if let size = overlay.size { record.size = size }
    Self.apply(overlay.change, to: &record)
    if let home = overlay.home { (record.parent, record.name) = (home.parent, home.name) }
    return record
  }

  /// What an object was made as that the trees do not have yet.
  package func created(_ object: ObjectID) -> ObjectRecord? {
    if let created = objectOverlay[object]?.created { return created }
    for (batch, _) in batches {
      if let i = batch.index(of: object) { return Self.created(i, in: batch) }
    }
    return nil
  }

  /// A clone as it is made.
  static func created(_ i: Int, in batch: CloneBatch) -> ObjectRecord {
    var record = ObjectRecord()
    record.mode = batch.mode
    record.size = batch.size
    record.setTimes(batch.time)
    record.origin = batch.snapshot
    record.parentSnapshot = batch.snapshot
    record.inheritsMap = true
    record.parent = batch.parent
    record.name = batch.name(i)
    return record
  }

  /// The object's record as the trees have it.
  package func treeRecord(of object: ObjectID) throws(SpaceWait) -> ObjectRecord? {
    guard let value = try objects.lookup(TreeKey(hi: object.raw, lo: 0)) else { return nil }
    guard let record = ObjectRecord(decoding: value.bytes) else { throw .damaged(objects.root) }
    return record
  }

  /// The first object from `object` on, as the trees have it.
  package func nextObject(
    from object: ObjectID
  ) throws(SpaceWait) -> (object: ObjectID, record: ObjectRecord)? {
    guard let item = try objects.ceiling(TreeKey(hi: object.raw, lo: 0)) else { return nil }
    guard let record = ObjectRecord(decoding: item.value.bytes) else {
      throw .damaged(objects.root)
    }
    return (ObjectID(item.key.hi), record)
  }

  /// The full name of an object by its first name, `/` between segments; DISK@SNAP for a snapshot.
  package func path(of record: ObjectRecord) throws(SpaceWait) -> String {
    if record.kind == .snapshot {
      guard let disk = try self.record(of: record.parent) else {
        return "?@" + NameRules.printable(record.name)
      }
      return try path(of: disk) + "@" + NameRules.printable(record.name)
    }
    var segments = [record.name]
    var parent = record.parent
    while parent != .root, segments.count < 64 {
      guard let directory = try self.record(of: parent) else { break }
      segments.append(directory.name)
      parent = directory.parent
    }
    return segments.reversed().map(NameRules.printable).joined(separator: "/")
  }

  /// The names behind `cursor` (a names-tree key), a page at a time, of one directory (or disk, whose
  /// names are its snapshots) or of all: what the tree has and the overlay does not contradict.
  /// `overlayTargets` has the others.
  package func page(
    after cursor: TreeKey?, of directory: ObjectID? = nil, limit: Int
  ) throws(SpaceWait) -> (targets: [NameTarget], next: TreeKey?) {
    var targets: [NameTarget] = []
    var key = cursor ?? TreeKey(hi: directory?.raw ?? 1, lo: 0)
    while targets.count < limit {
      guard let item = try names.ceiling(key) else { return (targets, nil) }
      if let directory, item.key.hi != directory.raw { return (targets, nil) }
      guard let entries = NameEntry.decode(item.value.bytes) else { throw .damaged(names.root) }
      // Without names it is the first of a snapshot's children.
      key = entries.isEmpty ? TreeKey(hi: item.key.hi + 1, lo: 0) : item.key.successor
      for entry in entries
      where !isOverlaid(NameKey(parent: ObjectID(item.key.hi), name: entry.name)) {
        targets.append(NameTarget(object: entry.object, kind: entry.kind))
      }
    }
    return (targets, key)
  }

  private func isOverlaid(_ key: NameKey) -> Bool {
    nameOverlay[key] != nil
      || batches.contains { $0.batch.parent == key.parent && $0.batch.index(of: key.name) != nil }
  }

  /// Names that only the overlay knows, of one directory (or disk) or of all, in the order of object
  /// ids.
  package func overlayTargets(of directory: ObjectID? = nil) -> [NameTarget] {
    var targets: [NameTarget] = []
    for (key, overlay) in nameOverlay where directory == nil || key.parent == directory {
      if let target = overlay.target { targets.append(target) }
    }
    for (batch, _) in batches where directory == nil || batch.parent == directory {
      for i in 0..<batch.count
      where nameOverlay[NameKey(parent: batch.parent, name: batch.name(i))] == nil {
        targets.append(NameTarget(object: batch.object(i), kind: .disk))
      }
    }
    return targets.sorted { $0.object < $1.object }
  }

  // MARK: Changes as frames count

  /// Takes a structural record whose frame counts into the overlay.
  package func take(_ record: LogRecord, sequence: FrameSequence) {
    pending.push(StructuralChange(sequence: sequence, record: record))
    taken += 1
    switch record {
    case .create(let object, let parent, let kind, _, _, _, let name):
      objectOverlay[object] = ObjectOverlay(created: Self.created(by: record), sequence: sequence)
      setName(parent, name, NameTarget(object: object, kind: kind), sequence)
      nextObject = max(nextObject, object.raw + 1)
      if kind == .disk { diskCount += 1 }
    case .remove(let object, let kind, let parent, let snapshots, let origin, let name):
      change(object, sequence) { $0.isDeleted = true }
      setName(parent, name, nil, sequence)
      if kind == .snapshot {
        snapshotCount -= min(snapshotCount, 1)
        addDependents(of: parent, -1, sequence)
      } else {
        diskCount -= min(diskCount, 1)
        snapshotCount -= min(snapshotCount, UInt64(snapshots))
        if origin.raw != 0 { addDependents(of: origin, -1, sequence) }
      }
    case .rename(let object, let kind, let parent, let name, let newParent, let newName):
      setName(parent, name, nil, sequence)
      setName(newParent, newName, NameTarget(object: object, kind: kind), sequence)
      change(object, sequence) { $0.home = (newParent, newName) }
    case .resize(let object, let size):
      change(object, sequence) { $0.size = size }
    case .change(let object, let what):
      change(object, sequence) { overlay in
        if let durability = what.durability { overlay.change.durability = durability }
        if let readOnly = what.readOnly { overlay.change.readOnly = readOnly }
        if let comment = what.comment { overlay.change.comment = comment }
        if let held = what.held { overlay.change.held = held }
      }
    case .snapshot(let object, let disk, _, _, _, let name):
      objectOverlay[object] = ObjectOverlay(created: Self.created(by: record), sequence: sequence)
      setName(disk, name, NameTarget(object: object, kind: .snapshot), sequence)
      addDependents(of: disk, 1, sequence)
      nextObject = max(nextObject, object.raw + 1)
      snapshotCount += 1
    case .clone(let batch):
      takeClones(batch, sequence)
      addDependents(of: batch.snapshot, batch.count, sequence)
      nextObject = max(nextObject, batch.first.raw + UInt64(batch.count))
      diskCount += UInt64(batch.count)
    case .rollback(let disk, _, let former, let size, _):
      change(disk, sequence) { $0.size = size }
      nextObject = max(nextObject, former.raw + 1)
    case .data, .zero, .extent: invariantBroken("a data record in the catalog")
    }
  }

  /// What a create or snapshot record makes.
  private static func created(by record: LogRecord) -> ObjectRecord {
    var created = ObjectRecord()
    switch record {
    case .create(_, let parent, let kind, let mode, let size, let time, let name):
      created.kind = kind
      created.mode = mode
      created.size = size
      created.setTimes(time)
      created.parent = parent
      created.name = name
    case .snapshot(_, let disk, let group, let time, let size, let name):
      created.kind = .snapshot
      created.size = size
      created.setTimes(time)
      created.parent = disk
      created.group = group
      created.name = name
    default: invariantBroken("a record that makes nothing")
    }
    return created
  }

  /// Many clones are one entry; few are as other objects, so that look-ups meet few entries.
  private func takeClones(_ batch: CloneBatch, _ sequence: FrameSequence) {
    guard batch.count > Self.smallBatch else {
      for i in 0..<batch.count {
        objectOverlay[batch.object(i)] = ObjectOverlay(
          created: Self.created(i, in: batch), sequence: sequence)
        setName(
          batch.parent, batch.name(i), NameTarget(object: batch.object(i), kind: .disk), sequence)
      }
      return
    }
    // A name that was another's until lately has an entry, which would hide the clone.
    for key in nameOverlay.keys where key.parent == batch.parent {
      guard let i = batch.index(of: key.name) else { continue }
      setName(key.parent, key.name, NameTarget(object: batch.object(i), kind: .disk), sequence)
    }
    batches.append((batch, sequence))
  }
  private static let smallBatch = 16

  private func addDependents(of object: ObjectID, _ n: Int, _ sequence: FrameSequence) {
    change(object, sequence) { $0.dependents.append((taken, n)) }
  }

  private func setName(
    _ parent: ObjectID, _ name: [UInt8], _ target: NameTarget?, _ sequence: FrameSequence
  ) {
    nameOverlay[NameKey(parent: parent, name: name)] =
      NameOverlay(target: target, sequence: sequence)
  }

  private func change(
    _ object: ObjectID, _ sequence: FrameSequence, _ body: (inout ObjectOverlay) -> Void
  ) {
    var overlay = objectOverlay[object] ?? ObjectOverlay(sequence: sequence)
    body(&overlay)
    overlay.sequence = sequence
    objectOverlay[object] = overlay
  }

  static func apply(_ change: DiskAttributeChange, to record: inout ObjectRecord) {
    if let durability = change.durability { record.durability = durability }
    if let readOnly = change.readOnly { record.readOnly = readOnly }
    if let comment = change.comment { record.comment = Array(comment.utf8) }
    if let held = change.held { record.isHeld = held }
  }

  // MARK: Changes as the cycle applies them

  /// Goes on with the oldest pending record, if it is within the cut, and tells it to `applied` once
  /// the trees have it. After a wait it is called again. Returns false when there is none left.
  package func applyNext(
    upTo cut: FrameSequence, applied: (LogRecord) -> Void
  ) throws(SpaceWait) -> Bool {
    guard let next = pending.first(), next.sequence <= cut else { return false }
    guard try apply(next.record) else { return true }
    progress = 0
    self.applied += 1
    _ = pending.pop()
    applied(next.record)
    return true
  }

  /// Makes some of a record's changes; true when all are made. A change that waits has changed
  /// nothing, and those before it are repeatable or counted in `progress`.
  private func apply(_ record: LogRecord) throws(SpaceWait) -> Bool {
    switch record {
    case .create(let object, let parent, let kind, _, _, _, let name):
      try put(Self.created(by: record), of: object)
      try addName(parent, NameEntry(object: object, kind: kind, name: name))
      appliedNextObject = max(appliedNextObject, object.raw + 1)
      if kind == .disk { appliedDiskCount += 1 }
    case .remove(let object, let kind, let parent, let snapshots, let origin, let name):
      if kind == .snapshot {
        try removeSnapshot(object, of: parent, name)
      } else {
        try removeDisk(object, in: parent, name, snapshots: snapshots, origin: origin)
      }
    case .rename(let object, let kind, let parent, let name, let newParent, let newName):
      if var record = try treeRecord(of: object) {
        (record.parent, record.name) = (newParent, newName)
        try put(record, of: object)
      }
      try addName(newParent, NameEntry(object: object, kind: kind, name: newName))
      _ = try removeName(parent, name)
    case .resize(let object, let size):
      try update(object) { $0.size = size }
    case .change(let object, let change):
      try update(object) { Self.apply(change, to: &$0) }
    case .snapshot(let object, let disk, _, _, _, _):
      try mark(disk, Self.created(by: record), object)
    case .clone(let batch): return try addClones(batch)
    case .rollback(let disk, let snapshot, let former, let size, let time):
      try rollBack(disk, to: snapshot, former: former, size: size, time: time)
    case .data, .zero, .extent: invariantBroken("a data record in the catalog")
    }
    return true
  }

  private func removeDisk(
    _ object: ObjectID, in parent: ObjectID, _ name: [UInt8], snapshots: UInt32, origin: ObjectID
  ) throws(SpaceWait) {
    if progress == 0 {
      let record = try treeRecord(of: object)
      _ = try removeName(parent, name)
      try startFreeing(object, record)
      progress = 1
    }
    // Last, because what is shown counts the trees' number and the records that are not applied.
    if origin.raw != 0 { try update(origin) { $0.dependents -= min($0.dependents, 1) } }
    appliedDiskCount -= min(appliedDiskCount, 1)
    appliedSnapshotCount -= min(appliedSnapshotCount, UInt64(snapshots))
  }

  private func removeSnapshot(
    _ object: ObjectID, of disk: ObjectID, _ name: [UInt8]
  ) throws(SpaceWait) {
    if progress == 0 {
      _ = try removeName(disk, name)
      try removeUnnamed(object)
      progress = 1
    }
    try update(disk) { $0.dependents -= min($0.dependents, 1) }
    appliedSnapshotCount -= min(appliedSnapshotCount, 1)
  }

  /// Drops the part of the overlay that the trees have now.
  package func dropOverlay(upTo cut: FrameSequence) {
    nameOverlay = nameOverlay.filter { $0.value.sequence > cut }
    objectOverlay = objectOverlay.filter { $0.value.sequence > cut }
    for object in objectOverlay.keys {
      objectOverlay[object]!.dependents.removeAll { $0.number <= applied }
    }
    batches.removeAll { $0.sequence <= cut }
  }

  /// Enters a volume into the objects tree unless it is there.
  package func record(_ volume: VolumeMember, index: Int) throws(SpaceWait) {
    let key = TreeKey(hi: 0, lo: UInt64(index))
    if try objects.lookup(key) != nil { return }
    try objects.store(
      key,
      VolumeRecord(
        member: volume.member, sizeInBlocks: volume.description.size >> blockShift
      ).encoded())
  }

  /// Writes an object's record to the tree.
  package func put(_ record: ObjectRecord, of object: ObjectID) throws(SpaceWait) {
    let old = try treeRecord(of: object)
    try objects.store(TreeKey(hi: object.raw, lo: 0), record.encoded())
    if let old { discount(old) }
    if record.isHidden {
      heldBlocks += record.exclusiveBlocks
    } else if record.links == 0 {
      freeingBlocks += record.exclusiveBlocks
    }
  }

  private func discount(_ old: ObjectRecord) {
    if old.isHidden {
      heldBlocks -= min(heldBlocks, old.exclusiveBlocks)
    } else if old.links == 0 {
      freeingBlocks -= min(freeingBlocks, old.exclusiveBlocks)
    }
  }

  /// The object that was being freed holds nothing any more. Again after a wait.
  package func forget(_ object: ObjectID) throws(SpaceWait) {
    let old = try treeRecord(of: object)
    if try objects.remove(TreeKey(hi: object.raw, lo: 0)), let old { discount(old) }
    if try names.remove(TreeKey(hi: 0, lo: object.raw)) {
      deletedObjects -= min(deletedObjects, 1)
    }
  }

  package func update(_ object: ObjectID, _ body: (inout ObjectRecord) -> Void) throws(SpaceWait) {
    guard var record = try treeRecord(of: object) else { return }
    body(&record)
    try put(record, of: object)
  }

  func addName(_ parent: ObjectID, _ entry: NameEntry) throws(SpaceWait) {
    let hash = NameEntry.hash(entry.name)
    var list = try entries(parent, hash).filter { $0.name != entry.name }
    list.append(entry)
    try names.store(TreeKey(hi: parent.raw, lo: hash), NameEntry.encode(list))
  }

  /// Whether the name was there.
  func removeName(_ parent: ObjectID, _ name: [UInt8]) throws(SpaceWait) -> Bool {
    let hash = NameEntry.hash(name)
    let old = try entries(parent, hash)
    let list = old.filter { $0.name != name }
    guard list.count < old.count else { return false }
    let key = TreeKey(hi: parent.raw, lo: hash)
    if list.isEmpty {
      _ = try names.remove(key)
    } else {
      try names.store(key, NameEntry.encode(list))
    }
    return true
  }
}

extension Tree {
  /// Stores `value` under `key`, in the place of what was there.
  func store(_ key: TreeKey, _ value: [UInt8]) throws(SpaceWait) {
    var wait: SpaceWait?
    value.withUnsafeBytes { bytes in
      do throws(SpaceWait) { _ = try insertOrReplace(key, bytes) } catch { wait = error }
    }
    if let wait { throw wait }
  }
}

extension TreeKey {
  /// The smallest key behind this one.
  var successor: TreeKey {
    lo == .max ? TreeKey(hi: hi &+ 1, lo: 0) : TreeKey(hi: hi, lo: lo + 1)
  }
}
