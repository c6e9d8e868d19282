"""Blocks over NBD by libnbd: connections, contents that can be told apart, and `drive`, which keeps
requests of many connections under way at once in one thread."""

import contextlib
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

    `kind` is "w" or "r", `due` the earliest second on the monotonic clock, or 0.
    """

    def __init__(self, server, name, requests, depth=16, on_read=None):
        self.server, self.name = server, name
        self.requests = iter(requests)
        self.depth = depth
        self.on_read = on_read
        self.handle = None
        self.under_way = 0
        self.failure = None
        self.next = next(self.requests, None)

    def open(self):
        self.handle = connect(self.server, self.name)

    def close(self):
        self.handle.shutdown()
        self.handle = None

    @property
    def is_done(self):
        return self.next is None and self.under_way == 0

    def issue(self, now):
        """Sends what is due and may be sent; returns when the next request is due, or None."""
        while self.next is not None and self.under_way < self.depth:
            kind, offset, what, due = self.next
            if due > now:
                return due
            self.under_way += 1
            if kind == "w":
                buffer = nbd.Buffer.from_bytearray(bytearray(what))
                self.handle.aio_pwrite(buffer, offset, self._completion(kind, offset, None))
            else:
                buffer = nbd.Buffer(what)
                self.handle.aio_pread(buffer, offset, self._completion(kind, offset, buffer))
            self.next = next(self.requests, None)
        return None

    def _completion(self, kind, offset, buffer):
        def done(error):
            # An exception would be lost in libnbd.
            self.under_way -= 1
            if error.value != 0:
                self.failure = f"{self.name}: {kind} at {offset}: error {error.value}"
                return 1
            if buffer is not None and self.on_read is not None:
                self.on_read(self, offset, buffer.to_bytearray())
            return 1
        return done


def drive(streams, at_once=64, timeout=3600):
    """Makes all requests of all streams, of `at_once` connections at a time."""
    waiting = iter(streams)
    by_descriptor = {}
    poll = select.poll()
    deadline = time.monotonic() + timeout
    while True:
        while len(by_descriptor) < at_once and (stream := next(waiting, None)) is not None:
            stream.open()
            by_descriptor[stream.handle.aio_get_fd()] = stream
            poll.register(stream.handle.aio_get_fd())
        if not by_descriptor:
            return
        now = time.monotonic()
        if now > deadline:
            raise RuntimeError(f"requests over NBD were not done after {timeout} s")
        due = [at for stream in by_descriptor.values() if (at := stream.issue(now)) is not None]
        for descriptor, stream in by_descriptor.items():
            direction = stream.handle.aio_get_direction()
            wanted = select.POLLIN if direction & nbd.AIO_DIRECTION_READ else 0
            poll.modify(descriptor, wanted | (
                select.POLLOUT if direction & nbd.AIO_DIRECTION_WRITE else 0))
        pause = min((min(due) - now) * 1000, 1000) if due else 1000
        done = [d for d, s in by_descriptor.items() if s.is_done]
        for descriptor, events in poll.poll(0 if done else max(pause, 0)):
            handle = by_descriptor[descriptor].handle
            if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                handle.aio_notify_read()
            elif events & select.POLLOUT:
                handle.aio_notify_write()
        for stream in by_descriptor.values():
            if stream.failure is not None:
                raise RuntimeError(stream.failure)
        for descriptor in done:
            poll.unregister(descriptor)
            by_descriptor.pop(descriptor).close()


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
