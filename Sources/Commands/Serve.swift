// The daemon: opens the pool, runs the engine's loop on this thread and the API beside it.

import ControlAPI
import ControlServer
import Core
import Daemon
import DeviceIO
import Glibc
import Synchronization

/// Serves a pool until SIGTERM or SIGINT.
func runServe(_ options: ServeOptions) throws {
  signal(SIGPIPE, SIG_IGN)
  raiseDescriptorLimit()
  let members = try PoolMembers(directory: options.pool)
  var configuration = try members.configuration()
  configuration.cacheBytes = Int(options.cache.bytes)
  configuration.durability = options.durability == .always ? .always : .flush
  configuration.scatteredRun = options.scatteredRun
  let listeners = try options.nbd.flatMap {
    try Listener.listen(on: DeviceIO.ListenAddress($0.description))
  }
  let reactor = try Reactor()
  reactor.attach(members.log, as: .log)
  for (v, file) in members.volumes.enumerated() { reactor.attach(file, as: .volume(v)) }
  for file in [members.log] + members.volumes where !file.directIO {
    Output.report("“\(file.path)” can't do direct I/O; it is served through the page cache, slower")
  }
  let errors = ErrorReports()
  reactor.onError = { errors.add($0, on: $1, error: $2) }
  let api = RunningAPI(options)
  let loop = EventLoop(
    engine: Engine(configuration), reactor: reactor, listeners: listeners,
    onReady: { api.start() })
  let volumes = VolumeAdder(
    directory: options.pool, label: members.logLabel, count: members.volumes.count,
    mailbox: loop.mailbox)
  let backing = BackingFileSystems(members.volumes.map(\.path))
  api.prepare(
    ControlService(
      engine: { [mailbox = loop.mailbox] in backing.bounding(await mailbox.send($0)) },
      addVolume: { request async throws(Problem) in
        let volume = try await volumes.add(request)
        backing.add(volume.path)
        return volume
      },
      version: sluiceVersion), mailbox: loop.mailbox)
  StopSignals.install(waking: reactor.waker)
  let outcome = loop.run()
  if let why = api.stop() { throw CommandError(why) }
  if case .failed(let why) = outcome { throw CommandError(why) }
}

/// The API's server: started on a thread of its own once the engine serves.
private final class RunningAPI: Sendable {
  private struct State {
    var service: ControlService?
    var mailbox: Mailbox?
    var server: ControlServer?
    var failure: String?
  }

  private let options: ServeOptions
  private let state = Mutex(State())

  init(_ options: ServeOptions) { self.options = options }

  func prepare(_ service: ControlService, mailbox: Mailbox) {
    state.withLock {
      $0.service = service
      $0.mailbox = mailbox
    }
  }

  /// Listens, then says that the daemon is ready.
  func start() {
    startThread { [self] in
      guard let service = state.withLock({ $0.service }) else { return }
      do {
        let server = ControlServer(service: service, addresses: options.api)
        _ = try server.start()
        state.withLock { $0.server = server }
        try Output.print("ready")
        notifySystemd("READY=1")
      } catch {
        let mailbox = state.withLock {
          $0.failure = "\(error)"
          return $0.mailbox
        }
        mailbox?.send(.stop) { _ in }
      }
    }
  }

  /// Stops serving; why it could not serve, if so.
  func stop() -> String? {
    state.withLock { $0.server }?.stop()
    return state.withLock { $0.failure }
  }
}

/// Says on standard error which device failed at what, once a second at most.
private final class ErrorReports {
  private var last: UInt64 = 0
  private var suppressed = 0

  func add(_ op: DeviceOp, on file: DeviceFile, error: Int32) {
    let what =
      switch op.kind {
      case .read: "a read"
      case .write, .writeDurable: "a write"
      case .flush: "a flush"
      // What a file system can't give or take back is no fault of the device.
      case .discard, .allocate: ""
      }
    if what.isEmpty { return }
    let now = monotonicNanoseconds()
    guard last == 0 || now >= last + 1_000_000_000 else {
      suppressed += 1
      return
    }
    let place = op.kind == .flush ? "" : " of \(op.length) bytes at offset \(op.offset)"
    let more = suppressed > 0 ? " (and \(suppressed) more errors)" : ""
    Output.report("“\(file.path)”: \(what)\(place) failed: \(errorText(error))\(more)")
    (last, suppressed) = (now, 0)
  }
}

/// The file systems that hold sparse volumes: the pool has no more free space than they (R23).
private final class BackingFileSystems: Sendable {
  private let paths: Mutex<[String]>

  init(_ paths: [String]) { self.paths = Mutex(paths) }

  func add(_ path: String) { paths.withLock { $0.append(path) } }

  /// The reply, with the free space of a status no larger than what can be had.
  func bounding(_ reply: ControlReply) -> ControlReply {
    guard case .status(var status) = reply else { return reply }
    status.spaceFree -= status.spaceUnbacked - min(status.spaceUnbacked, free())
    return .status(status)
  }

  private func free() -> UInt64 {
    var seen: Set<dev_t> = []
    var sum: UInt64 = 0
    for path in paths.withLock({ $0 }) {
      var file = stat()
      guard stat(path, &file) == 0, seen.insert(file.st_dev).inserted else { continue }
      sum += fileSystemFree(at: path) ?? 0
    }
    return sum
  }
}

/// Adds volumes to the pool that is served, one at a time.
private actor VolumeAdder {
  private let directory: String
  private let label: DeviceLabel
  private var count: Int
  private let mailbox: Mailbox

  init(directory: String, label: DeviceLabel, count: Int, mailbox: Mailbox) {
    self.directory = directory
    self.label = label
    self.count = count
    self.mailbox = mailbox
  }

  func add(_ request: AddVolume) async throws(Problem) -> Volume {
    let added: (file: DeviceFile, label: DeviceLabel)
    do {
      added = try PoolCreation.addVolume(
        NewMember(path: request.path, size: request.size), directory: directory, count: count,
        first: label, force: request.force ?? false)
    } catch {
      throw Problem(.refused, "\(error)")
    }
    let index = DeviceIndex.volume(count)
    count += 1
    var description = added.file.description
    description.size = added.label.sizeInBlocks << blockShift
    let change = ControlRequest.addVolume(
      device: index, uuid: added.label.member, description: description)
    let reply = await withCheckedContinuation { done in
      mailbox.attach(added.file, as: index, then: change) { done.resume(returning: $0) }
    }
    if case .failed(let error) = reply { throw Problem(.unexpected, error.description) }
    return Volume(
      path: request.path, uuid: added.label.member.description, size: description.size)
  }
}

/// Runs `body` on a new thread.
func startThread(_ body: @escaping @Sendable () -> Void) {
  final class Box {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }
  var thread = pthread_t()
  let box = Unmanaged.passRetained(Box(body)).toOpaque()
  let error = pthread_create(
    &thread, nil,
    { argument in
      Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
      return nil
    }, box)
  if error == 0 { pthread_detach(thread) }
}

/// Tells systemd, where it has started us (sd_notify(3)).
func notifySystemd(_ message: String) {
  guard let path = getenv("NOTIFY_SOCKET").map({ String(cString: $0) }), !path.isEmpty else {
    return
  }
  let fd = socket(AF_UNIX, Int32(SOCK_DGRAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue), 0)
  guard fd >= 0 else { return }
  defer { close(fd) }
  var address = sockaddr_un()
  address.sun_family = sa_family_t(AF_UNIX)
  var bytes = Array(path.utf8)
  // An abstract socket's name starts with a zero byte.
  if bytes[0] == UInt8(ascii: "@") { bytes[0] = 0 }
  guard bytes.count < MemoryLayout.size(ofValue: address.sun_path) else { return }
  withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: bytes) }
  let length = socklen_t(MemoryLayout<sa_family_t>.size + bytes.count)
  _ = withUnsafePointer(to: &address) {
    $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
      sendto(fd, message, message.utf8.count, 0, $0, length)
    }
  }
}
