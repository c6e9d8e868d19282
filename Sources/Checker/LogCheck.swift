import Core

// The log, read as recovery must read it (docs/formats/log.md, "Replay"), with every frame
// verified. What recovery would accept, refuse, or take for a torn tail is decided here by the
// same table, in code of its own:
//
//     what stands where frame s is expected                       is
//     a later epoch begins at s                                   void; go on at that epoch's start
//     the frame, its payload whole                                accepted
//     the frame, payload damaged, s known durable                 damage of these blocks
//     the frame, payload damaged, s not known durable             the torn tail
//     nothing, but the next segment begins with the frame         the end of a closed segment
//     nothing, s known durable, a summary of durable frames       damage that recovery gets over
//       holds its table, here or at the next segment's start
//     nothing, s known durable                                    damage that recovery refuses
//     nothing, s not known durable                                the tail
//
// "Known durable": some valid header of this log, wherever it is found, names a durable sequence
// of s or more, or a later epoch begins behind s (R3). Such a claim once true stays true, so a
// header of an older lap or of a void frame is as good a witness as any.

/// What the walk of the log leaves for the checks of the trees.
struct LogOutcome {
  var events: LogEvents
  /// The newest checkpoint that any valid header names as durable on every volume.
  var durableCheckpoint: UInt64
}

final class LogCheck {
  let members: PoolMembers
  let options: CheckOptions
  let findings: Findings
  let device: LogDevice
  let events: LogEvents

  private var epochs: [Epoch] = []
  private var epochCounter: UInt64 = 0
  /// The highest sequence that some header names as durable.
  private var durable: FrameSequence = 0
  private var durableCheckpoint: UInt64 = 0

  // Where the next frame is expected, and what it must say.
  private var position: UInt64
  private var sequence: FrameSequence
  private var epoch: UInt64
  /// Nil behind a frame whose header is damaged: whatever the next one names is taken.
  private var chain: UInt32?
  private var lastWallClock: UInt64 = 0
  private var lastInstant: Instant = 0

  /// The accepted frames of the segment under the walk, to be compared with its summary.
  private struct Accepted {
    var entry: SummaryEntry
    var tableChecksum: UInt32
  }
  private var accepted: [Accepted] = []

  init(members: PoolMembers, options: CheckOptions, findings: Findings) {
    self.members = members
    self.options = options
    self.findings = findings
    device = LogDevice(member: members.log, label: members.logLabel)
    events = LogEvents(options: options)
    position = members.root.nextPosition
    sequence = members.root.cutSequence &+ 1
    epoch = members.root.cutEpoch
    chain = members.root.cutChain
  }

  func run() throws(CheckFailure) -> LogOutcome {
    let start = position
    guard start % UInt64(blockSize) == 0, start < 1 << 62, sequence > 0, sequence < 1 << 62 else {
      throw CheckFailure("the newest root names an impossible place in the log")
    }
    readEpochs()
    survey()
    while position - start <= device.capacity, try step() {}
    if position - start > device.capacity {
      findings.complain("the log holds more frames than its ring has room for")
    }
    findings.counters.lastSequence = sequence - 1
    findings.counters.durableSequence = durable
    findings.counters.loggedBlocks = events.blocks
    return LogOutcome(events: events, durableCheckpoint: durableCheckpoint)
  }

  // MARK: What is known before the walk

  /// The newest epoch record of the ring.
  private func readEpochs() {
    let block = AlignedMemory(bytes: blockSize)
    var newest: EpochRecord?
    for i in 0..<LogLayout.epochRing {
      guard members.log.read(block: LogLayout.epochs + i, count: 1, into: block.base),
        let record = EpochRecord(decoding: block.base, tag: device.tag)
      else { continue }
      if newest == nil || record.counter > newest!.counter { newest = record }
    }
    epochs = newest?.epochs ?? []
    epochCounter = newest?.counter ?? 0
    for e in epochs where e.position % device.segmentSize != 0 || e.position >= 1 << 62 {
      findings.complain("epoch \(e.number) is recorded to start at \(e.position), which can't be")
      epochs.removeAll { $0.number == e.number }
    }
  }

  /// Looks at the start and the end of every segment and follows the newest to its end: what is
  /// durable by the word of the newest headers, whatever lies between.
  private func survey() {
    var newest: FrameHeader?
    var firsts: [UInt64: FrameHeader] = [:]
    for index in 0..<device.segments {
      if let summary = device.summaryHeaderOfSegment(index) { witness(summary) }
      guard let h = device.headerOfSegment(index) else { continue }
      witness(h)
      if h.sequence < firsts[h.epoch]?.sequence ?? .max { firsts[h.epoch] = h }
      if let n = newest, (n.epoch, n.sequence) >= (h.epoch, h.sequence) { continue }
      newest = h
    }
    if let newest { follow(newest) }
    let recorded = epochs.last?.number ?? 0
    let unrecorded = firsts.values.filter { $0.epoch > recorded }
    if !unrecorded.isEmpty || recorded < members.root.cutEpoch {
      rebuildEpochs(unrecorded.sorted { $0.epoch < $1.epoch })
    }
    // What lies before a later epoch's start was accepted when that epoch was opened.
    if let last = epochs.last, last.firstSequence > 0 {
      durable = max(durable, last.firstSequence - 1)
    }
  }

  private func follow(_ start: FrameHeader) {
    var h = start
    while device.blocksLeft(at: h.position) > Int(h.blocks),
      let next = device.header(at: h.position + UInt64(h.blocks) << blockShift),
      next.epoch == h.epoch, next.sequence > h.sequence
    {
      witness(next)
      h = next
    }
  }

  /// The newest epoch record was lost: the frames of its epochs tell what it said, as each epoch
  /// begins at a segment's start. The walk goes on with that; repair writes it.
  private func rebuildEpochs(_ firsts: [FrameHeader]) {
    findings.complain(
      "the newest epoch record of the log was lost, so recovery refuses the pool: there are frames of "
        + "epoch \(max(firsts.last?.epoch ?? 0, members.root.cutEpoch)), but no record of an epoch above "
        + "\(epochs.last?.number ?? 0); repair makes it anew from the frames")
    var rebuilt = epochs
    func add(_ e: Epoch) {
      guard rebuilt.count < EpochRecord.maximumEntries else { return }
      if let last = rebuilt.last {
        guard e.number > last.number, e.firstSequence >= last.firstSequence,
          e.position > last.position
        else { return }
      }
      rebuilt.append(e)
    }
    let root = members.root
    if root.cutEpoch > epochs.last?.number ?? 0, root.cutSequence > 0 {
      let segment = (root.nextPosition - min(root.nextPosition, 1)) / device.segmentSize
      add(
        Epoch(
          number: root.cutEpoch, firstSequence: root.cutSequence,
          position: segment * device.segmentSize, chain: root.cutChain))
    }
    for h in firsts where h.epoch > root.cutEpoch && h.sequence > root.cutSequence {
      add(
        Epoch(
          number: h.epoch, firstSequence: h.sequence, position: h.position, chain: h.chain))
    }
    guard rebuilt != epochs else { return }
    epochs = rebuilt
    writeEpochs()
  }

  private func writeEpochs() {
    guard options.repair else { return }
    // The lost record's counter was one above the newest that is left.
    let counter = epochCounter + 2
    let block = AlignedMemory(bytes: blockSize)
    EpochRecord(tag: device.tag, counter: counter, epochs: epochs).encode(to: block.base)
    let place = LogLayout.epochRecord(counter)
    let isWritten = (0..<LogLayout.epochCopies).allSatisfy {
      members.log.write(block: place + $0, from: block.base)
    }
    if isWritten, members.log.flush() {
      findings.repaired("the log: wrote the epoch record anew from the frames of its epochs")
    }
  }

  private func witness(_ h: FrameHeader) {
    durable = max(durable, h.durableSequence)
    durableCheckpoint = max(durableCheckpoint, h.checkpoint)
  }

  // MARK: The walk

  /// One row of the table above; false at the end of the log.
  private func step() throws(CheckFailure) -> Bool {
    if let next = epochs.last(where: { $0.firstSequence <= sequence }), next.number > epoch {
      guard next.position >= position else {
        findings.complain(
          "epoch \(next.number) is recorded to start at \(next.position), before frame \(sequence)")
        return false
      }
      checkSummary()
      moveTo(next.position)
      (epoch, chain) = (next.number, next.chain)
      return true
    }
    if let h = expected(at: position) {
      if let table = device.table(of: h) { return try accept(h, table) }
    } else if position % device.segmentSize != 0 {
      let next = device.nextSegmentStart(after: position)
      if expected(at: next) != nil {
        checkSummary()
        moveTo(next)
        return true
      }
    }
    if sequence > durable, epochs.last?.firstSequence ?? 0 <= sequence { lookBehind(position) }
    guard sequence <= durable else { return false }
    if try standIn(at: position) { return true }
    if position % device.segmentSize != 0,
      try standIn(at: device.nextSegmentStart(after: position))
    {
      return true
    }
    return try refuse()
  }

  private func moveTo(_ next: UInt64) {
    if next / device.segmentSize != position / device.segmentSize { accepted = [] }
    position = next
  }

  /// What follows was written in vain: a later epoch took its sequences.
  private var lastOfEpoch: FrameSequence {
    epochs.first { $0.number > epoch }.map { max($0.firstSequence, 1) - 1 } ?? .max
  }

  /// The header at `place` if it is that of the expected frame.
  private func expected(at place: UInt64) -> FrameHeader? {
    guard let h = device.header(at: place), h.epoch == epoch else { return nil }
    if h.flags & FrameHeader.bridge != 0 { return h.sequence >= sequence - 1 ? h : nil }
    guard h.sequence == sequence, chain == nil || h.chain == chain else { return nil }
    return h
  }

  /// Verifies the payload of a frame with a good header and table, and takes it over.
  private func accept(_ h: FrameHeader, _ table: [UInt8]) throws(CheckFailure) -> Bool {
    if h.flags & FrameHeader.bridge != 0 {
      findings.note(
        "the log has a bridge over lost frames up to \(h.sequence), put there by repair")
      witness(h)
      pass(sequence: h.sequence, blocks: h.blocks, chain: h.chain)
      return true
    }
    guard
      let payload = LogEvents.payload(
        of: table, records: h.records, payloadBlocks: Int(h.payloadBlocks))
    else {
      findings.complain("frame \(h.sequence): its table is intact, but its records make no sense")
      pass(sequence: h.sequence, blocks: h.blocks, chain: h.headerChecksum)
      return true
    }
    let front = FrameHeader.frontBlocks(tableLength: Int(h.tableLength))
    let first = h.position + UInt64(front) << blockShift
    var bad = damaged(payload, at: first)
    if !bad.isEmpty, h.sequence > durable {
      lookBehind(h.position + UInt64(h.blocks) << blockShift)
      if h.sequence > durable { return false }
      bad = damaged(payload, at: first)
    }
    report(bad, payload, at: first, frame: h.sequence)
    witness(h)
    try events.add(
      table: table, tableOffset: device.byteOffset(of: h.position) + UInt64(FrameHeader.size))
    accepted.append(
      Accepted(entry: SummaryEntry(header: h), tableChecksum: h.tableChecksum))
    (lastWallClock, lastInstant) = (h.wallClock, h.instant)
    findings.counters.frames += 1
    pass(sequence: h.sequence, blocks: h.blocks, chain: h.headerChecksum)
    return true
  }

  private func pass(sequence last: FrameSequence, blocks: UInt32, chain next: UInt32?) {
    sequence = last + 1
    chain = next
    moveTo(position + UInt64(blocks) << blockShift)
  }

  /// Indices of payload blocks that can't be read or do not match their checksum.
  private func damaged(_ payload: [PayloadBlock], at first: UInt64) -> [Int] {
    var bad: [Int] = []
    var i = 0
    while i < payload.count {
      let count = min(64, payload.count - i)
      let place = first + UInt64(i) << blockShift
      if let p = device.load(place, count: count) {
        for j in 0..<count
        where payload[i + j].isKnown && crc32cBlock(p + j * blockSize) != payload[i + j].checksum {
          bad.append(i + j)
        }
      } else {
        for j in 0..<count where payload[i + j].isKnown {
          let p = device.load(place + UInt64(j) << blockShift, count: 1)
          if p == nil || crc32cBlock(p!) != payload[i + j].checksum { bad.append(i + j) }
        }
      }
      i += count
    }
    return bad
  }

  private func report(
    _ bad: [Int], _ payload: [PayloadBlock], at first: UInt64, frame: FrameSequence
  ) {
    for i in bad {
      findings.damage(
        device: members.log.name, offset: device.byteOffset(of: first + UInt64(i) << blockShift),
        object: payload[i].object, block: payload[i].block, what: "frame \(frame)")
    }
  }

  /// Looks for witnesses behind a place where the walk can't go on: in the rest of its segment
  /// and in the two that follow.
  private func lookBehind(_ place: UInt64) {
    let end = device.nextSegmentStart(after: place) + 2 * device.segmentSize
    var at = place
    while at < end, sequence > durable {
      if let h = device.header(at: at), h.epoch == epoch, h.sequence > sequence { witness(h) }
      at += UInt64(blockSize)
    }
  }

  // MARK: Summaries

  /// Compares the summary of the segment that is left with the frames that were read.
  private func checkSummary() {
    guard let first = accepted.first, position > 0 else { return }
    let segment = first.entry.position / device.segmentSize
    switch device.summary(ofSegmentAt: segment * device.segmentSize, epoch: epoch) {
    case .absent: break
    case .damaged:
      findings.note("the summary of log segment \(segment) is torn; its frames are read instead")
    case .valid(let summary):
      findings.counters.summaries += 1
      compare(summary, first: first.entry.sequence)
    }
    accepted = []
  }

  private func compare(_ summary: SegmentSummary, first: FrameSequence) {
    let last = lastOfEpoch
    let items = summary.items.filter { $0.entry.sequence >= first && $0.entry.sequence <= last }
    let same =
      items.count == accepted.count
      && zip(items, accepted).allSatisfy { item, frame in
        item.entry.sequence == frame.entry.sequence
          && item.entry.position == frame.entry.position
          && item.entry.blocks == frame.entry.blocks
          && item.entry.tableLength == frame.entry.tableLength
          && item.entry.instant == frame.entry.instant
          && item.table.withUnsafeBytes { crc32c($0) } == frame.tableChecksum
      }
    if !same {
      findings.complain(
        "the summary of the log segment at \(device.byteOffset(of: summary.header.position)) "
          + "does not equal the segment's frames")
    }
  }

  /// A durable frame whose header or table is damaged, but must stand at `place`: the segment's
  /// summary may hold its table. Recovery takes a summary's word only when all that it names is durable.
  private func standIn(at place: UInt64) throws(CheckFailure) -> Bool {
    guard case .valid(let summary) = device.summary(ofSegmentAt: place, epoch: epoch),
      min(summary.header.sequence, lastOfEpoch) <= durable,
      let item = summary.items.first(where: { $0.entry.sequence == sequence }),
      item.entry.position == place
    else { return false }
    let entry = item.entry
    let front = FrameHeader.frontBlocks(tableLength: Int(entry.tableLength))
    var records: UInt32 = 0
    item.table.withUnsafeBytes { bytes in
      guard let base = bytes.baseAddress else { return }
      var cursor = RecordCursor(table: base, length: bytes.count)
      while cursor.next() != nil { records += 1 }
    }
    guard front <= Int(entry.blocks), Int(entry.blocks) <= device.blocksLeft(at: place),
      let payload = LogEvents.payload(
        of: item.table, records: records, payloadBlocks: Int(entry.blocks) - front)
    else { return false }
    if place != position {
      checkSummary()
      moveTo(place)
    }
    findings.complain(
      "the log, offset \(device.byteOffset(of: position)): header or table of frame \(sequence) is "
        + "damaged; the summary of its segment stands in for it, nothing is lost")
    report(
      damaged(payload, at: entry.payloadPosition), payload, at: entry.payloadPosition,
      frame: sequence)
    try events.add(table: item.table, tableOffset: item.tableOffset)
    accepted.append(
      Accepted(
        entry: entry, tableChecksum: item.table.withUnsafeBytes { crc32c($0) }))
    findings.counters.frames += 1
    let isLast = summary.items.last?.entry.sequence == sequence
    pass(sequence: sequence, blocks: entry.blocks, chain: isLast ? summary.header.chain : nil)
    return true
  }

  // MARK: Damage that recovery refuses

  /// Reports lost frames and goes on behind them; with leave to do so writes a bridge there.
  private func refuse() throws(CheckFailure) -> Bool {
    let next = nextValid()
    let later = epochs.first { $0.number > epoch }
    guard next != nil || later != nil else {
      findings.complain(
        "the log, offset \(device.byteOffset(of: position)): frame \(sequence) was durable and is "
          + "damaged, and so is all that followed it; recovery refuses the pool")
      return false
    }
    let lastLost = (next?.sequence ?? later!.firstSequence) - 1
    let first = sequence
    findings.complain(
      "the log, offset \(device.byteOffset(of: position)): \(frames(first, lastLost)) durable and "
        + "damaged, so recovery refuses the pool; the newest content of any block that was written "
        + "\(interval(next)) may be lost, and older content be in its place; `sluice check --repair` "
        + "can accept the loss")
    if options.repair, options.acceptLogLoss { bridge(to: next, lastLost: lastLost) }
    if let next {
      moveTo(next.position)
      (sequence, chain) = (next.sequence, next.chain)
    } else if let later {
      sequence = later.firstSequence
    }
    return true
  }

  private func frames(_ first: FrameSequence, _ last: FrameSequence) -> String {
    first == last ? "frame \(first) was" : "frames \(first) to \(last) were"
  }

  /// When the lost frames were written, as far as their neighbours tell.
  private func interval(_ next: FrameHeader?) -> String {
    let to = next.map { "before \(timestamp($0.wallClock))" } ?? "before the pool was next opened"
    return lastWallClock == 0 ? to : "after \(timestamp(lastWallClock)) and \(to)"
  }

  /// The first valid frame of this epoch behind the expected place, within one lap of the ring.
  private func nextValid() -> FrameHeader? {
    let limit = min(
      members.root.nextPosition + device.capacity,
      epochs.first { $0.number > epoch }?.position ?? .max)
    var at = position
    while at < limit {
      if let h = device.header(at: at), h.epoch == epoch, h.sequence > sequence,
        h.flags & FrameHeader.bridge == 0, device.table(of: h) != nil
      {
        return h
      }
      at += UInt64(blockSize)
    }
    return nil
  }

  /// Puts bridges from the expected place up to the frame `next`, or, where an epoch ends with
  /// lost frames, one over the rest of the segment.
  private func bridge(to next: FrameHeader?, lastLost: FrameSequence) {
    let block = AlignedMemory(bytes: blockSize)
    var at = position
    let end = next?.position ?? device.nextSegmentStart(after: position)
    while at < end {
      let stop = min(end, device.nextSegmentStart(after: at))
      var header = FrameHeader()
      header.flags = FrameHeader.bridge
      header.tag = device.tag
      header.epoch = epoch
      header.sequence = lastLost
      header.position = at
      header.chain = next?.chain ?? 0
      header.blocks = UInt32((stop - at) >> blockShift)
      header.durableSequence = durable
      header.checkpoint = durableCheckpoint
      header.wallClock = lastWallClock
      header.instant = lastInstant
      header.encode(to: block.base)
      guard members.log.write(block: device.block(of: at), from: block.base) else { return }
      at = stop
    }
    device.forget()
    if members.log.flush() {
      findings.repaired("the log: wrote a bridge over the lost frames up to \(lastLost)")
    }
  }
}
