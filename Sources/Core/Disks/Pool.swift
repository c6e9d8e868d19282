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
  package var fault: PlantedFault? { configuration.fault }

  package init(_ configuration: PoolConfiguration) {
    self.configuration = configuration
    log = LogWriter(geometry: configuration.log, ops: ops)
    log.fault = configuration.fault
    var spaceConfiguration = SpaceMap.Configuration()
    spaceConfiguration.fault = configuration.fault
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
    space.attach(spaceTree)
  }

  /// Makes the disk's record and map available.
  package func load(_ disk: VirtualDisk) throws(SpaceWait) {
    guard !disk.isLoaded else { return }
    guard let live = try catalog.record(of: disk.object) else { throw .damaged(.none) }
    let stored = try catalog.treeRecord(of: disk.object)
    disk.name = try catalog.path(of: live)
    disk.record = live
    disk.map = ExtentMap(
      tree: Tree(
        store: store, kind: .extents, owner: disk.object,
        root: stored?.map ?? .none, branchInstant: live.branchInstant, birth: nextInstant))
  }

  /// Puts an entry into the index and keeps the counts that hang on it.
  @inline(__always)
  package func insert(_ entry: IndexEntry, disk: VirtualDisk) {
    let displaced = index.insert(entry)
    if entry.kind != .zero { disk.loggedBlocks += 1 }
    account(displaced, disk)
  }

  @inline(__always)
  package func account(_ displaced: IndexDisplaced, _ disk: VirtualDisk) {
    disk.loggedBlocks -= displaced.blocks
    reservedBlocks -= displaced.reserved
    if displaced.blocks > 0 { paths.hit(.absorbedRewrite) }
    invariant(
      disk.loggedBlocks >= 0 && reservedBlocks >= 0, "more blocks left the log than entered it")
  }

  /// Gives up what the disk holds of the log index.
  package func dropLogged(_ disk: VirtualDisk) {
    account(
      index.remove(
        from: IndexKey(slot: disk.slot, block: BlockIndex(0)), length: BlockIndex.limit), disk)
  }

  /// Forgets a disk that is idle: not connected, nothing logged, no request.
  package func unloadIfIdle(_ disk: VirtualDisk) {
    guard disk.connections == 0, disk.requests == 0, disk.loggedBlocks == 0,
      disks[disk.slot] === disk,
      index.next(from: IndexKey(slot: disk.slot, block: BlockIndex(0)))?.key.slot != disk.slot
    else { return }
    if let run = disk.run { space.returnRun(run) }
    disk.run = nil
    disks.remove(disk)
  }
}
