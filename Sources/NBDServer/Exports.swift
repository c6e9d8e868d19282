import Core

// What the handshake asks of the engine: opening exports and listing them. One control request is
// under way at a time, and options wait for it (`Stall.control`).

extension NBDSession {
  /// Disks asked for at a time by LIST.
  static let listPage = 256
  /// A list shows this much of a disk's comment.
  private static let listedComment = 512

  /// Hands a control request to the driver.
  func ask(_ request: ControlRequest, for purpose: Handshake.Awaiting) {
    invariant(handshake.awaiting == .nothing, "two control requests at a time")
    handshake.request = request
    handshake.awaiting = purpose
    stall = .control
  }

  func open(_ name: String, wants: Handshake.Wants) {
    handshake.name = name
    handshake.wants = wants
    handshake.description = nil
    ask(.open(name: name), for: .open)
  }

  func takeControlReply(_ reply: ControlReply) {
    let purpose = handshake.awaiting
    invariant(
      purpose != .nothing && handshake.request == nil, "a control reply that nobody asked for")
    handshake.awaiting = .nothing
    if purpose == .changes { return changesReplied(reply) }
    if phase >= .draining {
      // The peer went while its disk was being opened.
      if case .opened(let opened, _, _) = reply { handle = opened }
      return
    }
    switch purpose {
    case .open: opened(reply)
    case .show:
      if case .disk(let info) = reply { handshake.description = info.comment }
      putExport()
    case .list: listed(reply)
    case .context: contextChecked(reply)
    case .contextList: snapshotsListed(reply)
    case .infoClose: parse()
    case .finalClose, .changes, .nothing: break
    }
  }

  /// The connection is gone: what the driver has not taken yet is not asked any more, except to
  /// close a disk.
  func forgetHandshake() {
    guard handshake.request != nil else { return }
    switch handshake.awaiting {
    case .open, .show, .list, .context, .contextList:
      handshake.request = nil
      handshake.awaiting = .nothing
    case .changes:
      handshake.request = nil
      handshake.awaiting = .nothing
      freeAsked()
    case .infoClose, .finalClose, .nothing: break
    }
  }

  /// Bytes of the handshake were sent: goes on with what waited for room.
  func handshakeSent() {
    if handshakeOutput.pending == 0, phase >= .transmission {
      handshakeOutput.release()
    } else if handshake.isListing, handshake.awaiting == .nothing {
      putList()
    } else if handshake.query.isListing, handshake.awaiting == .nothing {
      putSnapshotContexts()
    } else if stall == .output {
      parse()
    }
  }

  // MARK: EXPORT_NAME, INFO, GO

  private func opened(_ reply: ControlReply) {
    guard case .opened(let opened, let size, let readOnly) = reply else {
      return notOpened(reply)
    }
    handle = opened
    exportSize = size
    isReadOnly = readOnly
    if handshake.wants.contains(.description) {
      ask(.show(name: handshake.name), for: .show)
    } else {
      putExport()
    }
  }

  private func notOpened(_ reply: ControlReply) {
    // EXPORT_NAME has no way to say why.
    if handshake.option == NBD.Option.exportName { return breakConnection() }
    if case .failed(let error) = reply {
      refuse(error.optionReply, error.description)
    } else {
      refuse(NBD.Reply.policy, "the disk could not be opened; see `sluice status`")
    }
    parse()
  }

  /// The export is open: tells about it, and begins transmission or closes it again.
  private func putExport() {
    if handshake.option == NBD.Option.exportName {
      handshakeOutput.put(exportSize)
      handshakeOutput.put(transmissionFlags)
      if !handshake.omitsZeroes { handshakeOutput.putZeros(124) }
      return beginTransmission()
    }
    putInfos()
    acknowledge()
    if handshake.option == NBD.Option.go { return beginTransmission() }
    guard let open = handle else { invariantBroken("an export was shown that is not open") }
    handle = nil
    ask(.close(open), for: .infoClose)
  }

  private func putInfos() {
    putReply(NBD.Reply.info, length: 12)
    handshakeOutput.put(NBD.Info.export)
    handshakeOutput.put(exportSize)
    handshakeOutput.put(transmissionFlags)
    if handshake.wants.contains(.name) {
      putInfo(NBD.Info.name, cut(handshake.name, NBD.maximumString))
    }
    if let description = handshake.description, !description.isEmpty {
      putInfo(NBD.Info.description, cut(description, NBD.maximumString))
    }
    if handshake.wants.contains(.blockSize) {
      putReply(NBD.Reply.info, length: 14)
      handshakeOutput.put(NBD.Info.blockSize)
      handshakeOutput.put(NBD.minimumBlock)
      handshakeOutput.put(NBD.preferredBlock)
      handshakeOutput.put(NBD.maximumPayload)
    }
  }

  private func putInfo(_ info: UInt16, _ text: Substring.UTF8View) {
    putReply(NBD.Reply.info, length: 2 + text.count)
    handshakeOutput.put(info)
    handshakeOutput.put(text)
  }

  private var transmissionFlags: UInt16 {
    typealias Flag = NBD.TransmissionFlag
    var flags = Flag.hasFlags | Flag.sendFlush | Flag.sendFUA | Flag.canMultiConn | Flag.sendCache
    flags |=
      isReadOnly ? Flag.readOnly : Flag.sendTrim | Flag.sendWriteZeroes | Flag.sendFastZero
    if usesStructuredReplies { flags |= Flag.sendDF }
    return flags
  }

  private func beginTransmission() {
    let isForThis = usesStructuredReplies && handshake.contextExport == handshake.name
    contexts = isForThis ? handshake.contexts : []
    phase = .transmission
    parse()
  }

  // MARK: LIST

  private func listed(_ reply: ControlReply) {
    switch reply {
    case .disks(let page, let next):
      handshake.page = page
      handshake.pageIndex = 0
      handshake.cursor = next
      putList()
    case .failed(let error):
      handshake.isListing = false
      refuse(error.optionReply, error.description)
      parse()
    default:
      handshake.isListing = false
      refuse(NBD.Reply.policy, "the disks could not be listed; see `sluice status`")
      parse()
    }
  }

  /// Writes as many entries as there is room for, then asks for more or ends the list.
  private func putList() {
    while handshake.pageIndex < handshake.page.count {
      guard handshakeOutput.room >= Self.optionReplyRoom else { return }
      putServer(handshake.page[handshake.pageIndex])
      handshake.pageIndex += 1
    }
    handshake.page = []
    handshake.pageIndex = 0
    if let cursor = handshake.cursor {
      handshake.cursor = nil
      return ask(.list(cursor: cursor, limit: Self.listPage), for: .list)
    }
    guard handshakeOutput.room >= Self.optionReplyRoom else { return }
    handshake.isListing = false
    acknowledge()
    parse()
  }

  private func putServer(_ disk: DiskInfo) {
    let name = disk.name[...].utf8
    guard name.count <= NBD.maximumString else { return }
    let comment = cut(disk.comment, Self.listedComment)
    putReply(NBD.Reply.server, length: 4 + name.count + comment.count)
    handshakeOutput.put(UInt32(name.count))
    handshakeOutput.put(name)
    handshakeOutput.put(comment)
  }
}
