"""Who else changes the kernel's networking, as far as its notifications tell.

nftables names the process behind each change. rtnetlink gives the port of the socket that asked,
which is the process's number for the first socket it opened, and what it is called can be read for
as long as it lives. Both are hints for people, never grounds to act on.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from reconciler.targets.netlink.message import split
from reconciler.targets.netlink.nf_tables import (
    NFT_MSG_NEWGEN,
    NFTA_GEN_PROC_NAME,
    NFTA_GEN_PROC_PID,
    parts,
)
from reconciler.targets.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES

NEW_RULESET = NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN
"""Type of the notification that ends each change of a ruleset."""

PID_MAX_LIMIT = 1 << 22
"""Of the kernel. The port that bind chooses for a process's second socket is above."""

RECENT_S = 10.0
"""Seconds for which another writer is remembered."""

MOST = 8
"""Names that are told."""

MAX_AUTHORS = 64
"""Of one notification, and names that are remembered."""


class ChangeAttribution:
    """The others who lately changed something, by name; told by one thread, asked by any."""

    def __init__(self) -> None:
        self._seen: Mapping[str, float] = {}
        """Replaced as a whole, by the thread that hears."""
        self._own = os.getpid()

    def hear(self, notifications: bytes) -> None:
        """Remember who is behind some notifications; what cannot be understood tells nothing."""
        authors = set(itertools.islice(_authors(notifications), MAX_AUTHORS))
        names = {name or _name(pid) for pid, name in authors if pid != self._own}
        if names:
            seen = {**self._seen, **dict.fromkeys(names, time.monotonic())}
            if len(seen) > MAX_AUTHORS:
                seen = {name: seen[name] for name in sorted(seen, key=seen.__getitem__)[-MOST:]}
            self._seen = seen

    def lately(self) -> tuple[str, ...]:
        """Return who it was in the last seconds, the latest first, as ``name (pid 1234)``."""
        since = time.monotonic() - RECENT_S
        recent = {name: at for name, at in self._seen.items() if at >= since}
        return tuple(sorted(recent, key=recent.__getitem__, reverse=True)[:MOST])


def _authors(notifications: bytes) -> Iterator[tuple[int, str]]:
    """Yield number and name of each author; no name if the notification has none."""
    with suppress(OSError, struct.error):
        for kind, _, _, port, message in split(notifications):
            if kind != NEW_RULESET:
                if 0 < port < PID_MAX_LIMIT:
                    yield port, ""
                continue
            found = parts(message)
            if pid := int.from_bytes(found.get(NFTA_GEN_PROC_PID, b"")[:4], "big"):
                name = found.get(NFTA_GEN_PROC_NAME, b"").rstrip(b"\0").decode(errors="replace")
                yield pid, f"{name} (pid {pid})"


def _name(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").strip()
    except OSError:
        return f"a process that has ended (pid {pid})"
    return f"{name} (pid {pid})"
