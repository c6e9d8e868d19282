import Core
import Glibc
import NBDServer

/// A driver for one session in memory: what a socket, an engine and its catalog would do.
final class Harness {
  let provider = CountingProvider()
  let catalog = TestCatalog()
  let disk: MemoryDisk
  let session: NBDSession
  /// Bytes on their way to the session.
  private(set) var input: [UInt8] = []
  private var inputHead = 0
  private var inputEnds = false
  /// All that the session has sent and was not read by the client.
  var output: [UInt8] = []
  /// The client does not read: nothing is sent.
  var isOutputHeld = false
  /// If given: random splits of what is received and sent, random order of completions, and
  /// receives and sends that take a while.
  var random: SeededRandom?
  private var controlRequests: [ControlRequest] = []
  /// A receive under way, and the entries of the vector of a send under way.
  private var pendingReceive: UnsafeMutableRawBufferPointer?
  private var pendingSend = 0
  var isControlHeld = false
  private(set) var isClosed = false
  private let vector = UnsafeMutableBufferPointer<iovec>.allocate(capacity: 64)

  init(
    size: Int = 4 << 20, readOnly: Bool = false, memoryLimit: Int = NBDSession.defaultMemoryLimit
  ) {
    disk = MemoryDisk(size: size)
    catalog.disks = [.init(name: "disk", size: UInt64(size), readOnly: readOnly)]
    session = NBDSession(memory: provider, tokenBase: 0x1234_0000, memoryLimit: memoryLimit)
  }

  deinit { vector.deallocate() }

  /// The client sends `bytes`.
  func send(_ bytes: [UInt8]) {
    input += bytes
    run()
  }

  /// As `send`, but the loop is the caller's to turn.
  func enqueue(_ bytes: [UInt8]) { input += bytes }

  /// The client shuts its side of the connection when all was received.
  func endInputLater() { inputEnds = true }

  /// The client shuts its side of the connection.
  func endInput() {
    inputEnds = true
    run()
  }

  var unread: Int { input.count - inputHead }

  /// Turns the loop until nothing moves.
  func run() {
    while turn() {}
  }

  func turn() -> Bool {
    if isClosed {
      return pullRequests() || answerControl() || serve()
    }
    var moved = receive()
    if pullRequests() { moved = true }
    if answerControl() { moved = true }
    if serve() { moved = true }
    if transmit() { moved = true }
    if session.isStalled {
      let allocations = provider.allocations
      session.resume()
      if !session.isStalled || provider.allocations > allocations { moved = true }
    }
    if session.wantsClose {
      close()
      moved = true
    }
    return moved
  }

  /// The connection breaks down, or is closed by the driver.
  func close() {
    if isClosed { return }
    isClosed = true
    pendingReceive = nil
    pendingSend = 0
    session.closed()
  }

  /// Lets some time pass between the start and the end of a receive or a send.
  private func isUnderWay() -> Bool { random != nil && random!.oneIn(2) }

  private func receive() -> Bool {
    if pendingReceive == nil {
      let space = session.receiveSpace()
      if space.count == 0 { return false }
      pendingReceive = space
    }
    if isUnderWay() { return true }
    guard let space = pendingReceive else { return false }
    let available = input.count - inputHead
    pendingReceive = nil
    if available == 0 {
      if inputEnds {
        inputEnds = false
        session.endOfStream()
        return true
      }
      session.received(0)
      return false
    }
    let count = split(min(space.count, available))
    input.withUnsafeBytes { bytes in
      _ = memcpy(space.baseAddress!, bytes.baseAddress! + inputHead, count)
    }
    inputHead += count
    if inputHead == input.count {
      input.removeAll(keepingCapacity: true)
      inputHead = 0
    }
    session.received(count)
    return true
  }

  private func split(_ count: Int) -> Int {
    guard random != nil else { return count }
    if random!.oneIn(3) { return count }
    return 1 + Int(random!.below(UInt64(random!.oneIn(2) ? min(count, 40) : count)))
  }

  private func pullRequests() -> Bool {
    var moved = false
    while let request = session.nextBlockRequest() {
      if !disk.submit(request) {
        session.unsubmitted(request)
        break
      }
      moved = true
    }
    while let request = session.nextControlRequest() {
      controlRequests.append(request)
      moved = true
    }
    return moved
  }

  private func answerControl() -> Bool {
    if isControlHeld || controlRequests.isEmpty { return false }
    let request = controlRequests.removeFirst()
    let reply = catalog.reply(to: request)
    if case .opened(let handle, _, _) = reply { disk.handle = handle }
    session.controlReplied(reply)
    return true
  }

  private func serve() -> Bool {
    if disk.isHeld || disk.inWork == 0 { return false }
    let index = random == nil ? 0 : Int(random!.below(UInt64(disk.inWork)))
    session.completed(disk.complete(index))
    return true
  }

  /// Completes the `index`th of the requests that the held disk has.
  func complete(_ index: Int) {
    session.completed(disk.complete(index))
    run()
  }

  private func transmit() -> Bool {
    if isOutputHeld { return false }
    if pendingSend == 0 {
      let room = random == nil ? vector.count : 1 + Int(random!.below(UInt64(vector.count)))
      pendingSend = session.fillSendVector(into: .init(rebasing: vector[..<room]))
      if pendingSend == 0 { return false }
    }
    if isUnderWay() { return true }
    let total = vector[..<pendingSend].reduce(0) { $0 + $1.iov_len }
    precondition(total > 0, "an empty vector")
    let count = split(total)
    var left = count
    for i in 0..<pendingSend where left > 0 {
      let part = min(left, vector[i].iov_len)
      output += UnsafeRawBufferPointer(start: vector[i].iov_base, count: part)
      left -= part
    }
    pendingSend = 0
    session.sent(count)
    return true
  }
}
