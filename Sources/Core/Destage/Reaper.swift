// Reaping: what deleted objects hold becomes free, in bounded steps that go on where they were after a
// crash (R11; docs/formats/catalog.md has the states).
//
//     a disk, or a snapshot without children   its map is pruned of what it owns, its dead list dropped
//     a snapshot with one child                merged into it: what only the snapshot referred to is on
//                                              the child's dead list and was born after the snapshot's
//                                              branch; it is freed, and the snapshot's own dead list
//                                              moves to the child's
//
// A leaf whose parent is being merged into it waits for that: until then its branch instant does not
// tell what it owns. One that inherits its map owns its delta and nothing else, whatever its parent
// does, and goes first. A child with a delta is folded before anything is merged into it.

final class Reaper {
  private let pool: Pool
  private var job: Job?
  /// A child with a delta, which the destager is to fold before the reaper goes on.
  private(set) var layerToFold: Layer?
  /// The job's trees are being written, and its state is entered into the catalog then.
  var isSaving = false

  private final class Job {
    let object: ObjectID
    var record: ObjectRecord
    /// The snapshot's only child, for a merge.
    let child: ObjectID?
    var map: ExtentMap?
    var list: DeadList?
    var childList: DeadList?
    /// What is left is to enter the outcome into the catalog.
    var isEmpty = false
    var stage = 0

    init(_ object: ObjectID, _ record: ObjectRecord, child: ObjectID?) {
      self.object = object
      self.record = record
      self.child = child
    }
  }

  init(_ pool: Pool) { self.pool = pool }

  /// Trees that must be written before `save`.
  var trees: [Tree] { [job?.map?.tree, job?.list?.tree, job?.childList?.tree].compactMap { $0 } }
  var isAtWork: Bool { job != nil }
  /// The job has come to its end but for its trees.
  var wantsSave: Bool { job?.isEmpty ?? false }

  /// The dead list of the object that a snapshot is being merged into.
  func list(of child: ObjectID) -> DeadList? { job?.child == child ? job?.childList : nil }

  /// Goes on for a bounded time; false when there is nothing to be freed.
  func advance() throws(SpaceWait) -> Bool {
    layerToFold = nil
    guard let job else { return try begin() }
    if job.child != nil { try merge(job) } else { try prune(job) }
    return true
  }

  private func begin() throws(SpaceWait) -> Bool {
    guard var object = try pool.catalog.nextDeleted() else { return false }
    guard var record = try pool.catalog.treeRecord(of: object) else {
      try pool.catalog.forget(object)
      return true
    }
    if record.kind == .disk, let entry = try pool.catalog.nextSnapshot(of: object) {
      // Each on its own is done once, and no checkpoint comes between the two.
      if let snapshot = try pool.catalog.treeRecord(of: entry.object), snapshot.links > 0 {
        try pool.catalog.removeUnnamed(entry.object)
      }
      _ = try pool.catalog.removeName(object, entry.name)
      return true
    }
    if record.children == 0, !record.inheritsMap,
      try pool.catalog.isBeingFreed(record.parentSnapshot)
    {
      object = record.parentSnapshot
      record = try self.record(of: object)
    }
    var child = record.children > 0 ? try pool.catalog.child(of: object) : nil
    if let leaf = child {
      let leafRecord = try self.record(of: leaf)
      if leafRecord.inheritsMap, try isReady(leaf) {
        (object, record, child) = (leaf, leafRecord, nil)
      } else if leafRecord.hasDelta {
        let layer = pool.layer(of: leaf) ?? pool.disk(leaf).layer
        try pool.load(layer)
        layerToFold = layer
        return true
      }
    }
    // Who walks its map, as a scrub does, must not go on: what that names becomes free.
    if let disk = pool.disks.find(object), !disk.isDeleted { disk.close() }
    let job = Job(object, record, child: child)
    if let child { try openMerge(job, child) } else { openPrune(job) }
    self.job = job
    return true
  }

  private func record(of object: ObjectID) throws(SpaceWait) -> ObjectRecord {
    guard let record = try pool.catalog.treeRecord(of: object) else {
      throw .damaged(pool.catalog.objects.root)
    }
    return record
  }

  /// Whether a disk is deleted and has no snapshots that are to be deleted with it.
  private func isReady(_ disk: ObjectID) throws(SpaceWait) -> Bool {
    guard try pool.catalog.isBeingFreed(disk) else { return false }
    return try pool.catalog.nextSnapshot(of: disk) == nil
  }

  // MARK: Pruning

  private func openPrune(_ job: Job) {
    let record = job.record
    job.map = ExtentMap(
      tree: Tree(
        store: pool.store, kind: record.inheritsMap ? .delta : .extents, owner: job.object,
        root: record.map, branchInstant: record.branchInstant, birth: pool.nextInstant))
    job.list = list(job.object, record)
  }

  private func list(_ object: ObjectID, _ record: ObjectRecord) -> DeadList {
    DeadList(
      tree: Tree(
        store: pool.store, kind: .deadList, owner: object, root: record.deadList,
        birth: pool.nextInstant), counts: record.dead)
  }

  private func prune(_ job: Job) throws(SpaceWait) {
    let branch = job.record.branchInstant
    // Counted as it happens: what was freed before a wait stays freed.
    if let map = job.map, !map.tree.isEmpty {
      _ = try map.pruneSome(maxLeaves: 64) { address, count, birth in
        job.record.usedBlocks -= min(job.record.usedBlocks, UInt64(count))
        if birth > branch { free(address, count, of: job) }
      }
      return
    }
    if let list = job.list, !list.isEmpty {
      _ = try list.discardSome(maxLeaves: 64)
      return
    }
    if job.stage == 0 {
      if job.record.parentSnapshot.raw != 0 {
        try pool.catalog.lostChild(job.record.parentSnapshot, job.object)
      }
      job.stage = 1
    }
    try pool.catalog.forget(job.object)
    pool.paths.hit(.zombieFreed)
    self.job = nil
  }

  private func free(_ address: BlockAddress, _ count: Int, of job: Job) {
    job.record.exclusiveBlocks -= min(job.record.exclusiveBlocks, UInt64(count))
    pool.space.noteReleased(address, count)
  }

  // MARK: Merging

  private func openMerge(_ job: Job, _ child: ObjectID) throws(SpaceWait) {
    let record = try self.record(of: child)
    if let layer = pool.layer(of: child), layer.map == nil { try pool.load(layer) }
    if record.inheritsMap { return }
    job.list = list(job.object, job.record)
    job.childList = pool.layer(of: child)?.dead ?? list(child, record)
  }

  private func merge(_ job: Job) throws(SpaceWait) {
    guard let list = job.list, let childList = job.childList else {
      // The child inherits: it takes over all that the snapshot has, and nothing is freed.
      return job.isEmpty = true
    }
    if job.stage == 0 {
      let isDone = try childList.takeSome(
        bornAfter: job.record.branchInstant, limit: 256, abandonDamaged: true,
        blocks: { first, count, _ in free(first, count, of: job) },
        nodes: { first, second, _ in pool.space.releaseNode(first, second) })
      if isDone { job.stage = 1 }
      return
    }
    job.isEmpty = try list.moveSome(into: childList, limit: 256, abandonDamaged: true)
  }

  // MARK: Saving

  /// Enters the job's state into the catalog, its trees being written; ends it if it is through. The
  /// rest of a job that is not waits for the next cycle.
  func save() throws(SpaceWait) {
    guard let job else { return isSaving = false }
    let record = job.record
    try pool.catalog.update(job.object) {
      if let list = job.list { ($0.deadList, $0.dead) = (list.tree.root, list.counts) }
      $0.usedBlocks = record.usedBlocks
      $0.exclusiveBlocks = record.exclusiveBlocks
      if let tree = job.map?.tree {
        $0.map = tree.root
        let nodes = Int64(record.metadataBlocks) + 2 * Int64(tree.nodeDelta)
        $0.metadataBlocks = UInt64(max(0, nodes))
        // Without a delta it counts nothing.
        if record.inheritsMap, tree.isEmpty { $0.usedBlocks = 0 }
      }
    }
    if let child = job.child {
      if let list = job.childList {
        let layer = pool.layer(of: child)
        layer?.dead = list
        layer?.parentBranchInstant = .max
        try pool.catalog.update(child) {
          ($0.deadList, $0.dead) = (list.tree.root, list.counts)
          // How much of it only the parent refers to is not known any more.
          ($0.parentBranchInstant, $0.deadOfParentOnly) = (.max, 0)
        }
      }
      if job.isEmpty { try finishMerge(job, child) }
    }
    self.job = nil
    isSaving = false
  }

  /// The child takes the snapshot's place. Repeatable.
  private func finishMerge(_ job: Job, _ child: ObjectID) throws(SpaceWait) {
    let snapshot = job.record
    var record = try self.record(of: child)
    if record.parentSnapshot == job.object {
      try pool.catalog.replaceEdge(of: snapshot.parentSnapshot, job.object, by: child)
      if record.inheritsMap {
        record.takeOver(snapshot)
        record.exclusiveBlocks = 0
        (record.deadList, record.dead) = (snapshot.deadList, snapshot.dead)
        record.deadOfParentOnly = snapshot.deadOfParentOnly
      }
      record.parentSnapshot = snapshot.parentSnapshot
      record.branchInstant = snapshot.branchInstant
      record.parentBranchInstant =
        job.childList == nil || snapshot.parentSnapshot.raw == 0
        ? snapshot.parentBranchInstant : .max
      record.exclusiveBlocks += snapshot.exclusiveBlocks
      try pool.catalog.put(record, of: child)
      settle(child, record)
    }
    try pool.catalog.removeEdge(job.object, child)
    try pool.catalog.forget(job.object)
    pool.paths.hit(.snapshotMerged)
  }

  /// The child's layer, if it is in memory, is as its record says.
  private func settle(_ child: ObjectID, _ record: ObjectRecord) {
    guard let layer = pool.layer(of: child), let tree = layer.map?.full.tree else { return }
    layer.map!.delta = nil
    layer.inheritsMap = false
    tree.branchInstant = record.branchInstant
    layer.exclusiveBlocks = record.exclusiveBlocks
    layer.parentBranchInstant = record.parentBranchInstant
    layer.deadOfParentOnly = record.deadOfParentOnly
    if layer.dead == nil, !record.deadList.isNone {
      pool.openDeadList(layer, record.deadList, record.dead)
    }
  }
}

extension ObjectRecord {
  /// The object has the parent's map, as a branch of it, from now on itself.
  mutating func takeOver(_ parent: ObjectRecord) {
    inheritsMap = false
    map = parent.map
    usedBlocks = parent.usedBlocks
    metadataBlocks = parent.metadataBlocks
    exclusiveBlocks = 0
    branchInstant = parent.instant
    parentBranchInstant = parent.branchInstant
  }
}
