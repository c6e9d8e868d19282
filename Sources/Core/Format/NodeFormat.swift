// Nodes: the blocks that all metadata trees of vSpace consist of.
//
// A tree is a copy-on-write B+tree. A node is one 4 KiB block, written twice (R20), and never
// changed in place once a durable root may refer to it: a change writes a new node, and new
// parents up to the root. What points to a node (a parent's entry, an object record, the root)
// holds both addresses, the birth, the level and the checksum (NodePointer). docs/formats/nodes.md
// has the same tables with an example.
//
// Header, 64 bytes, little-endian:
//
//       0  u32  magic "SLNO"
//       4  u8   format version (1)
//       5  u8   kind of tree (NodeKind)
//       6  u8   level: 0 for a leaf, at most 15
//       7  u8   flags (0)
//       8  u32  CRC32C of the block with this field zero
//      12  u16  number of entries, at least 1
//      14  u16  offset of the first value (leaf); 4096 (interior)
//      16  u64  address of the first copy
//      24  u64  address of the second copy
//      32  u64  owner: id of the object that wrote it
//      40  u64  birth: the instant at which it came to be (R10)
//      48  u64  checkpoint in which it was written
//      56  u64  zero
//
// Leaf: entries of 20 bytes from 64 on, keys strictly ascending; values at the block's end.
//
//       0  u64[2]  key: hi, lo
//      16  u16     offset of the value in the block
//      18  u16     length of the value, 0...1024
//
// Interior node: entries of 48 bytes from 64 on, keys strictly ascending.
//
//       0  u64[2]  key: no key below the child is smaller, and those below its left neighbour are
//      16  u8[32]  NodePointer of the child, its level one less than this node's
//
// On disk a node is canonical: values lie one behind the other in the order of their keys and end
// with the block, and what is between entries and values is zero. So the same entries always make
// the same bytes, and what was removed does not linger.
//
// Decoding checks everything: a node that passed `fault` can be walked without further checks.

/// What a tree holds; in the header of every node.
package enum NodeKind: UInt8, Sendable {
  /// Object records, see CatalogFormat.
  case objects = 1
  /// Directory entries, see CatalogFormat.
  case names = 2
  /// Allocation bitmaps and group summaries.
  case space = 3
  /// The extent map of one disk.
  case extents = 4
  /// The dead list of one edge of the snapshot tree, see DeadListFormat.
  case deadList = 5
  /// What a branch has changed of its parent snapshot's map.
  case delta = 6

  /// Whether it holds extents, see ExtentFormat.
  var hasExtents: Bool { self == .extents || self == .delta }
}

/// Why a block is not the node that a pointer names.
package enum NodeFault: String, Error, Sendable {
  case pointer = "the pointer to it is malformed"
  case checksum = "its checksum does not match"
  case magic = "it is not a metadata node"
  case version = "its format version is unknown"
  case kind = "its kind is unknown"
  case level = "its level is not the expected one"
  case address = "it belongs to another address"
  case birth = "its birth is not the expected one"
  case reserved = "a reserved field is not zero"
  case bounds = "an entry is out of bounds"
  case order = "its keys are not in order"
  case child = "it holds a malformed pointer"
  case value = "it holds a malformed value"
}

package enum NodeFormat {
  package static let magic: UInt32 = 0x4F4E_4C53
  package static let version: UInt8 = 1
  package static let headerSize = 64
  package static let leafEntrySize = 20
  package static let interiorEntrySize = 48
  package static let maximumLevel: UInt8 = 15
  package static let maximumValue = 1024
  /// Bytes for entries and values.
  package static let capacity = blockSize - headerSize
  /// Children of a full interior node.
  package static let maximumChildren = capacity / interiorEntrySize

  /// Offsets of header fields.
  package enum Field {
    static let kind = 5
    static let level = 6
    static let checksum = 8
    static let count = 12
    static let heapStart = 14
    static let first = 16
    static let second = 24
    static let owner = 32
    static let birth = 40
    static let checkpoint = 48
    static let reserved = 56
  }

  /// Whether a pointer can name a node at all.
  package static func isPlausible(_ pointer: NodePointer) -> Bool {
    !pointer.first.isNone && !pointer.second.isNone && pointer.first != pointer.second
      && pointer.level <= maximumLevel
  }

  /// What is wrong with the block at `p`, which `pointer` names; nil when all is well.
  package static func fault(in p: UnsafeRawPointer, of pointer: NodePointer) -> NodeFault? {
    guard isPlausible(pointer) else { return .pointer }
    guard p.u32(0) == magic else { return .magic }
    guard p.u32(Field.checksum) == pointer.checksum,
      blockIsSealed(p, checksumAt: Field.checksum)
    else { return .checksum }
    guard p.u8(4) == version else { return .version }
    guard let kind = NodeKind(rawValue: p.u8(Field.kind)) else { return .kind }
    guard p.u8(Field.level) == pointer.level else { return .level }
    guard p.u64(Field.first) == pointer.first.raw, p.u64(Field.second) == pointer.second.raw else {
      return .address
    }
    guard p.u64(Field.birth) == pointer.birth else { return .birth }
    guard p.u8(7) == 0, p.u64(Field.reserved) == 0 else { return .reserved }
    return pointer.level == 0 ? leafFault(p, kind) : interiorFault(p, kind)
  }

  private static func leafFault(_ p: UnsafeRawPointer, _ kind: NodeKind) -> NodeFault? {
    let count = Int(p.u16(Field.count))
    var heap = Int(p.u16(Field.heapStart))
    guard count > 0, headerSize + count * leafEntrySize <= heap, heap <= blockSize else {
      return .bounds
    }
    guard keysAscend(p, count, stride: leafEntrySize) else { return .order }
    for i in 0..<count {
      let entry = p + headerSize + i * leafEntrySize
      let length = Int(entry.u16(18))
      guard Int(entry.u16(16)) == heap, length <= maximumValue, heap + length <= blockSize else {
        return .bounds
      }
      heap += length
    }
    guard heap == blockSize else { return .bounds }
    switch kind {
    case .extents: return ExtentFormat.isValidLeaf(p, count, holes: false) ? nil : .value
    case .delta: return ExtentFormat.isValidLeaf(p, count, holes: true) ? nil : .value
    case .deadList: return DeadListFormat.isValidLeaf(p, count) ? nil : .value
    case .objects, .names, .space: return nil
    }
  }

  private static func interiorFault(_ p: UnsafeRawPointer, _ kind: NodeKind) -> NodeFault? {
    let count = Int(p.u16(Field.count))
    guard count > 0, count <= maximumChildren, Int(p.u16(Field.heapStart)) == blockSize else {
      return .bounds
    }
    guard keysAscend(p, count, stride: interiorEntrySize) else { return .order }
    for i in 0..<count {
      let entry = p + headerSize + i * interiorEntrySize + 16
      let child = NodePointer(decoding: entry)
      guard isPlausible(child), child.level + 1 == p.u8(Field.level), entry.u8(29) == 0,
        entry.u16(30) == 0
      else { return .child }
      if kind.hasExtents && !ExtentFormat.isValidBound(p + headerSize + i * interiorEntrySize) {
        return .value
      }
    }
    return nil
  }

  private static func keysAscend(_ p: UnsafeRawPointer, _ count: Int, stride: Int) -> Bool {
    var entry = p + headerSize
    for _ in 1..<max(count, 1) {
      let next = entry + stride
      guard (entry.u64(0), entry.u64(8)) < (next.u64(0), next.u64(8)) else { return false }
      entry = next
    }
    return true
  }
}
