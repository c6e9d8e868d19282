import Core
import DeviceIO
import Glibc

/// A member device to be: an existing device or file, or a file to make.
package struct NewMember: Sendable {
  package var path: String
  /// Size of the file to make; nil for what exists.
  package var size: UInt64?
  package init(path: String, size: UInt64? = nil) {
    self.path = path
    self.size = size
  }
}

/// Makes pools and adds volumes.
package enum PoolCreation {
  private static let defaultLog: UInt64 = 10 << 30
  private static let defaultSpace: UInt64 = 1 << 40
  /// A volume holds its label area, and some space behind it.
  private static let minimumVolume: UInt64 = 32 << 20

  /// Makes a pool in `directory`.
  ///
  /// - Parameter force: take devices and files that hold data, which is lost.
  package static func create(
    directory: String, log: NewMember?, space: [NewMember], name: String, force: Bool
  ) throws {
    try makeDirectory(directory)
    if access(PoolDirectory.file(directory), F_OK) == 0, !force {
      throw PoolError(
        "“\(directory)” is a pool already; choose another directory, or use --force to lose it")
    }
    let log = try log ?? NewMember(path: directory + "/vlog.img", size: logSize(directory))
    let space =
      space.isEmpty ? [NewMember(path: directory + "/vspace0.img", size: defaultSpace)] : space
    let logFile = try open(log, isLog: true, force: force)
    let files = try space.map { try open($0, isLog: false, force: force) }
    var random = SystemRandomNumberGenerator()
    let layout = PoolLayout(
      pool: UUIDBytes(random: &random), name: name, created: wallClockNanoseconds(),
      log: .init(
        member: UUIDBytes(random: &random), sizeInBlocks: logFile.description.size >> blockShift),
      volumes: files.map {
        .init(
          member: UUIDBytes(random: &random), sizeInBlocks: $0.description.size >> blockShift)
      })
    for write in layout.writes() {
      let file = write.device == .log ? logFile : files[Int(write.device.raw) - 1]
      try writeChanges(file, offset: write.offset, write.memory)
    }
    for file in [logFile] + files { try file.flush() }
    try PoolDirectory(
      uuid: layout.pool.description, name: name,
      log: PoolDirectory.hint(for: log.path, in: directory),
      space: space.map { PoolDirectory.hint(for: $0.path, in: directory) }
    ).write(to: directory)
  }

  private static func makeDirectory(_ directory: String) throws(PoolError) {
    var path = directory.hasPrefix("/") ? "" : "."
    for part in directory.split(separator: "/") {
      path += "/" + part
      guard mkdir(path, 0o755) == 0 || errno == EEXIST else {
        throw PoolError("the directory “\(directory)” can't be made: \(errorText(errno))")
      }
    }
  }

  private static func logSize(_ directory: String) throws -> UInt64 {
    let free = fileSystemFree(at: directory) ?? defaultLog
    let size = min(defaultLog, free / 10) & ~((1 << 20) - 1)
    guard size >= LogLayout.minimumBytes else {
      throw PoolError(
        "the file system of “\(directory)” has \(free) bytes left, too few for a log; free space, "
          + "or put the log elsewhere with --log PATH:SIZE")
    }
    return size
  }

  /// Opens and locks a member to be, made first where it does not exist.
  static func open(_ member: NewMember, isLog: Bool, force: Bool) throws -> DeviceFile {
    let isNew = access(member.path, F_OK) != 0
    if isNew {
      guard let size = member.size else {
        throw PoolError(
          "there is no file or device “\(member.path)”; give a size (PATH:SIZE) to make a file")
      }
      try DeviceFile.create(path: member.path, size: size, writtenInFull: isLog)
    }
    let file = try DeviceFile(path: member.path)
    let minimum = isLog ? LogLayout.minimumBytes : minimumVolume
    guard file.description.size >= minimum else {
      if isNew { unlink(member.path) }
      throw PoolError(
        "“\(member.path)” is too small: a \(isLog ? "log" : "volume") has at least "
          + "\(minimum >> 20) MiB")
    }
    if !isNew, !force { try refuseData(file) }
    if !isNew, isLog, file.description.isSparseFile { try fill(file) }
    return file
  }

  /// Throws where the beginning of a device is not all zeros.
  private static func refuseData(_ file: DeviceFile) throws {
    if let label = try? PoolMembers.label(of: file) {
      throw PoolError(
        "“\(file.path)” belongs to pool “\(label.poolName)”; use --force to lose what it holds")
    }
    let memory = try file.read(offset: 0, length: Int(min(file.description.size, 1 << 20)))
    for at in stride(from: 0, to: memory.count, by: blockSize)
    where !isZeroBlock(memory.base + at) {
      throw PoolError("“\(file.path)” holds data; use --force to overwrite it")
    }
  }

  /// Writes a sparse log in full, so that an append never allocates.
  private static func fill(_ file: DeviceFile) throws {
    let zeros = AlignedMemory(bytes: 1 << 20)
    var at: UInt64 = 0
    while at < file.description.size {
      let length = min(UInt64(zeros.count), file.description.size - at)
      try file.write(offset: at, from: zeros.base, length: Int(length), durable: false)
      at += length
    }
    try file.flush()
  }

  /// Writes the blocks that differ from what is there, so that a new sparse file stays sparse; the
  /// first ones in any case: a checkpoint must be able to write its roots in a full file system.
  private static func writeChanges(
    _ file: DeviceFile, offset: UInt64, _ memory: AlignedMemory
  ) throws {
    let old = try file.read(offset: offset, length: memory.count)
    for at in stride(from: 0, to: memory.count, by: blockSize)
    where at < Int(VolumeLayout.rootRing) * blockSize
      || memcmp(old.base + at, memory.base + at, blockSize) != 0
    {
      try file.write(
        offset: offset + UInt64(at), from: memory.base + at, length: blockSize, durable: true)
    }
  }

  /// Labels a new volume `index` of the pool that `first` is a label of. It belongs to the pool
  /// once `pool.json` names it and the engine knows it.
  package static func label(_ file: DeviceFile, as index: Int, of first: DeviceLabel) throws
    -> DeviceLabel
  {
    var random = SystemRandomNumberGenerator()
    let label = PoolLayout.volumeLabel(
      pool: first.pool, name: first.poolName, created: wallClockNanoseconds(), index: index,
      member: .init(
        member: UUIDBytes(random: &random), sizeInBlocks: file.description.size >> blockShift))
    let roots = AlignedMemory(
      bytes: Int(VolumeLayout.units * VolumeLayout.rootRing) * blockSize)
    try writeChanges(file, offset: VolumeLayout.roots << blockShift, roots)
    let memory = AlignedMemory(bytes: blockSize)
    label.encode(to: memory.base)
    for block in [VolumeLayout.label, VolumeLayout.labelCopy] {
      try file.write(
        offset: block << blockShift, from: memory.base, length: blockSize, durable: true)
    }
    return label
  }

  /// Makes, locks and labels the next volume of the pool in `directory`, and names it in the
  /// pool's hint; `count` is how many it has.
  package static func addVolume(
    _ member: NewMember, directory: String, count: Int, first: DeviceLabel, force: Bool
  ) throws -> (file: DeviceFile, label: DeviceLabel) {
    guard count < 1 << 15 else { throw PoolError("the pool has as many volumes as it can have") }
    let file = try open(member, isLog: false, force: force)
    let label = try label(file, as: count, of: first)
    var hint = try PoolDirectory(readingFrom: directory)
    hint.space.append(PoolDirectory.hint(for: member.path, in: directory))
    try hint.write(to: directory)
    return (file, label)
  }
}
