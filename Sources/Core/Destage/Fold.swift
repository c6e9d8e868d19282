// What destaging changes of a layer's map, and folding: what a delta has goes into a map of the layer's own
// (Space/DiskMap.swift).
//
//     inherits ─ first change ─▶ delta ─ too large, frozen, or its parent goes ─▶ fold ─▶ own map
//         └────────── first change of a frozen layer ────────────────────────────────────▲
//
// A fold goes through the delta in order and enters each extent into the map above the parent's; what
// that lets go of is the parent's and goes to the dead list, as it would have at once without a delta.
// The delta stays as it is until all of it is there, so that readers find the right content all the
// while, and then is freed. A fold begins and ends within one cycle, so no root has half of one.

package struct Fold {
  /// The first block that has not been looked at.
  var next: UInt64 = 0
  /// The delta's tree, once all of it is in the map: it is being freed.
  var tree: Tree?
}

extension Layer {
  /// Blocks of metadata of the layer's whole map now.
  func metadataBlocks(of map: ExtentMap) -> UInt64 {
    UInt64(Int64(metadataBlocks) + 2 * Int64(map.tree.nodeDelta))
  }

  func deltaMetadata(of delta: ExtentMap) -> UInt64 {
    UInt64(Int64(deltaMetadata) + 2 * Int64(delta.tree.nodeDelta))
  }
}

extension Pool {
  /// Extents that one step folds.
  private static let foldStep = 64

  // MARK: Changes

  /// Maps `count` blocks, born now, to `address` and on.
  func assign(
    _ layer: Layer, _ block: BlockIndex, _ address: BlockAddress,
    _ checksums: borrowing InlineArray<128, UInt32>, count: Int
  ) throws(SpaceWait) {
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
    for _ in 0..<Self.foldStep where at < end {
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

  // MARK: Folding

  /// Whether the layer's delta is to be folded before anything else is changed.
  func wantsFold(_ layer: Layer) -> Bool {
    if layer.fold != nil { return true }
    guard let delta = layer.map?.delta else { return false }
    if layer.mustFold { return true }
    switch layer.state {
    case .frozen: return true
    case .open: return layer.deltaMetadata(of: delta) / 2 > configuration.deltaNodes
    case .final, .abandoned: return false
    }
  }

  /// Goes on with folding the layer's delta, or begins to; `layer.fold` is nil when it is done.
  func foldSome(_ layer: Layer) throws(SpaceWait) {
    if layer.fold == nil { layer.fold = Fold() }
    if let delta = layer.map!.delta {
      for _ in 0..<Self.foldStep {
        guard let entry = try delta.tree.ceiling(TreeKey(hi: layer.fold!.next)) else {
          layer.fold!.tree = delta.tree
          layer.map!.delta = nil
          return
        }
        try fold(Extent(entry), layer)
      }
      return
    }
    if let tree = layer.fold!.tree, try !tree.pruneSome(maxNodes: Self.foldStep, { _ in }) {
      return
    }
    layer.fold = nil
    layer.mustFold = false
    layer.deltaMetadata = 0
    paths.hit(.deltaFolded)
  }

  private func fold(_ extent: Extent, _ layer: Layer) throws(SpaceWait) {
    layer.inheritsMap = false
    let map = layer.map!.full
    let (first, end) = (extent.first, extent.end)
    // The blocks are counted as hidden since they came into the delta.
    let release = { [self] (address: BlockAddress, count: Int, birth: Instant) in
      invariant(birth <= map.tree.branchInstant, "a fold lets go of the layer's own")
      if fault == .sharedBlockFreed { return space.noteReleased(address, count) }
      owed.append((layer, .blocks(first: address, count: count, birth: birth)))
    }
    if extent.isHole {
      _ = try map.removeSome(
        BlockIndex(first), count: end - first, maxLeaves: .max, released: release)
    } else {
      let (address, birth, count) = (extent.address, extent.birth, Int(extent.length))
      // Out of the node, which the change of the other tree may evict.
      var checksums = InlineArray<128, UInt32>(repeating: 0)
      for i in 0..<count { checksums[i] = extent.checksums[i] }
      try checksums.span.withUnsafeBufferPointer { (all) throws(SpaceWait) in
        try map.assign(
          BlockIndex(first), to: address,
          checksums: UnsafeBufferPointer(rebasing: all[..<count]), birth: birth, released: release)
      }
    }
    layer.fold!.next = end
  }
}
