"""Runs rows: all sides of a row one after the other, in an order that alternates from round to
round, each on data in the same state, while every other server is stopped."""

import statistics
import threading
import time

import loads
import servers
from meter import Meter

# From which fill of the log on a run counts as sustained: writers are paced from there.
HIGH_MARK = 0.6
# Fill may differ by so much of the log between the ends of a window.
TOLERANCE = 0.05
# Seconds without a write from which Sluice destages, whatever its log's fill, and a little more.
IDLE = 2.3

# What makes the devices of each class, for servers in a directory.
DEVICES = {"local": lambda directory: servers.LOCAL}


class Stage:
    """The servers of one class of devices, with the data that the rows expect; all stopped."""

    def __init__(self, directory, rows, names, sizes, devices=servers.LOCAL):
        self.sizes, self.directory = devices.sizes or sizes, directory
        self.devices = devices
        self.running = {}
        self.serial = 0
        sides = [side for row in rows for side in row.sides.values() if side.server in names]
        try:
            for name in dict.fromkeys(side.server for side in sides):
                self.begin(name, [side for side in sides if side.server == name])
        except BaseException:
            self.close()
            raise

    def begin(self, name, sides):
        """Starts one server, writes its regions in full, and stops it."""
        count = 1 + max(max(side.disks) for side in sides)
        kind = servers.ALL[name]
        more = {}
        if issubclass(kind, servers.Sluice):
            more["log"] = self.sizes.small_log if name == "sluice-small-log" else self.sizes.log
        disks = 0 if name == "overlay" else count
        server = kind(self.directory, disks, 16 * loads.GIB, self.devices, **more)
        self.running[name] = server
        if any(side.fresh == "clone" for side in sides):
            server.make_golden(self.sizes.single)
        if server.stores and disks > 0:
            loads.write_all([server.uri(0)], self.sizes.single)
            if count > 1:
                loads.write_all([server.uri(disk) for disk in range(1, count)], self.sizes.blender)
        server.settle()
        server.freeze()

    def measure(self, row, side):
        """One run of one side; its figures."""
        server = self.running[side.server]
        server.thaw()
        self.devices.emulate(True)
        try:
            return KINDS[row.kind](self, server, row, side)
        finally:
            self.devices.emulate(False)
            server.freeze()

    def jobs(self, server, side):
        """(names of disks to drop afterwards, fio's jobs)."""
        if not side.fresh:
            return [], [(f"disk{disk}", server.uri(disk), side.work) for disk in side.disks]
        self.serial += 1
        names = [f"fresh{self.serial}-{disk}" for disk in side.disks]
        return names, [(name, server.fresh(side.fresh, name), side.work) for name in names]

    def peaks(self):
        """Peak memory of each server that was measured, in bytes."""
        return {name: server.peak_memory() for name, server in self.running.items()}

    def close(self):
        for server in self.running.values():
            server.remove()
        self.running = {}


def finish(row, report, cost):
    done = {**report, **cost}
    done["value"] = done[row.unit]
    return done


def burst(stage, server, row, side):
    """From nothing under way until everything is at home: a burst, and all that it cost."""
    server.settle()
    fresh, jobs = stage.jobs(server, side)
    server.settle()
    meter = Meter(server)
    report = loads.figures(loads.fio(jobs, 600))
    fill = server.log_fill() if isinstance(server, servers.Sluice) else None
    began = time.monotonic()
    server.settle()
    report["settle_seconds"] = round(time.monotonic() - began, 2)
    done = finish(row, report, meter.each(report["operations"], report["bytes"]))
    if fill is not None:
        done["log_fill"] = round(fill, 3)
    for name in fresh:
        server.drop(name)
    return done


def cold(stage, server, row, side):
    server.cold()
    _, jobs = stage.jobs(server, side)
    meter = Meter(server)
    report = loads.figures(loads.fio(jobs, 600))
    return finish(row, report, meter.each(report["operations"], report["bytes"]))


def cached(stage, server, row, side):
    server.settle()
    _, jobs = stage.jobs(server, side)
    for _ in range(2):
        loads.fio([(name, target, ["--rw=read", "--bs=64k", "--iodepth=4",
                                   f"--size={stage.sizes.cached}"])
                   for name, target, _ in jobs], 600)
    meter = Meter(server)
    report = loads.figures(loads.fio(jobs, 600))
    return finish(row, report, meter.each(report["operations"], report["bytes"]))


def window(stage, server, row, side):
    """The longest part of a run from the high mark on that begins and ends at the same fill."""
    server.settle()
    _, jobs = stage.jobs(server, side)
    watch = None
    if isinstance(server, servers.Sluice):
        fill_log(server, side)
        watch = FillWatch(server)
        watch.start()
    meter = Meter(server)
    try:
        report, series = loads.timeline(jobs, stage.sizes.window, 500, timeout=600)
    finally:
        if watch is not None:
            watch.finish()
    cost = meter.each(report["operations"], report["bytes"])
    begin, end, note = 0, stage.sizes.window, {}
    if watch is not None:
        begin, end, note = watch.longest(stage.sizes.window)
        note["fills"] = watch.samples
    inside = [iops for second, iops in series if begin <= second <= end]
    report["iops"] = round(statistics.mean(inside), 1) if inside else 0
    report["series"] = series
    server.settle()
    # What is left behind at the end differs from what was found: no costs of whole operations.
    kept = {key: cost[key] for key in ("own_us", "foreign_percent", "stolen_percent")}
    return finish(row, report, {**kept, **note})


def fill_log(server, side):
    """Fills the log to its high mark with the run's own kind of writes, destaging held; then lets
    destaging go on, and waits until it has begun."""
    server.hold_destage()
    total = server.status()["log"]["size"]
    work = [word for word in side.work
            if not word.startswith(("--fsync", "--iodepth", "--time_based", "--runtime"))]
    while (fill := server.log_fill()) < HIGH_MARK:
        # In steps: gaps behind frames may take more of the log than the writes do.
        share = min(HIGH_MARK + 0.02 - fill, 0.1) * total / 1.03 / len(side.disks)
        loads.fio([(f"disk{disk}", server.uri(disk),
                    [*work, f"--iodepth={32 // len(side.disks)}", "--norandommap",
                     f"--io_size={max(int(share) >> 12, 16) << 12}"])
                   for disk in side.disks], 600)
    server.hold_destage(False)


class FillWatch(threading.Thread):
    """Looks at the log's fill four times a second."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server = server
        self.samples = []
        self.stopping = threading.Event()
        self.began = time.monotonic()

    def run(self):
        while not self.stopping.wait(0.25):
            fill = self.server.log_fill()
            self.samples.append((round(time.monotonic() - self.began, 2), round(fill, 3)))

    def finish(self):
        self.stopping.set()
        self.join(30)

    def longest(self, length):
        """(begin, end, what is to be known) of the longest window of constant fill."""
        inside = [sample for sample in self.samples if 1 <= sample[0] <= length]
        pairs = ((second[0] - first[0], first, second)
                 for first in inside for second in inside
                 if second[0] > first[0] and abs(second[1] - first[1]) <= TOLERANCE)
        best = max(pairs, default=None)
        if best is None:
            return 0, length, {"constant": False, "window_seconds": 0}
        seconds, first, second = best
        fills = [fill for at, fill in inside if first[0] <= at <= second[0]]
        return first[0], second[0], {
            "constant": seconds >= length / 2, "window_seconds": round(seconds, 1),
            "fill_begin": first[1], "fill_end": second[1], "fill_low": min(fills),
            "fill_high": max(fills), "within_tolerance": max(fills) - min(fills) <= 2 * TOLERANCE}


def unsettled(stage, server, row, side):
    """A run while what a burst has left in the log still goes home: on a disk that was filled just
    before, overwritten at random, and then left alone until idle destaging has begun."""
    server.settle()
    fresh, jobs = stage.jobs(server, side)
    (name, target, _), = jobs
    loads.write_all([target], stage.sizes.single)
    loads.fio([(name, target, ["--rw=randwrite", "--bs=4k", "--iodepth=32",
                               f"--size={stage.sizes.single}", "--time_based",
                               f"--runtime={stage.sizes.seconds}"])], 600)
    time.sleep(IDLE)
    is_ours = isinstance(server, servers.Sluice)
    left = server.status()["destage"]["backlog_bytes"] if is_ours else None
    if left == 0:
        raise RuntimeError("all is at home before the run begins: nothing is unsettled")
    meter = Meter(server)
    report = loads.figures(loads.fio(jobs, 600))
    cost = meter.each(report["operations"], report["bytes"])
    if is_ours:
        report["backlog"] = [left, server.status()["destage"]["backlog_bytes"]]
    server.settle()
    for each in fresh:
        server.drop(each)
    # What goes home meanwhile is not these operations' cost.
    return finish(row, report, {key: cost[key] for key in ("foreign_percent", "stolen_percent")})


def amplification(stage, server, row, side):
    """Everything that one pass of random writes brings to the devices."""
    server.settle()
    _, jobs = stage.jobs(server, side)
    loads.write_all([target for _, target, _ in jobs], stage.sizes.amplified)
    server.settle()
    meter = Meter(server)
    report = loads.figures(loads.fio(jobs, 3000))
    began = time.monotonic()
    server.settle()
    report["settle_seconds"] = round(time.monotonic() - began, 2)
    return finish(row, {}, {**report, **meter.each(report["operations"], report["bytes"])})


KINDS = {"burst": burst, "cold": cold, "cached": cached, "window": window,
         "unsettled": unsettled, "amplification": amplification}


def medians(series):
    """The median of each figure over the rounds; the largest number there is more of than one."""
    keys = [key for key, value in series[0].items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)]
    return {key: statistics.median(figures[key] for figures in series if key in figures)
            for key in keys}
