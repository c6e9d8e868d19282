// Addresses for metadata nodes. A node is written twice (R20): to different volumes where there are
// two with space, else to places at least 32 MiB apart, else, in a volume too small for that or
// too full, to any two blocks. Pairs are made in advance, a stash of reserved blocks, so that
// `takeNode` can't fail; what a crash leaves of the stash was only ever reserved in memory.

struct NodeStash {
  /// Pairs ready to be taken, from `head` on.
  var pairs: [(first: BlockAddress, second: BlockAddress)] = []
  var head = 0
  /// Where the next first and second copies are wanted.
  var first = BlockAddress.none
  var second = BlockAddress.none

  /// No chunk had space to spare, so until a root is durable none is looked for.
  var takesAnything = false

  var count: Int { pairs.count - head }
}

extension SpaceMap {
  /// Pairs that are made at a time; short enough to leave little behind in a small pool.
  private static let pairsPerRefill = 64

  /// Makes sure that `takeNode` can be called `count` times. May use the metadata reserve.
  package func prepareNodes(_ count: Int) throws(SpaceWait) {
    while nodes.count < count { try addPairs() }
  }

  /// Addresses for the two copies of a metadata node, in use from now on.
  package func takeNode() -> (first: BlockAddress, second: BlockAddress) {
    invariant(nodes.count > 0, "a node is taken that was not prepared")
    let pair = nodes.pairs[nodes.head]
    nodes.head += 1
    if nodes.head == nodes.pairs.count {
      nodes.pairs.removeAll(keepingCapacity: true)
      nodes.head = 0
    }
    noteAllocated(pair.first, 1)
    noteAllocated(pair.second, 1)
    metadata += 2
    return pair
  }

  /// The node is not needed by the next checkpoint.
  package func releaseNode(_ first: BlockAddress, _ second: BlockAddress) {
    noteReleased(first, 1)
    noteReleased(second, 1)
    metadata -= 2
  }

  /// Finds a run for the first copies and one for the second, and pairs their blocks.
  private func addPairs() throws(SpaceWait) {
    var search = RunSearch(want: Self.pairsPerRefill, minimum: 1, forMetadata: true)
    guard var a = try findNodes(near: nodes.first, search) else {
      if let range = try backingForRuns() { throw .backing(range) }
      throw .noSpace
    }
    // The second search may load chunks; the first one's must not go, and its blocks not be found
    // again.
    take(a)
    var b: BlockRun?
    do {
      search.want = a.count
      search.apartFrom = a.address
      b = try findSecond(search)
    } catch {
      returnRun(a)
      throw error
    }
    if b == nil { b = splitRun(&a) }
    guard let b else {
      returnRun(a)
      if let range = try backingForRuns() { throw .backing(range) }
      throw .noSpace
    }
    pair(a, b)
  }

  /// A run for the second copies: on another volume, else apart, else anywhere.
  private func findSecond(_ search: RunSearch) throws(SpaceWait) -> BlockRun? {
    var search = search
    let near = nodes.second
    search.otherVolume = true
    if let run = try findNodes(near: near, search) { return taken(run) }
    if let range = try backingForSecond(search, otherVolume: true) { throw .backing(range) }
    search.otherVolume = false
    if let run = try findNodes(near: near, search) { return taken(run) }
    if let range = try backingForSecond(search, otherVolume: false) { throw .backing(range) }
    while search.chunksApart > 0 {
      search.chunksApart -= 1
      if let run = try findNodes(near: near, search) { return taken(run) }
    }
    return nil
  }

  /// In a chunk that nodes have begun, else in one that is mostly free, else anywhere.
  private func findNodes(near: BlockAddress, _ search: RunSearch) throws(SpaceWait) -> BlockRun? {
    var search = search
    let near = near.isNone ? nil : near
    if !nodes.takesAnything {
      search.spare = SpaceFormat.chunkBlocks * 3 / 4
      if let run = try findRun(near: near, search) { return run }
      search.spare = 0
    }
    guard let run = try findRun(near: near, search) else { return nil }
    nodes.takesAnything = true
    return run
  }

  private func taken(_ run: BlockRun) -> BlockRun {
    take(run)
    return run
  }

  /// The last resort: nothing is free but the first run, so its halves are paired.
  private func splitRun(_ run: inout BlockRun) -> BlockRun? {
    let half = run.count / 2
    guard half > 0 else { return nil }
    let second = BlockRun(run.address + UInt64(half), half)
    let rest = run.count - 2 * half
    if rest > 0 { returnRun(BlockRun(second.end, rest)) }
    run.count = half
    return second
  }

  /// Puts the pairs of two reserved runs into the stash and gives the longer one's rest back.
  private func pair(_ a: BlockRun, _ b: BlockRun) {
    let count = min(a.count, b.count)
    for i in 0..<UInt64(count) { nodes.pairs.append((a.address + i, b.address + i)) }
    for run in [a, b] {
      if run.count > count {
        returnRun(BlockRun(run.address + UInt64(count), run.count - count))
      }
      let piece = firstPiece(run.address, 1)
      table.infos[residentSlot(piece.key, "pair")].isMetadata = true
    }
    nodes.first = cursor(behind: a, count)
    nodes.second = cursor(behind: b, count)
  }

  /// Where to go on: behind the run, but in its chunk, so that freed blocks there are found again
  /// before metadata spreads to another chunk.
  private func cursor(behind run: BlockRun, _ count: Int) -> BlockAddress {
    let last = run.address + UInt64(count - 1)
    return Int(last.block + 1) % SpaceFormat.chunkBlocks == 0 ? last : last + 1
  }
}
