import Core

/// Stands in for the allocator: address pairs in ascending order, reused only when released
/// before the last commit; knows what is in use, so that tests find leaks and double frees.
final class ToyAllocator: NodeAllocator {
  var random: SeededRandom
  /// Once in so many times `prepareNodes` throws `noSpace` first; 0: never.
  var refuseOneIn: UInt64 = 0
  /// For damaged trees: does not check what is released.
  var isLax = false
  private(set) var inUse: [BlockAddress: BlockAddress] = [:]
  private(set) var released: [(BlockAddress, BlockAddress)] = []
  private var reusable: [(BlockAddress, BlockAddress)] = []
  private var nextBlock: UInt64 = 512
  private var stash = 0

  init(seed: UInt64) { random = SeededRandom(seed: seed) }

  func prepareNodes(_ count: Int) throws(SpaceWait) {
    if refuseOneIn > 0 && random.oneIn(refuseOneIn) { throw .noSpace }
    stash = max(stash, count)
  }

  func takeNode() -> (first: BlockAddress, second: BlockAddress) {
    precondition(stash > 0, "more nodes taken than were prepared")
    stash -= 1
    let pair: (BlockAddress, BlockAddress)
    if let old = reusable.popLast() {
      pair = old
    } else {
      pair = (BlockAddress(volume: 0, block: nextBlock), BlockAddress(volume: 1, block: nextBlock))
      nextBlock += 1
    }
    precondition(inUse.updateValue(pair.1, forKey: pair.0) == nil)
    return pair
  }

  func releaseNode(_ first: BlockAddress, _ second: BlockAddress) {
    let known = inUse.removeValue(forKey: first)
    precondition(isLax || known == second, "a node is released twice")
    released.append((first, second))
  }

  /// The root is durable: what was released before may be used again.
  func commit() {
    reusable += released
    released = []
  }

  /// After a crash: exactly `live` is in use.
  func restart(live: [NodePointer]) {
    inUse = [:]
    for p in live { inUse[p.first] = p.second }
    released = []
    reusable = []
    stash = 0
  }
}

/// A cache, a store and a device in memory, and what the engine does with them: loads nodes that
/// walks ask for, spills, commits.
final class ToySpace {
  var device: [BlockAddress: [UInt8]] = [:]
  let allocator: ToyAllocator
  private(set) var cache: BlockCache
  private(set) var store: NodeStore
  private(set) var loads = 0
  private(set) var spills = 0
  /// Writes under way, with the bytes that they began with.
  private var inFlight: [(NodeWrite, [UInt8])] = []
  /// Addresses that the last durable roots refer to: never to be overwritten.
  var durable: Set<BlockAddress> = []
  let cacheBytes: Int

  init(seed: UInt64, cacheBytes: Int = 1 << 20) {
    allocator = ToyAllocator(seed: seed)
    self.cacheBytes = cacheBytes
    cache = BlockCache(bytes: cacheBytes)
    store = NodeStore(cache: cache, checkpoint: 1)
    store.allocator = allocator
  }

  /// Drops all memory, as after a crash.
  func restart() {
    let checkpoint = store.checkpoint
    inFlight = []
    cache = BlockCache(bytes: cacheBytes)
    store = NodeStore(cache: cache, checkpoint: checkpoint)
    store.allocator = allocator
  }

  /// As the engine does it: the first copy, then the second.
  @discardableResult
  func loadOrDamage(_ pointer: NodePointer) -> LoadOutcome {
    guard case .started(let load) = store.beginLoad(pointer) else { return .damaged }
    for (copy, address) in [pointer.first, pointer.second].enumerated() {
      let block = device[address]
      block?.withUnsafeBytes { load.memory.copyMemory(from: $0.baseAddress!, byteCount: blockSize) }
      let outcome = store.finishLoad(load, copy: copy, error: block == nil ? 5 : 0)
      if outcome != .tryOther { return outcome }
    }
    fatalError("a load tries a third copy")
  }

  func load(_ pointer: NodePointer) {
    guard case .started(let load) = store.beginLoad(pointer) else {
      // No slot is free: what is dirty has to go first.
      if !endWrite() { startWrites(limit: 64) }
      return
    }
    loads += 1
    guard let block = device[pointer.first] else { fatalError("a node was never written") }
    block.withUnsafeBytes { load.memory.copyMemory(from: $0.baseAddress!, byteCount: blockSize) }
    precondition(store.finishLoad(load, copy: 0, error: 0) == .ready, "a node is damaged")
  }

  /// Runs a walk or change until it needs nothing more.
  @discardableResult
  func run<R>(_ body: () throws(SpaceWait) -> R) -> R {
    for _ in 0..<100_000 {
      do throws(SpaceWait) {
        return try body()
      } catch {
        switch error {
        case .node(let pointer): load(pointer)
        case .memory: if !endWrite() { startWrites(limit: 64) }
        case .noSpace: continue
        default: fatalError("unexpected wait \(error)")
        }
      }
    }
    fatalError("a walk never ends")
  }

  /// Begins to write some dirty nodes, which goes on while trees are used.
  func startWrites(limit: Int) {
    var writes: [NodeWrite] = []
    store.writeback(into: &writes, limit: limit)
    for write in writes {
      inFlight.append(
        (write, [UInt8](UnsafeRawBufferPointer(start: write.memory, count: blockSize))))
    }
  }

  /// Ends the oldest write; false when there was none.
  @discardableResult
  func endWrite() -> Bool {
    guard !inFlight.isEmpty else { return false }
    let (write, bytes) = inFlight.removeFirst()
    precondition(
      UnsafeRawBufferPointer(start: write.memory, count: blockSize).elementsEqual(bytes),
      "a node was changed while it was being written")
    put(write)
    store.writebackDone(write)
    spills += 1
    return true
  }

  /// Writes some dirty nodes, and what is being written; false when there were none.
  @discardableResult
  func spill(limit: Int, only tree: Tree? = nil) -> Bool {
    var some = false
    while endWrite() { some = true }
    var writes: [NodeWrite] = []
    store.writeback(into: &writes, limit: limit, only: tree)
    for write in writes {
      put(write)
      store.writebackDone(write)
    }
    spills += writes.count
    return some || !writes.isEmpty
  }

  func put(_ write: NodeWrite) {
    precondition(!durable.contains(write.first), "a node of a durable root is overwritten")
    let bytes = [UInt8](UnsafeRawBufferPointer(start: write.memory, count: blockSize))
    device[write.first] = bytes
    device[write.second] = bytes
  }

  /// Writes all dirty nodes and begins the next checkpoint.
  func commit(_ trees: [Tree]) {
    while spill(limit: 100) {}
    precondition(store.dirtyCount == 0)
    durable = []
    for pointer in live(trees) { durable.insert(pointer.first) }
    allocator.commit()
    store.beginCheckpoint(store.checkpoint + 1)
  }

  /// All nodes of the trees, which must be clean; each once. Reads and verifies them on the device
  /// itself, past store and cache, as an offline check does.
  func live(_ trees: [Tree]) -> [NodePointer] {
    var seen: Set<BlockAddress> = []
    var pointers: [NodePointer] = []
    var waiting: [NodePointer] = []
    for tree in trees where !tree.isEmpty {
      precondition(!tree.isDirty)
      waiting.append(tree.root)
    }
    while let pointer = waiting.popLast() {
      if !seen.insert(pointer.first).inserted { continue }
      pointers.append(pointer)
      guard let block = device[pointer.first] else { fatalError("a node was never written") }
      precondition(device[pointer.second] == block, "the copies of a node differ")
      block.withUnsafeBytes { bytes in
        let p = bytes.baseAddress!
        precondition(NodeFormat.fault(in: p, of: pointer) == nil, "a node on the device is bad")
        guard pointer.level > 0 else { return }
        for i in 0..<Int(p.u16(12)) { waiting.append(NodePointer(decoding: p + 64 + 48 * i + 16)) }
      }
    }
    return pointers
  }
}

/// Bytes that a seed and a length determine.
func toyValue(_ seed: UInt64, _ count: Int) -> [UInt8] {
  var random = SeededRandom(seed: seed)
  return (0..<count).map { _ in UInt8(truncatingIfNeeded: random.next()) }
}

extension TreeValue {
  var array: [UInt8] { Array(bytes) }
}

/// A space with a committed tree of `entries` entries.
func plantedTree(_ entries: UInt64) -> (ToySpace, Tree) {
  let space = ToySpace(seed: 1)
  let tree = Tree(store: space.store, kind: .objects, owner: ObjectID(7), birth: 5)
  for i in 0..<entries {
    space.run { () throws(SpaceWait) in
      try tree.insertOrReplace(TreeKey(hi: i * 2, lo: i), toyValue(i, 40))
    }
  }
  space.commit([tree])
  return (space, tree)
}
