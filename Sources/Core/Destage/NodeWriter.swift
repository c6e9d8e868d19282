/// Writes dirty nodes to both of their places, children before parents.
final class NodeWriter {
  private struct Write {
    var node: NodeWrite
    var copiesLeft = 2
  }

  /// Nodes in flight at most.
  private static let limit = 128

  private let pool: Pool
  private var writes: [Write?] = []
  private var freePlaces: [Int] = []
  /// Tokens of copies that a device refused.
  private var refused: [Int] = []
  private var scratch: [NodeWrite] = []
  /// Nodes that are being written.
  private(set) var inFlight = 0
  var hasRefused: Bool { !refused.isEmpty }

  init(_ pool: Pool) { self.pool = pool }

  /// Issues writes of nodes that have no dirty child, of one tree or of all, as far as there is
  /// room; their parents follow when they are done. `window`: the cycle's for transfers.
  func write(only tree: Tree?, window: Int) {
    let room = min(Self.limit, 2 * window) - inFlight
    guard room > 0 else { return }
    scratch.removeAll(keepingCapacity: true)
    pool.store.writeback(into: &scratch, limit: room, only: tree)
    for node in scratch {
      let place = freePlaces.popLast() ?? writes.count
      if place == writes.count { writes.append(nil) }
      writes[place] = Write(node: node)
      inFlight += 1
      issue(place << 1)
      issue(place << 1 | 1)
    }
  }

  /// A token is a place, and the copy as its lowest bit.
  private func issue(_ token: Int) {
    guard let node = writes[token >> 1]?.node else {
      invariantBroken("a copy of a node is written that nobody asked for")
    }
    let address = token & 1 == 0 ? node.first : node.second
    pool.ops.issue(
      .write, .volume(address.volume), offset: address.byteOffset, length: UInt64(blockSize),
      memory: node.memory, owner: .nodeWrite, index: token)
  }

  func completed(_ token: Int, error: Int32) -> WorkOutcome {
    if error != 0 {
      pool.ioErrors += 1
      refused.append(token)
      return .refused
    }
    let place = token >> 1
    guard var write = writes[place] else {
      invariantBroken("a copy of a node was written that nobody asked for")
    }
    write.copiesLeft -= 1
    writes[place] = write
    guard write.copiesLeft == 0 else { return .underWay }
    pool.store.writebackDone(write.node)
    writes[place] = nil
    freePlaces.append(place)
    inFlight -= 1
    return .done
  }

  /// Issues once more what was refused.
  func retry() {
    let tokens = refused
    refused.removeAll()
    for token in tokens { issue(token) }
  }
}
