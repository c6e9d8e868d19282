// What the HTTP routes call: the engine behind a function, and the few things that are the
// daemon's own. The routes hold no storage logic.

import ControlAPI
import Core
import Glibc

/// Puts a request into the engine's mailbox and waits for its reply; any number at once.
package typealias EngineCall = @Sendable (ControlRequest) async -> ControlReply

package struct ControlService: Sendable {
  package var engine: EngineCall
  /// Opens, labels and hands over a volume. Throws what is wrong with it as a `Problem`.
  package var addVolume: @Sendable (AddVolume) async throws(Problem) -> Volume
  /// The daemon's version, for `status`.
  package var version: String

  package init(
    engine: @escaping EngineCall,
    addVolume: @escaping @Sendable (AddVolume) async throws(Problem) -> Volume,
    version: String
  ) {
    self.engine = engine
    self.addVolume = addVolume
    self.version = version
  }

  func status() async throws(Problem) -> Status {
    switch await engine(.status) {
    case .status(let status):
      Status(status, version: version, memoryBytes: residentMemory())
    case let reply: throw .unexpected(reply)
    }
  }

  func disk(_ name: DiskName) async throws(Problem) -> Disk {
    switch await engine(.show(name: name.spelled)) {
    case .disk(let info): Disk(info)
    case let reply: throw .unexpected(reply)
    }
  }

  /// Makes a change that leaves the disk under `name`, and shows it as it is then.
  func change(_ request: ControlRequest, leaving name: DiskName) async throws(Problem) -> Disk {
    switch await engine(request) {
    case .disk(let info): Disk(info)
    case .done: try await disk(name)
    case let reply: throw .unexpected(reply)
    }
  }

  /// Makes a change that has no result.
  func perform(_ request: ControlRequest) async throws(Problem) {
    switch await engine(request) {
    case .done: return
    case let reply: throw .unexpected(reply)
    }
  }

  func scrub(_ request: ControlRequest) async throws(Problem) -> Scrub {
    switch await engine(request) {
    case .scrub(let report): Scrub(report)
    case let reply: throw .unexpected(reply)
    }
  }

  /// The reply to a request, whatever it is, unless it is a refusal.
  func ask(_ request: ControlRequest) async throws(Problem) -> ControlReply {
    let reply = await engine(request)
    if case .failed(let error) = reply { throw Problem(error) }
    return reply
  }
}

/// Resident memory of this process in bytes; 0 when the kernel does not tell.
func residentMemory() -> UInt64 {
  let file = open("/proc/self/statm", O_RDONLY | O_CLOEXEC)
  guard file >= 0 else { return 0 }
  defer { close(file) }
  var text = [UInt8](repeating: 0, count: 256)
  let count = read(file, &text, text.count)
  guard count > 0 else { return 0 }
  let fields = String(decoding: text[..<count], as: UTF8.self).split(separator: " ")
  guard fields.count > 1, let pages = UInt64(fields[1]) else { return 0 }
  return pages * UInt64(sysconf(Int32(_SC_PAGESIZE)))
}
