"""iptables' legacy tables, read as the kernel holds them: nftables does not show them.

No notification tells when they change, so each full pass reads those that are short on every
node; ``nat`` may hold tens of thousands of rules, and is read for ``trace`` alone.
Structures: linux/netfilter_ipv4/ip_tables.h.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from reconciler.diagnostics import ruleset as of
from reconciler.errors import ObserveError
from reconciler.targets.iptables.xtables import decode_match, decode_target

NAMES = Path("/proc/thread-self/net/ip_tables_names")
NAMES_IPV6 = Path("/proc/thread-self/net/ip6_tables_names")
"""The legacy tables of this thread's namespace; asking for another one would make it."""

SO_GET_INFO, SO_GET_ENTRIES = 64, 65
INFO_SIZE = 84
"""``struct ipt_getinfo``: the table's name, hooks, entry and policy offsets, count and size."""

ENTRIES_HEADER = 40
"""``struct ipt_get_entries`` up to its entries."""

TARGET_HEADER = 32
DROP = -1
VERDICTS = {-2: "accept", DROP: "drop", -5: "return"}
"""Of a standard target: minus the nf verdict, minus one."""

MAX_TABLE_BYTES, MAX_BYTES_IN_ALL = 8 << 20, 16 << 20
"""Of one table, as the kernel has it: some 20,000 rules; and of all in one look, which take three
times as much as objects. What is larger is not read, and said so."""

PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
NAT_SRC = 100
"""Priorities of iptables' chains (linux/netfilter_ipv4.h); of nat's, those of the first hooks."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A family's structures (linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h).

    Attributes:
        width: bytes of an address. An entry begins with source, destination and their masks, then
            come the links' names and masks, and the protocol.
        flags: where they are in an entry; ``offsets``: of the target and the next one.
        goto: the flag of a rule that does not return.
        known: all flags that are understood.
        size: of an entry up to its matches.
        header: where source and destination are in a packet.
    """

    family: str
    names: Path
    domain: int
    level: int
    width: int
    flags: int
    goto: int
    known: int
    offsets: int
    size: int
    header: tuple[int, int]

    def base(self, table: str, hook: str, *, drops: bool) -> of.BaseChain:
        """Return a table's chain with a hook."""
        source = table == "nat" and hook in ("input", "postrouting")
        priority = NAT_SRC if source else PRIORITIES.get(table, 0)
        place = of.ChainId("legacy", self.family, table, hook.upper())
        return of.BaseChain(place, hook, "nat" if table == "nat" else "filter", priority, drops)


IPV4 = Layout("ip", NAMES, socket.AF_INET, socket.IPPROTO_IP, 4, 82, 2, 2, 88, 112, (12, 16))
IPV6 = Layout(
    # IP6T_F_PROTO says that an entry asks for a protocol; IPv4's entries have no such flag.
    *("ip6", NAMES_IPV6, socket.AF_INET6, socket.IPPROTO_IPV6, 16, 131, 4, 4 | 1, 140, 168),
    (8, 24),
)

_libc = ctypes.CDLL(None, use_errno=True)


class LegacyTables:
    """The tables of the network namespace that a thread is in."""

    def __init__(self) -> None:
        self._seen = of.Ruleset()

    def ruleset(self, tables: Iterable[str]) -> of.Ruleset:
        """Return the chains of some tables, rule by rule; one that is too large is not read.

        Raises:
            ObserveError: the kernel refused.
        """
        result, wanted = of.Ruleset(), frozenset(tables)
        left = MAX_BYTES_IN_ALL
        for layout in (IPV4, IPV6):
            for table in sorted(table_names(layout) & wanted):
                found = _read(table, layout, left)
                left -= len(found[1]) if found else 0
                read = _chains(table, layout, *found) if found else _unread(table, layout)
                result = of.joined(result, read)
        if self._seen != result:
            self._seen = result
        return self._seen  # the same object, so that what follows from it is not decided anew


def table_names(layout: Layout) -> frozenset[str]:
    """Return the tables of a family that this thread's namespace has.

    Raises:
        ObserveError: the list cannot be read.
    """
    try:
        return frozenset(layout.names.read_text().split())
    except FileNotFoundError:
        return frozenset()  # a kernel without legacy tables
    except OSError as error:
        raise ObserveError("legacy iptables", str(error)) from error


def _read(table: str, layout: Layout, most: int) -> tuple[bytes, bytes] | None:
    """Return a table's info and entries; None if these are more bytes than one table may have."""
    try:
        with socket.socket(layout.domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
            info = _ask(s, SO_GET_INFO, INFO_SIZE, table.encode(), layout.level)
            (size,) = struct.unpack_from("I", info, 80)
            if size > min(MAX_TABLE_BYTES, most):
                return None
            header = struct.pack("32sI4x", table.encode(), size)
            entries = _ask(s, SO_GET_ENTRIES, ENTRIES_HEADER + size, header, layout.level)
            return info, entries[ENTRIES_HEADER:]
    except OSError as error:
        raise ObserveError(f"legacy iptables' {table} table", str(error)) from error


def _ask(s: socket.socket, option: int, size: int, question: bytes, level: int) -> bytes:
    # By libc: Python's own getsockopt hands the kernel no question.
    buffer = ctypes.create_string_buffer(question, size)
    length = ctypes.c_uint(size)
    code = _libc.getsockopt(s.fileno(), level, option, buffer, ctypes.byref(length))
    if code != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw


def _unread(table: str, layout: Layout) -> of.Ruleset:
    bases = tuple(layout.base(table, hook, drops=False) for hook in of.NF_INET_HOOKS)
    why = f"one may have {MAX_TABLE_BYTES >> 20} MiB, all together {MAX_BYTES_IN_ALL >> 20}"
    unread = (f"legacy {layout.family}tables' {table} table", why)
    return of.Ruleset(bases, dict.fromkeys(b.id for b in bases), unread=(unread,))


class _Entry(NamedTuple):
    """A rule: where it and the next one begin, what it asks for, and what its target holds."""

    offset: int
    after: int
    target: str
    revision: int
    asks: bytes
    does: bytes


def _entries(entries: bytes, layout: Layout) -> Iterator[_Entry]:
    offset = 0
    while offset + layout.size <= len(entries):
        to_target, length = struct.unpack_from("HH", entries, offset + layout.offsets)
        if length < layout.size:
            return
        target, after = offset + to_target, offset + length
        head = entries[target : target + TARGET_HEADER].ljust(TARGET_HEADER, b"\0")
        does = entries[target + TARGET_HEADER : after]
        yield _Entry(offset, after, _text(head[2:31]), head[31], entries[offset:target], does)
        offset = after


def _chains(table: str, layout: Layout, info: bytes, entries: bytes) -> of.Ruleset:
    """Cut a table's entries into chains: they follow each other, and jumps name offsets."""
    valid, *starts = struct.unpack_from("6I", info, 32)
    ends = struct.unpack_from("5I", info, 56)
    hooks = [n for n in range(len(of.NF_INET_HOOKS)) if valid >> n & 1]
    listed = list(_entries(entries, layout))
    names = {starts[n]: of.NF_INET_HOOKS[n].upper() for n in hooks}
    names |= {e.after: _text(e.does[:30]) for e in listed if e.target == "ERROR"}
    policies = {ends[n] for n in hooks}
    rules: dict[str, list[of.Rule]] = {name: [] for name in names.values()}
    dropping: set[str] = set()
    here = ""
    for entry in listed:
        here = names.get(entry.offset, here)
        if entry.target == "ERROR" or not here:
            continue
        if entry.offset in policies:
            dropping |= {here} if entry.does[:4] == struct.pack("i", DROP) else set()
            here = ""
            continue
        if entry.target:
            does = decode_target(entry.target, entry.revision, entry.does)
        else:
            does = _standard(entry, names, layout)
        rules[here].append((*_asks(entry.asks, layout), *does))
    hooked = [of.NF_INET_HOOKS[n] for n in hooks]
    bases = tuple(layout.base(table, h, drops=h.upper() in dropping) for h in hooked)
    rules.pop("ERROR", None)  # the end of the table
    place = ("legacy", layout.family, table)
    return of.Ruleset(bases, {of.ChainId(*place, name): tuple(r) for name, r in rules.items()})


def _standard(entry: _Entry, names: dict[int, str], layout: Layout) -> tuple[of.Expression, ...]:
    """Return what a target without a name does."""
    (verdict,) = struct.unpack_from("i", entry.does)
    if verdict == entry.after:
        return ()  # a rule without a target
    if verdict in VERDICTS:
        return (of.Verdict(VERDICTS[verdict]),)
    if verdict not in names:
        return (of.Unclear("verdict", ends=True),)
    is_goto = entry.asks[layout.flags] & layout.goto
    return (of.Verdict("goto" if is_goto else "jump", names[verdict]),)


def _asks(entry: bytes, layout: Layout) -> tuple[of.Expression, ...]:
    """Return what an entry asks for: addresses, links, the protocol, and its matches."""
    width, inverted = layout.width, entry[layout.flags + 1]
    source, destination, source_mask, destination_mask = (
        entry[n * width : (n + 1) * width] for n in range(4)
    )
    incoming, outgoing, incoming_mask, outgoing_mask = (
        entry[at : at + 16] for at in range(4 * width, 4 * width + 64, 16)
    )
    protocol = entry[4 * width + 64 : 4 * width + 66]
    found: list[of.Expression] = []
    for field, at, value, mask, bit in (
        ("network", layout.header[0], source, source_mask, 8),
        ("network", layout.header[1], destination, destination_mask, 16),
        ("iifname", 0, incoming, incoming_mask, 1),
        ("oifname", 0, outgoing, outgoing_mask, 2),
        ("l4proto", 0, protocol[:1], b"\xff" if any(protocol) else b"\0", 64),
    ):
        if any(mask):
            wanted = bytes(v & m for v, m in zip(value, mask, strict=True))
            found.append(of.field_is(field, at, mask, wanted, bool(inverted & bit)))
    if entry[layout.flags] & ~layout.known or inverted & 0x24:
        found.append(of.Unclear("fragments or TOS"))
    offset = layout.size
    while offset + TARGET_HEADER <= len(entry):
        (size,) = struct.unpack_from("H", entry, offset)
        if size < TARGET_HEADER:
            break
        name, revision = _text(entry[offset + 2 : offset + 31]), entry[offset + 31]
        found += decode_match(name, revision, entry[offset + TARGET_HEADER : offset + size])
        offset += size
    return tuple(found)


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")
