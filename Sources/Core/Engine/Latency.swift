// Where the time of requests goes. Each request is at any moment in one stage; when it enters the
// next one, the time since it entered the last is added to that. So the stages' sum is the total.
//
//     submit ─▶ turn ─▶ admission ─▶ gather ─▶ log ─▶ reply ─▶ nextCompletion     a write
//     submit ─▶ metadata ─▶ data ─▶ reply ─▶ nextCompletion                       a read
//
// Time comes from `observe` and `step`, twice a turn of the loop: a request is accepted at the
// start of the turn that brings it, and over when its outcome is taken, behind all the work of that
// turn. The figures are as fine as a turn is long (some 10 to 100 µs); what a request waits in a
// socket's buffer is not in them.
//
// Costs: a few additions for each stage, and nine counters at the end; nothing is allocated but a
// disk's figures, once.

/// What a request spends its time on.
package enum RequestStage: Int, CaseIterable, Sendable {
  // Queue: it waits for others.
  /// For a write of the same blocks, the end of a rollback, or a place in a table.
  case turn
  /// For room in the log, or to be let in under back-pressure.
  case admission
  /// For vSpace to be freed or allocated.
  case space
  /// In the open frame, while earlier frames are on their way.
  case gather
  // Service: it is worked on.
  /// A block of metadata is loaded for it.
  case metadata
  /// Blocks are read: a read's, or those that a partial write keeps the rest of. Also by another
  /// read that it shares them with.
  case data
  /// A large write is on its way to its home.
  case home
  /// Its frame is written, until it counts; a flush waits for the log.
  case log
  /// The rest of the turn in which it ended.
  case reply

  /// How long a request waited for others.
  static func queue(_ spent: InlineArray<9, UInt64>) -> UInt64 {
    spent[turn.rawValue] &+ spent[admission.rawValue] &+ spent[space.rawValue]
      &+ spent[gather.rawValue]
  }
}

/// The time of one request; nanoseconds.
struct RequestTimes {
  var accepted: UInt64 = 0
  /// When it entered the stage that it is in.
  var since: UInt64 = 0
  var stage = RequestStage.turn
  /// What it has spent in each stage that it has left.
  var spent = InlineArray<9, UInt64>(repeating: 0)

  @inline(__always)
  mutating func enter(_ next: RequestStage, at now: UInt64) {
    let now = max(now, since)
    spent[stage.rawValue] &+= now - since
    since = now
    stage = next
  }

  var queue: UInt64 { RequestStage.queue(spent) }
}

/// A request whose outcome the front end has not taken yet.
struct FinishedRequest {
  var completion: BlockCompletion
  var request: BlockRequest
  var times: RequestTimes
}

/// One of the slowest operations.
package struct SlowOperation: Sendable {
  package var disk: ObjectID
  /// The disk's name, as it is now or was last.
  package var name: String
  package var operation: BlockOperation
  /// In bytes.
  package var offset: UInt64
  package var length: UInt64
  package var status: BlockStatus
  /// When it ended, in nanoseconds since 1970.
  package var ended: UInt64
  /// In nanoseconds.
  package var total: UInt64
  /// In nanoseconds, by `RequestStage`.
  package var stages: InlineArray<9, UInt64>

  package init(
    disk: ObjectID, name: String, operation: BlockOperation, offset: UInt64, length: UInt64,
    status: BlockStatus, ended: UInt64, total: UInt64, stages: InlineArray<9, UInt64>
  ) {
    self.disk = disk
    self.name = name
    self.operation = operation
    self.offset = offset
    self.length = length
    self.status = status
    self.ended = ended
    self.total = total
    self.stages = stages
  }

  package var queue: UInt64 { RequestStage.queue(stages) }
}

/// The slowest operations of some time, at most 16, in no order.
struct SlowestOperations {
  static let limit = 16
  private(set) var all: [SlowOperation] = []
  /// An operation must have taken longer than this to be one of them.
  private(set) var floor: UInt64 = 0

  init() { all.reserveCapacity(Self.limit) }

  mutating func add(_ operation: SlowOperation) {
    guard operation.total > floor else { return }
    if all.count == Self.limit {
      all[fastest] = operation
    } else {
      all.append(operation)
    }
    if all.count == Self.limit { floor = all[fastest].total }
  }

  private var fastest: Int {
    var fastest = 0
    for i in 1..<all.count where all[i].total < all[fastest].total { fastest = i }
    return fastest
  }

  mutating func removeAll() {
    all.removeAll(keepingCapacity: true)
    floor = 0
  }
}

/// The engine's figures of latency: by request slot while they are under way, then the pool's.
final class LatencyMonitor {
  /// Monotonic nanoseconds.
  private(set) var clock: UInt64 = 0
  private let times: UnsafeMutablePointer<RequestTimes>
  let figures: UnsafeMutablePointer<DiskFigures>

  /// Since start; in this minute of the engine's time; in the one before.
  private(set) var slowest = SlowestOperations()
  private var current = SlowestOperations()
  private var previous = SlowestOperations()
  private var minuteEnd: UInt64 = 0
  private static let minute: UInt64 = 60_000_000_000

  init(slots: Int) {
    times = .allocate(capacity: slots)
    times.initialize(repeating: RequestTimes(), count: slots)
    figures = .allocate(capacity: 1)
    figures.initialize(to: DiskFigures())
  }

  deinit {
    times.deallocate()
    figures.deallocate()
  }

  func observe(now: UInt64) { if now > clock { clock = now } }

  func accept(_ slot: Int32) {
    times[Int(slot)] = RequestTimes(accepted: clock, since: clock)
  }

  @inline(__always)
  func enter(_ slot: Int32, _ stage: RequestStage) { enter(slot, stage, at: clock) }

  @inline(__always)
  func enter(_ slot: Int32, _ stage: RequestStage, at now: UInt64) {
    times[Int(slot)].enter(stage, at: now)
  }

  /// The request has its outcome.
  func end(_ slot: Int32) -> RequestTimes {
    enter(slot, .reply)
    return times[Int(slot)]
  }

  // MARK: The slowest

  /// Whether an operation of this length is one of the slowest of some time.
  func isSlow(_ total: UInt64) -> Bool {
    if clock >= minuteEnd { beginMinute() }
    return total > min(slowest.floor, current.floor)
  }

  func add(_ operation: SlowOperation) {
    slowest.add(operation)
    current.add(operation)
  }

  private func beginMinute() {
    if clock < minuteEnd &+ Self.minute { swap(&previous, &current) } else { previous.removeAll() }
    current.removeAll()
    minuteEnd = clock + Self.minute
  }

  /// The slowest of this minute and the one before, the slowest first.
  func recentlySlowest() -> [SlowOperation] {
    if clock >= minuteEnd { beginMinute() }
    let sorted = (current.all + previous.all).sorted { $0.total > $1.total }
    return Array(sorted.prefix(SlowestOperations.limit))
  }
}

extension SpaceWait {
  /// What a request does that waits for it.
  var stage: RequestStage {
    switch self {
    case .node, .damaged, .memory: .metadata
    case .backing, .noSpace: .space
    }
  }
}

extension Engine {
  package func observe(now: UInt64) {
    latency.observe(now: now)
    pool.log.clock = latency.clock
  }

  /// Counts a request whose outcome is taken now.
  func measure(_ done: FinishedRequest) {
    let kind: OperationKind
    switch done.request.operation {
    case .read: kind = .read
    case .write, .zero, .trim: kind = .write
    case .flush: kind = .flush
    case .status: return
    }
    switch done.completion.status {
    case .ok, .ioError, .noSpace: break
    case .readOnly, .invalid, .stopping: return
    }
    let total = latency.clock - done.times.accepted
    let time = OperationTime(total: total, queue: done.times.queue)
    let isTransfer = done.request.operation == .read || done.request.operation == .write
    let bytes = isTransfer ? done.request.length : 0
    latency.figures.pointee.record(kind, time, bytes: bytes)
    if let disk = pool.disks.resolve(done.request.disk) {
      let figures = disk.figures ?? pool.disks.measure(disk)
      figures?.pointee.record(kind, time, bytes: bytes)
      if latency.isSlow(total) { noteSlow(done, disk, total) }
    }
  }

  @inline(never)
  private func noteSlow(_ done: FinishedRequest, _ disk: VirtualDisk, _ total: UInt64) {
    var times = done.times
    times.enter(.reply, at: latency.clock)
    var sum: UInt64 = 0
    for stage in RequestStage.allCases { sum += times.spent[stage.rawValue] }
    invariant(sum == total, "the stages of a request are \(sum) ns, not its \(total) ns")
    latency.add(
      SlowOperation(
        disk: disk.object, name: disk.name, operation: done.request.operation,
        offset: done.request.offset, length: done.request.length, status: done.completion.status,
        ended: wallClock, total: total, stages: times.spent))
  }

  // MARK: Reports

  /// The disk's name as it is now, where it is known without waiting; as it was, else.
  private func name(_ disk: VirtualDisk) -> String {
    guard let record = disk.record, let name = try? pool.catalog.path(of: record) else {
      return disk.name
    }
    return name
  }

  func slowOperations() -> (ever: [SlowOperation], recently: [SlowOperation]) {
    func named(_ operations: [SlowOperation]) -> [SlowOperation] {
      operations.map { operation in
        var operation = operation
        if let disk = pool.disks.find(operation.disk) { operation.name = name(disk) }
        return operation
      }
    }
    return (
      named(latency.slowest.all.sorted { $0.total > $1.total }), named(latency.recentlySlowest())
    )
  }

  /// The figures of up to `limit` disks from a place on.
  func diskLatencies(_ cursor: UInt64?, _ limit: Int) -> ControlReply {
    let limit = max(1, min(limit, Self.figuresPerReply))
    var place = min(Int(clamping: cursor ?? 0), pool.disks.placeCount)
    let end = min(pool.disks.placeCount, place + Self.placesPerReply)
    var found: [DiskLatency] = []
    while place < end, found.count < limit {
      if let disk = pool.disks.at(place: place), let figures = disk.figures, !disk.isDeleted {
        found.append(
          DiskLatency(
            name: name(disk), id: disk.object, connections: disk.connections,
            uptimeNanoseconds: uptime, figures: figures.pointee))
      }
      place += 1
    }
    return .latency(found, next: place < pool.disks.placeCount ? UInt64(place) : nil)
  }

  /// So many, of 8 KiB each, take the engine some 50 µs.
  private static let figuresPerReply = 64
  private static let placesPerReply = 4096
}
