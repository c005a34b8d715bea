"""Elements of our table's sets, as the kernel has them: written and read without libnftables.

To write one element it loads every chain and set of every owner, which takes 0.2 s beside 20,000
chains, for each pod; and to delete intervals it takes time that grows with the square of their
number. Constants: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby, islice

from reconciler.core.datapath import TABLE, IpAddress
from reconciler.domains.nat import NftElement
from reconciler.domains.nat_rules import SETS
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import NLM_F_CREATE, attribute, attributes, nested
from reconciler.targets.netlink.nf_tables import string, text
from reconciler.targets.netlink.nfnetlink import Request
from reconciler.targets.netlink.ruleset import Nfnetlink

NFTA_SET_ELEM_FLAGS, INTERVAL_END = 3, 1
NFTA_SET_ELEM_USERDATA = 6
OPEN_INTERVAL = bytes([1, 4]) + struct.pack("I", 1)
"""What libnftables notes at a range without an end; earlier releases wrote by it, and the kernel
gives it no meaning. To us the missing end says it."""

GOTO = -4
PER_MESSAGE = 500
"""Elements in one message: an attribute has 64 KiB at most, and an element 100 bytes."""

MAX_ELEMENTS = 50_000
"""Elements that are read of all our sets. A document has 16,384 values at most, and each CIDR is
two elements; more are none of our making. To read one and take it away takes half a KiB."""

INTERVALS = frozenset(name for s in SETS.values() for name in (s.no_snat, s.by_main))
ADDRESSES: dict[str, type[IPv4Address | IPv6Address]] = {
    "ipv4_addr": IPv4Address,
    "ipv6_addr": IPv6Address,
}


class UnknownError(Exception):
    """An element is of a form that we never write."""


_Part = tuple[bytes, bool, str]
"""An element as it stands in a set: its key, whether a range is over there, and its chain."""


class Reader:
    """Reads elements; what is as it was at the last observation is not decoded again."""

    def __init__(self) -> None:
        self._parts: dict[bytes, _Part] = {}
        self._known: dict[tuple[bytes, bytes, bytes, str], NftElement] = {}
        self._parts_before, self._known_before = self._parts, self._known
        self._left = MAX_ELEMENTS

    def begin(self) -> None:
        """Begin a look at all sets."""
        self._parts_before, self._known_before = self._parts, self._known
        self._parts, self._known = {}, {}
        self._left = MAX_ELEMENTS

    def end(self) -> None:
        """End it: what it has not met is forgotten, for the next observation may be far away."""
        self._parts_before, self._known_before = self._parts, self._known

    def read(
        self, kernel: Nfnetlink, name: bytes, key_type: str, *, is_interval: bool
    ) -> list[NftElement]:
        """Return the elements of a set of our table.

        Raises:
            ObserveError: the kernel refused, or never held still.
            UnknownError: one is of a form that we never write, or there are too many.
        """
        found = kernel.table_elements("inet", TABLE, name, self._left + 1)
        self._left -= len(found)
        if self._left < 0:
            raise UnknownError
        parts = [self._part(content) for content in found]
        if not is_interval:
            return [self._element(name, key, key, goto, key_type) for key, _, goto in parts]
        parts.sort()
        ranges: list[NftElement] = []
        for place, (first, ends, goto) in enumerate(parts):
            if ends:
                continue
            after = parts[place + 1][0] if place + 1 < len(parts) else b""
            ranges.append(self._element(name, first, after, goto, key_type))
        return ranges

    def _part(self, content: bytes) -> _Part:
        part = self._parts_before.get(content)
        if part is None:
            part = _decode(content)
        self._parts[content] = part
        return part

    def _element(
        self, name: bytes, first: bytes, after: bytes, goto: str, key_type: str
    ) -> NftElement:
        """Return an element up to ``after``: b"" for no end, ``first`` for one address."""
        identity = (name, first, after, goto)
        element = self._known_before.get(identity)
        if element is None:
            make = ADDRESSES[key_type]
            begin = make(first)
            if after == first:
                end = begin
            elif after:
                end = make(int.from_bytes(after, "big") - 1)
            else:
                end = make((1 << 8 * len(first)) - 1)
            element = NftElement(text(name[:-1]), begin, end, goto)
        self._known[identity] = element
        return element


def _plain(size: int) -> tuple[bytes, int]:
    """Return how an element without verdict begins in the kernel's answers, and its length."""
    begin = attribute(nft.NFTA_SET_ELEM_KEY, attribute(nft.NFTA_DATA_VALUE, bytes(size)))
    return begin[:-size], len(begin)


PLAIN = dict(_plain(size) for size in (4, 16))
END = attribute(NFTA_SET_ELEM_FLAGS, struct.pack(">I", INTERVAL_END))


def _decode(content: bytes) -> _Part:
    length = PLAIN.get(content[:8])
    if length == len(content):
        return content[8:], False, ""
    if length and content[length:] == END:
        return content[8:length], True, ""
    found = dict(attributes(content))
    if found.get(NFTA_SET_ELEM_USERDATA) == OPEN_INTERVAL:
        del found[NFTA_SET_ELEM_USERDATA]
    if not found.keys() <= {nft.NFTA_SET_ELEM_KEY, nft.NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS}:
        raise UnknownError
    try:
        key = dict(attributes(found[nft.NFTA_SET_ELEM_KEY]))[nft.NFTA_DATA_VALUE]
        goto = ""
        if nft.NFTA_SET_ELEM_DATA in found:
            verdict = dict(
                attributes(dict(attributes(found[nft.NFTA_SET_ELEM_DATA]))[nft.NFTA_DATA_VERDICT])
            )
            if struct.unpack(">i", verdict[nft.NFTA_VERDICT_CODE]) != (GOTO,):
                raise UnknownError
            goto = text(verdict[nft.NFTA_VERDICT_CHAIN][:-1])
    except KeyError as error:
        raise UnknownError from error
    flags = int.from_bytes(found.get(NFTA_SET_ELEM_FLAGS, b""), "big")
    if flags & ~INTERVAL_END:
        raise UnknownError
    return key, bool(flags), goto


def removal(elements: Iterable[NftElement]) -> Iterator[Request]:
    """Return the requests that take elements away."""
    return _messages(nft.NFT_MSG_DELSETELEM, 0, elements)


def addition(elements: Iterable[NftElement]) -> Iterator[Request]:
    """Return the requests that put elements in."""
    return _messages(nft.NFT_MSG_NEWSETELEM, NLM_F_CREATE, elements)


def _messages(kind: int, flags: int, elements: Iterable[NftElement]) -> Iterator[Request]:
    ordered = sorted(elements, key=lambda e: e.key)
    for name, group in groupby(ordered, key=lambda e: e.set):
        parts = (part for e in group for part in _encode(e, is_interval=name in INTERVALS))
        while batch := b"".join(islice(parts, PER_MESSAGE)):
            body = (
                string(nft.NFTA_SET_ELEM_LIST_TABLE, TABLE)
                + string(nft.NFTA_SET_ELEM_LIST_SET, name)
                + nested(nft.NFTA_SET_ELEM_LIST_ELEMENTS, batch)
            )
            yield kind, flags, body


def _encode(element: NftElement, *, is_interval: bool) -> Iterator[bytes]:
    """Return an element; a range is two, of which the second says where it is over."""
    data = b""
    if element.goto:
        verdict = attribute(nft.NFTA_VERDICT_CODE, struct.pack(">i", GOTO))
        verdict += string(nft.NFTA_VERDICT_CHAIN, element.goto)
        data = nested(nft.NFTA_SET_ELEM_DATA, nested(nft.NFTA_DATA_VERDICT, verdict))
    yield _part(element.first, data)
    if is_interval and (end := int(element.last) + 1) < 1 << element.last.max_prefixlen:
        over = attribute(NFTA_SET_ELEM_FLAGS, struct.pack(">I", INTERVAL_END))
        yield _part(type(element.last)(end), over)


def _part(key: IpAddress, more: bytes) -> bytes:
    packed = key.packed
    return _head(len(packed), len(more)) + packed + more


@lru_cache(maxsize=64)
def _head(key: int, more: int) -> bytes:
    """Return what stands before a key: the attributes that it is nested in."""
    shape = nested(nft.NFTA_LIST_ELEM, _keyed(bytes(key)) + bytes(more))
    return shape[: len(shape) - key - more]


def _keyed(key: bytes) -> bytes:
    return nested(nft.NFTA_SET_ELEM_KEY, attribute(nft.NFTA_DATA_VALUE, key))
