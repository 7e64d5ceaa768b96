#!/bin/sh
# Init of the emulated gateway: mounts, addresses, hgwd as its own user, then one-word commands on the console.
# Answers on the console start with "hgw: "; everything else there is hgwd's log.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
export PATH
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs -o size=16m,mode=1777 tmp /tmp
mount -t tmpfs -o size=8m,mode=755 run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t ext4 -o noatime,nosuid,nodev /dev/vdb /data || { echo "hgw: data flash unreadable"; poweroff -f; }
hostname gateway

for word in $(cat /proc/cmdline); do
  case "$word" in
    hgw.wan=*) wan=${word#hgw.wan=} ;;
    hgw.via=*) via=${word#hgw.via=} ;;
    hgw.time=*) date -s "@${word#hgw.time=}" >/dev/null ;;
  esac
done
/usr/bin/ip link set lo up
# Static addresses from the kernel's command line: this machine asks nobody for a prefix.
/usr/bin/ip link set eth0 up
[ -z "$wan" ] || /usr/bin/ip addr add "$wan" dev eth0 nodad
[ -z "$via" ] || /usr/bin/ip -6 route add default via "$via" dev eth0
/usr/bin/ip link set eth1 up
/usr/bin/ip addr add 192.168.1.1/24 dev eth1

chown -R hgwd:hgwd /data
echo "hgw: up $(cut -d' ' -f1 /proc/uptime)"

start() {
  su hgwd -s /bin/sh -c 'cd /data && exec python3 -m hgwd.cli --config /data/hgwd.toml run' 2>&1 &
  hgwd=$!
}

# The process that is hgwd itself: "su" becomes it, so the number is known.
report() {
  echo "hgw: report uptime_s=$(cut -d' ' -f1 /proc/uptime)" \
    "rss_kib=$(awk '/^VmRSS/{print $2}' "/proc/$hgwd/status")" \
    "peak_kib=$(awk '/^VmHWM/{print $2}' "/proc/$hgwd/status")" \
    "available_kib=$(awk '/^MemAvailable/{print $2}' /proc/meminfo)" \
    "total_kib=$(awk '/^MemTotal/{print $2}' /proc/meminfo)" \
    "flash_used_kib=$(df -k /data | awk 'END{print $3}')" \
    "flash_free_kib=$(df -k /data | awk 'END{print $4}')"
}

start
while read -r command; do
  case "$command" in
    report) report ;;
    restart) kill -9 "$hgwd"; wait "$hgwd" 2>/dev/null; start ;;
    poweroff) kill -9 "$hgwd"; wait "$hgwd" 2>/dev/null; sync; umount /data; echo "hgw: off"; poweroff -f ;;
  esac
done
