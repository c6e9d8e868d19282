// Dead lists: the entries of a tree of kind `.deadList`, which names the blocks that a snapshot
// refers to and its child in the snapshot tree (the next snapshot, a clone, the head) no more.
// docs/formats/nodes.md has the same table with an example.
//
// Key: hi = birth, lo = address of the run's first block, or of the node's first copy. What was
// born after an instant is thus one range at the end of the tree. The value's length says what the
// entry is:
//
//     4 bytes   a run of data blocks    0  u32  length in blocks, 1...8192
//     8 bytes   a metadata node         0  u64  address of the second copy
//
// Entries of one birth do not overlap; of a node only the first copy counts for that.

/// One entry of a dead list.
package enum DeadEntry: Equatable, Sendable {
  /// `count` data blocks from `first` on, one behind the other on one volume.
  case blocks(first: BlockAddress, count: Int, birth: Instant)
  /// A metadata node: one block at each of two addresses.
  case node(first: BlockAddress, second: BlockAddress, birth: Instant)

  /// The entry under the key (`birth`, `address`); nil when key and value make no entry. Trusts
  /// nothing: the addresses can be homes on some volume, yet whether that volume exists is for the
  /// caller to find out.
  package init?(birth: Instant, address: UInt64, value: UnsafeRawBufferPointer) {
    let first = BlockAddress(raw: address)
    guard birth > 0, let p = value.baseAddress else { return nil }
    switch value.count {
    case DeadListFormat.blocksSize:
      let count = p.u32(0)
      guard DeadListFormat.isRun(first, Int(count)) else { return nil }
      self = .blocks(first: first, count: Int(count), birth: birth)
    case DeadListFormat.nodeSize:
      let second = BlockAddress(raw: p.u64(0))
      guard DeadListFormat.isPair(first, second) else { return nil }
      self = .node(first: first, second: second, birth: birth)
    default:
      return nil
    }
  }

  /// The instant at which the blocks came to be.
  package var birth: Instant {
    switch self {
    case .blocks(_, _, let birth), .node(_, _, let birth): birth
    }
  }

  /// The lowest address, of a node that of its first copy: the key's lower half.
  package var address: BlockAddress {
    switch self {
    case .blocks(let first, _, _), .node(let first, _, _): first
    }
  }

  /// The first address behind the run, or behind the node's first copy.
  var end: BlockAddress {
    switch self {
    case .blocks(let first, let count, _): first + UInt64(count)
    case .node(let first, _, _): first + 1
    }
  }

  var key: TreeKey { TreeKey(hi: birth, lo: address.raw) }

  /// Writes the value, at most `DeadListFormat.nodeSize` bytes; returns its length in bytes.
  func encode(to p: UnsafeMutableRawPointer) -> Int {
    switch self {
    case .blocks(_, let count, _):
      p.put(UInt32(count), at: 0)
      return DeadListFormat.blocksSize
    case .node(_, let second, _):
      p.put(second.raw, at: 0)
      return DeadListFormat.nodeSize
    }
  }
}

/// Sizes and checks of a dead list's values.
package enum DeadListFormat {
  /// The longest run, in blocks: one entry is freed at once, and so is to touch few bitmaps.
  package static let maximumRun = SpaceFormat.chunkBlocks
  /// Bytes of the value of a run of blocks.
  package static let blocksSize = 4
  /// Bytes of the value of a node.
  package static let nodeSize = 8

  /// Whether an entry can hold this run of blocks.
  static func isRun(_ first: BlockAddress, _ count: Int) -> Bool {
    (1...maximumRun).contains(count) && first.isHome(count: UInt64(count))
  }

  /// Whether an entry can hold a node with these two copies.
  static func isPair(_ first: BlockAddress, _ second: BlockAddress) -> Bool {
    first.isHome(count: 1) && second.isHome(count: 1) && first != second
  }

  /// Whether the entries of a leaf, whose bounds and order have been checked, are well-formed and
  /// do not overlap.
  static func isValidLeaf(_ p: UnsafeRawPointer, _ count: Int) -> Bool {
    var last: DeadEntry?
    for i in 0..<count {
      let slot = p + NodeFormat.headerSize + i * NodeFormat.leafEntrySize
      let value = UnsafeRawBufferPointer(start: p + Int(slot.u16(16)), count: Int(slot.u16(18)))
      guard let entry = DeadEntry(birth: slot.u64(0), address: slot.u64(8), value: value) else {
        return false
      }
      if let last, last.birth == entry.birth, last.end > entry.address { return false }
      last = entry
    }
    return true
  }
}
