// The routes of the API.
//
//     GET    /healthz             is the pool served
//     GET    /v1/status           figures of pool and daemon
//     GET    /v1/latency          figures of the disks in use, streamed, in no particular order
//     GET    /v1/disks            all disks, streamed, in no particular order
//     POST   /v1/disks            create one
//     GET    /v1/disks/NAME       one disk
//     PATCH  /v1/disks/NAME       rename, resize or set attributes
//     DELETE /v1/disks/NAME       delete; ?snapshots=true, ?force=true
//     POST   /v1/flush            destage all that was logged before; replies when it is done
//     PUT    /v1/destage          halt destaging or let it go on (for tests)
//     POST   /v1/scrub            verify every block in use; replies at the end
//     GET    /v1/scrub            how far the scrub is
//     POST   /v1/volumes          add a volume to the pool's space
//
// Those of snapshots and clones are in SnapshotRoutes.swift.
//
// NAME is one segment of the path: a name's "/" is %2F, the "%" of its spelling %25.

import ControlAPI
import Core
import Hummingbird

struct Routes: Sendable {
  let service: ControlService

  func router(listeningAt address: ListenAddress) -> Router<BasicRequestContext> {
    let router = Router()
    router.add(middleware: ProblemReplies())
    router.add(middleware: HostCheck(address: address))
    router.add(middleware: BodyCheck())
    router.get("/healthz") { request, _ in try await health(request) }
    router.get("/v1/status") { request, _ in
      _ = try await request.json(NoFields.self, absent: NoFields())
      return try Response.json(await service.status())
    }
    router.get("/v1/latency") { request, _ in
      _ = try await request.json(NoFields.self, absent: NoFields())
      return try await Response.list(LatencyPager(service: service))
    }
    addDisks(to: router)
    addSnapshots(to: router)
    addMaintenance(to: router)
    return router
  }

  private func addDisks(to router: Router<BasicRequestContext>) {
    router.get("/v1/disks") { request, _ in
      _ = try await request.json(NoFields.self, absent: NoFields())
      return try await Response.list(DiskPager(service: service))
    }
    router.post("/v1/disks") { request, _ in try await create(request) }
    router.get("/v1/disks/:name") { request, context in
      _ = try await request.json(NoFields.self, absent: NoFields())
      return try Response.json(await service.disk(name(in: context)))
    }
    router.patch("/v1/disks/:name") { request, context in
      let change = try await request.json(ChangeDisk.self)
      return try Response.json(await apply(change, to: name(in: context)))
    }
    router.delete("/v1/disks/:name") { request, context in
      try await delete(request, name: name(in: context))
    }
  }

  private func addMaintenance(to router: Router<BasicRequestContext>) {
    router.post("/v1/flush") { request, _ in
      _ = try await request.json(NoFields.self, absent: NoFields())
      try await service.perform(.flush)
      return Response(status: .noContent)
    }
    router.put("/v1/destage") { request, _ in
      let destaging = try await request.json(Destaging.self)
      try await service.perform(.holdDestage(destaging.held))
      return Response(status: .noContent)
    }
    router.post("/v1/scrub") { request, _ in
      _ = try await request.json(NoFields.self, absent: NoFields())
      return try Response.json(await service.scrub(.scrub))
    }
    router.get("/v1/scrub") { request, _ in
      _ = try await request.json(NoFields.self, absent: NoFields())
      return try Response.json(await service.scrub(.scrubProgress))
    }
    router.post("/v1/volumes") { request, _ in
      let volume = try await request.json(AddVolume.self)
      guard volume.path.hasPrefix("/") else {
        throw Problem(.badRequest, "the volume's path must be absolute on the daemon's host")
      }
      return try Response.json(await service.addVolume(volume), status: 201)
    }
  }

  private func health(_ request: Request) async throws -> Response {
    _ = try await request.json(NoFields.self, absent: NoFields())
    let state = try await service.status().state
    return switch state {
    case .online, .full, .readOnly:
      try .json(Health(status: "ok", state: state))
    case .recovering, .suspended:
      try .json(Health(status: "unavailable", state: state), status: 503)
    }
  }

  private func create(_ request: Request) async throws -> Response {
    let create = try await request.json(CreateDisk.self)
    let name = try checked(creating: create.name)
    let disk = try await service.change(
      .create(name: name.spelled, size: create.size), leaving: name)
    let location = "/v1/disks/\(percentEncodedSegment(name.spelled))"
    return try .json(disk, status: 201, headers: [.location: location])
  }

  private func apply(_ change: ChangeDisk, to name: DiskName) async throws(Problem) -> Disk {
    let kinds = [change.name != nil, change.size != nil, change.changesAttributes]
    guard kinds.count(where: { $0 }) == 1 else {
      throw Problem(
        .badRequest,
        "one request changes one thing: name, or size, or durability, read_only and comment")
    }
    guard change.size != nil || (change.shrink ?? false, change.force ?? false) == (false, false)
    else {
      throw Problem(.badRequest, "shrink and force go with size")
    }
    if let newName = change.name {
      let to = try checked(creating: newName)
      return try await service.change(.rename(name: name.spelled, to: to.spelled), leaving: to)
    }
    if let size = change.size {
      return try await service.change(
        .resize(
          name: name.spelled, size: size, shrink: change.shrink ?? false,
          force: change.force ?? false), leaving: name)
    }
    if change.comment.map({ $0.utf8.count > maximumCommentBytes }) ?? false {
      throw Problem(.badRequest, "a comment has at most \(maximumCommentBytes) bytes")
    }
    let attributes = DiskAttributeChange(
      durability: change.durability?.engineValue, readOnly: change.readOnly,
      comment: change.comment)
    return try await service.change(
      .set(name: name.spelled, change: attributes), leaving: name)
  }

  private func delete(_ request: Request, name: DiskName) async throws -> Response {
    _ = try await request.json(NoFields.self, absent: NoFields())
    try await service.perform(
      .delete(
        name: name.spelled, withSnapshots: flag("snapshots", in: request),
        force: flag("force", in: request)))
    return Response(status: .noContent)
  }

  private func flag(_ key: String, in request: Request) throws(Problem) -> Bool {
    switch request.uri.queryParameters[key[...]] {
    case nil, "false": return false
    case "true": return true
    default: throw Problem(.badRequest, "“\(key)” must be true or false")
    }
  }

  func checked(creating text: String) throws(Problem) -> DiskName {
    do { return try DiskName(creating: text) } catch { throw Problem(.badName, error.description) }
  }

  private func name(in context: BasicRequestContext) throws(Problem) -> DiskName {
    let text = try segment(in: context, of: "disk")
    do { return try DiskName(text) } catch { throw Problem(.badName, error.description) }
  }

  /// The segment of the path that names a `kind` of thing, percent-decoded.
  func segment(in context: BasicRequestContext, of kind: String) throws(Problem) -> String {
    guard let segment = context.parameters.get("name"),
      let bytes = percentDecoded(segment.utf8),
      let text = String(validating: bytes, as: UTF8.self)
    else { throw Problem(.badName, "the \(kind)'s name in the path is not percent-encoded UTF-8") }
    return text
  }
}
