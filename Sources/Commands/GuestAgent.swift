// One QEMU guest agent at its UNIX socket: the few commands that freeze and thaw file systems.
//
// Source: "QEMU Guest Agent Protocol Reference" (qga/qapi-schema.json of QEMU). Requests and replies
// are JSON objects, one a line: {"execute": NAME} and {"return": VALUE} or {"error": {"desc": TEXT}}.
// The agent does one after another, and answers also those of clients that have gone. So a
// conversation begins with `guest-sync-delimited`: what comes before its reply, which a byte 0xFF
// precedes, is for somebody else. A 0xFF from us makes the agent forget half a request.

import ControlAPI
import Glibc

/// A connection that never blocks: `ask`, then `advance` whenever `poll` says so, until there is
/// an `answer`.
final class GuestAgent {
  enum Command: String {
    /// Only finds out whether the agent answers.
    case sync = ""
    case freeze = "guest-fsfreeze-freeze"
    case thaw = "guest-fsfreeze-thaw"
  }

  enum Failure: Error {
    case cannotConnect(Int32)
    case connectionLost
    case notUnderstood
    /// The agent's own words.
    case refused(String)

    var reason: String {
      switch self {
      case .cannotConnect(let error): "can't be reached: \(String(cString: strerror(error)))"
      case .connectionLost: "broke the connection"
      case .notUnderstood: "does not speak the guest agent's protocol"
      case .refused(let reason): "refused: \(reason)"
      }
    }
  }

  /// Bytes that may come without making a reply.
  private static let maximumInput = 1 << 20

  let path: String
  /// How many file systems the last command was about, or why it failed; nil while it runs.
  private(set) var answer: Result<Int, Failure>?
  /// From a freeze that was sent, and not refused, to a thaw that was confirmed.
  private(set) var mayBeFrozen = false

  private(set) var socket: Int32 = -1
  private var output: [UInt8] = []
  private var input: [UInt8] = []
  private var command = Command.sync
  /// The id whose reply ends those for others.
  private var awaitedSync: Int?

  /// - Parameter path: short enough for a UNIX socket.
  init(path: String) { self.path = path }

  deinit { disconnect() }

  /// What to ask `poll` for.
  var events: Int16 { Int16(output.isEmpty ? POLLIN : POLLIN | POLLOUT) }

  /// Starts a command, on a new connection where there is none.
  func ask(_ command: Command) {
    self.command = command
    answer = nil
    output = []
    if socket < 0 {
      input = []
      let error = connect()
      if error != 0 { return fail(.cannotConnect(error)) }
    }
    if command != .freeze {
      let id = Int.random(in: 1..<1 << 31)
      awaitedSync = id
      output = [0xFF]
      output +=
        #"{"execute":"guest-sync-delimited","arguments":{"id":\#(id)}}"#.utf8
      output.append(UInt8(ascii: "\n"))
    }
    if command != .sync {
      output += #"{"execute":"\#(command.rawValue)"}"#.utf8
      output.append(UInt8(ascii: "\n"))
    }
    if command == .freeze { mayBeFrozen = true }
  }

  /// Does what `poll` has found possible.
  func advance() {
    guard answer == nil else { return }
    send()
    receive()
    while answer == nil, takeReply() {}
    if answer == nil, input.count > Self.maximumInput { fail(.notUnderstood) }
  }

  private func connect() -> Int32 {
    let flags = Int32(SOCK_STREAM.rawValue | SOCK_CLOEXEC.rawValue | SOCK_NONBLOCK.rawValue)
    socket = Glibc.socket(AF_UNIX, flags, 0)
    guard socket >= 0 else { return errno }
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8) }
    let size = socklen_t(MemoryLayout<sockaddr_un>.size)
    let result = withUnsafePointer(to: &address) {
      $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { Glibc.connect(socket, $0, size) }
    }
    return result == 0 ? 0 : errno
  }

  private func disconnect() {
    if socket >= 0 { close(socket) }
    socket = -1
  }

  private func fail(_ failure: Failure) {
    answer = .failure(failure)
    // What is refused has left the conversation in order.
    if case .refused = failure { return }
    disconnect()
  }

  private func send() {
    while !output.isEmpty {
      let count = output.withUnsafeBytes {
        Glibc.send(socket, $0.baseAddress!, $0.count, Int32(MSG_NOSIGNAL))
      }
      if count < 0 {
        if errno == EINTR { continue }
        if errno != EAGAIN { fail(.connectionLost) }
        return
      }
      output.removeFirst(count)
    }
  }

  private func receive() {
    var part = [UInt8](repeating: 0, count: 4096)
    while answer == nil, input.count <= Self.maximumInput {
      let count = recv(socket, &part, part.count, 0)
      if count > 0 {
        input += part[..<count]
      } else if count < 0, errno == EINTR {
        continue
      } else if count < 0, errno == EAGAIN {
        return
      } else {
        return fail(.connectionLost)
      }
    }
  }

  /// Takes the next reply off the input; false when it is not there as a whole.
  private func takeReply() -> Bool {
    if awaitedSync != nil {
      guard let start = input.firstIndex(of: 0xFF) else {
        input = []
        return false
      }
      input.removeFirst(start)
    }
    guard let end = input.firstIndex(of: UInt8(ascii: "\n")) else { return false }
    let line = input[..<end].filter { $0 != 0xFF && $0 != UInt8(ascii: "\r") }
    input.removeFirst(end + 1)
    if line.isEmpty { return true }
    let reply = try? JSONText.decode(Reply.self, from: line)
    if let id = awaitedSync {
      guard reply?.value == id else { return true }
      awaitedSync = nil
      if command == .sync { answer = .success(0) }
    } else if let value = reply?.value {
      answer = .success(value)
      if command == .thaw { mayBeFrozen = false }
    } else if let error = reply?.error {
      fail(.refused(error.desc))
      // It has undone what it had frozen.
      if command == .freeze { mayBeFrozen = false }
    } else {
      fail(.notUnderstood)
    }
    return true
  }
}

private struct Reply: Decodable {
  struct Problem: Decodable { var desc: String }
  var value: Int?
  var error: Problem?

  enum CodingKeys: String, CodingKey {
    case value = "return"
    case error
  }
}
