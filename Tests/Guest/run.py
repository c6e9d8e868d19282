#!/usr/bin/python3
"""A virtual machine runs on a disk: real QEMU, real Debian, real ext4.

    Tests/Guest/run.py [--only TEXT] [--binary PATH]
"""

import hashlib
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "Support"))

from sluicetest import guest, runner, tools  # noqa: E402
from sluicetest.daemon import Pool  # noqa: E402
from sluicetest.guest import Guest  # noqa: E402
from sluicetest.runner import expect, test  # noqa: E402

MIB = 1 << 20
IMAGE = guest.IMAGES / "root.raw"


class Machine:
    """A pool with the guest's image on one of its disks."""

    def __init__(self, context):
        guest.prepare()
        self.context = context
        self.pool = Pool(context)
        self.pool.start()
        self.empty = self.pool.used()
        self.uri = self.pool.create_disk("debian", str(IMAGE.stat().st_size))
        tools.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", IMAGE, self.uri])
        self.began = time.monotonic()

    def boot(self, task, **parameters):
        self.began = time.monotonic()
        return Guest(self.context, self.pool.socket, "debian", task, **parameters)

    def note(self, what):
        self.context.note(f"{what}: {time.monotonic() - self.began:.1f} s")

    def export(self):
        """The disk's content as a file."""
        image = self.context.path("exported.raw")
        tools.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", self.uri, image])
        return image

    def verify_synced(self, image, synced):
        """Every file that the guest had synced is whole in the exported image."""
        copy = self.context.path("copy")
        guest.dump_directory(image, "/churn", copy)
        for number, digest in synced.items():
            path = copy / "churn" / str(number)
            expect(path.exists(), f"the synced file {number} is gone")
            found = hashlib.sha256(path.read_bytes()).hexdigest()
            expect(found == digest, f"the synced file {number} has changed")
        self.context.note(f"{len(synced)} synced files are whole")


@test("a Debian guest boots from a disk, its files are there after the next boot, trim gives back")
def _(context):
    machine = Machine(context)
    pool = machine.pool
    tools.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", IMAGE, machine.uri])
    first = machine.boot("write")
    first.wait_said("before")
    machine.note("booted and written")
    before = pool.used()
    first.go_on()
    first.wait_said("full")
    full = pool.used()
    first.go_on()
    first.wait_said("after")
    after = pool.used()
    first.go_on()
    first.finish()
    machine.note("all of the first boot")
    expect(full - before >= 45 * MIB, f"a file of 48 MB took {full - before} bytes")
    expect(abs(after - before) <= MIB, f"{after - before} bytes more in use after fstrim")

    pool.restart()
    second = machine.boot("verify")
    second.finish()
    machine.note("second boot")
    expect(any(line.startswith("verified ") for line in second.said),
           f"nothing was verified: {second.said}")
    image = machine.export()
    guest.check_file_system(image)
    pool.cli("disk", "delete", "debian")
    left = pool.used() - machine.empty
    expect(abs(left) <= MIB, f"{left} bytes are still in use after the disk was deleted")


@test("a guest sees no error when the daemon is killed or stopped and started, and loses nothing")
def _(context):
    machine = Machine(context)
    count, deaths = 60, 4
    running = machine.boot("churn", count=count)
    for death in range(1, deaths + 1):
        goal = death * count // (deaths + 1)
        running.wait_for(lambda said: len(running.synced()) >= goal, 300, f"{goal} synced files")
        if death % 3:
            machine.pool.kill()
        else:
            # A clean stop closes the connections and answers nothing with an error: a client that
            # waits for the daemon's return sees a pause.
            machine.pool.stop()
        time.sleep(0.1 * death)
        machine.pool.start()
    running.finish()
    machine.note(f"{deaths} ends of the daemon")
    synced = running.synced()
    expect(len(synced) == count, f"{len(synced)} of {count} files were synced")
    image = machine.export()
    guest.check_file_system(image)
    machine.verify_synced(image, synced)


@test("when daemon and guest die at once, every file that the guest had synced is whole")
def _(context):
    machine = Machine(context)
    running = machine.boot("churn", count=10000)
    running.wait_for(lambda said: len(running.synced()) >= 30, 300, "30 synced files")
    machine.pool.kill()
    running.kill()
    machine.note("until the power cut")
    synced = running.synced()
    machine.pool.start()
    image = machine.export()
    guest.check_file_system(image, repair=True)
    guest.check_file_system(image)
    machine.verify_synced(image, synced)


if __name__ == "__main__":
    sys.exit(runner.main(__doc__.splitlines()[0]))
