/* A disk of 7200 revolutions a minute with one actuator.
 *
 * After C. Ruemmler and J. Wilkes, "An introduction to disk drive modeling", IEEE Computer 27(3),
 * 1994: seek time by distance, the platter's angle by real time, zones, a read-ahead segment cache,
 * a write cache. The figures are of the size that manuals of such disks have (HGST's for the
 * Ultrastar 7K4000: 8.2 ms on average, for reads and writes alike): 0.8 ms from track to track,
 * 8.5 ms over a third of the stroke, 17 ms over all of it, 200 MB/s at the outer edge and 100 at
 * the inner one.
 *
 * The tracks are one spiral: a place has a number of turns from its start, whose fraction is its
 * angle and whose difference to another's is the way of the arm. (Switches of heads and tracks are
 * in the sustained rate.) A request that comes when its first sector has just passed therefore
 * waits a revolution; one that was queued behind its neighbour does not.
 *
 * Of up to 32 requests, as with native command queuing, the arm takes the one that it can be done
 * with positioning for first (shortest positioning time), unless one has waited half a second.
 * A read at the end of what the arm has read is served by reading on. A write goes to its place,
 * or, with a write cache, is taken at once while there is room; what the cache holds is merged and
 * written in the order of places, the 32 next ones by shortest positioning time, when nobody
 * reads, a flush waits, or the cache is half full. A flush ends when all that was taken before it
 * is on the platter; reads that lie nearer hold it up for a tenth of a second, not longer. Reads of
 * what the cache holds are not found there: bench loads hardly ask.
 */

#include "rotating.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ZONES = 16, QUEUE = 32, SEGMENTS = 16, MOST_DIRTY = 1 << 15 };

static const double TURN = 60e9 / 7200;
static const double OUTER_RATE = 200e6, INNER_RATE = 100e6;
static const double TRACK_SEEK = 0.8e6, THIRD_SEEK = 8.5e6, FULL_SEEK = 17e6;
/* What a command costs that needs no arm: itself, and its data over SATA. */
static const int64_t COMMAND = 50 * 1000;
static const double BYTE_ON_WIRE = 1e9 / 550e6;
/* How far it reads on, how much of a stream it remembers, how long a write it makes of many. */
static const uint64_t AHEAD = 2 << 20, REMEMBERED = 4 << 20, LONGEST_MERGED = 1 << 20;
static const int64_t TOO_OLD = 500 * 1000 * 1000, FLUSH_TOO_OLD = 100 * 1000 * 1000;

/* Written to the cache, not to its place: `first` is the number of the oldest write in it, `since`
 * the time of the newest. */
struct dirty {
  uint64_t start, end, first;
  int64_t since;
};

/* What was read and is still in memory. */
struct segment {
  uint64_t start, end;
};

/* What the arm does now: for a request, or for the cache. */
struct work {
  struct request *request;
  struct dirty dirty;
  int64_t begin, end;
};

static struct {
  uint64_t capacity, cache;
  uint64_t zone_bytes;
  double zone_turns[ZONES + 1], turns_a_byte[ZONES];
  struct figures *figures;
  done_function done;

  /* Requests for the arm in the order of their coming, and writes for which the cache is full. */
  struct request *first, *last, *blocked, *last_blocked;

  bool busy;
  struct work work;
  /* Where the arm's last work ended, and when the arm is free for another. */
  uint64_t head;
  int64_t free_at;

  /* Reading on: from `ahead_from` at `ahead_since`, to `ahead_limit` at most. */
  bool is_ahead;
  uint64_t ahead_start, ahead_from, ahead_limit;
  int64_t ahead_since;
  struct segment segments[SEGMENTS];
  int next_segment;

  /* By place; no two overlap. */
  struct dirty *dirty;
  int dirty_count;
  uint64_t dirty_bytes, write_number;

  struct request *flush;
  uint64_t flush_number;
} disk;

/* Geometry */

static double turns(uint64_t place) {
  uint64_t zone = place / disk.zone_bytes;
  if (zone >= ZONES) zone = ZONES - 1;
  return disk.zone_turns[zone] + (double)(place - zone * disk.zone_bytes) * disk.turns_a_byte[zone];
}

static int64_t transfer(uint64_t start, uint64_t end) {
  return (int64_t)((turns(end) - turns(start)) * TURN);
}

/* The seek curve: a square root over the first third of the stroke, a straight line behind. */
static double seek(double way) {
  if (way < 1) return 0;
  double part = way / disk.zone_turns[ZONES];
  if (part < 1.0 / 3) return TRACK_SEEK + (THIRD_SEEK - TRACK_SEEK) * sqrt(3 * part);
  return THIRD_SEEK + (FULL_SEEK - THIRD_SEEK) * (part - 1.0 / 3) * 1.5;
}

/* When the arm, free at a time and at a place, is over the start of another. */
static int64_t positioned(int64_t free_at, uint64_t from, uint64_t to) {
  double target = turns(to), there = (double)free_at + seek(fabs(target - turns(from)));
  double wait = target - fmod(there, TURN) / TURN;
  wait -= floor(wait);
  /* Rounding must not cost a revolution. */
  if (wait > 1 - 1e-5) wait = 0;
  return (int64_t)(there + wait * TURN);
}

/* Reading ahead */

static uint64_t ahead_at(int64_t now) {
  double bytes = (double)(now - disk.ahead_since) / transfer(0, 1 << 20) * (1 << 20);
  uint64_t zone = disk.ahead_from / disk.zone_bytes;
  bytes *= disk.turns_a_byte[0] / disk.turns_a_byte[zone < ZONES ? zone : ZONES - 1];
  uint64_t at = disk.ahead_from + (uint64_t)(bytes > 0 ? bytes : 0);
  return at < disk.ahead_limit ? at : disk.ahead_limit;
}

/* The start of what is remembered of the stream that has come so far. */
static uint64_t oldest_ahead(uint64_t reached) {
  uint64_t oldest = reached > REMEMBERED ? reached - REMEMBERED : 0;
  return oldest > disk.ahead_start ? oldest : disk.ahead_start;
}

static void stop_ahead(int64_t now) {
  if (!disk.is_ahead) return;
  disk.is_ahead = false;
  disk.head = ahead_at(now);
  disk.segments[disk.next_segment] = (struct segment){oldest_ahead(disk.head), disk.head};
  disk.next_segment = (disk.next_segment + 1) % SEGMENTS;
}

static void start_ahead(uint64_t start, uint64_t end, int64_t since) {
  disk.is_ahead = true;
  disk.ahead_start = start;
  disk.ahead_from = end;
  disk.ahead_since = since;
  disk.ahead_limit = end + AHEAD < disk.capacity ? end + AHEAD : disk.capacity;
}

/* Serves a read from memory or by reading on, if it can be. */
static bool is_read_ahead(struct request *request, int64_t now) {
  uint64_t start = request->start, end = start + request->length;
  int64_t wire = COMMAND + (int64_t)((double)request->length * BYTE_ON_WIRE);
  for (int index = 0; index < SEGMENTS; index++) {
    struct segment *segment = &disk.segments[index];
    if (start >= segment->start && end <= segment->end) {
      disk.done(request, now + wire);
      return true;
    }
  }
  if (!disk.is_ahead || disk.busy || disk.first) return false;
  uint64_t reached = ahead_at(now);
  if (start < oldest_ahead(reached)) return false;
  /* Where the arm has stopped, going on is positioning like any other. */
  if (end > reached && (start >= disk.ahead_limit || reached == disk.ahead_limit)) return false;
  int64_t at = now;
  if (end > reached) {
    at = now + transfer(reached, end);
    int64_t counted = disk.free_at > now ? disk.free_at : now;
    if (at > counted) disk.figures->busy += (uint64_t)(at - counted);
  }
  if (at > disk.free_at) disk.free_at = at;
  if (end + AHEAD > disk.ahead_limit) {
    disk.ahead_limit = end + AHEAD < disk.capacity ? end + AHEAD : disk.capacity;
  }
  disk.done(request, at + wire);
  return true;
}

/* The write cache */

/* The first extent that ends behind a place. */
static int first_behind(uint64_t place) {
  int low = 0, high = disk.dirty_count;
  while (low < high) {
    int middle = (low + high) / 2;
    if (disk.dirty[middle].end <= place) low = middle + 1;
    else high = middle;
  }
  return low;
}

static void remove_dirty(int index, int count) {
  for (int each = index; each < index + count; each++) {
    disk.dirty_bytes -= disk.dirty[each].end - disk.dirty[each].start;
  }
  disk.dirty_count -= count;
  memmove(disk.dirty + index, disk.dirty + index + count,
          sizeof(struct dirty) * (size_t)(disk.dirty_count - index));
}

static bool is_near(struct dirty *neighbour, struct dirty *one) {
  uint64_t start = neighbour->start < one->start ? neighbour->start : one->start;
  uint64_t end = neighbour->end > one->end ? neighbour->end : one->end;
  return end - start <= LONGEST_MERGED;
}

static void add_dirty(uint64_t start, uint64_t end, int64_t now) {
  struct dirty one = {start, end, ++disk.write_number, now};
  int index = first_behind(start);
  if (index > 0 && disk.dirty[index - 1].end == start && is_near(&disk.dirty[index - 1], &one)) {
    index--;
  }
  int count = 0;
  while (index + count < disk.dirty_count) {
    struct dirty *other = &disk.dirty[index + count];
    bool touches = other->start == one.end && is_near(other, &one);
    if (other->start >= one.end && !touches) break;
    if (other->start < one.start) one.start = other->start;
    if (other->end > one.end) one.end = other->end;
    if (other->first < one.first) one.first = other->first;
    count++;
  }
  remove_dirty(index, count);
  memmove(disk.dirty + index + 1, disk.dirty + index,
          sizeof(struct dirty) * (size_t)(disk.dirty_count - index));
  disk.dirty[index] = one;
  disk.dirty_count++;
  disk.dirty_bytes += one.end - one.start;
}

static bool has_room(struct request *request) {
  if (disk.dirty_count == 0) return true;
  return disk.dirty_bytes + request->length <= disk.cache && disk.dirty_count < MOST_DIRTY;
}

static void absorb(struct request *request, int64_t now) {
  add_dirty(request->start, request->start + request->length, now);
  disk.done(request, now + COMMAND + (int64_t)((double)request->length * BYTE_ON_WIRE));
}

static bool is_due_for_flush(const struct dirty *dirty) {
  return disk.flush != NULL && dirty->first <= disk.flush_number;
}

static void end_flush(int64_t now) {
  if (disk.flush == NULL) return;
  if (disk.busy && disk.work.request == NULL && is_due_for_flush(&disk.work.dirty)) return;
  for (int index = 0; index < disk.dirty_count; index++) {
    if (is_due_for_flush(&disk.dirty[index])) return;
  }
  struct request *flush = disk.flush;
  disk.flush = NULL;
  disk.done(flush, now + COMMAND);
}

/* The extent that the arm should write next, with the time when it would be over it. */
static int next_dirty(int64_t *best, int64_t *begin) {
  int chosen = -1, seen = 0, start = first_behind(disk.head);
  for (int step = 0; step < disk.dirty_count && seen < QUEUE; step++) {
    int index = (start + step) % disk.dirty_count;
    if (disk.flush != NULL && !is_due_for_flush(&disk.dirty[index])) continue;
    seen++;
    int64_t since = disk.dirty[index].since;
    int64_t from = since > disk.free_at ? since : disk.free_at;
    int64_t at = positioned(from, disk.head, disk.dirty[index].start);
    if (at < *best) {
      *best = at;
      *begin = from;
      chosen = index;
    }
  }
  return chosen;
}

/* The arm */

/* The request that it should serve next, the one before it in the list, and the time. */
static struct request *next_request(struct request **before, int64_t now, int64_t *best) {
  struct request *chosen = NULL, *previous = NULL;
  int seen = 0;
  for (struct request *one = disk.first; one != NULL && seen < QUEUE; one = one->next, seen++) {
    int64_t from = one->arrival > disk.free_at ? one->arrival : disk.free_at;
    int64_t at = positioned(from, disk.head, one->start);
    bool is_old = seen == 0 && now - one->arrival > TOO_OLD;
    if (at < *best || is_old) {
      *best = at;
      chosen = one;
      *before = previous;
    }
    if (is_old) break;
    previous = one;
  }
  return chosen;
}

static void unlink_request(struct request *one, struct request *before) {
  if (before != NULL) before->next = one->next;
  else disk.first = one->next;
  if (disk.last == one) disk.last = before;
}

static void go(struct work work, uint64_t start, uint64_t end, int64_t begin, int64_t at) {
  stop_ahead(begin);
  disk.busy = true;
  disk.work = work;
  disk.work.begin = begin;
  disk.work.end = at + transfer(start, end);
  disk.head = end;
  disk.figures->positionings++;
}

/* Gives the arm something to do; false when there is nothing. */
static bool start_work(int64_t now) {
  if (disk.first == NULL && disk.dirty_count == 0) return false;
  /* From where reading on has come meanwhile. */
  if (disk.is_ahead) disk.head = ahead_at(now);
  int64_t best = NEVER;
  struct request *before = NULL, *request = next_request(&before, now, &best);
  bool drains = disk.first == NULL || disk.flush != NULL || disk.blocked != NULL ||
      disk.dirty_bytes > disk.cache / 2;
  bool is_old = request != NULL && now - request->arrival > TOO_OLD;
  int64_t from = 0;
  bool is_flush_old = disk.flush != NULL && now - disk.flush->arrival > FLUSH_TOO_OLD;
  if (is_flush_old && !is_old) best = NEVER;
  int index = drains && !is_old ? next_dirty(&best, &from) : -1;
  if (index >= 0) {
    struct dirty dirty = disk.dirty[index];
    remove_dirty(index, 1);
    go((struct work){.dirty = dirty}, dirty.start, dirty.end, from, best);
    return true;
  }
  if (request == NULL) return false;
  unlink_request(request, before);
  int64_t begin = request->arrival > disk.free_at ? request->arrival : disk.free_at;
  go((struct work){.request = request}, request->start, request->start + request->length,
     begin, best);
  return true;
}

static void end_work(void) {
  struct work work = disk.work;
  disk.busy = false;
  disk.free_at = work.end;
  disk.figures->busy += (uint64_t)(work.end - work.begin);
  if (work.request != NULL) {
    if (work.request->kind == READ && disk.first == NULL) {
      start_ahead(work.request->start, disk.head, work.end);
    }
    disk.done(work.request, work.end);
  }
  while (disk.blocked != NULL && has_room(disk.blocked)) {
    struct request *one = disk.blocked;
    disk.blocked = one->next;
    absorb(one, work.end);
  }
  end_flush(work.end);
}

/* The interface */

void rotating_start(uint64_t capacity, uint64_t cache, struct figures *figures,
                    done_function done) {
  disk.capacity = capacity;
  disk.cache = cache;
  disk.figures = figures;
  disk.done = done;
  disk.zone_bytes = capacity / ZONES;
  for (int zone = 0; zone < ZONES; zone++) {
    double rate = OUTER_RATE - (OUTER_RATE - INNER_RATE) * zone / (ZONES - 1);
    disk.turns_a_byte[zone] = 1e9 / rate / TURN;
    disk.zone_turns[zone + 1] =
        disk.zone_turns[zone] + (double)disk.zone_bytes * disk.turns_a_byte[zone];
  }
  disk.dirty = calloc(MOST_DIRTY + 1, sizeof(struct dirty));
  if (disk.dirty == NULL) {
    fprintf(stderr, "rotating disk: no memory\n");
    exit(1);
  }
}

void rotating_submit(struct request *request, int64_t now) {
  rotating_run(now);
  request->arrival = now;
  request->next = NULL;
  if (request->kind == FLUSH) {
    /* One at a time: whoever calls gathers them. */
    disk.flush = request;
    disk.flush_number = disk.write_number;
    end_flush(now);
  } else if (request->kind == WRITE && disk.cache > 0) {
    if (disk.blocked == NULL && has_room(request)) {
      absorb(request, now);
    } else {
      if (disk.blocked == NULL) disk.blocked = request;
      else disk.last_blocked->next = request;
      disk.last_blocked = request;
    }
  } else if (request->kind == WRITE || !is_read_ahead(request, now)) {
    if (disk.first == NULL) disk.first = request;
    else disk.last->next = request;
    disk.last = request;
  }
  rotating_run(now);
}

void rotating_run(int64_t now) {
  while (true) {
    if (disk.busy) {
      if (disk.work.end > now) return;
      end_work();
    }
    if (disk.free_at > now || !start_work(now)) return;
  }
}

int64_t rotating_next(void) {
  if (disk.busy) return disk.work.end;
  return disk.first != NULL || disk.dirty_count > 0 ? disk.free_at : NEVER;
}
