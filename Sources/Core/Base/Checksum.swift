import CISAL

/// CRC32C (RFC 3720 appendix B.4) of `bytes`, going on from `seed` (0 at the start).
@inline(__always)
package func crc32c(_ bytes: UnsafeRawBufferPointer, seed: UInt32 = 0) -> UInt32 {
  guard let base = bytes.baseAddress, bytes.count > 0 else { return seed }
  return sluice_crc32c(seed, base, bytes.count)
}

/// CRC32C of one 4 KiB block.
@inline(__always)
package func crc32cBlock(_ block: UnsafeRawPointer) -> UInt32 {
  sluice_crc32c(0, block, blockSize)
}

/// Whether one 4 KiB block holds only zeros; data that is not zero is told at its first bytes.
@inline(__always)
package func isZeroBlock(_ block: UnsafeRawPointer) -> Bool {
  let words = block.assumingMemoryBound(to: SIMD8<UInt64>.self)
  var i = 0
  while i < blockSize / 64 {
    if words[i] != SIMD8<UInt64>(repeating: 0) { return false }
    i += 1
  }
  return true
}
