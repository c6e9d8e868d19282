// Records: what the table of a frame holds. Every record starts with 16 bytes and is padded with
// zeros to a multiple of 8; multi-byte fields are little-endian.
//
//       0  u8   type
//       1  u8   flags (zero)
//       2  u16  length of the record in bytes, padding included
//       4  u32  count: blocks for data and extent records, else zero
//       8  u64  object id
//
//     1 data      16 u64 block   24 u32 generation   28 u32 first payload block of the frame
//                 32 u32[count] CRC32C of each block                         count 1...256
//     2 zero      16 u64 block   24 u32 generation   28 u32 0   32 u64 number of blocks
//     3 extent    16 u64 block   24 u32 generation   28 u32 0   32 u64 home address
//                 40 u32[count] CRC32C of each block                         count 1...256
//     4 create    16 u64 parent  24 u8 kind   25 u8 flags   26 u16 name length   28 u32 mode
//                 32 u64 size in bytes   40 u64 time (ns since 1970)   48 name
//     5 remove    16 u64 parent  24 u16 name length   26 u8 kind   27 u8 0
//                 28 u32 snapshots of the disk that go with it   32 u64 origin   40 name
//     6 rename    16 u64 old parent   24 u16 old name length   26 u16 new name length
//                 28 u8 kind   29 zeros   32 u64 new parent   40 old name, new name
//     7 resize    16 u64 new size in bytes
//     8 change    16 u8 mask (1 durability, 2 read_only, 4 comment, 8 held)   17 u8 durability
//                 18 u8 read_only   19 u8 held   20 u16 comment length   22 u16 0   24 comment
//    16 snapshot  16 u64 disk   24 u64 group   32 u64 time   40 u64 size   48 u16 name length
//                 50 zeros   56 name                            object: the snapshot's id
//    17 clone     16 u64 snapshot   24 u64 parent   32 u64 time   40 u32 first number
//                 44 u16 name length   46 u16 0   48 u32 mode   52 u32 0   56 u64 size
//                 64 name               object: the first clone's id; count 1...100,000 of them
//    18 rollback  16 u64 snapshot   24 u64 id for what the disk was   32 u64 size   40 u64 time
//
// Records 16 to 18 are marks: what precedes one in the log is in the snapshot, the rest is not. The
// snapshots of a group are records of one frame, so they are there together or not at all.
// A clone record is a batch: clone i has the id object + i and is named NAME-(first number + i), or
// just NAME where the first number is 0, and then it is alone.
// A decoder refuses a table with a type, length or count that it does not know.

/// What an object of the catalog is.
package enum ObjectKind: UInt8, Sendable {
  case disk = 1
  case directory = 2
  case snapshot = 3
}

/// One decoded record. Pointers lead into the table that it was decoded from.
package enum LogRecord {
  case data(
    object: ObjectID, generation: UInt32, block: BlockIndex, count: Int, payload: UInt32,
    checksums: UnsafeRawPointer)
  case zero(object: ObjectID, generation: UInt32, block: BlockIndex, count: UInt64)
  case extent(
    object: ObjectID, generation: UInt32, block: BlockIndex, count: Int, address: BlockAddress,
    checksums: UnsafeRawPointer)
  case create(
    object: ObjectID, parent: ObjectID, kind: ObjectKind, mode: UInt32, size: UInt64, time: UInt64,
    name: [UInt8])
  case remove(
    object: ObjectID, kind: ObjectKind, parent: ObjectID, snapshots: UInt32, origin: ObjectID,
    name: [UInt8])
  case rename(
    object: ObjectID, kind: ObjectKind, parent: ObjectID, name: [UInt8], newParent: ObjectID,
    newName: [UInt8])
  case resize(object: ObjectID, size: UInt64)
  case change(object: ObjectID, DiskAttributeChange)
  case snapshot(
    object: ObjectID, disk: ObjectID, group: ObjectID, time: UInt64, size: UInt64, name: [UInt8])
  case clone(CloneBatch)
  case rollback(
    object: ObjectID, snapshot: ObjectID, former: ObjectID, size: UInt64, time: UInt64)

  package static let maximumCount = 256
  package static let maximumName = 255
  package static let maximumComment = 512

  static func dataSize(count: Int) -> Int { roundUp(32 + 4 * count, to: 8) }
  static func extentSize(count: Int) -> Int { roundUp(40 + 4 * count, to: 8) }

  /// Bytes of the record in a table.
  package var encodedSize: Int {
    switch self {
    case .data(_, _, _, let count, _, _): Self.dataSize(count: count)
    case .zero: 40
    case .extent(_, _, _, let count, _, _): Self.extentSize(count: count)
    case .create(_, _, _, _, _, _, let name): roundUp(48 + name.count, to: 8)
    case .remove(_, _, _, _, _, let name): roundUp(40 + name.count, to: 8)
    case .rename(_, _, _, let name, _, let new): roundUp(40 + name.count + new.count, to: 8)
    case .resize: 24
    case .change(_, let change): roundUp(24 + (change.comment?.utf8.count ?? 0), to: 8)
    case .snapshot(_, _, _, _, _, let name): roundUp(56 + name.count, to: 8)
    case .clone(let batch): roundUp(64 + batch.name.count, to: 8)
    case .rollback: 48
    }
  }

  private var typeAndObject: (type: UInt8, count: Int, object: UInt64) {
    switch self {
    case .data(let object, _, _, let count, _, _): (1, count, object.raw)
    case .zero(let object, _, _, _): (2, 0, object.raw)
    case .extent(let object, _, _, let count, _, _): (3, count, object.raw)
    case .create(let object, _, _, _, _, _, _): (4, 0, object.raw)
    case .remove(let object, _, _, _, _, _): (5, 0, object.raw)
    case .rename(let object, _, _, _, _, _): (6, 0, object.raw)
    case .resize(let object, _): (7, 0, object.raw)
    case .change(let object, _): (8, 0, object.raw)
    case .snapshot(let object, _, _, _, _, _): (16, 0, object.raw)
    case .clone(let batch): (17, batch.count, batch.first.raw)
    case .rollback(let object, _, _, _, _): (18, 0, object.raw)
    }
  }

  /// Writes `encodedSize` bytes to `p`.
  package func encode(to p: UnsafeMutableRawPointer) {
    let size = encodedSize
    p.initializeMemory(as: UInt8.self, repeating: 0, count: size)
    let (type, count, object) = typeAndObject
    p.put(type, at: 0)
    p.put(UInt16(size), at: 2)
    p.put(UInt32(count), at: 4)
    p.put(object, at: 8)
    switch self {
    case .data(_, let generation, let block, let count, let payload, let checksums):
      p.put(block.raw, at: 16)
      p.put(generation, at: 24)
      p.put(payload, at: 28)
      (p + 32).copyMemory(from: checksums, byteCount: 4 * count)
    case .zero(_, let generation, let block, let count):
      p.put(block.raw, at: 16)
      p.put(generation, at: 24)
      p.put(count, at: 32)
    case .extent(_, let generation, let block, let count, let address, let checksums):
      p.put(block.raw, at: 16)
      p.put(generation, at: 24)
      p.put(address.raw, at: 32)
      (p + 40).copyMemory(from: checksums, byteCount: 4 * count)
    case .create(_, let parent, let kind, let mode, let size, let time, let name):
      p.put(parent.raw, at: 16)
      p.put(kind.rawValue, at: 24)
      p.put(UInt16(name.count), at: 26)
      p.put(mode, at: 28)
      p.put(size, at: 32)
      p.put(time, at: 40)
      (p + 48).copyBytes(name)
    case .remove(_, let kind, let parent, let snapshots, let origin, let name):
      p.put(parent.raw, at: 16)
      p.put(UInt16(name.count), at: 24)
      p.put(kind.rawValue, at: 26)
      p.put(snapshots, at: 28)
      p.put(origin.raw, at: 32)
      (p + 40).copyBytes(name)
    case .rename(_, let kind, let parent, let name, let newParent, let newName):
      p.put(parent.raw, at: 16)
      p.put(UInt16(name.count), at: 24)
      p.put(UInt16(newName.count), at: 26)
      p.put(kind.rawValue, at: 28)
      p.put(newParent.raw, at: 32)
      (p + 40).copyBytes(name)
      (p + 40 + name.count).copyBytes(newName)
    case .resize(_, let size):
      p.put(size, at: 16)
    case .change(_, let change):
      var mask: UInt8 = 0
      if let durability = change.durability {
        mask |= 1
        p.put(durability.rawValue, at: 17)
      }
      if let readOnly = change.readOnly {
        mask |= 2
        p.put(UInt8(readOnly ? 1 : 0), at: 18)
      }
      if let comment = change.comment {
        mask |= 4
        let bytes = Array(comment.utf8)
        p.put(UInt16(bytes.count), at: 20)
        (p + 24).copyBytes(bytes)
      }
      if let held = change.held {
        mask |= 8
        p.put(UInt8(held ? 1 : 0), at: 19)
      }
      p.put(mask, at: 16)
    case .snapshot(_, let disk, let group, let time, let size, let name):
      p.put(disk.raw, at: 16)
      p.put(group.raw, at: 24)
      p.put(time, at: 32)
      p.put(size, at: 40)
      p.put(UInt16(name.count), at: 48)
      (p + 56).copyBytes(name)
    case .clone(let batch):
      p.put(batch.snapshot.raw, at: 16)
      p.put(batch.parent.raw, at: 24)
      p.put(batch.time, at: 32)
      p.put(batch.firstNumber, at: 40)
      p.put(UInt16(batch.name.count), at: 44)
      p.put(batch.mode, at: 48)
      p.put(batch.size, at: 56)
      (p + 64).copyBytes(batch.name)
    case .rollback(_, let snapshot, let former, let size, let time):
      p.put(snapshot.raw, at: 16)
      p.put(former.raw, at: 24)
      p.put(size, at: 32)
      p.put(time, at: 40)
    }
  }
}

/// Clones that one record makes, all or none (R13).
package struct CloneBatch: Equatable, Sendable {
  package static let maximumCount = 100_000
  /// The id of the first one; the others' follow it.
  package var first: ObjectID
  package var count: Int
  package var snapshot: ObjectID
  package var parent: ObjectID
  package var time: UInt64
  package var mode: UInt32
  /// In bytes: the snapshot's.
  package var size: UInt64
  /// The number in the first one's name; 0: the only one is named `name`, without a number.
  package var firstNumber: UInt32
  package var name: [UInt8]

  package init(
    first: ObjectID, count: Int, snapshot: ObjectID, parent: ObjectID, time: UInt64, mode: UInt32,
    size: UInt64, firstNumber: UInt32, name: [UInt8]
  ) {
    self.first = first
    self.count = count
    self.snapshot = snapshot
    self.parent = parent
    self.time = time
    self.mode = mode
    self.size = size
    self.firstNumber = firstNumber
    self.name = name
  }

  package func object(_ i: Int) -> ObjectID { ObjectID(first.raw + UInt64(i)) }

  package func name(_ i: Int) -> [UInt8] {
    firstNumber == 0 ? name : name + Array("-\(UInt64(firstNumber) + UInt64(i))".utf8)
  }

  /// Which clone has the name, if one has.
  package func index(of name: [UInt8]) -> Int? {
    if firstNumber == 0 { return name == self.name ? 0 : nil }
    let prefix = self.name.count
    guard name.count > prefix + 1, name.count <= prefix + 11, name.starts(with: self.name),
      name[prefix] == UInt8(ascii: "-"), name[prefix + 1] != UInt8(ascii: "0")
    else { return nil }
    var number: UInt64 = 0
    for digit in name[(prefix + 1)...] {
      guard (UInt8(ascii: "0")...UInt8(ascii: "9")).contains(digit) else { return nil }
      number = number * 10 + UInt64(digit - UInt8(ascii: "0"))
    }
    guard number >= firstNumber, number - UInt64(firstNumber) < UInt64(count) else { return nil }
    return Int(number - UInt64(firstNumber))
  }

  /// Which clone has the id, if one has.
  package func index(of object: ObjectID) -> Int? {
    guard object.raw >= first.raw, object.raw - first.raw < UInt64(count) else { return nil }
    return Int(object.raw - first.raw)
  }
}

extension UnsafeMutableRawPointer {
  fileprivate func copyBytes(_ bytes: [UInt8]) {
    bytes.withUnsafeBytes {
      if let base = $0.baseAddress { copyMemory(from: base, byteCount: $0.count) }
    }
  }
}

/// Walks the records of a table, checking every length and count before it is used.
package struct RecordCursor {
  private let base: UnsafeRawPointer
  private let length: Int
  private var offset = 0

  package init(table: UnsafeRawPointer, length: Int) {
    base = table
    self.length = length
  }

  package var isAtEnd: Bool { offset == length }

  /// The next record; nil at the end or where the table is not well-formed (`isAtEnd` tells).
  package mutating func next() -> LogRecord? {
    guard offset + 16 <= length else { return nil }
    let p = base + offset
    let size = Int(p.u16(2))
    guard size >= 16, size % 8 == 0, offset + size <= length,
      let record = decode(p, size: size)
    else { return nil }
    offset += size
    return record
  }

  private func bytes(_ p: UnsafeRawPointer, _ count: Int) -> [UInt8] {
    Array(UnsafeRawBufferPointer(start: p, count: count))
  }

  private func decode(_ p: UnsafeRawPointer, size: Int) -> LogRecord? {
    let count = Int(p.u32(4))
    let object = ObjectID(p.u64(8))
    switch p.u8(0) {
    case 1:
      guard (1...LogRecord.maximumCount).contains(count),
        size == LogRecord.dataSize(count: count),
        p.u64(16) <= BlockIndex.limit - UInt64(count)
      else { return nil }
      return .data(
        object: object, generation: p.u32(24), block: BlockIndex(p.u64(16)), count: count,
        payload: p.u32(28), checksums: p + 32)
    case 2:
      guard size == 40, p.u64(16) < BlockIndex.limit, p.u64(32) > 0,
        p.u64(32) <= BlockIndex.limit - p.u64(16)
      else { return nil }
      return .zero(
        object: object, generation: p.u32(24), block: BlockIndex(p.u64(16)), count: p.u64(32))
    case 3:
      guard (1...LogRecord.maximumCount).contains(count),
        size == LogRecord.extentSize(count: count),
        p.u64(16) <= BlockIndex.limit - UInt64(count),
        BlockAddress(raw: p.u64(32)).isHome(count: UInt64(count))
      else { return nil }
      return .extent(
        object: object, generation: p.u32(24), block: BlockIndex(p.u64(16)), count: count,
        address: BlockAddress(raw: p.u64(32)), checksums: p + 40)
    case 4:
      guard size >= 48, let kind = ObjectKind(rawValue: p.u8(24)) else { return nil }
      let name = Int(p.u16(26))
      guard name <= LogRecord.maximumName, size == roundUp(48 + name, to: 8) else { return nil }
      return .create(
        object: object, parent: ObjectID(p.u64(16)), kind: kind, mode: p.u32(28), size: p.u64(32),
        time: p.u64(40), name: bytes(p + 48, name))
    case 5:
      guard size >= 40, let kind = ObjectKind(rawValue: p.u8(26)) else { return nil }
      let name = Int(p.u16(24))
      guard name <= LogRecord.maximumName, size == roundUp(40 + name, to: 8) else { return nil }
      return .remove(
        object: object, kind: kind, parent: ObjectID(p.u64(16)), snapshots: p.u32(28),
        origin: ObjectID(p.u64(32)), name: bytes(p + 40, name))
    case 6:
      guard size >= 40, let kind = ObjectKind(rawValue: p.u8(28)) else { return nil }
      let (old, new) = (Int(p.u16(24)), Int(p.u16(26)))
      guard old <= LogRecord.maximumName, new <= LogRecord.maximumName,
        size == roundUp(40 + old + new, to: 8)
      else { return nil }
      return .rename(
        object: object, kind: kind, parent: ObjectID(p.u64(16)), name: bytes(p + 40, old),
        newParent: ObjectID(p.u64(32)), newName: bytes(p + 40 + old, new))
    case 7:
      guard size == 24 else { return nil }
      return .resize(object: object, size: p.u64(16))
    case 8: return decodeChange(p, size: size, object: object)
    case 16:
      guard size >= 56 else { return nil }
      let name = Int(p.u16(48))
      guard name <= LogRecord.maximumName, size == roundUp(56 + name, to: 8) else { return nil }
      return .snapshot(
        object: object, disk: ObjectID(p.u64(16)), group: ObjectID(p.u64(24)), time: p.u64(32),
        size: p.u64(40), name: bytes(p + 56, name))
    case 17: return decodeClone(p, size: size, first: object, count: count)
    case 18:
      guard size == 48 else { return nil }
      return .rollback(
        object: object, snapshot: ObjectID(p.u64(16)), former: ObjectID(p.u64(24)),
        size: p.u64(32), time: p.u64(40))
    default:
      return nil
    }
  }

  private func decodeClone(
    _ p: UnsafeRawPointer, size: Int, first: ObjectID, count: Int
  ) -> LogRecord? {
    guard size >= 64 else { return nil }
    let (name, firstNumber) = (Int(p.u16(44)), p.u32(40))
    guard (1...CloneBatch.maximumCount).contains(count), firstNumber > 0 || count == 1,
      firstNumber <= UInt32.max - UInt32(count),
      first.raw <= UInt64.max - UInt64(count), name <= LogRecord.maximumName,
      size == roundUp(64 + name, to: 8)
    else { return nil }
    return .clone(
      CloneBatch(
        first: first, count: count, snapshot: ObjectID(p.u64(16)), parent: ObjectID(p.u64(24)),
        time: p.u64(32), mode: p.u32(48), size: p.u64(56), firstNumber: firstNumber,
        name: bytes(p + 64, name)))
  }

  private func decodeChange(_ p: UnsafeRawPointer, size: Int, object: ObjectID) -> LogRecord? {
    guard size >= 24 else { return nil }
    let mask = p.u8(16)
    let length = Int(p.u16(20))
    guard mask < 16, length <= LogRecord.maximumComment, mask & 4 != 0 || length == 0,
      size == roundUp(24 + length, to: 8)
    else {
      return nil
    }
    var change = DiskAttributeChange()
    if mask & 1 != 0 {
      guard let durability = Durability(rawValue: p.u8(17)) else { return nil }
      change.durability = durability
    }
    if mask & 2 != 0 { change.readOnly = p.u8(18) != 0 }
    if mask & 8 != 0 { change.held = p.u8(19) != 0 }
    if mask & 4 != 0 {
      guard let comment = String(validating: bytes(p + 24, length), as: UTF8.self) else {
        return nil
      }
      change.comment = comment
    }
    return .change(object: object, change)
  }
}
