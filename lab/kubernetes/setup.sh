#!/usr/bin/env bash
# Debian packages of the end-to-end tests beyond those of setup.sh; idempotent.
set -euo pipefail

packages=(containerd runc containernetworking-plugins debootstrap)

# Where systemd is not installed, as in a container.
command -v systemd-tmpfiles >/dev/null || packages+=(systemd-standalone-tmpfiles)

need=()
for package in "${packages[@]}"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || need+=("$package")
done
[ ${#need[@]} = 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
    echo "e2e: these Debian packages are missing and only root can install them: ${need[*]}" >&2
    exit 1
fi
echo "e2e: installing Debian packages: ${need[*]}"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
