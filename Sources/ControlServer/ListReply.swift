// Lists of any length as JSON arrays: asked of the engine page by page, written as they come, so
// that no number of entries takes much memory.

import ControlAPI
import Core
import Hummingbird
import NIOCore

/// Entries asked of the engine at once: enough to make the calls cheap, few enough to keep guests'
/// requests from waiting.
private let pageSize = 256

/// Yields a list in parts.
protocol ListPager: Sendable {
  associatedtype Entry: Sendable
  /// The next part, which may be empty; nil at the end.
  mutating func next() async throws(Problem) -> [Entry]?
  static func append(_ entry: Entry, to bytes: inout [UInt8])
}

/// Where a pager stands in the engine's list.
private enum Place: Sendable {
  case start
  case at(UInt64)
  case end

  var cursor: UInt64? {
    if case .at(let cursor) = self { cursor } else { nil }
  }

  init(next: UInt64?) { self = next.map { .at($0) } ?? .end }
}

struct DiskPager: ListPager {
  let service: ControlService
  private var place = Place.start

  init(service: ControlService) { self.service = service }

  mutating func next() async throws(Problem) -> [DiskInfo]? {
    if case .end = place { return nil }
    guard
      case .disks(let disks, let next) =
        try await service.ask(.list(cursor: place.cursor, limit: pageSize))
    else { throw .unfitting }
    place = Place(next: next)
    return disks
  }

  static func append(_ entry: DiskInfo, to bytes: inout [UInt8]) {
    Disk(entry).appendJSON(to: &bytes)
  }
}

struct SnapshotPager: ListPager {
  let service: ControlService
  /// Nil: those of all disks.
  let disk: DiskName?
  private var place = Place.start

  init(service: ControlService, disk: DiskName?) {
    self.service = service
    self.disk = disk
  }

  mutating func next() async throws(Problem) -> [SnapshotInfo]? {
    if case .end = place { return nil }
    let request = ControlRequest.listSnapshots(
      disk: disk?.spelled, cursor: place.cursor, limit: pageSize)
    guard case .snapshots(let snapshots, let next) = try await service.ask(request) else {
      throw .unfitting
    }
    place = Place(next: next)
    return snapshots
  }

  static func append(_ entry: SnapshotInfo, to bytes: inout [UInt8]) {
    Snapshot(entry).appendJSON(to: &bytes)
  }
}

/// The disks that had requests, with how many and how long they took.
struct LatencyPager: ListPager {
  let service: ControlService
  private var place = Place.start

  init(service: ControlService) { self.service = service }

  mutating func next() async throws(Problem) -> [DiskLatency]? {
    if case .end = place { return nil }
    guard
      case .latency(let disks, let next) =
        try await service.ask(.latency(cursor: place.cursor, limit: pageSize))
    else { throw .unfitting }
    place = Place(next: next)
    return disks
  }

  static func append(_ entry: DiskLatency, to bytes: inout [UInt8]) {
    DiskTimes(entry).appendJSON(to: &bytes)
  }
}

/// The ranges that differ; neighbours of one kind are one range, wherever the engine cut them.
struct ChangePager: ListPager {
  let service: ControlService
  let old: SnapshotName
  let new: SnapshotOrDisk
  private var place = Place.start
  /// May go on in the next page.
  private var last: ChangedRange?

  init(service: ControlService, from old: SnapshotName, to new: SnapshotOrDisk) {
    self.service = service
    self.old = old
    self.new = new
  }

  mutating func next() async throws(Problem) -> [ChangedRange]? {
    if case .end = place {
      defer { last = nil }
      return last.map { [$0] }
    }
    let request = ControlRequest.diff(old, to: new, from: place.cursor ?? 0, limit: pageSize)
    guard case .changes(let changes, let next) = try await service.ask(request) else {
      throw .unfitting
    }
    place = Place(next: next)
    var whole: [ChangedRange] = []
    for change in changes {
      if let before = last, before.isZero == change.isZero,
        before.offset + before.length == change.offset
      {
        last?.length += change.length
      } else {
        if let before = last { whole.append(before) }
        last = change
      }
    }
    return whole
  }

  static func append(_ entry: ChangedRange, to bytes: inout [UInt8]) {
    Change(entry).appendJSON(to: &bytes)
  }
}

extension Response {
  /// An array that is written as `pager` yields its parts. An error in the first part is a problem
  /// like any other; one on the way breaks the connection: the array never ends.
  static func list(_ pager: some ListPager) async throws -> Response {
    var pager = pager
    let first = try await pager.next()
    let body = ResponseBody { [pager] writer in
      try await write(first, then: pager, to: &writer)
      try await writer.finish(nil)
    }
    return Response(
      status: .ok, headers: [.contentType: "application/json", .cacheControl: "no-store"],
      body: body)
  }

  private static func write<Pager: ListPager>(
    _ first: [Pager.Entry]?, then pager: Pager, to writer: inout any ResponseBodyWriter
  ) async throws {
    var pager = pager
    var page = first
    var separator = UInt8(ascii: "[")
    var bytes: [UInt8] = []
    while let entries = page {
      bytes.removeAll(keepingCapacity: true)
      for entry in entries {
        bytes += [separator, UInt8(ascii: "\n")]
        Pager.append(entry, to: &bytes)
        separator = UInt8(ascii: ",")
      }
      if !bytes.isEmpty { try await writer.write(ByteBuffer(bytes: bytes)) }
      page = try await pager.next()
    }
    let end = separator == UInt8(ascii: "[") ? "[]\n" : "\n]\n"
    try await writer.write(ByteBuffer(bytes: Array(end.utf8)))
  }
}
