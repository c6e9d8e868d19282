import Core
import DeviceIO
import Glibc
import Testing

@Suite struct ReactorDeviceTests {
  private func open(_ scratch: Scratch, size: UInt64, direct: Bool = true) throws -> DeviceFile {
    try DeviceFile.create(path: scratch.file("d"), size: size, writtenInFull: false)
    return try DeviceFile(path: scratch.file("d"), direct: direct)
  }

  @Test(arguments: [DeviceOpKind.write, .writeDurable], [true, false])
  func `the ring writes and reads back`(kind: DeviceOpKind, direct: Bool) throws {
    let scratch = try Scratch()
    let reactor = try Reactor(deviceOps: 64)
    reactor.attach(try open(scratch, size: 8 << 20, direct: direct), as: .log)
    let data = patternMemory(blocks: 300, seed: 9)
    #expect(reactor.run(kind, offset: 1 << 20, data) == 0)
    #expect(reactor.run(.flush) == 0)
    let back = AlignedMemory(bytes: data.count)
    #expect(reactor.run(.read, offset: 1 << 20, back) == 0)
    #expect(sameBytes(back, data))
    #expect(reactor.deviceOpsUnderWay == 0 && reactor.underWay == 0)
  }

  @Test func `many more operations than slots and queue entries all end, each on its own`() throws {
    let scratch = try Scratch()
    let reactor = try Reactor(deviceOps: 700)
    reactor.attach(try open(scratch, size: 64 << 20), as: .volume(3))
    let count = 3000
    let blocks = (0..<count).map { patternMemory(blocks: 1, seed: UInt8($0 % 251)) }
    let writes = blocks.enumerated().map { i, m in
      DeviceOp(
        kind: .write, device: .volume(3), offset: UInt64(i) * 8192, length: 4096, memory: m.base,
        token: UInt64(i))
    }
    #expect(reactor.run(writes).values.allSatisfy { $0 == 0 })
    let back = AlignedMemory(bytes: count * 4096)
    let reads = (0..<count).map { i in
      DeviceOp(
        kind: .read, device: .volume(3), offset: UInt64(i) * 8192, length: 4096,
        memory: back.base + i * 4096, token: UInt64(i))
    }
    #expect(reactor.run(reads).values.allSatisfy { $0 == 0 })
    #expect((0..<count).allSatisfy { memcmp(back.base + $0 * 4096, blocks[$0].base, 4096) == 0 })
  }

  @Test func `a read that the file ends in is EIO, also when its first part was there`() throws {
    let scratch = try Scratch()
    let reactor = try Reactor()
    reactor.attach(try open(scratch, size: 16384), as: .log)
    #expect(reactor.run(.read, offset: 8192, AlignedMemory(bytes: 16384)) == EIO)
    #expect(reactor.run(.read, offset: 1 << 20, AlignedMemory(bytes: 4096)) == EIO)
    #expect(reactor.run(.read, offset: 8192, AlignedMemory(bytes: 8192)) == 0)
  }

  @Test func `discard gives space back and allocate takes it, without changing the size`() throws {
    let scratch = try Scratch()
    let reactor = try Reactor()
    let file = try open(scratch, size: 16 << 20)
    reactor.attach(file, as: .log)
    #expect(reactor.run(.allocate, offset: 1 << 20, length: 4 << 20) == 0)
    #expect(scratch.allocated("d") >= 4 << 20)
    let data = patternMemory(blocks: 1, seed: 1)
    #expect(reactor.run(.write, offset: 0, data) == 0)
    #expect(reactor.run(.allocate, offset: 0, length: 1 << 20) == 0)
    let back = AlignedMemory(bytes: 4096)
    #expect(reactor.run(.read, offset: 0, back) == 0)
    #expect(sameBytes(back, data))
    #expect(reactor.run(.discard, offset: 0, length: 8 << 20) == 0)
    #expect(scratch.allocated("d") < 1 << 20)
    #expect(reactor.run(.read, offset: 0, back) == 0)
    #expect(isZeroBlock(back.base))
    var status = stat()
    #expect(fstat(file.descriptor, &status) == 0 && status.st_size == 16 << 20)
  }

  @Test func `an operation on a device that is not there is ENODEV`() throws {
    let reactor = try Reactor()
    #expect(reactor.run(.flush, device: .volume(5)) == ENODEV)
  }

  @Test func `a device that was never used gives way to another one`() throws {
    let scratch = try Scratch()
    let reactor = try Reactor()
    for (name, size) in [("a", 4096), ("b", 1 << 20)] {
      try DeviceFile.create(path: scratch.file(name), size: UInt64(size), writtenInFull: false)
      reactor.attach(try DeviceFile(path: scratch.file(name)), as: .volume(1))
    }
    _ = try DeviceFile(path: scratch.file("a"), lockSeconds: 0)
    #expect(reactor.run(.read, offset: 65536, AlignedMemory(bytes: 4096), device: .volume(1)) == 0)
  }

  @Test func `a write to a device that was opened read-only fails and changes nothing`() throws {
    let scratch = try Scratch()
    try DeviceFile.create(path: scratch.file("d"), size: 1 << 20, writtenInFull: false)
    let reactor = try Reactor()
    reactor.attach(try DeviceFile(path: scratch.file("d"), access: .readOnly), as: .log)
    #expect(reactor.run(.writeDurable, patternMemory(blocks: 1, seed: 1)) == EBADF)
    #expect(scratch.allocated("d") == 0)
  }

  @Test func `waiting ends at its limit when nothing happens`() throws {
    let reactor = try Reactor()
    let start = monotonicNanoseconds()
    reactor.enter(waiting: 30_000_000)
    let waited = monotonicNanoseconds() - start
    #expect(waited >= 29_000_000 && waited < 5_000_000_000)
    #expect(reactor.nextEvent() == nil)
  }

  @Test func `another thread wakes a ring that waits for ever`() throws {
    let reactor = try Reactor()
    for _ in 0..<3 {
      let waker = Unmanaged.passRetained(reactor.waker)
      var thread = pthread_t()
      pthread_create(
        &thread, nil,
        { raw in
          usleep(20_000)
          if let raw { Unmanaged<Waker>.fromOpaque(raw).takeRetainedValue().wake() }
          return nil
        }, waker.toOpaque())
      reactor.enter(waiting: .max)
      var wasWoken = false
      if case .woken = reactor.nextEvent() { wasWoken = true }
      #expect(wasWoken)
      pthread_join(thread, nil)
    }
  }
}
