import Glibc

// The extent map of a disk: which block of vSpace holds each block of the disk (ExtentFormat has
// the values). Extents hold 1 to 128 blocks with consecutive homes and one birth, and a checksum
// for each. A delta has hole extents as well, which have no homes.
//
// A change looks at all extents that it touches first, counts the leaves that they are in, and has
// room prepared; only then does it change anything. So it happens wholly or, when it throws, not
// at all, and readers between two calls never see a part of it.

/// What a disk's map says about a run of blocks.
package enum MapRun {
  /// Reads as zeros. The hole may be longer than `count`.
  case hole(count: Int)
  /// `count` blocks at `address` and on, with their CRC32Cs; valid until the next call of any
  /// tree, store or cache.
  case mapped(
    address: BlockAddress, count: Int, birth: Instant, checksums: UnsafePointer<UInt32>)
}

/// An extent in a leaf.
struct Extent {
  let first: UInt64
  let address: BlockAddress
  let birth: Instant
  let length: UInt64
  let checksums: UnsafePointer<UInt32>

  /// Values of leaves have been checked when they were loaded.
  @inline(__always) init(_ entry: TreeEntry) {
    let p = entry.value.base
    first = entry.key.hi
    address = BlockAddress(raw: p.u64(0))
    birth = p.u64(8)
    length = UInt64(p.u16(16))
    checksums = (p + ExtentFormat.headerSize).assumingMemoryBound(to: UInt32.self)
  }

  var end: UInt64 { first + length }
  var key: TreeKey { TreeKey(hi: first) }
  var isHole: Bool { address.isNone }

  /// Where a block of the extent is; none in a hole extent.
  func home(_ block: UInt64) -> BlockAddress { isHole ? .none : address + (block - first) }
}

/// An extent that is being put together, outside of any node.
private struct Draft {
  private(set) var first: UInt64 = 0
  private(set) var address = BlockAddress.none
  private(set) var birth: Instant = 0
  private(set) var length = 0
  /// Room for the longest value.
  private let bytes: UnsafeMutableRawPointer

  init(_ bytes: UnsafeMutableRawPointer) { self.bytes = bytes }

  var isEmpty: Bool { length == 0 }
  var key: TreeKey { TreeKey(hi: first) }

  /// Whether blocks that follow on the disk may join this extent.
  func canTake(_ address: BlockAddress, _ birth: Instant, _ count: Int) -> Bool {
    let next = self.address.isNone ? .none : self.address + UInt64(length)
    return length > 0 && birth == self.birth && address == next
      && length + count <= ExtentFormat.maximumLength
  }

  mutating func start(_ first: UInt64, _ address: BlockAddress, _ birth: Instant) {
    self.first = first
    self.address = address
    self.birth = birth
    length = 0
  }

  /// Blocks that follow; a hole extent has no checksums.
  mutating func append(_ checksums: UnsafePointer<UInt32>?, _ count: Int) {
    if let checksums, !address.isNone {
      (bytes + ExtentFormat.size(length)).copyMemory(from: checksums, byteCount: 4 * count)
    }
    length += count
  }

  /// Becomes the part of `extent` in [`from`, `end`).
  mutating func copy(_ extent: Extent, from: UInt64, end: UInt64) {
    start(from, extent.home(from), extent.birth)
    append(extent.checksums + Int(from - extent.first), Int(end - from))
  }

  mutating func clear() { length = 0 }

  /// Takes over the blocks of another draft.
  mutating func append(_ other: Draft) {
    append(
      (other.bytes + ExtentFormat.headerSize).assumingMemoryBound(to: UInt32.self), other.length)
  }

  /// The value to store.
  func encoded() -> UnsafeRawBufferPointer {
    ExtentFormat.encode(to: bytes, address: address, birth: birth, length: length)
    return UnsafeRawBufferPointer(
      start: bytes, count: ExtentFormat.size(address.isNone ? 0 : length))
  }
}

/// The extent map of one disk over a tree of kind `.extents`, or a delta over one of kind `.delta`.
package struct ExtentMap {
  package let tree: Tree

  package init(tree: Tree) {
    invariant(tree.kind.hasExtents, "an extent map over another kind of tree")
    self.tree = tree
  }

  // MARK: Reading

  /// The run that starts at `block`, of at most `limit` blocks (1 or more).
  package func lookup(_ block: BlockIndex, limit: Int) throws(SpaceWait) -> MapRun {
    switch try cover(block, limit: limit) {
    case .gap(let count): return .hole(count: count)
    case .extent(let extent):
      let skip = block.raw - extent.first
      return .mapped(
        address: extent.address + skip, count: min(limit, Int(extent.length - skip)),
        birth: extent.birth, checksums: extent.checksums + Int(skip))
    }
  }

  /// What there is at a block.
  enum Cover {
    /// An extent that covers it, in a delta also a hole extent.
    case extent(Extent)
    /// None covers it and the next `count - 1` blocks.
    case gap(count: Int)
  }

  @inline(__always)
  func cover(_ block: BlockIndex, limit: Int) throws(SpaceWait) -> Cover {
    invariant(limit > 0, "a map lookup of no blocks")
    let key = TreeKey(hi: block.raw)
    let depth = try tree.descend(key)
    if depth == 0 { return .gap(count: limit) }
    let (leaf, index) = (tree.pathNode(depth - 1), tree.pathIndex(depth - 1))
    if index < 0 {
      // The extent before is in another leaf, and the one behind it is this leaf's first.
      let next = leaf.key(0).hi
      if let before = try tree.floor(key) {
        let extent = Extent(before)
        if extent.end > block.raw { return .extent(extent) }
      }
      return Self.gap(block, limit, next: next)
    }
    let extent = Extent(leaf.treeEntry(index))
    if extent.end > block.raw { return .extent(extent) }
    let next = index + 1 < leaf.count ? leaf.key(index + 1) : tree.upperBound(depth)
    return Self.gap(block, limit, next: next?.hi ?? .max)
  }

  private static func gap(_ block: BlockIndex, _ limit: Int, next: UInt64) -> Cover {
    .gap(count: Int(min(UInt64(limit), next - block.raw)))
  }

  // MARK: Changing

  /// Maps `checksums.count` (1...128) blocks from `first` on to `address` and on. What was mapped
  /// there is told to `released`, in ascending order of blocks, in the midst of the change: it
  /// must not touch any tree. `checksums` must not lie in a node.
  package func assign(
    _ first: BlockIndex, to address: BlockAddress, checksums: UnsafeBufferPointer<UInt32>,
    birth: Instant, released: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) {
    let count = checksums.count
    guard let base = checksums.baseAddress, !address.isNone
    else { invariantBroken("\(count) blocks at block \(first.raw) can't be mapped") }
    try place(first, count, address, birth, base, released)
  }

  /// Puts a hole extent over `count` (1...128) blocks, in a delta. `released` as for `assign`; hole
  /// extents have no address.
  package func punch(
    _ first: BlockIndex, count: Int, released: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) {
    invariant(tree.kind == .delta, "a hole extent in a whole map")
    try place(first, count, .none, 0, nil, released)
  }

  private func place(
    _ first: BlockIndex, _ count: Int, _ address: BlockAddress, _ birth: Instant,
    _ checksums: UnsafePointer<UInt32>?, _ released: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) {
    invariant(
      count >= 1 && count <= ExtentFormat.maximumLength
        && first.raw <= BlockIndex.limit - UInt64(count),
      "\(count) blocks at block \(first.raw) can't be mapped")
    let end = first.raw + UInt64(count)
    _ = try prepare(first.raw, end)
    let areas = drafts(first.raw, end, released)
    var (left, body, rest) = (areas.left, areas.body, areas.rest)
    takeLeftNeighbour(&left, first.raw, address, birth, count)
    let joinsLeft = left.canTake(address, birth, count)
    if joinsLeft {
      swap(&left, &body)
      left.clear()
    } else {
      body.start(first.raw, address, birth)
    }
    body.append(checksums, count)
    let joinsNext = takeNext(&body, &rest, end)
    // Insertions come first: a removal may empty a leaf, and its range falls to another one.
    store(left)
    store(rest)
    store(body)
    removeExtents(joinsLeft ? first.raw : first.raw + 1, end + (joinsNext ? 1 : 0))
  }

  /// Makes a hole of [first, first + count), at most `maxLeaves` leaves of the tree at a time;
  /// returns the block to go on from (the end when done). What was done before a throw stays done.
  /// `released` as for `assign`.
  package func removeSome(
    _ first: BlockIndex, count: UInt64, maxLeaves: Int,
    released: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) -> BlockIndex {
    invariant(
      first.raw <= BlockIndex.limit && count <= BlockIndex.limit - first.raw,
      "a hole beyond the largest disk")
    let end = first.raw + count
    var at = first.raw
    for _ in 0..<maxLeaves {
      if at == end { break }
      let depth = try tree.descend(TreeKey(hi: at))
      if depth == 0 { return BlockIndex(end) }
      let leaf = tree.pathNode(depth - 1)
      let last = Extent(leaf.treeEntry(leaf.count - 1))
      // Up to the next leaf, and to the end of what reaches into its range.
      let stop = min(end, max(tree.upperBound(depth)?.hi ?? end, last.end))
      try removeNow(at, stop, released)
      at = stop
    }
    return BlockIndex(at)
  }

  private func removeNow(
    _ first: UInt64, _ end: UInt64, _ released: (BlockAddress, Int, Instant) -> Void
  ) throws(SpaceWait) {
    guard try prepare(first, end) > 0 else { return }
    let areas = drafts(first, end, released)
    store(areas.left)
    store(areas.rest)
    removeExtents(first, end)
  }

  /// New checksums for blocks that were overwritten in place; all must be mapped. Births stay.
  package func updateChecksums(_ first: BlockIndex, _ checksums: UnsafeBufferPointer<UInt32>)
    throws(SpaceWait)
  {
    guard let base = checksums.baseAddress else { return }
    let end = first.raw + UInt64(checksums.count)
    _ = try prepare(first.raw, end)
    var at = first.raw
    while at < end {
      let depth = present { () throws(SpaceWait) in try tree.descendToFloor(TreeKey(hi: at)) }
      invariant(depth > 0, "block \(at) is overwritten in place but not mapped")
      let extent = Extent(tree.pathNode(depth - 1).treeEntry(tree.pathIndex(depth - 1)))
      invariant(
        extent.end > at && !extent.isHole, "block \(at) is overwritten in place but not mapped")
      let (skip, count) = (Int(at - extent.first), Int(min(end, extent.end) - at))
      let new = UnsafeRawBufferPointer(start: base + Int(at - first.raw), count: 4 * count)
      if memcmp(extent.checksums + skip, new.baseAddress!, new.count) != 0 {
        tree.patchFound(depth, offset: ExtentFormat.size(skip), new)
      }
      at += UInt64(count)
    }
  }

  // MARK: Steps of a change

  /// Has all leaves that a change of [`first`, `end`) touches in memory, and room for it; returns
  /// how many extents there are.
  private func prepare(_ first: UInt64, _ end: UInt64) throws(SpaceWait) -> Int {
    var leaves = 2
    while true {
      // Each leaf, the neighbours' leaves and three insertions: a path each.
      try tree.store.prepare((leaves + 5) * (tree.height + 1) + 2)
      let found = try visit(first, end) { _ in }
      if found.leaves <= leaves { return found.extents }
      leaves = found.leaves
    }
  }

  /// Tells `body` the extents that overlap [`first`, `end`), in ascending order.
  private func visit(_ first: UInt64, _ end: UInt64, _ body: (Extent) -> Void)
    throws(SpaceWait) -> (leaves: Int, extents: Int)
  {
    var (leaves, extents) = (1, 0)
    var lastEnd: UInt64 = 0
    func tell(_ extent: Extent) {
      extents += 1
      lastEnd = extent.end
      body(extent)
    }
    var depth = try tree.descend(TreeKey(hi: first))
    if depth == 0 { return (0, 0) }
    var index = tree.pathIndex(depth - 1)
    if index < 0, tree.lowerBound(depth) != nil {
      leaves += 1
      let before = try tree.descendToFloor(TreeKey(hi: first))
      if before > 0 {
        let extent = Extent(tree.pathNode(before - 1).treeEntry(tree.pathIndex(before - 1)))
        if extent.end > first {
          try tree.requireStill(before)
          tell(extent)
        }
      }
      depth = try tree.descend(TreeKey(hi: first))
    }
    if index < 0 || Extent(tree.pathNode(depth - 1).treeEntry(index)).end <= first { index += 1 }
    while true {
      try tree.requireStill(depth)
      let leaf = tree.pathNode(depth - 1)
      while index < leaf.count && leaf.key(index).hi < end {
        tell(Extent(leaf.treeEntry(index)))
        index += 1
      }
      // The next leaf matters if it begins in the range, or gets what remains of the last extent.
      guard index == leaf.count, let bound = tree.upperBound(depth),
        bound.hi < end || (bound.hi == end && lastEnd > end)
      else { return (leaves, extents) }
      depth = try tree.descend(bound)
      leaves += 1
      index = 0
    }
  }

  /// Tells `released` what is mapped in [`first`, `end`); what remains of extents that reach
  /// beyond is in `left` and `rest`. `body` is an empty draft.
  private func drafts(
    _ first: UInt64, _ end: UInt64, _ released: (BlockAddress, Int, Instant) -> Void
  ) -> (left: Draft, body: Draft, rest: Draft) {
    let area = tree.store.draftArea
    let size = roundUp(ExtentFormat.maximumSize, to: 64)
    var left = Draft(area)
    var rest = Draft(area + 2 * size)
    _ = present { () throws(SpaceWait) in
      try visit(first, end) { extent in
        let (from, to) = (max(first, extent.first), min(end, extent.end))
        released(extent.home(from), Int(to - from), extent.birth)
        if extent.first < first { left.copy(extent, from: extent.first, end: first) }
        if extent.end > end { rest.copy(extent, from: end, end: extent.end) }
      }
    }
    return (left, Draft(area + size), rest)
  }

  /// An extent that ends at `first` and can take the new blocks is drafted, if it is in memory.
  private func takeLeftNeighbour(
    _ left: inout Draft, _ first: UInt64, _ address: BlockAddress, _ birth: Instant, _ count: Int
  ) {
    guard left.isEmpty, first > 0,
      let depth = try? tree.descendToFloor(TreeKey(hi: first - 1)), depth > 0
    else { return }
    let extent = Extent(tree.pathNode(depth - 1).treeEntry(tree.pathIndex(depth - 1)))
    guard extent.end == first, tree.isStill(depth) else { return }
    left.copy(extent, from: extent.first, end: first)
    if !left.canTake(address, birth, count) { left.clear() }
  }

  /// Joins what follows the new blocks to them, where it fits: the rest of an extent that was cut,
  /// or a neighbour in memory, which the caller then removes (true).
  private func takeNext(_ body: inout Draft, _ rest: inout Draft, _ end: UInt64) -> Bool {
    if !rest.isEmpty {
      if body.canTake(rest.address, rest.birth, rest.length) {
        body.append(rest)
        rest.clear()
      }
      return false
    }
    guard let depth = try? tree.descendToFloor(TreeKey(hi: end)), depth > 0 else { return false }
    let next = Extent(tree.pathNode(depth - 1).treeEntry(tree.pathIndex(depth - 1)))
    guard next.first == end, tree.isStill(depth) else { return false }
    guard body.canTake(next.address, next.birth, Int(next.length)) else { return false }
    body.append(next.checksums, Int(next.length))
    return true
  }

  private func store(_ draft: Draft) {
    guard !draft.isEmpty else { return }
    present { () throws(SpaceWait) in try tree.preparedInsert(draft.key, draft.encoded()) }
  }

  private func removeExtents(_ from: UInt64, _ below: UInt64) {
    var from: TreeKey? = TreeKey(hi: from)
    while let key = from {
      from = present { () throws(SpaceWait) in
        try tree.preparedRemoveLeafful(key, below: TreeKey(hi: below))
      }
    }
  }

  /// For walks of which everything has been found in memory before.
  @discardableResult
  private func present<R>(_ walk: () throws(SpaceWait) -> R) -> R {
    do throws(SpaceWait) {
      return try walk()
    } catch {
      invariantBroken("a prepared change of an extent map waits for \(error)")
    }
  }
}
