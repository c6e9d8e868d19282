#!/bin/sh
# What the test guest does after it has booted: the kernel command line says it (task=...), the
# serial line carries the talk with the host. Every line for the host starts with "GUEST".

exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -F /dev/ttyS0 -echo

task=$(sed -n 's/.*\btask=\([a-z]*\).*/\1/p' /proc/cmdline)
say() { echo "GUEST $*"; }
# Tells the host something and waits until it has done its part.
meet() { say "$*"; read -r _; }

# Disk trouble that the kernel has seen.
trouble() {
  dmesg | grep -Ei 'i/o error|critical .* error|ext4-fs (error|warning)|abort|read-only$' |
    head -5 | while read -r line; do say "trouble $line"; done
}

make_file() { # NAME SIZE
  dd if=/dev/urandom of="$1" bs="$2" count=1 iflag=fullblock conv=fsync status=none ||
    say "error writing $1"
}

# Files of many sizes, synced; then space taken and given back, with the host looking on.
write() {
  mkdir -p /data/deep/er
  number=0
  for size in 1 511 512 4095 4096 4097 65536 70001 1048576 3000000 9000000 20000000; do
    number=$((number + 1))
    make_file "/data/file$number" "$size"
    make_file "/data/deep/er/file$number" 5000
  done
  : >/data/empty
  find /data -type f ! -name sums -exec sha256sum {} + >/sums
  mv /sums /data/sums
  sync

  # Once unseen, so that the file system's own blocks for it are in use already.
  for round in unseen seen; do
    fstrim / || say "error in fstrim"
    sync
    [ $round = seen ] && meet before
    make_file /large 48000000
    sync
    [ $round = seen ] && meet full
    rm /large
    sync
  done
  fstrim / || say "error in fstrim"
  sync
  meet after
}

verify() {
  if [ "$(sha256sum -c /data/sums | grep -c ': OK$')" = "$(wc -l </data/sums)" ]; then
    say "verified $(wc -l </data/sums) files"
  else
    say "error verifying"
  fi
}

# Small files and rewrites, each synced before it is told, until so many are done or the host has
# had enough.
churn() {
  mkdir -p /churn
  count=$(sed -n 's/.*\bcount=\([0-9]*\).*/\1/p' /proc/cmdline)
  number=0
  while [ $number -lt "$count" ] && [ ! -e /run/enough ]; do
    number=$((number + 1))
    make_file "/churn/$number" $((number * 7919 % 200000 + 1))
    say "synced $number $(sha256sum <"/churn/$number" | cut -d' ' -f1)"
  done
}

# Files that nobody syncs, made, written over, renamed and removed: the journal is never empty.
litter() {
  mkdir -p /litter
  number=0
  while [ ! -e /run/enough ]; do
    number=$((number + 1))
    dd if=/dev/urandom of="/litter/new" bs=$((number * 7919 % 100000 + 1)) count=1 status=none &&
      mv /litter/new "/litter/$((number % 40))" && rm -f "/litter/$((number * 7 % 40))" ||
      say "error littering"
  done
}

# Writes under the host's eyes, which freezes the file systems through the agent, until it says
# that this is enough.
agent() {
  qemu-ga --daemonize --method=virtio-serial --path="$(echo /dev/vport*p1)" || say "error: no agent"
  { read -r _; : >/run/enough; } </dev/ttyS0 &
  litter &
  churn
  wait
}

# How the root disk was mounted.
mounted() {
  say "mount: $(dmesg | grep -o 'EXT4-fs (vda): .*' | tr '\n' ';')"
}

say "up task=$task"
case "$task" in
  write | verify | churn | agent | mounted) "$task" ;;
  *) say "error: no task" ;;
esac
trouble
say "done"
# Without stopping every unit in turn; file systems are unmounted all the same.
systemctl --force poweroff
