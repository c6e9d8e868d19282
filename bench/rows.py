"""The rows of the table, as data: what is done, on which servers, and what Sluice is to reach.

A row has sides, each a label with a server and what fio does to it; the same label and server
unless a row says otherwise ("raw, flush each 8"). All sides of a row find the same state of data:
regions that were written in full beforehand, or, for first writes, a disk made for that run.
`device` is the class of devices that the row's servers are on; rows of other classes are made by
other modules and added to `TABLES`.
"""

import dataclasses

import goals
from goals import absolute, added, at_least, at_most, lower_of

PEERS = goals.GROUPS["peers"]
NULLS = goals.GROUPS["null"]
SYNCED = ["--fsync=1"]


@dataclasses.dataclass(frozen=True)
class Side:
    """One contender. `work`: fio's options. `disks`: which; with `fresh` so many new ones, each a
    "disk" or a "clone"."""

    server: str
    work: tuple
    disks: tuple = (0,)
    fresh: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    title: str
    # What is compared: "iops" or "mb_s" (or a key of its own of a row with another `kind`).
    unit: str
    sides: dict
    goals: tuple
    # How it was measured, one sentence for the documentation.
    how: str
    # "burst": from an empty log, until all is at home. "window": at constant log fill. "cold",
    # "cached": reads. "unsettled": beside destaging. "amplification": bytes to devices.
    kind: str = "burst"
    ours: str = "sluice"
    device: str = "local"
    quick: bool = False


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Bytes of the regions and seconds of the runs, by QUICK or not."""

    single: int
    blender: int
    cached: int
    seconds: float
    window: float
    first_writes: int
    amplified: int
    small_log: str
    log: str


GIB, MIB = 1 << 30, 1 << 20
FULL = Sizes(GIB, 128 * MIB, 48 * MIB, 3, 12, 15_000, 16 * GIB, "1G", "10G")
QUICK = Sizes(256 * MIB, 16 * MIB, 48 * MIB, 1.5, 5, 2_000, 512 * MIB, "256M", "1G")

BLENDER = tuple(range(1, 17))


def milliseconds(seconds):
    return f"--runtime={round(seconds * 1000)}ms"


def alike(work, servers, disks=(0,), ours="sluice"):
    """The same work on each server; on `ours` under the label "sluice"."""
    return {"sluice" if server == ours else server: Side(server, tuple(work), disks)
            for server in (ours, *servers)}


def blender_goals(null):
    return (at_least(null, "null"), at_least(3, "raw"), at_least(5, "qcow2"),
            at_least(2, "nbdkit-file"))


def cheap():
    """No more processor time than the best peer's."""
    return at_most(1, "peers", "cpu_us")


def local(sizes):
    """The rows of this machine's own disk."""
    timed = ["--time_based", milliseconds(sizes.seconds)]
    window = ["--time_based", milliseconds(sizes.window)]
    region, small = [f"--size={sizes.single}"], [f"--size={sizes.blender}"]
    write, read = ["--rw=randwrite", "--bs=4k"], ["--rw=randread", "--bs=4k"]
    mixed = [*write, "--iodepth=1", *SYNCED, *small]
    deep = [*write, "--iodepth=32", *region]
    blenders = ("raw", "qcow2", "nbdkit-file", *NULLS)
    singles = (*PEERS, *NULLS)
    dsync = tuple([*write, "--iodepth=1", "--sync=dsync", *region, *timed])
    durable_deep = tuple([*deep, "--sync=dsync", *timed])
    in_flight = {f"{name}+flush8": Side(name, tuple([*deep, "--fsync=8", *window]))
                 for name in PEERS}
    return [
        Row("blender", "blender: 16 disks, 4K random write + flush at QD1, log has room", "iops",
            alike([*mixed, *timed], blenders, BLENDER), (*blender_goals(0.7), cheap()),
            "16 fio jobs at once on 16 disks that were written in full before; Sluice's log is "
            "empty at the start and less than 40% full at the end", quick=True),
        Row("blender-sustained", "the same, sustained at constant log fill", "iops",
            alike([*mixed, *window], blenders, BLENDER, "sluice-small-log"), blender_goals(0.6),
            "the log is filled to its high mark first; the figure is that of the longest window "
            "that begins and ends at the same fill (±5% of the log)", kind="window", quick=True),
        blender_first([*mixed, *timed]),
        Row("write1", "one disk: 4K random write QD1", "iops",
            {**alike([*write, "--iodepth=1", *region, *timed], singles),
             "bare": Side("bare", dsync)}, (added(50, "bare"), cheap()),
            "bare: io_uring, O_DIRECT | O_DSYNC on a file that was written in full; peers' writes "
            "are not durable when they are acknowledged"),
        Row("sync1", "one disk: 4K random write + flush at QD1", "iops",
            {**alike([*write, "--iodepth=1", *SYNCED, *region, *timed], singles),
             "bare": Side("bare", dsync)}, (added(20, "bare", "null"), cheap()),
            "time of a write and its flush together", quick=True),
        Row("write32", "4K random write QD32, log has room", "iops",
            {**alike([*deep, *timed], singles), "bare": Side("bare", durable_deep)}, (cheap(),),
            "every acknowledgement of Sluice's and of the bare device's is durable, no peer's is",
            quick=True),
        Row("write32-sustained", "4K random write QD32, every ack durable, sustained", "iops",
            {**alike([*deep, *window], PEERS, ours="sluice-small-log"), **in_flight},
            (*(at_least(2, name) for name in in_flight), *(at_least(1, name) for name in PEERS)),
            "as above, from the high mark on; peers once with a flush each 8 writes and once "
            "without any", kind="window"),
        Row("read32", "4K random read QD32, cold", "iops",
            alike([*read, "--iodepth=32", *region, *timed], (*PEERS, "bare")),
            (*(at_least(1, name) for name in PEERS), cheap()),
            "everything at home, caches dropped, the daemon started anew", kind="cold",
            quick=True),
        Row("read1", "4K random read QD1, cold", "iops",
            alike([*read, "--iodepth=1", *region, *timed], (*PEERS, "bare")),
            (*(at_least(1, name) for name in PEERS), cheap()), "likewise", kind="cold"),
        # nbdkit's file plugin reads what was just written from memory.
        unsettled("unsettled-read1", "4K random read QD1 while a burst goes home",
                  [*read, "--iodepth=1", *region, *timed], ("raw",)),
        unsettled("unsettled-sync1", "4K random write + flush at QD1 while a burst goes home",
                  [*write, "--iodepth=1", *SYNCED, *region, *timed], ("raw", "nbdkit-file")),
        Row("cached32", "4K random read QD32, cached", "iops",
            alike([*read, "--iodepth=32", f"--size={sizes.cached}", "--norandommap", *timed],
                  ("nbdkit-file", *NULLS)), (at_least(0.8, "null"),),
            f"a region of {sizes.cached // MIB} MiB that was read once before; Sluice's cache is "
            "its default of 100 MB", kind="cached"),
        Row("cached1", "4K random read QD1, cached", "iops",
            alike([*read, "--iodepth=1", f"--size={sizes.cached}", "--norandommap", *timed],
                  ("nbdkit-file", *NULLS)), (at_least(0.8, "null"),), "likewise",
            kind="cached"),
        Row("seqwrite", "sequential write, 1 MiB QD8, then flush", "mb_s",
            {**alike(["--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1", *region], singles),
             "bare": Side("bare", ("--rw=write", "--bs=1m", "--iodepth=8", "--sync=dsync",
                                   *region))}, sequential(),
            "once over a region that was written before; bare: each write durable, like Sluice's",
            quick=True),
        Row("seqread", "sequential read, 1 MiB QD8", "mb_s",
            alike(["--rw=read", "--bs=1m", "--iodepth=8", *region], (*singles, "bare")),
            sequential(), "once over the region; everything at home, caches dropped, the daemon "
            "started anew",
            kind="cold", quick=True),
        first_write(sizes, write),
        Row("amplification", "bytes to devices / bytes from guests, 4K random write QD32",
            "written_ratio", {"sluice": Side("sluice", tuple(
                [*write, "--iodepth=32", f"--size={sizes.amplified}"]), (0,))},
            (absolute("<=", 2.3, "written_ratio"),),
            f"each block of {sizes.amplified / GIB:g} GiB once, in random order, over blocks "
            f"written before, through a log of {sizes.log}; from an empty log until `flush` has "
            "returned, metadata included; counted by the kernel for Sluice's process",
            kind="amplification"),
    ]


def unsettled(name, title, work, peers):
    return Row(
        name, title, "iops",
        {server: Side(server, tuple(work), fresh="disk") for server in ("sluice", *peers)},
        tuple(at_least(1, peer) for peer in peers),
        "a new disk is filled, overwritten at random at QD32 for some seconds and left alone for two; "
        "what Sluice's log holds of it then goes home beside this load", kind="unsettled")


def sequential():
    """The lower of 1.2 times each peer and 0.9 of null."""
    return (*(lower_of(at_least(1.2, name), at_least(0.9, "null")) for name in PEERS),)


def blender_first(work):
    def sixteen(server, fresh="disk"):
        return Side(server, tuple(work), BLENDER, fresh)

    return Row(
        "blender-first", "the same on 16 disks or clones that were made just before", "iops",
        {"sluice": sixteen("sluice"), "clone": sixteen("sluice", "clone"), "raw": sixteen("raw"),
         "qcow2": sixteen("qcow2"), "nbdkit-file": sixteen("nbdkit-file"),
         "overlay": sixteen("overlay", "clone")},
        (at_least(3, "raw"), at_least(5, "qcow2"), at_least(2, "nbdkit-file"),
         at_least(5, "overlay", of="clone")),
        "thin disks' first writes: nothing of a disk, image, clone or overlay was written before")


def first_write(sizes, write):
    work = tuple([*write, "--iodepth=1", *SYNCED, f"--size={sizes.single}",
                  f"--number_ios={sizes.first_writes}", milliseconds(4 * sizes.seconds)])
    even = tuple(at_most(1.05, "rewrite", key, of) for of in ("clone", "new disk")
                 for key in ("cpu_us", "device_ios", "moved_ratio"))
    return Row(
        "first", "first write, 4K random + flush at QD1", "iops",
        {"new disk": Side("sluice", work, fresh="disk"),
         "clone": Side("sluice", work, fresh="clone"), "rewrite": Side("sluice", work),
         "raw": Side("raw", work, fresh="disk"), "qcow2": Side("qcow2", work, fresh="disk"),
         "overlay": Side("overlay", work, fresh="clone")},
        (at_least(4, "overlay", of="clone"), at_least(4, "overlay", of="new disk"), *even),
        "the same number of writes to a clone made just before, to a new disk, and to one that "
        "was written in full; costs include the way home. This machine does not count "
        "instructions: processor time stands in", ours="clone", quick=True)


# Functions from sizes to rows, one a class of devices.
TABLES = [local]


def rows(sizes):
    return [row for table in TABLES for row in table(sizes)]
