"""What is refused: each with a plain sentence, the right exit status, and nothing changed."""

import json
import os
import shutil

from sluicetest import tools
from sluicetest.daemon import Pool
from sluicetest.runner import expect, test

USAGE, FAILURE = 64, 1


def sentence(done, what):
    """The error of a command: one plain sentence on standard error, nothing on standard output."""
    text = done.stderr.strip()
    expect(text, f"{what}: refused without a word")
    for word in ("Fatal error", "Thread 0 crashed", "Traceback", "Optional("):
        expect(word not in text, f"{what}: {text}")
    return text


def refused_to_serve(pool, what):
    pool.launch()
    status, said = pool.ended()
    expect(status == FAILURE, f"{what}: exit status {status}, not {FAILURE}:\n{said}")
    expect(said.strip() and "Fatal error" not in said, f"{what}: no sentence, but “{said}”")
    expect("ready" not in said.splitlines(), f"{what}: it said ready")
    return said


def write_known(pool, name="disk"):
    uri = pool.create_disk(name, "8M")
    tools.run(["qemu-io", "-f", "raw", "-c", "write -P 0x5a 0 8M", uri])
    return uri


def known(pool, name="disk"):
    tools.run(["qemu-io", "-r", "-f", "raw", "-c", "read -P 0x5a 0 8M", pool.uri(name)])


@test("wrong usage exits with 64 and says what is right")
def _(context):
    pool = Pool(context)
    pool.start()
    cases = [
        ["disk", "create"], ["disk", "create", "x"], ["disk", "frobnicate"], ["frobnicate"],
        ["disk", "create", "x", "--size"], ["disk", "list", "--frobnicate"],
        ["disk", "create", "x", "--size", "ten"], ["disk", "create", "x", "--size", "-5"],
        ["disk", "create", "x", "--size", "1Z"], ["disk", "create", "x", "--size", ""],
        ["disk", "create", "x", "--size", "99999999999999999999"],
        ["disk", "set", "x", "colour=red"], ["disk", "set", "x", "durability=maybe"],
    ]
    for case in cases:
        done = pool.command(*case, status=None)
        expect(done.returncode == USAGE, f"{case}: exit status {done.returncode}\n{done.stderr}")
        sentence(done, case)
    expect(pool.json("disk", "list") == [], "a refused command created a disk")


@test("names outside the rules are refused with the rule")
def _(context):
    pool = Pool(context)
    pool.start()
    names = ["", ".", "..", "a/..", "../a", "/a", "a/", "a//b", "a b", "ä", "a@b", "a:b", "a\nb",
             "x" * 256, "a\\b", "a%20b", "a%", "*"]
    for name in names:
        done = pool.command("disk", "create", "--size", "1M", "--", name, status=None)
        expect(done.returncode in (USAGE, FAILURE), f"“{name}”: exit status {done.returncode}")
        sentence(done, name)
    expect(pool.json("disk", "list") == [], "a wrong name became a disk")
    for name in ("x" * 255, "a/b/c", "..a", "A-Z_0.9"):
        pool.cli("disk", "create", "--size", "1M", "--", name)
    listed = sorted(disk["name"] for disk in pool.json("disk", "list"))
    expect(listed == sorted(("x" * 255, "a/b/c", "..a", "A-Z_0.9")), f"listed {listed}")


@test("sizes outside the rules are refused, odd ones are rounded up to 512 bytes")
def _(context):
    pool = Pool(context)
    pool.start()
    for size in ("0", "65536P", "16384P"):
        done = pool.command("disk", "create", "disk", "--size", size, status=None)
        expect(done.returncode in (USAGE, FAILURE), f"size {size}: status {done.returncode}")
        sentence(done, size)
    for size, stored in (("1", 512), ("513", 1024), ("1000000", 1000448), ("64T", 64 << 40)):
        pool.cli("disk", "create", f"disk{size}", "--size", size)
        shown = pool.json("disk", "show", f"disk{size}")["size"]
        expect(shown == stored, f"--size {size} became {shown}")


@test("commands on disks that are not there, or are there already, fail with 1")
def _(context):
    pool = Pool(context)
    pool.start()
    pool.create_disk("there", "1M")
    for case in (["disk", "show", "gone"], ["disk", "delete", "gone"],
                 ["disk", "rename", "gone", "x"], ["disk", "resize", "gone", "2M"],
                 ["disk", "set", "gone", "read_only=on"],
                 ["disk", "create", "there", "--size", "2M"],
                 ["disk", "rename", "there", "there"]):
        done = pool.command(*case, status=None)
        expect(done.returncode == FAILURE, f"{case}: exit status {done.returncode}")
        sentence(done, case)
    expect(pool.json("disk", "show", "there")["size"] == 1 << 20, "the disk was changed")


@test("commands without a daemon fail with 1 and say so")
def _(context):
    pool = Pool(context)
    for case in (["disk", "list"], ["status"], ["flush"]):
        done = pool.command(*case, status=None)
        expect(done.returncode == FAILURE, f"{case}: exit status {done.returncode}")
        sentence(done, case)


@test("deleting and shrinking a disk with a connected client is refused without --force")
def _(context):
    pool = Pool(context)
    pool.start()
    uri = write_known(pool)
    client = tools.spawn(["qemu-io", "-r", "-f", "raw", "-c", "sleep 60000", uri])
    context.stack.callback(tools.finish, client)
    tools.wait_until(lambda: pool.json("disk", "show", "disk")["connections"] == 1, 10,
                     "the client is not counted")
    for case in (["disk", "delete", "disk"], ["disk", "resize", "disk", "4M", "--shrink"]):
        done = pool.command(*case, status=FAILURE)
        sentence(done, case)
    known(pool)
    pool.cli("disk", "delete", "disk", "--force")
    expect(pool.json("disk", "list") == [], "the disk is still listed")


@test("a second daemon on one pool is refused, and the first serves on")
def _(context):
    pool = Pool(context)
    pool.start()
    write_known(pool)
    second = Pool(context, create=False)
    second.check_at_end = False
    refused_to_serve(second, "a second daemon")
    known(pool)
    # Not by another directory with the same devices either.
    other = context.path("other")
    other.mkdir()
    hint = json.loads((pool.directory / "pool.json").read_text())
    text = json.dumps(hint).replace('"vlog.img', f'"{pool.directory}/vlog.img')
    text = text.replace('"vspace0.img', f'"{pool.directory}/vspace0.img')
    (other / "pool.json").write_text(text)
    third = Pool(context, name="other", create=False)
    third.check_at_end = False
    refused_to_serve(third, "a daemon with another directory")
    known(pool)


@test("a log swapped for another pool's is refused, and nothing is written to either")
def _(context):
    first, second = Pool(context, name="first"), Pool(context, name="second")
    for pool in (first, second):
        pool.start()
        write_known(pool)
        pool.kill()
    for pool in (first, second):
        os.rename(pool.directory / "vlog.img", context.path(pool.directory.name + ".log"))
    os.rename(context.path("first.log"), second.directory / "vlog.img")
    os.rename(context.path("second.log"), first.directory / "vlog.img")
    for pool in (first, second):
        refused_to_serve(pool, "a foreign log")
    os.rename(first.directory / "vlog.img", context.path("second.log"))
    os.rename(second.directory / "vlog.img", first.directory / "vlog.img")
    os.rename(context.path("second.log"), second.directory / "vlog.img")
    for pool in (first, second):
        pool.start()
        known(pool)


@test("a missing, a truncated and an empty volume are refused, and come back unharmed")
def _(context):
    pool = Pool(context)
    pool.start()
    write_known(pool)
    pool.kill()
    volume, aside = pool.directory / "vspace0.img", context.path("aside.img")
    os.rename(volume, aside)
    said = refused_to_serve(pool, "a missing volume")
    expect("vspace0.img" in said, f"the sentence does not name the volume: {said}")
    with open(volume, "wb") as file:
        file.truncate(aside.stat().st_size)
    refused_to_serve(pool, "an empty volume")
    tools.run(["cp", "--sparse=always", aside, volume])
    os.truncate(volume, 1 << 20)
    refused_to_serve(pool, "a truncated volume")
    os.rename(aside, volume)
    pool.start()
    known(pool)


@test("a file that another program filled is refused as a volume without --force")
def _(context):
    foreign = context.path("foreign.img")
    tools.make_image(foreign, 64 << 20, seed=21, holes=False)
    before = foreign.read_bytes()
    pool = Pool(context, create=False)
    done = pool.command("pool", "create", pool.directory, "--log",
                        f"{context.path('log.img')}:256M", "--space", foreign, pool=False,
                        status=None)
    expect(done.returncode == FAILURE, f"exit status {done.returncode}")
    sentence(done, "a foreign file")
    expect(foreign.read_bytes() == before, "the foreign file was changed")


@test("a pool is not created over another without --force, and the first stays whole")
def _(context):
    pool = Pool(context)
    pool.start()
    write_known(pool)
    pool.stop()
    done = pool.command("pool", "create", pool.directory, pool=False, status=FAILURE)
    sentence(done, "a pool over a pool")
    pool.start()
    known(pool)


@test("a volume that can't be written is refused with a sentence")
def _(context):
    pool = Pool(context)
    pool.start()
    write_known(pool)
    pool.stop()
    volume = pool.directory / "vspace0.img"
    # Root writes to read-only files; a read-only mount it respects.
    tools.run(tools.as_root(["mount", "--bind", str(volume), str(volume)]))
    context.stack.callback(
        lambda: tools.run(tools.as_root(["umount", str(volume)]), status=None))
    tools.run(tools.as_root(["mount", "-o", "remount,bind,ro", str(volume)]))
    refused_to_serve(pool, "a read-only volume")
    tools.run(tools.as_root(["umount", str(volume)]))
    pool.start()
    known(pool)


@test("a pool opens from its devices alone, under other names and in another directory")
def _(context):
    pool = Pool(context)
    pool.start()
    write_known(pool)
    pool.kill()
    moved = context.path("moved")
    moved.mkdir()
    os.rename(pool.directory / "vlog.img", moved / "a.img")
    os.rename(pool.directory / "vspace0.img", moved / "b.img")
    shutil.rmtree(pool.directory)
    other = Pool(context, name="found", create=False)
    other.directory.mkdir()
    other.cli("pool", "open", other.directory, moved / "b.img", moved / "a.img", pool=False)
    other.start()
    known(other)


@test("a socket path that is too long gets a clear error")
def _(context):
    name = "d" * 120
    pool = Pool(context, name=name, create=False)
    pool.command("pool", "create", pool.directory, "--log", f"{context.path('log.img')}:256M",
                 "--space", f"{context.path('space.img')}:1G", "--name", "long", pool=False)
    pool.launch()
    status, said = pool.ended()
    expect(status in (FAILURE, USAGE), f"exit status {status}")
    expect("long" in said, f"the sentence does not say that the path is too long: {said}")


@test("an address beyond loopback is refused without --insecure")
def _(context):
    pool = Pool(context)
    pool.launch("--nbd", "0.0.0.0:10999")
    status, said = pool.ended()
    expect(status in (FAILURE, USAGE), f"exit status {status}")
    expect("insecure" in said, f"the sentence does not name --insecure: {said}")
