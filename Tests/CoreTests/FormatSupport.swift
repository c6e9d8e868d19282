import Glibc
import Testing

@testable import Core

/// Bytes of a hexadecimal string; spaces and line ends between the digits do not matter.
func hex(_ text: String) -> [UInt8] {
  let digits = text.filter { !$0.isWhitespace }.map { UInt8($0.hexDigitValue!) }
  return stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
}

/// The hexadecimal form of bytes, 32 bytes a line: what a failed comparison shows.
func hexLines(_ bytes: [UInt8]) -> String {
  stride(from: 0, to: bytes.count, by: 32).map { at in
    bytes[at..<min(at + 32, bytes.count)].map { byte in
      String(byte >> 4, radix: 16) + String(byte & 15, radix: 16)
    }.joined()
  }.joined(separator: "\n")
}

/// A golden structure of `size` bytes: the given start, then zeros.
func golden(_ text: String, size: Int = blockSize) -> [UInt8] {
  let start = hex(text)
  return start + [UInt8](repeating: 0, count: size - start.count)
}

/// What `body` writes into `size` bytes, which start as 0xEE so that a byte left out shows.
func encoded(size: Int = blockSize, _ body: (UnsafeMutableRawPointer) -> Void) -> [UInt8] {
  var bytes = [UInt8](repeating: 0xEE, count: size)
  bytes.withUnsafeMutableBytes { body($0.baseAddress!) }
  return bytes
}

/// Memory that ends right before a page that can't be read: a decoder that reads one byte too
/// many stops the test.
final class GuardedMemory {
  private let base: UnsafeMutableRawPointer
  private let pages: Int

  init(capacity: Int) {
    pages = (capacity + blockSize - 1) / blockSize + 1
    base = mmap(
      nil, pages * blockSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    precondition(base != MAP_FAILED, "no memory for the test")
    precondition(mprotect(base + (pages - 1) * blockSize, blockSize, PROT_NONE) == 0)
  }

  deinit { munmap(base, pages * blockSize) }

  /// Calls `body` with a copy of `bytes` whose end is the end of readable memory.
  func with<Result>(_ bytes: [UInt8], _ body: (UnsafeRawBufferPointer) -> Result) -> Result {
    let start = base + (pages - 1) * blockSize - bytes.count
    bytes.withUnsafeBytes { source in
      if let from = source.baseAddress { start.copyMemory(from: from, byteCount: bytes.count) }
    }
    return body(UnsafeRawBufferPointer(start: start, count: bytes.count))
  }
}

/// One random change of the kinds that storage and attackers make: bits, bytes, runs, words.
func mutate(_ bytes: inout [UInt8], _ random: inout SeededRandom) {
  guard !bytes.isEmpty else { return }
  let at = Int(random.below(UInt64(bytes.count)))
  switch random.below(5) {
  case 0: bytes[at] ^= 1 << UInt8(random.below(8))
  case 1: bytes[at] = UInt8(random.below(256))
  case 2: bytes[at] = random.oneIn(2) ? 0xFF : 0
  case 3: for i in at..<min(at + 8, bytes.count) { bytes[i] = 0xFF }
  default: for i in at..<min(at + 4, bytes.count) { bytes[i] = UInt8(random.below(256)) }
  }
}

/// Bit positions worth flipping in a block: every bit of the first `dense` bytes, and one bit of
/// each later byte.
func flips(dense: Int, size: Int) -> [(byte: Int, bit: UInt8)] {
  var all: [(Int, UInt8)] = []
  for byte in 0..<min(dense, size) { for bit in 0..<8 { all.append((byte, UInt8(bit))) } }
  for byte in min(dense, size)..<max(dense, size) { all.append((byte, UInt8(byte % 8))) }
  return all
}
