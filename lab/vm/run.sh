#!/usr/bin/env bash
# Runs a command as root under Debian's cloud kernel, emulated: run.sh COMMAND...
#
# The machine's root is this one's, read-only by virtiofs, with a file system in memory over it:
# nothing that is written reaches this machine. It has no network but its own namespaces. The kernel
# is downloaded once, by apt, and kept beside what the end-to-end tests keep.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PATH=$PATH:/usr/sbin:/sbin

"$here/../packages.sh" vm qemu-system-x86 busybox-static cpio kmod

cache=${XDG_CACHE_HOME:-$HOME/.cache}/node-network/vm
if [ ! -e "$cache/kernel/complete" ]; then
    image=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-.*\)/\1/p')
    echo "vm: downloading $image"
    rm -rf "$cache" && mkdir -p "$cache/kernel"
    (cd "$cache" && apt-get download -qq "$image" 2>/dev/null && dpkg-deb -x ./linux-image-*.deb kernel)
    rm "$cache"/*.deb
    depmod -b "$cache/kernel" "$(ls "$cache/kernel/lib/modules")"
    touch "$cache/kernel/complete"
fi
release=$(ls "$cache/kernel/lib/modules")

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/root/bin" "$work/root/modules"
cp /bin/busybox "$work/root/bin/"
cp "$here/init" "$work/root/init"
chmod +x "$work/root/init"
for module in virtio_pci virtiofs overlay; do
    modprobe -d "$cache/kernel" -S "$release" -D "$module" | awk '$1 == "insmod" {print $2}'
done | awk '!seen[$0]++' | while read -r path; do
    cp "$path" "$work/root/modules/"
    basename "$path" >>"$work/root/modules/order"
done
(cd "$work/root" && find . | cpio -o -H newc --quiet | gzip -1) >"$work/initrd"

# What the machine runs once its root is there, with the caller's directory and words.
{
    printf 'mkdir -p /lib/modules && mount --bind %q /lib/modules\n' "$cache/kernel/lib/modules"
    printf 'ip link set lo up\ncd %q\nset -- ' "$PWD"
    printf '%q ' "$@"
    printf '\nexport HOME=/root NODE_NETWORK_VM=1\n"$@"\necho "vm: status $?"\n'
} >"$work/command"

memory=${VM_MEMORY:-2G}
/usr/lib/qemu/virtiofsd --socket-path="$work/socket" -o source=/ -o sandbox=chroot -o cache=always \
    >"$work/virtiofsd" 2>&1 &
for _ in $(seq 100); do [ -S "$work/socket" ] && break; sleep 0.1; done
qemu-system-x86_64 -accel tcg,thread=multi -cpu max -smp 2 -m "$memory" -no-reboot -display none \
    -object memory-backend-memfd,id=memory,size="$memory",share=on -numa node,memdev=memory \
    -kernel "$cache"/kernel/boot/vmlinuz-* -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1 command=$work/command" \
    -chardev socket,id=root,path="$work/socket" -device vhost-user-fs-pci,chardev=root,tag=root \
    -nic none -serial stdio -monitor none </dev/null | tee "$work/console"
wait
grep -q '^vm: status 0' "$work/console"
