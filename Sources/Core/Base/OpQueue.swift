/// What a device operation's completion belongs to: the upper 8 bits of its token.
package enum OpOwner: UInt8, Sendable {
  case frame, summary, logSync, epochRecord, idle
  case readPart, largeWrite
  case nodeLoad, nodeHeal, nodeWrite
  case destageRead, destageWrite, volumeFlush, rootWrite
  case backing, punch
  case recovery
}

/// First-in first-out queue in one ring that grows when it must and then stays. Inlinable and
/// public: other targets would call the methods of a generic type with package access unspecialised.
public struct RingQueue<Element>: ~Copyable {
  @usableFromInline var storage: UnsafeMutablePointer<Element>
  @usableFromInline var capacity: Int
  @usableFromInline var head = 0
  @usableFromInline var used = 0

  @inlinable public var count: Int { used }

  @inlinable public init(capacity: Int = 64) {
    invariant(capacity & (capacity - 1) == 0, "a ring's capacity is a power of two")
    self.capacity = capacity
    storage = .allocate(capacity: capacity)
  }

  @inlinable deinit {
    for i in 0..<count { (storage + ((head + i) & (capacity - 1))).deinitialize(count: 1) }
    storage.deallocate()
  }

  @inlinable public var isEmpty: Bool { count == 0 }

  @inlinable public mutating func push(_ element: Element) {
    if count == capacity { grow() }
    (storage + ((head + count) & (capacity - 1))).initialize(to: element)
    used += 1
  }

  @inlinable public mutating func pop() -> Element? {
    guard count > 0 else { return nil }
    let element = (storage + head).move()
    head = (head + 1) & (capacity - 1)
    used -= 1
    return element
  }

  @inlinable public func first() -> Element? { count > 0 ? storage[head] : nil }

  /// The element `i` places behind the first.
  @inlinable public func at(_ i: Int) -> Element { storage[(head + i) & (capacity - 1)] }

  @inlinable public func contains(_ predicate: (Element) -> Bool) -> Bool {
    for i in 0..<count where predicate(at(i)) { return true }
    return false
  }

  @usableFromInline mutating func grow() {
    let bigger = UnsafeMutablePointer<Element>.allocate(capacity: capacity * 2)
    for i in 0..<count {
      (bigger + i).initialize(to: (storage + ((head + i) & (capacity - 1))).move())
    }
    storage.deallocate()
    storage = bigger
    head = 0
    capacity *= 2
  }
}

/// Device operations waiting to be issued; tokens are made here so that owners can't collide.
package final class OpQueue {
  private var queue = RingQueue<DeviceOp>(capacity: 256)
  package private(set) var inFlight = 0

  package init() {}

  package func issue(
    _ kind: DeviceOpKind, _ device: DeviceIndex, offset: UInt64, length: UInt64,
    memory: UnsafeMutableRawPointer?, owner: OpOwner, index: Int
  ) {
    invariant(
      offset % UInt64(blockSize) == 0 && length % UInt64(blockSize) == 0,
      "device operation \(kind) at \(offset)+\(length) is not whole blocks")
    inFlight += 1
    queue.push(
      DeviceOp(
        kind: kind, device: device, offset: offset, length: length, memory: memory,
        token: UInt64(owner.rawValue) << 56 | UInt64(index)))
  }

  package func flush(_ device: DeviceIndex, owner: OpOwner, index: Int) {
    issue(.flush, device, offset: 0, length: 0, memory: nil, owner: owner, index: index)
  }

  package func next() -> DeviceOp? { queue.pop() }

  package func completed(_ token: UInt64) -> (owner: OpOwner, index: Int) {
    inFlight -= 1
    guard let owner = OpOwner(rawValue: UInt8(token >> 56)), inFlight >= 0 else {
      invariantBroken("completion of an operation that was not issued")
    }
    return (owner, Int(token & 0x00FF_FFFF_FFFF_FFFF))
  }
}
