import Core
import NBDServer
import Testing

/// Conversations from a seed: valid ones, damaged ones, and garbage, in random pieces, against an
/// engine that answers in random order and fails at random. Whatever comes, the session does not
/// crash, keeps its memory limit, gives all memory back and closes its disk exactly once.
@Suite struct FuzzTests {
  private static let size = 1 << 20
  private static let half = size / 2
  private static let pattern = Array(MemoryDisk.pattern[0..<size])

  /// A client that speaks the protocol: the lower half of the disk is only read, and all writes to
  /// the upper half put there what the pattern has, so that no order of them matters.
  private struct Conversation {
    var bytes: [UInt8] = []
    var isStructured = false
    var reads: [(cookie: UInt64, offset: UInt64, length: Int)] = []
    var cookies = 0
    /// Where the headers of requests are.
    var headers: [Int] = []

    init(_ random: inout SeededRandom) {
      var flags = Message()
      flags.put(UInt32(random.below(4)))
      bytes += flags.bytes
      isStructured = random.oneIn(2)
      let hasContext = isStructured && random.oneIn(2)
      if random.oneIn(4) { bytes += Message.option(NBD.Option.list) }
      if random.oneIn(4) {
        bytes += Message.option(
          NBD.Option.info, Message.info("disk", [NBD.Info.description, NBD.Info.name]))
      }
      if isStructured { bytes += Message.option(NBD.Option.structuredReply) }
      if isStructured, random.oneIn(4) {
        bytes += Message.option(
          NBD.Option.listMetaContext, Message.context("disk", ["qemu:", "sluice:changed:a"]))
      }
      if hasContext {
        bytes += Message.option(
          NBD.Option.setMetaContext,
          Message.context(
            "disk", ["base:allocation", "sluice:changed:a", "qemu:dirty-bitmap:b", "base:other"]))
      }
      bytes += Message.option(NBD.Option.go, Message.info("disk", [NBD.Info.blockSize]))
      for _ in 0..<random.below(40) { add(&random, hasContext) }
      if random.oneIn(2) { bytes += Message.request(NBD.Command.disconnect, cookie: 0) }
    }

    private mutating func add(_ random: inout SeededRandom, _ hasContext: Bool) {
      cookies += 1
      let cookie = UInt64(cookies)
      headers.append(bytes.count)
      let most = random.oneIn(8) ? FuzzTests.half : random.oneIn(3) ? 40_000 : 4096
      let length = 1 + Int(random.below(UInt64(most)))
      let offset = Int(random.below(UInt64(FuzzTests.half - length + 1)))
      let upper = UInt64(offset + FuzzTests.half)
      let fua = random.oneIn(3) ? NBD.CommandFlag.fua : 0
      switch random.below(hasContext ? 9 : 8) {
      case 0...2:
        reads.append((cookie, UInt64(offset), length))
        bytes += Message.request(
          NBD.Command.read, offset: UInt64(offset), length: UInt32(length), cookie: cookie)
      case 3...5:
        bytes += Message.request(
          NBD.Command.write, offset: upper, length: UInt32(length), flags: fua, cookie: cookie,
          payload: Array(MemoryDisk.pattern[Int(upper)..<Int(upper) + length]))
      case 6: bytes += Message.request(NBD.Command.flush, cookie: cookie)
      case 7:
        bytes += Message.request(
          NBD.Command.cache, offset: upper, length: UInt32(length), cookie: cookie)
      default:
        bytes += Message.request(
          NBD.Command.blockStatus, offset: UInt64(offset), length: UInt32(length), cookie: cookie)
      }
    }
  }

  private func harness(_ random: inout SeededRandom) -> (Harness, limit: Int) {
    let limit = 2 * maximumPiece + Int(random.below(4)) * 100_000
    let harness = Harness(size: Self.size, memoryLimit: limit)
    harness.random = SeededRandom(seed: random.next())
    harness.disk.fillWithPattern()
    let changes = (0..<100).map {
      ChangedRange(offset: UInt64($0) * 8192, length: 4096, isZero: $0 % 3 == 0)
    }
    harness.catalog.disks[0].snapshots = [("a", changes), ("b", [])]
    harness.disk.slots = 1 + Int(random.below(200))
    if random.oneIn(3) { harness.provider.limit = maximumPiece + blockSize }
    return (harness, limit)
  }

  /// Turns the loop, with everything held and let go at random, for at most `turns` turns.
  private func turn(_ harness: Harness, _ random: inout SeededRandom, turns: Int) {
    for i in 0..<turns {
      if i % 16 == 0 {
        harness.disk.isHeld = random.oneIn(3)
        harness.isOutputHeld = random.oneIn(4)
        harness.isControlHeld = random.oneIn(4)
      }
      _ = harness.turn()
    }
    harness.disk.isHeld = false
    harness.isOutputHeld = false
    harness.isControlHeld = false
  }

  /// Ends the connection in one of the ways in which they end, and checks what is left.
  private func end(_ harness: Harness, _ random: inout SeededRandom, _ limit: Int, seed: UInt64) {
    switch random.below(4) {
    case 0: harness.close()
    case 1: harness.session.finish()
    default: harness.endInputLater()
    }
    harness.run()
    harness.close()
    harness.run()
    #expect(harness.session.canBeDestroyed, "seed \(seed)")
    #expect(harness.provider.inUse == 0 && harness.session.memoryInFlight == 0, "seed \(seed)")
    #expect(harness.provider.highest <= limit, "seed \(seed)")
    #expect(harness.catalog.openHandles.isEmpty, "seed \(seed)")
    #expect(harness.catalog.opens == harness.catalog.closes, "seed \(seed)")
  }

  @Test(arguments: 0..<4 as Range<UInt64>)
  func `A valid conversation is answered rightly, whatever its pieces and order`(part: UInt64) {
    for seed in part * 250..<(part + 1) * 250 {
      var random = SeededRandom(seed: seed)
      let (harness, limit) = harness(&random)
      let conversation = Conversation(&random)
      harness.enqueue(conversation.bytes)
      turn(harness, &random, turns: Int(random.below(400)))
      harness.endInputLater()
      harness.run()
      check(conversation, harness, seed: seed)
      end(harness, &random, limit, seed: seed)
    }
  }

  private func check(_ conversation: Conversation, _ harness: Harness, seed: UInt64) {
    let client = TestClient(harness)
    skipHandshake(client)
    for read in conversation.reads {
      client.note(read.cookie, isRead: true, offset: read.offset, length: read.length)
    }
    client.collect()
    #expect(client.unread == 0, "seed \(seed)")
    #expect(client.order.count == conversation.cookies, "seed \(seed)")
    let failed = client.replies.values.filter { !$0.isDone || $0.error != 0 }.count
    #expect(failed == 0, "seed \(seed)")
    let wrong = conversation.reads.filter { read in
      let data = client.replies[read.cookie]?.data(from: read.offset, length: read.length)
      return !isSame(data, Array(Self.pattern[Int(read.offset)..<Int(read.offset) + read.length]))
    }
    #expect(wrong.isEmpty, "seed \(seed)")
    let isKept = isSame(harness.disk.content, Self.pattern)
    #expect(isKept, "seed \(seed)")
  }

  private func skipHandshake(_ client: TestClient) {
    _ = client.take(18)
    while client.unread >= 20, client.peek(0, 8) == NBD.optionReplyMagic {
      _ = client.take(20 + Int(client.peek(16, 4)))
    }
  }

  @Test(arguments: 0..<4 as Range<UInt64>)
  func `A damaged conversation harms nobody`(part: UInt64) {
    for seed in part * 500..<(part + 1) * 500 {
      var random = SeededRandom(seed: 1_000_000 + seed)
      let (harness, limit) = harness(&random)
      let conversation = Conversation(&random)
      var bytes = conversation.bytes
      for header in conversation.headers where random.oneIn(8) {
        damageField(&bytes, header, &random)
      }
      for _ in 0..<random.below(4) { damage(&bytes, &random) }
      if random.oneIn(2) {
        harness.disk.failures = [(random.below(UInt64(Self.size)), .ioError)]
      }
      if random.oneIn(8) { harness.disk.stopping = true }
      harness.enqueue(bytes)
      turn(harness, &random, turns: Int(random.below(300)))
      end(harness, &random, limit, seed: seed)
    }
  }

  private func damage(_ bytes: inout [UInt8], _ random: inout SeededRandom) {
    if bytes.isEmpty { return }
    // Most messages are in the first part, and payload does not care.
    let reach = random.oneIn(2) ? bytes.count : min(bytes.count, 300)
    let at = Int(random.below(UInt64(reach)))
    switch random.below(5) {
    case 0: bytes[at] ^= UInt8(1 << random.below(8))
    case 1: bytes[at] = random.oneIn(2) ? 0xFF : UInt8(random.below(256))
    case 2: bytes.removeSubrange(at..<min(bytes.count, at + 1 + Int(random.below(40))))
    case 3: bytes.insert(contentsOf: (0...random.below(40)).map { _ in 0 }, at: at)
    default: bytes.removeSubrange(at...)
    }
  }

  /// Puts a field of a request far out.
  private func damageField(_ bytes: inout [UInt8], _ header: Int, _ random: inout SeededRandom) {
    if header + NBD.requestBytes > bytes.count { return }
    let (field, width) = [(4, 2), (6, 2), (16, 8), (24, 4)][Int(random.below(4))]
    for i in 0..<width {
      bytes[header + field + i] = random.oneIn(2) ? 0xFF : UInt8(random.below(256))
    }
  }

  @Test func `Garbage harms nobody`() {
    for seed in 0..<500 as Range<UInt64> {
      var random = SeededRandom(seed: 2_000_000 + seed)
      let (harness, limit) = harness(&random)
      var bytes: [UInt8] = []
      if random.oneIn(2) { bytes += [0, 0, 0, 3] }
      if random.oneIn(2) { bytes += Message.option(NBD.Option.go, Message.info("disk")) }
      for _ in 0..<random.below(3000) { bytes.append(UInt8(random.below(256))) }
      harness.enqueue(bytes)
      turn(harness, &random, turns: Int(random.below(100)))
      end(harness, &random, limit, seed: seed)
    }
  }
}
