/// Which blocks of all volumes are in use, reserved, or waiting to become free: the allocator.
package final class SpaceMap {
  /// Limits and tunables, fixed at start.
  package struct Configuration: Sendable {
    /// The unit whose groups are handed out.
    package var unit: UInt8 = 0
    /// Chunks in memory (3 KiB each) beyond which clean ones are dropped and a checkpoint is asked
    /// for; chunks that can't be dropped may exceed it.
    package var chunkLimit = 4096
    /// Metadata reserve: this part (in 1/1,000) of the effective capacity ...
    package var reservePerMille = 30
    /// ... but at least and at most so many blocks (16 MiB, 4 GiB).
    package var reserveMinimum = 4096
    package var reserveMaximum = 1 << 20
    /// Backed free blocks that a sparse file keeps; what is freed beyond goes back to its file
    /// system (64 MiB).
    package var punchSlack = 16_384
    package init() {}
  }

  package init(_ configuration: Configuration = .init()) { invariantBroken("skeleton") }

  // MARK: Opening

  /// Takes volume `index` (the next number) into service; before `open`, or at any time later.
  package func addVolume(_ index: Int, _ description: DeviceDescription) {
    invariantBroken("skeleton")
  }

  /// Names the space tree; before `open`.
  package func attach(_ store: any ChunkStore) { invariantBroken("skeleton") }

  /// Reads the group words; to be called again after each wait. Throws `.damaged(.none)` when
  /// they contradict the volumes or the totals. Nothing to read in a new pool.
  package func open() throws(SpaceWait) { invariantBroken("skeleton") }

  // MARK: Figures, in blocks, all O(1)

  /// Capacity of all volumes, without labels.
  package var total: Int { invariantBroken("skeleton") }
  /// What the maps refer to as of the changes applied so far.
  package var used: Int { invariantBroken("skeleton") }
  /// Of `used`, the copies of metadata nodes.
  package var metadata: Int { invariantBroken("skeleton") }
  /// Runs handed out and not yet referred to.
  package var reserved: Int { invariantBroken("skeleton") }
  /// Freed, but waiting for a durable root or for the punch.
  package var releasedPending: Int { invariantBroken("skeleton") }
  /// Can be allocated at once: free, and backed by the file system.
  package var backedFree: Int { invariantBroken("skeleton") }
  /// Of `backedFree`, what only metadata may take.
  package var metadataReserve: Int { invariantBroken("skeleton") }
  /// What new homes may take now: `backedFree` less the reserve.
  package var available: Int { invariantBroken("skeleton") }
  /// Free blocks that more backing may turn into `backedFree`; 0 when every file system is full.
  package var backable: Int { invariantBroken("skeleton") }
  /// Memory is getting short: end the cycle soon and take a checkpoint.
  package var wantsCheckpoint: Bool { invariantBroken("skeleton") }

  // MARK: Runs

  /// Up to `want` (at most 8,192) contiguous free backed blocks, marked as reserved; at least
  /// `minimum`.
  ///
  /// `near` is the block wanted first, usually the one right behind the disk's last run: it is
  /// tried first, then its chunk, its group, and then the volume with most free space. Never
  /// takes from the metadata reserve. Throws `.backing` when only blocks without backing are
  /// left; nil: no space.
  package func allocateRun(
    near: BlockAddress?, want: Int, minimum: Int
  ) throws(SpaceWait) -> BlockRun? { invariantBroken("skeleton") }

  /// Gives a reserved run, or an unused part of one, back: allocatable again at once.
  package func returnRun(_ run: BlockRun) { invariantBroken("skeleton") }

  /// The same for a range that was never mapped, of any length (a large write that failed).
  package func cancelReservation(_ address: BlockAddress, _ count: Int) {
    invariantBroken("skeleton")
  }

  /// Recovery (R17): reserves blocks that a large write of the log was put into. False, and
  /// nothing changed, when one of them is not free: the log and the space tree contradict.
  package func reserve(_ address: BlockAddress, _ count: Int) throws(SpaceWait) -> Bool {
    invariantBroken("skeleton")
  }

  // MARK: Changes of a checkpoint

  /// The maps refer to these reserved blocks now; part of the next checkpoint.
  package func noteAllocated(_ address: BlockAddress, _ count: Int) {
    invariantBroken("skeleton")
  }

  /// The maps refer to these blocks no more; part of the next checkpoint. They stay busy until
  /// its root is durable, and until the punch is done where there is one.
  package func noteReleased(_ address: BlockAddress, _ count: Int) { invariantBroken("skeleton") }

  /// Works off what `noteReleased` queued; to be called again after each wait.
  package func applyDeltas() throws(SpaceWait) { invariantBroken("skeleton") }

  /// Stores every change in the space tree; to be called again after each wait. Afterwards only
  /// tree nodes are left to write. Call it again when nodes were given new addresses later.
  package func commit() throws(SpaceWait) { invariantBroken("skeleton") }

  /// The root of the last `commit` is durable on every volume: what was released before that
  /// commit is free, or goes to the punch queue.
  package func rootDurable() { invariantBroken("skeleton") }

  // MARK: Punch queue

  /// The next freed range to discard on its device, nil when there is none. At most 32 MiB.
  package func nextPunch() -> DeviceRange? { invariantBroken("skeleton") }

  /// The discard ended; with an error the blocks are free all the same.
  package func punchDone(_ range: DeviceRange, error: Int32) { invariantBroken("skeleton") }

  // MARK: Backing (R23)

  /// The next range of a sparse file to allocate so that `target` blocks are `available`; nil
  /// when they are, or when the file systems have no more. One at a time for each volume.
  package func nextBacking(target: Int) throws(SpaceWait) -> DeviceRange? {
    invariantBroken("skeleton")
  }
  package func backingDone(_ range: DeviceRange) { invariantBroken("skeleton") }
  package func backingFailed(_ range: DeviceRange, error: Int32) { invariantBroken("skeleton") }
  /// Forget that file systems were full: something was deleted there, or some time has passed.
  package func spaceMayHaveReturned() { invariantBroken("skeleton") }

  // MARK: Metadata nodes (NodeAllocator)

  /// Makes sure that `takeNode` can be called `count` times.
  package func prepareNodes(_ count: Int) throws(SpaceWait) { invariantBroken("skeleton") }
  /// Addresses for the two copies of a metadata node, in use from now on.
  package func takeNode() -> (BlockAddress, BlockAddress) { invariantBroken("skeleton") }
  /// The node is not needed by the next checkpoint.
  package func releaseNode(_ first: BlockAddress, _ second: BlockAddress) {
    invariantBroken("skeleton")
  }

  /// Compares counters with the bitmaps in memory; stops the process when they differ.
  package func verify() { invariantBroken("skeleton") }
}
