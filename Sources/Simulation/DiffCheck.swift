import Core

/// A request for what changed between two points of a disk, page by page.
struct DiffCheck {
  var older: ModelDisk
  /// A later snapshot of the same disk, or the disk.
  var newer: ModelDisk
  var asked: WriteTable.Tick
  var ranges: [ChangedRange] = []
}

extension Simulation {
  func startDiff() {
    let snapshots = catalog.calmSnapshots
    guard !snapshots.isEmpty else { return }
    let older = adminRandom.pick(snapshots)
    let later = snapshots.filter { $0.disk === older.disk && $0.serial > older.serial }
    let newer = later.isEmpty || adminRandom.oneIn(2) ? older.disk! : adminRandom.pick(later)
    administrator.diff = DiffCheck(older: older, newer: newer, asked: table.tick())
    askDiff(from: 0)
  }

  private func askDiff(from: UInt64) {
    guard let diff = administrator.diff else { return }
    let newer = diff.newer
    administer(
      .diff(
        diff.older.snapshotName,
        to: newer.isSnapshot ? .snapshot(newer.snapshotName) : .disk(newer.name), from: from,
        limit: 1 + Int(adminRandom.pick([3, 20, 4000] as [UInt64]))), .diff)
  }

  func diffReplied(_ ranges: [ChangedRange], _ next: UInt64?) throws(Violation) {
    guard var diff = administrator.diff else { throw Violation("changes that nobody asked for") }
    for range in ranges {
      let end = diff.ranges.last.map { $0.offset + $0.length } ?? 0
      guard range.length > 0, range.offset >= end, range.offset % UInt64(blockSize) == 0,
        range.offset + range.length <= diff.newer.size
      else { throw Violation("\(range) is out of place in the changes since \(diff.older.title)") }
      diff.ranges.append(range)
    }
    administrator.diff = diff
    if let next { return askDiff(from: next) }
    administrator.diff = nil
    harness[.diffChecked] += 1
    try check(diff)
  }

  /// All that certainly differs must be in it, and nothing that nobody wrote.
  private func check(_ diff: DiffCheck) throws(Violation) {
    let (older, newer) = (diff.older, diff.newer)
    let disk = older.disk!
    let meanwhile =
      newer.isSnapshot ? [] : table.writes(to: disk.number, from: diff.asked, to: .max)
    let since = table.writes(
      to: disk.number, from: older.batch!.asked, to: newer.isSnapshot ? newer.batch!.made : .max)
    let isExact = profile.faults.isEmpty && disk.rolledBackAt < older.batch!.asked
    let blocks = Set(older.model.touched).union(newer.model.touched).sorted()
    var reported = diff.ranges[...]
    func isTouched(_ block: UInt64, _ by: [Range<UInt64>]) -> Bool {
      by.contains { $0.overlaps(block * 8..<block * 8 + 8) }
    }
    for block in blocks where block << blockShift < newer.size {
      let offset = block << blockShift
      while let first = reported.first, first.offset + first.length <= offset {
        reported.removeFirst()
      }
      let change = reported.first.flatMap { $0.offset <= offset ? $0 : nil }
      if isTouched(block, meanwhile) { continue }
      if change == nil, newer.model.certainlyDiffers(older.model, block: block, table) {
        throw Violation(
          "block \(block) of \(newer.title) differs from \(older.title), but is not reported")
      }
      if let change, change.isZero, !newer.model.mayBeZero(block: block, table) {
        throw Violation("block \(block) of \(newer.title) is reported as zeros")
      }
    }
    guard isExact else { return }
    for range in diff.ranges {
      let first = range.offset >> blockShift
      let end = (range.offset + range.length + UInt64(blockSize) - 1) >> blockShift
      // A range of a huge disk is one write.
      for block in first..<min(end, first + 4096) where !isTouched(block, since) {
        throw Violation(
          "block \(block) of \(newer.title) is reported as changed since \(older.title), but was "
            + "not written")
      }
    }
  }
}
