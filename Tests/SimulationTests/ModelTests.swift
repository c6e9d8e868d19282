import Core
import Simulation
import Testing

/// One disk of the model, and blocks as a read might return them.
private struct Model {
  var table = WriteTable()
  var disk = DiskModel(number: 1)
  var witness = PrefixWitness()

  mutating func begin(
    _ first: UInt64, _ count: UInt64, _ pattern: WriteTable.Pattern = .stamps, weak: Bool = false
  ) -> Stamp.Version {
    let version = table.add(
      WriteTable.Record(
        submitted: table.tick(), disk: 1, firstSector: first, sectorCount: count,
        pattern: pattern, weak: weak))
    disk.begin(version, table)
    return version
  }

  mutating func acknowledge(_ version: Stamp.Version) {
    table.end(version, .acknowledged)
    disk.acknowledge(version, table)
  }

  mutating func write(
    _ first: UInt64, _ count: UInt64, _ pattern: WriteTable.Pattern = .stamps, weak: Bool = false
  ) -> Stamp.Version {
    let version = begin(first, count, pattern, weak: weak)
    acknowledge(version)
    return version
  }

  /// A power cut and a recovery after which the engine serves.
  mutating func cutPower(beforeServing: Bool = false) {
    table.crash(powerCut: true)
    disk.crash(powerCut: true, table)
    if !beforeServing { serve() }
  }

  mutating func serve() {
    table.raiseDurable(to: table.tick())
    disk.recovered()
  }

  /// A read of block 0 that shows one version (0 for zeros) in each of its sectors.
  mutating func read(_ shown: [Stamp.Version], asked: WriteTable.Tick? = nil) throws {
    let memory = AlignedMemory(bytes: blockSize)
    for (sector, version) in shown.enumerated() where version != 0 {
      Stamp.fill(
        memory.base + sector * sectorSize, version: version, disk: 1, sector: UInt64(sector))
    }
    let tick = asked ?? table.tick()
    if asked == nil { disk.readBegan(tick) }
    defer { disk.readEnded(tick) }
    try disk.observe(memory.base, 0..<8, asked: tick, table, &witness)
  }

  func whole(_ version: Stamp.Version) -> [Stamp.Version] { Array(repeating: version, count: 8) }

  /// A snapshot that is being asked for.
  mutating func mark() -> DiskModel { disk.marked(at: table.tick()) }

  /// The same read, of a snapshot or a clone; the versions are those of disk `number`.
  mutating func read(
    _ other: inout DiskModel, _ shown: Stamp.Version, of number: UInt16 = 1
  ) throws {
    let memory = AlignedMemory(bytes: blockSize)
    for sector in 0..<UInt64(8) where shown != 0 {
      Stamp.fill(
        memory.base + Int(sector) * sectorSize, version: shown, disk: number, sector: sector)
    }
    try other.observe(memory.base, 0..<8, asked: table.tick(), table, &witness)
  }
}

@Suite struct ModelTests {
  @Test("What was acknowledged must be read; the content before it is caught")
  func acknowledgedIsRead() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.write(0, 8)
    #expect(throws: Violation.self) { try model.read(model.whole(a)) }
    #expect(throws: Violation.self) { try model.read(model.whole(0)) }
    try model.read(model.whole(b))
  }

  @Test("A write in flight may be read or not; once it was read, it stays")
  func readNeverGoesBack() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    try model.read(model.whole(a))
    try model.read(model.whole(b))
    #expect(throws: Violation.self) { try model.read(model.whole(a)) }
  }

  @Test("A read that was asked before an acknowledgement may return what was there before")
  func lateRead() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    let asked = model.table.tick()
    model.disk.readBegan(asked)
    model.acknowledge(b)
    try model.read(model.whole(a), asked: asked)
    #expect(throws: Violation.self) { try model.read(model.whole(a)) }
  }

  @Test("What was read before a crash stays after it, acknowledged or not")
  func readSurvivesCrash() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    try model.read(model.whole(b))
    model.cutPower()
    #expect(throws: Violation.self) { try model.read(model.whole(a)) }
    try model.read(model.whole(b))
  }

  @Test("After a crash an unacknowledged write is there or not, but does not change its mind")
  func unacknowledgedIsDecidedOnce() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    model.cutPower()
    try model.read(model.whole(a))
    #expect(throws: Violation.self) { try model.read(model.whole(b)) }
  }

  @Test("An acknowledged write that a crash lost is caught")
  func lostWrite() {
    var model = Model()
    let a = model.write(0, 8)
    _ = model.write(0, 8)
    model.cutPower()
    #expect(throws: Violation.self) { try model.read(model.whole(a)) }
  }

  @Test("A block that holds a write in part is caught")
  func tornBlock() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    model.cutPower()
    #expect(throws: Violation.self) { try model.read([a, a, a, b, b, b, b, b]) }
    try model.read(model.whole(a))
  }

  @Test("Two concurrent writes may end in either order, but in one order for the whole block")
  func concurrentWrites() throws {
    var model = Model()
    let a = model.begin(0, 8)
    let b = model.begin(0, 8)
    model.acknowledge(a)
    model.acknowledge(b)
    #expect(throws: Violation.self) { try model.read([a, a, a, a, b, b, b, b]) }
    var other = model
    try model.read(model.whole(a))
    try other.read(other.whole(b))
  }

  @Test("A partial write leaves the other sectors of its block as they were")
  func partialWrite() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.write(2, 3)
    try model.read([a, a, b, b, b, a, a, a])
    #expect(throws: Violation.self) { try model.read([a, a, b, b, b, 0, 0, 0]) }
  }

  @Test("A trimmed block reads as zeros, also if its first write came while the trim was under way")
  func trim() throws {
    var model = Model()
    let trim = model.begin(0, 800, .zeros)
    let a = model.begin(0, 8)
    model.acknowledge(a)
    model.acknowledge(trim)
    var other = model
    try model.read(model.whole(a))
    try other.read(other.whole(0))
    let later = model.write(0, 800, .zeros)
    #expect(throws: Violation.self) { try model.read(model.whole(a)) }
    #expect(later > trim)
  }

  @Test("A refused write must never be seen")
  func refusedWrite() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    model.table.end(b, .refused)
    model.disk.refuse(b, model.table)
    #expect(throws: Violation.self) { try model.read(model.whole(b)) }
    try model.read(model.whole(a))
  }

  @Test("A failed write may come with the next crash, but not over a later write")
  func failedWrite() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    model.table.end(b, .failed)
    try model.read(model.whole(a))
    var other = model
    other.cutPower()
    try other.read(other.whole(b))
    let c = model.write(0, 8)
    model.cutPower()
    #expect(throws: Violation.self) { try model.read(model.whole(b)) }
    try model.read(model.whole(c))
  }

  @Test("Content of another place, and damaged content, is caught")
  func foreignContent() {
    var model = Model()
    _ = model.write(0, 8)
    let memory = AlignedMemory(bytes: blockSize)
    for s in 0..<8 {
      Stamp.fill(memory.base + s * sectorSize, version: 1, disk: 1, sector: UInt64(s + 8))
    }
    var witness = PrefixWitness()
    #expect(throws: Violation.self) {
      try model.disk.observe(
        memory.base, 0..<8, asked: model.table.tick(), model.table, &witness)
    }
    for s in 0..<8 {
      Stamp.fill(memory.base + s * sectorSize, version: 1, disk: 1, sector: UInt64(s))
    }
    memory.base.storeBytes(of: 1, toByteOffset: 700, as: UInt8.self)
    #expect(throws: Violation.self) {
      try model.disk.observe(
        memory.base, 0..<8, asked: model.table.tick(), model.table, &witness)
    }
  }
}

@Suite struct WeakDurabilityTests {
  @Test("A power cut may take back what was not flushed, even what was read")
  func unflushedMayGo() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.write(0, 8, weak: true)
    try model.read(model.whole(b))
    #expect(throws: Violation.self) { try model.read(model.whole(a)) }
    var other = model
    model.cutPower()
    try model.read(model.whole(a))
    other.cutPower()
    try other.read(other.whole(b))
  }

  @Test("What was flushed stays")
  func flushedStays() {
    var model = Model()
    let a = model.write(0, 8)
    _ = model.write(0, 8, weak: true)
    model.table.raiseDurable(to: model.table.tick())
    model.cutPower()
    #expect(throws: Violation.self) { try model.read(model.whole(a)) }
  }

  @Test("A kill without a power cut takes nothing back")
  func killKeeps() {
    var model = Model()
    let a = model.write(0, 8)
    _ = model.write(0, 8, weak: true)
    model.table.crash(powerCut: false)
    model.disk.crash(powerCut: false, model.table)
    model.serve()
    #expect(throws: Violation.self) { try model.read(model.whole(a)) }
  }

  @Test("What survives a power cut must be a prefix of what was acknowledged")
  func prefix() throws {
    for keepsSecond in [false, true] {
      var model = Model()
      let a = model.write(0, 4, weak: true)
      let b = model.write(4, 4, weak: true)
      model.cutPower()
      let first = keepsSecond ? 0 : a
      try model.read([first, first, first, first] + Array(repeating: b, count: 4))
      #expect((model.witness.contradiction != nil) == keepsSecond)
    }
  }
}

@Suite struct SnapshotModelTests {
  @Test("A snapshot holds what was acknowledged before it was asked for")
  func acknowledgedIsIn() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.write(0, 8)
    var snapshot = model.mark()
    snapshot.seal()
    let c = model.write(0, 8)
    for wrong in [0, a, c] {
      #expect(throws: Violation.self) { try model.read(&snapshot, wrong) }
    }
    try model.read(&snapshot, b)
    try model.read(model.whole(c))
  }

  @Test("A write that is under way at the mark is in it or not, and stays so for ever")
  func underWayIsDecidedOnce() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    var snapshot = model.mark()
    let c = model.begin(0, 8)
    snapshot.begin(c, model.table)
    model.acknowledge(b)
    snapshot.pass(b)
    snapshot.seal()
    model.acknowledge(c)
    for shown in [a, b, c] {
      var one = snapshot
      try model.read(&one, shown)
      for other in [a, b, c] where other != shown {
        #expect(throws: Violation.self) { try model.read(&one, other) }
      }
      model.table.crash(powerCut: true)
      try model.read(&one, shown)
    }
  }

  @Test("What a mark takes is durable, though it was not when it was written")
  func markIsDurable() {
    var model = Model()
    let a = model.write(0, 8)
    _ = model.write(0, 8, weak: true)
    var snapshot = model.mark()
    snapshot.seal()
    model.cutPower()
    #expect(throws: Violation.self) { try model.read(&snapshot, a) }
  }

  @Test("A write that a group lacks may not have ended before one that it has began")
  func oneInstant() throws {
    for inOrder in [true, false] {
      var model = Model()
      let a = model.begin(0, 8)
      var snapshot = model.mark()
      model.acknowledge(a)
      snapshot.pass(a)
      let b = model.begin(8, 8)
      snapshot.begin(b, model.table)
      try model.read(&snapshot, inOrder ? a : 0)
      let memory = AlignedMemory(bytes: blockSize)
      for s in 0..<8 {
        Stamp.fill(memory.base + s * sectorSize, version: b, disk: 1, sector: UInt64(s + 8))
      }
      try snapshot.observe(
        memory.base, 8..<16, asked: model.table.tick(), model.table, &model.witness)
      #expect((model.witness.contradiction == nil) == inOrder)
    }
  }

  @Test("A clone begins as the snapshot, and its own writes replace that")
  func clone() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    let snapshot = model.mark()
    var clone = snapshot.branched(as: 2, at: model.table.tick())
    var other = clone
    try model.read(&clone, a)
    try model.read(&other, b)
    #expect(throws: Violation.self) { try model.read(&clone, b) }
    let c = model.table.add(
      WriteTable.Record(
        submitted: model.table.tick(), disk: 2, firstSector: 0, sectorCount: 8, pattern: .stamps,
        weak: false))
    clone.begin(c, model.table)
    model.table.end(c, .acknowledged)
    clone.acknowledge(c, model.table)
    #expect(throws: Violation.self) { try model.read(&clone, a) }
    try model.read(&clone, c, of: 2)
  }

  @Test("A clone's content that is still in doubt is gone once the clone was written")
  func writtenClone() throws {
    var model = Model()
    let a = model.write(0, 8)
    let b = model.begin(0, 8)
    var clone = model.mark().branched(as: 2, at: model.table.tick())
    let c = model.table.add(
      WriteTable.Record(
        submitted: model.table.tick(), disk: 2, firstSector: 0, sectorCount: 8, pattern: .stamps,
        weak: false))
    clone.begin(c, model.table)
    model.table.end(c, .acknowledged)
    clone.acknowledge(c, model.table)
    for wrong in [a, b] {
      #expect(throws: Violation.self) { try model.read(&clone, wrong) }
    }
  }
}

@Suite struct StampTests {
  @Test("Every sector of a write can be told from every other sector and write")
  func stampsDiffer() {
    let memory = AlignedMemory(bytes: blockSize)
    Stamp.fill(memory.base, version: 3, disk: 2, sector: 77)
    #expect(Stamp.content(memory.base, sector: 77) { _ in 2 } == .version(3))
    for (disk, sector) in [(2, 78), (3, 77)] as [(UInt16, UInt64)] {
      guard case .foreign = Stamp.content(memory.base, sector: sector, disk: { _ in disk }) else {
        Issue.record("a stamp passed for another place")
        return
      }
    }
    #expect(Stamp.owner(memory.base)?.sector == 77)
  }

  @Test("Any flipped bit of a sector is seen")
  func flippedBits() {
    let memory = AlignedMemory(bytes: blockSize)
    for bit in 0..<(sectorSize * 8) {
      Stamp.fill(memory.base, version: 3, disk: 2, sector: 77)
      let at = memory.base + bit / 8
      at.storeBytes(of: at.load(as: UInt8.self) ^ UInt8(1 << (bit % 8)), as: UInt8.self)
      #expect(Stamp.content(memory.base, sector: 77) { _ in 2 } != .version(3))
    }
  }
}
