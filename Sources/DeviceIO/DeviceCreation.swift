import CURing
import Core
import Glibc

extension DeviceFile {
  /// Creates a file to be a member device and makes it, with its name, durable.
  ///
  /// - Parameters:
  ///   - size: in bytes; rounded up to whole blocks.
  ///   - writtenInFull: every block is written with zeros, so that later writes allocate nothing
  ///     and change no metadata of the file system; else the file is sparse.
  /// - Throws: `alreadyExists`, `noRoom`, `tooLarge`, `cannotCreate`, `failed`. No file is left
  ///   then.
  package static func create(
    path: String, size: UInt64, writtenInFull: Bool
  ) throws(DeviceError) {
    let size = roundUp(size, to: UInt64(blockSize))
    guard size <= UInt64(Int64.max) else { throw .tooLarge(path: path, size: size) }
    let fd = Glibc.open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
    guard fd >= 0 else {
      if errno == EEXIST { throw .alreadyExists(path: path) }
      throw .cannotCreate(path: path, errno: errno)
    }
    defer { Glibc.close(fd) }
    do throws(DeviceError) {
      if writtenInFull {
        try reserve(fd, path, size)
        try writeZeros(fd, path, size)
      } else {
        try truncate(fd, path, size)
      }
      guard fsync(fd) == 0 else {
        throw .failed(operation: "flush", path: path, offset: 0, errno: errno)
      }
      try syncDirectory(of: path)
    } catch {
      unlink(path)
      throw error
    }
  }

  private static func truncate(
    _ fd: Int32, _ path: String, _ size: UInt64
  ) throws(DeviceError) {
    guard ftruncate(fd, off_t(size)) == 0 else {
      if errno == EFBIG || errno == EINVAL { throw .tooLarge(path: path, size: size) }
      throw .cannotCreate(path: path, errno: errno)
    }
  }

  /// Takes the space in one piece where the file system can, and before minutes of writing end
  /// with "full".
  private static func reserve(
    _ fd: Int32, _ path: String, _ size: UInt64
  ) throws(DeviceError) {
    if let available = fileSystemSpace(descriptor: fd), available < size {
      throw .noRoom(path: path, needed: size, available: available)
    }
    switch sluice_reserve(fd, size) {
    case EFBIG: throw .tooLarge(path: path, size: size)
    case ENOSPC:
      throw .noRoom(
        path: path, needed: size, available: fileSystemSpace(descriptor: fd) ?? 0)
    default: break  // Not every file system can; the writes will tell.
    }
  }

  private static func writeZeros(
    _ fd: Int32, _ path: String, _ size: UInt64
  ) throws(DeviceError) {
    let memory = AlignedMemory(bytes: 1 << 20)
    let flags = fcntl(fd, F_GETFL)
    // Without direct I/O this only takes the page cache along.
    _ = fcntl(fd, F_SETFL, flags | sluice_o_direct())
    var done: UInt64 = 0
    while done < size {
      let count = pwrite(fd, memory.base, min(memory.count, Int(size - done)), off_t(done))
      if count < 0 && errno == EINTR { continue }
      if count < 0 && errno == ENOSPC {
        throw .noRoom(
          path: path, needed: size, available: fileSystemSpace(descriptor: fd) ?? 0)
      }
      guard count > 0 else {
        throw .failed(
          operation: "write", path: path, offset: done, errno: count < 0 ? errno : EIO)
      }
      done += UInt64(count)
    }
  }

  /// Makes a new name durable: its directory is flushed.
  private static func syncDirectory(of path: String) throws(DeviceError) {
    var parent = "."
    if let slash = path.utf8.lastIndex(of: UInt8(ascii: "/")) {
      parent = slash == path.startIndex ? "/" : String(path[..<slash])
    }
    let fd = Glibc.open(parent, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    guard fd >= 0 else { throw .cannotCreate(path: path, errno: errno) }
    defer { Glibc.close(fd) }
    guard fsync(fd) == 0 else {
      throw .failed(operation: "flush", path: parent, offset: 0, errno: errno)
    }
  }
}
