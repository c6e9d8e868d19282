import Core
import Glibc
import Simulation
import Testing

/// A pool with one simulated device of each kind, and the means to run single operations on it.
private final class Bench {
  let pool: SimulatedPool
  var queue = EventQueue()
  let memory = AlignedMemory(bytes: 64 * blockSize)
  static let device = DeviceIndex.volume(0)

  init(seed: UInt64 = 1, _ change: (inout DevicePlan) -> Void = { _ in }) {
    var volume = DevicePlan(size: 8 << 20)
    volume.isSparseFile = false
    change(&volume)
    pool = SimulatedPool(
      plan: PoolPlan(seed: seed, log: DevicePlan(size: 4 << 20), volumes: [volume]))
  }

  var device: SimulatedDevice { pool.devices[1] }

  /// Starts an operation; its blocks are filled with `byte`.
  @discardableResult
  func issue(
    _ kind: DeviceOpKind, block: UInt64 = 0, count: UInt64 = 1, byte: UInt8 = 0
  ) -> Int {
    let memory = self.memory.base + Int(block % 32) * blockSize
    if kind == .write || kind == .writeDurable {
      memory.initializeMemory(as: UInt8.self, repeating: byte, count: Int(count) * blockSize)
    }
    let op = DeviceOp(
      kind: kind, device: Self.device, offset: block << blockShift,
      length: kind == .flush ? 0 : count << blockShift, memory: memory, token: 0)
    return try! pool.issue(op, queue: &queue).slot
  }

  @discardableResult
  func finish(_ slot: Int) -> Int32 {
    guard case .completed(_, let completion) = try! pool.finish(slot, now: .max) else { return -1 }
    return completion.error
  }

  @discardableResult
  func run(_ kind: DeviceOpKind, block: UInt64 = 0, count: UInt64 = 1, byte: UInt8 = 0) -> Int32 {
    finish(issue(kind, block: block, count: count, byte: byte))
  }

  /// The bytes that the sectors of a block begin with.
  func sectors(_ block: UInt64, durable: Bool = false) -> [UInt8] {
    let copy = AlignedMemory(bytes: blockSize)
    if durable {
      device.readDurable(block: block, into: copy.base)
    } else {
      device.read(block: block, into: copy.base)
    }
    return (0..<8).map { copy.base.load(fromByteOffset: $0 * sectorSize, as: UInt8.self) }
  }

  func holds(_ block: UInt64, _ byte: UInt8, durable: Bool = false) -> Bool {
    sectors(block, durable: durable).allSatisfy { $0 == byte }
  }
}

@Suite struct DeviceTests {
  @Test("A write is visible when it completes, and durable only after a later flush")
  func flushMakesDurable() {
    let bench = Bench()
    bench.run(.write, byte: 7)
    #expect(bench.holds(0, 7))
    #expect(bench.holds(0, 0, durable: true))
    bench.run(.flush)
    #expect(bench.holds(0, 7, durable: true))
  }

  @Test("A flush covers only writes that had completed when it was issued")
  func flushCoversEarlierWrites() {
    let bench = Bench()
    let flush = bench.issue(.flush)
    bench.run(.write, byte: 7)
    bench.finish(flush)
    #expect(bench.holds(0, 0, durable: true))
  }

  @Test("A durable write makes its own range durable, and nothing else")
  func durableWriteIsAlone() {
    let bench = Bench()
    bench.run(.write, block: 1, byte: 5)
    bench.run(.writeDurable, block: 2, byte: 6)
    #expect(bench.holds(1, 0, durable: true))
    #expect(bench.holds(2, 6, durable: true))
  }

  @Test("No power cut brings an older volatile write back over a durable one")
  func durableStaysNewest() {
    for seed in 1...50 as ClosedRange<UInt64> {
      let bench = Bench(seed: seed)
      bench.run(.write, byte: 5)
      bench.run(.writeDurable, byte: 6)
      _ = bench.pool.powerCut()
      #expect(bench.holds(0, 6))
    }
  }

  @Test("A power cut loses, keeps or tears what was not flushed, at whole sectors")
  func powerCutOutcomes() {
    var lost = 0
    var kept = 0
    var torn = 0
    for seed in 1...200 as ClosedRange<UInt64> {
      let bench = Bench(seed: seed)
      bench.run(.write, byte: 9)
      _ = bench.pool.powerCut()
      let sectors = bench.sectors(0)
      #expect(sectors.allSatisfy { $0 == 9 || $0 == 0 })
      if bench.holds(0, 0) {
        lost += 1
      } else if bench.holds(0, 9) {
        kept += 1
      } else {
        torn += 1
      }
    }
    #expect(lost > 20 && kept > 20 && torn > 20)
  }

  @Test("A power cut decides the writes of a device one by one, in any order")
  func powerCutReorders() {
    var second = false
    var first = false
    for seed in 1...200 as ClosedRange<UInt64> {
      let bench = Bench(seed: seed)
      bench.run(.write, block: 1, byte: 1)
      bench.run(.write, block: 2, byte: 2)
      _ = bench.pool.powerCut()
      second = second || (bench.holds(1, 0) && bench.holds(2, 2))
      first = first || (bench.holds(1, 1) && bench.holds(2, 0))
    }
    #expect(first && second)
  }

  @Test("Writes of a killed process land later, and a power cut may still tear them")
  func killedWritesLand() {
    let bench = Bench()
    let slot = bench.issue(.write, byte: 3)
    _ = bench.pool.kill(now: 0)
    #expect(bench.holds(0, 0))
    guard case .landed = try! bench.pool.finish(slot, now: .max) else {
      Issue.record("the write was reported to somebody")
      return
    }
    #expect(bench.holds(0, 3))
  }

  @Test("After a failed flush no later flush makes the orphans durable")
  func failedFlushIsNotRepaired() {
    var neverDurable = false
    for seed in 1...50 as ClosedRange<UInt64> {
      let bench = Bench(seed: seed)
      bench.run(.write, byte: 4)
      bench.device.faults.flushErrors = 1_000_000
      #expect(bench.run(.flush) == EIO)
      bench.device.faults.flushErrors = 0
      #expect(bench.run(.flush) == 0)
      neverDurable = neverDurable || !bench.holds(0, 4, durable: true)
      #expect(bench.holds(0, 4))
    }
    #expect(neverDurable)
  }

  @Test("A failed write may leave any of its sectors, and no flush makes them durable")
  func failedWriteLeavesAnything() {
    var mixed = false
    for seed in 1...100 as ClosedRange<UInt64> {
      let bench = Bench(seed: seed)
      bench.run(.writeDurable, byte: 1)
      bench.device.faults.writeErrors = 1_000_000
      #expect(bench.run(.write, byte: 2) == EIO)
      bench.run(.flush)
      #expect(bench.holds(0, 1, durable: true))
      let sectors = Set(bench.sectors(0))
      mixed = mixed || sectors.count == 2
    }
    #expect(mixed)
  }

  @Test("A discard leaves garbage: neither the old content nor zeros")
  func discardLeavesGarbage() {
    let bench = Bench()
    bench.run(.writeDurable, byte: 8)
    bench.run(.discard)
    #expect(!bench.holds(0, 8) && !bench.holds(0, 0))
    bench.run(.flush)
    #expect(!bench.holds(0, 8, durable: true) && !bench.holds(0, 0, durable: true))
  }

  @Test("A sparse file gives space until its file system is full, and takes it back")
  func sparseFileRunsFull() {
    let bench = Bench {
      $0.isSparseFile = true
      $0.backing = 4 * 4096
    }
    #expect(bench.run(.allocate, block: 0, count: 4) == 0)
    #expect(bench.run(.write, block: 2, byte: 1) == 0)
    #expect(bench.run(.allocate, block: 8, count: 1) == ENOSPC)
    #expect(bench.run(.write, block: 8, byte: 1) == ENOSPC)
    bench.run(.discard, block: 0, count: 2)
    #expect(bench.run(.allocate, block: 8, count: 2) == 0)
  }

  @Test("A flipped bit changes what is stored, and only that bit")
  func flippedBit() {
    let bench = Bench()
    bench.run(.writeDurable, byte: 0xFF)
    bench.device.flip(block: 0, bit: 3)
    #expect(bench.sectors(0) == [0xF7, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF])
  }

  @Test("A device that is gone fails operations; one that hangs answers when it is back")
  func absence() {
    let bench = Bench()
    bench.device.faults.presence = .gone
    #expect(bench.run(.read) == ENXIO)
    bench.device.faults.presence = .hanging
    let slot = bench.issue(.write, byte: 2)
    guard case .hangs = try! bench.pool.finish(slot, now: .max) else {
      Issue.record("a hanging device answered")
      return
    }
    bench.pool.bringBack(Bench.device, queue: &bench.queue)
    #expect(bench.finish(slot) == 0)
    #expect(bench.holds(0, 2))
  }

  @Test("Changing the memory of a write in flight is noticed")
  func changedMemory() {
    let bench = Bench()
    let slot = bench.issue(.write, byte: 2)
    bench.memory.base.storeBytes(of: 77, as: UInt8.self)
    #expect(throws: Violation.self) { _ = try bench.pool.finish(slot, now: .max) }
  }

  @Test("Operations outside the device or not in whole blocks are noticed")
  func invalidOperations() {
    let bench = Bench()
    for (offset, length) in [(8 << 20, 4096), (512, 4096), (0, 100), (0, 0)] {
      let op = DeviceOp(
        kind: .read, device: Bench.device, offset: UInt64(offset), length: UInt64(length),
        memory: bench.memory.base, token: 0)
      #expect(throws: Violation.self) { _ = try bench.pool.issue(op, queue: &bench.queue) }
    }
  }
}

@Suite struct EventQueueTests {
  @Test("Events come by time, and those of one time in the order of their coming")
  func order() {
    var queue = EventQueue()
    var random = SeededRandom(seed: 5)
    var wanted: [(UInt64, Int)] = []
    for i in 0..<500 {
      let time = random.below(40)
      queue.add(.client(i), at: time)
      wanted.append((time, i))
    }
    wanted.sort { ($0.0, $0.1) < ($1.0, $1.1) }
    for (time, i) in wanted {
      let event = queue.next()
      #expect(event?.time == time && event?.kind == .client(i))
    }
    #expect(queue.next() == nil)
  }

  @Test("Removed events do not come, the others keep their order")
  func removal() {
    var queue = EventQueue()
    for i in 0..<100 { queue.add(.client(i), at: UInt64(100 - i)) }
    queue.remove { if case .client(let i) = $0 { i % 2 == 0 } else { false } }
    var last = 100
    while let event = queue.next(), case .client(let i) = event.kind {
      #expect(i % 2 == 1 && i < last)
      last = i
    }
    #expect(last == 1)
  }
}
