/// Writes dirty nodes to both of their places, children before parents.
///
/// Where a device refuses one several times over, the node moves to another place. When a second place
/// is refused as well, it is hardly the place: it is tried again once the device has had time to come
/// back.
final class NodeWriter {
  private struct Write {
    var node: NodeWrite
    /// Copies that are on their way, how often they were refused, and which were given up.
    var copiesLeft = 2
    var refusals = 0
    var lacks: InlineArray<2, Bool> = [false, false]
    var moves = 0
  }

  /// Refusals of a node until it moves, and how often it does without a pause.
  private static let attempts = 3
  private static let mostMoves = 2

  /// Nodes in flight at most.
  private static let limit = 128

  private let pool: Pool
  private var writes: [Write?] = []
  private var freePlaces: [Int] = []
  /// Places of nodes that wait for their device.
  private var refused: [Int] = []
  /// A node has moved: the space map has changes that it has not stored.
  var hasMoved = false
  private var scratch: [NodeWrite] = []
  private(set) var written: UInt64 = 0
  /// The cycle's, for transfers: there are twice as many nodes in flight at most.
  var window = Destager.wideWindow
  /// Nodes that are being written.
  private(set) var inFlight = 0
  var hasRefused: Bool { !refused.isEmpty }

  init(_ pool: Pool) { self.pool = pool }

  /// Issues writes of nodes that have no dirty child, of one tree or of all, as far as there is
  /// room; their parents follow when they are done.
  func write(only tree: Tree?) {
    let room = min(Self.limit, 2 * window) - inFlight
    // One that is being healed may be written again where it is.
    guard room > 0, pool.healing == 0 else { return }
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

  /// Issues writes of a tree's dirty nodes; false when it has none.
  func writeOut(_ tree: Tree?) -> Bool {
    guard let tree, tree.isDirty else { return false }
    write(only: tree)
    return true
  }

  /// Makes room in the cache: writes out what is dirty.
  func spill() {
    pool.paths.hit(.nodeSpill)
    write(only: nil)
  }

  /// Writes some dirty nodes out early, so that what is dirty stays bounded.
  func spillIfNeeded() {
    if pool.store.needsSpill { spill() }
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

  /// `refused`: the node is written again by `retry`.
  func completed(_ token: Int, error: Int32) -> WorkOutcome {
    let (place, copy) = (token >> 1, token & 1)
    guard var write = writes[place], write.copiesLeft > 0 else {
      invariantBroken("a copy of a node was written that nobody asked for")
    }
    if error != 0 {
      pool.ioErrors += 1
      write.refusals += 1
      if write.refusals < Self.attempts {
        writes[place] = write
        issue(token)
        return .underWay
      }
      write.lacks[copy] = true
    }
    write.copiesLeft -= 1
    writes[place] = write
    guard write.copiesLeft == 0 else { return .underWay }
    if write.lacks[0] || write.lacks[1] {
      if move(place, write) { return .underWay }
      refused.append(place)
      return .refused
    }
    pool.store.writebackDone(write.node)
    writes[place] = nil
    freePlaces.append(place)
    inFlight -= 1
    written += 1
    return .done
  }

  /// Writes a node to another place, if there is one at hand. What it leaves becomes free with the next
  /// root only, so the last of the space is not spent on that.
  private func move(_ place: Int, _ write: Write) -> Bool {
    guard write.moves < Self.mostMoves,
      pool.space.backedFree * 2 >= pool.space.metadataReserve,
      let node = try? pool.store.move(write.node)
    else { return false }
    writes[place] = Write(node: node, moves: write.moves + 1)
    hasMoved = true
    pool.paths.hit(.relocatedNode)
    issue(place << 1)
    issue(place << 1 | 1)
    return true
  }

  /// Issues once more what was refused. The first may move once more: many places in a row may be bad.
  func retry() {
    let places = refused
    refused.removeAll()
    for (i, place) in places.enumerated() {
      guard var write = writes[place] else { continue }
      if i == 0 { write.moves = min(write.moves, Self.mostMoves - 1) }
      let copies = [0, 1].filter { write.lacks[$0] }
      write.refusals = 0
      write.lacks = [false, false]
      write.copiesLeft = copies.count
      writes[place] = write
      for copy in copies { issue(place << 1 | copy) }
    }
  }
}
