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
  static let capacity = 1024
  /// Longest transfer in blocks.
  static let longest = 256
  /// Log blocks that are read through rather than jumped over.
  static let readThrough: UInt64 = 3

  var items: [DestageItem] = []
  /// Indices into `items`, by log position and by target.
  var byLog: [Int] = []
  var byTarget: [Int] = []
  var transfers: [DestageTransfer] = []
  /// Transfers that have not ended, and how many were issued.
  var outstanding = 0
  var issued = 0
  let staging: AlignedMemory
  let memory: AlignedMemory

  init() {
    staging = AlignedMemory(bytes: Self.capacity * blockSize)
    memory = AlignedMemory(bytes: Self.capacity * blockSize)
    items.reserveCapacity(Self.capacity)
    byLog.reserveCapacity(Self.capacity)
    byTarget.reserveCapacity(Self.capacity)
    transfers.reserveCapacity(Self.capacity)
  }

  var isFull: Bool { items.count == Self.capacity }

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
