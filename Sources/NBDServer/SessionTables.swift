import Core
import Glibc

// The fixed tables of a session: requests, pieces, and what waits to be sent. All are allocated
// once per connection; indices into them are 16 bits wide, `noIndex` means none.

let noIndex = UInt16.max

/// A request, from its header to the last byte of its reply.
struct Request {
  var cookie: UInt64 = 0
  var offset: UInt64 = 0
  var length: UInt32 = 0
  /// The error that the reply will carry: that of the first piece that failed.
  var error: UInt32 = 0
  var command: UInt16 = 0
  var flags: UInt16 = 0
  /// Pieces made (queued, being filled or with the engine) and not yet completed.
  var outstanding: UInt16 = 0
  /// Simple read replies: the pieces not yet queued for sending, in order of their offsets.
  var firstPiece = noIndex
  var lastPiece = noIndex
  /// No more pieces will be made, and its whole payload was taken.
  var isIssued = false
  /// Simple read replies: the header has been queued, so an error can't be told any more.
  var isOpen = false
  /// Is in the list of replies that wait for the open read.
  var isWaiting = false
  /// The peer went before the payload was whole: nobody waits for a reply.
  var isAbandoned = false

  /// The length of the piece that starts where `remaining` bytes of the request are left: all of
  /// a request of at most `maximumPiece`; larger ones are split at multiples of `maximumPiece`, so
  /// that pieces of an aligned request are aligned.
  @inline(__always) func pieceLength(remaining: UInt32) -> UInt32 {
    if length <= UInt32(maximumPiece) { return remaining }
    let position = offset + UInt64(length - remaining)
    return min(remaining, UInt32(maximumPiece) - UInt32(position % UInt64(maximumPiece)))
  }
}

/// A part of a request that the engine sees as one `BlockRequest`.
struct Piece {
  enum State: UInt8 {
    case free
    /// A write whose payload is coming in.
    case filling
    /// Waits for the driver to take it to the engine.
    case queued
    case submitted
    /// Its control request is under way.
    case asked
    /// A read that was completed and waits for its turn, or for the socket.
    case done
  }
  var offset: UInt64 = 0
  var length: UInt32 = 0
  /// Bytes asked of the provider for `memory`.
  var allocated: UInt32 = 0
  var memory: UnsafeMutableRawPointer?
  var request = noIndex
  /// The next piece of the same simple read reply.
  var next = noIndex
  var state = State.free
  /// Of a status request: the metadata context that it is for.
  var context: UInt8 = 0

  /// Where the payload starts: memory stands for the first covered block.
  @inline(__always) var payload: UnsafeMutableRawPointer {
    memory.unsafelyUnwrapped + Int(offset % UInt64(blockSize))
  }
}

/// A stack of free indices. Its count lives in its memory, not in the struct, so that the session
/// can hold it as a constant: the runtime checks exclusive access to a class's variables each time
/// that a method changes one, which costs more than the method.
struct IndexStack: ~Copyable {
  private let base: UnsafeMutablePointer<UInt16>
  private let size: UnsafeMutablePointer<Int>
  private let capacity: Int

  /// Full: 0 ..< `capacity`, the lowest on top.
  init(capacity: Int) {
    base = .allocate(capacity: capacity)
    for i in 0..<capacity { base[i] = UInt16(capacity - 1 - i) }
    self.capacity = capacity
    size = .allocate(capacity: 1)
    size.initialize(to: capacity)
  }

  deinit {
    base.deallocate()
    size.deallocate()
  }

  @inline(__always) var count: Int { size.pointee }
  var isFull: Bool { count == capacity }

  @inline(__always) func pop() -> UInt16 {
    guard count > 0 else { return noIndex }
    size.pointee -= 1
    return base[count]
  }

  @inline(__always) func push(_ index: UInt16) {
    invariant(count < capacity, "an index was freed twice")
    base[count] = index
    size.pointee += 1
  }
}

/// A queue of indices; `capacity` is a power of two that the design never exceeds. Its ends live
/// in memory for the reason that `IndexStack` gives.
struct IndexRing: ~Copyable {
  private let base: UnsafeMutablePointer<UInt16>
  private let mask: Int
  private let ends: UnsafeMutablePointer<(head: Int, tail: Int)>

  init(capacity: Int) {
    base = .allocate(capacity: capacity)
    base.initialize(repeating: noIndex, count: capacity)
    mask = capacity - 1
    ends = .allocate(capacity: 1)
    ends.initialize(to: (0, 0))
    invariant(capacity & mask == 0, "ring of \(capacity) entries is not a power of two")
  }

  deinit {
    base.deallocate()
    ends.deallocate()
  }

  @inline(__always) var isEmpty: Bool { ends.pointee.head == ends.pointee.tail }

  @inline(__always) func append(_ index: UInt16) {
    let (head, tail) = ends.pointee
    invariant(tail - head <= mask, "index ring is full")
    base[tail & mask] = index
    ends.pointee.tail = tail + 1
  }

  @inline(__always) func popFirst() -> UInt16 {
    let (head, tail) = ends.pointee
    if head == tail { return noIndex }
    ends.pointee.head = head + 1
    return base[head & mask]
  }

  /// Puts back what `popFirst` returned last.
  @inline(__always) func putBack(_ index: UInt16) {
    let (head, tail) = ends.pointee
    invariant(tail - head <= mask, "index ring is full")
    ends.pointee.head = head - 1
    base[(head - 1) & mask] = index
  }
}

/// A message that waits to be sent: a header in the queue's header memory, then the payload in
/// place.
struct OutputItem {
  var payload: UnsafeMutableRawPointer?
  var header: UInt32
  var headerBytes: UInt32
  var payloadBytes: UInt32
  /// Freed when the item is sent.
  var piece: UInt16
  /// Its slot is given back when the item is sent: the item ends its reply.
  var request: UInt16
}

/// The messages of the transmission phase that wait to be sent, in order.
///
/// Every item holds a request slot or a piece until it is sent, so both of its rings have room
/// for all that can be in them: `capacity` items of at most `maximumHeader` bytes. Its ends live in
/// memory for the reason that `IndexStack` gives.
struct OutputQueue: ~Copyable {
  static let maximumHeader = 28
  private static let capacity = 512
  private static let headerCapacity = 16384

  private struct Ends {
    var head = 0
    var tail = 0
    var headerTail = 0
    /// Bytes of the first item that are sent already.
    var firstSent = 0
    /// One behind the last item that is in the vector as a whole.
    var filled = 0
  }

  private let items: UnsafeMutablePointer<OutputItem>
  private let headers: UnsafeMutableRawPointer
  private let ends: UnsafeMutablePointer<Ends>

  init(items most: Int) {
    invariant(
      most < Self.capacity && (most + 1) * Self.maximumHeader <= Self.headerCapacity,
      "output queue of \(most) items is too small")
    items = .allocate(capacity: Self.capacity)
    headers = .allocate(byteCount: Self.headerCapacity, alignment: 64)
    headers.initializeMemory(as: UInt8.self, repeating: 0, count: Self.headerCapacity)
    ends = .allocate(capacity: 1)
    ends.initialize(to: Ends())
  }

  deinit {
    items.deallocate()
    headers.deallocate()
    ends.deallocate()
  }

  @inline(__always) var isEmpty: Bool { ends.pointee.head == ends.pointee.tail }
  /// Whether there is more than what `fill` has filled in.
  @inline(__always) var exceedsVector: Bool { ends.pointee.filled < ends.pointee.tail }

  /// Appends an item; the caller writes its header of `headerBytes` at the place returned.
  @inline(__always) func append(
    headerBytes: Int, payload: UnsafeMutableRawPointer? = nil, payloadBytes: UInt32 = 0,
    piece: UInt16, request: UInt16
  ) -> UnsafeMutableRawPointer {
    let tail = ends.pointee.tail
    invariant(tail - ends.pointee.head < Self.capacity, "output queue is full")
    var header = ends.pointee.headerTail
    if header + headerBytes > Self.headerCapacity { header = 0 }
    items[tail & (Self.capacity - 1)] = OutputItem(
      payload: payload, header: UInt32(truncatingIfNeeded: header),
      headerBytes: UInt32(truncatingIfNeeded: headerBytes), payloadBytes: payloadBytes,
      piece: piece, request: request)
    ends.pointee.tail = tail + 1
    ends.pointee.headerTail = header + headerBytes
    return headers + header
  }

  /// Takes the first item off, sent or not.
  func popFirst() -> OutputItem? {
    let head = ends.pointee.head
    if head == ends.pointee.tail { return nil }
    ends.pointee.head = head + 1
    ends.pointee.firstSent = 0
    return items[head & (Self.capacity - 1)]
  }

  /// Notes `count` sent bytes; takes off and returns the first item when that was its end, and
  /// lowers `count` by what it used.
  @inline(__always) func advance(_ count: inout Int) -> OutputItem? {
    let head = ends.pointee.head
    if head == ends.pointee.tail { return nil }
    let item = items[head & (Self.capacity - 1)]
    let rest = Int(item.headerBytes) + Int(item.payloadBytes) - ends.pointee.firstSent
    if count < rest {
      ends.pointee.firstSent += count
      count = 0
      return nil
    }
    count -= rest
    ends.pointee.firstSent = 0
    ends.pointee.head = head + 1
    return item
  }

  /// Fills entries of `vector` from `used` on; headers that lie side by side share one.
  func fill(_ vector: UnsafeMutableBufferPointer<iovec>, used start: Int) -> Int {
    guard let base = vector.baseAddress else { return 0 }
    ends.pointee.filled = ends.pointee.head
    var used = start
    var skip = ends.pointee.firstSent
    var end: UnsafeMutableRawPointer?
    for i in ends.pointee.head..<ends.pointee.tail {
      let item = items[i & (Self.capacity - 1)]
      let headerBytes = Int(item.headerBytes)
      if skip < headerBytes {
        let from = headers + Int(item.header) + skip
        if end == from {
          base[used - 1].iov_len += headerBytes - skip
        } else {
          if used == vector.count { return used }
          base[used] = iovec(iov_base: from, iov_len: headerBytes - skip)
          used += 1
        }
        end = from + (headerBytes - skip)
        skip = 0
      } else {
        skip -= headerBytes
      }
      if let payload = item.payload, item.payloadBytes > 0 {
        if used == vector.count { return used }
        base[used] = iovec(iov_base: payload + skip, iov_len: Int(item.payloadBytes) - skip)
        used += 1
        end = nil
      }
      skip = 0
      ends.pointee.filled = i + 1
    }
    return used
  }
}

/// The server's side of the handshake: a plain buffer that is filled, sent, and filled again.
struct HandshakeOutput: ~Copyable {
  static let capacity = 64 << 10
  private var base: UnsafeMutableRawPointer?
  private var head = 0
  private var tail = 0

  init() { base = .allocate(byteCount: Self.capacity, alignment: 64) }

  deinit { base?.deallocate() }

  @inline(__always) var pending: Int { tail - head }
  var room: Int { base == nil ? 0 : Self.capacity - tail }
  var first: UnsafeMutableRawPointer? { base.map { $0 + head } }

  mutating func sent(_ count: Int) {
    head += count
    if head == tail {
      head = 0
      tail = 0
    }
  }

  /// Frees the memory: the handshake is over and all of it was sent.
  mutating func release() {
    base?.deallocate()
    base = nil
    head = 0
    tail = 0
  }

  private mutating func reserve(_ count: Int) -> UnsafeMutableRawPointer {
    guard let base, count <= room else { invariantBroken("handshake output has no room") }
    defer { tail += count }
    return base + tail
  }

  mutating func put(_ value: some FixedWidthInteger) {
    reserve(MemoryLayout.size(ofValue: value)).putBig(value, at: 0)
  }

  mutating func put(_ text: Substring.UTF8View) {
    let place = reserve(text.count)
    var i = 0
    for byte in text {
      place.storeBytes(of: byte, toByteOffset: i, as: UInt8.self)
      i += 1
    }
  }

  mutating func putZeros(_ count: Int) {
    reserve(count).initializeMemory(as: UInt8.self, repeating: 0, count: count)
  }
}
