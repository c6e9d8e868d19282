"""qemu-img, qemu-io, nbdinfo and nbdcopy: what they write is what they read, holes are holes."""

import hashlib
import json

import nbd
from sluicetest import tools
from sluicetest.daemon import Pool
from sluicetest.runner import expect, test

MIB = 1 << 20
BLOCK = 4096


def served(context, **arguments):
    pool = Pool(context, **arguments)
    pool.start()
    return pool


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def merged_data(entries, is_data):
    """Neighbouring data ranges of a map as one (offset, end) each."""
    ranges = []
    for offset, length in sorted((e["start" if "start" in e else "offset"], e["length"])
                                 for e in entries if is_data(e)):
        if ranges and ranges[-1][1] == offset:
            ranges[-1] = (ranges[-1][0], offset + length)
        else:
            ranges.append((offset, offset + length))
    return ranges


def qemu_data(target):
    entries = tools.run_json(["qemu-img", "map", "--output=json", "-f", "raw", target])
    return merged_data(entries, lambda entry: entry["data"])


def nbdinfo_data(uri):
    entries = tools.run_json(["nbdinfo", "--map", "--json", uri])
    return merged_data(entries, lambda entry: entry["type"] & 1 == 0)


def merged(ranges):
    return merged_data([{"offset": o, "length": n} for o, n in ranges], lambda _: True)


@test("an image that qemu-img converts into a disk and back is bit-identical")
def _(context):
    pool = served(context)
    image, back = context.path("image.raw"), context.path("back.raw")
    tools.make_image(image, 192 * MIB)
    uri = pool.create_disk("image", "192M")
    tools.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri])
    tools.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri])
    pool.restart()
    tools.run(["qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back])
    expect(digest(image) == digest(back), "the image came back changed")


@test("a qcow2 image converted with parallel out-of-order writes is the same on the disk")
def _(context):
    pool = served(context)
    raw, image = context.path("image.raw"), context.path("image.qcow2")
    tools.make_image(raw, 96 * MIB, seed=2)
    tools.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", raw, image])
    uri = pool.create_disk("vm/image", "96M")
    tools.run(["qemu-img", "convert", "-n", "-W", "-m", "16", "-f", "qcow2", "-O", "raw", image,
               uri])
    pool.cli("flush")
    tools.run(["qemu-img", "compare", "-f", "qcow2", "-F", "raw", image, uri])


@test("qemu-img map and nbdinfo --map show holes as holes, before and after destaging")
def _(context):
    pool = served(context)
    image = context.path("image.raw")
    data = merged(tools.make_image(image, 64 * MIB, seed=3))
    uri = pool.create_disk("mapped", "64M")
    tools.run(["qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, uri])
    expect(nbdinfo_data(uri) == data, f"from the log: {nbdinfo_data(uri)}, not {data}")
    pool.cli("flush")
    expect(nbdinfo_data(uri) == data, f"destaged: {nbdinfo_data(uri)}, not {data}")
    expect(qemu_data(uri) == data, f"qemu-img map: {qemu_data(uri)}, not {data}")
    pool.restart()
    expect(nbdinfo_data(uri) == data, f"after a restart: {nbdinfo_data(uri)}, not {data}")


@test("a new disk is one hole and takes no space")
def _(context):
    pool = served(context)
    before = pool.used()
    uri = pool.create_disk("empty", "1T")
    expect(nbdinfo_data(uri) == [], f"data in a new disk: {nbdinfo_data(uri)}")
    shown = pool.json("disk", "show", "empty")
    expect(shown["size"] == 1 << 40, f"size {shown['size']}")
    expect(shown["used"] == 0, f"a new disk uses {shown['used']} bytes")
    # The catalog takes space in steps; a disk takes next to nothing of it.
    for number in range(50):
        pool.create_disk(f"more{number}", "1T")
    taken = pool.used() - before
    expect(taken <= 2 * MIB, f"51 empty disks take {taken} bytes")


@test("nbdcopy with several connections copies a disk to another and to a file")
def _(context):
    pool = served(context)
    image, back = context.path("image.raw"), context.path("back.raw")
    tools.make_image(image, 128 * MIB, seed=4)
    first, second = pool.create_disk("first", "128M"), pool.create_disk("second", "128M")
    tools.run(["nbdcopy", "--connections=4", "--requests=32", "--flush", image, first])
    tools.run(["nbdcopy", "--connections=4", "--requests=32", first, second])
    tools.run(["nbdcopy", "--connections=4", second, back])
    expect(digest(image) == digest(back), "the copy of a copy differs from the original")


@test("nbdinfo lists the disks and shows what an export can do")
def _(context):
    pool = served(context)
    for name, size in (("one", "512"), ("two", "64M"), ("dir/three", "8G")):
        pool.create_disk(name, size)
    listed = json.loads(tools.run(["nbdinfo", "--list", "--json", pool.uri()]).stdout)
    names = sorted(export["export-name"] for export in listed["exports"])
    expect(names == ["dir/three", "one", "two"], f"listed: {names}")
    info = json.loads(tools.run(["nbdinfo", "--json", pool.uri("two")]).stdout)
    export = info["exports"][0]
    expect(info["structured"], "no structured replies")
    expect(export["export-size"] == 64 * MIB, f"size {export['export-size']}")
    for ability in ("can_cache", "can_df", "can_fast_zero", "can_flush", "can_fua",
                    "can_multi_conn", "can_trim", "can_zero"):
        expect(export[ability], f"{ability} is missing")
    expect(not export["is_read_only"], "the disk is read-only")
    expect("base:allocation" in export["contexts"], f"contexts {export['contexts']}")
    sizes = [export[f"block_size_{kind}"] for kind in ("minimum", "preferred", "maximum")]
    expect(sizes == [512, 4096, 32 * MIB], f"block sizes {sizes}")


@test("the empty name and a wrong name are unknown exports")
def _(context):
    pool = served(context)
    pool.create_disk("known", "1M")
    for name in ("", "unknown", "known@snap", "../known", "known/"):
        done = tools.run(["nbdinfo", pool.uri(name)], status=None)
        expect(done.returncode != 0, f"“{name}” was served:\n{done.stdout}")


@test("qemu-io reads back patterns, and zeros where it discarded or wrote zeros")
def _(context):
    pool = served(context)
    uri = pool.create_disk("patterns", "64M")
    commands = [
        "write -P 0x11 0 1M", "write -P 0x22 512 512", "write -P 0x33 1M 8M",
        "write -z 2M 64k", "write -z -u 3M 1M", "discard 5M 512k", "write -P 0x44 5100k 3k",
        "write -P 0x55 67108352 512", "write -f -P 0x66 10M 4k", "flush",
    ]
    reads = [
        "read -P 0x11 0 512", "read -P 0x22 512 512", "read -P 0x11 1k 1023k",
        "read -P 0x33 1M 1M", "read -P 0 2M 64k", "read -P 0x33 2112k 960k", "read -P 0 3M 1M",
        "read -P 0x33 4M 1004k", "read -P 0x44 5100k 3k", "read -P 0x33 5103k 17k",
        "read -P 0 5M 512k", "read -P 0x33 5632k 512k",
        "read -P 0x55 67108352 512", "read -P 0x66 10M 4k", "read -P 0 11M 4M",
    ]

    def qemu_io(steps):
        words = [word for step in steps for word in ("-c", step)]
        done = tools.run(["qemu-io", "-f", "raw", "-d", "unmap", *words, uri])
        expect("Pattern verification failed" not in done.stdout, done.stdout)

    qemu_io(commands + reads)
    pool.kill()
    pool.start()
    qemu_io(reads)
    pool.cli("flush")
    qemu_io(reads)


@test("blocks of zeros that a client writes become holes and take no space")
def _(context):
    pool = served(context)
    uri = pool.create_disk("zeros", "64M")
    pool.used()
    tools.run(["qemu-io", "-f", "raw", "-c", "write -P 0x77 0 16M", "-c", "write -P 0 4M 8M", uri])
    pool.cli("flush")
    data = nbdinfo_data(uri)
    expect(data == [(0, 4 * MIB), (12 * MIB, 16 * MIB)], f"data at {data}")
    used = pool.json("disk", "show", "zeros")["used"]
    expect(used <= 9 * MIB, f"8 MiB of data take {used} bytes")


@test("space comes back after a discard and after the disk is deleted")
def _(context):
    pool = served(context)
    before = pool.used()
    uri = pool.create_disk("gone", "256M")
    image = context.path("image.raw")
    tools.make_image(image, 128 * MIB, seed=5, holes=False)
    tools.run(["nbdcopy", image, uri])
    full = pool.used()
    expect(full - before >= 128 * MIB, f"128 MiB of noise take {full - before} bytes")
    tools.run(["qemu-io", "-f", "raw", "-d", "unmap", "-c", "discard 0 64M", uri])
    half = pool.used()
    expect(full - half >= 63 * MIB, f"a discard of 64 MiB gave back {full - half} bytes")
    pool.cli("disk", "delete", "gone")
    after = pool.used()
    expect(abs(after - before) <= MIB, f"{after - before} bytes are still in use")


@test("a resized disk shows its new size to new connections, and its new end is zeros")
def _(context):
    pool = served(context)
    uri = pool.create_disk("grows", "8M")
    tools.run(["qemu-io", "-f", "raw", "-c", "write -P 0x99 0 8M", uri])
    pool.cli("disk", "resize", "grows", "16M")
    tools.run(["qemu-io", "-f", "raw", "-c", "read -P 0x99 0 8M", "-c", "read -P 0 8M 8M", uri])
    pool.command("disk", "resize", "grows", "4M", status=1)
    pool.cli("disk", "resize", "grows", "4M", "--shrink")
    pool.cli("disk", "resize", "grows", "8M")
    tools.run(["qemu-io", "-f", "raw", "-c", "read -P 0x99 0 4M", "-c", "read -P 0 4M 4M", uri])


@test("a read-only disk refuses writes and keeps its content")
def _(context):
    pool = served(context)
    uri = pool.create_disk("fixed", "4M")
    tools.run(["qemu-io", "-f", "raw", "-c", "write -P 0x12 0 4M", uri])
    pool.cli("disk", "set", "fixed", "read_only=on")
    done = tools.run(["qemu-io", "-f", "raw", "-c", "write -P 0x13 0 4k", uri], status=None)
    expect(done.returncode != 0, "a write to a read-only disk succeeded")
    tools.run(["qemu-io", "-r", "-f", "raw", "-c", "read -P 0x12 0 4M", uri])
    pool.cli("disk", "set", "fixed", "read_only=off")
    tools.run(["qemu-io", "-f", "raw", "-c", "write -P 0x13 0 4k", uri])


@test("renamed disks keep their content and their old names are free")
def _(context):
    pool = served(context)
    uri = pool.create_disk("before", "4M")
    tools.run(["qemu-io", "-f", "raw", "-c", "write -P 0x21 0 4M", uri])
    pool.cli("disk", "rename", "before", "folder/after")
    pool.create_disk("before", "1M")
    tools.run(["qemu-io", "-f", "raw", "-c", "read -P 0x21 0 4M", pool.uri("folder/after")])
    tools.run(["qemu-io", "-f", "raw", "-c", "read -P 0 0 1M", pool.uri("before")])


@test("everything works with a cache of 16 MiB")
def _(context):
    pool = served(context, arguments=["--cache", "16M"])
    image = context.path("image.raw")
    tools.make_image(image, 256 * MIB, seed=6)
    uri = pool.create_disk("large", "256M")
    tools.run(["nbdcopy", "--connections=4", image, uri])
    pool.cli("flush")
    tools.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", image, uri])


def self_checked(fill):
    """A block as ext4 writes some: at its end is the CRC32C of what is before it. All such blocks
    have the same CRC32C as a whole."""
    data = bytes([fill]) * (BLOCK - 4)
    checksum = 0xFFFFFFFF
    for byte in data:
        checksum ^= byte
        for _ in range(8):
            checksum = checksum >> 1 ^ (0x82F63B78 if checksum & 1 else 0)
    return data + checksum.to_bytes(4, "little")


@test("a block that is written over is read anew, also where its checksum stays the same")
def _(context):
    pool = served(context)
    disk = nbd.NBD()
    disk.connect_uri(pool.create_disk("disk", "1M"))
    for fill in (1, 2, 3):
        disk.pwrite(self_checked(fill), 0)
        expect(disk.pread(BLOCK, 0)[0] == fill, "what the log holds is not read")
        pool.cli("flush")
        # The first read brings the block into the cache, the second one finds it there.
        for _ in range(2):
            found = disk.pread(BLOCK, 0)[0]
            expect(found == fill, f"write {fill} reads as write {found}")
    # The same place, given to another disk.
    disk.shutdown()
    pool.cli("disk", "delete", "disk")
    pool.cli("flush")
    other = nbd.NBD()
    other.connect_uri(pool.create_disk("other", "1M"))
    other.pwrite(self_checked(4), 0)
    pool.cli("flush")
    found = other.pread(BLOCK, 0)[0]
    expect(found == 4, f"a new disk reads what write {found} left")
    other.shutdown()
