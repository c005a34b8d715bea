"""The first process of a machine: makes its root file system, then collects what ends in it.

Started in new mount, PID, UTS and IPC namespaces by ``Machine``. Its root is
an overlay over this machine's own root, so programs are found where they are, and nothing that is
written reaches them.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import uuid
from contextlib import suppress
from pathlib import Path

from lab.kubernetes.cgroups import LEAF, Hierarchy, delegate, present

SYSCTLS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
"""What kubelet sets. No namespace has these of its own, so a machine shows it the values it wants
(kubelet, pkg/kubelet/cm, ``setupKernelTunables``)."""

BOOT = "kernel/random/boot_id"
"""By which kubelet and others know that a machine has booted."""

SHARED_SYSCTLS = ("abi", "debug", "dev", "fs", "kernel", "vm")
"""Parts of ``/proc/sys`` that belong to the whole kernel: a machine can read them."""

CLONE_NEWCGROUP = 0x02000000

_libc = ctypes.CDLL(None, use_errno=True)
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}


def main() -> None:
    """Make the machine that the file of the first argument describes, and live in it."""
    machine = json.loads(Path(sys.argv[1]).read_text())
    disk, groups = Path(machine["disk"]), present()
    root = disk / "root"
    _own_groups(groups, machine["group"])
    _root(root, disk, machine["binds"])
    _kernel(root, disk)
    _mount_groups(root, groups)
    _enter(root)
    socket.sethostname(machine["name"])
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    Path("/run/ready").touch()
    while True:
        signal.sigwait([signal.SIGCHLD])
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass


def _own_groups(groups: tuple[Hierarchy, ...], name: str) -> None:
    """Make a machine's group the root of what it sees, and go into the leaf below it."""
    for hierarchy in groups:
        (hierarchy.point / name / "cgroup.procs").write_text("0")
    _checked("unshare", _libc.unshare(CLONE_NEWCGROUP))
    for hierarchy in groups:
        (hierarchy.point / name / LEAF / "cgroup.procs").write_text("0")
        if hierarchy.kind == "cgroup2":
            delegate(hierarchy.point / name)


def _root(root: Path, disk: Path, binds: dict[str, str]) -> None:
    for name in ("root", "upper", "work"):
        (disk / name).mkdir(exist_ok=True)
    layers = f"lowerdir=/,upperdir={disk / 'upper'},workdir={disk / 'work'}"
    _mount("overlay", root, "-t", "overlay", "-o", layers)
    for place, source in binds.items():
        target = root / place.removeprefix("/")
        target.mkdir(parents=True, exist_ok=True)
        _mount(source, target, "--bind")
    _mount("tmpfs", root / "run", "-t", "tmpfs", "-o", "mode=755,size=512m")
    for name in ("lock", "netns", "containerd"):
        (root / "run" / name).mkdir()


def _kernel(root: Path, disk: Path) -> None:
    """Mount what the kernel shows: with this machine's processes, links and no more rights."""
    _mount("proc", root / "proc", "-t", "proc")
    shown = disk / "sysctls"
    shown.mkdir(exist_ok=True)
    for part in SHARED_SYSCTLS:
        target = root / "proc/sys" / part
        if target.exists():
            _mount(str(target), target, "--bind")
            _mount("none", target, "-o", "remount,bind,ro")
    for name, value in (SYSCTLS | {BOOT: str(uuid.uuid4())}).items():
        (shown / name.replace("/", ".")).write_text(f"{value}\n")
        _mount(str(shown / name.replace("/", ".")), root / "proc/sys" / name, "--bind")
    _mount("sysfs", root / "sys", "-t", "sysfs")
    _mount("/dev", root / "dev", "--rbind")
    _mount("none", root / "dev", "--make-rprivate")
    _mount("tmpfs", root / "dev/shm", "-t", "tmpfs")


def _mount_groups(root: Path, groups: tuple[Hierarchy, ...]) -> None:
    """Mount the hierarchies again: their root is this cgroup namespace's."""
    top = Path("/sys/fs/cgroup")
    if not any(h.point == top for h in groups):
        _mount("tmpfs", root / "sys/fs/cgroup", "-t", "tmpfs", "-o", "mode=755")
    for hierarchy in groups:
        target = root / str(hierarchy.point).removeprefix("/")
        target.mkdir(exist_ok=True)
        options = ["-o", hierarchy.options] if hierarchy.options else []
        _mount("cgroup", target, "-t", hierarchy.kind, *options)
    if top.is_dir():
        # Version 1 has "cpu" beside "cpu,cpuacct", as a symbolic link.
        for link in (p for p in top.iterdir() if p.is_symlink()):
            (root / "sys/fs/cgroup" / link.name).symlink_to(link.readlink())


def _enter(root: Path) -> None:
    """Make it the root; what containers mount is seen everywhere in it."""
    old = root / "run/old"
    old.mkdir()
    os.chdir(root)
    number = SYS_PIVOT_ROOT[os.uname().machine]
    _checked("pivot_root", _libc.syscall(number, b".", os.fsencode(old)))
    os.chdir("/")
    for words in (("umount", "-l", "/run/old"), ("mount", "--make-rshared", "/")):
        subprocess.run(words, check=True)
    Path("/run/old").rmdir()


def _checked(what: str, result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _mount(source: str, target: Path, *options: str) -> None:
    subprocess.run(["mount", *options, source, str(target)], check=True)


if __name__ == "__main__":
    main()
