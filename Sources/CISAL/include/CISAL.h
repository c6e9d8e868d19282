// Shim over ISA-L (https://github.com/intel/isa-l): CRC32C by the CPU's own instructions.
#pragma once
#include <isa-l/crc.h>
#include <stddef.h>

// CRC32C (RFC 3720 appendix B.4, iSCSI) of `length` bytes; `seed` is the value returned for the
// bytes before them, or 0 at the start.
static inline unsigned int sluice_crc32c(unsigned int seed, const void *bytes, size_t length) {
  return crc32_iscsi((unsigned char *)bytes, (int)length, seed ^ 0xFFFFFFFFu) ^ 0xFFFFFFFFu;
}
