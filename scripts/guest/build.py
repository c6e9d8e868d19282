#!/usr/bin/python3
"""Builds the Debian guest that the tests boot: kernel, initial ramdisk, root disk image.

    scripts/guest/build.py [DIR]        (default: var/guest)

The kernel is Debian's, unpacked from its package and not installed; QEMU boots it uncompressed,
by PVH, seconds faster under emulation. The root disk is a debootstrap tree made into an image
without a mount or a boot loader. Built once: a stamp of these scripts says whether it is current.
"""

import hashlib
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zlib

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SUITE = "bookworm"
KERNEL = "linux-image-cloud-amd64"
PACKAGES = "systemd-sysv,udev,kmod,qemu-guest-agent"
MODULES = ["virtio_pci", "virtio_mmio", "virtio_blk", "virtio_console", "ext4"]
IMAGE_SIZE = "1500M"
UNIT = """[Unit]
Description=The test's task
After=local-fs.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/task
[Install]
WantedBy=multi-user.target
"""
# Nothing that a test guest needs, and each takes its time under emulation.
MASKED = ["getty.target", "serial-getty@ttyS0.service", "systemd-timesyncd.service",
          "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
          "e2scrub_reap.service", "fstrim.timer", "systemd-update-utmp.service",
          "systemd-logind.service", "systemd-user-sessions.service", "dbus.service",
          "systemd-networkd.service", "systemd-resolved.service", "systemd-pstore.service",
          "systemd-rfkill.service", "systemd-hwdb-update.service", "systemd-udev-trigger.service",
          "systemd-binfmt.service", "systemd-random-seed.service", "systemd-update-done.service",
          "proc-sys-fs-binfmt_misc.automount", "dev-hugepages.mount", "dev-mqueue.mount",
          "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "modprobe@.service",
          "systemd-sysctl.service", "systemd-modules-load.service", "ldconfig.service",
          "qemu-guest-agent.service"]


def say(text):
    print(f"guest image: {text}", flush=True)


def run(*command, **arguments):
    done = subprocess.run([str(word) for word in command], text=True, capture_output=True,
                          stdin=subprocess.DEVNULL, **arguments)
    if done.returncode != 0:
        line = " ".join(str(word) for word in command)
        sys.exit(f"guest image: exit status {done.returncode}: {line}\n"
                 f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def as_root(*command, **arguments):
    return run(*([] if os.geteuid() == 0 else ["sudo", "-n"]), *command, **arguments)


def current_stamp():
    digest = hashlib.sha256()
    for name in ("build.py", "init.sh", "task.sh"):
        digest.update((HERE / name).read_bytes())
    return digest.hexdigest()


# Kernel


def kernel_packages():
    """The package that Debian's name for its newest kernel stands for, in a list; empty if none."""
    done = subprocess.run(["apt-cache", "depends", "--important", KERNEL], text=True,
                          capture_output=True)
    return [line.split()[-1] for line in done.stdout.splitlines()
            if "Depends: linux-image" in line]


def unpack_kernel(work):
    """Downloads and unpacks the kernel package; returns (its tree, its version)."""
    names = kernel_packages()
    if not names:
        as_root("apt-get", "-q", "update")
        names = kernel_packages()
    if not names:
        sys.exit(f"guest image: apt knows no {KERNEL}; does it know Debian {SUITE}?")
    run("apt-get", "-q", "download", names[0], cwd=work)
    package = next(work.glob("linux-image-*.deb"))
    tree = work / "kernel"
    run("dpkg-deb", "-x", package, tree)
    version = names[0].removeprefix("linux-image-")
    run("depmod", "-b", tree, version)
    return tree, version


def decompressed(data, at):
    """What a compressed stream at this place of a bzImage holds, or None."""
    magics = (
        (b"\x1f\x8b\x08", lambda rest: zlib.decompressobj(31).decompress(rest)),
        (b"\xfd7zXZ\x00", lambda rest: lzma.LZMADecompressor().decompress(rest)),
        (b"\x28\xb5\x2f\xfd", lambda rest: filtered(["zstd", "-dc"], rest)),
        (b"\x02\x21\x4c\x18", lambda rest: filtered(["lz4", "-dc"], rest)),
    )
    for magic, decompress in magics:
        if data.startswith(magic, at):
            try:
                return decompress(data[at:])
            except (zlib.error, lzma.LZMAError, OSError):
                return None
    return None


def filtered(command, data):
    # What follows the stream makes the program complain after it has done its work.
    return subprocess.run(command, input=data, capture_output=True).stdout


def extract_vmlinux(bzimage):
    """The ELF kernel that a bzImage carries compressed."""
    data = bzimage.read_bytes()
    starts = (b"\x1f\x8b\x08", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x02\x21\x4c\x18")
    for magic in starts:
        at = data.find(magic)
        while at >= 0:
            found = decompressed(data, at)
            if found and found.startswith(b"\x7fELF"):
                return found
            at = data.find(magic, at + 1)
    sys.exit(f"guest image: {bzimage} carries no compression that is known here")


# Initial ramdisk


def build_initrd(work, kernel, version, target):
    tree = work / "initrd"
    for name in ("bin", "dev", "proc", "sys", "root", "modules"):
        (tree / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    shutil.copy(HERE / "init.sh", tree / "init")
    (tree / "init").chmod(0o755)
    order = []
    for module in MODULES:
        listed = run("modprobe", "-d", kernel, "-S", version, "--show-depends", module)
        for line in listed.splitlines():
            words = line.split()
            if words[0] == "insmod" and words[1] not in order:
                order.append(words[1])
    for path in order:
        shutil.copy(path, tree / "modules")
    names = [pathlib.Path(path).name for path in order]
    (tree / "modules/order").write_text("".join(name + "\n" for name in names))
    files = "\n".join(str(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    target.write_bytes(cpio(tree, files))


def cpio(tree, files):
    done = subprocess.run(["/bin/busybox", "cpio", "-o", "-H", "newc"], input=files.encode(),
                          cwd=tree, capture_output=True)
    if done.returncode != 0:
        sys.exit(f"guest image: cpio failed: {done.stderr.decode()}")
    return done.stdout


# Root disk


def build_root(work, target):
    masked = " ".join(f"/etc/systemd/system/{name}" for name in MASKED)
    setup = work / "setup.sh"
    # In memory, seen by this script only: dpkg syncs after every file.
    setup.write_text(f"""set -eu
mkdir "{work}/root"
mount -t tmpfs -o mode=755 tmpfs "{work}/root"
cd "{work}/root"
debootstrap --variant=minbase --include={PACKAGES} {SUITE} .
rm -rf var/cache/apt/archives/*.deb var/lib/apt/lists/* usr/share/doc usr/share/locale usr/share/man
install -m 755 "{HERE}/task.sh" usr/local/sbin/task
install -m 644 "{work}/task.service" etc/systemd/system/task.service
mkdir -p etc/systemd/system/multi-user.target.wants
ln -s ../task.service etc/systemd/system/multi-user.target.wants/task.service
for unit in {masked}; do ln -sf /dev/null ".$unit"; done
echo /dev/vda / ext4 defaults 0 0 >etc/fstab
echo guest >etc/hostname
rm -f "$1"
# Whole, as an image is that has been in use: else the kernel zeroes tables behind the scenes.
mkfs.ext4 -q -F -E lazy_itable_init=0 -L root -d . "$1" {IMAGE_SIZE}
chown {os.geteuid()} "$1"
""")
    (work / "task.service").write_text(UNIT)
    as_root("unshare", "-m", "sh", setup, target)


def build(directory):
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    directory.mkdir(parents=True, exist_ok=True)
    stamp = directory / "stamp"
    if stamp.exists() and stamp.read_text() == current_stamp():
        return
    stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="sluice-guest-", dir="/var/tmp") as name:
        work = pathlib.Path(name)
        # debootstrap's tree must be passable for every user.
        work.chmod(0o755)
        say("unpacking the kernel")
        kernel, version = unpack_kernel(work)
        vmlinux = extract_vmlinux(kernel / f"boot/vmlinuz-{version}")
        (directory / "vmlinux").write_bytes(vmlinux)
        build_initrd(work, kernel, version, directory / "initrd")
        say("debootstrap, a minute or so")
        build_root(work, directory / "root.raw")
    stamp.write_text(current_stamp())
    say("done")


if __name__ == "__main__":
    build(pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "var/guest")
