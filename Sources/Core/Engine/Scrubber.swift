/// Scrubbing: reads every block in use back from its device, disk by disk, past the cache, while
/// the pool serves; what is found damaged is reported with disk name and offset.
final class Scrubber {
  static let inFlight = 8

  var report = ScrubReport()
  private(set) var memory: AlignedMemory
  var freeBuffers: [Int] = Array(0..<Scrubber.inFlight)
  /// Objects that only the log has when it begins, and then the objects tree from `next` on.
  var logged: [NameTarget]
  var next = ObjectID(TreeOwner.firstFree)
  var disk: VirtualDisk?
  var block: UInt64 = 0
  var outstanding = 0

  init(logged: [NameTarget]) {
    self.logged = logged
    memory = AlignedMemory(bytes: Self.inFlight * maximumPiece)
    report.running = true
  }

  func buffer(_ i: Int) -> UnsafeMutableRawPointer { memory.base + i * maximumPiece }

  /// Where damage was found, as a sentence; only so many are kept.
  func note(_ damage: String) {
    report.damagedBlocks += 1
    if report.damage.count < 100 { report.damage.append(damage) }
  }

  /// A piece was read (or not).
  func ended(_ request: BlockRequest, _ status: BlockStatus, buffer: Int) {
    outstanding -= 1
    freeBuffers.append(buffer)
    let blocks = request.length >> blockShift
    report.blocksVerified += blocks
    guard status == .ioError else { return }
    note(
      "disk “\(disk?.name ?? "?")” has an unreadable block within \(blocks) blocks at offset "
        + "\(request.offset)")
  }
}

extension Engine {
  /// Goes on with the running scrub, or starts one; the report when it is through.
  func scrub(_ job: ControlJob) throws(SpaceWait) -> ControlReply? {
    if scrubber == nil || (job.stage == 0 && scrubber?.report.running == false) {
      scrubber = Scrubber(logged: pool.catalog.overlayTargets())
    }
    job.stage = 1
    guard let scrubber else { return nil }
    do throws(SpaceWait) {
      if scrubber.report.running, try !stepScrub(scrubber) { return nil }
    } catch {
      // The catalog is damaged: what is behind that can't be found.
      if case .damaged = error { scrubber.report.running = false }
      throw error
    }
    return .scrub(scrubber.report)
  }

  /// Issues reads as far as there are buffers; true when everything was read.
  private func stepScrub(_ scrubber: Scrubber) throws(SpaceWait) -> Bool {
    while true {
      if let disk = scrubber.disk {
        guard try scrubDisk(scrubber, disk), scrubber.outstanding == 0 else { return false }
        disk.isScrubbed = false
        scrubber.disk = nil
        if destager.isIdle { pool.unloadIfIdle(disk) }
      }
      if let target = scrubber.logged.last {
        if try pool.catalog.treeRecord(of: target.object) == nil,
          let record = try pool.catalog.record(of: target.object)
        {
          try begin(scrubber, target.object, record)
        }
        scrubber.logged.removeLast()
        continue
      }
      guard let found = try pool.catalog.nextObject(from: scrubber.next) else { break }
      try begin(scrubber, found.object, found.record)
      scrubber.next = ObjectID(found.object.raw + 1)
    }
    scrubber.report.running = false
    return true
  }

  /// Turns to an object, if it has blocks of its own to be read: hidden snapshots have, what is being
  /// freed has not.
  private func begin(
    _ scrubber: Scrubber, _ object: ObjectID, _ record: ObjectRecord
  ) throws(SpaceWait) {
    guard record.kind != .directory, record.links > 0 || record.isHidden,
      !record.inheritsMap || record.hasDelta || pool.disks.find(object) != nil
    else { return }
    // As it is now; a hidden snapshot is only as the trees have it.
    let live = try pool.catalog.record(of: object) ?? record
    let name = try pool.catalog.path(of: live)
    let disk = pool.disk(object)
    if disk.record == nil { (disk.name, disk.record) = (name, live) }
    do throws(SpaceWait) {
      try pool.load(disk.layer)
    } catch {
      guard case .damaged = error else { throw error }
      return scrubber.note("disk “\(name)” can't be read: its metadata is damaged")
    }
    disk.isScrubbed = true
    scrubber.disk = disk
    scrubber.block = 0
  }

  /// True when the disk's last read has been issued. A disk whose map is damaged is not read any
  /// further than that.
  private func scrubDisk(_ scrubber: Scrubber, _ disk: VirtualDisk) throws(SpaceWait) -> Bool {
    do throws(SpaceWait) {
      return try readOn(scrubber, disk)
    } catch {
      guard case .damaged = error else { throw error }
      scrubber.note(
        "disk “\(disk.name)” can't be read from offset \(scrubber.block << blockShift) on: its "
          + "metadata is damaged")
      scrubber.block = BlockIndex.limit
      return true
    }
  }

  private func readOn(_ scrubber: Scrubber, _ disk: VirtualDisk) throws(SpaceWait) -> Bool {
    guard !disk.isDeleted, let size = disk.record?.size else { return true }
    // Who has paused it waits for the reads under way.
    if disk.isPaused { return false }
    let end = roundUp(size, to: 4096) >> blockShift
    while scrubber.block < end {
      switch try find(disk, scrubber.block, min(end - scrubber.block, 1 << 30)) {
      case .logged(let entry, let count):
        if entry.kind == .zero {
          scrubber.block += count
          continue
        }
      case .mapped(let map, let count):
        switch try map.lookup(BlockIndex(scrubber.block), limit: Int(count)) {
        case .hole(let count):
          scrubber.block += UInt64(count)
          continue
        case .mapped(_, let count, let birth, _):
          // What the disk shares with its parent snapshot is read there.
          if birth <= map.branchInstant {
            scrubber.block += UInt64(count)
            continue
          }
        }
      }
      let length = min(UInt64(maximumPiece) >> blockShift, end - scrubber.block)
      guard issueScrubRead(scrubber, disk, blocks: length) else { return false }
      scrubber.block += length
    }
    return true
  }

  /// False when there is no buffer or no slot for the request now.
  private func issueScrubRead(
    _ scrubber: Scrubber, _ disk: VirtualDisk, blocks: UInt64
  ) -> Bool {
    guard let buffer = scrubber.freeBuffers.last else { return false }
    let read = BlockRequest(
      operation: .read, disk: disk.handle, offset: scrubber.block << blockShift,
      length: blocks << blockShift, memory: scrubber.buffer(buffer), token: UInt64(buffer))
    guard let slot = requests.take(read) else { return false }
    scrubber.freeBuffers.removeLast()
    scrubber.outstanding += 1
    requests[slot].isInternal = true
    requests[slot].isScrub = true
    requests[slot].countsOnDisk = true
    disk.requests += 1
    resolveRead(slot, disk)
    return true
  }

  func scrubReadEnded(_ request: BlockRequest, _ status: BlockStatus) {
    scrubber?.ended(request, status, buffer: Int(request.token))
  }
}
