import Core

// Metadata contexts: `NBD_OPT_LIST_META_CONTEXT` and `NBD_OPT_SET_META_CONTEXT`.
//
//     base:allocation           data and holes
//     sluice:changed:SNAP       what changed since the snapshot SNAP of the export's disk, up to the
//     qemu:dirty-bitmap:SNAP    disk as it is, or to the snapshot that is exported; 1 is changed
//
// Whether SNAP is an earlier state of the export is the engine's to say: each such query is tried
// with a comparison of which one range at most is wanted. Whether the export exists shows when it
// is opened.

/// What block status can be asked for.
struct MetadataContext: Equatable {
  var name: String
  /// The snapshot since which changes are told; nil: data and holes.
  var since: SnapshotName?
}

/// An option about contexts, while it is being answered.
struct ContextQuery {
  /// In bytes; longer names are nobody's.
  private static let longestSnapshot = 255

  /// SET, which selects what it names; else LIST.
  var selects = false
  var export = ""
  /// What was named in full, and how many of these are answered.
  var candidates: [MetadataContext] = []
  var answered = 0
  /// LIST: the name spaces of which all is to be shown.
  var listed: [String] = []
  /// Snapshots that the engine gave and were not written yet.
  var isListing = false
  var page: [SnapshotInfo] = []
  var pageIndex = 0
  var cursor: UInt64?

  /// DISK and SNAP of the export.
  private var parts: (disk: String, snapshot: String?) {
    guard let at = export.lastIndex(of: "@") else { return (export, nil) }
    return (String(export[..<at]), String(export[export.index(after: at)...]))
  }

  var disk: String { parts.disk }
  /// Nil: the export is a disk.
  var snapshot: String? { parts.snapshot }

  /// What changes are told up to.
  var end: SnapshotOrDisk {
    let (disk, snapshot) = parts
    return snapshot.map { .snapshot(SnapshotName(disk: disk, snapshot: $0)) } ?? .disk(disk)
  }

  /// The empty list of LIST: everything.
  mutating func addAll() {
    addCandidate(MetadataContext(name: NBD.allocationContext))
    listed = [NBD.changedContext, NBD.bitmapContext]
  }

  mutating func add(_ query: String) {
    if query == NBD.allocationContext || (!selects && query == "base:") {
      return addCandidate(MetadataContext(name: NBD.allocationContext))
    }
    for space in [NBD.changedContext, NBD.bitmapContext] {
      if query.hasPrefix(space), query.utf8.count > space.utf8.count {
        let snapshot = String(query.dropFirst(space.count))
        guard snapshot.utf8.count <= Self.longestSnapshot else { continue }
        addCandidate(
          MetadataContext(name: query, since: SnapshotName(disk: disk, snapshot: snapshot)))
      } else if !selects, space.hasPrefix(query), query.last == ":", !listed.contains(space) {
        listed.append(space)
      }
    }
  }

  private mutating func addCandidate(_ context: MetadataContext) {
    if !candidates.contains(context) { candidates.append(context) }
  }
}

extension NBDSession {
  func answerMetaContext(_ data: OptionReader, selects: Bool) {
    var data = data
    if selects { handshake.contexts = [] }
    guard usesStructuredReplies else {
      return refuse(NBD.Reply.invalid, "structured replies must be negotiated first")
    }
    guard let bytes = data.string(), let count = data.number(UInt32.self) else {
      return refuse(NBD.Reply.invalid, "the option's data is malformed")
    }
    var queries: [UnsafeRawBufferPointer] = []
    for _ in 0..<count {
      // Ends at the first query that is not there, whatever the count claims.
      guard let query = data.string() else {
        return refuse(NBD.Reply.invalid, "the option's data is malformed")
      }
      queries.append(query)
    }
    if data.remaining > 0 { return refuse(NBD.Reply.invalid, "the option's data is malformed") }
    guard let name = exportName(bytes) else { return }
    var query = ContextQuery(selects: selects, export: name)
    if !selects, count == 0 { query.addAll() }
    for text in queries {
      // What is not UTF-8 names nothing that is served here.
      if let text = String(validating: text, as: UTF8.self) { query.add(text) }
    }
    guard query.candidates.count <= NBD.maximumContexts else {
      return refuse(
        NBD.Reply.tooBig, "one client may name \(NBD.maximumContexts) metadata contexts at most")
    }
    handshake.query = query
    if selects { handshake.contextExport = name }
    answerContexts()
  }

  /// Answers what was named in full, until it has to ask the engine; then goes on with lists.
  private func answerContexts() {
    while handshake.query.answered < handshake.query.candidates.count {
      let context = handshake.query.candidates[handshake.query.answered]
      if let since = context.since {
        return ask(.diff(since, to: handshake.query.end, from: 0, limit: 1), for: .context)
      }
      accept(context)
      handshake.query.answered += 1
    }
    if handshake.query.listed.isEmpty { return endContexts() }
    ask(
      .listSnapshots(disk: handshake.query.disk, cursor: nil, limit: Self.listPage),
      for: .contextList)
  }

  private func accept(_ context: MetadataContext) {
    var id: UInt32 = 0
    if handshake.query.selects {
      handshake.contexts.append(context)
      id = UInt32(handshake.contexts.count)
    }
    putContext(id, context.name)
  }

  private func putContext(_ id: UInt32, _ name: String) {
    let text = name[...].utf8
    putReply(NBD.Reply.metaContext, length: 4 + text.count)
    handshakeOutput.put(id)
    handshakeOutput.put(text)
  }

  private func endContexts() {
    handshake.query = ContextQuery()
    acknowledge()
    // Without it the parser is what has called.
    if stall == .control { parse() }
  }

  /// The engine has said whether a snapshot is an earlier state of the export.
  func contextChecked(_ reply: ControlReply) {
    if case .changes = reply {
      accept(handshake.query.candidates[handshake.query.answered])
    }
    handshake.query.answered += 1
    answerContexts()
  }

  func snapshotsListed(_ reply: ControlReply) {
    // A disk that is not there has no snapshots to show.
    guard case .snapshots(let page, let next) = reply else { return endContexts() }
    handshake.query.isListing = true
    handshake.query.page = page
    handshake.query.pageIndex = 0
    handshake.query.cursor = next
    putSnapshotContexts()
  }

  /// Writes contexts of as many snapshots as there is room for, then asks for more or ends.
  func putSnapshotContexts() {
    while handshake.query.pageIndex < handshake.query.page.count {
      guard handshakeOutput.room >= Self.optionReplyRoom else { return }
      let name = handshake.query.page[handshake.query.pageIndex].name
      handshake.query.pageIndex += 1
      if name == handshake.query.snapshot {
        // The rest is not earlier than the export.
        handshake.query.page = []
        handshake.query.pageIndex = 0
        handshake.query.cursor = nil
        break
      }
      for space in handshake.query.listed { putContext(0, space + name) }
    }
    if let cursor = handshake.query.cursor {
      handshake.query.cursor = nil
      let disk = handshake.query.disk
      return ask(
        .listSnapshots(disk: disk, cursor: cursor, limit: Self.listPage), for: .contextList)
    }
    guard handshakeOutput.room >= Self.optionReplyRoom else { return }
    endContexts()
  }
}
