/// A UUID (RFC 9562) as 16 bytes; made by the caller's randomness, never by the core.
package struct UUIDBytes: Hashable, Sendable, CustomStringConvertible {
  package var high: UInt64
  package var low: UInt64

  package init(high: UInt64, low: UInt64) {
    self.high = high
    self.low = low
  }

  /// A version 4 UUID from `random`.
  package init(random: inout some RandomNumberGenerator) {
    high = (random.next() as UInt64) & 0xFFFF_FFFF_FFFF_0FFF | 0x4000
    low = (random.next() as UInt64) & 0x3FFF_FFFF_FFFF_FFFF | 0x8000_0000_0000_0000
  }

  package static let zero = Self(high: 0, low: 0)

  package var description: String {
    func hex(_ v: UInt64, _ digits: Int) -> String {
      let s = String(v, radix: 16)
      return String(repeating: "0", count: digits - s.count) + s
    }
    let h = hex(high, 16)
    let l = hex(low, 16)
    return
      "\(h.prefix(8))-\(h.dropFirst(8).prefix(4))-\(h.dropFirst(12))-\(l.prefix(4))-\(l.dropFirst(4))"
  }
}
