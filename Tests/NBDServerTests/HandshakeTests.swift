import Core
import NBDServer
import Testing

@Suite struct HandshakeTests {
  private func greeted(_ harness: Harness = Harness(), flags: UInt32 = 3) -> TestClient {
    let client = TestClient(harness)
    client.greet(flags: flags)
    return client
  }

  private func types(_ replies: [OptionReply]) -> [UInt32] { replies.map(\.type) }

  // MARK: Greeting and EXPORT_NAME

  @Test func `A client flag that the server did not offer closes the connection`() {
    let client = greeted(flags: 4)
    #expect(client.harness.isClosed)
    #expect(client.unread == 0)
  }

  @Test func `EXPORT_NAME answers size, flags and 124 zeros`() {
    let client = greeted(flags: 1)
    client.harness.send(Message.option(NBD.Option.exportName, Array("disk".utf8)))
    #expect(client.number(UInt64.self) == 4 << 20)
    #expect(client.number(UInt16.self) & NBD.TransmissionFlag.hasFlags != 0)
    #expect(client.take(124) == [UInt8](repeating: 0, count: 124))
    #expect(client.unread == 0)
    #expect(client.harness.session.exportName == "disk")
  }

  @Test func `EXPORT_NAME leaves the zeros out for a client that asked so`() {
    let client = greeted(flags: 3)
    client.harness.send(Message.option(NBD.Option.exportName, Array("disk".utf8)))
    #expect(client.unread == 10)
  }

  @Test(arguments: ["nothing", "", String(repeating: "n", count: 4097)])
  func `EXPORT_NAME of an unknown export closes the connection`(name: String) {
    let client = greeted()
    client.harness.send(Message.option(NBD.Option.exportName, Array(name.utf8)))
    #expect(client.harness.isClosed)
    #expect(client.unread == 0)
    #expect(client.harness.session.canBeDestroyed)
  }

  // MARK: GO and INFO

  @Test func `GO answers what was asked for and begins transmission`() throws {
    let client = greeted()
    client.harness.catalog.disks[0].comment = "für Tests"
    let replies = client.option(
      NBD.Option.go,
      Message.info("disk", [NBD.Info.blockSize, NBD.Info.name, NBD.Info.description, 77]))
    #expect(types(replies) == [3, 3, 3, 3, NBD.Reply.ack])
    #expect(replies[1].data == [0, 1] + Array("disk".utf8))
    #expect(replies[2].data == [0, 2] + Array("für Tests".utf8))
    #expect(replies[3].data == [0, 3, 0, 0, 2, 0, 0, 0, 16, 0, 2, 0, 0, 0])
    #expect(client.call(NBD.Command.flush).isDone)
  }

  @Test func `GO without requests answers the export alone`() {
    let client = greeted()
    let replies = client.option(NBD.Option.go, Message.info("disk"))
    #expect(types(replies) == [NBD.Reply.info, NBD.Reply.ack])
    #expect(replies[0].data.count == 12)
  }

  @Test func `An unknown export is refused, and another one can be tried`() {
    let client = greeted()
    #expect(
      types(client.option(NBD.Option.go, Message.info("nothing"))) == [NBD.Reply.unknown])
    #expect(types(client.option(NBD.Option.go, Message.info("disk"))).last == NBD.Reply.ack)
  }

  @Test(arguments: [NBD.Option.go, NBD.Option.info])
  func `The empty name is an unknown export`(option: UInt32) {
    let client = greeted()
    #expect(types(client.option(option, Message.info(""))) == [NBD.Reply.unknown])
    #expect(client.harness.catalog.opens == 0)
  }

  @Test func `INFO opens and closes the export, and goes on with options`() {
    let client = greeted()
    let info = client.option(NBD.Option.info, Message.info("disk"))
    #expect(types(info) == [NBD.Reply.info, NBD.Reply.ack])
    #expect(client.harness.catalog.opens == 1)
    #expect(client.harness.catalog.openHandles.isEmpty)
    let go = client.option(NBD.Option.go, Message.info("disk"))
    #expect(go.map(\.data) == info.map(\.data))
  }

  @Test(arguments: [
    (ControlError.stopping, NBD.Reply.shutdown), (.suspended, NBD.Reply.policy),
    (.badName("no such name is possible"), NBD.Reply.unknown),
    (.noSuchSnapshot(SnapshotName(disk: "disk", snapshot: "s")), NBD.Reply.unknown),
  ])
  func `The reason why an export can't be opened is told`(error: ControlError, type: UInt32) {
    let client = greeted()
    client.harness.catalog.failure = error
    let replies = client.option(NBD.Option.go, Message.info("disk"))
    #expect(types(replies) == [type])
    #expect(replies.first?.data == Array(error.description.utf8))
  }

  @Test func `A name that is not UTF-8 is refused`() {
    let client = greeted()
    let replies = client.option(NBD.Option.go, [0, 0, 0, 2, 0xC3, 0x28, 0, 0])
    #expect(types(replies) == [NBD.Reply.invalid])
  }

  @Test(
    arguments: [
      [], [0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 9, 65, 0, 0], [0xFF, 0xFF, 0xFF, 0xFF, 65, 0, 0],
      [0, 0, 0, 1, 65, 0, 1], [0, 0, 0, 1, 65, 0, 0, 0], [0, 0, 0, 1, 65, 0xFF, 0xFF, 0, 0],
    ] as [[UInt8]])
  func `Malformed data of GO is refused`(data: [UInt8]) {
    let client = greeted()
    #expect(types(client.option(NBD.Option.go, data)) == [NBD.Reply.invalid])
    #expect(types(client.option(NBD.Option.go, Message.info("disk"))).last == NBD.Reply.ack)
  }

  @Test func `The flags tell what is served`() {
    typealias Flag = NBD.TransmissionFlag
    let common = Flag.hasFlags | Flag.sendFlush | Flag.sendFUA | Flag.canMultiConn | Flag.sendCache
    let changes = Flag.sendTrim | Flag.sendWriteZeroes | Flag.sendFastZero
    #expect(TestClient(structured: true).flags == common | changes | Flag.sendDF)
    #expect(TestClient(structured: false).flags == common | changes)
    #expect(TestClient(readOnly: true, structured: false).flags == common | Flag.readOnly)
  }

  // MARK: LIST

  @Test func `LIST walks all pages`() {
    let client = greeted()
    client.harness.catalog.disks = (0..<1000).map {
      .init(name: "dir/disk-\($0)", size: 512, comment: $0 == 3 ? "three" : "")
    }
    let replies = client.option(NBD.Option.list)
    #expect(replies.count == 1001)
    #expect(replies.last?.type == NBD.Reply.ack)
    #expect(replies[3].data == [0, 0, 0, 10] + Array("dir/disk-3three".utf8))
    #expect(replies[999].data == [0, 0, 0, 12] + Array("dir/disk-999".utf8))
    #expect(client.harness.catalog.lists == 4)
  }

  @Test func `LIST asks for no more pages than the client reads`() {
    let client = greeted()
    client.harness.catalog.disks = (0..<20_000).map { .init(name: "disk-\($0)", size: 512) }
    client.harness.isOutputHeld = true
    client.harness.send(Message.option(NBD.Option.list))
    #expect(client.harness.catalog.lists < 20)
    client.harness.isOutputHeld = false
    client.harness.run()
    #expect(client.optionReplies().count == 20_001)
  }

  @Test func `LIST with data is refused`() {
    #expect(types(greeted().option(NBD.Option.list, [1])) == [NBD.Reply.invalid])
  }

  @Test func `LIST tells why it failed`() {
    let client = greeted()
    client.harness.catalog.failure = .stopping
    #expect(types(client.option(NBD.Option.list)) == [NBD.Reply.shutdown])
    client.harness.catalog.failure = nil
    #expect(types(client.option(NBD.Option.list)) == [NBD.Reply.server, NBD.Reply.ack])
  }

  // MARK: Metadata contexts

  @Test(arguments: [
    ([], true), (["base:"], true), (["base:allocation"], true),
    (["qemu:dirty-bitmap", "base:allocation"], true), (["base:other"], false), (["x-y:"], false),
  ])
  func `LIST_META_CONTEXT finds base:allocation`(queries: [String], found: Bool) {
    let client = greeted()
    _ = client.option(NBD.Option.structuredReply)
    let replies = client.option(NBD.Option.listMetaContext, Message.context("disk", queries))
    let context = [0, 0, 0, 0] + Array("base:allocation".utf8)
    #expect(replies.map(\.data) == (found ? [context, []] : [[]]))
    #expect(replies.last?.type == NBD.Reply.ack)
  }

  @Test(arguments: [
    ([], false), (["base:"], false), (["base:allocation"], true),
    (["base:allocation", "base:allocation"], true), (["x-y:z"], false),
  ])
  func `SET_META_CONTEXT selects base:allocation by its name only`(
    queries: [String], found: Bool
  ) {
    let client = greeted()
    _ = client.option(NBD.Option.structuredReply)
    let replies = client.option(NBD.Option.setMetaContext, Message.context("disk", queries))
    #expect(types(replies) == (found ? [NBD.Reply.metaContext, NBD.Reply.ack] : [NBD.Reply.ack]))
  }

  @Test(arguments: [NBD.Option.listMetaContext, NBD.Option.setMetaContext])
  func `Metadata contexts need structured replies`(option: UInt32) {
    let replies = greeted().option(option, Message.context("disk", ["base:allocation"]))
    #expect(types(replies) == [NBD.Reply.invalid])
  }

  @Test(
    arguments: [
      [], [0, 0, 0, 1], [0, 0, 0, 1, 65, 0, 0], [0, 0, 0, 1, 65, 0, 0, 0, 1],
      [0, 0, 0, 1, 65, 0xFF, 0xFF, 0xFF, 0xFF], [0, 0, 0, 1, 65, 0, 0, 0, 0, 7],
      [0, 0, 0, 1, 65, 0, 0, 0, 1, 0, 0, 0, 9, 65],
    ] as [[UInt8]])
  func `Malformed queries are refused`(data: [UInt8]) {
    let client = greeted()
    _ = client.option(NBD.Option.structuredReply)
    #expect(types(client.option(NBD.Option.setMetaContext, data)) == [NBD.Reply.invalid])
  }

  @Test func `A context of another export, or one given up, is not in force`() {
    let other = greeted()
    other.harness.catalog.disks.append(.init(name: "other", size: 4096))
    _ = other.option(NBD.Option.structuredReply)
    _ = other.option(NBD.Option.setMetaContext, Message.context("other", ["base:allocation"]))
    _ = other.option(NBD.Option.go, Message.info("disk"))
    #expect(other.call(NBD.Command.blockStatus, length: 4096).error == NBD.Error.invalid)

    let given = greeted()
    _ = given.option(NBD.Option.structuredReply)
    _ = given.option(NBD.Option.setMetaContext, Message.context("disk", ["base:allocation"]))
    _ = given.option(NBD.Option.setMetaContext, [9])
    _ = given.option(NBD.Option.go, Message.info("disk"))
    #expect(given.call(NBD.Command.blockStatus, length: 4096).error == NBD.Error.invalid)
  }

  // MARK: Other options

  @Test func `ABORT is acknowledged and ends the connection`() {
    let client = greeted()
    #expect(types(client.option(NBD.Option.abort, [1, 2, 3])) == [NBD.Reply.ack])
    #expect(client.harness.isClosed)
    #expect(client.harness.session.canBeDestroyed)
  }

  @Test(arguments: [4, NBD.Option.startTLS, NBD.Option.extendedHeaders, 12, 0, .max] as [UInt32])
  func `An option that is not supported is refused as such`(option: UInt32) {
    let client = greeted()
    #expect(types(client.option(option)) == [NBD.Reply.unsupported])
    #expect(types(client.option(NBD.Option.go, Message.info("disk"))).last == NBD.Reply.ack)
  }

  @Test(arguments: [NBD.Option.startTLS, NBD.Option.structuredReply])
  func `Data where none belongs is refused`(option: UInt32) {
    #expect(types(greeted().option(option, [0])) == [NBD.Reply.invalid])
  }

  @Test func `An option of too much data is skipped and refused`() {
    let client = greeted()
    let data = [UInt8](repeating: 1, count: 600_000)
    #expect(types(client.option(NBD.Option.go, data)) == [NBD.Reply.tooBig])
    #expect(types(client.option(NBD.Option.go, Message.info("disk"))).last == NBD.Reply.ack)
  }

  @Test(arguments: [(NBD.Option.go, UInt32.max), (NBD.Option.exportName, UInt32(20_000))])
  func `An option that claims far too much closes the connection`(option: UInt32, length: UInt32) {
    let client = greeted()
    #expect(client.option(option, length: length).isEmpty)
    #expect(client.harness.isClosed)
  }

  @Test func `A wrong magic number closes the connection`() {
    let client = greeted()
    var bytes = Message.option(NBD.Option.list)
    bytes[7] ^= 1
    client.harness.send(bytes)
    #expect(client.harness.isClosed)
  }

  @Test func `Options and requests sent without waiting are answered in order`() {
    let client = greeted()
    client.harness.send(
      Message.option(NBD.Option.structuredReply) + Message.option(NBD.Option.list)
        + Message.option(NBD.Option.info, Message.info("disk"))
        + Message.option(NBD.Option.go, Message.info("disk"))
        + Message.request(NBD.Command.flush, cookie: 99))
    let type = { (reply: OptionReply) in [reply.option, reply.type] }
    var replies: [[UInt32]] = []
    for _ in 0..<7 where client.unread >= 20 {
      let length = Int(client.peek(16, 4))
      let option = UInt32(client.peek(8, 4))
      replies.append(type(.init(option: option, type: UInt32(client.peek(12, 4)), data: [])))
      _ = client.take(20 + length)
    }
    #expect(replies == [[8, 1], [3, 2], [3, 1], [6, 3], [6, 1], [7, 3], [7, 1]])
    #expect(client.reply(99).isDone)
  }

  @Test func `A client that goes while its disk is being opened leaves nothing open`() {
    let client = greeted()
    client.harness.isControlHeld = true
    client.harness.send(Message.option(NBD.Option.go, Message.info("disk")))
    client.harness.close()
    #expect(!client.harness.session.canBeDestroyed)
    client.harness.isControlHeld = false
    client.harness.run()
    #expect(client.harness.catalog.opens == 1 && client.harness.catalog.closes == 1)
    #expect(client.harness.session.canBeDestroyed)
  }

  @Test func `A client that sends options and never reads is not served on`() {
    let client = greeted()
    client.harness.isOutputHeld = true
    let option = Message.option(4)
    client.harness.send(Array(repeatElement(option, count: 20_000).joined()))
    #expect(client.harness.unread > 100_000)
    client.harness.isOutputHeld = false
    client.harness.run()
    #expect(client.optionReplies().count == 20_000)
  }
}
