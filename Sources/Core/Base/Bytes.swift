import Glibc

// Little-endian access to raw memory, for the format encoders and decoders. Callers have checked
// that offset + width lies within the block.

extension UnsafeRawPointer {
  @inline(__always) package func u8(_ offset: Int) -> UInt8 {
    load(fromByteOffset: offset, as: UInt8.self)
  }
  @inline(__always) package func u16(_ offset: Int) -> UInt16 {
    UInt16(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt16.self))
  }
  @inline(__always) package func u32(_ offset: Int) -> UInt32 {
    UInt32(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt32.self))
  }
  @inline(__always) package func u64(_ offset: Int) -> UInt64 {
    UInt64(littleEndian: loadUnaligned(fromByteOffset: offset, as: UInt64.self))
  }
}

extension UnsafeMutableRawPointer {
  @inline(__always) package func put(_ value: some FixedWidthInteger, at offset: Int) {
    storeBytes(of: value.littleEndian, toByteOffset: offset, as: type(of: value))
  }
  @inline(__always) package var reading: UnsafeRawPointer { UnsafeRawPointer(self) }
}

/// Memory of a fixed size on a 4 KiB boundary, zeroed; freed with its owner.
package final class AlignedMemory {
  package let base: UnsafeMutableRawPointer
  package let count: Int

  package init(bytes: Int) {
    invariant(bytes > 0 && bytes % blockSize == 0, "memory of \(bytes) bytes is not whole blocks")
    base = .allocate(byteCount: bytes, alignment: blockSize)
    base.initializeMemory(as: UInt8.self, repeating: 0, count: bytes)
    count = bytes
  }

  /// Memory that will be read into; in huge pages where it is large.
  package init(uninitializedBytes bytes: Int) {
    invariant(bytes > 0 && bytes % blockSize == 0, "memory of \(bytes) bytes is not whole blocks")
    let huge = 2 << 20
    base = .allocate(byteCount: bytes, alignment: bytes >= huge ? huge : blockSize)
    if bytes >= huge { _ = madvise(base, bytes, MADV_HUGEPAGE) }
    count = bytes
  }

  deinit { base.deallocate() }
}
