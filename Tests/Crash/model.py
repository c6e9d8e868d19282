"""What a disk may hold: for each 512-byte sector the set of versions that could be its content.

Every write, zero and trim has an interval: from when it was issued to when it ended, which is its
acknowledgement, or the moment the daemon died. Time is a counter of events.

- A version is a candidate from its issue on.
- An acknowledged version drops the candidates that had ended before it was issued: it is
  certainly newer. Those that overlapped it stay, their order is the daemon's choice.
- A version that a read returned drops the candidates that had ended before that read was issued,
  or before the version was: it is newer than those, and what a read returned never goes back.
- A version whose daemon died before the acknowledgement stays a candidate: it may be there or
  not, until a read tells. It can't land after the restart.

So a read must return a candidate, and per 4 KiB block a write is there wholly or not at all.
"""

import struct

SECTOR = 512
BLOCK_SECTORS = 8
ZERO = bytes(SECTOR)
STAMP = struct.Struct("<4sIIIQQ")
MAGIC = b"SLCE"
FOREVER = 1 << 62


class Violation(Exception):
    """The daemon broke a promise; the message says which sector and what it may have held."""


class Version:
    """One write, zero or trim."""

    __slots__ = ("number", "first", "count", "zero", "issued", "ended")

    def __init__(self, number, first, count, zero, issued):
        self.number = number
        self.first = first
        self.count = count
        self.zero = zero
        self.issued = issued
        self.ended = FOREVER

    def __repr__(self):
        kind = "zeros" if self.zero else "write"
        end = "in flight" if self.ended == FOREVER else self.ended
        return (f"{kind} {self.number} of sectors {self.first}+{self.count} "
                f"(issued {self.issued}, ended {end})")


class ActiveRead:
    __slots__ = ("first", "count", "issued", "superseded")

    def __init__(self, first, count, issued):
        self.first = first
        self.count = count
        self.issued = issued
        # Candidates that were dropped while the read was under way: it may still return them.
        self.superseded = {}


class DiskModel:
    """One disk's sectors, and the clients' operations on them."""

    def __init__(self, disk, sectors, seed, clock):
        self.disk = disk
        self.sectors = sectors
        self.seed = seed & 0xFFFFFFFF
        # A list of one integer, shared by the disks.
        self.clock = clock
        self.next_number = 1
        self.origin = Version(0, 0, sectors, True, 0)
        self.origin.ended = 0
        self.candidates = {}
        self.in_flight = set()
        self.reads = set()
        self.checked = 0

    def tick(self):
        self.clock[0] += 1
        return self.clock[0]

    # Operations

    def issue(self, first, count, zero):
        version = Version(self.next_number, first, count, zero, self.tick())
        self.next_number += 1
        self.in_flight.add(version)
        candidates, origin = self.candidates, (self.origin,)
        for sector in range(first, first + count):
            candidates[sector] = candidates.get(sector, origin) + (version,)
        return version

    def payload(self, version):
        """A write's content: every sector says who wrote it."""
        return b"".join(
            STAMP.pack(MAGIC, self.seed, self.disk, 0, version.number, sector) * 16
            for sector in range(version.first, version.first + version.count))

    def acknowledge(self, version):
        version.ended = self.tick()
        self.in_flight.discard(version)
        for sector in range(version.first, version.first + version.count):
            known = self.candidates[sector]
            if len(known) > 1:
                self._keep(sector, [
                    u for u in known if u is version or u.ended >= version.issued])

    def abandon(self):
        """The daemon is dead: nothing that was in flight can land any more."""
        now = self.tick()
        for version in self.in_flight:
            version.ended = now
        self.in_flight.clear()
        self.reads.clear()

    def begin_read(self, first, count):
        read = ActiveRead(first, count, self.tick())
        self.reads.add(read)
        return read

    def end_read(self, read, data):
        """Checks what a read returned, and learns from it."""
        self.reads.discard(read)
        seen = []
        for index in range(read.count):
            sector = read.first + index
            seen.append(self._recognise(
                sector, data[index * SECTOR:(index + 1) * SECTOR], read))
        if not self.in_flight and not read.superseded:
            self._check_blocks(read.first, seen)
        for index, matches in enumerate(seen):
            self._learn(read.first + index, matches, read.issued)
        self.checked += read.count

    def touched(self, most=512):
        """Runs of sectors that were ever written, as (first, count), whole blocks of them."""
        run_first = run_end = None
        for block in sorted({sector // BLOCK_SECTORS for sector in self.candidates}):
            first = block * BLOCK_SECTORS
            if run_end == first and first - run_first < most:
                run_end = first + BLOCK_SECTORS
                continue
            if run_first is not None:
                yield run_first, run_end - run_first
            run_first, run_end = first, first + BLOCK_SECTORS
        if run_first is not None:
            yield run_first, run_end - run_first

    # Checks

    def _keep(self, sector, kept):
        known = self.candidates[sector]
        if len(kept) == len(known):
            return
        for read in self.reads:
            if read.first <= sector < read.first + read.count:
                gone = [u for u in known if u not in kept]
                read.superseded.setdefault(sector, []).extend(gone)
        self.candidates[sector] = tuple(kept)

    def _allowed(self, sector, read):
        return (*self.candidates.get(sector, (self.origin,)),
                *read.superseded.get(sector, ()))

    def _recognise(self, sector, content, read):
        """The candidates that have this content."""
        allowed = self._allowed(sector, read)
        if content == ZERO:
            matches = [u for u in allowed if u.zero]
            found = "zeros"
        else:
            magic, seed, disk, _, number, stamped = STAMP.unpack_from(content)
            ours = magic == MAGIC and seed == self.seed and content == content[:32] * 16
            if not ours:
                raise Violation(
                    f"disk {self.disk}, sector {sector}: content that nobody wrote: "
                    f"{content[:48].hex()}…; {self._describe(allowed)}")
            if disk != self.disk or stamped != sector:
                raise Violation(
                    f"disk {self.disk}, sector {sector}: holds version {number} of disk {disk}, "
                    f"sector {stamped}; {self._describe(allowed)}")
            matches = [u for u in allowed if u.number == number and not u.zero]
            found = f"version {number}"
        if not matches:
            raise Violation(
                f"disk {self.disk}, sector {sector} (byte {sector * SECTOR}): holds {found}; "
                f"{self._describe(allowed)}")
        return matches

    @staticmethod
    def _describe(allowed):
        return "it may hold: " + "; ".join(map(repr, allowed))

    def _learn(self, sector, matches, read_issued):
        known = self.candidates.get(sector)
        if known is None or len(known) == 1:
            return
        if any(u not in known for u in matches):
            # It returned a version that has been superseded meanwhile: nothing to learn.
            return
        since = max(read_issued, min(u.issued for u in matches))
        self._keep(sector, [u for u in known if u in matches or u.ended >= since])

    def _check_blocks(self, first, seen):
        """Per block, a write is there wholly or not at all."""
        for start in range(-first % BLOCK_SECTORS, len(seen) - BLOCK_SECTORS + 1, BLOCK_SECTORS):
            block = seen[start:start + BLOCK_SECTORS]
            if all(len(matches) == 1 and matches[0] is block[0][0] for matches in block):
                continue
            for matches in block:
                if len(matches) == 1:
                    self._check_whole(matches[0], first + start, block)

    def _check_whole(self, version, block_first, block):
        for index, matches in enumerate(block):
            sector = block_first + index
            inside = version.first <= sector < version.first + version.count
            if inside and all(u is not version and u.ended < version.issued for u in matches):
                raise Violation(
                    f"disk {self.disk}, block at sector {block_first}: torn: it shows {version}, "
                    f"but sector {sector} still shows {matches}")
