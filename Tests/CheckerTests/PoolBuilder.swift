import Core

@testable import Checker

/// Builds the state of vSpace by hand, as docs/formats has it: trees from sorted entries, bitmaps
/// from what was handed out. Hooks change single things, so that each test plants one fault.
final class PoolBuilder {
  struct Disk {
    var id: UInt64
    var name: String
    /// Block of the disk to stamp of its content.
    var blocks: [UInt64: UInt64]
    var isDeleted = false
  }

  let log: LogBuilder
  var volumes: [MemoryDevice] = []
  var labels: [DeviceLabel] = []
  var disks: [Disk] = []
  /// Disks with snapshots and clones.
  var branches: BranchBuilder?

  // What a test may change before `build`.
  var changeRecord: (inout ObjectRecord) -> Void = { _ in }
  var changeRoot: (inout RootRecord) -> Void = { _ in }
  var changeWords: (inout [UInt32]) -> Void = { _ in }
  /// Blocks to mark as in use although nobody owns them, and the other way round.
  var leak: [BlockAddress] = []
  var lose: [BlockAddress] = []
  var extraNames: [(name: String, object: UInt64)] = []
  /// Gives the second disk the homes of the first.
  var shareHomes = false

  // What `build` made.
  private(set) var homes: [UInt64: [UInt64: BlockAddress]] = [:]
  private(set) var nodes: [(pointer: NodePointer, kind: NodeKind)] = []
  private(set) var root = RootRecord()
  private var next: [UInt64] = []
  private var used: Set<BlockAddress> = []

  init(volumes count: Int = 2, blocks: UInt64 = 9000) {
    log = LogBuilder()
    for v in 0..<count {
      let device = MemoryDevice(blocks: Int(blocks))
      let label = DeviceLabel(
        pool: log.label.pool, member: UUIDBytes(high: 9, low: UInt64(v)), role: .volume,
        volumeIndex: UInt16(v), sizeInBlocks: blocks, created: 5, poolName: "test")
      for copy: UInt64 in [0, 1] { device.put(block: copy) { label.encode(to: $0) } }
      volumes.append(device)
      labels.append(label)
      next.append(VolumeLayout.reserved)
    }
  }

  /// A pool with two disks, one of them with several extents and a hole.
  static func sample() -> PoolBuilder {
    let pool = PoolBuilder()
    var blocks: [UInt64: UInt64] = [:]
    for b: UInt64 in 0..<300 { blocks[b] = 1000 + b }
    for b: UInt64 in 5000..<5003 { blocks[b] = 1000 + b }
    pool.disks = [
      Disk(id: 100, name: "alpha", blocks: blocks),
      Disk(id: 101, name: "beta", blocks: [7: 7, 8: 8]),
    ]
    return pool
  }

  func take(_ volume: Int, _ count: UInt64 = 1) -> BlockAddress {
    let address = BlockAddress(volume: volume, block: next[volume])
    next[volume] += count
    for i in 0..<count { used.insert(address + i) }
    return address
  }

  /// A block that was taken is free again.
  func free(_ address: BlockAddress, isMetadata: Bool = false) {
    precondition(used.remove(address) != nil, "a block is freed that is not in use")
    if isMetadata { freedMetadata += 1 }
  }
  private var freedMetadata = 0

  func put(_ address: BlockAddress, _ bytes: [UInt8]) {
    volumes[address.volume].put(bytes, at: address.byteOffset)
  }

  typealias Entry = (key: NodeKey, value: [UInt8])

  /// Writes a tree with the given ascending entries at addresses taken now.
  func tree(
    _ entries: [Entry], kind: NodeKind, owner: ObjectID, perLeaf: Int = 3, birth: Instant = 1
  ) -> NodePointer {
    write(
      entries, at: reserve(entries.count, perLeaf), kind: kind, owner: owner, perLeaf: perLeaf,
      birth: birth)
  }

  typealias Place = (BlockAddress, BlockAddress)

  /// Addresses for the nodes of a tree of `count` entries.
  private func reserve(_ count: Int, _ perLeaf: Int) -> [Place] {
    var nodes = 0
    var width = (count + perLeaf - 1) / perLeaf
    while width > 0 {
      nodes += width
      width = width == 1 ? 0 : (width + 3) / 4
    }
    return (0..<nodes).map { _ in (take(0), take(volumes.count > 1 ? 1 : 0)) }
  }

  private func write(
    _ entries: [Entry], at places: [Place], kind: NodeKind, owner: ObjectID, perLeaf: Int,
    birth: Instant = 1
  ) -> NodePointer {
    var places = places[...]
    var level: [(key: NodeKey, pointer: NodePointer)] = []
    for start in stride(from: 0, to: entries.count, by: perLeaf) {
      let part = Array(entries[start..<min(start + perLeaf, entries.count)])
      let place = places.removeFirst()
      level.append(
        (part[0].key, leaf(part, kind: kind, owner: owner, birth: birth, at: place)))
    }
    var height: UInt8 = 0
    while level.count > 1 {
      height += 1
      var above: [(key: NodeKey, pointer: NodePointer)] = []
      for start in stride(from: 0, to: level.count, by: 4) {
        let part = Array(level[start..<min(start + 4, level.count)])
        above.append(
          (
            part[0].key,
            interior(
              part, height, kind: kind, owner: owner, birth: birth, at: places.removeFirst())
          ))
      }
      level = above
    }
    return level.first?.pointer ?? .none
  }

  /// Writes one leaf, at `place` or where there is room.
  func leaf(
    _ entries: [Entry], kind: NodeKind, owner: ObjectID, birth: Instant = 1, at place: Place? = nil
  ) -> NodePointer {
    let body = encoded(size: blockSize) { p in
      p.initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
      var heap = blockSize - entries.reduce(0) { $0 + $1.value.count }
      p.put(UInt16(heap), at: 14)
      for (i, entry) in entries.enumerated() {
        p.put(entry.key.hi, at: 64 + 20 * i)
        p.put(entry.key.lo, at: 72 + 20 * i)
        p.put(UInt16(heap), at: 80 + 20 * i)
        p.put(UInt16(entry.value.count), at: 82 + 20 * i)
        for byte in entry.value {
          p.put(byte, at: heap)
          heap += 1
        }
      }
    }
    return node(body, 0, entries.count, kind, owner, birth, place ?? reserve(1, 1)[0])
  }

  /// Writes one interior node, likewise.
  func interior(
    _ children: [(key: NodeKey, pointer: NodePointer)], _ level: UInt8, kind: NodeKind,
    owner: ObjectID, birth: Instant = 1, at place: Place? = nil
  ) -> NodePointer {
    let body = encoded(size: blockSize) { p in
      p.initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
      p.put(UInt16(4096), at: 14)
      for (i, child) in children.enumerated() {
        p.put(child.key.hi, at: 64 + 48 * i)
        p.put(child.key.lo, at: 72 + 48 * i)
        child.pointer.encode(to: p + 80 + 48 * i)
      }
    }
    return node(body, level, children.count, kind, owner, birth, place ?? reserve(1, 1)[0])
  }

  private func encoded(size: Int, _ body: (UnsafeMutableRawPointer) -> Void) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: size)
    bytes.withUnsafeMutableBytes { body($0.baseAddress!) }
    return bytes
  }

  private func node(
    _ body: [UInt8], _ level: UInt8, _ count: Int, _ kind: NodeKind, _ owner: ObjectID,
    _ birth: Instant, _ place: Place
  ) -> NodePointer {
    var bytes = body
    var checksum: UInt32 = 0
    bytes.withUnsafeMutableBytes {
      let p = $0.baseAddress!
      p.put(UInt32(0x4F4E_4C53), at: 0)
      p.put(UInt8(1), at: 4)
      p.put(kind.rawValue, at: 5)
      p.put(level, at: 6)
      p.put(UInt16(count), at: 12)
      p.put(place.0.raw, at: 16)
      p.put(place.1.raw, at: 24)
      p.put(owner.raw, at: 32)
      p.put(birth, at: 40)
      p.put(UInt64(1), at: 48)
      sealBlock(p, checksumAt: 8)
      checksum = p.reading.u32(8)
    }
    put(place.0, bytes)
    put(place.1, bytes)
    let pointer = NodePointer(
      first: place.0, second: place.1, birth: birth, checksum: checksum, level: level)
    nodes.append((pointer, kind))
    return pointer
  }

  /// Writes the whole pool.
  func build() {
    root = log.root
    root.checkpoint = 1
    root.volumes = UInt32(volumes.count)
    root.nextObject = 1000
    root.nextInstant = 5
    var objects: [Entry] = labels.enumerated().map { v, label in
      let record = VolumeRecord(member: label.member, sizeInBlocks: label.sizeInBlocks)
      return (NodeKey(hi: 0, lo: UInt64(v)), record.encoded())
    }
    var names: [Entry] = []
    for disk in disks {
      objects.append((NodeKey(hi: disk.id, lo: 0), object(disk).encoded()))
      if disk.isDeleted {
        names.append((NodeKey(hi: 0, lo: disk.id), []))
        root.deletedObjects += 1
      } else {
        names.append(name(disk.name, disk.id))
        root.disks += 1
      }
    }
    names += extraNames.map { name($0.name, $0.object) }
    if let branches {
      let built = branches.build(&root)
      objects += built.objects
      names += built.names
    }
    root.objects = tree(objects, kind: .objects, owner: ObjectID(2), perLeaf: 2)
    root.names = tree(names.sorted { $0.key < $1.key }, kind: .names, owner: ObjectID(3))
    buildSpace()
    changeRoot(&root)
    for volume in volumes {
      for copy in 0..<VolumeLayout.rootCopies {
        volume.put(block: VolumeLayout.root(unit: 0, checkpoint: root.checkpoint) + copy) {
          root.encode(to: $0)
        }
      }
    }
    log.root = root
  }

  private func name(_ name: String, _ object: UInt64) -> Entry {
    let bytes = Array(name.utf8)
    let entry = NameEntry(object: ObjectID(object), kind: .disk, name: bytes)
    return (NodeKey(hi: 1, lo: NameEntry.hash(bytes)), NameEntry.encode([entry]))
  }

  private func object(_ disk: Disk) -> ObjectRecord {
    let before = nodes.count
    var record = ObjectRecord()
    record.size = 1 << 30
    record.name = Array(disk.name.utf8)
    record.map = tree(map(disk), kind: .extents, owner: ObjectID(disk.id))
    record.usedBlocks = UInt64(disk.blocks.count)
    record.exclusiveBlocks = record.usedBlocks
    record.metadataBlocks = UInt64(2 * (nodes.count - before))
    if disk.isDeleted {
      record.links = 0
      root.freeingBlocks += record.exclusiveBlocks
    }
    if disk.id == 100 { changeRecord(&record) }
    return record
  }

  /// Extents of up to 50 blocks, homes on the volumes in turn.
  private func map(_ disk: Disk) -> [Entry] {
    var entries: [Entry] = []
    let blocks = disk.blocks.keys.sorted()
    var i = 0
    while i < blocks.count {
      var n = 1
      while i + n < blocks.count, n < 50, blocks[i + n] == blocks[i] + UInt64(n) { n += 1 }
      var address = take(entries.count % volumes.count, UInt64(n))
      if shareHomes, disk.id == 101 { address = homes[100]![0]! }
      var value = [UInt8](repeating: 0, count: 24 + 4 * n)
      value.withUnsafeMutableBytes { v in
        let p = v.baseAddress!
        ExtentFormat.encode(to: p, address: address, birth: 1, length: n)
        for j in 0..<n {
          let bytes = content(disk.blocks[blocks[i + j]]!)
          p.put(checksum(bytes), at: 24 + 4 * j)
          put(address + UInt64(j), bytes)
          homes[disk.id, default: [:]][blocks[i + j]] = address + UInt64(j)
        }
      }
      entries.append((NodeKey(hi: blocks[i], lo: 0), value))
      i += n
    }
    return entries
  }

  private func buildSpace() {
    // For each volume one page and a bitmap a chunk, and the totals.
    let places = reserve(labels.reduce(1) { $0 + 2 + Int($1.sizeInBlocks / 8192) }, 2)
    var entries: [Entry] = []
    var words: [Entry] = []
    for (v, label) in labels.enumerated() {
      var set = 0
      for chunk in 0...label.sizeInBlocks / 8192 {
        var bitmap = [UInt8](repeating: 0, count: 1024)
        for i in 0..<8192 where chunk == 0 || i < Int(label.sizeInBlocks - 8192) {
          let address = BlockAddress(volume: v, block: chunk * 8192 + UInt64(i))
          guard used.contains(address) && !lose.contains(address) || leak.contains(address) else {
            continue
          }
          bitmap[i / 8] |= 1 << UInt8(i % 8)
          set += 1
        }
        entries.append((NodeKey(hi: 1, lo: UInt64(v) << 48 | chunk), bitmap))
      }
      var page = [UInt32](repeating: 0, count: 128)
      page[0] = GroupWord(free: Int(label.sizeInBlocks) - 512 - set, owner: 1).raw
      changeWords(&page)
      words.append((NodeKey(hi: 0, lo: UInt64(v) << 48), littleEndian(page)))
    }
    let metadata = UInt64(2 * (nodes.count + places.count) - freedMetadata)
    root.usedBlocks = UInt64(used.count)
    root.metadataBlocks = metadata
    let totals = littleEndian([UInt64(used.count - lose.count + leak.count), metadata])
    root.space = write(
      words + entries + [(NodeKey(hi: 2, lo: 0), totals)], at: places, kind: .space,
      owner: ObjectID(4), perLeaf: 2)
  }

  private func littleEndian(_ words: [some FixedWidthInteger]) -> [UInt8] {
    words.flatMap { word in withUnsafeBytes(of: word.littleEndian) { Array($0) } }
  }

  func check(_ options: CheckOptions = CheckOptions()) -> CheckReport {
    Checker(log: log.device, volumes: volumes, options: options).run()
  }

  static var repairing: CheckOptions {
    var options = CheckOptions()
    options.repair = true
    return options
  }
}
