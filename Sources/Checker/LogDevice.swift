import Core

/// Reads frames of the log by their position. The arithmetic of positions is written anew here,
/// from docs/formats/log.md: the checker shares only decoders with the engine.
final class LogDevice {
  let member: Member
  let tag: UInt64
  let segmentSize: UInt64
  let segments: UInt64

  private static let windowBlocks = 256
  private let window = AlignedMemory(bytes: windowBlocks * blockSize)
  private var windowStart: UInt64 = 0
  private var windowCount = 0
  private var large: AlignedMemory?

  init(member: Member, label: DeviceLabel) {
    self.member = member
    tag = label.member.low
    segmentSize = 1 << UInt64(label.segmentShift)
    segments = LogLayout.segments(sizeInBlocks: label.sizeInBlocks, shift: label.segmentShift)
  }

  var segmentBlocks: UInt64 { segmentSize >> blockShift }
  var capacity: UInt64 { segments * segmentSize }

  /// Block on the device of a position. Positions may be hostile: no overflow for any.
  func block(of position: UInt64) -> UInt64 {
    LogLayout.data + (position / segmentSize % segments) * segmentBlocks
      + (position % segmentSize) >> blockShift
  }

  func byteOffset(of position: UInt64) -> UInt64 { block(of: position) << blockShift }

  func nextSegmentStart(after position: UInt64) -> UInt64 {
    (position / segmentSize &+ 1) &* segmentSize
  }

  /// Blocks from `position` to the end of its segment.
  func blocksLeft(at position: UInt64) -> Int {
    Int((segmentSize - position % segmentSize) >> blockShift)
  }

  /// `count` blocks at `position`, all within its segment; nil when they can't be read. Valid
  /// until the next call. With `ahead`, what follows is read as well, for the calls to come.
  func load(_ position: UInt64, count: Int, ahead: Bool = true) -> UnsafeRawPointer? {
    let left = blocksLeft(at: position)
    guard count > 0, count <= left else { return nil }
    let first = block(of: position)
    if first >= windowStart, first + UInt64(count) <= windowStart + UInt64(windowCount) {
      return UnsafeRawPointer(window.base + Int(first - windowStart) * blockSize)
    }
    windowCount = 0
    if count > Self.windowBlocks { return loadLarge(first, count) }
    for size in [ahead ? min(left, Self.windowBlocks) : count, count] {
      if member.read(block: first, count: size, into: window.base) {
        windowStart = first
        windowCount = size
        return UnsafeRawPointer(window.base)
      }
    }
    return nil
  }

  private func loadLarge(_ first: UInt64, _ count: Int) -> UnsafeRawPointer? {
    if large?.count ?? 0 < count * blockSize { large = AlignedMemory(bytes: count * blockSize) }
    guard let large, member.read(block: first, count: count, into: large.base) else { return nil }
    return UnsafeRawPointer(large.base)
  }

  /// What was read is no longer so: something was written.
  func forget() { windowCount = 0 }

  /// A valid header in the block at `position` that says it stands there.
  func header(at position: UInt64) -> FrameHeader? {
    guard let p = load(position, count: 1),
      let h = FrameHeader(decoding: p, tag: tag, maximumBlocks: segmentBlocks),
      h.kind == .data, h.position == position, Int(h.blocks) <= blocksLeft(at: position)
    else { return nil }
    return h
  }

  /// A header in the first block of segment place `index` (on the device), of whatever lap.
  func headerOfSegment(_ index: UInt64) -> FrameHeader? {
    guard let p = load(index * segmentSize, count: 1, ahead: false),
      let h = FrameHeader(decoding: p, tag: tag, maximumBlocks: segmentBlocks),
      h.kind == .data, h.position % segmentSize == 0,
      h.position / segmentSize % segments == index
    else { return nil }
    return h
  }

  /// A summary's header in the last block of segment place `index`, of whatever lap.
  func summaryHeaderOfSegment(_ index: UInt64) -> FrameHeader? {
    guard
      let p = load(
        (index + 1) * segmentSize - UInt64(blockSize), count: 1, ahead: false),
      let h = FrameHeader(decoding: p, tag: tag, maximumBlocks: segmentBlocks), h.kind == .summary
    else { return nil }
    return h
  }

  /// The table of a frame; nil when it can't be read or is not what the header says.
  func table(of header: FrameHeader) -> [UInt8]? {
    if header.flags & FrameHeader.bridge != 0 { return [] }
    let length = Int(header.tableLength)
    guard let p = load(header.position, count: FrameHeader.frontBlocks(tableLength: length)) else {
      return nil
    }
    let bytes = UnsafeRawBufferPointer(start: p + FrameHeader.size, count: length)
    return crc32c(bytes) == header.tableChecksum ? Array(bytes) : nil
  }
}

/// A frame's summary entry with its table.
struct SummaryItem {
  var entry: SummaryEntry
  var table: [UInt8]
  /// Where the table is on the log device, in bytes.
  var tableOffset: UInt64
}

/// The summary at a segment's end.
struct SegmentSummary {
  var header: FrameHeader
  var items: [SummaryItem]
}

enum SummaryState {
  /// There is none for this lap of the ring; the segment's frames are read one by one.
  case absent
  /// Its header is there and its tables are damaged.
  case damaged
  case valid(SegmentSummary)
}

extension LogDevice {
  /// The summary of the segment that `position` lies in.
  func summary(ofSegmentAt position: UInt64, epoch: UInt64) -> SummaryState {
    let last = nextSegmentStart(after: position) - UInt64(blockSize)
    guard let p = load(last, count: 1),
      let h = FrameHeader(decoding: p, tag: tag, maximumBlocks: segmentBlocks),
      h.kind == .summary, h.epoch == epoch,
      h.position == last + UInt64(blockSize) - UInt64(h.blocks) << blockShift
    else { return .absent }
    let length = Int(h.tableLength)
    guard length > 0 else { return .valid(SegmentSummary(header: h, items: [])) }
    guard let tables = load(h.position, count: roundUp(length, to: blockSize) / blockSize) else {
      return .damaged
    }
    let bytes = UnsafeRawBufferPointer(start: tables, count: length)
    guard crc32c(bytes) == h.tableChecksum,
      let items = parse(bytes, at: byteOffset(of: h.position)), items.count == Int(h.records)
    else { return .damaged }
    return .valid(SegmentSummary(header: h, items: items))
  }

  private func parse(_ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> [SummaryItem]? {
    var items: [SummaryItem] = []
    var at = 0
    while at < bytes.count {
      guard at + SummaryEntry.size <= bytes.count else { return nil }
      let entry = SummaryEntry(decoding: bytes.baseAddress! + at)
      let table = at + SummaryEntry.size
      let length = Int(entry.tableLength)
      guard roundUp(length, to: 8) <= bytes.count - table else { return nil }
      items.append(
        SummaryItem(
          entry: entry, table: Array(bytes[table..<(table + length)]),
          tableOffset: offset + UInt64(table)))
      at = table + roundUp(length, to: 8)
    }
    return items
  }
}
