// The root: the one block that a checkpoint switches to.
//
// Written twice to the unit's root ring on *every* volume, at slots `checkpoint % 2 * 2` and the
// next, after all that it points to is durable (R18). At open the newest valid root of any volume counts, and is first
// written to the volumes that lack it; older ones are there for the case that the newest write
// never finished, never for another (R19).
//
// One block, little-endian:
//
//       0  u64     magic "SLUICERT"
//       8  u32     format version (1)
//      12  u32     CRC32C of the block with this field zero
//      16  u64[2]  pool UUID
//      32  u64     unit
//      40  u64     checkpoint number, from 1
//      48  u64     cut: the last frame sequence that is in this checkpoint (C of R17)
//      56  u64     log position (bytes, virtual) of the frame after the cut
//      64  u64     epoch of the frame at the cut
//      72  u32     header CRC of the frame at the cut (the chain value its successor names)
//      76  u32     number of volumes
//      80  u64     next object id
//      88  u64     next instant
//      96  u8[32]  objects tree root
//     128  u8[32]  names tree root
//     160  u8[32]  space tree root
//     192  u64     blocks in use, data and metadata, label areas not counted
//     200  u64     of these, metadata blocks (both copies)
//     208  u64     disks
//     216  u64     snapshots
//     224  u64     own data blocks of the objects that are being freed
//     232  u64     wall clock when it was written, nanoseconds since 1970
//     240  u64     deleted objects whose space is not yet freed
//     248  u64     own data blocks of hidden snapshots
//     256          zeros

package struct RootRecord: Equatable, Sendable {
  package static let magic: UInt64 = 0x5452_4543_4955_4C53
  package static let version: UInt32 = 1

  package var pool = UUIDBytes.zero
  package var unit: UInt64 = 0
  package var checkpoint: UInt64 = 0
  package var cutSequence: FrameSequence = 0
  package var nextPosition: UInt64 = 0
  package var cutEpoch: UInt64 = 0
  package var cutChain: UInt32 = 0
  package var volumes: UInt32 = 0
  package var nextObject: UInt64 = 2
  package var nextInstant: Instant = 1
  package var objects = NodePointer.none
  package var names = NodePointer.none
  package var space = NodePointer.none
  package var usedBlocks: UInt64 = 0
  package var metadataBlocks: UInt64 = 0
  package var disks: UInt64 = 0
  package var snapshots: UInt64 = 0
  package var freeingBlocks: UInt64 = 0
  package var written: UInt64 = 0
  package var deletedObjects: UInt64 = 0
  package var heldBlocks: UInt64 = 0

  package init() {}

  package func encode(to p: UnsafeMutableRawPointer) {
    p.initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
    p.put(Self.magic, at: 0)
    p.put(Self.version, at: 8)
    p.put(pool.high, at: 16)
    p.put(pool.low, at: 24)
    p.put(unit, at: 32)
    p.put(checkpoint, at: 40)
    p.put(cutSequence, at: 48)
    p.put(nextPosition, at: 56)
    p.put(cutEpoch, at: 64)
    p.put(cutChain, at: 72)
    p.put(volumes, at: 76)
    p.put(nextObject, at: 80)
    p.put(nextInstant, at: 88)
    objects.encode(to: p + 96)
    names.encode(to: p + 128)
    space.encode(to: p + 160)
    p.put(usedBlocks, at: 192)
    p.put(metadataBlocks, at: 200)
    p.put(disks, at: 208)
    p.put(snapshots, at: 216)
    p.put(freeingBlocks, at: 224)
    p.put(written, at: 232)
    p.put(deletedObjects, at: 240)
    p.put(heldBlocks, at: 248)
    sealBlock(p, checksumAt: 12)
  }

  /// Nil when the block holds no valid root of this pool and unit.
  package init?(decoding p: UnsafeRawPointer, pool expected: UUIDBytes, unit expectedUnit: UInt64) {
    guard p.u64(0) == Self.magic, p.u32(8) == Self.version, blockIsSealed(p, checksumAt: 12) else {
      return nil
    }
    pool = UUIDBytes(high: p.u64(16), low: p.u64(24))
    unit = p.u64(32)
    guard pool == expected, unit == expectedUnit else { return nil }
    checkpoint = p.u64(40)
    cutSequence = p.u64(48)
    nextPosition = p.u64(56)
    cutEpoch = p.u64(64)
    cutChain = p.u32(72)
    volumes = p.u32(76)
    nextObject = p.u64(80)
    nextInstant = p.u64(88)
    objects = NodePointer(decoding: p + 96)
    names = NodePointer(decoding: p + 128)
    space = NodePointer(decoding: p + 160)
    usedBlocks = p.u64(192)
    metadataBlocks = p.u64(200)
    disks = p.u64(208)
    snapshots = p.u64(216)
    freeingBlocks = p.u64(224)
    written = p.u64(232)
    deletedObjects = p.u64(240)
    heldBlocks = p.u64(248)
    let counters = [checkpoint, cutSequence, nextPosition, cutEpoch, nextInstant]
    guard checkpoint > 0, volumes > 0, nextPosition % UInt64(blockSize) == 0,
      counters.allSatisfy({ $0 < counterLimit })
    else { return nil }
  }
}
