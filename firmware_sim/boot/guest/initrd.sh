#!/bin/busybox sh
# First program of the guest: load what finds the disks, mount the read-only slot, go there.
bb=/bin/busybox
$bb mount -t devtmpfs dev /dev
while read -r module; do $bb insmod "/modules/$module"; done </modules/order
tries=0
until [ -b /dev/vda ]; do
  tries=$((tries + 1))
  [ "$tries" -lt 100 ] || { echo "hgw: no slot on /dev/vda"; $bb poweroff -f; }
  $bb sleep 0.1
done
$bb mount -t squashfs -o ro /dev/vda /root || { echo "hgw: slot unreadable"; $bb poweroff -f; }
exec $bb switch_root /root /sbin/hgw-init
