import Glibc

// The log writer: gathers records into frames, writes them, and says in what order they count.
//
//     append ... append ─▶ open frame ─seal─▶ in flight ─written─▶ head of the line ─▶ applied
//
// Group commit: records go to the open frame; `seal` (once a turn of the loop) sends it when no frame
// is on its way, or the last was sent a while ago (`spread`) and fewer than `maximumInFlight` are;
// else it goes on gathering: a frame costs the device two requests, however little is in it. Frames
// may complete in any order; they are applied and acknowledged in sequence order only.
//
// A frame that must be durable is written with `writeDurable`, unless an earlier frame was written
// without (durability "flush"): then a device flush covers both (R8).
//
// Behind a frame some of the log may stay free (`AppendSpacing`).
//
// After a failed write or flush the epoch acknowledges nothing more (R7): `isBroken`. The engine
// opens a new epoch after a successful probe, at a fresh segment, so that writes of the old epoch
// that land late fall where nothing is read any more.

package struct LogWriterState: Sendable {
  package var epoch: UInt64 = 0
  package var nextSequence: FrameSequence = 1
  package var nextPosition: UInt64 = 0
  package var chain: UInt32 = 0
  package var instant: Instant = 1
}

/// A place between two frames: the state of the log behind the last frame in front of it.
package struct LogCut: Sendable {
  package var sequence: FrameSequence = 0
  /// Where the next frame may begin at the earliest.
  package var position: UInt64 = 0
  /// The last frame's header checksum, and its epoch.
  package var chain: UInt32 = 0
  package var epoch: UInt64 = 0
}

package final class LogWriter {
  package static let maximumInFlight = 4
  /// Nanoseconds between a frame and one that is sent beside it: what a quick device takes for one,
  /// so that there the next goes when the last has come, and a slow one still has several.
  private static let spread: UInt64 = 200_000
  /// A frame with so many blocks goes at once: more gathering saves it little.
  private static let gatheredBlocks = 64
  private static let bufferCount = 8
  static let tableArea = 64 * 1024

  fileprivate enum FrameState { case free, open, writing, written }

  /// One frame from its first record to its application. A class, made at start, never on the way.
  package final class Frame {
    fileprivate var table: UnsafeMutableRawPointer
    /// The table as it was sent, behind the header.
    fileprivate(set) package var sentTable: UnsafeRawPointer
    fileprivate(set) package var payload: UnsafeMutableRawPointer
    fileprivate var state = FrameState.free
    fileprivate var index: Int
    fileprivate(set) package var tableLength = 0
    fileprivate(set) package var payloadBlocks = 0
    fileprivate(set) package var records = 0
    fileprivate(set) package var sequence: FrameSequence = 0
    fileprivate(set) package var position: UInt64 = 0
    fileprivate(set) package var headerChecksum: UInt32 = 0
    fileprivate(set) package var nextPosition: UInt64 = 0
    fileprivate var writtenDurably = false
    /// Blocks that stay free behind it.
    fileprivate var gap = 0
    /// What was to stay free in front of it; nil where its time says nothing of that.
    fileprivate var gapBefore: Int?
    package var mustBeDurable = false
    /// When it was sent, by `LogWriter.clock`.
    fileprivate(set) package var sent: UInt64 = 0
    /// Intrusive list of the requests that wait for this frame: first and last slot, -1 for none.
    package var firstRequest: Int32 = -1
    package var lastRequest: Int32 = -1
    fileprivate let memory: AlignedMemory

    fileprivate init(index: Int, payload: Int) {
      memory = AlignedMemory(bytes: LogWriter.tableArea + payload)
      self.index = index
      table = memory.base + FrameHeader.size
      sentTable = UnsafeRawPointer(memory.base)
      self.payload = memory.base + LogWriter.tableArea
    }

    /// Position of payload block 0 in blocks.
    package var payloadPosition: UInt64 {
      (position >> blockShift) + UInt64(FrameHeader.frontBlocks(tableLength: tableLength))
    }
  }

  package let geometry: LogGeometry
  private let ops: OpQueue
  private var frames: [Frame] = []
  /// Sealed frames in sequence order, indices into `frames`.
  private var line = RingQueue<Int>(capacity: 16)
  private var open: Frame?
  private var summary: SummaryWriter
  /// Behind each segment that counts as a whole, but for those found by recovery.
  private var segmentEnds = RingQueue<LogCut>(capacity: 64)

  package private(set) var state: LogWriterState
  /// The first segment whose content is still needed.
  package private(set) var tailSegment: UInt64
  package private(set) var durableSequence: FrameSequence
  package private(set) var writtenSequence: FrameSequence
  package private(set) var appliedSequence: FrameSequence
  /// The last applied frame that was not empty.
  package private(set) var appliedDataSequence: FrameSequence = 0
  package private(set) var appliedPosition: UInt64
  package private(set) var appliedChain: UInt32
  /// The epoch that `appliedPosition` belongs to.
  package private(set) var appliedEpoch: UInt64 = 0
  package private(set) var inFlight = 0
  package private(set) var isBroken = false
  package private(set) var isOpen = false
  /// What the newest header says is durable: a sequence and a checkpoint.
  private var headerWatermark: FrameSequence = 0
  private var headerCheckpoint: UInt64 = 0
  /// Frames written without durability and not yet covered by a flush.
  private var plainOutstanding = 0
  /// The last frame that was not empty.
  package private(set) var lastDataSequence: FrameSequence = 0
  private var syncInFlight: FrameSequence = 0
  /// The highest segment that a frame of this run was sent to.
  private var touchedSegment: Int64 = -1
  /// Whether `state.nextPosition` lies in the segment that the summary gathers for.
  private var segmentStarted = false
  private var syncWanted = false
  private var plainBytes: UInt64 = 0
  private var spacing: AppendSpacing
  /// What the last frame was to leave free behind it, in blocks; nil for one without part in that.
  private var lastGap: Int?
  /// When the open frame, which could be sent, wants to be: `seal` is called then. `UInt64.max` for
  /// none.
  package private(set) var sealAt = UInt64.max
  package var checkpoint: UInt64 = 0
  /// Monotonic nanoseconds, for the times that frames take.
  package var clock: UInt64 = 0
  package var fault: PlantedFault?
  package var paths = RarePathCounters()

  package init(geometry: LogGeometry, ops: OpQueue, spacing: AppendSpacing = AppendSpacing()) {
    self.geometry = geometry
    self.ops = ops
    self.spacing = spacing
    state = LogWriterState()
    tailSegment = 0
    durableSequence = 0
    writtenSequence = 0
    appliedSequence = 0
    appliedPosition = 0
    appliedChain = 0
    summary = SummaryWriter(geometry: geometry)
    for i in 0..<Self.bufferCount {
      frames.append(Frame(index: i, payload: geometry.maximumPayload))
    }
  }

  // MARK: Opening and closing

  /// Takes over what recovery found: the last frame that counts.
  package func adopt(
    sequence: FrameSequence, position: UInt64, chain: UInt32, epoch: UInt64, tailSegment: UInt64
  ) {
    appliedSequence = sequence
    appliedDataSequence = sequence
    writtenSequence = sequence
    durableSequence = sequence
    appliedPosition = position
    appliedChain = chain
    appliedEpoch = epoch
    self.tailSegment = tailSegment
  }

  /// Where the next epoch would start: the first segment that no frame was sent to. Nil when the
  /// log has no free segment for it.
  package func nextEpochStart() -> UInt64? {
    let lastApplied =
      appliedPosition == 0 ? -1 : Int64(geometry.segment(of: appliedPosition - 1))
    let segment = UInt64(max(lastApplied, touchedSegment) + 1)
    return segment - tailSegment < geometry.segments - 1
      ? geometry.start(ofSegment: segment) : nil
  }

  /// Starts a new epoch whose record is durable: everything gathered before is gone.
  package func begin(_ epoch: Epoch, instant: Instant) {
    invariant(inFlight == 0 && line.isEmpty && open == nil, "an epoch begins with frames under way")
    invariant(
      epoch.firstSequence == appliedSequence + 1, "an epoch begins at a sequence that is not next")
    state = LogWriterState(
      epoch: epoch.number, nextSequence: epoch.firstSequence, nextPosition: epoch.position,
      chain: epoch.chain, instant: instant)
    appliedPosition = epoch.position
    appliedChain = epoch.chain
    appliedEpoch = epoch.number
    durableSequence = appliedSequence
    writtenSequence = appliedSequence
    plainOutstanding = 0
    plainBytes = 0
    syncWanted = false
    isBroken = false
    isOpen = true
    lastGap = nil
    summary.start(segment: geometry.segment(of: epoch.position))
    segmentStarted = true
  }

  /// Log space up to `position` is no longer needed.
  package func release(upTo position: UInt64) {
    let segment = geometry.segment(of: position)
    invariant(segment >= tailSegment, "the log's tail moves backwards")
    if fault == .logTailUnchecked {
      tailSegment = segment + 1
      return
    }
    tailSegment = segment
    while let end = segmentEnds.first(), end.position <= position { _ = segmentEnds.pop() }
  }

  // MARK: Cuts

  /// Behind all frames that count.
  package var appliedCut: LogCut {
    LogCut(
      sequence: appliedSequence, position: appliedPosition, chain: appliedChain,
      epoch: appliedEpoch)
  }

  /// The first end of a segment behind `bytes` or more of what is needed of the log; behind all that
  /// counts where there is none.
  package func cut(behind bytes: UInt64) -> LogCut {
    let tail = geometry.start(ofSegment: tailSegment)
    for i in 0..<segmentEnds.count {
      let end = segmentEnds.at(i)
      if end.position >= tail + bytes { return end }
    }
    return appliedCut
  }

  // MARK: Room

  /// Segments that may still be entered.
  package var freeSegments: UInt64 {
    // Before the first epoch after a recovery, and at a segment's end, no segment is open.
    let head = max(geometry.segment(of: max(state.nextPosition, appliedPosition)), tailSegment)
    let used = head - tailSegment + 1
    return used >= geometry.segments ? 0 : geometry.segments - used
  }

  /// Bytes between the tail and the head.
  package var usedBytes: UInt64 {
    let head = max(state.nextPosition, appliedPosition)
    let tail = geometry.start(ofSegment: tailSegment)
    return head > tail ? head - tail : 0
  }

  /// Whether records of `table` bytes and `payload` blocks fit the open frame, or a new one.
  /// Requires a free segment, so that the frame can be placed whatever is left of this one.
  package func hasRoom(table: Int, payload: Int) -> Bool {
    guard isOpen, !isBroken else { return false }
    if let open {
      return open.tableLength + table <= Self.tableArea - FrameHeader.size
        && (open.payloadBlocks + payload) * blockSize <= geometry.maximumPayload
    }
    return freeSegments > 1 && line.count < Self.bufferCount - 1
  }

  // MARK: Gathering

  private func openFrame() -> Frame {
    if let open { return open }
    guard let frame = frames.first(where: { $0.state == .free }) else {
      invariantBroken("a record is appended although there is no room")
    }
    frame.state = .open
    frame.tableLength = 0
    frame.payloadBlocks = 0
    frame.records = 0
    frame.mustBeDurable = false
    frame.firstRequest = -1
    frame.lastRequest = -1
    open = frame
    return frame
  }

  /// Appends a record without payload. `hasRoom` was asked.
  @discardableResult
  package func append(_ record: LogRecord) -> Frame {
    let frame = openFrame()
    let size = record.encodedSize
    invariant(
      frame.tableLength + size <= Self.tableArea - FrameHeader.size, "a frame's table overflows")
    record.encode(to: frame.table + frame.tableLength)
    frame.tableLength += size
    frame.records += 1
    return frame
  }

  /// Appends `count` blocks of data with their checksums. `hasRoom` was asked.
  @discardableResult
  package func appendData(
    object: ObjectID, generation: UInt32, block: BlockIndex, count: Int,
    from memory: UnsafeRawPointer, checksums: UnsafePointer<UInt32>
  ) -> Frame {
    let frame = openFrame()
    invariant(
      (frame.payloadBlocks + count) * blockSize <= geometry.maximumPayload,
      "a frame's payload overflows")
    (frame.payload + frame.payloadBlocks * blockSize)
      .copyMemory(from: memory, byteCount: count * blockSize)
    append(
      .data(
        object: object, generation: generation, block: block, count: count,
        payload: UInt32(frame.payloadBlocks), checksums: UnsafeRawPointer(checksums)))
    frame.payloadBlocks += count
    return frame
  }

  /// Appends an empty frame, which carries the watermark (R3).
  package func appendIdle() {
    let frame = openFrame()
    frame.mustBeDurable = true
  }

  /// Whether an empty frame is due: the newest header does not yet say that the last data, or the
  /// last checkpoint, is durable (R3, R19).
  package var lacksWatermark: Bool {
    headerWatermark < lastDataSequence || headerCheckpoint < checkpoint
  }
  package var isQuiet: Bool { open == nil && line.isEmpty }

  // MARK: Writing

  /// Sends the open frame if it is time and a place is free. `wallClock` goes into its header.
  package func seal(wallClock: UInt64) {
    sealAt = .max
    guard let frame = open, !isBroken else { return }
    let isSpaced = mayLeaveGap(frame)
    let framesAtOnce = isSpaced && spacing.isOneAtATime ? 1 : Self.maximumInFlight
    guard inFlight < framesAtOnce else { return }
    if let until = gathersUntil(frame) {
      sealAt = until
      return
    }
    guard place(frame, isSpaced: isSpaced) else { return }
    open = nil
    frame.state = .writing
    frame.sequence = state.nextSequence
    var header = FrameHeader()
    header.tag = geometry.tag
    header.epoch = state.epoch
    header.sequence = frame.sequence
    header.position = frame.position
    header.chain = state.chain
    let front = FrameHeader.frontBlocks(tableLength: frame.tableLength)
    header.blocks = UInt32(front + frame.payloadBlocks + frame.gap)
    header.tableLength = UInt32(frame.tableLength)
    header.records = UInt32(frame.records)
    header.payloadBlocks = UInt32(frame.payloadBlocks)
    header.tableChecksum = crc32c(.init(start: frame.table, count: frame.tableLength))
    header.durableSequence = durableSequence
    header.checkpoint = checkpoint
    header.wallClock = wallClock
    header.instant = state.instant
    headerWatermark = durableSequence
    headerCheckpoint = checkpoint
    sendFrame(frame, &header, front: front)
  }

  /// Until when the open frame may still grow beside another that is on its way; nil when it is to
  /// be sent now.
  private func gathersUntil(_ frame: Frame) -> UInt64? {
    guard inFlight > 0, frame.payloadBlocks < Self.gatheredBlocks,
      frame.tableLength < Self.tableArea / 2
    else { return nil }
    // What was sent last stays in the line as long as anything is in flight.
    let until = frames[line.at(line.count - 1)].sent + Self.spread
    return clock < until ? until : nil
  }

  /// Gives the frame its position, closing the segment when it does not fit any more.
  private func place(_ frame: Frame, isSpaced: Bool) -> Bool {
    let front = FrameHeader.frontBlocks(tableLength: frame.tableLength)
    let bytes = UInt64(front + frame.payloadBlocks) << blockShift
    let segment = geometry.segment(of: state.nextPosition)
    let offset = state.nextPosition - geometry.start(ofSegment: segment)
    let reserve = summary.bytesNeeded(adding: frame.tableLength)
    if offset + bytes + reserve > geometry.segmentSize || !segmentStarted {
      let next = offset == 0 ? segment : segment + 1
      guard next - tailSegment < geometry.segments, !summary.isBusy else { return false }
      if offset > 0 { closeSegment() }
      if next % geometry.segments == 0 { paths.hit(.logWrap) }
      state.nextPosition = geometry.start(ofSegment: next)
      summary.start(segment: next)
      segmentStarted = true
      lastGap = nil
    }
    frame.position = state.nextPosition
    frame.gap = 0
    if isSpaced, spacing.gap > 0 {
      let taken = frame.position + bytes + summary.bytesNeeded(adding: frame.tableLength)
      let end = geometry.start(ofSegment: geometry.segment(of: frame.position) + 1)
      frame.gap = taken < end ? min(spacing.gap, Int((end - taken) >> blockShift)) : 0
    }
    frame.gapBefore = isSpaced ? lastGap : nil
    lastGap = isSpaced ? spacing.gap : nil
    touchedSegment = Int64(geometry.segment(of: frame.position))
    return true
  }

  /// Only for a frame that somebody waits for, and while the log is half empty and so has room to
  /// spare. What is written without being durable lies close together, as recovery looks through
  /// `maximumUnsynced` and little more.
  private func mayLeaveGap(_ frame: Frame) -> Bool {
    frame.mustBeDurable && frame.records > 0 && plainOutstanding == 0
      && usedBytes < geometry.capacity / 2
  }

  /// The table stands right in front of the payload, so that the frame is one piece of memory.
  private func sendFrame(_ frame: Frame, _ header: inout FrameHeader, front: Int) {
    let start = frame.payload - front * blockSize
    let tableAt = start + FrameHeader.size
    if tableAt != frame.table {
      memmove(tableAt, frame.table, frame.tableLength)
    }
    let used = FrameHeader.size + frame.tableLength
    (start + used).initializeMemory(as: UInt8.self, repeating: 0, count: front * blockSize - used)
    frame.sentTable = UnsafeRawPointer(tableAt)
    header.encode(to: start)
    summary.add(SummaryEntry(header: header), table: tableAt)
    frame.headerChecksum = header.headerChecksum
    state.chain = header.headerChecksum
    state.nextSequence += 1
    let written = UInt64(front + frame.payloadBlocks) << blockShift
    state.nextPosition += UInt64(header.blocks) << blockShift
    frame.nextPosition = state.nextPosition
    segmentStarted = state.nextPosition & (geometry.segmentSize - 1) != 0
    frame.writtenDurably = frame.mustBeDurable && plainOutstanding == 0
    if !frame.writtenDurably {
      plainOutstanding += 1
      plainBytes += UInt64(header.blocks) << blockShift
      if frame.mustBeDurable || plainBytes > Self.maximumUnsynced { syncWanted = true }
    }
    if frame.records > 0 { lastDataSequence = frame.sequence }
    frame.sent = clock
    if frame.gap > 0 { paths.hit(.gapLeft) }
    inFlight += 1
    line.push(frame.index)
    ops.issue(
      frame.writtenDurably ? .writeDurable : .write, .log,
      offset: geometry.deviceOffset(frame.position), length: written, memory: start, owner: .frame,
      index: frame.index)
  }

  /// How much may be written without a flush: recovery looks this far behind a bad frame.
  private static let maximumUnsynced: UInt64 = 16 << 20

  private func closeSegment() {
    summary.write(
      epoch: state.epoch, sequence: state.nextSequence - 1, chain: state.chain,
      durableSequence: durableSequence, checkpoint: checkpoint, ops: ops)
  }

  /// A frame's write ended. False when the epoch broke.
  package func frameCompleted(_ index: Int, error: Int32) {
    let frame = frames[index]
    inFlight -= 1
    frame.state = .written
    if error != 0 { isBroken = true }
  }

  package func summaryCompleted(error: Int32) { summary.completed(error: error) }

  // MARK: Order

  /// Asks for a flush of the log that covers all frames written so far.
  package func requestSync() {
    if plainOutstanding > 0 { syncWanted = true }
  }

  /// Moves the marks on over what was written, and issues a flush when one is wanted and not
  /// under way.
  package func advance() {
    guard !isBroken else { return }
    for i in 0..<line.count {
      let frame = frames[line.at(i)]
      guard frame.state == .written else { break }
      writtenSequence = max(writtenSequence, frame.sequence)
      if frame.writtenDurably, frame.sequence > durableSequence {
        durableSequence = frame.sequence
      }
    }
    if syncWanted, syncInFlight == 0, writtenSequence > durableSequence {
      syncInFlight = writtenSequence
      syncWanted = false
      ops.flush(.log, owner: .logSync, index: 0)
    }
  }

  /// A flush of the log ended.
  package func syncCompleted(error: Int32) {
    let covered = syncInFlight
    syncInFlight = 0
    if error != 0 {
      isBroken = true
      return
    }
    guard !isBroken else { return }
    if covered > durableSequence {
      plainOutstanding -= Int(covered - durableSequence)
      durableSequence = covered
    }
    if plainOutstanding > 0, line.contains({ frames[$0].mustBeDurable }) { syncWanted = true }
    if plainOutstanding == 0 { plainBytes = 0 }
  }

  package var isSyncing: Bool { syncInFlight != 0 }

  /// The next frame that counts, in order; the engine applies it and calls `applied`.
  package func nextToApply() -> Frame? {
    guard !isBroken, let index = line.first() else { return nil }
    let frame = frames[index]
    if fault == .ackBeforeDurable { return frame.state == .written ? frame : nil }
    let reached = frame.mustBeDurable ? durableSequence : max(writtenSequence, durableSequence)
    return frame.state == .written && reached >= frame.sequence ? frame : nil
  }

  package func applied(_ frame: Frame) {
    let index = line.pop()
    invariant(index == frame.index, "frames are applied out of order")
    if geometry.start(ofSegment: geometry.segment(of: frame.position)) == frame.position {
      // Where the frame begins, for what the segment in front of it has left is not needed: recovery
      // begins with the next one, whose summary can stand in for a frame of it.
      var end = appliedCut
      end.position = frame.position
      segmentEnds.push(end)
    }
    appliedSequence = frame.sequence
    if let gap = frame.gapBefore, spacing.note(clock &- frame.sent, behind: gap, now: clock) {
      paths.hit(.gapTrial)
    }
    if frame.records > 0 { appliedDataSequence = frame.sequence }
    appliedPosition = frame.nextPosition
    appliedChain = frame.headerChecksum
    frame.state = .free
  }

  /// After the epoch broke: gives back a frame that will never count, once nothing is in flight.
  package func nextVoid() -> Frame? {
    guard isBroken, inFlight == 0, syncInFlight == 0 else { return nil }
    if let index = line.pop() {
      frames[index].state = .free
      return frames[index]
    }
    if let frame = open {
      open = nil
      frame.state = .free
      return frame
    }
    isOpen = false
    return nil
  }

  /// The frame is open still or sealed; for attaching requests.
  package var openForRequests: Frame? { open }
}
