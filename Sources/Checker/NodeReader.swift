import Core

/// Reads metadata nodes, both copies of each, and heals a bad copy from the good one (R20).
final class NodeReader {
  private let members: PoolMembers
  private let options: CheckOptions
  private let findings: Findings
  private let memory = AlignedMemory(bytes: 2 * blockSize)
  /// Times that a node could not be read in either copy, or was not what its parent says: what it
  /// leads to is not known. Whoever compares what two of its walks found compares this, too.
  private(set) var failures = 0
  var isIncomplete: Bool { failures > 0 }

  init(members: PoolMembers, options: CheckOptions, findings: Findings) {
    self.members = members
    self.options = options
    self.findings = findings
  }

  /// Copies the node that `pointer` names to `target`; false when neither copy is good. With
  /// `quietly`, for a second visit, the second copy is read only if need be and nothing is said.
  func read(
    _ pointer: NodePointer, kind: NodeKind, owner: ObjectID, into target: UnsafeMutableRawPointer,
    quietly: Bool = false
  ) -> Bool {
    let (first, second) = (memory.base, memory.base + blockSize)
    let faultA = fault(pointer, at: pointer.first, kind, owner, into: first)
    if quietly, faultA == nil {
      target.copyMemory(from: first, byteCount: blockSize)
      return true
    }
    let faultB = fault(pointer, at: pointer.second, kind, owner, into: second)
    guard faultA == nil || faultB == nil else {
      failures += 1
      if !quietly {
        findings.complain(
          "both copies of a node of \(name(kind, owner)) are damaged: at \(place(pointer.first)) "
            + "\(faultA!), at \(place(pointer.second)) \(faultB!); what it leads to can't be read")
      }
      return false
    }
    target.copyMemory(from: faultA == nil ? first : second, byteCount: blockSize)
    guard !quietly else { return true }
    if let bad = faultA ?? faultB {
      let address = faultA == nil ? pointer.second : pointer.first
      findings.complain(
        "a copy of a node of \(name(kind, owner)) at \(place(address)) is damaged: \(bad); the "
          + "other copy is good")
      heal(address, from: target)
    }
    return true
  }

  /// A node was good and yet not what its parent says.
  func markIncomplete() { failures += 1 }

  private func fault(
    _ pointer: NodePointer, at address: BlockAddress, _ kind: NodeKind, _ owner: ObjectID,
    into p: UnsafeMutableRawPointer
  ) -> String? {
    guard members.isHome(address, count: 1) else { return "no volume has this address" }
    guard members.volumes[address.volume].read(block: address.block, count: 1, into: p) else {
      return "it can't be read"
    }
    if let fault = NodeFormat.fault(in: p, of: pointer) { return fault.rawValue }
    if p.reading.u8(5) != kind.rawValue { return "it belongs to a tree of another kind" }
    if !mayOwn(p.reading.u64(32), kind, owner) {
      return "it belongs to object \(p.reading.u64(32))"
    }
    if p.reading.u64(48) > members.root.checkpoint { return "it is of a later checkpoint" }
    if pointer.birth > members.root.nextInstant { return "its birth is in the future" }
    return nil
  }

  /// Maps and dead lists keep nodes that another object wrote: a mark makes the disk's trees the
  /// snapshot's, a clone refers to its origin's, a merge hands over. Other trees have one owner.
  private func mayOwn(_ found: UInt64, _ kind: NodeKind, _ owner: ObjectID) -> Bool {
    switch kind {
    case .extents, .deadList, .delta: found >= TreeOwner.firstFree
    case .objects, .names, .space: found == owner.raw
    }
  }

  private func heal(_ address: BlockAddress, from good: UnsafeRawPointer) {
    guard options.repair, members.isHome(address, count: 1) else { return }
    if members.volumes[address.volume].write(block: address.block, from: good),
      members.volumes[address.volume].flush()
    {
      findings.repaired("rewrote the damaged copy of a node at \(place(address))")
    }
  }

  func place(_ address: BlockAddress) -> String {
    "volume \(address.volume), offset \(address.byteOffset)"
  }

  private func name(_ kind: NodeKind, _ owner: ObjectID) -> String {
    switch kind {
    case .objects: "the objects tree"
    case .names: "the names tree"
    case .space: "the space tree"
    case .extents: "the map of object \(owner.raw)"
    case .deadList: "a dead list of object \(owner.raw)"
    case .delta: "the delta of object \(owner.raw)"
    }
  }
}

/// The key of a tree: two words, the first counts more.
struct NodeKey: Comparable {
  var hi: UInt64
  var lo: UInt64
  static func < (a: Self, b: Self) -> Bool { (a.hi, a.lo) < (b.hi, b.lo) }
  static let least = Self(hi: 0, lo: 0)
}

/// Goes through the entries of a tree in the order of their keys, one node of each level in
/// memory. Every node is verified; one that can't be read is passed over.
final class TreeWalk {
  private struct Frame {
    var memory: AlignedMemory
    var index: Int
    var count: Int
    var level: UInt8
    /// Keys of this node and all below it are in `low ..< high` (nil: no end).
    var low: NodeKey
    var high: NodeKey?
  }

  private let reader: NodeReader
  private let kind: NodeKind
  private let owner: ObjectID
  private let quietly: Bool
  private let findings: Findings?
  private let visit: (NodePointer) throws(CheckFailure) -> Void
  private var stack: [Frame] = []
  private var spare: [AlignedMemory] = []
  private var start: NodeKey
  private(set) var nodes: UInt64 = 0

  /// A first, thorough walk: complaints go to `findings`, `visit` is called with each good node.
  init(
    _ reader: NodeReader, root: NodePointer, kind: NodeKind, owner: ObjectID, findings: Findings,
    visit: @escaping (NodePointer) throws(CheckFailure) -> Void
  ) throws(CheckFailure) {
    self.reader = reader
    self.kind = kind
    self.owner = owner
    self.findings = findings
    self.visit = visit
    quietly = false
    start = .least
    if !root.isNone { try descend(root, low: .least, high: nil) }
  }

  /// A walk over a part of a tree that has been checked already.
  init(
    again reader: NodeReader, root: NodePointer, kind: NodeKind, owner: ObjectID,
    from key: NodeKey = .least
  ) throws(CheckFailure) {
    self.reader = reader
    self.kind = kind
    self.owner = owner
    findings = nil
    visit = { _ in }
    quietly = true
    start = key
    if !root.isNone { try descend(root, low: .least, high: nil) }
  }

  /// The next entry; the value is valid until the next call.
  func next() throws(CheckFailure) -> (key: NodeKey, value: UnsafeRawBufferPointer)? {
    while let top = stack.last {
      if top.index == top.count {
        spare.append(top.memory)
        stack.removeLast()
        continue
      }
      stack[stack.count - 1].index += 1
      let p = UnsafeRawPointer(top.memory.base)
      if top.level == 0 {
        let entry = p + NodeFormat.headerSize + top.index * NodeFormat.leafEntrySize
        let key = NodeKey(hi: entry.u64(0), lo: entry.u64(8))
        if key < start { continue }
        return (key, .init(start: p + Int(entry.u16(16)), count: Int(entry.u16(18))))
      }
      let entry = p + NodeFormat.headerSize + top.index * NodeFormat.interiorEntrySize
      let low = NodeKey(hi: entry.u64(0), lo: entry.u64(8))
      var high = top.high
      if top.index + 1 < top.count {
        let right = entry + NodeFormat.interiorEntrySize
        high = NodeKey(hi: right.u64(0), lo: right.u64(8))
      }
      if let high, high <= start { continue }
      try descend(NodePointer(decoding: entry + 16), low: low, high: high)
    }
    return nil
  }

  private func descend(
    _ pointer: NodePointer, low: NodeKey, high: NodeKey?
  ) throws(CheckFailure) {
    let memory = spare.popLast() ?? AlignedMemory(bytes: blockSize)
    guard reader.read(pointer, kind: kind, owner: owner, into: memory.base, quietly: quietly) else {
      spare.append(memory)
      return
    }
    let p = UnsafeRawPointer(memory.base)
    let count = Int(p.u16(12))
    guard keysFit(p, count, pointer.level, low, high) else {
      spare.append(memory)
      reader.markIncomplete()
      findings?.complain(
        "the node at \(reader.place(pointer.first)) holds keys that its parent says are elsewhere")
      return
    }
    nodes += 1
    try visit(pointer)
    stack.append(
      Frame(memory: memory, index: 0, count: count, level: pointer.level, low: low, high: high))
  }

  /// The keys of a node ascend, which the decoder has checked, and so the first and the last tell.
  private func keysFit(
    _ p: UnsafeRawPointer, _ count: Int, _ level: UInt8, _ low: NodeKey, _ high: NodeKey?
  ) -> Bool {
    let size = level == 0 ? NodeFormat.leafEntrySize : NodeFormat.interiorEntrySize
    let last = p + NodeFormat.headerSize + (count - 1) * size
    let first = p + NodeFormat.headerSize
    guard NodeKey(hi: first.u64(0), lo: first.u64(8)) >= low else { return false }
    guard let high else { return true }
    return NodeKey(hi: last.u64(0), lo: last.u64(8)) < high
  }
}
