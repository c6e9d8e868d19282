import Core
import Glibc

// A block device or sparse file in memory, with the faults that real ones have. This file is the
// one fault model of the project; docs/architecture/simulation.md says the same in prose.
//
//   - A write is visible to reads when it completes, and durable after a later flush that was
//     issued after the completion. `writeDurable` is durable at its completion, its own range
//     only.
//   - A power cut decides each write that is not durable independently: lost, kept, or torn at
//     512 bytes, in any order, whatever the order of completion was.
//   - A write that fails may have changed any of its sectors, and no later flush makes that
//     durable. A flush that fails may have made any write durable; the others never become so,
//     whatever a later flush says.
//   - A discard leaves garbage where something was, never zeros and never the old content.
//   - A sparse file has only so much space behind it: `allocate`, and writes to ranges without
//     it, fail with ENOSPC when it is used up.
//
// Content is kept by 4 KiB page. `durable` is what survives a power cut; `overlay` is the newest
// visible page where that differs; `volatile` lists all pages that are not durable, in the order
// of their completion, because an older one may be what a power cut leaves.

/// What a device is and how fast; fixed for a run.
package struct DevicePlan: Sendable {
  /// In bytes, a multiple of 4,096.
  package var size: UInt64
  package var isSparseFile = false
  package var canDiscard = true
  /// Bytes that the file system can give a sparse file.
  package var backing: UInt64 = .max
  /// Whether blocks that were never written hold garbage (an old disk) rather than zeros.
  package var startsDirty = false
  package var timing = DeviceTiming()

  package init(size: UInt64) { self.size = size }

  package var description: DeviceDescription {
    DeviceDescription(size: size, isSparseFile: isSparseFile, canDiscard: canDiscard)
  }
}

package final class SimulatedDevice {
  /// A page that survives a power cut. `sequence` is when it came to be, so that an older
  /// volatile page never replaces a newer durable one.
  struct DurablePage {
    var page: PageArena.Page
    var sequence: UInt64
  }

  /// A visible page that a power cut may take back.
  struct VolatilePage {
    var block: UInt64
    var page: PageArena.Page
    var sequence: UInt64
    /// Pages of one write share its number: a power cut decides by write.
    var write: UInt64
    /// Left behind by a failed write or flush: no flush makes it durable any more.
    var orphaned: Bool
  }

  /// In place of a page: the content is garbage.
  static let garbage: PageArena.Page = -1

  package let index: DeviceIndex
  package let plan: DevicePlan
  package let description: DeviceDescription
  /// How it fails at the moment; the run changes it.
  package var faults = DeviceFaults()

  let arena: PageArena
  let blocks: UInt64
  private(set) var durable: [UInt64: DurablePage] = [:]
  private var overlay: [UInt64: PageArena.Page] = [:]
  private(set) var volatile: [VolatilePage] = []
  /// Volatile pages from which on old orphans are forgotten.
  private var crowd = 8192
  private var sequence: UInt64 = 0
  private let garbageSeed: UInt64

  /// Which blocks of each 128 KiB of a sparse file have space behind them.
  private var allocated: [UInt64: UInt32] = [:]
  private(set) var backingUsed: UInt64 = 0

  init(index: DeviceIndex, plan: DevicePlan, arena: PageArena, seed: UInt64) {
    invariant(plan.size % UInt64(blockSize) == 0, "a simulated device is not whole blocks")
    self.index = index
    self.plan = plan
    self.description = plan.description
    self.arena = arena
    self.blocks = plan.size >> blockShift
    self.garbageSeed = seed
  }

  // MARK: Content

  /// The number of the newest change; a flush covers what is at or below it when it is issued.
  var flushMark: UInt64 { sequence }

  /// What a read of `block` sees, copied to `memory`.
  package func read(block: UInt64, into memory: UnsafeMutableRawPointer) {
    if let page = overlay[block] {
      copy(page, block, to: memory)
    } else {
      readDurable(block: block, into: memory)
    }
  }

  /// What would be there after a power cut that loses everything volatile.
  package func readDurable(block: UInt64, into memory: UnsafeMutableRawPointer) {
    if let kept = durable[block] {
      copy(kept.page, block, to: memory)
    } else if plan.startsDirty {
      fillGarbage(memory, block)
    } else {
      memory.initializeMemory(as: UInt8.self, repeating: 0, count: blockSize)
    }
  }

  /// Whether something was written to `block` and not discarded.
  func isDurable(block: UInt64) -> Bool { (durable[block]?.page ?? Self.garbage) >= 0 }

  private func copy(
    _ page: PageArena.Page, _ block: UInt64, to memory: UnsafeMutableRawPointer
  ) {
    if page == Self.garbage {
      fillGarbage(memory, block)
    } else {
      memory.copyMemory(from: arena.memory(page), byteCount: blockSize)
    }
  }

  private func fillGarbage(_ memory: UnsafeMutableRawPointer, _ block: UInt64) {
    var x = garbageSeed ^ (block &* 0x9E37_79B9_7F4A_7C15) | 1
    let words = memory.assumingMemoryBound(to: UInt64.self)
    for i in 0..<(blockSize / 8) {
      x = x &* 0xD134_2543_DE82_EF95 &+ 0x2545_F491_4F6C_DD1D
      words[i] = x
    }
  }

  /// A write that completed without being durable: `source` holds whole blocks.
  func writeVisible(block: UInt64, count: UInt64, from source: UnsafeRawPointer, write: UInt64) {
    sequence += 1
    for i in 0..<count {
      let page = arena.take()
      arena.memory(page).copyMemory(
        from: source + Int(i) * blockSize, byteCount: blockSize)
      addVolatile(block + i, page, write: write, orphaned: false)
    }
  }

  /// A write that completed on stable storage.
  func writeDurable(block: UInt64, count: UInt64, from source: UnsafeRawPointer) {
    sequence += 1
    for i in 0..<count {
      let page = arena.take()
      arena.memory(page).copyMemory(
        from: source + Int(i) * blockSize, byteCount: blockSize)
      setDurable(block + i, DurablePage(page: page, sequence: sequence))
      overlay[block + i] = nil
    }
  }

  /// A write that failed: each of its sectors may have changed, visible now, never durable by
  /// a flush.
  func writeFailed(
    block: UInt64, count: UInt64, from source: UnsafeRawPointer, write: UInt64,
    random: inout SeededRandom
  ) {
    sequence += 1
    let fate = WriteFate(random: &random)
    for i in 0..<count {
      let page = arena.take()
      let memory = arena.memory(page)
      read(block: block + i, into: memory)
      fate.apply(
        source + Int(i) * blockSize, onto: memory, sectorInWrite: Int(i) * 8,
        sectors: Int(count) * 8, random: &random)
      addVolatile(block + i, page, write: write, orphaned: true)
    }
    if volatile.count > crowd { forgetOldOrphans() }
  }

  /// An engine that tries again and again leaves many failed writes. That an older one of the same
  /// block is lost is one of its possible fates, so it need not be kept.
  private func forgetOldOrphans() {
    var seen: Set<UInt64> = []
    var kept: [VolatilePage] = []
    for entry in volatile.reversed() {
      if entry.orphaned && !seen.insert(entry.block).inserted {
        drop(entry)
      } else {
        kept.append(entry)
      }
    }
    volatile = kept.reversed()
    crowd = max(crowd, 2 * volatile.count)
  }

  /// Whatever was in the range is garbage from now on; volatile like a write. Blocks that never
  /// held anything stay as they are.
  func discard(block: UInt64, count: UInt64, write: UInt64) {
    sequence += 1
    for b in blocksWithContent(block, count) {
      addVolatile(b, Self.garbage, write: write, orphaned: false)
    }
    guard plan.isSparseFile else { return }
    for b in block..<(block + count) { unback(b) }
  }

  private func blocksWithContent(_ block: UInt64, _ count: UInt64) -> [UInt64] {
    if count <= UInt64(durable.count + overlay.count) {
      return (block..<(block + count)).filter { overlay[$0] != nil || durable[$0] != nil }
    }
    let range = block..<(block + count)
    var found = durable.keys.filter { range.contains($0) }
    found.append(contentsOf: overlay.keys.filter { range.contains($0) && durable[$0] == nil })
    found.sort()
    return found
  }

  private func addVolatile(
    _ block: UInt64, _ page: PageArena.Page, write: UInt64, orphaned: Bool
  ) {
    overlay[block] = page
    volatile.append(
      VolatilePage(
        block: block, page: page, sequence: sequence, write: write, orphaned: orphaned))
  }

  private func setDurable(_ block: UInt64, _ new: DurablePage) {
    if let old = durable.updateValue(new, forKey: block), old.page >= 0 { arena.give(old.page) }
  }

  // MARK: Flush

  /// A flush that was issued at `mark` has completed.
  func flush(mark: UInt64) {
    settle { entry in
      entry.sequence <= mark && !entry.orphaned ? .durable : .stays
    }
  }

  /// A flush that was issued at `mark` has failed: of the writes that it covered, some became
  /// durable, and the others never will.
  func flushFailed(mark: UInt64, random: inout SeededRandom) {
    let luck = random.below(4)
    settle { entry in
      guard entry.sequence <= mark && !entry.orphaned else { return .stays }
      switch luck {
      case 0: return .orphaned
      case 1: return .durable
      default: return random.oneIn(2) ? .durable : .orphaned
      }
    }
  }

  private enum Settlement { case stays, durable, orphaned }

  private func settle(_ decide: (VolatilePage) -> Settlement) {
    var kept = 0
    for i in volatile.indices {
      var entry = volatile[i]
      // Overtaken by a durable write of the same block: nothing brings it back.
      if let newer = durable[entry.block], newer.sequence > entry.sequence {
        drop(entry)
        continue
      }
      switch decide(entry) {
      case .durable:
        if overlay[entry.block] == entry.page, isNewest(entry, from: i) {
          overlay[entry.block] = nil
        }
        setDurable(entry.block, DurablePage(page: entry.page, sequence: entry.sequence))
        continue
      case .orphaned: entry.orphaned = true
      case .stays: break
      }
      volatile[kept] = entry
      kept += 1
    }
    volatile.removeLast(volatile.count - kept)
  }

  /// Garbage has no page of its own to be told by, so a later entry must be looked for.
  private func isNewest(_ entry: VolatilePage, from i: Int) -> Bool {
    guard entry.page == Self.garbage else { return true }
    return !volatile[(i + 1)...].contains { $0.block == entry.block }
  }

  private func drop(_ entry: VolatilePage) {
    if entry.page >= 0 {
      if overlay[entry.block] == entry.page { overlay[entry.block] = nil }
      arena.give(entry.page)
    }
  }

  // MARK: Power

  /// Takes every volatile page back, and lets `survive` put some of it on stable storage.
  func takeVolatile() -> [VolatilePage] {
    let taken = volatile
    volatile = []
    overlay = [:]
    return taken
  }

  /// Makes a volatile page, whole or merged into what is there, durable after a power cut.
  func survive(_ entry: VolatilePage, sectors: UInt8) {
    if let newer = durable[entry.block], newer.sequence > entry.sequence { return }
    mergeDurable(
      block: entry.block, from: entry.page >= 0 ? UnsafeRawPointer(arena.memory(entry.page)) : nil,
      sectors: sectors)
  }

  /// Overwrites the `sectors` (a bit each) of a durable block; nil is garbage.
  func mergeDurable(block: UInt64, from source: UnsafeRawPointer?, sectors: UInt8) {
    guard sectors != 0 else { return }
    let sequence = durable[block]?.sequence ?? 0
    guard let source else {
      setDurable(block, DurablePage(page: Self.garbage, sequence: sequence))
      return
    }
    let page = arena.take()
    let memory = arena.memory(page)
    readDurable(block: block, into: memory)
    for s in 0..<8 where sectors & (1 << UInt8(s)) != 0 {
      (memory + s * sectorSize).copyMemory(
        from: source + s * sectorSize, byteCount: sectorSize)
    }
    setDurable(block, DurablePage(page: page, sequence: sequence))
  }

  /// Gives back the pages of entries that `takeVolatile` returned.
  func release(_ entries: [VolatilePage]) {
    for entry in entries where entry.page >= 0 { arena.give(entry.page) }
  }

  /// Flips one bit of what is stored in `block`; whatever is volatile there is not touched.
  package func flip(block: UInt64, bit: Int) {
    guard let kept = durable[block], kept.page >= 0 else { return }
    let byte = arena.memory(kept.page) + bit / 8
    byte.storeBytes(of: byte.load(as: UInt8.self) ^ UInt8(1 << (bit % 8)), as: UInt8.self)
  }

  /// Blocks that hold something after a power cut, ascending.
  func durableBlocks() -> [UInt64] {
    durable.keys.filter { isDurable(block: $0) }.sorted()
  }

  // MARK: Backing

  /// Takes space for the range; false when the file system has no more (what was got stays got,
  /// as with fallocate).
  func allocate(block: UInt64, count: UInt64) -> Bool {
    guard plan.isSparseFile else { return true }
    for b in block..<(block + count) where !back(b) { return false }
    return true
  }

  /// Space that something else on the file system uses, in blocks.
  var backingTaken: UInt64 = 0

  private func back(_ block: UInt64) -> Bool {
    let bit: UInt32 = 1 << UInt32(block % 32)
    let unit = allocated[block / 32] ?? 0
    if unit & bit != 0 { return true }
    guard (backingUsed + backingTaken + 1) << blockShift <= plan.backing else { return false }
    allocated[block / 32] = unit | bit
    backingUsed += 1
    return true
  }

  private func unback(_ block: UInt64) {
    let bit: UInt32 = 1 << UInt32(block % 32)
    guard let unit = allocated[block / 32], unit & bit != 0 else { return }
    allocated[block / 32] = unit & ~bit
    backingUsed -= 1
  }
}
