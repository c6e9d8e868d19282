import Core

// When and how runs are interrupted, and what goes wrong while they are not.

extension Simulation {
  // MARK: Crashes

  /// Spreads the crashes that are left over the operations that are left.
  func planCrash() {
    nextCrashAt = .max
    guard crashesLeft > 0, operations < steps else { return }
    let stretch = (steps - operations) / (crashesLeft + 1)
    nextCrashAt = operations + 1 + crashRandom.below(2 * stretch + 1)
  }

  /// Called before each operation of a client.
  func considerCrash() {
    guard operations >= nextCrashAt, crashCountdown == nil, phase == .working else { return }
    nextCrashAt = .max
    crashKind = profile.crashKinds.draw(&crashRandom)
    if crashKind == .cleanStop {
      beginStop()
    } else {
      crashCountdown = 1 + crashRandom.below(40)
    }
  }

  /// Some crashes strike while marks are on their way to the log.
  func crashSoon() {
    guard crashCountdown == nil, crashesLeft > 0, phase == .working, crashRandom.oneIn(16) else {
      return
    }
    nextCrashAt = .max
    crashKind = crashRandom.oneIn(3) ? .kill : .powerCut
    crashCountdown = 1 + crashRandom.below(6)
  }

  /// The engine is gone, now.
  func crash(_ kind: CrashKind) throws(Violation) {
    noteCrash(kind)
    if let engine { rarePaths.add(system.rarePaths(engine)) }
    for device in pool.devices {
      if device.faults.presence == .hanging { pool.bringBack(device.index, queue: &queue) }
      let bad = device.faults.badRanges
      device.faults = DeviceFaults()
      device.faults.badRanges = bad
      device.backingTaken = 0
    }
    activeFaults = []
    let cutsPower = kind == .powerCut || (kind == .cleanStop && crashRandom.oneIn(2))
    loseClients()
    loseVolatile(cutsPower)
    engine = nil
    phase = .starting
  }

  private func noteCrash(_ kind: CrashKind) {
    crashes += 1
    consecutiveCrashes += 1
    crashesLeft = crashesLeft > 0 ? crashesLeft - 1 : 0
    switch kind {
    case .powerCut: harness[.powerCut] += 1
    case .kill: harness[.kill] += 1
    case .cleanStop: harness[.cleanStop] += 1
    }
    switch phase {
    case .recovering: harness[.crashInRecovery] += 1
    case .listing, .verifying: harness[.crashInVerification] += 1
    // What was read before the crash says nothing of what survives it.
    default: witness = PrefixWitness()
    }
    crashCountdown = nil
    trace.note(queue.now, crashes, 4)
    tell("CRASH \(kind) in \(phase)")
  }

  private func loseClients() {
    requests.giveAll()
    backlog = []
    calls = [:]
    verification = Verification()
    administrator.isWaiting = false
    administrator.isScheduled = false
    administrator.holdsDestage = false
    administrator.diff = nil
    (administrator.keepsOpen, administrator.keepsClosed) = (nil, nil)
    for i in clients.indices {
      clients[i].state = .closed
      clients[i].disk = nil
      clients[i].outstanding = 0
      clients[i].isScheduled = false
    }
    for disk in catalog.disks { disk.readOnlyChanged = false }
  }

  private func loseVolatile(_ cutsPower: Bool) {
    forgetWake()
    var startAt = queue.now + 1 + crashRandom.below(crashRandom.pick([20_000, 20_000_000]))
    // At the end all trouble is over, and long ago.
    if isLast { startAt += 60_000_000_000 }
    if cutsPower {
      harness[.decidedWrite] += UInt64(pool.powerCut())
      queue.remove { _ in true }
    } else {
      let landed = pool.kill(now: queue.now)
      queue.remove { if case .device = $0 { false } else { true } }
      if pool.plan.planted == .lockNotAwaited {
        startAt = queue.now + crashRandom.below(50_000)
      } else if landed >= startAt {
        harness[.lockWaited] += 1
        startAt = landed + 1
      }
    }
    queue.add(.start, at: startAt)
    if profile.flipTailOneIn == 0 { forgetUnacknowledged(cutsPower) }
  }

  /// The model's side of a crash.
  func forgetUnacknowledged(_ powerCut: Bool) {
    table.crash(powerCut: powerCut)
    for disk in catalog.all where disk.existence != .gone {
      disk.crash(powerCut: powerCut, table)
    }
  }

  // MARK: Faults

  /// Whether something went wrong of late that excuses errors.
  var isInTrouble: Bool {
    if activeFaults.contains(where: \.causesErrors) { return true }
    guard let last = pool.injected.last else { return false }
    return queue.now - last < 30_000_000_000
  }

  func considerFault() {
    guard !profile.faults.isEmpty, faultRandom.oneIn(profile.faultEvery) else { return }
    begin(profile.faults.draw(&faultRandom))
  }

  private func begin(_ kind: FaultKind) {
    let log = pool.devices[0]
    let volume = pool.devices[1 + Int(faultRandom.below(UInt64(pool.volumeCount)))]
    let rate = faultRandom.pick([20_000, 200_000, 1_000_000] as [UInt64])
    tell("FAULT \(kind)")
    switch kind {
    case .logReadErrors: log.faults.readErrors = rate
    case .logWriteErrors: log.faults.writeErrors = rate
    case .logFlushErrors: log.faults.flushErrors = rate
    case .volumeReadErrors: volume.faults.readErrors = rate
    case .volumeWriteErrors: volume.faults.writeErrors = rate
    case .volumeFlushErrors: volume.faults.flushErrors = rate
    case .volumeGone: volume.faults.presence = .gone
    case .volumeHangs: volume.faults.presence = .hanging
    case .logHangs: log.faults.presence = .hanging
    case .slowVolume: volume.faults.slowness = 200
    case .slowLog: log.faults.slowness = 50
    case .badBlocks: return spoil(volume)
    case .filledOutside:
      guard volume.plan.isSparseFile else { return }
      volume.backingTaken = volume.plan.backing >> blockShift
    case .flippedData: return flipData(volume)
    case .flippedMetadata: return flipMetadata(volume)
    case .flippedLog: return flipLog()
    }
    let isLog =
      switch kind {
      case .logReadErrors, .logWriteErrors, .logFlushErrors, .logHangs, .slowLog: true
      default: false
      }
    let length = faultRandom.pick([1_000_000, 50_000_000, 2_000_000_000] as [UInt64])
    let until = queue.now + 1 + faultRandom.below(2 * length)
    let device = isLog ? log.index : volume.index
    activeFaults.append(ActiveFault(kind: kind, device: device, until: until))
    queue.add(.fault, at: until)
  }

  /// Some blocks of the volume can't be written from now on.
  private func spoil(_ volume: SimulatedDevice) {
    guard volume.faults.badRanges.count < 4 else { return }
    // Behind the label and its roots, whose loss is another matter.
    let first = 512 + faultRandom.below(volume.blocks - 600)
    let range = first..<(first + 1 + faultRandom.below(64))
    volume.faults.badRanges.append(
      DeviceFaults.BadRange(blocks: range, unreadable: false))
  }

  func endFaults() {
    for fault in activeFaults where fault.until <= queue.now {
      let device = pool.devices[Int(fault.device.raw)]
      switch fault.kind {
      case .logReadErrors, .volumeReadErrors: device.faults.readErrors = 0
      case .logWriteErrors, .volumeWriteErrors: device.faults.writeErrors = 0
      case .logFlushErrors, .volumeFlushErrors: device.faults.flushErrors = 0
      case .volumeGone: device.faults.presence = .here
      case .volumeHangs, .logHangs: pool.bringBack(fault.device, queue: &queue)
      case .slowVolume, .slowLog: device.faults.slowness = 1
      case .filledOutside: device.backingTaken = 0
      case .badBlocks, .flippedData, .flippedMetadata, .flippedLog: break
      }
      tell("FAULT \(fault.kind) is over")
    }
    activeFaults.removeAll { $0.until <= queue.now }
  }
}

/// A fault that goes on for a time.
struct ActiveFault {
  var kind: FaultKind
  var device: DeviceIndex
  /// Simulated nanoseconds.
  var until: UInt64

  /// Whether requests may fail because of it (slow devices and full file systems excuse nothing).
  var causesErrors: Bool {
    switch kind {
    case .slowLog, .slowVolume, .filledOutside: false
    default: true
    }
  }
}
