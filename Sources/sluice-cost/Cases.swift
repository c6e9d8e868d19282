import Core
import Glibc

/// What is measured: random 4 KiB operations on a disk that has a certain past.
struct Case: Sendable {
  enum Kind: Sendable { case write, writeAndFlush, read }

  var name: String
  var kind: Kind
  /// Prepares the pool; returns the disk.
  var prepare: @Sendable (Workload) -> String
  /// Whether reads find the disk's blocks in memory.
  var isCached = true

  static let all: [Case] = [
    Case(name: "rewrite", kind: .write, prepare: { $0.filled("plain") }),
    Case(name: "rewrite-flush", kind: .writeAndFlush, prepare: { $0.filled("plain") }),
    Case(name: "first-write", kind: .write, prepare: { $0.blank("plain") }),
    Case(name: "clone-write", kind: .write, prepare: { $0.cloned() }),
    Case(name: "snapshots-write", kind: .write, prepare: { $0.snapshots() }),
    Case(name: "deep-write", kind: .write, prepare: { $0.deep() }),
    Case(name: "read", kind: .read, prepare: { $0.filled("plain") }),
    Case(name: "clone-read", kind: .read, prepare: { $0.cloned() }),
    Case(name: "snapshots-read", kind: .read, prepare: { $0.snapshots() }),
    Case(name: "deep-read", kind: .read, prepare: { $0.deep() }),
    Case(name: "cold-read", kind: .read, prepare: { $0.filled("plain") }, isCached: false),
    Case(name: "cold-clone-read", kind: .read, prepare: { $0.cloned() }, isCached: false),
    Case(name: "cold-snapshots-read", kind: .read, prepare: { $0.snapshots() }, isCached: false),
    Case(name: "cold-deep-read", kind: .read, prepare: { $0.deep() }, isCached: false),
  ]
}

/// Makes disks with a past, and loads them.
final class Workload {
  static let depth = 32
  /// Of a disk.
  static let blocks: UInt64 = 16384

  let pool: MemoryPool
  private let memory = AlignedMemory(bytes: depth * blockSize)
  private var random = SeededRandom(seed: 11)

  init(isCached: Bool) {
    // Without room for a disk in the cache, reads go to the device.
    pool = MemoryPool(logBytes: 256 << 20, cacheBytes: isCached ? 256 << 20 : 16 << 20)
    for i in 0..<memory.count / 8 {
      memory.base.storeBytes(of: random.next() | 1, toByteOffset: i * 8, as: UInt64.self)
    }
  }

  func blank(_ name: String) -> String {
    pool.control(.create(name: name, size: Self.blocks << UInt64(blockShift)))
    return name
  }

  /// A disk with data everywhere, destaged.
  func filled(_ name: String) -> String {
    let disk = pool.open(blank(name))
    let piece = 16
    for block in stride(from: 0, to: Self.blocks, by: piece) {
      submit(.write, disk, block: block, count: piece)
      pool.drain()
    }
    settle(disk)
    return name
  }

  func cloned() -> String {
    snapshot(filled("golden"), "s")
    pool.control(.clone(SnapshotName(disk: "golden", snapshot: "s"), name: "clone", count: nil))
    pool.control(.flush)
    return "clone"
  }

  /// A disk with 250 snapshots, written to between them.
  func snapshots() -> String {
    let name = filled("plain")
    let disk = pool.open(name)
    for number in 0..<250 {
      scatter(disk, count: 32)
      snapshot(name, "s\(number)")
    }
    settle(disk)
    return name
  }

  /// A clone of a clone … 50 deep, written to at each.
  func deep() -> String {
    var name = filled("deep0")
    for level in 1...50 {
      let disk = pool.open(name)
      scatter(disk, count: 160)
      pool.control(.close(disk))
      snapshot(name, "s")
      let below = name
      name = "deep\(level)"
      pool.control(.clone(SnapshotName(disk: below, snapshot: "s"), name: name, count: nil))
    }
    pool.control(.flush)
    return name
  }

  private func snapshot(_ disk: String, _ name: String) {
    pool.control(.snapshot([SnapshotName(disk: disk, snapshot: name)]))
  }

  private func scatter(_ disk: DiskHandle, count: Int) {
    for number in 0..<count {
      submit(.write, disk, block: random.below(Self.blocks))
      if number % Self.depth == 31 { pool.drain() }
    }
    pool.drain()
  }

  private func settle(_ disk: DiskHandle) {
    pool.drain()
    pool.control(.flush)
    pool.control(.close(disk))
  }

  private var slot = 0

  private func submit(
    _ operation: BlockOperation, _ disk: DiskHandle, block: UInt64, count: Int = 1
  ) {
    slot = count > 1 ? 0 : (slot + 1) % Self.depth
    pool.submit(
      BlockRequest(
        operation: operation, disk: disk, offset: block << UInt64(blockShift),
        length: UInt64(count * blockSize), memory: memory.base + slot * blockSize, token: 0))
  }

  /// The load: `count` operations in batches of `depth`, then, for writes, until all is home.
  func load(_ kind: Case.Kind, _ disk: DiskHandle, count: Int) {
    for number in 0..<count {
      submit(kind == .read ? .read : .write, disk, block: random.below(Self.blocks))
      if kind == .writeAndFlush {
        pool.drain()
        pool.submit(
          BlockRequest(
            operation: .flush, disk: disk, offset: 0, length: 0, memory: nil, token: 0))
        pool.drain()
      }
      if number % Self.depth == Self.depth - 1 { pool.drain() }
    }
    pool.drain()
    if kind != .read { pool.control(.flush) }
  }
}

/// By this name a profiler that counts only inside a function finds the load.
@inline(never)
func measuredLoad(_ workload: Workload, _ kind: Case.Kind, _ disk: DiskHandle, count: Int) {
  workload.load(kind, disk, count: count)
}
