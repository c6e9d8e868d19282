"""Points that show snapshots and clones: by the ten thousand, small, consistent, and gone when
deleted. How fast disks are that have them is in branchspeed.py."""

import json
import os
import random
import statistics
import sys
import time

from blocks import (BLOCK, GIB, KIB, MIB, PIECE, Stream, connect, content, drive, expect_content,
                    fill_golden, golden_pieces, pool, write)
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


def clones(directory, quick):
    """10,000 clones of a fragmented image in a second, each its own; 100,000 cost the same each."""
    size = GIB if quick else 10 * GIB
    count, written, in_all = 10_000, 100 if quick else 1000, 30_000 if quick else 100_000
    noise = random.Random(3)
    with pool(directory, log="512M" if quick else "4G") as server:
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
        api = API(server.directory / "api.sock", timeout=600)
        series = [batch(api, f"more{number}", count) for number in range(in_all // count - 1)]
        api.close()
        last_thousand = thousand(server, "last")
        peak = server.peak_memory()
        server.kill()
        opening = server.serve(timeout=600)
        text = []
        listing = timed(lambda: text.append(server.cli("disk", "list", "--json")))
        again = len(json.loads(text[0]))
        peak = max(peak, server.peak_memory())
        complete = complete and again >= in_all
        expect_content(server, f"more0-{count}", {0: content(0, 0)})
    ratio = last_thousand["destaged"] / first_thousand["destaged"]
    seconds_each = {"sluice": round(cloning / count, 8),
                    "qemu-img": qemu_overlays(directory, size, 20 if quick else 100)}
    for kind in ("xfs", "btrfs"):
        seconds_each[kind] = reflinks(directory, kind, size, 5 if quick else 20)
    return {
        "what": "clones of a golden image of which 40% is data in extents of 64 KiB",
        "extents": len(golden_pieces(size)), "clone_seconds": round(cloning, 3),
        "all_listed": complete, "first_io": first, "batch_seconds": spread(series, 0),
        "batch_destage_seconds": spread(series, 1), "first_thousand": first_thousand,
        "last_thousand": last_thousand, "thousand_ratio": round(ratio, 2), "peak_memory_mib": peak >> 20,
        "disks": again, "open_seconds": round(opening, 2), "list_seconds": round(listing, 2),
        "seconds_each": seconds_each,
        "holds": cloning < 1 and complete and first["write"]["ratio"] <= 2
        and first["read"]["ratio"] <= 2 and ratio <= 1.5 and peak < GIB and opening < 5 and listing < 2,
    }


ALL = {"clones": clones}
