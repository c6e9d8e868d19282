// Moves a batch of destaging: from the log into memory, and from there to its homes.
//
//     read ─▶ readCompleted ... ─▶ done    every block lies where it will be written from
//     write ─▶ writeCompleted ... ─▶ done  every block is at home
//
// What a device refuses is tried again. Homes that can't be written are relocated (R15); when that
// is no help either, or the log can't be read, the outcome is `refused`: all other transfers have ended,
// and the rest is tried again once the device has had time to come back.

final class BatchTransfers {
  private let pool: Pool
  private let batch: DestageBatch
  private let scan: LogScan
  private var isReading = false
  /// Transfers that have not ended, and how many were issued.
  private var outstanding = 0
  private var issued = 0
  private var hasFailed = false
  /// Transfers from the log that the device refused: tried again a second later, block by block,
  /// for half a minute. A path that comes back costs nothing; only a bad sector costs its block.
  private var failedReads: [Int] = []
  private static let readAttempts = 32
  /// Whether the batch is to be written again.
  private(set) var wantsRewrite = false
  /// Work done so far: a unit for each block that was read and one for each that is home. A scan reads
  /// more than it takes: there both are for the block that is home. What is refused is not done, and
  /// what is done again does not count.
  private(set) var work: UInt64 = 0
  /// `work` when the batch will be at home.
  private var goal: UInt64 = 0
  var remainingWork: Int { Int(goal - work) }
  /// Transfers in flight at most.
  var window = Destager.wideWindow

  init(_ pool: Pool, _ batch: DestageBatch, _ scan: LogScan) {
    self.pool = pool
    self.batch = batch
    self.scan = scan
  }

  private func plan() { goal = work + 2 * UInt64(batch.items.count) }

  private func done(_ transfer: DestageTransfer, units: UInt64) {
    work = min(work + UInt64(transfer.count) * units, goal)
  }

  private func begin(reading: Bool) {
    isReading = reading
    outstanding = batch.transfers.count
    issued = 0
    hasFailed = false
    issue()
  }

  private func issue() {
    let end = min(batch.transfers.count, issued + room)
    while issued < end {
      if isReading { issueRead(issued) } else { issueWrite(issued) }
      issued += 1
    }
  }

  /// Operations that may be issued now without making the devices' queues long. Many at once or none:
  /// what is submitted together costs the device one notice.
  private var room: Int {
    let inFlight = outstanding - (batch.transfers.count - issued)
    let window = scan.isActive && isReading ? LogScan.window : window
    return inFlight <= window / 2 ? window - inFlight : 0
  }

  // MARK: From the log

  /// Issues the reads that are planned in the batch.
  func read() {
    if !scan.isActive { plan() }
    begin(reading: true)
  }

  private func issueRead(_ i: Int) {
    let transfer = batch.transfers[i]
    let block =
      scan.isActive
      ? scan.logBlock(of: transfer) : batch.items[batch.byLog[transfer.first]].logBlock
    pool.ops.issue(
      .read, .log, offset: pool.log.geometry.deviceOffset(block << blockShift),
      length: UInt64(transfer.count * blockSize),
      memory: batch.staging.base + transfer.first * blockSize, owner: .destageRead, index: i)
  }

  /// A read from the log ended: check every block and lay it out where it will be written from.
  /// `refused`, of a scan: none of its reads is to be used.
  func readCompleted(_ i: Int, error: Int32) -> WorkOutcome {
    if error != 0 { pool.ioErrors += 1 }
    if scan.isActive {
      if error != 0 { hasFailed = true }
    } else if error != 0 || !layOut(batch.transfers[i]) {
      batch.transfers[i].attempts += 1
      let transfer = batch.transfers[i]
      if transfer.attempts < 3 {
        issueRead(i)
        return .underWay
      }
      if error != 0, transfer.count > 1 || transfer.attempts < Self.readAttempts {
        failedReads.append(i)
      } else {
        acceptDamage(transfer, unreadable: error != 0)
        done(transfer, units: 1)
      }
    } else {
      done(batch.transfers[i], units: 1)
    }
    guard ended() else { return .underWay }
    return hasFailed || !failedReads.isEmpty ? .refused : .done
  }

  /// False when a block is not what was written.
  private func layOut(_ transfer: DestageTransfer) -> Bool {
    var isIntact = true
    for j in transfer.first..<transfer.first + transfer.count {
      let item = batch.items[batch.byLog[j]]
      let from = batch.staging.base + j * blockSize
      if crc32cBlock(from) != item.checksum { isIntact = false }
      (batch.memory.base + Int(item.place) * blockSize)
        .copyMemory(from: from, byteCount: blockSize)
    }
    return isIntact
  }

  /// Blocks of the log that can't be read any more: their homes take what there is together with
  /// the checksum that they ought to have, so that reading them stays an error and never gives
  /// other data (promise 5).
  private func acceptDamage(_ transfer: DestageTransfer, unreadable: Bool) {
    for j in transfer.first..<transfer.first + transfer.count {
      let item = batch.items[batch.byLog[j]]
      let memory = batch.memory.base + Int(item.place) * blockSize
      if unreadable {
        memory.initializeMemory(as: UInt8.self, repeating: 0xDB, count: blockSize)
      }
      if crc32cBlock(memory) != item.checksum {
        pool.paths.hit(.damagedLogBlock)
        pool.checksumErrors += 1
      }
    }
  }

  /// A transfer ended. True when it was the last.
  private func ended() -> Bool {
    outstanding -= 1
    issue()
    return outstanding == 0
  }

  // MARK: To the homes

  /// Writes the batch to the homes that its items name.
  func write() {
    if scan.isActive, !wantsRewrite { plan() }
    wantsRewrite = false
    batch.planWrites()
    begin(reading: false)
  }

  private func issueWrite(_ i: Int) {
    let transfer = batch.transfers[i]
    let target = batch.items[batch.byTarget[transfer.first]].target
    pool.ops.issue(
      .write, .volume(target.volume), offset: target.byteOffset,
      length: UInt64(transfer.count * blockSize),
      memory: scan.isActive
        ? scan.source(of: transfer) : batch.memory.base + transfer.first * blockSize,
      owner: .destageWrite, index: i)
  }

  /// A write to homes ended. One that fails is tried again, and then elsewhere.
  func writeCompleted(_ i: Int, error: Int32) -> WorkOutcome {
    if error != 0 {
      pool.ioErrors += 1
      batch.transfers[i].attempts += 1
      let attempts = batch.transfers[i].attempts
      if attempts < 3 {
        issueWrite(i)
        return .underWay
      }
      // Where a second place can't be written either, it is not the place.
      if attempts < 5, relocate(batch.transfers[i]) {
        pool.paths.hit(.relocatedHome)
        issueWrite(i)
        return .underWay
      }
      hasFailed = true
    } else {
      done(batch.transfers[i], units: scan.isActive ? 2 : 1)
    }
    guard ended() else { return .underWay }
    guard hasFailed else { return .done }
    wantsRewrite = true
    return .refused
  }

  /// New homes for the blocks of a transfer whose homes can't be written; all or none.
  private func relocate(_ transfer: DestageTransfer) -> Bool {
    guard
      let run = try? pool.space.allocateRun(
        near: nil, want: transfer.count, minimum: transfer.count)
    else { return false }
    for k in 0..<transfer.count {
      let i = batch.byTarget[transfer.first + k]
      if batch.items[i].isNew { pool.space.cancelReservation(batch.items[i].target, 1) }
      batch.items[i].isNew = true
      batch.items[i].target = run.address + UInt64(k)
    }
    return true
  }

  // MARK: Again

  /// Reads again, block by block, what the log's device refused. What homes refused is written
  /// again by `write`, as `wantsRewrite` says.
  func retryReads() {
    // Some other part may have waited for a device while a batch is on its way.
    guard outstanding == 0, !failedReads.isEmpty else { return }
    let failed = failedReads
    failedReads.removeAll(keepingCapacity: true)
    for i in failed {
      let transfer = batch.transfers[i]
      for place in transfer.first..<transfer.first + transfer.count {
        let single = DestageTransfer(first: place, count: 1, attempts: max(3, transfer.attempts))
        let index = place == transfer.first ? i : batch.transfers.count
        if index == i { batch.transfers[i] = single } else { batch.transfers.append(single) }
        outstanding += 1
        issueRead(index)
      }
    }
    issued = batch.transfers.count
  }
}
