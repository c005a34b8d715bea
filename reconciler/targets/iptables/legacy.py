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

from reconciler.diagnostics.ruleset import (
    NF_INET_HOOKS,
    BaseChain,
    ChainId,
    Expression,
    Rule,
    Ruleset,
    Unclear,
    Verdict,
    field_is,
    joined,
)
from reconciler.errors import ObserveError
from reconciler.targets.iptables.xtables import decode_match, decode_target

NAMES = Path("/proc/thread-self/net/ip_tables_names")
"""The legacy tables of this thread's namespace; asking for another one would make it."""

NAMES_IPV6 = Path("/proc/thread-self/net/ip6_tables_names")

SO_GET_INFO, SO_GET_ENTRIES = 64, 65
INFO_SIZE = 84
"""``struct ipt_getinfo``: the table's name, hooks, entry and policy offsets, count and size."""

ENTRIES_HEADER = 40
"""``struct ipt_get_entries`` up to its entries."""

TARGET_HEADER = 32
ACCEPT, DROP, RETURN = -2, -1, -5
"""Verdicts of a standard target: minus the nf verdict, minus one."""

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
            come the links' names and masks.
        protocol, flags: where they are in an entry; ``offsets``: of the target and the next one.
        goto: the flag of a rule that does not return.
        size: of an entry up to its matches.
        header: where source and destination are in a packet.
    """

    family: str
    names: Path
    domain: int
    level: int
    width: int
    protocol: int
    flags: int
    goto: int
    offsets: int
    size: int
    header: tuple[int, int]


IPV4 = Layout("ip", NAMES, socket.AF_INET, socket.IPPROTO_IP, 4, 80, 82, 2, 88, 112, (12, 16))
IPV6 = Layout(
    "ip6", NAMES_IPV6, socket.AF_INET6, socket.IPPROTO_IPV6, 16, 128, 131, 4, 140, 168, (8, 24)
)

_libc = ctypes.CDLL(None, use_errno=True)


class LegacyTables:
    """The tables of the network namespace that a thread is in."""

    def __init__(self) -> None:
        self._seen = Ruleset()

    def ruleset(self, tables: Iterable[str]) -> Ruleset:
        """Return the chains of some tables, rule by rule; one that is too large is not read.

        Raises:
            ObserveError: the kernel refused.
        """
        result, wanted = Ruleset(), frozenset(tables)
        left = MAX_BYTES_IN_ALL
        for layout in (IPV4, IPV6):
            for table in sorted(table_names(layout) & wanted):
                found = _read(table, layout, left)
                left -= len(found[1]) if found else 0
                read = _chains(table, layout, *found) if found else _unread(table, layout)
                result = joined(result, read)
        if self._seen != result:
            self._seen = result
        return self._seen  # the same object, so that what follows from it is not decided anew


TOO_LARGE = f"one may have {MAX_TABLE_BYTES >> 20} MiB, all together {MAX_BYTES_IN_ALL >> 20}"


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
    level = layout.level
    try:
        with socket.socket(layout.domain, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
            info = _ask(s, SO_GET_INFO, INFO_SIZE, table.encode(), level)
            (size,) = struct.unpack_from("I", info, 80)
            if size > min(MAX_TABLE_BYTES, most):
                return None
            header = struct.pack("32sI4x", table.encode(), size)
            entries = _ask(s, SO_GET_ENTRIES, ENTRIES_HEADER + size, header, level)
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


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def _unread(table: str, layout: Layout) -> Ruleset:
    bases = tuple(_base(table, layout, hook, drops=False) for hook in NF_INET_HOOKS)
    unread = (f"legacy {layout.family}tables' {table} table", TOO_LARGE)
    return Ruleset(bases, dict.fromkeys(b.id for b in bases), unread=(unread,))


def _base(table: str, layout: Layout, hook: str, *, drops: bool) -> BaseChain:
    source = table == "nat" and hook in ("input", "postrouting")
    priority = NAT_SRC if source else PRIORITIES.get(table, 0)
    kind = "nat" if table == "nat" else "filter"
    place = ChainId("legacy", layout.family, table, hook.upper())
    return BaseChain(place, hook, kind, priority, drops)


def _chains(table: str, layout: Layout, info: bytes, entries: bytes) -> Ruleset:
    """Cut a table's entries into chains: they follow each other, and jumps name offsets."""
    valid, *starts = struct.unpack_from("6I", info, 32)
    ends = struct.unpack_from("5I", info, 56)
    hooks = {starts[n]: n for n in range(len(NF_INET_HOOKS)) if valid >> n & 1}
    names = {offset: NF_INET_HOOKS[n].upper() for offset, n in hooks.items()}
    listed = list(_entries(entries, layout))
    for _, after, name, target in listed:
        if name == "ERROR":
            names[after] = _text(entries[target + TARGET_HEADER : target + TARGET_HEADER + 30])
    policies = {ends[n] for n in hooks.values()}
    rules: dict[str, list[Rule]] = {name: [] for name in names.values()}
    dropping: set[str] = set()
    here = ""
    for offset, after, name, target in listed:
        here = names.get(offset, here)
        if name == "ERROR" or not here:
            continue
        verdict = struct.unpack_from("i", entries, target + TARGET_HEADER)[0] if not name else 0
        if offset in policies:
            dropping |= {here} if verdict == DROP else set()
            here = ""
            continue
        is_goto = bool(entries[offset + layout.flags] & layout.goto)
        does = _standard(after, verdict, names, is_goto=is_goto) if not name else ()
        if name:
            info_at = target + TARGET_HEADER
            does = decode_target(name, entries[target + 31], entries[info_at:after])
        rules[here].append((*_asks(entries[offset:target], layout), *does))
    bases = tuple(
        _base(table, layout, NF_INET_HOOKS[n], drops=NF_INET_HOOKS[n].upper() in dropping)
        for n in hooks.values()
    )
    rules.pop("ERROR", None)  # the end of the table
    place = ("legacy", layout.family, table)
    return Ruleset(bases, {ChainId(*place, name): tuple(r) for name, r in rules.items()})


def _entries(entries: bytes, layout: Layout) -> Iterator[tuple[int, int, str, int]]:
    """Yield where each entry and the one after it begin, its target's name, and where that is."""
    offset = 0
    while offset + layout.size <= len(entries):
        to_target, length = struct.unpack_from("HH", entries, offset + layout.offsets)
        if length < layout.size:
            return
        target = offset + to_target
        yield offset, offset + length, _text(entries[target + 2 : target + 31]), target
        offset += length


def _standard(
    after: int, verdict: int, names: dict[int, str], *, is_goto: bool
) -> tuple[Expression, ...]:
    words = {ACCEPT: "accept", DROP: "drop", RETURN: "return"}
    if verdict in words:
        return (Verdict(words[verdict]),)
    if verdict == after:
        return ()  # a rule without a target
    if verdict not in names:
        return (Unclear("verdict", ends=True),)
    return (Verdict("goto" if is_goto else "jump", names[verdict]),)


def _asks(entry: bytes, layout: Layout) -> tuple[Expression, ...]:
    """Return what an entry asks for: addresses, links, the protocol, and its matches."""
    inverted = entry[layout.flags + 1]
    protocol, width = entry[layout.protocol : layout.protocol + 2], layout.width
    source, destination, source_mask, destination_mask = (
        entry[n * width : (n + 1) * width] for n in range(4)
    )
    incoming, outgoing, incoming_mask, outgoing_mask = (
        entry[4 * width + n * 16 : 4 * width + (n + 1) * 16] for n in range(4)
    )
    found: list[Expression] = []
    for field, at, value, mask, bit in (
        ("network", layout.header[0], source, source_mask, 8),
        ("network", layout.header[1], destination, destination_mask, 16),
        ("iifname", 0, incoming, incoming_mask, 1),
        ("oifname", 0, outgoing, outgoing_mask, 2),
        ("l4proto", 0, protocol[:1], b"\xff" if any(protocol) else b"\0", 64),
    ):
        if any(mask):
            wanted = bytes(v & m for v, m in zip(value, mask, strict=True))
            found.append(field_is(field, at, mask, wanted, bool(inverted & bit)))
    if entry[layout.flags] & ~(layout.goto | OF_PROTOCOL[layout.family]) or inverted & 0x24:
        found.append(Unclear("fragments or TOS"))
    offset = layout.size
    while offset + TARGET_HEADER <= len(entry):
        (size,) = struct.unpack_from("H", entry, offset)
        if size < TARGET_HEADER:
            break
        name, revision = _text(entry[offset + 2 : offset + 31]), entry[offset + 31]
        found += decode_match(name, revision, entry[offset + TARGET_HEADER : offset + size])
        offset += size
    return tuple(found)


OF_PROTOCOL = {"ip": 0, "ip6": 1}
"""The flag that says that an entry asks for a protocol (IP6T_F_PROTO); IPv4's has none."""
