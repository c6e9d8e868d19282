import Core
import Synchronization

/// An engine of nothing but a table of disks, which answers at once.
final class FakeEngine: Sendable {
  struct State {
    var disks: [String: DiskInfo] = [:]
    /// Names in the order of creation: the order of the list.
    var order: [String] = []
    var flushes = 0
    var lists = 0
    var scrub = ScrubReport()
    var status = PoolStatus()
    /// What the next request other than `status` is answered with.
    var refusal: ControlError?
    /// After this many pages a list fails.
    var pagesUntilError = Int.max
  }

  let state = Mutex(State())

  init(diskCount: Int = 0) {
    state.withLock { state in
      state.status.name = "test"
      state.status.state = .online
      for i in 0..<diskCount { state.add(name: "disk-\(i)", size: 1 << 30) }
    }
  }

  func call(_ request: ControlRequest) -> ControlReply {
    state.withLock { state in
      if case .status = request {
        state.status.disks = UInt64(state.disks.count)
        return .status(state.status)
      }
      if let refusal = state.refusal { return .failed(refusal) }
      return state.answer(request)
    }
  }
}

extension FakeEngine.State {
  mutating func add(name: String, size: UInt64) {
    disks[name] = DiskInfo(
      name: name, id: ObjectID(UInt64(order.count) + 16), size: size, used: 8192, exclusive: 4096,
      origin: nil, created: 1_772_366_400_000_000_000, snapshots: 0, connections: 0,
      generation: 1, readOnly: false, durability: .always, comment: "")
    order.append(name)
  }

  mutating func answer(_ request: ControlRequest) -> ControlReply {
    switch request {
    case .create(let name, let size):
      guard disks[name] == nil else { return .failed(.alreadyExists(name)) }
      guard size > 0, size % 512 == 0 else {
        return .failed(.badSize("a disk's size must be a multiple of 512 bytes"))
      }
      add(name: name, size: size)
      return .done
    case .list(let cursor, let limit): return list(from: Int(cursor ?? 0), limit: limit)
    case .show(let name): return disks[name].map { .disk($0) } ?? .failed(.noSuchDisk(name))
    case .rename, .resize, .set, .delete: return change(request)
    case .flush:
      flushes += 1
      return .done
    case .scrub, .scrubProgress: return .scrub(scrub)
    default: return .done
    }
  }

  private mutating func list(from start: Int, limit: Int) -> ControlReply {
    lists += 1
    if lists > pagesUntilError { return .failed(.ioError("the catalog can't be read")) }
    let end = min(order.count, start + limit)
    let page = order[start..<end].map { disks[$0]! }
    return .disks(page, next: end < order.count ? UInt64(end) : nil)
  }

  private mutating func change(_ request: ControlRequest) -> ControlReply {
    switch request {
    case .rename(let name, let to):
      guard var disk = disks[name] else { return .failed(.noSuchDisk(name)) }
      disk.name = to
      disks[name] = nil
      disks[to] = disk
      order[order.firstIndex(of: name)!] = to
      return .disk(disk)
    case .resize(let name, let size, let shrink, _):
      guard let disk = disks[name] else { return .failed(.noSuchDisk(name)) }
      guard size >= disk.size || shrink else { return .failed(.wouldShrink(name)) }
      disks[name]!.size = size
    case .set(let name, let change):
      guard disks[name] != nil else { return .failed(.noSuchDisk(name)) }
      if let durability = change.durability { disks[name]!.durability = durability }
      if let readOnly = change.readOnly { disks[name]!.readOnly = readOnly }
      if let comment = change.comment { disks[name]!.comment = comment }
    case .delete(let name, _, let force):
      guard let disk = disks[name] else { return .failed(.noSuchDisk(name)) }
      guard disk.connections == 0 || force else {
        return .failed(.inUse(name, connections: disk.connections))
      }
      disks[name] = nil
      order.removeAll { $0 == name }
    default: break
    }
    return .done
  }
}
