import Core
import Glibc
import NBDServer
import Testing

/// `==`, which takes ten nanoseconds a byte in an unoptimised build.
func isSame(_ a: [UInt8]?, _ b: [UInt8]?) -> Bool {
  guard let a, let b, a.count == b.count else { return false }
  return a.withUnsafeBytes { x in
    b.withUnsafeBytes { y in a.isEmpty || memcmp(x.baseAddress!, y.baseAddress!, a.count) == 0 }
  }
}

/// Big-endian messages, as a client builds and reads them.
struct Message {
  var bytes: [UInt8] = []

  mutating func put(_ value: some FixedWidthInteger) {
    withUnsafeBytes(of: value.bigEndian) { bytes += $0 }
  }
  mutating func put(_ text: String) { bytes += Array(text.utf8) }

  static func option(_ option: UInt32, _ data: [UInt8] = [], length: UInt32? = nil) -> [UInt8] {
    var m = Message()
    m.put(NBD.optionMagic)
    m.put(option)
    m.put(length ?? UInt32(data.count))
    return m.bytes + data
  }

  static func info(_ name: String, _ infos: [UInt16] = []) -> [UInt8] {
    var m = Message()
    m.put(UInt32(name.utf8.count))
    m.put(name)
    m.put(UInt16(infos.count))
    for i in infos { m.put(i) }
    return m.bytes
  }

  static func context(_ name: String, _ queries: [String]) -> [UInt8] {
    var m = Message()
    m.put(UInt32(name.utf8.count))
    m.put(name)
    m.put(UInt32(queries.count))
    for q in queries {
      m.put(UInt32(q.utf8.count))
      m.put(q)
    }
    return m.bytes
  }

  static func request(
    _ command: UInt16, offset: UInt64 = 0, length: UInt32 = 0, flags: UInt16 = 0, cookie: UInt64,
    payload: [UInt8] = []
  ) -> [UInt8] {
    var m = Message()
    m.put(NBD.requestMagic)
    m.put(flags)
    m.put(command)
    m.put(cookie)
    m.put(offset)
    m.put(length)
    return m.bytes + payload
  }
}

struct OptionReply: Equatable {
  var option: UInt32
  var type: UInt32
  var data: [UInt8]
}

/// What a client has got in reply to one request.
struct Reply: Equatable {
  var error: UInt32 = 0
  var chunks: [Chunk] = []
  /// Of block status, by the id of their context.
  var contexts: [UInt32: [Extent]] = [:]
  /// Those of the only context.
  var extents: [Extent] { contexts.count == 1 ? contexts.values.first! : [] }
  var isStructured = false
  var isDone = false

  struct Chunk: Equatable {
    var offset: UInt64
    var data: [UInt8]
  }
  struct Extent: Equatable {
    var length: UInt32
    var state: UInt32
  }

  /// The data of a read, put together from its chunks.
  func data(from offset: UInt64, length: Int) -> [UInt8]? {
    let sorted = chunks.sorted { $0.offset < $1.offset }
    var result: [UInt8] = []
    for c in sorted {
      if c.offset != offset + UInt64(result.count) { return nil }
      result += c.data
    }
    return result.count == length ? result : nil
  }
}

/// A client of the protocol that talks to a session in a `Harness`.
final class TestClient {
  let harness: Harness
  private(set) var nextCookie: UInt64 = 1
  /// Cookie to the offset and length of reads, which simple replies don't tell.
  private var reads: [UInt64: (offset: UInt64, length: Int)] = [:]
  private(set) var replies: [UInt64: Reply] = [:]
  /// Cookies in the order in which their replies were complete.
  private(set) var order: [UInt64] = []
  private(set) var size: UInt64 = 0
  private(set) var flags: UInt16 = 0
  private var position = 0

  init(_ harness: Harness) { self.harness = harness }

  convenience init(
    size: Int = 4 << 20, readOnly: Bool = false, structured: Bool = true, context: Bool = false
  ) {
    self.init(Harness(size: size, readOnly: readOnly))
    negotiate(structured: structured, context: context)
  }

  // MARK: Reading

  var unread: Int { harness.output.count - position }

  func take(_ count: Int) -> [UInt8] {
    guard count <= unread else { return [] }
    defer {
      position += count
      if position > 1 << 20 {
        harness.output.removeFirst(position)
        position = 0
      }
    }
    return Array(harness.output[position..<position + count])
  }

  func number<T: FixedWidthInteger>(_ type: T.Type = T.self) -> T {
    take(MemoryLayout<T>.size).reduce(0) { $0 << 8 | T($1) }
  }

  func peek(_ at: Int, _ count: Int) -> UInt64 {
    harness.output[(position + at)..<(position + at + count)].reduce(0) { $0 << 8 | UInt64($1) }
  }

  // MARK: Handshake

  /// Reads the greeting and sends the client flags.
  func greet(flags: UInt32 = 3) {
    harness.run()
    #expect(number(UInt64.self) == NBD.greetingMagic)
    #expect(number(UInt64.self) == NBD.optionMagic)
    #expect(number(UInt16.self) == 3)
    var m = Message()
    m.put(flags)
    harness.send(m.bytes)
  }

  /// The replies that have come to options.
  func optionReplies() -> [OptionReply] {
    var result: [OptionReply] = []
    while unread >= NBD.optionReplyHeaderBytes {
      #expect(number(UInt64.self) == NBD.optionReplyMagic)
      let option = number(UInt32.self)
      let type = number(UInt32.self)
      let count = Int(number(UInt32.self))
      result.append(OptionReply(option: option, type: type, data: take(count)))
    }
    return result
  }

  func option(_ option: UInt32, _ data: [UInt8] = [], length: UInt32? = nil) -> [OptionReply] {
    harness.send(Message.option(option, data, length: length))
    return optionReplies()
  }

  func negotiate(structured: Bool = true, context: Bool = false, name: String = "disk") {
    greet()
    if structured { #expect(option(NBD.Option.structuredReply).last?.type == NBD.Reply.ack) }
    if context {
      let replies = option(
        NBD.Option.setMetaContext, Message.context(name, [NBD.allocationContext]))
      #expect(replies.map(\.type) == [NBD.Reply.metaContext, NBD.Reply.ack])
    }
    let replies = option(NBD.Option.go, Message.info(name))
    #expect(replies.last?.type == NBD.Reply.ack)
    if let export = replies.first, export.data.count == 12 {
      size = export.data[2..<10].reduce(0) { $0 << 8 | UInt64($1) }
      flags = export.data[10..<12].reduce(0) { $0 << 8 | UInt16($1) }
    }
  }

  // MARK: Transmission

  /// Sends a request and returns its cookie.
  @discardableResult
  func post(
    _ command: UInt16, offset: UInt64 = 0, length: Int = 0, flags: UInt16 = 0,
    payload: [UInt8] = []
  ) -> UInt64 {
    let cookie = nextCookie
    nextCookie += 1
    if command == NBD.Command.read { reads[cookie] = (offset, length) }
    harness.send(
      Message.request(
        command, offset: offset, length: UInt32(length), flags: flags, cookie: cookie,
        payload: payload))
    return cookie
  }

  /// Notes that a request was sent by other means than `post`.
  func note(_ cookie: UInt64, isRead: Bool, offset: UInt64, length: Int) {
    if isRead { reads[cookie] = (offset, length) }
  }

  /// The reply to `cookie` as far as it has come.
  func reply(_ cookie: UInt64) -> Reply {
    harness.run()
    collect()
    return replies[cookie] ?? Reply()
  }

  func call(
    _ command: UInt16, offset: UInt64 = 0, length: Int = 0, flags: UInt16 = 0,
    payload: [UInt8] = []
  ) -> Reply {
    reply(post(command, offset: offset, length: length, flags: flags, payload: payload))
  }

  func write(_ data: [UInt8], at offset: UInt64, flags: UInt16 = 0) -> Reply {
    call(NBD.Command.write, offset: offset, length: data.count, flags: flags, payload: data)
  }

  func read(_ length: Int, at offset: UInt64, flags: UInt16 = 0) -> Reply {
    call(NBD.Command.read, offset: offset, length: length, flags: flags)
  }

  /// Takes in all whole messages that have come.
  func collect() {
    while unread >= 16 {
      let magic = UInt32(peek(0, 4))
      if magic == NBD.simpleReplyMagic {
        guard collectSimple() else { return }
      } else if magic == NBD.chunkMagic {
        guard collectChunk() else { return }
      } else {
        Issue.record("the server sent a message with magic \(magic)")
        return
      }
    }
  }

  private func collectSimple() -> Bool {
    let error = UInt32(peek(4, 4))
    let cookie = peek(8, 8)
    let read = error == 0 ? reads[cookie] : nil
    guard unread >= 16 + (read?.length ?? 0) else { return false }
    _ = take(16)
    #expect(replies[cookie]?.isDone != true, "a second reply to \(cookie)")
    var reply = Reply(error: error, isDone: true)
    if let read { reply.chunks = [.init(offset: read.offset, data: take(read.length))] }
    replies[cookie] = reply
    order.append(cookie)
    return true
  }

  private func collectChunk() -> Bool {
    guard unread >= 20 else { return false }
    let count = Int(peek(16, 4))
    guard unread >= 20 + count else { return false }
    _ = take(4)
    let flags = number(UInt16.self)
    let type = number(UInt16.self)
    let cookie = number(UInt64.self)
    _ = take(4)
    var reply = replies[cookie] ?? Reply()
    #expect(!reply.isDone, "a chunk after the end of the reply to \(cookie)")
    reply.isStructured = true
    switch type {
    case NBD.Chunk.none: #expect(count == 0 && flags == NBD.Chunk.done)
    case NBD.Chunk.offsetData:
      #expect(count > 8)
      let offset = number(UInt64.self)
      reply.chunks.append(.init(offset: offset, data: take(count - 8)))
    case NBD.Chunk.blockStatus:
      #expect(count >= 12 && count % 8 == 4)
      let context = number(UInt32.self)
      #expect(reply.contexts[context] == nil, "two chunks for context \(context)")
      var extents: [Reply.Extent] = []
      for _ in 0..<(count - 4) / 8 {
        extents.append(.init(length: number(UInt32.self), state: number(UInt32.self)))
      }
      reply.contexts[context] = extents
    case NBD.Chunk.error:
      reply.error = number(UInt32.self)
      _ = take(Int(number(UInt16.self)))
    default: Issue.record("chunk of type \(type)")
    }
    if flags & NBD.Chunk.done != 0 {
      reply.isDone = true
      order.append(cookie)
    }
    replies[cookie] = reply
    return true
  }
}
