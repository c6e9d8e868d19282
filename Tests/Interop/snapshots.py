#!/usr/bin/python3
"""Snapshots and clones with real clients; each test also with all destaging halted.

    Tests/Interop/snapshots.py [--list] [--only TEXT] [--keep] [--binary PATH]
"""

import json
import pathlib
import random
import struct
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "Support"))

from sluicetest import nbdwire, runner, tools  # noqa: E402
from sluicetest.api import API, APIError  # noqa: E402
from sluicetest.daemon import Pool  # noqa: E402
from sluicetest.nbdwire import Wire  # noqa: E402
from sluicetest.runner import expect  # noqa: E402

KIB, MIB = 1 << 10, 1 << 20
BLOCK = 4 * KIB
USAGE, FAILURE = 64, 1
LIST_KEYS = {"disk", "name", "id", "created", "used", "exclusive", "clones", "group", "held"}


class SnapshotPool(Pool):
    """A pool that is served; on request with nothing leaving its log, until the next flush."""

    def __init__(self, context, is_held, **arguments):
        super().__init__(context, **arguments)
        self.is_held = is_held
        self.start()

    def start(self, *arguments, timeout=60):
        seconds = super().start(*arguments, timeout=timeout)
        if self.is_held:
            self.api().call("PUT", "/v1/destage", {"held": True})
        return seconds

    def check_throughout(self, check):
        """Now, after kill -9 and a restart, and when all is home."""
        check()
        self.kill()
        self.start()
        check()
        self.cli("flush")
        check()

    def api(self):
        return API(self.directory / "api.sock")

    def snapshots(self, *disk):
        """DISK@SNAP of each, in the order of the list."""
        return [f"{s['disk']}@{s['name']}" for s in self.json("snapshot", "list", *disk)]

    def names(self):
        return sorted(disk["name"] for disk in self.json("disk", "list"))

    def io(self, name, *steps, read_only=False):
        """Steps of qemu-io on an export; each must succeed."""
        words = [word for step in steps for word in ("-c", step)]
        mode = ["-r"] if read_only else []
        done = tools.run(
            ["qemu-io", *mode, "-f", "raw", "-d", "unmap", *words, self.uri(name)], status=None)
        said = done.stdout + done.stderr
        expect(done.returncode == 0 and "Pattern verification failed" not in said,
               f"{name}: {steps}: {said}")

    def look(self, name, *steps):
        self.io(name, *steps, read_only=True)

    def refuse(self, *words, status=FAILURE, saying=""):
        """A command that must be refused with one sentence."""
        done = self.command(*words, status=None)
        text = done.stderr.strip()
        expect(done.returncode == status, f"{words}: status {done.returncode}: {text}")
        expect(text.startswith("sluice: ") and "\n" not in text, f"{words}: “{text}”")
        expect(saying in text, f"{words}: no “{saying}” in “{text}”")


def test(sentence, halts=True, **arguments):
    """Registers a test, and, unless it fills the log, once more with destaging halted."""
    def register(function):
        def run(is_held):
            return lambda context: function(context, SnapshotPool(context, is_held, **arguments))
        runner.test(sentence)(run(False))
        if halts:
            runner.test(f"{sentence}, with destaging halted")(run(True))
        return function

    return register


def near(found, wanted):
    """Whether two numbers of bytes are the same but for some metadata."""
    return abs(found - wanted) <= MIB


# What a snapshot and a clone hold


@test("a snapshot holds what the disk was, whatever is written to the disk")
def _(_, pool):
    pool.create_disk("vm/root", "64M")
    pool.io("vm/root", "write -P 1 0 8M", "write -P 2 8M 8M")
    pool.cli("snapshot", "create", "vm/root@one")
    pool.io("vm/root", "write -P 3 4M 8M", "write -P 4 512 512", "discard 14M 1M",
            "write -z 15M 1M", "write -P 5 60M 4M")
    pool.cli("snapshot", "create", "vm/root@two")
    pool.io("vm/root", "write -P 6 0 64M")

    def check():
        pool.look("vm/root@one", "read -P 1 0 8M", "read -P 2 8M 8M", "read -P 0 16M 48M")
        pool.look("vm/root@two", "read -P 1 0 512", "read -P 4 512 512", "read -P 1 1k 4095k",
                  "read -P 3 4M 8M", "read -P 2 12M 2M", "read -P 0 14M 46M", "read -P 5 60M 4M")
        pool.look("vm/root", "read -P 6 0 64M")

    check()
    expect(pool.snapshots("vm/root") == ["vm/root@one", "vm/root@two"], pool.snapshots())
    expect(pool.json("disk", "show", "vm/root")["snapshots"] == 2, "the disk counts its snapshots")
    pool.kill()
    pool.start()
    check()
    pool.cli("flush")
    check()


@test("a snapshot is exported read-only, and one that is not there is an unknown export")
def _(_, pool):
    pool.create_disk("disk", "4M")
    pool.io("disk", "write -P 1 0 4M")
    pool.cli("snapshot", "create", "disk@s")
    export = tools.run_json(["nbdinfo", "--json", pool.uri("disk@s")])["exports"][0]
    expect(export["is_read_only"] and export["export-size"] == 4 * MIB, export)
    with Wire(pool.socket) as wire:
        wire.open("disk@s")
        for command in (nbdwire.WRITE, nbdwire.WRITE_ZEROES, nbdwire.TRIM):
            data = bytes(BLOCK) if command == nbdwire.WRITE else b""
            error, _ = wire.ask(command, 0, BLOCK, data=data)
            expect(error == nbdwire.EPERM, f"command {command} on a snapshot: error {error}")
    pool.look("disk@s", "read -P 1 0 4M")
    for name in ("disk@t", "disk@", "other@s", "@s", "disk@s@s"):
        done = tools.run(["nbdinfo", pool.uri(name)], status=None)
        expect(done.returncode != 0, f"“{name}” was served:\n{done.stdout}")
    listed = json.loads(tools.run(["nbdinfo", "--list", "--json", pool.uri()]).stdout)
    expect([e["export-name"] for e in listed["exports"]] == ["disk"], "listed: the disk alone")


@test("a clone starts as its snapshot is and goes its own way, to any depth")
def _(_, pool):
    pool.create_disk("gold", "16M")
    pool.io("gold", "write -P 1 0 16M")
    pool.cli("snapshot", "create", "gold@v1")
    pool.io("gold", "write -P 9 0 16M")
    name = "gold"
    for depth in range(12):
        pool.cli("clone", f"{name}@v1", f"clone{depth}")
        name = f"clone{depth}"
        origin = pool.json("disk", "show", name)["origin"]
        expect(origin == ("gold@v1" if depth == 0 else f"clone{depth - 1}@v1"), origin)
        pool.io(name, f"write -P {depth + 16} {depth}M 64k")
        pool.cli("snapshot", "create", f"{name}@v1")
        pool.io(name, f"write -P {depth + 100} 15M 1M")

    def check():
        for top in range(12):
            steps = []
            for depth in range(12):
                value = depth + 16 if depth <= top else 1
                steps += [f"read -P {value} {depth}M 64k",
                          f"read -P 1 {depth * 1024 + 64}k 960k"]
            pool.look(f"clone{top}", *steps, f"read -P {top + 100} 15M 1M")
            pool.look(f"clone{top}@v1", *steps, "read -P 1 15M 1M")
        pool.look("gold@v1", "read -P 1 0 16M")
        pool.look("gold", "read -P 9 0 16M")

    pool.check_throughout(check)


@test("a batch of 50 clones is whole, takes no space of its own, and each is a disk")
def _(_, pool):
    pool.create_disk("gold", "32M")
    pool.io("gold", "write -P 7 0 32M")
    pool.cli("snapshot", "create", "gold@v1")
    made = json.loads(pool.cli("clone", "gold@v1", "vm", "--count", "50", "--json"))
    expect(made == {"count": 50, "first": "vm-1", "last": "vm-50"}, made)
    expect(pool.names() == sorted(["gold"] + [f"vm-{n}" for n in range(1, 51)]), pool.names())
    for number in range(1, 51):
        pool.io(f"vm-{number}", f"write -P {number} {number * 64}k 4k")
    pool.kill()
    pool.start()
    for number in range(1, 51):
        pool.look(f"vm-{number}", f"read -P 7 0 {number * 64}k",
                  f"read -P {number} {number * 64}k 4k", f"read -P 7 {number * 64 + 4}k 1M")
    entry = pool.json("snapshot", "list", "gold")[0]
    expect(entry["clones"] == 50, f"the snapshot has {entry['clones']} clones")
    pool.cli("flush")
    for number in (1, 25, 50):
        shown = pool.json("disk", "show", f"vm-{number}")
        expect(shown["exclusive"] <= 64 * KIB, f"vm-{number}: {shown['exclusive']} of its own")
        expect(shown["used"] >= 32 * MIB, f"vm-{number} refers to {shown['used']}")


@test("the snapshots of a group are one instant of all disks under load")
def _(_, pool):
    for name in ("a", "b", "c"):
        pool.create_disk(name, "1M")
    is_over = threading.Event()
    stamps, problems = [0], []

    def write():
        """Stamps a, b and c in turn with a growing number, each when the last is acknowledged."""
        try:
            wires = [Wire(pool.socket) for _ in range(3)]
            for wire, name in zip(wires, "abc"):
                wire.open(name)
            while not is_over.is_set():
                stamps[0] += 1
                for wire in wires:
                    data = struct.pack("<Q", stamps[0]) * (BLOCK // 8)
                    error, _ = wire.ask(nbdwire.WRITE, 0, BLOCK, data=data)
                    expect(error == 0, f"a write failed with {error}")
                # Else the log could fill up, which with destaging halted nothing ends.
                time.sleep(0.001)
        except Exception as error:  # noqa: BLE001  # told by the main thread
            problems.append(error)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    before = []
    try:
        for number in range(40):
            before.append(stamps[0])
            pool.cli("snapshot", "create", f"s{number}", "a", "b", "c")
    finally:
        is_over.set()
        writer.join(30)
    expect(not problems, f"the writer: {problems}")
    distinct = set()
    for number in range(40):
        seen = []
        for name in "abc":
            with Wire(pool.socket) as wire:
                wire.open(f"{name}@s{number}")
                error, data = wire.ask(nbdwire.READ, 0, BLOCK)
                expect(error == 0, f"reading {name}@s{number}: error {error}")
                values = set(struct.unpack(f"<{BLOCK // 8}Q", data))
                expect(len(values) == 1, f"{name}@s{number} holds a mixture")
                seen += values
        a, b, c = seen
        expect(a >= b >= c >= a - 1, f"s{number}: a at {a}, b at {b}, c at {c}")
        # Acknowledged before the call is in.
        expect(c >= before[number] - 1, f"s{number} lost stamp {before[number] - 1}: {seen}")
        distinct.add(a)
    expect(len(distinct) > 5, "hardly anything was written between the snapshots")
    groups = {}
    for entry in pool.json("snapshot", "list"):
        groups.setdefault(entry["name"], set()).add(entry["group"])
    expect(all(len(ids) == 1 for ids in groups.values()), "a group with two ids")
    expect(len(set.union(*groups.values())) == 40, "two groups with one id")


# Rollback, hold, rename


@test("a rollback brings any snapshot's content back, and newer snapshots stay")
def _(_, pool):
    pool.create_disk("disk", "16M")
    for number in (1, 2, 3):
        pool.io("disk", f"write -P {number} 0 8M", f"write -P {number} {number + 8}M 1M")
        pool.cli("snapshot", "create", f"disk@s{number}")
    pool.io("disk", "write -P 4 0 16M")
    pool.cli("snapshot", "rollback", "disk@s1")
    pool.look("disk", "read -P 1 0 8M", "read -P 0 8M 1M", "read -P 1 9M 1M", "read -P 0 10M 6M")
    pool.io("disk", "write -P 5 4M 1M")
    pool.cli("snapshot", "create", "disk@s4")
    pool.cli("snapshot", "rollback", "disk@s3")

    def check():
        pool.look("disk", "read -P 3 0 8M", "read -P 1 9M 1M", "read -P 2 10M 1M",
                  "read -P 3 11M 1M", "read -P 0 12M 4M")
        pool.look("disk@s2", "read -P 2 0 8M", "read -P 2 10M 1M", "read -P 0 11M 5M")
        pool.look("disk@s4", "read -P 1 0 4M", "read -P 5 4M 1M", "read -P 1 5M 3M",
                  "read -P 0 10M 6M")
        expect(sorted(pool.snapshots()) == [f"disk@s{n}" for n in (1, 2, 3, 4)], pool.snapshots())

    pool.check_throughout(check)


@test("a rollback under a client is refused unless forced, and then it sees the new content")
def _(_, pool):
    pool.create_disk("disk", "4M")
    pool.io("disk", "write -P 1 0 4M")
    pool.cli("snapshot", "create", "disk@s")
    pool.io("disk", "write -P 2 0 4M")
    with Wire(pool.socket) as wire:
        wire.open("disk")
        pool.refuse("snapshot", "rollback", "disk@s", saying="--force")
        error, data = wire.ask(nbdwire.READ, 0, MIB)
        expect(error == 0 and set(data) == {2}, "a refused rollback changed the disk")
        pool.cli("snapshot", "rollback", "disk@s", "--force")
        error, data = wire.ask(nbdwire.READ, 0, 4 * MIB)
        expect(error == 0 and set(data) == {1}, f"after it: error {error}, {set(data)}")
        error, _ = wire.ask(nbdwire.WRITE, 0, BLOCK, data=b"\3" * BLOCK)
        expect(error == 0, f"a write after a forced rollback: error {error}")
    pool.look("disk", "read -P 3 0 4k", "read -P 1 4k 4092k")
    pool.look("disk@s", "read -P 1 0 4M")


@test("snapshots are held, released, renamed and listed with all their keys")
def _(_, pool):
    pool.create_disk("disk", "1M")
    pool.create_disk("other", "1M")
    pool.cli("snapshot", "create", "daily", "disk", "other")
    pool.cli("snapshot", "create", "disk@later")
    entries = pool.json("snapshot", "list")
    expect(len(entries) == 3 and all(LIST_KEYS <= set(entry) for entry in entries), entries)
    ids = {f"{e['disk']}@{e['name']}": (e["id"], e["group"]) for e in entries}
    expect(ids["disk@daily"][1] == ids["other@daily"][1] == ids["disk@daily"][0], ids)
    expect(ids["disk@later"][0] == ids["disk@later"][1], ids)
    pool.cli("snapshot", "hold", "disk@daily")
    pool.refuse("snapshot", "delete", "disk@daily", saying="snapshot release")
    pool.refuse("disk", "delete", "disk", saying="--snapshots")
    pool.cli("snapshot", "rename", "disk@daily", "weekly")
    pool.refuse("snapshot", "rename", "disk@later", "weekly", saying="exists")
    pool.kill()
    pool.start()
    entries = {e["name"]: e for e in pool.json("snapshot", "list", "disk")}
    expect(entries["weekly"]["held"] and not entries["later"]["held"], entries)
    expect(entries["weekly"]["id"] == ids["disk@daily"][0], "a rename changed the id")
    pool.refuse("snapshot", "delete", "disk@weekly", saying="snapshot release")
    pool.cli("snapshot", "release", "disk@weekly")
    pool.cli("snapshot", "delete", "disk@weekly")
    expect(pool.snapshots("disk") == ["disk@later"], pool.snapshots())
    pool.cli("disk", "rename", "disk", "folder/disk")
    expect(pool.snapshots("folder/disk") == ["folder/disk@later"], pool.snapshots())


# Deleting


class Family:
    """A disk with snapshots, clones of these, and clones of clones; all different."""

    SIZE = 16 * MIB

    def __init__(self, pool, seed):
        self.pool = pool
        self.noise = random.Random(seed)
        self.content = {}
        self.disks = ["root"]
        pool.create_disk("root", str(self.SIZE))
        self.content["root"] = [0] * (self.SIZE // (64 * KIB))
        self.write("root", 200)
        for number in range(12):
            disk = self.noise.choice(self.disks)
            snapshot = f"{disk}@s{number}"
            pool.cli("snapshot", "create", snapshot)
            self.content[snapshot] = list(self.content[disk])
            if number % 2 == 0:
                clone = f"clone{number}"
                pool.cli("clone", snapshot, clone)
                self.disks.append(clone)
                self.content[clone] = list(self.content[snapshot])
                self.write(clone, 20)
            self.write(disk, 20)

    def write(self, disk, count):
        """Writes pieces of 64 KiB, some of them zeros."""
        steps = []
        for _ in range(count):
            piece, value = self.noise.randrange(len(self.content[disk])), self.noise.randrange(8)
            value = value * 16 + self.noise.randrange(16) if value else 0
            self.content[disk][piece] = value
            offset = piece * 64
            steps.append(f"write -P {value} {offset}k 64k" if value else f"discard {offset}k 64k")
        self.pool.io(disk, *steps)

    def check(self):
        for name, pieces in self.content.items():
            steps = [f"read -P {value} {i * 64}k 64k" for i, value in enumerate(pieces)]
            self.pool.look(name, *steps)

    def delete(self, name):
        """Deletes one snapshot or disk; a disk's snapshots go with it."""
        if "@" in name:
            self.pool.cli("snapshot", "delete", name)
        else:
            self.pool.cli("disk", "delete", name, "--snapshots")
            self.content = {
                n: c for n, c in self.content.items() if n.split("@")[0] != name or n == name}
        del self.content[name]


def age(name):
    """Snapshots in the order in which they were taken, behind the clones, and these behind root."""
    return int(name.split("@s")[1]) if "@" in name else -2 if name == "root" else -1


def delete_family(pool, order_seed):
    # The catalog takes space in steps.
    empty = pool.used()
    family = Family(pool, seed=1)
    if pool.is_held:
        pool.api().call("PUT", "/v1/destage", {"held": True})
    family.check()
    order = random.Random(order_seed)
    while family.content:
        names = sorted(family.content)
        if order_seed == "newest first":
            victim = max(names, key=age)
        elif order_seed == "root first":
            victim = "root" if "root" in names else names[0]
        else:
            victim = order.choice(names)
        family.delete(victim)
        if len(family.content) % 5 == 0:
            family.check()
            if order.random() < 0.5:
                pool.kill()
                pool.start()
            else:
                pool.cli("flush")
            family.check()
    left = pool.names() + pool.snapshots()
    expect(left == [], f"still listed: {left}")
    after = pool.used()
    expect(near(after, empty), f"{after - empty} bytes are still in use")
    space = pool.json("status")["space"]
    expect(space["held"] == 0 and space["freeing"] == 0, f"space: {space}")


for _order in ("newest first", "root first", "random 1", "random 2"):
    test(f"all space comes back when a family of disks is deleted: {_order}")(
        lambda context, pool, order=_order: delete_family(pool, order))


@test("the last clone of a deleted golden image is charged with what it refers to, no more")
def _(_, pool):
    empty = pool.used()
    pool.create_disk("gold", "32M")
    pool.io("gold", "write -P 1 0 32M")
    pool.cli("snapshot", "create", "gold@v1")
    pool.cli("clone", "gold@v1", "vm")
    pool.cli("disk", "delete", "gold", "--snapshots")
    pool.look("vm", "read -P 1 0 32M")
    half = pool.used() - empty
    expect(near(half, 32 * MIB), f"a clone of 32 MiB holds {half} bytes")
    pool.io("vm", "write -P 2 0 32M")
    pool.kill()
    pool.start()
    full = pool.used() - empty
    shown = pool.json("disk", "show", "vm")
    expect(near(full, 32 * MIB), f"overwritten in full it holds {full} bytes")
    for key in ("used", "exclusive"):
        expect(near(shown[key], 32 * MIB), f"{key}: {shown[key]}")
    pool.cli("disk", "delete", "vm")
    expect(near(pool.used(), empty), "its space did not come back")


@test("used and exclusive tell what a disk and its snapshots share")
def _(_, pool):
    pool.create_disk("disk", "32M")
    pool.io("disk", "write -P 1 0 16M")
    pool.cli("snapshot", "create", "disk@s")
    pool.io("disk", "write -P 2 8M 16M")
    pool.cli("flush")
    shown, entry = pool.json("disk", "show", "disk"), pool.json("snapshot", "list", "disk")[0]
    expect(near(shown["used"], 24 * MIB), f"the disk refers to {shown['used']}")
    expect(near(shown["exclusive"], 16 * MIB), f"the disk alone: {shown['exclusive']}")
    expect(near(entry["used"], 16 * MIB), f"the snapshot refers to {entry['used']}")
    expect(near(entry["exclusive"], 8 * MIB), f"the snapshot alone: {entry['exclusive']}")
    before = pool.used()
    pool.cli("snapshot", "delete", "disk@s")
    gain = before - pool.used()
    expect(near(gain, 8 * MIB), f"deleting the snapshot gave back {gain}")


@test("kill -9 right after each change leaves it done, and all listed as before")
def _(_, pool):
    pool.create_disk("gold", "8M")
    pool.io("gold", "write -P 1 0 8M")
    volatile = {"connections", "used", "exclusive"}

    def listed():
        entries = pool.json("disk", "list") + pool.json("snapshot", "list")
        return {json.dumps({k: v for k, v in e.items() if k not in volatile}, sort_keys=True)
                for e in entries}

    for words in (
        ["snapshot", "create", "gold@a"], ["snapshot", "create", "gold@b"],
        ["clone", "gold@a", "vm", "--count", "20"],
        ["snapshot", "create", "s", *[f"vm-{n}" for n in range(1, 21)]],
        ["snapshot", "rollback", "gold@a"], ["snapshot", "rename", "gold@b", "c"],
        ["snapshot", "hold", "gold@c"], ["snapshot", "delete", "vm-3@s"],
        ["disk", "delete", "vm-4", "--snapshots"], ["snapshot", "delete", "gold@a"],
        ["snapshot", "release", "gold@c"], ["clone", "vm-5@s", "deep"],
    ):
        pool.cli(*words)
        before = listed()
        pool.kill()
        pool.start()
        after = listed()
        expect(after == before,
               f"{words}: before {sorted(before - after)}, afterwards {sorted(after - before)}")
    for name in ("gold", "vm-1", "vm-5@s", "deep"):
        pool.look(name, "read -P 1 0 8M")
    status = pool.json("status")
    expect(status["disks"] == 21 and status["snapshots"] == 19, f"{status}")


# Differences


def changes(pool, *words):
    """[(offset, end, type)] of a comparison."""
    return [(e["offset"], e["offset"] + e["length"], e["type"])
            for e in pool.json("snapshot", "diff", *words)]


def merged(ranges):
    result = []
    for start, end in sorted(ranges):
        if result and result[-1][1] == start:
            result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


def dirty(pool, export, context):
    """What nbdinfo shows as changed."""
    entries = tools.run_json(["nbdinfo", f"--map={context}", "--json", pool.uri(export)])
    expect(all(e["type"] in (0, 1) for e in entries), entries)
    return merged((e["offset"], e["offset"] + e["length"]) for e in entries if e["type"] == 1)


@test("a comparison shows what changed and nothing else, by command and to NBD clients")
def _(_, pool):
    pool.create_disk("disk", "64M")
    pool.io("disk", "write -P 1 0 32M")
    pool.cli("snapshot", "create", "disk@one")
    pool.cli("snapshot", "create", "disk@same")
    pool.io("disk", "write -P 2 1M 64k", "write -P 2 10M 4k", "discard 20M 1M",
            "write -P 2 40M 512", "write -P 2 65532k 4k")
    pool.cli("snapshot", "create", "disk@two")
    pool.io("disk", "write -P 3 1056k 64k", "discard 1M 16k")
    k = KIB
    one_two = [(1024 * k, 1088 * k, "data"), (10240 * k, 10244 * k, "data"),
               (20480 * k, 21504 * k, "zero"), (40960 * k, 40964 * k, "data"),
               (65532 * k, 65536 * k, "data")]
    two_now = [(1024 * k, 1040 * k, "zero"), (1056 * k, 1120 * k, "data")]

    def check():
        expect(changes(pool, "disk@one", "disk@same") == [], "nothing changed")
        found = changes(pool, "disk@one", "disk@two")
        expect(found == one_two, f"one to two: {found}")
        found = changes(pool, "disk@two", "disk")
        expect(found == two_now and changes(pool, "disk@two") == found, f"two to now: {found}")
        for context in ("qemu:dirty-bitmap", "sluice:changed"):
            found = dirty(pool, "disk@two", f"{context}:one")
            expect(found == merged(r[:2] for r in one_two), f"{context}, one to two: {found}")
            found = dirty(pool, "disk", f"{context}:two")
            expect(found == merged(r[:2] for r in two_now), f"{context}, two to now: {found}")
        now = merged(r[:2] for r in changes(pool, "disk@one"))
        expect(dirty(pool, "disk", "qemu:dirty-bitmap:one") == now, "one to now differs")
        target = (f"driver=nbd,server.type=unix,server.path={pool.socket},export=disk,"
                  "x-dirty-bitmap=qemu:dirty-bitmap:one")
        entries = tools.run_json(["qemu-img", "map", "--output=json", "--image-opts", target])
        # QEMU shows a bitmap's set bit as a hole.
        found = merged((e["start"], e["start"] + e["length"]) for e in entries if not e["data"])
        expect(found == now, f"QEMU finds {found}, not {now}")

    pool.check_throughout(check)
    for words in (["disk@two", "disk@one"], ["disk@none"], ["disk@one", "disk@none"],
                  ["none@one"], ["disk@one", "none"]):
        pool.refuse("snapshot", "diff", *words)
    info = tools.run_json(["nbdinfo", "--json", pool.uri("disk@two")])["exports"][0]
    expect(set(info["contexts"]) == {
        "base:allocation", "sluice:changed:one", "sluice:changed:same", "qemu:dirty-bitmap:one",
        "qemu:dirty-bitmap:same"}, info["contexts"])
    done = tools.run(
        ["nbdinfo", "--map=qemu:dirty-bitmap:three", pool.uri("disk")], status=None)
    expect(done.returncode != 0, "a context of a snapshot that is not there")


@test("an incremental backup by changed ranges is the whole image")
def _(context, pool):
    image = context.path("image.raw")
    tools.make_image(image, 48 * MIB, seed=21)
    uri = pool.create_disk("disk", "48M")
    tools.run(["nbdcopy", image, uri])
    pool.cli("snapshot", "create", "disk@base")
    backup = context.path("backup.raw")
    tools.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", pool.uri("disk@base"), backup])
    noise = random.Random(22)
    for round_number in range(3):
        steps = []
        for _ in range(60):
            offset = noise.randrange(48 * MIB // 512 - 256) * 512
            length = noise.randrange(1, 256) * 512
            verb = noise.choice((f"write -P {noise.randrange(1, 256)}", "discard", "write -z"))
            steps.append(f"{verb} {offset} {length}")
        pool.io("disk", *steps)
        before, name = ("base" if round_number == 0 else f"r{round_number - 1}"), f"r{round_number}"
        pool.cli("snapshot", "create", f"disk@{name}")
        ranges = changes(pool, f"disk@{before}", f"disk@{name}")
        total = sum(end - start for start, end, _ in ranges)
        expect(0 < total <= 60 * 136 * KIB, f"{total} bytes changed")
        with Wire(pool.socket) as wire, open(backup, "r+b") as file:
            wire.open(f"disk@{name}")
            for start, end, kind in ranges:
                for at in range(start, end, MIB):
                    length = min(MIB, end - at)
                    error, data = wire.ask(nbdwire.READ, at, length)
                    expect(error == 0, f"reading at {at}: error {error}")
                    expect(kind == "data" or not any(data), f"{at} is said to be zeros")
                    file.seek(at)
                    file.write(data)
        tools.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", backup,
                   pool.uri(f"disk@{name}")])


# Bad input


@test("what can't be done is refused with a sentence and leaves nothing half done")
def _(_, pool):
    for name in ("a", "b", "taken-3"):
        pool.create_disk(name, "4M")
    pool.io("a", "write -P 1 0 4M")
    pool.cli("snapshot", "create", "a@s", "b@s")
    disks, snapshots = pool.names(), pool.snapshots()
    pool.refuse("snapshot", "create", "a@s", saying="exists")
    pool.refuse("snapshot", "create", "a@t", "b@s", saying="exists")
    pool.refuse("snapshot", "create", "a@t", "b@t", "absent@t", saying="absent")
    pool.refuse("snapshot", "create", "t", "absent", "a", saying="absent")
    pool.refuse("snapshot", "create", "a@t", "a@t", status=USAGE)
    pool.refuse("snapshot", "create", "a@t", "a@u", "b@t", saying="twice")
    pool.refuse("snapshot", "create", "a@../t", status=USAGE)
    pool.refuse("clone", "a@s", "b", saying="exists")
    pool.refuse("clone", "a@s", "taken", "--count", "5", saying="taken-3")
    pool.refuse("clone", "a@absent", "c", saying="a@absent")
    pool.refuse("clone", "absent@s", "c", "--count", "3", saying="absent")
    pool.refuse("clone", "a@s", "c", "--count", "0", status=USAGE)
    for verb in ("delete", "rollback", "hold", "release"):
        pool.refuse("snapshot", verb, "a@absent", saying="a@absent")
        pool.refuse("snapshot", verb, "absent@s", saying="absent")
    pool.refuse("snapshot", "rename", "a@absent", "t", saying="a@absent")
    pool.refuse("snapshot", "list", "absent", saying="absent")
    pool.refuse("disk", "delete", "a", saying="--snapshots")
    pool.refuse("disk", "delete", "a@s", status=USAGE)
    for path, body in (
        ("/v1/snapshots", {"snapshots": []}), ("/v1/snapshots", {"snapshots": ["a"]}),
        ("/v1/snapshots", {"snapshots": ["a@t", "a@t"]}), ("/v1/snapshots", {"snapshot": "a@t"}),
        ("/v1/clones", {"snapshot": "a@s", "name": "c", "count": 100_001}),
        ("/v1/clones", {"snapshot": "a@s", "name": "c/../d"}), ("/v1/clones", {"name": "c"}),
    ):
        try:
            pool.api().call("POST", path, body)
            expect(False, f"{path} took {body}")
        except APIError as error:
            expect(error.status == 400, f"{path} answered {body} with {error}")
    expect(pool.names() == disks, f"{pool.names()}, not {disks}")
    expect(pool.snapshots() == snapshots, f"{pool.snapshots()}, not {snapshots}")
    pool.look("a", "read -P 1 0 4M")
    pool.look("a@s", "read -P 1 0 4M")


@test("in a full pool snapshots and clones work or are refused, and deleting makes room",
      halts=False, log="64M", space="256M")
def _(_, pool):
    pool.create_disk("disk", "1G")
    kept = 0
    with Wire(pool.socket, timeout=120) as wire:
        wire.open("disk")
        noise = random.Random(31)
        for piece in range(1024):
            error, _ = wire.ask(nbdwire.WRITE, piece * MIB, MIB, data=noise.randbytes(MIB))
            if error:
                expect(error == nbdwire.ENOSPC, f"error {error}")
                break
            kept += 1
    expect(100 < kept < 300, f"{kept} MiB fitted in a pool of 256 MiB")

    def attempt(*words):
        done = pool.command(*words, status=None)
        expect(done.returncode in (0, FAILURE), f"{words}: status {done.returncode}")
        expect(done.returncode == 0 or "full" in done.stderr, f"{words}: {done.stderr}")
        return done.returncode == 0

    def check():
        noise = random.Random(31)
        with Wire(pool.socket, timeout=120) as wire:
            wire.open("disk")
            for piece in range(kept):
                error, data = wire.ask(nbdwire.READ, piece * MIB, MIB)
                expect(error == 0 and data == noise.randbytes(MIB), f"piece {piece} is lost")

    taken = attempt("snapshot", "create", "disk@s")
    expect(pool.snapshots() == (["disk@s"] if taken else []), pool.snapshots())
    if taken:
        cloned = attempt("clone", "disk@s", "clone", "--count", "10")
        expect(len(pool.names()) == (11 if cloned else 1), pool.names())
        attempt("snapshot", "rollback", "disk@s")
        check()
        for name in pool.names():
            if name != "disk":
                pool.cli("disk", "delete", name)
        pool.cli("snapshot", "delete", "disk@s")
    check()
    pool.kill()
    pool.start()
    check()
    pool.cli("disk", "delete", "disk")
    pool.cli("flush")
    pool.create_disk("next", "64M")
    pool.io("next", "write -P 9 0 64M", "read -P 9 0 64M")
    pool.cli("snapshot", "create", "next@s")


if __name__ == "__main__":
    sys.exit(runner.main(__doc__.splitlines()[0]))
