import Core

/// Verifies data blocks at their homes.
///
/// A home that the log covers may be torn (`LogCoverage`). The log knows the disks that blocks are
/// written to, the maps who owns them: a disk's snapshot, once it has been deleted, may have been
/// merged into the disk behind the checkpoint, and its blocks are then overwritten in place. So a
/// bad block of a snapshot's is not damage yet: at the end, when the log can be asked for other
/// objects, it is told whether it is.
///
///     doubts    a object that may cover it   b block of that object   c number of the doubt
///     verdicts  a number of the doubt   b 0 covered, 1 not   c address   d owner   e block
final class HomeVerifier {
  private static let blocks = 128
  let members: PoolMembers
  let findings: Findings
  private let memory: AlignedMemory
  private let options: CheckOptions
  private let doubts: SortedSpill
  private var doubtCount: UInt64 = 0

  init(members: PoolMembers, options: CheckOptions, findings: Findings) {
    self.members = members
    self.findings = findings
    self.options = options
    memory = AlignedMemory(bytes: Self.blocks * blockSize)
    doubts = SortedSpill(memory: options.sortMemory, directory: options.temporaryDirectory)
  }

  /// Verifies `checksums.count` blocks from `address`; those for which `isExempt` says so may hold
  /// anything. The range is on a volume. `others` is asked for a bad block: objects for which the
  /// log may have what is to be there.
  func verify(
    _ address: BlockAddress, checksums: [UInt32], object: ObjectID, block: UInt64, what: String,
    others: () throws(CheckFailure) -> [ObjectID], isExempt: (UInt64) -> Bool
  ) throws(CheckFailure) {
    let volume = members.volumes[address.volume]
    var at = 0
    while at < checksums.count {
      let count = min(Self.blocks, checksums.count - at)
      let first = address.block + UInt64(at)
      let isRead = volume.read(block: first, count: count, into: memory.base)
      for i in 0..<count {
        if isExempt(block + UInt64(at + i)) {
          findings.counters.coveredByLog += 1
          continue
        }
        let p = memory.base + i * blockSize
        let isGood =
          (isRead || volume.read(block: first + UInt64(i), count: 1, into: p))
          && crc32cBlock(p) == checksums[at + i]
        findings.counters.verifiedBlocks += 1
        guard !isGood else { continue }
        let home = address + UInt64(at + i)
        if try !doubt(home, object, block + UInt64(at + i), others()) {
          damage(home, object, block + UInt64(at + i), what)
        }
      }
      at += count
    }
  }

  private func damage(_ home: BlockAddress, _ object: ObjectID, _ block: UInt64, _ what: String) {
    findings.damage(
      device: members.volumes[home.volume].name, offset: home.byteOffset, object: object,
      block: block, what: what)
  }

  /// False when there is nobody to ask.
  private func doubt(
    _ home: BlockAddress, _ object: ObjectID, _ block: UInt64, _ others: [ObjectID]
  ) throws(CheckFailure) -> Bool {
    guard !others.isEmpty else { return false }
    doubtCount += 1
    for other in others {
      try doubts.add(
        SpillRecord(a: other.raw, b: block, c: doubtCount, d: home.raw, e: object.raw))
    }
    return true
  }

  /// Asks the log for the doubts that are left.
  func finish(_ events: LogEvents) throws(CheckFailure) {
    guard doubtCount > 0 else { return }
    let coverage = try LogCoverage(events)
    let verdicts = SortedSpill(memory: options.sortMemory, directory: options.temporaryDirectory)
    let asked = try doubts.sorted()
    while let r = asked.head {
      let isCovered = coverage.covers(ObjectID(r.a), block: r.b)
      try verdicts.add(
        SpillRecord(a: r.c, b: isCovered ? 0 : 1, c: r.d, d: r.e, e: r.b))
      asked.advance()
    }
    try asked.finish()
    let told = try verdicts.sorted()
    while let r = told.head {
      if r.b == 0 {
        findings.counters.coveredByLog += 1
      } else {
        damage(BlockAddress(raw: r.c), ObjectID(r.d), r.e, "data")
      }
      while told.head?.a == r.a { told.advance() }
    }
    try told.finish()
  }
}
