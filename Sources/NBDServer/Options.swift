import Core

// Input of the handshake: from bytes in the staging buffer to options. Answers that need the
// engine go on in Exports.swift and Contexts.swift.

/// What the handshake has to remember.
struct Handshake {
  enum Awaiting: UInt8 {
    case nothing, open, show, list, context, contextList, infoClose, finalClose
    /// In the transmission phase: what changed, for a block status.
    case changes
  }

  struct Wants: OptionSet {
    let rawValue: UInt8
    static let name = Self(rawValue: 1)
    static let description = Self(rawValue: 2)
    static let blockSize = Self(rawValue: 4)
  }

  /// The control request that the driver has not taken yet.
  var request: ControlRequest?
  /// What the control request under way is for.
  var awaiting = Awaiting.nothing

  var omitsZeroes = false
  /// The option that is being answered, and the export and informations that it asked for.
  var option: UInt32 = 0
  var name = ""
  var wants: Wants = []
  var description: String?
  /// The metadata contexts that were selected last, and the export that they are for.
  var contexts: [MetadataContext] = []
  var contextExport = ""
  /// Bytes of an option that is too long that are still to be skipped.
  var skip: UInt32 = 0

  /// LIST: what the engine gave and was not written yet.
  var isListing = false
  var page: [DiskInfo] = []
  var pageIndex = 0
  var cursor: UInt64?

  /// LIST_META_CONTEXT and SET_META_CONTEXT: what was asked for and was not answered yet.
  var query = ContextQuery()
}

extension NBDSession {
  /// An option with more data is skipped and refused; the longest sensible one is a name and some
  /// queries of `NBD.maximumString` bytes.
  static let maximumOption: UInt32 = 16 << 10
  /// A longer one than this is not even skipped.
  static let longestSkippedOption: UInt32 = 1 << 20
  /// Room for any answer but a list: two strings, and headers.
  static let optionReplyRoom = 16 << 10

  func greet() {
    handshakeOutput.put(NBD.greetingMagic)
    handshakeOutput.put(NBD.optionMagic)
    handshakeOutput.put(NBD.HandshakeFlag.fixedNewstyle | NBD.HandshakeFlag.noZeroes)
  }

  func takeClientFlags() -> Bool {
    guard stagingTail - stagingHead >= 4 else { return false }
    let flags = UnsafeRawPointer(staging + stagingHead).big(0, as: UInt32.self)
    stagingHead += 4
    let known = NBD.HandshakeFlag.fixedNewstyle | NBD.HandshakeFlag.noZeroes
    guard flags & ~UInt32(known) == 0 else {
      breakConnection()
      return false
    }
    handshake.omitsZeroes = flags & UInt32(NBD.HandshakeFlag.noZeroes) != 0
    phase = .options
    return true
  }

  func takeOption() -> Bool {
    if handshake.skip > 0 { return skipOption() }
    guard handshakeOutput.room >= Self.optionReplyRoom else {
      stall = .output
      return false
    }
    let available = stagingTail - stagingHead
    guard available >= NBD.optionHeaderBytes else { return false }
    let header = UnsafeRawPointer(staging + stagingHead)
    let option = header.big(8, as: UInt32.self)
    let length = header.big(12, as: UInt32.self)
    let skips = length > Self.maximumOption
    guard header.big(0, as: UInt64.self) == NBD.optionMagic,
      !skips || (option != NBD.Option.exportName && length <= Self.longestSkippedOption)
    else {
      breakConnection()
      return false
    }
    guard skips || available >= NBD.optionHeaderBytes + Int(length) else { return false }
    stagingHead += NBD.optionHeaderBytes
    handshake.option = option
    if skips {
      handshake.skip = length
      return true
    }
    let data = UnsafeRawBufferPointer(start: staging + stagingHead, count: Int(length))
    stagingHead += Int(length)
    answer(option, OptionReader(data))
    return stall == .none
  }

  private func skipOption() -> Bool {
    let count = min(Int(handshake.skip), stagingTail - stagingHead)
    stagingHead += count
    handshake.skip -= UInt32(count)
    if handshake.skip > 0 { return false }
    refuse(NBD.Reply.tooBig, "the option has more data than the server takes")
    return true
  }

  private func answer(_ option: UInt32, _ data: OptionReader) {
    switch option {
    case NBD.Option.exportName: answerExportName(data)
    case NBD.Option.abort:
      acknowledge()
      beginDraining()
    case NBD.Option.list: answerList(data)
    case NBD.Option.info, NBD.Option.go: answerInfo(data)
    case NBD.Option.structuredReply:
      if data.remaining > 0 { return refuseData() }
      usesStructuredReplies = true
      acknowledge()
    case NBD.Option.listMetaContext, NBD.Option.setMetaContext:
      answerMetaContext(data, selects: option == NBD.Option.setMetaContext)
    case NBD.Option.startTLS:
      if data.remaining > 0 { return refuseData() }
      refuse(NBD.Reply.unsupported, "TLS is not supported; connect without it")
    default:
      refuse(NBD.Reply.unsupported, "the option is not supported")
    }
  }

  private func answerExportName(_ data: OptionReader) {
    var data = data
    guard data.remaining > 0, data.remaining <= NBD.maximumString,
      let bytes = data.take(data.remaining), let name = String(validating: bytes, as: UTF8.self)
    else { return breakConnection() }
    open(name, wants: [])
  }

  private func answerList(_ data: OptionReader) {
    if data.remaining > 0 { return refuseData() }
    handshake.isListing = true
    ask(.list(cursor: nil, limit: Self.listPage), for: .list)
  }

  private func answerInfo(_ data: OptionReader) {
    var data = data
    guard let bytes = data.string(), let count = data.number(UInt16.self),
      data.remaining == 2 * Int(count)
    else { return refuse(NBD.Reply.invalid, "the option's data is malformed") }
    var wants: Handshake.Wants = []
    while let info = data.number(UInt16.self) {
      switch info {
      case NBD.Info.name: wants.insert(.name)
      case NBD.Info.description: wants.insert(.description)
      case NBD.Info.blockSize: wants.insert(.blockSize)
      default: break
      }
    }
    guard let name = exportName(bytes) else { return }
    open(name, wants: wants)
  }

  /// The name of an export, or nil after it was refused: there is no default export.
  func exportName(_ bytes: UnsafeRawBufferPointer) -> String? {
    if bytes.isEmpty {
      refuse(NBD.Reply.unknown, "there is no default export; name a disk")
      return nil
    }
    guard let name = String(validating: bytes, as: UTF8.self) else {
      refuse(NBD.Reply.invalid, "the export's name is not UTF-8")
      return nil
    }
    return name
  }

  // MARK: Replies

  func putReply(_ type: UInt32, length: Int) {
    handshakeOutput.put(NBD.optionReplyMagic)
    handshakeOutput.put(handshake.option)
    handshakeOutput.put(type)
    handshakeOutput.put(UInt32(length))
  }

  func acknowledge() { putReply(NBD.Reply.ack, length: 0) }

  func refuse(_ type: UInt32, _ message: String) {
    let text = cut(message, 1024)
    putReply(type, length: text.count)
    handshakeOutput.put(text)
  }

  private func refuseData() { refuse(NBD.Reply.invalid, "the option takes no data") }

  /// The first `most` bytes of a text, or a few less: no character is cut through.
  func cut(_ text: String, _ most: Int) -> Substring.UTF8View {
    if text.utf8.count <= most { return text[...].utf8 }
    var end = text.utf8.index(text.startIndex, offsetBy: most)
    while end.samePosition(in: text.unicodeScalars) == nil { end = text.utf8.index(before: end) }
    return text[..<end].utf8
  }
}
