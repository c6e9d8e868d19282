import Core

/// A block request between submission and completion.
struct Request {
  enum Purpose: Equatable {
    case client(Int)
    case verification
  }

  var inUse = false
  /// Tells completions of this use of the slot from older ones.
  var generation: UInt32 = 0
  var operation = BlockOperation.read
  var flags: BlockFlags = []
  var disk: ModelDisk!
  var handle = DiskHandle(place: 0, generation: 0)
  var offset: UInt64 = 0
  var length: UInt64 = 0
  /// Of a write, zero or trim.
  var version: Stamp.Version?
  var purpose = Purpose.verification
  /// The model's time of submission.
  var asked: WriteTable.Tick = 0
  /// Simulated nanoseconds.
  var submittedAt: UInt64 = 0
  /// The engine has to refuse it as invalid.
  var mustRefuse = false
  /// All its blocks certainly had space of their own when it was submitted.
  var ownsSpace = false
  /// Faults at its submission excuse it.
  var submittedInTrouble = false

  /// Whether it looks at content.
  var isRead: Bool { operation == .read || operation == .status }

  var sectorRange: Range<UInt64> {
    let unit = UInt64(sectorSize)
    return (offset / unit)..<((offset + length) / unit)
  }

  var describe: String {
    "\(operation) of \(length) bytes at \(offset) of \(disk.title)"
  }
}

/// All requests in flight, each with memory of its own that is reused.
struct RequestTable {
  private(set) var slots: [Request] = []
  private var memory: [AlignedMemory] = []
  private var free: [Int] = []
  private(set) var inUse = 0

  subscript(slot: Int) -> Request {
    get { slots[slot] }
    set { slots[slot] = newValue }
  }

  /// A free slot, and the memory for its request.
  mutating func take(_ request: Request) -> Int {
    if free.isEmpty {
      free.append(slots.count)
      slots.append(Request())
      memory.append(AlignedMemory(bytes: maximumPiece + blockSize))
    }
    let slot = free.removeLast()
    let generation = slots[slot].generation &+ 1
    slots[slot] = request
    slots[slot].generation = generation
    slots[slot].inUse = true
    inUse += 1
    return slot
  }

  mutating func give(_ slot: Int) {
    slots[slot].inUse = false
    slots[slot].disk = nil
    free.append(slot)
    inUse -= 1
  }

  /// The engine is gone: nothing will be completed.
  mutating func giveAll() {
    for slot in slots.indices where slots[slot].inUse { give(slot) }
  }

  func memory(_ slot: Int) -> UnsafeMutableRawPointer { memory[slot].base }

  func token(_ slot: Int) -> UInt64 { UInt64(slot) | UInt64(slots[slot].generation) << 32 }

  /// The slot of a completion's token; nil when no such request is in flight.
  func slot(token: UInt64) -> Int? {
    let slot = Int(token & 0xFFFF_FFFF)
    guard slot < slots.count, slots[slot].inUse, UInt64(slots[slot].generation) == token >> 32
    else { return nil }
    return slot
  }

  /// Versions that a disk's requests in flight write.
  func openVersions(of disk: ModelDisk) -> [Stamp.Version] {
    slots.compactMap { $0.inUse && $0.disk === disk ? $0.version : nil }
  }

  var oldest: Request? {
    slots.lazy.filter(\.inUse).min { $0.submittedAt < $1.submittedAt }
  }
}
