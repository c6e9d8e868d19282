/// Blocks for a cycle's batches in the order of the log instead of that of the index.
///
/// The sweep of the index reads each block from wherever the log has it: one small read a block.
/// Where homes can be written quickly in any order, it costs less to read the log from end to end
/// in large pieces and take from it what is live. Only what has a home of its own already is taken:
/// first homes are given in the order of the index, so that neighbours on a disk become neighbours
/// in vSpace. The sweep follows and finds what is left.
///
///     planReads ─▶ the log is read into `staging` ─▶ collect ─▶ resolve ─▶ written and mapped as in a sweep
///
/// What the log's tables say only hints at keys: the index decides whether that very block is live,
/// and its checksum whether it was read as it was written. So nothing here needs the checks of a
/// replay; what is not understood is left to the sweep.
final class LogScan {
  private let pool: Pool
  private let batch: DestageBatch
  /// Where the next frame lies, and the cut's end; positions in the log, in bytes.
  private var position: UInt64 = 0
  private var end: UInt64 = 0
  private var cut: FrameSequence = 0
  /// The log block that `staging` starts with.
  private var firstBlock: UInt64 = 0
  /// Items that were looked up, and those of them that are taken.
  private var resolved = 0
  private var taken = 0
  /// Parts of the log one behind the other that were not worth reading.
  private var poorParts = 0
  /// Whether a batch of the scan is on its way, and whether its items are to be looked up.
  private(set) var isActive = false
  private(set) var isResolving = false

  init(_ pool: Pool, _ batch: DestageBatch) {
    self.pool = pool
    self.batch = batch
  }

  /// In blocks: what is read at once, so that frames of the log don't wait long behind it.
  private static let piece = 64
  /// Blocks of the log whose live ones go home together.
  private static let part = DestageBatch.capacities.lowerBound
  /// Reads on their way at a time.
  static let window = 2
  /// Where less than a quarter of what is read can be taken, the sweep's single reads cost less; so
  /// many such parts end the scan.
  private static let leastTaken = 4
  private static let mostPoor = 3

  /// Starts where the last cycle's cut was, if reading from there to this one's is worth it (or
  /// `always`), and if the pool's whole metadata may be dirty in memory at a time: its nodes are
  /// changed in no order.
  func begin(cut: FrameSequence, end: UInt64, always: Bool) {
    position = pool.root.nextPosition
    self.end = end
    self.cut = cut
    isResolving = false
    poorParts = always ? .min : 0
    isActive = position < end && (always || isWorthIt)
  }

  private var isWorthIt: Bool {
    // Of the metadata there are two copies.
    pool.index.blocksLogged * Self.leastTaken >= Int(pool.log.usedBytes >> blockShift)
      && pool.space.metadata / 2 <= pool.store.dirtyLimit
  }

  func finish() { isActive = false }

  /// Plans the reads of the next part of the log. False at the end, or where it is not worth it.
  func planReads() -> Bool {
    guard position < end, poorParts < Self.mostPoor else {
      isActive = false
      return false
    }
    let segmentEnd =
      pool.log.geometry.start(ofSegment: pool.log.geometry.segment(of: position) + 1)
    firstBlock = position >> blockShift
    let count = Int(
      min((min(end, segmentEnd) - position) >> blockShift, UInt64(Self.part)))
    batch.transfers.removeAll(keepingCapacity: true)
    for first in stride(from: 0, to: count, by: Self.piece) {
      batch.transfers.append(
        DestageTransfer(first: first, count: min(Self.piece, count - first)))
    }
    return true
  }

  func logBlock(of transfer: DestageTransfer) -> UInt64 { firstBlock + UInt64(transfer.first) }

  /// The planned part was read: gathers the keys that its tables name, in the order of the index.
  func collect() {
    let count = batch.transfers.reduce(0) { $0 + $1.count }
    let geometry = pool.log.geometry
    // Behind what can't be followed the next segment starts with a frame.
    position = geometry.start(ofSegment: geometry.segment(of: position) + 1)
    var at = 0
    while at < count,
      let header = FrameHeader(
        decoding: batch.staging.base + at * blockSize, tag: geometry.tag,
        maximumBlocks: geometry.segmentBlocks),
      header.kind == .data, header.position == (firstBlock + UInt64(at)) << blockShift,
      header.sequence <= cut
    {
      let front = FrameHeader.frontBlocks(tableLength: Int(header.tableLength))
      if header.flags & FrameHeader.bridge == 0 {
        guard at + front + Int(header.payloadBlocks) <= count else {
          if at > 0 { position = header.position }
          break
        }
        collect(header, at: at, front: front)
      }
      at += Int(header.blocks)
      if at >= count { position = (firstBlock + UInt64(at)) << blockShift }
    }
    batch.items.sort { $0.key < $1.key }
    resolved = 0
    taken = 0
    isResolving = true
  }

  private func collect(_ header: FrameHeader, at: Int, front: Int) {
    var cursor = RecordCursor(
      table: batch.staging.base + at * blockSize + FrameHeader.size,
      length: Int(header.tableLength))
    while let record = cursor.next() {
      guard case .data(let object, _, let block, let count, let payload, _) = record,
        Int(payload) + count <= Int(header.payloadBlocks), let disk = pool.disks.find(object)
      else { continue }
      let first = firstBlock + UInt64(at + front) + UInt64(payload)
      for i in 0..<UInt64(count) where batch.items.count < Self.part {
        batch.items.append(
          DestageItem(
            key: IndexKey(slot: disk.layer.slot, block: block + i), logBlock: first + i,
            checksum: 0, isNew: false, sequence: 0, target: .none))
      }
    }
  }

  /// Looks up some hundred items, and keeps those that are live and have homes of their own, which
  /// `home` tells. True when all were. Goes on where it was after a wait.
  func resolve(
    home: (Layer, BlockIndex) throws(SpaceWait) -> BlockAddress?
  ) throws(SpaceWait) -> Bool {
    var budget = 256
    while resolved < batch.items.count, budget > 0 {
      var item = batch.items[resolved]
      if case .covered(let entry, _) = pool.index.lookup(item.key), entry.kind == .log,
        entry.location == item.logBlock, entry.sequence <= cut,
        let layer = pool.layers[item.key.slot], let target = try home(layer, item.key.block),
        crc32cBlock(staged(item)) == entry.checksum
      {
        item.checksum = entry.checksum
        item.sequence = entry.sequence
        item.target = target
        batch.items[taken] = item
        taken += 1
      }
      resolved += 1
      budget -= 1
    }
    guard resolved == batch.items.count else { return false }
    poorParts = taken * Self.leastTaken < resolved ? poorParts + 1 : min(poorParts, 0)
    batch.items.removeLast(resolved - taken)
    isResolving = false
    return true
  }

  /// Where a transfer is written from: homes that are neighbours are brought together first.
  func source(of transfer: DestageTransfer) -> UnsafeMutableRawPointer {
    if transfer.count == 1 { return staged(batch.items[batch.byTarget[transfer.first]]) }
    let memory = batch.memory.base + transfer.first * blockSize
    for i in 0..<transfer.count {
      (memory + i * blockSize).copyMemory(
        from: staged(batch.items[batch.byTarget[transfer.first + i]]), byteCount: blockSize)
    }
    return memory
  }

  private func staged(_ item: DestageItem) -> UnsafeMutableRawPointer {
    batch.staging.base + Int(item.logBlock - firstBlock) * blockSize
  }
}

/// Whether homes can be written in any order at little cost, by how long batches of them took.
struct HomeWriteTimes {
  /// Nanoseconds for one write of homes, with others on their way beside it; a disk that has to move
  /// its heads takes milliseconds.
  private static let quick: UInt64 = 1_000_000
  /// Only batches of so many writes are measured.
  private static let measured = 64
  /// Cycles without a scan after one whose writes were slow; twice as many each time.
  private static let pause: ClosedRange<UInt64> = 4...256

  /// Of batches of a sweep, of late: these are in the order of homes, and so a hope.
  private var inOrder: UInt64 = .max
  /// The first cycle that may scan: a scan's own batches are what counts.
  private var nextScan: UInt64 = 0
  private var pause = Self.pause.lowerBound

  /// Even in the order of homes.
  var areSlow: Bool { inOrder >= Self.quick && inOrder < .max }
  func allowScan(cycle: UInt64) -> Bool { inOrder < Self.quick && cycle >= nextScan }

  /// A batch of so many writes took so many nanoseconds.
  mutating func note(_ time: UInt64, writes: Int, isScan: Bool, cycle: UInt64) {
    guard writes >= Self.measured else { return }
    let each = time / UInt64(writes)
    if !isScan {
      inOrder = inOrder == .max ? each : (3 * inOrder + each) / 4
    } else if each >= Self.quick {
      nextScan = cycle + pause
      pause = min(2 * pause, Self.pause.upperBound)
    } else if cycle >= nextScan + Self.pause.lowerBound {
      pause = Self.pause.lowerBound
    }
  }
}
