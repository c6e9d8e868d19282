// The catalog: what disks and directories there are, in two trees of the pool.
//
// Objects tree (owner id 2 of the pool's own trees), key (hi = object id, lo):
//
//     lo = 0   object record
//     hi = 0   lo = volume index: volume record
//
// Names tree, by hi:
//
//     hi = a directory's id   lo = FNV-1a 64 of a name: the entries that share this hash
//     hi = a disk's id        likewise, the names of its snapshots
//     hi = a snapshot's id    lo = object id of a child in the tree of snapshots, empty value
//     hi = 0                  lo = object id of a deleted object that is being freed, empty value
//
// Names value: entries one behind the other
//
//     0  u64  object id
//     8  u8   kind (ObjectKind)
//     9  u8   name length, 1...255
//    10       name
//
// Object record, little-endian:
//
//       0  u8   kind      1  u8  flags: 1 read-only, 2 durability flush, 4 inherits its map,
//                                8 held, 16 hidden                           2  u16 comment length
//       4  u32  mode      8  u32 uid     12 u32 gid     16 u32 link count    20 u32 name length
//      24  u64  size in bytes
//      32  u64[4]  created, modified, changed, accessed: nanoseconds since 1970
//      64  u64  exclusive-create verifier
//      72  u64  ownership generation
//      80  u64  branch instant: newest snapshot, else the clone's or rollback's mark (R10)
//      88  u64  origin snapshot's object id, 0 for none
//      96  u64  blocks that the map refers to
//     104  u64  of these, blocks that only this object refers to
//     112  u8[32]  root of the extent map
//     144  u8[32]  root of the dead list of the edge to the parent snapshot (R11)
//     176  u64  parent directory of the first name; the disk, of a snapshot
//     184  u64  metadata blocks of the map, both copies
//     192  u64  parent in the tree of snapshots: a snapshot's object id, 0 for none
//     200  u64  instant, of a snapshot: what it holds was born at or before it
//     208  u64  branch instant of the parent snapshot
//     216  u64  data blocks on the dead list
//     224  u64  of these, born after field 208: what only the parent refers to
//     232  u64  blocks of metadata nodes on the dead list, both copies
//     240  u64  group of a snapshot: the first one's id of those made in one call
//     248  u32  children, of a snapshot       252  u32  snapshots with a name, of a disk;
//                                                             clones, of a snapshot
//     256       first name, then comment
//
// An object that inherits its map has none of its own yet: its content and branch instant are those of its
// parent snapshot. What it has changed of it is in its delta, a tree of kind `.delta`, whose root is
// in the place of the map's. Fields 96 and 104 then count as ever, 184 the nodes of the delta; without
// a delta all counters are 0. It has no dead list.
//
// Volume record: 0 u64[2] member UUID, 16 u64 size in blocks.

package enum TreeOwner {
  package static let objects = ObjectID(2)
  package static let names = ObjectID(3)
  package static let space = ObjectID(4)
  /// Object ids below this one are the pool's own.
  package static let firstFree: UInt64 = 16
}

package struct ObjectRecord: Equatable, Sendable {
  package static let fixedSize = 256

  package var kind = ObjectKind.disk
  package var readOnly = false
  package var durability = Durability.always
  package var mode: UInt32 = 0o644
  package var uid: UInt32 = 0
  package var gid: UInt32 = 0
  package var links: UInt32 = 1
  package var size: UInt64 = 0
  package var created: UInt64 = 0
  package var modified: UInt64 = 0
  package var changed: UInt64 = 0
  package var accessed: UInt64 = 0
  package var verifier: UInt64 = 0
  package var generation: UInt64 = 1
  package var branchInstant: Instant = 0
  package var origin = ObjectID(0)
  package var usedBlocks: UInt64 = 0
  package var exclusiveBlocks: UInt64 = 0
  package var map = NodePointer.none
  package var deadList = NodePointer.none
  package var parent = ObjectID.root
  package var metadataBlocks: UInt64 = 0
  /// Content and branch instant are the parent snapshot's; `map` is the root of the delta, or none.
  package var inheritsMap = false
  package var hasDelta: Bool { inheritsMap && !map.isNone }
  /// A snapshot that can't be deleted.
  package var isHeld = false
  /// A snapshot that was deleted and has children: it is freed when one is left.
  package var isHidden = false
  /// The snapshot that this object branches from; 0 for none.
  package var parentSnapshot = ObjectID(0)
  /// Of a snapshot: births of what it holds are at or before it. 0 while its map is not final.
  package var instant: Instant = 0
  package var parentBranchInstant: Instant = 0
  package var dead = DeadCounts()
  /// Data blocks on the dead list that only the parent snapshot refers to.
  package var deadOfParentOnly: UInt64 = 0
  package var group = ObjectID(0)
  package var children: UInt32 = 0
  /// Snapshots of a disk that have a name; of a snapshot, disks whose origin it is.
  package var dependents: UInt32 = 0
  package var name: [UInt8] = []
  package var comment: [UInt8] = []

  package init() {}

  package mutating func setTimes(_ time: UInt64) {
    (created, modified, changed, accessed) = (time, time, time, time)
  }

  package func encoded() -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Self.fixedSize + name.count + comment.count)
    bytes.withUnsafeMutableBytes { buffer in
      let p = buffer.baseAddress!
      p.put(kind.rawValue, at: 0)
      var flags: UInt8 = readOnly ? 1 : 0
      if durability == .flush { flags |= 2 }
      if inheritsMap { flags |= 4 }
      if isHeld { flags |= 8 }
      if isHidden { flags |= 16 }
      p.put(flags, at: 1)
      p.put(UInt16(comment.count), at: 2)
      p.put(mode, at: 4)
      p.put(uid, at: 8)
      p.put(gid, at: 12)
      p.put(links, at: 16)
      p.put(UInt32(name.count), at: 20)
      p.put(size, at: 24)
      p.put(created, at: 32)
      p.put(modified, at: 40)
      p.put(changed, at: 48)
      p.put(accessed, at: 56)
      p.put(verifier, at: 64)
      p.put(generation, at: 72)
      p.put(branchInstant, at: 80)
      p.put(origin.raw, at: 88)
      p.put(usedBlocks, at: 96)
      p.put(exclusiveBlocks, at: 104)
      map.encode(to: p + 112)
      deadList.encode(to: p + 144)
      p.put(parent.raw, at: 176)
      p.put(metadataBlocks, at: 184)
      p.put(parentSnapshot.raw, at: 192)
      p.put(instant, at: 200)
      p.put(parentBranchInstant, at: 208)
      p.put(dead.dataBlocks, at: 216)
      p.put(deadOfParentOnly, at: 224)
      p.put(dead.nodeBlocks, at: 232)
      p.put(group.raw, at: 240)
      p.put(children, at: 248)
      p.put(dependents, at: 252)
      for (i, byte) in (name + comment).enumerated() { p.put(byte, at: Self.fixedSize + i) }
    }
    return bytes
  }

  /// Nil when the value is not a well-formed record.
  package init?(decoding value: UnsafeRawBufferPointer) {
    guard value.count >= Self.fixedSize, let p = value.baseAddress,
      let kind = ObjectKind(rawValue: p.u8(0)), p.u8(1) < 32,
      p.u32(20) <= UInt32(LogRecord.maximumName), p.u16(2) <= UInt16(LogRecord.maximumComment),
      value.count == Self.fixedSize + Int(p.u32(20)) + Int(p.u16(2))
    else { return nil }
    self.kind = kind
    readOnly = p.u8(1) & 1 != 0
    durability = p.u8(1) & 2 != 0 ? .flush : .always
    mode = p.u32(4)
    uid = p.u32(8)
    gid = p.u32(12)
    links = p.u32(16)
    size = p.u64(24)
    created = p.u64(32)
    modified = p.u64(40)
    changed = p.u64(48)
    accessed = p.u64(56)
    verifier = p.u64(64)
    generation = p.u64(72)
    branchInstant = p.u64(80)
    origin = ObjectID(p.u64(88))
    usedBlocks = p.u64(96)
    exclusiveBlocks = p.u64(104)
    map = NodePointer(decoding: p + 112)
    deadList = NodePointer(decoding: p + 144)
    parent = ObjectID(p.u64(176))
    metadataBlocks = p.u64(184)
    inheritsMap = p.u8(1) & 4 != 0
    isHeld = p.u8(1) & 8 != 0
    isHidden = p.u8(1) & 16 != 0
    parentSnapshot = ObjectID(p.u64(192))
    instant = p.u64(200)
    parentBranchInstant = p.u64(208)
    dead = DeadCounts(dataBlocks: p.u64(216), nodeBlocks: p.u64(232))
    deadOfParentOnly = p.u64(224)
    group = ObjectID(p.u64(240))
    children = p.u32(248)
    dependents = p.u32(252)
    let nameLength = Int(p.u32(20))
    name = Array(value[Self.fixedSize..<(Self.fixedSize + nameLength)])
    comment = Array(value[(Self.fixedSize + nameLength)...])
  }
}

/// One entry of a names value.
package struct NameEntry: Equatable, Sendable {
  package var object: ObjectID
  package var kind: ObjectKind
  package var name: [UInt8]

  package init(object: ObjectID, kind: ObjectKind, name: [UInt8]) {
    self.object = object
    self.kind = kind
    self.name = name
  }

  /// FNV-1a, 64 bits (Fowler, Noll, Vo), the second half of a names key.
  package static func hash(_ name: [UInt8]) -> UInt64 {
    var h: UInt64 = 0xCBF2_9CE4_8422_2325
    for byte in name { h = (h ^ UInt64(byte)) &* 0x0000_0100_0000_01B3 }
    return h
  }

  package static func encode(_ entries: [Self]) -> [UInt8] {
    var out: [UInt8] = []
    for e in entries {
      withUnsafeBytes(of: e.object.raw.littleEndian) { out.append(contentsOf: $0) }
      out.append(e.kind.rawValue)
      out.append(UInt8(e.name.count))
      out.append(contentsOf: e.name)
    }
    return out
  }

  /// Nil when the value is not well-formed.
  package static func decode(_ value: UnsafeRawBufferPointer) -> [Self]? {
    var entries: [Self] = []
    var at = 0
    while at < value.count {
      guard at + 10 <= value.count, let p = value.baseAddress,
        let kind = ObjectKind(rawValue: p.u8(at + 8))
      else { return nil }
      let length = Int(p.u8(at + 9))
      guard length > 0, at + 10 + length <= value.count else { return nil }
      entries.append(
        Self(
          object: ObjectID(p.u64(at)), kind: kind,
          name: Array(value[(at + 10)..<(at + 10 + length)])))
      at += 10 + length
    }
    return entries
  }
}

package struct VolumeRecord: Equatable, Sendable {
  package static let size = 24
  package var member: UUIDBytes
  package var sizeInBlocks: UInt64

  package init(member: UUIDBytes, sizeInBlocks: UInt64) {
    self.member = member
    self.sizeInBlocks = sizeInBlocks
  }

  package init?(decoding value: UnsafeRawBufferPointer) {
    guard value.count == Self.size, let p = value.baseAddress else { return nil }
    member = UUIDBytes(high: p.u64(0), low: p.u64(8))
    sizeInBlocks = p.u64(16)
  }

  package func encoded() -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: Self.size)
    bytes.withUnsafeMutableBytes {
      $0.baseAddress!.put(member.high, at: 0)
      $0.baseAddress!.put(member.low, at: 8)
      $0.baseAddress!.put(sizeInBlocks, at: 16)
    }
    return bytes
  }
}
