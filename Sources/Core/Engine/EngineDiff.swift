// What changed between two points of a disk: from maps and log index alone. Where both points share a part
// of their maps, the part is passed over whole, so the cost is that of what differs.

extension Engine {
  /// Ranges looked at in one request; a page ends there.
  private static let mostSteps = 4096

  func diff(
    _ old: SnapshotName, _ new: SnapshotOrDisk, from: UInt64, limit: Int
  ) throws -> ControlReply {
    let older = try find(old)
    let newer: (id: ObjectID, disk: ObjectID)
    switch new {
    case .disk(let name):
      let found = try find(name).0.object
      newer = (found, found)
      if found != older.disk { throw ControlError.notOfOneLine(old.description, name) }
    case .snapshot(let name):
      let found = try find(name)
      newer = (found.id, found.disk)
      if found.disk != older.disk || found.id < older.id {
        throw ControlError.notOfOneLine(old.description, name.description)
      }
    }
    let (a, b) = (pool.disk(older.id), pool.disk(newer.id))
    try pool.load(a)
    try pool.load(b)
    let end = max(a.sizeInBlocks, b.sizeInBlocks)
    let (ranges, next) = try changes(
      a, b, from >> blockShift, end, limit: max(1, min(limit, 4096)))
    return .changes(cut(ranges, b), next: next.map { $0 << blockShift })
  }

  /// No range ends beyond the disk.
  private func cut(_ ranges: [ChangedRange], _ disk: VirtualDisk) -> [ChangedRange] {
    let size = disk.record?.size ?? 0
    return ranges.compactMap { range in
      guard range.offset < size else { return nil }
      return ChangedRange(
        offset: range.offset, length: min(range.length, size - range.offset), isZero: range.isZero)
    }
  }

  private func changes(
    _ a: VirtualDisk, _ b: VirtualDisk, _ from: UInt64, _ end: UInt64, limit: Int
  ) throws(SpaceWait) -> ([ChangedRange], next: UInt64?) {
    var ranges: [ChangedRange] = []
    var block = from
    var steps = 0
    while block < end {
      steps += 1
      if steps > Self.mostSteps { return (ranges, block) }
      let (count, change) = try compare(a, b, block, min(end - block, 1 << 30))
      if let isZero = change {
        let (offset, length) = (block << blockShift, count << blockShift)
        if let last = ranges.indices.last, ranges[last].isZero == isZero,
          ranges[last].offset + ranges[last].length == offset
        {
          ranges[last].length += length
        } else if ranges.count == limit {
          return (ranges, block)
        } else {
          ranges.append(ChangedRange(offset: offset, length: length, isZero: isZero))
        }
      }
      block += count
    }
    return (ranges, nil)
  }

  /// Whether the next blocks are different, and how many they are: nil when they are the same, else
  /// whether they read as zeros on `b`.
  private func compare(
    _ a: VirtualDisk, _ b: VirtualDisk, _ block: UInt64, _ limit: UInt64
  ) throws(SpaceWait) -> (count: UInt64, isZero: Bool?) {
    switch (try find(a, block, limit), try find(b, block, limit)) {
    case (.mapped(let old, let m), .mapped(let new, let n)):
      return try compare(old, new, BlockIndex(block), min(m, n))
    case (.logged(let old, let m), .logged(let new, let n)):
      if old.kind == .zero, new.kind == .zero { return (min(m, n), nil) }
      if old == new { return (1, nil) }
      return new.kind == .zero ? (old.kind == .zero ? n : 1, true) : (1, false)
    case (.mapped(let map, let m), .logged(let entry, let n)):
      guard entry.kind == .zero else { return (1, false) }
      switch try map.lookup(BlockIndex(block), limit: Int(min(m, n))) {
      case .hole(let count): return (UInt64(count), nil)
      case .mapped(_, let count, _, _): return (UInt64(count), true)
      }
    case (.logged(let entry, let n), .mapped(let map, let m)):
      let count = entry.kind == .zero ? min(m, n) : 1
      switch try map.lookup(BlockIndex(block), limit: Int(count)) {
      case .hole(let count): return (UInt64(count), entry.kind == .zero ? nil : true)
      case .mapped(_, let count, _, _): return (UInt64(count), false)
      }
    }
  }

  private func compare(
    _ old: DiskMap, _ new: DiskMap, _ block: BlockIndex, _ limit: UInt64
  ) throws(SpaceWait) -> (count: UInt64, isZero: Bool?) {
    if old.full.tree === new.full.tree, old.delta?.tree === new.delta?.tree { return (limit, nil) }
    // As far as neither delta has anything, the whole maps tell.
    let unchanged = min(
      try old.unchanged(block, limit: Int(limit)), try new.unchanged(block, limit: Int(limit)))
    if unchanged > 0,
      let end = try old.full.tree.sharedEnd(with: new.full.tree, from: TreeKey(hi: block.raw))
    {
      return (min(UInt64(unchanged), end.hi - block.raw), nil)
    }
    // A look-up ends the life of what the one before gave: addresses and counts are taken first.
    let (home, m) = try place(old, block, limit)
    let (newHome, n) = try place(new, block, limit)
    let count = min(m, n)
    return (count, home == newHome ? nil : newHome.isNone)
  }

  private func place(
    _ map: DiskMap, _ block: BlockIndex, _ limit: UInt64
  ) throws(SpaceWait) -> (BlockAddress, UInt64) {
    switch try map.lookup(block, limit: Int(limit)) {
    case .hole(let count): return (.none, UInt64(count))
    case .mapped(let address, let count, _, _): return (address, UInt64(count))
    }
  }
}
