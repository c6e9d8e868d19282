// Writes: completed to whole blocks, reserved in space, gathered into a frame, acknowledged when
// the frame counts.
//
//     beginWrite ─▶ overlaps a partial write under way? wait for it
//                ─▶ not whole blocks: read and merge the edges (R4)
//                ─▶ large and whole: to a new home, then an extent record (R5)
//                ─▶ admission queue ─▶ reserve ─▶ append to the open frame ─▶ writeEnded

extension Engine {
  /// Whole writes of this size and more go straight to their home.
  static let largeWrite = 128 * 1024

  func beginWrite(_ slot: Int32, _ disk: VirtualDisk) {
    requests[slot].isBlockWaiter = false
    if disk.isDeleted { return writeEnded(slot, .invalid) }
    if requests[slot].request.operation == .trim { trimInwards(slot) }
    if requests[slot].request.length == 0 { return writeEnded(slot, .ok) }
    if requests[slot].isPartial, !requests[slot].edgesRead {
      guard !overlapsWriteUnderWay(slot) else {
        return awaitBlocks(slot)
      }
      return beginPartial(slot)
    }
    if !requests[slot].edgesRead, overlapsPartialWrite(slot) {
      return awaitBlocks(slot)
    }
    if isLarge(slot), requests[slot].home.isNone, requests[slot].spaceTries == 0 {
      if beginLarge(slot, disk) { return }
    }
    requests[slot].state = .waiting
    latency.enter(slot, .admission)
    admission.append(slot, &requests)
  }

  /// A discard is advice: only whole blocks inside the range are dropped.
  private func trimInwards(_ slot: Int32) {
    let request = requests[slot].request
    let start = roundUp(request.offset, to: 4096)
    var end = request.offset + request.length
    let size = pool.disks.holder(of: request.disk)?.record?.size ?? 0
    end = end == size ? roundUp(end, to: 4096) : end & ~4095
    requests[slot].request.offset = start
    requests[slot].request.length = end > start ? end - start : 0
  }

  // MARK: Partial writes

  private func overlaps(_ a: Int32, _ b: Int32) -> Bool {
    requests[a].request.disk.place == requests[b].request.disk.place
      && requests[a].firstBlock < requests[b].endBlock
      && requests[b].firstBlock < requests[a].endBlock
  }

  private func overlapsPartialWrite(_ slot: Int32) -> Bool {
    guard !partialWrites.isEmpty else { return false }
    return partialWrites.contains { $0 != slot && overlaps($0, slot) }
  }

  /// Whether another write of the same blocks has begun and does not count yet: its content is
  /// not in the index, so edges can't be merged before it is. Of two that wait in the block queue
  /// neither has begun.
  private func overlapsWriteUnderWay(_ slot: Int32) -> Bool {
    activeWrites.contains { $0 != slot && !requests[$0].isBlockWaiter && overlaps($0, slot) }
  }

  private func awaitBlocks(_ slot: Int32) {
    pool.paths.hit(.partialWriteWaited)
    requests[slot].isBlockWaiter = true
    latency.enter(slot, .turn)
    blockWaiters.append(slot, &requests)
  }

  /// Enters a write-type request into the list of those that do not count yet.
  func enlist(_ slot: Int32) {
    requests[slot].activeIndex = Int32(activeWrites.count)
    activeWrites.append(slot)
  }

  private func delist(_ slot: Int32) {
    let place = Int(requests[slot].activeIndex)
    guard place >= 0 else { return }
    let last = activeWrites.removeLast()
    if last != slot {
      activeWrites[place] = last
      requests[last].activeIndex = Int32(place)
    }
    requests[slot].activeIndex = -1
  }

  private func beginPartial(_ slot: Int32) {
    let request = requests[slot]
    let needsHead = request.startsInsideBlock || request.blockCount == 1
    let needsTail = request.endsInsideBlock && request.blockCount > 1
    guard edgeMemory.count >= 2, requests.used + 2 <= requests.capacity else {
      return awaitBlocks(slot)
    }
    pool.paths.hit(.partialWrite)
    partialWrites.append(slot)
    requests[slot].state = .waiting
    latency.enter(slot, .data)
    requests[slot].outstanding = (needsHead ? 1 : 0) + (needsTail ? 1 : 0)
    if needsHead {
      requests[slot].head = edgeMemory.removeLast()
      readEdge(slot, block: request.firstBlock, into: requests[slot].head!)
    }
    if needsTail {
      requests[slot].tail = edgeMemory.removeLast()
      readEdge(slot, block: request.endBlock - 1, into: requests[slot].tail!)
    }
  }

  private func readEdge(_ parent: Int32, block: UInt64, into memory: UnsafeMutableRawPointer) {
    var read = requests[parent].request
    read.operation = .read
    read.flags = []
    read.offset = block << blockShift
    read.length = UInt64(blockSize)
    read.memory = memory
    guard let child = requests.take(read) else {
      invariantBroken("no slot for the read of an edge block")
    }
    requests[child].isInternal = true
    requests[child].parent = parent
    requests[child].countsOnDisk = true
    guard let disk = pool.disks.resolve(read.disk) else { return finish(child, .invalid) }
    disk.requests += 1
    resolveRead(child, disk)
  }

  /// An edge was read.
  func childEnded(_ parent: Int32, _ status: BlockStatus) {
    if status != .ok { requests[parent].status = status }
    requests[parent].outstanding -= 1
    guard requests[parent].outstanding == 0 else { return }
    if requests[parent].status != .ok { return writeEnded(parent, requests[parent].status) }
    mergeEdges(parent)
    requests[parent].edgesRead = true
    begin(parent)
  }

  /// Puts the payload's edge bytes over what the blocks held.
  private func mergeEdges(_ slot: Int32) {
    let request = requests[slot].request
    let start = Int(request.offset & 4095)
    let end = Int((request.offset + request.length - 1) & 4095) + 1
    let isWrite = request.operation == .write
    func put(_ edge: UnsafeMutableRawPointer, _ from: Int, _ to: Int, block: Int) {
      if isWrite {
        (edge + from).copyMemory(
          from: request.memory! + block * blockSize + from, byteCount: to - from)
      } else {
        (edge + from).initializeMemory(as: UInt8.self, repeating: 0, count: to - from)
      }
    }
    let count = requests[slot].blockCount
    if let head = requests[slot].head { put(head, start, count == 1 ? end : blockSize, block: 0) }
    if let tail = requests[slot].tail { put(tail, 0, end, block: count - 1) }
  }

  // MARK: Large writes (R5)

  private func isLarge(_ slot: Int32) -> Bool {
    let request = requests[slot].request
    guard request.operation == .write, request.length >= UInt64(Self.largeWrite),
      !requests[slot].isPartial, requests[slot].blockCount <= maximumPiece / blockSize
    else { return false }
    return true
  }

  /// Sends a large write to a new home. False when it has zero blocks in it or there is no run for
  /// it: then it goes through the log.
  private func beginLarge(_ slot: Int32, _ disk: VirtualDisk) -> Bool {
    let count = requests[slot].blockCount
    let memory = requests[slot].request.memory!
    guard pool.log.isOpen, pool.space.available > count + pool.reservedBlocks + 4096 else {
      pool.paths.hit(.largeWriteFallback)
      return false
    }
    for i in 0..<count where isZeroBlock(memory + i * blockSize) { return false }
    do throws(SpaceWait) {
      let near = disk.layer.lastHome.map { $0 + 1 }
      guard let run = try pool.space.allocateRun(near: near, want: count, minimum: count) else {
        pool.paths.hit(.largeWriteFallback)
        return false
      }
      disk.layer.lastHome = run.address + UInt64(count - 1)
      requests[slot].home = run.address
      requests[slot].homeCount = Int32(count)
    } catch {
      if case .node(let pointer) = error {
        latency.enter(slot, .metadata)
        parked.append(slot, &requests)
        startLoad(pointer)
        return true
      }
      pool.paths.hit(.largeWriteFallback)
      return false
    }
    pool.paths.hit(.largeWrite)
    requests[slot].state = .writingHome
    latency.enter(slot, .home)
    let home = requests[slot].home
    if pool.fault == .extentRecordBeforeData {
      requests[slot].state = .waiting
      admission.append(slot, &requests)
    }
    pool.ops.issue(
      .writeDurable, .volume(home.volume), offset: home.byteOffset,
      length: UInt64(count * blockSize), memory: memory, owner: .largeWrite, index: Int(slot))
    return true
  }

  func largeWriteCompleted(_ slot: Int32, error: Int32) {
    if pool.fault == .extentRecordBeforeData { return }
    if error != 0 {
      pool.ioErrors += 1
      pool.space.cancelReservation(requests[slot].home, Int(requests[slot].homeCount))
      requests[slot].home = .none
      requests[slot].spaceTries = 1
    }
    requests[slot].state = .waiting
    latency.enter(slot, .admission)
    admission.append(slot, &requests)
  }

  // MARK: Admission

  /// Lets waiting writes into the log as far as there is room, in order.
  func admitWaiting() {
    while !admission.isEmpty {
      guard mayAdmit, pool.log.isOpen, !pool.log.isBroken else { return giveUpWaiting() }
      // Off the queue first: what the request is put on next uses the same link.
      guard let slot = admission.removeFirst(requests) else { return }
      guard let disk = pool.disks.holder(of: requests[slot].request.disk), !disk.isDeleted,
        !disk.isBeingDeleted
      else {
        writeEnded(slot, .invalid)
        continue
      }
      switch log(slot, disk) {
      case .logged: break
      case .full:
        admission.prepend(slot, &requests)
        pool.log.seal(wallClock: wallClock)
        if !pool.log.hasRoom(table: 4096, payload: 66) {
          if pool.log.freeSegments <= 1 { pool.paths.hit(.logFull) }
          return giveUpWaiting()
        }
      case .wait(let wait):
        awaitSpace(slot, wait)
      }
    }
  }

  /// A device has refused everything for so long that what waits for it is told so (R15).
  private func giveUpWaiting() {
    let since = min(destager.stalledSince, logBrokenSince)
    guard since != .max, now >= since + Self.patience else { return }
    while let slot = admission.removeFirst(requests) { writeEnded(slot, .ioError) }
  }
  /// Nanoseconds.
  private static let patience: UInt64 = 60_000_000_000

  private enum LogOutcome {
    case logged, full
    case wait(SpaceWait)
  }

  private func log(_ slot: Int32, _ disk: VirtualDisk) -> LogOutcome {
    if requests[slot].request.operation != .write { return logZero(slot, disk) }
    if !requests[slot].home.isNone { return logExtent(slot, disk) }
    return logData(slot, disk)
  }

  /// Puts the request on the list of the frame that its last record went into.
  private func attach(_ slot: Int32, _ frame: LogWriter.Frame, _ disk: VirtualDisk?) {
    requests[slot].state = .logged
    latency.enter(slot, .gather)
    requests[slot].next = -1
    if frame.firstRequest < 0 {
      frame.firstRequest = slot
    } else {
      requests[frame.lastRequest].next = slot
    }
    frame.lastRequest = slot
    let durability = max(
      disk?.record?.durability.rawValue ?? 0, pool.configuration.durability.rawValue)
    if durability == Durability.always.rawValue
      || requests[slot].request.flags.contains(.forceUnitAccess) || requests[slot].isOfJob
    {
      frame.mustBeDurable = true
    }
  }

  /// Attaches a control job's request to the open frame.
  func attachJob(_ slot: Int32, _ frame: LogWriter.Frame) { attach(slot, frame, nil) }

  private func logExtent(_ slot: Int32, _ disk: VirtualDisk) -> LogOutcome {
    let count = requests[slot].blockCount
    guard pool.log.hasRoom(table: LogRecord.extentSize(count: count), payload: 0) else {
      return .full
    }
    let memory = requests[slot].request.memory!
    var checksums = InlineArray<64, UInt32>(repeating: 0)
    for i in 0..<count { checksums[i] = crc32cBlock(memory + i * blockSize) }
    let home = requests[slot].home
    let frame = checksums.span.withUnsafeBytes { bytes in
      pool.log.append(
        .extent(
          object: disk.object, generation: disk.ownershipGeneration,
          block: BlockIndex(requests[slot].firstBlock), count: count, address: home,
          checksums: bytes.baseAddress!))
    }
    pacing.spend(blockSize)
    attach(slot, frame, disk)
    return .logged
  }

  /// The memory of covered block `i`: a merged edge or the payload.
  @inline(__always)
  private func block(_ slot: Int32, _ i: Int, of count: Int) -> UnsafeMutableRawPointer {
    if i == 0, let head = requests[slot].head { return head }
    if i == count - 1, let tail = requests[slot].tail { return tail }
    return requests[slot].request.memory! + i * blockSize
  }

  private func logData(_ slot: Int32, _ disk: VirtualDisk) -> LogOutcome {
    let count = requests[slot].blockCount
    // Every block a record of its own is the worst case.
    guard pool.log.hasRoom(table: count * LogRecord.dataSize(count: 1), payload: count) else {
      return .full
    }
    if requests[slot].reserved == 0 {
      do throws(SpaceWait) {
        try reserve(slot, disk, count: count)
      } catch {
        return .wait(error)
      }
    }
    let first = requests[slot].firstBlock
    var frame: LogWriter.Frame?
    var data = 0
    var i = 0
    while i < count {
      let memory = block(slot, i, of: count)
      var n = 1
      if isZeroBlock(memory) {
        while i + n < count, isZeroBlock(block(slot, i + n, of: count)) { n += 1 }
        frame = pool.log.append(
          .zero(
            object: disk.object, generation: disk.ownershipGeneration,
            block: BlockIndex(first + UInt64(i)), count: UInt64(n)))
      } else {
        var checksums = InlineArray<66, UInt32>(repeating: 0)
        checksums[0] = crc32cBlock(memory)
        while i + n < count, block(slot, i + n, of: count) == memory + n * blockSize,
          !isZeroBlock(memory + n * blockSize)
        {
          checksums[n] = crc32cBlock(memory + n * blockSize)
          n += 1
        }
        frame = checksums.span.withUnsafeBufferPointer { sums in
          pool.log.appendData(
            object: disk.object, generation: disk.ownershipGeneration,
            block: BlockIndex(first + UInt64(i)), count: n, from: memory,
            checksums: sums.baseAddress!)
        }
        data += n
      }
      i += n
    }
    // What turned out to be zeros needs no home. The rest passes to the index when it counts.
    pool.reservedBlocks -= count - data
    requests[slot].reserved = Int32(data)
    pacing.spend((data + 1) * blockSize)
    attach(slot, frame!, disk)
    return .logged
  }

  private func logZero(_ slot: Int32, _ disk: VirtualDisk) -> LogOutcome {
    var first = requests[slot].firstBlock
    var end = requests[slot].endBlock
    guard pool.log.hasRoom(table: 256, payload: 2) else { return .full }
    let edges = (requests[slot].head != nil ? 1 : 0) + (requests[slot].tail != nil ? 1 : 0)
    if edges > 0, requests[slot].reserved == 0 {
      do throws(SpaceWait) {
        try reserve(slot, disk, count: edges)
      } catch {
        return .wait(error)
      }
    }
    var frame: LogWriter.Frame?
    for (edge, block) in [(requests[slot].head, first), (requests[slot].tail, end - 1)] {
      guard let edge else { continue }
      var checksum = crc32cBlock(edge)
      frame = pool.log.appendData(
        object: disk.object, generation: disk.ownershipGeneration, block: BlockIndex(block),
        count: 1, from: edge, checksums: &checksum)
    }
    if requests[slot].head != nil { first += 1 }
    if requests[slot].tail != nil { end -= 1 }
    if first < end {
      frame = pool.log.append(
        .zero(
          object: disk.object, generation: disk.ownershipGeneration, block: BlockIndex(first),
          count: end - first))
    }
    if let size = requests[slot].resizeTo {
      frame = pool.log.append(.resize(object: disk.object, size: size))
    }
    pacing.spend((edges + 1) * blockSize)
    attach(slot, frame!, disk)
    return .logged
  }

  // MARK: Space (R22)

  /// Promises homes for the request's blocks. While space is ample that is a count; when it is
  /// scarce, the map is asked which blocks have a home already.
  private func reserve(_ slot: Int32, _ disk: VirtualDisk, count: Int) throws(SpaceWait) {
    let free = pool.space.available - pool.reservedBlocks
    if free >= count + Self.ampleBlocks {
      pool.reservedBlocks += count
      requests[slot].reserved = Int32(count)
      return
    }
    pool.paths.hit(.scarceAdmission)
    var needed = 0
    let first = BlockIndex(requests[slot].firstBlock)
    if requests[slot].request.operation == .write {
      for i in 0..<requests[slot].blockCount
      where try needsHome(disk, BlockIndex(first.raw + UInt64(i)), for: slot) { needed += 1 }
    } else {
      // Only the edges of what is zeroed are written.
      let last = BlockIndex(requests[slot].endBlock - 1)
      if requests[slot].head != nil, try needsHome(disk, first, for: slot) { needed += 1 }
      if requests[slot].tail != nil, try needsHome(disk, last, for: slot) { needed += 1 }
    }
    guard needed == 0 || free >= needed else { throw .noSpace }
    pool.reservedBlocks += count
    requests[slot].reserved = Int32(count)
  }
  /// Free blocks above which admission does not look at the map.
  private static let ampleBlocks = 2048

  private func needsHome(
    _ disk: VirtualDisk, _ block: BlockIndex, for slot: Int32
  ) throws(SpaceWait) -> Bool {
    let layer = disk.layer
    if case .covered(let entry, _) = pool.index.lookup(IndexKey(slot: layer.slot, block: block)) {
      // Its promise, or its home, passes on to the new version.
      if entry.kind == .zero { return true }
      if entry.reserves || entry.kind == .home { return false }
    }
    if disk.zeroing > 0, isBeingZeroed(disk, block, except: slot) { return true }
    if layer.map == nil { try pool.load(layer) }
    // What a frozen layer has, or the map below it, is the snapshot's.
    guard let map = layer.map else { return true }
    if case .mapped(_, _, let birth, _) = try map.lookup(block, limit: 1) {
      return birth <= map.branchInstant
    }
    return true
  }

  /// Whether a zero or trim on its way covers the block, other than the request that asks.
  private func isBeingZeroed(
    _ disk: VirtualDisk, _ block: BlockIndex, except slot: Int32
  ) -> Bool {
    activeWrites.contains {
      $0 != slot && requests[$0].request.disk.place == disk.place
        && requests[$0].request.operation != .write && requests[$0].firstBlock <= block.raw
        && block.raw < requests[$0].endBlock
    }
  }

  /// A write that found no space, or needs metadata to know.
  private func awaitSpace(_ slot: Int32, _ wait: SpaceWait) {
    latency.enter(slot, wait.stage)
    switch wait {
    case .node(let pointer):
      parked.append(slot, &requests)
      startLoad(pointer)
    case .memory:
      parked.append(slot, &requests)
      awaitMemory()
    case .damaged: writeEnded(slot, .ioError)
    case .backing, .noSpace:
      let mayHelp =
        destager.hasWork || !destager.isIdle || spaceKeeper.isBacking
        || pool.space.backable > 0 || spaceKeeper.isPunching
      if requests[slot].spaceTries >= 4 || !mayHelp {
        pool.paths.hit(.noSpace)
        return writeEnded(slot, .noSpace)
      }
      if !spaceKeeper.isBacking, pool.space.backable == 0 { spaceIsWanted = true }
      spaceWaiters.append(slot, &requests)
    }
  }

  // MARK: End

  /// A write-type request ended: its frame counts, or it failed.
  func writeEnded(_ slot: Int32, _ status: BlockStatus) {
    let request = requests[slot]
    let isLogged = request.state == .logged && status == .ok
    // What counts has passed its promise to the index; what failed needs none any more.
    pool.reservedBlocks -= Int(request.reserved)
    delist(slot)
    if !request.home.isNone, !isLogged {
      // Its record may be on the device all the same, and counts if the engine is killed now.
      let home = BlockRun(request.home, Int(request.homeCount))
      if request.state == .logged { voidHomes.append(home) } else { cancelHome(home) }
    }
    if let head = request.head { edgeMemory.append(head) }
    if let tail = request.tail { edgeMemory.append(tail) }
    let operation = request.request.operation
    if operation == .zero || operation == .trim, request.countsOnDisk {
      pool.disks.holder(of: request.request.disk)?.zeroing -= 1
    }
    if status == .ok, !request.isInternal, operation != .flush {
      statistics.writes += 1
      statistics.writtenBytes += request.request.length
    }
    if request.isPartial { partialWrites.removeAll { $0 == slot } }
    finish(slot, status)
    wakeBlockWaiters()
  }

  private func cancelHome(_ home: BlockRun) {
    pool.space.cancelReservation(home.address, home.count)
  }

  /// A new epoch is durable: what the last one held and did not count never will.
  func freeVoidHomes() {
    for home in voidHomes { cancelHome(home) }
    voidHomes.removeAll()
  }

  private func wakeBlockWaiters() {
    guard !blockWaiters.isEmpty else { return }
    var list = blockWaiters
    blockWaiters = RequestList()
    while let slot = list.removeFirst(requests) { begin(slot) }
  }

  // MARK: Flush

  /// Everything acknowledged is durable already, unless some disk acknowledges earlier (R8).
  func beginFlush(_ slot: Int32) {
    let log = pool.log
    if log.durableSequence >= log.appliedSequence { return finish(slot, .ok) }
    guard log.isOpen, !log.isBroken else { return finish(slot, .ioError) }
    log.requestSync()
    requests[slot].state = .logged
    latency.enter(slot, .log)
    syncWaiters.append((log.appliedSequence, slot))
  }
}
