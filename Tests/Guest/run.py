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

    def boot(self, task, disk="debian", **parameters):
        self.began = time.monotonic()
        return Guest(self.context, self.pool.socket, disk, task, **parameters)

    def note(self, what):
        self.context.note(f"{what}: {time.monotonic() - self.began:.1f} s")

    def export(self, name="debian"):
        """The content of a disk or snapshot as a file."""
        image = self.context.path(f"{name}.raw")
        tools.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", self.pool.uri(name), image])
        return image

    def verify_synced(self, image, synced):
        """Every file that the guest had synced is whole in the exported image."""
        copy = self.context.path(f"{image.stem}.copy")
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


@test("a quiesced snapshot of a writing guest has its synced files and no journal to replay")
def _(context):
    machine = Machine(context)
    pool = machine.pool
    running = machine.boot("agent", talks=True, count=10000)
    wait_synced(running, 5)
    # As it comes, for comparison: a journal is replayed when this one is mounted.
    pool.cli("snapshot", "create", "debian@plain")
    wait_synced(running, 5)
    synced = running.synced()
    began = time.monotonic()
    pool.cli("snapshot", "create", "debian@quiet", "--quiesce", running.agent, timeout=30)
    context.note(f"quiesced snapshot: {time.monotonic() - began:.1f} s")
    expect(not running.is_frozen(), "the guest is still frozen")
    wait_synced(running, 5)
    running.go_on()
    running.finish()
    machine.note("boot, snapshots, power-off")

    pool.cli("clone", "debian@quiet", "restored")
    image = machine.export("restored")
    plain, quiet = (guest.features(machine.export(name)) for name in ("debian@plain", "restored"))
    expect("needs_recovery" in plain, "a snapshot as it comes has no journal to replay either")
    expect("needs_recovery" not in quiet, "the quiesced snapshot has a journal to replay")
    guest.check_file_system(image)
    machine.verify_synced(image, synced)

    again = machine.boot("mounted", disk="restored")
    again.finish()
    mount = next(line for line in again.said if line.startswith("mount: "))
    machine.note("the clone's boot")
    expect("mounted filesystem" in mount and "recover" not in mount, f"the clone's {mount}")


@test("without all agents' answers there is no quiesced snapshot, and no guest is left frozen")
def _(context):
    machine = Machine(context)
    running = machine.boot("agent", talks=True, count=10000)
    wait_synced(running, 1)
    deaf = guest.DeafAgent(context, "deaf.agent")

    # The guest stands still; nothing listens; the guest is frozen, and another one can't be.
    running.order("stop")
    refuse(machine, 3, "did not answer within 2 s", running.agent)
    running.order("cont")
    wait_synced(running, 2)
    gone = context.path("gone.agent")
    refuse(machine, 1, "can't be reached", running.agent, gone)
    began = time.monotonic()
    refuse(machine, 3, "did not freeze its guest within 2 s", running.agent, deaf.path)
    expect("guest-fsfreeze-freeze" in deaf.asked, f"the deaf agent was asked {deaf.asked}")
    expect(time.monotonic() - began >= 2, "the other guest had less than its 2 s")

    expect(not running.is_frozen(), "the guest is still frozen")
    wait_synced(running, 3)
    running.go_on()
    running.finish()


@test("a guest on a clone runs on while its golden image and all of its snapshots are deleted")
def _(context):
    machine = Machine(context)
    pool = machine.pool
    pool.cli("snapshot", "create", "debian@golden")
    pool.cli("clone", "debian@golden", "vm")
    first = machine.boot("write", disk="vm")
    first.wait_said("before")
    pool.cli("disk", "delete", "debian", "--snapshots")
    first.go_on()
    first.wait_said("full")
    # Waits until what only the golden image had is freed, under the running guest.
    pool.cli("flush")
    first.go_on()
    first.wait_said("after")
    first.go_on()
    first.finish()
    machine.note("first boot")
    used = pool.used()
    # Not before: what the guest has trimmed counts until it is destaged.
    vm = pool.json("disk", "show", "vm")
    expect(pool.json("disk", "list")[0]["name"] == "vm" and pool.json("snapshot", "list") == [],
           "more than the clone is left")
    expect(abs(used - machine.empty - vm["used"]) <= MIB,
           f"{used - machine.empty} bytes are in use, the clone refers to {vm['used']}")

    pool.restart()
    second = machine.boot("verify", disk="vm")
    second.finish()
    machine.note("second boot")
    expect(any(line.startswith("verified ") for line in second.said),
           f"nothing was verified: {second.said}")
    guest.check_file_system(machine.export("vm"))
    pool.cli("disk", "delete", "vm")
    left = pool.used() - machine.empty
    expect(abs(left) <= MIB, f"{left} bytes are still in use after the last disk was deleted")


def wait_synced(running, more):
    goal = len(running.synced()) + more
    running.wait_for(lambda said: len(running.synced()) >= goal, 120, f"{goal} synced files")


def refuse(machine, seconds, reason, *agents):
    """A quiesced snapshot fails in time, with a reason, and is not there."""
    began = time.monotonic()
    done = machine.pool.command(
        "snapshot", "create", "debian@never", "--quiesce-timeout", "2", "--quiesce", *agents,
        status=1, timeout=30)
    took = time.monotonic() - began
    expect(reason in done.stderr and "no snapshot was taken" in done.stderr,
           f"“{reason}” is not in: {done.stderr}")
    expect(took < seconds, f"the refusal took {took:.1f} s")
    expect(machine.pool.json("snapshot", "list") == [], "there is a snapshot")


if __name__ == "__main__":
    sys.exit(runner.main(__doc__.splitlines()[0]))
