import CURing
import Core
import Glibc

// The one ring of the engine's thread: member devices, sockets and the wake-up of other threads.
//
//     submit(op), receive, send, accept ──▶ submission queue ──enter──▶ kernel
//     nextEvent() ◀── completions, with short transfers continued out of sight
//
// One system call a turn: `enter` submits all that was prepared and waits. Every completion names
// what it belongs to in its 64 bits of user data: a kind in the upper 8, an index in the lower 56.
//
// Limits, fixed at creation: device operations (`canTakeDeviceOp`), and sockets, of which each has
// at most one receive, one send and one accept under way. The completion queue holds all of them.

package final class Reactor {
  /// What has happened.
  package enum Event: Sendable {
    case device(DeviceCompletion)
    /// A connection's descriptor, or a negative errno. The listener has to be asked anew.
    case accepted(listener: Int, result: Int32)
    /// Bytes received (0: the peer has closed), or a negative errno. `hasMore`: the socket still
    /// has bytes to read.
    case received(socket: Int, result: Int32, hasMore: Bool)
    /// Bytes sent, or a negative errno.
    case sent(socket: Int, result: Int32)
    /// `waker` was used.
    case woken
  }

  private enum Kind: UInt8 { case device, accept, receive, send, wake, cancel }

  private struct Slot {
    var op: DeviceOp
    /// Bytes of the transfer that are done.
    var done: UInt64
    /// How often the kernel has asked to try again.
    var retries: UInt8
  }

  /// Larger transfers go in several parts; well below the kernel's 2 GiB.
  private static let longestTransfer: UInt64 = 1 << 30
  private static let maximumRetries = 100

  package let waker: Waker
  /// Told of each device operation that failed, with its errno.
  package var onError: ((DeviceOp, DeviceFile, Int32) -> Void)?
  private var ring: Ring
  private var files: [DeviceFile?] = []
  /// Devices that an operation has been submitted to.
  private var isUsed: [Bool] = []
  private let slots: UnsafeMutablePointer<Slot>
  private let slotCount: Int
  private var freeSlots: [Int32]
  /// Operations that ended without the ring.
  private var finished = RingQueue<DeviceCompletion>(capacity: 64)
  private var discards: DiscardWorker?
  private var wakeCount: UnsafeMutablePointer<UInt64>

  /// Bytes of each socket's send that has no completion when the socket takes all of it at once, as
  /// it nearly always does: a completion would end the wait of a turn in which nothing else has
  /// happened. 0 without such a send.
  private var quietBytes: [Int32]
  /// The sockets of these sends, in order; told of when the completions that failed ones have were.
  private var quietSends = RingQueue<Int>(capacity: 64)

  /// Device operations that were submitted and whose completion has not been returned.
  package var deviceOpsUnderWay: Int { slotCount - freeSlots.count + finished.count }
  /// Everything under way but the standing read of the wake-up.
  package var underWay: Int { ring.underWay - 1 + finished.count }

  /// - Parameters:
  ///   - deviceOps: device operations under way at a time, at most.
  ///   - sockets: listeners and connections at a time, at most.
  package init(deviceOps: Int = 1024, sockets: Int = 1100) throws(RingError) {
    let completions = deviceOps + 4 * sockets + 16
    ring = try Ring(entries: 512, completions: UInt32(completions))
    waker = try Waker()
    slotCount = deviceOps
    slots = .allocate(capacity: deviceOps)
    freeSlots = (0..<Int32(deviceOps)).reversed()
    wakeCount = .allocate(capacity: 1)
    wakeCount.initialize(to: 0)
    quietBytes = Array(repeating: 0, count: ring.hasQuietEntries ? sockets : 0)
    readWaker()
  }

  /// The caller has waited until nothing is under way, or the process ends: the kernel may still
  /// write to the memory of what is.
  deinit {
    discards?.stop()
    slots.deallocate()
    // `wakeCount` stays: its read is under way until the ring is gone, which is after this.
  }

  // MARK: Devices

  /// Makes `file` known as `index` and keeps it open from now on. It may take the place of one that
  /// was never used: a volume that the engine has refused.
  package func attach(_ file: DeviceFile, as index: DeviceIndex) {
    let place = Int(index.raw)
    while files.count <= place {
      files.append(nil)
      isUsed.append(false)
    }
    invariant(!isUsed[place], "device \(place) is in use and another one is attached as it")
    files[place] = file
  }

  package func file(_ index: DeviceIndex) -> DeviceFile? {
    Int(index.raw) < files.count ? files[Int(index.raw)] : nil
  }

  /// False when every operation slot is in use: leave operations where they are until one ended.
  @inline(__always) package var canTakeDeviceOp: Bool { !freeSlots.isEmpty }

  /// Starts a device operation; it goes to the kernel with the next `enter`.
  package func submit(_ op: DeviceOp) {
    guard let slot = freeSlots.popLast() else {
      invariantBroken("more device operations than slots")
    }
    slots[Int(slot)] = Slot(op: op, done: 0, retries: 0)
    start(Int(slot))
  }

  private func start(_ index: Int) {
    let slot = slots[index]
    let op = slot.op
    guard let file = file(op.device) else { return finish(index, ENODEV) }
    isUsed[Int(op.device.raw)] = true
    let fd = file.descriptor
    let data = Self.data(.device, index)
    let offset = op.offset + slot.done
    let length = UInt32(min(op.length - slot.done, Self.longestTransfer))
    switch op.kind {
    case .read:
      sluice_prep_read(ring.entry(), fd, transferMemory(slot), length, offset, data)
    case .write:
      sluice_prep_write(ring.entry(), fd, transferMemory(slot), length, offset, 0, data)
    case .writeDurable:
      sluice_prep_write(ring.entry(), fd, transferMemory(slot), length, offset, 1, data)
    case .flush:
      sluice_prep_datasync(ring.entry(), fd, data)
    case .discard:
      if file.isBlockDevice { return discard(index, file) }
      sluice_prep_punch(ring.entry(), fd, op.offset, op.length, data)
    case .allocate:
      if file.isBlockDevice { return finish(index, 0) }
      sluice_prep_allocate(ring.entry(), fd, op.offset, op.length, data)
    }
  }

  @inline(__always)
  private func transferMemory(_ slot: Slot) -> UnsafeMutableRawPointer {
    guard let memory = slot.op.memory else { invariantBroken("a transfer without memory") }
    return memory + Int(slot.done)
  }

  private func discard(_ index: Int, _ file: DeviceFile) {
    let op = slots[index].op
    do throws(RingError) {
      if discards == nil { discards = try DiscardWorker(waking: waker) }
      discards?.submit(.init(file: file, offset: op.offset, length: op.length, slot: index))
    } catch { finish(index, error.errno) }
  }

  private func finish(_ index: Int, _ error: Int32) {
    finished.push(release(index, error))
  }

  private func release(_ index: Int, _ error: Int32) -> DeviceCompletion {
    freeSlots.append(Int32(index))
    if error != 0, let onError, let file = file(slots[index].op.device) {
      onError(slots[index].op, file, error)
    }
    return DeviceCompletion(token: slots[index].op.token, error: error)
  }

  /// Takes the kernel's result; nil when the operation goes on.
  private func deviceResult(_ index: Int, _ result: Int32) -> DeviceCompletion? {
    let op = slots[index].op
    if result == -EINTR || result == -EAGAIN {
      slots[index].retries += 1
      if slots[index].retries > Self.maximumRetries { return release(index, EIO) }
      start(index)
      return nil
    }
    if result < 0 { return release(index, -result) }
    switch op.kind {
    case .read, .write, .writeDurable:
      let end = slots[index].done + UInt64(result)
      if end >= op.length { return release(index, 0) }
      // Direct I/O goes on at a block's start; bytes done twice are the same bytes.
      let blocks = end & ~UInt64(blockSize - 1)
      if blocks <= slots[index].done { return release(index, EIO) }
      slots[index].done = blocks
      slots[index].retries = 0
      start(index)
      return nil
    case .flush, .discard, .allocate: return release(index, 0)
    }
  }

  // MARK: Sockets

  /// Asks for the next connection on `descriptor`.
  package func accept(listener: Int, descriptor: Int32) {
    sluice_prep_accept(ring.entry(), descriptor, Self.data(.accept, listener))
  }

  /// Takes back an `accept`; it ends with ECANCELED, or with a connection that was faster.
  package func cancelAccept(listener: Int) {
    sluice_prep_cancel(
      ring.entry(), Self.data(.accept, listener), Self.data(.cancel, listener))
  }

  /// Receives into `space`, which stays in place until the event. `waitFirst`: the socket is known
  /// to be empty.
  package func receive(
    socket: Int, descriptor: Int32, into space: UnsafeMutableRawBufferPointer, waitFirst: Bool
  ) {
    sluice_prep_receive(
      ring.entry(), descriptor, space.baseAddress, UInt64(space.count), waitFirst ? 1 : 0,
      Self.data(.receive, socket))
  }

  /// Sends `message`, which has `bytes`; it and its vector stay in place until the next `enter`, the
  /// bytes until the event. `patiently`: the event comes when the socket has taken some of it. Else
  /// the socket takes what it can at once, and the event comes with the next one of anything else.
  package func send(
    socket: Int, descriptor: Int32, message: UnsafePointer<msghdr>, bytes: Int, patiently: Bool
  ) {
    let isQuiet = !patiently && socket < quietBytes.count && bytes > 0 && bytes <= Int32.max
    sluice_prep_send(
      ring.entry(), descriptor, message, isQuiet ? 1 : 0, Self.data(.send, socket))
    guard isQuiet else { return }
    quietBytes[socket] = Int32(bytes)
    quietSends.push(socket)
  }

  /// Whether there are sends whose events come with the next one of anything else.
  package var hasQuietSends: Bool { !quietSends.isEmpty }

  // MARK: Turns

  /// Submits all that was prepared and waits until something has happened, at most `nanoseconds`
  /// (0: looks only; `UInt64.max`: for ever).
  package func enter(waiting nanoseconds: UInt64) {
    ring.enter(waiting: finished.isEmpty ? nanoseconds : 0)
  }

  /// The next thing that has happened, until nil.
  package func nextEvent() -> Event? {
    if let completion = finished.pop() { return .device(completion) }
    while let completion = ring.next() {
      let index = Int(completion.user_data & 0x00FF_FFFF_FFFF_FFFF)
      guard let kind = Kind(rawValue: UInt8(completion.user_data >> 56)) else {
        invariantBroken("a completion of nothing that was submitted")
      }
      switch kind {
      case .device:
        if let done = deviceResult(index, completion.result) { return .device(done) }
        if let completion = finished.pop() { return .device(completion) }
      case .accept:
        return .accepted(listener: index, result: completion.result)
      case .receive:
        let hasMore = withUnsafePointer(to: completion) { sluice_socket_has_more($0) != 0 }
        return .received(socket: index, result: completion.result, hasMore: hasMore)
      case .send:
        if index < quietBytes.count { quietBytes[index] = 0 }
        return .sent(socket: index, result: completion.result)
      case .wake:
        readWaker()
        while let result = discards?.nextResult() { finish(result.slot, result.error) }
        return .woken
      case .cancel:
        break
      }
    }
    return nextQuietSend()
  }

  private func nextQuietSend() -> Event? {
    guard ring.isSubmitted else { return nil }
    while let socket = quietSends.pop() {
      let bytes = quietBytes[socket]
      // One that failed was told of by its completion.
      if bytes == 0 { continue }
      quietBytes[socket] = 0
      ring.endedQuietly()
      return .sent(socket: socket, result: bytes)
    }
    return nil
  }

  private func readWaker() {
    sluice_prep_read(ring.entry(), waker.descriptor, wakeCount, 8, 0, Self.data(.wake, 0))
  }

  @inline(__always)
  private static func data(_ kind: Kind, _ index: Int) -> UInt64 {
    UInt64(kind.rawValue) << 56 | UInt64(index)
  }
}
