"""Clients that break the protocol: their connection ends or they get an error, nothing else."""

import os
import random
import struct
import time

from sluicetest import nbdwire, tools
from sluicetest.daemon import Pool, open_files
from sluicetest.nbdwire import Closed, Wire
from sluicetest.runner import expect, test

MIB = 1 << 20
SIZE = 16 * MIB


class Victim:
    """A daemon with a disk of known content, which must be unchanged in the end."""

    def __init__(self, context):
        self.pool = Pool(context)
        self.pool.start()
        self.uri = self.pool.create_disk("disk", str(SIZE))
        self.image = context.path("known.raw")
        tools.make_image(self.image, SIZE, seed=11)
        tools.run(["nbdcopy", self.image, self.uri])
        self.files = open_files(self.pool.process.pid)
        context.closing_checks.insert(0, self.unharmed)

    def wire(self, timeout=20):
        return Wire(self.pool.socket, timeout)

    def unharmed(self):
        self.pool.verify_alive()
        tools.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", self.image, self.uri])
        # Nothing is kept of connections that ended.
        tools.wait_until(
            lambda: open_files(self.pool.process.pid) <= self.files, 20,
            f"the daemon keeps descriptors: {self.files} before the test, now more")
        shown = tools.wait_until(
            lambda: self.pool.json("disk", "show", "disk")["connections"] == 0, 20,
            "connections that ended are still counted")
        expect(shown, "connections that ended are still counted")


@test("garbage instead of a handshake ends the connection")
def _(context):
    victim = Victim(context)
    noise = random.Random(1)
    for length in (1, 3, 4, 5, 16, 100, 5000, 1 << 20):
        with victim.wire() as wire:
            try:
                wire.send(noise.randbytes(length))
                wire.socket.shutdown(1)
            except ConnectionError:
                continue
            expect(wire.is_closed(), f"{length} bytes of garbage left the connection open")


@test("a client that stops in the middle of a message holds up nobody else")
def _(context):
    victim = Victim(context)
    wires = []
    for cut in (0, 1, 4):
        wires.append(victim.wire())
        wires[-1].send(struct.pack(">I", 3)[:cut])
    wires.append(victim.wire())
    wires[-1].greet()
    wires[-1].option(nbdwire.GO, b"\0\0", length=100)
    for cut in (1, 27, 28, 28 + 1000):
        wires.append(victim.wire())
        wires[-1].open("disk")
        whole = struct.pack(">IHHQQI", nbdwire.REQUEST, 0, nbdwire.WRITE, 1, 0, MIB) + bytes(MIB)
        wires[-1].send(whole[:cut])
    began = time.monotonic()
    tools.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", victim.image, victim.uri],
              timeout=60)
    context.note(f"another client took {time.monotonic() - began:.1f} s")
    for wire in wires:
        wire.socket.close()


@test("an option that claims 4 GiB is refused or ends the connection, and takes no memory")
def _(context):
    victim = Victim(context)
    before = victim.pool.memory()
    for option in (nbdwire.GO, nbdwire.EXPORT_NAME, nbdwire.SET_META, nbdwire.LIST, 77):
        with victim.wire(timeout=5) as wire:
            wire.greet()
            wire.option(option, b"x" * 1000, length=0xFFFFFFFF)
            try:
                for _ in range(64):
                    wire.send(bytes(MIB))
            except OSError:
                pass
    expect(victim.pool.memory() - before < 64 * MIB, "memory grew with what the client claimed")


@test("a write that claims 4 GiB is refused or ends the connection, and changes nothing")
def _(context):
    victim = Victim(context)
    before = victim.pool.memory()
    for length in (33 * MIB, 0x7FFFFFFF, 0xFFFFFFFF):
        with victim.wire(timeout=5) as wire:
            wire.open("disk")
            wire.request(nbdwire.WRITE, 0, length)
            try:
                for _ in range(48):
                    wire.send(b"\xAA" * MIB)
            except OSError:
                pass
    expect(victim.pool.memory() - before < 128 * MIB, "memory grew with what the client claimed")


@test("requests outside the disk or the rules get an error and the connection lives on")
def _(context):
    victim = Victim(context)
    allowed = {nbdwire.EINVAL, nbdwire.ENOSPC, nbdwire.EOVERFLOW, nbdwire.ENOTSUP}
    block = bytes(4096)
    cases = [
        ("a read past the end", nbdwire.READ, SIZE, 4096, 0, b""),
        ("a read across the end", nbdwire.READ, SIZE - 512, 4096, 0, b""),
        ("a read at 2^64 - 512", nbdwire.READ, 2**64 - 512, 4096, 0, b""),
        ("a write past the end", nbdwire.WRITE, SIZE, 4096, 0, block),
        ("a write at 2^63", nbdwire.WRITE, 2**63, 4096, 0, block),
        ("a trim past the end", nbdwire.TRIM, SIZE, 4096, 0, b""),
        ("zeros across the end", nbdwire.WRITE_ZEROES, SIZE - 4096, 8192, 0, b""),
        ("a trim of 4 GiB", nbdwire.TRIM, SIZE - 4096, 0xFFFFFFFF, 0, b""),
        ("an unknown command", 99, 0, 0, 0, b""),
        ("an unknown flag", nbdwire.FLUSH, 0, 0, 0x8000, b""),
        ("a block status nobody asked for", nbdwire.BLOCK_STATUS, 0, 4096, 0, b""),
    ]
    with victim.wire() as wire:
        wire.open("disk")
        for what, command, offset, length, flags, data in cases:
            wire.request(command, offset, length, flags, data=data)
            error, _, _ = wire.simple_reply()
            expect(error in allowed, f"{what} was answered with {error}")
        error, _ = wire.ask(nbdwire.READ, 0, 4096)
        expect(error == 0, "the connection does not serve any more")


@test("512-byte and odd requests are served to clients that ignore the block sizes")
def _(context):
    victim = Victim(context)
    uri = victim.pool.create_disk("odd", "1M")
    with victim.wire() as wire:
        wire.open("odd")
        for offset, length in ((512, 512), (1000, 3), (4095, 2), (0, 1), (65530, 5000)):
            data = bytes([offset % 251 + 1]) * length
            expect(wire.ask(nbdwire.WRITE, offset, length, data=data)[0] == 0,
                   f"a write of {length} bytes at {offset} failed")
            expect(wire.ask(nbdwire.READ, offset, length) == (0, data),
                   f"{length} bytes at {offset} came back changed")
    tools.run(["qemu-io", "-f", "raw", "-c", "read -P 0 128k 128k", uri])


@test("a request with a wrong magic ends the connection")
def _(context):
    victim = Victim(context)
    with victim.wire() as wire:
        wire.open("disk")
        wire.request(nbdwire.READ, 0, 512, magic=0x12345678)
        expect(wire.is_closed(), "a request with a wrong magic left the connection open")


@test("bad names and malformed options get an error reply, and a good one still works after")
def _(context):
    victim = Victim(context)
    with victim.wire() as wire:
        wire.greet()

        def refused(option, data):
            wire.option(option, data)
            while True:
                _, kind, _ = wire.option_reply()
                if kind & 0x80000000:
                    return
                expect(kind != nbdwire.REPLY_ACK, f"option {option} with {data[:40]!r} was taken")

        for name in (b"", b"nothing", b"x" * 4000, b"\xff\xfe", b"a\0b", b"../disk", b"disk@no"):
            refused(nbdwire.GO, struct.pack(">I", len(name)) + name + b"\0\0")
        # Inner lengths that do not fit the option's.
        refused(nbdwire.GO, b"")
        refused(nbdwire.GO, struct.pack(">I", 0xFFFFFFFF) + b"disk\0\0")
        refused(nbdwire.GO, struct.pack(">I", 4) + b"disk" + struct.pack(">H", 9))
        refused(nbdwire.LIST, b"unexpected")
        refused(nbdwire.SET_META, struct.pack(">I", 4) + b"disk" + struct.pack(">I", 0xFFFFFFFF))
        refused(1234, b"")
        found = wire.go("disk")
        expect(found is not None and found[0] == SIZE, f"the disk opened as {found}")


@test("a client that never reads its replies holds up nobody, and memory stays bounded")
def _(context):
    victim = Victim(context)
    with victim.wire(timeout=2) as wire:
        wire.open("disk")
        before = victim.pool.memory()
        sent = 0
        try:
            for cookie in range(4000):
                wire.request(nbdwire.READ, 0, MIB, cookie=cookie)
                sent += 1
        except TimeoutError:
            pass
        context.note(f"{sent} reads of 1 MiB were taken from a client that reads nothing")
        # Its neighbours are served meanwhile.
        tools.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", victim.image, victim.uri])
        expect(victim.pool.memory() - before < 256 * MIB, "replies pile up in memory")


@test("a thousand connections that come and go leave nothing behind")
def _(context):
    victim = Victim(context)
    for number in range(1000):
        with victim.wire() as wire:
            if number % 3:
                wire.open("disk")
            if number % 3 == 2:
                wire.request(nbdwire.READ, 0, 65536)


@test("64 clients work at once, several of them on one disk")
def _(context):
    victim = Victim(context)
    wires = [victim.wire() for _ in range(96)]
    for number in range(16):
        victim.pool.create_disk(f"disk{number}", "1M")
    for number, wire in enumerate(wires):
        wire.open(f"disk{number % 16}")
    for number, wire in enumerate(wires):
        wire.request(nbdwire.WRITE, number // 16 * 4096, 4096, data=bytes([number + 1]) * 4096)
    for wire in wires:
        expect(wire.simple_reply()[0] == 0, "a write failed")
    for number in range(len(wires)):
        # Read on another connection to the same disk than the one that wrote.
        other = wires[(number + 16) % len(wires)]
        content = other.ask(nbdwire.READ, number // 16 * 4096, 4096)
        expect(content == (0, bytes([number + 1]) * 4096), f"client {number}'s block is wrong")
    for wire in wires:
        wire.request(nbdwire.DISC)
        wire.socket.close()


@test("random mutations of good conversations never end the daemon")
def _(context):
    victim = Victim(context)
    seed = context.options.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
    context.note(f"seed {seed}; replay with --seed {seed}")
    noise = random.Random(seed)
    # The disk that is written to: what is sent may be a good write.
    victim.pool.create_disk("scratch", "16M")
    for _ in range(600):
        with victim.wire(timeout=0.02) as wire:
            try:
                wire.receive(18)
                wire.send(mutated(noise, conversation(noise)))
                wire.socket.shutdown(1)
                while wire.socket.recv(1 << 16):
                    pass
            except (OSError, Closed):
                pass
    victim.pool.cli("disk", "list")


def conversation(noise):
    """A good client's bytes: handshake, options, requests."""
    name = b"scratch"
    parts = [struct.pack(">I", 3)]
    if noise.random() < 0.7:
        parts.append(nbdwire.IHAVEOPT + struct.pack(">II", nbdwire.STRUCTURED, 0))
        query = b"base:allocation"
        data = (struct.pack(">I", len(name)) + name + struct.pack(">II", 1, len(query)) + query)
        parts.append(nbdwire.IHAVEOPT + struct.pack(">II", nbdwire.SET_META, len(data)) + data)
    data = struct.pack(">I", len(name)) + name + struct.pack(">H", 0)
    parts.append(nbdwire.IHAVEOPT + struct.pack(">II", nbdwire.GO, len(data)) + data)
    for cookie in range(noise.randrange(1, 12)):
        command = noise.choice((0, 0, 1, 1, 3, 4, 5, 6, 7))
        length = noise.choice((0, 1, 512, 4096, 5000, 65536))
        offset = noise.randrange(0, SIZE - 65536)
        payload = noise.randbytes(length) if command == nbdwire.WRITE else b""
        parts.append(struct.pack(
            ">IHHQQI", nbdwire.REQUEST, noise.choice((0, 0, 1)), command, cookie, offset, length)
            + payload)
    return b"".join(parts)


def mutated(noise, message):
    """The message with a few bytes flipped, cut out, doubled or swapped for telling ones."""
    data = bytearray(message)
    for _ in range(noise.randrange(1, 6)):
        # Mostly near the start, where the structure is.
        place = noise.randrange(len(data)) if noise.random() < 0.3 else noise.randrange(
            min(len(data), 160))
        kind = noise.randrange(5)
        if kind == 0:
            data[place] ^= 1 << noise.randrange(8)
        elif kind == 1:
            del data[place:place + noise.randrange(1, 9)]
        elif kind == 2:
            data[place:place] = data[place:place + noise.randrange(1, 33)]
        elif kind == 3:
            telling = noise.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0"))
            data[place:place + 4] = telling
        else:
            del data[place:]
        if not data:
            data = bytearray(b"\0")
    return bytes(data)
