// Reads: log index, then extent map, then cache, then device; every block's checksum is verified.
//
// A read is resolved from its first block on. Each run of blocks with one source becomes a part
// (one device operation) straight into the request's memory. Content that is not durable yet is
// not in the index and is never returned (R24).
//
// A block whose checksum does not match may have been overwritten between look-up and read, by
// destaging in place or by a reused log segment. So the whole request is resolved anew; only where
// the same place and checksum are named again is it damage (R9).

extension Engine {
  // MARK: Dispatch

  /// Starts a request, or tries it again after a wait.
  func begin(_ slot: Int32) {
    let request = requests[slot].request
    guard let disk = pool.disks.resolve(request.disk) else { return refuse(slot) }
    if disk.isPaused, !requests[slot].countsOnDisk, !requests[slot].isOfJob {
      return parked.append(slot, &requests)
    }
    if !requests[slot].countsOnDisk {
      requests[slot].countsOnDisk = true
      disk.requests += 1
      if let status = checked(slot, disk) { return finish(slot, status) }
      switch request.operation {
      case .write: enlist(slot)
      case .zero, .trim:
        enlist(slot)
        disk.zeroing += 1
      case .read: followStream(slot, disk)
      case .status, .flush: break
      }
    }
    switch request.operation {
    case .read:
      // The request itself comes first; its slot may be free afterwards.
      let stream = requests[slot].followsStream ? Int(requests[slot].stream) : -1
      requests[slot].followsStream = false
      resolveRead(slot, disk)
      if stream >= 0 {
        var state = disk.streams[stream]
        refill(&state, disk)
        disk.streams[stream] = state
      }
    case .status: resolveStatus(slot, disk)
    case .write, .zero, .trim: beginWrite(slot, disk)
    case .flush: beginFlush(slot)
    }
  }

  /// The handle is not valid, or not any more.
  private func refuse(_ slot: Int32) {
    guard requests[slot].countsOnDisk else { return finish(slot, .invalid) }
    switch requests[slot].request.operation {
    case .read:
      requests[slot].status = .invalid
      requests[slot].resolved = UInt32(requests[slot].blockCount)
      if requests[slot].outstanding == 0 { readEnded(slot) }
    case .status, .flush: finish(slot, .invalid)
    case .write, .zero, .trim: writeEnded(slot, .invalid)
    }
  }

  /// Nil when the request is within the rules.
  private func checked(_ slot: Int32, _ disk: VirtualDisk) -> BlockStatus? {
    let request = requests[slot].request
    // By its fields: the record as a whole is large, and has references.
    guard let size = disk.record?.size else { return .invalid }
    if isStopping, request.operation != .read { return .stopping }
    let isWrite =
      request.operation == .write || request.operation == .zero || request.operation == .trim
    if request.operation == .flush { return nil }
    let (end, overflow) = request.offset.addingReportingOverflow(request.length)
    guard !overflow, end <= size else { return .invalid }
    if isWrite, disk.record?.readOnly == true || disk.isSnapshot, !requests[slot].isInternal {
      return .readOnly
    }
    if request.length == 0 { return .ok }
    if request.operation == .read || request.operation == .write {
      guard request.length <= UInt64(maximumPiece), request.memory != nil else { return .invalid }
    }
    if request.operation == .status, request.memory == nil { return .invalid }
    return nil
  }

  // MARK: Resolving

  func resolveRead(_ slot: Int32, _ disk: VirtualDisk) {
    requests[slot].state = .reading
    let first = requests[slot].firstBlock
    let total = UInt64(requests[slot].blockCount)
    let memory = requests[slot].request.memory!
    while UInt64(requests[slot].resolved) < total {
      let done = UInt64(requests[slot].resolved)
      let block = first + done
      let target = memory + Int(done) << Int(blockShift)
      do throws(SpaceWait) {
        switch try find(disk, block, total - done) {
        case .logged(let entry, let n):
          if entry.kind == .zero {
            target.initializeMemory(as: UInt8.self, repeating: 0, count: Int(n) * blockSize)
            requests[slot].resolved += UInt32(n)
          } else if !readLogged(slot, entry, limit: Int(n), target) {
            return awaitPart(slot)
          }
        case .mapped(let map, let n):
          if !requests[slot].isInternal, ahead.covers(disk.place, block) {
            pool.paths.hit(.readAheadAwaited)
            return awaitOther(slot)
          }
          switch try readMapped(slot, disk, map, BlockIndex(block), limit: Int(n), target) {
          case .begun: break
          case .noPart: return awaitPart(slot)
          case .awaited: return awaitOther(slot)
          }
        }
      } catch {
        return park(slot, error)
      }
    }
    latency.enter(slot, .data)
    if requests[slot].outstanding == 0 { readEnded(slot) }
  }

  /// Until a part is free.
  private func awaitPart(_ slot: Int32) {
    latency.enter(slot, .turn)
    readRetries.append(slot, &requests)
  }

  /// Until another read has brought the block into the cache.
  private func awaitOther(_ slot: Int32) {
    latency.enter(slot, .data)
    parked.append(slot, &requests)
  }

  /// Where the newest counting version of a block is.
  enum Found {
    /// In the log index. The same layer has the versions of the next `count - 1` blocks as well,
    /// where it has entries; those of a range that reads as zeros all are within the entry.
    case logged(IndexEntry, count: UInt64)
    /// Nothing is logged for it and the next `count - 1` blocks.
    case mapped(DiskMap, count: UInt64)
  }

  /// Looks in the disk's layer, in those that it is over, and ends at the map below them.
  @inline(__always)
  func find(_ disk: VirtualDisk, _ block: UInt64, _ limit: UInt64) throws(SpaceWait) -> Found {
    var layer = disk.layer
    var limit = limit
    while true {
      switch pool.index.lookup(IndexKey(slot: layer.slot, block: BlockIndex(block))) {
      case .covered(let entry, let remaining):
        return .logged(entry, count: entry.kind == .zero ? min(remaining, limit) : limit)
      case .gap(let blocks): limit = min(limit, blocks)
      }
      if let map = layer.map { return .mapped(map, count: limit) }
      try pool.load(layer)
      if let base = layer.base {
        pool.paths.hit(.layeredRead)
        layer = base
      }
    }
  }

  /// Parks a read (or status) until metadata is there.
  private func park(_ slot: Int32, _ wait: SpaceWait) {
    latency.enter(slot, wait.stage)
    switch wait {
    case .node(let pointer):
      parked.append(slot, &requests)
      startLoad(pointer)
    case .memory:
      parked.append(slot, &requests)
      awaitMemory()
    case .damaged, .backing, .noSpace:
      if requests[slot].request.operation == .status { return finish(slot, .ioError) }
      requests[slot].status = .ioError
      requests[slot].resolved = UInt32(requests[slot].blockCount)
      if requests[slot].outstanding == 0 { readEnded(slot) }
    }
  }

  /// Reads a run of logged (or large-written) blocks; false when there is no part for it.
  private func readLogged(
    _ slot: Int32, _ entry: IndexEntry, limit: Int, _ target: UnsafeMutableRawPointer
  ) -> Bool {
    guard let part = parts.take() else { return false }
    let sums = parts.checksums(part)
    sums[0] = entry.checksum
    var n = 1
    let isLog = entry.kind == .log
    let segmentBlocks = pool.log.geometry.segmentBlocks
    while n < limit,
      case .covered(let next, _) = pool.index.lookup(
        IndexKey(raw: entry.key.raw + UInt64(n))), next.kind == entry.kind,
      next.location == entry.location + UInt64(n),
      !isLog || next.location % segmentBlocks != 0
    {
      sums[n] = next.checksum
      n += 1
    }
    issue(part, slot, count: n, location: entry.location, isLog: isLog, target)
    return true
  }

  private enum MapRead {
    case begun
    /// There is no part for it.
    case noPart
    /// Another read brings the block into the cache: looked for again when that one has ended. So
    /// clones that boot together read their golden image once (R9).
    case awaited
  }

  /// Reads a run of blocks that nothing is logged for: hole, cache or home.
  private func readMapped(
    _ slot: Int32, _ disk: VirtualDisk, _ map: DiskMap, _ block: BlockIndex, limit: Int,
    _ target: UnsafeMutableRawPointer
  ) throws(SpaceWait) -> MapRead {
    switch try map.lookup(block, limit: limit) {
    case .hole(let count):
      target.initializeMemory(as: UInt8.self, repeating: 0, count: count * blockSize)
      requests[slot].resolved += UInt32(count)
    case .mapped(let address, let count, _, let checksums):
      var n = 0
      let useCache = !requests[slot].isScrub
      while useCache, n < count,
        let cached = pool.store.cache.find(
          address + UInt64(n), checksum: cacheChecksum(checksums[n]))
      {
        (target + n * blockSize)
          .copyMemory(from: pool.store.cache.memory(cached), byteCount: blockSize)
        n += 1
      }
      if n > 0 {
        requests[slot].resolved += UInt32(n)
        return .begun
      }
      if useCache, requests[slot].retries == 0, parts.awaitRead(of: address) {
        pool.paths.hit(.readShared)
        readIsAwaited = true
        return .awaited
      }
      guard let part = parts.take() else { return .noPart }
      if useCache { parts.enterHomes(part) }
      if requests[slot].stream >= 0 { disk.streams[Int(requests[slot].stream)].missed = true }
      let sums = parts.checksums(part)
      sums[0] = checksums[0]
      n = 1
      while n < count,
        !useCache
          || pool.store.cache.find(address + UInt64(n), checksum: cacheChecksum(checksums[n]))
            == nil
      {
        sums[n] = checksums[n]
        n += 1
      }
      issue(part, slot, count: n, location: address.raw, isLog: false, target)
    }
    return .begun
  }

  /// The cache's key holds the checksum, so that no entry for old content is hit (R9).
  func cacheChecksum(_ checksum: UInt32) -> UInt32 {
    pool.fault == .staleCacheAfterOverwrite ? 0 : checksum
  }

  private func issue(
    _ part: Int32, _ slot: Int32, count: Int, location: UInt64, isLog: Bool,
    _ target: UnsafeMutableRawPointer
  ) {
    parts[part].slot = slot
    parts[part].first = Int32(requests[slot].resolved)
    parts[part].count = Int32(count)
    parts[part].location = location
    parts[part].isLog = isLog
    parts[part].isAwaited = false
    parts[part].overwrites = pool.store.cache.overwrites
    requests[slot].resolved += UInt32(count)
    requests[slot].outstanding += 1
    let address = BlockAddress(raw: location)
    pool.ops.issue(
      .read, isLog ? .log : .volume(address.volume),
      offset: isLog ? pool.log.geometry.deviceOffset(location << blockShift) : address.byteOffset,
      length: UInt64(count * blockSize), memory: target, owner: .readPart, index: Int(part))
  }

  // MARK: Completion

  func partCompleted(_ index: Int32, error: Int32) {
    let part = parts[index]
    let slot = part.slot
    let memory = requests[slot].request.memory! + Int(part.first) << Int(blockShift)
    if error != 0 {
      pool.ioErrors += 1
      requests[slot].status = .ioError
    } else {
      let sums = parts.checksums(index)
      // Who alone reads so much at a time does not come back soon, and copying it all costs time.
      let isKept =
        Int(part.count) < maximumPiece / blockSize || part.isAwaited || requests[slot].isReadAhead
      for i in 0..<Int(part.count) {
        if crc32cBlock(memory + i * blockSize) == sums[i] {
          let address = BlockAddress(raw: part.location + UInt64(i))
          if !part.isLog, isKept,
            !pool.store.cache.mayBeOverwritten(address, since: part.overwrites)
          {
            remember(address.raw, sums[i], memory + i * blockSize)
          }
        } else {
          mismatch(slot, location: part.location + UInt64(i), checksum: sums[i])
        }
      }
    }
    parts.give(index)
    if readIsAwaited {
      readIsAwaited = false
      loadEnded = true
    }
    requests[slot].outstanding -= 1
    if requests[slot].outstanding == 0,
      UInt64(requests[slot].resolved) == UInt64(requests[slot].blockCount)
    {
      readEnded(slot)
    }
    if let waiting = readRetries.removeFirst(requests) { begin(waiting) }
  }

  /// Keeps a block that was read from home.
  private func remember(_ address: UInt64, _ checksum: UInt32, _ from: UnsafeRawPointer) {
    let cache = pool.store.cache
    let (home, sum) = (BlockAddress(raw: address), cacheChecksum(checksum))
    guard cache.find(home, checksum: sum) == nil, let cached = cache.insert(home, checksum: sum)
    else { return }
    cache.memory(cached).copyMemory(from: from, byteCount: blockSize)
    cache.markValid(cached)
  }

  private func mismatch(_ slot: Int32, location: UInt64, checksum: UInt32) {
    if requests[slot].retries > 0, requests[slot].badLocation == location,
      requests[slot].badChecksum == checksum
    {
      requests[slot].status = .ioError
      pool.checksumErrors += 1
    } else if !requests[slot].mismatched {
      requests[slot].mismatched = true
      requests[slot].badLocation = location
      requests[slot].badChecksum = checksum
    }
  }

  private func readEnded(_ slot: Int32) {
    if requests[slot].mismatched, requests[slot].status == .ok, requests[slot].retries < 16 {
      requests[slot].mismatched = false
      requests[slot].retries += 1
      requests[slot].resolved = 0
      pool.paths.hit(.checksumRetry)
      return begin(slot)
    }
    if requests[slot].mismatched { requests[slot].status = .ioError }
    if !requests[slot].isInternal {
      statistics.reads += 1
      statistics.readBytes += requests[slot].request.length
    }
    finish(slot, requests[slot].status)
  }

  // MARK: Block status

  /// Look-ups of one status request: some milliseconds.
  private static let mostStatusSteps = 4096

  /// Describes the range from its start on, up to 256 runs; neighbours of one kind are joined. Shorter
  /// where it takes many look-ups, or metadata that has to be loaded first: an answer for a part is one,
  /// and the client goes on from there.
  private func resolveStatus(_ slot: Int32, _ disk: VirtualDisk) {
    let request = requests[slot].request
    let items = request.memory!.assumingMemoryBound(to: ExtentStatus.self)
    var count = 0
    var block = requests[slot].firstBlock
    let end = requests[slot].endBlock
    var steps = 0
    while block < end, steps < Self.mostStatusSteps {
      steps += 1
      var n: UInt64
      var isHole: Bool
      do throws(SpaceWait) {
        switch try find(disk, block, min(end - block, 1 << 30)) {
        case .logged(let entry, let count):
          isHole = entry.kind == .zero
          n = isHole ? count : 1
        case .mapped(let map, let count):
          switch try map.lookup(BlockIndex(block), limit: Int(count)) {
          case .hole(let c): (n, isHole) = (UInt64(c), true)
          case .mapped(_, let c, _, _): (n, isHole) = (UInt64(c), false)
          }
        }
      } catch {
        guard count > 0 else { return park(slot, error) }
        if case .node(let pointer) = error { startLoad(pointer) }
        break
      }
      let from = max(block << blockShift, request.offset)
      let to = min((block + n) << blockShift, request.offset + request.length)
      if count > 0, items[count - 1].isHole == isHole {
        items[count - 1].length += to - from
      } else {
        if count == 256 { break }
        items[count] = ExtentStatus(length: to - from, isHole: isHole)
        count += 1
      }
      block += n
    }
    finish(slot, .ok, count: UInt32(count))
  }
}
