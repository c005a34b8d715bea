"""Entries in a conntrack table, as a pod that opens very many connections leaves them.

Written by ctnetlink, so that a hundred thousand take seconds and no packet. The limit
(nf_conntrack_max) is of the whole machine and can be raised from the first namespace only.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import islice
from pathlib import Path

from reconciler.targets.conntrack import (
    CT_DELETE,
    CT_NEW,
    CTA_TIMEOUT,
    CTA_TUPLE_IP,
    CTA_TUPLE_ORIG,
    CTA_TUPLE_PROTO,
    CTA_TUPLE_REPLY,
    CTA_ZONE,
    SHAPES,
)
from reconciler.targets.netlink.message import NLM_F_ACK, NLM_F_CREATE, attribute, nested
from reconciler.targets.netlink.nfnetlink import NFNL_SUBSYS_CTNETLINK, Channel

UDP = 17
LIFE_S = 3600
BATCH = 256
PORTS = 50_000
"""Of one peer: after as many connections the next peer's turn comes."""

PEERS = {4: ip_address("198.18.0.0"), 6: ip_address("2001:db8:1::")}

Address = IPv4Address | IPv6Address


def count() -> int:
    """Return the entries of this thread's namespace."""
    return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def open_many(address: Address, number: int, *, incoming: bool = False, zone: int = 0) -> None:
    """Make UDP connections of an address with peers beyond, in this thread's namespace.

    Raises:
        OSError: the kernel refused one, as it does when the table is full.
    """
    entries = (_entry(address, n, incoming=incoming, zone=zone) for n in range(number))
    family = SHAPES[address.version].af
    with Channel(NFNL_SUBSYS_CTNETLINK) as channel:
        while batch := list(islice(entries, BATCH)):
            channel.tell([(CT_NEW, NLM_F_CREATE, body) for body in batch], family)
            for error in channel.errors():
                raise error


def close_all() -> None:
    """Empty the table of this thread's namespace.

    Raises:
        OSError: the kernel refused.
    """
    with Channel(NFNL_SUBSYS_CTNETLINK) as channel:
        list(channel.stream(CT_DELETE, NLM_F_ACK))


def _entry(address: Address, number: int, *, incoming: bool, zone: int) -> bytes:
    peer = PEERS[address.version] + number // PORTS
    ends = [(address, 1024 + number % PORTS), (peer, 54 if incoming else 53)]
    first, second = reversed(ends) if incoming else ends
    return (
        _tuple(CTA_TUPLE_ORIG, first, second)
        + _tuple(CTA_TUPLE_REPLY, second, first)
        + attribute(CTA_TIMEOUT, struct.pack(">I", LIFE_S))
        + (attribute(CTA_ZONE, struct.pack(">H", zone)) if zone else b"")
    )


def _tuple(direction: int, source: tuple[Address, int], target: tuple[Address, int]) -> bytes:
    first = SHAPES[source[0].version].source
    addresses = attribute(first, source[0].packed) + attribute(first + 1, target[0].packed)
    ports = attribute(2, struct.pack(">H", source[1])) + attribute(3, struct.pack(">H", target[1]))
    protocol = attribute(1, bytes([UDP])) + ports
    return nested(direction, nested(CTA_TUPLE_IP, addresses) + nested(CTA_TUPLE_PROTO, protocol))
