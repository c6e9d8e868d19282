import Core

// From a crash back to work: the pool is checked offline, the engine started, the list of disks
// compared, and every block that was ever written is read. Any of it may crash again.

/// The reading of every disk after a restart.
struct Verification {
  var disks: [ModelDisk] = []
  var current: ModelDisk?
  var handle: DiskHandle?
  var isClosing = false
  /// Something of the disk could not be read.
  var metErrors = false
  /// Disks of which only the content tells whether they were rolled back.
  var wasOpen: Set<Int> = []
  /// Ranges of sectors to read yet, the next one last.
  var ranges: [Range<UInt64>] = []

  /// A range that could not be read as a whole is read block by block, so that one damaged block
  /// does not hide its neighbours.
  mutating func retry(_ request: Request) {
    let range = request.sectorRange
    guard range.count > 8 else { return metErrors = true }
    var start = range.lowerBound
    while start < range.upperBound {
      let end = min((start / 8 + 1) * 8, range.upperBound)
      ranges.append(start..<end)
      start = end
    }
  }
}

extension Simulation {
  // MARK: Start

  func start() throws(Violation) {
    flipTail()
    if checks && !damage.isPossible {
      let complaints = system.check(pool)
      if !complaints.isEmpty {
        throw Violation("check: " + complaints.prefix(5).joined(separator: "; "))
      }
    }
    if let leak { throw Violation(leak) }
    logWatch.restart()
    tell("start")
    engine = system.start(pool, crashRandom.next())
    phase = .recovering
    let mayCrash = crashes > 0 && consecutiveCrashes < 4
    if mayCrash && crashRandom.oneIn(profile.crashInRecoveryOneIn) {
      crashKind = crashRandom.oneIn(2) ? .powerCut : .kill
      crashCountdown = 1 + crashRandom.below(crashRandom.pick([4, 30, 200]))
    }
    crashesInVerification = mayCrash && crashRandom.oneIn(12)
    wakeSoon()
  }

  /// The engine serves: whatever recovery found is durable now, and nothing else comes back.
  func recovered() throws(Violation) {
    tell("ready")
    startedAt = table.now
    table.raiseDurable(to: table.tick())
    for disk in catalog.all where disk.existence != .gone { disk.recovered() }
    phase = .listing
    list()
  }

  private func list() {
    (listed, listedSnapshots) = ([], [])
    call(.list(cursor: nil, limit: listLimit), .resolvingList)
  }

  private var listLimit: Int { catalog.disks.count < 64 ? 7 : 100 }

  func resolvingListReplied(_ reply: ControlReply) throws(Violation) {
    switch reply {
    case .disks(let some, let next):
      listed += some
      if let next { return call(.list(cursor: next, limit: listLimit), .resolvingList) }
      // An engine without snapshots is never asked for them.
      if catalog.snapshots.isEmpty { return try resolve() }
      call(.listSnapshots(disk: nil, cursor: nil, limit: listLimit), .resolvingList)
    case .snapshots(let some, let next):
      listedSnapshots += some
      guard let next else { return try resolve() }
      call(.listSnapshots(disk: nil, cursor: next, limit: listLimit), .resolvingList)
    case .failed where isInTrouble: list()
    default: throw Violation("the disks can't be listed after a restart: \(reply)")
    }
  }

  private func resolve() throws(Violation) {
    try catalog.resolve(listed, listedSnapshots, &table, &harness)
    verification = Verification()
    verification.disks = disksToVerify()
    verification.wasOpen = Set(catalog.disks.filter { $0.alternative != nil }.map(\.serial))
    phase = .verifying
    if crashesInVerification && crashCountdown == nil {
      crashKind = crashRandom.oneIn(2) ? .powerCut : .kill
      crashCountdown = 2 + crashRandom.below(30)
    }
  }

  /// All disks that are no clones, and all else as long as it is not too much.
  private func disksToVerify() -> [ModelDisk] {
    var disks = catalog.present.filter { $0.origin == nil || $0.alternative != nil }
    var others = catalog.present.filter { $0.origin != nil && $0.alternative == nil }
    others += catalog.presentSnapshots
    let most = isLast ? 100 : 16
    while others.count > most {
      others.swapAt(Int(crashRandom.below(UInt64(others.count))), others.count - 1)
      others.removeLast()
    }
    disks += others
    for i in disks.indices.reversed() where i > 0 {
      disks.swapAt(i, Int(crashRandom.below(UInt64(i + 1))))
    }
    return disks
  }

  // MARK: Verification

  func advanceVerification() throws(Violation) {
    guard let disk = verification.current else {
      guard let next = verification.disks.popLast() else { return try verified() }
      verification.current = next
      verification.ranges = rangesToVerify(next)
      return call(.open(name: next.fullName), .openVerification)
    }
    guard let handle = verification.handle, !verification.isClosing else { return }
    while requests.inUse < 12, let range = verification.ranges.popLast() {
      var request = Request()
      request.disk = disk
      request.handle = handle
      request.offset = range.lowerBound * UInt64(sectorSize)
      request.length = UInt64(range.count) * UInt64(sectorSize)
      submit(request)
    }
    if requests.inUse == 0 {
      verification.isClosing = true
      call(.close(handle), .closeVerification)
    }
  }

  func verificationReplied(_ call: ControlCall, _ reply: ControlReply) throws(Violation) {
    switch (call.purpose, reply) {
    case (.openVerification, .opened(let handle, let size, let readOnly)):
      let disk = verification.current!
      guard size == disk.size, readOnly == disk.readOnly else {
        throw Violation("\(disk.title) was opened with the wrong size or mode")
      }
      verification.handle = handle
      verification.isClosing = false
      verification.metErrors = false
    case (.openVerification, .failed) where isInTrouble:
      self.call(.open(name: verification.current!.fullName), .openVerification)
    case (.closeVerification, .done):
      let disk = verification.current!
      // What fits both contents of a disk everywhere makes no difference any more.
      if !verification.metErrors { disk.alternative = nil }
      if disk.alternative == nil, verification.wasOpen.contains(disk.serial) {
        harness[disk.rolledBackAt > startedAt ? .rollbackKept : .rollbackLost] += 1
      }
      verification.current = nil
      verification.handle = nil
    default:
      throw Violation("\(call.purpose) was answered with \(reply) after a restart")
    }
  }

  /// All blocks that were ever written, and some that were not.
  private func rangesToVerify(_ disk: ModelDisk) -> [Range<UInt64>] {
    let sectors = disk.sectors
    var blocks = disk.model.touched + (disk.alternative?.model.touched ?? [])
    for _ in 0..<4 where sectors > 8 { blocks.append(crashRandom.below(sectors / 8)) }
    blocks.sort()
    var ranges: [Range<UInt64>] = []
    let longest = UInt64(maximumPiece / sectorSize)
    for block in blocks where block * 8 < sectors {
      let range = (block * 8)..<min(block * 8 + 8, sectors)
      if let last = ranges.last, last.upperBound >= range.lowerBound,
        range.upperBound - last.lowerBound <= longest
      {
        ranges[ranges.count - 1] = last.lowerBound..<max(last.upperBound, range.upperBound)
      } else {
        ranges.append(range)
      }
    }
    return ranges.reversed()
  }

  private func verified() throws(Violation) {
    if let (lost, kept) = witness.contradiction {
      throw Violation(
        "what survived is not a prefix: \(table.describe(lost)) is lost, but "
          + "\(table.describe(kept)) survived")
    }
    tell("verified")
    if isLast {
      phase = .finished
      return
    }
    consecutiveCrashes = 0
    startWorking()
  }

  private func startWorking() {
    phase = .working
    crashCountdown = nil
    table.workingSince = table.tick()
    for disk in catalog.disks { disk.model.wasRolledBack = false }
    planCrash()
    for i in clients.indices { schedule(i, after: workRandom.below(2 * clients[i].think)) }
    if crashes == 0 { call(.status, .emptyStatus) }
    scheduleFirstDisks()
  }

  // MARK: The end

  func beginEnding() {
    phase = .ending
    crashCountdown = nil
    call(.flush, .lastFlush)
  }

  func endingReplied(_ call: ControlCall, _ reply: ControlReply) throws(Violation) {
    switch (call.purpose, reply) {
    case (.lastFlush, .done) where !hasDeletedAll && crashRandom.oneIn(4):
      hasDeletedAll = true
      try deleteNext()
    case (.lastFlush, .done) where hasDeletedAll: self.call(.status, .lastStatus)
    case (.lastFlush, .done): try lastCrash()
    case (.lastDelete(let disk), .done):
      disk.commit(.delete)
      catalog.dropSnapshots(of: disk)
      try deleteNext()
    case (.lastRelease(let snapshot), .done):
      snapshot.isHeld = false
      try deleteNext()
    case (.lastStatus, .status(let status)):
      // All data is gone, so all space but metadata is back.
      if !catalog.isInDoubt { leak = whatIsLeft(status) }
      try lastCrash()
    case (_, .failed) where isInTrouble: try lastCrash()
    default: throw Violation("\(call.purpose) was answered with \(reply) at the end")
    }
  }

  private func whatIsLeft(_ status: PoolStatus) -> String? {
    // The check, after the crash to come, may say what they are.
    let mebi: UInt64 = 1 << 20
    if status.spaceUsed > status.spaceMetadata + mebi || status.spaceUsed > emptyUsed + mebi {
      return "\(status.spaceUsed) bytes are in use although everything was deleted"
    }
    if status.spaceHeld > 0 || status.spaceFreeing > 0 {
      return
        "\(status.spaceHeld) bytes are held and \(status.spaceFreeing) are being freed although "
        + "everything was deleted"
    }
    if status.disks > 0 || status.snapshots > 0 {
      return "\(status.disks) disks and \(status.snapshots) snapshots are left of none"
    }
    return nil
  }

  /// Everything is deleted in a random order.
  private func deleteNext() throws(Violation) {
    let all = catalog.all.filter {
      $0.existence == .present && $0.pending == nil && !($0.isSnapshot && isConnected($0))
    }
    guard !all.isEmpty else { return call(.flush, .lastFlush) }
    let disk = crashRandom.pick(all)
    if let held = disk.isSnapshot ? disk : catalog.snapshots(of: disk).first(where: \.isHeld),
      held.isHeld
    {
      return call(.holdSnapshot(held.snapshotName, false), .lastRelease(held))
    }
    disk.pending = .delete
    if disk.isSnapshot { return call(.deleteSnapshot(disk.snapshotName), .lastDelete(disk)) }
    call(.delete(name: disk.name, withSnapshots: true, force: true), .lastDelete(disk))
  }

  private func lastCrash() throws(Violation) {
    isLast = true
    switch profile.crashKinds.draw(&crashRandom) {
    case .cleanStop: beginStop()
    case let kind: try crash(kind)
    }
  }

  func beginStop() {
    phase = .stopping
    call(.stop, .stop)
  }
}
