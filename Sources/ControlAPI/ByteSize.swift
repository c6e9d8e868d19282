// Sizes as users write and read them: 512, 4K, 100M, 64G, 1T, 1P, always powers of two.

/// A number of bytes with the two ways in which it is written.
package struct ByteSize: Hashable, Comparable, Sendable, CustomStringConvertible {
  package var bytes: UInt64

  package init(bytes: UInt64) { self.bytes = bytes }

  package static func < (a: Self, b: Self) -> Bool { a.bytes < b.bytes }

  /// Reads a number with an optional unit: `512`, `4K`, `64g`, `1TiB`. Units are powers of two;
  /// `KB` and the like are refused, because some read them as powers of ten.
  ///
  /// Nil for anything else, and for more than 2^63 - 1 bytes.
  package init?(_ text: String) {
    let digits = text.utf8.prefix { (48...57).contains($0) }
    guard !digits.isEmpty, let number = UInt64(Substring(digits)) else { return nil }
    let unit = text.utf8.dropFirst(digits.count).map { $0 | 0x20 }
    guard let letter = unit.first else {
      guard number <= UInt64(Int64.max) else { return nil }
      bytes = number
      return
    }
    guard let power = Self.letters.firstIndex(of: letter),
      unit.count == 1 || unit.dropFirst().elementsEqual("ib".utf8)
    else { return nil }
    let (product, overflow) = number.multipliedReportingOverflow(by: 1 << (10 * UInt64(power + 1)))
    guard !overflow, product <= UInt64(Int64.max) else { return nil }
    bytes = product
  }

  private static let letters = Array("kmgtpe".utf8)

  /// What a size must look like, for error messages.
  package static let rule = "a size is a number with an optional unit K, M, G, T or P, such as 64G"

  /// For people: `512 B`, `1.5 GiB`; one decimal, rounded half up, left out when it is zero.
  package var description: String {
    if bytes < 1024 { return "\(bytes) B" }
    var power = (63 - bytes.leadingZeroBitCount) / 10
    var tenths = Self.tenths(bytes, power)
    if tenths >= 10240 && power < 6 {
      power += 1
      tenths = Self.tenths(bytes, power)
    }
    let unit = ["", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"][power]
    let fraction = tenths % 10 == 0 ? "" : ".\(tenths % 10)"
    return "\(tenths / 10)\(fraction) \(unit)"
  }

  private static func tenths(_ bytes: UInt64, _ power: Int) -> UInt64 {
    let unit: UInt64 = 1 << (10 * UInt64(power))
    let (whole, rest) = bytes.quotientAndRemainder(dividingBy: unit)
    let (high, low) = rest.multipliedFullWidth(by: 10)
    let (sum, carry) = low.addingReportingOverflow(unit / 2)
    return whole * 10 + unit.dividingFullWidth((carry ? high + 1 : high, sum)).quotient
  }

  /// The next multiple of the 512-byte sector, the unit of every disk's size.
  package var roundedUpToSector: Self { Self(bytes: (bytes + 511) & ~511) }
}
