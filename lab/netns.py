"""Network namespaces by name, as ``ip netns`` keeps them below /run/netns."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyroute2 import IPRoute

ROOT = Path("/run/netns")
CLONE_NEWNET = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


def path(name: str) -> Path:
    """Return where a namespace is mounted."""
    return ROOT / name


def make(name: str) -> None:
    """Make a namespace with its loopback up."""
    subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True, text=True)
    # By netlink from inside: "ip -n" remounts the root, which not every host lets it.
    with inside(name), IPRoute() as ip:
        ip.link("set", index=ip.link_lookup(ifname="lo")[0], state="up")


def remove(name: str) -> None:
    """Remove a namespace; one that is not there is removed already."""
    if path(name).exists():
        subprocess.run(["ip", "netns", "delete", name], check=True, capture_output=True, text=True)


def names(prefix: str) -> list[str]:
    """List namespaces whose names begin so."""
    return sorted(p.name for p in ROOT.glob(f"{prefix}*")) if ROOT.exists() else []


def processes(prefix: str) -> list[int]:
    """List processes whose network namespace is one of these, but for this one."""
    inodes = {path(name).stat().st_ino for name in names(prefix)}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns/net").stat().st_ino in inodes:
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # ended meanwhile
    return [pid for pid in found if pid != os.getpid()]


@contextmanager
def inside(name: str) -> Iterator[None]:
    """Put this thread into a namespace; what it opens there stays there."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(path(name))
        try:
            yield
        finally:
            _setns(home)
    finally:
        os.close(home)


def enter(where: Path) -> None:
    """Put this thread into a namespace for good.

    Raises:
        OSError: there is none, or this process may not.
    """
    fd = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _setns(fd)
    finally:
        os.close(fd)


def _setns(fd: int) -> None:
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
