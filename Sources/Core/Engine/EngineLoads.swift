// Metadata blocks on their way into memory: the second copy where the first is bad, which is then
// rewritten (R20).

/// A load that is under way, and the copy that is being read.
struct NodeLoadState {
  var load: NodeLoad
  var copy: Int
  var firstRefused = false
  /// The root when the load began.
  let checkpoint: UInt64
}

extension Engine {
  /// Begins to load what a walk waits for. Nothing to do for other waits.
  func startLoad(_ pointer: NodePointer) {
    switch pool.store.beginLoad(pointer) {
    case .started(let load):
      let state = NodeLoadState(load: load, copy: 0, checkpoint: pool.root.checkpoint)
      issueNodeRead(nodeLoads.place(state))
    case .present, .damaged: loadEnded = true
    case .noMemory: awaitMemory()
    case .alreadyLoading: break
    }
  }

  private func issueNodeRead(_ index: Int) {
    guard let state = nodeLoads[index] else { return }
    let pointer = state.load.pointer
    let address = state.copy == 0 ? pointer.first : pointer.second
    guard address.volume < pool.configuration.volumes.count else {
      return nodeLoadEnded(index, error: 5)
    }
    pool.ops.issue(
      .read, .volume(address.volume), offset: address.byteOffset, length: UInt64(blockSize),
      memory: state.load.memory, owner: .nodeLoad, index: index)
  }

  func nodeLoadEnded(_ index: Int, error: Int32) {
    guard let state = nodeLoads[index] else { return }
    if error != 0 { pool.ioErrors += 1 }
    switch pool.store.finishLoad(
      state.load, copy: state.copy, error: error, firstRefused: state.firstRefused)
    {
    case .tryOther:
      nodeLoads[index]!.copy = 1
      nodeLoads[index]!.firstRefused = error != 0
      return issueNodeRead(index)
    case .readyHeal(let bad):
      pool.paths.hit(.healedNode)
      pool.checksumErrors += 1
      healNode(state, bad: bad)
    case .ready: break
    case .damaged: pool.checksumErrors += 1
    }
    nodeLoads[index] = nil
    loadEnded = true
  }

  /// Rewrites the bad copy of a node from a copy of the good one (R20). Until that is done nothing
  /// becomes free: the place could get new content, which a late write of the old would destroy. If
  /// there was a new root while the node was read, it may have got that already.
  private func healNode(_ state: NodeLoadState, bad: Int) {
    let load = state.load
    let address = bad == 0 ? load.pointer.first : load.pointer.second
    guard state.checkpoint == pool.root.checkpoint,
      address.volume < pool.configuration.volumes.count
    else { return }
    let memory = AlignedMemory(bytes: blockSize)
    memory.base.copyMemory(from: load.memory, byteCount: blockSize)
    let index = heals.place(memory)
    pool.healing += 1
    pool.ops.issue(
      .write, .volume(address.volume), offset: address.byteOffset, length: UInt64(blockSize),
      memory: memory.base, owner: .nodeHeal, index: index)
  }

  func nodeHealCompleted(_ index: Int, error: Int32) {
    if error != 0 { pool.ioErrors += 1 }
    heals[index] = nil
    pool.healing -= 1
  }
}
