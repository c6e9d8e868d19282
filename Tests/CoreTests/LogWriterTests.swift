import Testing

@testable import Core

/// When frames are sent, and how many at once; by a log whose device is the test.
@Suite("The log writer")
struct LogWriterTests {
  private static let micro: UInt64 = 1_000
  private let ops = OpQueue()
  private let log: LogWriter

  init() {
    let label = DeviceLabel(
      pool: UUIDBytes(high: 1, low: 2), member: UUIDBytes(high: 3, low: 4), role: .log,
      segmentShift: 22, sizeInBlocks: 256 + 16 << 10, created: 0, poolName: "p")
    log = LogWriter(geometry: LogGeometry(label: label)!, ops: ops)
    log.begin(Epoch(number: 1, firstSequence: 1, position: 0, chain: 0), instant: 1)
    log.clock = 1_000_000_000
  }

  /// Appends so many blocks of data, and seals. The frames that were sent.
  private func write(_ blocks: Int) -> [DeviceOp] {
    let data = [UInt8](repeating: 7, count: blocks * blockSize)
    let checksums = [UInt32](repeating: 0, count: blocks)
    log.appendData(
      object: ObjectID(1), generation: 0, block: BlockIndex(0), count: blocks, from: data,
      checksums: checksums
    ).mustBeDurable = true
    return seal()
  }

  private func seal() -> [DeviceOp] {
    log.seal(wallClock: 0)
    var sent: [DeviceOp] = []
    while let op = ops.next() { sent.append(op) }
    return sent
  }

  private func end(_ sent: [DeviceOp]) {
    for op in sent {
      let (owner, index) = ops.completed(op.token)
      if owner == .summary {
        log.summaryCompleted(error: 0)
      } else {
        log.frameCompleted(index, error: 0)
      }
    }
    log.advance()
    while let frame = log.nextToApply() { log.applied(frame) }
  }

  @Test("The first frame goes at once; what comes meanwhile goes in one when it has come")
  func gathered() {
    let first = write(1)
    #expect(first.count == 1 && log.sealAt == .max)
    for _ in 0..<10 { #expect(write(1).isEmpty) }
    #expect(log.sealAt == log.clock + 200 * Self.micro)
    end(first)
    let second = seal()
    #expect(second.count == 1 && log.sealAt == .max)
    #expect(second.first?.length == UInt64(11 * blockSize))
  }

  @Test("Beside a frame that takes long, another goes every 200 µs, up to four")
  func slowDevice() {
    var sent = write(1)
    for expected in 2...4 {
      #expect(write(1).isEmpty)
      log.clock = log.sealAt
      sent += seal()
      #expect(sent.count == expected)
    }
    #expect(write(1).isEmpty && log.sealAt == .max)
    log.clock += 1_000_000 * Self.micro
    #expect(seal().isEmpty)
    end(sent)
    #expect(seal().count == 1)
  }

  @Test("A cut is where a segment begins, and covers what is asked for")
  func cuts() {
    #expect(log.cut(behind: 1).sequence == 0)
    var ends: [LogCut] = []
    while ends.count < 3 {
      let before = log.appliedCut
      end(write(100))
      let last = log.appliedCut
      #expect(last.sequence == before.sequence + 1 && last.chain != before.chain)
      if log.geometry.segment(of: last.position - 1) > ends.count {
        ends.append(before)
        ends[ends.count - 1].position = log.geometry.start(ofSegment: UInt64(ends.count))
      }
    }
    let segment = log.geometry.segmentSize
    func cut(_ bytes: UInt64) -> FrameSequence { log.cut(behind: bytes).sequence }
    #expect(cut(1) == ends[0].sequence && cut(segment) == ends[0].sequence)
    #expect(cut(segment + 1) == ends[1].sequence && cut(3 * segment) == ends[2].sequence)
    #expect(cut(3 * segment + 1) == log.appliedSequence, "all that there is")
    let first = log.cut(behind: 1)
    #expect(first.position == ends[0].position && first.chain == ends[0].chain && first.epoch == 1)
    // Room is counted from what is still needed.
    log.release(upTo: first.position)
    #expect(cut(1) == ends[1].sequence)
    log.release(upTo: log.appliedPosition)
    #expect(cut(1) == log.appliedSequence)
  }

  @Test("A large frame waits for nothing")
  func largeFrames() {
    #expect(write(64).count == 1)
    #expect(write(64).count == 1)
    #expect(write(63).isEmpty)
    #expect(write(1).count == 1)
  }

  @Test("The engine wants to be woken for a frame that gathers beside a slow one")
  func wakeup() {
    let pool = MemoryPool()
    #expect(isDone(pool.control(.create(name: "a", size: 1 << 20))))
    let (disk, engine, sent) = (pool.open("a"), pool.engine, pool.now)
    let memory = AlignedMemory(bytes: 2 * blockSize)
    memory.base.initializeMemory(as: UInt8.self, repeating: 7, count: memory.count)
    for (block, at) in [sent, sent + 50 * Self.micro].enumerated() {
      engine.observe(now: at)
      #expect(
        engine.submit(
          BlockRequest(
            operation: .write, disk: disk, offset: UInt64(block * blockSize),
            length: UInt64(blockSize), memory: memory.base + block * blockSize,
            token: UInt64(block))))
      engine.step(now: at, wallClock: at)
    }
    #expect(engine.nextDeviceOp()?.kind == .writeDurable)
    #expect(engine.nextDeviceOp() == nil)
    #expect(engine.wakeup == sent + 200 * Self.micro)
    engine.step(now: engine.wakeup, wallClock: engine.wakeup)
    #expect(engine.nextDeviceOp()?.kind == .writeDurable)
  }
}
