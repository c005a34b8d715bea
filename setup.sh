#!/usr/bin/env bash
# Makes the virtual environment that every make target uses; idempotent.
# Debian packages first, because the virtual environment itself needs one.
set -euo pipefail

venv=$1
packages=(python3-venv python3-nftables nftables iproute2 ipset iptables procps util-linux)
# For the static executable: a compiler, and Python's library to link.
packages+=(gcc libc6-dev libpython3-dev)
# For the tests of alerts and metrics: it brings promtool. No test uses a service of the machine's.
packages+=(prometheus)
# For the test of the page.
packages+=(chromium fonts-dejavu-core)
# For the tests of real runtimes.
packages+=(containerd runc crun podman containernetworking-plugins)

say() { printf 'setup: %s\n' "$*"; }

"$(dirname "$0")/lab/packages.sh" setup "${packages[@]}"

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "setup: $python is older than Python 3.11; name a newer one with PYTHON=" >&2
    exit 1
fi

say "virtual environment in $venv"
"$python" -m venv --clear "$venv"
say "Python packages, pinned by hash (requirements.txt)"
"$venv/bin/pip" --quiet --disable-pip-version-check install --require-hashes --requirement requirements.txt
"$venv/bin/pip" --quiet --disable-pip-version-check install --no-deps --no-build-isolation --editable .

# libnftables' binding is one pure-Python package that Debian ships with the library it binds; this
# virtual environment gets that one and none of the distribution's others.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
ln -sfn /usr/lib/python3/dist-packages/nftables "$site/nftables"
"$venv/bin/python" -c 'import nftables; nftables.Nftables()'
say "ready"
