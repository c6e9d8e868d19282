/// What the parts of the engine share: one pool's devices and state. One thread uses it.
package struct PoolConfiguration: Sendable {
  package var pool: UUIDBytes
  package var name: String
  package var unit: UInt64 = 0
  package var log: LogGeometry
  /// The volumes in the order of their indices.
  package var volumes: [VolumeMember]
  /// Memory for data and metadata blocks in bytes.
  package var cacheBytes: Int = 100 << 20
  package var durability = Durability.always
  /// Entries of the log index at which the log counts as full.
  package var indexLimit = 4 << 20
  /// Block requests under way at once.
  package var requestSlots = 4096
  /// Nodes of a delta above which it is folded into a map of the branch's own.
  package var deltaNodes = 64
  /// Blocks that stay free behind each frame of the log; nil: as it turns out best.
  package var logGap: Int?
  /// Bytes of the log that a cycle takes at least.
  package var leastCyclePortion: UInt64 = 64 << 20
  /// For tests: cycles read the log in its own order whether that is worth it or not.
  package var alwaysScans = false
  /// See `SpaceMap.Configuration.chunkLimit`.
  package var chunkLimit = 4096
  /// For measuring: see `SpaceMap.Configuration.scatteredRun`.
  package var scatteredRun: Int?
  package var fault: PlantedFault?

  package init(pool: UUIDBytes, name: String, log: LogGeometry, volumes: [VolumeMember]) {
    self.pool = pool
    self.name = name
    self.log = log
    self.volumes = volumes
  }
}

package struct VolumeMember: Sendable {
  package var member: UUIDBytes
  package var description: DeviceDescription
  package init(member: UUIDBytes, description: DeviceDescription) {
    self.member = member
    self.description = description
  }
}

package final class Pool {
  package var configuration: PoolConfiguration
  package let ops = OpQueue()
  package let log: LogWriter
  package let index = LogIndex()
  package let store: NodeStore
  package let space: SpaceMap
  package let disks = DiskTable()
  package var layers = LayerTable()
  /// Layers that marks have ended and no cycle has taken in, in the order of the marks.
  package var frozen: [Layer] = []
  /// What maps have let go of and a snapshot refers to: on its way to the dead lists of the layers.
  package var owed: [(layer: Layer, entry: DeadEntry)] = []
  /// Set when recovery has read the root.
  package private(set) var catalog: Catalog!
  package private(set) var spaceTree: Tree!
  /// The newest root that is durable on every volume.
  package var root = RootRecord()
  package var nextInstant: Instant = 1
  /// Blocks of vSpace promised to logged writes: index entries that reserve, and writes in frames.
  package var reservedBlocks = 0
  package var paths = RarePathCounters()
  package var checksumErrors: UInt64 = 0
  package var ioErrors: UInt64 = 0
  /// Bad copies of nodes that are being rewritten.
  var healing = 0
  package var fault: PlantedFault? { configuration.fault }

  package init(_ configuration: PoolConfiguration) {
    self.configuration = configuration
    log = LogWriter(
      geometry: configuration.log, ops: ops, spacing: AppendSpacing(fixed: configuration.logGap))
    log.fault = configuration.fault
    var spaceConfiguration = SpaceMap.Configuration()
    spaceConfiguration.fault = configuration.fault
    spaceConfiguration.chunkLimit = configuration.chunkLimit
    spaceConfiguration.scatteredRun = configuration.scatteredRun
    space = SpaceMap(spaceConfiguration)
    store = NodeStore(cache: BlockCache(bytes: configuration.cacheBytes), checkpoint: 1)
    store.allocator = space
    for (i, volume) in configuration.volumes.enumerated() {
      space.addVolume(i, volume.description)
    }
  }

  /// Opens the pool's trees at `root`.
  package func adopt(_ root: RootRecord) {
    self.root = root
    nextInstant = root.nextInstant
    store.beginCheckpoint(root.checkpoint + 1)
    spaceTree = Tree(store: store, kind: .space, owner: TreeOwner.space, root: root.space)
    catalog = Catalog(
      objects: Tree(store: store, kind: .objects, owner: TreeOwner.objects, root: root.objects),
      names: Tree(store: store, kind: .names, owner: TreeOwner.names, root: root.names),
      root: root)
    catalog.fault = fault
    space.attach(spaceTree)
  }

  /// A map names new content of a block.
  func overwritten(_ address: BlockAddress, _ checksum: UInt32) {
    if fault != .staleCacheAfterOverwrite {
      store.cache.overwritten(address, checksum: checksum)
    }
  }

  // MARK: Disks and layers

  /// The disk or snapshot in memory; its record is not loaded yet when it is new there.
  package func disk(_ object: ObjectID) -> VirtualDisk {
    disks.find(object) ?? disks.add(object, layer: layers.add(object))
  }

  /// Makes the disk's record and content available.
  package func load(_ disk: VirtualDisk) throws(SpaceWait) {
    if disk.record == nil {
      guard let live = try catalog.record(of: disk.object) else { throw .damaged(.none) }
      disk.name = try catalog.path(of: live)
      disk.record = live
    }
    try load(disk.layer)
  }

  /// Finds the layer's base, or opens its map once there is none. Nothing to do while it has a base
  /// that is not final.
  package func load(_ layer: Layer) throws(SpaceWait) {
    if let base = layer.base {
      guard base.state == .final else { return }
      layer.base = nil
    }
    guard layer.map == nil else { return }
    if let branch = layer.branch {
      if catalog.isPending(branch.sequence) { return try inherit(layer, from: branch.snapshot) }
      layer.branch = nil
    }
    // An object that the trees do not have is what it was made as.
    let stored = try catalog.treeRecord(of: layer.object)
    guard let record = stored ?? catalog.created(layer.object) else { throw .damaged(.none) }
    if record.inheritsMap {
      return try inherit(layer, from: record.parentSnapshot, delta: record)
    }
    open(layer, record, branchInstant: record.branchInstant)
    layer.exclusiveBlocks = record.exclusiveBlocks
    layer.parentBranchInstant = record.parentBranchInstant
    layer.deadOfParentOnly = record.deadOfParentOnly
    if !record.deadList.isNone { openDeadList(layer, record.deadList, record.dead) }
  }

  /// The layer is what the snapshot is, but for what its record's delta says.
  private func inherit(
    _ layer: Layer, from snapshot: ObjectID, delta own: ObjectRecord? = nil
  ) throws(SpaceWait) {
    if let below = disks.find(snapshot)?.layer, below.state == .frozen {
      layer.base = below
      return
    }
    guard let record = try catalog.treeRecord(of: snapshot), record.instant > 0 else {
      throw .damaged(.none)
    }
    open(layer, record, branchInstant: record.instant)
    layer.inheritsMap = true
    layer.exclusiveBlocks = 0
    layer.parentBranchInstant = record.branchInstant
    layer.deadOfParentOnly = 0
    if let own, !own.map.isNone {
      openDelta(layer, own.map)
      layer.usedBlocks = own.usedBlocks
      layer.exclusiveBlocks = own.exclusiveBlocks
      layer.deltaMetadata = own.metadataBlocks
    }
  }

  /// Gives the layer a delta, which is at `root` or empty.
  func openDelta(_ layer: Layer, _ root: NodePointer) {
    layer.map!.delta = ExtentMap(
      tree: Tree(
        store: store, kind: .delta, owner: layer.object, root: root,
        branchInstant: layer.map!.branchInstant, birth: nextInstant))
    layer.deltaMetadata = 0
  }

  private func open(_ layer: Layer, _ record: ObjectRecord, branchInstant: Instant) {
    let tree = Tree(
      store: store, kind: .extents, owner: layer.object, root: record.map,
      branchInstant: branchInstant, birth: nextInstant)
    tree.sharedRelease = { [unowned self, unowned layer] node in
      owed.append((layer, .node(first: node.first, second: node.second, birth: node.birth)))
    }
    layer.map = DiskMap(full: ExtentMap(tree: tree))
    layer.inheritsMap = false
    layer.usedBlocks = record.usedBlocks
    layer.metadataBlocks = record.metadataBlocks
  }

  package func openDeadList(_ layer: Layer, _ root: NodePointer, _ counts: DeadCounts) {
    layer.dead = DeadList(
      tree: Tree(
        store: store, kind: .deadList, owner: layer.object, root: root, birth: nextInstant),
      counts: counts)
  }

  /// The layer in memory whose map is kept in the object's record as of what the trees have.
  package func layer(of object: ObjectID) -> Layer? {
    if let ended = frozen.first(where: { $0.object == object }) { return ended }
    guard let layer = disks.find(object)?.layer, layer.object == object else { return nil }
    return layer
  }

  /// Puts an entry into the index and keeps the counts that hang on it.
  @inline(__always)
  package func insert(_ entry: IndexEntry, _ layer: Layer) {
    let displaced = index.insert(entry)
    if entry.kind != .zero { layer.loggedBlocks += 1 }
    // A large write's home that no map has yet: its place is there for what has overwritten it.
    if entry.kind == .log { layer.placesLeft += displaced.homes }
    account(displaced, layer)
  }

  @inline(__always)
  package func account(_ displaced: IndexDisplaced, _ layer: Layer) {
    layer.loggedBlocks -= displaced.blocks
    reservedBlocks -= displaced.reserved
    if displaced.blocks > 0 { paths.hit(.absorbedRewrite) }
    invariant(
      layer.loggedBlocks >= 0 && reservedBlocks >= 0, "more blocks left the log than entered it")
  }

  /// Gives up what the log index holds of the layer, and its run.
  package func dropLogged(_ layer: Layer) {
    returnRun(layer)
    account(index.remove(from: layer.firstKey, length: BlockIndex.limit), layer)
  }

  package func returnRun(_ layer: Layer) {
    if let run = layer.run { space.returnRun(run) }
    layer.run = nil
  }

  /// Whether the log index holds nothing of the layer.
  package func isDrained(_ layer: Layer) -> Bool {
    layer.loggedBlocks == 0 && index.next(from: layer.firstKey)?.key.slot != layer.slot
  }

  /// Forgets a disk that is idle: not connected, nothing logged, no request, nobody at work on it, no
  /// mark that the trees do not have. At the end of a cycle, when its map is written.
  package func unloadIfIdle(_ disk: VirtualDisk) {
    let layer = disk.layer
    guard disk.connections == 0, disk.requests == 0, !disk.isScrubbed, !disk.isPaused,
      !disk.isBeingDeleted || disk.isDeleted, layer.state != .frozen, isDrained(layer),
      layer.base.map({ $0.state == .final }) ?? true,
      !(layer.branch.map { catalog.isPending($0.sequence) } ?? false)
    else { return }
    returnRun(disk.layer)
    layers.remove(disk.layer)
    disks.remove(disk)
  }
}
