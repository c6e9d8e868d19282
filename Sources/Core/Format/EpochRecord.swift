// Epochs: which frames of the log count.
//
// Each opening of the log takes a new epoch. Its number and the position of its first frame are
// durable here before that frame is written; a frame of an older epoch with a sequence at or after
// that start is void, so that a stale frame behind a torn one never comes back to life (R2).
//
// The record holds the epochs that recovery still needs, oldest first: the epoch of the newest
// checkpoint's cut and every later one. An epoch that wrote no frame is dropped when the next is
// opened. Records are written in turn to a ring of 16 blocks, each twice in neighbouring blocks; the
// valid one with the highest counter counts.
//
// One block, little-endian:
//
//       0  u64  magic "SLUICEEP"
//       8  u32  format version (1)
//      12  u32  CRC32C of the block with this field zero
//      16  u64  log tag: low half of the log's member UUID
//      24  u64  counter
//      32  u32  number of entries, 1...120
//      36  u32  zero
//      40       entries, 32 bytes each:
//               0  u64  epoch, ascending
//               8  u64  first frame sequence of the epoch
//              16  u64  position of that frame (bytes, virtual); a segment's start
//              24  u32  chain value that the first frame names as its predecessor's
//              28  u32  zero

package struct Epoch: Equatable, Sendable {
  package var number: UInt64
  package var firstSequence: FrameSequence
  package var position: UInt64
  package var chain: UInt32

  package init(number: UInt64, firstSequence: FrameSequence, position: UInt64, chain: UInt32) {
    self.number = number
    self.firstSequence = firstSequence
    self.position = position
    self.chain = chain
  }
}

package struct EpochRecord: Equatable, Sendable {
  package static let magic: UInt64 = 0x5045_4543_4955_4C53
  package static let version: UInt32 = 1
  package static let maximumEntries = 120

  package var tag: UInt64
  package var counter: UInt64
  package var epochs: [Epoch]

  package init(tag: UInt64, counter: UInt64, epochs: [Epoch]) {
    self.tag = tag
    self.counter = counter
    self.epochs = epochs
  }

  package func encode(to p: UnsafeMutableRawPointer) {
    invariant(
      (1...Self.maximumEntries).contains(epochs.count), "\(epochs.count) epochs do not fit a record"
    )
    p.initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
    p.put(Self.magic, at: 0)
    p.put(Self.version, at: 8)
    p.put(tag, at: 16)
    p.put(counter, at: 24)
    p.put(UInt32(epochs.count), at: 32)
    for (i, e) in epochs.enumerated() {
      let q = p + 40 + i * 32
      q.put(e.number, at: 0)
      q.put(e.firstSequence, at: 8)
      q.put(e.position, at: 16)
      q.put(e.chain, at: 24)
    }
    sealBlock(p, checksumAt: 12)
  }

  /// Nil when the block holds no valid record of the log with this tag.
  package init?(decoding p: UnsafeRawPointer, tag expected: UInt64) {
    guard p.u64(0) == Self.magic, p.u32(8) == Self.version, blockIsSealed(p, checksumAt: 12),
      p.u64(16) == expected
    else { return nil }
    let count = Int(p.u32(32))
    guard (1...Self.maximumEntries).contains(count) else { return nil }
    tag = expected
    counter = p.u64(24)
    guard counter < counterLimit else { return nil }
    epochs = []
    for i in 0..<count {
      let q = p + 40 + i * 32
      let e = Epoch(
        number: q.u64(0), firstSequence: q.u64(8), position: q.u64(16), chain: q.u32(24))
      guard e.number < counterLimit, e.firstSequence < counterLimit, e.position < counterLimit
      else { return nil }
      if let last = epochs.last {
        guard e.number > last.number, e.firstSequence >= last.firstSequence,
          e.position > last.position
        else { return nil }
      }
      epochs.append(e)
    }
  }
}
