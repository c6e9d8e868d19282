import Core

// The dead list of a branch against what the walk of the two maps found to be given up.
//
//     sorts   a birth   b address   c blocks, 0 for a node   d address of a node's second copy

/// What a dead list must name, and what it names.
final class DeadListCheck {
  private let object: ObjectID
  private let members: PoolMembers
  private let findings: Findings
  private let expected: SortedSpill
  private let listed: SortedSpill
  private(set) var counts = DeadCounts()

  init(object: ObjectID, members: PoolMembers, options: CheckOptions, findings: Findings) {
    self.object = object
    self.members = members
    self.findings = findings
    expected = SortedSpill(memory: options.sortMemory, directory: options.temporaryDirectory)
    listed = SortedSpill(memory: options.sortMemory, directory: options.temporaryDirectory)
  }

  var spilled: Int { expected.spilled + listed.spilled }

  func expect(_ node: NodePointer) throws(CheckFailure) {
    counts.nodeBlocks += 2
    try expected.add(
      SpillRecord(a: node.birth, b: node.first.raw, c: 0, d: node.second.raw))
  }

  func expect(
    _ address: BlockAddress, count: UInt64, birth: Instant
  ) throws(CheckFailure) {
    counts.dataBlocks += count
    try expected.add(SpillRecord(a: birth, b: address.raw, c: count))
  }

  func add(_ entry: DeadEntry) throws(CheckFailure) {
    switch entry {
    case .blocks(let first, let count, let birth):
      try listed.add(SpillRecord(a: birth, b: first.raw, c: UInt64(count)))
    case .node(let first, let second, let birth):
      try listed.add(SpillRecord(a: birth, b: first.raw, c: 0, d: second.raw))
    }
  }

  /// What one side has and the other does not: how many blocks, and the first of them.
  private struct Difference {
    var blocks: UInt64 = 0
    var first: SpillRecord?

    mutating func add(_ r: SpillRecord, _ count: UInt64) {
      blocks += r.c == 0 ? 2 : count
      if first == nil { first = r }
    }
  }

  func compare() throws(CheckFailure) {
    let (wanted, found) = (try expected.sorted(), try listed.sorted())
    var (want, find) = (wanted.head, found.head)
    var missing = Difference()
    var extra = Difference()
    func next(_ reader: SpillReader, _ record: inout SpillRecord?, after count: UInt64) {
      if var rest = record, rest.c > count {
        rest.b += count
        rest.c -= count
        record = rest
      } else {
        reader.advance()
        record = reader.head
      }
    }
    while want != nil || find != nil {
      if let w = want, let f = find, (w.a, w.b) == (f.a, f.b), (w.c == 0) == (f.c == 0), w.d == f.d
      {
        let count = min(w.c, f.c)
        next(wanted, &want, after: count)
        next(found, &find, after: count)
      } else if let w = want, find.map({ (w.a, w.b) <= ($0.a, $0.b) }) ?? true {
        let count = alone(w, before: find)
        missing.add(w, count)
        next(wanted, &want, after: count)
      } else if let f = find {
        let count = alone(f, before: want)
        extra.add(f, count)
        next(found, &find, after: count)
      }
    }
    try wanted.finish()
    try found.finish()
    report(missing, extra)
  }

  /// How many blocks of `record` come before those of `other`.
  private func alone(_ record: SpillRecord, before other: SpillRecord?) -> UInt64 {
    guard let other, other.a == record.a, other.b > record.b else { return record.c }
    return min(record.c, other.b - record.b)
  }

  private func report(_ missing: Difference, _ extra: Difference) {
    if let first = missing.first {
      findings.complain(
        "\(missing.blocks) blocks that the parent of object \(object.raw) refers to and it does not "
          + "are missing on its dead list, the first at \(place(first))")
    }
    if let first = extra.first {
      findings.complain(
        "the dead list of object \(object.raw) names \(extra.blocks) blocks that are not its "
          + "parent's alone, or names them twice, the first at \(place(first))")
    }
  }

  private func place(_ r: SpillRecord) -> String {
    let address = BlockAddress(raw: r.b)
    return "volume \(address.volume), offset \(address.byteOffset), born at \(r.a)"
  }
}
