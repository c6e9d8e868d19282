/// What a request slot is doing.
enum RequestState: UInt8 {
  case free
  /// Looking up and reading blocks.
  case reading
  /// In a queue of the engine: for its turn to be logged, or for metadata or space.
  case waiting
  /// Its data is on the way to its new home (R5).
  case writingHome
  /// In a frame.
  case logged
}

/// One block request under way. Plain data in a fixed table, without references, so that a copy
/// counts none; the engine's queues link slots by index.
struct RequestSlot {
  var request: BlockRequest
  var state = RequestState.free
  var status = BlockStatus.ok
  /// A part of another request (the parent), or of a control job: completes inside the engine.
  var isInternal = false
  /// An internal request's parent slot, or -1.
  var parent: Int32 = -1
  /// An internal request that the structural job waits for.
  var isOfJob = false
  /// Whether the disk counts it among its requests.
  var countsOnDisk = false
  /// A zero request that is part of a resize: the size that goes into the same frame.
  var resizeTo: UInt64?
  /// Reads for scrubbing go past the cache.
  var isScrub = false
  /// An internal read of what a stream will ask for.
  var isReadAhead = false
  /// The disk's stream that a read carries on, or -1.
  var stream: Int8 = -1
  /// It carried that stream on, which has not been read ahead of since.
  var followsStream = false
  /// In the queue of those that wait for a write of the same blocks.
  var isBlockWaiter = false
  /// Place among the engine's active writes, or -1.
  var activeIndex: Int32 = -1
  /// The next slot of whatever list the slot is in.
  var next: Int32 = -1
  /// Device operations or internal requests that must end first.
  var outstanding: Int32 = 0

  // Reads: blocks resolved so far, and the last checksum mismatch.
  var resolved: UInt32 = 0
  var mismatched = false
  var badLocation: UInt64 = 0
  var badChecksum: UInt32 = 0
  var retries: UInt8 = 0

  // Writes.
  /// Merged edge blocks of a write that is not whole blocks; nil where there is none.
  nonisolated(unsafe) var head: UnsafeMutableRawPointer?
  nonisolated(unsafe) var tail: UnsafeMutableRawPointer?
  var edgesRead = false
  /// Blocks of vSpace that it holds reserved until its frame counts.
  var reserved: Int32 = 0
  var spaceTries: UInt8 = 0
  /// A large write's home.
  var home = BlockAddress.none
  var homeCount: Int32 = 0

  init(_ request: BlockRequest) { self.request = request }

  /// Covered blocks: the first, and one behind the last.
  var firstBlock: UInt64 { request.offset >> blockShift }
  var endBlock: UInt64 { (request.offset + request.length + 4095) >> blockShift }
  var blockCount: Int { Int(endBlock - firstBlock) }
  var startsInsideBlock: Bool { request.offset & 4095 != 0 }
  var endsInsideBlock: Bool { (request.offset + request.length) & 4095 != 0 }
  var isPartial: Bool { startsInsideBlock || endsInsideBlock }
}

/// A fixed table of slots with a free list, and intrusive FIFO lists over it.
struct RequestTable: ~Copyable {
  private let slots: UnsafeMutablePointer<RequestSlot>
  let capacity: Int
  private var firstFree: Int32 = 0
  private(set) var used = 0

  init(capacity: Int) {
    self.capacity = capacity
    slots = .allocate(capacity: capacity)
    let none = BlockRequest(
      operation: .flush, disk: DiskHandle(place: 0, generation: 0), offset: 0, length: 0,
      memory: nil, token: 0)
    for i in 0..<capacity {
      var slot = RequestSlot(none)
      slot.next = i + 1 < capacity ? Int32(i + 1) : -1
      (slots + i).initialize(to: slot)
    }
  }

  deinit {
    slots.deinitialize(count: capacity)
    slots.deallocate()
  }

  subscript(_ i: Int32) -> RequestSlot {
    @inline(__always) unsafeAddress { UnsafePointer(slots + Int(i)) }
    @inline(__always) unsafeMutableAddress { slots + Int(i) }
  }

  mutating func take(_ request: BlockRequest) -> Int32? {
    let i = firstFree
    guard i >= 0 else { return nil }
    firstFree = slots[Int(i)].next
    slots[Int(i)] = RequestSlot(request)
    used += 1
    return i
  }

  mutating func give(_ i: Int32) {
    invariant(slots[Int(i)].state != .free, "a request slot is freed twice")
    slots[Int(i)].state = .free
    slots[Int(i)].next = firstFree
    firstFree = i
    used -= 1
  }
}

/// A FIFO of slots, linked through `RequestSlot.next`.
struct RequestList {
  private(set) var first: Int32 = -1
  private(set) var last: Int32 = -1
  private(set) var count = 0

  var isEmpty: Bool { first < 0 }

  mutating func append(_ i: Int32, _ table: inout RequestTable) {
    table[i].next = -1
    if first < 0 { first = i } else { table[last].next = i }
    last = i
    count += 1
  }

  mutating func prepend(_ i: Int32, _ table: inout RequestTable) {
    table[i].next = first
    first = i
    if last < 0 { last = i }
    count += 1
  }

  mutating func removeFirst(_ table: borrowing RequestTable) -> Int32? {
    guard first >= 0 else { return nil }
    let i = first
    first = table[i].next
    if first < 0 { last = -1 }
    count -= 1
    return i
  }
}

/// A read of contiguous blocks from one device for one request, with the checksums that the blocks
/// must have. Fixed table; the checksums of part `i` are at `checksums + i * maximumBlocks`.
struct ReadPart {
  static let maximumBlocks = 65
  var slot: Int32 = -1
  /// First block, counted from the request's first.
  var first: Int32 = 0
  var count: Int32 = 0
  /// Position in the log in blocks, or home address.
  var location: UInt64 = 0
  var isLog = false
  /// Of the cache, when it was issued.
  var overwrites: UInt64 = 0
  /// Others wait for what it reads.
  var isAwaited = false
  /// Its place among the reads of homes under way, or -1.
  var homeIndex: Int32 = -1
  var next: Int32 = -1
}

struct ReadPartTable: ~Copyable {
  private let parts: UnsafeMutablePointer<ReadPart>
  private let sums: UnsafeMutablePointer<UInt32>
  private var firstFree: Int32 = 0
  /// Parts that read homes for requests that use the cache, in no order.
  private let homes: UnsafeMutablePointer<Int32>
  private var homeCount = 0

  init(capacity: Int) {
    parts = .allocate(capacity: capacity)
    homes = .allocate(capacity: capacity)
    sums = .allocate(capacity: capacity * ReadPart.maximumBlocks)
    sums.initialize(repeating: 0, count: capacity * ReadPart.maximumBlocks)
    for i in 0..<capacity {
      var part = ReadPart()
      part.next = i + 1 < capacity ? Int32(i + 1) : -1
      (parts + i).initialize(to: part)
    }
  }

  deinit {
    parts.deallocate()
    sums.deallocate()
    homes.deallocate()
  }

  /// Whether the home block is being read; it will be in the cache then.
  func awaitRead(of address: BlockAddress) -> Bool {
    for h in 0..<homeCount {
      let part = parts + Int(homes[h])
      if address.raw &- part.pointee.location < UInt64(part.pointee.count) {
        part.pointee.isAwaited = true
        return true
      }
    }
    return false
  }

  /// The part reads homes, for the cache.
  mutating func enterHomes(_ i: Int32) {
    parts[Int(i)].homeIndex = Int32(homeCount)
    homes[homeCount] = i
    homeCount += 1
  }

  private mutating func leaveHomes(_ i: Int32) {
    let place = parts[Int(i)].homeIndex
    guard place >= 0 else { return }
    homeCount -= 1
    homes[Int(place)] = homes[homeCount]
    parts[Int(homes[Int(place)])].homeIndex = place
    parts[Int(i)].homeIndex = -1
  }

  subscript(_ i: Int32) -> ReadPart {
    @inline(__always) unsafeAddress { UnsafePointer(parts + Int(i)) }
    @inline(__always) unsafeMutableAddress { parts + Int(i) }
  }

  @inline(__always)
  func checksums(_ i: Int32) -> UnsafeMutablePointer<UInt32> {
    sums + Int(i) * ReadPart.maximumBlocks
  }

  mutating func take() -> Int32? {
    guard firstFree >= 0 else { return nil }
    let i = firstFree
    firstFree = parts[Int(i)].next
    return i
  }

  mutating func give(_ i: Int32) {
    leaveHomes(i)
    parts[Int(i)].slot = -1
    parts[Int(i)].next = firstFree
    firstFree = i
  }
}
