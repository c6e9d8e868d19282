"""Large pools and many disks, at a tenth of the size and without the time limits of the bench."""

import os
import time

from sluicetest.api import API, APIError
from sluicetest.daemon import Pool
from sluicetest.runner import expect, test

GIB = 1 << 30


@test("a pool of 1 PiB on 65 sparse files is created, opened and used with little written")
def _(context):
    pool = Pool(context, create=False)
    words = ["pool", "create", pool.directory, "--log", f"{pool.directory}/vlog.img:256M"]
    volumes = [pool.directory / f"space{number}.img" for number in range(65)]
    for volume in volumes:
        words += ["--space", f"{volume}:{(16 << 10) - 1}G"]
    pool.cli(*words, pool=False)
    taken = sum(os.stat(volume).st_blocks * 512 for volume in volumes)
    seconds = pool.start()
    size = pool.json("status")["space"]["size"]
    context.note(f"opened in {seconds:.2f} s, {taken >> 20} MiB taken")
    expect(size >= 1 << 50, f"a pool of {size} bytes")
    expect(taken < 128 << 20, f"an empty pool takes {taken} bytes")
    pool.create_disk("petabyte", "1P" if size > 1 << 50 else "512T")
    pool.restart()


@test("10,000 disks are created, listed, and there after a kill -9")
def _(context):
    pool = Pool(context)
    pool.start()
    api = API(pool.directory / "api.sock")
    began = time.monotonic()
    for number in range(10_000):
        api.call("POST", "/v1/disks", {"name": f"vm{number}", "size": 10 * GIB})
    created = time.monotonic() - began
    try:
        api.call("POST", "/v1/disks", {"name": "vm5000", "size": GIB})
        expect(False, "a name was given twice")
    except APIError as error:
        expect(error.status == 409, f"a name that exists was answered with {error}")
    api.close()
    pool.kill()
    seconds = pool.start()
    began = time.monotonic()
    names = {disk["name"] for disk in pool.json("disk", "list")}
    listing = time.monotonic() - began
    expect(names == {f"vm{number}" for number in range(10_000)}, f"{len(names)} disks are listed")
    context.note(f"created in {created:.1f} s, listed in {listing:.2f} s, "
                 f"opened in {seconds:.2f} s")
