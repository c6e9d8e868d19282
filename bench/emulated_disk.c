/* An emulated block device, shown as files through FUSE.
 *
 *   emulated_disk MOUNTPOINT --store FILE --file NAME:BYTES... [--kind rotating|flush|round-trip]
 *                 [--cache BYTES] [--capacity BYTES] [--delay-us N] [--off]
 *
 * The files are parts of one device, one behind the other from its outer edge, as partitions are;
 * their content is in FILE, sparse. Kinds:
 *
 *   rotating    rotating.c; --cache 0 is a disk whose write cache is off
 *   flush       reads and writes cost nothing, a flush N µs
 *   round-trip  every request takes N µs, all at the same time
 *
 * A flush is coalesced as the kernel does it for a block device (block/blk-flush.c): one is on its
 * way, one waits and serves all who came meanwhile. A write with O_DSYNC (RWF_DSYNC) is, as for a
 * disk without FUA, which is what libata makes of a SATA disk, a write with a flush behind it. With
 * round trips, whose far end has no volatile cache, it is one request; so is a write to a disk
 * whose cache is off. Discards are refused, as by a disk that knows none.
 *
 * Beside the files is `control`: reading gives the device's counters in JSON, "off" written to it
 * makes every request free until "on". Times are absolute: what this process itself takes is not
 * added to them. O_DIRECT requests of one file go in parallel, up to 256; others go through the
 * page cache with write-back, as on a local file. Give it up with SIGTERM, which unmounts.
 */

#define _GNU_SOURCE
#define FUSE_USE_VERSION 314

#include "rotating.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse_lowlevel.h>
#include <getopt.h>
#include <linux/falloc.h>
#include <linux/fuse.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MOST_FILES = 64, LONGEST = 1 << 20, IN_FLIGHT = 256 };
/* Inodes: the root, the control file, then the files. */
enum { CONTROL = 2, FIRST_FILE = 3 };

enum device_kind { ROTATING, SLOW_FLUSH, ROUND_TRIP };

struct file {
  const char *name;
  uint64_t start, size;
};

/* A request of the kernel's, from its coming to its answer. */
struct pending {
  struct request request;
  fuse_req_t from;
  /* A flush follows this write. */
  bool is_durable;
  int64_t due;
  struct pending *next;
};

static struct file files[MOST_FILES];
static int file_count;
static enum device_kind device = ROTATING;
static uint64_t write_cache = 64 << 20, capacity = 1000ull * 1000 * 1000 * 1000;
static int64_t delay = 0;
static bool is_on = true;
static int store;
static struct figures figures;

/* Answers by the time when they are due. */
static struct pending *answers;
/* Flushes: those that the one on its way serves, and those that wait for the next. */
static struct pending *flushing, *waiting;
static struct pending device_flush;
static struct pending *spare;

static int64_t now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return time.tv_sec * 1000000000ll + time.tv_nsec;
}

static void fail(const char *what) {
  fprintf(stderr, "emulated disk: %s: %s\n", what, strerror(errno));
  exit(1);
}

static struct pending *new_pending(fuse_req_t from, enum kind kind, uint64_t start,
                                   uint64_t length) {
  struct pending *one = spare;
  if (one != NULL) spare = one->next;
  else one = malloc(sizeof *one);
  if (one == NULL) fail("no memory");
  *one = (struct pending){.request = {.kind = kind, .start = start, .length = length},
                          .from = from};
  return one;
}

/* Most come in the order of their times, so the search is short. */
static void answer_at(struct pending *one, int64_t due) {
  struct pending **place = &answers;
  while (*place != NULL && (*place)->due <= due) place = &(*place)->next;
  one->due = due;
  one->next = *place;
  *place = one;
}

static void answer(struct pending *one) {
  static char buffer[LONGEST];
  if (one->request.kind == READ) {
    ssize_t count = pread(store, buffer, one->request.length, (off_t)one->request.start);
    if (count == (ssize_t)one->request.length) fuse_reply_buf(one->from, buffer, (size_t)count);
    else fuse_reply_err(one->from, EIO);
  } else if (one->request.kind == WRITE) {
    fuse_reply_write(one->from, one->request.length);
  } else {
    fuse_reply_err(one->from, 0);
  }
  one->next = spare;
  spare = one;
}

/* Flushes */

static void start_flush(int64_t at) {
  flushing = waiting;
  waiting = NULL;
  figures.flushes++;
  if (device == ROTATING && write_cache > 0) {
    device_flush.request = (struct request){.kind = FLUSH};
    rotating_submit(&device_flush.request, at);
  } else {
    answer_at(&device_flush, at + delay);
  }
}

static void add_flush(struct pending *one, int64_t at) {
  one->next = waiting;
  waiting = one;
  if (flushing == NULL) start_flush(at);
}

static void end_flush(int64_t at) {
  while (flushing != NULL) {
    struct pending *one = flushing;
    flushing = one->next;
    answer(one);
  }
  if (waiting != NULL) start_flush(at);
}

static void end(struct pending *one) {
  if (one == &device_flush) {
    end_flush(one->due);
  } else if (one->is_durable) {
    one->is_durable = false;
    add_flush(one, one->due);
  } else {
    answer(one);
  }
}

/* The rotating disk's: `request` is a pending's first member. */
static void is_done(struct request *request, int64_t at) {
  answer_at((struct pending *)request, at);
}

static void begin(struct pending *one) {
  int64_t time = now();
  one->due = time;
  if (one->request.kind == READ) {
    figures.reads++;
    figures.read_bytes += one->request.length;
  } else if (one->request.kind == WRITE) {
    figures.writes++;
    figures.write_bytes += one->request.length;
  }
  if (!is_on) {
    answer(one);
  } else if (one->request.kind == FLUSH) {
    if (device == ROTATING && write_cache == 0) answer(one);
    else if (device == ROUND_TRIP) answer_at(one, time + delay);
    else add_flush(one, time);
  } else if (device == ROTATING) {
    rotating_submit(&one->request, time);
  } else if (device == ROUND_TRIP) {
    answer_at(one, time + delay);
  } else {
    end(one);
  }
}

/* FUSE */

static struct file *file_of(fuse_ino_t inode) {
  return inode >= FIRST_FILE && inode < (fuse_ino_t)(FIRST_FILE + file_count)
      ? &files[inode - FIRST_FILE] : NULL;
}

static struct stat attributes(fuse_ino_t inode) {
  struct file *file = file_of(inode);
  struct stat status = {.st_ino = inode, .st_nlink = 1, .st_uid = getuid(), .st_gid = getgid()};
  status.st_mode = inode == FUSE_ROOT_ID ? S_IFDIR | 0755 : S_IFREG | 0600;
  status.st_blksize = 4096;
  if (file != NULL) {
    /* All of it is there, as on a disk. */
    status.st_size = (off_t)file->size;
    status.st_blocks = (blkcnt_t)(file->size / 512);
  }
  return status;
}

static void on_init(void *data, struct fuse_conn_info *connection) {
  (void)data;
  connection->want |= connection->capable & (FUSE_CAP_ASYNC_DIO | FUSE_CAP_WRITEBACK_CACHE);
  connection->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE);
  connection->max_background = IN_FLIGHT;
  connection->congestion_threshold = IN_FLIGHT;
  connection->max_write = LONGEST;
}

static void on_lookup(fuse_req_t from, fuse_ino_t parent, const char *name) {
  fuse_ino_t inode = strcmp(name, "control") == 0 ? CONTROL : 0;
  for (int index = 0; index < file_count; index++) {
    if (strcmp(files[index].name, name) == 0) inode = (fuse_ino_t)(FIRST_FILE + index);
  }
  if (parent != FUSE_ROOT_ID || inode == 0) {
    fuse_reply_err(from, ENOENT);
    return;
  }
  struct fuse_entry_param entry = {.ino = inode, .attr = attributes(inode), .attr_timeout = 1e9,
                                   .entry_timeout = 1e9};
  fuse_reply_entry(from, &entry);
}

static void on_getattr(fuse_req_t from, fuse_ino_t inode, struct fuse_file_info *info) {
  (void)info;
  struct stat status = attributes(inode);
  fuse_reply_attr(from, &status, 1e9);
}

/* Said to be done, and a device's size stays what it is: those who make an image in a file first
 * set its size. */
static void on_setattr(fuse_req_t from, fuse_ino_t inode, struct stat *wanted, int what,
                       struct fuse_file_info *info) {
  (void)wanted, (void)what;
  on_getattr(from, inode, info);
}

static void on_readdir(fuse_req_t from, fuse_ino_t inode, size_t size, off_t offset,
                       struct fuse_file_info *info) {
  (void)inode, (void)info;
  char buffer[4096];
  size_t used = 0;
  for (off_t index = offset; index <= file_count; index++) {
    struct stat status = attributes((fuse_ino_t)(CONTROL + index));
    const char *name = index == 0 ? "control" : files[index - 1].name;
    size_t room = (size < sizeof buffer ? size : sizeof buffer) - used;
    size_t needed = fuse_add_direntry(from, buffer + used, room, name, &status, index + 1);
    if (needed > room) break;
    used += needed;
  }
  fuse_reply_buf(from, buffer, used);
}

static void on_open(fuse_req_t from, fuse_ino_t inode, struct fuse_file_info *info) {
  /* Not by fuse_reply_open: this libfuse does not know the flag for parallel writes. */
  struct fuse_open_out opened = {.open_flags = FOPEN_KEEP_CACHE};
  if ((info->flags & O_DIRECT) || inode == CONTROL) {
    opened.open_flags = FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES;
  }
  fuse_reply_buf(from, (char *)&opened, sizeof opened);
}

static void read_control(fuse_req_t from, size_t size, off_t offset) {
  char text[512];
  int length = snprintf(
      text, sizeof text,
      "{\"on\": %s, \"reads\": %llu, \"writes\": %llu, \"flushes\": %llu, \"read_bytes\": %llu, "
      "\"write_bytes\": %llu, \"positionings\": %llu, \"busy_ns\": %llu}\n",
      is_on ? "true" : "false", (unsigned long long)figures.reads,
      (unsigned long long)figures.writes, (unsigned long long)figures.flushes,
      (unsigned long long)figures.read_bytes, (unsigned long long)figures.write_bytes,
      (unsigned long long)figures.positionings, (unsigned long long)figures.busy);
  if (offset >= length) length = 0, offset = 0;
  size_t count = (size_t)(length - offset);
  fuse_reply_buf(from, text + offset, count < size ? count : size);
}

static void on_read(fuse_req_t from, fuse_ino_t inode, size_t size, off_t offset,
                    struct fuse_file_info *info) {
  (void)info;
  struct file *file = file_of(inode);
  if (inode == CONTROL) {
    read_control(from, size, offset);
  } else if (file == NULL || offset < 0) {
    fuse_reply_err(from, EINVAL);
  } else if ((uint64_t)offset >= file->size || size == 0) {
    fuse_reply_buf(from, NULL, 0);
  } else {
    uint64_t left = file->size - (uint64_t)offset;
    if (size > left) size = left;
    begin(new_pending(from, READ, file->start + (uint64_t)offset, size > LONGEST ? LONGEST : size));
  }
}

static void write_control(fuse_req_t from, const char *data, size_t size) {
  bool on = size >= 2 && memcmp(data, "on", 2) == 0;
  if (!on && (size < 3 || memcmp(data, "off", 3) != 0)) {
    fuse_reply_err(from, EINVAL);
    return;
  }
  is_on = on;
  fuse_reply_write(from, size);
}

static void on_write(fuse_req_t from, fuse_ino_t inode, const char *data, size_t size,
                     off_t offset, struct fuse_file_info *info) {
  struct file *file = file_of(inode);
  if (inode == CONTROL) {
    write_control(from, data, size);
  } else if (file == NULL || offset < 0 || (uint64_t)offset > file->size ||
             size > file->size - (uint64_t)offset) {
    fuse_reply_err(from, ENOSPC);
  } else {
    uint64_t start = file->start + (uint64_t)offset;
    if (pwrite(store, data, size, (off_t)start) != (ssize_t)size) {
      fuse_reply_err(from, EIO);
      return;
    }
    struct pending *one = new_pending(from, WRITE, start, size);
    bool needs_flush = device == SLOW_FLUSH || (device == ROTATING && write_cache > 0);
    one->is_durable = (info->flags & O_DSYNC) != 0 && needs_flush && is_on;
    begin(one);
  }
}

static void on_fsync(fuse_req_t from, fuse_ino_t inode, int data_only,
                     struct fuse_file_info *info) {
  (void)inode, (void)data_only, (void)info;
  begin(new_pending(from, FLUSH, 0, 0));
}

static void on_fsyncdir(fuse_req_t from, fuse_ino_t inode, int data_only,
                        struct fuse_file_info *info) {
  (void)inode, (void)data_only, (void)info;
  fuse_reply_err(from, 0);
}

static void on_fallocate(fuse_req_t from, fuse_ino_t inode, int mode, off_t offset, off_t length,
                         struct fuse_file_info *info) {
  (void)info;
  struct file *file = file_of(inode);
  bool is_inside = file != NULL && (uint64_t)(offset + length) <= file->size;
  if (mode != 0 && mode != FALLOC_FL_KEEP_SIZE) fuse_reply_err(from, EOPNOTSUPP);
  else fuse_reply_err(from, is_inside ? 0 : ENOSPC);
}

static const struct fuse_lowlevel_ops operations = {
    .init = on_init, .lookup = on_lookup, .getattr = on_getattr, .setattr = on_setattr,
    .readdir = on_readdir, .open = on_open, .read = on_read, .write = on_write,
    .fsync = on_fsync, .fsyncdir = on_fsyncdir, .fallocate = on_fallocate};

/* The loop */

/* Waits for the kernel or for the next time of the device's own. */
static void pause_until(int descriptor, int64_t next) {
  struct pollfd poll = {.fd = descriptor, .events = POLLIN};
  int64_t left = next == NEVER ? 0 : next - now();
  if (left < 0) left = 0;
  struct timespec timeout = {left / 1000000000, left % 1000000000};
  if (ppoll(&poll, 1, next == NEVER ? NULL : &timeout, NULL) < 0 && errno != EINTR) fail("ppoll");
}

static void serve(struct fuse_session *session) {
  struct fuse_buf buffer = {.mem = NULL};
  int descriptor = fuse_session_fd(session);
  fcntl(descriptor, F_SETFL, fcntl(descriptor, F_GETFL) | O_NONBLOCK);
  while (!fuse_session_exited(session)) {
    int count;
    while ((count = fuse_session_receive_buf(session, &buffer)) > 0) {
      fuse_session_process_buf(session, &buffer);
    }
    if (count != -EAGAIN && count != -EINTR) break;
    rotating_run(now());
    while (answers != NULL && answers->due <= now()) {
      struct pending *one = answers;
      answers = one->next;
      end(one);
    }
    int64_t next = device == ROTATING ? rotating_next() : NEVER;
    if (answers != NULL && answers->due < next) next = answers->due;
    pause_until(descriptor, next);
  }
  free(buffer.mem);
}

static void add_file(char *word) {
  char *colon = strrchr(word, ':');
  if (colon == NULL || file_count == MOST_FILES) {
    fprintf(stderr, "emulated disk: --file takes NAME:BYTES, %d times at most\n", MOST_FILES);
    exit(64);
  }
  *colon = 0;
  uint64_t end = file_count > 0 ? files[file_count - 1].start + files[file_count - 1].size : 0;
  files[file_count++] = (struct file){word, end, strtoull(colon + 1, NULL, 10) & ~4095ull};
}

static void set_kind(const char *word) {
  static const char *names[] = {"rotating", "flush", "round-trip"};
  for (int index = 0; index < 3; index++) {
    if (strcmp(word, names[index]) == 0) {
      device = (enum device_kind)index;
      return;
    }
  }
  fprintf(stderr, "emulated disk: --kind is rotating, flush or round-trip\n");
  exit(64);
}

static void read_options(int count, char **words) {
  static const struct option known[] = {
      {"store", required_argument, NULL, 's'}, {"file", required_argument, NULL, 'f'},
      {"kind", required_argument, NULL, 'k'},  {"cache", required_argument, NULL, 'c'},
      {"capacity", required_argument, NULL, 'b'}, {"delay-us", required_argument, NULL, 'd'},
      {"off", no_argument, NULL, 'o'},         {NULL, 0, NULL, 0}};
  const char *path = NULL;
  int letter;
  while ((letter = getopt_long(count, words, "", known, NULL)) != -1) {
    if (letter == 's') path = optarg;
    else if (letter == 'f') add_file(optarg);
    else if (letter == 'k') set_kind(optarg);
    else if (letter == 'c') write_cache = strtoull(optarg, NULL, 10);
    else if (letter == 'b') capacity = strtoull(optarg, NULL, 10);
    else if (letter == 'd') delay = strtoll(optarg, NULL, 10) * 1000;
    else if (letter == 'o') is_on = false;
    else exit(64);
  }
  if (optind + 1 != count || path == NULL || file_count == 0) {
    fprintf(stderr, "usage: emulated_disk MOUNTPOINT --store FILE --file NAME:BYTES...\n");
    exit(64);
  }
  struct file *last = &files[file_count - 1];
  if (last->start + last->size > capacity) {
    fprintf(stderr, "emulated disk: the files are larger than the disk\n");
    exit(64);
  }
  store = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (store < 0 || ftruncate(store, (off_t)(last->start + last->size)) != 0) fail(path);
}

int main(int count, char **words) {
  read_options(count, words);
  /* Unmounts also when whoever started it dies; and waits to the microsecond. */
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  prctl(PR_SET_TIMERSLACK, 1);
  /* A disk does not wait for a processor. Where that is not allowed it will have to. */
  struct sched_param first = {.sched_priority = 1};
  sched_setscheduler(0, SCHED_FIFO, &first);
  rotating_start(capacity, write_cache, &figures, is_done);
  char *arguments[] = {words[0], "-ofsname=emulated_disk,subtype=sluice"};
  struct fuse_args args = FUSE_ARGS_INIT(2, arguments);
  /* An interrupt from the terminal is for whoever started it, who still needs the files. */
  signal(SIGINT, SIG_IGN);
  struct fuse_session *session =
      fuse_session_new(&args, &operations, sizeof operations, NULL);
  if (session == NULL || fuse_set_signal_handlers(session) != 0) return 1;
  if (fuse_session_mount(session, words[optind]) != 0) return 1;
  serve(session);
  fuse_session_unmount(session);
  fuse_remove_signal_handlers(session);
  fuse_session_destroy(session);
  return 0;
}
