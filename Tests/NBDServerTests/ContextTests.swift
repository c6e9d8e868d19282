import Core
import NBDServer
import Testing

/// Metadata contexts that tell what changed since a snapshot.
@Suite struct ContextTests {
  private static let size = 4 << 20

  private static func range(_ block: UInt64, _ count: UInt64, isZero: Bool = false) -> ChangedRange
  {
    ChangedRange(offset: block * 4096, length: count * 4096, isZero: isZero)
  }

  /// A client before its GO; "disk" has the snapshots one, two and three.
  private func greeted(
    _ changes: [ChangedRange] = [], others: [String] = ["two", "three"]
  ) -> TestClient {
    let client = TestClient(Harness(size: Self.size))
    client.harness.catalog.disks[0].snapshots =
      [(name: "one", changes: changes)] + others.map { (name: $0, changes: []) }
    client.greet()
    _ = client.option(NBD.Option.structuredReply)
    return client
  }

  private func ready(_ changes: [ChangedRange], contexts: [String]) -> TestClient {
    let client = greeted(changes)
    let replies = client.option(NBD.Option.setMetaContext, Message.context("disk", contexts))
    #expect(replies.count == contexts.count + 1)
    #expect(client.option(NBD.Option.go, Message.info("disk")).last?.type == NBD.Reply.ack)
    return client
  }

  /// (id, name) of each context in the replies; the last one must be an acknowledgement.
  private func contexts(_ replies: [OptionReply]) -> [String] {
    #expect(replies.last?.type == NBD.Reply.ack)
    return replies.dropLast().map { reply in
      #expect(reply.type == NBD.Reply.metaContext)
      let id = reply.data.prefix(4).reduce(0) { $0 << 8 | UInt32($1) }
      return "\(id) " + String(decoding: reply.data.dropFirst(4), as: UTF8.self)
    }
  }

  private func status(
    _ client: TestClient, _ offset: UInt64 = 0, _ length: Int = size, flags: UInt16 = 0
  ) -> Reply {
    client.call(NBD.Command.blockStatus, offset: offset, length: length, flags: flags)
  }

  private func extents(_ pairs: (Int, UInt32)...) -> [Reply.Extent] {
    pairs.map { Reply.Extent(length: UInt32($0.0), state: $0.1) }
  }

  // MARK: Options

  @Test func `SET_META_CONTEXT selects both spellings of a snapshot that is there`() {
    let queries = [
      "qemu:dirty-bitmap:two", "base:allocation", "sluice:changed:one", "sluice:changed:none",
      "sluice:changed:", "qemu:allocation-depth", "qemu:dirty-bitmap:two",
    ]
    let replies = greeted().option(NBD.Option.setMetaContext, Message.context("disk", queries))
    #expect(
      contexts(replies) == [
        "1 qemu:dirty-bitmap:two", "2 base:allocation", "3 sluice:changed:one",
      ])
  }

  @Test(arguments: [
    ("disk@two", ["1 sluice:changed:one"]), ("disk@three", ["1 sluice:changed:one"]),
    ("disk@one", []), ("disk@absent", []), ("other", []), ("one@disk", []),
  ])
  func `A context of a snapshot is for what is later than it`(
    export: String, found: [String]
  ) {
    let replies = greeted().option(
      NBD.Option.setMetaContext, Message.context(export, ["sluice:changed:one"]))
    #expect(contexts(replies) == found)
  }

  @Test(arguments: [
    ([], ["base:allocation", "c:one", "b:one", "c:two", "b:two", "c:three", "b:three"]),
    (["qemu:"], ["b:one", "b:two", "b:three"]),
    (["sluice:changed:"], ["c:one", "c:two", "c:three"]),
    (["base:", "qemu:dirty-bitmap:two", "qemu:dirty-bitmap:no"], ["base:allocation", "b:two"]),
    (["q", "qemu:dirty-bitmap", ":", ""], []),
  ])
  func `LIST_META_CONTEXT shows what is asked for`(queries: [String], found: [String]) {
    let replies = greeted().option(NBD.Option.listMetaContext, Message.context("disk", queries))
    let names = found.map { name in
      "0 "
        + (name.hasPrefix("c:")
          ? NBD.changedContext + name.dropFirst(2)
          : name.hasPrefix("b:") ? NBD.bitmapContext + name.dropFirst(2) : name)
    }
    #expect(contexts(replies) == names)
  }

  @Test func `The list for a snapshot ends before it`() {
    let replies = greeted().option(
      NBD.Option.listMetaContext, Message.context("disk@three", ["sluice:"]))
    #expect(contexts(replies) == ["0 sluice:changed:one", "0 sluice:changed:two"])
  }

  @Test func `A list of thousands of snapshots comes whole to a client that reads slowly`() {
    let names = (0..<5000).map { "snapshot-\($0)" }
    let client = greeted(others: names)
    client.harness.isOutputHeld = true
    client.harness.send(
      Message.option(NBD.Option.listMetaContext, Message.context("disk", ["qemu:"]))
        + Message.option(NBD.Option.list))
    #expect(client.harness.catalog.lists < 5)
    client.harness.isOutputHeld = false
    client.harness.run()
    let replies = client.optionReplies()
    #expect(replies.count == 5004)
    #expect(contexts(Array(replies.prefix(5002))).last == "0 qemu:dirty-bitmap:snapshot-4999")
  }

  @Test(arguments: [NBD.Option.listMetaContext, NBD.Option.setMetaContext])
  func `More contexts than a client may have are refused`(option: UInt32) {
    let names = (0..<9).map { "sluice:changed:\($0)" }
    let replies = greeted().option(option, Message.context("disk", names))
    #expect(replies.map(\.type) == [NBD.Reply.tooBig])
  }

  @Test func `A client that goes in the midst of an option leaves nothing behind`() {
    for query in ["sluice:changed:one", "sluice:"] {
      let client = greeted()
      client.harness.isControlHeld = true
      client.harness.send(
        Message.option(NBD.Option.listMetaContext, Message.context("disk", [query])))
      client.harness.close()
      client.harness.isControlHeld = false
      client.harness.run()
      #expect(client.harness.session.canBeDestroyed)
    }
  }

  // MARK: Block status

  @Test func `Changed ranges are dirty and what lies between is clean`() {
    let changes = [Self.range(1, 2), Self.range(3, 1, isZero: true), Self.range(100, 1)]
    let client = ready(changes, contexts: ["sluice:changed:one"])
    #expect(
      status(client).extents
        == extents(
          (4096, 0), (3 * 4096, 1), (96 * 4096, 0), (4096, 1), (Self.size - 101 * 4096, 0)))
    #expect(status(client, 6000, 1000).extents == extents((1000, 1)))
    #expect(status(client, 4 * 4096 - 100, 200).extents == extents((100, 1), (100, 0)))
    #expect(status(client, 512, 512).extents == extents((512, 0)))
  }

  @Test func `One extent is told to a client that wants one`() {
    let client = ready([Self.range(0, 2), Self.range(9, 1)], contexts: ["sluice:changed:one"])
    let one = NBD.CommandFlag.reqOne
    #expect(status(client, flags: one).extents == extents((2 * 4096, 1)))
    #expect(status(client, 8192, 1 << 20, flags: one).extents == extents((7 * 4096, 0)))
  }

  @Test func `A range with more changes than a reply has room for is told in parts`() {
    let changes = (0..<500).map { Self.range(UInt64(2 * $0 + 1), 1) }
    let client = ready(changes, contexts: ["qemu:dirty-bitmap:one"])
    var position: UInt64 = 0
    var dirty: [UInt64] = []
    var requests = 0
    while position < UInt64(Self.size), requests < 10 {
      requests += 1
      for extent in status(client, position, Self.size - Int(position)).extents {
        if extent.state == 1 { dirty.append(position) }
        position += UInt64(extent.length)
      }
    }
    #expect(dirty == changes.map(\.offset) && requests == 2)
  }

  @Test func `Each selected context has its own chunk`() {
    let client = ready(
      [Self.range(4, 4)],
      contexts: ["sluice:changed:two", "base:allocation", "qemu:dirty-bitmap:one"])
    client.harness.disk.mark(blocks: 0..<128, isHole: false)
    let size = 256 * 4096
    let reply = status(client, 0, size)
    #expect(reply.isDone && reply.error == 0)
    #expect(
      reply.contexts == [
        1: extents((size, 0)), 2: extents((size / 2, 0), (size / 2, 3)),
        3: extents((4 * 4096, 0), (4 * 4096, 1), (size - 8 * 4096, 0)),
      ])
  }

  @Test func `Many requests at once are answered, each for its own range`() {
    let client = ready(
      [Self.range(7, 1)], contexts: ["base:allocation", "sluice:changed:one", "sluice:changed:two"])
    client.harness.isControlHeld = true
    client.harness.disk.isHeld = true
    let cookies = (0..<200).map {
      client.post(NBD.Command.blockStatus, offset: UInt64($0) * 4096, length: 4096)
    }
    client.harness.isControlHeld = false
    client.harness.disk.isHeld = false
    for (block, cookie) in cookies.enumerated() {
      let reply = client.reply(cookie)
      #expect(reply.contexts[2] == extents((4096, block == 7 ? 1 : 0)))
      #expect(reply.contexts.count == 3 && reply.isDone)
    }
    #expect(client.harness.provider.inUse == 0)
  }

  @Test func `A snapshot that is gone is an error of the request only`() {
    let client = ready(
      [Self.range(7, 1)], contexts: ["base:allocation", "sluice:changed:one"])
    client.harness.catalog.disks[0].snapshots.removeFirst()
    #expect(status(client).error == NBD.Error.invalid)
    client.harness.catalog.failure = .ioError("the map can't be read")
    #expect(status(client).error == NBD.Error.inputOutput)
    #expect(client.read(4096, at: 0).error == 0)
    #expect(client.harness.provider.inUse == 0)
  }

  @Test func `A pool that stops closes the connection of who asks for changes`() {
    let client = ready([], contexts: ["sluice:changed:one"])
    client.harness.catalog.failure = .stopping
    _ = status(client)
    #expect(client.harness.isClosed)
    client.harness.run()
    #expect(client.harness.provider.inUse == 0)
    #expect(client.harness.session.canBeDestroyed)
  }

  @Test func `A reply without any range says that all has changed`() {
    let client = ready([], contexts: ["sluice:changed:one"])
    client.harness.catalog.nextWithoutChanges = 0
    #expect(status(client, 4096, 8192).extents == extents((8192, 1)))
  }

  @Test(arguments: [true, false])
  func `A client that goes while its changes are asked for leaves nothing behind`(
    isTaken: Bool
  ) {
    let client = ready([], contexts: ["base:allocation", "sluice:changed:one"])
    client.harness.isControlHeld = true
    let bytes = Message.request(NBD.Command.blockStatus, length: 4096, cookie: 1)
    if isTaken {
      client.harness.send(bytes)
      client.harness.send(bytes)
    } else {
      client.harness.enqueue(bytes)
      while client.harness.unread > 0 { _ = client.harness.turn() }
    }
    client.harness.close()
    client.harness.isControlHeld = false
    client.harness.run()
    #expect(client.harness.session.canBeDestroyed && client.harness.provider.inUse == 0)
    #expect(client.harness.catalog.openHandles.isEmpty)
  }

  @Test func `What was asked before the end of the stream is answered`() {
    let client = ready([Self.range(0, 1)], contexts: ["base:allocation", "sluice:changed:one"])
    client.harness.isControlHeld = true
    let cookie = client.post(NBD.Command.blockStatus, length: 8192)
    client.harness.endInput()
    client.harness.isControlHeld = false
    #expect(client.reply(cookie).contexts[2] == extents((4096, 1), (4096, 0)))
    #expect(client.harness.isClosed && client.harness.session.canBeDestroyed)
  }
}
