#!/usr/bin/env bash
# Installs the Debian packages that are missing: packages.sh WHO PACKAGE...; idempotent.
# WHO begins each line that is printed. Nothing is printed if all are there.
set -euo pipefail

who=$1
shift
need=()
for package in "$@"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || need+=("$package")
done
[ ${#need[@]} = 0 ] && exit 0
if [ "$(id -u)" != 0 ]; then
    echo "$who: these Debian packages are missing and only root can install them: ${need[*]}" >&2
    echo "$who: run 'sudo apt-get install ${need[*]}', or make as root" >&2
    exit 1
fi
echo "$who: installing Debian packages: ${need[*]}"
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
