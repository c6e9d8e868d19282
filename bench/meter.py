"""What a run cost: processor time of the whole machine less the client's, the server's own, and
the bytes and requests that reached devices.

The machine's time is everything that both the server and the kernel on its behalf did (interrupts,
writeback, worker threads), whoever it is accounted to: what is left when idle time is taken off,
since the kernel counts idle time exactly, but work only by sampling, which misses short bursts.
The client's is fio's and the benchmark's own. What other programs took meanwhile is taken off too,
and kept as `foreign_percent`: where that is more than a little, the figures are worth little.
"""

import os
import pathlib
import resource
import time

TICK = os.sysconf("SC_CLK_TCK")
CORES = os.cpu_count()
SECTOR = 512
# A flag of a process's stat: it is a thread of the kernel.
KERNEL_THREAD = 0x200000


def idle_seconds():
    """Seconds in which cores had nothing to do, or were not there (stolen by the hypervisor)."""
    fields = [int(word) for word in
              pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (fields[3] + fields[4]) / TICK, fields[7] / TICK


def stolen_percent(before, began):
    """Percent of the machine that the hypervisor has taken since the `time.monotonic` of `began`."""
    return round(100 * (idle_seconds()[1] - before) / (CORES * (time.monotonic() - began)), 1)


def client_seconds():
    """Processor seconds of this program and of the children that it has waited for: fio's runs.
    Servers are waited for only when they end."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def other_programs(ours):
    """Processor seconds of all programs but these, their ended children's included."""
    total = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) in ours:
            continue
        try:
            fields = pathlib.Path(entry.path, "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            # It has just ended.
            continue
        if not int(fields[6]) & KERNEL_THREAD:
            total += sum(int(word) for word in fields[11:15])
    return total / TICK


def device_of(path):
    """The statistics of the block device under a file, or None when it has none."""
    number = os.stat(path).st_dev
    stat = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    return stat if stat.exists() else None


def device_figures(stat):
    """What a block device has done so far, by its statistics (iostats.rst of the kernel)."""
    fields = [int(word) for word in stat.read_text().split()]
    return {"device_ios": fields[0] + fields[4],
            "device_bytes": (fields[2] + fields[6]) * SECTOR,
            "device_written": fields[6] * SECTOR}


class Patience:
    """Time for measuring again what the hypervisor disturbed: a whole round of all servers, at most
    `MOST` times, if it took more than `DISTURBED` percent of the machine during one's run. The round
    in which it took least counts."""

    DISTURBED = 8
    MOST = 2

    def __init__(self, seconds):
        self.left = seconds

    def least_disturbed(self, measure):
        """{server: figures} of one round of `measure`."""
        best = measure()
        for _ in range(self.MOST):
            if disturbance(best) <= self.DISTURBED or self.left <= 0:
                break
            began = time.monotonic()
            another = measure()
            self.left -= time.monotonic() - began
            # One that lacks a server, which has failed, is no better.
            if another.keys() == best.keys():
                best = min(best, another, key=disturbance)
        return best


def disturbance(by_server):
    """The largest part of the machine that the hypervisor took in one server's run, in percent."""
    return max((figures.get("stolen_percent", 0) for figures in by_server.values()), default=0)


class Meter:
    """Counts from its creation on; `each` says what one of so many operations took."""

    def __init__(self, server):
        self.server = server
        self.device = device_of(server.directory)
        self.ours = {os.getpid(), *(process.pid for process in server.processes)}
        self.others = other_programs(self.ours)
        self.before = self.read()

    def read(self):
        read, written = self.server.device_bytes()
        idle, stolen = idle_seconds()
        now = {"time": time.monotonic(), "idle": idle, "stolen": stolen,
               "client": client_seconds(), "own": self.server.processor_seconds(),
               "read": read, "written": written}
        if self.device is not None:
            now |= device_figures(self.device)
        return now

    def since(self):
        now = self.read()
        spent = {key: now[key] - self.before[key] for key in now}
        others = other_programs(self.ours)
        # One that has ended is in its parent's time now, with all that it ever took.
        spent["foreign"] = max(others - self.others, 0)
        spent["machine"] = CORES * spent["time"] - spent["idle"] - spent["stolen"]
        return spent

    def each(self, operations, client_bytes):
        """Microseconds and device requests of one operation; bytes to devices for each byte."""
        spent = self.since()
        count, size = max(operations, 1), max(client_bytes, 1)
        server = spent["machine"] - spent["client"] - spent["foreign"]
        cost = {
            "cpu_us": round(server / count * 1e6, 2),
            "own_us": round(spent["own"] / count * 1e6, 2),
            "client_us": round(spent["client"] / count * 1e6, 2),
            "foreign_percent": round(100 * spent["foreign"] / (CORES * spent["time"]), 1),
            "stolen_percent": round(100 * spent["stolen"] / (CORES * spent["time"]), 1),
            "written_ratio": round(spent["written"] / size, 3),
            "moved_ratio": round((spent["written"] + spent["read"]) / size, 3),
        }
        if "device_ios" in spent:
            cost["device_ios"] = round(spent["device_ios"] / count, 3)
            cost["device_written_ratio"] = round(spent["device_written"] / size, 3)
        return cost
