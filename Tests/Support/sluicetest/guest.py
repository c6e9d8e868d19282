"""A Debian guest in QEMU (emulated: no KVM needed), with its root disk on an NBD export."""

import json
import pathlib
import re
import socket
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

    def __init__(self, context, server, export, task, reconnect=60, talks=False, **parameters):
        """Starts it; with `talks`, its agent and QEMU's monitor listen at sockets."""
        self.agent = context.path(f"{export}.agent")
        self.monitor = context.path(f"{export}.monitor")
        listening = [] if not talks else [
            "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=agent,path={self.agent},server=on,wait=off",
            "-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
            "-qmp", f"unix:{self.monitor},server=on,wait=off"]
        extra = " ".join(f"{key}={value}" for key, value in parameters.items())
        self.console = []
        self.said = []
        self.process = tools.spawn(
            ["qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-cpu", "qemu64",
             "-m", "384", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
             "-serial", "stdio", "-kernel", IMAGES / "vmlinux", "-initrd", IMAGES / "initrd",
             "-append", f"console=ttyS0 quiet loglevel=3 panic=-1 task={task} {extra}",
             "-blockdev", f"driver=nbd,node-name=d,server.type=unix,server.path={server},"
             f"export={export},reconnect-delay={reconnect},discard=unmap,cache.direct=on",
             "-device", "virtio-blk-pci,drive=d", *listening],
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


    def order(self, command):
        """Has QEMU's monitor do something: stop, cont."""
        with Talk(self.monitor) as talk:
            talk.read()
            talk.ask("qmp_capabilities")
            talk.ask(command)

    def is_frozen(self):
        """What its agent says of its file systems."""
        with Talk(self.agent) as talk:
            talk.ask("guest-sync", {"id": 7711}, until=7711)
            return talk.ask("guest-fsfreeze-status") != "thawed"


class Talk:
    """One of QEMU's conversations in JSON, a line each: with its monitor or a guest's agent."""

    def __init__(self, path):
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)

    def __enter__(self):
        self.socket.connect(str(self.path))
        self.lines = self.socket.makefile("rb")
        return self

    def __exit__(self, *_):
        self.lines.close()
        self.socket.close()

    def read(self):
        try:
            line = self.lines.readline()
        except TimeoutError:
            raise Failure(f"no answer at {self.path}") from None
        expect(line, f"{self.path} broke off")
        return json.loads(line.lstrip(b"\xff"))

    def ask(self, command, arguments=None, until=None):
        """Returns the reply; with `until`, ignores others before that one."""
        words = {"execute": command} | ({} if arguments is None else {"arguments": arguments})
        self.socket.sendall(json.dumps(words).encode() + b"\n")
        while True:
            reply = self.read()
            if "error" in reply and until is None:
                raise Failure(f"{command}: {reply['error']}")
            if "return" in reply and (until is None or reply["return"] == until):
                return reply["return"]


class DeafAgent:
    """An agent that answers everything but the request to freeze."""

    def __init__(self, context, name):
        self.path = context.path(name)
        self.asked = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        context.stack.callback(self._listener.close)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client, client.makefile("rwb") as lines:
                for line in lines:
                    asked = json.loads(line.lstrip(b"\xff"))
                    self.asked.append(asked["execute"])
                    if asked["execute"] != "guest-fsfreeze-freeze":
                        answer = {"return": asked.get("arguments", {}).get("id", 0)}
                        lines.write(b"\xff" + json.dumps(answer).encode() + b"\n")
                        lines.flush()


def features(image):
    """The features of an ext4 file system, `needs_recovery` among them before a replay."""
    header = tools.run(["dumpe2fs", "-h", image]).stdout
    return re.search(r"^Filesystem features:(.*)$", header, re.M)[1].split()


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
