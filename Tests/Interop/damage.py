"""Flipped bits on the devices: the right data, an error, or healed; never other data."""

import os
import random
import shutil
import time

from sluicetest import nbdwire, tools
from sluicetest.daemon import Pool
from sluicetest.nbdwire import Wire
from sluicetest.runner import Failure, expect, test

BLOCK = 4096
BLOCKS = 1024
# Flips of one run; every one opens a copy of the pool.
FLIPS = 24
# Blocks of metadata of one run; all of them are some four times as many.
SWEPT = 60
# What lies in front of a log's frames: labels and epoch records.
LOG_FRONT = 1 << 20


def used_blocks(path):
    """Offsets of the file's blocks that hold anything but zeros."""
    zero, found = bytes(BLOCK), []
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        offset = 0
        while offset < end:
            try:
                offset = file.seek(offset, os.SEEK_DATA)
            except OSError:
                break
            hole = file.seek(offset, os.SEEK_HOLE)
            file.seek(offset)
            while offset < hole:
                if file.read(BLOCK) != zero:
                    found.append(offset)
                offset += BLOCK
    return found


def flip(path, offset, bit):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


class Victim:
    """A stopped pool with data in the log and at home, and copies of it to damage."""

    def __init__(self, context, seed):
        self.context = context
        self.noise = random.Random(seed)
        self.base = Pool(context, name="base", log="32M", space="4G")
        self.base.start()
        self.base.create_disk("disk", str(BLOCKS * BLOCK))
        self.content = {}
        self.write(range(BLOCKS))
        self.base.cli("flush")
        # Some newer versions that are only in the log.
        self.write(self.noise.sample(range(BLOCKS), 200))
        # The log says on stable storage what is durable in it once it falls idle (R3): from then on
        # even its last frame can't be lost in silence.
        time.sleep(1)
        self.base.kill()

    def write(self, blocks):
        with Wire(self.base.socket) as wire:
            wire.open("disk")
            for block in blocks:
                data = self.noise.randbytes(BLOCK)
                error, _ = wire.ask(nbdwire.WRITE, block * BLOCK, BLOCK, data=data)
                expect(error == 0, f"a write failed with {error}")
                self.content[block] = data

    def copy(self, number):
        pool = Pool(self.context, name=f"copy{number}", create=False)
        pool.check_at_end = False
        tools.run(["cp", "-r", "--sparse=always", self.base.directory, pool.directory])
        hint = pool.directory / "pool.json"
        text = hint.read_text().replace(str(self.base.directory), str(pool.directory))
        hint.write_text(text)
        return pool

    def read_all(self, pool):
        """Returns how many blocks read with an error; other data is a failure."""
        errors = 0
        with Wire(pool.socket) as wire:
            wire.open("disk")
            for block, content in self.content.items():
                error, data = wire.ask(nbdwire.READ, block * BLOCK, BLOCK)
                if error:
                    expect(error == nbdwire.EIO, f"block {block} reads with error {error}")
                    errors += 1
                elif data != content:
                    raise Failure(f"block {block} holds other data")
        return errors


def structures(victim):
    """Blocks of every kind: metadata of the volume and of the log's front, each in both its copies,
    and frames of the log, the first and the last among them."""
    log, space = "vlog.img", "vspace0.img"
    data = set(victim.content.values())
    found = []
    for offset in used_blocks(victim.base.directory / space):
        if block_at(victim.base.directory / space, offset) not in data:
            found.append((space, offset))
    frames = []
    for offset in used_blocks(victim.base.directory / log):
        if offset < LOG_FRONT:
            found.append((log, offset))
        elif block_at(victim.base.directory / log, offset) not in data:
            frames.append((log, offset))
    expect(len(found) > 10 and len(frames) > 10, "the pool has fewer structures than it must")
    return (victim.noise.sample(found, min(SWEPT, len(found))) + frames[:4] + frames[-4:]
            + victim.noise.sample(frames[4:-4], 8))


@test("a flipped bit in log or space gives the right data, an error, or is healed")
def _(context):
    seed = context.options.seed
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "big")
    context.note(f"seed {seed}; replay with --seed {seed}")
    victim = Victim(context, seed)
    noise = random.Random(seed)
    flips = structures(victim)
    swept = len(flips)
    for name in ("vlog.img", "vspace0.img"):
        used = used_blocks(victim.base.directory / name)
        flips += [(name, noise.choice(used)) for _ in range(FLIPS // 2)]
    outcomes = {"refused": 0, "error": 0, "right": 0}
    for number, (name, block) in enumerate(flips):
        # Where there is something: most of a block of metadata is empty.
        content = block_at(victim.base.directory / name, block)
        byte = noise.choice([at for at in range(BLOCK) if content[at]])
        offset, bit = block + byte, noise.randrange(8)
        pool = victim.copy(number)
        flip(pool.directory / name, offset, bit)
        what = f"{name}, byte {offset}, bit {bit} (seed {seed})"
        pool.launch()
        try:
            tools.wait_until(
                lambda: "ready" in pool.output or pool.process.poll() is not None, 60, what)
            if "ready" not in pool.output:
                status, said = pool.ended()
                expect(status == 1 and said.strip(), f"{what}: ended with {status}: {said}")
                outcomes["refused"] += 1
            else:
                errors = victim.read_all(pool)
                pool.verify_alive()
                outcomes["error" if errors else "right"] += 1
                pool.kill()
        except Failure as failure:
            raise Failure(f"{what}: {failure}") from None
        shutil.rmtree(pool.directory)
    context.note(f"{swept} structures swept, {FLIPS} flips anywhere: {outcomes}")
    victim.base.start()
    expect(victim.read_all(victim.base) == 0, "the undamaged pool has errors")


@test("scrub and check find a damaged block, name the disk, and exit with 2")
def _(context):
    victim = Victim(context, 1)
    victim.base.start()
    victim.base.cli("flush")
    victim.base.stop()
    victim.base.check_at_end = False
    # Data blocks are noise; the block that holds a known one is found by its content.
    wanted = victim.content[77]
    volume = victim.base.directory / "vspace0.img"
    homes = [offset for offset in used_blocks(volume) if block_at(volume, offset) == wanted]
    expect(homes, "the block's home is not in the space")
    for home in homes:
        flip(volume, home + 100, 3)
    done = victim.base.command("check", status=2)
    expect("disk" in done.stdout + done.stderr, f"check does not name it: {done.stdout}")
    victim.base.start()
    done = victim.base.command("scrub", status=2)
    expect("disk" in done.stdout + done.stderr, f"scrub does not name it: {done.stdout}")
    expect(victim.read_all(victim.base) == 1, "not exactly the damaged block reads with an error")
    # Writing the whole block heals it.
    victim.write([77])
    expect(victim.read_all(victim.base) == 0, "a rewritten block still reads with an error")
    victim.base.cli("flush")
    victim.base.command("scrub", status=0)


def block_at(path, offset):
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(BLOCK)
