"""Latency as status and top show it, under a real load."""

import fcntl
import json
import os
import pty
import re
import signal
import struct
import termios
import time

from fio_verify import job
from sluicetest import tools
from sluicetest.api import API
from sluicetest.daemon import Pool
from sluicetest.runner import expect, test

QUANTILES = ("p50_us", "p99_us", "p999_us")


def start_load(pool, disk, seconds):
    """fio on a disk: random writes and reads of 4 KiB, a flush each 8 writes."""
    words = job(disk, pool.uri(disk), "--rw=randrw", "--bs=4k", "--iodepth=4", "--size=32m",
                "--fsync=8", "--time_based", f"--runtime={seconds}")
    process = tools.spawn(["fio", *words, "--output-format=json"],
                          stdout=-1, stderr=-1, text=True)
    pool.context.stack.callback(tools.finish, process)
    return process


def load_report(process):
    """What fio says of its operations, when it has ended."""
    output, errors = process.communicate(timeout=60)
    expect(process.returncode == 0, f"fio ended with {process.returncode}: {errors}")
    return json.loads(output[output.index("{"):])["jobs"][0]


def expect_ordered(times, what):
    values = [times[key] for key in QUANTILES]
    expect(values == sorted(values) and 0 < values[0] and values[-1] <= times["max_us"],
           f"the quantiles of {what} are out of order: {times}")


def near(value, expected, part):
    return abs(value - expected) <= part * expected


@test("status, the API and top agree with fio about its operations and their latency")
def _(context):
    pool = Pool(context)
    pool.start()
    pool.create_disk("busy", "32M")
    pool.create_disk("idle", "32M")
    load = start_load(pool, "busy", 6)
    time.sleep(2)
    text = pool.cli("top", "--once", "--interval", "2")
    rates = json.loads(pool.cli("top", "-n", "1", "--interval", "1", "--json"))
    fio = load_report(load)
    check_text(text)
    check_rates(context, rates, fio)
    check_status(context, pool.json("status"), fio)
    check_disks(API(pool.directory / "api.sock").call("GET", "/v1/latency"), fio)


def check_text(text):
    expect("\x1b" not in text, "top writes escape codes where there is no terminal")
    row = re.search(r"^busy +(\d+) .*%$", text, re.M)
    expect(row and int(row[1]) > 0, f"top does not show the busy disk:\n{text}")
    expect(not re.search(r"^idle ", text, re.M), f"top shows the idle disk:\n{text}")
    expect("SLOWEST" in text and re.search(r"^log \d+% full", text, re.M),
           f"top shows neither the slowest operations nor the log's fill:\n{text}")


def check_rates(context, rates, fio):
    disk = rates["disks"][0]
    expect([entry["name"] for entry in rates["disks"]] == ["busy"], f"disks in top: {rates}")
    for kind in ("read", "write"):
        context.note(f"{kind}: top {disk[kind]['per_second']:.0f}/s, fio {fio[kind]['iops']:.0f}/s")
        expect(near(disk[kind]["per_second"], fio[kind]["iops"], 0.6),
               f"{kind}s a second: {disk[kind]} in top, {fio[kind]['iops']} in fio")
        expect(0 < disk[kind]["p50_us"] <= disk[kind]["p99_us"], f"quantiles in top: {disk}")
        expect(near(disk[kind]["bytes_per_second"], disk[kind]["per_second"] * 4096, 0.01),
               f"bytes and operations do not fit: {disk[kind]}")
    expect(0 <= disk["queue_share"] <= 1, f"share of queues: {disk}")


def check_status(context, status, fio):
    for kind in ("read", "write", "flush"):
        times = status["latency"][kind]
        expect_ordered(times["total"], kind)
        expect(near(times["queue"]["sum_us"] + times["service"]["sum_us"],
                    times["total"]["sum_us"], 0.001), f"queue and service are not all of {times}")
    for kind in ("read", "write"):
        ours = status["latency"][kind]
        theirs = fio[kind]["clat_ns"]["mean"] / 1000
        context.note(f"{kind}: mean {ours['total']['mean_us']:.0f} us, {theirs:.0f} us in fio")
        expect(ours["count"] == fio[kind]["total_ios"], f"{ours['count']} {kind}s are counted")
        expect(ours["total"]["mean_us"] <= theirs, "the engine took longer than its client saw")
    slowest = status["slowest"]
    expect(len(slowest) == 16 and slowest[0]["disk"] == "busy", f"the slowest: {slowest}")
    for slow in slowest:
        sum_of_stages = sum(slow["stages_us"].values())
        expect(abs(sum_of_stages - slow["total_us"]) < 1.5, f"stages are not the total: {slow}")
    totals = [slow["total_us"] for slow in slowest]
    expect(totals == sorted(totals, reverse=True), f"the slowest are not in order: {totals}")


def check_disks(disks, fio):
    expect([disk["name"] for disk in disks] == ["busy"], f"{len(disks)} disks have figures")
    for kind in ("read", "write"):
        found = disks[0][kind]
        expect(found["count"] == fio[kind]["total_ios"], f"{found['count']} {kind}s of the disk")
        expect(found["bytes"] == fio[kind]["io_bytes"], f"{found['bytes']} bytes of {kind}s")
        expect(sum(count for _, count in found["buckets"]) == found["count"],
               "the buckets do not hold all operations")
        expect_ordered(found["total"], f"the disk's {kind}s")


class Terminal:
    """A terminal of 80 by 24 with a command on it."""

    def __init__(self, context, command):
        self.master, self.slave = pty.openpty()
        context.stack.callback(lambda: (os.close(self.master), os.close(self.slave)))
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.set_blocking(self.master, False)
        self.modes = termios.tcgetattr(self.slave)
        self.process = tools.spawn(command, stdin=self.slave, stdout=self.slave,
                                   stderr=self.slave)
        context.stack.callback(tools.finish, self.process)
        self.text = ""

    def read(self):
        try:
            self.text += os.read(self.master, 1 << 16).decode()
        except BlockingIOError:
            pass
        return self.text

    def ended(self, timeout=5):
        """The exit status, once it has ended."""
        tools.wait_until(lambda: self.read() and self.process.poll() is not None, timeout,
                         "top does not end")
        return self.process.returncode


@test("top on a terminal redraws its screen, and gives it back on q, Ctrl-C and an error")
def _(context):
    pool = Pool(context)
    pool.start()
    pool.create_disk("busy", "32M")
    load = start_load(pool, "busy", 4)
    for end in ("q", "Ctrl-C", "error"):
        terminal = Terminal(context, [pool.binary, "top", "--interval", "0.5", "--pool",
                                      pool.directory])
        shown = r"\nbusy +\d" if end != "error" else ", online, "
        tools.wait_until(lambda: len(re.findall(shown, terminal.read())) >= 2, 10,
                         "top does not show the disk twice")
        for screen in terminal.text.split("\x1b[H")[1:-1]:
            rows = re.sub(r"\x1b\[[JK]", "", screen).splitlines()
            expect(len(rows) <= 24 and all(len(row) <= 80 for row in rows),
                   f"the screen is larger than the terminal: {rows}")
        if end == "q":
            os.write(terminal.master, b"q")
        elif end == "Ctrl-C":
            terminal.process.send_signal(signal.SIGINT)
        else:
            load_report(load)
            pool.stop()
        status = terminal.ended()
        expect(status == (1 if end == "error" else 0), f"exit status {status} after {end}")
        expect("\x1b[?1049l" in terminal.text, "the screen is not given back")
        expect(termios.tcgetattr(terminal.slave) == terminal.modes, "the modes are not restored")
