import Core
import Synchronization

/// An engine of nothing but a table of disks, which answers at once.
final class FakeEngine: Sendable {
  struct State {
    var disks: [String: DiskInfo] = [:]
    /// Names in the order of creation: the order of the list.
    var order: [String] = []
    var snapshots: [SnapshotInfo] = []
    /// What every comparison finds.
    var changes: [ChangedRange] = []
    /// The comparisons and rollbacks that were asked for.
    var asked: [String] = []
    var flushes = 0
    var lists = 0
    /// Runs when snapshots are taken.
    var onSnapshot: (@Sendable () -> Void)?
    var scrub = ScrubReport()
    var status = PoolStatus()
    /// By disk; each call of `latency` counts one write of 4 KiB and 1 ms more on each.
    var latencies: [DiskLatency] = []
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
    case .latency(let cursor, let limit): return latency(from: Int(cursor ?? 0), limit: limit)
    case .snapshot, .listSnapshots, .deleteSnapshot, .renameSnapshot, .holdSnapshot, .rollback,
      .clone, .diff:
      return answerSnapshots(request)
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

  private mutating func latency(from start: Int, limit: Int) -> ControlReply {
    let end = min(latencies.count, start + limit)
    for i in start..<end {
      latencies[i].uptimeNanoseconds += 100_000_000
      latencies[i].figures.record(
        .write, OperationTime(total: 1_000_000, queue: 250_000), bytes: 4096)
    }
    if end == latencies.count { status.uptimeNanoseconds += 100_000_000 }
    return .latency(Array(latencies[start..<end]), next: end < latencies.count ? UInt64(end) : nil)
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
    case .delete(let name, let withSnapshots, let force):
      guard let disk = disks[name] else { return .failed(.noSuchDisk(name)) }
      guard disk.snapshots == 0 || withSnapshots else {
        return .failed(.hasSnapshots(name, count: disk.snapshots))
      }
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

extension FakeEngine.State {
  fileprivate mutating func answerSnapshots(_ request: ControlRequest) -> ControlReply {
    switch request {
    case .snapshot(let names): return take(names)
    case .listSnapshots(let disk, let cursor, let limit):
      if let disk, disks[disk] == nil { return .failed(.noSuchDisk(disk)) }
      let all = snapshots.filter { disk == nil || $0.disk == disk }
      let start = Int(cursor ?? 0)
      let end = min(all.count, start + limit)
      return .snapshots(Array(all[start..<end]), next: end < all.count ? UInt64(end) : nil)
    case .clone(let name, let prefix, let count):
      guard find(name) != nil else { return .failed(.noSuchSnapshot(name)) }
      let names = count.map { (1...$0).map { "\(prefix)-\($0)" } } ?? [prefix]
      for clone in names where disks[clone] != nil { return .failed(.alreadyExists(clone)) }
      for clone in names {
        add(name: clone, size: 1 << 20)
        disks[clone]!.origin = name.description
      }
      return .done
    case .diff(let old, let new, let from, let limit):
      guard find(old) != nil else { return .failed(.noSuchSnapshot(old)) }
      let place =
        switch new {
        case .disk(let name): name
        case .snapshot(let name): name.description
        }
      asked.append("diff \(old) \(place)")
      let later = changes.filter { $0.offset >= from }
      let next = later.count > limit ? later[limit].offset : nil
      return .changes(Array(later.prefix(limit)), next: next)
    default: return changeSnapshot(request)
    }
  }

  private mutating func take(_ names: [SnapshotName]) -> ControlReply {
    onSnapshot?()
    guard Set(names.map(\.disk)).count == names.count else {
      return .failed(.badName("a disk is named twice; name each disk once"))
    }
    for name in names {
      if disks[name.disk] == nil { return .failed(.noSuchDisk(name.disk)) }
      if find(name) != nil { return .failed(.snapshotExists(name)) }
    }
    let group = ObjectID(UInt64(snapshots.count) + 256)
    for name in names {
      snapshots.append(
        SnapshotInfo(
          disk: name.disk, name: name.snapshot, id: ObjectID(UInt64(snapshots.count) + 256),
          created: 1_772_366_400_000_000_000, size: disks[name.disk]!.size, used: 8192,
          exclusive: 4096, clones: 0, group: group, isHeld: false))
      disks[name.disk]!.snapshots += 1
    }
    return .done
  }

  private mutating func changeSnapshot(_ request: ControlRequest) -> ControlReply {
    switch request {
    case .deleteSnapshot(let name):
      guard let index = find(name) else { return .failed(.noSuchSnapshot(name)) }
      if snapshots[index].isHeld { return .failed(.isHeld(name)) }
      snapshots.remove(at: index)
    case .renameSnapshot(let name, let new):
      guard let index = find(name) else { return .failed(.noSuchSnapshot(name)) }
      let target = SnapshotName(disk: name.disk, snapshot: new)
      if find(target) != nil { return .failed(.snapshotExists(target)) }
      snapshots[index].name = new
    case .holdSnapshot(let name, let held):
      guard let index = find(name) else { return .failed(.noSuchSnapshot(name)) }
      snapshots[index].isHeld = held
    case .rollback(let name, let force):
      guard find(name) != nil else { return .failed(.noSuchSnapshot(name)) }
      let clients = disks[name.disk]?.connections ?? 0
      if clients > 0, !force { return .failed(.inUse(name.disk, connections: clients)) }
      asked.append("rollback \(name)")
    default: break
    }
    return .done
  }

  private func find(_ name: SnapshotName) -> Int? {
    snapshots.firstIndex { $0.disk == name.disk && $0.name == name.snapshot }
  }
}
