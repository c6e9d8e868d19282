import CURing
import Core
import Glibc

// Plain synchronous transfers, for labels, recovery tools and `check`; the data path uses the ring.

extension DeviceFile {
  /// Reads `length` bytes at `offset` into memory of its own. Both are multiples of 4 KiB.
  ///
  /// - Throws: `failed`; EIO also where the device ends before the range does.
  package func read(offset: UInt64, length: Int) throws(DeviceError) -> AlignedMemory {
    let memory = AlignedMemory(bytes: length)
    try read(offset: offset, into: memory.base, length: length)
    return memory
  }

  /// Reads `length` bytes at `offset` into `memory`, which starts on a 4 KiB boundary; offset and
  /// length are multiples of 4 KiB.
  package func read(
    offset: UInt64, into memory: UnsafeMutableRawPointer, length: Int
  ) throws(DeviceError) {
    checkAligned(offset, memory, length)
    var done = 0
    while done < length {
      let count = pread(descriptor, memory + done, length - done, off_t(offset) + off_t(done))
      if count < 0 && errno == EINTR { continue }
      guard count > 0 else {
        throw .failed(
          operation: "read", path: path, offset: offset + UInt64(done),
          errno: count < 0 ? errno : EIO)
      }
      done += count
    }
  }

  /// Writes `length` bytes from `memory` (on a 4 KiB boundary) at `offset`; offset and length are
  /// multiples of 4 KiB. With `durable` they are on stable storage when it returns.
  ///
  /// - Throws: `failed`. What has been written then is unknown.
  package func write(
    offset: UInt64, from memory: UnsafeRawPointer, length: Int, durable: Bool = false
  ) throws(DeviceError) {
    checkAligned(offset, memory, length)
    var done = 0
    while done < length {
      let at = offset + UInt64(done)
      var count: Int
      var code: Int32
      if durable {
        count = Int(sluice_write_durable(descriptor, memory + done, UInt64(length - done), at))
        code = count < 0 ? Int32(-count) : EIO
      } else {
        count = pwrite(descriptor, memory + done, length - done, off_t(at))
        code = count < 0 ? errno : EIO
      }
      if count < 0 && code == EINTR { continue }
      guard count > 0 else {
        throw .failed(operation: "write", path: path, offset: at, errno: code)
      }
      done += count
    }
  }

  /// Makes every completed write durable. After a failure nothing is known of them, and asking
  /// again would not tell.
  package func flush() throws(DeviceError) {
    while fdatasync(descriptor) != 0 {
      if errno == EINTR { continue }
      throw .failed(operation: "flush", path: path, offset: 0, errno: errno)
    }
  }

  private func checkAligned(_ offset: UInt64, _ memory: UnsafeRawPointer, _ length: Int) {
    invariant(
      offset % UInt64(blockSize) == 0 && length % blockSize == 0 && length > 0
        && UInt(bitPattern: memory) % UInt(blockSize) == 0,
      "transfer of \(length) bytes at \(offset) of \(path) is not whole blocks")
  }
}
