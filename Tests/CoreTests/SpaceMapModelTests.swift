import Core
import Testing

/// What each block of each volume is, kept as plainly as possible, next to a space map that is
/// driven by random calls, waits, crashes and file systems that fill up.
private final class SpaceModel {
  enum Block: UInt8 { case free, reserved, used, node, released, committed, punching }

  var descriptions: [DeviceDescription]
  let configuration: SpaceMap.Configuration
  var blocks: [[Block]]
  var files: [ToyFile]
  var map: SpaceMap
  var store: ToyStore
  var durable = ToyStore.Durable()
  var durableBlocks: [[Block]]
  var runs: [BlockRun] = []
  var mapped: [BlockRun] = []
  var durableMapped: [BlockRun] = []
  var punches: [DeviceRange] = []
  var random: SeededRandom
  var backings = 0
  var refusals = 0
  var punched = 0
  var crashes = 0
  var outOfSpace = 0
  var misses = 0
  /// Chunks with held blocks that were out of memory at a time, at most.
  var sealed = 0
  let missRate: UInt64

  init(
    _ descriptions: [DeviceDescription], _ configuration: SpaceMap.Configuration, budget: Int,
    seed: UInt64, missRate: UInt64
  ) throws {
    self.descriptions = descriptions
    self.configuration = configuration
    self.missRate = missRate
    random = SeededRandom(seed: seed)
    blocks = descriptions.map { Array(repeating: .free, count: Int($0.size / 4096)) }
    for v in blocks.indices {
      blocks[v].replaceSubrange(0..<512, with: repeatElement(.used, count: 512))
    }
    durableBlocks = blocks
    files = descriptions.map { ToyFile(blocks: Int($0.size / 4096), budget: budget) }
    map = SpaceMap(configuration)
    store = ToyStore(map: map, seed: seed, missRate: missRate)
    try start()
  }

  func start() throws {
    for (i, d) in descriptions.enumerated() { map.addVolume(i, d) }
    store.took = { [unowned self] in change($0, 1, from: .reserved, to: .node) }
    store.released = { [unowned self] in change($0, 1, from: .node, to: .released) }
    map.attach(store)
    try insist { () throws(SpaceWait) in try map.open() }
  }

  func change(_ at: BlockAddress, _ count: Int, from: Block, to: Block) {
    for b in Int(at.block)..<Int(at.block) + count {
      // The stash of nodes is reserved inside of the map: the model learns of it here.
      let was = blocks[at.volume][b]
      let stash = from == .reserved && to == .node && was == .free
      if was != from && !stash {
        Issue.record("block \(b) of volume \(at.volume) is \(was), not \(from)")
      }
      blocks[at.volume][b] = to
    }
  }

  private func replaceAll(_ v: Int, _ new: (Block) -> Block) {
    blocks[v].withUnsafeMutableBufferPointer { for i in $0.indices { $0[i] = new($0[i]) } }
  }

  // MARK: Operations

  func allocate() throws {
    let near = runs.randomElement(using: &random)?.end
    let want = 1 + Int(random.below(random.oneIn(4) ? 8192 : 300))
    let minimum = random.oneIn(3) ? 1 : 1 + Int(random.below(UInt64(min(want, 64))))
    do {
      let near = random.oneIn(3) ? nil : near
      guard
        let run = try insist({ () throws(SpaceWait) in
          try map.allocateRun(near: near, want: want, minimum: minimum)
        })
      else {
        outOfSpace += 1
        if minimum == 1 { #expect(map.available == 0 && map.backable == 0) }
        return
      }
      #expect(run.count >= minimum && run.count <= want)
      change(run.address, run.count, from: .free, to: .reserved)
      checkBacked(run)
      runs.append(run)
    } catch {
      try meet(error)
    }
  }

  /// Allocates until there is nothing left.
  func fill() throws {
    let before = outOfSpace
    while outOfSpace < before + 3 { try allocate() }
  }

  private func checkBacked(_ run: BlockRun) {
    guard descriptions[run.address.volume].isSparseFile else { return }
    let units = Int(run.address.block) / 32...Int(run.end.block - 1) / 32
    let missing = units.contains { !files[run.address.volume].units[$0] }
    if missing { Issue.record("run at \(run.address.block) is not backed") }
  }

  /// Carries out what a call waits for.
  func meet(_ wait: any Error) throws {
    guard case .backing(let device, let offset, let length) = wait as? SpaceWait else {
      throw wait
    }
    back(DeviceRange(device: device, offset: offset, length: length))
  }

  func back(_ range: DeviceRange) {
    backings += 1
    if files[Int(range.device.raw) - 1].allocate(range) {
      map.backingDone(range)
    } else {
      refusals += 1
      map.backingFailed(range, error: 28)
    }
  }

  func takeRun() -> BlockRun? {
    if runs.isEmpty { return nil }
    let i = Int(random.below(UInt64(runs.count)))
    runs.swapAt(i, runs.count - 1)
    return runs.removeLast()
  }

  func mapRun() {
    guard let run = takeRun() else { return }
    // The front of the run is mapped, the rest given back.
    let part = 1 + Int(random.below(UInt64(run.count)))
    map.noteAllocated(run.address, part)
    change(run.address, part, from: .reserved, to: .used)
    // What is written is in the file system from now on, backed or not.
    mapped.append(BlockRun(run.address, part))
    if part < run.count {
      map.returnRun(BlockRun(run.address + UInt64(part), run.count - part))
      change(run.address + UInt64(part), run.count - part, from: .reserved, to: .free)
    }
  }

  func cancelRun() {
    guard let run = takeRun() else { return }
    map.cancelReservation(run.address, run.count)
    change(run.address, run.count, from: .reserved, to: .free)
  }

  func release() {
    if mapped.isEmpty { return }
    let i = Int(random.below(UInt64(mapped.count)))
    let run = mapped[i]
    let skip = random.oneIn(2) ? 0 : Int(random.below(UInt64(run.count)))
    let count = 1 + Int(random.below(UInt64(run.count - skip)))
    let part = BlockRun(run.address + UInt64(skip), count)
    map.noteReleased(part.address, part.count)
    change(part.address, part.count, from: .used, to: .released)
    mapped.swapAt(i, mapped.count - 1)
    mapped.removeLast()
    if skip > 0 { mapped.append(BlockRun(run.address, skip)) }
    if part.end < run.end { mapped.append(BlockRun(part.end, run.count - skip - count)) }
  }

  func applyDeltas() throws {
    do {
      try insist { () throws(SpaceWait) in try map.applyDeltas() }
    } catch { try meet(error) }
  }

  func checkpoint() throws {
    while true {
      do {
        if try map.commitSome(limit: 1 + Int(random.below(20))) { break }
      } catch SpaceWait.node {
        // All is in order in between, too.
        if random.oneIn(4) { map.verify() }
      } catch {
        try meet(error)
      }
    }
    let newDurable = store.checkpoint()
    let newBlocks = blocks
    let newMapped = mapped
    // Between commit and root: runs come and go, releases belong to the next checkpoint.
    for v in blocks.indices {
      replaceAll(v) { $0 == .released ? .committed : $0 }
    }
    for _ in 0..<random.below(4) { try allocate() }
    if random.oneIn(2) { release() }
    if random.oneIn(12) { return try crash() }  // before the root is written
    durable = newDurable
    durableBlocks = newBlocks
    durableMapped = newMapped
    if random.oneIn(12) { return try crash() }  // after it
    map.rootDurable(limit: 3)
    while !map.freeReleased(limit: 1 + Int(random.below(10))) { map.verify() }
    for v in blocks.indices {
      replaceAll(v) { $0 == .committed ? .free : $0 }
    }
    while let range = map.nextPunch() {
      punches.append(range)
      for b in Int(range.offset / 4096)..<Int((range.offset + range.length) / 4096) {
        let v = Int(range.device.raw) - 1
        if blocks[v][b] != .free { Issue.record("a block that is not free is punched") }
        blocks[v][b] = .punching
      }
    }
  }

  func punch() {
    guard !punches.isEmpty else { return }
    let range = punches.remove(at: Int(random.below(UInt64(punches.count))))
    let v = Int(range.device.raw) - 1
    files[v].punch(range)
    punched += 1
    map.punchDone(range, error: 0)
    for b in Int(range.offset / 4096)..<Int((range.offset + range.length) / 4096) {
      #expect(blocks[v][b] == .punching)
      blocks[v][b] = .free
    }
  }

  /// The file is copied, and loses free blocks on the way, of units in use as well.
  func copyFile(_ v: Int) {
    for u in files[v].units.indices where random.oneIn(3) {
      let all = u * 32..<min(u * 32 + 32, blocks[v].count)
      if blocks[v][all].contains(.free) {
        files[v].punch(
          DeviceRange(device: .volume(v), offset: UInt64(u) << 17, length: 131_072))
      }
    }
  }

  func crash() throws {
    crashes += 1
    misses += store.misses
    runs.removeAll()
    punches.removeAll()
    mapped = durableMapped
    blocks = durableBlocks
    for v in blocks.indices {
      replaceAll(v) { $0 == .used || $0 == .node ? $0 : .free }
    }
    for v in blocks.indices where descriptions[v].isSparseFile && random.oneIn(2) { copyFile(v) }
    map = SpaceMap(configuration)
    store = ToyStore(map: map, durable: durable, seed: random.next(), missRate: missRate)
    try start()
    // Replay: some large writes of the log lie in blocks that were free.
    for _ in 0..<5 {
      let v = Int(random.below(UInt64(blocks.count)))
      let at = Int(random.below(UInt64(blocks[v].count)))
      let count = 1 + Int(random.below(300))
      let address = BlockAddress(volume: v, block: UInt64(at))
      let isFree =
        at + count <= blocks[v].count
        && blocks[v][at..<at + count].allSatisfy { $0 == .free }
      // Backed all over, because a large write was put there before its record was logged.
      if isFree && descriptions[v].isSparseFile {
        let range = DeviceRange(
          device: .volume(v), offset: UInt64(at) * 4096, length: UInt64(count) * 4096)
        if !files[v].allocate(range) { continue }
      }
      #expect(try insist { () throws(SpaceWait) in try map.reserve(address, count) } == isFree)
      if isFree {
        change(address, count, from: .free, to: .reserved)
        runs.append(BlockRun(address, count))
      }
    }
  }

  func nextBacking() throws {
    let target = Int(random.below(20_000))
    let range = try insist { () throws(SpaceWait) in try map.nextBacking(target: target) }
    if let range { back(range) }
  }

  func compare() {
    var counts = Array(repeating: 0, count: 7)
    for v in blocks {
      v.withUnsafeBytes { for b in $0 { counts[Int(b)] += 1 } }
    }
    func count(_ b: Block) -> Int { counts[Int(b.rawValue)] }
    let labels = 512 * blocks.count
    #expect(map.used == count(.used) - labels + count(.node))
    #expect(map.metadata == count(.node))
    #expect(map.releasedPending == count(.released) + count(.committed) + count(.punching))
    sealed = max(sealed, map.chunksSealed)
    let stash = map.reserved - count(.reserved)
    #expect(stash >= 0 && stash % 2 == 0 && stash <= 600)
    map.verify()
  }

  func run(_ steps: Int) throws {
    for step in 0..<steps {
      // Times of growth and of shrinking take turns, so that the pool is full now and then.
      let grows = step % 400 < 250
      switch random.below(100) {
      case 0..<(grows ? 50 : 20): try allocate()
      case 0..<(grows ? 78 : 35): mapRun()
      case 0..<(grows ? 80 : 45): cancelRun()
      case 0..<85: release()
      case 85..<88: try applyDeltas()
      case 88..<91: try nextBacking()
      case 91..<92: map.spaceMayHaveReturned()
      case 92..<97: punch()
      default: try checkpoint()
      }
      if step % 40 == 0 { compare() }
      if step % 700 == 699 { try crash() }
      if step % 700 == 350 { try fill() }
    }
    compare()
    misses += store.misses
  }
}

@Suite struct SpaceMapModelTests {
  private func configuration() -> SpaceMap.Configuration {
    var c = SpaceMap.Configuration()
    c.chunkLimit = 64
    c.reserveMinimum = 1000
    c.punchSlack = 2000
    return c
  }

  @Test(arguments: 1...6 as ClosedRange<UInt64>)
  func noBlockIsHandedOutTwiceOrLostOnBlockDevices(seed: UInt64) throws {
    let model = try SpaceModel(
      [device(14_000, discard: seed % 2 == 0), device(17_000)], configuration(), budget: 0,
      seed: seed, missRate: 5)
    try model.run(1500)
    #expect(model.crashes >= 2)
    #expect(model.outOfSpace > 0)
    #expect(model.misses > 0)
  }

  @Test(arguments: 1...6 as ClosedRange<UInt64>)
  func noBlockIsHandedOutWithoutBackingOnSparseFiles(seed: UInt64) throws {
    let model = try SpaceModel(
      [
        device(60_000, sparse: true, discard: true), device(150_007, sparse: true, discard: true),
      ], configuration(), budget: seed % 2 == 0 ? 1000 : 100_000, seed: seed, missRate: 5)
    try model.run(1500)
    #expect(model.backings > 5 && model.punched > 0)
    if seed % 2 == 0 { #expect(model.refusals > 0) }
  }

  @Test(arguments: [64, 8])
  func chunksComeAndGoInALargeVolume(limit: Int) throws {
    var configuration = configuration()
    configuration.chunkLimit = limit
    let model = try SpaceModel(
      [device(1_000_000, discard: true), device(20_000)], configuration, budget: 0, seed: 9,
      missRate: 3)
    try model.run(1500)
    #expect(model.misses > 100 && model.punched > 0)
    if limit == 8 { #expect(model.sealed > 10) }
  }

  @Test func chunksComeAndGoInSparseFiles() throws {
    var configuration = configuration()
    configuration.chunkLimit = 2
    let model = try SpaceModel(
      [
        device(60_000, sparse: true, discard: true), device(150_007, sparse: true, discard: true),
      ], configuration, budget: 100_000, seed: 3, missRate: 5)
    try model.run(1500)
    #expect(model.punched > 0 && model.sealed > 0)
  }
}
