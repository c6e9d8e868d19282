import Core
import Glibc

/// The member devices of a simulated pool and what is in flight on them. It outlives engines: a
/// crash takes the engine away and leaves the pool as the crash left it.
///
/// The exclusive lock on the devices (R6) is modelled by time: a restart may begin once the killed
/// engine's writes are done, unless `PlantedFault.lockNotAwaited` says otherwise.

/// Everything about a pool that its engine is told; drawn from the seed.
package struct PoolPlan: Sendable {
  package var seed: UInt64
  package var log: DevicePlan
  package var volumes: [DevicePlan]
  /// Volumes that may be added while the pool is served; their devices exist from the start.
  package var spareVolumes: [DevicePlan] = []
  package var cacheBytes = 16 << 20
  /// Of disks that are created without saying so.
  package var durability = Durability.always
  package var planted: PlantedFault?
  /// Nodes of a delta above which it is folded.
  package var deltaNodes = 64
  /// Blocks that stay free behind each frame of the log; nil: as the engine finds out.
  package var logGap: Int?
  package var alwaysScans = false
  /// Cycles may take a small part of the log.
  package var dividesLog = false
  /// Bitmaps in memory; nil: as many as there are.
  package var chunkLimit: Int?

  package init(seed: UInt64, log: DevicePlan, volumes: [DevicePlan]) {
    self.seed = seed
    self.log = log
    self.volumes = volumes
  }
}

/// Why a run failed, as a sentence.
package struct Violation: Error, CustomStringConvertible, Sendable {
  package var description: String
  package init(_ description: String) { self.description = description }
}

package final class SimulatedPool {
  /// A device operation between issue and completion.
  private struct Flight {
    var op: DeviceOp
    var incarnation: Int
    var doneAt: UInt64
    /// Of a write's memory, to see that the engine left it alone.
    var checksum: UInt32
    /// What the device held when a flush was issued.
    var mark: UInt64
    /// A write's content after its engine was killed.
    var copy: UnsafeMutableRawPointer?
    /// A read that took its content when it was issued.
    var sampled: Bool
    var hung: Bool
    var inUse: Bool
  }

  /// How often each kind of fault was injected, and when the last one was.
  package struct Injected: Sendable {
    package var readErrors: UInt64 = 0
    package var writeErrors: UInt64 = 0
    package var flushErrors: UInt64 = 0
    package var spaceErrors: UInt64 = 0
    package var absences: UInt64 = 0
    /// Simulated nanoseconds.
    package var last: UInt64?
  }

  package let plan: PoolPlan
  package let devices: [SimulatedDevice]
  package private(set) var injected = Injected()
  /// Volumes in the pool; `addVolume` takes the next ones into service.
  package var volumeCount: Int

  let arena = PageArena()
  private var flights: [Flight] = []
  private var freeFlights: [Int] = []
  private(set) var incarnation = 0
  private var writes: UInt64 = 0
  private var timing: SeededRandom
  private var fate: SeededRandom
  private(set) var outstanding = 0

  package init(plan: PoolPlan) {
    self.plan = plan
    volumeCount = plan.volumes.count
    timing = SeededRandom(seed: plan.seed ^ 0x7469_6D69_6E67)
    fate = SeededRandom(seed: plan.seed ^ 0x6661_7465)
    var devices: [SimulatedDevice] = []
    for device in [plan.log] + plan.volumes + plan.spareVolumes {
      devices.append(
        SimulatedDevice(
          index: DeviceIndex(UInt16(devices.count)), plan: device, arena: arena,
          seed: fate.next()))
    }
    self.devices = devices
  }

  deinit {
    for flight in flights where flight.inUse { flight.copy?.deallocate() }
  }

  /// The volumes that are in the pool now.
  package var volumes: ArraySlice<SimulatedDevice> { devices[1..<(1 + volumeCount)] }

  // MARK: Direct access, for formatting and offline checks

  /// Copies what reads of the device see; offset and count are multiples of 4,096.
  package func read(
    _ device: DeviceIndex, offset: UInt64, into memory: UnsafeMutableRawBufferPointer
  ) {
    for i in 0..<(memory.count / blockSize) {
      devices[Int(device.raw)].read(
        block: offset >> blockShift + UInt64(i), into: memory.baseAddress! + i * blockSize)
    }
  }

  /// Stores durably, outside of any engine; offset and count are multiples of 4,096.
  package func write(_ device: DeviceIndex, offset: UInt64, from bytes: UnsafeRawBufferPointer) {
    let target = devices[Int(device.raw)]
    let block = offset >> blockShift
    let count = UInt64(bytes.count / blockSize)
    invariant(target.allocate(block: block, count: count), "no space to format a device")
    target.writeDurable(block: block, count: count, from: bytes.baseAddress!)
  }

  // MARK: Operations

  /// Starts an operation and adds its completion to `queue`.
  /// - Returns: its slot, and the CRC32C of what it writes, or 0.
  package func issue(
    _ op: DeviceOp, queue: inout EventQueue
  ) throws(Violation) -> (slot: Int, checksum: UInt32) {
    try validate(op)
    let device = devices[Int(op.device.raw)]
    var flight = Flight(
      op: op, incarnation: incarnation, doneAt: 0, checksum: 0, mark: device.flushMark,
      copy: nil, sampled: false, hung: false, inUse: true)
    switch op.kind {
    case .write, .writeDurable:
      flight.checksum = crc32c(UnsafeRawBufferPointer(start: op.memory, count: Int(op.length)))
    case .read:
      flight.sampled = timing.oneIn(4)
      if flight.sampled { copyOut(op, device) }
    case .flush, .discard, .allocate: break
    }
    let latency = device.plan.timing.latency(
      of: op.kind, blocks: op.length >> blockShift, random: &timing)
    flight.doneAt = queue.now + latency * device.faults.slowness
    let slot = store(flight)
    queue.add(.device(slot), at: flight.doneAt)
    return (slot, flight.checksum)
  }

  private func store(_ flight: Flight) -> Int {
    outstanding += 1
    if let slot = freeFlights.popLast() {
      flights[slot] = flight
      return slot
    }
    flights.append(flight)
    return flights.count - 1
  }

  private func forget(_ slot: Int) {
    flights[slot].copy?.deallocate()
    flights[slot].copy = nil
    flights[slot].inUse = false
    freeFlights.append(slot)
    outstanding -= 1
  }

  private func validate(_ op: DeviceOp) throws(Violation) {
    let what =
      "the engine issued \(op.kind) at \(op.offset)+\(op.length) of device \(op.device.raw)"
    guard Int(op.device.raw) < devices.count else { throw Violation("\(what), which is none") }
    if op.kind == .flush { return }
    let size = devices[Int(op.device.raw)].plan.size
    guard op.length > 0, op.offset <= size, op.length <= size - op.offset else {
      throw Violation("\(what), outside its \(size) bytes")
    }
    guard op.offset % UInt64(blockSize) == 0, op.length % UInt64(blockSize) == 0 else {
      throw Violation("\(what), not in whole blocks")
    }
    switch op.kind {
    case .read, .write, .writeDurable:
      guard let memory = op.memory, UInt(bitPattern: memory) % UInt(blockSize) == 0 else {
        throw Violation("\(what) without aligned memory")
      }
    case .flush, .discard, .allocate: break
    }
  }

  /// What an event of an operation's slot came to.
  package enum Outcome {
    /// For the running engine.
    case completed(DeviceOp, DeviceCompletion)
    /// Of an engine that was killed: done, and nobody to tell.
    case landed
    /// Of an engine that was killed, and not done before the time given.
    case goesOn(until: UInt64)
    /// The device hangs: nothing is done before it comes back.
    case hangs
  }

  /// The time of an operation's completion has come.
  package func finish(_ slot: Int, now: UInt64) throws(Violation) -> Outcome {
    let flight = flights[slot]
    let device = devices[Int(flight.op.device.raw)]
    if device.faults.presence == .hanging {
      flights[slot].hung = true
      injected.last = now
      return .hangs
    }
    if flight.doneAt > now { return .goesOn(until: flight.doneAt) }
    let error = try perform(flight, slot, device, now: now)
    let wasAlive = flight.incarnation == incarnation && flight.copy == nil
    forget(slot)
    guard wasAlive else { return .landed }
    return .completed(flight.op, DeviceCompletion(token: flight.op.token, error: error))
  }

  private func perform(
    _ flight: Flight, _ slot: Int, _ device: SimulatedDevice, now: UInt64
  ) throws(Violation) -> Int32 {
    let op = flight.op
    let block = op.offset >> blockShift
    let count = op.length >> blockShift
    if device.faults.presence == .gone {
      injected.absences += 1
      injected.last = now
      return ENXIO
    }
    let fails = device.faults.fails(op.kind, block..<(block + count), random: &fate)
    if fails { injected.last = now }
    switch op.kind {
    case .read:
      if fails {
        injected.readErrors += 1
        return EIO
      }
      if flight.incarnation == incarnation && !flight.sampled {
        copyOut(op, device)
        mixInFlight(op, except: slot)
      }
    case .write, .writeDurable:
      return try performWrite(flight, device, fails: fails, now: now)
    case .flush:
      if fails {
        injected.flushErrors += 1
        device.flushFailed(mark: flight.mark, random: &fate)
        return EIO
      }
      device.flush(mark: flight.mark)
    case .discard:
      if fails { return EIO }
      writes += 1
      device.discard(block: block, count: count, write: writes)
    case .allocate:
      if fails { return EIO }
      if !device.allocate(block: block, count: count) {
        injected.spaceErrors += 1
        return ENOSPC
      }
    }
    return 0
  }

  private func performWrite(
    _ flight: Flight, _ device: SimulatedDevice, fails: Bool, now: UInt64
  ) throws(Violation) -> Int32 {
    let op = flight.op
    let block = op.offset >> blockShift
    let count = op.length >> blockShift
    let source = UnsafeRawPointer(flight.copy ?? op.memory!)
    let bytes = UnsafeRawBufferPointer(start: source, count: Int(op.length))
    if crc32c(bytes) != flight.checksum {
      throw Violation(
        "the engine changed the memory of a write in flight at \(op.offset)+\(op.length) of device "
          + "\(op.device.raw)")
    }
    writes += 1
    let hasSpace = device.allocate(block: block, count: count)
    if fails || !hasSpace {
      device.writeFailed(block: block, count: count, from: source, write: writes, random: &fate)
      if hasSpace { injected.writeErrors += 1 } else { injected.spaceErrors += 1 }
      injected.last = now
      return hasSpace ? EIO : ENOSPC
    }
    if op.kind == .writeDurable {
      device.writeDurable(block: block, count: count, from: source)
    } else {
      device.writeVisible(block: block, count: count, from: source, write: writes)
    }
    return 0
  }

  private func copyOut(_ op: DeviceOp, _ device: SimulatedDevice) {
    for i in 0..<(op.length >> blockShift) {
      device.read(
        block: op.offset >> blockShift + i, into: op.memory! + Int(i) * blockSize)
    }
  }

  /// A read that overlaps writes in flight may see any of their sectors.
  private func mixInFlight(_ op: DeviceOp, except slot: Int) {
    guard outstanding > 1 else { return }
    for (i, other) in flights.enumerated() where i != slot && other.inUse {
      guard other.op.device == op.device,
        other.op.kind == .write || other.op.kind == .writeDurable,
        let source = other.copy ?? other.op.memory
      else { continue }
      let start = max(op.offset, other.op.offset)
      let end = min(op.offset + op.length, other.op.offset + other.op.length)
      guard start < end, fate.oneIn(2) else { continue }
      for at in stride(from: start, to: end, by: sectorSize) where fate.oneIn(2) {
        (op.memory! + Int(at - op.offset)).copyMemory(
          from: source + Int(at - other.op.offset), byteCount: sectorSize)
      }
    }
  }

  // MARK: Presence

  /// A device that hung answers again; what waited for it is done soon, or fails.
  package func bringBack(_ device: DeviceIndex, queue: inout EventQueue) {
    devices[Int(device.raw)].faults.presence = .here
    for slot in flights.indices where flights[slot].inUse && flights[slot].hung {
      guard flights[slot].op.device == device else { continue }
      flights[slot].hung = false
      flights[slot].doneAt = queue.now + timing.below(1_000_000)
      queue.add(.device(slot), at: flights[slot].doneAt)
    }
  }

  // MARK: Crashes

  /// The engine's process is killed: what it had issued goes on by itself, sometimes for long.
  /// - Returns: when the last of it is done: from then on a restart gets the lock.
  package func kill(now: UInt64) -> UInt64 {
    incarnation += 1
    var last = now
    let delay: UInt64 = fate.oneIn(2) ? 0 : fate.pick([1_000_000, 60_000_000])
    for slot in flights.indices where flights[slot].inUse {
      switch flights[slot].op.kind {
      case .read:
        // The memory goes away with the process.
        flights[slot].op.memory = nil
        flights[slot].sampled = true
      case .write, .writeDurable:
        if flights[slot].copy == nil {
          let length = Int(flights[slot].op.length)
          let copy = UnsafeMutableRawPointer.allocate(byteCount: length, alignment: blockSize)
          copy.copyMemory(from: flights[slot].op.memory!, byteCount: length)
          flights[slot].copy = copy
        }
      case .flush, .discard, .allocate: break
      }
      if delay > 0 { flights[slot].doneAt = max(flights[slot].doneAt, now + fate.below(delay)) }
      if !flights[slot].hung { last = max(last, flights[slot].doneAt) }
    }
    return last
  }

  /// The power fails: everything that is not on stable storage is lost, kept or torn.
  /// - Returns: how many writes were decided.
  package func powerCut() -> Int {
    incarnation += 1
    let temper = CutTemper(random: &fate)
    var decided = 0
    for device in devices { decided += cut(device, temper) }
    for slot in flights.indices where flights[slot].inUse { forget(slot) }
    return decided
  }

  /// How kind a power cut is as a whole, so that the extremes occur often.
  private enum CutTemper {
    case losesAll, keepsAll, mixed
    init(random: inout SeededRandom) {
      switch random.below(6) {
      case 0: self = .losesAll
      case 1: self = .keepsAll
      default: self = .mixed
      }
    }

    func fate(random: inout SeededRandom) -> WriteFate {
      switch self {
      case .losesAll: .lost
      case .keepsAll: .kept
      case .mixed: WriteFate(random: &random)
      }
    }
  }

  /// One write that a power cut decides: pages of the volatile list, or a flight.
  private enum Undecided {
    case pages(Range<Int>)
    case flight(Int)
  }

  private func cut(_ device: SimulatedDevice, _ temper: CutTemper) -> Int {
    let pages = device.takeVolatile()
    var undecided: [Undecided] = []
    var start = 0
    while start < pages.count {
      var end = start + 1
      while end < pages.count && pages[end].write == pages[start].write { end += 1 }
      undecided.append(.pages(start..<end))
      start = end
    }
    for slot in flights.indices
    where flights[slot].inUse && flights[slot].op.device == device.index {
      switch flights[slot].op.kind {
      case .write, .writeDurable, .discard: undecided.append(.flight(slot))
      case .read, .flush, .allocate: break
      }
    }
    for i in undecided.indices.reversed() where i > 0 {
      undecided.swapAt(i, Int(fate.below(UInt64(i + 1))))
    }
    for one in undecided { decide(one, pages, device, temper.fate(random: &fate)) }
    device.release(pages)
    return undecided.count
  }

  private func decide(
    _ one: Undecided, _ pages: [SimulatedDevice.VolatilePage], _ device: SimulatedDevice,
    _ writeFate: WriteFate
  ) {
    switch one {
    case .pages(let range):
      for i in range {
        let mask = writeFate.mask(
          sectorInWrite: (i - range.lowerBound) * 8, sectors: range.count * 8, random: &fate)
        device.survive(pages[i], sectors: mask)
      }
    case .flight(let slot):
      let op = flights[slot].op
      let source = flights[slot].copy ?? op.memory
      let count = Int(op.length >> blockShift)
      for i in 0..<count {
        let block = op.offset >> blockShift + UInt64(i)
        let mask = writeFate.mask(sectorInWrite: i * 8, sectors: count * 8, random: &fate)
        if op.kind == .discard && !device.isDurable(block: block) { continue }
        device.mergeDurable(
          block: block,
          from: op.kind == .discard ? nil : source.map { UnsafeRawPointer($0 + i * blockSize) },
          sectors: mask)
      }
    }
  }
}
