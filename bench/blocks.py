"""Blocks over NBD by libnbd: connections, contents that can be told apart, and `drive`, which keeps
requests of many connections under way at once in one thread."""

import contextlib
import heapq
import math
import random
import select
import struct
import time

import nbd

import servers
from loads import GIB, MIB

KIB = 1 << 10
BLOCK = 4 * KIB
# The golden image: 64 KiB of data at the start of each 160 KiB, so that it has 6,553 extents a GiB.
PIECE, STRIDE = 64 * KIB, 160 * KIB


@contextlib.contextmanager
def pool(directory, log="1G", arguments=(), check=True):
    """A pool of its own without disks, served; checked offline when all went well; then removed."""
    server = servers.Sluice(directory, disks=0, disk_size=0, log=log, arguments=arguments)
    try:
        yield server
        if check:
            server.stop()
            server.cli("check", timeout=3600)
    finally:
        server.remove()


def connect(server, name):
    handle = nbd.NBD()
    handle.set_export_name(name)
    handle.connect_unix(str(server.socket))
    return handle


def content(tag, block, count=1):
    """What `count` blocks from `block` on hold when `tag` wrote them; never zeros."""
    return b"".join(struct.pack("<QQ", tag | 1 << 63, number) * (BLOCK // 16)
                    for number in range(block, block + count))


def noise(length, seed):
    return random.Random(seed).randbytes(length)


def golden_pieces(size):
    """First block of each piece of data of a golden image."""
    return [offset // BLOCK for offset in range(0, size - PIECE + 1, STRIDE)]


class Stream:
    """One connection and the requests that it is to make: (kind, offset, data or length, due).

    `kind` is "w" or "r", `due` the earliest second on the monotonic clock, or 0. Subclasses may
    look at what was read, and set `failure`.
    """

    def __init__(self, server, name, requests, depth=16):
        self.server, self.name = server, name
        self.requests = iter(requests)
        self.depth = depth
        self.handle = self.failure = None
        self.under_way = 0
        self.next = next(self.requests, None)
        # When it was last said to go on, and what it was last said to wait for.
        self.due = self.events = 0

    def open(self):
        self.handle = connect(self.server, self.name)
        return self.handle.aio_get_fd()

    def close(self):
        self.handle.shutdown()
        self.handle = None

    @property
    def is_done(self):
        return self.next is None and self.under_way == 0

    def advance(self, now):
        """Sends what is due and may be sent; returns when the next request is due, or None."""
        if self.failure is not None:
            raise RuntimeError(f"{self.name}: {self.failure}")
        while self.next is not None and self.under_way < self.depth:
            kind, offset, what, due = self.next
            if due > now:
                return due
            self.under_way += 1
            if kind == "w":
                buffer = nbd.Buffer.from_bytearray(bytearray(what))
                self.handle.aio_pwrite(buffer, offset, self.completion(kind, offset, None))
            else:
                buffer = nbd.Buffer(what)
                self.handle.aio_pread(buffer, offset, self.completion(kind, offset, buffer))
            self.next = next(self.requests, None)
        return None

    def completion(self, kind, offset, buffer):
        def done(error):
            # An exception would be lost in libnbd.
            self.under_way -= 1
            if error.value != 0:
                self.failure = f"{kind} at {offset}: error {error.value}"
            elif buffer is not None:
                self.was_read(offset, buffer)
            return 1
        return done

    def was_read(self, offset, buffer):
        pass

    def wanted(self):
        """The events of `poll` that go on with it."""
        direction = self.handle.aio_get_direction()
        return (select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0) | (
            select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0)

    def notify(self, events):
        if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
            self.handle.aio_notify_read()
        elif events & select.POLLOUT:
            self.handle.aio_notify_write()


class Driver:
    """The streams whose connections are open, by file descriptor, and what each waits for."""

    def __init__(self):
        self.running = {}
        self.poll = select.poll()
        # (when, descriptor, identity of the stream) of requests that are not due yet.
        self.later = []

    def add(self, stream):
        descriptor = stream.open()
        self.running[descriptor] = stream
        self.poll.register(descriptor, 0)
        self.advance(descriptor, time.monotonic())

    def advance(self, descriptor, now):
        stream = self.running[descriptor]
        due = stream.advance(now)
        if stream.is_done:
            self.poll.unregister(descriptor)
            self.running.pop(descriptor).close()
            return
        if due is not None and due != stream.due:
            stream.due = due
            heapq.heappush(self.later, (due, descriptor, id(stream)))
        events = stream.wanted()
        if events != stream.events:
            stream.events = events
            self.poll.modify(descriptor, events)

    def step(self):
        """Waits for replies or for the next request that is due, a second at most."""
        pause = min(max(self.later[0][0] - time.monotonic(), 0), 1) if self.later else 1
        ready = []
        # Rounded up: a millisecond too early would be a busy wait.
        for descriptor, events in self.poll.poll(math.ceil(pause * 1000)):
            self.running[descriptor].notify(events)
            ready.append(descriptor)
        now = time.monotonic()
        while self.later and self.later[0][0] <= now:
            _, descriptor, identity = heapq.heappop(self.later)
            if id(self.running.get(descriptor)) == identity and descriptor not in ready:
                ready.append(descriptor)
        for descriptor in ready:
            self.advance(descriptor, now)


def drive(streams, at_once=64, timeout=3600):
    """Makes all requests of all streams, of `at_once` connections at a time."""
    waiting = iter(streams)
    driver = Driver()
    deadline = time.monotonic() + timeout
    while True:
        while len(driver.running) < at_once and (stream := next(waiting, None)) is not None:
            driver.add(stream)
        if not driver.running:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"requests over NBD were not done after {timeout} s")
        driver.step()


def write(server, name, requests, depth=16):
    """Writes (offset, data) pairs to one disk."""
    drive([Stream(server, name, (("w", offset, data, 0) for offset, data in requests), depth)])


def fill_golden(server, name, size):
    """Makes a golden image: 40% data, in pieces that no two of are neighbours."""
    server.cli("disk", "create", name, "--size", str(size))
    count = PIECE // BLOCK
    write(server, name, ((block * BLOCK, content(0, block, count))
                         for block in golden_pieces(size)))


def fill(server, name, size, seed=1):
    """Makes a disk that is data from end to end."""
    server.cli("disk", "create", name, "--size", str(size))
    data = noise(MIB, seed)
    write(server, name, ((offset, data) for offset in range(0, size, MIB)), depth=8)


def expect_content(server, name, wanted):
    """Reads blocks of one disk; `wanted` is block -> bytes. Raises on the first wrong one."""
    handle = connect(server, name)
    for block, data in wanted.items():
        if handle.pread(BLOCK, block * BLOCK) != data:
            raise RuntimeError(f"{name}: block {block} is wrong")
    handle.shutdown()


__all__ = ["BLOCK", "GIB", "KIB", "MIB", "PIECE", "STRIDE", "Stream", "connect", "content", "drive",
           "expect_content", "fill", "fill_golden", "golden_pieces", "noise", "pool", "write"]
