"""The loads, as fio command lines (fio's nbd engine over a UNIX socket), and their figures."""

import collections
import json
import pathlib
import tempfile

from sluicetest import tools

GIB = 1 << 30
MIB = 1 << 20

# What one row measures: `work` is fio's own options for each disk, `disks` how many at once,
# `unit` what is compared. `settle`: background work ends before (reads of data at rest).
Row = collections.namedtuple("Row", "name title work disks unit settle timed")


def rows(size, runtime):
    """All rows in their order, for regions of `size` bytes and timed rows of `runtime` seconds."""
    timed = ["--time_based", f"--runtime={runtime}"]
    region = [f"--size={size}"]
    second = [f"--offset={size}", f"--size={size}"]
    write = ["--rw=randwrite", "--bs=4k"]
    table = [
        ("fill", "1M write QD8, then flush",
         ["--rw=write", "--bs=1m", "--iodepth=8", "--end_fsync=1", *region], 1, "MB/s", 0),
        ("scan", "1M read QD8",
         ["--rw=read", "--bs=1m", "--iodepth=8", *region], 1, "MB/s", 1),
        ("sync1", "4K random write QD1 + flush each",
         [*write, "--iodepth=1", "--fsync=1", *region, *timed], 1, "IOPS", 0),
        ("write32", "4K random write QD32, no flush",
         [*write, "--iodepth=32", *region, *timed], 1, "IOPS", 0),
        ("sync32", "4K random write QD32, flush each 8",
         [*write, "--iodepth=32", "--fsync=8", *region, *timed], 1, "IOPS", 0),
        ("read32", "4K random read QD32",
         ["--rw=randread", "--bs=4k", "--iodepth=32", *region, *timed], 1, "IOPS", 1),
        ("first1", "first write, 4K QD1 + flush",
         [*write, "--iodepth=1", "--fsync=1", *second, *timed], 1, "IOPS", 0),
        ("first32", "first write, 4K QD32",
         [*write, "--iodepth=32", *second, *timed], 1, "IOPS", 0),
        ("blender1", "blender: 16 disks, 4K QD1 + flush, first pass",
         [*write, "--iodepth=1", "--fsync=1", *region, *timed], 16, "IOPS", 0),
        ("blender2", "blender, second pass",
         [*write, "--iodepth=1", "--fsync=1", "--randseed=1", *region, *timed], 16, "IOPS", 0),
    ]
    return [Row(name, title, work, disks, unit, bool(settle), "--time_based" in work)
            for name, title, work, disks, unit, settle in table]


def fio(jobs, timeout, *options):
    """Runs fio with jobs of (name, uri, work); returns its report's only group."""
    words = ["fio", "--output-format=json", "--group_reporting", "--randrepeat=0", *options]
    for name, uri, work in jobs:
        words += [f"--name={name}", "--ioengine=nbd", f"--uri={uri}", *work]
    done = tools.run(words, timeout=timeout)
    group = json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
    if group["error"]:
        raise RuntimeError(f"fio reports error {group['error']}")
    return group


def drop_caches():
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        # Not root: every server here uses direct I/O, little changes.
        pass


def measure(server, row):
    """Runs one row against one server; returns its figures."""
    # The blender has disks of its own, so that its first pass is one.
    first = 0 if row.disks == 1 else 1
    jobs = [(f"disk{disk}", server.uri(disk), row.work) for disk in range(first, first + row.disks)]
    if row.settle:
        server.settle()
        drop_caches()
    before = server.processor_seconds()
    group = fio(jobs, 600)
    side = group["read"] if "read" in row.work[0] else group["write"]
    seconds = side["runtime"] / 1000
    value = side["bw_bytes"] / 1e6 if row.unit == "MB/s" else side["iops"]
    percentiles = side["clat_ns"].get("percentile", {})
    sync = group.get("sync", {}).get("lat_ns", {}).get("percentile", {})
    return {
        "value": round(value, 1),
        "unit": row.unit,
        "p50_us": round(percentiles.get("50.000000", 0) / 1000),
        "p99_us": round(percentiles.get("99.000000", 0) / 1000),
        "flush_p50_us": round(sync.get("50.000000", 0) / 1000),
        "flush_p99_us": round(sync.get("99.000000", 0) / 1000),
        "cpu_percent": round(100 * (server.processor_seconds() - before) / max(seconds, 0.001)),
    }


def per_second(server, disks, total, depth=4):
    """Random 4 KiB writes of `total` bytes over many disks; returns the IOPS of each second."""
    with tempfile.TemporaryDirectory(prefix="sluice-fio-", dir="/var/tmp") as directory:
        work = ["--rw=randwrite", "--bs=4k", f"--iodepth={depth}", f"--size={server.disk_size}",
                f"--io_size={total // disks}", "--norandommap"]
        jobs = [(f"disk{disk}", server.uri(disk), work) for disk in range(disks)]
        fio(jobs, 3600, f"--write_iops_log={directory}/log", "--log_avg_msec=1000")
        seconds = collections.Counter()
        for path in pathlib.Path(directory).glob("*_iops.*.log"):
            for line in path.read_text().splitlines():
                fields = line.split(",")
                seconds[round(int(fields[0]) / 1000)] += int(fields[1])
    # The first and the last are not whole; a second that nobody reported was one without a write.
    return [seconds[second] for second in range(2, max(seconds, default=1))]
