#!/bin/busybox sh
# The initial ramdisk: loads the drivers, mounts the root disk, goes on there.
/bin/busybox mount -t devtmpfs none /dev
/bin/busybox mount -t proc none /proc
/bin/busybox mount -t sysfs none /sys
while read -r module; do
  /bin/busybox insmod "/modules/$module"
done </modules/order
while [ ! -b /dev/vda ]; do
  /bin/busybox sleep 0.05
done
/bin/busybox mount -t ext4 /dev/vda /root || echo "GUEST error: the root disk can't be mounted"
/bin/busybox umount /proc /sys
/bin/busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /sbin/init
