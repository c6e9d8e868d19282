#!/usr/bin/python3
"""Records what a guest asks of its disk while it installs a package, and while its database works.

    bench/record_guest.py [DIRECTORY]          (default: bench)

The tests' Debian guest, emulated, with nbdkit's log filter between QEMU and its disk, as for
record_boot.py. It installs git from Debian's packages with dpkg; then PostgreSQL, which the image
has already, loads pgbench's tables and runs its transactions with four clients. Each becomes a
file of its own, install.trace.gz and database.trace.gz (see traces.py). It takes some minutes and
root, for making the image. What it needs is installed by scripts/install-packages.sh test.
"""

import datetime
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import types

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "Tests/Support"))
sys.path.insert(0, str(ROOT / "scripts/guest"))

import record_boot  # noqa: E402
import traces  # noqa: E402
from sluicetest import guest, tools  # noqa: E402
from sluicetest.runner import Context  # noqa: E402

SCALE, CLIENTS, SECONDS = 5, 4, 30
# What the guest does in place of the tests' task.
TASK = f"""#!/bin/sh
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -F /dev/ttyS0 -echo
export DEBIAN_FRONTEND=noninteractive
sync
echo GUEST installing
dpkg -i /packages/*.deb >/tmp/log 2>&1 || {{ tail -3 /tmp/log; echo GUEST error: dpkg failed; }}
sync
echo GUEST installed
pg_ctlcluster 15 main start || echo GUEST error: the database does not start
su postgres -c 'pgbench -q -i -s {SCALE}' >/tmp/log 2>&1 || echo GUEST error: no tables
su postgres -c 'pgbench -c {CLIENTS} -T {SECONDS}' 2>&1 | sed 's/^/GUEST pgbench /'
sync
echo GUEST worked
echo GUEST done
systemctl --force poweroff
"""
# With image $1 mounted at $2: PostgreSQL in it, the packages of git beside it, not installed.
PREPARE = """set -eu
mount -o loop "$1" "$2"
trap 'umount "$2/proc" || true; umount "$2"' EXIT
cp /etc/resolv.conf "$2/etc/resolv.conf"
mount -t proc proc "$2/proc"
printf '#!/bin/sh\\nexit 101\\n' >"$2/usr/sbin/policy-rc.d"
chmod 755 "$2/usr/sbin/policy-rc.d"
export DEBIAN_FRONTEND=noninteractive
apt="chroot $2 apt-get -q -y --no-install-recommends"
$apt update
$apt install postgresql
$apt clean
$apt install --download-only git
mkdir "$2/packages"
mv "$2"/var/cache/apt/archives/*.deb "$2/packages"
rm "$2/usr/sbin/policy-rc.d"
install -m 755 "$3" "$2/usr/local/sbin/task"
"""


def prepare(directory):
    """The guest's image with what it is to work with."""
    guest.prepare()
    image = directory / "root.raw"
    tools.run(["cp", "--sparse=always", guest.IMAGES / "root.raw", image])
    mount, script, task = (directory / name for name in ("mount", "prepare.sh", "task"))
    mount.mkdir()
    script.write_text(PREPARE)
    task.write_text(TASK)
    tools.run(tools.as_root(["unshare", "-m", "sh", script, image, mount, task]), timeout=600)
    return image


def record(directory, image):
    """Boots and waits for its end; the log's text and the times at which it said what."""
    context = Context(directory, types.SimpleNamespace())
    log, socket, times = context.path("log"), context.path("disk.sock"), {}
    with context.stack:
        recorder = tools.spawn(
            ["nbdkit", "-f", "-U", socket, "-e", "debian", "--filter=log", "file", image,
             f"logfile={log}"], stdin=subprocess.DEVNULL)
        context.stack.callback(tools.finish, recorder)
        tools.wait_until(socket.exists, 20, "nbdkit does not listen")
        running = guest.Guest(context, socket, "debian", "none")
        for word in ("installing", "installed", "worked"):
            running.wait_said(word, timeout=600)
            times[word] = datetime.datetime.now().timestamp()
        print("\n".join(line for line in running.said if line.startswith("pgbench")))
        running.finish()
        return log.read_text(), times


def part(log, begin, end):
    """The requests between two times."""
    lines = [line for line in log.splitlines() if (match := record_boot.REQUEST.match(line)) and
             begin <= datetime.datetime.fromisoformat(match[1]).timestamp() <= end]
    return record_boot.requests("\n".join(lines))


def main():
    target = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "bench"
    parent = ROOT / "bench/tmp"
    parent.mkdir(exist_ok=True)
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    directory = pathlib.Path(tempfile.mkdtemp(prefix="guest", dir=parent))
    try:
        log, times = record(directory, prepare(directory))
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for name, begin, end in (("install", "installing", "installed"),
                             ("database", "installed", "worked")):
        trace = part(log, times[begin], times[end])
        path = target / f"{name}.trace.gz"
        traces.save(trace, path)
        print(f"{path}: {traces.summary(trace)}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
