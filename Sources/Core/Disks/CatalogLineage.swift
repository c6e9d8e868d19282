// The tree of snapshots in the catalog's trees: what marks, clones, rollbacks and deletions change.
//
//     s1 ─▶ s2 ─▶ disk            s1 ─▶ s2 ─▶ s3 ─▶ disk         a mark: the record of the disk becomes
//       └─▶ clone                   └─▶ clone                    s3's, and the disk inherits from it
//
// The names tree has each snapshot's children under its id. Every change here waits before it has
// changed anything, or is the same when it is made again, or is counted in `progress`.

extension Catalog {
  // MARK: Edges

  private func edge(_ parent: ObjectID, _ child: ObjectID) -> TreeKey {
    TreeKey(hi: parent.raw, lo: child.raw)
  }

  private func addEdge(_ parent: ObjectID, _ child: ObjectID) throws(SpaceWait) {
    if parent.raw != 0 { try names.store(edge(parent, child), []) }
  }

  func removeEdge(_ parent: ObjectID, _ child: ObjectID) throws(SpaceWait) {
    if parent.raw != 0 { _ = try names.remove(edge(parent, child)) }
  }

  /// The first child of a snapshot, as the trees have it: the only one, where there is one.
  package func child(of snapshot: ObjectID) throws(SpaceWait) -> ObjectID? {
    guard let item = try names.ceiling(edge(snapshot, ObjectID(0))), item.key.hi == snapshot.raw
    else { return nil }
    return ObjectID(item.key.lo)
  }

  /// `child` takes the place of `old` under its parent.
  func replaceEdge(
    of parent: ObjectID, _ old: ObjectID, by child: ObjectID
  ) throws(SpaceWait) {
    try removeEdge(parent, old)
    try addEdge(parent, child)
  }

  // MARK: Marks

  /// What the disk is becomes the snapshot's, and the disk inherits from it.
  func mark(
    _ disk: ObjectID, _ made: ObjectRecord, _ snapshot: ObjectID
  ) throws(SpaceWait) {
    guard var head = try treeRecord(of: disk) else { throw .damaged(objects.root) }
    var record = head
    record.kind = .snapshot
    record.setTimes(made.created)
    record.group = made.group
    (record.parent, record.name, record.comment) = (disk, made.name, [])
    (record.links, record.children, record.dependents) = (1, 1, 0)
    record.isHeld = false
    record.origin = ObjectID(0)
    try replaceEdge(of: head.parentSnapshot, disk, by: snapshot)
    try addEdge(snapshot, disk)
    try put(record, of: snapshot)
    try addName(disk, NameEntry(object: snapshot, kind: .snapshot, name: made.name))
    head.inherit(from: snapshot)
    head.dependents += 1
    try put(head, of: disk)
    appliedNextObject = max(appliedNextObject, snapshot.raw + 1)
    appliedSnapshotCount += 1
  }

  /// What the disk is becomes that of `former`, a deleted disk, and the disk inherits from the
  /// snapshot.
  func rollBack(
    _ disk: ObjectID, to snapshot: ObjectID, former: ObjectID, size: UInt64, time: UInt64
  ) throws(SpaceWait) {
    guard var head = try treeRecord(of: disk) else { throw .damaged(objects.root) }
    if progress == 0 {
      try update(snapshot) { $0.children += 1 }
      progress = 1
    }
    var record = head
    (record.name, record.comment, record.links, record.dependents) = ([], [], 0, 0)
    record.origin = ObjectID(0)
    try replaceEdge(of: head.parentSnapshot, disk, by: former)
    try addEdge(snapshot, disk)
    try put(record, of: former)
    try names.store(TreeKey(hi: 0, lo: former.raw), [])
    head.inherit(from: snapshot)
    head.size = size
    (head.modified, head.changed) = (time, time)
    try put(head, of: disk)
    deletedObjects += 1
    appliedNextObject = max(appliedNextObject, former.raw + 1)
  }

  /// Makes some of a batch's clones; true when all are made.
  func addClones(_ batch: CloneBatch) throws(SpaceWait) -> Bool {
    let count = fault == .halfABatch ? batch.count / 2 : batch.count
    let end = min(progress + 16, count)
    while progress < end {
      let i = progress
      let record = Self.created(i, in: batch)
      try put(record, of: batch.object(i))
      try addName(
        batch.parent, NameEntry(object: batch.object(i), kind: .disk, name: record.name))
      try addEdge(batch.snapshot, batch.object(i))
      progress += 1
    }
    guard progress == count else { return false }
    try update(batch.snapshot) {
      $0.children += UInt32(batch.count)
      $0.dependents += UInt32(batch.count)
    }
    appliedNextObject = max(appliedNextObject, batch.first.raw + UInt64(batch.count))
    appliedDiskCount += UInt64(batch.count)
    return true
  }

  // MARK: Deletions

  /// Puts an object without a name on the list of those being freed.
  func startFreeing(_ object: ObjectID, _ record: ObjectRecord?) throws(SpaceWait) {
    if var record, record.links > 0 {
      record.links = 0
      try put(record, of: object)
    }
    try names.store(TreeKey(hi: 0, lo: object.raw), [])
    deletedObjects += 1
  }

  /// A snapshot has lost its name: it is freed, or hidden while it has several children.
  func removeUnnamed(_ snapshot: ObjectID) throws(SpaceWait) {
    guard var record = try treeRecord(of: snapshot) else { return }
    guard record.children > 1 else { return try startFreeing(snapshot, record) }
    record.isHidden = true
    record.isHeld = false
    record.links = 0
    try put(record, of: snapshot)
    paths.hit(.snapshotHidden)
  }

  /// A child of the snapshot is gone. To be called once for it, and again only after a wait.
  func lostChild(_ snapshot: ObjectID, _ child: ObjectID) throws(SpaceWait) {
    try removeEdge(snapshot, child)
    guard var record = try treeRecord(of: snapshot) else { return }
    let returns = record.isHidden && record.children <= 2
    if returns { try names.store(TreeKey(hi: 0, lo: snapshot.raw), []) }
    record.children -= min(record.children, 1)
    if returns { record.isHidden = false }
    try put(record, of: snapshot)
    if returns { deletedObjects += 1 }
  }

  /// The next object whose space is to be freed.
  package func nextDeleted() throws(SpaceWait) -> ObjectID? {
    guard let item = try names.ceiling(TreeKey(hi: 0, lo: 0)), item.key.hi == 0 else { return nil }
    return ObjectID(item.key.lo)
  }

  /// Whether the object is on the list of those being freed.
  func isBeingFreed(_ object: ObjectID) throws(SpaceWait) -> Bool {
    try names.lookup(TreeKey(hi: 0, lo: object.raw)) != nil
  }

  /// One of the names of a deleted disk's snapshots, which go with it.
  func nextSnapshot(of disk: ObjectID) throws(SpaceWait) -> NameEntry? {
    guard let item = try names.ceiling(TreeKey(hi: disk.raw, lo: 0)), item.key.hi == disk.raw else {
      return nil
    }
    guard let entries = NameEntry.decode(item.value.bytes), let first = entries.first else {
      throw .damaged(names.root)
    }
    return first
  }
}

extension ObjectRecord {
  /// The object starts anew as a branch of `snapshot`, and has nothing of its own.
  mutating func inherit(from snapshot: ObjectID) {
    inheritsMap = true
    parentSnapshot = snapshot
    branchInstant = 0
    parentBranchInstant = 0
    (map, deadList) = (.none, .none)
    (usedBlocks, exclusiveBlocks, metadataBlocks, deadOfParentOnly) = (0, 0, 0, 0)
    dead = DeadCounts()
  }
}
