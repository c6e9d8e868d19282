"""The servers under measurement: Sluice, and qemu-nbd with each of its formats.

Each serves the same number of thin disks on UNIX sockets from files in one directory, with direct
I/O. While one is measured the others are stopped with SIGSTOP, so that no background work of
theirs falls into its time; each pays for its own later, in its own time.
"""

import os
import pathlib
import shutil
import signal
import subprocess
import time

from sluicetest import tools
from sluicetest.api import API

ROOT = pathlib.Path(__file__).resolve().parent.parent
SLUICE = ROOT / ".build/release/sluice"
TICK = os.sysconf("SC_CLK_TCK")


class Server:
    """Common: processes, their processor time and memory."""

    name = ""

    def __init__(self, directory, disks, disk_size):
        self.directory = pathlib.Path(directory) / self.name
        self.directory.mkdir(parents=True)
        self.disks = disks
        self.disk_size = disk_size
        self.processes = []
        self.start()

    def start(self):
        raise NotImplementedError

    def uri(self, disk):
        raise NotImplementedError

    def settle(self):
        """Ends background work, before reads are measured."""

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

    def peak_memory(self):
        """Bytes, of all its processes together."""
        total = 0
        for process in self.processes:
            for line in pathlib.Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    total += int(line.split()[1]) << 10
        return total

    def stop(self):
        self.thaw()
        for process in self.processes:
            tools.finish(process, timeout=60)
        self.processes = []

    def remove(self):
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)


class Sluice(Server):
    name = "sluice"

    def __init__(self, directory, disks, disk_size, log="10G", arguments=()):
        self.log = log
        self.arguments = list(arguments)
        super().__init__(directory, disks, disk_size)

    @property
    def socket(self):
        return self.directory / "nbd.sock"

    def start(self):
        self.cli("pool", "create", self.directory, "--log",
                 f"{self.directory}/vlog.img:{self.log}", "--space",
                 f"{self.directory}/vspace0.img:1T", pool=False)
        self.serve()
        for disk in range(self.disks):
            self.cli("disk", "create", f"disk{disk}", "--size", str(self.disk_size))

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
        self.processes[0].kill()
        self.processes[0].wait()
        self.processes = []

    def cli(self, *arguments, pool=True, timeout=600):
        words = [SLUICE, *arguments] + (["--pool", self.directory] if pool else [])
        return tools.run(words, timeout=timeout).stdout

    def status(self):
        return tools.run_json([SLUICE, "status", "--json", "--pool", self.directory])

    def hold_destage(self):
        """Nothing leaves the log before the next flush or restart."""
        api = API(self.directory / "api.sock")
        api.call("PUT", "/v1/destage", {"held": True})
        api.close()

    def uri(self, disk):
        return f"nbd+unix:///disk{disk}?socket={self.socket}"

    def settle(self):
        self.cli("flush", timeout=3600)


class QemuNBD(Server):
    """One qemu-nbd a disk."""

    def image(self, disk):
        return self.directory / f"disk{disk}.img"

    def socket(self, disk):
        return self.directory / f"disk{disk}.sock"

    def create(self, disk):
        raise NotImplementedError

    def options(self, disk):
        raise NotImplementedError

    def start(self):
        for disk in range(self.disks):
            self.create(disk)
            with open(self.directory / "server.log", "a") as log:
                self.processes.append(tools.spawn(
                    ["qemu-nbd", "-t", "-k", self.socket(disk), "-e", "16", "--cache=none",
                     *self.options(disk)],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log))
        for disk in range(self.disks):
            tools.wait_until(self.socket(disk).exists, 20, f"{self.name} does not listen")

    def uri(self, disk):
        return f"nbd+unix:///?socket={self.socket(disk)}"


class Raw(QemuNBD):
    name = "raw"
    aio = "io_uring"

    def create(self, disk):
        with open(self.image(disk), "wb") as file:
            file.truncate(self.disk_size)

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


ALL = {server.name: server for server in (Sluice, Raw, RawNative, Qcow2)}
