"""Connection tracking through ctnetlink, whose table is as large as pods make it.

The kernel filters by address, for a look (CTA_FILTER, Linux 5.8) and for a deletion (Linux 6.11).
Where it does not, the table is streamed in pieces of a few KiB and compared as bytes. No entry
ever becomes an object. Constants: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from ipaddress import IPv4Address
from itertools import groupby, islice
from typing import NamedTuple

from reconciler.core.datapath import IpAddress
from reconciler.core.ranges import find
from reconciler.domains.conntrack import ConntrackFlush, Flow, OpenTo
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError
from reconciler.targets.netlink import message as netlink
from reconciler.targets.netlink.message import attribute, attributes, nested
from reconciler.targets.netlink.nfnetlink import HEADERS, NFNL_SUBSYS_CTNETLINK, Channel

CT_NEW, CT_GET, CT_DELETE, CT_GET_STATS = 0, 1, 2, 5
CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, CTA_TIMEOUT, CTA_ZONE, CTA_FILTER = 1, 2, 7, 18, 25
CTA_TUPLE_IP, CTA_TUPLE_PROTO = 1, 2
CTA_STATS_GLOBAL_ENTRIES = 1
FILTER_SOURCE, FILTER_DESTINATION = 1, 2
"""Bits of CTA_FILTER_ORIG_FLAGS and CTA_FILTER_REPLY_FLAGS (nf_internals.h, CTA_IP_SRC, _DST);
those two attributes have the numbers of the tuples that they are about."""

UNFILTERED = {errno.EINVAL, errno.EOPNOTSUPP}
"""How a kernel answers that does not filter deletions: it takes the filter's tuple for an entry's,
which is incomplete, or says so. Without a tuple it would delete every entry there is."""

FEW_ENTRIES, MANY_ADDRESSES = 9_000, 4
"""Up to so many entries, and from so many addresses on, the table is streamed once, instead of
being walked by the kernel for each end of each address. A walk goes over all buckets, of which a
quiet node has many more than entries: with 262,144 of them the four walks of an address take 32 ms
and 0.8 microseconds for each entry, the stream 8 ms and 3.5 (measured on Linux 6.18)."""

FILTERED = {4}
"""IP versions whose addresses the kernel can be asked by. Of IPv6 it returns, and deletes, what
does *not* have the address: ctnetlink_filter_match_tuple negates ipv6_addr_cmp, which says 0 for
"the same" (seen on Linux 6.18). A deletion would end all other pods' connections."""

BATCH = 128
"""Entries that are deleted by one request; the answers of as many fit into the socket's buffer."""


MOST_COUNTED = 20_000
"""Entries of a table that is counted for a person who waits; it takes a tenth of a second. A
larger one is not counted at all."""


class _Shape(NamedTuple):
    """How a family's addresses stand in a message: first in each tuple, source before target."""

    af: int
    source: int
    tuple: struct.Struct


SHAPES = {
    4: _Shape(socket.AF_INET, 1, struct.Struct("=HHHHHH4sHH4s")),
    6: _Shape(socket.AF_INET6, 3, struct.Struct("=HHHHHH16sHH16s")),
}
"""By version: the number of CTA_IP_V4_SRC or CTA_IP_V6_SRC; that of the target is one more."""


class _UnfilteredError(Exception):
    """The kernel answers a filtered question with everything there is."""


class Conntrack:
    """The connections of this network namespace."""

    def __init__(self) -> None:
        self._filters_looks = self._filters_deletions = True

    def observe(self, desired: Iterable[ConntrackFlush]) -> frozenset[Flow]:
        """Return which of the desired addresses have connections; without any, nothing is read.

        Raises:
            ObserveError: the table could not be read.
        """
        wanted = frozenset[IpAddress]().union(*(d.addresses for d in desired))
        with netlink.reading("conntrack"):
            busy = [address for group in _families(wanted) for address in self._find_busy(group)]
        return frozenset(map(Flow, busy))

    def count(self, questions: Sequence[OpenTo]) -> tuple[int, ...] | None:
        """Answer each question; None if the table is too large to be read for that.

        Raises:
            ObserveError: the table could not be read.
        """
        counts = [0] * len(questions)
        with netlink.reading("conntrack"):
            if _entries() > MOST_COUNTED:
                return None
            pods = {p for q in questions for p in q.pods if p.version == 4}
            for message, _ in _stream(pods) if pods else ():
                source, _, back, forth = _ends(message)
                pod, destination = IPv4Address(source), IPv4Address(back)
                for i, asked in enumerate(questions):
                    counts[i] += (
                        pod in asked.pods
                        and (forth != source) is asked.translated
                        and find(asked.destinations, destination) is not None
                    )
        return tuple(counts)

    def apply(self, actions: Sequence[Change[Flow]]) -> tuple[ApplyError, ...]:
        """Delete every connection from or to each address."""
        doomed = {a.object.address: str(a) for a in actions}
        failures: list[ApplyError] = []
        for group in _families(doomed):
            try:
                refused = self._end(group)
            except OSError as error:
                refused = dict.fromkeys(group, error)
            failures += [ApplyError.from_errno(doomed[a], e) for a, e in refused.items()]
        return tuple(failures)

    def _find_busy(self, group: Collection[IpAddress]) -> set[IpAddress]:
        """Return those that have connections."""
        if self._filters_looks and not _is_better_streamed(group):
            try:
                return {a for a in group if _has_any(a)}
            except _UnfilteredError:
                self._filters_looks = False
        found: set[IpAddress] = set()
        for _, ends in _stream(group):
            found |= ends
            if len(found) == len(group):
                break
        return found

    def _end(self, group: Collection[IpAddress]) -> dict[IpAddress, OSError]:
        """Delete what has one of these ends; return what could not be, by that end."""
        if self._filters_deletions and not _is_better_streamed(group):
            try:
                for address in group:
                    _flush(address)
            except OSError as error:
                if error.errno not in UNFILTERED:
                    raise
                self._filters_deletions = False
            else:
                return {}
        refused: dict[IpAddress, OSError] = {}
        with Channel(NFNL_SUBSYS_CTNETLINK) as channel:
            entries = _stream(group)
            while batch := list(islice(entries, BATCH)):
                requests = [(CT_DELETE, 0, _identity(message)) for message, _ in batch]
                channel.tell(requests, batch[0][0][16])
                for answer in channel.errors():
                    if answer.errno != errno.ENOENT:  # or else it has ended meanwhile
                        refused |= {a: answer for _, ends in batch for a in ends}
        return refused


def _families(addresses: Iterable[IpAddress]) -> Iterator[list[IpAddress]]:
    """Group by family: a question is about one."""
    ordered = sorted(addresses, key=lambda a: (a.version, int(a)))
    return (list(group) for _, group in groupby(ordered, key=lambda a: a.version))


def _is_better_streamed(group: Collection[IpAddress]) -> bool:
    if next(iter(group)).version not in FILTERED or len(group) >= MANY_ADDRESSES:
        return True
    return _entries() <= FEW_ENTRIES


def _entries() -> int:
    """Return how many entries the table has."""
    with Channel(NFNL_SUBSYS_CTNETLINK) as channel:
        (message,) = channel.stream(CT_GET_STATS, 0)
    entries = dict(attributes(message, HEADERS))[CTA_STATS_GLOBAL_ENTRIES]
    return int.from_bytes(entries, "big")


def _filters(address: IpAddress) -> Iterator[bytes]:
    """Return the filter for each end that an address can be."""
    shape = SHAPES[address.version]
    for direction in (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY):
        for flag in (FILTER_SOURCE, FILTER_DESTINATION):
            end = attribute(shape.source + flag - FILTER_SOURCE, address.packed)
            by = attribute(direction, struct.pack("I", flag))
            yield nested(direction, nested(CTA_TUPLE_IP, end)) + nested(CTA_FILTER, by)


def _has_any(address: IpAddress) -> bool:
    """Whether a connection has this end. One is enough: the rest of the answer is not read."""
    family = SHAPES[address.version].af
    for body in _filters(address):
        with Channel(NFNL_SUBSYS_CTNETLINK) as channel:
            for message in channel.stream(CT_GET, netlink.NLM_F_DUMP, body, family):
                if address.packed not in _ends(message):
                    raise _UnfilteredError
                return True
    return False


def _flush(address: IpAddress) -> None:
    """Have the kernel delete all that has this end; it may refuse, see UNFILTERED."""
    family = SHAPES[address.version].af
    with Channel(NFNL_SUBSYS_CTNETLINK) as channel:
        for body in _filters(address):
            list(channel.stream(CT_DELETE, netlink.NLM_F_ACK, body, family))


def _stream(group: Collection[IpAddress]) -> Iterator[tuple[bytes, set[IpAddress]]]:
    """Go through the table; return each entry that has some of these ends, and which."""
    wanted = {a.packed: a for a in group}
    family = SHAPES[next(iter(group)).version].af
    with Channel(NFNL_SUBSYS_CTNETLINK) as channel:
        for message in channel.stream(CT_GET, netlink.NLM_F_DUMP, family=family):
            ends = _ends(message)
            if not wanted.keys().isdisjoint(ends):
                yield message, {wanted[end] for end in ends if end in wanted}


def _ends(message: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Return sources and targets of both tuples, which stand where every kernel has put them."""
    shape = SHAPES[4 if message[16] == socket.AF_INET else 6]
    try:
        length, one, _, _, _, source_is, source, _, target_is, target = shape.tuple.unpack_from(
            message, HEADERS
        )
        _, other, _, _, _, _, back, _, _, forth = shape.tuple.unpack_from(
            message, HEADERS + (length + 3 & ~3)
        )
    except struct.error as error:
        raise OSError(errno.EPROTO, "an entry without two tuples") from error
    kinds = one & 0xFF, other & 0xFF, source_is, target_is
    if kinds != (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY, shape.source, shape.source + 1):
        raise OSError(errno.EPROTO, "an entry whose tuples do not come first")
    return source, target, back, forth


def _identity(message: bytes) -> bytes:
    """Return what names one entry: its tuple and its zone."""
    kept = {CTA_TUPLE_ORIG, CTA_ZONE}
    found = [(k, content) for k, content in attributes(message, HEADERS) if k in kept]
    return b"".join((nested if k == CTA_TUPLE_ORIG else attribute)(k, c) for k, c in found)
