import Core

// What the log says beyond the checkpoint, brought into the order of the trees: by object and
// block for contents, by object and by name for the catalog.
//
//     contents   a object   b first block   c ordinal   d type << 56 | blocks   e home address
//                f byte offset on the log device of the record's checksums (extents)
//     objects    a object   b ordinal       c type      d..e as the type needs
//     names      a parent   b hash of name  c CRC32C of name   d ordinal << 1 | removed   e object
//
// The ordinal counts records in log order from 1; 0 is the checkpoint.

enum ContentType: UInt64 {
  case data = 1
  case zero = 2
  case extent = 3
}

/// What is told of an object; `a` of the record is the object, `b` the ordinal.
enum ObjectEvent: UInt64 {
  // In the root, in the order in which they are to be read.

  /// Its record. d kind | links << 8 | hidden << 48 | inherits << 49, e children << 32 | snapshots,
  /// f parent in the tree of snapshots.
  case exists = 0
  /// On the list of deleted objects.
  case deleted = 1
  /// A name leads to it. d kind, e the object that the name is filed under.
  case named = 2
  /// Of a snapshot: the disk that its record says it was taken of. d disk.
  case taken = 3
  /// A name is filed under it. d kind of what it leads to.
  case holds = 4
  /// The names tree lists a child of it in the tree of snapshots. d child.
  case child = 5
  /// The names tree lists it as a child of a snapshot. d snapshot.
  case childOf = 6

  // In the log.

  /// d kind.
  case create = 16
  /// d kind, e snapshots of a disk that go with it.
  case remove = 17
  /// d kind, e new parent.
  case rename = 18
  case resize = 19
  case change = 20
  /// A mark: of the disk was a snapshot taken. d snapshot.
  case snapshot = 21
  /// One of the disk's snapshots was deleted. d snapshot.
  case removeSnapshot = 22
  /// A mark: the disk was rolled back. d snapshot.
  case rollback = 23
  /// Clones were made of the snapshot, or its disk was rolled back to it.
  case branch = 24
  /// It is what a disk was before it was rolled back: a deleted disk.
  case leftBehind = 25
}

/// Content records of a frame: which payload block belongs to what.
struct PayloadBlock {
  var checksum: UInt32
  var object: ObjectID
  var block: UInt64
  var isKnown: Bool
}

final class LogEvents {
  let contents: SortedSpill
  let objects: SortedSpill
  let names: SortedSpill
  private var ordinal: UInt64 = 0
  /// Names of objects that the log creates, for sentences; bounded.
  private(set) var createdNames: [UInt64: [UInt8]] = [:]
  private(set) var blocks: UInt64 = 0

  init(options: CheckOptions) {
    func spill() -> SortedSpill {
      SortedSpill(memory: options.sortMemory, directory: options.temporaryDirectory)
    }
    contents = spill()
    objects = spill()
    names = spill()
  }

  /// Which record each payload block of a frame belongs to; nil when the table is not well-formed
  /// or names payload that is not there, or a block twice.
  static func payload(of table: [UInt8], records: UInt32, payloadBlocks: Int) -> [PayloadBlock]? {
    var payload = [PayloadBlock](
      repeating: PayloadBlock(checksum: 0, object: ObjectID(0), block: 0, isKnown: false),
      count: payloadBlocks)
    var seen: UInt32 = 0
    let isWhole = table.withUnsafeBytes { bytes -> Bool in
      guard let base = bytes.baseAddress else { return true }
      var cursor = RecordCursor(table: base, length: bytes.count)
      while let record = cursor.next() {
        seen &+= 1
        guard case .data(let object, _, let block, let count, let first, let checksums) = record
        else { continue }
        guard Int(first) + count <= payloadBlocks else { return false }
        for i in 0..<count {
          if payload[Int(first) + i].isKnown { return false }
          payload[Int(first) + i] = PayloadBlock(
            checksum: checksums.u32(4 * i), object: object, block: block.raw + UInt64(i),
            isKnown: true)
        }
      }
      return cursor.isAtEnd
    }
    return isWhole && seen == records ? payload : nil
  }

  /// Takes over the records of a frame that counts. `tableOffset` is the table's byte offset on
  /// the log device.
  func add(table: [UInt8], tableOffset: UInt64) throws(CheckFailure) {
    var at = tableOffset
    var failure: CheckFailure?
    table.withUnsafeBytes { bytes in
      guard let base = bytes.baseAddress else { return }
      var cursor = RecordCursor(table: base, length: bytes.count)
      while let record = cursor.next() {
        ordinal += 1
        do throws(CheckFailure) {
          try add(record, at: at)
        } catch {
          failure = error
          return
        }
        at += UInt64(record.encodedSize)
      }
    }
    if let failure { throw failure }
  }

  private func add(_ record: LogRecord, at offset: UInt64) throws(CheckFailure) {
    switch record {
    case .data(let object, _, let block, let count, _, _):
      blocks += UInt64(count)
      try content(object, block, .data, UInt64(count))
    case .zero(let object, _, let block, let count):
      try content(object, block, .zero, count)
    case .extent(let object, _, let block, let count, let address, _):
      try content(object, block, .extent, UInt64(count), address, offset + 40)
    case .create(let object, let parent, let kind, _, _, _, let name):
      try create(object, kind, parent, name)
    case .remove(let object, let kind, let parent, let snapshots, _, let name):
      try event(object, .remove, UInt64(kind.rawValue), UInt64(snapshots))
      if kind == .snapshot { try event(parent, .removeSnapshot, object.raw) }
      try self.name(parent, name, object, removed: true)
    case .rename(let object, let kind, let parent, let old, let newParent, let new):
      try event(object, .rename, UInt64(kind.rawValue), newParent.raw)
      try self.name(parent, old, object, removed: true)
      ordinal += 1
      try self.name(newParent, new, object, removed: false)
    case .resize(let object, let size):
      try event(object, .resize)
      // What lies behind the new end is given up.
      let end = roundUp(size, to: UInt64(blockSize)) >> blockShift
      if end < BlockIndex.limit {
        try content(object, BlockIndex(end), .zero, BlockIndex.limit - end)
      }
    case .change(let object, _): try event(object, .change)
    case .snapshot(let object, let disk, _, _, _, let name):
      try create(object, .snapshot, disk, name)
      try event(disk, .snapshot, object.raw)
    case .clone(let batch):
      try event(batch.snapshot, .branch)
      for i in 0..<batch.count { try create(batch.object(i), .disk, batch.parent, batch.name(i)) }
    case .rollback(let object, let snapshot, let former, _, _):
      try event(object, .rollback, snapshot.raw)
      try event(snapshot, .branch)
      try event(former, .leftBehind)
    }
  }

  private func create(
    _ object: ObjectID, _ kind: ObjectKind, _ parent: ObjectID, _ name: [UInt8]
  ) throws(CheckFailure) {
    if createdNames.count < 100_000 { createdNames[object.raw] = name }
    try event(object, .create, UInt64(kind.rawValue), parent.raw)
    try self.name(parent, name, object, removed: false)
  }

  private func content(
    _ object: ObjectID, _ block: BlockIndex, _ type: ContentType, _ count: UInt64,
    _ address: BlockAddress = .none, _ checksums: UInt64 = 0
  ) throws(CheckFailure) {
    try contents.add(
      SpillRecord(
        a: object.raw, b: block.raw, c: ordinal, d: type.rawValue << 56 | count, e: address.raw,
        f: checksums))
  }

  private func event(
    _ object: ObjectID, _ type: ObjectEvent, _ d: UInt64 = 0, _ e: UInt64 = 0
  ) throws(CheckFailure) {
    try objects.add(SpillRecord(a: object.raw, b: ordinal, c: type.rawValue, d: d, e: e))
  }

  private func name(
    _ parent: ObjectID, _ name: [UInt8], _ object: ObjectID, removed: Bool
  ) throws(CheckFailure) {
    try names.add(
      SpillRecord(
        a: parent.raw, b: NameEntry.hash(name), c: UInt64(name.withUnsafeBytes { crc32c($0) }),
        d: ordinal << 1 | (removed ? 1 : 0), e: object.raw))
  }
}
