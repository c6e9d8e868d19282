import Core

// Block status of a context that tells changes. The engine compares maps as a control request, so
// each piece asks for its own, and a session asks one after another (`queuedChanges`).

extension NBDSession {
  /// Ranges asked for at a time: with what lies between them they fill a piece's memory.
  private static let changePage = 256

  /// A piece of a status request is to tell what changed.
  func queueChanges(_ piece: UInt16) {
    pieces[Int(piece)].state = .queued
    queuedChanges.append(piece)
    askChanges()
  }

  /// Asks for the next piece's changes, unless a control request is under way.
  private func askChanges() {
    guard handshake.awaiting == .nothing, phase < .broken else { return }
    let index = queuedChanges.popFirst()
    if index == noIndex { return }
    let piece = pieces[Int(index)]
    guard let since = contexts[Int(piece.context)].since else {
      invariantBroken("a context without a snapshot asks for changes")
    }
    let limit = min(requests[Int(piece.request)].mostRuns, Self.changePage)
    pieces[Int(index)].state = .asked
    askedPiece = index
    handshake.request = .diff(
      since, to: ContextQuery(export: handshake.name).end, from: piece.offset, limit: limit)
    handshake.awaiting = .changes
  }

  func changesReplied(_ reply: ControlReply) {
    let index = askedPiece
    let owner = pieces[Int(index)].request
    if phase >= .broken { return freeAsked() }
    if case .failed(.stopping) = reply {
      // As with every request: a client that finds the connection closed connects again.
      freeAsked()
      return breakConnection()
    }
    askedPiece = noIndex
    requests[Int(owner)].outstanding -= 1
    if requests[Int(owner)].error == 0, case .changes(let changes, let next) = reply {
      putStatus(index, runs: writeChanges(changes, until: next, to: index))
    } else {
      if requests[Int(owner)].error == 0 {
        requests[Int(owner)].error =
          if case .failed(let error) = reply { error.wireError } else { NBD.Error.inputOutput }
      }
      freePiece(index)
      settle(owner)
    }
    endVainStall(of: owner)
    askChanges()
    if stall == .own { parse() }
  }

  /// Nobody waits for the answer any more.
  func freeAsked() {
    freePiece(askedPiece)
    askedPiece = noIndex
  }

  /// Writes descriptors to a piece's memory and returns how many; one at least: where the engine
  /// told nothing, "changed" is always a right answer.
  ///
  /// - Parameter next: what lies before it and is in none of `changes` did not change; nil: all.
  private func writeChanges(
    _ changes: [ChangedRange], until next: UInt64?, to index: UInt16
  ) -> Int {
    let piece = pieces[Int(index)]
    guard let memory = piece.memory else { invariantBroken("a status piece without memory") }
    var runs = RunWriter(memory: memory, most: requests[Int(piece.request)].mostRuns)
    let end = piece.offset + UInt64(piece.length)
    var position = piece.offset
    for change in changes where change.length > 0 {
      let start = max(change.offset, position)
      if start >= end { break }
      let (last, overflowed) = change.offset.addingReportingOverflow(change.length)
      let stop = overflowed ? end : min(last, end)
      if stop <= start { continue }
      guard start == position || runs.add(start - position, 0),
        runs.add(stop - start, NBD.stateDirty)
      else { return runs.end(orAll: 0, 0) }
      position = stop
    }
    let known = min(next ?? end, end)
    if known > position { _ = runs.add(known - position, 0) }
    return runs.end(orAll: UInt64(piece.length), NBD.stateDirty)
  }
}
