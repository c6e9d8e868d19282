"""What a run cost: processor time of the whole machine less the client's, the server's own, and
the bytes and requests that reached devices.

The machine's time is everything that both the server and the kernel on its behalf did (interrupts,
writeback, worker threads), whoever it is accounted to; the client's is fio's and the benchmark's
own. Anything else that runs meanwhile falsifies it: `own_us`, the server's processes alone, shows
by how much at most.
"""

import os
import pathlib
import resource

TICK = os.sysconf("SC_CLK_TCK")
SECTOR = 512


def machine_seconds():
    """Processor seconds of all cores that were not idle, and those of them that the hypervisor
    stole: these are in every process's time as well, the client's included."""
    fields = [int(word) for word in
              pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    user, nice, system, _, _, irq, softirq, steal = fields[:8]
    return (user + nice + system + irq + softirq + steal) / TICK, steal / TICK


def client_seconds():
    """Processor seconds of this program and of the children that it has waited for: fio's runs.
    Servers are waited for only when they end."""
    total = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        usage = resource.getrusage(who)
        total += usage.ru_utime + usage.ru_stime
    return total


def device_of(path):
    """The statistics of the block device under a file, or None when it has none."""
    number = os.stat(path).st_dev
    stat = pathlib.Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/stat")
    return stat if stat.exists() else None


class Meter:
    """Counts from its creation on; `each` says what one of so many operations took."""

    def __init__(self, server):
        self.server = server
        self.device = device_of(server.directory)
        self.before = self.read()

    def read(self):
        read, written = self.server.device_bytes()
        machine, stolen = machine_seconds()
        now = {"machine": machine, "stolen": stolen, "client": client_seconds(),
               "own": self.server.processor_seconds(), "read": read, "written": written}
        if self.device is not None:
            fields = [int(word) for word in self.device.read_text().split()]
            now["device_ios"] = fields[0] + fields[4]
            now["device_bytes"] = (fields[2] + fields[6]) * SECTOR
            now["device_written"] = fields[6] * SECTOR
        return now

    def since(self):
        now = self.read()
        return {key: now[key] - self.before[key] for key in now}

    def each(self, operations, client_bytes):
        """Microseconds and device requests of one operation; bytes to devices for each byte."""
        spent = self.since()
        count, size = max(operations, 1), max(client_bytes, 1)
        cost = {
            "cpu_us": round((spent["machine"] - spent["client"]) / count * 1e6, 2),
            "own_us": round(spent["own"] / count * 1e6, 2),
            "stolen_percent": round(100 * spent["stolen"] / max(spent["machine"], 0.01), 1),
            "client_us": round(spent["client"] / count * 1e6, 2),
            "written_ratio": round(spent["written"] / size, 3),
            "moved_ratio": round((spent["written"] + spent["read"]) / size, 3),
        }
        if "device_ios" in spent:
            cost["device_ios"] = round(spent["device_ios"] / count, 3)
            cost["device_written_ratio"] = round(spent["device_written"] / size, 3)
        return cost
