"""Points on emulated devices: that these are what they say, and Sluice and its peers on them."""

import functools
import itertools
import random
import shutil
import statistics

import blocks
import emulated
import loads
import meter
from goals import outcome
from loads import GIB, MIB

# What a device must show: its least and its most. A disk of 7200 revolutions a minute makes 120 of
# them in a second, so many appends it can take. Hitachi's manual for the Deskstar 7K500 has 4,096
# random reads of a sector in 55.5 s, which is 74 in a second; command queuing about doubles that.
RANDOM = ["--rw=randread", "--bs=4k"]
RANDOM_WRITE = ["--rw=randwrite", "--bs=4k"]
APPEND = ["--rw=write", "--bs=4k", "--iodepth=1"]
# The lower bars of the two quick devices are wide: a sleeper is woken late on a busy machine.
EXPECTED = {
    "rotating-uncached": [
        ("random read QD1, IOPS", "iops", 1, [*RANDOM, "--iodepth=1"], (65, 100)),
        ("random read QD32, IOPS", "iops", 1, [*RANDOM, "--iodepth=32"], (150, 260)),
        ("random write QD1, IOPS", "iops", 1, [*RANDOM_WRITE, "--iodepth=1"], (65, 100)),
        ("random write QD32, IOPS", "iops", 1, [*RANDOM_WRITE, "--iodepth=32"], (150, 260)),
        ("sequential read 1M QD1, MB/s", "mb", 1, ["--rw=read", "--bs=1m", "--iodepth=1"],
         (120, 201)),
        ("sequential read 64K QD8, MB/s", "mb", 1, ["--rw=read", "--bs=64k", "--iodepth=8"],
         (150, 201)),
        ("sequential write 1M QD8, MB/s", "mb", 1, ["--rw=write", "--bs=1m", "--iodepth=8"],
         (150, 201)),
        ("durable appends of 4K, a second", "iops", 1, [*APPEND, "--sync=dsync"], (100, 121)),
    ],
    "rotating": [
        ("random read QD1, IOPS", "iops", 1, [*RANDOM, "--iodepth=1"], (65, 100)),
        ("4K appends, a flush each, a second", "iops", 1, [*APPEND, "--fsync=1"], (95, 121)),
        ("random writes, a flush each, a second", "iops", 1,
         [*RANDOM_WRITE, "--iodepth=1", "--fsync=1"], (60, 100)),
        ("random writes, a flush each 64, a second", "iops", 1,
         [*RANDOM_WRITE, "--iodepth=1", "--fsync=64"], (150, 400)),
        ("sequential write 1M QD8, MB/s", "mb", 1, ["--rw=write", "--bs=1m", "--iodepth=8",
                                                     "--end_fsync=1"], (140, 260)),
    ],
    "flush-1ms": [
        ("writes, a flush each, QD1, a second", "iops", 1,
         [*RANDOM_WRITE, "--iodepth=1", "--fsync=1"], (600, 1000)),
        # Not 1,000, as without coalescing, nor 16,000, as if flushes went side by side.
        ("the same by 16, a second", "iops", 16,
         [*RANDOM_WRITE, "--iodepth=1", "--fsync=1"], (4000, 15000)),
        ("durable writes QD1, a second", "iops", 1,
         [*RANDOM_WRITE, "--iodepth=1", "--sync=dsync"], (600, 1000)),
    ],
    "round-trip-0.5ms": [
        ("writes QD1, a second", "iops", 1, [*RANDOM_WRITE, "--iodepth=1"], (1000, 2000)),
        ("writes, a flush each, QD1, a second", "iops", 1,
         [*RANDOM_WRITE, "--iodepth=1", "--fsync=1"], (500, 1000)),
        ("writes QD16, a second", "iops", 1, [*RANDOM_WRITE, "--iodepth=16"], (10000, 32000)),
    ],
}


def emulated_devices(directory, quick):
    """The emulated devices are as fast and as slow as they should be."""
    seconds, found, holds = 2 if quick else 5, {}, True
    # Nearly all of the disk, so that random places are. Jobs at the same time have a file each: the
    # kernel makes one flush of a file at a time.
    parts = {"disk": 900 * 1000 ** 3, **{f"job{job}": GIB for job in range(16)}}
    for kind, expected in EXPECTED.items():
        device = emulated.Device(directory / f"check-{kind}", kind, parts)
        try:
            for title, unit, jobs, work, (least, most) in expected:
                value = speed(device, unit, jobs, work, seconds)
                fits = least <= value <= most
                found[f"{kind}: {title}"] = [value, least, most] + ([] if fits else ["WRONG"])
                holds = holds and fits
        finally:
            device.remove()
    return {"what": "figures of the emulated devices: [found, at least, at most]",
            "found": found, "holds": holds}


def speed(device, unit, jobs, work, seconds):
    device.switch(True)
    path = device.path("disk" if jobs == 1 else "job$jobnum")
    group = emulated.bare(path, jobs, *work, seconds=seconds)
    device.switch(False)
    side = group["read"] if "read" in work[0] else group["write"]
    return round(side["bw_bytes"] / 1e6 if unit == "mb" else side["iops"], 1)


# The blender


def blender_point(kind, goal, against_bare):
    """A point: 16 disks on two devices of a kind, Sluice and peers in turn."""

    def point(directory, quick):
        rounds, seconds = (1, 2) if quick else (3, 8)
        classes = [emulated.SluiceOn, *emulated.PEERS]
        place = directory / f"blender-{kind}"
        running, series = [], {}
        patience = meter.Patience(0 if quick else 150)
        try:
            for each in classes:
                server = emulated.make(each, kind, place, disks=16, disk_size=16 * GIB)
                running.append(server)
                server.freeze()
            seeds = itertools.count(1)
            for turn in range(rounds):
                order = running if turn % 2 == 0 else running[::-1]
                figures = patience.least_disturbed(
                    functools.partial(one_round, order, seconds, seeds))
                for name, each in figures.items():
                    series.setdefault(name, []).append(each)
            alone = durable_writes(running[1].spindles[0], seconds)
        finally:
            for server in running:
                server.remove()
            shutil.rmtree(place, ignore_errors=True)
        return result(series, alone, goal, against_bare)

    point.__doc__ = (f"I/O blender, 16 disks on two emulated devices ({kind}); "
                     f"the goal is {goal} times each peer.")
    return point


def one_round(order, seconds, seeds):
    """{server's name: figures} of the blender on each server; the same blocks on each."""
    seed = next(seeds)
    return {server.name: emulated.blender(server, 16, seconds, seed=seed) for server in order}


def durable_writes(device, seconds):
    """What one such device makes of 16 writers of its own, each write durable by itself."""
    name = next(iter(sorted(path.name for path in device.mount.iterdir()
                            if path.name != "control")))
    device.switch(True)
    group = emulated.bare(device.path(name), 16, "--rw=randwrite", "--bs=4k", "--iodepth=1",
                          "--size=4g", "--sync=dsync", seconds=seconds)
    device.switch(False)
    return round(group["write"]["iops"], 1)


def result(series, alone, goal, against_bare):
    median = {name: statistics.median(one["iops"] for one in runs)
              for name, runs in series.items()}
    ratios = {name: round(median["sluice"] / value, 2) for name, value in median.items()
              if name != "sluice"}
    to_bare = round(median["sluice"] / alone, 2)
    return {
        "what": "4 KiB random write + flush at QD1 on each of 16 disks, on two devices",
        "iops": median, "ratio": ratios, "goal": goal, "bare_durable_iops": alone,
        "to_bare": to_bare, "sluice": series["sluice"][-1], "series": series,
        "stolen_percent": max(one["stolen_percent"] for runs in series.values() for one in runs),
        "goals": [*(outcome(f"≥ {goal:g} × {name}", ratio, ">=", goal)
                    for name, ratio in ratios.items()),
                  *([outcome("as fast as 16 bare durable writers (−5%)", to_bare, ">=", 0.95)]
                    if against_bare else [])],
        # A twentieth is this machine's noise.
        "holds": min(ratios.values()) >= goal and (not against_bare or to_bare >= 0.95),
    }


def sustained(directory, quick):
    """The blender on the rotating disk with a full log: what comes in must go home meanwhile."""
    # The 16 disks write to 6.4 times the log, as it were 64 GiB with a log of the default size: how
    # near each other the homes of logged blocks are is what the pace of destaging hangs on.
    log, seconds = (256 * MIB, 10) if quick else (GIB, 60)
    size, place = log * 2 // 5, directory / "blender-rotating-sustained"
    running, figures, fill = [], {}, []
    try:
        for each, arguments in ((emulated.SluiceOn, {"log": log}), (emulated.RawOn, {})):
            server = emulated.make(each, "rotating", place, disks=16, disk_size=16 * GIB,
                                   **arguments)
            running.append(server)
            server.freeze()
        sluice, raw = running
        sluice.thaw()
        fill_log(sluice, size)
        fill.append(round(sluice.log_fill(), 3))
        figures["sluice"] = emulated.blender(sluice, 16, seconds, size=size, settles=False)
        sluice.thaw()
        fill.append(round(sluice.log_fill(), 3))
        errors = sluice.status()["errors"]
        sluice.freeze()
        figures["raw"] = emulated.blender(raw, 16, min(seconds, 10), size=size)
    finally:
        for server in running:
            server.remove()
        shutil.rmtree(place, ignore_errors=True)
    return {
        "what": "4 KiB random write + flush on each of 16 disks while the log is full",
        "log_fill": fill, "ratio": round(figures["sluice"]["iops"] / figures["raw"]["iops"], 2),
        **figures, "errors": errors,
        "goals": [outcome("≥ raw", round(figures["sluice"]["iops"] / figures["raw"]["iops"], 2),
                          ">=", 1)],
        "holds": figures["sluice"]["iops"] > figures["raw"]["iops"] and not any(errors.values()),
    }


def fill_log(server, size):
    """Random writes that stay in the log, the device quick, to just below the mark from which
    writers are paced: what is let in above it while destaging is held, they have to pay for."""
    share = int(0.5 * server.log) // 16 // 4096 * 4096
    server.hold_destage()
    work = ["--rw=randwrite", "--bs=4k", "--iodepth=4", f"--size={size}", "--norandommap",
            f"--io_size={share}"]
    loads.fio([(f"disk{disk}", server.uri(disk), work) for disk in range(16)], 300)
    server.hold_destage(False)


# Reading on after overwriting

# With snapshots on the way, neighbouring blocks lie where their last overwriting was: to the end, a
# scan would take hours.
SCAN_SECONDS = 20


def overwritten_read(directory, quick):
    """On the rotating disk: a scan after each block was overwritten twice in random order."""
    size, rounds = (128 * MIB, 1) if quick else (GIB, 3)
    names = ("fresh", "overwritten", "24 snapshots")
    place = directory / "overwritten"
    server = emulated.make(emulated.SluiceOn, "rotating", place, disks=0, disk_size=0)
    series = {name: [] for name in names}
    try:
        for name in names:
            blocks.fill(server, name.replace(" ", "-"), size)
        overwrite(server, "overwritten", size, snapshots=0)
        overwrite(server, "24-snapshots", size, snapshots=24)
        for turn in range(rounds):
            for name in names if turn % 2 == 0 else reversed(names):
                series[name].append(scan(server, name.replace(" ", "-"), size))
        edge = emulated.Device(place / "bare", "rotating", {"disk": 2 * size})
        try:
            alone = speed(edge, "mb", 1, ["--rw=read", "--bs=1m", "--iodepth=8"], 3)
        finally:
            edge.remove()
        errors = server.status()["errors"]
    finally:
        server.remove()
        shutil.rmtree(place, ignore_errors=True)
    median = {name: statistics.median(values) for name, values in series.items()}
    return {
        "what": "MB/s of a cold scan by 1 MiB at QD8, emulation on for the scan only",
        "mb_s": median, "bare_mb_s": alone, "series": series, "errors": errors,
        "ratio": round(median["overwritten"] / median["fresh"], 3),
        "ratio_with_snapshots": round(median["24 snapshots"] / median["fresh"], 3),
        "goals": [outcome("≥ 0.8 × fresh", round(median["overwritten"] / median["fresh"], 2),
                          ">=", 0.8)],
        "holds": median["overwritten"] >= 0.8 * median["fresh"] and not any(errors.values()),
    }


def overwrite(server, name, size, snapshots):
    """Every block twice, each time in another order; snapshots evenly on the way."""
    count, rng = size // blocks.BLOCK, random.Random(11)
    order = [block for _ in range(2) for block in rng.sample(range(count), count)]
    parts = max(snapshots, 1)
    data = blocks.noise(blocks.BLOCK, 3)
    for part in range(parts):
        some = order[part * len(order) // parts:(part + 1) * len(order) // parts]
        blocks.write(server, name, ((block * blocks.BLOCK, data) for block in some), depth=64)
        if snapshots:
            server.cli("snapshot", "create", f"{name}@s{part}")
    server.settle()


def scan(server, name, size):
    """MB/s of reading a disk from its start on, for `SCAN_SECONDS` at most, with nothing of it in
    memory."""
    server.settle()
    server.stop()
    loads.drop_caches()
    server.serve()
    server.switch(True)
    uri = f"nbd+unix:///{name}?socket={server.socket}"
    group = loads.fio([("scan", uri, ["--rw=read", "--bs=1m", "--iodepth=8", f"--size={size}",
                                      f"--runtime={SCAN_SECONDS}"])], 600)
    server.switch(False)
    return round(group["read"]["bw_bytes"] / 1e6, 1)


ALL = {
    "emulated-devices": emulated_devices,
    "blender-rotating": blender_point("rotating", 10, False),
    "blender-rotating-uncached": blender_point("rotating-uncached", 10, False),
    "blender-flush-1ms": blender_point("flush-1ms", 1.7, True),
    "blender-round-trip": blender_point("round-trip-0.5ms", 1.7, True),
    "blender-rotating-sustained": sustained,
    "overwritten-read": overwritten_read,
}
