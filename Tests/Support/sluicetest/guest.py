"""A Debian guest in QEMU (emulated: no KVM needed), with its root disk on an NBD export."""

import pathlib
import subprocess
import sys
import threading
import time

from . import tools
from .runner import ROOT, Failure, expect

IMAGES = ROOT / "var" / "guest"


def prepare():
    """Builds the guest's images when they are not there yet."""
    done = subprocess.run([sys.executable, str(ROOT / "scripts/guest/build.py"), str(IMAGES)])
    expect(done.returncode == 0, "the guest's images can't be built; see above")


class Guest:
    """A running guest. Its lines that start with GUEST are what it says to the test."""

    def __init__(self, context, socket, export, task, reconnect=60, **parameters):
        extra = " ".join(f"{key}={value}" for key, value in parameters.items())
        self.console = []
        self.said = []
        self.process = tools.spawn(
            ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "qemu64",
             "-m", "384", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
             "-serial", "stdio", "-kernel", IMAGES / "vmlinux", "-initrd", IMAGES / "initrd",
             "-append", f"console=ttyS0 quiet loglevel=3 panic=-1 task={task} {extra}",
             "-blockdev", f"driver=nbd,node-name=d,server.type=unix,server.path={socket},"
             f"export={export},reconnect-delay={reconnect},discard=unmap,cache.direct=on",
             "-device", "virtio-blk-pci,drive=d"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", bufsize=1)
        context.stack.callback(self.kill)
        self._changed = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.console.append(line.rstrip())
                at = line.find("GUEST ")
                if at >= 0:
                    self.said.append(line[at + 6:].strip())
                self._changed.notify_all()

    def kill(self):
        """The guest's own power cut."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def tail(self):
        return "the guest's console ends with:\n" + "\n".join(self.console[-25:])

    def trouble(self):
        return [line for line in self.said if line.startswith(("trouble", "error"))]

    def wait_for(self, condition, timeout, what):
        """Waits until `condition(lines said)` holds; trouble in the guest ends the wait."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition(self.said):
                expect(not self.trouble(), f"the guest saw trouble: {self.trouble()}; {self.tail()}")
                expect(self.process.poll() is None, f"QEMU ended early; {self.tail()}")
                if time.monotonic() > deadline:
                    raise Failure(f"waited {timeout} s for {what}; {self.tail()}")
                self._changed.wait(0.2)

    def wait_said(self, line, timeout=300):
        self.wait_for(lambda said: line in said, timeout, f"“{line}”")

    def go_on(self):
        """Answers a guest that waits for the host."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def finish(self, timeout=300):
        """Waits for its end by itself, without trouble."""
        self.wait_for(lambda said: "done" in said, timeout, "the guest's end")
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            raise Failure(f"the guest does not power off; {self.tail()}") from None
        expect(not self.trouble(), f"the guest saw trouble: {self.trouble()}; {self.tail()}")

    def synced(self):
        """The files that it said are synced: number to SHA-256."""
        with self._changed:
            return {int(line.split()[1]): line.split()[2]
                    for line in self.said if line.startswith("synced ") and len(line) > 70}


def check_file_system(image, repair=False):
    """Runs e2fsck on an image; with `repair` it replays the journal, and nothing else."""
    done = tools.run(["e2fsck", "-fn", image], status=None) if not repair else tools.run(
        ["e2fsck", "-E", "journal_only", "-p", image], status=None)
    expect(done.returncode in ((0, 1) if repair else (0,)),
           f"e2fsck ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")


def dump_directory(image, name, target):
    """Copies a directory out of an ext4 image, without mounting it."""
    pathlib.Path(target).mkdir()
    tools.run(["debugfs", "-R", f"rdump {name} {target}", image])
