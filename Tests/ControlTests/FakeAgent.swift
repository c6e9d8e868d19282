import Glibc
import Synchronization

/// What happened, in order, on any thread.
final class Events: Sendable {
  private let list = Mutex<[String]>([])
  var all: [String] { list.withLock { $0 } }
  func add(_ event: String) { list.withLock { $0.append(event) } }

  /// Waits for an event, at most 20 s.
  func wait(for event: String) {
    for _ in 0..<2000 {
      if all.contains(event) { return }
      usleep(10_000)
    }
  }
}

/// A QEMU guest agent at a UNIX socket, good or bad, that tells what it was asked for.
final class FakeAgent: Sendable {
  enum Behaviour: Sendable {
    case good
    /// Answers nothing, as when no agent runs in the guest.
    case silent
    /// Never ends its freeze, and so does nothing after it either.
    case hangsInFreeze
    /// Ends its freeze after a second.
    case freezesLate
    case refusesFreeze
    /// Breaks the connection when it is to freeze, having done so.
    case breaksInFreeze
    case speaksNonsense
    /// Has nothing to thaw when it is asked.
    case thawsByItself
    case refusesThaw
  }

  let path: String
  private let name: String
  private let behaviour: Behaviour
  private let events: Events
  private let listener: Int32
  /// Set for good by a break: the agent that comes after it does as it should.
  private let isBroken = Atomic(false)

  init(_ name: String, _ behaviour: Behaviour, in directory: String, events: Events) throws {
    path = "\(directory)/\(name)"
    self.name = name
    self.behaviour = behaviour
    self.events = events
    listener = try listeningSocket(path)
    startTestThread { self.serve() }
  }

  /// Ends its thread and connections.
  func stop() { shutdown(listener, Int32(SHUT_RDWR)) }

  private func serve() {
    while case let connection = accept(listener, nil, nil), connection >= 0 {
      // What a client before has left behind: half a reply, and a whole one.
      if behaviour == .good { say(#"{"return": 77}"# + "\n" + #"{"ret"#, on: connection) }
      converse(on: connection)
      // Also where a program that another test starts has inherited the connection.
      shutdown(connection, Int32(SHUT_RDWR))
      close(connection)
    }
    close(listener)
  }

  private func converse(on connection: Int32) {
    var input: [UInt8] = []
    var part = [UInt8](repeating: 0, count: 4096)
    while case let count = recv(connection, &part, part.count, 0), count > 0 {
      input += part[..<count]
      while let end = input.firstIndex(of: UInt8(ascii: "\n")) {
        let line = String(decoding: input[..<end].filter { $0 != 0xFF }, as: UTF8.self)
        input.removeFirst(end + 1)
        if !answer(line, on: connection) { return }
      }
    }
    events.add("\(name) left")
  }

  /// False when the connection is to be broken.
  private func answer(_ line: String, on connection: Int32) -> Bool {
    if behaviour == .silent { return true }
    if behaviour == .speaksNonsense {
      let noise = [UInt8](repeating: UInt8(ascii: "x"), count: 2 << 20)
      say(String(decoding: noise, as: UTF8.self), on: connection)
      return true
    }
    if line.contains("guest-sync-delimited") {
      let id = line.filter(\.isNumber)
      say("\u{1}" + #"{"return": \#(id)}"# + "\n", on: connection)
    } else if line.contains("guest-fsfreeze-freeze") {
      return freeze(on: connection)
    } else if line.contains("guest-fsfreeze-thaw") {
      events.add("\(name) thaw")
      if behaviour == .refusesThaw {
        say(#"{"error": {"class": "GenericError", "desc": "too warm"}}"# + "\n", on: connection)
      } else {
        say(#"{"return": \#(behaviour == .thawsByItself ? 0 : 2)}"# + "\n", on: connection)
      }
    }
    return true
  }

  private func freeze(on connection: Int32) -> Bool {
    events.add("\(name) freeze")
    switch behaviour {
    case .hangsInFreeze:
      // Reads on, and answers nothing.
      var part = [UInt8](repeating: 0, count: 4096)
      while recv(connection, &part, part.count, 0) > 0 {}
      return false
    case .freezesLate: sleep(1)
    case .refusesFreeze:
      say(#"{"error": {"class": "GenericError", "desc": "too cold"}}"# + "\n", on: connection)
      return true
    case .breaksInFreeze where !isBroken.exchange(true, ordering: .relaxed): return false
    default: break
    }
    say(#"{"return": 2}"# + "\n", on: connection)
    return true
  }

  /// Sends a text with the byte 0xFF for each U+0001.
  private func say(_ text: String, on connection: Int32) {
    let bytes = text.utf8.map { $0 == 1 ? 0xFF : $0 }
    var sent = 0
    while sent < bytes.count {
      let count = bytes[sent...].withUnsafeBytes {
        send(connection, $0.baseAddress!, $0.count, Int32(MSG_NOSIGNAL))
      }
      if count <= 0 { return }
      sent += count
    }
  }
}

private func startTestThread(_ body: @escaping @Sendable () -> Void) {
  final class Box {
    let body: @Sendable () -> Void
    init(_ body: @escaping @Sendable () -> Void) { self.body = body }
  }
  var thread = pthread_t()
  let box = Unmanaged.passRetained(Box(body)).toOpaque()
  pthread_create(
    &thread, nil,
    { argument in
      Unmanaged<Box>.fromOpaque(argument!).takeRetainedValue().body()
      return nil
    }, box)
  pthread_detach(thread)
}
