"""Points that are timed or too large for `make test`: each must hold, or the bench fails."""

import json
import os
import statistics
import time

import branches
import emulated_points
import loads
import servers
import traces
from loads import GIB, MIB
from sluicetest.api import API

KIB = 1 << 10


def sustained(directory, quick):
    """20 GiB of random 4 KiB writes over 8 disks through a log of 1 GiB, second by second."""
    scale = 10 if quick else 1
    server = servers.Sluice(directory, disks=8, disk_size=4 * GIB // scale,
                            log="1G" if not quick else "256M")
    try:
        series = loads.per_second(server, disks=8, total=20 * GIB // scale)
        errors = server.status()["errors"]
        peak = server.peak_memory()
    finally:
        server.remove()
    median, slowest = statistics.median(series), min(series)
    return {
        "what": "random writes of 20 times the log: slowest second against the median one",
        "seconds": len(series), "median_iops": median, "slowest_iops": slowest,
        "ratio": round(slowest / median, 3) if median else 0, "errors": errors,
        "peak_memory_mib": peak >> 20, "series": series,
        "holds": slowest >= median / 10 and not any(errors.values()) and peak < GIB,
    }


def recovery(directory, quick):
    """kill -9 with a log of 10 GiB, 90% full of 4 KiB writes: seconds until it serves again."""
    log = GIB if quick else 10 * GIB
    disks = 8
    # Each block once, so that fio knows afterwards what every one must hold. A block takes a
    # little more than itself in the log.
    share = int(log * 0.86) // disks // (4 * KIB) * 4 * KIB
    server = servers.Sluice(directory, disks=disks, disk_size=share, log=str(log))
    try:
        # Nothing leaves the log meanwhile, so that it gets as full as it can be.
        server.hold_destage()
        work = ["--rw=randwrite", "--bs=4k", "--iodepth=32", f"--size={share}", "--verify=crc32c",
                "--randseed=7", "--allrandrepeat=1"]

        def jobs(*more):
            return [(f"disk{disk}", server.uri(disk), [*work, *more]) for disk in range(disks)]

        loads.fio(jobs("--do_verify=0"), 3600)
        figures = server.status()["log"]
        server.kill()
        loads.drop_caches()
        seconds = server.serve(timeout=600)
        peak = server.peak_memory()
        frames = server.status()["recovery"]
        loads.fio(jobs("--verify_only=1"), 3600)
        peak = max(peak, server.peak_memory())
    finally:
        server.remove()
    fill = figures["used"] / figures["size"]
    return {
        "what": "kill -9 with a full log: ready again, everything read back",
        "log_fill": round(fill, 3), "seconds": round(seconds, 2), "reported": frames,
        "peak_memory_mib": peak >> 20, # A log that destaging kept emptier than that proves nothing.
        "holds": seconds <= 3 and fill >= 0.85 and peak < GIB,
    }


def verified(directory, quick):
    """fio with checksums on 8 disks at once: 512 bytes to 1 MiB, unaligned."""
    size = 128 * MIB if quick else GIB
    server = servers.Sluice(directory, disks=8, disk_size=size + MIB)
    try:
        work = ["--rw=randwrite", f"--size={size}", "--iodepth=16", "--verify=crc32c",
                "--verify_fatal=1", "--bsrange=512-1m", "--blockalign=512"]
        group = loads.fio(
            [(f"disk{disk}", server.uri(disk), work) for disk in range(8)], 3600)
        peak = server.peak_memory()
    finally:
        server.remove()
    return {
        "what": "fio --verify=crc32c on 8 disks, 512 B to 1 MiB, unaligned",
        "written_mib": group["write"]["io_bytes"] >> 20,
        "verified_mib": group["read"]["io_bytes"] >> 20, "peak_memory_mib": peak >> 20,
        "holds": group["read"]["io_bytes"] >= group["write"]["io_bytes"] > 0 and peak < GIB,
    }


def many_disks(directory, quick):
    """100,000 disks: created, listed within 2 s, the pool opened again within 5 s."""
    count = 10_000 if quick else 100_000
    server = servers.Sluice(directory, disks=0, disk_size=0, log="1G")
    try:
        api = API(server.directory / "api.sock")
        began = time.monotonic()
        for number in range(count):
            api.call("POST", "/v1/disks", {"name": f"vm{number}", "size": 10 * GIB})
        created = time.monotonic() - began
        api.close()
        began = time.monotonic()
        listed = len(json.loads(server.cli("disk", "list", "--json")))
        listing = time.monotonic() - began
        server.kill()
        opening = server.serve(timeout=600)
        again = len(json.loads(server.cli("disk", "list", "--json")))
        peak = server.peak_memory()
    finally:
        server.remove()
    return {
        "what": "many disks: create all, list, open after a kill -9", "disks": count,
        "create_seconds": round(created, 1), "list_seconds": round(listing, 2),
        "open_seconds": round(opening, 2), "peak_memory_mib": peak >> 20,
        "holds": listed == again == count and listing < 2 and opening < 5 and peak < GIB,
    }


def petabyte(directory, quick):
    """A pool of 1 PiB as 65 sparse files: created and opened in seconds, little written."""
    server = None
    try:
        server = servers.SluicePetabyte(directory, disks=0, disk_size=0, log="1G")
        size = server.status()["space"]["size"]
        server.stop()
        taken = sum(os.stat(path).st_blocks * 512 for path in server.volumes())
    finally:
        if server is not None:
            server.remove()
    return {
        "what": "a pool of 1 PiB on 65 sparse files", "size": size,
        "create_seconds": round(server.creating, 2), "open_seconds": round(server.opening, 2),
        "allocated_mib": taken >> 20, "peak_memory_mib": server.peak >> 20,
        "holds": size >= 1 << 50 and server.creating < 30 and server.opening < 10 and taken < 256 * MIB,
    }


ALL = {"sustained": sustained, "recovery": recovery, "verified": verified,
       "many-disks": many_disks, "petabyte": petabyte, **branches.ALL,
       **emulated_points.ALL, **traces.ALL}

# Points beside peers, which belong to every run, and those of them that a QUICK one has time for.
# Such a point may return "goals", a list of what `goals.outcome` makes.
WITH_PEERS = (*emulated_points.ALL, *traces.ALL)
QUICK_WITH_PEERS = ("blender-rotating",)
