"""The settings of this machine's kernel, to show that a cluster leaves them alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

ROOT = Path("/proc/sys")

COUNTERS = ("fs/", "kernel/random/", "kernel/pty/nr", "kernel/ns_last_pid")
"""What changes by itself."""

LINKS = ("net/ipv4/conf/", "net/ipv4/neigh/", "net/ipv6/conf/", "net/ipv6/neigh/")
"""What comes and goes with links, which other programs of this machine may have."""


def sysctls() -> dict[str, str]:
    """Return all settings that can be read, but for counters and those of single links."""
    found = {}
    for path in ROOT.rglob("*"):
        name = str(path.relative_to(ROOT))
        if name.startswith((*COUNTERS, *LINKS)) or name.endswith("_count") or not path.is_file():
            continue
        with suppress(OSError):
            found[name] = path.read_text(errors="replace")
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Return what differs, by name."""
    names = before.keys() & after.keys()
    return {n: (before[n], after[n]) for n in names if before[n] != after[n]}
