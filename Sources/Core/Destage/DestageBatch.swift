/// Blocks on their way from the log to their homes: one batch of a sweep, at most `capacity`
/// blocks, in the order of the index.
///
///     gathered ─▶ read from the log, in the order of the log ─▶ checked, laid out in the order of
///     homes ─▶ written in as few pieces as the homes allow ─▶ mapped
struct DestageItem {
  var key: IndexKey
  var logBlock: UInt64
  var checksum: UInt32
  var isNew: Bool
  var sequence: FrameSequence
  var target: BlockAddress
  /// Place in the batch's memory, by order of targets.
  var place: Int32 = 0
}

/// A contiguous transfer of a batch: of log blocks into staging memory, or of homes from memory.
struct DestageTransfer {
  var first: Int
  var count: Int
  var attempts = 0
}

final class DestageBatch {
  /// Least and most blocks of a batch.
  static let capacities = 1024...16384
  /// Longest transfer in blocks.
  static let longest = 256
  /// Reads of which a batch must have had so many to say how quick the log's device is.
  private static let measured = 64
  /// Blocks of a read, on average, up to which its time is that of getting there.
  private static let shortest = 4
  /// Nanoseconds for one of these, with others on their way beside it: a disk takes longer than
  /// `slow` to move its heads, and one without any is done in less than `quick`.
  private static let slow: UInt64 = 500_000
  private static let quick: UInt64 = 100_000

  /// The more blocks a batch has, the nearer to each other they lie in the log. That is worth memory,
  /// and some milliseconds for sorting them, where the device must go from one to the next.
  private(set) var capacity = DestageBatch.capacities.lowerBound

  var items: [DestageItem] = []
  /// Indices into `items`, by log position and by target.
  var byLog: [Int] = []
  var byTarget: [Int] = []
  var transfers: [DestageTransfer] = []
  let staging: AlignedMemory
  let memory: AlignedMemory

  init() {
    staging = AlignedMemory(uninitializedBytes: Self.capacities.upperBound * blockSize)
    memory = AlignedMemory(uninitializedBytes: Self.capacities.upperBound * blockSize)
    items.reserveCapacity(capacity)
    byLog.reserveCapacity(capacity)
    byTarget.reserveCapacity(capacity)
    transfers.reserveCapacity(capacity)
  }

  var isFull: Bool { items.count >= capacity }

  /// So many reads of the log took so many nanoseconds in all: how large the next batches are.
  func note(reads: Int, took time: UInt64) {
    // Of long ones each takes long because of its length.
    guard reads >= Self.measured, reads * Self.shortest >= items.count else { return }
    let each = time / UInt64(reads)
    if each >= Self.slow {
      capacity = min(capacity * 2, Self.capacities.upperBound)
    } else if each < Self.quick {
      capacity = max(capacity / 2, Self.capacities.lowerBound)
    }
  }

  func clear() {
    items.removeAll(keepingCapacity: true)
    byLog.removeAll(keepingCapacity: true)
    byTarget.removeAll(keepingCapacity: true)
    transfers.removeAll(keepingCapacity: true)
  }

  /// Plans the reads: runs of neighbouring log blocks within one segment.
  func planReads(segmentBlocks: UInt64) {
    byLog.removeAll(keepingCapacity: true)
    byLog.append(contentsOf: items.indices)
    byLog.sort { items[$0].logBlock < items[$1].logBlock }
    transfers.removeAll(keepingCapacity: true)
    for i in byLog.indices {
      let block = items[byLog[i]].logBlock
      if let last = transfers.indices.last, transfers[last].count < Self.longest,
        items[byLog[i - 1]].logBlock + 1 == block, block % segmentBlocks != 0
      {
        transfers[last].count += 1
      } else {
        transfers.append(DestageTransfer(first: i, count: 1))
      }
    }
  }

  /// Gives every item its place in memory, by target, and plans the writes.
  func planTargets() {
    byTarget.removeAll(keepingCapacity: true)
    byTarget.append(contentsOf: items.indices)
    byTarget.sort { items[$0].target < items[$1].target }
    for (place, i) in byTarget.enumerated() { items[i].place = Int32(place) }
  }

  func planWrites() {
    transfers.removeAll(keepingCapacity: true)
    for place in byTarget.indices {
      let target = items[byTarget[place]].target
      if let last = transfers.indices.last, transfers[last].count < Self.longest,
        items[byTarget[place - 1]].target + 1 == target
      {
        transfers[last].count += 1
      } else {
        transfers.append(DestageTransfer(first: place, count: 1))
      }
    }
  }
}
