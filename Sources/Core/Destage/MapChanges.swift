// What destaging changes of a layer: what its map says of its blocks' homes, and what the catalog's
// record says of the map.
//
//     assign, removeSome ─▶ payOwed ─▶ (the map's nodes are written) ─▶ record
//
// A layer that has its parent's map so far gets a delta with its first change (Space/DiskMap.swift);
// folding it into a map of its own is in Fold.swift.

extension Layer {
  /// Blocks of metadata of the layer's whole map now.
  func metadataBlocks(of map: ExtentMap) -> UInt64 {
    UInt64(Int64(metadataBlocks) + 2 * Int64(map.tree.nodeDelta))
  }

  func deltaMetadata(of delta: ExtentMap) -> UInt64 {
    UInt64(Int64(deltaMetadata) + 2 * Int64(delta.tree.nodeDelta))
  }

  /// The home of a block that the layer owns alone: it may be overwritten.
  func ownHome(of block: BlockIndex) throws(SpaceWait) -> BlockAddress? {
    guard case .mapped(let address, _, let birth, _) = try map!.lookup(block, limit: 1),
      birth > map!.branchInstant
    else { return nil }
    return address
  }
}

extension Pool {
  /// Runs of a hole that one step makes in a layer with a delta.
  private static let holeStep = 64

  /// Maps `count` blocks, born now, to `address` and on.
  func assign(
    _ layer: Layer, _ block: BlockIndex, _ address: BlockAddress,
    _ checksums: borrowing InlineArray<128, UInt32>, count: Int
  ) throws(SpaceWait) {
    invariant(layer.fold == nil, "a delta is changed while it is folded")
    beginChange(layer)
    let birth = fault == .birthOffByOne ? nextInstant + 1 : nextInstant
    var hidden: UInt64 = 0
    if layer.map!.delta != nil {
      try layer.map!.visible(block, count: count) { address, count, _ in
        hidden += UInt64(count)
      }
    }
    let map = layer.map!.delta ?? layer.map!.full
    let release = released(layer)
    try checksums.span.withUnsafeBufferPointer { (all) throws(SpaceWait) in
      try map.assign(
        block, to: address, checksums: UnsafeBufferPointer(rebasing: all[..<count]), birth: birth,
        released: release)
    }
    layer.usedBlocks = layer.usedBlocks + UInt64(count) - hidden
    layer.exclusiveBlocks += UInt64(count)
    space.noteAllocated(address, count)
  }

  /// Makes a hole, a bounded part of it at a time; returns the block to go on from. What was done
  /// before a throw stays done, and may be done again.
  func removeSome(
    _ layer: Layer, _ first: BlockIndex, count: UInt64
  ) throws(SpaceWait) -> BlockIndex {
    beginChange(layer)
    guard let delta = layer.map!.delta else {
      return try layer.map!.full.removeSome(
        first, count: count, maxLeaves: 8, released: released(layer))
    }
    let end = first.raw + count
    var at = first.raw
    for _ in 0..<Self.holeStep where at < end {
      at += try removeRun(layer, delta, BlockIndex(at), limit: Int(end - at))
    }
    return BlockIndex(at)
  }

  /// One run of a hole in a layer with a delta: a hole extent where the parent has something, nothing
  /// where it has not. Returns the run's length.
  private func removeRun(
    _ layer: Layer, _ delta: ExtentMap, _ block: BlockIndex, limit: Int
  ) throws(SpaceWait) -> UInt64 {
    var limit = limit
    var isHidden = false
    switch try delta.cover(block, limit: limit) {
    case .gap(let count): limit = count
    case .extent(let extent):
      limit = min(limit, Int(extent.end - block.raw))
      if extent.isHole { return UInt64(limit) }
      isHidden = true
    }
    switch try layer.map!.full.lookup(block, limit: limit) {
    case .hole(let count):
      if isHidden {
        _ = try delta.removeSome(
          block, count: UInt64(count), maxLeaves: .max, released: released(layer))
      }
      return UInt64(count)
    case .mapped(_, let count, _, _):
      try delta.punch(block, count: count, released: released(layer))
      if !isHidden { layer.usedBlocks -= UInt64(count) }
      return UInt64(count)
    }
  }

  /// What the map lets go of: free if it was the layer's alone, else the snapshot's.
  private func released(_ layer: Layer) -> (BlockAddress, Int, Instant) -> Void {
    { [self] address, count, birth in
      if address.isNone { return }
      layer.usedBlocks -= UInt64(count)
      if birth > layer.map!.branchInstant || fault == .sharedBlockFreed {
        layer.exclusiveBlocks -= min(UInt64(count), layer.exclusiveBlocks)
        space.noteReleased(address, count)
      } else {
        owed.append((layer, .blocks(first: address, count: count, birth: birth)))
      }
    }
  }

  /// A layer that has its parent's map so far gets a delta, or a map of its own where a delta is not
  /// worth it: nothing is shared with an empty map, and what is frozen has to have a map of its own soon.
  private func beginChange(_ layer: Layer) {
    guard layer.inheritsMap, layer.map!.delta == nil else { return }
    if layer.state == .open, !layer.map!.full.tree.isEmpty {
      openDelta(layer, .none)
    } else {
      layer.inheritsMap = false
    }
  }

  /// Enters what maps have let go of into the dead lists.
  func payOwed() throws(SpaceWait) {
    while let (layer, entry) = owed.last {
      if layer.dead == nil { openDeadList(layer, .none, DeadCounts()) }
      try layer.dead!.append(entry)
      if case .blocks(_, let count, let birth) = entry, birth > layer.parentBranchInstant {
        layer.deadOfParentOnly += UInt64(count)
      }
      owed.removeLast()
    }
  }

  /// Enters the layer's roots and counters into its object's record.
  func record(_ layer: Layer) throws(SpaceWait) {
    guard let map = layer.map else { return }
    invariant(layer.fold == nil, "a map is recorded in the midst of a fold")
    guard var record = try catalog.treeRecord(of: layer.object) else { return }
    let fullNodes = layer.metadataBlocks(of: map.full)
    let deltaNodes = map.delta.map(layer.deltaMetadata(of:)) ?? 0
    if layer.inheritsMap {
      invariant(map.full.tree.nodeDelta == 0, "a map that is another object's was changed")
      record.inherit(from: record.parentSnapshot)
      if let root = map.delta?.tree.root, !root.isNone {
        record.map = root
        record.usedBlocks = layer.usedBlocks
        record.exclusiveBlocks = layer.exclusiveBlocks
        record.metadataBlocks = deltaNodes
      }
    } else {
      record.inheritsMap = false
      record.map = map.full.tree.root
      record.branchInstant = map.branchInstant
      record.usedBlocks = layer.usedBlocks
      record.exclusiveBlocks = layer.exclusiveBlocks
      record.metadataBlocks = fullNodes
      record.deadList = layer.dead?.tree.root ?? .none
      record.dead = layer.dead?.counts ?? DeadCounts()
      record.parentBranchInstant = layer.parentBranchInstant
      record.deadOfParentOnly = layer.deadOfParentOnly
    }
    try catalog.put(record, of: layer.object)
    map.full.tree.nodeDelta = 0
    map.delta?.tree.nodeDelta = 0
    layer.metadataBlocks = fullNodes
    layer.deltaMetadata = deltaNodes
  }
}
