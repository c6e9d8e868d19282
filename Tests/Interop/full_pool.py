"""A full pool loses nothing: a default pool on a 2 GiB file system, filled from both sides."""

import hashlib
import os
import random

from sluicetest import nbdwire, tools
from sluicetest.daemon import Pool
from sluicetest.nbdwire import Wire
from sluicetest.runner import expect, test

MIB = 1 << 20
PIECE = 256 << 10


def small_file_system(context, size=2 << 30):
    """Mounts a new ext4 of that size in a file; returns its directory."""
    image, mountpoint = context.path("small.ext4"), context.path("small")
    with open(image, "wb") as file:
        file.truncate(size)
    tools.run(["mkfs.ext4", "-q", "-F", "-m", "0", image])
    mountpoint.mkdir()
    tools.run(tools.as_root(["mount", "-o", "loop", str(image), str(mountpoint)]))
    context.stack.callback(
        lambda: tools.run(tools.as_root(["umount", str(mountpoint)]), status=None))
    if os.geteuid() != 0:
        tools.run(tools.as_root(["chown", str(os.geteuid()), str(mountpoint)]))
    return mountpoint


class Filler:
    """Writes noise piece by piece and remembers what was acknowledged."""

    def __init__(self, pool, name, seed):
        self.pool, self.name = pool, name
        self.noise = random.Random(seed)
        self.kept = {}

    def fill(self, first, last):
        """Writes pieces until the pool is full or the range ends; returns the error, 0 for none."""
        with Wire(self.pool.socket, timeout=120) as wire:
            wire.open(self.name)
            for piece in range(first, last):
                data = self.noise.randbytes(PIECE)
                error, _ = wire.ask(nbdwire.WRITE, piece * PIECE, PIECE, data=data)
                if error:
                    return error
                self.kept[piece] = hashlib.sha256(data).digest()
        return 0

    def rewrite(self, pieces):
        """Overwrites pieces that are there; each must be taken."""
        with Wire(self.pool.socket, timeout=120) as wire:
            wire.open(self.name)
            for piece in pieces:
                data = self.noise.randbytes(PIECE)
                error, _ = wire.ask(nbdwire.WRITE, piece * PIECE, PIECE, data=data)
                expect(error == 0, f"a rewrite in a full pool failed with {error}")
                self.kept[piece] = hashlib.sha256(data).digest()

    def verify(self):
        with Wire(self.pool.socket, timeout=120) as wire:
            wire.open(self.name)
            for piece, digest in self.kept.items():
                error, data = wire.ask(nbdwire.READ, piece * PIECE, PIECE)
                expect(error == 0, f"piece {piece} of {self.name} reads with error {error}")
                expect(hashlib.sha256(data).digest() == digest,
                       f"piece {piece} of {self.name} is not what was acknowledged")


def survive_full(pool, filler):
    """What holds for a pool that just said ENOSPC."""
    pool.verify_alive()
    some = list(filler.kept)[:: max(1, len(filler.kept) // 64)]
    filler.rewrite(some)
    pool.kill()
    pool.start()
    filler.verify()
    filler.rewrite(some)
    pool.cli("flush")
    filler.verify()


@test("a default pool filled from inside says ENOSPC before the ack, loses nothing, and recovers")
def _(context):
    directory = small_file_system(context)
    pool = Pool(context, name="small/pool", log=None, space=None)
    pool.start()
    before = pool.used()
    pool.create_disk("first", "1T")
    pool.create_disk("second", "1T")
    first, second = Filler(pool, "first", 1), Filler(pool, "second", 2)
    expect(first.fill(0, 256) == 0, "the pool was full after 64 MiB")
    error = second.fill(0, 1 << 15)
    expect(error == nbdwire.ENOSPC, f"a full pool answered {error}, not ENOSPC")
    context.note(f"{len(second.kept) * PIECE >> 20} MiB fit, "
                 f"{os.statvfs(directory).f_bavail * 4096 >> 20} MiB left on the file system")
    expect(len(second.kept) * PIECE >= 1000 * MIB, "most of the file system stays unused")
    survive_full(pool, second)
    first.verify()
    pool.cli("disk", "delete", "second")
    expect(pool.used() - before <= 65 * MIB, "the deleted disk's space did not come back")
    expect(first.fill(256, 1024) == 0, "the space that came back can't be written")
    first.verify()


@test("a default pool whose file system is filled by others keeps what it acknowledged")
def _(context):
    directory = small_file_system(context)
    pool = Pool(context, name="small/pool", log=None, space=None)
    pool.start()
    pool.create_disk("disk", "1T")
    filler = Filler(pool, "disk", 3)
    expect(filler.fill(0, 1024) == 0, "the pool was full after 256 MiB")
    hog = directory / "hog"
    free = os.statvfs(directory).f_bavail * os.statvfs(directory).f_frsize
    with open(hog, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, free - 4 * MIB)
    error = filler.fill(1024, 1 << 15)
    expect(error == nbdwire.ENOSPC, f"a full pool answered {error}, not ENOSPC")
    survive_full(pool, filler)
    hog.unlink()
    expect(tools.wait_until(lambda: filler.fill(4096, 4196) == 0, 30,
                            "the pool stays full though there is space again"),
           "the pool stays full")
    filler.verify()
