"""Points that show snapshots and clones: by the ten thousand, small, consistent, and gone when
deleted. How fast disks are that have them is in branchspeed.py."""

import json
import os
import random
import statistics
import struct
import subprocess
import sys
import threading
import time

import branchspeed
from blocks import (BLOCK, GIB, KIB, MIB, PIECE, Stream, connect, content, drive, expect_content,
                    fill, fill_golden, golden_pieces, pool, write)
from sluicetest import tools
from sluicetest.api import API

ROOT = os.path.dirname(os.path.abspath(__file__))


def timed(action):
    began = time.monotonic()
    action()
    return time.monotonic() - began


# Clones by the ten thousand


def qemu_overlays(directory, size, count):
    """Seconds for one overlay by `qemu-img create -b`."""
    place = directory / "overlays"
    place.mkdir()
    golden = place / "golden.qcow2"
    tools.run(["qemu-img", "create", "-q", "-f", "qcow2", golden, str(size)])
    seconds = timed(lambda: [
        tools.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", golden,
                   place / f"clone{number}"]) for number in range(count)])
    for path in place.iterdir():
        path.unlink()
    place.rmdir()
    return round(seconds / count, 6)


def reflinks(directory, kind, size, count):
    """Seconds for one FICLONE on a file system of its own, until the call returns and until it is
    on disk; a text when it can't be measured."""
    file = directory / f"{kind}.img"
    try:
        done = tools.run_json(
            ["unshare", "--mount", sys.executable, f"{ROOT}/reflink.py", kind, file, str(size),
             str(count)], timeout=1800)
    except Exception as error:  # noqa: BLE001  # not root, or no such file system here
        return f"not measured: {str(error)[:300]}"
    finally:
        file.unlink(missing_ok=True)
    return {"returned": round(done["seconds"] / count, 6),
            "durable": round(done["until_durable"] / count, 6)}


def first_operation(server, name, kind, block):
    """Seconds from connecting until the first 4 KiB are done."""
    data = content(7, block)
    began = time.monotonic()
    handle = connect(server, name)
    if kind == "w":
        handle.pwrite(data, block * BLOCK)
    else:
        handle.pread(BLOCK, block * BLOCK)
    seconds = time.monotonic() - began
    handle.shutdown()
    return seconds


def alternating(server, kind, plain, clones, noise, places):
    """Medians of a first operation on plain disks and on clones, one of each in turn."""
    series = {"plain": [], "clone": []}
    for pair in zip(plain, clones):
        block = noise.choice(places) + noise.randrange(PIECE // BLOCK)
        for side, name in zip(series, pair):
            series[side].append(first_operation(server, name, kind, block))
    median = {side: statistics.median(values) for side, values in series.items()}
    return {"plain_us": round(median["plain"] * 1e6), "clone_us": round(median["clone"] * 1e6),
            "ratio": round(median["clone"] / median["plain"], 2)}


def first_io(server, clones, plain_image, size, noise):
    """A clone's first write and first read next to a plain disk's."""
    count = len(clones) // 2
    plain = [f"plain-{number}" for number in range(count)]
    api = API(server.directory / "api.sock")
    for name in plain:
        api.call("POST", "/v1/disks", {"name": name, "size": size})
    api.close()
    server.settle()
    places = golden_pieces(size)
    # A first read of an empty disk reads nothing: the plain disk to read is a copy of the image.
    return {
        "write": alternating(server, "w", plain, clones[:count], noise, places),
        "read": alternating(server, "r", [plain_image] * count, clones[count:], noise, places)}


def written_clones(server, names, size, noise):
    """Writes one random block to each and reads it back; returns name -> {block: bytes}."""
    wanted = {}
    places = golden_pieces(size)
    for number, name in enumerate(names):
        block, data = noise.randrange(size // BLOCK), content(number + 1, number)
        handle = connect(server, name)
        handle.pwrite(data, block * BLOCK)
        if handle.pread(BLOCK, block * BLOCK) != data:
            raise RuntimeError(f"{name}: block {block} reads wrong right after it was written")
        handle.shutdown()
        # One of the image's own, and one of a hole, behind the written one in case it is the same.
        image = noise.choice(places)
        wanted[name] = {image: content(0, image), image + PIECE // BLOCK: bytes(BLOCK),
                        block: data}
    return wanted


def batch(api, name, count):
    """Clones in one call: seconds until they are acknowledged, and further until destaged."""
    body = {"snapshot": "golden@v1", "name": name, "count": count}
    return (timed(lambda: api.call("POST", "/v1/clones", body)),
            timed(lambda: api.call("POST", "/v1/flush")))


def thousand(server, name):
    """What a thousand clones cost, in tens: seconds, and the daemon's processor seconds."""
    api = API(server.directory / "api.sock", timeout=600)
    before = server.processor_seconds()
    seconds = [batch(api, f"{name}{number}", 10) for number in range(100)]
    api.close()
    return {"acknowledged": round(sum(ack for ack, _ in seconds), 3),
            "destaged": round(sum(both for pair in seconds for both in pair), 3),
            "processor": round(server.processor_seconds() - before, 3)}


def spread(series, column):
    return [round(row[column], 3) for row in series]


def hundred_thousand(server, count, in_all):
    """Batches of `count` more until there are as many, a thousand at the end, and what they cost
    then: memory, opening, listing."""
    api = API(server.directory / "api.sock", timeout=600)
    series = [batch(api, f"more{number}", count) for number in range(in_all // count - 1)]
    api.close()
    last_thousand = thousand(server, "last")
    peak = server.peak_memory()
    server.kill()
    opening = server.serve(timeout=600)
    text = []
    listing = timed(lambda: text.append(server.cli("disk", "list", "--json")))
    expect_content(server, f"more0-{count}", {0: content(0, 0)})
    return {"batch_seconds": spread(series, 0), "batch_destage_seconds": spread(series, 1),
            "last_thousand": last_thousand, "open_seconds": round(opening, 2),
            "list_seconds": round(listing, 2), "disks": len(json.loads(text[0])),
            "peak_memory_mib": max(peak, server.peak_memory()) >> 20}


def clones(directory, quick):
    """10,000 clones of a fragmented image in a second, each its own; 100,000 cost the same each."""
    size = GIB if quick else 10 * GIB
    count, written, in_all = 10_000, 100 if quick else 1000, 30_000 if quick else 100_000
    noise = random.Random(3)
    with pool(directory, log="512M" if quick else "2G") as server:
        fill_golden(server, "golden", size)
        fill_golden(server, "plain", size)
        server.settle()
        server.cli("snapshot", "create", "golden@v1")
        first_thousand = thousand(server, "first")
        cloning = timed(lambda: server.cli("clone", "golden@v1", "vm", "--count", str(count)))
        names = noise.sample([f"vm-{number}" for number in range(1, count + 1)], written + 400)
        wanted = written_clones(server, names[:written], size, noise)
        server.kill()
        server.serve(timeout=600)
        listed = {disk["name"] for disk in json.loads(server.cli("disk", "list", "--json"))}
        complete = {f"vm-{number}" for number in range(1, count + 1)} <= listed
        for name, blocks in wanted.items():
            expect_content(server, name, blocks)
        first = first_io(server, names[written:], "plain", size, noise)
        many = hundred_thousand(server, count, in_all)
    ratio = many["last_thousand"]["destaged"] / first_thousand["destaged"]
    seconds_each = {"sluice": round(cloning / count, 8),
                    "qemu-img": qemu_overlays(directory, size, 20 if quick else 100)}
    for kind in ("xfs", "btrfs"):
        seconds_each[kind] = reflinks(directory, kind, size, 5 if quick else 20)
    return {
        "what": "clones of a golden image of which 40% is data in extents of 64 KiB",
        "extents": len(golden_pieces(size)), "clone_seconds": round(cloning, 3),
        "all_listed": complete, "first_io": first, "first_thousand": first_thousand,
        "thousand_ratio": round(ratio, 2), **many, "seconds_each": seconds_each,
        "holds": cloning < 1 and complete and first["write"]["ratio"] <= 2
        and first["read"]["ratio"] <= 2 and ratio <= 1.5 and many["disks"] >= in_all
        and many["peak_memory_mib"] < 1024 and many["open_seconds"] < 5
        and many["list_seconds"] < 2,
    }


# Groups


class Chain(threading.Thread):
    """Stamps 1, 2, 3 …: stamp n goes to disk n % DISKS after stamp n - 1 was acknowledged, there to
    the chain's slots in turn. So each state of the disks that was an instant is a prefix."""

    DISKS, SLOTS = 16, 8

    def __init__(self, server, number):
        super().__init__(daemon=True)
        self.number = number
        self.handles = [connect(server, f"disk{disk}") for disk in range(self.DISKS)]
        self.issued = self.acknowledged = 0
        self.stopping = False
        self.failure = None

    def place(self, stamp):
        slot = stamp // self.DISKS % self.SLOTS
        return stamp % self.DISKS, (self.number * self.SLOTS + slot) * BLOCK

    def run(self):
        try:
            while not self.stopping:
                stamp = self.issued + 1
                disk, offset = self.place(stamp)
                data = content(self.number, stamp)
                self.issued = stamp
                self.handles[disk].pwrite(data, offset)
                self.acknowledged = stamp
        except Exception as error:  # noqa: BLE001  # told when the point asks
            self.failure = error

    def finish(self):
        self.stopping = True
        self.join(60)
        for handle in self.handles:
            handle.shutdown()
        if self.failure is not None:
            raise self.failure

    def prefix(self, disks):
        """The stamp that the disks' content is the prefix up to; `disks` is what each has in the
        chain's slots. Raises when it is none."""
        newest = max(struct.unpack_from("<QQ", data, slot)[1]
                     for data in disks for slot in range(0, len(data), BLOCK))
        found = [bytes(BLOCK * self.SLOTS)] * self.DISKS
        first = max(newest - self.DISKS * self.SLOTS + 1, 1)
        for stamp in range(first, newest + 1):
            disk, offset = self.place(stamp)
            slot = offset % (BLOCK * self.SLOTS)
            found[disk] = (found[disk][:slot] + content(self.number, stamp)
                           + found[disk][slot + BLOCK:])
        for disk, data in enumerate(disks):
            if found[disk] != data:
                raise RuntimeError(f"chain {self.number}: not a prefix up to {newest}: disk {disk}")
        return newest


def check_groups(server, chains, groups):
    """Each group snapshot shows a prefix of each chain, and one that its call allows."""
    length = BLOCK * Chain.SLOTS
    for group, (acknowledged, issued) in groups.items():
        handles = [connect(server, f"disk{disk}@{group}") for disk in range(Chain.DISKS)]
        for chain in chains:
            stamp = chain.prefix([bytes(handle.pread(length, chain.number * length))
                                  for handle in handles])
            if not acknowledged[chain.number] <= stamp <= issued[chain.number]:
                raise RuntimeError(
                    f"{group}, chain {chain.number}: shows up to {stamp}, though "
                    f"{acknowledged[chain.number]} was acknowledged before the call and "
                    f"{issued[chain.number]} issued before it returned")
        for handle in handles:
            handle.shutdown()


def take_groups(server, chains, count):
    """Group snapshots of all disks; name -> stamps acknowledged before, issued before the end."""
    api = API(server.directory / "api.sock")
    groups, slowest = {}, 0
    for number in range(count):
        names = [f"disk{disk}@g{number}" for disk in range(Chain.DISKS)]
        acknowledged = [chain.acknowledged for chain in chains]
        slowest = max(slowest, timed(lambda: api.call("POST", "/v1/snapshots",
                                                      {"snapshots": names})))
        groups[f"g{number}"] = acknowledged, [chain.issued for chain in chains]
        time.sleep(0.02)
    api.close()
    return groups, slowest


def group_consistency(directory, quick):
    """Writers stamp a global order onto 16 disks; each group snapshot shows a prefix of it."""
    count = 40 if quick else 400
    with pool(directory) as server:
        for disk in range(Chain.DISKS):
            server.cli("disk", "create", f"disk{disk}", "--size", "256M")
        work = ["fio", "--output=/dev/null", "--rw=randwrite", "--bs=4k", "--iodepth=8",
                "--offset=64m", "--size=64m", "--time_based", "--runtime=3600", "--ioengine=nbd"]
        work += [word for disk in range(4) for word in (f"--name=d{disk}",
                                                        f"--uri={server.uri(disk)}")]
        load = tools.spawn(work, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            chains = [Chain(server, number) for number in range(6)]
            for chain in chains:
                chain.start()
            time.sleep(0.5)
            groups, slowest = take_groups(server, chains, count)
            loaded = load.poll() is None
            for chain in chains:
                chain.finish()
        finally:
            tools.finish(load)
        check_groups(server, chains, groups)
        server.kill()
        server.serve(timeout=600)
        check_groups(server, chains, groups)
        server.settle()
        check_groups(server, chains, groups)
    stamps = sum(chain.issued for chain in chains)
    distinct = len({tuple(issued) for _, issued in groups.values()})
    return {
        "what": "group snapshots of 16 disks under load, checked, after kill -9, and at home",
        "snapshots": count, "chains": len(chains), "stamps": stamps, "distinct": distinct,
        "slowest_snapshot_ms": round(slowest * 1000, 1), "loaded": loaded,
        # Snapshots of a standstill would prove nothing.
        "holds": loaded and distinct > 0.9 * count,
    }


# Space


def used(server):
    """Bytes of space in use when everything is destaged and freed."""
    server.settle()
    return server.status()["space"]["used"]


def boot_blocks(noise, size, shared):
    """36 blocks as a first boot writes them: 20 alone at places that all boots of the image write
    to, 10 alone at places of its own, 2 runs of 3."""
    count = size // BLOCK
    blocks = set(shared) | {noise.randrange(count) for _ in range(10)}
    for _ in range(2):
        first = noise.randrange(count - 3)
        blocks |= {first, first + 1, first + 2}
    while len(blocks) < 36:
        blocks.add(noise.randrange(count))
    return sorted(blocks)


def overlay_space(directory, boots, size):
    """Bytes of disk that a qcow2 overlay takes for each byte written to it."""
    place = directory / "overlays"
    place.mkdir()
    golden = place / "golden.raw"
    try:
        image = {first // PIECE * PIECE // BLOCK for blocks in boots for block in blocks
                 for first in [block * BLOCK]}
        with open(golden, "wb") as file:
            file.truncate(size)
            for block in image:
                os.pwrite(file.fileno(), content(0, block, PIECE // BLOCK), block * BLOCK)
        taken = 0
        for number, blocks in enumerate(boots):
            overlay = place / f"clone{number}.qcow2"
            tools.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", golden,
                       overlay])
            words = [word for block in blocks for word in ("-c", f"write -P 5 {block * BLOCK} 4k")]
            tools.run(["qemu-io", "-f", "qcow2", *words, overlay])
            taken += os.stat(overlay).st_blocks * 512
    finally:
        for path in place.iterdir():
            path.unlink()
        place.rmdir()
    return round(taken / sum(len(blocks) * BLOCK for blocks in boots), 2)


def clone_space(directory, quick):
    """Thousands of clones, each with its first boot's writes: space a byte that was written."""
    size, count = (GIB, 300) if quick else (10 * GIB, 10_000)
    noise = random.Random(5)
    shared = [noise.randrange(size // BLOCK) for _ in range(20)]
    boots = [boot_blocks(noise, size, shared) for _ in range(count)]
    with pool(directory, log="512M" if quick else "2G") as server:
        fill_golden(server, "golden", size)
        server.cli("snapshot", "create", "golden@v1")
        before, metadata = used(server), server.status()["space"]["metadata"]
        server.cli("clone", "golden@v1", "vm", "--count", str(count))
        unwritten = used(server) - before
        # Lists: a generator would see `number` as it is when it runs.
        drive(Stream(server, f"vm-{number + 1}",
                     [("w", block * BLOCK, content(number, block), 0) for block in blocks])
              for number, blocks in enumerate(boots))
        growth = used(server) - before
        metadata = server.status()["space"]["metadata"] - metadata
        for number in noise.sample(range(count), 20):
            expect_content(server, f"vm-{number + 1}", {
                block: content(number, block) for block in boots[number]})
        peak = server.peak_memory()
    written = sum(len(blocks) * BLOCK for blocks in boots)
    return {
        "what": "growth of space.used by clones with 36 scattered blocks of 4 KiB each",
        "clones": count, "written_mib": written >> 20, "ratio": round(growth / written, 2),
        "metadata_ratio": round(metadata / written, 2),
        "unwritten_clone_bytes": round(unwritten / count), "peak_memory_mib": peak >> 20,
        "overlay_ratio": overlay_space(directory, boots[:12], size),
        "holds": growth <= 2.5 * written and peak < GIB,
    }


class Family:
    """Disks, their snapshots, clones of these and clones of clones; data in all of them."""

    SIZE = 64 * MIB

    def __init__(self, server, noise):
        self.server, self.noise = server, noise
        self.disks, self.snapshots = [], []
        self.made = 0
        self.api = None

    def call(self, *words):
        if self.api is None:
            self.api = API(self.server.directory / "api.sock", timeout=600)
        return self.api.call(*words)

    def crash(self):
        self.api = None
        self.server.kill()
        self.server.serve(timeout=600)

    def write(self, disk):
        data = self.noise.randbytes(MIB)
        requests = []
        for _ in range(12):
            length = self.noise.choice((BLOCK, 16 * KIB, 64 * KIB, 512 * KIB))
            offset = self.noise.randrange((self.SIZE - length) // BLOCK) * BLOCK
            requests.append((offset, data[:length]))
        write(self.server, disk, requests)

    def grow(self):
        """One more disk, snapshot or clone."""
        self.made += 1
        choice = self.noise.random()
        if choice < 0.1 or not self.disks:
            self.disks.append(f"disk{self.made}")
            self.call("POST", "/v1/disks", {"name": self.disks[-1], "size": self.SIZE})
        elif choice < 0.6 or not self.snapshots:
            self.snapshots.append(f"{self.noise.choice(self.disks)}@s{self.made}")
            self.call("POST", "/v1/snapshots", {"snapshots": self.snapshots[-1:]})
        else:
            self.disks.append(f"disk{self.made}")
            self.call("POST", "/v1/clones", {"snapshot": self.noise.choice(self.snapshots),
                                             "name": self.disks[-1]})
        self.write(self.noise.choice(self.disks[-3:]))

    def shrink(self):
        """Deletes one of what is left; a disk's snapshots go with it."""
        name = self.noise.choice(self.disks + self.snapshots)
        if "@" in name:
            self.snapshots.remove(name)
            self.call("DELETE", f"/v1/snapshots/{name}")
        else:
            self.disks.remove(name)
            self.snapshots = [s for s in self.snapshots if s.split("@")[0] != name]
            self.call("DELETE", f"/v1/disks/{name}?snapshots=true")


def last_clone(server, empty, size):
    """A golden image deleted while one clone has overwritten all of it: what is in use then, and
    what the clone refers to."""
    fill(server, "golden", size, seed=1)
    server.cli("snapshot", "create", "golden@v1")
    server.cli("clone", "golden@v1", "last")
    noise = random.Random(9)
    offsets = list(range(0, size, 64 * KIB))
    noise.shuffle(offsets)
    write(server, "last", ((offset, noise.randbytes(64 * KIB)) for offset in offsets))
    server.cli("disk", "delete", "golden", "--snapshots")
    in_use = used(server) - empty
    shown = json.loads(server.cli("disk", "show", "last", "--json"))
    space = server.status()["space"]
    server.cli("disk", "delete", "last")
    return {"in_use": in_use, "refers_to": shown["used"], "exclusive": shown["exclusive"],
            "held": space["held"], "after": used(server) - empty}


def delete_everything(directory, quick):
    """Hundreds of disks, snapshots and clones deleted in random order give everything back."""
    count, size = (150, 256 * MIB) if quick else (1000, 2 * GIB)
    noise = random.Random(11)
    with pool(directory) as server:
        empty = used(server)
        family = Family(server, noise)
        for _ in range(count):
            family.grow()
        full = used(server)
        snapshots = len(family.snapshots)
        while family.disks or family.snapshots:
            family.shrink()
            if noise.random() < 0.02:
                family.crash()
        began = time.monotonic()
        left = used(server) - empty
        freeing = time.monotonic() - began
        after = server.status()
        golden = last_clone(server, empty, size)
    return {
        "what": "space in use after the last deletion, above an empty pool's",
        "objects": count, "snapshots": snapshots, "full_mib": (full - empty) >> 20,
        "left_bytes": left, "last_flush_seconds": round(freeing, 2),
        "held": after["space"]["held"], "freeing": after["space"]["freeing"],
        "golden_deleted": golden, "size": size,
        # A clone's map, written twice, is in use as well.
        "holds": abs(left) <= MIB and golden["in_use"] <= golden["refers_to"] + size // 100
        and abs(golden["refers_to"] - size) <= MIB and abs(golden["after"]) <= MIB
        and golden["held"] == 0,
    }


ALL = {"clones": clones, "clone-space": clone_space, "group-consistency": group_consistency,
       "delete-everything": delete_everything, **branchspeed.ALL}
