import Glibc

/// Why a member device can't be used; `description` is a plain sentence with what to do.
package enum DeviceError: Error, Equatable, Sendable, CustomStringConvertible {
  case cannotOpen(path: String, errno: Int32)
  case notADevice(path: String)
  case inUse(path: String, seconds: Int)
  case alreadyExists(path: String)
  case cannotCreate(path: String, errno: Int32)
  /// Both in bytes.
  case noRoom(path: String, needed: UInt64, available: UInt64)
  case tooLarge(path: String, size: UInt64)
  /// `operation` is a noun: "read", "write", "flush".
  case failed(operation: String, path: String, offset: UInt64, errno: Int32)

  package var description: String {
    switch self {
    case .cannotOpen(let path, ENOENT):
      "there is no file or device “\(path)”; check the path"
    case .cannotOpen(let path, let code) where code == EACCES || code == EPERM:
      "“\(path)” can't be opened: \(text(code)); give this user read and write access to it"
    case .cannotOpen(let path, EROFS):
      "“\(path)” is on a read-only file system; mount it writable"
    case .cannotOpen(let path, let code):
      "“\(path)” can't be opened for reading and writing: \(text(code))"
    case .notADevice(let path):
      "“\(path)” is neither a regular file nor a block device; name one of these"
    case .inUse(let path, let seconds):
      "“\(path)” is in use by another process (waited \(seconds) s for it); stop that process first"
    case .alreadyExists(let path):
      "“\(path)” exists already; choose another path, or remove it first"
    case .cannotCreate(let path, let code):
      "“\(path)” can't be created: \(text(code))"
    case .noRoom(let path, let needed, let available):
      "“\(path)” needs \(needed) bytes and its file system has \(available) left; make it smaller, "
        + "or free space there"
    case .tooLarge(let path, let size):
      "the file system of “\(path)” holds no file of \(size) bytes; use several smaller volumes"
    case .failed(let operation, let path, let offset, let code):
      "\(operation) of “\(path)” at byte \(offset) failed: \(text(code)); check the device"
    }
  }

  private func text(_ code: Int32) -> String { errorText(code) }
}

/// What the system calls an errno, in lower case.
package func errorText(_ code: Int32) -> String {
  var buffer = [CChar](repeating: 0, count: 128)
  guard strerror_r(code, &buffer, buffer.count) == 0 else { return "error \(code)" }
  let bytes = buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }
  return String(decoding: bytes, as: UTF8.self).lowercased()
}
