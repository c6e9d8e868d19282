// Folding: what a layer's delta has goes into a map of its own (Space/DiskMap.swift).
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

extension Pool {
  /// Extents that one step folds.
  private static let foldStep = 64

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
