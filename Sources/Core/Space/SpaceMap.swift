// Which blocks of all volumes are in use, reserved, or waiting to become free: the allocator.
//
// What is durable is the space tree (Format/SpaceFormat.swift). In memory are eight bytes for each
// allocation group that was ever used, and the bitmaps of the chunks that are being worked on
// (ChunkTable.swift, with the states of a block). All changes follow one cycle:
//
//     noteAllocated, noteReleased, takeNode, releaseNode     any number, as the maps change
//     commit()            every changed bitmap is stored in the space tree, to the fixpoint
//     (the engine writes the tree's dirty nodes, flushes, writes the root, flushes)
//     rootDurable()       what was released before that commit can be handed out again, or is
//                         punched first: nextPunch(), punchDone()
//
// Both can be done in steps, with requests served in between: commitSome, freeReleased.
//
// allocateRun, returnRun, reserve and the backing calls may come at any time in between: they
// change only what is in memory. Notes that come between commit and rootDurable belong to the next
// cycle.
//
// Calls that can wait throw before they have changed anything that matters, and are called again.
// A `.backing` that is thrown must be carried out like a range of `nextBacking`, and answered by
// `backingDone` or `backingFailed`; until then the same range is thrown again.
//
// Files: SpaceMap (figures, opening, loading), SpaceTransitions (states of blocks), SpaceAllocate
// (choosing runs), SpaceNodes (metadata nodes), SpaceCommit (checkpoint, punch), SpaceSealing (released
// blocks of chunks that have left memory), Backing.

package final class SpaceMap {
  /// Limits and tunables, fixed at start.
  package struct Configuration: Sendable {
    /// The unit whose groups are handed out.
    package var unit: UInt8 = 0
    /// Chunks in memory (3 KiB each) beyond which those are dropped that can be; changed ones are
    /// stored before the commit from half of it on.
    package var chunkLimit = 4096
    /// Metadata reserve: this part (in 1/1,000) of the effective capacity ...
    package var reservePerMille = 30
    /// ... but at least and at most so many blocks (16 MiB, 4 GiB).
    package var reserveMinimum = 4096
    package var reserveMaximum = 1 << 20
    /// Backed free blocks that a sparse file keeps; what is freed beyond goes back to its file
    /// system (64 MiB).
    package var punchSlack = 16_384
    /// For measuring: runs of data are so long at most, and each comes from the group behind that
    /// of the one before. Volumes that are block devices then look as after years of use.
    package var scatteredRun: Int?
    package var fault: PlantedFault?
    package init() {}
  }

  let configuration: Configuration
  /// What groups of this unit carry as owner.
  let owner: UInt8
  private(set) var volumes: [VolumeSpace] = []
  private(set) var store: (any ChunkStore)?
  private(set) var isOpen = false
  private var openCursor = SpaceKey.groups(volume: 0, page: 0)

  var table = ChunkTable()
  /// Chunks whose `isDirty` is set, each once; pages and totals likewise.
  var dirtyChunks: [Int32] = []
  /// Of them, those that are stored before the commit; and what was dirty when that had been done the
  /// last time, for the nodes that it took.
  var excess = 0
  var changedByStoring = 0
  var dirtyPages: [SpaceKey] = []
  var totalsAreDirty = false

  // Sums over the volumes.
  package private(set) var total = 0
  package var used = 0
  package var metadata = 0
  package var reserved = 0
  package var releasedPending = 0
  package var backedFree = 0
  /// Blocks that stay marked as used because their bitmap is damaged; found again by a check.
  package var leaked = 0

  /// Released blocks whose chunk was not in memory.
  var deltas: [BlockRun] = []
  /// Blocks in state held that wait for a durable root: first those whose root is durable, which
  /// `freeReleased` works off, then those that are part of the last commit, then later ones.
  var releases: [BlockRun] = []
  var durableReleases = 0
  /// Of the durable ones, those that are free already; they are taken out together.
  var freedReleases = 0
  var committedReleases = 0
  /// Of chunks that are not in memory, their held blocks (SpaceSealing.swift).
  var sealed: [UInt64: [UInt32]] = [:]
  var punches: [BlockRun] = []
  var punchHead = 0
  var nodes = NodeStash()
  /// Where values are encoded.
  let scratch = AlignedMemory(bytes: blockSize)

  package init(_ configuration: Configuration = .init()) {
    invariant(configuration.unit < 255, "unit numbers end at 254")
    self.configuration = configuration
    owner = configuration.unit + 1
  }

  // MARK: Opening

  /// Takes volume `index` (the next number) into service; before `open`, or at any time later.
  package func addVolume(_ index: Int, _ description: DeviceDescription) {
    invariant(index == volumes.count && index < 1 << 16, "volume \(index) is not the next one")
    let volume = VolumeSpace(index: index, description)
    volumes.append(volume)
    total += volume.capacity
    backedFree += volume.available
  }

  /// Names the space tree; before `open`.
  package func attach(_ store: any ChunkStore) {
    invariant(self.store == nil, "a space map has one store")
    self.store = store
  }

  /// Reads the group words; to be called again after each wait. Throws `.damaged(.none)` when
  /// they contradict the volumes or the totals: the pool needs a check with repair. Nothing is
  /// read in a new pool. New metadata goes near `metadata`, the root of the space tree.
  package func open(metadata root: NodePointer = .none) throws(SpaceWait) {
    invariant(!isOpen, "a space map is opened once")
    while let entry = try backend.entry(from: openCursor), entry.key.hi == 0 {
      try readPage(entry.key, entry.value)
      openCursor = SpaceKey(hi: 0, lo: entry.key.lo + 1)
    }
    if let totals = try backend.value(.totals) {
      guard totals.count == SpaceFormat.totalsBytes, let p = totals.baseAddress,
        p.u64(0) == UInt64(used), p.u64(8) <= p.u64(0)
      else { throw .damaged(.none) }
      metadata = Int(p.u64(8))
    } else if used != 0 {
      throw .damaged(.none)
    }
    nodes.first = root.first
    nodes.second = root.second
    isOpen = true
  }

  private func readPage(
    _ key: SpaceKey, _ value: UnsafeRawBufferPointer
  ) throws(SpaceWait) {
    let volumeIndex = Int(key.lo >> 48)
    let firstGroup = Int(key.lo & 0xFFFF_FFFF_FFFF) * SpaceFormat.groupsPerPage
    guard volumeIndex < volumes.count, firstGroup < volumes[volumeIndex].groupCount,
      value.count == SpaceFormat.pageBytes, let p = value.baseAddress
    else { throw .damaged(.none) }
    let volume = volumes[volumeIndex]
    // Checked as a whole first: the call is repeated after a wait, but never after damage.
    for i in 0..<SpaceFormat.groupsPerPage {
      let word = GroupWord(raw: p.u32(i * 4))
      guard word.owner != 0 || word == .unused,
        word.owner == 0 || firstGroup + i < volume.groupCount,
        word.free <= volume.capacity(ofGroup: firstGroup + i)
      else { throw .damaged(.none) }
    }
    for i in 0..<SpaceFormat.groupsPerPage {
      let word = GroupWord(raw: p.u32(i * 4))
      if word.owner != 0 { takeGroup(volume, firstGroup + i, word) }
    }
  }

  /// Takes a group as the space tree has it into the counters.
  private func takeGroup(_ volume: VolumeSpace, _ g: Int, _ word: GroupWord) {
    let inUse = volume.capacity(ofGroup: g) - word.free
    let before = volume.group(g).available
    let after = volume.isSparse || word.owner != owner ? 0 : word.free
    volume.updateGroup(g) {
      $0.free = word.free
      $0.owner = word.owner
    }
    volume.addAvailable(after - before, group: g)
    backedFree += after - before
    volume.used += inUse
    used += inUse
    if word.owner != owner { volume.foreign += word.free }
  }

  // MARK: Figures, in blocks; all but the last two are O(1)

  /// Capacity less the blocks that file systems may not have any more.
  var effectiveCapacity: Int { used + reserved + releasedPending + backedFree }

  /// Of `backedFree`, what only metadata may take (R22).
  package var metadataReserve: Int {
    let share = effectiveCapacity / 1000 * configuration.reservePerMille
    let least = min(configuration.reserveMinimum, total / 4)
    return min(max(share, least), configuration.reserveMaximum)
  }

  /// What new homes may take now: `backedFree` less the reserve.
  package var available: Int { max(0, backedFree - metadataReserve) }

  /// So much waits for the next root that it should come soon.
  package var wantsCheckpoint: Bool { releases.count + deltas.count > 1 << 16 }

  /// Free blocks that more backing may turn into `backedFree`; 0 when every file system is full.
  package var backable: Int {
    var n = 0
    for v in volumes where v.isSparse && !v.backing.isFull { n += v.unbacked }
    return n
  }

  /// Whether a file system that holds a volume had no more space.
  package var isBackingFull: Bool { volumes.contains { $0.isSparse && $0.backing.isFull } }
}
