"""Points that show that snapshots and clones cost no speed: reads, writes, pauses, a boot storm."""

import json
import math
import pathlib
import random
import re
import shutil
import signal
import statistics
import subprocess
import threading
import time

import nbd

import loads
import meter
from blocks import (BLOCK, GIB, KIB, MIB, Stream, connect, drive, fill, noise, pool, write)
from sluicetest import tools
from sluicetest.api import API


def interval(pairs):
    """The ratio branch/plain with the ends of its 95% interval: Hodges and Lehmann's estimate with
    Wilcoxon's signed ranks, on a logarithmic scale. A stray pair moves it little. With fewer than
    six pairs the interval is all that they span."""
    logs = [math.log(branch / plain) for branch, plain in pairs if branch > 0 and plain > 0]
    n = len(logs)
    if n < 2:
        # Nothing to divide, such as bytes written by reads.
        return None
    walsh = sorted((logs[i] + logs[j]) / 2 for i in range(n) for j in range(i, n))
    half = 1.96 * math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
    low = max(0, math.floor(len(walsh) / 2 - half))
    return [round(math.exp(value), 3)
            for value in (walsh[low], statistics.median(walsh), walsh[-1 - low])]


def counts_instructions():
    """Whether this machine can count a process's instructions."""
    if shutil.which("perf") is None:
        return False
    done = subprocess.run(["perf", "stat", "-x,", "-e", "instructions:u", "true"],
                          capture_output=True, text=True)
    return re.match(r"\d+,", done.stderr) is not None


class BranchMeter:
    """What a daemon did since the meter was started: processor time, instructions where they can
    be counted, bytes of its device I/O, and the I/Os of the device under its pool.

    The I/Os are the device's, whoever asked for them: `device_bytes` beside `bytes` tells whether
    anybody else did.
    """

    def __init__(self, server):
        self.server = server
        self.device = meter.device_of(server.directory)
        self.perf = None
        if counts_instructions():
            self.perf = tools.spawn(
                ["perf", "stat", "-x,", "-e", "instructions:u", "-p",
                 str(server.processes[0].pid)],
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            time.sleep(0.2)
        self.before = self.read()

    def read(self):
        # In nanoseconds, as clock ticks are too coarse for so short a run.
        tasks = pathlib.Path(f"/proc/{self.server.processes[0].pid}/task").glob("*/schedstat")
        figures = {"processor_ns": sum(int(task.read_text().split()[0]) for task in tasks),
                   "bytes": sum(self.server.device_bytes())}
        if self.device is not None:
            figures |= meter.device_figures(self.device)
        return figures

    def each(self, operations):
        """The figures of one operation."""
        after = self.read()
        figures = {key: (after[key] - self.before[key]) / operations for key in after}
        if self.perf is not None:
            self.perf.send_signal(signal.SIGINT)
            said = self.perf.communicate(timeout=20)[1]
            figures["instructions"] = int(re.search(r"^(\d+),", said, re.MULTILINE)[1]) / operations
        return figures


# Speed


def run_once(server, name, kind, size, operations, seed):
    """One short run at QD32; IOPS and what an operation cost, its way home included. The same
    seed makes the same requests."""
    work = [f"--rw=rand{kind}", "--bs=4k", "--iodepth=32", f"--size={size}", "--norandommap",
            f"--io_size={operations * BLOCK}", f"--randseed={seed}", "--allrandrepeat=1"]
    cost = BranchMeter(server)
    uri = f"nbd+unix:///{name}?socket={server.socket}"
    group = loads.fio([("job", uri, work)], 300)
    server.settle()
    side = group[kind]
    return {"iops": side["iops"], **cost.each(side["total_ios"])}


def compare(server, branch, plain, kind, size, quick):
    """Alternating pairs of runs: ratios branch/plain with their 95% intervals. `branch` and `plain`
    give the name of the disk for a pair."""
    pairs, operations = (4, 20_000) if quick else (30, 30_000)
    names = {"branch": branch, "plain": plain}
    runs = []

    def run(side, number):
        name = names[side](number)
        # A new one comes home first.
        server.settle()
        if kind == "read":
            # Both sides find nothing in memory. What the last runs left of the one or the other in
            # the cache would decide how much is read.
            server.stop()
            server.serve()
        return run_once(server, name, kind, size, operations, seed=number)

    server.settle()
    loads.drop_caches()
    # Each run comes behind one of the other side; so each half begins with one that does not count.
    for half, order in enumerate((("branch", "plain"), ("plain", "branch"))):
        run(order[1], 1000 + half)
        for number in range(half * pairs // 2, (half + 1) * pairs // 2):
            runs.append({side: run(side, number) for side in order})
    ratios = {key: interval([(pair["branch"][key], pair["plain"][key]) for pair in runs])
              for key in runs[0]["plain"]}
    medians = {side: {key: round(statistics.median(pair[side][key] for pair in runs), 1)
                      for key in runs[0][side]} for side in names}
    return {"ratio": ratios, **medians, "holds": is_even(ratios, medians, quick), "pairs": [
        [round(pair[side]["iops"]) for side in ("branch", "plain")] for pair in runs]}


def is_even(ratios, medians, quick):
    """The bars: IOPS surely above 0.9, and per operation nothing that is more by 5%. Few short
    pairs can't show that: quick ones fail when IOPS are surely below, or bytes are 10% more."""
    if quick:
        return ratios["iops"][2] > 0.9 and (
            ratios["bytes"] is None or ratios["bytes"][1] <= 1.1)
    if ratios["iops"][0] <= 0.9:
        return False
    # Processor time stands in for instructions, and is as noisy as IOPS: over 5% for sure.
    if "instructions" in ratios and ratios["instructions"][1] > 1.05:
        return False
    if "instructions" not in ratios and ratios["processor_ns"][0] > 1.05:
        return False
    bars = ["bytes"]
    alone = all(side["device_bytes"] <= 1.1 * side["bytes"] for side in medians.values()
                if "device_bytes" in side)
    if alone and "device_ios" in ratios:
        bars.append("device_ios")
    return all(ratios[key] is None or ratios[key][1] <= 1.05 for key in bars)


def scattered(size, count, seed):
    """`count` random blocks and one content for all of them."""
    places = random.Random(seed)
    data = noise(BLOCK, seed)
    return [(places.randrange(size // BLOCK) * BLOCK, data) for _ in range(count)]


def with_snapshots(server, size, count):
    """A disk that had `count` snapshots taken while it was written to, all kept, and a plain one
    that was written to alike."""
    for name in ("snapshots", "plain-snapshots"):
        fill(server, name, size)
    requests = scattered(size, 40 * count, seed=5)
    write(server, "plain-snapshots", requests)
    api = API(server.directory / "api.sock")
    handle = connect(server, "snapshots")
    errors = []

    def done(error):
        errors.extend([error.value] if error.value != 0 else [])
        return 1

    for number in range(count):
        for offset, data in requests[40 * number:40 * number + 40]:
            handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), offset, done)
        # With the 40 writes under way.
        api.call("POST", "/v1/snapshots", {"snapshots": [f"snapshots@s{number}"]})
        while handle.aio_in_flight() > 0:
            handle.poll(1000)
    handle.shutdown()
    api.close()
    if errors:
        raise RuntimeError(f"writes under the snapshots failed: {errors[0]}")


def deep_clone(server, size, depth):
    """A clone of a clone … `depth` deep, something written at each, and a plain disk with the same
    content; the clone's name."""
    fill(server, "deep-0", size)
    fill(server, "plain-deep", size)
    for level in range(depth):
        requests = scattered(size, 200, level)
        for name in (f"deep-{level}", "plain-deep"):
            write(server, name, requests)
        server.cli("snapshot", "create", f"deep-{level}@s")
        server.cli("clone", f"deep-{level}@s", f"deep-{level + 1}")
    return f"deep-{depth}"


def branch_speed(directory, quick):
    """Fresh clones, a disk with 1,000 snapshots and a clone 50 deep, each against a plain disk."""
    size = 256 * MIB if quick else GIB
    snapshots = 200 if quick else 1000
    results = {}
    with pool(directory, log="1G" if quick else "2G") as server:
        fill(server, "golden", size)
        fill(server, "plain-clone", size)
        server.cli("snapshot", "create", "golden@v1")
        made = []

        def fresh(_):
            made.append(f"clone-{len(made)}")
            server.cli("clone", "golden@v1", made[-1])
            return made[-1]

        def blank(_):
            made.append(f"blank-{len(made)}")
            server.cli("disk", "create", made[-1], "--size", str(size))
            return made[-1]

        def always(name):
            return lambda _: name

        cases = [("clone read", fresh, always("plain-clone"), "read"),
                 ("clone write", fresh, always("plain-clone"), "write"),
                 ("clone write, against a first write", fresh, blank, "write")]
        with_snapshots(server, size, snapshots)
        deep = deep_clone(server, size, 50)
        for title, name, plain in ((f"{snapshots} snapshots", "snapshots", "plain-snapshots"),
                                   ("50 deep", deep, "plain-deep")):
            cases += [(f"{title} {kind}", always(name), always(plain), kind)
                      for kind in ("read", "write")]
        for title, branch, plain, kind in cases:
            results[title] = compare(server, branch, plain, kind, size, quick)
            print(f"  {title}: {results[title]['ratio']}", flush=True)
            for name in made:
                server.cli("disk", "delete", name)
            made.clear()
        peak = server.peak_memory()
    return {
        "what": "branch against plain disk, 4 KiB at QD32: [low, mean, high] of the ratio",
        "counts_instructions": counts_instructions(), "series": results,
        "fail": [title for title, result in results.items() if not result["holds"]],
        "qcow2_chain_reads": qcow2_chains(directory, size, quick),
        "peak_memory_mib": peak >> 20,
        "holds": all(result["holds"] for result in results.values()) and peak < GIB,
    }


def qcow2_chains(directory, size, quick):
    """The peer: random reads through overlays 1, 10 and 50 deep, relative to none."""
    place = directory / "chain"
    place.mkdir()
    names = [place / f"layer{level}.qcow2" for level in range(51)]
    try:
        tools.run(["qemu-img", "create", "-q", "-f", "qcow2", names[0], str(size)])
        tools.run(["qemu-io", "-f", "qcow2", *[word for offset in range(0, size, 64 * MIB) for word
                   in ("-c", f"write -P 1 {offset} 64M")], names[0]], timeout=600)
        for level in range(1, 51):
            tools.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
                       names[level - 1], names[level]])
            words = [word for offset, _ in scattered(size, 50, level)
                     for word in ("-c", f"write -P 2 {offset} 4k")]
            tools.run(["qemu-io", "-f", "qcow2", *words, names[level]])
        series = {level: [] for level in (0, 1, 10, 50)}
        for turn in range(1 if quick else 3):
            for level in list(series) if turn % 2 == 0 else list(reversed(series)):
                loads.drop_caches()
                series[level].append(qcow2_reads(names[level], place, 1 if quick else 3, size))
    finally:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
    none = statistics.median(series[0])
    return {str(level): round(statistics.median(values) / none, 2)
            for level, values in series.items() if level > 0}


def qcow2_reads(image, place, seconds, size):
    socket = place / "socket"
    server = tools.spawn(["qemu-nbd", "-t", "-r", "-f", "qcow2", "-k", socket, "--cache=none",
                          "--aio=io_uring", image], stdin=subprocess.DEVNULL)
    try:
        tools.wait_until(socket.exists, 20, "qemu-nbd does not listen")
        group = loads.fio([("job", f"nbd+unix:///?socket={socket}", [
            "--rw=randread", "--bs=4k", "--iodepth=32", f"--size={size}", "--time_based",
            f"--runtime={seconds}"])], 60)
        return group["read"]["iops"]
    finally:
        tools.finish(server)
        socket.unlink(missing_ok=True)


# Snapshots under load


class Snapshotter(threading.Thread):
    """A group snapshot a second; those beyond the last `kept` are deleted."""

    def __init__(self, server, disks, kept):
        super().__init__(daemon=True)
        self.server = server
        self.disks, self.kept = disks, kept
        self.stopping = threading.Event()
        self.resumed = threading.Event()
        self.made, self.taken, self.failure = [], 0, None
        self.slowest = 0

    def run(self):
        try:
            while not self.stopping.wait(1):
                if self.resumed.is_set():
                    self.take()
        except Exception as error:  # noqa: BLE001  # told when the point asks
            self.failure = error

    def take(self):
        name = f"s{self.taken}"
        # A connection that rested for a minute is closed by the daemon.
        api = API(self.server.directory / "api.sock")
        began = time.monotonic()
        api.call("POST", "/v1/snapshots",
                 {"snapshots": [f"{disk}@{name}" for disk in self.disks]})
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.taken += 1
        self.made.append(name)
        if len(self.made) > self.kept:
            old = self.made.pop(0)
            for disk in self.disks:
                api.call("DELETE", f"/v1/snapshots/{disk}@{old}")
        api.close()

    def finish(self):
        self.stopping.set()
        self.join(60)
        if self.failure is not None:
            raise self.failure


def snapshot_each_second(directory, quick):
    """Full write load with and without a group snapshot a second: the slowest in a thousand."""
    seconds, rounds, size, kept = (10, 2, 128 * MIB, 5) if quick else (60, 3, GIB, 60)
    latency = {"without": [], "with": []}
    iops = {"without": [], "with": []}
    with pool(directory, log="1G" if quick else "4G") as server:
        disks = [f"disk{number}" for number in range(4)]
        for disk in disks:
            fill(server, disk, size)
        server.settle()
        snapshotter = Snapshotter(server, disks, kept)
        snapshotter.start()
        try:
            for turn in range(2 * rounds):
                mode = ("without", "with")[turn % 2]
                if mode == "with":
                    snapshotter.resumed.set()
                else:
                    snapshotter.resumed.clear()
                group = loads.fio(
                    [(disk, f"nbd+unix:///{disk}?socket={server.socket}",
                      ["--rw=randwrite", "--bs=4k", "--iodepth=32", f"--size={size}",
                       "--norandommap", "--time_based", f"--runtime={seconds}"])
                     for disk in disks], 60 + 2 * seconds)
                percentiles = group["write"]["clat_ns"]["percentile"]
                latency[mode].append(round(percentiles["99.900000"] / 1e6, 2))
                iops[mode].append(round(group["write"]["iops"]))
        finally:
            snapshotter.finish()
        status, peak = server.status(), server.peak_memory()
    median = {mode: statistics.median(values) for mode, values in latency.items()}
    return {
        "what": "p99.9 of 4 KiB writes, 4 disks at QD32, with and without a snapshot a second",
        "p999_ms": latency, "ratio": round(median["with"] / median["without"], 2), "iops": iops,
        "snapshots": snapshotter.taken, "slowest_snapshot_ms": round(snapshotter.slowest * 1e3, 1),
        "errors": status["errors"], "peak_memory_mib": peak >> 20,
        "holds": median["with"] <= 3 * median["without"] and peak < GIB
        and not any(status["errors"].values()) and snapshotter.taken >= rounds * seconds * 0.7,
    }


# A boot storm


def made_up_boot():
    """What a boot looks like when none was recorded: programs read in short runs all over a part
    of the image, some again, and logs, state and a journal written towards the end."""
    rng = random.Random(17)
    operations, at = [], 0
    for step in range(200):
        at += rng.randrange(20, 60)
        offset = rng.randrange(1536 * MIB // BLOCK) * BLOCK
        for _ in range(rng.choice((1, 2, 4, 8, 24))):
            length = rng.choice((4, 16, 64, 128, 128)) * KIB
            operations.append({"op": "r", "offset": offset, "length": length, "at_ms": at})
            offset += length
        if rng.random() < 0.05:
            operations.append(dict(rng.choice(operations), at_ms=at))
        if step > 100 and rng.random() < 0.5:
            offset = (1600 + rng.randrange(64)) * MIB + rng.randrange(256) * BLOCK
            operations.append({"op": "w", "offset": offset, "length": rng.choice((4, 4, 8, 32)) *
                               KIB, "at_ms": at})
    return operations


def recorded_boot():
    """The requests of one boot, in their order, and where they are from."""
    path = pathlib.Path(__file__).with_name("boot.json")
    if path.exists():
        return json.loads(path.read_text()), "recorded"
    return made_up_boot(), "made up: bench/boot.json is not there"


class Boot(Stream):
    """One guest's boot: its requests at their times. Of what it reads, some is checked, where no
    boot writes nearby."""

    def __init__(self, server, name, boot, start, image):
        data = noise(4 * MIB, 23)
        super().__init__(server, name, [
            (operation["op"], operation["offset"],
             data[:operation["length"]] if operation["op"] == "w" else operation["length"],
             start + operation["at_ms"] / 1000)
            for operation in boot if operation["op"] in "rw"], depth=32)
        self.written = {operation["offset"] // MIB for operation in boot
                        if operation["op"] == "w"}
        self.image = image
        self.read = 0

    def was_read(self, offset, buffer):
        self.read += 1
        if self.read % 16 != 0 or offset // MIB in self.written:
            return
        place = offset % MIB
        found = buffer.to_bytearray()[:BLOCK]
        wanted = self.image[place:place + len(found)]
        if found[:len(wanted)] != wanted:
            self.failure = f"what the boot read at {offset} is wrong"


def storm(server, boot, names, over, image):
    """Boots all of them, started evenly over `over` seconds; bytes that the daemon read from its
    devices, and the seconds that it took."""
    server.settle()
    server.kill()
    server.serve()
    loads.drop_caches()

    def read():
        text = pathlib.Path(f"/proc/{server.processes[0].pid}/io").read_text()
        return int(re.search(r"^read_bytes: (\d+)", text, re.MULTILINE)[1])

    before, began = read(), time.monotonic()
    drive([Boot(server, name, boot, began + over * number / len(names), image)
           for number, name in enumerate(names)], at_once=len(names))
    return read() - before, time.monotonic() - began


def boot_storm(directory, quick):
    """50 clones boot within seconds: the image is read from disk once, not 50 times."""
    guests, over = (20, 2) if quick else (50, 5)
    boot, source = recorded_boot()
    end = max(operation["offset"] + operation["length"] for operation in boot)
    size = -(-end // MIB) * MIB
    with pool(directory, log="2G", arguments=["--cache", "256M"]) as server:
        fill(server, "golden", size, seed=1)
        image = noise(MIB, 1)
        server.cli("snapshot", "create", "golden@v1")
        server.cli("clone", "golden@v1", "vm", "--count", str(guests + 1))
        names = [f"vm-{number}" for number in range(2, guests + 2)]
        single, single_seconds = storm(server, boot, ["vm-1"], 0, image)
        together, seconds = storm(server, boot, names, over, image)
        peak = server.peak_memory()
    read = sum(operation["length"] for operation in boot if operation["op"] == "r")
    return {
        "what": "bytes read from the pool's devices, the log's included, by all boots and by one",
        "boot": source, "requests": len(boot), "guests": guests, "boot_reads_mib": read >> 20,
        "one_mib": round(single / MIB, 1), "all_mib": round(together / MIB, 1),
        "ratio": round(together / single, 2), "one_seconds": round(single_seconds, 1),
        "all_seconds": round(seconds, 1), "peak_memory_mib": peak >> 20,
        "holds": together <= 1.3 * single and peak < GIB,
    }


ALL = {"branch-speed": branch_speed, "snapshot-each-second": snapshot_each_second,
       "boot-storm": boot_storm}
