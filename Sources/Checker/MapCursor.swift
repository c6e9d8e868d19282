import Core

/// A run of blocks of a map: a whole extent or what is left of it.
struct Extent {
  /// First block on the disk.
  var first: UInt64
  var count: UInt64
  var address: BlockAddress
  var birth: Instant
  /// Into the leaf that the cursor stands on.
  private var sums: UnsafeRawPointer

  var end: UInt64 { first + count }
  /// Of a delta: blocks that read as zeros.
  var isHole: Bool { address.isNone }

  /// An entry of a leaf that was verified.
  fileprivate init(block: UInt64, value p: UnsafeRawPointer) {
    first = block
    count = UInt64(p.u16(16))
    address = BlockAddress(raw: p.u64(0))
    birth = p.u64(8)
    sums = p + ExtentFormat.headerSize
  }

  func checksums() -> [UInt32] { (0..<Int(count)).map { sums.u32(4 * $0) } }

  mutating func dropFirst(_ n: UInt64) {
    first += n
    count -= n
    address = address + n
    sums += 4 * Int(n)
  }

  /// Whether the first `n` blocks are the same ones, with the same content.
  func agrees(with other: Self, _ n: UInt64) -> Bool {
    address == other.address && birth == other.birth
      && (0..<Int(n)).allSatisfy { sums.u32(4 * $0) == other.sums.u32(4 * $0) }
  }
}

/// Goes through the map of an object from left to right. Whoever uses it decides at each pointer
/// whether to go into the node or to pass it by with all that is below. One node of each level is
/// in memory.
final class MapCursor {
  enum Head {
    case node(NodePointer)
    case extent(Extent)
  }

  private struct Frame {
    var memory: AlignedMemory
    var index: Int
    var count: Int
    var level: UInt8
    var high: UInt64
  }

  private let reader: NodeReader
  private let kind: NodeKind
  private let object: ObjectID
  private let findings: Findings?
  private var stack: [Frame] = []
  private var spare: [AlignedMemory] = []
  /// What comes next; nil at the end.
  private(set) var head: Head?
  /// Keys of the node in `head` and below it are in `low ..< high`.
  private(set) var low: UInt64 = 0
  private(set) var high = UInt64.max
  /// A node on the way could not be read.
  private(set) var isIncomplete = false

  /// With `findings`, nodes are read in both copies, complained about and healed; without, the map
  /// is one that another walk verifies.
  init(
    _ reader: NodeReader, root: NodePointer, kind: NodeKind = .extents, object: ObjectID,
    findings: Findings?
  ) {
    self.reader = reader
    self.kind = kind
    self.object = object
    self.findings = findings
    if !root.isNone { head = .node(root) }
  }

  /// Goes into the node in `head`; one that can't be read is passed by.
  func descend() {
    guard case .node(let pointer) = head else { return }
    let memory = spare.popLast() ?? AlignedMemory(bytes: blockSize)
    guard
      reader.read(
        pointer, kind: kind, owner: object, into: memory.base, quietly: findings == nil),
      keysFit(memory.base, pointer)
    else {
      spare.append(memory)
      isIncomplete = true
      advance()
      return
    }
    stack.append(
      Frame(
        memory: memory, index: -1, count: Int(memory.base.reading.u16(12)), level: pointer.level,
        high: high))
    advance()
  }

  /// Passes by what is in `head`.
  func advance() {
    while let top = stack.last {
      guard top.index + 1 < top.count else {
        spare.append(top.memory)
        stack.removeLast()
        continue
      }
      stack[stack.count - 1].index += 1
      head = item(stack[stack.count - 1])
      return
    }
    head = nil
  }

  /// Passes by the first `n` blocks of the extent in `head`.
  func advance(blocks n: UInt64) {
    guard case .extent(var extent) = head, n < extent.count else { return advance() }
    extent.dropFirst(n)
    head = .extent(extent)
  }

  private func item(_ frame: Frame) -> Head {
    let p = UnsafeRawPointer(frame.memory.base)
    if frame.level == 0 {
      let entry = p + NodeFormat.headerSize + frame.index * NodeFormat.leafEntrySize
      return .extent(Extent(block: entry.u64(0), value: p + Int(entry.u16(16))))
    }
    let entry = p + NodeFormat.headerSize + frame.index * NodeFormat.interiorEntrySize
    low = entry.u64(0)
    high =
      frame.index + 1 < frame.count
      ? (entry + NodeFormat.interiorEntrySize).u64(0) : frame.high
    return .node(NodePointer(decoding: entry + 16))
  }

  /// The keys of a node ascend, which the decoder has checked, and so the first and the last tell.
  private func keysFit(_ memory: UnsafeMutableRawPointer, _ pointer: NodePointer) -> Bool {
    let p = UnsafeRawPointer(memory)
    let size = pointer.level == 0 ? NodeFormat.leafEntrySize : NodeFormat.interiorEntrySize
    let first = p + NodeFormat.headerSize
    let last = first + (Int(p.u16(12)) - 1) * size
    if first.u64(0) >= low, last.u64(0) < high { return true }
    reader.markIncomplete()
    findings?.complain(
      "the node at \(reader.place(pointer.first)) holds keys that its parent says are elsewhere")
    return false
  }
}
