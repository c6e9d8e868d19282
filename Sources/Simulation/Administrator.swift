import Core

// The administrator: one control request at a time, drawn from the profile's table, while the
// clients work. Because it waits for each reply, it knows exactly what the next one must be; only
// a crash or an I/O error leaves a change in doubt.

struct Administrator {
  /// The tick at which the request was sent whose reply it waits for.
  var isWaiting = false
  var isScheduled = false
  var holdsDestage = false
  var spareUsed: UInt64 = 0
  /// What a running list has brought so far.
  var listed: [DiskInfo] = []
  var listedSnapshots: [SnapshotInfo] = []
  var diff: DiffCheck?
  /// No client lets go of it before the reply, which hangs on that.
  var keepsOpen: ModelDisk?
  /// No client opens it before the reply.
  var keepsClosed: ModelDisk?
}

/// A control request in flight.
struct ControlCall {
  enum Refusal: Equatable {
    case noSuchDisk, alreadyExists, inUse, wouldShrink, badName, badSize
    case noSuchSnapshot, snapshotExists, isHeld, hasSnapshots, notOfOneLine
  }

  enum Purpose {
    case resolvingList
    case openVerification
    case closeVerification
    case openClient(Int)
    case closeClient(Int)
    case change(ModelDisk, ModelDisk.Change)
    /// A group of snapshots, or a batch of clones: all are made, or none.
    case make([ModelDisk])
    case show(ModelDisk)
    case list
    /// Of one disk, or of all.
    case listSnapshots(ModelDisk?)
    case diff
    case status
    case statusAfterFlush
    case emptyStatus
    case flush
    case releaseDestage
    case scrub
    /// Anything that just succeeds.
    case plain
    case refused([Refusal])
    case lastFlush
    case lastDelete(ModelDisk)
    case lastRelease(ModelDisk)
    case lastStatus
    case stop
  }

  var purpose: Purpose
  var sentAt: UInt64
  var asked: WriteTable.Tick
  var sentInTrouble: Bool
}

extension Simulation {
  func call(_ request: ControlRequest, _ purpose: ControlCall.Purpose) {
    lastCall += 1
    calls[lastCall] = ControlCall(
      purpose: purpose, sentAt: queue.now, asked: table.tick(), sentInTrouble: isInTrouble)
    tell("control \(lastCall): \(request)")
    engine!.control(request, token: lastCall)
    wakeSoon()
  }

  /// Called before each operation of a client: from time to time something else happens too.
  func beforeOperation() {
    if adminRandom.oneIn(profile.administerEvery) { scheduleAdministrator(after: 0) }
    considerFault()
    considerCrash()
  }

  /// The disks that a run begins with.
  func scheduleFirstDisks() {
    if firstDisksLeft > 0 { scheduleAdministrator(after: 0) }
  }

  private func scheduleAdministrator(after delay: UInt64) {
    guard !administrator.isScheduled else { return }
    administrator.isScheduled = true
    queue.add(.administrator, after: delay)
  }

  func administratorTurn() {
    administrator.isScheduled = false
    guard phase == .working, engine != nil, !administrator.isWaiting else { return }
    if firstDisksLeft > 0, let name = freeName() {
      firstDisksLeft -= 1
      return createDisk(name)
    }
    administerNext(profile.administration.draw(&adminRandom))
  }

  func administer(_ request: ControlRequest, _ purpose: ControlCall.Purpose) {
    administrator.isWaiting = true
    if case .make = purpose { crashSoon() }
    if case .change(_, .rollback) = purpose { crashSoon() }
    call(request, purpose)
  }

  private func administerNext(_ operation: AdminOperation) {
    switch operation {
    case .create:
      guard catalog.present.count < profile.mostDisks, let name = freeName() else { return }
      createDisk(name)
    case .bad: badControl()
    case .list: startList()
    case .status: administer(.status, .status)
    case .flush: administer(.flush, .flush)
    case .scrub: administer(.scrub, .scrub)
    case .scrubProgress: administer(.scrubProgress, .scrub)
    case .addVolume: addVolume()
    case .holdDestage: holdDestage()
    case .show, .delete, .forceDelete, .rename, .grow, .shrink, .set, .setReadOnly:
      let disks = catalog.calm
      if !disks.isEmpty { administerDisk(operation, adminRandom.pick(disks)) }
    case .snapshot, .snapshotGroup, .deleteSnapshot, .renameSnapshot, .holdSnapshot, .rollback,
      .clone, .cloneBatch, .deleteWithSnapshots, .listSnapshots, .diff, .badSnapshot:
      administerSnapshots(operation)
    }
  }

  /// Destaging stops for a time, in which everything else goes on.
  private func holdDestage() {
    guard !administrator.holdsDestage else { return }
    administrator.holdsDestage = true
    administer(.holdDestage(true), .plain)
    queue.add(.release, after: adminRandom.pick([3_000_000, 3_000_000, profile.longestHold]))
  }

  /// Some crashes find the log full of what was held back.
  func releaseDestage() throws(Violation) {
    guard administrator.holdsDestage, engine != nil else { return }
    if phase == .working, crashesLeft > 0, crashRandom.oneIn(4) {
      nextCrashAt = .max
      return try crash(crashRandom.oneIn(2) ? .powerCut : .kill)
    }
    administrator.holdsDestage = false
    call(.holdDestage(false), .releaseDestage)
  }

  private func administerDisk(_ operation: AdminOperation, _ disk: ModelDisk) {
    let connected = isConnected(disk)
    switch operation {
    case .show: administer(.show(name: disk.name), .show(disk))
    case .delete:
      guard catalog.present.count > 1 else { return }
      let request = ControlRequest.delete(name: disk.name, withSnapshots: false, force: false)
      if connected {
        return refuseInUse(disk, request)
      }
      if !catalog.snapshots(of: disk).isEmpty {
        return administer(request, .refused([.hasSnapshots]))
      }
      administrator.keepsClosed = disk
      change(disk, .delete, request)
    case .forceDelete:
      guard catalog.present.count > 1 else { return }
      let request = ControlRequest.delete(name: disk.name, withSnapshots: false, force: true)
      if !catalog.snapshots(of: disk).isEmpty {
        return administer(request, .refused([.hasSnapshots]))
      }
      change(disk, .delete, request)
    case .rename:
      guard let new = freeName() else { return }
      change(disk, .rename(to: new), .rename(name: disk.name, to: new))
    case .grow: resize(disk, to: disk.size + randomSize() / 4 / 512 * 512)
    case .shrink: resize(disk, to: shrunk(disk))
    case .set: setAttributes(disk)
    case .setReadOnly:
      let new = DiskAttributeChange(readOnly: !disk.readOnly)
      change(disk, .set(new), .set(name: disk.name, change: new))
    default: invariantBroken("\(operation) is not about one disk")
    }
  }

  func isConnected(_ disk: ModelDisk) -> Bool {
    clients.contains { $0.disk === disk && $0.state != .closed }
  }

  /// Sends what must be refused because clients are connected, unless nobody can tell: a connection
  /// that is being opened or closed may count or not.
  func refuseInUse(_ disk: ModelDisk, _ request: ControlRequest) {
    let states = clients.filter { $0.disk === disk && $0.state != .closed }.map(\.state)
    guard !states.isEmpty && states.allSatisfy({ $0 == .open }) else { return }
    administrator.keepsOpen = disk
    administer(request, .refused([.inUse]))
  }

  func change(
    _ disk: ModelDisk, _ change: ModelDisk.Change, _ request: ControlRequest
  ) {
    disk.pending = change
    administer(request, .change(disk, change))
  }

  // MARK: Changes

  /// Names of the tree's shape, among them a long one and some that begin alike.
  private static let names: [String] =
    (1...12).map { "vm\($0)" } + (1...6).map { "lab/vm\($0)" }
    + [String(repeating: "n", count: 255), "a/b/c/d", "lab.old/vm1"]

  func freeName() -> String? {
    let name = adminRandom.pick(Self.names)
    return catalog.isTaken(name) ? nil : name
  }

  private func randomSize() -> UInt64 {
    adminRandom.within(profile.diskKiB) * 1024 + adminRandom.below(16) * UInt64(sectorSize)
  }

  func createDisk(_ name: String) {
    var size = randomSize()
    if profile.giantOneIn > 0 && adminRandom.oneIn(profile.giantOneIn) {
      size = 64 << 40
    }
    let disk = catalog.add(name: name, size: size, pool: pool.plan.durability)
    let hot = adminRandom.within(profile.hotKiB) * 2
    let places: [UInt64] =
      size >= 1 << 40
      ? [0, size / 1024 - 4096, size / 512 - 4096]
      : [
        adminRandom.below(max(1, size / 512 - min(size / 512, hot)))
      ]
    for place in places {
      let width = size >= 1 << 40 ? min(hot, 4096) : hot
      disk.hotRanges.append(place..<(place + width))
    }
    change(disk, .create, .create(name: name, size: size))
  }

  private func shrunk(_ disk: ModelDisk) -> UInt64 {
    let sectors = disk.size / UInt64(sectorSize)
    return (sectors / 2 + adminRandom.below(sectors / 2 + 1)) * UInt64(sectorSize)
  }

  private func resize(_ disk: ModelDisk, to size: UInt64) {
    guard size != disk.size, size >= 64 * 1024 else { return }
    guard size < disk.size else {
      return change(
        disk, .resize(to: size, cut: nil),
        .resize(name: disk.name, size: size, shrink: false, force: false))
    }
    if adminRandom.oneIn(4) {
      return administer(
        .resize(name: disk.name, size: size, shrink: false, force: true),
        .refused([.wouldShrink]))
    }
    // What is cut off reads as zeros if the disk ever grows again.
    let first = size / UInt64(sectorSize)
    let cut = table.add(
      WriteTable.Record(
        submitted: table.tick(), disk: disk.number, firstSector: first,
        sectorCount: disk.sectors - first, pattern: .zeros, weak: profile.flipTailOneIn > 0))
    disk.begin(cut, table)
    change(
      disk, .resize(to: size, cut: cut),
      .resize(name: disk.name, size: size, shrink: true, force: true))
  }

  private func setAttributes(_ disk: ModelDisk) {
    var new = DiskAttributeChange(comment: "comment \(adminRandom.below(1000)) — ü")
    if adminRandom.oneIn(2) { new.durability = adminRandom.oneIn(2) ? .flush : .always }
    if new.durability == .flush { table.weakenPending(of: disk.number) }
    change(disk, .set(new), .set(name: disk.name, change: new))
  }

  private func addVolume() {
    guard administrator.spareUsed < UInt64(pool.plan.spareVolumes.count) else { return }
    let device = DeviceIndex.volume(pool.volumeCount)
    administrator.spareUsed += 1
    pool.volumeCount += 1
    let uuid = system.label(pool, device)
    harness[.volumeAdded] += 1
    administer(
      .addVolume(
        device: device, uuid: uuid, description: pool.devices[Int(device.raw)].description),
      .plain)
  }

  private func badControl() {
    let disk = catalog.calm.first
    switch adminRandom.below(7) {
    case 0: administer(.create(name: "no/../way", size: 1 << 20), .refused([.badName]))
    case 1: administer(.create(name: "", size: 1 << 20), .refused([.badName]))
    case 2: administer(.show(name: "nothing-here"), .refused([.noSuchDisk]))
    case 3:
      administer(
        .delete(name: "nothing-here", withSnapshots: false, force: true),
        .refused([.noSuchDisk]))
    case 4:
      guard let disk else { return }
      administer(.create(name: disk.name, size: 1 << 20), .refused([.alreadyExists]))
    case 5:
      administer(
        .create(name: String(repeating: "x", count: 256), size: 1 << 20), .refused([.badName]))
    default:
      administer(.create(name: "huge", size: .max - 511), .refused([.badSize]))
    }
  }

  private func startList() {
    administrator.listed = []
    administer(.list(cursor: nil, limit: 1 + Int(adminRandom.below(6))), .list)
  }
}

// MARK: Replies

extension Simulation {
  func replied(_ token: UInt64, _ reply: ControlReply) throws(Violation) {
    guard let call = calls.removeValue(forKey: token) else {
      throw Violation("a control request was answered twice, or never was (token \(token))")
    }
    tell("  control \(token) -> \(reply)")
    switch call.purpose {
    case .resolvingList: return try resolvingListReplied(reply)
    case .openVerification, .closeVerification: return try verificationReplied(call, reply)
    case .openClient(let i): return try clientOpened(i, call, reply)
    case .closeClient(let i):
      clients[i].state = .closed
      clients[i].disk = nil
      return schedule(i, after: 1_000)
    case .lastFlush, .lastDelete, .lastRelease, .lastStatus:
      return try endingReplied(call, reply)
    case .stop, .releaseDestage: return
    case .emptyStatus:
      if case .status(let status) = reply { emptyUsed = status.spaceUsed }
      return
    default: break
    }
    administrator.isWaiting = false
    (administrator.keepsOpen, administrator.keepsClosed) = (nil, nil)
    if firstDisksLeft > 0 { scheduleAdministrator(after: 0) }
    if case .failed(let error) = reply { return try administratorFailed(call, error) }
    try administratorSucceeded(call, reply)
  }

  private func clientOpened(
    _ i: Int, _ call: ControlCall, _ reply: ControlReply
  ) throws(Violation) {
    switch reply {
    case .opened(let handle, let size, _):
      clients[i].handle = handle
      clients[i].state = .open
      clients[i].outstanding = 0
      let disk = clients[i].disk!
      if disk.pending == nil && size != disk.size {
        throw Violation("disk “\(disk.name)” was opened with \(size) bytes, not \(disk.size)")
      }
    case .failed(let error):
      let disk = clients[i].disk!
      clients[i].state = .closed
      clients[i].disk = nil
      let isExcused =
        disk.isBeingDeleted || disk.isInDoubt || isPassing(error, call)
        || ((matches(error, .noSuchDisk) || matches(error, .noSuchSnapshot))
          && disk.isRenamed(since: call.asked))
      guard isExcused else { throw Violation("an existing disk can't be opened: \(error)") }
    default: throw Violation("an open request was answered with \(reply)")
    }
    schedule(i, after: workRandom.below(2 * clients[i].think))
  }

  /// Errors that come from trouble which the simulator made, or from a stop.
  func isPassing(_ error: ControlError, _ call: ControlCall) -> Bool {
    switch error {
    case .ioError, .suspended: call.sentInTrouble || isInTrouble
    case .stopping: phase == .stopping
    default: false
    }
  }

  private func administratorFailed(
    _ call: ControlCall, _ error: ControlError
  ) throws(Violation) {
    if case .refused(let refusals) = call.purpose {
      // A full pool may say so first.
      if profile.mayFill, case .noSpace = error { return }
      guard refusals.contains(where: { matches(error, $0) }) || isPassing(error, call) else {
        throw Violation("refused for the wrong reason: \(error)")
      }
      harness[.refusedRequest] += 1
      return
    }
    if case .make(let all) = call.purpose { return try makingFailed(call, all, error) }
    guard case .change(let disk, let change) = call.purpose else {
      guard isPassing(error, call) else { throw Violation("a control request failed: \(error)") }
      return
    }
    switch error {
    case .noSpace:
      guard profile.mayFill else { throw Violation("a control request found no space") }
      // Nothing may have happened.
      disk.pending = nil
      if case .create = change { disk.vanish() }
      if case .rollback = change { disk.alternative = nil }
      if case .resize(_, let cut?) = change {
        table.end(cut, .refused)
        disk.refuse(cut, table)
      }
    default:
      guard isPassing(error, call) else { throw Violation("a change failed: \(error)") }
      disk.isInDoubt = true
    }
  }

  private func matches(_ error: ControlError, _ refusal: ControlCall.Refusal) -> Bool {
    switch (error, refusal) {
    case (.noSuchDisk, .noSuchDisk), (.alreadyExists, .alreadyExists), (.inUse, .inUse),
      (.wouldShrink, .wouldShrink), (.badName, .badName), (.badSize, .badSize),
      (.noSuchSnapshot, .noSuchSnapshot), (.snapshotExists, .snapshotExists),
      (.isHeld, .isHeld), (.hasSnapshots, .hasSnapshots), (.notOfOneLine, .notOfOneLine):
      true
    default: false
    }
  }

  private func administratorSucceeded(
    _ call: ControlCall, _ reply: ControlReply
  ) throws(Violation) {
    switch (call.purpose, reply) {
    case (.refused(let refusals), _):
      throw Violation("a request was carried out that must be refused as \(refusals)")
    case (.change(let disk, let change), _): try changed(disk, change, call, reply)
    case (.make(let all), .done): made(all, call)
    case (.show(let disk), .disk(let info)): try checkDisk(disk, info)
    case (.listSnapshots(let disk), .snapshots(let some, let next)):
      administrator.listedSnapshots += some
      if let next { return continueSnapshotList(disk, next) }
      try checkSnapshotList(disk)
    case (.diff, .changes(let ranges, let next)): try diffReplied(ranges, next)
    case (.list, .disks(let some, let next)):
      administrator.listed += some
      if let next {
        administer(.list(cursor: next, limit: 1 + Int(adminRandom.below(6))), .list)
      } else {
        try checkList()
      }
    case (.status, .status(let status)): try check(status)
    case (.statusAfterFlush, .status(let status)):
      try check(status)
      if status.spaceFreeing > 0 && !catalog.isInDoubt {
        throw Violation("\(status.spaceFreeing) bytes are being freed right after a flush")
      }
    case (.scrub, .scrub(let report)):
      if report.damagedBlocks > 0 && !damage.isPossible && !isInTrouble {
        throw Violation("scrub found damage that nobody did: \(report.damage)")
      }
    case (.flush, .done):
      if adminRandom.oneIn(2) { administer(.status, .statusAfterFlush) }
    case (.plain, _): break
    default: throw Violation("\(call.purpose) was answered with \(reply)")
    }
  }

  private func changed(
    _ disk: ModelDisk, _ change: ModelDisk.Change, _ call: ControlCall, _ reply: ControlReply
  ) throws(Violation) {
    disk.commit(change)
    lastChangeAt = table.tick()
    // Marks, create and delete are durable always, and the log is a prefix (R8).
    if profile.flipTailOneIn == 0 { table.raiseDurable(to: call.asked) }
    switch change {
    case .create:
      harness[.diskCreated] += 1
    case .delete:
      harness[disk.isSnapshot ? .snapshotDeleted : .diskDeleted] += 1
      catalog.dropSnapshots(of: disk)
      for i in clients.indices where clients[i].disk?.existence == .gone {
        schedule(i, after: 1_000)
      }
    case .rename:
      harness[disk.isSnapshot ? .snapshotRenamed : .diskRenamed] += 1
      disk.renamedAt = table.tick()
    case .resize(_, let cut):
      harness[.diskResized] += 1
      if let cut {
        table.end(cut, .acknowledged)
        disk.acknowledge(cut, table)
      }
    case .set: break
    case .rollback:
      harness[.diskRolledBack] += 1
      disk.endRollback(at: table.tick())
    }
    if case .disk(let info) = reply { try checkDisk(disk, info) }
  }

  private func checkDisk(_ disk: ModelDisk, _ info: DiskInfo) throws(Violation) {
    try disk.check(info)
    try catalog.checkPlace(disk, info)
    try catalog.note(info.id, of: disk)
  }

  private func checkList() throws(Violation) {
    let names = administrator.listed.map(\.name).sorted()
    let wanted = catalog.disks.filter { $0.existence == .present && !$0.isInDoubt }
    for disk in wanted {
      let found = administrator.listed.filter { $0.name == disk.name }
      guard found.count == 1 else {
        throw Violation("disk “\(disk.name)” is listed \(found.count) times in \(names)")
      }
      try checkDisk(disk, found[0])
    }
    let strangers = names.count - wanted.count
    let inDoubt = catalog.disks.filter { $0.existence != .gone && $0.isInDoubt }.count
    if strangers > inDoubt { throw Violation("disks are listed that were deleted: \(names)") }
  }

  private func check(_ status: PoolStatus) throws(Violation) {
    if status.logUsed > status.logSize { throw Violation("more log is used than there is") }
    if status.spaceUsed > status.spaceSize { throw Violation("more space is used than there is") }
    let (disks, snapshots) = (catalog.present.count, catalog.presentSnapshots.count)
    if catalog.isInDoubt || (status.disks == disks && status.snapshots == snapshots) { return }
    throw Violation(
      "status counts \(status.disks) disks and \(status.snapshots) snapshots, not \(disks) and "
        + "\(snapshots)")
  }
}
