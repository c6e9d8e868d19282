import Core

// Who owns which block of vSpace, brought into the order of addresses, and compared with itself
// (nothing owned twice) and with the bitmaps of the space tree (nothing leaked, nothing lost).
//
//     a address   b blocks   c kind   d object   e block of the disk

enum OwnerKind: UInt64 {
  /// A node of a tree.
  case metadata = 0
  /// A block of a disk, mapped.
  case data = 1
  /// A block of a disk that the log put there and the maps do not know yet (R17): free in the
  /// bitmaps, but nobody else's.
  case logged = 2
  /// Data and nodes on a dead list that no map refers to any more: a merge has yet to free them.
  case dead = 3
}

final class Ownership {
  let members: PoolMembers
  let findings: Findings
  private let records: SortedSpill
  private(set) var metadataBlocks: UInt64 = 0
  private(set) var dataBlocks: UInt64 = 0

  init(members: PoolMembers, options: CheckOptions, findings: Findings) {
    self.members = members
    self.findings = findings
    records = SortedSpill(memory: options.sortMemory, directory: options.temporaryDirectory)
  }

  private var spilledElsewhere = 0
  var spilled: Int { records.spilled + spilledElsewhere }

  /// Counts records that other sorts of the same walk put into files.
  func add(spilled: Int) { spilledElsewhere += spilled }

  func addNode(_ pointer: NodePointer, of owner: ObjectID) throws(CheckFailure) {
    metadataBlocks += 2
    for address in [pointer.first, pointer.second] where members.isHome(address, count: 1) {
      try records.add(
        SpillRecord(a: address.raw, b: 1, c: OwnerKind.metadata.rawValue, d: owner.raw))
    }
  }

  func add(
    _ address: BlockAddress, count: UInt64, kind: OwnerKind, object: ObjectID, block: UInt64
  ) throws(CheckFailure) {
    if kind == .data { dataBlocks += count }
    try records.add(
      SpillRecord(a: address.raw, b: count, c: kind.rawValue, d: object.raw, e: block))
  }

  /// An entry of a dead list that nothing else refers to. Its place was checked.
  func add(_ entry: DeadEntry, of object: ObjectID) throws(CheckFailure) {
    switch entry {
    case .blocks(let first, let count, _):
      dataBlocks += UInt64(count)
      try records.add(
        SpillRecord(a: first.raw, b: UInt64(count), c: OwnerKind.dead.rawValue, d: object.raw))
    case .node(let first, let second, _):
      metadataBlocks += 2
      for address in [first, second] {
        try records.add(
          SpillRecord(a: address.raw, b: 1, c: OwnerKind.dead.rawValue, d: object.raw))
      }
    }
  }

  /// Compares owners and bitmaps. `isComplete`: every node of every tree could be read, so that a
  /// block without an owner is a leak.
  func compare(
    reader: NodeReader, space: NodePointer, isComplete: Bool
  ) throws(CheckFailure) {
    let merge = try OwnerMerge(
      owners: records.sorted(), members: members, findings: findings, isComplete: isComplete)
    let groups = try GroupWords(reader: reader, space: space, members: members, findings: findings)
    let bitmaps = try TreeWalk(
      again: reader, root: space, kind: .space, owner: TreeOwner.space,
      from: NodeKey(hi: 1, lo: 0))
    var used: UInt64 = 0
    while let (key, value) = try bitmaps.next(), key.hi == 1 {
      let volume = Int(key.lo >> 48)
      let chunk = key.lo & 0xFFFF_FFFF_FFFF
      guard value.count == SpaceFormat.bitmapBytes, volume < members.volumes.count,
        chunk << 13 < members.volumeLabels[volume].sizeInBlocks
      else {
        findings.complain(
          "the space tree holds a bitmap for chunk \(chunk) of volume \(volume), which can't be")
        continue
      }
      try merge.skip(to: key.lo & ~0xFFFF_FFFF_FFFF | chunk << 13)
      let bits = try merge.compare(volume: volume, chunk: chunk, bitmap: value)
      used += bits
      try groups.add(volume: volume, group: chunk / UInt64(SpaceFormat.chunksPerGroup), bits)
    }
    try merge.skip(to: .max)
    try groups.finish()
    compareTotals(used: used, totals: try totals(reader, space), isComplete: isComplete)
  }

  private func totals(
    _ reader: NodeReader, _ space: NodePointer
  ) throws(CheckFailure) -> (used: UInt64, metadata: UInt64)? {
    let walk = try TreeWalk(
      again: reader, root: space, kind: .space, owner: TreeOwner.space,
      from: NodeKey(hi: 2, lo: 0))
    guard let (key, value) = try walk.next() else { return (0, 0) }
    guard key == NodeKey(hi: 2, lo: 0), value.count == SpaceFormat.totalsBytes else {
      findings.complain("the space tree holds entries that its format does not know")
      return nil
    }
    let totals = (value.baseAddress!.u64(0), value.baseAddress!.u64(8))
    if try walk.next() != nil {
      findings.complain("the space tree holds entries that its format does not know")
    }
    return totals
  }

  private func compareTotals(
    used: UInt64, totals: (used: UInt64, metadata: UInt64)?, isComplete: Bool
  ) {
    func expect(_ what: String, _ stored: UInt64, _ counted: UInt64) {
      if stored != counted {
        findings.complain("\(what) is recorded as \(stored) blocks, but \(counted) were counted")
      }
    }
    guard isComplete else { return }
    if let totals {
      expect("the space in use in the space tree", totals.used, used)
      expect("the metadata in the space tree", totals.metadata, metadataBlocks)
    }
    expect("the space in use in the root", members.root.usedBlocks, metadataBlocks + dataBlocks)
    expect("the metadata in the root", members.root.metadataBlocks, metadataBlocks)
  }
}

/// Owners in order of their addresses, taken off chunk by chunk.
private final class OwnerMerge {
  private let owners: SpillReader
  private let members: PoolMembers
  private let findings: Findings
  private let isComplete: Bool
  /// The owner with the highest end so far, to find those that overlap it.
  private var last: SpillRecord?
  /// What is left of owners that reach into the next chunk: one, unless blocks are owned twice.
  private var rests: [SpillRecord] = []
  private var owned = [UInt64](repeating: 0, count: SpaceFormat.chunkBlocks / 64)

  init(
    owners: SpillReader, members: PoolMembers, findings: Findings, isComplete: Bool
  ) {
    self.owners = owners
    self.members = members
    self.findings = findings
    self.isComplete = isComplete
  }

  /// The next owner that begins below `end`, cut off there.
  private func take(below end: UInt64) throws(CheckFailure) -> SpillRecord? {
    var record: SpillRecord
    if let rest = rests.indices.min(by: { rests[$0].a < rests[$1].a }),
      rests[rest].a <= owners.head?.a ?? .max
    {
      guard rests[rest].a < end else { return nil }
      record = rests.remove(at: rest)
    } else {
      guard let head = owners.head else {
        try owners.finish()
        return nil
      }
      guard head.a < end else { return nil }
      record = head
      owners.advance()
      overlap(record)
    }
    if record.b > end - record.a {
      var later = record
      later.a = end
      later.b = record.b - (end - record.a)
      later.e &+= end - record.a
      rests.append(later)
      record.b = end - record.a
    }
    return record
  }

  private func overlap(_ record: SpillRecord) {
    if let last, last.a + last.b > record.a {
      let address = BlockAddress(raw: record.a)
      findings.complain(
        "the block at volume \(address.volume), offset \(address.byteOffset) is owned twice: by "
          + "\(name(last)) and by \(name(record))")
      if last.a + last.b >= record.a + record.b { return }
    }
    last = record
  }

  private func name(_ owner: SpillRecord) -> String {
    switch OwnerKind(rawValue: owner.c) {
    case .metadata: "a metadata node of object \(owner.d)"
    case .data: "object \(owner.d), mapped at block \(owner.e)"
    case .dead: "the dead list of object \(owner.d)"
    default: "object \(owner.d), logged as at home at block \(owner.e)"
    }
  }

  /// Passes owners in chunks that have no bitmap: all their blocks count as free there.
  func skip(to end: UInt64) throws(CheckFailure) {
    while let owner = try take(below: end) {
      if OwnerKind(rawValue: owner.c) != .logged { free(owner.a, owner.b, name(owner)) }
    }
  }

  private func free(_ address: UInt64, _ count: UInt64, _ owner: String) {
    let a = BlockAddress(raw: address)
    findings.complain(
      "\(count) blocks at volume \(a.volume), offset \(a.byteOffset) are free in the space tree, "
        + "but belong to \(owner)")
  }

  /// Compares one chunk; returns how many bits of its bitmap are set.
  func compare(
    volume: Int, chunk: UInt64, bitmap: UnsafeRawBufferPointer
  ) throws(CheckFailure) -> UInt64 {
    let first = chunk << 13
    let base = BlockAddress(volume: volume, block: first).raw
    for i in owned.indices { owned[i] = 0 }
    while let owner = try take(below: base + UInt64(SpaceFormat.chunkBlocks)) {
      let at = Int(owner.a - base)
      let isLogged = OwnerKind(rawValue: owner.c) == .logged
      for i in at..<(at + Int(owner.b)) {
        let isSet = bitmap[i / 8] & 1 << UInt8(i % 8) != 0
        if isLogged {
          if isSet {
            findings.complain(
              "the block at volume \(volume), offset \((first + UInt64(i)) << blockShift) is in use "
                + "in the space tree, but \(name(owner)) only after the checkpoint")
          }
        } else {
          owned[i / 64] |= 1 << UInt64(i % 64)
          if !isSet { free(base + UInt64(i), 1, name(owner)) }
        }
      }
    }
    return leaks(volume, first, bitmap)
  }

  private func leaks(_ volume: Int, _ first: UInt64, _ bitmap: UnsafeRawBufferPointer) -> UInt64 {
    var set = 0
    var leaked = 0
    var firstLeak: UInt64?
    let end = members.volumeLabels[volume].sizeInBlocks
    for w in owned.indices {
      let word = bitmap.baseAddress!.u64(8 * w)
      set += word.nonzeroBitCount
      let extra = word & ~owned[w]
      guard extra != 0 else { continue }
      leaked += extra.nonzeroBitCount
      firstLeak = firstLeak ?? first + UInt64(64 * w + extra.trailingZeroBitCount)
      let highest = first + UInt64(64 * w + 63 - extra.leadingZeroBitCount)
      if first + UInt64(64 * w) < VolumeLayout.reserved || highest >= end {
        findings.complain(
          "the space tree has blocks in use in the label area or behind the end of volume \(volume)"
        )
      }
    }
    if let firstLeak, isComplete {
      findings.complain(
        "\(leaked) blocks of volume \(volume), the first at offset \(firstLeak << blockShift), are "
          + "in use in the space tree, but belong to nobody")
    }
    return UInt64(set)
  }
}

/// The words of the allocation groups, compared with the bitmaps of their chunks.
private final class GroupWords {
  private let pages: TreeWalk
  private let members: PoolMembers
  private let findings: Findings
  private var page: (volume: Int, first: UInt64, words: [UInt32])?
  private var atEnd = false
  /// The group that bits are being added up for.
  private var volume = -1
  private var group: UInt64 = 0
  private var bits: UInt64 = 0
  /// The next word of `page` that has not been compared.
  private var index = 0

  init(
    reader: NodeReader, space: NodePointer, members: PoolMembers, findings: Findings
  ) throws(CheckFailure) {
    self.members = members
    self.findings = findings
    pages = try TreeWalk(again: reader, root: space, kind: .space, owner: TreeOwner.space)
    try nextPage()
  }

  /// Adds the set bits of one chunk; chunks come in ascending order.
  func add(volume v: Int, group g: UInt64, _ count: UInt64) throws(CheckFailure) {
    if v != volume || g != group {
      try settle()
      (volume, group, bits) = (v, g, 0)
    }
    bits += count
  }

  func finish() throws(CheckFailure) {
    try settle()
    while page != nil { try nextWord() }
  }

  /// Compares the group whose chunks are done, and those before it that have no bitmap.
  private func settle() throws(CheckFailure) {
    guard volume >= 0 else { return }
    while let p = page, (p.volume, p.first + UInt64(index)) < (volume, group) { try nextWord() }
    if let p = page, p.volume == volume, p.first + UInt64(index) == group {
      compare(volume, group, GroupWord(raw: p.words[index]), bits: bits, hasBitmap: true)
      index += 1
      if index == p.words.count { try nextPage() }
    } else {
      compare(volume, group, .unused, bits: bits, hasBitmap: true)
    }
  }

  private func nextWord() throws(CheckFailure) {
    guard let p = page else { return }
    compare(
      p.volume, p.first + UInt64(index), GroupWord(raw: p.words[index]), bits: 0, hasBitmap: false)
    index += 1
    if index == p.words.count { try nextPage() }
  }

  private func nextPage() throws(CheckFailure) {
    page = nil
    index = 0
    while !atEnd {
      guard let (key, value) = try pages.next(), key.hi == 0 else {
        atEnd = true
        return
      }
      let v = Int(key.lo >> 48)
      guard value.count == SpaceFormat.pageBytes, v < members.volumes.count else {
        findings.complain("the space tree holds group words for volume \(v), which can't be")
        continue
      }
      let first = (key.lo & 0xFFFF_FFFF_FFFF) &* UInt64(SpaceFormat.groupsPerPage)
      page = (v, first, (0..<SpaceFormat.groupsPerPage).map { value.baseAddress!.u32(4 * $0) })
      return
    }
  }

  private func compare(
    _ v: Int, _ g: UInt64, _ word: GroupWord, bits: UInt64, hasBitmap: Bool
  ) {
    let place = "allocation group \(g) of volume \(v)"
    let start = g &* UInt64(SpaceFormat.groupBlocks)
    let size = members.volumeLabels[v].sizeInBlocks
    if word == .unused {
      if hasBitmap { findings.complain("\(place) is marked as never used, but has a bitmap") }
      return
    }
    guard start < size else {
      findings.complain("\(place) lies behind the volume's end, but has a record")
      return
    }
    var blocks = min(UInt64(SpaceFormat.groupBlocks), size - start)
    if g == 0 { blocks -= min(blocks, UInt64(SpaceFormat.labelBlocks)) }
    if word.owner == 0 || word.owner > 64 {
      findings.complain("\(place) is granted to a unit that can't be")
    }
    if UInt64(word.free) + bits != blocks {
      findings.complain(
        "\(place) is recorded to have \(word.free) free blocks, but "
          + "\(blocks >= bits ? blocks - bits : 0) were counted")
    }
  }
}
