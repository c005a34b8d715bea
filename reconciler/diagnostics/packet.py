"""A packet at one hook of netfilter, as far as it is known."""

from __future__ import annotations

import struct
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
    """A packet's mark, as far as it is known.

    Attributes:
        known: the bits that are.
    """

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
        state: of its connection.
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
        match name:
            case "network":
                return self._network()
            case "transport":
                return _joined(_number(self.source_port, 2), _number(self.port, 2), (b"", b""))
            case "iifname":
                return _text(self.incoming)
            case "oifname":
                return _text(self.outgoing)
            case "mark":
                return _host(mark.value), _host(mark.known)
            case "state":
                return (_host(self.state or 0), _host(ALL if self.state is not None else 0))
            case _:
                return self._of_family(name)

    def _of_family(self, name: str) -> Bits:
        match name:
            case "l4proto":
                return _number(self.protocol, 1)
            case "nfproto":
                return _number(2 if self.version == 4 else 10, 1)
            case "protocol":
                return _number(0x0800 if self.version == 4 else 0x86DD, 2)
            case "status":
                known = 0 if self.translated is None else DNATED
                return _host(DNATED if self.translated else 0), _host(known)
            case "direction":
                known_direction = self.state is State.NEW
                return b"\0", (b"\xff" if known_direction else b"\0")
            case "wayback":
                back = b"\0" * 3 + bytes([bool(self.has_way_back)])
                return back, (b"\0" if self.has_way_back is None else b"\xff") * 4
            case "daddrtype":
                known_type = 0 if self.local is None else ALL
                return _host(RTN_LOCAL if self.local else RTN_UNICAST), _host(known_type)
            case _:
                return b"", b""

    def _network(self) -> Bits:
        size = 4 if self.version == 4 else 16
        source, destination = _address(self.source, size), _address(self.destination, size)
        protocol = _number(self.protocol, 1)
        if self.version == 4:
            return _joined(_unknown(9), protocol, _unknown(2), source, destination)
        return _joined(_unknown(6), protocol, _unknown(1), source, destination)


def _joined(*parts: Bits) -> Bits:
    return b"".join(p[0] for p in parts), b"".join(p[1] for p in parts)


def _unknown(length: int) -> Bits:
    return bytes(length), bytes(length)


def _number(value: int | None, length: int) -> Bits:
    if value is None:
        return _unknown(length)
    return value.to_bytes(length, "big"), b"\xff" * length


def _address(address: IpAddress | None, length: int) -> Bits:
    return (address.packed, b"\xff" * length) if address else _unknown(length)


def _text(name: str | None) -> Bits:
    if name is None:
        return _unknown(IFNAMSIZ)
    if name.endswith("*"):  # all that begin so
        prefix = name[:-1].encode()
        return prefix.ljust(IFNAMSIZ, b"\0"), (b"\xff" * len(prefix)).ljust(IFNAMSIZ, b"\0")
    return name.encode().ljust(IFNAMSIZ, b"\0")[:IFNAMSIZ], b"\xff" * IFNAMSIZ


def _host(value: int) -> bytes:
    """As the kernel keeps numbers of its own; addresses and ports are in network order."""
    return struct.pack("=I", value)
