import Core
import NBDServer
import Testing

private typealias Command = NBD.Command
private typealias Flag = NBD.CommandFlag

@Suite struct CommandTests {
  /// Other bytes than the disk has, anywhere.
  private static let otherBytes: [UInt8] = {
    var bytes = Array(MemoryDisk.pattern[1000...])
    bytes += MemoryDisk.pattern[..<1000]
    return bytes
  }()
  private func pattern(_ range: Range<Int>) -> [UInt8] { Array(MemoryDisk.pattern[range]) }

  private func patterned(structured: Bool = true, context: Bool = false) -> TestClient {
    let client = TestClient(structured: structured, context: context)
    client.harness.disk.fillWithPattern()
    return client
  }

  /// A disk of 1 TiB that keeps nothing.
  private func huge(structured: Bool = true, context: Bool = false) -> TestClient {
    let harness = Harness(size: 4096)
    harness.catalog.disks[0].size = 1 << 40
    harness.disk.size = 1 << 40
    let client = TestClient(harness)
    client.negotiate(structured: structured, context: context)
    return client
  }

  // MARK: Reads and writes

  @Test(arguments: [
    (0, 4096), (0, 1), (4095, 2), (512, 512), (8191, 1), (100, 10_000), (4096, 262_144),
    (1, 262_144), (262_143, 2), (100_000, 1_000_001), (0, 4 << 20), ((4 << 20) - 1, 1),
  ])
  func `A read gives the bytes of its range, with either kind of reply`(
    offset: Int, length: Int
  ) {
    for structured in [true, false] {
      let client = patterned(structured: structured)
      let reply = client.read(length, at: UInt64(offset))
      #expect(reply.error == 0 && reply.isDone && reply.isStructured == structured)
      let data = reply.data(from: UInt64(offset), length: length)
      let isRight = isSame(data, pattern(offset..<offset + length))
      #expect(isRight)
      #expect(client.harness.provider.inUse == 0)
    }
  }

  @Test(arguments: [
    (0, 4096), (0, 1), (4095, 2), (512, 512), (8191, 1), (100, 10_000), (4096, 262_144),
    (1, 262_144), (262_143, 2), (100_000, 1_000_001), (0, 4 << 20), ((4 << 20) - 1, 1),
    (5000, 16_384), (5000, 16_385),
  ])
  func `A write changes the bytes of its range and no others`(offset: Int, length: Int) {
    let client = patterned()
    let data = Array(Self.otherBytes[..<length])
    let reply = client.write(data, at: UInt64(offset))
    #expect(reply == Reply(isDone: true))
    var expected = pattern(0..<4 << 20)
    expected.replaceSubrange(offset..<offset + length, with: data)
    let isRight = isSame(client.harness.disk.content, expected)
    #expect(isRight)
    #expect(client.harness.provider.inUse == 0)
  }

  @Test func `A small read is one chunk, which ends the reply`() {
    let client = patterned()
    #expect(client.read(4096, at: 8192).chunks.count == 1)
    #expect(client.unread == 0)
    #expect(client.harness.disk.seen.count == 1)
  }

  @Test(arguments: [
    (0, 1 << 20, [262_144, 262_144, 262_144, 262_144]),
    (4096, 600_000, [258_048, 262_144, 79_808]),
    (262_144, 262_145, [262_144, 1]),
    (1, 262_144, [262_144]),
  ])
  func `A long request is split at multiples of 256 KiB`(
    offset: Int, length: Int, expected: [UInt64]
  ) {
    let client = patterned()
    _ = client.read(length, at: UInt64(offset))
    #expect(client.harness.disk.seen.map(\.length) == expected)
    _ = client.write([UInt8](repeating: 1, count: length), at: UInt64(offset))
    #expect(client.harness.disk.seen.dropFirst(expected.count).map(\.length) == expected)
  }

  @Test func `A read that must not be fragmented is one chunk, or refused`() {
    let client = patterned()
    let reply = client.read(maximumPiece, at: 300, flags: Flag.df)
    #expect(reply.chunks.count == 1 && reply.error == 0)
    let long = client.read(maximumPiece + 1, at: 0, flags: Flag.df)
    #expect(long == Reply(error: NBD.Error.overflow, isStructured: true, isDone: true))
  }

  @Test func `32 MiB are read and written in one request`() {
    let client = TestClient(size: 33 << 20)
    var data: [UInt8] = []
    for _ in 0..<4 { data += MemoryDisk.pattern + Self.otherBytes }
    #expect(client.write(data, at: 4096).error == 0)
    let reply = client.read(32 << 20, at: 4096)
    let isRight = isSame(reply.data(from: 4096, length: 32 << 20), data)
    #expect(isRight)
    #expect(client.harness.provider.highest <= NBDSession.defaultMemoryLimit)
  }

  @Test(arguments: [true, false])
  func `Requests of length 0 succeed and reach no disk`(structured: Bool) {
    let client = TestClient(structured: structured)
    let size = UInt64(4 << 20)
    #expect(client.read(0, at: size).isDone)
    #expect(client.write([], at: size) == Reply(isDone: true))
    for command in [Command.trim, Command.writeZeroes, Command.cache] {
      #expect(client.call(command, offset: size) == Reply(isDone: true))
    }
    #expect(client.harness.disk.seen.isEmpty)
  }

  // MARK: Other commands

  @Test func `FLUSH, TRIM, WRITE_ZEROES and FUA reach the disk as what they are`() {
    let client = patterned()
    #expect(client.call(Command.flush) == Reply(isDone: true))
    #expect(client.call(Command.trim, offset: 1, length: 7, flags: Flag.fua).error == 0)
    #expect(client.call(Command.writeZeroes, offset: 4096, length: 8192).error == 0)
    #expect(
      client.call(
        Command.writeZeroes, offset: 0, length: 512, flags: Flag.noHole | Flag.fastZero | Flag.fua
      ).error == 0)
    #expect(client.write([1, 2, 3], at: 7, flags: Flag.fua).error == 0)
    #expect(client.read(1, at: 0, flags: Flag.fua).error == 0)
    #expect(
      client.harness.disk.seen == [
        .init(operation: .flush, flags: [], offset: 0, length: 0),
        .init(operation: .trim, flags: .forceUnitAccess, offset: 1, length: 7),
        .init(operation: .zero, flags: [], offset: 4096, length: 8192),
        .init(
          operation: .zero, flags: [.forceUnitAccess, .keepAllocated], offset: 0, length: 512),
        .init(operation: .write, flags: .forceUnitAccess, offset: 7, length: 3),
        .init(operation: .read, flags: [], offset: 0, length: 1),
      ])
  }

  @Test func `TRIM, WRITE_ZEROES and BLOCK_STATUS take any length in one piece`() {
    let client = huge(context: true)
    let length = Int(UInt32.max)
    #expect(client.call(Command.trim, offset: 12345, length: length).error == 0)
    #expect(client.call(Command.writeZeroes, offset: 12345, length: length).error == 0)
    // The engine told nothing: that is one extent of data.
    #expect(
      client.call(Command.blockStatus, offset: 12345, length: length).extents
        == [.init(length: .max, state: 0)])
    #expect(client.harness.disk.seen.map(\.length) == [UInt64](repeating: .init(length), count: 3))
  }

  @Test func `CACHE is accepted and does nothing`() {
    let client = patterned()
    #expect(client.call(Command.cache, offset: 0, length: 1 << 20) == Reply(isDone: true))
    #expect(client.harness.disk.seen.isEmpty)
  }

  @Test func `DISC closes after what was asked before is replied to`() {
    let client = patterned()
    client.harness.disk.isHeld = true
    let read = client.post(Command.read, offset: 0, length: 4096)
    client.post(Command.disconnect)
    #expect(!client.harness.isClosed)
    client.harness.disk.isHeld = false
    let isRight = isSame(client.reply(read).chunks.first?.data, pattern(0..<4096))
    #expect(isRight)
    #expect(client.harness.isClosed && client.harness.session.canBeDestroyed)
    #expect(client.harness.catalog.closes == 1)
  }

  // MARK: Block status

  @Test func `BLOCK_STATUS merges neighbours and is cut off at the end`() {
    let client = patterned(context: true)
    client.harness.disk.mark(blocks: 2..<5, isHole: true)
    client.harness.disk.mark(blocks: 7..<8, isHole: true)
    let reply = client.call(Command.blockStatus, offset: 4096, length: 8 * 4096 - 100)
    #expect(reply.isDone && reply.error == 0)
    #expect(
      reply.extents == [
        .init(length: 4096, state: 0), .init(length: 12288, state: 3),
        .init(length: 8192, state: 0), .init(length: 4096, state: 3),
        .init(length: 4096 - 100, state: 0),
      ])
  }

  @Test(arguments: [(0, 4096, 4096, UInt32(0)), (4096, 40960, 12288, 3), (5000, 10, 10, 3)])
  func `BLOCK_STATUS with REQ_ONE gives one extent within the request`(
    offset: Int, length: Int, expected: UInt32, state: UInt32
  ) {
    let client = patterned(context: true)
    client.harness.disk.mark(blocks: 1..<4, isHole: true)
    let reply = client.call(
      Command.blockStatus, offset: UInt64(offset), length: length, flags: Flag.reqOne)
    #expect(reply.extents == [.init(length: expected, state: state)])
  }

  @Test func `BLOCK_STATUS of many extents tells the first of them`() {
    let client = patterned(context: true)
    for block in stride(from: 0, to: 1024, by: 2) {
      client.harness.disk.mark(blocks: block..<block + 1, isHole: true)
    }
    let reply = client.call(Command.blockStatus, offset: 0, length: 4 << 20)
    #expect(reply.extents.count == 256)
    #expect(reply.extents.allSatisfy { $0.length == 4096 })
    #expect(client.harness.provider.inUse == 0)
  }

  @Test func `BLOCK_STATUS without a selected context, or of length 0, is invalid`() {
    #expect(
      patterned().call(Command.blockStatus, length: 4096).error == NBD.Error.invalid)
    #expect(
      patterned(structured: false).call(Command.blockStatus, length: 4096).error
        == NBD.Error.invalid)
    #expect(
      patterned(context: true).call(Command.blockStatus, length: 0).error == NBD.Error.invalid)
  }

  // MARK: Errors

  @Test(arguments: [
    (Command.read, NBD.Error.invalid), (Command.write, NBD.Error.noSpace),
    (Command.writeZeroes, NBD.Error.noSpace), (Command.trim, NBD.Error.invalid),
    (Command.cache, NBD.Error.invalid), (Command.blockStatus, NBD.Error.invalid),
  ])
  func `A request beyond the end is refused, and the connection goes on`(
    command: UInt16, error: UInt32
  ) {
    let size = UInt64(4 << 20)
    for structured in [true, false] where structured || command != Command.blockStatus {
      let client = TestClient(structured: structured, context: structured)
      let payload = [UInt8](repeating: 1, count: command == Command.write ? 513 : 0)
      for offset in [size - 512, size, size + 1, .max, .max - 512] {
        let reply = client.call(command, offset: offset, length: 513, payload: payload)
        #expect(reply == Reply(error: error, isStructured: structured, isDone: true))
      }
      #expect(client.harness.disk.seen.isEmpty)
      #expect(client.call(Command.flush) == Reply(isDone: true))
    }
  }

  @Test(arguments: [Command.write, Command.trim, Command.writeZeroes])
  func `Changes to a read-only export are not permitted`(command: UInt16) {
    let client = TestClient(readOnly: true)
    let payload = [UInt8](repeating: 1, count: command == Command.write ? 4096 : 0)
    #expect(client.call(command, length: 4096, payload: payload).error == NBD.Error.notPermitted)
    #expect(client.read(4096, at: 0).error == 0)
    #expect(client.call(Command.flush).error == 0)
  }

  @Test(arguments: [
    (Command.read, Flag.noHole), (Command.read, Flag.reqOne), (Command.write, Flag.df),
    (Command.write, 1 << 5), (Command.trim, Flag.noHole), (Command.flush, Flag.df),
    (Command.writeZeroes, Flag.reqOne), (Command.cache, Flag.fastZero),
    (Command.blockStatus, Flag.df), (Command.read, 1 << 15),
  ])
  func `A flag that does not belong to the command is invalid`(command: UInt16, flag: UInt16) {
    let client = TestClient(context: true)
    let length = command == Command.flush ? 0 : 512
    let payload = [UInt8](repeating: 1, count: command == Command.write ? 512 : 0)
    let reply = client.call(command, length: length, flags: flag, payload: payload)
    #expect(reply.error == NBD.Error.invalid)
    #expect(client.read(512, at: 0).error == 0)
  }

  @Test func `DF is invalid for a client without structured replies`() {
    let client = TestClient(structured: false)
    #expect(client.read(512, at: 0, flags: Flag.df).error == NBD.Error.invalid)
  }

  @Test(arguments: [8, 9, 100, 0xFFFF] as [UInt16])
  func `An unknown command is invalid`(command: UInt16) {
    let client = TestClient()
    #expect(client.call(command, length: 512).error == NBD.Error.invalid)
    #expect(client.call(Command.flush).error == 0)
  }

  @Test func `FLUSH with an offset or a length is invalid`() {
    let client = TestClient()
    #expect(client.call(Command.flush, offset: 1).error == NBD.Error.invalid)
    #expect(client.call(Command.flush, length: 1).error == NBD.Error.invalid)
  }

  @Test func `A read of more than 32 MiB is refused`() {
    for (structured, error) in [(true, NBD.Error.overflow), (false, NBD.Error.invalid)] {
      let client = huge(structured: structured)
      #expect(client.read(32 << 20 + 1, at: 0).error == error)
      #expect(client.read(Int(UInt32.max), at: 0).error == error)
      #expect(!client.harness.isClosed)
    }
  }

  @Test func `A write of a little more than 32 MiB is skipped and refused`() {
    let client = huge()
    let data = [UInt8](repeating: 1, count: 32 << 20 + 1)
    #expect(client.write(data, at: 0).error == NBD.Error.invalid)
    #expect(client.harness.provider.allocations == 0)
    #expect(client.call(Command.flush).error == 0)
  }

  @Test func `A write that claims gigabytes closes the connection`() {
    let client = TestClient()
    client.post(Command.write, offset: 0, length: Int(UInt32.max), payload: [1, 2, 3])
    #expect(client.harness.isClosed && client.harness.session.canBeDestroyed)
  }

  @Test func `A wrong magic number closes the connection`() {
    let client = TestClient()
    client.harness.send([UInt8](repeating: 0x41, count: 28))
    #expect(client.harness.isClosed && client.harness.session.canBeDestroyed)
  }

  @Test(arguments: [
    (BlockStatus.ioError, UInt32(5)), (.noSpace, 28), (.readOnly, 1), (.invalid, 22),
  ])
  func `Each outcome of the engine has its error on the wire`(
    status: BlockStatus, error: UInt32
  ) {
    for structured in [true, false] {
      let client = TestClient(structured: structured, context: structured)
      client.harness.disk.failures = [(5000, status)]
      let failed = Reply(error: error, isStructured: structured, isDone: true)
      #expect(client.read(4096, at: 4096) == failed)
      #expect(client.write([1, 2], at: 5000) == failed)
      #expect(client.call(Command.trim, offset: 0, length: 8192) == failed)
      if structured { #expect(client.call(Command.blockStatus, length: 8192) == failed) }
      #expect(client.read(4096, at: 0).error == 0)
      #expect(client.harness.provider.inUse == 0)
    }
  }
}
