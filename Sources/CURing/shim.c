#define _GNU_SOURCE
#include "CURing.h"

int sluice_reserve(int fd, uint64_t size) {
  return fallocate(fd, 0, 0, (off_t)size) == 0 ? 0 : errno;
}

int sluice_event_descriptor(void) {
  int fd = eventfd(0, EFD_CLOEXEC);
  return fd < 0 ? -errno : fd;
}

int sluice_o_direct(void) { return O_DIRECT; }

int sluice_punch_hole(int fd, uint64_t offset, uint64_t length) {
  int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
  return fallocate(fd, mode, (off_t)offset, (off_t)length) == 0 ? 0 : errno;
}

int64_t sluice_write_durable(int fd, const void *memory, uint64_t length, uint64_t offset) {
  struct iovec part = {(void *)memory, length};
  ssize_t result = pwritev2(fd, &part, 1, (off_t)offset, RWF_DSYNC);
  return result < 0 ? -(int64_t)errno : result;
}
