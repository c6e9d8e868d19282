/* A disk of 7200 revolutions a minute, as a model in which time is an argument: see rotating.c. */

#ifndef ROTATING_H
#define ROTATING_H

#include <stdbool.h>
#include <stdint.h>

/* Times are nanoseconds of CLOCK_MONOTONIC, places are bytes from the disk's outer edge. */
#define NEVER INT64_MAX

enum kind { READ, WRITE, FLUSH };

struct request {
  enum kind kind;
  uint64_t start, length;
  int64_t arrival;
  /* Who waits: the model hands it back with `done`, and does not look at it. */
  struct request *next;
};

struct figures {
  uint64_t reads, writes, flushes, read_bytes, write_bytes;
  /* What the arm did: times that it went to a place, and nanoseconds that it was busy. */
  uint64_t positionings, busy;
};

/* Called once for each request, when it is known at which time it is done. */
typedef void (*done_function)(struct request *request, int64_t at);

void rotating_start(uint64_t capacity, uint64_t cache, struct figures *figures, done_function done);
void rotating_submit(struct request *request, int64_t now);
/* Does what was to be done until `now`. */
void rotating_run(int64_t now);
/* The time of the next event by itself, or NEVER. */
int64_t rotating_next(void);

#endif
