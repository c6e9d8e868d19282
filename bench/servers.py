"""The servers under measurement: Sluice; qemu-nbd with each of its formats and nbdkit's file
plugin, a process a disk; two that store nothing, for the most that the load generator allows; and
the bare device.

Each serves the same number of thin disks on UNIX sockets from files in one directory; all but
nbdkit's file plugin, which knows only the page cache, do direct I/O. While one is measured the
others are stopped with SIGSTOP, so that no background work of theirs falls into its time.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import loads
from sluicetest import tools
from sluicetest.api import API

ROOT = pathlib.Path(__file__).resolve().parent.parent
SLUICE = ROOT / ".build/release/sluice"
SLUICE_NULL = ROOT / ".build/release/sluice-null"
TICK = os.sysconf("SC_CLK_TCK")
# Seconds until a peer that was started listens: the machine may be taken away for a while.
LISTENS = 120


class LocalDevices:
    """The device class "local": files in the bench's own directory, on this machine's disk.

    Another class of devices (emulated ones, say) is another object with these functions;
    `measure.DEVICES` has what makes each.
    """

    # Of its rows, when they are to be other ones than those of the run (`rows.Sizes`).
    sizes = None

    def emulate(self, on):
        """Devices are as slow as they are to be from now on; not while data is prepared."""

    def path(self, directory, file):
        """Where a server whose directory this is keeps its image or member `file`."""
        return directory / file

    def close(self):
        """Ends the devices, when the last server on them has been removed."""


LOCAL = LocalDevices()


class Server:
    """Common: processes, their processor time and memory, disks of the run and fresh ones."""

    name = ""
    # Whether it has processes that can be stopped, and data of its own.
    stores = True

    def __init__(self, directory, disks, disk_size, devices=LOCAL):
        self.directory = pathlib.Path(directory) / self.name
        self.directory.mkdir(parents=True)
        self.disks = disks
        self.disk_size = disk_size
        self.where = devices
        self.processes = []
        self.peak = 0
        # What `drop` is to remove, by name.
        self.extra = {}
        self.start()

    def start(self):
        raise NotImplementedError

    def uri(self, disk):
        raise NotImplementedError

    def file(self, name):
        return self.where.path(self.directory, name)

    def settle(self):
        """Ends background work: all that was written is on the device and at its home."""

    def cold(self):
        """Nothing of what was written is in anybody's memory."""
        self.settle()
        loads.drop_caches()

    def fresh(self, kind, name):
        """One more disk, empty ("disk") or with a golden image's content ("clone"); its target."""
        raise NotImplementedError

    def drop(self, name):
        """Removes a fresh disk."""

    def signal(self, number):
        for process in self.processes:
            process.send_signal(number)

    def freeze(self):
        self.signal(signal.SIGSTOP)

    def thaw(self):
        self.signal(signal.SIGCONT)

    def processor_seconds(self):
        total = 0
        for process in self.processes:
            fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
            total += int(fields[11]) + int(fields[12])
        return total / TICK

    def device_bytes(self):
        """Bytes that its processes had read from and written to devices."""
        read = written = 0
        for process in self.processes:
            io = dict(line.split(": ") for line in
                      pathlib.Path(f"/proc/{process.pid}/io").read_text().splitlines())
            read += int(io["read_bytes"])
            written += int(io["write_bytes"])
        return read, written

    def peak_memory(self):
        """Bytes, of all its processes together, restarts included."""
        total = 0
        for process in self.processes:
            try:
                lines = pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except FileNotFoundError:
                # It has ended, of which whoever waits for it tells more than this would.
                continue
            total += sum(int(line.split()[1]) << 10 for line in lines
                         if line.startswith("VmHWM:"))
        self.peak = max(self.peak, total)
        return self.peak

    def stop(self):
        self.thaw()
        self.peak_memory()
        for process in self.processes:
            tools.finish(process, timeout=60)
        self.processes = []

    def remove(self):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class Sluice(Server):
    name = "sluice"
    volume_count, volume_size = 1, "1T"

    def __init__(self, directory, disks, disk_size, devices=LOCAL, log="10G", arguments=()):
        self.log = log
        self.arguments = list(arguments)
        super().__init__(directory, disks, disk_size, devices)

    @property
    def socket(self):
        return self.directory / "nbd.sock"

    def start(self):
        self.create()
        self.serve()
        api = API(self.directory / "api.sock")
        for disk in range(self.disks):
            api.call("POST", "/v1/disks", {"name": f"disk{disk}", "size": self.disk_size})
        api.close()

    def volumes(self):
        """The files that hold the volumes."""
        return [self.file(f"vspace{number}.img") for number in range(self.volume_count)]

    def spaces(self):
        """The volumes as `pool create` wants them."""
        return [f"{path}:{self.volume_size}" for path in self.volumes()]

    def create(self):
        words = ["pool", "create", self.directory, "--log", f"{self.file('vlog.img')}:{self.log}"]
        for space in self.spaces():
            words += ["--space", space]
        began = time.monotonic()
        self.cli(*words, pool=False)
        self.creating = time.monotonic() - began

    def serve(self, timeout=60):
        """Starts the daemon; returns the seconds until it is ready."""
        began = time.monotonic()
        with open(self.directory / "serve.log", "a") as log:
            process = tools.spawn(
                [SLUICE, "serve", "--pool", self.directory, *self.arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True)
        self.processes = [process]
        for line in process.stdout:
            if line.strip() == "ready":
                return time.monotonic() - began
            if time.monotonic() - began > timeout:
                break
        raise RuntimeError(
            f"sluice serve did not become ready; see {self.directory / 'serve.log'}")

    def kill(self):
        self.peak_memory()
        self.processes[0].kill()
        self.processes[0].wait()
        self.processes = []

    def cli(self, *arguments, pool=True, timeout=600):
        words = [SLUICE, *arguments] + (["--pool", self.directory] if pool else [])
        return tools.run(words, timeout=timeout).stdout

    def call(self, *words):
        """One request of the API."""
        api = API(self.directory / "api.sock", timeout=3600)
        try:
            return api.call(*words)
        finally:
            api.close()

    def status(self):
        return self.call("GET", "/v1/status")

    def hold_destage(self, held=True):
        """Nothing leaves the log before it is let go, the next flush or restart."""
        self.call("PUT", "/v1/destage", {"held": held})

    def log_fill(self):
        log = self.status()["log"]
        return log["used"] / log["size"]

    def uri(self, disk):
        return self.named(f"disk{disk}")

    def named(self, name):
        return f"nbd+unix:///{name}?socket={self.socket}"

    def settle(self):
        self.call("POST", "/v1/flush")

    def cold(self):
        """A new daemon has nothing in its cache."""
        self.settle()
        self.stop()
        loads.drop_caches()
        self.serve()

    def fresh(self, kind, name):
        if kind == "disk":
            self.cli("disk", "create", name, "--size", str(self.disk_size))
        else:
            self.cli("clone", "golden@v1", name)
        self.extra[name] = None
        return self.named(name)

    def make_golden(self, size):
        """The image that clones are of."""
        self.cli("disk", "create", "golden", "--size", str(self.disk_size))
        loads.write_all([self.named("golden")], size)
        self.settle()
        self.cli("snapshot", "create", "golden@v1")

    def drop(self, name):
        del self.extra[name]
        self.cli("disk", "delete", name)
        self.settle()


class SluiceSmallLog(Sluice):
    """Sluice with a log that fills within seconds: what it sustains, not what it takes in."""

    name = "sluice-small-log"

    def __init__(self, directory, disks, disk_size, devices=LOCAL, log="1G", arguments=()):
        super().__init__(directory, disks, disk_size, devices, log, arguments)


class SluicePetabyte(Sluice):
    """On a pool of 1 PiB: 65 sparse files, as large as ext4 lets them be."""

    name = "sluice-petabyte"

    volume_count, volume_size = 65, f"{(16 << 10) - 1}G"

    def serve(self, timeout=600):
        self.opening = super().serve(timeout)
        return self.opening


class OnLoops:
    """Its volumes are block devices over sparse files; only root can have that."""

    loops = ()

    @staticmethod
    def are_possible():
        return os.geteuid() == 0 and os.path.exists("/dev/loop-control")

    def spaces(self):
        self.loops = []
        for space in super().spaces():
            path, size = space.rsplit(":", 1)
            tools.run(["truncate", "--size", size, path])
            self.loops.append(tools.run(
                ["losetup", "--find", "--show", "--direct-io=on", path]).stdout.strip())
        return self.loops

    def remove(self):
        self.stop()
        if self.loops:
            tools.run(["losetup", "--detach", *self.loops])
        super().remove()


class SluiceOnLoops(OnLoops, Sluice):
    name = "sluice-loops"


class PetabyteOnLoops(OnLoops, SluicePetabyte):
    name = "sluice-petabyte-loops"


class ProcessADisk(Server):
    """One process a disk."""

    def image(self, disk):
        return self.file(f"disk{disk}.img")

    def socket(self, disk):
        return self.directory / f"disk{disk}.sock"

    def create(self, disk):
        with open(self.image(disk), "wb") as file:
            file.truncate(self.disk_size)

    def command(self, disk):
        raise NotImplementedError

    def start(self):
        for disk in range(self.disks):
            self.create(disk)
            self.spawn(disk)
        for disk in range(self.disks):
            self.wait(disk)

    def spawn(self, disk):
        with open(self.directory / "server.log", "a") as log:
            process = tools.spawn(self.command(disk), stdin=subprocess.DEVNULL, stdout=log,
                                  stderr=log)
        self.processes.append(process)
        return process

    def wait(self, disk):
        tools.wait_until(self.socket(disk).exists, LISTENS, f"{self.name} does not listen")

    def uri(self, disk):
        return f"nbd+unix:///?socket={self.socket(disk)}"

    def settle(self):
        for disk in [*range(self.disks), *self.extra]:
            descriptor = os.open(self.image(disk), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)

    def fresh(self, kind, name):
        self.create(name)
        self.extra[name] = self.spawn(name)
        self.wait(name)
        return self.uri(name)

    def drop(self, name):
        process = self.extra.pop(name)
        tools.finish(process)
        self.processes.remove(process)
        self.image(name).unlink()
        self.socket(name).unlink(missing_ok=True)


class QemuNBD(ProcessADisk):
    def options(self, disk):
        raise NotImplementedError

    def command(self, disk):
        return ["qemu-nbd", "-t", "-k", self.socket(disk), "-e", "16", "--cache=none",
                *self.options(disk)]


class Raw(QemuNBD):
    name = "raw"
    aio = "io_uring"

    def options(self, disk):
        return ["-f", "raw", f"--aio={self.aio}", "--discard=unmap", self.image(disk)]


class RawNative(Raw):
    name = "raw-native"
    aio = "native"


class Qcow2(QemuNBD):
    name = "qcow2"

    def create(self, disk):
        tools.run(["qemu-img", "create", "-q", "-f", "qcow2", self.image(disk),
                   str(self.disk_size)])

    def options(self, disk):
        return ["--discard=unmap", "--image-opts",
                "driver=qcow2,lazy-refcounts=off,l2-cache-size=4M,file.driver=file,"
                f"file.filename={self.image(disk)},file.aio=io_uring,file.cache.direct=on"]


class Overlay(Qcow2):
    """qcow2 files over a golden one: what clones are there."""

    name = "overlay"

    def make_golden(self, size):
        super().create("golden")
        self.spawn("golden")
        self.wait("golden")
        loads.write_all([self.uri("golden")], size)
        tools.finish(self.processes.pop())

    def create(self, disk):
        tools.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b",
                   self.image("golden"), self.image(disk)])


class NbdkitFile(ProcessADisk):
    """Through the page cache: what was not flushed is in memory only."""

    name = "nbdkit-file"

    def command(self, disk):
        return ["nbdkit", "-f", "-U", self.socket(disk), "file", self.image(disk)]


class Null(Server):
    """Stores nothing: every name is a disk of 16 GiB, every request is answered at once."""

    stores = False

    @property
    def socket(self):
        return self.directory / "nbd.sock"

    def command(self):
        raise NotImplementedError

    def start(self):
        with open(self.directory / "server.log", "a") as log:
            self.processes.append(tools.spawn(self.command(), stdin=subprocess.DEVNULL, stdout=log,
                                              stderr=log))
        tools.wait_until(self.socket.exists, LISTENS, f"{self.name} does not listen")

    def uri(self, disk):
        return f"nbd+unix:///disk{disk}?socket={self.socket}"


class NbdkitNull(Null):
    name = "nbdkit-null"

    def command(self):
        return ["nbdkit", "-f", "-U", self.socket, "null", "16G"]


class SluiceNull(Null):
    """Sluice's own front end over an engine that stores nothing."""

    name = "sluice-null"

    def command(self):
        return [SLUICE_NULL, "--socket", self.socket]


class Bare(Server):
    """No server: fio writes to files by io_uring and direct I/O."""

    name = "bare"

    def start(self):
        for disk in range(self.disks):
            with open(self.uri(disk), "wb") as file:
                file.truncate(self.disk_size)

    def uri(self, disk):
        return self.file(f"disk{disk}.img")

    def settle(self):
        for disk in range(self.disks):
            descriptor = os.open(self.uri(disk), os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)


ALL = {server.name: server for server in
       (Sluice, SluiceSmallLog, Raw, RawNative, Qcow2, Overlay, NbdkitFile, NbdkitNull, SluiceNull,
        Bare)}


def exist(name):
    """Whether a server's program is there: an older build has no `sluice-null`."""
    return name != "sluice-null" or SLUICE_NULL.exists()
