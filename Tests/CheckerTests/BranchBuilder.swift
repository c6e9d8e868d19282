import Core

@testable import Checker

/// Disks with snapshots, clones and rollbacks, built by hand: what each object refers to is kept as
/// plain tables, the trees are made from them, and a branch shares each node that would be the
/// same. Dead lists are the differences of what objects refer to. Hooks plant faults.
final class BranchBuilder {
  struct Home: Equatable {
    var address: BlockAddress
    var birth: Instant
    var stamp: UInt64
  }

  struct Object {
    var id: UInt64
    var kind = ObjectKind.disk
    var name: String
    var disk: UInt64 = 0
    var parent: UInt64 = 0
    var instant: Instant = 0
    var branch: Instant = 0
    var blocks: [UInt64: Home] = [:]
    var inherits = false
    /// It inherits, but for what its delta says.
    var hasDelta = false
    var isDeleted = false
    var isHidden = false
    /// Leaves, by their first block, that are two half ones in this object's map.
    var split: Set<UInt64> = []
  }

  /// A node of a map with all that is below it.
  private struct Node {
    var low: UInt64
    var pointer: NodePointer
    /// What decides whether a branch can share it.
    var homes: [UInt64: Home]
    var children: [NodePointer]
    var all: [NodePointer]
  }

  private struct Span: Hashable {
    var low: UInt64
    var blocks: UInt64
  }

  private struct Map {
    var root = NodePointer.none
    var nodes: [Span: Node] = [:]
    var all: [NodePointer] = []
  }

  typealias Edge = (snapshot: UInt64, child: UInt64)

  let pool: PoolBuilder
  private(set) var objects: [UInt64: Object] = [:]
  private var now: Instant = 1
  private var volume = 0

  // What a test may change before `build`.
  var changeRecord: [UInt64: (inout ObjectRecord) -> Void] = [:]
  var changeDead: [UInt64: (inout [DeadEntry]) -> Void] = [:]
  var changeDelta: [UInt64: (inout [PoolBuilder.Entry]) -> Void] = [:]
  var changeEdges: (inout [Edge]) -> Void = { _ in }
  /// Births of nodes and extents as they are written.
  var changeBirth: (UInt64, Instant) -> Instant = { $1 }
  /// Runs of the lists' entries, in blocks at most.
  var deadRun = 8192

  // What `build` made.
  private var maps: [UInt64: Map] = [:]
  private(set) var dead: [UInt64: [DeadEntry]] = [:]

  init(_ pool: PoolBuilder) { self.pool = pool }

  /// A pool with nothing but what is then made of it.
  static func empty() -> (PoolBuilder, BranchBuilder) {
    let pool = PoolBuilder(blocks: 4000)
    let branches = BranchBuilder(pool)
    pool.branches = branches
    return (pool, branches)
  }

  // MARK: Making a history

  func disk(_ id: UInt64, _ name: String) { objects[id] = Object(id: id, name: name) }

  /// Writes blocks: in place where they are the disk's own, else to new homes.
  func write(_ id: UInt64, _ blocks: Range<UInt64>, _ stamp: UInt64) {
    own(id)
    volume = (volume + 1) % pool.volumes.count
    for block in blocks {
      if let home = objects[id]!.blocks[block], home.birth > objects[id]!.branch {
        objects[id]!.blocks[block]!.stamp = stamp + block
        continue
      }
      objects[id]!.blocks[block] = Home(
        address: pool.take(volume), birth: now, stamp: stamp + block)
    }
  }

  func trim(_ id: UInt64, _ blocks: Range<UInt64>) {
    own(id)
    for block in blocks {
      guard let home = objects[id]!.blocks.removeValue(forKey: block) else { continue }
      if home.birth > objects[id]!.branch { pool.free(home.address) }
    }
  }

  /// The object gets a map of its own.
  private func own(_ id: UInt64) { objects[id]!.inherits = false }

  func snapshot(_ disk: UInt64, _ id: UInt64, _ name: String) {
    var taken = objects[disk]!
    (taken.id, taken.kind, taken.name, taken.disk) = (id, .snapshot, name, disk)
    (taken.inherits, taken.hasDelta) = (false, false)
    taken.instant = now
    now += 1
    objects[id] = taken
    branch(disk, from: id)
  }

  func clone(_ snapshot: UInt64, _ id: UInt64, _ name: String) {
    objects[id] = Object(id: id, name: name)
    branch(id, from: snapshot)
  }

  func rollback(_ disk: UInt64, to snapshot: UInt64, former: UInt64) {
    var left = objects[disk]!
    (left.id, left.isDeleted) = (former, true)
    objects[former] = left
    branch(disk, from: snapshot)
  }

  private func branch(_ id: UInt64, from snapshot: UInt64) {
    let origin = objects[snapshot]!
    objects[id]!.parent = snapshot
    objects[id]!.branch = origin.instant
    objects[id]!.blocks = origin.blocks
    objects[id]!.inherits = true
    objects[id]!.split = origin.split
  }

  /// What the branch has changed is kept in a delta.
  func keepDelta(_ id: UInt64) { objects[id]!.hasDelta = true }

  func split(_ id: UInt64, leaf: UInt64) { objects[id]!.split.insert(leaf) }

  /// Hides the snapshot or puts it on the list of deleted ones, as its children demand.
  func delete(_ id: UInt64) {
    if objects[id]!.kind == .snapshot, children(id).count > 1 {
      objects[id]!.isHidden = true
    } else {
      objects[id]!.isDeleted = true
    }
  }

  func children(_ id: UInt64) -> [Object] { objects.values.filter { $0.parent == id } }

  // MARK: Merges under way

  private var freed: [UInt64: UInt64] = [:]
  private var merges: [(snapshot: UInt64, free: Int, move: Int)] = []

  /// Deletes a snapshot with one child and goes some entries of the lists into the merge.
  func merge(_ snapshot: UInt64, free: Int, move: Int) {
    delete(snapshot)
    merges.append((snapshot, free, move))
  }

  private func apply(_ snapshot: UInt64, _ free: Int, _ move: Int) {
    let object = objects[snapshot]!
    let child = objects.values.first { $0.parent == snapshot }!.id
    let unneeded = dead[child]!.filter { $0.birth > object.branch }.suffix(free)
    dead[child]!.removeAll { unneeded.contains($0) }
    for entry in unneeded {
      switch entry {
      case .blocks(let first, let count, _):
        for i in 0..<UInt64(count) { pool.free(first + i) }
        freed[snapshot, default: 0] += UInt64(count)
      case .node(let first, let second, _):
        for address in [first, second] {
          pool.free(address, isMetadata: true)
          pool.put(address, [UInt8](repeating: 0xEE, count: blockSize))
        }
      }
    }
    let moved = dead[snapshot]!.prefix(move)
    dead[snapshot]!.removeFirst(moved.count)
    dead[child]! += moved
    dead[child]!.sort { ($0.birth, $0.address) < ($1.birth, $1.address) }
  }

  // MARK: Building

  func build(
    _ root: inout RootRecord
  ) -> (objects: [PoolBuilder.Entry], names: [PoolBuilder.Entry]) {
    root.nextInstant = now + 1
    let ids = objects.keys.sorted { (objects[$0]!.branch, $0) < (objects[$1]!.branch, $1) }
    let whole = ids.filter { !objects[$0]!.inherits && !objects[$0]!.hasDelta }
    for id in whole { map(id) }
    for id in whole { dead[id] = difference(id) }
    for merge in merges { apply(merge.snapshot, merge.free, merge.move) }
    for (id, change) in changeDead { change(&dead[id]!) }
    var edges: [Edge] = ids.filter { objects[$0]!.parent != 0 }.map { (objects[$0]!.parent, $0) }
    changeEdges(&edges)
    var names: [PoolBuilder.Entry] = edges.map { (NodeKey(hi: $0.snapshot, lo: $0.child), []) }
    var entries: [PoolBuilder.Entry] = []
    for id in ids.sorted() {
      let object = objects[id]!
      var record = record(object)
      changeRecord[id]?(&record)
      entries.append((NodeKey(hi: id, lo: 0), record.encoded()))
      if object.isDeleted {
        names.append((NodeKey(hi: 0, lo: id), []))
        root.deletedObjects += 1
        root.freeingBlocks += record.exclusiveBlocks
      } else if !object.isHidden {
        names.append(name(object))
        if object.kind == .disk { root.disks += 1 }
        if object.kind == .snapshot, !objects[object.disk]!.isDeleted { root.snapshots += 1 }
      } else {
        root.heldBlocks += record.exclusiveBlocks
      }
    }
    return (entries, names)
  }

  private func name(_ object: Object) -> PoolBuilder.Entry {
    let bytes = Array(object.name.utf8)
    let entry = NameEntry(object: ObjectID(object.id), kind: object.kind, name: bytes)
    return (
      NodeKey(hi: object.kind == .snapshot ? object.disk : 1, lo: NameEntry.hash(bytes)),
      NameEntry.encode([entry])
    )
  }

  private func record(_ object: Object) -> ObjectRecord {
    var record = ObjectRecord()
    record.kind = object.kind
    record.name = Array(object.name.utf8)
    record.size = 1 << 30
    record.links = object.isDeleted || object.isHidden ? 0 : 1
    record.isHidden = object.isHidden
    record.inheritsMap = object.inherits || object.hasDelta
    record.parent = object.kind == .snapshot ? ObjectID(object.disk) : .root
    record.parentSnapshot = ObjectID(object.parent)
    record.branchInstant = object.branch
    record.instant = object.instant
    record.children = UInt32(children(object.id).count)
    record.dependents = UInt32(
      objects.values.count {
        $0.kind == .snapshot && $0.disk == object.id && !$0.isDeleted && !$0.isHidden
      })
    if object.kind == .snapshot { record.group = ObjectID(object.id) }
    guard !object.inherits else { return record }
    if object.hasDelta {
      enterDelta(object, &record)
      return record
    }
    let map = maps[object.id]!
    record.map = map.root
    record.metadataBlocks = UInt64(2 * map.all.count)
    record.usedBlocks = UInt64(object.blocks.count)
    record.exclusiveBlocks =
      UInt64(object.blocks.values.count { $0.birth > object.branch })
    if let freed = freed[object.id] { record.exclusiveBlocks -= freed }
    record.parentBranchInstant = objects[object.parent]?.branch ?? 0
    for entry in dead[object.id]! {
      switch entry {
      case .blocks(_, let count, let birth):
        record.dead.dataBlocks += UInt64(count)
        if birth > record.parentBranchInstant { record.deadOfParentOnly += UInt64(count) }
      case .node: record.dead.nodeBlocks += 2
      }
    }
    record.deadList = pool.tree(
      dead[object.id]!.map(encoded), kind: .deadList, owner: ObjectID(object.id), perLeaf: 7)
    return record
  }

  private func enterDelta(_ object: Object, _ record: inout ObjectRecord) {
    let before = pool.nodes.count
    var entries = delta(object)
    changeDelta[object.id]?(&entries)
    record.map = pool.tree(
      entries, kind: .delta, owner: ObjectID(object.id), perLeaf: 4,
      birth: changeBirth(object.id, object.branch + 1))
    record.usedBlocks = UInt64(object.blocks.count)
    record.exclusiveBlocks = UInt64(object.blocks.values.count { $0.birth > object.branch })
    record.metadataBlocks = UInt64(2 * (pool.nodes.count - before))
  }

  /// What the object has and its parent has not, and hole extents where it is the other way round.
  private func delta(_ object: Object) -> [PoolBuilder.Entry] {
    let parent = objects[object.parent]!.blocks
    var entries = extents(object.id, object.blocks.filter { parent[$0.key] != $0.value })
    for block in parent.keys where object.blocks[block] == nil {
      entries.append((NodeKey(hi: block, lo: 0), Self.hole(1)))
    }
    return entries.sorted { $0.key < $1.key }
  }

  static func hole(_ count: Int) -> [UInt8] {
    var value = [UInt8](repeating: 0, count: ExtentFormat.headerSize)
    value[16] = UInt8(count)
    return value
  }

  private func encoded(_ entry: DeadEntry) -> PoolBuilder.Entry {
    let value: [UInt8]
    switch entry {
    case .blocks(_, let count, _):
      value = withUnsafeBytes(of: UInt32(count).littleEndian) { Array($0) }
    case .node(_, let second, _):
      value = withUnsafeBytes(of: second.raw.littleEndian) { Array($0) }
    }
    return (NodeKey(hi: entry.birth, lo: entry.address.raw), value)
  }

  /// What the parent refers to and the object does not.
  private func difference(_ id: UInt64) -> [DeadEntry] {
    let object = objects[id]!
    guard let parent = objects[object.parent] else { return [] }
    let kept = Set(object.blocks.values.map(\.address))
    let homes = parent.blocks.values.filter { !kept.contains($0.address) }
      .sorted { ($0.birth, $0.address) < ($1.birth, $1.address) }
    var entries: [DeadEntry] = []
    for home in homes {
      if case .blocks(let first, let count, home.birth)? = entries.last,
        first + UInt64(count) == home.address, count < deadRun
      {
        entries[entries.count - 1] = .blocks(first: first, count: count + 1, birth: home.birth)
      } else {
        entries.append(.blocks(first: home.address, count: 1, birth: home.birth))
      }
    }
    let nodes = Set(maps[id]!.all)
    for node in maps[object.parent]!.all where !nodes.contains(node) {
      entries.append(.node(first: node.first, second: node.second, birth: node.birth))
    }
    return entries.sorted { ($0.birth, $0.address) < ($1.birth, $1.address) }
  }

  // MARK: Maps

  private static let leafBlocks: UInt64 = 64
  private static let fan: UInt64 = 4

  private func map(_ id: UInt64) {
    var map = Map()
    let whole = Span(low: 0, blocks: Self.leafBlocks * Self.fan * Self.fan)
    if let top = node(id, whole, 2, &map) {
      (map.root, map.all) = (top.pointer, top.all)
    }
    maps[id] = map
  }

  private func node(_ id: UInt64, _ span: Span, _ level: UInt8, _ map: inout Map) -> Node? {
    if level == 0 { return leaf(id, span, &map) }
    let part = span.blocks / Self.fan
    var children: [Node] = []
    for i in 0..<Self.fan {
      let below = Span(low: span.low + i * part, blocks: part)
      if level == 1, objects[id]!.split.contains(below.low) {
        for half in 0..<UInt64(2) {
          let span = Span(low: below.low + half * part / 2, blocks: part / 2)
          if let node = leaf(id, span, &map) { children.append(node) }
        }
      } else if let node = node(id, below, level - 1, &map) {
        children.append(node)
      }
    }
    guard !children.isEmpty else { return nil }
    // The root has more than one child.
    if children.count == 1, level == 2 || isAlone(id, span) { return children[0] }
    let pointers = children.map(\.pointer)
    if let known = maps[objects[id]!.parent]?.nodes[span], known.children == pointers {
      map.nodes[span] = known
      return known
    }
    let entries = children.enumerated().map { i, child in
      (key: NodeKey(hi: i == 0 ? span.low : child.low, lo: 0), pointer: child.pointer)
    }
    let homes = children.flatMap(\.homes)
    let pointer = pool.interior(
      entries, children[0].pointer.level + 1, kind: .extents, owner: ObjectID(id),
      birth: birth(id, homes.map(\.value)))
    let made = Node(
      low: span.low, pointer: pointer, homes: Dictionary(uniqueKeysWithValues: homes),
      children: pointers, all: [pointer] + children.flatMap(\.all))
    map.nodes[span] = made
    return made
  }

  private func isAlone(_ id: UInt64, _ span: Span) -> Bool {
    objects[id]!.blocks.keys.allSatisfy { $0 >= span.low && $0 < span.low + span.blocks }
  }

  private func birth(_ id: UInt64, _ homes: [Home]) -> Instant {
    let object = objects[id]!
    return changeBirth(id, max(object.branch + 1, homes.map(\.birth).max() ?? 0))
  }

  private func leaf(_ id: UInt64, _ span: Span, _ map: inout Map) -> Node? {
    let homes = objects[id]!.blocks.filter {
      $0.key >= span.low && $0.key < span.low + span.blocks
    }
    guard !homes.isEmpty else { return nil }
    if let known = maps[objects[id]!.parent]?.nodes[span], known.homes == homes {
      map.nodes[span] = known
      return known
    }
    let pointer = pool.leaf(
      extents(id, homes), kind: .extents, owner: ObjectID(id), birth: birth(id, Array(homes.values))
    )
    let made = Node(
      low: span.low, pointer: pointer, homes: homes, children: [], all: [pointer])
    map.nodes[span] = made
    return made
  }

  private func extents(_ id: UInt64, _ homes: [UInt64: Home]) -> [PoolBuilder.Entry] {
    var entries: [PoolBuilder.Entry] = []
    let blocks = homes.keys.sorted()
    var i = 0
    while i < blocks.count {
      let first = homes[blocks[i]]!
      var n = 1
      while i + n < blocks.count, n < 50, blocks[i + n] == blocks[i] + UInt64(n),
        homes[blocks[i + n]]!.address == first.address + UInt64(n),
        homes[blocks[i + n]]!.birth == first.birth
      {
        n += 1
      }
      var value = [UInt8](repeating: 0, count: ExtentFormat.size(n))
      value.withUnsafeMutableBytes { v in
        let p = v.baseAddress!
        let birth = changeBirth(id, first.birth)
        ExtentFormat.encode(to: p, address: first.address, birth: birth, length: n)
        for j in 0..<n {
          let bytes = content(homes[blocks[i + j]]!.stamp)
          p.put(checksum(bytes), at: ExtentFormat.headerSize + 4 * j)
          pool.put(first.address + UInt64(j), bytes)
        }
      }
      entries.append((NodeKey(hi: blocks[i], lo: 0), value))
      i += n
    }
    return entries
  }
}
