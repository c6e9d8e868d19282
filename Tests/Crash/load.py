"""The oracle's clients: libnbd connections with many requests in flight, and the model's view."""

import errno
import random
import select

import nbd

from model import SECTOR, Violation

# Sectors of a write, zero, trim or read, and how often.
SIZES = ((1, 10), (2, 5), (3, 3), (8, 40), (16, 10), (32, 8), (33, 4), (128, 8), (256, 4),
         (512, 3), (2048, 1))
KINDS = (("write", 56), ("zero", 8), ("trim", 8), ("read", 24), ("flush", 4))


def pick(noise, table):
    return noise.choices([item for item, _ in table], [weight for _, weight in table])[0]


class Client:
    """One connection to one disk."""

    def __init__(self, model, uri):
        self.model = model
        self.handle = nbd.NBD()
        self.handle.connect_uri(uri)
        self.pending = {}
        self.failed = None

    def is_dead(self):
        return self.handle.aio_is_dead() or self.handle.aio_is_closed()

    def close(self):
        # The binding closes a handle when nothing refers to it.
        self.handle = None

    # Issuing

    def issue(self, noise):
        kind = pick(noise, KINDS)
        if kind == "flush":
            self._remember(self.handle.aio_flush(), ("flush", None, None))
            return
        first, count = self._range(noise, aligned=kind == "trim")
        self.issue_range(kind, first, count, noise)

    def issue_range(self, kind, first, count, noise=None):
        handle, model, offset = self.handle, self.model, first * SECTOR
        if kind == "read":
            buffer = nbd.Buffer(count * SECTOR)
            read = model.begin_read(first, count)
            self._remember(handle.aio_pread(buffer, offset), (kind, read, buffer))
            return
        flags = nbd.CMD_FLAG_FUA if noise.random() < 0.1 else 0
        version = model.issue(first, count, zero=kind != "write")
        if kind == "write":
            buffer = nbd.Buffer.from_bytearray(bytearray(model.payload(version)))
            cookie = handle.aio_pwrite(buffer, offset, flags=flags)
        elif kind == "zero":
            buffer = None
            flags |= nbd.CMD_FLAG_NO_HOLE if noise.random() < 0.3 else 0
            cookie = handle.aio_zero(count * SECTOR, offset, flags=flags)
        else:
            buffer = None
            cookie = handle.aio_trim(count * SECTOR, offset, flags=flags)
        self._remember(cookie, (kind, version, buffer))

    def _remember(self, cookie, command):
        self.pending[cookie] = command

    def _range(self, noise, aligned):
        count = pick(noise, SIZES)
        sectors = self.model.sectors
        # Most requests meet in a small part of the disk, so that rewrites and overlaps are common.
        reach = 4096 if noise.random() < 0.6 else sectors
        first = noise.randrange(0, reach)
        if aligned or (count % 8 == 0 and noise.random() < 0.8):
            first &= ~7
            count = (count + 7) & ~7
        first = min(first, sectors - count) & (~7 if aligned else ~0)
        return first, count

    # Completing

    def reap(self):
        """Takes every completed command; returns how many."""
        done = 0
        while True:
            try:
                cookie = self.handle.aio_peek_command_completed()
            except nbd.Error:
                return done
            if cookie <= 0:
                return done
            command = self.pending.pop(cookie)
            done += 1
            try:
                self.handle.aio_command_completed(cookie)
            except nbd.Error as error:
                self._failed(command, error)
                continue
            self._completed(command)

    def _completed(self, command):
        kind, subject, buffer = command
        if kind == "read":
            self.model.end_read(subject, buffer.to_bytearray())
        elif kind != "flush":
            self.model.acknowledge(subject)

    def _failed(self, command, error):
        """A command that fails with its connection was cut off; any other failure is a fault."""
        gone = (errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNRESET, errno.EPIPE)
        if command[0] == "read":
            self.model.reads.discard(command[1])
        if error.errnum not in gone and not self.is_dead():
            raise Violation(f"{command[0]} {command[1]!r} failed: {error}")


class Load:
    """All connections, driven by one loop."""

    def __init__(self, models, connections, uri):
        """`connections`: how many for each disk; `uri`: a disk's address by its index."""
        self.clients = [
            Client(model, uri(model.disk)) for model in models for _ in range(connections)]
        self.completed = 0

    def close(self):
        for client in self.clients:
            client.close()

    def run(self, noise, operations, depth):
        """Keeps `depth` requests in flight on each connection until so many are done."""
        goal = self.completed + operations
        while self.completed < goal:
            for client in self.clients:
                while len(client.pending) < depth:
                    client.issue(noise)
            self._turn(1000)
            if any(client.is_dead() for client in self.clients):
                raise Violation("the daemon closed a connection during ordinary work")

    def drain(self):
        """Takes what was answered, until nothing is in flight or every connection is dead."""
        while any(client.pending and not client.is_dead() for client in self.clients):
            self._turn(20000)
        for client in self.clients:
            self.completed += client.reap()

    def read_back(self, depth=4):
        """Reads everything that was ever written, on the first connection of each disk."""
        work = {}
        for client in self.clients:
            if client.model.disk not in work:
                work[client.model.disk] = (client, client.model.touched())
        active = dict(work)
        while active or any(client.pending for client, _ in work.values()):
            for disk, (client, runs) in list(active.items()):
                while len(client.pending) < depth:
                    run = next(runs, None)
                    if run is None:
                        del active[disk]
                        break
                    client.issue_range("read", *run)
            self._turn(20000)
            if any(client.is_dead() for client in self.clients):
                raise Violation("the daemon closed a connection while everything was read back")

    def _turn(self, timeout):
        poller = select.poll()
        by_descriptor = {}
        for client in self.clients:
            if client.is_dead():
                continue
            direction = client.handle.aio_get_direction()
            events = 0
            if direction & nbd.AIO_DIRECTION_READ:
                events |= select.POLLIN
            if direction & nbd.AIO_DIRECTION_WRITE:
                events |= select.POLLOUT
            descriptor = client.handle.aio_get_fd()
            by_descriptor[descriptor] = client
            poller.register(descriptor, events)
        ready = poller.poll(timeout)
        if not ready and by_descriptor and any(c.pending for c in by_descriptor.values()):
            raise Violation(f"no answer within {timeout / 1000:.0f} s")
        for descriptor, events in ready:
            handle = by_descriptor[descriptor].handle
            try:
                direction = handle.aio_get_direction()
                if events & (select.POLLIN | select.POLLHUP | select.POLLERR) and (
                        direction & nbd.AIO_DIRECTION_READ):
                    handle.aio_notify_read()
                elif events & (select.POLLOUT | select.POLLHUP | select.POLLERR) and (
                        direction & nbd.AIO_DIRECTION_WRITE):
                    handle.aio_notify_write()
            except nbd.Error:
                # The connection is dead now, which `is_dead` tells.
                pass
        for client in self.clients:
            self.completed += client.reap()


def seeded(seed, what):
    """A source of decisions of its own for each purpose."""
    return random.Random(f"{seed}/{what}")
