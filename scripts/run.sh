#!/bin/sh
# Serves the pool in var/pool, which is created when there is none.
set -eu
cd "$(dirname "$0")/.."

sluice=.build/release/sluice
pool=var/pool
nbd=127.0.0.1:10809
api=127.0.0.1:7440

if [ ! -e "$pool/pool.json" ]; then
  echo "creating a pool in $pool"
  mkdir -p "$pool"
  "$sluice" pool create "$pool" --name run
fi

cat <<TEXT

When it says “ready”, in another terminal:

  export SLUICE_POOL=$PWD/$pool
  $sluice disk create vm1 --size 20G
  $sluice status

  # install a virtual machine on the disk; give it an ISO as its CD-ROM
  qemu-system-x86_64 -m 2G -cdrom INSTALLER.iso \\
    -blockdev driver=nbd,node-name=d,server.type=unix,server.path=$PWD/$pool/nbd.sock,export=vm1,reconnect-delay=60 \\
    -device virtio-blk-pci,drive=d

  # or copy an image that you have (nbd://$nbd/vm1 is the same disk over TCP)
  qemu-img convert -n -W -t none IMAGE.qcow2 'nbd+unix:///vm1?socket=$PWD/$pool/nbd.sock'

Ctrl-C stops the daemon; disks stay in $pool.

TEXT

exec "$sluice" serve --pool "$pool" \
  --nbd "unix:$pool/nbd.sock" --nbd "$nbd" --api "unix:$pool/api.sock" --api "$api"
