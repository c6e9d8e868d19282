import Core
import Glibc
import NBDServer
import Testing

private typealias Command = NBD.Command

/// Limits, order, and the end of a session.
@Suite struct SessionTests {
  private func pattern(_ range: Range<Int>) -> [UInt8] { Array(MemoryDisk.pattern[range]) }

  /// Whether a read gave the pattern at its offset; not the bytes, so that a failure stays legible.
  private func isPattern(_ reply: Reply?, _ offset: Int, _ length: Int) -> Bool {
    isSame(
      reply?.data(from: UInt64(offset), length: length), pattern(offset..<offset + length))
  }

  private func patterned(
    structured: Bool = true, memoryLimit: Int = NBDSession.defaultMemoryLimit
  ) -> TestClient {
    let client = TestClient(Harness(memoryLimit: memoryLimit))
    client.harness.disk.fillWithPattern()
    client.negotiate(structured: structured)
    return client
  }

  /// `count` requests of `length` bytes each, at the same distance, as one stream.
  private func stream(
    _ client: TestClient, _ command: UInt16, count: Int, length: Int
  ) -> [UInt8] {
    var bytes: [UInt8] = []
    for i in 0..<count {
      let cookie = UInt64(1000 + i)
      let offset = UInt64(i * length % (4 << 20))
      client.note(cookie, isRead: command == Command.read, offset: offset, length: length)
      bytes += Message.request(command, offset: offset, length: UInt32(length), cookie: cookie)
      if command == Command.write { bytes += [UInt8](repeating: UInt8(i % 251), count: length) }
    }
    return bytes
  }

  // MARK: Order

  @Test func `Replies come in the order in which the engine is done`() {
    let client = patterned()
    client.harness.disk.isHeld = true
    let first = client.post(Command.read, offset: 0, length: 4096)
    let second = client.post(Command.flush)
    let third = client.post(Command.read, offset: 4096, length: 4096)
    for index in [2, 1, 0] { client.harness.complete(index) }
    client.collect()
    #expect(client.order == [third, second, first])
  }

  @Test func `Chunks of a long read are sent as they come, the last ends the reply`() {
    let client = patterned()
    client.harness.disk.isHeld = true
    let read = client.post(Command.read, offset: 0, length: 3 * maximumPiece)
    for index in [2, 0] { client.harness.complete(index) }
    client.collect()
    #expect(client.replies[read]?.chunks.map(\.offset) == [524_288, 0])
    #expect(client.replies[read]?.isDone == false)
    client.harness.complete(0)
    let reply = client.reply(read)
    #expect(reply.isDone && reply.chunks.count == 3)
    #expect(isPattern(reply, 0, 3 * maximumPiece))
  }

  @Test func `A long simple read is sent in order, and other replies wait until it is through`() {
    let client = patterned(structured: false)
    client.harness.disk.isHeld = true
    let flush = client.post(Command.flush)
    let read = client.post(Command.read, offset: 0, length: 3 * maximumPiece)
    let other = client.post(Command.read, offset: 8192, length: 2 * maximumPiece)
    // The read's third piece, then its first; the flush; the other read; the second at last.
    for index in [3, 1, 0, 1, 1, 1, 0] { client.harness.complete(index) }
    client.collect()
    #expect(client.order == [read, flush, other])
    #expect(isPattern(client.replies[read], 0, 3 * maximumPiece))
    #expect(isPattern(client.replies[other], 8192, 2 * maximumPiece))
    #expect(client.harness.provider.inUse == 0)
  }

  // MARK: Errors in the middle

  @Test func `A long read with structured replies ends with an error, and the connection goes on`()
  {
    for failing in 0..<3 {
      let client = patterned()
      client.harness.disk.failures = [(UInt64(failing * maximumPiece), .ioError)]
      let reply = client.read(3 * maximumPiece, at: 0)
      #expect(reply.isDone && reply.error == NBD.Error.inputOutput)
      #expect(client.read(512, at: UInt64(maximumPiece - 512)).isDone)
      #expect(client.harness.provider.inUse == 0)
    }
  }

  @Test func `A long simple read that fails before its header is sent gets the error`() {
    let client = patterned(structured: false)
    client.harness.disk.failures = [(UInt64(2 * maximumPiece), .ioError)]
    client.harness.disk.isHeld = true
    let read = client.post(Command.read, offset: 0, length: 3 * maximumPiece)
    for index in [2, 1, 0] { client.harness.complete(index) }
    #expect(client.reply(read) == Reply(error: NBD.Error.inputOutput, isDone: true))
    #expect(!client.harness.isClosed && client.harness.provider.inUse == 0)
    client.harness.disk.isHeld = false
    #expect(client.read(4096, at: 0).error == 0)
  }

  @Test func `A long simple read that fails after its header was sent closes the connection`() {
    let client = patterned(structured: false)
    client.harness.disk.failures = [(UInt64(maximumPiece), .ioError)]
    let read = client.post(Command.read, offset: 0, length: 3 * maximumPiece)
    #expect(!client.reply(read).isDone)
    #expect(client.harness.isClosed && client.harness.session.canBeDestroyed)
    #expect(client.harness.provider.inUse == 0)
  }

  @Test func `A simple read that waits behind another one and fails then gets one error`() {
    let client = patterned(structured: false)
    client.harness.disk.failures = [(UInt64(9 * maximumPiece), .ioError)]
    client.harness.disk.isHeld = true
    let open = client.post(Command.read, offset: 0, length: 2 * maximumPiece)
    let failing = client.post(
      Command.read, offset: UInt64(8 * maximumPiece), length: 3 * maximumPiece)
    // Its first piece is there and waits for the open read; then the second fails, then the third.
    for index in [0, 1, 1, 1, 0] { client.harness.complete(index) }
    client.collect()
    #expect(client.order == [open, failing])
    #expect(client.replies[failing]?.error == NBD.Error.inputOutput)
    #expect(client.harness.provider.inUse == 0)
    client.harness.disk.isHeld = false
    #expect(client.read(4096, at: 0).error == 0)
  }

  @Test func `A long write that fails takes the rest of its payload, then gets the error`() {
    let client = patterned()
    client.harness.disk.failures = [(0, .noSpace)]
    let data = [UInt8](repeating: 9, count: 4 * maximumPiece)
    let bytes = Message.request(
      Command.write, offset: 0, length: UInt32(data.count), cookie: 50, payload: data)
    client.harness.send(Array(bytes[..<(maximumPiece + 5000)]))
    #expect(!client.reply(50).isDone)
    client.harness.send(Array(bytes[(maximumPiece + 5000)...]))
    #expect(client.reply(50).error == NBD.Error.noSpace)
    #expect(client.harness.disk.seen.count < 4)
    #expect(client.call(Command.flush) == Reply(isDone: true))
    #expect(client.harness.provider.inUse == 0)
  }

  // MARK: Limits

  @Test(arguments: [Command.write, Command.read])
  func `No more than 128 requests are taken at a time`(command: UInt16) {
    let client = patterned()
    client.harness.disk.isHeld = true
    client.harness.send(stream(client, command, count: 400, length: 512))
    #expect(client.harness.disk.inWork == NBDSession.maximumRequests)
    #expect(client.harness.session.receiveSpace().isEmpty)
    client.harness.disk.isHeld = false
    client.harness.run()
    client.collect()
    #expect(client.order.count == 400)
    #expect(client.replies.values.allSatisfy { $0.isDone && $0.error == 0 })
  }

  @Test(arguments: [Command.write, Command.read], [true, false])
  func `Memory in flight stays below the limit`(command: UInt16, structured: Bool) {
    let limit = 600 << 10
    let client = patterned(structured: structured, memoryLimit: limit)
    client.harness.disk.isHeld = true
    client.harness.send(stream(client, command, count: 20, length: 500_000))
    #expect(client.harness.session.memoryInFlight > 0)
    client.harness.disk.isHeld = false
    client.harness.run()
    client.collect()
    #expect(client.order.count == 20)
    #expect(client.harness.provider.highest <= limit)
    #expect(client.harness.provider.inUse == 0)
  }

  @Test func `A client that does not read its replies is not served on`() {
    let client = patterned()
    client.harness.isOutputHeld = true
    client.harness.send(stream(client, Command.read, count: 300, length: 100_000))
    #expect(client.harness.disk.seen.count < 100)
    #expect(client.harness.provider.inUse > 7 << 20)
    #expect(client.harness.provider.inUse <= NBDSession.defaultMemoryLimit)
    client.harness.isOutputHeld = false
    client.harness.run()
    client.collect()
    #expect(client.order.count == 300)
  }

  @Test(arguments: [Command.write, Command.read], [true, false])
  func `A session waits for memory, holding none, and goes on when there is some`(
    command: UInt16, structured: Bool
  ) {
    let client = patterned(structured: structured)
    client.harness.provider.limit = 0
    client.harness.send(stream(client, command, count: 3, length: 600_000))
    #expect(client.harness.session.isStalled)
    #expect(client.harness.session.receiveSpace().isEmpty)
    #expect(client.harness.provider.inUse == 0)
    client.harness.provider.limit = maximumPiece
    client.harness.run()
    client.collect()
    #expect(client.order == [1000, 1001, 1002])
    #expect(client.replies.values.allSatisfy { $0.error == 0 })
  }

  @Test func `A long simple read goes on with its own memory when all other is gone`() {
    let client = patterned(structured: false)
    client.harness.disk.isHeld = true
    let read = client.post(Command.read, offset: 4096, length: 2 << 20)
    let inUse = client.harness.provider.inUse
    #expect(inUse == 9 * maximumPiece)
    client.harness.disk.isHeld = false
    #expect(client.reply(read).isDone)

    client.harness.provider.limit = maximumPiece
    client.harness.disk.isHeld = true
    let second = client.post(Command.read, offset: 4096, length: 2 << 20)
    #expect(client.harness.disk.inWork == 1)
    client.harness.provider.limit = 0
    client.harness.disk.isHeld = false
    #expect(isPattern(client.reply(second), 4096, 2 << 20))
    #expect(client.harness.provider.highest == inUse)
  }

  @Test func `A request that the engine does not take is offered again, in order`() {
    let client = patterned()
    client.harness.disk.slots = 2
    client.harness.send(stream(client, Command.write, count: 50, length: 5000))
    client.collect()
    #expect(client.order == (1000..<1050).map { UInt64($0) })
    #expect(client.harness.disk.seen.map(\.offset) == (0..<50).map { UInt64($0 * 5000) })
  }

  @Test func `A small write holds no memory while its payload is not whole`() {
    let client = TestClient()
    let bytes = Message.request(
      Command.write, offset: 0, length: 4096, cookie: 5,
      payload: [UInt8](repeating: 3, count: 4096))
    client.harness.send(Array(bytes.dropLast()))
    #expect(client.harness.provider.inUse == 0)
    client.harness.send([3])
    #expect(client.reply(5) == Reply(isDone: true))
  }

  @Test func `A large payload is received straight into the request's memory`() {
    let client = TestClient()
    let payload = pattern(0..<maximumPiece)
    let bytes = Message.request(
      Command.write, offset: 512, length: UInt32(maximumPiece), cookie: 5, payload: payload)
    client.harness.send(Array(bytes[..<1000]))
    let space = client.harness.session.receiveSpace()
    #expect(space.count == maximumPiece - (1000 - 28))
    #expect(UInt(bitPattern: space.baseAddress) % 4096 == 512 + 972)
    client.harness.send(Array(bytes[1000...]))
    #expect(client.reply(5) == Reply(isDone: true))
    let isWritten = isSame(Array(client.harness.disk.content[512..<512 + maximumPiece]), payload)
    #expect(isWritten)
  }

  @Test func `Replies without data share one entry of the send vector`() {
    let client = patterned(structured: false)
    client.harness.isOutputHeld = true
    client.harness.send(stream(client, Command.write, count: 100, length: 512))
    let vector = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 8)
    defer { vector.deallocate() }
    #expect(client.harness.session.fillSendVector(into: vector) == 1)
    #expect(vector[0].iov_len == 100 * NBD.simpleReplyBytes)
    #expect(client.harness.session.fillSendVector(into: vector) == 0)
    client.harness.session.sent(0)
    client.harness.isOutputHeld = false
    client.harness.run()
    client.collect()
    #expect(client.order.count == 100)
  }

  // MARK: End

  @Test func `What was sent before the stream ended is served, a part of a request is not`() {
    let client = TestClient()
    client.harness.disk.isHeld = true
    client.harness.send(stream(client, Command.write, count: 200, length: 512))
    let part = Message.request(
      Command.write, offset: 0, length: 1 << 20, cookie: 7,
      payload: [UInt8](repeating: 1, count: 300_000))
    client.harness.send(part)
    client.harness.endInput()
    client.harness.disk.isHeld = false
    client.harness.run()
    client.collect()
    #expect(client.order == (1000..<1200).map { UInt64($0) })
    #expect(client.harness.isClosed && client.harness.session.canBeDestroyed)
    #expect(client.harness.provider.inUse == 0 && client.harness.catalog.closes == 1)
  }

  @Test func `A connection that breaks gives memory back and closes its disk after the engine`() {
    let client = patterned()
    client.harness.disk.isHeld = true
    client.harness.send(stream(client, Command.write, count: 3, length: 300_000))
    client.harness.close()
    #expect(!client.harness.session.canBeDestroyed)
    #expect(client.harness.catalog.closes == 0)
    client.harness.disk.isHeld = false
    client.harness.run()
    #expect(client.harness.session.canBeDestroyed)
    #expect(client.harness.provider.inUse == 0 && client.harness.catalog.closes == 1)
  }

  @Test func `A server that stops serves what it took and takes no more`() {
    let client = patterned()
    client.harness.disk.isHeld = true
    let read = client.post(Command.read, offset: 0, length: 4096)
    client.harness.session.finish()
    #expect(!client.harness.session.wantsClose)
    #expect(client.harness.session.receiveSpace().isEmpty)
    client.harness.disk.isHeld = false
    #expect(client.reply(read).error == 0)
    #expect(client.harness.isClosed && client.harness.session.canBeDestroyed)
  }

  @Test func `A server that stops keeps the memory that a payload is received into`() {
    let client = patterned()
    client.harness.disk.failures = [(offset: 0, status: .noSpace)]
    client.harness.disk.isHeld = true
    // The second piece's payload is on its way when the first one fails.
    let sent = maximumPiece + 100_000
    client.harness.send(
      Array(
        Message.request(
          Command.write, offset: 0, length: UInt32(2 * maximumPiece), cookie: 70,
          payload: [UInt8](repeating: 1, count: sent))))
    let (session, provider) = (client.harness.session, client.harness.provider)
    let space = session.receiveSpace()
    #expect(space.count == 2 * maximumPiece - sent)
    session.completed(client.harness.disk.complete(0))
    session.finish()
    #expect(provider.inUse >= space.count)
    session.received(0)
    client.harness.run()
    #expect(client.harness.isClosed && session.canBeDestroyed && provider.inUse == 0)
  }

  @Test func `What an engine that stops has refused closes the connection instead of an error`() {
    let client = patterned()
    client.harness.disk.stopping = true
    client.post(Command.write, offset: 0, length: 4096, payload: [UInt8](repeating: 1, count: 4096))
    #expect(client.harness.isClosed && client.harness.session.canBeDestroyed)
    #expect(client.harness.provider.inUse == 0)
  }

  @Test func `Memory that a send or a receive may touch is kept until it has ended`() {
    let client = patterned(structured: false)
    client.harness.isOutputHeld = true
    client.harness.disk.isHeld = true
    client.post(Command.read, offset: 0, length: 3 * maximumPiece)
    client.harness.send(
      Array(
        Message.request(
          Command.write, offset: 0, length: 100_000, cookie: 70,
          payload: [UInt8](repeating: 1, count: 50_000))))
    let session = client.harness.session
    let vector = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 8)
    defer { vector.deallocate() }
    client.harness.complete(0)
    #expect(session.receiveSpace().count == 50_000)
    #expect(session.fillSendVector(into: vector) == 2)
    // The read fails with a send and a receive under way; nothing can be told any more.
    client.harness.disk.failures = [(UInt64(maximumPiece), .ioError)]
    session.completed(client.harness.disk.complete(0))
    session.completed(client.harness.disk.complete(0))
    #expect(session.wantsClose)
    let received = 102_400
    #expect(client.harness.provider.inUse == maximumPiece + received)
    session.sent(10)
    #expect(client.harness.provider.inUse == received)
    session.received(0)
    #expect(client.harness.provider.inUse == 0)
    client.harness.close()
    client.harness.run()
    #expect(session.canBeDestroyed)
  }
}
