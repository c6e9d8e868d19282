#!/usr/bin/python3
"""A peer of clones: the golden image on a file system of its own, cloned with the FICLONE ioctl.

    unshare --mount bench/reflink.py xfs|btrfs FILE SIZE COUNT

Makes the file system in FILE, mounts it by a loop device, clones COUNT times in one process and
prints the seconds as JSON. Mount and loop device end with the mount namespace, even after kill -9.
"""

import fcntl
import json
import os
import pathlib
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "Tests/Support"))

import blocks  # noqa: E402

FICLONE = 0x40049409
MAKE = {"xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"], "btrfs": ["mkfs.btrfs", "-q"]}


def make_image(path, size):
    count = blocks.PIECE // blocks.BLOCK
    with open(path, "wb") as file:
        file.truncate(size)
        for block in blocks.golden_pieces(size):
            os.pwrite(file.fileno(), blocks.content(0, block, count), block * blocks.BLOCK)
        os.fsync(file.fileno())


def main(kind, file, size, count):
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    with open(file, "wb") as image:
        image.truncate(2 * size + (2 << 30))
    subprocess.run([*MAKE[kind], file], check=True, stdout=subprocess.DEVNULL)
    place = pathlib.Path(f"{file}.mounted")
    place.mkdir()
    subprocess.run(["mount", "-o", "loop", file, place], check=True)
    try:
        make_image(place / "golden", size)
        os.sync()
        began = time.monotonic()
        with open(place / "golden", "rb") as golden:
            for number in range(count):
                with open(place / f"clone{number}", "wb") as clone:
                    fcntl.ioctl(clone.fileno(), FICLONE, golden.fileno())
        cloned = time.monotonic()
        descriptor = os.open(place, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        subprocess.run(["sync", "--file-system", place / "golden"], check=True)
        print(json.dumps({"clones": count, "seconds": cloned - began,
                          "until_durable": time.monotonic() - began}))
    finally:
        subprocess.run(["umount", place])
        place.rmdir()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
