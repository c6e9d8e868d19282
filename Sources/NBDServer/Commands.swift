import Core
import Glibc

// Input of the transmission phase: from bytes in the staging buffer to requests.

extension NBDSession {
  /// A write's piece of at most this many bytes gets its memory when its payload is in the staging
  /// buffer as a whole; a longer one gets it at once and receives straight into it.
  static let stagedPiece: UInt32 = 16 << 10

  /// Parses what was received, until it needs more or has to wait.
  func parse() {
    stall = .none
    while phase < .draining, takeMessage() {}
    if inputEnded, stall == .none { beginDraining() }
  }

  /// Takes the next message or a part of its payload; false when there is nothing to go on with.
  private func takeMessage() -> Bool {
    switch phase {
    case .clientFlags: return takeClientFlags()
    case .options: return takeOption()
    default: break
    }
    if current == noIndex { return takeCommand() }
    switch requests[Int(current)].command {
    case NBD.Command.write: return takePayload()
    case NBD.Command.blockStatus: return makeStatusPieces()
    default: return makePieces()
    }
  }

  private func takeCommand() -> Bool {
    guard stagingTail - stagingHead >= NBD.requestBytes else { return false }
    let header = UnsafeRawPointer(staging + stagingHead)
    guard header.big(0, as: UInt32.self) == NBD.requestMagic else {
      breakConnection()
      return false
    }
    guard freeRequests.count > 0, freePieces.count > 0 else {
      stall = .own
      return false
    }
    stagingHead += NBD.requestBytes
    var request = Request()
    request.flags = header.big(4, as: UInt16.self)
    request.command = header.big(6, as: UInt16.self)
    request.cookie = header.big(8, as: UInt64.self)
    request.offset = header.big(16, as: UInt64.self)
    request.length = header.big(24, as: UInt32.self)
    if request.command == NBD.Command.disconnect {
      beginDraining()
      return false
    }
    request.error = error(of: request)
    if request.command == NBD.Command.write, request.length > NBD.longestSkippedPayload {
      breakConnection()
      return false
    }
    start(request)
    return true
  }

  /// What is wrong with a request, as an NBD error value.
  private func error(of request: Request) -> UInt32 {
    let isChange: Bool
    var allowed = NBD.CommandFlag.fua
    switch request.command {
    case NBD.Command.read:
      isChange = false
      if usesStructuredReplies { allowed |= NBD.CommandFlag.df }
    case NBD.Command.write, NBD.Command.trim:
      isChange = true
    case NBD.Command.writeZeroes:
      isChange = true
      allowed |= NBD.CommandFlag.noHole | NBD.CommandFlag.fastZero
    case NBD.Command.cache:
      isChange = false
    case NBD.Command.flush:
      isChange = false
      guard request.offset == 0, request.length == 0 else { return NBD.Error.invalid }
    case NBD.Command.blockStatus:
      isChange = false
      allowed |= NBD.CommandFlag.reqOne
      guard !contexts.isEmpty, request.length > 0 else { return NBD.Error.invalid }
    default: return NBD.Error.invalid
    }
    if request.flags & ~allowed != 0 { return NBD.Error.invalid }
    if isChange, isReadOnly { return NBD.Error.notPermitted }
    return rangeError(of: request)
  }

  private func rangeError(of request: Request) -> UInt32 {
    let command = request.command
    let length = UInt64(request.length)
    if request.offset > exportSize || length > exportSize - request.offset {
      return command == NBD.Command.write || command == NBD.Command.writeZeroes
        ? NBD.Error.noSpace : NBD.Error.invalid
    }
    if command == NBD.Command.write, request.length > NBD.maximumPayload {
      return NBD.Error.invalid
    }
    if command == NBD.Command.read {
      if request.length > NBD.maximumPayload {
        return usesStructuredReplies ? NBD.Error.overflow : NBD.Error.invalid
      }
      // One chunk is one piece.
      if request.flags & NBD.CommandFlag.df != 0, request.length > UInt32(maximumPiece) {
        return NBD.Error.overflow
      }
    }
    return NBD.Error.none
  }

  private func start(_ request: Request) {
    let index = freeRequests.pop()
    invariant(index != noIndex, "a request was taken without a slot")
    requests[Int(index)] = request
    let command = request.command
    if command == NBD.Command.write {
      current = index
      remaining = request.length
    } else if request.error != 0 || command == NBD.Command.cache
      || (request.length == 0 && command != NBD.Command.flush)
    {
      requests[Int(index)].isIssued = true
      settle(index)
    } else if command == NBD.Command.read || command == NBD.Command.blockStatus {
      current = index
      remaining = request.length
    } else {
      let piece = newPiece(of: index, offset: request.offset, length: request.length, memory: nil)
      requests[Int(index)].isIssued = true
      queue(piece)
    }
  }

  /// Goes on with the payload of `current`, a write.
  private func takePayload() -> Bool {
    while requests[Int(current)].error == 0 {
      if filling == noIndex {
        if remaining == 0 { return currentIsIssued() }
        let length = requests[Int(current)].pieceLength(remaining: remaining)
        if length <= Self.stagedPiece, stagingTail - stagingHead < Int(length) { return false }
        filling = makePiece(length: length)
        if filling == noIndex { return false }
        filled = 0
      }
      let length = Int(pieces[Int(filling)].length)
      let count = min(length - filled, stagingTail - stagingHead)
      if count > 0 {
        memcpy(pieces[Int(filling)].payload + filled, staging + stagingHead, count)
        stagingHead += count
        filled += count
      }
      if filled < length { return false }
      queue(filling)
      filling = noIndex
    }
    return skipPayload()
  }

  /// Drops what is left of the payload of `current`, a write that failed: the reply follows it.
  private func skipPayload() -> Bool {
    // At the server's end it may be that more of it is being received into the piece.
    if receiveTarget == .piece { return false }
    if filling != noIndex {
      // What was not received yet of the piece is to be skipped as well.
      remaining += pieces[Int(filling)].length - UInt32(filled)
      freeFilling()
    }
    let count = min(Int(remaining), stagingTail - stagingHead)
    stagingHead += count
    remaining -= UInt32(count)
    return remaining == 0 ? currentIsIssued() : false
  }

  /// Makes the pieces of `current`, a read.
  private func makePieces() -> Bool {
    while remaining > 0, requests[Int(current)].error == 0 {
      let piece = makePiece(length: requests[Int(current)].pieceLength(remaining: remaining))
      if piece == noIndex { return false }
      if !usesStructuredReplies { appendOrdered(piece) }
      queue(piece)
    }
    return currentIsIssued()
  }

  /// Makes the pieces of `current`, a status request: one for each context, and each for all of
  /// the range.
  private func makeStatusPieces() -> Bool {
    while currentContext < contexts.count, requests[Int(current)].error == 0 {
      remaining = requests[Int(current)].length
      let piece = makePiece(length: remaining)
      if piece == noIndex { return false }
      pieces[Int(piece)].context = UInt8(currentContext)
      currentContext += 1
      if contexts[currentContext - 1].since == nil { queue(piece) } else { queueChanges(piece) }
    }
    return currentIsIssued()
  }

  /// All pieces of `current` are made; true, so that the parser goes on.
  private func currentIsIssued() -> Bool {
    let request = current
    endCurrent()
    settle(request)
    return true
  }

  func endCurrent() {
    requests[Int(current)].isIssued = true
    current = noIndex
    currentContext = 0
    remaining = 0
  }
}
