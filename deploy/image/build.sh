#!/usr/bin/env bash
# Builds the image where no container registry is reachable: build.sh TAG [ARCHIVE]
# The base comes from debootstrap, and is kept for the next time. Writes an OCI archive
# (default build/node-network-image.tar), which `ctr images import` and `podman load` read.
# Needs root, podman and debootstrap, and a Debian mirror and a package index within reach.
#   IMAGE_CACHE   where the base and layers are kept (default ~/.cache/node-network/image)
#   IMAGE_CA      certificates that pip shall trust (default: SSL_CERT_FILE, if that is set)
#   MIRROR        of Debian (default: debootstrap's own)
set -euo pipefail
cd "$(dirname "$0")/../.."

tag=${1:?"usage: build.sh TAG [ARCHIVE]"}
archive=${2:-build/node-network-image.tar}
cache=${IMAGE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/node-network/image}
ca=${IMAGE_CA:-${SSL_CERT_FILE:-}}
base=localhost/node-network-base:bookworm

say() { printf 'image: %s\n' "$*"; }

missing=
for program in podman debootstrap; do
    command -v "$program" >/dev/null || missing="$missing $program"
done
if [ -n "$missing" ]; then
    say "installing Debian packages:$missing"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

mkdir -p "$cache" "$(dirname "$archive")"
# One build at a time: they share the base and its layers.
exec 9>"$cache/lock"
flock 9

# Its own storage: nothing appears in the machine's, and removing the directory removes everything.
# In a mount namespace of its own, so that the storage's mount goes when podman does.
run_podman() {
    unshare --mount --propagation private \
        podman --root "$cache/storage" --runroot "$cache/run" --cgroup-manager cgroupfs "$@"
}

if ! run_podman image exists "$base"; then
    say "a base from debootstrap (bookworm, minbase)"
    rm -rf "$cache/base"
    # debootstrap leaves /proc mounted in what it made; the namespace takes it along.
    unshare --mount --propagation private sh -c '
        debootstrap --variant=minbase bookworm "$1" $2 >"$1.log" 2>&1 || { tail -5 "$1.log" >&2; exit 1; }
    ' sh "$cache/base" "${MIRROR:-}"
    rm -rf "$cache"/base/var/cache/apt/archives/*.deb "$cache"/base/var/lib/apt/lists/*
    tar -C "$cache/base" --one-file-system -c . | run_podman import --quiet - "$base" >/dev/null
    rm -rf "$cache/base"
fi

options=(--build-arg "BASE=$base" --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)")
if [ -n "$ca" ]; then
    options+=(--volume "$ca:/run/certificates.pem:ro" --build-arg PIP_CERT=/run/certificates.pem)
fi
say "building $tag"
# chroot isolation needs no user namespace and no cgroup, which a build inside a container lacks.
if ! run_podman build --layers --isolation chroot --network host --pull=never "${options[@]}" \
    --file deploy/Dockerfile --tag "$tag" . >"$cache/build.log" 2>&1; then
    tail -30 "$cache/build.log" >&2
    exit 1
fi
# Layers that no build has used for three days.
run_podman image prune --force --filter until=72h >/dev/null
rm -f "$archive"
run_podman save --quiet --format oci-archive --output "$archive" "$tag"
size() { run_podman image inspect --format '{{.Size}}' "$1"; }
say "$archive: $(( ($(size "$tag") - $(size "$base")) / 1000000 )) MB unpacked beyond the base's $(( $(size "$base") / 1000000 )) MB"
