"""fio with its nbd engine and checksums over everything it wrote."""

import json

from sluicetest import tools
from sluicetest.daemon import Pool
from sluicetest.runner import expect, test

DISKS = 8
# Of each disk; `make bench` runs the same at ten times the size.
SIZE = "96m"


def fio(arguments, timeout=300):
    """Runs fio, which must report no error; returns its report."""
    done = tools.run(["fio", "--output-format=json", "--group_reporting", *arguments],
                     timeout=timeout)
    report = json.loads(done.stdout[done.stdout.index("{"):])
    for job in report["jobs"]:
        expect(job["error"] == 0, f"fio reports error {job['error']} in {job['jobname']}")
    return report


def job(name, uri, *arguments):
    return [f"--name={name}", "--ioengine=nbd", f"--uri={uri}", *arguments]


def verifying(size=SIZE):
    return ["--rw=randwrite", f"--size={size}", "--iodepth=16", "--verify=crc32c",
            "--verify_fatal=1", "--do_verify=1", "--randrepeat=1"]


@test("fio verifies mixed sizes from 512 bytes to 1 MiB at unaligned offsets on 8 disks at once")
def _(context):
    pool = Pool(context)
    pool.start()
    jobs = []
    for number in range(DISKS):
        uri = pool.create_disk(f"disk{number}", "128M")
        jobs += job(f"disk{number}", uri, *verifying(), f"--randseed={number + 1}",
                    "--bsrange=512-1m", "--blockalign=512", "--bs_unaligned=0")
    report = fio(jobs)
    written = sum(entry["write"]["io_bytes"] for entry in report["jobs"])
    read = sum(entry["read"]["io_bytes"] for entry in report["jobs"])
    context.note(f"{written >> 20} MiB written, {read >> 20} MiB verified")
    expect(read >= written > 0, "fio did not verify all that it wrote")


@test("fio verifies after a kill -9 and a restart what it wrote before")
def _(context):
    pool = Pool(context)
    pool.start()
    uri = pool.create_disk("disk", "128M")
    load = job("disk", uri, "--rw=randwrite", f"--size={SIZE}", "--iodepth=16", "--verify=crc32c",
               "--verify_fatal=1", "--bssplit=512/20:4k/40:20k/20:64k/10:1m/10",
               "--blockalign=512", "--randseed=99")
    fio([*load, "--do_verify=0"])
    pool.kill()
    pool.start()
    fio([*load, "--verify_only=1"])


@test("fio verifies disks while others are trimmed and rewritten")
def _(context):
    pool = Pool(context)
    pool.start()
    jobs = []
    for number in range(4):
        uri = pool.create_disk(f"disk{number}", "128M")
        if number % 2:
            jobs += job(f"disk{number}", uri, "--rw=randtrimwrite", f"--size={SIZE}", "--bs=64k",
                        "--iodepth=4")
        else:
            jobs += job(f"disk{number}", uri, *verifying(), "--bs=4k", "--fsync=32")
    fio(jobs)
