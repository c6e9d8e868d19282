"""fio: its nbd engine over UNIX sockets (io_uring on the bare device), and what its report says."""

import collections
import json
import pathlib
import tempfile

from sluicetest import tools

GIB = 1 << 30
MIB = 1 << 20


def command(jobs, timeout, *options):
    """The words of one fio with jobs of (name, target, work), all in one group.

    `target` is the NBD URI of a disk, or the path of a file on the bare device. A fio whose
    server died ignores SIGTERM, so it is killed when `timeout` seconds have passed.
    """
    words = ["timeout", "-s", "KILL", str(timeout), "fio", "--output-format=json",
             "--group_reporting", "--randrepeat=0", *options]
    for name, target, work in jobs:
        words.append(f"--name={name}")
        if str(target).startswith("nbd"):
            words += ["--ioengine=nbd", f"--uri={target}", *work]
        else:
            words += ["--ioengine=io_uring", "--direct=1", f"--filename={target}", *work]
    return words


def report(text):
    """The only group of fio's report; raises when a request of it failed."""
    group = json.loads(text[text.index("{"):])["jobs"][0]
    if group["error"] or group.get("total_err"):
        raise RuntimeError(f"fio reports error {group['error'] or group['total_err']}")
    return group


def fio(jobs, timeout, *options):
    """Runs fio to its end; returns its report's only group."""
    done = tools.run(command(jobs, timeout, *options), timeout=timeout + 10)
    return report(done.stdout)


def drop_caches():
    try:
        pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        # Not root: every server here but nbdkit's file plugin uses direct I/O, little changes.
        pass


def write_all(targets, size):
    """Writes a region of each of some disks from end to end, all at once, and flushes them."""
    depth = 8 if len(targets) == 1 else 2
    work = ["--rw=write", "--bs=1m", f"--iodepth={depth}", f"--size={size}", "--end_fsync=1",
            "--thread"]
    fio([(f"fill{number}", target, work) for number, target in enumerate(targets)], 1800)


def side_of(group):
    """The report's reads or its writes, whichever there were more of."""
    return max((group["read"], group["write"]), key=lambda side: side["total_ios"])


def microseconds(percentiles, percent):
    return round(percentiles.get("percentile", {}).get(percent, 0) / 1000, 1)


def figures(group):
    """What one run of fio says: operations a second, bytes a second, latencies."""
    side = side_of(group)
    flushes = group.get("sync", {}).get("lat_ns", {})
    return {
        "iops": round(side["iops"], 1), "mb_s": round(side["bw_bytes"] / 1e6, 1),
        "operations": side["total_ios"], "bytes": side["io_bytes"],
        "seconds": side["runtime"] / 1000,
        "p50_us": microseconds(side["clat_ns"], "50.000000"),
        "p99_us": microseconds(side["clat_ns"], "99.000000"),
        "p999_us": microseconds(side["clat_ns"], "99.900000"),
        "flush_p50_us": microseconds(flushes, "50.000000"),
        "flush_p99_us": microseconds(flushes, "99.000000"),
    }


def timeline(jobs, seconds, interval_ms=1000, timeout=3600):
    """Runs fio; returns its figures and a list of (second, IOPS of all jobs) of each interval."""
    with tempfile.TemporaryDirectory(prefix="sluice-fio-", dir="/var/tmp") as directory:
        group = fio(jobs, timeout, f"--write_iops_log={directory}/log",
                    f"--log_avg_msec={interval_ms}")
        sums = collections.Counter()
        for path in pathlib.Path(directory).glob("*_iops.*.log"):
            for line in path.read_text().splitlines():
                fields = line.split(",")
                sums[round(int(fields[0]) / interval_ms)] += int(fields[1])
    # The first and the last are not whole; one that nobody reported was one without a write.
    count = max(sums, default=1) if seconds is None else int(seconds * 1000 / interval_ms)
    return figures(group), [(slot * interval_ms / 1000, sums[slot]) for slot in range(2, count)]


def per_second(server, disks, total, depth=4):
    """Random 4 KiB writes of `total` bytes over many disks; returns the IOPS of each second."""
    work = ["--rw=randwrite", "--bs=4k", f"--iodepth={depth}", f"--size={server.disk_size}",
            f"--io_size={total // disks}", "--norandommap"]
    jobs = [(f"disk{disk}", server.uri(disk), work) for disk in range(disks)]
    return [iops for _, iops in timeline(jobs, None)[1]]
