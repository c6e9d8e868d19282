// Read-ahead: a sequential reader's next blocks are brought into the cache before it asks.
//
// A stream is a place on a disk where a read ended; each disk remembers its last few. A read that
// begins at a stream's end carries it on. Once a stream is some reads long, and its blocks came
// from a device, the window behind it is read in pieces, twice as far each time, up to 1 MiB. A
// read that meets a piece on its way waits for it instead of reading the same blocks again.
//
// Only few reads at a time are helped: a client that keeps many in flight reads ahead by itself.

/// Where a sequential reader goes on; in blocks.
package struct ReadStream: Sendable {
  /// One behind the last block that was read.
  package var next: UInt64 = .max
  /// One behind the last block that was read ahead.
  package var ahead: UInt64 = 0
  /// Blocks read in a row.
  package var length: UInt64 = 0
  /// Some of them came from a device.
  package var missed = false
  package init() {}
}

final class ReadAhead {
  static let pieces = 8
  private static let longestWindow = UInt64(1 << 20) >> blockShift
  /// Blocks in a row from which on a stream is one.
  static let threshold = UInt64(64 << 10) >> blockShift
  /// Reads of one disk at a time beyond which it is not helped.
  static let busy = 4

  private struct Piece {
    var disk: UInt32 = 0
    var blocks: Range<UInt64> = 0..<0
  }

  private let memory = AlignedMemory(uninitializedBytes: ReadAhead.pieces * maximumPiece)
  private var active = [Piece](repeating: Piece(), count: ReadAhead.pieces)
  private var free = Array(0..<ReadAhead.pieces)

  var isIdle: Bool { free.count == Self.pieces }

  /// How far behind its end a stream is read ahead.
  static func window(_ stream: ReadStream) -> UInt64 { min(2 * stream.length, longestWindow) }

  /// Whether the block is on its way.
  func covers(_ disk: UInt32, _ block: UInt64) -> Bool {
    guard !isIdle else { return false }
    return active.contains { $0.blocks.contains(block) && $0.disk == disk }
  }

  func take(_ disk: UInt32, _ blocks: Range<UInt64>) -> (Int, UnsafeMutableRawPointer)? {
    guard let i = free.popLast() else { return nil }
    active[i] = Piece(disk: disk, blocks: blocks)
    return (i, memory.base + i * maximumPiece)
  }

  func give(_ i: Int) {
    active[i] = Piece()
    free.append(i)
  }
}

extension Engine {
  /// A client's read begins: it carries a stream of its disk on, or starts one.
  func followStream(_ slot: Int32, _ disk: VirtualDisk) {
    let (first, end) = (requests[slot].firstBlock, requests[slot].endBlock)
    if let i = disk.streams.firstIndex(where: { $0.next == first }) {
      disk.streams[i].next = end
      disk.streams[i].length += end - first
      requests[slot].stream = Int8(i)
      requests[slot].followsStream = true
    } else {
      disk.oldestStream = (disk.oldestStream + 1) % disk.streams.count
      disk.streams[disk.oldestStream] = ReadStream()
      disk.streams[disk.oldestStream].next = end
      requests[slot].stream = Int8(disk.oldestStream)
    }
  }

  /// Reads ahead of a stream where that is worth it.
  func refill(_ stream: inout ReadStream, _ disk: VirtualDisk) {
    guard stream.missed, stream.length >= ReadAhead.threshold, disk.requests <= ReadAhead.busy
    else { return }
    let window = ReadAhead.window(stream)
    let limit = min(stream.next + window, disk.sizeInBlocks)
    stream.ahead = max(stream.ahead, stream.next)
    // Refilled when half of it is used up.
    guard stream.ahead < limit, limit - stream.ahead >= window / 2 else { return }
    while stream.ahead < limit {
      let piece = min(limit - stream.ahead, UInt64(maximumPiece) >> blockShift)
      guard readAhead(disk, stream.ahead..<stream.ahead + piece) else { return }
      stream.ahead += piece
    }
  }

  /// False when there is no room for the piece, or the log holds some of it.
  private func readAhead(_ disk: VirtualDisk, _ blocks: Range<UInt64>) -> Bool {
    guard case .mapped(_, let free)? = try? find(disk, blocks.lowerBound, UInt64(blocks.count)),
      free >= UInt64(blocks.count), let (piece, memory) = ahead.take(disk.place, blocks)
    else { return false }
    let read = BlockRequest(
      operation: .read, disk: disk.handle, offset: blocks.lowerBound << blockShift,
      length: UInt64(blocks.count) << blockShift, memory: memory, token: UInt64(piece))
    guard let slot = requests.take(read) else {
      ahead.give(piece)
      return false
    }
    pool.paths.hit(.readAhead)
    requests[slot].isInternal = true
    requests[slot].isReadAhead = true
    requests[slot].countsOnDisk = true
    disk.requests += 1
    resolveRead(slot, disk)
    return true
  }

  /// A piece is in the cache, or could not be read: whoever waits for it looks for itself.
  func readAheadEnded(_ request: BlockRequest) {
    ahead.give(Int(request.token))
    loadEnded = true
  }
}
