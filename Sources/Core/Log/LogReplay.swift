// Replay: which frames of the log count after a crash, and what they say.
//
// Start: the frame behind the root's cut. Each frame must continue the one before: its position,
// its sequence, its epoch, and the checksum of the header before it (R2). Of a segment that was
// closed by a summary only the summary is read, where all its frames are known durable (R1);
// other segments are read whole.
//
// W, the watermark, is the highest sequence that any valid header calls durable. What to do where
// the expected frame is not at its place, or is not whole:
//
//     next epoch of the record starts with this sequence     go on there
//     valid expected frame at the next segment's start       go on there (segment was closed)
//     a summary has it there or here, W >= all that it has   take the segment from its summary
//     W >= expected, or a later epoch is recorded            damage: refuse to open
//     else                                                   the tail: all before it counts
//
//     payload block with a wrong checksum, sequence <= W     counts; reading the block is an error
//     payload block with a wrong checksum, sequence > W      torn: the tail
//
// All of this goes by the record of epochs. Where the newest frames are of an epoch that it does not
// have, or the root's cut is in none of its, the newest record was lost, and the log is refused:
// replay would take what was acknowledged since for void.
//
// To know W behind a bad frame, the 32 MiB behind it are looked through, in its segment and the two
// that follow: more than can be in flight, or unsynced but for a flush that takes very long. What
// is further away is known from the first and the last block of every segment.

package final class LogReplay {
  package enum Outcome: Equatable {
    case working
    case done
    case failed(String)
  }

  private struct PendingFrame {
    var table: UnsafeRawPointer
    var length: Int
    var sequence: FrameSequence
    var payloadBlock: UInt64
    /// What of the log it fills, without its gap; empty where that was not looked at.
    var written: Range<UInt64> = 0..<0
    var nextPosition: UInt64
    var chain: UInt32
    var epoch: UInt64
    var isWhole: Bool
    var instant: Instant
  }

  private enum Need: Error {
    /// The segment's content up to an offset.
    case segment(UInt64, upTo: Int)
    case table(UInt64)
    case failed(String)
  }

  /// A segment's memory; the first `loaded` bytes were read.
  private struct Segment {
    var memory: AlignedMemory
    var loaded: Int
  }

  private let geometry: LogGeometry
  private let ops: OpQueue
  private let epochs: [Epoch]
  private let firstSegment: UInt64
  private var fault: PlantedFault?

  // Where the walk is.
  private var position: UInt64
  private var expected: FrameSequence
  private var chain: UInt32
  private var epochIndex: Int
  /// The newest epoch that the root or a frame at the begin or end of a segment belongs to.
  private var newestEpoch: UInt64
  /// Whether the record has what the walk begins with: the epoch of the root's cut, or one that
  /// begins behind it.
  private let cutIsRecorded: Bool

  package private(set) var watermark: FrameSequence = 0
  /// Highest checkpoint that a valid frame calls durable (R19).
  package private(set) var highestCheckpoint: UInt64 = 0
  package private(set) var frames: UInt64 = 0
  package private(set) var lastInstant: Instant = 0
  package var paths = RarePathCounters()

  // The last frame that counts.
  package private(set) var lastSequence: FrameSequence
  package private(set) var lastPosition: UInt64
  package private(set) var lastChain: UInt32
  package private(set) var lastEpoch: UInt64

  /// Where the frames are that count because they are there, and not because one behind them calls
  /// them durable; gaps left out. What is there need not last: after a failed flush a device may
  /// show content that it has given up.
  package private(set) var tail: [Range<UInt64>] = []

  private var pending: [PendingFrame] = []
  private var summaries: [UInt64: FrameHeader] = [:]
  private var tables: [UInt64: AlignedMemory] = [:]
  private var segments: [UInt64: Segment] = [:]

  // Reads under way.
  private struct Read {
    var offset: UInt64
    var length: Int
    var memory: UnsafeMutableRawPointer
    var attempts = 0
  }
  private var reads: [Read] = []
  private var readsLeft = 0
  private var nextRead = 0
  private var lookahead: AlignedMemory?
  /// Blocks that could not be read, and one that could.
  private var refused: [Read] = []
  private var readable: UInt64?
  /// While refused blocks are read once more: where `readable` is read with them.
  private var probe: AlignedMemory?

  /// Takes the records of one frame in order; false when the table is not well-formed.
  package var apply:
    (_ table: UnsafeRawPointer, _ length: Int, _ sequence: FrameSequence, _ payloadBlock: UInt64) ->
      Bool = { _, _, _, _ in true }

  package init(
    geometry: LogGeometry, ops: OpQueue, root: RootRecord, epochs: [Epoch], fault: PlantedFault?
  ) {
    self.geometry = geometry
    self.ops = ops
    self.epochs = epochs
    self.fault = fault
    position = root.nextPosition
    expected = root.cutSequence + 1
    chain = root.cutChain
    epochIndex = epochs.lastIndex { $0.firstSequence < root.cutSequence + 1 } ?? -1
    newestEpoch = root.cutEpoch
    cutIsRecorded =
      epochIndex >= 0 || (epochs.first?.firstSequence ?? 1) == root.cutSequence + 1
    lastSequence = root.cutSequence
    lastPosition = root.nextPosition
    lastChain = root.cutChain
    firstSegment = geometry.segment(of: root.nextPosition)
    // What lies before a later epoch's start counted, durable, when that epoch was opened.
    watermark = max(root.cutSequence, max(epochs.last?.firstSequence ?? 1, 1) - 1)
    lastEpoch = root.cutEpoch
  }

  // MARK: Reading

  /// Begins with the last block of every segment, where summaries end, and the first, where frames
  /// begin: whatever a valid header there names durable must have been found (R19).
  package func start() {
    let memory = AlignedMemory(bytes: 2 * Int(geometry.segments) * blockSize)
    lookahead = memory
    var list: [Read] = []
    for i in 0..<geometry.segments {
      let start = geometry.start(ofSegment: firstSegment + i)
      let end = geometry.start(ofSegment: firstSegment + i + 1)
      for (j, at) in [end - UInt64(blockSize), start].enumerated() {
        list.append(
          Read(
            offset: geometry.deviceOffset(at), length: blockSize,
            memory: memory.base + (2 * Int(i) + j) * blockSize))
      }
    }
    issue(list)
  }

  private func issue(_ list: [Read]) {
    reads = list
    readsLeft = list.count
    nextRead = 0
    while nextRead < min(64, reads.count) { issueNext() }
  }

  private func issueNext() {
    let read = reads[nextRead]
    ops.issue(
      .read, .log, offset: read.offset, length: UInt64(read.length), memory: read.memory,
      owner: .recovery, index: nextRead)
    nextRead += 1
  }

  /// A read ended. It is tried three times.
  package func readCompleted(_ i: Int, error: Int32) {
    if error == 0 {
      readable = reads[i].offset
    } else {
      reads[i].attempts += 1
      if reads[i].attempts < 3 {
        let read = reads[i]
        return ops.issue(
          .read, .log, offset: read.offset, length: UInt64(read.length), memory: read.memory,
          owner: .recovery, index: i)
      }
      giveUp(reads[i])
    }
    readsLeft -= 1
    if nextRead < reads.count { issueNext() }
  }

  /// A block that can't be read must not take its neighbours with it.
  private func giveUp(_ read: Read) {
    if read.length == blockSize { return refused.append(read) }
    for at in stride(from: 0, to: read.length, by: blockSize) {
      reads.append(
        Read(offset: read.offset + UInt64(at), length: blockSize, memory: read.memory + at))
      readsLeft += 1
    }
  }

  /// Reads what was refused once more, and beside it what was read before: if that is refused as well, it
  /// is the device that does not read now, and frames that were acknowledged would be taken for a torn tail. Else what
  /// is still refused counts as damaged: zeros.
  private func lookAgain() -> Outcome? {
    if let probe {
      self.probe = nil
      guard !refused.contains(where: { $0.memory == probe.base }) else { return Self.unreadable }
      for read in refused {
        read.memory.initializeMemory(as: UInt8.self, repeating: 0, count: read.length)
      }
      refused = []
      return nil
    }
    guard let readable else { return Self.unreadable }
    let probe = AlignedMemory(bytes: blockSize)
    self.probe = probe
    let again = [(readable, probe.base)] + refused.map { ($0.offset, $0.memory) }
    refused = []
    issue(again.map { Read(offset: $0, length: blockSize, memory: $1) })
    return .working
  }

  private static let unreadable = Outcome.failed(
    "the log can't be read, so it can't be told what was acknowledged; check the device and start again"
  )

  // MARK: The walk

  /// Goes on as far as what has been read allows.
  package func step() -> Outcome {
    guard readsLeft == 0 else { return .working }
    if !refused.isEmpty || probe != nil, let outcome = lookAgain() { return outcome }
    if let memory = lookahead {
      takeSummaries(memory)
      lookahead = nil
    }
    do throws(Need) {
      try walk()
      return .done
    } catch {
      switch error {
      case .failed(let why): return .failed(why)
      case .segment(let segment, let end): loadSegment(segment, upTo: end)
      case .table(let segment): loadTable(segment)
      }
      return .working
    }
  }

  private func takeSummaries(_ memory: AlignedMemory) {
    for i in 0..<geometry.segments {
      let segment = firstSegment + i
      if let first = FrameHeader(
        decoding: memory.base + (2 * Int(i) + 1) * blockSize, tag: geometry.tag,
        maximumBlocks: geometry.segmentBlocks)
      {
        note(first)
      }
      guard
        let header = FrameHeader(
          decoding: memory.base + 2 * Int(i) * blockSize, tag: geometry.tag,
          maximumBlocks: geometry.segmentBlocks), header.kind == .summary
      else { continue }
      newestEpoch = max(newestEpoch, header.epoch)
      guard header.sequence >= expected,
        header.position + UInt64(header.blocks) << blockShift
          == geometry.start(ofSegment: segment + 1),
        epochs.contains(where: { $0.number == header.epoch })
      else { continue }
      summaries[segment] = header
      note(header)
    }
  }

  private func note(_ header: FrameHeader) {
    newestEpoch = max(newestEpoch, header.epoch)
    watermark = max(watermark, header.durableSequence)
    highestCheckpoint = max(highestCheckpoint, header.checkpoint)
  }

  private func walk() throws(Need) {
    guard cutIsRecorded, newestEpoch <= epochs.last?.number ?? 0 else {
      throw .failed(
        "the newest epoch record of the log was lost, so it can't be told which frames count; run "
          + "`sluice check --repair`, which makes it anew from the frames")
    }
    while true {
      if jumpToNextEpoch() { continue }
      guard epochIndex >= 0 else { break }
      let segment = geometry.segment(of: position)
      guard segment < firstSegment + geometry.segments else { break }
      if try useSummary(segment) { continue }
      if try takeFrame(at: position) { continue }
      let next = geometry.start(ofSegment: segment + 1)
      if segment + 1 < firstSegment + geometry.segments, next != position,
        try peekFrame(at: next) != nil
      {
        paths.hit(.segmentScanReplay)
        position = next
        continue
      }
      try lookBehind(segment)
      try takeCertain()
      // By now it may be known that what a summary names was durable.
      if try useSummary(segment) { continue }
      if next != position, try useSummary(segment + 1) { continue }
      if watermark >= expected
        || epochs[(epochIndex + 1)...].contains(where: { $0.firstSequence > expected })
      {
        throw .failed(
          "the log is damaged: frame \(expected) at log position \(position) is unreadable although "
            + "it was acknowledged; run `sluice check` to see what is affected, and "
            + "`sluice check --repair` to go on without it")
      }
      break
    }
    try finish()
  }

  private func jumpToNextEpoch() -> Bool {
    guard epochIndex + 1 < epochs.count, epochs[epochIndex + 1].firstSequence == expected else {
      return false
    }
    epochIndex += 1
    position = epochs[epochIndex].position
    chain = epochs[epochIndex].chain
    return true
  }

  // MARK: Summaries

  private func useSummary(_ segment: UInt64) throws(Need) -> Bool {
    guard let header = summaries[segment], header.epoch == epochs[epochIndex].number else {
      return false
    }
    // It may name frames that did not survive: the next epoch then took their sequences.
    var (last, lastChain) = (header.sequence, header.chain)
    if epochIndex + 1 < epochs.count, epochs[epochIndex + 1].firstSequence <= last {
      (last, lastChain) = (epochs[epochIndex + 1].firstSequence - 1, epochs[epochIndex + 1].chain)
    }
    guard last >= expected, last <= watermark else { return false }
    guard let table = tables[segment] else { throw .table(segment) }
    defer { tables[segment] = nil }
    let length = Int(header.tableLength)
    guard crc32c(.init(start: table.base, count: length)) == header.tableChecksum else {
      summaries[segment] = nil
      return false
    }
    var at = 0
    var next = expected
    var found: [PendingFrame] = []
    while at < length {
      guard at + SummaryEntry.size <= length else { break }
      let entry = SummaryEntry(decoding: table.base + at)
      let end = at + SummaryEntry.size + Int(entry.tableLength)
      guard end <= length, entry.position < counterLimit else { break }
      if entry.sequence >= expected, entry.sequence <= last {
        guard entry.sequence == next else { break }
        found.append(
          PendingFrame(
            table: UnsafeRawPointer(table.base + at + SummaryEntry.size),
            length: Int(entry.tableLength), sequence: entry.sequence,
            payloadBlock: entry.payloadPosition >> blockShift,
            nextPosition: entry.position + UInt64(entry.blocks) << blockShift,
            chain: lastChain, epoch: header.epoch, isWhole: true, instant: entry.instant))
        next += 1
      }
      at = roundUp(end, to: 8)
    }
    guard next == last + 1, pending.isEmpty else {
      summaries[segment] = nil
      return false
    }
    for frame in found { try take(frame) }
    expected = next
    chain = lastChain
    position = geometry.start(ofSegment: segment + 1)
    paths.hit(.segmentSummaryReplay)
    return true
  }

  /// Loads the table of a segment's summary, and those that will be wanted next.
  private func loadTable(_ segment: UInt64) {
    tables = tables.filter { $0.key > segment }
    var list: [Read] = []
    for s in segment..<segment + Self.tablesAtOnce {
      guard tables[s] == nil, let header = summaries[s] else { continue }
      let length = Int(header.blocks - 1) << Int(blockShift)
      let memory = AlignedMemory(uninitializedBytes: length)
      tables[s] = memory
      list.append(
        Read(offset: geometry.deviceOffset(header.position), length: length, memory: memory.base))
    }
    issue(list)
  }
  private static let tablesAtOnce: UInt64 = 16

  /// Reads on in the segment, at least up to `end`.
  private func loadSegment(_ segment: UInt64, upTo end: Int) {
    if pending.isEmpty { segments = segments.filter { $0.key + 1 >= segment } }
    let size = Int(geometry.segmentSize)
    var state =
      segments[segment] ?? Segment(memory: AlignedMemory(uninitializedBytes: size), loaded: 0)
    let start = state.loaded
    state.loaded = min(size, roundUp(max(end, start + Self.window), to: Self.piece))
    segments[segment] = state
    issue(
      stride(from: start, to: state.loaded, by: Self.piece).map {
        Read(
          offset: geometry.deviceOffset(geometry.start(ofSegment: segment)) + UInt64($0),
          length: Self.piece, memory: state.memory.base + $0)
      })
  }
  private static let piece = 1 << 20
  private static let window = 8 << 20
  /// The most that one frame takes: header, table and payload.
  private static let longestFrame = (1 << 20) + LogWriter.tableArea + blockSize

  /// The segment's memory, filled up to `end` at least.
  private func content(
    _ segment: UInt64, upTo end: Int
  ) throws(Need) -> UnsafeMutableRawPointer {
    let end = min(end, Int(geometry.segmentSize))
    guard let state = segments[segment], state.loaded >= end else {
      throw .segment(segment, upTo: end)
    }
    return state.memory.base
  }

  // MARK: Frames

  /// The valid expected frame at `position`, or nil.
  private func peekFrame(at position: UInt64) throws(Need) -> (FrameHeader, UnsafeRawPointer)? {
    let segment = geometry.segment(of: position)
    let offset = Int(position & (geometry.segmentSize - 1))
    let p = UnsafeRawPointer(try content(segment, upTo: offset + Self.longestFrame) + offset)
    guard
      let header = FrameHeader(
        decoding: p, tag: geometry.tag,
        maximumBlocks: (geometry.segmentSize - UInt64(offset)) >> blockShift),
      header.kind == .data, header.position == position
    else { return nil }
    guard header.epoch == epochs[epochIndex].number || fault == .epochNotRaised else {
      paths.hit(.staleFrameVoid)
      return nil
    }
    if header.flags & FrameHeader.bridge != 0 {
      return header.sequence + 1 >= expected ? (header, p) : nil
    }
    guard header.sequence == expected, header.chain == chain,
      crc32c(.init(start: p + FrameHeader.size, count: Int(header.tableLength)))
        == header.tableChecksum
    else {
      if header.sequence == expected { paths.hit(.tornTail) }
      return nil
    }
    return (header, p)
  }

  private func takeFrame(at position: UInt64) throws(Need) -> Bool {
    guard let (header, p) = try peekFrame(at: position) else { return false }
    note(header)
    let isBridge = header.flags & FrameHeader.bridge != 0
    let front = FrameHeader.frontBlocks(tableLength: Int(header.tableLength))
    let frame = PendingFrame(
      table: p + FrameHeader.size, length: isBridge ? 0 : Int(header.tableLength),
      sequence: header.sequence, payloadBlock: (position >> blockShift) + UInt64(front),
      written: position..<position + UInt64(front + Int(header.payloadBlocks)) << blockShift,
      nextPosition: position + UInt64(header.blocks) << blockShift,
      chain: isBridge ? header.chain : header.headerChecksum, epoch: header.epoch,
      isWhole: header.sequence <= watermark || isBridge || fault == .logTailUnchecked
        || payloadIsWhole(p, header),
      instant: header.instant)
    pending.append(frame)
    expected = frame.sequence + 1
    self.chain = frame.chain
    self.position = frame.nextPosition
    try takeCertain()
    return true
  }

  private func payloadIsWhole(_ p: UnsafeRawPointer, _ header: FrameHeader) -> Bool {
    let payload = p + FrameHeader.frontBlocks(tableLength: Int(header.tableLength)) * blockSize
    var cursor = RecordCursor(
      table: p + FrameHeader.size, length: Int(header.tableLength))
    while let record = cursor.next() {
      guard case .data(_, _, _, let count, let first, let checksums) = record else { continue }
      guard Int(first) + count <= Int(header.payloadBlocks) else { return false }
      for i in 0..<count
      where crc32cBlock(payload + (Int(first) + i) * blockSize) != checksums.u32(4 * i) {
        return false
      }
    }
    return cursor.isAtEnd
  }

  /// Applies the frames at the front of the line that are known to count.
  private func takeCertain() throws(Need) {
    var n = 0
    while n < pending.count, pending[n].sequence <= watermark {
      try take(pending[n])
      n += 1
    }
    pending.removeFirst(n)
  }

  private func take(_ frame: PendingFrame) throws(Need) {
    guard apply(frame.table, frame.length, frame.sequence, frame.payloadBlock) else {
      throw .failed(
        "the log is damaged: the record table of frame \(frame.sequence) is not well-formed; run "
          + "`sluice check`")
    }
    if frame.sequence > watermark {
      if let last = tail.last, last.upperBound == frame.written.lowerBound {
        tail[tail.count - 1] = last.lowerBound..<frame.written.upperBound
      } else {
        tail.append(frame.written)
      }
    }
    frames += 1
    lastSequence = frame.sequence
    lastPosition = frame.nextPosition
    lastChain = frame.chain
    lastEpoch = frame.epoch
    lastInstant = max(lastInstant, frame.instant)
  }

  /// Looks for headers behind the end of the walk whose watermark covers the expected frame.
  private func lookBehind(_ segment: UInt64) throws(Need) {
    var left = 32 << 20
    for s in segment...(segment + 2) where s < firstSegment + geometry.segments {
      let start = s == segment ? Int(position & (geometry.segmentSize - 1)) : 0
      let end = min(Int(geometry.segmentSize), start + left)
      left -= end - start
      let memory = try content(s, upTo: end)
      for offset in stride(from: start, to: end, by: blockSize) {
        let p = UnsafeRawPointer(memory + offset)
        guard p.u32(0) == FrameHeader.magic,
          let header = FrameHeader(
            decoding: p, tag: geometry.tag, maximumBlocks: geometry.segmentBlocks),
          header.epoch == epochs[epochIndex].number, header.sequence >= expected,
          header.kind == .summary
            || header.position == geometry.start(ofSegment: s) + UInt64(offset)
        else { continue }
        note(header)
      }
    }
  }

  /// The walk is over: what is certain counts, and behind it what is whole, up to the first that
  /// is not.
  private func finish() throws(Need) {
    try takeCertain()
    for frame in pending {
      guard frame.isWhole else {
        paths.hit(.tornPayload)
        break
      }
      try take(frame)
    }
    pending.removeAll()
    segments.removeAll()
    tables.removeAll()
  }
}
