import CURing
import Core
import Glibc

// A member device on this host: a regular file or a block device, opened for direct I/O and locked.
//
// The lock (R6) is taken on the very descriptor that the ring uses, and belongs to its *open file
// description*. A request that is under way in io_uring holds a reference to that description, also
// after its process was killed. So the lock ends when the last write of the dead process has
// ended, and whoever gets the lock can't be overtaken by one. For this reason the lock is
//
//  - `flock`, by inode: two paths of one file collide. (POSIX record locks belong to the process
//    and are dropped at its death, in front of its last writes: they must not be used here.)
//  - on block devices `O_EXCL` as well: the kernel's claim on the device itself, so that two device
//    nodes of one device collide, and a mounted device is refused. It ends with the description too.

/// An open, locked member device. Shared by the ring's thread and by tools that read labels.
package final class DeviceFile: Sendable {
  package enum Access: Sendable { case readWrite, readOnly }

  package let path: String
  package let descriptor: Int32
  package let access: Access
  package let isBlockDevice: Bool
  /// Whether reads and writes bypass the page cache. False where the file system refuses that:
  /// durable writes and flushes keep their promise there, only slower.
  package let directIO: Bool
  package let description: DeviceDescription

  /// Opens and locks `path`.
  ///
  /// - Parameters:
  ///   - access: `readOnly` for tools that must not change anything; the lock is the same.
  ///   - lockSeconds: how long to wait for another process that has the device.
  ///   - direct: false opens it through the page cache; for tests of that path.
  /// - Throws: `cannotOpen`, `notADevice`, `inUse`.
  package init(
    path: String, access: Access = .readWrite, lockSeconds: Int = 10, direct: Bool = true
  ) throws(DeviceError) {
    let deadline = monotonicNanoseconds() + UInt64(lockSeconds) * 1_000_000_000
    // Before the open: O_EXCL is for block devices only, and a FIFO would block. (O_NONBLOCK is no
    // way out: the ring would answer EAGAIN on such a descriptor.)
    let isBlockDevice = try Self.kind(of: path)
    var flags = (access == .readWrite ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NOCTTY
    if isBlockDevice { flags |= O_EXCL }
    var isDirect = direct
    var fd = Self.openWaiting(path, flags | (isDirect ? sluice_o_direct() : 0), until: deadline)
    if isDirect && fd < 0 && errno == EINVAL {
      isDirect = false
      fd = Self.openWaiting(path, flags, until: deadline)
    }
    guard fd >= 0 else {
      if isBlockDevice && errno == EBUSY { throw .inUse(path: path, seconds: lockSeconds) }
      throw .cannotOpen(path: path, errno: errno)
    }
    do throws(DeviceError) {
      try Self.lock(fd, path, seconds: lockSeconds, until: deadline)
      description = try Self.describe(fd, path, access)
    } catch {
      Glibc.close(fd)
      throw error
    }
    self.path = path
    self.access = access
    self.isBlockDevice = isBlockDevice
    descriptor = fd
    directIO = isDirect
  }

  deinit { Glibc.close(descriptor) }

  /// True for a block device, false for a regular file.
  private static func kind(of path: String) throws(DeviceError) -> Bool {
    var status = stat()
    guard stat(path, &status) == 0 else { throw .cannotOpen(path: path, errno: errno) }
    switch status.st_mode & S_IFMT {
    case S_IFREG: return false
    case S_IFBLK: return true
    default: throw .notADevice(path: path)
    }
  }

  /// `open`, tried again while another process has claimed the block device.
  private static func openWaiting(_ path: String, _ flags: Int32, until deadline: UInt64) -> Int32 {
    while true {
      let fd = Glibc.open(path, flags)
      if fd >= 0 { return fd }
      if errno == EINTR { continue }
      guard errno == EBUSY, monotonicNanoseconds() < deadline else { return fd }
      usleep(50_000)
    }
  }

  private static func lock(
    _ fd: Int32, _ path: String, seconds: Int, until deadline: UInt64
  ) throws(DeviceError) {
    while flock(fd, LOCK_EX | LOCK_NB) != 0 {
      if errno == EINTR { continue }
      guard errno == EWOULDBLOCK else { throw .cannotOpen(path: path, errno: errno) }
      guard monotonicNanoseconds() < deadline else { throw .inUse(path: path, seconds: seconds) }
      usleep(50_000)
    }
  }

  /// Size and abilities, from the open descriptor: what a path names may have changed.
  private static func describe(
    _ fd: Int32, _ path: String, _ access: Access
  ) throws(DeviceError) -> DeviceDescription {
    var status = stat()
    guard fstat(fd, &status) == 0 else { throw .cannotOpen(path: path, errno: errno) }
    switch status.st_mode & S_IFMT {
    case S_IFREG:
      let isSparse = UInt64(status.st_blocks) * 512 < UInt64(status.st_size)
      // A file that its owner has allocated in full stays so: punched space might be gone for good.
      return DeviceDescription(
        size: wholeBlocks(UInt64(status.st_size)), isSparseFile: isSparse,
        canDiscard: isSparse && access == .readWrite && canPunch(fd, UInt64(status.st_size)))
    case S_IFBLK:
      var size: UInt64 = 0
      let failed = sluice_block_device_size(fd, &size)
      guard failed == 0 else { throw .cannotOpen(path: path, errno: failed) }
      return DeviceDescription(
        size: wholeBlocks(size), isSparseFile: false,
        canDiscard: access == .readWrite && blockDeviceDiscards(status.st_rdev))
    default: throw .notADevice(path: path)
    }
  }

  private static func wholeBlocks(_ bytes: UInt64) -> UInt64 { bytes & ~UInt64(blockSize - 1) }

  /// Asks by punching behind the file's end, which changes nothing.
  private static func canPunch(_ fd: Int32, _ size: UInt64) -> Bool {
    sluice_punch_hole(fd, roundUp(size, to: UInt64(blockSize)), UInt64(blockSize)) == 0
  }

  /// The device's queue limits, as sysfs has them; a partition has those of its disk.
  private static func blockDeviceDiscards(_ device: dev_t) -> Bool {
    let name = "/sys/dev/block/\(sluice_major(UInt64(device))):\(sluice_minor(UInt64(device)))"
    for place in ["/queue/discard_max_bytes", "/../queue/discard_max_bytes"] {
      guard let file = fopen(name + place, "re") else { continue }
      defer { fclose(file) }
      var digits = [UInt8](repeating: 0, count: 32)
      let count = fread(&digits, 1, digits.count, file)
      let limit = String(decoding: digits[..<count].prefix { $0 != 10 }, as: UTF8.self)
      return (UInt64(limit) ?? 0) > 0
    }
    return false
  }

  /// Bytes that the file system of this file can still give to this user; on block devices, and
  /// where it can't be asked, nil.
  package var fileSystemFree: UInt64? {
    isBlockDevice ? nil : fileSystemSpace(descriptor: descriptor)
  }
}

/// Bytes of the file system behind `descriptor` that an unprivileged user may still take.
func fileSystemSpace(descriptor: Int32) -> UInt64? {
  var status = statvfs()
  guard fstatvfs(descriptor, &status) == 0 else { return nil }
  return UInt64(status.f_bavail) * UInt64(status.f_frsize)
}

/// Bytes that the file system holding `path` (a file or directory) can still give to an
/// unprivileged user; nil when it can't be asked.
package func fileSystemFree(at path: String) -> UInt64? {
  var status = statvfs()
  guard statvfs(path, &status) == 0 else { return nil }
  return UInt64(status.f_bavail) * UInt64(status.f_frsize)
}

/// CLOCK_MONOTONIC in nanoseconds.
@inline(__always)
package func monotonicNanoseconds() -> UInt64 {
  var time = timespec()
  clock_gettime(CLOCK_MONOTONIC, &time)
  return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}

/// CLOCK_REALTIME in nanoseconds since 1970.
package func wallClockNanoseconds() -> UInt64 {
  var time = timespec()
  clock_gettime(CLOCK_REALTIME, &time)
  return UInt64(time.tv_sec) * 1_000_000_000 + UInt64(time.tv_nsec)
}
