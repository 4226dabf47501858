#!/bin/bash
# Installs the Debian packages whose programs the full test suite and the benchmarks run. Does nothing when all are
# there. Needs root or a sudo that asks no password; otherwise it says what to install, and fails.
set -euo pipefail

packages=(
  qemu-utils qemu-system-x86 nbdkit libnbd-bin python3-libnbd python3-libvhdi nbd-client fio e2fsprogs xfsprogs
  openssl gnutls-bin strace
  util-linux-extra iproute2 nftables
  busybox-static cpio
)

if ! command -v dpkg-query >/dev/null; then
  echo "install-test-tools: this is no Debian system; install the equivalents of: ${packages[*]}" >&2
  exit 1
fi

"$(dirname "$0")/install-guest-kernel.sh"

missing=()
for package in "${packages[@]}"; do
  state=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$state" = installed ] || missing+=("$package")
done
[ "${#missing[@]}" -gt 0 ] || exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if ! sudo --non-interactive true 2>/dev/null; then
    echo "install-test-tools: the tests need packages that are missing; install them with:" >&2
    echo "  sudo apt-get update && sudo apt-get install --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  as_root=(sudo --non-interactive)
fi

echo "install-test-tools: installing ${missing[*]}" >&2
"${as_root[@]}" apt-get update --quiet --quiet
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
  apt-get install --quiet --quiet --yes --no-install-recommends "${missing[@]}"
