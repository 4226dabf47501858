#!/bin/bash
# Puts Debian's kernel for virtual machines, and its modules, where test/vm finds them: below the user's cache, never into
# the machine's own /boot, so that no boot loader, initramfs or container image is touched. Needs no root where apt's lists
# are fresh. Does nothing when a kernel is there.
set -euo pipefail

cache="${XDG_CACHE_HOME:-$(echo ~)/.cache}/colotap-tests"
kernel="$cache/guest-kernel"
[ ! -d "$kernel" ] || exit 0

mkdir -p "$cache"
work=$(mktemp -d "$cache/new-XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

package=linux-image-cloud-amd64
# The package depends on one whose name has the version in it.
newest() {
  apt-cache depends --important "$package" 2>/dev/null | awk '$1 == "Depends:" { print $2; exit }'
}
fetch() {
  local image
  image=$(newest)
  [ -n "$image" ] && apt-get download --quiet --quiet "$image"
}
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo --non-interactive)

echo "install-guest-kernel: fetching $package for test/vm" >&2
# Old lists name packages that are gone.
if ! fetch 2>apt-errors; then
  if ! { "${as_root[@]}" apt-get update --quiet --quiet && fetch; } 2>>apt-errors; then
    cat apt-errors >&2
    echo "install-guest-kernel: cannot fetch $package; it is in Debian's amd64 archive: run 'apt-get update' as root" >&2
    exit 1
  fi
fi
dpkg-deb --extract linux-image-*.deb tree
# Another run may have been faster; one kernel is as good as the other.
mv --no-target-directory tree "$kernel" 2>/dev/null || [ -d "$kernel/boot" ]
