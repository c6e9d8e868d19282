import Core

// The delta of an object that inherits its map: nodes and blocks that are all its own, born after the
// snapshot that it branches from, and hole extents, which lie over what that one has.
//
// The snapshot's map is walked next to it, quietly, where the delta has something: what that hides is not
// in use by the object any more. A delta of some dozen extents costs as many ways down that map.

struct DeltaCheck {
  private let check: MapCheck
  private let id: ObjectID
  private let record: ObjectRecord
  /// What it holds may have been freed in part, from the front.
  private let isDeleted: Bool
  private var nodes: UInt64 = 0
  private var blocks: UInt64 = 0
  /// Blocks of the parent's map that it hides.
  private var hidden: UInt64 = 0
  private var end: UInt64 = 0

  init(check: MapCheck, id: ObjectID, record: ObjectRecord, isDeleted: Bool) {
    self.check = check
    self.id = id
    self.record = record
    self.isDeleted = isDeleted
  }

  private var findings: Findings { check.findings }

  mutating func run() throws(CheckFailure) {
    let failures = check.reader.failures
    let parent = try check.lineage.link(record.parentSnapshot.raw)?.record
    let cursor = MapCursor(
      check.reader, root: record.map, kind: .delta, object: id, findings: findings)
    let below = MapCursor(
      check.reader, root: parent?.map ?? .none, object: record.parentSnapshot, findings: nil)
    while let head = cursor.head {
      switch head {
      case .node(let pointer):
        try node(pointer, parent)
        cursor.descend()
      case .extent(let extent):
        try self.extent(extent, parent, below)
        cursor.advance()
      }
    }
    findings.counters.metadataNodes += nodes
    findings.counters.dataBlocks += blocks
    guard check.reader.failures == failures, let parent else { return }
    compare("blocks of its own", record.exclusiveBlocks, blocks)
    compare("metadata blocks", record.metadataBlocks, 2 * nodes)
    guard !isDeleted else { return }
    compare("blocks in use", record.usedBlocks, parent.usedBlocks &- hidden &+ blocks)
  }

  private mutating func node(
    _ pointer: NodePointer, _ parent: ObjectRecord?
  ) throws(CheckFailure) {
    nodes += 1
    born("a node", pointer.birth, parent)
    try check.owners.addNode(pointer, of: id)
  }

  private mutating func extent(
    _ extent: Extent, _ parent: ObjectRecord?, _ below: MapCursor
  ) throws(CheckFailure) {
    if extent.first < end {
      findings.complain("the delta of object \(id.raw) holds block \(extent.first) twice")
    }
    end = max(end, extent.end)
    let count = Self.overlap(extent, below)
    hidden += count
    if extent.isHole {
      if count != extent.count, parent != nil, !below.isIncomplete {
        findings.complain(
          "the delta of object \(id.raw) has a hole at block \(extent.first) where the snapshot "
            + "that it branches from has nothing")
      }
      return
    }
    blocks += extent.count
    born("block \(extent.first)", extent.birth, parent)
    guard check.members.isHome(extent.address, count: extent.count) else {
      findings.complain(
        "the delta of object \(id.raw) leads to volume \(extent.address.volume), offset "
          + "\(extent.address.byteOffset), which no volume has")
      return
    }
    try check.owners.add(
      extent.address, count: extent.count, kind: .data, object: id, block: extent.first)
    let coverage = check.coverage
    let id = id
    try check.verifier.verify(
      extent.address, checksums: extent.checksums(), object: id, block: extent.first, what: "data",
      others: { () throws(CheckFailure) -> [ObjectID] in [] }
    ) { coverage.covers(id, block: $0) }
  }

  private func born(_ what: String, _ birth: Instant, _ parent: ObjectRecord?) {
    if let parent, birth <= parent.instant {
      findings.complain(
        "the delta of object \(id.raw) holds \(what), born at \(birth), which is not after its branch"
      )
    }
    if birth > check.members.root.nextInstant {
      findings.complain("the delta of object \(id.raw) holds \(what), born in the future")
    }
  }

  /// How many blocks of `extent` the parent's map has. Extents come in ascending order. An extent is
  /// filed under its first block, and so may reach out of its node.
  private static func overlap(_ extent: Extent, _ below: MapCursor) -> UInt64 {
    let from = extent.first - min(extent.first, UInt64(ExtentFormat.maximumLength))
    var sum: UInt64 = 0
    while let head = below.head {
      switch head {
      case .node:
        if below.high <= from {
          below.advance()
        } else if below.low >= extent.end {
          return sum
        } else {
          below.descend()
        }
      case .extent(let other):
        if other.first >= extent.end { return sum }
        if other.end > extent.first {
          sum += min(other.end, extent.end) - max(other.first, extent.first)
        }
        // It may reach into the next extent of the delta.
        if other.end > extent.end { return sum }
        below.advance()
      }
    }
    return sum
  }

  private func compare(_ what: String, _ stored: UInt64, _ counted: UInt64) {
    if stored != counted {
      findings.complain(
        "object \(id.raw) is recorded with \(stored) \(what), but \(counted) were counted")
    }
  }
}
