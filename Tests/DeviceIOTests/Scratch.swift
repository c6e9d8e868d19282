import Core
import DeviceIO
import Glibc

/// A directory of a test's own, removed with it. Under the working directory: /tmp may be a file
/// system that ignores direct I/O.
final class Scratch {
  let path: String

  init() throws {
    var template = Array("./.scratch-XXXXXX".utf8CString)
    guard let made = mkdtemp(&template), let full = realpath(made, nil) else {
      throw DeviceError.cannotCreate(path: "./.scratch-XXXXXX", errno: errno)
    }
    path = String(cString: full)
    free(full)
  }

  deinit {
    if let directory = opendir(path) {
      while let entry = readdir(directory) {
        let name = withUnsafeBytes(of: entry.pointee.d_name) {
          String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self)
        }
        if name != "." && name != ".." { unlink(path + "/" + name) }
      }
      closedir(directory)
    }
    rmdir(path)
  }

  func file(_ name: String) -> String { path + "/" + name }

  /// Bytes that a file takes on its file system.
  func allocated(_ name: String) -> UInt64 {
    var status = stat()
    return stat(file(name), &status) == 0 ? UInt64(status.st_blocks) * 512 : 0
  }
}

/// Whole blocks, each filled with its own pattern.
func patternMemory(blocks: Int, seed: UInt8) -> AlignedMemory {
  let memory = AlignedMemory(bytes: blocks * blockSize)
  for i in 0..<memory.count {
    memory.base.storeBytes(
      of: UInt8(truncatingIfNeeded: i &* 31 &+ i / blockSize) &+ seed, toByteOffset: i,
      as: UInt8.self)
  }
  return memory
}

func sameBytes(_ a: AlignedMemory, _ b: AlignedMemory) -> Bool {
  a.count == b.count && memcmp(a.base, b.base, a.count) == 0
}

extension Reactor {
  /// Runs `ops` to their end; errors by token.
  func run(_ ops: [DeviceOp]) -> [UInt64: Int32] {
    var results: [UInt64: Int32] = [:]
    var waiting = ops[...]
    while results.count < ops.count {
      while canTakeDeviceOp, let op = waiting.popFirst() { submit(op) }
      enter(waiting: 5_000_000_000)
      while let event = nextEvent() {
        if case .device(let c) = event { results[c.token] = c.error }
      }
    }
    return results
  }

  func run(
    _ kind: DeviceOpKind, offset: UInt64 = 0, length: UInt64 = 0, _ memory: AlignedMemory? = nil,
    device: DeviceIndex = .log
  ) -> Int32 {
    let op = DeviceOp(
      kind: kind, device: device, offset: offset, length: memory.map { UInt64($0.count) } ?? length,
      memory: memory?.base, token: 77)
    return run([op])[77] ?? -1
  }
}
