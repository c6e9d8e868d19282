/// The layers whose maps a cycle has changed, until these are written out and the catalog has their
/// roots.
final class ChangedMaps {
  private let pool: Pool
  private let nodes: NodeWriter
  private var layers: [Layer] = []

  init(_ pool: Pool, _ nodes: NodeWriter) {
    self.pool = pool
    self.nodes = nodes
  }

  func add(_ layer: Layer) {
    guard !layer.hasChangedMap else { return }
    layer.hasChangedMap = true
    layers.append(layer)
  }

  /// Folds what is to be folded, writes the maps out and enters their roots into the catalog. A disk
  /// that was deleted behind the cut still is in the catalog as of the cut, and takes part.
  func step() throws(SpaceWait) -> StepOutcome {
    for layer in layers where pool.wantsFold(layer) {
      try pool.foldSome(layer)
      return .goesOn
    }
    var isDirty = false
    for layer in layers {
      for tree in [layer.map?.full.tree, layer.map?.delta?.tree, layer.dead?.tree]
      where nodes.writeOut(tree) { isDirty = true }
    }
    if isDirty { return .waits }
    while let layer = layers.last {
      try pool.record(layer)
      if layer.state != .open || !isConnected(layer) { pool.returnRun(layer) }
      layers.removeLast()
      layer.hasChangedMap = false
    }
    nodes.spillIfNeeded()
    return .done
  }

  private func isConnected(_ layer: Layer) -> Bool {
    pool.disks.find(layer.object).map { $0.connections > 0 } ?? false
  }
}
