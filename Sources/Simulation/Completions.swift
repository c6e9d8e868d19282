import Core

// What the clients make of completions: each outcome is checked against the model, and every
// error needs an excuse that the simulator knows of.

extension Simulation {
  func completed(_ completion: BlockCompletion) throws(Violation) {
    guard let slot = requests.slot(token: completion.token) else {
      throw Violation("a request was completed twice, or never was (token \(completion.token))")
    }
    let request = requests[slot]
    tell("  \(completion.status) \(request.version.map { "v\($0) " } ?? "")\(request.describe)")
    switch completion.status {
    case .ok: try succeeded(request, slot, completion)
    case .ioError: try failedWithIO(request)
    case .noSpace: try failedForSpace(request)
    case .readOnly: try refusedReadOnly(request)
    case .invalid: try refusedInvalid(request)
    case .stopping: try refusedStopping(request)
    }
    if request.isRead { request.disk.readEnded(request.asked) }
    requests.give(slot)
    // An engine that reads from memory does no device operations that a crash could wait for.
    if phase == .verifying, let left = crashCountdown, left > 1 { crashCountdown = left - 1 }
    if case .client(let i) = request.purpose {
      clients[i].outstanding -= 1
      schedule(i, after: workRandom.below(2 * clients[i].think))
    }
  }

  // MARK: Success

  private func succeeded(
    _ request: Request, _ slot: Int, _ completion: BlockCompletion
  ) throws(Violation) {
    if request.mustRefuse {
      throw Violation("an invalid request was carried out: \(request.describe)")
    }
    switch request.operation {
    case .read:
      harness[.ackedRead] += 1
      if request.disk.isBeingDeleted { return }
      try checkRead(request, slot)
    case .write, .zero, .trim:
      harness[.ackedWrite] += 1
      try acknowledge(request)
    case .flush:
      if profile.flipTailOneIn == 0 { table.raiseDurable(to: request.asked) }
    case .status:
      if request.disk.isBeingDeleted { return }
      try checkExtents(request, slot, Int(completion.count))
    }
  }

  private func acknowledge(_ request: Request) throws(Violation) {
    let disk = request.disk!
    if disk.readOnly && !disk.readOnlyChanged {
      throw Violation("a read-only disk was written: \(request.describe)")
    }
    guard let version = request.version else { return }
    table.end(version, .acknowledged)
    disk.acknowledge(version, table)
    if request.flags.contains(.forceUnitAccess) && profile.flipTailOneIn == 0 {
      table.raiseDurable(to: request.asked)
    }
    try checkLatency(request)
  }

  /// Where the profile promises it, no write waits for the volumes; but one that is not of whole
  /// blocks reads the rest of them first (R4).
  private func checkLatency(_ request: Request) throws(Violation) {
    guard profile.ackLimitMicroseconds > 0, request.operation == .write,
      request.length < 128 * 1024, request.offset % UInt64(blockSize) == 0,
      request.length % UInt64(blockSize) == 0
    else { return }
    let took = (queue.now - request.submittedAt) / 1000
    guard took <= profile.ackLimitMicroseconds else {
      throw Violation(
        "\(request.describe) took \(took) us although the log is fast and has room: it waited "
          + "for a volume")
    }
  }

  private func checkRead(_ request: Request, _ slot: Int) throws(Violation) {
    let memory = requests.memory(slot) + Int(request.offset % UInt64(blockSize))
    do throws(Violation) {
      try request.disk.observe(memory, request.sectorRange, asked: request.asked, table, &witness)
    } catch {
      throw Violation("\(request.describe): \(error)")
    }
  }

  private func checkExtents(_ request: Request, _ slot: Int, _ count: Int) throws(Violation) {
    guard count > 0, count <= 256 else {
      throw Violation("\(count) extents came back for \(request.describe)")
    }
    var at = request.offset
    let end = request.offset + request.length
    for i in 0..<count {
      let item = requests.memory(slot).load(fromByteOffset: i * 16, as: ExtentStatus.self)
      guard item.length > 0, item.length <= end - at else {
        throw Violation("extent \(i) of \(item.length) bytes does not fit \(request.describe)")
      }
      let unit = UInt64(sectorSize)
      let sectors = ((at + unit - 1) / unit)..<((at + item.length) / unit)
      if item.isHole,
        let data = request.disk.sectorWithData(
          sectors, asked: request.asked, table)
      {
        throw Violation("sector \(data) is reported as a hole but holds data: \(request.describe)")
      }
      at += item.length
    }
  }

  // MARK: Errors

  private func fail(_ request: Request, _ state: WriteTable.State) {
    guard let version = request.version else { return }
    table.end(version, state)
    if state == .refused { request.disk.refuse(version, table) }
  }

  private func failedWithIO(_ request: Request) throws(Violation) {
    fail(request, .failed)
    if request.submittedInTrouble || isInTrouble || request.disk.isBeingDeleted
      || (request.operation != .flush && damage.touches(request.disk, request.sectorRange))
    {
      harness[.eioExcused] += 1
      if request.purpose == .verification { verification.retry(request) }
      return
    }
    throw Violation("EIO without any fault that excuses it: \(request.describe)")
  }

  private func failedForSpace(_ request: Request) throws(Violation) {
    fail(request, .failed)
    harness[.noSpaceSeen] += 1
    guard profile.mayFill else {
      throw Violation("ENOSPC although the pool has plenty of space: \(request.describe)")
    }
    switch request.operation {
    case .write, .zero: break
    case .read, .trim, .flush, .status:
      throw Violation("ENOSPC for a request that needs no space: \(request.describe)")
    }
    if request.ownsSpace && request.disk.certainlyOwns(request.sectorRange, table) {
      throw Violation("ENOSPC for blocks that the disk owns already: \(request.describe)")
    }
  }

  private func refusedReadOnly(_ request: Request) throws(Violation) {
    fail(request, .refused)
    harness[.refusedRequest] += 1
    let disk = request.disk!
    if request.mustRefuse || disk.readOnly || disk.readOnlyChanged { return }
    if case .set(let change) = disk.pending, change.readOnly == true { return }
    throw Violation("EPERM on a disk that is not read-only: \(request.describe)")
  }

  private func refusedInvalid(_ request: Request) throws(Violation) {
    harness[.refusedRequest] += 1
    fail(request, .refused)
    if request.mustRefuse || request.disk.isBeingDeleted { return }
    let end = (request.offset + request.length) / UInt64(sectorSize)
    if end > request.disk.certainSectors { return }
    throw Violation("a valid request was refused as invalid: \(request.describe)")
  }

  private func refusedStopping(_ request: Request) throws(Violation) {
    fail(request, .failed)
    guard phase == .stopping else {
      throw Violation("ESHUTDOWN although nobody stops the pool: \(request.describe)")
    }
  }
}
