"""The oracle itself: it accepts what a daemon may do and notices what it may not."""

from model import SECTOR, DiskModel, Violation
from sluicetest.runner import Failure, expect, test

BLOCK = 8


class Disk:
    """A model and a memory that plays the daemon."""

    def __init__(self, number=0):
        self.model = DiskModel(number, 1024, seed=5, clock=[0])
        self.memory = bytearray(1024 * SECTOR)

    def land(self, version, sectors=None):
        """The version's content arrives, all of it or only so many sectors."""
        content = bytes(version.count * SECTOR) if version.zero else self.model.payload(version)
        length = (version.count if sectors is None else sectors) * SECTOR
        start = version.first * SECTOR
        self.memory[start:start + length] = content[:length]

    def write(self, first, count=BLOCK, zero=False):
        """An acknowledged write that arrived."""
        version = self.model.issue(first, count, zero)
        self.land(version)
        self.model.acknowledge(version)
        return version

    def read(self, first, count=BLOCK):
        read = self.model.begin_read(first, count)
        self.model.end_read(read, bytes(self.memory[first * SECTOR:(first + count) * SECTOR]))

    def noticed(self, what, first=0, count=BLOCK):
        try:
            self.read(first, count)
        except Violation:
            return
        raise Failure(f"not noticed: {what}")


@test("the oracle accepts old or new for a write that was cut off, and then holds the daemon to it")
def _(_):
    for lands in (False, True):
        disk = Disk()
        old = disk.write(0)
        cut = disk.model.issue(0, BLOCK, zero=False)
        if lands:
            disk.land(cut)
        disk.model.abandon()
        disk.read(0)
        disk.land(old if lands else cut)
        disk.noticed("what a read returned went back or changed without a write")


@test("the oracle accepts either order of writes that overlap in time")
def _(_):
    for winner in (0, 1):
        disk = Disk()
        versions = [disk.model.issue(0, BLOCK, zero=False) for _ in range(2)]
        disk.land(versions[1 - winner])
        disk.land(versions[winner])
        for version in versions:
            disk.model.acknowledge(version)
        disk.read(0)
        disk.land(versions[1 - winner])
        disk.noticed("the order changed after it had been read")


@test("the oracle accepts what was superseded while a read was under way, and not before")
def _(_):
    disk = Disk()
    disk.write(0)
    old = bytes(disk.memory[:BLOCK * SECTOR])
    read = disk.model.begin_read(0, BLOCK)
    disk.write(0)
    disk.model.end_read(read, old)
    disk.memory[:BLOCK * SECTOR] = old
    disk.noticed("an acknowledged write was lost")


@test("the oracle notices lost, torn, misplaced, stale and foreign content")
def _(_):
    disk = Disk()
    disk.write(0)
    disk.memory[:BLOCK * SECTOR] = bytes(BLOCK * SECTOR)
    disk.noticed("an acknowledged write was lost")

    disk = Disk()
    first = disk.write(0)
    disk.write(0, zero=True)
    disk.land(first)
    disk.noticed("acknowledged zeros were lost")

    disk = Disk()
    disk.write(0)
    cut = disk.model.issue(0, BLOCK, zero=False)
    disk.land(cut, sectors=3)
    disk.model.abandon()
    disk.noticed("a torn block")

    disk = Disk()
    disk.write(0)
    disk.write(64)
    disk.memory[:SECTOR] = disk.memory[64 * SECTOR:65 * SECTOR]
    disk.noticed("another sector's content")

    disk, other = Disk(0), Disk(1)
    disk.write(0)
    other.write(0)
    disk.memory[:SECTOR] = other.memory[:SECTOR]
    disk.noticed("another disk's content")

    disk = Disk()
    disk.write(0)
    disk.memory[100] ^= 1
    disk.noticed("a flipped bit")
    expect(disk.model.checked == 0, "a failed check counts as one")
