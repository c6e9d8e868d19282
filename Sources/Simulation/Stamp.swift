import Core

/// The content of a sector that a simulated client writes: a stamp of who wrote it where, and a
/// pattern that follows from the stamp, so that one look at a sector tells which write it came
/// from, and every single bit is checked.
///
///     word 0  version (32 bits), disk (16 bits), magic (16 bits)
///     word 1  sector of the disk
///     word i  mix(word 0, word 1) + i * odd constant
package enum Stamp {
  /// The number of a write in the run's `WriteTable`; 0 stands for "never written".
  package typealias Version = UInt32

  private static let magic: UInt64 = 0x5CA1
  private static let step: UInt64 = 0x9E37_79B9_7F4A_7C15
  static let words = sectorSize / 8

  /// What a sector holds.
  package enum Content: Equatable {
    case zero
    case version(Version)
    /// Neither zeros nor an intact stamp for this place; says what it is instead.
    case foreign(String)
  }

  @inline(__always)
  private static func base(_ w0: UInt64, _ w1: UInt64) -> UInt64 {
    let x = (w0 ^ (w1 &* 0xBF58_476D_1CE4_E5B9)) &* 0x94D0_49BB_1331_11EB
    return x ^ (x >> 31)
  }

  @inline(__always)
  private static func head(_ version: Version, _ disk: UInt16) -> UInt64 {
    UInt64(version) | UInt64(disk) << 32 | magic << 48
  }

  package static func fill(
    _ memory: UnsafeMutableRawPointer, version: Version, disk: UInt16, sector: UInt64
  ) {
    let words = memory.assumingMemoryBound(to: UInt64.self)
    let w0 = head(version, disk)
    let base = base(w0, sector)
    words[0] = w0
    words[1] = sector
    for i in 2..<Self.words { words[i] = base &+ UInt64(i) &* step }
  }

  /// - Parameter disk: the disk that a version was written to; nil when there is no such version. A
  ///   clone shows what was written to others.
  package static func content(
    _ memory: UnsafeRawPointer, sector: UInt64, disk: (Version) -> UInt16?
  ) -> Content {
    let words = memory.assumingMemoryBound(to: UInt64.self)
    let w0 = words[0]
    if w0 == 0 { return isZero(memory) ? .zero : .foreign("half zeros") }
    guard w0 >> 48 == magic else { return .foreign("no stamp (begins with \(hex(w0)))") }
    let version = Version(truncatingIfNeeded: w0)
    guard let disk = disk(version), w0 == head(version, disk), words[1] == sector else {
      return .foreign(
        "content of write \(version) to disk #\(w0 >> 32 & 0xFFFF), sector \(words[1])")
    }
    let base = base(w0, sector)
    var difference: UInt64 = 0
    for i in 2..<Self.words { difference |= words[i] ^ (base &+ UInt64(i) &* step) }
    guard difference == 0 else { return .foreign("damaged content of write \(version)") }
    return .version(version)
  }

  /// What intact or damaged stamp a sector carries: what a flipped bit there may hurt.
  package static func owner(_ memory: UnsafeRawPointer) -> (version: Version, sector: UInt64)? {
    let words = memory.assumingMemoryBound(to: UInt64.self)
    guard words[0] >> 48 == magic else { return nil }
    return (Version(truncatingIfNeeded: words[0]), words[1])
  }

  @inline(__always)
  static func isZero(_ memory: UnsafeRawPointer) -> Bool {
    let words = memory.assumingMemoryBound(to: UInt64.self)
    var any: UInt64 = 0
    for i in 0..<Self.words { any |= words[i] }
    return any == 0
  }

  static func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }
}
