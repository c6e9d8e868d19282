import Core

// How the toy engine turns requests into records, and answers what needs none.

extension ToyEngine {
  private func disk(_ handle: DiskHandle) -> Disk? {
    disks[UInt64(handle.place)].flatMap { $0.info.generation == handle.generation ? $0 : nil }
  }

  // MARK: Block requests

  func take(_ request: BlockRequest) -> Bool {
    guard let disk = disk(request.handle) else { return refuse(request, .invalid) }
    if request.operation == .flush { return startFlush(request) }
    let size = disk.info.size
    guard request.offset <= size, request.length <= size - request.offset else {
      return refuse(request, .invalid)
    }
    switch request.operation {
    case .read: return read(request, disk)
    case .status: return describe(request, disk)
    case .write, .zero, .trim:
      if disk.info.readOnly { return refuse(request, .readOnly) }
      return request.operation == .write ? write(request, disk) : zero(request, disk)
    case .flush: return true
    }
  }

  private func refuse(_ request: BlockRequest, _ status: BlockStatus) -> Bool {
    complete(request, status)
    return true
  }

  private func read(_ request: BlockRequest, _ disk: Disk) -> Bool {
    for (i, block) in blocks(request).enumerated() {
      copyBlock(disk, block, to: request.memory! + i * blockSize)
    }
    complete(request, .ok)
    return true
  }

  private func blocks(_ request: BlockRequest) -> Range<UInt64> {
    (request.offset >> blockShift)..<((request.offset + request.length + 4095) >> blockShift)
  }

  private func describe(_ request: BlockRequest, _ disk: Disk) -> Bool {
    var count = 0
    var at = request.offset
    let end = request.offset + request.length
    while at < end && count < 256 {
      let isHole = disk.blocks[at >> blockShift] == nil
      var next = at
      repeat {
        next = min((next >> blockShift + 1) << blockShift, end)
      } while next < end
        && (disk.blocks[next >> blockShift] == nil) == isHole
        && (next - at) < 64 << 20
      let item = ExtentStatus(length: next - at, isHole: isHole)
      request.memory!.storeBytes(of: item, toByteOffset: count * 16, as: ExtentStatus.self)
      count += 1
      at = next
    }
    complete(request, .ok, count: UInt32(count))
    return true
  }

  private func isStrong(_ request: BlockRequest, _ disk: Disk) -> Bool {
    (disk.info.durability == .always && durability == .always)
      || request.flags.contains(.forceUnitAccess)
  }

  private func write(_ request: BlockRequest, _ disk: Disk) -> Bool {
    let covered = blocks(request)
    guard hasRoom(blocks: covered.count) else { return false }
    enter(.block(request), isStrong: isStrong(request, disk))
    let start = request.memory!
    let end = request.offset + request.length
    for block in covered {
      let low = max(request.offset, block << blockShift)
      let high = min(end, (block + 1) << blockShift)
      change(disk, block) { memory in
        let at = Int(block - covered.lowerBound) * blockSize + Int(low % UInt64(blockSize))
        (memory + Int(low % UInt64(blockSize))).copyMemory(
          from: start + at, byteCount: Int(high - low))
      }
    }
    return true
  }

  /// Adds a record for one block whose content is what it is now, changed by `body`.
  private func change(_ disk: Disk, _ block: UInt64, _ body: (UnsafeMutableRawPointer) -> Void) {
    let memory = addPayload()
    if let newer = overlay[disk.id]?[block] {
      if let newer {
        memory.copyMemory(from: newer, byteCount: blockSize)
      } else {
        memory.initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
      }
    } else {
      copyBlock(disk, block, to: memory)
    }
    body(memory)
    overlay[disk.id, default: [:]][block] = .some(memory)
    addRecord(.data, disk.id, block, 1)
  }

  private func zero(_ request: BlockRequest, _ disk: Disk) -> Bool {
    guard hasRoom(blocks: 3) else { return false }
    enter(.block(request), isStrong: isStrong(request, disk))
    var start = request.offset
    var end = request.offset + request.length
    if request.operation == .trim {
      // Advice: the blocks that are not wholly inside stay as they are.
      start = roundUp(start, to: UInt64(blockSize))
      if end != disk.info.size { end -= end % UInt64(blockSize) }
    }
    zero(disk, start, end)
    // An empty trim has no record; the frame needs one.
    if start >= end { addRecord(.zeros, disk.id, 0, 0) }
    return true
  }

  private func zero(_ disk: Disk, _ start: UInt64, _ end: UInt64) {
    guard start < end else { return }
    let block = UInt64(blockSize)
    let firstWhole = roundUp(start, to: block)
    let endWhole = end / block * block
    func clear(_ from: UInt64, _ to: UInt64) {
      guard from < to else { return }
      change(disk, from / block) { memory in
        (memory + Int(from % block)).initializeMemory(
          as: UInt8.self, repeating: 0, count: Int(to - from))
      }
    }
    clear(start, min(firstWhole, end))
    if firstWhole < endWhole {
      let first = firstWhole / block
      let count = endWhole / block - first
      addRecord(.zeros, disk.id, first, count)
      let hidden = disk.blocks.keys.filter { $0 >= first && $0 - first < count }
      for b in hidden { overlay[disk.id, default: [:]][b] = .some(nil) }
      for b in (overlay[disk.id] ?? [:]).keys where b >= first && b - first < count {
        overlay[disk.id]![b] = .some(nil)
      }
    }
    if endWhole >= firstWhole { clear(max(endWhole, start), end) }
  }

  // MARK: Control requests

  private func find(_ name: String) -> Disk? {
    disks.values.first { $0.info.name == name }
  }

  private func isGood(_ name: String) -> Bool {
    let parts = name.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false)
    return parts.allSatisfy { part in
      !part.isEmpty && part.count <= 255 && !part.elementsEqual("..".utf8)
        && !part.elementsEqual(".".utf8)
    }
  }

  /// Answers a control request, or puts its change into the frame; the frame holds nothing else.
  func take(_ request: ControlRequest, _ token: UInt64) -> Bool {
    switch request {
    case .create(let name, let size): create(request, token, name, size)
    case .rename(let name, let new):
      modify(request, token, name) { $0.name = new }
    case .set(let name, let change):
      modify(request, token, name) { info in
        info.durability = change.durability ?? info.durability
        info.readOnly = change.readOnly ?? info.readOnly
        info.comment = change.comment ?? info.comment
      }
    case .resize(let name, let size, let shrink, _):
      resize(request, token, name, size, shrink)
    case .delete(let name, _, let force):
      if let disk = find(name), force || disk.info.connections == 0 {
        enter(.control(request, token: token), isStrong: true)
        addRecord(.delete, disk.id, 0, 0)
      } else {
        reply(
          token,
          find(name).map { .failed(.inUse(name, connections: $0.info.connections)) }
            ?? .failed(.noSuchDisk(name)))
      }
    case .stop:
      if flushBeforeStop(token) { return true }
      reply(token, answer(request))
    default: reply(token, answer(request))
    }
    return true
  }

  private func create(
    _ request: ControlRequest, _ token: UInt64, _ name: String, _ size: UInt64
  ) {
    if !isGood(name) { return reply(token, .failed(.badName("a name has rules"))) }
    if find(name) != nil { return reply(token, .failed(.alreadyExists(name))) }
    if size > BlockIndex.limit << blockShift {
      return reply(token, .failed(.badSize("too large")))
    }
    let info = DiskInfo(
      name: name, id: ObjectID(nextID), size: size, used: 0, exclusive: 0, origin: nil,
      created: 0, snapshots: 0, connections: 0, generation: 1, readOnly: false,
      durability: .always, comment: "")
    enter(.control(request, token: token), isStrong: true)
    addDisk(info)
  }

  private func addDisk(_ info: DiskInfo) {
    ToyDiskBlock.encode(info, to: addPayload())
    addRecord(.disk, info.id.raw, 0, 0)
  }

  private func modify(
    _ request: ControlRequest, _ token: UInt64, _ name: String, _ change: (inout DiskInfo) -> Void
  ) {
    guard let disk = find(name) else { return reply(token, .failed(.noSuchDisk(name))) }
    enter(.control(request, token: token), isStrong: true)
    var info = disk.info
    change(&info)
    addDisk(info)
  }

  private func resize(
    _ request: ControlRequest, _ token: UInt64, _ name: String, _ size: UInt64, _ shrink: Bool
  ) {
    if let disk = find(name), size < disk.info.size {
      guard shrink else { return reply(token, .failed(.wouldShrink(name))) }
      zero(disk, size, roundUp(disk.info.size, to: UInt64(blockSize)))
    }
    modify(request, token, name) { $0.size = size }
  }

  /// The reply to a request whose change, if any, has been applied.
  func answer(_ request: ControlRequest) -> ControlReply {
    switch request {
    case .create(let name, _), .show(let name):
      return find(name).map { .disk($0.info) } ?? .failed(.noSuchDisk(name))
    case .list(let cursor, let limit):
      let ids = disks.keys.sorted().filter { $0 > (cursor ?? 0) }
      let page = ids.prefix(limit)
      return .disks(page.map { disks[$0]!.info }, next: ids.count > limit ? page.last : nil)
    case .open(let name):
      guard let disk = find(name) else { return .failed(.noSuchDisk(name)) }
      disk.info.connections += 1
      let handle = DiskHandle(place: UInt32(disk.id), generation: UInt32(disk.info.generation))
      return .opened(handle, size: disk.info.size, readOnly: disk.info.readOnly)
    case .close(let handle):
      if let disk = disk(handle) { disk.info.connections -= 1 }
      return .done
    case .status:
      var status = PoolStatus()
      status.disks = UInt64(disks.count)
      return .status(status)
    case .scrub, .scrubProgress: return .scrub(ScrubReport())
    case .stop:
      stop()
      return .done
    default: return .done
    }
  }
}

extension BlockRequest {
  fileprivate var handle: DiskHandle { disk }
}

/// A disk's description as a payload block: generation, id, size, durability, read-only, name and
/// comment with their lengths.
enum ToyDiskBlock {
  static func encode(_ info: DiskInfo, to memory: UnsafeMutableRawPointer) {
    memory.initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
    memory.put(info.id.raw, at: 0)
    memory.put(info.size, at: 8)
    memory.put(UInt64(info.durability.rawValue), at: 16)
    memory.put(UInt64(info.readOnly ? 1 : 0), at: 24)
    memory.put(info.generation, at: 32)
    for (text, at) in [(info.name, 64), (info.comment, 2048)] {
      memory.put(UInt32(text.utf8.count), at: at)
      for (i, byte) in text.utf8.enumerated() { memory.put(byte, at: at + 4 + i) }
    }
  }

  static func decode(_ memory: UnsafeRawPointer) -> DiskInfo {
    func text(_ at: Int) -> String {
      let count = min(Int(memory.u32(at)), 1024)
      return String(
        decoding: UnsafeRawBufferPointer(start: memory + at + 4, count: count), as: UTF8.self)
    }
    return DiskInfo(
      name: text(64), id: ObjectID(memory.u64(0)), size: memory.u64(8), used: 0, exclusive: 0,
      origin: nil, created: 0, snapshots: 0, connections: 0, generation: memory.u64(32),
      readOnly: memory.u64(24) == 1, durability: memory.u64(16) == 1 ? .flush : .always,
      comment: text(2048))
  }
}

extension SimulatedSystem {
  /// The toy engine under the simulator; nothing to format, because an empty device is an empty
  /// log.
  package static let toy = SimulatedSystem(
    format: { _ in },
    start: { pool, seed in ToyEngine(pool: pool, seed: seed) },
    rarePaths: { engine in
      var counters = RarePathCounters()
      counters[.tornTail] = (engine as! ToyEngine).tornTails
      return counters
    },
    requiredPaths: [.tornTail],
    requiredHarnessPaths: [
      .powerCut, .kill, .cleanStop, .crashInRecovery, .crashInVerification, .decidedWrite,
      .landedAfterKill, .lockWaited, .ackedRead, .ackedWrite, .refusedRequest, .diskCreated,
      .diskDeleted, .diskRenamed, .diskResized, .waitedForSlot,
    ],
    plantable: [.ackBeforeDurable, .logTailUnchecked, .noFlushInRecovery, .lockNotAwaited])
}

extension Profile {
  /// A kind of run that the toy engine can serve: no device errors, and a volume without an end.
  package static func forToy(
    durability: [(Durability, UInt64)] = [(.always, 1), (.flush, 1)]
  ) -> Profile {
    var profile = Profile(name: "toy")
    profile.volumeMiB = 2048...2048
    profile.volumes = 1...1
    profile.spareVolumes = 0
    profile.sparseOneIn = 1
    profile.durability = durability.map { Weighted($0, $1) }
    return profile
  }
}
