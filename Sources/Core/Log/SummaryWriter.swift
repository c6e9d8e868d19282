/// Gathers the tables of a segment's frames and writes them at the segment's end (see
/// Format/FrameFormat.swift). A segment whose tables outgrow the buffer gets no summary: recovery
/// then reads its frames.
struct SummaryWriter: ~Copyable {
  private let geometry: LogGeometry
  private let capacity: Int
  private var gathering: AlignedMemory
  private var writing: AlignedMemory
  private var length = 0
  private var frames = 0
  private var overflowed = false
  private var segment: UInt64 = 0
  /// A summary is being written; the next segment can't be closed until it is done.
  private(set) var isBusy = false

  init(geometry: LogGeometry) {
    self.geometry = geometry
    capacity = max(Int(geometry.segmentSize / 32), 128 * 1024)
    gathering = AlignedMemory(bytes: capacity)
    writing = AlignedMemory(bytes: capacity)
  }

  mutating func start(segment: UInt64) {
    self.segment = segment
    length = 0
    frames = 0
    overflowed = false
  }

  /// Bytes at the segment's end that the summary would take with one more table.
  func bytesNeeded(adding tableLength: Int) -> UInt64 {
    let more = length + SummaryEntry.size + roundUp(tableLength, to: 8)
    if overflowed || more > capacity - blockSize { return 0 }
    return UInt64(roundUp(more, to: blockSize) + blockSize)
  }

  mutating func add(_ entry: SummaryEntry, table: UnsafeRawPointer) {
    let size = SummaryEntry.size + roundUp(Int(entry.tableLength), to: 8)
    if overflowed || length + size > capacity - blockSize {
      overflowed = true
      return
    }
    let p = gathering.base + length
    p.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    entry.encode(to: p)
    (p + SummaryEntry.size).copyMemory(from: table, byteCount: Int(entry.tableLength))
    length += size
    frames += 1
  }

  /// Writes the summary of the segment that is full.
  mutating func write(
    epoch: UInt64, sequence: FrameSequence, chain: UInt32, durableSequence: FrameSequence,
    checkpoint: UInt64, ops: OpQueue
  ) {
    guard !overflowed, frames > 0 else { return }
    invariant(!isBusy, "two summaries at once")
    let tableBytes = roundUp(length, to: blockSize)
    (gathering.base + length)
      .initializeMemory(as: UInt8.self, repeating: 0, count: tableBytes + blockSize - length)
    let end = geometry.start(ofSegment: segment + 1)
    var header = FrameHeader()
    header.kind = .summary
    header.tag = geometry.tag
    header.epoch = epoch
    header.sequence = sequence
    header.position = end - UInt64(tableBytes + blockSize)
    header.chain = chain
    header.blocks = UInt32((tableBytes + blockSize) >> Int(blockShift))
    header.tableLength = UInt32(length)
    header.records = UInt32(frames)
    header.durableSequence = durableSequence
    header.checkpoint = checkpoint
    header.tableChecksum = crc32c(.init(start: gathering.base, count: length))
    header.encode(to: gathering.base + tableBytes)
    swap(&gathering, &writing)
    isBusy = true
    ops.issue(
      .writeDurable, .log, offset: geometry.deviceOffset(header.position),
      length: UInt64(tableBytes + blockSize), memory: writing.base, owner: .summary, index: 0)
  }

  /// A summary that could not be written is done without.
  mutating func completed(error: Int32) { isBusy = false }
}
