"""A pool and its daemon under test: start, kill, stop, and what must hold when a test ends."""

import os
import pathlib
import signal
import subprocess
import threading
import time

from . import tools
from .runner import Failure, expect

GIB = 1 << 30
# Promise: all of a daemon's memory, whatever it served.
MEMORY_LIMIT = GIB


class Pool:
    """A pool in a directory of its own, and the daemon that serves it."""

    def __init__(self, context, name="pool", log="256M", space="64G", create=True, arguments=()):
        self.context = context
        self.binary = context.options.binary
        self.directory = pathlib.Path(context.directory) / name
        self.socket = self.directory / "nbd.sock"
        self.arguments = list(arguments)
        self.process = None
        self.output = []
        self.peak_memory = 0
        # Set by tests that damage the pool on purpose.
        self.check_at_end = True
        if create:
            command = ["pool", "create", self.directory]
            if log is not None:
                command += ["--log", f"{self.directory}/vlog.img:{log}"]
            if space is not None:
                command += ["--space", f"{self.directory}/vspace0.img:{space}"]
            self.cli(*command, pool=False)
        context.stack.callback(self._destroy)
        context.closing_checks.append(self.verify)

    # The daemon

    def start(self, *arguments, timeout=60):
        """Serves the pool; returns the seconds until it was ready."""
        began = time.monotonic()
        process = self.launch(*arguments)
        deadline = began + timeout
        while "ready" not in self.output:
            if process.poll() is not None:
                self._reader.join(5)
                raise Failure(
                    f"serve ended with {process.returncode} before it was ready:\n" + self.said())
            if time.monotonic() > deadline:
                raise Failure(f"serve was not ready after {timeout} s:\n" + self.said())
            time.sleep(0.005)
        return time.monotonic() - began

    def launch(self, *arguments):
        """Starts `serve` without waiting for it."""
        expect(self.process is None, "the test starts a daemon that runs already")
        self.output = []
        self.process = tools.spawn(
            [self.binary, "serve", "--pool", self.directory, *self.arguments, *arguments],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace")
        self._reader = threading.Thread(
            target=self._read, args=(self.process, self.output), daemon=True)
        self._reader.start()
        return self.process

    @staticmethod
    def _read(process, lines):
        for line in process.stdout:
            lines.append(line.rstrip("\n"))

    def said(self):
        """What the daemon printed since it was started."""
        return "\n".join(self.output[-40:])

    def kill(self):
        """kill -9."""
        self._note_memory()
        self.process.kill()
        self.process.wait()
        self.process = None

    def stop(self, timeout=60):
        """SIGTERM, which must end it cleanly."""
        self.verify_alive()
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Failure(f"not stopped {timeout} s after SIGTERM:\n{self.said()}") from None
        self._reader.join(5)
        expect(status == 0, f"exit status {status} after SIGTERM:\n{self.said()}")

    def restart(self, *arguments):
        self.stop()
        return self.start(*arguments)

    def ended(self, timeout=30):
        """Waits for a daemon that should end by itself; returns its status and what it said."""
        process, self.process = self.process, None
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise Failure(f"it serves, though it should have refused:\n{self.said()}") from None
        self._reader.join(5)
        return status, self.said()

    # Commands

    def cli(self, *arguments, status=0, pool=True, timeout=120):
        """Runs a command of the program; returns what it printed on standard output."""
        return self.command(*arguments, status=status, pool=pool, timeout=timeout).stdout

    def command(self, *arguments, status=0, pool=True, timeout=120):
        words = [self.binary, *arguments]
        if pool:
            at = words.index("--") if "--" in words else len(words)
            words[at:at] = ["--pool", self.directory]
        return tools.run(words, status=status, timeout=timeout)

    def json(self, *arguments):
        words = [self.binary, *arguments, "--json", "--pool", self.directory]
        return tools.run_json(words)

    def create_disk(self, name, size):
        self.cli("disk", "create", name, "--size", str(size))
        return self.uri(name)

    def uri(self, name=""):
        return f"nbd+unix:///{name}?socket={self.socket}"

    def used(self):
        """Bytes of space in use when everything is destaged and freed."""
        self.cli("flush")
        return self.json("status")["space"]["used"]

    # What must hold

    def memory(self):
        """The daemon's peak resident memory in bytes, so far (VmHWM)."""
        for line in pathlib.Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
        return 0

    def _note_memory(self):
        if self.process is not None and self.process.poll() is None:
            self.peak_memory = max(self.peak_memory, self.memory())

    def verify_alive(self):
        expect(self.process is not None, "no daemon was running")
        status = self.process.poll()
        expect(status is None, f"the daemon ended by itself, status {status}:\n{self.said()}")
        self._note_memory()

    def verify(self):
        """At the end of each test: alive, small, no error counted, stops cleanly, checks clean."""
        if self.process is not None:
            self.verify_alive()
            if self.check_at_end:
                errors = self.json("status")["errors"]
                expect(not any(errors.values()), f"the daemon counted errors: {errors}")
            self.stop()
        expect(
            self.peak_memory < MEMORY_LIMIT,
            f"peak memory {self.peak_memory >> 20} MiB, above {MEMORY_LIMIT >> 20} MiB")
        if self.check_at_end and (self.directory / "pool.json").exists():
            self.cli("check", timeout=300)

    def _destroy(self):
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
            self.process = None


def open_files(pid):
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))
