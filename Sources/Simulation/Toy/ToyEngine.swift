import Core

// The smallest engine that keeps the promises: everything in memory, and one endless log on the
// first volume. It exists to test the simulator: intact, it must pass every run without device
// errors; with a fault planted in it, it must be caught.
//
// A frame is a header block and payload blocks. One frame is in flight at a time; requests that
// arrive meanwhile wait and become the next frame. What a frame holds is applied to memory, and
// so to reads, when the frame is written (and, where a promise depends on it, flushed).
//
//     header  0 magic u64 · 8 sequence u64 · 16 CRC32C of the previous header u32
//             20 records u32 · 24 payload blocks u32 · 28 CRC32C of the payload u32
//             32 CRC32C of the header, this field zero u32 · 36 salt u32 · 64 records, 32 bytes each
//     record  0 kind u64 · 8 disk u64 · 16 first block u64 · 24 block count u64
//
// A frame is valid when both checksums are right, the sequence is the next one and the previous
// header's checksum matches. Recovery applies frames from the start until one is not valid; the
// next frame goes there.

package final class ToyEngine: BlockEngine {
  enum RecordKind: UInt64 {
    /// Payload blocks follow for a range.
    case data = 1
    /// A range of blocks is zeros.
    case zeros
    /// A payload block describes a disk, new or changed.
    case disk
    case delete
  }

  final class Disk {
    let id: UInt64
    var info: DiskInfo
    var blocks: [UInt64: UnsafeMutableRawPointer] = [:]
    init(id: UInt64, info: DiskInfo) {
      self.id = id
      self.info = info
    }
    deinit { for (_, memory) in blocks { memory.deallocate() } }
  }

  private enum State {
    case readingHeader, readingPayload, flushingRecovery, idle, writing, flushingFrame
    /// A flush request alone.
    case flushing
    case stopped
  }

  enum Item {
    case block(BlockRequest)
    case control(ControlRequest, token: UInt64)
  }

  static let logStart: UInt64 = 2 << 20
  static let device = DeviceIndex.volume(0)
  static let maximumPayload = 320
  static let maximumRecords = 120
  static let magic: UInt64 = 0x5357_4F59_0001

  let planted: PlantedFault?
  let durability: Durability
  let size: UInt64
  let salt: UInt32
  private var state = State.readingHeader

  // The log.
  private var position = ToyEngine.logStart
  private var sequence: UInt64 = 1
  private var previous: UInt32 = 0
  private let frame = AlignedMemory(bytes: (1 + ToyEngine.maximumPayload) * blockSize)
  private var records = 0
  private var payload = 0
  /// Frames that were written but not flushed.
  private var hasWeakFrames = false
  private var isStrongFrame = false

  // Requests.
  private var queue: [Item] = []
  private var inFrame: [Item] = []
  /// What the open frame does to blocks, in front of memory: nil is zeros.
  var overlay: [UInt64: [UInt64: UnsafeMutableRawPointer?]] = [:]
  private var ops: [DeviceOp] = []
  private var done: [BlockCompletion] = []
  private var replies: [(token: UInt64, reply: ControlReply)] = []

  var disks: [UInt64: Disk] = [:]
  var nextID: UInt64 = 100
  package private(set) var tornTails: UInt64 = 0

  package init(pool: SimulatedPool, seed: UInt64) {
    planted = pool.plan.planted
    durability = pool.plan.durability
    size = pool.devices[1].plan.size
    salt = UInt32(truncatingIfNeeded: seed)
    read(blocks: 1, at: position, into: frame.base)
  }

  // MARK: BlockEngine

  package func submit(_ request: BlockRequest) -> Bool {
    guard queue.count + inFrame.count < 32 else { return false }
    queue.append(.block(request))
    return true
  }

  package func control(_ request: ControlRequest, token: UInt64) {
    queue.append(.control(request, token: token))
  }

  package func nextDeviceOp() -> DeviceOp? { ops.isEmpty ? nil : ops.removeFirst() }
  package func nextCompletion() -> BlockCompletion? { done.isEmpty ? nil : done.removeFirst() }
  package func nextControlReply() -> (token: UInt64, reply: ControlReply)? {
    replies.isEmpty ? nil : replies.removeFirst()
  }

  package var wakeup: UInt64 { .max }
  package private(set) var isReady = false
  package var isStopped: Bool { state == .stopped }
  package private(set) var failure: String?

  package func complete(_ completion: DeviceCompletion) {
    switch state {
    case .readingHeader: headerRead()
    case .readingPayload: payloadRead()
    case .flushingRecovery: serve()
    case .writing: written(error: completion.error)
    case .flushingFrame: flushed(error: completion.error)
    case .flushing:
      hasWeakFrames = hasWeakFrames && completion.error != 0
      finishFrame(error: completion.error)
    case .idle, .stopped: invariantBroken("a completion came for nothing")
    }
  }

  package func step(now: UInt64, wallClock: UInt64) {
    guard state == .idle else { return }
    buildFrame()
  }

  // MARK: Recovery

  private func read(blocks: Int, at offset: UInt64, into memory: UnsafeMutableRawPointer) {
    ops.append(
      DeviceOp(
        kind: .read, device: Self.device, offset: offset, length: UInt64(blocks * blockSize),
        memory: memory, token: 1))
  }

  private func headerRead() {
    let header = frame.base.reading
    payload = Int(header.u32(24))
    let isValid =
      header.u64(0) == Self.magic && header.u64(8) == sequence && header.u32(16) == previous
      && header.u32(32) == headerChecksum() && payload <= Self.maximumPayload
    guard isValid else { return recovered() }
    if payload == 0 { return payloadRead() }
    state = .readingPayload
    read(
      blocks: payload, at: position + UInt64(blockSize), into: frame.base + blockSize)
  }

  private func payloadRead() {
    let header = frame.base.reading
    if planted != .logTailUnchecked && header.u32(28) != payloadChecksum() {
      tornTails += 1
      return recovered()
    }
    for i in 0..<Int(header.u32(20)) { replay(header + 64 + 32 * i, nextPayload: i) }
    replayed = 0
    previous = header.u32(32)
    sequence += 1
    position += UInt64((1 + payload) * blockSize)
    state = .readingHeader
    read(blocks: 1, at: position, into: frame.base)
  }

  /// Payload blocks that the records so far have used.
  private var replayed = 0

  private func replay(_ record: UnsafeRawPointer, nextPayload: Int) {
    let id = record.u64(8)
    let first = record.u64(16)
    let count = record.u64(24)
    switch RecordKind(rawValue: record.u64(0)) {
    case .data:
      for i in 0..<count {
        let content = frame.base + (1 + replayed) * blockSize
        replayed += 1
        apply(id, first + i, content.reading)
      }
    case .zeros:
      guard let disk = disks[id] else { return }
      for block in disk.blocks.keys where block >= first && block - first < count {
        disk.blocks.removeValue(forKey: block)?.deallocate()
      }
    case .disk:
      let info = ToyDiskBlock.decode(frame.base + (1 + replayed) * blockSize)
      replayed += 1
      put(info)
    case .delete: disks[id] = nil
    case nil: break
    }
  }

  private func recovered() {
    replayed = 0
    if planted == .noFlushInRecovery { return serve() }
    state = .flushingRecovery
    flushDevice()
  }

  private func serve() {
    state = .idle
    isReady = true
  }

  private func flushDevice() {
    ops.append(
      DeviceOp(kind: .flush, device: Self.device, offset: 0, length: 0, memory: nil, token: 2))
  }

  private func headerChecksum() -> UInt32 {
    let kept = frame.base.reading.u32(32)
    frame.base.put(UInt32(0), at: 32)
    defer { frame.base.put(kept, at: 32) }
    return crc32cBlock(frame.base)
  }

  private func payloadChecksum() -> UInt32 {
    crc32c(
      UnsafeRawBufferPointer(start: frame.base + blockSize, count: payload * blockSize))
  }

  // MARK: State in memory

  func put(_ info: DiskInfo) {
    nextID = max(nextID, info.id.raw + 1)
    if let disk = disks[info.id.raw] {
      let connections = disk.info.connections
      disk.info = info
      disk.info.connections = connections
    } else {
      disks[info.id.raw] = Disk(id: info.id.raw, info: info)
    }
  }

  private func apply(_ id: UInt64, _ block: UInt64, _ content: UnsafeRawPointer) {
    guard let disk = disks[id] else { return }
    let memory =
      disk.blocks[block] ?? .allocate(byteCount: blockSize, alignment: blockSize)
    memory.copyMemory(from: content, byteCount: blockSize)
    disk.blocks[block] = memory
  }

  func copyBlock(_ disk: Disk, _ block: UInt64, to memory: UnsafeMutableRawPointer) {
    if let content = disk.blocks[block] {
      memory.copyMemory(from: content, byteCount: blockSize)
    } else {
      memory.initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
    }
  }

  // MARK: Frames

  private func buildFrame() {
    records = 0
    payload = 0
    isStrongFrame = false
    while let item = queue.first {
      guard take(item) else { break }
      queue.removeFirst()
      if state != .idle { return }
    }
    guard records > 0 else { return }
    sealFrame()
    state = .writing
    let durable = isStrongFrame && !hasWeakFrames
    ops.append(
      DeviceOp(
        kind: durable ? .writeDurable : .write, device: Self.device, offset: position,
        length: UInt64((1 + payload) * blockSize), memory: frame.base, token: 3))
    if planted == .ackBeforeDurable { acknowledge(error: 0) }
  }

  private func sealFrame() {
    let header = frame.base
    header.put(Self.magic, at: 0)
    header.put(sequence, at: 8)
    header.put(previous, at: 16)
    header.put(UInt32(records), at: 20)
    header.put(UInt32(payload), at: 24)
    header.put(payloadChecksum(), at: 28)
    header.put(salt, at: 36)
    header.put(headerChecksum(), at: 32)
    invariant(
      position + UInt64((2 + payload) * blockSize) < size, "the toy's endless log has an end")
  }

  private func written(error: Int32) {
    if error == 0 && isStrongFrame && hasWeakFrames {
      state = .flushingFrame
      return flushDevice()
    }
    if error == 0 && !isStrongFrame { hasWeakFrames = true }
    frameDone(error: error)
  }

  private func flushed(error: Int32) {
    if error == 0 { hasWeakFrames = false }
    frameDone(error: error)
  }

  private func frameDone(error: Int32) {
    if error == 0 {
      let header = frame.base.reading
      for i in 0..<records { replay(header + 64 + 32 * i, nextPayload: i) }
      replayed = 0
      previous = header.u32(32)
      sequence += 1
      position += UInt64((1 + payload) * blockSize)
    }
    finishFrame(error: error)
  }

  private func finishFrame(error: Int32) {
    state = .idle
    overlay = [:]
    acknowledge(error: error)
  }

  private func acknowledge(error: Int32) {
    for item in inFrame {
      switch item {
      case .block(let r):
        done.append(BlockCompletion(token: r.token, status: error == 0 ? .ok : .ioError))
      case .control(let request, let token):
        let reply = error == 0 ? answer(request) : .failed(.ioError("the log"))
        replies.append((token, reply))
      }
    }
    inFrame = []
  }

  /// Adds an item to the frame, or answers it at once; false when it must wait for the next one.
  private func take(_ item: Item) -> Bool {
    switch item {
    case .block(let request): return take(request)
    case .control(let request, let token):
      guard inFrame.isEmpty else { return false }
      return take(request, token)
    }
  }

  func complete(_ request: BlockRequest, _ status: BlockStatus, count: UInt32 = 0) {
    done.append(BlockCompletion(token: request.token, status: status, count: count))
  }

  func reply(_ token: UInt64, _ reply: ControlReply) { replies.append((token, reply)) }

  func enter(_ item: Item, isStrong: Bool) {
    inFrame.append(item)
    isStrongFrame = isStrongFrame || isStrong
  }

  /// Whether a frame has room for so many more blocks, with a record for each.
  func hasRoom(blocks: Int) -> Bool {
    payload + blocks <= Self.maximumPayload && records + blocks + 1 <= Self.maximumRecords
  }

  func startFlush(_ request: BlockRequest) -> Bool {
    guard hasWeakFrames else {
      complete(request, .ok)
      return true
    }
    guard inFrame.isEmpty else { return false }
    inFrame.append(.block(request))
    state = .flushing
    flushDevice()
    return true
  }

  func stop() { state = .stopped }

  /// Whether a stop has to wait for a flush, which is then under way.
  func flushBeforeStop(_ token: UInt64) -> Bool {
    guard hasWeakFrames else { return false }
    inFrame.append(.control(.stop, token: token))
    state = .flushing
    flushDevice()
    return true
  }

  func addRecord(_ kind: RecordKind, _ disk: UInt64, _ first: UInt64, _ count: UInt64) {
    let record = frame.base + 64 + 32 * records
    record.put(kind.rawValue, at: 0)
    record.put(disk, at: 8)
    record.put(first, at: 16)
    record.put(count, at: 24)
    records += 1
  }

  /// The next payload block of the frame.
  func addPayload() -> UnsafeMutableRawPointer {
    payload += 1
    return frame.base + payload * blockSize
  }
}
