import Core

// The clients: connections that open a disk and keep some requests in flight on it, several of
// them on one disk at times. What they send is drawn from the profile's table.

struct Client {
  enum State { case closed, opening, open, closing }
  var state = State.closed
  var disk: ModelDisk?
  var handle = DiskHandle(place: 0, generation: 0)
  var outstanding = 0
  var depth = 1
  /// Mean pause between requests in nanoseconds.
  var think: UInt64 = 1
  var isScheduled = false
}

extension Simulation {
  func drawClients() {
    for _ in 0..<workRandom.within(profile.connections) {
      var client = Client()
      client.depth = Int(workRandom.within(profile.depth))
      client.think = workRandom.within(profile.thinkMicroseconds) * 1_000
      clients.append(client)
    }
  }

  func schedule(_ i: Int, after delay: UInt64) {
    guard !clients[i].isScheduled else { return }
    clients[i].isScheduled = true
    queue.add(.client(i), after: delay)
  }

  func clientTurn(_ i: Int) throws(Violation) {
    clients[i].isScheduled = false
    guard phase == .working, engine != nil else { return }
    switch clients[i].state {
    case .opening, .closing: return
    case .closed: openClient(i)
    case .open:
      guard clients[i].outstanding < clients[i].depth else { return }
      guard let disk = clients[i].disk, !disk.isBeingDeleted else {
        closeClient(i)
        return
      }
      act(i, disk)
      if clients[i].outstanding < clients[i].depth {
        schedule(i, after: workRandom.below(2 * clients[i].think))
      }
    }
  }

  private func openClient(_ i: Int) {
    var disks = catalog.present.filter { !$0.isInDoubt }
    let snapshots = catalog.presentSnapshots.filter { !$0.isInDoubt && !$0.disk!.isInDoubt }
    if !snapshots.isEmpty && workRandom.oneIn(4) { disks = snapshots }
    guard !disks.isEmpty else { return schedule(i, after: 2_000_000) }
    let disk = workRandom.pick(disks)
    if disk.isRenamed(since: .max) || administrator.keepsClosed === disk {
      return schedule(i, after: 200_000)
    }
    clients[i].state = .opening
    clients[i].disk = disk
    call(.open(name: disk.fullName), .openClient(i))
  }

  /// Lets go of the disk; a disk that was deleted takes its handles with it.
  private func closeClient(_ i: Int) {
    guard clients[i].outstanding == 0 else { return }
    if let kept = administrator.keepsOpen, kept === clients[i].disk {
      return schedule(i, after: 20_000)
    }
    if clients[i].disk?.existence == .gone {
      clients[i].state = .closed
      clients[i].disk = nil
      schedule(i, after: 1_000)
      return
    }
    clients[i].state = .closing
    call(.close(clients[i].handle), .closeClient(i))
  }

  // MARK: What to do next

  private func act(_ i: Int, _ disk: ModelDisk) {
    let sectors = disk.certainSectors
    guard sectors >= 8 else { return closeClient(i) }
    operations += 1
    beforeOperation()
    if disk.isSnapshot { return look(i, disk) }
    switch profile.operations.draw(&workRandom) {
    case .smallWrite:
      write(i, disk, place(disk, 1 + workRandom.below(24), align: 1))
    case .blockWrite: write(i, disk, place(disk, 8, align: 8))
    case .scatteredWrite:
      let block = workRandom.below(sectors / 8)
      write(i, disk, (block * 8)..<(block * 8 + 8))
    case .blocksWrite: write(i, disk, place(disk, 16 + workRandom.below(14) * 8, align: 8))
    case .largeWrite: write(i, disk, place(disk, 256 + workRandom.below(33) * 8, align: 256))
    case .hugeWrite: hugeWrite(i, disk)
    case .oddWrite: write(i, disk, place(disk, 1 + workRandom.below(512), align: 1))
    case .zero: zero(i, disk)
    case .trim: trim(i, disk, place(disk, 1 + workRandom.below(2048), align: pickAlignment()))
    case .bigTrim: trim(i, disk, place(disk, sectors / 2 + 1, align: pickAlignment()))
    case .flush: send(i, disk, .flush, 0..<0)
    case .read: send(i, disk, .read, place(disk, 1 + workRandom.below(64), align: 1))
    case .bigRead: send(i, disk, .read, place(disk, 256 + workRandom.below(257), align: 8))
    case .extents: send(i, disk, .status, place(disk, 8 + workRandom.below(4096), align: 8))
    case .reconnect: closeClient(i)
    case .bad: badRequest(i, disk)
    }
  }

  /// A snapshot is read, and refuses to be written.
  private func look(_ i: Int, _ snapshot: ModelDisk) {
    switch workRandom.below(20) {
    case 0..<11: send(i, snapshot, .read, place(snapshot, 1 + workRandom.below(64), align: 1))
    case 11..<14: send(i, snapshot, .read, place(snapshot, 256 + workRandom.below(257), align: 8))
    case 14..<16: send(i, snapshot, .status, place(snapshot, 8 + workRandom.below(4096), align: 8))
    case 16: send(i, snapshot, .flush, 0..<0)
    case 17:
      let operation = workRandom.pick([.write, .zero, .trim] as [BlockOperation])
      send(i, snapshot, operation, place(snapshot, 8, align: 8))
    default: closeClient(i)
    }
  }

  private func pickAlignment() -> UInt64 { workRandom.pick([1, 8, 8, 256]) }

  /// A range of about `count` sectors, mostly where the disk is hot, within its size.
  private func place(_ disk: ModelDisk, _ count: UInt64, align: UInt64) -> Range<UInt64> {
    let sectors = disk.certainSectors
    var within = 0..<sectors
    if !disk.hotRanges.isEmpty && !workRandom.oneIn(10) {
      let hot = workRandom.pick(disk.hotRanges)
      if hot.lowerBound + 8 <= sectors { within = hot.clamped(to: within) }
    }
    var start = within.lowerBound + workRandom.below(within.upperBound - within.lowerBound)
    start -= start % align
    var end = min(start + count, sectors)
    if align >= 8 && end % 8 != 0 && end != sectors { end -= end % 8 }
    if end <= start { end = min(start + 1, sectors) }
    return start..<end
  }

  private func write(_ i: Int, _ disk: ModelDisk, _ range: Range<UInt64>) {
    let isForced = profile.forcedOneIn > 0 && workRandom.oneIn(profile.forcedOneIn)
    let fua: BlockFlags = isForced ? .forceUnitAccess : []
    let pattern: WriteTable.Pattern =
      switch workRandom.below(24) {
      case 0: .zeros
      case 1, 2: .mixed
      default: .stamps
      }
    let count = min(range.upperBound - range.lowerBound, UInt64(maximumPiece / sectorSize))
    let piece = range.lowerBound..<(range.lowerBound + count)
    send(i, disk, .write, piece, flags: fua, pattern: pattern)
  }

  /// As a front end hands on a request of 1 MiB: pieces, all at once.
  private func hugeWrite(_ i: Int, _ disk: ModelDisk) {
    let range = place(disk, 2048, align: 256)
    let piece = UInt64(maximumPiece / sectorSize)
    for start in stride(from: range.lowerBound, to: range.upperBound, by: Int(piece)) {
      send(i, disk, .write, start..<min(start + piece, range.upperBound), pattern: .stamps)
    }
  }

  private func zero(_ i: Int, _ disk: ModelDisk) {
    let range = place(disk, 1 + workRandom.below(1024), align: pickAlignment())
    var flags: BlockFlags = workRandom.oneIn(8) ? .forceUnitAccess : []
    if workRandom.oneIn(3) { flags.insert(.keepAllocated) }
    send(i, disk, .zero, range, flags: flags, pattern: .zeros)
  }

  private func trim(_ i: Int, _ disk: ModelDisk, _ range: Range<UInt64>) {
    // While the size changes nobody can tell whether a last half block counts as whole.
    var range = range
    if disk.isBeingResized {
      range = range.lowerBound..<max(range.lowerBound, range.upperBound / 8 * 8)
      if range.isEmpty { return }
    }
    let flags: BlockFlags = workRandom.oneIn(8) ? .forceUnitAccess : []
    send(i, disk, .trim, range, flags: flags, pattern: .zeros)
  }

  /// A request that no engine may carry out: outside the disk, or with a handle that is none.
  private func badRequest(_ i: Int, _ disk: ModelDisk) {
    let end = max(disk.size, disk.pendingSize) / UInt64(sectorSize)
    var request = makeRequest(i, disk, .read, (end - min(end, 4))..<(end + 4))
    request.operation = workRandom.pick([.read, .write, .zero, .trim])
    request.mustRefuse = true
    switch workRandom.below(4) {
    case 0: request.handle.generation &+= 77
    case 1: request.handle.place = .max
    case 2: request.offset = UInt64.max - 4095
    default: break
    }
    submit(request)
  }

  // MARK: Submission

  private func makeRequest(
    _ i: Int, _ disk: ModelDisk, _ operation: BlockOperation, _ range: Range<UInt64>
  ) -> Request {
    var request = Request()
    request.operation = operation
    request.disk = disk
    request.handle = clients[i].handle
    request.offset = range.lowerBound * UInt64(sectorSize)
    request.length = UInt64(range.count) * UInt64(sectorSize)
    request.purpose = .client(i)
    return request
  }

  private func send(
    _ i: Int, _ disk: ModelDisk, _ operation: BlockOperation, _ range: Range<UInt64>,
    flags: BlockFlags = [], pattern: WriteTable.Pattern? = nil
  ) {
    var request = makeRequest(i, disk, operation, range)
    request.flags = flags
    if let pattern {
      request.ownsSpace = disk.certainlyOwns(range, table)
      let changed = operation == .trim ? wholeBlocks(range, disk) : range
      if !changed.isEmpty {
        request.version = begin(changed, disk, pattern, flags.contains(.forceUnitAccess))
      }
    }
    submit(request)
  }

  private func begin(
    _ range: Range<UInt64>, _ disk: ModelDisk, _ pattern: WriteTable.Pattern, _ isForced: Bool
  ) -> Stamp.Version {
    var record = WriteTable.Record(
      submitted: table.tick(), disk: disk.number, firstSector: range.lowerBound,
      sectorCount: UInt64(range.count), pattern: pattern,
      weak: (disk.isWeak && !isForced) || profile.flipTailOneIn > 0)
    record.isForced = isForced
    let version = table.add(record)
    disk.begin(version, table)
    return version
  }

  /// What a trim changes: the whole blocks in its range; the edges stay as they are.
  private func wholeBlocks(_ range: Range<UInt64>, _ disk: ModelDisk) -> Range<UInt64> {
    let first = (range.lowerBound + 7) / 8 * 8
    let isEnd = range.upperBound == disk.sectors && !disk.isBeingResized
    let end = isEnd ? range.upperBound : range.upperBound / 8 * 8
    return first < end ? first..<end : 0..<0
  }

  func submit(_ request: Request) {
    var request = request
    request.asked = table.tick()
    request.submittedAt = queue.now
    // Damage that a later write heals may yet be met by a request that began before.
    request.submittedInTrouble =
      isInTrouble
      || (request.isRead && !request.mustRefuse
        && damage.touches(request.disk, request.sectorRange))
    if case .client(let i) = request.purpose { clients[i].outstanding += 1 }
    if request.isRead { request.disk.model.readBegan(request.asked) }
    let slot = requests.take(request)
    if request.operation == .write, let version = request.version {
      let start = requests.memory(slot) + Int(request.offset % UInt64(blockSize))
      table.fill(start, version: version)
    }
    tell("submit \(request.version.map { "v\($0) " } ?? "")\(request.describe)")
    if !backlog.isEmpty || !submitNow(slot) {
      harness[.waitedForSlot] += 1
      backlog.append(slot)
    }
  }

  /// Hands a request to the engine; false when it has no room.
  func submitNow(_ slot: Int) -> Bool {
    guard let engine else { return false }
    let request = requests[slot]
    var memory: UnsafeMutableRawPointer?
    switch request.operation {
    case .read, .write, .status: memory = requests.memory(slot)
    case .zero, .trim, .flush: break
    }
    let isTaken = engine.submit(
      BlockRequest(
        operation: request.operation, flags: request.flags, disk: request.handle,
        offset: request.offset, length: request.length, memory: memory,
        token: requests.token(slot)))
    if isTaken { wakeSoon() }
    return isTaken
  }
}
