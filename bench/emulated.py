"""Emulated devices (emulated_disk.c), and servers whose storage lies on two of them.

What is emulated: a rotating disk of 7200 revolutions a minute with its write cache on or off, a
device whose flush takes a millisecond, and one at the end of a network, where each request takes
half a millisecond. Every server gets two of the same: Sluice has its log on one and its space on
the other, peers have their disks' images half on the one and half on the other. An image lies
between its neighbours, from the outer edge on, as a logical volume of its own would: no file
system comes between, which is as good as it gets for a peer.

The devices are quick ("off") until a measurement, so that making pools and images takes no time.
"""

import json
import pathlib
import subprocess
import time

import loads
import meter
import servers
from loads import GIB, MIB
from sluicetest import tools

HERE = pathlib.Path(__file__).resolve().parent
SOURCES = ("emulated_disk.c", "rotating.c")

# Options of emulated_disk for each kind of device.
KINDS = {
    "rotating": ["--kind", "rotating", "--cache", str(64 * MIB)],
    "rotating-uncached": ["--kind", "rotating", "--cache", "0"],
    "flush-1ms": ["--kind", "flush", "--delay-us", "1000"],
    "round-trip-0.5ms": ["--kind", "round-trip", "--delay-us", "500"],
}


def program():
    """The emulator, compiled anew when its sources have changed."""
    target = HERE / "tmp/emulated_disk"
    target.parent.mkdir(exist_ok=True)
    newest = max((HERE / name).stat().st_mtime for name in (*SOURCES, "rotating.h"))
    if not target.exists() or target.stat().st_mtime < newest:
        flags = tools.run(["pkg-config", "--cflags", "--libs", "fuse3"]).stdout.split()
        tools.run(["gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", target,
                   *(HERE / name for name in SOURCES), *flags, "-lm"])
    return target


class Device:
    """One emulated device, mounted as a directory with its parts as files."""

    def __init__(self, place, kind, parts):
        """`parts`: file name -> bytes, from the outer edge on."""
        self.mount = pathlib.Path(place)
        self.mount.mkdir(parents=True)
        self.store = self.mount.with_suffix(".store")
        words = [program(), self.mount, "--store", self.store, "--off", *KINDS[kind]]
        for name, size in parts.items():
            words += ["--file", f"{name}:{size}"]
        self.process = tools.spawn(words, stdin=subprocess.DEVNULL)
        tools.wait_until(lambda: (self.mount / "control").exists() or
                         self.process.poll() is not None, 20, "no emulated device appears")
        if self.process.poll() is not None:
            raise RuntimeError("the emulated device ended at once; may this user mount by FUSE?")

    def path(self, part):
        return self.mount / part

    def switch(self, on):
        # Not made anew when the device is gone.
        with open(self.mount / "control", "r+") as control:
            control.write("on" if on else "off")

    def figures(self):
        return json.loads((self.mount / "control").read_text())

    def remove(self):
        tools.finish(self.process, timeout=30)
        subprocess.run(["umount", "-l", self.mount], capture_output=True)
        self.mount.rmdir()
        self.store.unlink(missing_ok=True)


class OnDevices:
    """Mixed into a server: its two devices, made before it starts and removed after it."""

    kind = "rotating"

    def start(self):
        self.spindles = []
        try:
            for number, parts in enumerate(self.parts()):
                self.spindles.append(Device(self.directory / f"device{number}", self.kind, parts))
            super().start()
        except BaseException:
            self.stop()
            self.remove_devices()
            raise

    def switch(self, on):
        for device in self.spindles:
            device.switch(on)

    def figures(self):
        """The counters of all its devices together."""
        each = [device.figures() for device in self.spindles]
        return {key: sum(one[key] for one in each) for key in each[0] if key != "on"}

    def remove_devices(self):
        while self.spindles:
            self.spindles.pop().remove()

    def remove(self):
        self.switch(False)
        self.stop()
        self.remove_devices()
        super().remove()


class SluiceOn(OnDevices, servers.Sluice):
    def __init__(self, directory, disks, disk_size, log=4 * GIB, space=512 * GIB, arguments=()):
        self.space = space
        super().__init__(directory, disks, disk_size, log=log, arguments=arguments)

    def parts(self):
        return {"log": self.log}, {"space": self.space}

    def create(self):
        self.cli("pool", "create", self.directory, "--log", self.spindles[0].path("log"),
                 "--space", self.spindles[1].path("space"), pool=False)


class Images:
    """A peer's: an image a disk, on one device and the other in turn, with some room for an
    image format's own tables."""

    def parts(self):
        size = self.disk_size + 64 * MIB
        return tuple({f"disk{disk}": size for disk in range(half, self.disks, 2)}
                     for half in (0, 1))

    def image(self, disk):
        return self.spindles[disk % 2].path(f"disk{disk}")


class RawOn(Images, OnDevices, servers.Raw):
    def create(self, disk):
        """The image is the part itself."""


class Qcow2On(Images, OnDevices, servers.Qcow2):
    pass


class NbdkitOn(Images, OnDevices, servers.NbdkitFile):
    def create(self, disk):
        """The image is the part itself."""


PEERS = (RawOn, Qcow2On, NbdkitOn)


def make(server, kind, directory, **arguments):
    """A server of a class on two devices of a kind."""
    return type(server.__name__, (server,), {"kind": kind})(directory, **arguments)


def blender(server, disks, seconds, seed=1, size=4 * GIB, settles=True):
    """4 KiB random write + flush at QD1 on every disk, the devices emulated meanwhile; what is
    left to do behind it is done with quick devices, if it `settles`."""
    work = ["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1", f"--size={size}",
            "--norandommap", "--time_based", f"--runtime={seconds}", f"--randseed={seed}"]
    server.thaw()
    before, cpu = server.figures(), server.processor_seconds()
    (_, stolen), began = meter.idle_seconds(), time.monotonic()
    server.switch(True)
    group = loads.fio([(f"disk{disk}", server.uri(disk), work) for disk in range(disks)], 300)
    after, cpu = server.figures(), server.processor_seconds() - cpu
    stolen = meter.stolen_percent(stolen, began)
    server.switch(False)
    if settles:
        server.settle()
    server.freeze()
    side = group["write"]
    count = max(side["total_ios"], 1)
    return {
        "iops": round(side["iops"], 1), "cpu_us": round(cpu / count * 1e6, 1),
        "stolen_percent": stolen,
        "write_ms": percentiles(side["clat_ns"]), "flush_ms": percentiles(group["sync"]["lat_ns"]),
        "device": {key: round((after[key] - before[key]) / count, 3) for key in before},
    }


def percentiles(latency):
    """Median and 99th percentile in milliseconds."""
    known = latency.get("percentile", {})
    return [round(known.get(percent, 0) / 1e6, 3) for percent in ("50.000000", "99.000000")]


def bare(path, jobs, *work, seconds=4):
    """fio itself on a device's file, by direct I/O; its report's only group. A path with $jobnum
    in it is another file for each job."""
    option = "filename_format" if "$jobnum" in str(path) else "filename"
    done = tools.run(
        ["fio", "--output-format=json", "--group_reporting", "--randrepeat=0", "--direct=1",
         "--ioengine=io_uring", "--norandommap", "--name=bare", f"--{option}={path}",
         f"--numjobs={jobs}", "--time_based", f"--runtime={seconds}", *work], timeout=300)
    return json.loads(done.stdout[done.stdout.index("{"):])["jobs"][0]
