/// Where a front end listens: `unix:PATH` or `HOST:PORT` (an IPv6 host in brackets).
package enum ListenAddress: Hashable, Sendable, CustomStringConvertible {
  case unix(path: String)
  case tcp(host: String, port: UInt16)

  /// The longest path that the system's socket address holds, in bytes.
  package static let maximumPath = 107

  /// - Throws: `badAddress`, `pathTooLong`.
  package init(_ text: String) throws(ListenError) {
    if text.hasPrefix("unix:") {
      let path = String(text.dropFirst(5))
      guard !path.isEmpty, !path.utf8.contains(0) else { throw .badAddress(text) }
      guard path.utf8.count <= Self.maximumPath else { throw .pathTooLong(path) }
      self = .unix(path: path)
      return
    }
    guard let colon = text.lastIndex(of: ":"),
      let port = UInt16(text[text.index(after: colon)...])
    else { throw .badAddress(text) }
    var host = text[..<colon]
    if host.hasPrefix("[") && host.hasSuffix("]") {
      host = host.dropFirst().dropLast()
    } else if host.contains(":") {
      throw .badAddress(text)
    }
    guard !host.isEmpty, !host.utf8.contains(0) else { throw .badAddress(text) }
    self = .tcp(host: String(host), port: port)
  }

  /// Whether only this host can reach it. A name counts as local only if it is `localhost`.
  package var isLocal: Bool {
    switch self {
    case .unix: true
    case .tcp(let host, _): host == "localhost" || host == "::1" || Self.isLoopback4(host)
    }
  }

  private static func isLoopback4(_ host: String) -> Bool {
    let parts = host.split(separator: ".", omittingEmptySubsequences: false)
    return parts.count == 4 && parts[0] == "127" && parts.allSatisfy { UInt8($0) != nil }
  }

  package var description: String {
    switch self {
    case .unix(let path): "unix:\(path)"
    case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    }
  }
}

/// Why an address can't be listened on; `description` is a plain sentence with what to do.
package enum ListenError: Error, Equatable, Sendable, CustomStringConvertible {
  case badAddress(String)
  case pathTooLong(String)
  case notASocket(String)
  case answered(String)
  case unknownHost(String)
  case failed(address: String, errno: Int32)

  package var description: String {
    switch self {
    case .badAddress(let text):
      "“\(text)” is no address; write unix:PATH or HOST:PORT"
    case .pathTooLong(let path):
      "the socket path “\(path)” has \(path.utf8.count) bytes and the system allows "
        + "\(ListenAddress.maximumPath); use a shorter directory, or name another path"
    case .notASocket(let path):
      "“\(path)” exists and is no socket; remove it, or listen on another path"
    case .answered(let path):
      "another daemon answers on “\(path)”; stop it, or listen on another path"
    case .unknownHost(let host):
      "there is no host “\(host)”; write an address of this machine"
    case .failed(let address, let code):
      "can't listen on \(address): \(errorText(code))"
    }
  }
}
