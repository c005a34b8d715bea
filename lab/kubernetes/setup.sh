#!/usr/bin/env bash
# Debian packages of the end-to-end tests beyond those of setup.sh; idempotent.
set -euo pipefail

packages=(containerd runc containernetworking-plugins debootstrap)

# Where systemd is not installed, as in a container.
command -v systemd-tmpfiles >/dev/null || packages+=(systemd-standalone-tmpfiles)

exec "$(dirname "$0")/../packages.sh" e2e "${packages[@]}"
