import Core

/// What can happen next in a simulation.
package enum EventKind: Equatable {
  /// The device operation in this slot of the pool's table ends.
  case device(Int)
  /// A client of the workload may send its next request.
  case client(Int)
  /// The administrator may send the next control request.
  case administrator
  /// The engine asked to be called.
  case wake
  /// A fault of the run's plan is due.
  case fault
  /// Destaging was held long enough.
  case release
  /// The engine is started.
  case start
}

/// The one clock and the one order of a run: a heap of events by simulated time. Events of the
/// same time come in the order in which they were added, so nothing depends on the heap's shape.
package struct EventQueue {
  package struct Event {
    package var time: UInt64
    var order: UInt64
    package var kind: EventKind
    func before(_ other: Event) -> Bool {
      (time, order) < (other.time, other.order)
    }
  }

  /// Simulated nanoseconds since the run began.
  package private(set) var now: UInt64 = 0
  private var heap: [Event] = []
  private var added: UInt64 = 0

  package init() {}

  var isEmpty: Bool { heap.isEmpty }
  var nextTime: UInt64 { heap.first?.time ?? .max }

  package mutating func add(_ kind: EventKind, at time: UInt64) {
    added += 1
    heap.append(Event(time: max(time, now), order: added, kind: kind))
    siftUp(heap.count - 1)
  }

  mutating func add(_ kind: EventKind, after delay: UInt64) { add(kind, at: now + delay) }

  /// Takes the next event and moves the clock to it.
  package mutating func next() -> Event? {
    guard let first = heap.first else { return nil }
    let last = heap.removeLast()
    if !heap.isEmpty {
      heap[0] = last
      siftDown(0)
    }
    invariant(first.time >= now, "simulated time went back")
    now = first.time
    return first
  }

  /// Drops the events that `goes` names.
  package mutating func remove(where goes: (EventKind) -> Bool) {
    let kept = heap.filter { !goes($0.kind) }.sorted { $0.before($1) }
    heap = kept
  }

  private mutating func siftUp(_ start: Int) {
    var i = start
    while i > 0 {
      let parent = (i - 1) / 2
      if !heap[i].before(heap[parent]) { return }
      heap.swapAt(i, parent)
      i = parent
    }
  }

  private mutating func siftDown(_ start: Int) {
    var i = start
    while true {
      var least = i
      for child in (2 * i + 1)...(2 * i + 2) where child < heap.count {
        if heap[child].before(heap[least]) { least = child }
      }
      if least == i { return }
      heap.swapAt(i, least)
      i = least
    }
  }
}

/// A fingerprint of all that happened in a run, so that a replay can be proven to be one; and,
/// when asked for, the story itself.
struct Trace {
  private(set) var hash: UInt64 = 0xCBF2_9CE4_8422_2325
  let verbose: Bool

  mutating func note(_ a: UInt64, _ b: UInt64, _ c: UInt64) {
    var x = hash ^ a
    x = (x ^ (x >> 29)) &* 0xBF58_476D_1CE4_E5B9 ^ b
    x = (x ^ (x >> 32)) &* 0x94D0_49BB_1331_11EB ^ c
    hash = (x ^ (x >> 31)) &* 0x9E37_79B9_7F4A_7C15
  }

  func tell(_ now: UInt64, _ line: @autoclosure () -> String) {
    guard verbose else { return }
    print("\(now / 1000).\(String(now % 1000 + 1000).dropFirst())us \(line())")
  }
}
