#!/usr/bin/python3
"""Records what a real guest's boot asks of its disk, for the boot storm: bench/boot.json.

    bench/record_boot.py [FILE]

The tests' Debian guest, with all of its services as Debian starts them, boots from a Sluice disk
to its login prompt, emulated, with nbdkit's log filter between QEMU and Sluice. The file is a JSON
list of requests in their order, none merged:

    {"op": "r" | "w" | "f" | "t" | "z", "offset": BYTES, "length": BYTES, "at_ms": SINCE_THE_FIRST}

read, write, flush (offset and length are 0), trim, write zeroes (a boot asks for none so far). The
first request is QEMU's own, before the guest starts. What it needs is installed by
scripts/install-packages.sh test.
"""

import datetime
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "Tests/Support"))
sys.path.insert(0, str(ROOT / "scripts/guest"))

import build  # noqa: E402
from sluicetest import guest, tools  # noqa: E402
from sluicetest.daemon import Pool  # noqa: E402
from sluicetest.runner import Context, expect  # noqa: E402

OPERATIONS = {"Read": "r", "Write": "w", "Flush": "f", "Trim": "t", "Zero": "z"}
# A request's first line in the log: date, connection, what, where. Its end has three dots.
REQUEST = re.compile(r"^(\S+ \S+) \S+ (Read|Write|Flush|Trim|Zero) id=\d+"
                     r"(?: offset=0x([0-9a-f]+) count=0x([0-9a-f]+))?")
# What getty prints before its prompt, which ends no line.
GREETING = "Debian GNU/Linux 12 guest ttyS0"


def whole_image(target):
    """The tests' image as Debian made it: no service masked, no task."""
    guest.prepare()
    tools.run(["cp", "--sparse=always", guest.IMAGES / "root.raw", target])
    units = [f"/etc/systemd/system/{name}" for name in build.MASKED]
    units.append("/etc/systemd/system/multi-user.target.wants/task.service")
    commands = target.with_suffix(".debugfs")
    commands.write_text("".join(f"rm {path}\n" for path in units))
    tools.run(["debugfs", "-w", "-f", commands, target])
    # debugfs does not tell by its exit status.
    left = tools.run(["debugfs", "-R", "ls -p /etc/systemd/system", target]).stdout.split("/")
    expect(not set(left) & set(build.MASKED), "debugfs could not unmask the services")
    guest.check_file_system(target)


def record(directory):
    """Boots; returns the log's text."""
    context = Context(directory, types.SimpleNamespace(binary=str(ROOT / ".build/release/sluice")))
    with context.stack:
        image = context.path("root.raw")
        whole_image(image)
        pool = Pool(context)
        pool.start()
        uri = pool.create_disk("debian", str(image.stat().st_size))
        tools.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri])
        pool.cli("flush")
        log, between = context.path("log"), context.path("between.sock")
        recorder = tools.spawn(
            ["nbdkit", "-f", "-U", between, "--filter=log", "nbd", f"socket={pool.socket}",
             "export=debian", f"logfile={log}"], stdin=subprocess.DEVNULL)
        context.stack.callback(tools.finish, recorder)
        tools.wait_until(between.exists, 20, "nbdkit does not listen")
        running = guest.Guest(context, between, "", "none")
        running.wait_for(lambda _: any(GREETING in line for line in running.console), 300,
                         "the login prompt")
        return log.read_text()


def requests(log):
    """The log's requests, in the order of their coming."""
    found = []
    for line in log.splitlines():
        match = REQUEST.match(line)
        if match:
            at = datetime.datetime.fromisoformat(match[1]).timestamp()
            where = (int(text or "0", 16) for text in match.group(3, 4))
            found.append((at, OPERATIONS[match[2]], *where))
    found.sort(key=lambda one: one[0])
    return [{"op": op, "offset": offset, "length": length,
             "at_ms": round((at - found[0][0]) * 1000)} for at, op, offset, length in found]


def main():
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench/boot.json"
    parent = ROOT / "bench/tmp"
    parent.mkdir(exist_ok=True)
    # Where Debian keeps debugfs and e2fsck, which a user's path lacks.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    directory = tempfile.mkdtemp(prefix="boot", dir=parent)
    try:
        boot = requests(record(directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    # A request a line, so that another recording differs by lines.
    lines = ",\n".join(json.dumps(one, separators=(",", ":")) for one in boot)
    target.write_text(f"[\n{lines}\n]\n")
    for name, op in OPERATIONS.items():
        some = [one for one in boot if one["op"] == op]
        print(f"{name}: {len(some)}, {sum(one['length'] for one in some)} bytes")
    print(f"{boot[-1]['at_ms'] / 1000:.1f} s; written: {target}")


if __name__ == "__main__":
    main()
