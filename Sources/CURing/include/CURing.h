// Shim over liburing (https://github.com/axboe/liburing): its macros, and the inline functions
// whose arguments Swift can't name, as plain functions. No logic beyond that.
#pragma once
#include <errno.h>
#include <fcntl.h>
// The kernel's own header first: it has the same guard as liburing's copy, and other packages import
// it too; two different definitions can not meet in one program.
#include <linux/io_uring.h>
#include <liburing.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>

#ifndef IORING_CQE_F_SOCK_NONEMPTY
#define IORING_CQE_F_SOCK_NONEMPTY (1U << 2)
#endif
#ifndef IORING_RECVSEND_POLL_FIRST
#define IORING_RECVSEND_POLL_FIRST (1U << 0)
#endif

// A completion, copied out of the ring.
struct sluice_completion {
  uint64_t user_data;
  int32_t result;
  uint32_t flags;
};

// One thread submits, and completions run when that thread waits: no interrupts of its work.
// Older kernels refuse these flags: then the plain ring does the same, only slower.
static inline int sluice_ring_init(struct io_uring *ring, unsigned entries, unsigned completions) {
  unsigned wished[] = {
      IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_COOP_TASKRUN,
      IORING_SETUP_COOP_TASKRUN, 0};
  int error = 0;
  for (unsigned i = 0; i < 3; i++) {
    struct io_uring_params params = {0};
    params.flags = wished[i] | IORING_SETUP_CQSIZE;
    params.cq_entries = completions;
    error = io_uring_queue_init_params(entries, ring, &params);
    if (error != -EINVAL) return error;
  }
  return error;
}

// Submits what is prepared and, with `wait`, waits for a completion for at most `nanoseconds`
// (INT64_MAX: for ever). Returns 0, or a negative errno; -ETIME is a time-out.
static inline int sluice_ring_enter(struct io_uring *ring, int wait, int64_t nanoseconds) {
  int result;
  if (!wait) {
    result = io_uring_submit_and_get_events(ring);
  } else if (nanoseconds == INT64_MAX) {
    result = io_uring_submit_and_wait(ring, 1);
  } else {
    struct __kernel_timespec limit = {nanoseconds / 1000000000, nanoseconds % 1000000000};
    struct io_uring_cqe *first;
    result = io_uring_submit_and_wait_timeout(ring, &first, 1, &limit, NULL);
  }
  return result < 0 ? result : 0;
}

static inline int sluice_ring_submit(struct io_uring *ring) { return io_uring_submit(ring); }

static inline unsigned sluice_ring_ready(struct io_uring *ring) { return io_uring_cq_ready(ring); }

// Copies up to `most` completions out and gives their places back to the ring.
static inline unsigned sluice_ring_reap(
    struct io_uring *ring, struct sluice_completion *out, unsigned most) {
  unsigned head, count = 0;
  struct io_uring_cqe *entry;
  io_uring_for_each_cqe(ring, head, entry) {
    if (count == most) break;
    out[count].user_data = entry->user_data;
    out[count].result = entry->res;
    out[count].flags = entry->flags;
    count++;
  }
  io_uring_cq_advance(ring, count);
  return count;
}

static inline struct io_uring_sqe *sluice_ring_entry(struct io_uring *ring) {
  return io_uring_get_sqe(ring);
}

static inline void sluice_prep_read(
    struct io_uring_sqe *e, int fd, void *memory, uint32_t length, uint64_t offset, uint64_t data) {
  io_uring_prep_read(e, fd, memory, length, offset);
  e->user_data = data;
}

static inline void sluice_prep_write(
    struct io_uring_sqe *e, int fd, const void *memory, uint32_t length, uint64_t offset,
    int durable, uint64_t data) {
  io_uring_prep_write(e, fd, memory, length, offset);
  e->rw_flags = durable ? RWF_DSYNC : 0;
  e->user_data = data;
}

static inline void sluice_prep_datasync(struct io_uring_sqe *e, int fd, uint64_t data) {
  io_uring_prep_fsync(e, fd, IORING_FSYNC_DATASYNC);
  e->user_data = data;
}

static inline void sluice_prep_punch(
    struct io_uring_sqe *e, int fd, uint64_t offset, uint64_t length, uint64_t data) {
  io_uring_prep_fallocate(
      e, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
  e->user_data = data;
}

static inline void sluice_prep_allocate(
    struct io_uring_sqe *e, int fd, uint64_t offset, uint64_t length, uint64_t data) {
  io_uring_prep_fallocate(e, fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length);
  e->user_data = data;
}

static inline void sluice_prep_accept(struct io_uring_sqe *e, int fd, uint64_t data) {
  // Not SOCK_NONBLOCK: the ring answers EAGAIN on such sockets where it should wait.
  io_uring_prep_accept(e, fd, NULL, NULL, SOCK_CLOEXEC);
  e->user_data = data;
}

// `poll_first`: the last receive emptied the socket, so don't try before something has come.
static inline void sluice_prep_receive(
    struct io_uring_sqe *e, int fd, void *memory, uint64_t length, int poll_first, uint64_t data) {
  io_uring_prep_recv(e, fd, memory, length, 0);
  if (poll_first) e->ioprio |= IORING_RECVSEND_POLL_FIRST;
  e->user_data = data;
}

static inline int sluice_socket_has_more(const struct sluice_completion *c) {
  return (c->flags & IORING_CQE_F_SOCK_NONEMPTY) != 0;
}

// `quiet`: the socket takes all of it now, and there is no completion; else the completion says how
// much it took.
static inline void sluice_prep_send(
    struct io_uring_sqe *e, int fd, const struct msghdr *message, int quiet, uint64_t data) {
  io_uring_prep_sendmsg(e, fd, message, MSG_NOSIGNAL | (quiet ? MSG_DONTWAIT | MSG_WAITALL : 0));
  if (quiet) e->flags |= IOSQE_CQE_SKIP_SUCCESS;
  e->user_data = data;
}

static inline int sluice_ring_has_quiet(const struct io_uring *ring) {
  return (ring->features & IORING_FEAT_CQE_SKIP) != 0;
}

// Whether the kernel has taken all that was prepared.
static inline int sluice_ring_is_submitted(const struct io_uring *ring) {
  return io_uring_sq_ready(ring) == 0;
}

static inline void sluice_prep_cancel(struct io_uring_sqe *e, uint64_t target, uint64_t data) {
  io_uring_prep_cancel64(e, target, 0);
  e->user_data = data;
}

static inline unsigned sluice_major(uint64_t device) { return major(device); }
static inline unsigned sluice_minor(uint64_t device) { return minor(device); }

// Size of a block device in bytes; 0 or an errno.
static inline int sluice_block_device_size(int fd, uint64_t *bytes) {
  return ioctl(fd, BLKGETSIZE64, bytes) == 0 ? 0 : errno;
}

// Gives a range of a block device back; 0 or an errno. Blocks the caller.
static inline int sluice_block_device_discard(int fd, uint64_t offset, uint64_t length) {
  uint64_t range[2] = {offset, length};
  return ioctl(fd, BLKDISCARD, range) == 0 ? 0 : errno;
}

// Reserves the first `size` bytes of a file and makes it that long; 0 or an errno.
int sluice_reserve(int fd, uint64_t size);

// A counter that wakes the ring: an eventfd, or a negative errno.
int sluice_event_descriptor(void);

// The flag of `open` for direct I/O.
int sluice_o_direct(void);

// Frees a range of a file; 0 or an errno.
int sluice_punch_hole(int fd, uint64_t offset, uint64_t length);

// A durable write of the calling thread (RWF_DSYNC); bytes written, or a negative errno.
int64_t sluice_write_durable(int fd, const void *memory, uint64_t length, uint64_t offset);
