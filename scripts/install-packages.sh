#!/bin/sh
# Installs the Debian packages that a purpose needs, and only those that are missing.
#
#   scripts/install-packages.sh build|test|bench...
#
# Nothing is asked of the network when everything is there already.
set -eu

build="gcc g++ libc6-dev git ca-certificates liburing-dev libisal-dev"
clients="python3 python3-libnbd qemu-utils nbdkit libnbd-bin fio e2fsprogs util-linux procps"
profilers="valgrind"
peers="xfsprogs btrfs-progs gnuplot-nox"
emulator="libfuse3-dev fuse3 pkg-config"
guests="qemu-system-x86 debootstrap debian-archive-keyring busybox-static lz4 xz-utils zstd kmod"

wanted=""
for purpose in "$@"; do
  case "$purpose" in
    build) wanted="$wanted $build" ;;
    test) wanted="$wanted $build $clients $guests $profilers" ;;
    bench) wanted="$wanted $build $clients $peers $emulator" ;;
    *)
      echo "install-packages: “$purpose” is unknown; say build, test or bench" >&2
      exit 64
      ;;
  esac
done

missing=""
for package in $wanted; do
  state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
  if [ "$state" != installed ]; then
    case " $missing " in
      *" $package "*) ;;
      *) missing="$missing $package" ;;
    esac
  fi
done
if [ -z "$missing" ]; then
  exit 0
fi

as_root=""
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null 2>&1; then
    echo "install-packages: these packages are missing and only root can install them;" \
      "run as root: apt-get install$missing" >&2
    exit 1
  fi
  as_root="sudo"
fi

echo "installing:$missing"
export DEBIAN_FRONTEND=noninteractive
$as_root apt-get -q update
# shellcheck disable=SC2086  # a list of words is meant
$as_root apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends $missing
