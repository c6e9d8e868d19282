"""The cost as work grows: the same load on more disks, on a larger pool with a map that is many
times the cache, with a fuller log, and after random overwrites; each against the simple case.

A part returns {title, what, axis, cases, keys, drawn}: `cases` is a list of figures, the first of
them the simple one, `keys` what is printed of each, `drawn` what is plotted.
"""

import os
import shutil
import statistics

import loads
import servers
from loads import GIB, MIB
from meter import Meter

KIB = 1 << 10
# Allocation groups of a pool of 1 PiB on 65 volumes.
GROUPS = 65 * ((16 << 10) - 1)
WRITE = ["--rw=randwrite", "--bs=4k", "--norandommap"]
READ = ["--rw=randread", "--bs=4k", "--norandommap"]


def run(server, targets, work, *more, settle=False, limit=900):
    """One run on several disks at once: figures, and what an operation cost."""
    meter = Meter(server)
    report = loads.figures(loads.fio(
        [(f"job{number}", target, work) for number, target in enumerate(targets)], limit, *more))
    if settle:
        server.settle()
    return {**report, **meter.each(report["operations"], report["bytes"])}


def timed(seconds):
    return ["--time_based", f"--runtime={round(seconds * 1000)}ms"]


def pick(figures, prefix, *keys):
    return {f"{prefix}_{key}": figures[key] for key in keys}


def medians(series):
    return {key: statistics.median(figures[key] for figures in series) for key in series[0]}


# Disks


def more_disks(directory, quick):
    """The same load on 1, 16, 256 and 1,000 disks."""
    counts = (1, 16, 128) if quick else (1, 16, 256, 1000)
    seconds, in_all = (1, 256 * MIB) if quick else (5, GIB)
    server = servers.Sluice(directory, max(counts), GIB, log="1G" if quick else "10G")
    null = servers.SluiceNull(directory, 0, 0) if servers.exist("sluice-null") else None
    cases = []
    try:
        for count in counts:
            region = max(in_all // count, MIB)
            targets = [server.uri(disk) for disk in range(count)]
            loads.write_all(targets, region)
            server.settle()
            case = {"name": f"{count:,}", "x": count}
            depth = max(32 // count, 1)
            work = [*WRITE, f"--iodepth={depth}", f"--size={region}", "--thread",
                    *timed(seconds)]
            full = run(server, targets, work, settle=True)
            steady = run(server, targets, [*work, f"--rate_iops={max(8000 // count, 1)}"],
                         settle=True)
            case |= {"iops": full["iops"], "p99_us": full["p99_us"], "own_us": full["own_us"],
                     "cpu_us": full["cpu_us"], "steady_iops": steady["iops"],
                     "steady_own_us": steady["own_us"], "steady_p99_us": steady["p99_us"]}
            if null is not None:
                targets = [null.uri(disk) for disk in range(count)]
                bound = run(null, targets, work)
                case |= {"null_iops": bound["iops"], "null_own_us": bound["own_us"],
                         "null_p99_us": bound["p99_us"]}
            cases.append(case)
    finally:
        server.remove()
        if null is not None:
            null.remove()
    keys = {"iops": "IOPS", "null_iops": "IOPS, null", "p99_us": "p99 µs",
            "null_p99_us": "p99 µs, null", "own_us": "server's CPU µs an operation",
            "null_own_us": "null's",
            "steady_own_us": "the same at 8,000 IOPS in all",
            "steady_p99_us": "p99 µs at 8,000 IOPS in all"}
    return {
        "title": "More disks", "axis": "disks", "cases": cases, "plot": "line",
        "what": "4 KiB random writes, a queue of 32 in all but at least 1 a disk; then the same at "
        "8,000 writes a second in all. Processor time includes the way home. One fio job a disk: "
        "what a thousand of them cost the client shows in null's figures.",
        "keys": {key: title for key, title in keys.items() if any(key in case for case in cases)},
        "drawn": {"iops": "IOPS in all", "own_us": "CPU µs an operation"},
        "beside": {"iops": "null_iops", "own_us": "steady_own_us"}, "peak": server.peak,
    }


# Size of the pool and of the map


def pool_loads(server, targets, region, stride, seconds):
    """What the cases of a pool's size compare: cold reads, and writes with their way home."""
    where = [f"--size={region}", f"--blockalign={stride}", *timed(seconds)]
    server.cold()
    read = run(server, targets, [*READ, "--iodepth=1", *where])
    server.cold()
    wrote = run(server, targets, [*WRITE, "--iodepth=1", *where], settle=True)
    status = server.status()
    return {**pick(read, "read", "iops", "own_us", "p99_us", "moved_ratio"),
            **pick(wrote, "write", "iops", "own_us", "p99_us", "written_ratio"),
            "metadata_mib": round(status["space"]["metadata"] / MIB, 1),
            "memory_mib": server.peak_memory() >> 20}


def groups_with_data(path):
    """How many of a volume's allocation groups of 1 GiB its file has anything in; and all."""
    with open(path, "rb") as file:
        size, at, count = os.fstat(file.fileno()).st_size, 0, 0
        while at < size:
            try:
                at = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            count += 1
            at = (at // GIB + 1) * GIB
    return count, -(-size // GIB)


def larger_pool(directory, quick, wanted=10_000_000):
    """A pool of 1 TiB with little in it, and one of 1 PiB whose map is many times the cache."""
    stride, disks, seconds = 64 * KIB, 64, 1 if quick else 6
    cache = "1M" if quick else "16M"
    room = shutil.disk_usage(directory).free - 14 * GIB
    wanted = 128_000 if quick else wanted
    # Each extent is a block of its own, and its map entry is written twice.
    extents = max(min(wanted, room // (4 * KIB + 128)), 64_000)
    each = extents // disks
    options = {"log": "1G" if quick else "4G", "arguments": ["--cache", cache]}
    cases = []
    small, petabyte, scattered = servers.Sluice, servers.SluicePetabyte, []
    if servers.OnLoops.are_possible():
        # Homes go to all groups in turn, as an old pool would have them: sparse files would have to be
        # allocated by 32 MiB for each. Runs are shorter than would be enough: some blocks go behind
        # the home of the block in front of them.
        small, petabyte = servers.SluiceOnLoops, servers.PetabyteOnLoops
        scattered = ["--scatter", str(max(extents // 2 // GROUPS, 1))]
    simple = small(directory, disks, GIB, **options)
    try:
        targets = [simple.uri(disk) for disk in range(disks)]
        region = (4 if quick else 16) * MIB
        loads.write_all(targets, region)
        cases.append({"name": "1 TiB, few extents",
                      **pool_loads(simple, targets, region, 4 * KIB, seconds)})
    finally:
        simple.remove()
    large = petabyte(directory, disks, each * stride, log=options["log"],
                     arguments=[*options["arguments"], *scattered])
    try:
        targets = [large.uri(disk) for disk in range(disks)]
        # One block, then a hole up to the next place: an extent each.
        work = [f"--rw=write:{stride - 4 * KIB}", "--bs=4k", "--iodepth=4",
                f"--size={each * stride}", f"--io_size={each * 4 * KIB}"]
        # On a slow disk homes all over 65 sparse files come to some 10,000 a second.
        filling = run(large, targets, work, settle=True, limit=3600)
        used, groups = map(sum, zip(*map(groups_with_data, large.volumes())))
        large.arguments = options["arguments"]
        cases.append({"name": f"1 PiB, {extents / 1e6:.2g} million extents",
                      **pool_loads(large, targets, each * stride, stride, seconds)})
        opening, peak = large.opening, large.peak_memory()
    finally:
        large.remove()
    # Each node is there twice.
    times = cases[1]["metadata_mib"] / 2 / int(cache[:-1])
    return {
        "title": "A larger pool and map", "axis": "pool", "cases": cases,
        "what": f"64 clients at QD1, 4 KiB random, each on a disk of its own, with a cache of "
        f"{cache}iB; the daemon started anew before each run. In the large pool (65 sparse files"
        f"{', served as block devices, as is the small one' if scattered else ''}) "
        "every written block is an extent, 64 KiB from the next"
        f"{'; homes were given in all groups in turn' if scattered else ''}.",
        "keys": {"read_iops": "cold read IOPS", "read_own_us": "server's CPU µs a read",
                 "read_moved_ratio": "bytes read / asked for", "write_iops": "write IOPS",
                 "write_own_us": "server's CPU µs a write, way home included",
                 "write_written_ratio": "bytes written / asked for",
                 "metadata_mib": "metadata, both copies, MiB", "memory_mib": "memory MiB"},
        "plain": ("metadata_mib",),
        "drawn": {"read_iops": "cold read IOPS", "read_own_us": "CPU a read",
                  "write_iops": "write IOPS", "write_own_us": "CPU a write"},
        "peak": peak, "extents": extents, "fill_iops": filling["iops"],
        "open_seconds": round(opening, 2), "groups_used": used,
        "map_times_cache": round(times, 1),
        "notes": [f"the map is {times:.1f} times the cache; {used:,} of {groups:,} allocation groups "
                  "hold data; "
                  f"extents were written at {filling['iops']:,.0f} a second; the pool opened in "
                  f"{opening:.2f} s"
                  + ("" if extents == wanted else f"; room for {extents:,} of {wanted:,} extents")],
    }


# Fill of the log


def fill_to(server, disks, size, goal):
    """Writes random blocks, destaging held, until the log is as full as that."""
    total = server.status()["log"]["size"]
    while (fill := server.log_fill()) < goal - 0.005:
        share = int((goal - fill) * total / 1.03) // disks >> 12 << 12
        run(server, [server.uri(disk) for disk in range(disks)],
            [*WRITE, "--iodepth=4", f"--size={size}", f"--io_size={max(share, 64 * KIB)}"])


def logged_loads(server, targets, home, size, at_rest, log, seconds):
    """Writes, reads of blocks that are in the log, and reads of blocks at home."""
    # So few that the log's fill stays what it is.
    writes = run(server, targets, [*WRITE, "--iodepth=1", "--fsync=1", f"--size={size}",
                                   f"--io_size={(log // 128 // len(targets)) >> 12 << 12}"])
    logged = run(server, targets, [*READ, "--iodepth=2", f"--size={size}", *timed(seconds)])
    at_home = run(server, home, [*READ, "--iodepth=32", f"--size={at_rest}", *timed(seconds)])
    return {**pick(writes, "write", "iops", "own_us", "p99_us"),
            **pick(logged, "logged", "iops", "own_us", "p99_us"),
            **pick(at_home, "home", "iops", "own_us", "p99_us")}


def fuller_log(directory, quick):
    """The log empty, 10% and 90% full."""
    log, disks, size = (512 * MIB, 16, 16 * MIB) if quick else (10 * GIB, 16, 512 * MIB)
    seconds, rounds, at_rest = (1, 1, 256 * MIB) if quick else (3, 3, GIB)
    server = servers.Sluice(directory, disks + 1, GIB, log=str(log))
    cases = []
    try:
        targets = [server.uri(disk) for disk in range(disks)]
        home = [server.uri(disks)]
        loads.write_all(targets, size)
        loads.write_all(home, at_rest)
        server.cold()
        server.hold_destage()
        for goal in (0, 0.1, 0.8 if quick else 0.9):
            fill_to(server, disks, size, goal)
            series = [logged_loads(server, targets, home, size, at_rest, log, seconds)
                      for _ in range(rounds)]
            cases.append({"name": f"{100 * server.log_fill():.0f}%", **medians(series)})
        peak = server.peak_memory()
    finally:
        server.remove()
    return {
        "title": "A fuller log", "axis": "fill of the log", "cases": cases, "peak": peak,
        "what": f"A log of {log / GIB:g} GiB, destaging held: 16 disks, 4 KiB random write + flush "
        "at QD1; random reads at QD32 in all of the same disks, whose newest blocks are in the "
        "log; the same of a disk that is at home. Processor time is without the way home.",
        "keys": {"write_iops": "write + flush IOPS", "write_own_us": "server's CPU µs a write",
                 "logged_iops": "read IOPS, log", "logged_own_us": "CPU µs a read, log",
                 "home_iops": "read IOPS, home", "home_own_us": "CPU µs a read, home"},
        "drawn": {"write_iops": "write + flush IOPS", "write_own_us": "CPU a write",
                  "logged_iops": "read IOPS, log", "home_iops": "read IOPS, home"},
    }


# Fragmentation


def overwritten(server, name, size, rounds, snapshots):
    """Overwrites each block so many times in random order, everything home in between."""
    for number in range(rounds):
        loads.fio([("over", server.named(name), [
            "--rw=randwrite", "--bs=4k", "--iodepth=32", f"--size={size}"])], 900)
        server.settle()
        if snapshots:
            server.cli("snapshot", "create", f"{name}@s{number}")


def fragmented(directory, quick):
    """A disk written from end to end, overwritten at random, and likewise with snapshots."""
    size, seconds = (64 * MIB, 1) if quick else (GIB, 4)
    plans = {"fresh": (0, False), "overwritten twice at random": (2, False),
             "the same, a snapshot after each": (2, True)}
    server = servers.Sluice(directory, 0, 0, log="1G" if quick else "4G",
                            arguments=["--cache", "16M"])
    cases = []
    try:
        for number, (title, (rounds, snapshots)) in enumerate(plans.items()):
            name = f"disk{number}"
            server.cli("disk", "create", name, "--size", str(size))
            target = [server.named(name)]
            loads.write_all(target, size)
            if snapshots:
                server.cli("snapshot", "create", f"{name}@first")
            overwritten(server, name, size, rounds, snapshots)
            server.cold()
            scan = run(server, target, ["--rw=read", "--bs=1m", "--iodepth=8", f"--size={size}",
                                        *timed(seconds)])
            server.cold()
            read = run(server, target, [*READ, "--iodepth=32", f"--size={size}", *timed(seconds)])
            wrote = run(server, target, [*WRITE, "--iodepth=32", f"--size={size}",
                                         *timed(seconds)], settle=True)
            cases.append({"name": title, "scan_mb_s": scan["mb_s"],
                          "scan_device_ios": scan.get("device_ios", 0),
                          **pick(read, "read", "iops", "own_us"),
                          **pick(wrote, "write", "iops", "own_us", "written_ratio")})
    finally:
        server.remove()
    return {
        "title": "After random overwrites", "axis": "disk", "cases": cases, "peak": server.peak,
        "what": f"A disk of {size / GIB:g} GiB on this machine's disk, which seeks for free; the "
        "daemon started anew before the reads, with a cache of 16 MiB.",
        "keys": {"scan_mb_s": "sequential read MB/s", "scan_device_ios": "device I/Os for each MiB",
                 "read_iops": "random read IOPS", "read_own_us": "server's CPU µs a read",
                 "write_iops": "random write IOPS",
                 "write_own_us": "CPU µs a write, way home included"},
        "drawn": {"scan_mb_s": "sequential read", "read_iops": "random read",
                  "write_iops": "random write", "write_own_us": "CPU a write"},
    }


ALL = {"disks": more_disks, "pool": larger_pool, "log": fuller_log, "fragments": fragmented}
