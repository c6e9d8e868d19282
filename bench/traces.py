"""Recorded guests, replayed from many disks at once: a boot, an installation, a database.

A recording is what one guest asked of its disk, request by request: bench/boot.json by
record_boot.py, and bench/*.trace.gz by record_guest.py. The latter are text, a line a request,
compressed:

    OP OFFSET LENGTH AT_MS        r read, w write, f flush, t trim, z write zeroes; OFFSET is the
                                  difference to the end of the request before, in bytes

Each disk's copy goes through fio (its iolog) without think times and one request at a time: a
request is sent when the one before it is done. That keeps every order that the guest relied on,
and is less parallel than the guest was.
"""

import gzip
import json
import pathlib
import shutil
import statistics
import time

import loads
import servers
from goals import outcome
from loads import GIB, MIB

HERE = pathlib.Path(__file__).resolve().parent
ACTIONS = {"r": "read", "w": "write", "t": "trim", "z": "trim"}
# What a trace reads is written before, in pieces of this size: else thin disks answer with zeros
# that nobody has to fetch.
PIECE = 64 << 10


def save(trace, path):
    lines, end = [], 0
    for one in trace:
        lines.append(f"{one['op']} {one['offset'] - end} {one['length']} {one['at_ms']}\n")
        end = one["offset"] + one["length"]
    # Without a date: the same trace gives the same file.
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def load(name):
    """A recording by its name; None when it is not there."""
    path = HERE / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    path = HERE / f"{name}.trace.gz"
    if not path.exists():
        return None
    trace, end = [], 0
    for line in gzip.decompress(path.read_bytes()).decode().splitlines():
        op, offset, length, at = line.split()
        one = {"op": op, "offset": end + int(offset), "length": int(length), "at_ms": int(at)}
        trace.append(one)
        end = one["offset"] + one["length"]
    return trace


def summary(trace):
    counts = {}
    for one in trace:
        count, total = counts.get(one["op"], (0, 0))
        counts[one["op"]] = count + 1, total + one["length"]
    words = [f"{op}: {count}, {total / MIB:.1f} MiB" for op, (count, total) in counts.items()]
    return f"{'; '.join(words)}; {trace[-1]['at_ms'] / 1000:.1f} s as recorded"


def write_iolog(trace, path):
    """The requests as fio's iolog: the only file of its nbd engine is called “nbd”."""
    lines = ["fio version 2 iolog", "nbd add", "nbd open"]
    for one in trace:
        if one["op"] == "f":
            lines.append("nbd sync 0 0")
        elif one["length"] > 0:
            lines.append(f"nbd {ACTIONS[one['op']]} {one['offset']} {one['length']}")
    lines.append("nbd close")
    path.write_text("\n".join(lines) + "\n")


def fill_log(trace):
    """Requests that write all that the trace reads, each piece once."""
    pieces = sorted({piece for one in trace if one["op"] == "r"
                     for piece in range(one["offset"] // PIECE,
                                        (one["offset"] + one["length"] - 1) // PIECE + 1)})
    return [{"op": "w", "offset": piece * PIECE, "length": PIECE} for piece in pieces] + [
        {"op": "f", "offset": 0, "length": 0}]


def end_of(trace):
    """A disk's size that holds the trace."""
    end = max(one["offset"] + one["length"] for one in trace)
    return -(-end // PIECE) * PIECE


def replay(server, disks, log, depth=1):
    """The same iolog on many disks at once."""
    work = [f"--read_iolog={log}", "--replay_no_stall=1", f"--iodepth={depth}"]
    server.thaw()
    cpu, began = server.processor_seconds(), time.monotonic()
    group = loads.fio([(f"disk{disk}", server.uri(disk), work) for disk in range(disks)], 600)
    wall, cpu = time.monotonic() - began, server.processor_seconds() - cpu
    seconds = max(group[side]["runtime"] for side in ("read", "write")) / 1000
    count = sum(group[side]["total_ios"] for side in ("read", "write", "trim"))
    flushes = group.get("sync", {})
    server.freeze()
    return {
        "seconds": round(seconds, 2), "wall_seconds": round(wall, 2), "requests": count,
        "flushes": flushes.get("total_ios", 0),
        "iops": round((count + flushes.get("total_ios", 0)) / max(seconds, 0.001)),
        "read_p99_us": p99(group["read"]["clat_ns"]),
        "write_p99_us": p99(group["write"]["clat_ns"]),
        "flush_p99_us": p99(flushes.get("lat_ns", {})), "cpu_seconds": round(cpu, 2),
    }


def p99(latency):
    return round(latency.get("percentile", {}).get("99.000000", 0) / 1000)


def one_trace(directory, name, trace, disks, rounds):
    """One recording on Sluice and peers in turn; its figures."""
    place = directory / f"trace-{name}"
    place.mkdir()
    log, fill = place / "trace.log", place / "fill.log"
    write_iolog(trace, log)
    write_iolog(fill_log(trace), fill)
    running, series = [], {}
    try:
        for each in (servers.Sluice, servers.Raw, servers.Qcow2):
            arguments = {"log": "4G"} if each is servers.Sluice else {}
            server = each(place, disks=disks, disk_size=max(end_of(trace), GIB), **arguments)
            running.append(server)
            replay(server, disks, fill, depth=8)
        for turn in range(rounds):
            for server in running if turn % 2 == 0 else reversed(running):
                server.thaw()
                server.settle()
                loads.drop_caches()
                series.setdefault(server.name, []).append(replay(server, disks, log))
    finally:
        for server in running:
            server.remove()
        shutil.rmtree(place, ignore_errors=True)
    medians = {who: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
               for who, runs in series.items()}
    ratios = {who: round(figures["seconds"] / medians["sluice"]["seconds"], 2)
              for who, figures in medians.items() if who != "sluice"}
    return {"trace": summary(trace), **medians, "ratio": ratios}


def replayed(directory, quick):
    """Recorded guests on 16 disks at once, Sluice and peers in turn: not slower than a peer."""
    disks, rounds = 16, 1 if quick else 3
    results = {}
    for name in ("boot", "install", "database"):
        trace = load(name)
        if trace is None:
            raise RuntimeError(f"bench/{name}.trace.gz is missing: bench/record_guest.py makes it")
        results[name] = one_trace(directory, name, trace, disks, rounds)
    return {
        "what": "seconds for the same recording on 16 disks at once; ratio: peer / Sluice",
        "disks": disks, **results,
        # A tenth is this machine's noise.
        "goals": [outcome(f"{name}: ≥ {peer}", ratio, ">=", 1)
                  for name, one in results.items() for peer, ratio in one["ratio"].items()],
        "holds": all(min(one["ratio"].values()) >= 0.9 for one in results.values()),
    }


ALL = {"traces": replayed}
