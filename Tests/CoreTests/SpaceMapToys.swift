import Core

/// A stand-in for the space tree: a table whose entries lie in "leaves" of three, each of which
/// takes two node addresses when it is first changed in a checkpoint, as copy-on-write does. Leaves
/// may be absent from memory, so that calls throw and must be repeated.
final class ToyStore: ChunkStore {
  struct Leaf {
    var pair: (BlockAddress, BlockAddress)
    var isDirty = false
  }

  unowned let map: SpaceMap
  private(set) var entries: [SpaceKey: [UInt8]] = [:]
  private var keys: [SpaceKey] = []
  private var leaves: [SpaceKey: Leaf] = [:]
  private var loaded: Set<SpaceKey> = []
  private var random: SeededRandom
  private var out = AlignedMemory(bytes: blockSize)
  /// One access in so many finds its leaf absent; 0: never.
  var missRate: UInt64
  var misses = 0
  /// Its device refuses to read, everything or one value.
  var isDown = false
  var refused: SpaceKey?
  private static let refusal = NodePointer(
    first: BlockAddress(raw: 1), second: BlockAddress(raw: 2), birth: 0, checksum: 0, level: 0)
  var took: (BlockAddress) -> Void = { _ in }
  var released: (BlockAddress) -> Void = { _ in }

  init(map: SpaceMap, seed: UInt64, missRate: UInt64 = 0) {
    self.map = map
    self.missRate = missRate
    random = SeededRandom(seed: seed)
  }

  /// A store with the content of `other`, as after a restart.
  init(map: SpaceMap, durable other: Durable, seed: UInt64, missRate: UInt64) {
    self.map = map
    self.missRate = missRate
    entries = other.entries
    leaves = other.leaves
    keys = entries.keys.sorted()
    random = SeededRandom(seed: seed)
  }

  struct Durable {
    var entries: [SpaceKey: [UInt8]] = [:]
    var leaves: [SpaceKey: Leaf] = [:]
  }
  /// What is written with the root: the state after `commit`.
  func checkpoint() -> Durable {
    for key in leaves.keys { leaves[key]?.isDirty = false }
    return Durable(entries: entries, leaves: leaves)
  }
  var nodeAddresses: [BlockAddress] { leaves.values.flatMap { [$0.pair.0, $0.pair.1] } }

  private func leaf(_ key: SpaceKey) -> SpaceKey { SpaceKey(hi: key.hi, lo: key.lo / 3) }

  private func touch(_ key: SpaceKey) throws(SpaceWait) {
    if isDown { throw .damaged(.none) }
    if key == refused { throw .damaged(Self.refusal) }
    guard missRate > 0 else { return }
    if loaded.remove(leaf(key)) != nil { return }
    if random.oneIn(missRate) {
      misses += 1
      loaded.insert(leaf(key))
      throw .node(.none)
    }
  }

  private func view(_ bytes: [UInt8]) -> UnsafeRawBufferPointer {
    bytes.withUnsafeBytes { out.base.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
    return UnsafeRawBufferPointer(start: out.base, count: bytes.count)
  }

  func value(_ key: SpaceKey) throws(SpaceWait) -> UnsafeRawBufferPointer? {
    try touch(key)
    guard let bytes = entries[key] else { return nil }
    return view(bytes)
  }

  func entry(
    from key: SpaceKey
  ) throws(SpaceWait) -> (key: SpaceKey, value: UnsafeRawBufferPointer)? {
    try touch(key)
    guard let i = keys.firstIndex(where: { $0 >= key }) else { return nil }
    return (keys[i], view(entries[keys[i]]!))
  }

  func isRefused(_ pointer: NodePointer) -> Bool { isDown || pointer == Self.refusal }

  func put(_ key: SpaceKey, _ value: UnsafeRawBufferPointer) throws(SpaceWait) {
    try map.prepareNodes(4)
    try touch(key)
    let id = leaf(key)
    if leaves[id]?.isDirty != true {
      if let old = leaves[id] {
        released(old.pair.0)
        released(old.pair.1)
        map.releaseNode(old.pair.0, old.pair.1)
      }
      let pair = map.takeNode()
      took(pair.0)
      took(pair.1)
      leaves[id] = Leaf(pair: pair, isDirty: true)
    }
    if entries[key] == nil {
      keys.insert(key, at: keys.firstIndex { $0 > key } ?? keys.count)
    }
    entries[key] = Array(value)
  }

  /// Breaks a value, as a bug or an unlikely checksum collision would.
  func corrupt(_ key: SpaceKey, _ bytes: [UInt8]) { entries[key] = bytes }
}

/// A file system under a sparse volume: which units it has given to the file.
struct ToyFile {
  var units: [Bool]
  var budget: Int

  init(blocks: Int, budget: Int) {
    units = Array(repeating: false, count: (blocks + 31) / 32)
    self.budget = budget
  }

  private func range(_ r: DeviceRange) -> Range<Int> {
    Int(r.offset / 131_072)..<Int((r.offset + r.length + 131_071) / 131_072)
  }
  /// False: not enough space, and nothing was allocated.
  mutating func allocate(_ r: DeviceRange) -> Bool {
    let missing = range(r).count { !units[$0] }
    if missing > budget { return false }
    budget -= missing
    for u in range(r) { units[u] = true }
    return true
  }
  mutating func punch(_ r: DeviceRange) {
    for u in range(r) where units[u] {
      units[u] = false
      budget += 1
    }
  }
}

func device(_ blocks: Int, sparse: Bool = false, discard: Bool = false) -> DeviceDescription {
  DeviceDescription(size: UInt64(blocks) * 4096, isSparseFile: sparse, canDiscard: discard)
}

/// Repeats `body` after waits for nodes until it gets through.
func insist<T>(_ body: () throws(SpaceWait) -> T) throws(SpaceWait) -> T {
  while true {
    do throws(SpaceWait) { return try body() } catch {
      guard case .node = error else { throw error }
    }
  }
}
