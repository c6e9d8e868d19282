import Core

// Output of the transmission phase: from completed pieces to messages.
//
// With structured replies each piece of a read is a chunk of its own, sent when it completes. A
// simple read reply is one header and the whole data, so its pieces are sent in order, and other
// replies wait until it is through (`openRead`, `waitingReplies`).

extension NBDSession {
  /// Replies to a request of which no piece is left in work; does nothing before.
  func settle(_ index: UInt16) {
    guard requests[Int(index)].outstanding == 0, requests[Int(index)].isIssued else { return }
    if requests[Int(index)].isAbandoned { return freeRequests.push(index) }
    offer(index)
  }

  /// The reply to a request can be sent, or be begun: queues it now, or behind the open read.
  private func offer(_ index: UInt16) {
    if openRead == noIndex {
      beginReply(index)
    } else if !requests[Int(index)].isWaiting {
      requests[Int(index)].isWaiting = true
      waitingReplies.append(index)
    }
  }

  private func beginWaitingReplies() {
    while openRead == noIndex, !waitingReplies.isEmpty {
      let index = waitingReplies.popFirst()
      requests[Int(index)].isWaiting = false
      beginReply(index)
    }
  }

  private func beginReply(_ index: UInt16) {
    let request = requests[Int(index)]
    if request.error != 0 {
      // Offered for its first piece, and failed since: the last piece to come back offers it again.
      if request.outstanding == 0, request.isIssued { putError(index) }
    } else if request.firstPiece != noIndex {
      openRead = index
      sendOpenRead()
    } else if usesStructuredReplies, request.command == NBD.Command.read {
      putChunk(index, type: NBD.Chunk.none, bytes: 0)
    } else {
      putSimple(index)
    }
  }

  // MARK: Reads with structured replies

  /// A piece of a read is back: its data is a chunk, unless the read has failed.
  func chunkRead(_ index: UInt16) {
    let piece = pieces[Int(index)]
    let request = requests[Int(piece.request)]
    if request.error != 0 {
      freePiece(index)
      return settle(piece.request)
    }
    let isLast = request.outstanding == 0 && request.isIssued
    pieces[Int(index)].state = .done
    let header = output.append(
      headerBytes: NBD.chunkHeaderBytes + 8, payload: piece.payload, payloadBytes: piece.length,
      piece: index, request: isLast ? piece.request : noIndex)
    putChunkHeader(
      header, flags: isLast ? NBD.Chunk.done : 0, type: NBD.Chunk.offsetData,
      cookie: request.cookie, length: 8 + piece.length)
    header.putBig(piece.offset, at: NBD.chunkHeaderBytes)
  }

  // MARK: Reads with simple replies

  /// A piece of a read is back: it is sent after those before it.
  func orderedRead(_ index: UInt16) {
    let owner = pieces[Int(index)].request
    if requests[Int(owner)].error != 0 {
      if requests[Int(owner)].isOpen { return breakConnection(freeing: index) }
      freePiece(index)
      freeFinishedPieces(of: owner, except: index)
      return settle(owner)
    }
    pieces[Int(index)].state = .done
    if requests[Int(owner)].isOpen {
      sendOpenRead()
      beginWaitingReplies()
    } else if requests[Int(owner)].firstPiece == index {
      offer(owner)
    }
  }

  /// Queues the pieces of the open read that are next in order, the header before the first.
  private func sendOpenRead() {
    let owner = openRead
    while true {
      let index = requests[Int(owner)].firstPiece
      if index == noIndex || pieces[Int(index)].state != .done { return }
      let next = pieces[Int(index)].next
      requests[Int(owner)].firstPiece = next
      if next == noIndex { requests[Int(owner)].lastPiece = noIndex }
      let isLast = next == noIndex && requests[Int(owner)].isIssued
      let isFirst = !requests[Int(owner)].isOpen
      requests[Int(owner)].isOpen = true
      let header = output.append(
        headerBytes: isFirst ? NBD.simpleReplyBytes : 0, payload: pieces[Int(index)].payload,
        payloadBytes: pieces[Int(index)].length, piece: index, request: isLast ? owner : noIndex)
      if isFirst { putSimpleHeader(header, cookie: requests[Int(owner)].cookie, error: 0) }
      if isLast {
        openRead = noIndex
        return
      }
    }
  }

  /// The read has failed before its header was queued: what was read is of no use.
  private func freeFinishedPieces(of owner: UInt16, except freed: UInt16) {
    var index = requests[Int(owner)].firstPiece
    requests[Int(owner)].firstPiece = noIndex
    requests[Int(owner)].lastPiece = noIndex
    while index != noIndex {
      let next = pieces[Int(index)].next
      if index != freed, pieces[Int(index)].state == .done { freePiece(index) }
      index = next
    }
  }

  /// A part of a simple read reply is on its way and the rest can't be had: there is no way to
  /// say so but to close.
  private func breakConnection(freeing index: UInt16) {
    freePiece(index)
    breakConnection()
  }

  // MARK: Block status

  /// The extents of a status request are back: converts them in place, merging neighbours of one
  /// kind and cutting them off at the request's end.
  func statusRead(_ index: UInt16, count: Int) {
    let owner = pieces[Int(index)].request
    let request = requests[Int(owner)]
    guard request.error == 0, let memory = pieces[Int(index)].memory else {
      freePiece(index)
      return settle(owner)
    }
    let runs = convertExtents(
      memory, count: min(count, blockSize / MemoryLayout<ExtentStatus>.stride),
      length: UInt64(request.length), mostRuns: request.mostRuns)
    putStatus(index, runs: runs)
  }

  /// The `runs` descriptors in a piece's memory are the reply's chunk for one context.
  func putStatus(_ index: UInt16, runs: Int) {
    let piece = pieces[Int(index)]
    let request = requests[Int(piece.request)]
    let isLast = request.outstanding == 0 && request.isIssued
    pieces[Int(index)].state = .done
    let header = output.append(
      headerBytes: NBD.chunkHeaderBytes + 4, payload: piece.memory, payloadBytes: UInt32(8 * runs),
      piece: index, request: isLast ? piece.request : noIndex)
    putChunkHeader(
      header, flags: isLast ? NBD.Chunk.done : 0, type: NBD.Chunk.blockStatus,
      cookie: request.cookie, length: UInt32(4 + 8 * runs))
    header.putBig(UInt32(piece.context) + 1, at: NBD.chunkHeaderBytes)
  }

  /// Returns how many descriptors of 8 bytes were written over the `count` extents of 16 bytes;
  /// one at least: where the engine told nothing, "data" is always a right answer.
  private func convertExtents(
    _ memory: UnsafeMutableRawPointer, count: Int, length: UInt64, mostRuns: Int
  ) -> Int {
    var runs = RunWriter(memory: memory, most: mostRuns)
    var covered: UInt64 = 0
    var i = 0
    while covered < length, i < count {
      let extent = memory.load(fromByteOffset: 16 * i, as: ExtentStatus.self)
      i += 1
      if extent.length == 0 { continue }
      let part = min(extent.length, length - covered)
      guard runs.add(part, extent.isHole ? NBD.stateHoleAndZero : 0) else { break }
      covered += part
    }
    return runs.end(orAll: length, 0)
  }

  // MARK: Messages

  private func putSimple(_ index: UInt16) {
    let header = output.append(
      headerBytes: NBD.simpleReplyBytes, piece: noIndex, request: index)
    putSimpleHeader(
      header, cookie: requests[Int(index)].cookie, error: requests[Int(index)].error)
  }

  private func putError(_ index: UInt16) {
    if !usesStructuredReplies { return putSimple(index) }
    let header = putChunk(index, type: NBD.Chunk.error, bytes: 6)
    header.putBig(requests[Int(index)].error, at: NBD.chunkHeaderBytes)
    header.putBig(UInt16(0), at: NBD.chunkHeaderBytes + 4)
  }

  /// The only chunk of a reply, or its last, with `bytes` that the caller fills in.
  @discardableResult
  private func putChunk(_ index: UInt16, type: UInt16, bytes: Int) -> UnsafeMutableRawPointer {
    let header = output.append(
      headerBytes: NBD.chunkHeaderBytes + bytes, piece: noIndex, request: index)
    putChunkHeader(
      header, flags: NBD.Chunk.done, type: type, cookie: requests[Int(index)].cookie,
      length: UInt32(bytes))
    return header
  }

  @inline(__always)
  private func putSimpleHeader(_ header: UnsafeMutableRawPointer, cookie: UInt64, error: UInt32) {
    header.putBig(NBD.simpleReplyMagic, at: 0)
    header.putBig(error, at: 4)
    header.putBig(cookie, at: 8)
  }

  @inline(__always)
  private func putChunkHeader(
    _ header: UnsafeMutableRawPointer, flags: UInt16, type: UInt16, cookie: UInt64, length: UInt32
  ) {
    header.putBig(NBD.chunkMagic, at: 0)
    header.putBig(flags, at: 4)
    header.putBig(type, at: 6)
    header.putBig(cookie, at: 8)
    header.putBig(length, at: 16)
  }
}

extension Request {
  /// How many runs the reply to a status request may have for each context; what is in a piece's
  /// memory is not more.
  var mostRuns: Int { flags & NBD.CommandFlag.reqOne != 0 ? 1 : blockSize / 8 }
}

/// Writes the descriptors of a status reply, 4 bytes of length and 4 of state each; neighbours in
/// one state become one.
struct RunWriter {
  private let memory: UnsafeMutableRawPointer
  private let most: Int
  private var count = 0
  /// The last run, which is not written yet.
  private var length: UInt64 = 0
  private var state: UInt32 = 0

  init(memory: UnsafeMutableRawPointer, most: Int) {
    self.memory = memory
    self.most = most
  }

  /// False when it would be one run too many.
  mutating func add(_ part: UInt64, _ next: UInt32) -> Bool {
    if length > 0, next != state {
      if count + 1 == most { return false }
      put()
      length = 0
    }
    state = next
    length += part
    return true
  }

  /// Returns how many there are; one of `all` bytes where none was added.
  mutating func end(orAll all: UInt64, _ otherwise: UInt32) -> Int {
    if length == 0 { (length, state) = (all, otherwise) }
    put()
    return count
  }

  private mutating func put() {
    memory.putBig(UInt32(length), at: 8 * count)
    memory.putBig(state, at: 8 * count + 4)
    count += 1
  }
}
