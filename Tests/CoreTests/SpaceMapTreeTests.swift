import Core
import Testing

/// A pool in small: a space map whose bitmaps are in a real tree, another tree that takes nodes
/// from it, and runs of data, on toy devices. Every wait is met, every crash reopens from the
/// last root.
private final class ToyPool {
  let volumes: [DeviceDescription]
  let configuration: SpaceMap.Configuration
  let cacheBytes: Int
  var device: [BlockAddress: [UInt8]] = [:]
  var cache: BlockCache
  var store: NodeStore
  var map: SpaceMap
  var spaceTree: Tree
  var other: Tree
  var random: SeededRandom

  var roots: (space: NodePointer, other: NodePointer, checkpoint: UInt64) = (.none, .none, 0)
  /// Blocks that the last durable root refers to.
  var durable: Set<BlockAddress> = []
  var mapped: [BlockRun] = []
  var durableMapped: [BlockRun] = []
  var reserved: [BlockRun] = []
  var loads = 0
  var spills = 0
  var backings = 0
  var model: [TreeKey: Int] = [:]
  var durableModel: [TreeKey: Int] = [:]

  init(
    _ volumes: [DeviceDescription], cacheBytes: Int, seed: UInt64,
    _ configuration: SpaceMap.Configuration
  ) {
    self.volumes = volumes
    self.configuration = configuration
    self.cacheBytes = cacheBytes
    random = SeededRandom(seed: seed)
    (cache, store, map, spaceTree, other) = Self.open(volumes, cacheBytes, roots, configuration)
    run { () throws(SpaceWait) in try map.open(metadata: roots.space) }
  }

  private static func open(
    _ volumes: [DeviceDescription], _ cacheBytes: Int,
    _ roots: (space: NodePointer, other: NodePointer, checkpoint: UInt64),
    _ configuration: SpaceMap.Configuration
  ) -> (BlockCache, NodeStore, SpaceMap, Tree, Tree) {
    let cache = BlockCache(bytes: cacheBytes)
    let store = NodeStore(cache: cache, checkpoint: roots.checkpoint + 1)
    let map = SpaceMap(configuration)
    for (i, v) in volumes.enumerated() { map.addVolume(i, v) }
    let space = Tree(store: store, kind: .space, owner: ObjectID(2), root: roots.space)
    let other = Tree(store: store, kind: .objects, owner: ObjectID(3), root: roots.other)
    store.allocator = map
    map.attach(space)
    return (cache, store, map, space, other)
  }

  // MARK: Waits

  func run<R>(_ body: () throws(SpaceWait) -> R) -> R {
    for _ in 0..<100_000 {
      do throws(SpaceWait) {
        return try body()
      } catch {
        switch error {
        case .node(let pointer): load(pointer)
        case .memory: spill(limit: 16)
        case .backing(let device, let offset, let length):
          backings += 1
          map.backingDone(DeviceRange(device: device, offset: offset, length: length))
        default: fatalError("unexpected wait \(error)")
        }
      }
    }
    fatalError("a call never ends")
  }

  func load(_ pointer: NodePointer) {
    guard case .started(let load) = store.beginLoad(pointer) else {
      fatalError("a load does not start")
    }
    loads += 1
    // Either copy serves: they are in different places with the same content.
    guard let block = device[random.oneIn(2) ? pointer.first : pointer.second] else {
      fatalError("a node was never written")
    }
    block.withUnsafeBytes { load.memory.copyMemory(from: $0.baseAddress!, byteCount: blockSize) }
    precondition(store.finishLoad(load, copy: 0, error: 0) == .ready)
  }

  @discardableResult
  func spill(limit: Int) -> Bool {
    var writes: [NodeWrite] = []
    store.writeback(into: &writes, limit: limit)
    for write in writes {
      let write = random.oneIn(50) ? moved(write) : write
      let bytes = [UInt8](UnsafeRawBufferPointer(start: write.memory, count: blockSize))
      for address in [write.first, write.second] {
        precondition(!durable.contains(address), "a durable block is overwritten")
        device[address] = bytes
      }
      store.writebackDone(write)
    }
    spills += writes.count
    return !writes.isEmpty
  }

  /// The write fails, and the node moves, but where that must wait.
  private func moved(_ write: NodeWrite) -> NodeWrite { (try? store.move(write)) ?? write }

  // MARK: Changes

  func allocate() {
    let near = random.oneIn(2) ? mapped.last?.end : nil
    let want = 1 + Int(random.below(200))
    let run = run { () throws(SpaceWait) in
      try map.allocateRun(near: near, want: want, minimum: 1)
    }
    if let run { reserved.append(run) }
  }

  func mapOne() {
    guard let run = reserved.popLast() else { return }
    map.noteAllocated(run.address, run.count)
    mapped.append(run)
  }

  func release() {
    guard !mapped.isEmpty else { return }
    let i = Int(random.below(UInt64(mapped.count)))
    mapped.swapAt(i, mapped.count - 1)
    let run = mapped.removeLast()
    map.noteReleased(run.address, run.count)
  }

  func changeOther() {
    let key = TreeKey(hi: random.below(500), lo: 0)
    if random.oneIn(3) {
      _ = run { () throws(SpaceWait) in try other.remove(key) }
      model[key] = nil
    } else {
      let size = Int(random.below(400))
      _ = run { () throws(SpaceWait) in
        try other.insertOrReplace(key, toyValue(key.hi, size))
      }
      model[key] = size
    }
  }

  /// A whole checkpoint; with `until` it is cut off in the midst, as by a crash.
  func checkpoint(cutOff: Bool) {
    repeat {
      run { () throws(SpaceWait) in try map.commit() }
      // Relocations change the map again: then another round.
    } while spill(limit: cutOff ? 3 : 1000) && !cutOff
    if cutOff { return }
    precondition(store.dirtyCount == 0)
    roots = (spaceTree.root, other.root, store.checkpoint)
    durableMapped = mapped
    durableModel = model
    durable = referred()
    map.rootDurable()
    store.beginCheckpoint(store.checkpoint + 1)
  }

  func crash() {
    (cache, store, map, spaceTree, other) = Self.open(volumes, cacheBytes, roots, configuration)
    reserved = []
    mapped = durableMapped
    model = durableModel
    run { () throws(SpaceWait) in try map.open(metadata: roots.space) }
    #expect(map.used == durable.count)
  }

  // MARK: Checks

  /// Every block that the last roots lead to: data, and both copies of all nodes. Found by an
  /// independent walk, in a cache of its own.
  func referred() -> Set<BlockAddress> {
    let store = NodeStore(cache: BlockCache(bytes: 32 << 20), checkpoint: .max)
    var all: Set<BlockAddress> = []
    func add(_ a: BlockAddress) {
      if !all.insert(a).inserted { Issue.record("block \(a.raw) is referred to twice") }
    }
    for (root, kind, owner) in [
      (roots.space, NodeKind.space, 2 as UInt64), (roots.other, .objects, 3),
    ] {
      let tree = Tree(store: store, kind: kind, owner: ObjectID(owner), root: root)
      var own: [NodePointer] = []
      while true {
        do throws(SpaceWait) {
          own = []
          _ = try tree.verify { own.append($0) }
          break
        } catch {
          guard case .node(let p) = error, case .started(let load) = store.beginLoad(p),
            let block = device[p.second]
          else { fatalError("a tree can't be walked: \(error)") }
          block.withUnsafeBytes {
            load.memory.copyMemory(from: $0.baseAddress!, byteCount: blockSize)
          }
          precondition(store.finishLoad(load, copy: 0, error: 0) == .ready)
        }
      }
      for p in own {
        add(p.first)
        add(p.second)
      }
    }
    for run in mapped { for i in 0..<UInt64(run.count) { add(run.address + i) } }
    return all
  }

  /// The bits of the space tree are exactly the blocks that are referred to.
  func checkBits() {
    var bits: Set<BlockAddress> = []
    var cursor = spaceTree.cursor(from: TreeKey(hi: 1, lo: 0))
    while true {
      let entry = run { () throws(SpaceWait) in
        try cursor.next().map { ($0.key, $0.value.array) }
      }
      guard let (key, bytes) = entry, key.hi == 1 else { break }
      for (i, byte) in bytes.enumerated() where byte != 0 {
        for bit in 0..<8 where byte >> bit & 1 != 0 {
          let block = (key.lo & 0xFFFF_FFFF_FFFF) * 8192 + UInt64(i * 8 + bit)
          bits.insert(BlockAddress(volume: Int(key.lo >> 48), block: block))
        }
      }
    }
    let same = bits == durable
    #expect(same, "\(bits.count) bits are set, \(durable.count) blocks are referred to")
  }
}

@Suite struct SpaceMapTreeTests {
  @Test(arguments: 1...4 as ClosedRange<UInt64>)
  func theSpaceTreeHoldsExactlyWhatTheDurableRootRefersTo(seed: UInt64) {
    var configuration = SpaceMap.Configuration()
    configuration.chunkLimit = 64
    let pool = ToyPool(
      seed % 2 == 0
        ? [device(30_000), device(50_000)] : [device(3_000_000, sparse: seed == 3)],
      cacheBytes: seed < 3 ? 1 << 20 : 400 << 10, seed: seed, configuration)
    var crashes = 0
    for step in 0..<4000 {
      switch pool.random.below(100) {
      case 0..<20: pool.allocate()
      case 20..<35: pool.mapOne()
      case 35..<45: pool.release()
      case 45..<96: pool.changeOther()
      case 96..<98:
        pool.checkpoint(cutOff: false)
        pool.checkBits()
        pool.map.verify()
      default:
        if pool.random.oneIn(4) {
          pool.checkpoint(cutOff: true)
          pool.crash()
          pool.checkBits()
          crashes += 1
        }
      }
      if step % 500 == 0 { pool.map.verify() }
    }
    #expect(crashes > 5 && pool.spills > 500)
    #expect(pool.loads > 100)
  }

  @Test func metadataIsCountedAcrossRestarts() {
    let pool = ToyPool([device(100_000)], cacheBytes: 1 << 20, seed: 1, .init())
    for _ in 0..<500 { pool.changeOther() }
    pool.checkpoint(cutOff: false)
    let nodes = pool.referred().count
    #expect(pool.map.metadata == nodes)
    pool.crash()
    #expect(pool.map.metadata == nodes)
    #expect(pool.map.used == nodes)
  }

  @Test func aCommitWithoutChangesWritesNothing() {
    let pool = ToyPool([device(100_000)], cacheBytes: 1 << 20, seed: 1, .init())
    for _ in 0..<100 { pool.changeOther() }
    pool.checkpoint(cutOff: false)
    pool.run { () throws(SpaceWait) in try pool.map.commit() }
    #expect(pool.store.dirtyCount == 0)
  }

  @Test func aSmallChangeOfALargePoolWritesAHandfulOfNodes() {
    let pool = ToyPool(
      [device(1 << 30), device(1 << 30)], cacheBytes: 8 << 20, seed: 1, .init())
    for i in 0..<300 {
      let at = BlockAddress(volume: i % 2, block: UInt64(i) * 1_000_000 + 600)
      let free = pool.run { () throws(SpaceWait) in try pool.map.reserve(at, 8) }
      #expect(free)
      pool.map.noteAllocated(at, 8)
      pool.mapped.append(BlockRun(at, 8))
    }
    pool.checkpoint(cutOff: false)
    pool.spills = 0
    pool.release()
    pool.checkpoint(cutOff: false)
    // A bitmap's leaf, those of two metadata chunks, of group words and totals, and their paths.
    #expect(pool.spills < 16)
    pool.checkBits()
  }
}
