import Core
import Glibc

/// Why a member device could not be read, written or flushed: a positive errno.
package struct CheckReadError: Error, Equatable, Sendable {
  package var errno: Int32
  package init(errno: Int32) { self.errno = errno }
}

/// A member device as the checker sees it: files and block devices in production, simulated
/// devices in simulation. Calls block until the device is done.
///
/// Offsets, lengths and memory are multiples of 4 KiB; ranges lie within `sizeInBytes`.
package protocol CheckDevice: AnyObject {
  var sizeInBytes: UInt64 { get }
  func read(
    offset: UInt64, into memory: UnsafeMutableRawBufferPointer
  ) throws(CheckReadError)
  /// Only called when `CheckOptions.repair` is set.
  func write(offset: UInt64, from memory: UnsafeRawBufferPointer) throws(CheckReadError)
  /// Makes every write that returned durable.
  func flush() throws(CheckReadError)
}

/// What a run of the checker may do, and with how much memory.
package struct CheckOptions: Sendable {
  /// Heal what has a good copy. Nothing is written without it.
  package var repair = false
  /// With `repair`: where frames of the log are damaged beyond reading, so that recovery refuses
  /// the pool, step over them; what they held is lost, and the report names it.
  package var acceptLogLoss = false
  /// Bytes that one of the (at most four) sorts holds in memory before it goes to a file.
  package var sortMemory = 32 << 20
  /// Where sorts put their files; they are unlinked as soon as they are open.
  package var temporaryDirectory =
    getenv("TMPDIR").map { String(cString: $0) } ?? "/var/tmp"
  /// Complaints and damaged places that are kept as sentences; all are counted.
  package var maximumSentences = 1000
  package init() {}
}

/// Why the checker could not run to its end; `description` is a sentence with what to do.
package struct CheckFailure: Error, Equatable, Sendable, CustomStringConvertible {
  package var description: String
  package init(_ description: String) { self.description = description }
}

/// A member device with its place in the pool: bounds-checked reads in blocks, a name for
/// sentences.
final class Member {
  let device: any CheckDevice
  let name: String
  let sizeInBlocks: UInt64

  init(_ device: any CheckDevice, name: String) {
    self.device = device
    self.name = name
    sizeInBlocks = device.sizeInBytes >> blockShift
  }

  /// Reads `count` blocks; false when the range is not on the device or can't be read.
  func read(block: UInt64, count: Int, into memory: UnsafeMutableRawPointer) -> Bool {
    guard count > 0, block < sizeInBlocks, UInt64(count) <= sizeInBlocks - block else {
      return false
    }
    do {
      try device.read(
        offset: block << blockShift, into: .init(start: memory, count: count * blockSize))
      return true
    } catch {
      return false
    }
  }

  /// Writes one block; false when that failed.
  func write(block: UInt64, from memory: UnsafeRawPointer) -> Bool {
    guard block < sizeInBlocks else { return false }
    do {
      try device.write(
        offset: block << blockShift, from: .init(start: memory, count: blockSize))
      return true
    } catch {
      return false
    }
  }

  func flush() -> Bool {
    do {
      try device.flush()
      return true
    } catch {
      return false
    }
  }
}
