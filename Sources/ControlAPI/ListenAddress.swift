// Addresses as users write them: `unix:PATH` or `HOST:PORT`, an IPv6 host in brackets.

/// Where a server listens, or where a client finds it.
package enum ListenAddress: Hashable, Sendable, CustomStringConvertible {
  case unix(path: String)
  case tcp(host: String, port: Int)

  /// The longest path of a UNIX socket in bytes: `sun_path` of Linux without its final NUL.
  package static let maximumPath = 107

  /// Reads an ADDR.
  package init(_ text: String) throws(AddressError) {
    if text.hasPrefix("unix:") {
      self = .unix(path: String(text.dropFirst(5)))
      try checkPath()
      return
    }
    guard let colon = text.lastIndex(of: ":") else { throw .init(address: text, broken: .form) }
    let digits = text[text.index(after: colon)...]
    guard digits.utf8.allSatisfy({ (48...57).contains($0) }), let port = UInt16(digits), port > 0
    else { throw .init(address: text, broken: .port) }
    var host = String(text[..<colon])
    if host.hasPrefix("["), host.hasSuffix("]") {
      host = String(host.dropFirst().dropLast())
    } else if host.contains(":") {
      throw .init(address: text, broken: .brackets)
    }
    guard !host.isEmpty, host.utf8.allSatisfy({ $0 > 32 && $0 < 127 && $0 != UInt8(ascii: "/") })
    else { throw .init(address: text, broken: .form) }
    self = .tcp(host: host, port: Int(port))
  }

  /// Refuses a socket path that is empty or that the kernel can't hold.
  package func checkPath() throws(AddressError) {
    guard case .unix(let path) = self else { return }
    guard !path.isEmpty, !path.utf8.contains(0) else {
      throw .init(address: description, broken: .form)
    }
    guard path.utf8.count <= Self.maximumPath else {
      throw .init(address: description, broken: .path)
    }
  }

  /// Whether only programs on this host can reach the address.
  package var isLocal: Bool {
    switch self {
    case .unix: true
    case .tcp(let host, _): Self.isLoopback(host: host)
    }
  }

  /// Whether a host, without brackets, is this one's loopback.
  package static func isLoopback(host: String) -> Bool {
    let host = host.lowercased()
    if host == "localhost" || host == "::1" { return true }
    let parts = host.split(separator: ".", omittingEmptySubsequences: false)
    return parts.count == 4 && parts[0] == "127"
      && parts.allSatisfy { $0.first != "+" && UInt8($0) != nil }
  }

  package var description: String {
    switch self {
    case .unix(let path): "unix:\(path)"
    case .tcp(let host, let port): host.contains(":") ? "[\(host)]:\(port)" : "\(host):\(port)"
    }
  }
}

/// Why an address was refused; the description states the rule.
package struct AddressError: Error, Equatable, Sendable, CustomStringConvertible {
  package enum Rule: Equatable, Sendable { case form, port, brackets, path }
  package var address: String
  package var broken: Rule

  package init(address: String, broken: Rule) {
    self.address = address
    self.broken = broken
  }

  package var description: String {
    switch broken {
    case .form:
      "“\(address)” is not an address: write unix:PATH or HOST:PORT"
    case .port:
      "“\(address)” has no valid port: write HOST:PORT with a port from 1 to 65535"
    case .brackets:
      "“\(address)” is ambiguous: put an IPv6 address in brackets, such as [::1]:10809"
    case .path:
      "the socket path in “\(address)” is longer than the \(ListenAddress.maximumPath) bytes that "
        + "a UNIX socket can have: choose a shorter path, or HOST:PORT"
    }
  }
}
