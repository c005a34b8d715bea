"""A packet at one hook of netfilter, as far as it is known."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntFlag

from reconciler.core.datapath import IpAddress
from reconciler.diagnostics.ruleset import IFNAMSIZ

ALL = 0xFFFFFFFF
RTN_UNICAST, RTN_LOCAL = 1, 2
DNATED = 1 << 5
"""IPS_DST_NAT (linux/netfilter/nf_conntrack_common.h)."""

Bits = tuple[bytes, bytes]
"""A value, and which of its bits are known."""


class State(IntFlag):
    """Of a connection, in the bits of nftables and of iptables' match conntrack."""

    INVALID = 1
    ESTABLISHED = 2
    RELATED = 4
    NEW = 8


@dataclass(frozen=True, slots=True)
class Mark:
    """A packet's mark, and which of its bits are known."""

    value: int = 0
    known: int = ALL

    def joined(self, other: Mark) -> Mark:
        """Return what both have in common."""
        known = self.known & other.known & ~(self.value ^ other.value)
        return Mark(self.value & known, known)

    def changed(self, mask: int, value: int) -> Mark:
        """Return it after ``(mark & ~mask) ^ value``."""
        kept = ~mask & ALL
        known = (self.known & kept) | (mask & ALL)
        return Mark((self.value & kept ^ value) & known, known)


UNKNOWN_MARK = Mark(0, 0)


@dataclass(frozen=True, slots=True)
class Passage:
    """A packet at one hook; None is what is not known of it.

    Attributes:
        incoming, outgoing: names of links, or ``prefix*``; "" where there is none.
        translated: its destination was translated (DNAT).
        local: its destination is an address of the host.
        has_way_back: a route leads to its source by the link it came by.
        mark: at the first chain.
    """

    incoming: str | None
    outgoing: str | None
    source: IpAddress | None
    destination: IpAddress | None
    protocol: int | None = None
    source_port: int | None = None
    port: int | None = None
    state: State | None = State.NEW
    translated: bool | None = False
    local: bool | None = None
    has_way_back: bool | None = None
    mark: Mark = UNKNOWN_MARK

    @property
    def version(self) -> int:
        """The family's number."""
        address = self.source or self.destination
        return address.version if address else 4

    def read(self, name: str, mark: Mark) -> Bits:
        """Return a field's bytes, and which of their bits are known."""
        if name == "mark":
            return struct.pack("=I", mark.value), struct.pack("=I", mark.known)
        return FIELDS[name](self) if name in FIELDS else (b"", b"")


def _network(packet: Passage) -> Bits:
    size = 4 if packet.version == 4 else 16
    before, after = (9, 2) if packet.version == 4 else (6, 1)
    addresses = [
        (a.packed, b"\xff" * size) if a else _number(None, size)
        for a in (packet.source, packet.destination)
    ]
    protocol = _number(packet.protocol, 1)
    return _joined(_number(None, before), protocol, _number(None, after), *addresses)


def _joined(*parts: Bits) -> Bits:
    return b"".join(p[0] for p in parts), b"".join(p[1] for p in parts)


def _number(value: int | None, length: int) -> Bits:
    """In network order, as addresses and ports are."""
    known = bytes(length) if value is None else b"\xff" * length
    return (value or 0).to_bytes(length, "big"), known


def _host(value: int | None, mask: int = ALL) -> Bits:
    """As the kernel keeps numbers of its own."""
    return struct.pack("=I", value or 0), struct.pack("=I", 0 if value is None else mask)


def _chosen(which: bool | None, yes: int, no: int) -> int | None:
    return None if which is None else yes if which else no


def _text(name: str | None) -> Bits:
    if name is None:
        return _number(None, IFNAMSIZ)
    text = name.removesuffix("*").encode()
    length = len(text) if name.endswith("*") else IFNAMSIZ  # of ``prefix*`` the rest may be any
    return text.ljust(IFNAMSIZ, b"\0")[:IFNAMSIZ], (b"\xff" * length).ljust(IFNAMSIZ, b"\0")


FIELDS: dict[str, Callable[[Passage], Bits]] = {
    "network": _network,
    "transport": lambda p: _joined(_number(p.source_port, 2), _number(p.port, 2)),
    "iifname": lambda p: _text(p.incoming),
    "oifname": lambda p: _text(p.outgoing),
    "state": lambda p: _host(p.state),
    "l4proto": lambda p: _number(p.protocol, 1),
    "nfproto": lambda p: _number(2 if p.version == 4 else 10, 1),
    "protocol": lambda p: _number(0x0800 if p.version == 4 else 0x86DD, 2),
    "status": lambda p: _host(_chosen(p.translated, DNATED, 0), DNATED),
    "direction": lambda p: _number(0 if p.state is State.NEW else None, 1),
    "wayback": lambda p: _number(_chosen(p.has_way_back, 1, 0), 4),
    "daddrtype": lambda p: _host(_chosen(p.local, RTN_LOCAL, RTN_UNICAST)),
}
"""What rules may ask for, and what of it is known."""
