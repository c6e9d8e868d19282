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
    var sequence: FrameSequence
  }

  package let objects: Tree
  package let names: Tree
  private var nameOverlay: [NameKey: NameOverlay] = [:]
  private var objectOverlay: [ObjectID: ObjectOverlay] = [:]
  private var pending = RingQueue<StructuralChange>(capacity: 64)
  /// As of the newest record.
  package private(set) var diskCount: UInt64
  package private(set) var nextObject: UInt64
  /// As of the trees.
  package private(set) var appliedDiskCount: UInt64
  package private(set) var appliedNextObject: UInt64
  /// Objects in the trees' deleted list.
  package private(set) var deletedObjects: UInt64
  package var freeingBlocks: UInt64

  package init(objects: Tree, names: Tree, root: RootRecord) {
    self.objects = objects
    self.names = names
    diskCount = root.disks
    appliedDiskCount = root.disks
    nextObject = max(root.nextObject, TreeOwner.firstFree)
    appliedNextObject = nextObject
    deletedObjects = root.deletedObjects
    freeingBlocks = root.freeingBlocks
  }

  package var pendingCount: Int { pending.count }
  package func hasPending(upTo cut: FrameSequence) -> Bool {
    pending.first().map { $0.sequence <= cut } ?? false
  }

  /// A new object's id.
  package func takeObjectID() -> ObjectID {
    defer { nextObject += 1 }
    return ObjectID(nextObject)
  }

  // MARK: Lookups

  /// What `name` in directory `parent` leads to.
  package func lookup(_ name: [UInt8], in parent: ObjectID) throws(SpaceWait) -> NameTarget? {
    if let overlay = nameOverlay[NameKey(parent: parent, name: name)] { return overlay.target }
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
      record = stored
    } else if let created = overlay?.created {
      record = created
    } else {
      return nil
    }
    guard let overlay else { return record }
    if let size = overlay.size { record.size = size }
    Self.apply(overlay.change, to: &record)
    if let home = overlay.home { (record.parent, record.name) = (home.parent, home.name) }
    return record
  }

  /// The object's record as the trees have it.
  package func treeRecord(of object: ObjectID) throws(SpaceWait) -> ObjectRecord? {
    guard let value = try objects.lookup(TreeKey(hi: object.raw, lo: 0)) else { return nil }
    guard let record = ObjectRecord(decoding: value.bytes) else { throw .damaged(objects.root) }
    return record
  }

  /// The full name of an object by its first name, `/` between segments; "?" for what is damaged.
  package func path(of record: ObjectRecord) throws(SpaceWait) -> String {
    var segments = [record.name]
    var parent = record.parent
    while parent != .root, segments.count < 64 {
      guard let directory = try self.record(of: parent) else { break }
      segments.append(directory.name)
      parent = directory.parent
    }
    return segments.reversed().map(NameRules.printable).joined(separator: "/")
  }

  /// The names of the datastore behind `cursor` (a names-tree key), a page at a time: what the
  /// tree has and the overlay does not contradict. `overlayDisks` has the others.
  package func page(after cursor: TreeKey?, limit: Int) throws(SpaceWait)
    -> (targets: [NameTarget], next: TreeKey?)
  {
    var targets: [NameTarget] = []
    var key = cursor ?? TreeKey(hi: 1, lo: 0)
    while targets.count < limit {
      guard let item = try names.ceiling(key) else { return (targets, nil) }
      guard let entries = NameEntry.decode(item.value.bytes) else { throw .damaged(names.root) }
      for entry in entries
      where nameOverlay[NameKey(parent: ObjectID(item.key.hi), name: entry.name)] == nil {
        targets.append(NameTarget(object: entry.object, kind: entry.kind))
      }
      key = item.key.successor
    }
    return (targets, key)
  }

  /// Names that only the overlay knows, in the order of object ids.
  package func overlayTargets() -> [NameTarget] {
    nameOverlay.values.compactMap(\.target).sorted { $0.object < $1.object }
  }

  // MARK: Changes as frames count

  /// Takes a structural record whose frame counts into the overlay.
  package func take(_ record: LogRecord, sequence: FrameSequence) {
    pending.push(StructuralChange(sequence: sequence, record: record))
    switch record {
    case .create(let object, let parent, let kind, let mode, let size, let time, let name):
      var created = ObjectRecord()
      created.kind = kind
      created.mode = mode
      created.size = size
      created.created = time
      created.modified = time
      created.changed = time
      created.accessed = time
      created.parent = parent
      created.name = name
      objectOverlay[object] = ObjectOverlay(created: created, sequence: sequence)
      setName(parent, name, NameTarget(object: object, kind: kind), sequence)
      nextObject = max(nextObject, object.raw + 1)
      if kind == .disk { diskCount += 1 }
    case .remove(let object, _, let parent, _, let name):
      change(object, sequence) { $0.isDeleted = true }
      setName(parent, name, nil, sequence)
      if diskCount > 0 { diskCount -= 1 }
    case .rename(let object, _, let parent, let name, let newParent, let newName):
      setName(parent, name, nil, sequence)
      setName(newParent, newName, NameTarget(object: object, kind: .disk), sequence)
      change(object, sequence) { $0.home = (newParent, newName) }
    case .resize(let object, let size):
      change(object, sequence) { $0.size = size }
    case .change(let object, let what):
      change(object, sequence) { overlay in
        if let durability = what.durability { overlay.change.durability = durability }
        if let readOnly = what.readOnly { overlay.change.readOnly = readOnly }
        if let comment = what.comment { overlay.change.comment = comment }
      }
    case .snapshot, .clone, .rollback: break
    case .data, .zero, .extent: invariantBroken("a data record in the catalog")
    }
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
  }

  // MARK: Changes as the cycle applies them

  /// Applies the oldest pending record, if it is within the cut, to the trees. Repeatable: after a
  /// wait it is called again and changes the same things. Returns false when there is none left.
  package func applyNext(upTo cut: FrameSequence) throws(SpaceWait) -> Bool {
    guard let next = pending.first(), next.sequence <= cut else { return false }
    switch next.record {
    case .create(let object, let parent, let kind, let mode, let size, let time, let name):
      var record = ObjectRecord()
      record.kind = kind
      record.mode = mode
      record.size = size
      record.created = time
      record.modified = time
      record.changed = time
      record.accessed = time
      record.parent = parent
      record.name = name
      try put(record, of: object)
      try addName(parent, NameEntry(object: object, kind: kind, name: name))
      appliedNextObject = max(appliedNextObject, object.raw + 1)
      if kind == .disk { appliedDiskCount += 1 }
    case .remove(let object, _, let parent, _, let name):
      // The name goes last: where it is gone already, this was applied before the wait.
      let held = try treeRecord(of: object).map { $0.usedBlocks + $0.metadataBlocks } ?? 0
      try names.store(TreeKey(hi: 0, lo: object.raw), [])
      if try removeName(parent, name) {
        deletedObjects += 1
        if appliedDiskCount > 0 { appliedDiskCount -= 1 }
        freeingBlocks += held
      }
    case .rename(let object, _, let parent, let name, let newParent, let newName):
      if var record = try treeRecord(of: object) {
        (record.parent, record.name) = (newParent, newName)
        try put(record, of: object)
      }
      try addName(newParent, NameEntry(object: object, kind: .disk, name: newName))
      _ = try removeName(parent, name)
    case .resize(let object, let size):
      try update(object) { $0.size = size }
    case .change(let object, let change):
      try update(object) { Self.apply(change, to: &$0) }
    case .snapshot, .clone, .rollback: break
    case .data, .zero, .extent: invariantBroken("a data record in the catalog")
    }
    _ = pending.pop()
    return true
  }

  /// Drops the part of the overlay that the trees have now.
  package func dropOverlay(upTo cut: FrameSequence) {
    nameOverlay = nameOverlay.filter { $0.value.sequence > cut }
    objectOverlay = objectOverlay.filter { $0.value.sequence > cut }
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
    try objects.store(TreeKey(hi: object.raw, lo: 0), record.encoded())
  }

  package func update(_ object: ObjectID, _ body: (inout ObjectRecord) -> Void) throws(SpaceWait) {
    guard var record = try treeRecord(of: object) else { return }
    body(&record)
    try put(record, of: object)
  }

  private func addName(_ parent: ObjectID, _ entry: NameEntry) throws(SpaceWait) {
    let hash = NameEntry.hash(entry.name)
    var list = try entries(parent, hash).filter { $0.name != entry.name }
    list.append(entry)
    try names.store(TreeKey(hi: parent.raw, lo: hash), NameEntry.encode(list))
  }

  /// Whether the name was there.
  private func removeName(_ parent: ObjectID, _ name: [UInt8]) throws(SpaceWait) -> Bool {
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

  // MARK: Deleted objects

  /// The next deleted object whose space is to be freed.
  package func nextDeleted() throws(SpaceWait) -> ObjectID? {
    guard let item = try names.ceiling(TreeKey(hi: 0, lo: 0)), item.key.hi == 0 else { return nil }
    return ObjectID(item.key.lo)
  }

  /// The deleted object holds nothing any more.
  package func forget(_ object: ObjectID) throws(SpaceWait) {
    _ = try objects.remove(TreeKey(hi: object.raw, lo: 0))
    _ = try names.remove(TreeKey(hi: 0, lo: object.raw))
    deletedObjects -= 1
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
