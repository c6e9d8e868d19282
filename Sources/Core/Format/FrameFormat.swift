// Frames: the unit of the log.
//
//     data frame     [header 128 | record table | zeros to 4 KiB][payload blocks ...][gap]
//     summary        [tables of the segment's frames | zeros ][ ... header in the segment's last block]
//
// The log is a ring of segments. Positions are virtual: they only grow, and map to the device by
// `LogGeometry`. Frames never cross a segment's end. A segment is closed by a summary, which ends
// at the segment's end so that recovery finds it without reading the frames (R1). The summary is
// an aid, not part of the chain: without it the segment's frames are read one by one.
//
// Header, 128 bytes, little-endian:
//
//       0  u32  magic "SLFR"
//       4  u8   format version (1)
//       5  u8   kind: 1 data (also the empty frame of an idle log), 2 summary
//       6  u16  flags: 1 = bridge written by repair in place of damaged frames
//       8  u32  CRC32C of the header with this field zero
//      12  u32  CRC32C of the record table
//      16  u64  log tag: low half of the log's member UUID
//      24  u64  epoch
//      32  u64  sequence (summary: of the segment's last frame; bridge: of the last frame replaced)
//      40  u64  position of the frame (of a summary: of its first table byte)
//      48  u32  chain: header CRC of the frame before (summary: of the segment's last frame; bridge: of itself
//               what the frame behind it names)
//      52  u32  length of the frame in blocks, its gap included: the next frame's distance
//      56  u32  length of the table in bytes
//      60  u32  number of records (summary: of frames)
//      64  u32  payload blocks
//      68  u32  zero
//      72  u64  sequence known durable when the frame was composed (R3)
//      80  u64  newest checkpoint known durable
//      88  u64  wall clock, nanoseconds since 1970
//      96  u64  instant at the frame's start
//     104       zeros
//
// The CRC of each payload block stands in the table, in the record it belongs to.

package enum FrameKind: UInt8, Sendable {
  case data = 1
  case summary = 2
}

package struct FrameHeader: Equatable, Sendable {
  package static let magic: UInt32 = 0x5246_4C53
  package static let version: UInt8 = 1
  package static let size = 128
  package static let bridge: UInt16 = 1

  package var kind = FrameKind.data
  package var flags: UInt16 = 0
  package var tableChecksum: UInt32 = 0
  package var tag: UInt64 = 0
  package var epoch: UInt64 = 0
  package var sequence: FrameSequence = 0
  package var position: UInt64 = 0
  package var chain: UInt32 = 0
  package var blocks: UInt32 = 0
  package var tableLength: UInt32 = 0
  package var records: UInt32 = 0
  package var payloadBlocks: UInt32 = 0
  package var durableSequence: FrameSequence = 0
  package var checkpoint: UInt64 = 0
  package var wallClock: UInt64 = 0
  package var instant: Instant = 0
  /// Set by encode and decode: the value that the next frame's `chain` names.
  package var headerChecksum: UInt32 = 0

  package init() {}

  /// Blocks that header and table take at the front of a data frame.
  package static func frontBlocks(tableLength: Int) -> Int {
    roundUp(size + tableLength, to: blockSize) >> Int(blockShift)
  }

  /// Fills 128 bytes and sets `headerChecksum`.
  package mutating func encode(to p: UnsafeMutableRawPointer) {
    p.initializeMemory(as: UInt8.self, repeating: 0, count: Self.size)
    p.put(Self.magic, at: 0)
    p.put(Self.version, at: 4)
    p.put(kind.rawValue, at: 5)
    p.put(flags, at: 6)
    p.put(tableChecksum, at: 12)
    p.put(tag, at: 16)
    p.put(epoch, at: 24)
    p.put(sequence, at: 32)
    p.put(position, at: 40)
    p.put(chain, at: 48)
    p.put(blocks, at: 52)
    p.put(tableLength, at: 56)
    p.put(records, at: 60)
    p.put(payloadBlocks, at: 64)
    p.put(durableSequence, at: 72)
    p.put(checkpoint, at: 80)
    p.put(wallClock, at: 88)
    p.put(instant, at: 96)
    headerChecksum = crc32c(.init(start: p, count: Self.size))
    p.put(headerChecksum, at: 8)
  }

  /// Nil when there is no valid header of the log with this tag. Lengths are checked to be
  /// consistent with each other and to fit `maximumBlocks`, counters to be below `counterLimit`.
  package init?(decoding p: UnsafeRawPointer, tag expected: UInt64, maximumBlocks: UInt64) {
    guard p.u32(0) == Self.magic, p.u8(4) == Self.version, let kind = FrameKind(rawValue: p.u8(5)),
      p.u64(16) == expected,
      p.u32(8) == checksumOmitting(p, count: Self.size, field: 8)
    else { return nil }
    self.kind = kind
    headerChecksum = p.u32(8)
    flags = p.u16(6)
    tableChecksum = p.u32(12)
    tag = expected
    epoch = p.u64(24)
    sequence = p.u64(32)
    position = p.u64(40)
    chain = p.u32(48)
    blocks = p.u32(52)
    tableLength = p.u32(56)
    records = p.u32(60)
    payloadBlocks = p.u32(64)
    durableSequence = p.u64(72)
    checkpoint = p.u64(80)
    wallClock = p.u64(88)
    instant = p.u64(96)
    guard blocks > 0, UInt64(blocks) <= maximumBlocks, position % UInt64(blockSize) == 0,
      position < counterLimit, sequence < counterLimit, durableSequence < counterLimit,
      epoch < counterLimit
    else { return nil }
    if kind == .data, flags & Self.bridge == 0 {
      guard tableLength <= blocks << 12,
        UInt64(Self.frontBlocks(tableLength: Int(tableLength))) + UInt64(payloadBlocks)
          <= UInt64(blocks)
      else { return nil }
    }
    if kind == .summary {
      guard tableLength > 0, UInt64(tableLength) <= UInt64(blocks - 1) << blockShift else {
        return nil
      }
    }
  }
}

/// An entry of a summary: what recovery needs of one frame, in front of the frame's table.
///
///     0  u64  sequence
///     8  u64  position
///    16  u32  length of the frame in blocks, its gap included
///    20  u32  length of its table in bytes; the table follows, padded to 8
///    24  u64  instant at the frame's start
package struct SummaryEntry: Sendable {
  package static let size = 32
  package var sequence: FrameSequence
  package var position: UInt64
  package var blocks: UInt32
  package var tableLength: UInt32
  package var instant: Instant

  package init(header: FrameHeader) {
    sequence = header.sequence
    position = header.position
    blocks = header.blocks
    tableLength = header.tableLength
    instant = header.instant
  }

  package init(decoding p: UnsafeRawPointer) {
    sequence = p.u64(0)
    position = p.u64(8)
    blocks = p.u32(16)
    tableLength = p.u32(20)
    instant = p.u64(24)
  }

  package func encode(to p: UnsafeMutableRawPointer) {
    p.put(sequence, at: 0)
    p.put(position, at: 8)
    p.put(blocks, at: 16)
    p.put(tableLength, at: 20)
    p.put(instant, at: 24)
  }

  /// Position of the frame's first payload block.
  package var payloadPosition: UInt64 {
    position + UInt64(FrameHeader.frontBlocks(tableLength: Int(tableLength))) << blockShift
  }
}
