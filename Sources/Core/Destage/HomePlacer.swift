/// Gives blocks new homes, those of a disk side by side in the order of the disk.
///
///     new homes:   run ─▶ a b · d e        c was overwritten behind the cut: its place is left
///     next cycle:            c             it takes the place behind b's home
struct HomePlacer {
  private let pool: Pool
  /// The key behind the last block that was given the next place of its disk's run.
  private var placedEnd: UInt64 = 0

  init(_ pool: Pool) { self.pool = pool }

  /// The place behind the home of the block in front, if it is free, as `leavePlace` has left it.
  /// Else what comes next of the disk's run. `last`: what was gathered before.
  mutating func newHome(
    of key: IndexKey, _ layer: Layer, after last: DestageItem?
  ) throws(SpaceWait) -> BlockAddress {
    if layer.placesLeft > 0, key.block.raw > 0 {
      var front: BlockAddress?
      if let last, last.key.raw + 1 == key.raw {
        front = last.target
      } else {
        front = try layer.ownHome(of: BlockIndex(key.block.raw - 1))
      }
      // Behind the last home the run goes on, or the next one does.
      if let front, front != layer.lastHome, pool.space.allocate(at: front + 1) {
        layer.placesLeft -= 1
        return front + 1
      }
    }
    guard let home = try takeNext(layer) else { throw .noSpace }
    placedEnd = key.raw + 1
    return home
  }

  /// A block that was overwritten behind the cut gets its home in the next cycle: its place between
  /// its neighbours is kept free until then.
  mutating func leavePlace(for entry: IndexEntry) throws(SpaceWait) {
    guard entry.kind == .log, entry.key.raw == placedEnd,
      let layer = pool.layers[entry.key.slot], layer.map != nil,
      try layer.ownHome(of: entry.key.block) == nil, let place = try takeNext(layer)
    else { return }
    pool.space.returnRun(BlockRun(place, 1))
    layer.placesLeft += 1
    placedEnd += 1
  }

  /// The next place of the disk's run, of a new one where there is none; nil: no space.
  private func takeNext(_ layer: Layer) throws(SpaceWait) -> BlockAddress? {
    if layer.run == nil {
      let near = layer.lastHome.map { $0 + 1 }
      layer.run = try pool.space.allocateRun(
        near: near, want: layer.runLength, minimum: 1, promised: true)
      layer.runLength = min(layer.runLength * 2, 4096)
    }
    guard let run = layer.run else { return nil }
    layer.lastHome = run.address
    layer.run = run.count > 1 ? BlockRun(run.address + 1, run.count - 1) : nil
    return run.address
  }
}
