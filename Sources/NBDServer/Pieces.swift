import Core

// Pieces: their memory, their way to the engine and back.

extension NBDSession {
  /// Makes the next piece of `current`, with memory, and takes it off `remaining`; `noIndex`, and
  /// `stall` set, when there is no slot or memory for it now.
  func makePiece(length: UInt32) -> UInt16 {
    let request = requests[Int(current)]
    let offset = request.offset + UInt64(request.length - remaining)
    guard freePieces.count > 0, let (memory, bytes) = takeMemory(for: request, offset, length)
    else {
      if stall == .none { stall = .own }
      return noIndex
    }
    let piece = newPiece(
      of: current, offset: offset, length: length, memory: memory, allocated: bytes)
    remaining -= length
    return piece
  }

  /// Memory for a piece, within the session's limit; nil, and `stall` set, when there is none now.
  private func takeMemory(
    for request: Request, _ offset: UInt64, _ length: UInt32
  ) -> (UnsafeMutableRawPointer, Int)? {
    let bytes: Int
    if request.command == NBD.Command.blockStatus {
      bytes = blockSize
    } else if !usesStructuredReplies, request.command == NBD.Command.read,
      request.length > UInt32(maximumPiece)
    {
      // Reused by the pieces that follow; they never span more blocks than this.
      bytes = maximumPiece
    } else {
      bytes = roundUp(Int(offset % UInt64(blockSize)) + Int(length), to: blockSize)
    }
    if heldMemory + bytes > memoryLimit {
      stall = .own
      return nil
    }
    guard let memory = provider.allocate(bytes: bytes) else {
      stall = .provider
      return nil
    }
    heldMemory += bytes
    return (memory, bytes)
  }

  /// A piece in a free slot; the caller knows that there is one.
  func newPiece(
    of request: UInt16, offset: UInt64, length: UInt32, memory: UnsafeMutableRawPointer?,
    allocated: Int = 0
  ) -> UInt16 {
    let index = freePieces.pop()
    invariant(index != noIndex, "a piece was made without a slot")
    var piece = Piece()
    piece.offset = offset
    piece.length = length
    piece.memory = memory
    piece.allocated = UInt32(allocated)
    piece.request = request
    piece.state = .filling
    pieces[Int(index)] = piece
    requests[Int(request)].outstanding += 1
    return index
  }

  func queue(_ piece: UInt16) {
    pieces[Int(piece)].state = .queued
    queuedPieces.append(piece)
  }

  /// Gives back a piece's slot and memory.
  func freePiece(_ index: UInt16) {
    let piece = pieces[Int(index)]
    invariant(piece.state != .free, "piece \(index) was freed twice")
    if let memory = piece.memory {
      heldMemory -= Int(piece.allocated)
      provider.free(memory, bytes: Int(piece.allocated))
    }
    pieces[Int(index)].state = .free
    pieces[Int(index)].memory = nil
    freePieces.push(index)
  }

  /// Frees the piece whose payload was coming in; no receive into it is under way.
  func freeFilling() {
    if filling == noIndex { return }
    let request = pieces[Int(filling)].request
    freePiece(filling)
    filling = noIndex
    filled = 0
    requests[Int(request)].outstanding -= 1
    if phase < .broken, request != current { settle(request) }
  }

  /// The piece as the engine gets it.
  func blockRequest(_ index: UInt16) -> BlockRequest {
    let piece = pieces[Int(index)]
    let request = requests[Int(piece.request)]
    let operation: BlockOperation
    var flags: UInt8 = 0
    switch request.command {
    case NBD.Command.read: operation = .read
    case NBD.Command.write: operation = .write
    case NBD.Command.flush: operation = .flush
    case NBD.Command.trim: operation = .trim
    case NBD.Command.writeZeroes: operation = .zero
    case NBD.Command.blockStatus: operation = .status
    default: invariantBroken("command \(request.command) has no block operation")
    }
    // Clients are known to set FUA on commands that write nothing, where it means nothing.
    if request.flags & NBD.CommandFlag.fua != 0,
      operation == .write || operation == .trim || operation == .zero
    {
      flags |= BlockFlags.forceUnitAccess.rawValue
    }
    if request.flags & NBD.CommandFlag.noHole != 0 { flags |= BlockFlags.keepAllocated.rawValue }
    guard let handle else { invariantBroken("a block request without an open disk") }
    return BlockRequest(
      operation: operation, flags: BlockFlags(rawValue: flags), disk: handle, offset: piece.offset,
      length: UInt64(piece.length), memory: piece.memory, token: tokenBase | UInt64(index))
  }

  /// A piece came back from the engine.
  func pieceCompleted(_ index: UInt16, _ completion: BlockCompletion) {
    let request = pieces[Int(index)].request
    requests[Int(request)].outstanding -= 1
    if completion.status != .ok, requests[Int(request)].error == 0 {
      requests[Int(request)].error = completion.status.wireError
    }
    switch requests[Int(request)].command {
    case NBD.Command.read where usesStructuredReplies: chunkRead(index)
    case NBD.Command.read: orderedRead(index)
    case NBD.Command.blockStatus: statusRead(index, count: Int(completion.count))
    default:
      freePiece(index)
      settle(request)
    }
    endVainStall(of: request)
  }

  /// Who waits for memory to go on with a request that has failed waits no longer.
  func endVainStall(of request: UInt16) {
    if request == current, requests[Int(request)].error != 0, stall == .provider { stall = .own }
  }

  /// A reply, or a part of one, has left: gives back what it held.
  func itemSent(_ item: OutputItem) {
    if item.piece != noIndex, !reuse(item.piece) { freePiece(item.piece) }
    if item.request != noIndex { freeRequests.push(item.request) }
  }

  /// Makes the next piece of a simple read reply from the slot and memory of one that was sent.
  private func reuse(_ index: UInt16) -> Bool {
    let request = pieces[Int(index)].request
    guard request == current, !usesStructuredReplies,
      requests[Int(request)].command == NBD.Command.read, requests[Int(request)].error == 0,
      remaining > 0
    else { return false }
    let read = requests[Int(request)]
    let length = read.pieceLength(remaining: remaining)
    pieces[Int(index)].offset = read.offset + UInt64(read.length - remaining)
    pieces[Int(index)].length = length
    remaining -= length
    requests[Int(request)].outstanding += 1
    appendOrdered(index)
    queue(index)
    if remaining == 0 {
      endCurrent()
      // Not the provider's turn any more: the parser goes on at once.
      stall = .own
    }
    return true
  }

  /// Adds a piece to the end of the simple read reply that `current` gets.
  func appendOrdered(_ index: UInt16) {
    pieces[Int(index)].next = noIndex
    let last = requests[Int(current)].lastPiece
    if last == noIndex {
      requests[Int(current)].firstPiece = index
    } else {
      pieces[Int(last)].next = index
    }
    requests[Int(current)].lastPiece = index
  }
}
