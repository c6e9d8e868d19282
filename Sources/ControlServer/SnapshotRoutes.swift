// The routes of snapshots, clones and differences.
//
//     GET    /v1/snapshots                 all, streamed; ?disk=NAME: one disk's, oldest first
//     POST   /v1/snapshots                 take some, all at one instant or none
//     PATCH  /v1/snapshots/SNAP            rename, hold or release
//     DELETE /v1/snapshots/SNAP            delete
//     POST   /v1/snapshots/SNAP/rollback   make the disk what the snapshot is
//     POST   /v1/clones                    make one clone, or a number of them, all or none
//     GET    /v1/diff                      ?from=SNAP: what changed since, streamed; &to=SNAP or
//                                          &to=DISK, the disk as it is without it
//
// SNAP is DISK@SNAP as one segment of the path, a "/" in the disk's name %2F.

import ControlAPI
import Core
import Hummingbird

extension Routes {
  func addSnapshots(to router: Router<BasicRequestContext>) {
    router.get("/v1/snapshots") { request, _ in
      _ = try await request.json(NoFields.self, absent: NoFields())
      let disk = try parameter("disk", in: request).map { try checked(existing: $0) }
      return try await Response.list(SnapshotPager(service: service, disk: disk))
    }
    router.post("/v1/snapshots") { request, _ in try await takeSnapshots(request) }
    router.patch("/v1/snapshots/:name") { request, context in
      let change = try await request.json(ChangeSnapshot.self)
      try await apply(change, to: snapshot(in: context))
      return Response(status: .noContent)
    }
    router.delete("/v1/snapshots/:name") { request, context in
      _ = try await request.json(NoFields.self, absent: NoFields())
      try await service.perform(.deleteSnapshot(snapshot(in: context)))
      return Response(status: .noContent)
    }
    router.post("/v1/snapshots/:name/rollback") { request, context in
      let rollback = try await request.json(Rollback.self, absent: Rollback())
      try await service.perform(
        .rollback(snapshot(in: context), force: rollback.force ?? false))
      return Response(status: .noContent)
    }
    router.post("/v1/clones") { request, _ in try await clone(request) }
    router.get("/v1/diff") { request, _ in try await diff(request) }
  }

  private func takeSnapshots(_ request: Request) async throws -> Response {
    let create = try await request.json(CreateSnapshots.self)
    guard !create.snapshots.isEmpty else {
      throw Problem(.badRequest, "“snapshots” is empty: name at least one DISK@SNAP")
    }
    var seen: Set<DiskSnapshot> = []
    let names = try create.snapshots.map { text in
      let name = try checked(snapshot: text)
      guard seen.insert(name).inserted else {
        throw Problem(.badRequest, "“\(name)” is named twice: name each snapshot once")
      }
      return name
    }
    try await service.perform(.snapshot(names.map(SnapshotName.init)))
    return try .json(CreateSnapshots(snapshots: names.map(\.description)), status: 201)
  }

  private func apply(_ change: ChangeSnapshot, to name: SnapshotName) async throws(Problem) {
    switch (change.name, change.held) {
    case (let new?, nil):
      guard DiskSnapshot.isSnapshot(new) else {
        throw Problem(.badName, DiskSnapshotError.badSnapshot(new).description)
      }
      try await service.perform(.renameSnapshot(name, to: new))
    case (nil, let held?):
      try await service.perform(.holdSnapshot(name, held))
    default:
      throw Problem(.badRequest, "one request changes one thing: name, or held")
    }
  }

  private func clone(_ request: Request) async throws -> Response {
    let create = try await request.json(CreateClones.self)
    if let count = create.count, !CreateClones.counts.contains(count) {
      throw Problem(
        .badRequest,
        "“count” must be from \(CreateClones.counts.lowerBound) to "
          + "\(CreateClones.counts.upperBound); make more with more requests")
    }
    let snapshot = try checked(snapshot: create.snapshot)
    let name = try checked(creating: create.name)
    let names: (first: DiskName, last: DiskName)
    do { names = try cloneNames(name, count: create.count) } catch {
      throw Problem(.badName, error.description)
    }
    try await service.perform(
      .clone(SnapshotName(snapshot), name: name.spelled, count: create.count))
    return try .json(
      Clones(
        count: create.count ?? 1, first: names.first.spelled, last: names.last.spelled),
      status: 201)
  }

  private func diff(_ request: Request) async throws -> Response {
    _ = try await request.json(NoFields.self, absent: NoFields())
    guard let from = parameter("from", in: request) else {
      throw Problem(.badRequest, "“from” is missing: name the older state as DISK@SNAP")
    }
    let old = try checked(snapshot: from)
    var new = DiskState.disk(old.disk)
    if let text = parameter("to", in: request) {
      do { new = try DiskState(text) } catch { throw Problem(.badName, error.description) }
    }
    return try await Response.list(
      ChangePager(service: service, from: SnapshotName(old), to: SnapshotOrDisk(new)))
  }

  private func parameter(_ key: String, in request: Request) -> String? {
    request.uri.queryParameters[key[...]].map(String.init)
  }

  private func checked(existing text: String) throws(Problem) -> DiskName {
    do { return try DiskName(text) } catch { throw Problem(.badName, error.description) }
  }

  private func checked(snapshot text: String) throws(Problem) -> DiskSnapshot {
    do { return try DiskSnapshot(text) } catch { throw Problem(.badName, error.description) }
  }

  private func snapshot(in context: BasicRequestContext) throws(Problem) -> SnapshotName {
    SnapshotName(try checked(snapshot: segment(in: context, of: "snapshot")))
  }
}
