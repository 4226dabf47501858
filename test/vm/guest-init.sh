#!/bin/busybox sh
# The first process of a guest: it prepares the machine and then runs the scripts that the host sends over the virtio
# port, one after the other (guest.ts has the other end, and the format of the lines).

/bin/busybox mkdir -p /dev /proc /sys /run /mnt /sbin /usr/bin /usr/sbin
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
exec </dev/null >/dev/console 2>&1

load() {
  while read -r module; do
    # Several wanted modules need the same others.
    [ -d "/sys/module/${module%.ko}" ] || insmod "/modules/$module" || return
  done <"/modules/$1.order"
}
for driver in virtio_pci virtio_console virtio_blk virtio_net; do load "$driver"; done

# The host announces the port to the driver some moments after the driver was loaded.
until port=$(ls /dev/vport*p1 2>/dev/null); do usleep 10000; done
exec 3<>"$port"
echo ready >&3

while read -r script <&3; do
  echo "$script" | base64 -d >/run/script
  (
    say() { echo "say $*" >&3; }
    # What it does, and what programs complain of, is on the console: it explains a script that fails or hangs.
    set -eux
    . /run/script
  ) >/run/output 2>/dev/console
  echo "end $? $(base64 -w 0 </run/output)" >&3
done
poweroff -f
