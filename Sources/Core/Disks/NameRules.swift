/// What a disk's name may be.
///
/// In the pool a name segment is 1 to 255 bytes without `/` and NUL, never `.` or `..`. Front ends
/// show bytes outside of letters, digits, `.`, `_` and `-` percent-encoded, and accept them so.
package enum NameRules {
  package static let maximumDepth = 32

  /// The segments of a path, percent-decoded; throws with a sentence when the rule is broken.
  package static func segments(of path: String) throws(ControlError) -> [[UInt8]] {
    let parts = path.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false)
    guard parts.count <= maximumDepth else {
      throw .badName("the name has more than \(maximumDepth) segments; use fewer `/`")
    }
    var segments: [[UInt8]] = []
    for part in parts {
      guard let bytes = decode(part), (1...255).contains(bytes.count),
        !bytes.contains(0), !bytes.contains(UInt8(ascii: "/")), bytes != [46], bytes != [46, 46]
      else {
        throw .badName(
          "“\(path)” is no disk name; use segments of 1 to 255 letters, digits, `.`, `_`, `-` "
            + "(not `.` or `..`) joined by `/`, other bytes percent-encoded")
      }
      segments.append(bytes)
    }
    return segments
  }

  private static func decode(_ part: Substring.UTF8View.SubSequence) -> [UInt8]? {
    var out: [UInt8] = []
    var iterator = part.makeIterator()
    while let byte = iterator.next() {
      if byte == UInt8(ascii: "%") {
        guard let h = iterator.next().flatMap(hexValue), let l = iterator.next().flatMap(hexValue)
        else { return nil }
        out.append(h << 4 | l)
      } else if isPlain(byte) {
        out.append(byte)
      } else {
        return nil
      }
    }
    return out
  }

  private static func isPlain(_ b: UInt8) -> Bool {
    switch b {
    case UInt8(ascii: "a")...UInt8(ascii: "z"), UInt8(ascii: "A")...UInt8(ascii: "Z"),
      UInt8(ascii: "0")...UInt8(ascii: "9"), UInt8(ascii: "."), UInt8(ascii: "_"),
      UInt8(ascii: "-"):
      true
    default: false
    }
  }

  private static func hexValue(_ b: UInt8) -> UInt8? {
    switch b {
    case UInt8(ascii: "0")...UInt8(ascii: "9"): b - UInt8(ascii: "0")
    case UInt8(ascii: "a")...UInt8(ascii: "f"): b - UInt8(ascii: "a") + 10
    case UInt8(ascii: "A")...UInt8(ascii: "F"): b - UInt8(ascii: "A") + 10
    default: nil
    }
  }

  /// A segment as it is shown.
  package static func printable(_ segment: [UInt8]) -> String {
    var out = ""
    for byte in segment {
      if isPlain(byte) {
        out.unicodeScalars.append(Unicode.Scalar(byte))
      } else {
        let hex = String(byte, radix: 16, uppercase: true)
        out += "%" + (hex.count == 1 ? "0" + hex : hex)
      }
    }
    return out
  }
}
