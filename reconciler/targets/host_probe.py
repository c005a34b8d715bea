"""What the host is like: kernel, rights, settings and links, read without changing anything."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from reconciler.targets.files.bounded import read_file
from reconciler.targets.kernel import PROC_SYS

MOST_BYTES = 1 << 16  # of a file of /proc or /sys
SIOCGIFMTU = 0x8921  # linux/sockios.h
CAPABILITIES = "CapEff:"
"""The line of the effective capabilities in /proc/self/status (proc(5))."""


def release() -> str:
    """Return the kernel's release."""
    return os.uname().release


def capabilities(path: Path = Path("/proc/self/status")) -> int | None:
    """Return this process's effective capabilities as a bit mask; None if it is not told."""
    for line in _read(path).splitlines():
        if line.startswith(CAPABILITIES):
            with suppress(ValueError):
                return int(line.removeprefix(CAPABILITIES), 16)
    return None


def settings(names: Iterable[str], root: Path = PROC_SYS) -> Iterator[tuple[str, str]]:
    """Yield settings that are there, by their paths below /proc/sys."""
    for name in names:
        if text := _read(root / name).strip():
            yield name, text


def is_writable(name: str, root: Path = PROC_SYS) -> bool:
    """Whether this process may write a setting: a container may have /proc/sys read-only."""
    return os.access(root / name, os.W_OK)


def mtus(links: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Yield the MTU of links of this network namespace that are there, in bytes.

    Asked of the kernel: /sys shows the namespace of whoever mounted it (sysfs(5)).
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for name in links:
            with suppress(OSError):
                request = struct.pack("16si20x", name.encode(), 0)
                answer = fcntl.ioctl(asking, SIOCGIFMTU, request)
                yield name, struct.unpack_from("16si", answer)[1]


def _read(path: Path) -> str:
    try:
        return read_file(path, MOST_BYTES, cut=True).decode(errors="replace")
    except OSError:
        return ""
