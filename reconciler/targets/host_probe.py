"""What the host is like: kernel, rights, settings and links, read without changing anything."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from reconciler.targets.files.bounded import read_file
from reconciler.targets.kernel import PROC_SYS

MOST_BYTES = 1 << 16  # of a file of /proc or /sys
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


def mtus(links: Iterable[str], root: Path = Path("/sys/class/net")) -> Iterator[tuple[str, int]]:
    """Yield the MTU of links that are there, in bytes."""
    for name in links:
        with suppress(ValueError):
            yield name, int(_read(root / name / "mtu"))


def _read(path: Path) -> str:
    try:
        return read_file(path, MOST_BYTES, cut=True).decode(errors="replace")
    except OSError:
        return ""
