// What the pool commands do.

import ControlAPI
import ControlServer
import Core
import Daemon
import DeviceIO
import Glibc

func createPool(_ options: PoolCreateOptions) throws {
  try PoolCreation.create(
    directory: options.directory, log: options.log.map(NewMember.init),
    space: options.space.map(NewMember.init), name: options.name, force: options.force)
}

/// Through the daemon where one serves the pool, else on the devices themselves.
func addToPool(_ options: PoolAddOptions) throws {
  let socket = apiSocket(ofPool: options.directory)
  if case .unix(let path) = socket, access(path, F_OK) == 0 {
    let client = ControlClient(address: socket)
    var request = ControlClient.Request("POST", "/v1/volumes")
    request.body = try JSONText.encode(
      AddVolume(
        path: absolute(options.space.path), size: options.space.size?.bytes, force: options.force))
    request.isLong = true
    do {
      _ = try client.send(request)
      return
    } catch ControlClientError.notServed {
      // A socket that a killed daemon left behind.
    }
  }
  let members = try PoolMembers(directory: options.directory)
  _ = try PoolCreation.addVolume(
    NewMember(options.space), directory: options.directory, count: members.volumes.count,
    first: members.logLabel, force: options.force)
}

private func absolute(_ path: String) -> String {
  guard !path.hasPrefix("/"), let directory = getcwd(nil, 0) else { return path }
  defer { free(directory) }
  return String(cString: directory) + "/" + path
}

extension NewMember {
  init(_ path: MemberPath) { self.init(path: path.path, size: path.size?.bytes) }
}

/// A pool as its labels describe it.
struct PoolDescription: Codable {
  struct Member: Codable {
    var path: String
    var role: String
    var index: Int
    var uuid: String
    var size: UInt64
  }
  var pool: String
  var uuid: String
  var members: [Member]

  var text: String {
    var table = Table(columns: [
      .init(title: "ROLE"), .init(title: "INDEX", isNumber: true),
      .init(title: "SIZE", isNumber: true), .init(title: "PATH"), .init(title: "UUID"),
    ])
    table.rows = members.map {
      [$0.role, "\($0.index)", ByteSize(bytes: $0.size).description, $0.path, $0.uuid]
    }
    return "pool \(pool)  \(uuid)\n" + table.text
  }
}

/// The label of a device or file, read without a lock: looking is allowed while it is served.
private func peek(_ path: String) -> (label: DeviceLabel?, error: String?) {
  let fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK)
  guard fd >= 0 else { return (nil, "“\(path)” can't be opened: \(errorText(errno))") }
  defer { close(fd) }
  let end = lseek(fd, 0, SEEK_END)
  let memory = AlignedMemory(bytes: 2 * blockSize)
  guard end >= memory.count, pread(fd, memory.base, memory.count, 0) == memory.count else {
    return (nil, nil)
  }
  for copy in 0..<2 {
    if let label = try? DeviceLabel(
      decoding: memory.base + copy * blockSize, actualSizeInBlocks: UInt64(end) >> blockShift)
    {
      return (label, nil)
    }
  }
  return (nil, nil)
}

private func describe(_ found: [(path: String, label: DeviceLabel)]) -> [PoolDescription] {
  var pools: [PoolDescription] = []
  for (path, label) in found {
    let member = PoolDescription.Member(
      path: path, role: label.role == .log ? "log" : "volume", index: Int(label.volumeIndex),
      uuid: label.member.description, size: label.sizeInBlocks << blockShift)
    if let at = pools.firstIndex(where: { $0.uuid == label.pool.description }) {
      pools[at].members.append(member)
    } else {
      pools.append(
        PoolDescription(
          pool: label.poolName, uuid: label.pool.description, members: [member]))
    }
  }
  for at in pools.indices {
    pools[at].members.sort { ($0.role, $0.index) < ($1.role, $1.index) }
  }
  return pools
}

func showPool(_ directory: String, json: Bool) throws {
  let hint = try PoolDirectory(readingFrom: directory)
  var found: [(String, DeviceLabel)] = []
  for path in [hint.log] + hint.space {
    let resolved = PoolDirectory.resolve(path, in: directory)
    let (label, error) = peek(resolved)
    if let label { found.append((resolved, label)) }
    if let error {
      Output.report(error)
    } else if label == nil {
      Output.report("“\(resolved)” carries no valid label of Sluice")
    }
  }
  guard let pool = describe(found).first, found.count == hint.space.count + 1 else {
    throw CommandError(
      "not all devices of the pool are there; find them with `sluice pool scan`, and name them with "
        + "`sluice pool open \(directory) DEVICE...`")
  }
  try json ? Output.write(JSONText.encode(pool)) : Output.print(pool.text)
}

func scanForPools(_ devices: [String], json: Bool) throws {
  let found = (devices.isEmpty ? blockDevices() : devices).compactMap { path in
    let (label, error) = peek(path)
    if let error, !devices.isEmpty { Output.report(error) }
    return label.map { (path, $0) }
  }
  let pools = describe(found)
  if json { return try Output.write(JSONText.encode(pools)) }
  if pools.isEmpty { return Output.report("no pool was found") }
  try Output.print(pools.map(\.text).joined(separator: "\n"))
}

/// This host's block devices.
private func blockDevices() -> [String] {
  guard let directory = opendir("/sys/class/block") else { return [] }
  defer { closedir(directory) }
  var paths: [String] = []
  while let entry = readdir(directory) {
    let name = withUnsafeBytes(of: &entry.pointee.d_name) {
      String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
    }
    if !name.hasPrefix(".") { paths.append("/dev/\(name)") }
  }
  return paths.sorted()
}

/// Writes the hint of a pool whose devices are named in any order.
func openPool(_ directory: String, devices: [String]) throws {
  var log: String?
  var volumes: [(index: UInt16, path: String)] = []
  for path in devices {
    let (label, error) = peek(path)
    guard let label else {
      throw CommandError(error ?? "“\(path)” carries no valid label of Sluice")
    }
    if label.role == .log { log = path } else { volumes.append((label.volumeIndex, path)) }
  }
  guard let log else { throw CommandError("none of the devices is a log; name the pool's log too") }
  let space = volumes.sorted { $0.index < $1.index }.map(\.path)
  let members = try PoolMembers(log: log, space: space, access: .readWrite)
  guard mkdir(directory, 0o755) == 0 || errno == EEXIST else {
    throw CommandError("the directory “\(directory)” can't be made: \(errorText(errno))")
  }
  try PoolDirectory(
    uuid: members.logLabel.pool.description, name: members.logLabel.poolName,
    log: PoolDirectory.hint(for: log, in: directory),
    space: space.map { PoolDirectory.hint(for: $0, in: directory) }
  ).write(to: directory)
}
