import Core
import Testing

@testable import Checker

/// A device in memory, with read errors where a test wants them.
final class MemoryDevice: CheckDevice {
  var bytes: [UInt8]
  /// Blocks that can't be read.
  var unreadable: Set<UInt64> = []
  /// Offsets of the writes that were made.
  private(set) var writes: [UInt64] = []
  private(set) var flushes = 0

  init(blocks: Int) { bytes = [UInt8](repeating: 0, count: blocks * blockSize) }

  var sizeInBytes: UInt64 { UInt64(bytes.count) }

  func read(
    offset: UInt64, into memory: UnsafeMutableRawBufferPointer
  ) throws(CheckReadError) {
    precondition(
      offset % 4096 == 0 && memory.count % 4096 == 0
        && offset + UInt64(memory.count) <= sizeInBytes,
      "a read of \(memory.count) bytes at \(offset) is not whole blocks of the device")
    let first = offset >> blockShift
    for block in first..<(first + UInt64(memory.count) >> blockShift)
    where unreadable.contains(block) {
      throw CheckReadError(errno: 5)
    }
    bytes.withUnsafeBytes {
      memory.copyMemory(from: .init(rebasing: $0[Int(offset)..<(Int(offset) + memory.count)]))
    }
  }

  func write(offset: UInt64, from memory: UnsafeRawBufferPointer) throws(CheckReadError) {
    precondition(offset % 4096 == 0 && offset + UInt64(memory.count) <= sizeInBytes)
    writes.append(offset)
    put(memory, at: offset)
  }

  func flush() throws(CheckReadError) { flushes += 1 }

  func put(_ source: UnsafeRawBufferPointer, at offset: UInt64) {
    bytes.withUnsafeMutableBytes {
      UnsafeMutableRawBufferPointer(rebasing: $0[Int(offset)..<(Int(offset) + source.count)])
        .copyMemory(from: source)
    }
  }

  func put(_ source: [UInt8], at offset: UInt64) {
    source.withUnsafeBytes { put($0, at: offset) }
  }

  /// Lets `body` fill one block.
  func put(block: UInt64, _ body: (UnsafeMutableRawPointer) -> Void) {
    bytes.withUnsafeMutableBytes { body($0.baseAddress! + Int(block) * blockSize) }
  }

  func flip(_ offset: UInt64, bit: UInt8 = 0) { bytes[Int(offset)] ^= 1 << bit }

  func zero(_ offset: UInt64, _ count: Int) {
    put([UInt8](repeating: 0, count: count), at: offset)
  }
}

/// One block of content, told apart by `stamp`.
func content(_ stamp: UInt64) -> [UInt8] {
  var bytes = [UInt8](repeating: UInt8(truncatingIfNeeded: stamp &* 37 &+ 1), count: blockSize)
  bytes.withUnsafeMutableBytes {
    for at in stride(from: 0, to: blockSize, by: sectorSize) {
      $0.baseAddress!.put(stamp &+ UInt64(at) << 40, at: at)
    }
  }
  return bytes
}

func checksum(_ block: [UInt8]) -> UInt32 { block.withUnsafeBytes { crc32c($0) } }
