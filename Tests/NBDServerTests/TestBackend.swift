import Core
import Glibc
import NBDServer

/// Memory for sessions that is counted, limited, and overwritten when it is given back.
final class CountingProvider: BufferProvider {
  var limit = Int.max
  private(set) var inUse = 0
  private(set) var highest = 0
  private(set) var allocations = 0
  private var sizes: [UnsafeMutableRawPointer: Int] = [:]

  func allocate(bytes: Int) -> UnsafeMutableRawPointer? {
    precondition(bytes > 0 && bytes % blockSize == 0 && bytes <= maximumPiece + blockSize)
    if inUse + bytes > limit { return nil }
    let memory = UnsafeMutableRawPointer.allocate(byteCount: bytes, alignment: blockSize)
    memset(memory, 0xA5, bytes)
    sizes[memory] = bytes
    inUse += bytes
    highest = max(highest, inUse)
    allocations += 1
    return memory
  }

  func free(_ memory: UnsafeMutableRawPointer, bytes: Int) {
    precondition(sizes.removeValue(forKey: memory) == bytes, "freed memory that is not in use")
    inUse -= bytes
    memset(memory, 0xDD, bytes)
    memory.deallocate()
  }
}

/// A disk in memory that answers block requests as the engine's contract has it, at once or in
/// random order, and checks that the requests keep the contract.
final class MemoryDisk {
  struct Seen: Equatable {
    var operation: BlockOperation
    var flags: BlockFlags
    var offset: UInt64
    var length: UInt64
  }

  var content: [UInt8]
  /// More than there is content: then only the range of requests counts.
  var size: UInt64
  private var isData: [Bool]
  private(set) var seen: [Seen] = []
  private var waiting: [BlockRequest] = []
  var handle: DiskHandle?
  /// How many requests it takes at a time.
  var slots = 1024
  /// Completes at once and in order, or only what `complete` is asked for.
  var isHeld = false
  /// Outcomes of pieces that cover one of these offsets.
  var failures: [(offset: UInt64, status: BlockStatus)] = []
  var stopping = false

  init(size: Int) {
    self.size = UInt64(size)
    content = [UInt8](repeating: 0, count: size)
    isData = [Bool](repeating: false, count: (size + blockSize - 1) / blockSize)
  }

  var inWork: Int { waiting.count }

  /// Fills the disk with bytes that tell their place.
  func fillWithPattern() {
    content = Array(Self.pattern[0..<content.count])
    for i in 0..<isData.count { isData[i] = true }
  }

  /// 4 MiB that do not repeat at any power of two.
  static let pattern: [UInt8] = {
    var random = SeededRandom(seed: 1)
    return [UInt8](unsafeUninitializedCapacity: 4 << 20) { buffer, count in
      let words = UnsafeMutableRawBufferPointer(buffer)
      for i in 0..<(4 << 20) / 8 {
        words.storeBytes(of: random.next(), toByteOffset: 8 * i, as: UInt64.self)
      }
      count = 4 << 20
    }
  }()

  /// Marks blocks as holes or data, for status requests.
  func mark(blocks: Range<Int>, isHole: Bool) { for b in blocks { isData[b] = !isHole } }

  func submit(_ request: BlockRequest) -> Bool {
    if waiting.count >= slots { return false }
    precondition(request.disk == handle, "a request for a disk that is not open")
    precondition(request.offset + request.length <= size, "out of range")
    if request.operation == .read || request.operation == .write {
      precondition(request.length > 0 && request.length <= UInt64(maximumPiece), "piece length")
    }
    if let memory = request.memory {
      precondition(UInt(bitPattern: memory) % UInt(blockSize) == 0, "memory is not aligned")
    }
    seen.append(
      Seen(
        operation: request.operation, flags: request.flags, offset: request.offset,
        length: request.length))
    waiting.append(request)
    return true
  }

  /// Serves the `index`th of the requests that wait.
  func complete(_ index: Int) -> BlockCompletion {
    let request = waiting.remove(at: index)
    var count: UInt32 = 0
    let range = request.offset..<request.offset + request.length
    var status = failures.first { range.contains($0.offset) }?.status ?? .ok
    if stopping { status = .stopping }
    if status == .ok { count = serve(request) } else { scribble(request) }
    return BlockCompletion(token: request.token, status: status, count: count)
  }

  private func serve(_ request: BlockRequest) -> UInt32 {
    if size > content.count { return 0 }
    let from = Int(request.offset)
    let length = Int(request.length)
    switch request.operation {
    case .read:
      scribble(request)
      content.withUnsafeBytes { bytes in
        _ = memcpy(request.memory! + from % blockSize, bytes.baseAddress! + from, length)
      }
    case .write:
      content.withUnsafeMutableBytes { bytes in
        _ = memcpy(bytes.baseAddress! + from, request.memory! + from % blockSize, length)
      }
      setData(from, length, true)
      scribble(request)
    case .zero, .trim:
      content.withUnsafeMutableBytes { _ = memset($0.baseAddress! + from, 0, length) }
      setData(from, length, false)
    case .flush: break
    case .status: return status(request)
    }
    return 0
  }

  private func setData(_ from: Int, _ length: Int, _ value: Bool) {
    if length == 0 { return }
    let last = (from + length - 1) / blockSize
    for b in from / blockSize...last {
      let isWhole = from <= b * blockSize && from + length >= (b + 1) * blockSize
      if value || isWhole { isData[b] = value }
    }
  }

  /// The engine may scribble on all of a request's memory.
  private func scribble(_ request: BlockRequest) {
    guard request.operation == .read || request.operation == .write, let memory = request.memory
    else { return }
    let span = Int(request.offset % UInt64(blockSize)) + Int(request.length)
    memset(memory, 0xEE, (span + blockSize - 1) / blockSize * blockSize)
  }

  /// One extent a block, never merged, and at most 256 of them.
  private func status(_ request: BlockRequest) -> UInt32 {
    var position = request.offset
    let end = request.offset + request.length
    var count = 0
    while position < end, count < 256 {
      let block = Int(position) / blockSize
      let next = min(end, UInt64((block + 1) * blockSize))
      request.memory!.storeBytes(
        of: ExtentStatus(length: next - position, isHole: !isData[block]),
        toByteOffset: 16 * count, as: ExtentStatus.self)
      position = next
      count += 1
    }
    return UInt32(count)
  }
}

/// Answers control requests for a set of disks, and keeps count of who opened what.
final class TestCatalog {
  struct Disk {
    var name: String
    var size: UInt64
    var readOnly = false
    var comment = ""
    /// Oldest first, and what has changed since each: the same whatever it is compared with.
    var snapshots: [(name: String, changes: [ChangedRange])] = []
  }
  var disks: [Disk] = []
  private(set) var openHandles: Set<UInt32> = []
  private(set) var opens = 0
  private(set) var closes = 0
  private(set) var lists = 0
  private(set) var diffs = 0
  var failure: ControlError?
  /// If given: comparisons tell nothing but that they are to be gone on with here.
  var nextWithoutChanges: UInt64?

  func reply(to request: ControlRequest) -> ControlReply {
    if case .close(let handle) = request {
      precondition(openHandles.remove(handle.place) != nil, "closed what is not open")
      closes += 1
      return .done
    }
    if let failure { return .failed(failure) }
    switch request {
    case .open(let name):
      guard let disk = disks.first(where: { $0.name == name }) else {
        return .failed(.noSuchDisk(name))
      }
      opens += 1
      let handle = DiskHandle(place: UInt32(opens), generation: 1)
      openHandles.insert(handle.place)
      return .opened(handle, size: disk.size, readOnly: disk.readOnly)
    case .show(let name):
      guard let disk = disks.first(where: { $0.name == name }) else {
        return .failed(.noSuchDisk(name))
      }
      return .disk(info(disk))
    case .list(let cursor, let limit):
      lists += 1
      let from = Int(cursor ?? 0)
      let to = min(disks.count, from + limit)
      return .disks(disks[from..<to].map(info), next: to < disks.count ? UInt64(to) : nil)
    case .listSnapshots(let name, let cursor, let limit):
      lists += 1
      guard let disk = disks.first(where: { $0.name == name }) else {
        return .failed(.noSuchDisk(name ?? ""))
      }
      let from = Int(cursor ?? 0)
      let to = min(disk.snapshots.count, from + limit)
      let page = disk.snapshots[from..<to].map { snapshot($0.name, of: disk) }
      return .snapshots(page, next: to < disk.snapshots.count ? UInt64(to) : nil)
    case .diff(let old, let new, let from, let limit): return diff(old, new, from, limit)
    default: preconditionFailure("a front end asked \(request)")
    }
  }

  private func diff(
    _ old: SnapshotName, _ new: SnapshotOrDisk, _ from: UInt64, _ limit: Int
  ) -> ControlReply {
    diffs += 1
    if let nextWithoutChanges { return .changes([], next: nextWithoutChanges) }
    guard let disk = disks.first(where: { $0.name == old.disk }) else {
      return .failed(.noSuchDisk(old.disk))
    }
    let names = disk.snapshots.map(\.name)
    guard let first = names.firstIndex(of: old.snapshot) else {
      return .failed(.noSuchSnapshot(old))
    }
    if case .snapshot(let later) = new {
      guard let last = names.firstIndex(of: later.snapshot), last > first else {
        return .failed(.notOfOneLine("\(old)", "\(later)"))
      }
    }
    let rest = disk.snapshots[first].changes.filter { $0.offset + $0.length > from }
    let end = rest.prefix(limit).last.map { $0.offset + $0.length } ?? 0
    return .changes(Array(rest.prefix(limit)), next: rest.count > limit ? end : nil)
  }

  private func snapshot(_ name: String, of disk: Disk) -> SnapshotInfo {
    SnapshotInfo(
      disk: disk.name, name: name, id: ObjectID(8), created: 0, size: disk.size, used: 0,
      exclusive: 0, clones: 0, group: ObjectID(8), isHeld: false)
  }

  private func info(_ disk: Disk) -> DiskInfo {
    DiskInfo(
      name: disk.name, id: ObjectID(7), size: disk.size, used: 0, exclusive: 0, origin: nil,
      created: 0, snapshots: 0, connections: 0, generation: 1, readOnly: disk.readOnly,
      durability: .always, comment: disk.comment)
  }
}
