import Core

// The map of an object next to the map of the snapshot that it branches from.
//
// What the object owns was born after its branch instant; what it shares is in the parent's map as
// well, whole subtrees of nodes or single blocks. Both maps are walked from left to right at the
// same time: a shared subtree must be one that the walk of the parent's map comes to, and is then
// passed by on both sides; a shared block must be at the same place there. For shared subtrees and
// blocks are in the same order in both maps, though nodes above them may have been split, merged
// or dropped. Whatever else the walk of the parent's map meets is what the object has given up, and
// so must be on its dead list.
//
// The cost is that of what differs: a clone with a dozen blocks of its own costs some nodes of its
// own and as many of the golden image's.

/// What a walk calls for each find.
protocol BranchVisitor {
  /// A node that only this object and what branched from it refer to.
  mutating func own(_ node: NodePointer) throws(CheckFailure)
  mutating func own(_ extent: Extent) throws(CheckFailure)
  /// What the parent refers to and the object does not.
  mutating func gone(_ node: NodePointer) throws(CheckFailure)
  mutating func gone(_ extent: Extent, count: UInt64) throws(CheckFailure)
}

struct BranchWalk {
  private let object: ObjectID
  private let instant: Instant
  private let own: MapCursor
  private let parent: MapCursor
  private let findings: Findings
  /// The object is being pruned: only what it still refers to matters.
  private let isRemainder: Bool
  private let hasParent: Bool
  private var ownEnd: UInt64 = 0
  /// Blocks and subtrees that the object shares with its parent and that the parent does not have.
  private(set) var strays = 0

  init(
    reader: NodeReader, object: ObjectID, map: NodePointer, branch: Branch, isRemainder: Bool,
    findings: Findings
  ) {
    self.object = object
    self.findings = findings
    self.isRemainder = isRemainder
    hasParent = branch.parent != nil
    instant = branch.instant
    own = MapCursor(reader, root: map, object: object, findings: findings)
    parent = MapCursor(
      reader, root: branch.parent?.record.map ?? .none, object: ObjectID(branch.parent?.id ?? 0),
      findings: nil)
  }

  /// All that both maps hold was read, and they agree: what was counted and told is exact.
  var isExact: Bool { !own.isIncomplete && !parent.isIncomplete && strays == 0 }

  mutating func run(_ visitor: inout some BranchVisitor) throws(CheckFailure) {
    while true {
      switch own.head {
      case .node(let pointer) where pointer.birth > instant:
        try visitor.own(pointer)
        own.descend()
      case .extent(let extent) where extent.birth > instant:
        place(extent, extent.count)
        try visitor.own(extent)
        own.advance()
      case .node(let pointer):
        try share(pointer, &visitor)
      case .extent(let extent):
        try share(extent, &visitor)
      case nil:
        guard !isRemainder, parent.head != nil else { return }
        try giveUp(&visitor)
      }
    }
  }

  /// Blocks of the object's own leaves, shared or not, come in order.
  private mutating func place(_ extent: Extent, _ count: UInt64) {
    if extent.first < ownEnd {
      findings.complain("the map of object \(object.raw) holds block \(extent.first) twice")
    }
    ownEnd = max(ownEnd, extent.first + count)
  }

  /// The subtree in the object's head is shared: one step on the parent's side.
  private mutating func share(
    _ pointer: NodePointer, _ visitor: inout some BranchVisitor
  ) throws(CheckFailure) {
    switch parent.head {
    case .node(let other) where other == pointer:
      own.advance()
      parent.advance()
    case .node where parent.low < own.high: try pass(before: own.low, &visitor)
    case .extent: try giveUp(&visitor)
    case .node, nil:
      stray("a node at \(place(pointer.first)), below block \(own.low)", pointer.birth)
      own.advance()
    }
  }

  /// The blocks in the object's head are shared: one step on the parent's side.
  private mutating func share(
    _ extent: Extent, _ visitor: inout some BranchVisitor
  ) throws(CheckFailure) {
    switch parent.head {
    case .node where parent.low <= extent.first: try pass(before: extent.first, &visitor)
    case .extent(let other) where other.end <= extent.first: try giveUp(&visitor)
    case .extent(let other) where other.first < extent.first:
      try giveUp(&visitor, other, extent.first - other.first)
    case .extent(let other) where other.first == extent.first:
      let count = min(other.count, extent.count)
      if other.agrees(with: extent, count) {
        place(extent, count)
        own.advance(blocks: count)
        parent.advance(blocks: count)
      } else {
        stray("block \(extent.first), at \(place(extent.address))", extent.birth)
        own.advance(blocks: count)
      }
    case .node, .extent, nil:
      stray("block \(extent.first), at \(place(extent.address))", extent.birth)
      own.advance()
    }
  }

  /// Passes what the parent's head holds, which begins before the place of something shared. An
  /// extent is filed under its first block, and so may reach out of its node.
  private mutating func pass(
    before block: UInt64, _ visitor: inout some BranchVisitor
  ) throws(CheckFailure) {
    let reach = UInt64(ExtentFormat.maximumLength)
    if isRemainder, parent.high <= block - min(block, reach) {
      parent.advance()
    } else {
      try giveUp(&visitor)
    }
  }

  /// The object does not refer to what is in the parent's head.
  private mutating func giveUp(_ visitor: inout some BranchVisitor) throws(CheckFailure) {
    switch parent.head {
    case .node(let pointer):
      try visitor.gone(pointer)
      parent.descend()
    case .extent(let extent): try giveUp(&visitor, extent, extent.count)
    case nil: break
    }
  }

  private mutating func giveUp(
    _ visitor: inout some BranchVisitor, _ extent: Extent, _ count: UInt64
  ) throws(CheckFailure) {
    try visitor.gone(extent, count: count)
    parent.advance(blocks: count)
  }

  private func place(_ address: BlockAddress) -> String {
    "volume \(address.volume), offset \(address.byteOffset)"
  }

  /// One sentence for each object: after the first, little is certain.
  private mutating func stray(_ what: String, _ birth: Instant) {
    strays += 1
    guard strays == 1, !parent.isIncomplete else { return }
    let reason =
      hasParent
      ? "not after its branch, but the map of the snapshot that it branches from does not hold it"
      : "not after its branch, but it branches from nothing"
    findings.complain(
      "the map of object \(object.raw) holds \(what), born at \(birth), which is \(reason)")
  }
}
