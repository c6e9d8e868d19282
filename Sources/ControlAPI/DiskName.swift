// The names of disks. A name is a path in the datastore: segments joined by "/".
//
// In the pool a segment is 1 to 255 bytes without "/" and NUL, never "." or "..". Other clients
// (NFS) may use all of that; this command line makes only plain segments: letters, digits,
// ".", "_", "-". Everywhere outside the pool a name is *spelled*: plain bytes stand for
// themselves, every other byte is %XX. A spelled name is ASCII, has no "@" or white space, and
// is the same for the same name, so it can be compared and cut at "@" or "/".

/// A disk's name, checked and in its one spelling.
package struct DiskName: Hashable, Sendable, CustomStringConvertible {
  /// The longest segment, in bytes of the pool (not of the spelling).
  package static let maximumSegment = 255
  /// The longest spelled name in bytes; NBD's limit for an export name.
  package static let maximumSpelled = 4096

  /// The name with every byte that is not plain as %XX.
  package let spelled: String
  /// Whether no byte had to be encoded: such names can be created from here.
  package let isPlain: Bool

  package var description: String { spelled }

  /// Reads a name, percent-encoded or plain, whatever the encoding's letter case.
  package init(_ text: String) throws(DiskNameError) {
    guard !text.isEmpty else { throw .init(name: text, broken: .empty) }
    guard text.utf8.count <= Self.maximumSpelled else { throw .init(name: text, broken: .tooLong) }
    var spelled: [UInt8] = []
    var isPlain = true
    for part in text.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false) {
      let segment = try Self.decode(part, of: text)
      if !spelled.isEmpty { spelled.append(UInt8(ascii: "/")) }
      for byte in segment {
        if Self.isPlain(byte) {
          spelled.append(byte)
        } else {
          isPlain = false
          spelled += [UInt8(ascii: "%"), hexDigit(byte >> 4), hexDigit(byte & 15)]
        }
      }
    }
    self.spelled = String(decoding: spelled, as: UTF8.self)
    self.isPlain = isPlain
  }

  /// Reads a name that is to be created, which must be plain.
  package init(creating text: String) throws(DiskNameError) {
    try self.init(text)
    guard isPlain else { throw .init(name: text, broken: .characters) }
  }

  static func isPlain(_ byte: UInt8) -> Bool {
    switch byte {
    case 48...57, 65...90, 97...122, UInt8(ascii: "."), UInt8(ascii: "_"), UInt8(ascii: "-"): true
    default: false
    }
  }

  private static func decode(
    _ part: Substring.UTF8View, of name: String
  ) throws(DiskNameError) -> [UInt8] {
    guard let bytes = percentDecoded(part) else { throw .init(name: name, broken: .encoding) }
    guard !bytes.isEmpty else { throw .init(name: name, broken: .empty) }
    guard bytes.count <= maximumSegment else { throw .init(name: name, broken: .tooLong) }
    guard bytes != [46], bytes != [46, 46] else { throw .init(name: name, broken: .dots) }
    guard !bytes.contains(0), !bytes.contains(UInt8(ascii: "/")) else {
      throw .init(name: name, broken: .encoding)
    }
    guard part.allSatisfy({ isPlain($0) || $0 == UInt8(ascii: "%") }) else {
      throw .init(name: name, broken: .characters)
    }
    return bytes
  }
}

/// Why a name was refused; the description states the rule.
package struct DiskNameError: Error, Equatable, Sendable, CustomStringConvertible {
  package enum Rule: Equatable, Sendable { case empty, tooLong, dots, characters, encoding }
  package var name: String
  package var broken: Rule

  package init(name: String, broken: Rule) {
    self.name = name
    self.broken = broken
  }

  package var description: String {
    let quoted = quotedName(name)
    return switch broken {
    case .empty:
      "\(quoted) is not a name: each segment between “/” needs at least one character"
    case .tooLong:
      "\(quoted) is not a name: a segment has at most \(DiskName.maximumSegment) bytes, "
        + "a whole name \(DiskName.maximumSpelled)"
    case .dots:
      "\(quoted) is not a name: no segment may be “.” or “..”"
    case .characters:
      "\(quoted) is not a name that can be made here: "
        + "use letters, digits, “.”, “_” and “-”, with “/” between segments"
    case .encoding:
      "\(quoted) is not a name: after “%” come two hexadecimal digits, never of “/” or NUL"
    }
  }
}

/// What was given as a name, cut short and without control characters, in quotation marks.
func quotedName(_ name: String) -> String {
  let shown = name.unicodeScalars.prefix(80).map { $0.value < 32 || $0.value == 127 ? "?" : $0 }
  return "“\(String(String.UnicodeScalarView(shown)))\(shown.count == 80 ? "…" : "")”"
}

func hexDigit(_ value: UInt8) -> UInt8 {
  value < 10 ? UInt8(ascii: "0") + value : UInt8(ascii: "A") + value - 10
}

private func hexValue(_ digit: UInt8) -> UInt8? {
  switch digit {
  case 48...57: digit - 48
  case 65...70: digit - 55
  case 97...102: digit - 87
  default: nil
  }
}

/// The bytes that a percent-encoded text stands for (RFC 3986 section 2.1); nil where a "%" is
/// not followed by two hexadecimal digits.
package func percentDecoded(_ text: some Sequence<UInt8>) -> [UInt8]? {
  var bytes: [UInt8] = []
  var rest = text.makeIterator()
  while let byte = rest.next() {
    guard byte == UInt8(ascii: "%") else {
      bytes.append(byte)
      continue
    }
    guard let high = rest.next().flatMap(hexValue), let low = rest.next().flatMap(hexValue) else {
      return nil
    }
    bytes.append(high << 4 | low)
  }
  return bytes
}

/// A text as one segment of a URL's path: everything but RFC 3986's unreserved characters is %XX.
package func percentEncodedSegment(_ text: String) -> String {
  var bytes: [UInt8] = []
  for byte in text.utf8 {
    switch byte {
    case 48...57, 65...90, 97...122, 45, 46, 95, 126: bytes.append(byte)
    default: bytes += [UInt8(ascii: "%"), hexDigit(byte >> 4), hexDigit(byte & 15)]
    }
  }
  return String(decoding: bytes, as: UTF8.self)
}
