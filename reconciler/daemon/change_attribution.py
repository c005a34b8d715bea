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
from pathlib import Path

NLMSG_HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence, port (linux/netlink.h)."""

NFT_NEWGEN = 10 << 8 | 15
"""NFNL_SUBSYS_NFTABLES and NFT_MSG_NEWGEN (linux/netfilter/nf_tables.h)."""

NFGENMSG_BYTES = 4
NFTA_GEN_PROC_PID, NFTA_GEN_PROC_NAME = 2, 3

RECENT_S = 10.0
"""Seconds for which somebody who has changed something is remembered."""

MOST = 8
"""Names that are told."""

MAX_AUTHORS = 64
"""Of one notification, and names that are remembered; whoever changes something does so again."""


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


def _authors(data: bytes) -> Iterator[tuple[int, str]]:
    offset = 0
    while offset + NLMSG_HEADER.size <= len(data):
        length, kind, _, _, port = NLMSG_HEADER.unpack_from(data, offset)
        if length < NLMSG_HEADER.size:
            return
        if kind == NFT_NEWGEN:
            yield from _author_of(
                data[offset + NLMSG_HEADER.size + NFGENMSG_BYTES : offset + length]
            )
        elif 0 < port < 1 << 22:  # PID_MAX_LIMIT; what bind chooses otherwise is above
            yield port, ""
        offset += length + 3 & ~3


def _author_of(attributes: bytes) -> Iterator[tuple[int, str]]:
    pid, name, offset = 0, "", 0
    while offset + 4 <= len(attributes):
        length, kind = struct.unpack_from("=HH", attributes, offset)
        if length < 4:
            break
        content = attributes[offset + 4 : offset + length]
        if kind == NFTA_GEN_PROC_PID and len(content) == 4:
            pid = int.from_bytes(content, "big")
        elif kind == NFTA_GEN_PROC_NAME:
            name = content.rstrip(b"\0").decode(errors="replace")
        offset += length + 3 & ~3
    if pid:
        yield pid, f"{name} (pid {pid})"


def _name(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").strip()
    except OSError:
        return f"a process that has ended (pid {pid})"
    return f"{name} (pid {pid})"
