"""Our table, read and written as the kernel has it, without libnftables.

To write one element libnftables loads every chain and set of every owner, which takes 0.2 s beside
20,000 chains, for each pod; and to delete intervals it takes time that grows with the square of
their number. If there is something in the table that we never write, it is unreadable, and the
table is made anew. Constants: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from itertools import groupby, islice, zip_longest
from operator import itemgetter
from typing import TypeVar

from reconciler.core.datapath import TABLE
from reconciler.domains.nat_objects import (
    NftChain,
    NftCounter,
    NftElement,
    NftLink,
    NftObject,
    NftSet,
    NftTable,
)
from reconciler.domains.nat_rules import is_of_ranges
from reconciler.engine.plan import Change, Verb
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import (
    NLA_F_NESTED,
    NLM_F_APPEND,
    NLM_F_CREATE,
    attribute,
    attributes,
    nested,
)
from reconciler.targets.netlink.nf_tables import string, text
from reconciler.targets.netlink.nfnetlink import Request
from reconciler.targets.netlink.ruleset import MAX_OBJECTS, Nfnetlink, TooMuchError

NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN = 4, 5
NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN, NFTA_SET_ID, NFTA_SET_USERDATA = 6, 7, 10, 13
SET_ANONYMOUS, SET_INTERVAL, SET_MAP, SET_CONCAT = 0x1, 0x4, 0x8, 0x80
DATA_VERDICT = 0xFFFFFF00
NFTA_SET_ELEM_FLAGS, NFTA_SET_ELEM_USERDATA = 3, 6
GOTO, ACCEPT, INTERVAL_END = -4, 1, 1

PARTS = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "ifname": (41, 16)}
"""Types of keys: libnftables' number, which the kernel only keeps, and bytes."""

LINK = "ifname"
KEY_TYPES = {number: name for name, (number, _) in PARTS.items()} | {
    PARTS[LINK][0] << 6 | PARTS[of][0]: f"{LINK} . {of}" for of in ("ipv4_addr", "ipv6_addr")
}
"""By number. Of a key of two parts the number of the first is six bits further up."""

ADDRESSES: dict[int, type[IPv4Address | IPv6Address]] = {4: IPv4Address, 16: IPv6Address}
"""By bytes."""

Element = NftElement | NftLink

BIG_ENDIAN = bytes([0, 4]) + struct.pack("I", 2)
HOST_ORDER = bytes([0, 4]) + struct.pack("I", 1)
"""User data of a set: its keys' byte order, for nft to print them by."""

OPEN_INTERVAL = bytes([1, 4]) + struct.pack("I", 1)
"""What libnftables notes at a range without an end; earlier releases wrote by it, and the kernel
gives it no meaning. To us the missing end says it."""

TABLE_FLAGS = {1: "dormant", 2: "owner", 4: "persist"}

PER_MESSAGE = 500
"""Elements in one message: an attribute has 64 KiB at most, and an element 100 bytes."""

MAX_ELEMENTS = 50_000
"""Elements that are read of all our sets. A document has 16,384 values at most, and each CIDR is
two elements; more are none of our making. To read one and take it away takes half a KiB."""

UNREADABLE = frozenset({NftTable(readable=False)})

T = TypeVar("T")


class _UnreadableError(Exception):
    """There is something that we never write."""


class Reader:
    """Reads our table; elements that were there at the last look are not decoded again."""

    def __init__(self, kernel: Nfnetlink) -> None:
        self._kernel = kernel
        self._known: dict[tuple[bytes, bytes, bytes], Element | None] = {}
        """By set, element as the kernel has it, and the next one of a set of ranges."""

    def read(self, texts: Mapping[bytes, str]) -> frozenset[NftObject]:
        """Return what is in our table; the empty set if there is none.

        Args:
            texts: rules by what the kernel makes of them.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        flags = self._kernel.table_flags("inet", TABLE)
        if flags is None:
            return frozenset()
        words = tuple(word for bit, word in TABLE_FLAGS.items() if flags & bit)
        try:
            return frozenset((NftTable(flags=words), *self._chains(texts), *self._sets()))
        except (_UnreadableError, TooMuchError):
            return UNREADABLE

    def _chains(self, texts: Mapping[bytes, str]) -> Iterator[NftChain]:
        rules: dict[str, list[str]] = {}
        chains = _bounded(self._kernel.table_chains("inet", TABLE))
        for name, expressions in self._kernel.table_rules("inet", TABLE):
            # It is like no desired rule, so it is deleted. Not its bytes: they hold its
            # counters, which packets change, and may be long.
            known = texts.get(expressions) or f"unknown, of {len(expressions)} bytes"
            rules.setdefault(text(name), []).append(known)
        for c in chains:
            _plain(c.place[1][:-1])
            policy = "drop" if c.drops else ""
            its_own = tuple(rules.get(c.name, ()))
            yield NftChain(c.name, its_own, c.type, c.hook, c.priority, policy)

    def _sets(self) -> Iterator[NftObject]:
        if self._kernel.table_parts(nft.NFT_MSG_GETFLOWTABLE, "inet", TABLE):
            raise _UnreadableError
        yield from self._counters()
        before, self._known = self._known, {}
        left = MAX_ELEMENTS
        for found in _bounded(self._kernel.table_parts(nft.NFT_MSG_GETSET, "inet", TABLE)):
            kinds = (nft.NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_DATA_TYPE)
            flags, key, data = (int.from_bytes(found.get(kind, b""), "big") for kind in kinds)
            if flags & SET_ANONYMOUS:
                continue  # a part of a rule
            name, is_map = found[nft.NFTA_SET_NAME], bool(flags & SET_MAP)
            leads_to = (data == DATA_VERDICT, 0 < data == key)
            is_odd = flags & ~(SET_INTERVAL | SET_MAP | SET_CONCAT) or is_map is not any(leads_to)
            if key not in KEY_TYPES or is_odd:
                raise _UnreadableError
            is_interval = bool(flags & SET_INTERVAL)
            one = NftSet(_plain(name[:-1]), KEY_TYPES[key], is_interval, *leads_to)
            yield one
            # The key comes first (nf_tables_fill_setelem), so they are in its order.
            listed = sorted(self._kernel.table_elements("inet", TABLE, name, left + 1))
            left -= len(listed)
            if left < 0:
                raise _UnreadableError
            nexts = listed[1:] if one.interval else listed
            for pair in zip_longest(listed, nexts, fillvalue=b""):
                identity = (name, *pair)
                known = before[identity] if identity in before else _decode(one, *pair)
                self._known[identity] = known
                if known:
                    yield known

    def _counters(self) -> Iterator[NftCounter]:
        for found in _bounded(self._kernel.table_parts(nft.NFT_MSG_GETOBJ, "inet", TABLE)):
            name, kind = found[nft.NFTA_OBJ_NAME], found[nft.NFTA_OBJ_TYPE]
            if int.from_bytes(kind, "big") != nft.NFT_OBJECT_COUNTER:
                raise _UnreadableError
            yield NftCounter(_plain(name[:-1]))


def count(kernel: Nfnetlink) -> dict[str, int]:
    """Return how many packets each counter of our table has counted.

    Raises:
        ObserveError: the kernel refused, or never held still.
    """
    listed = kernel.table_parts(nft.NFT_MSG_GETOBJ, "inet", TABLE)
    data = {
        text(o[nft.NFTA_OBJ_NAME][:-1]): dict(attributes(o[nft.NFTA_OBJ_DATA])) for o in listed
    }
    packets = nft.NFTA_COUNTER_PACKETS
    return {name: int.from_bytes(d[packets], "big") for name, d in data.items() if packets in d}


def _plain(name: bytes) -> str:
    if text(name).encode() != name:
        raise _UnreadableError  # bytes that are no text: nothing could be done by it
    return text(name)


def _bounded(found: list[T]) -> list[T]:
    if len(found) >= MAX_OBJECTS:
        raise _UnreadableError  # to make the table anew is cheaper than to take each of them away
    return found


def _decode(one: NftSet, content: bytes, after: bytes) -> Element | None:
    """Return an element up to the one after it, if there is one; None for the end of a range."""
    key, is_end, goto, value = _parts(content)
    if is_end:
        return None
    if one.type.startswith(LINK):
        size = PARTS[LINK][1]
        name, address = _plain(key[:size].rstrip(b"\0")), key[size:]
        return NftLink(one.name, name, ADDRESSES[len(address)](address) if address else None, goto)
    make, last = ADDRESSES[len(key)], (1 << 8 * len(key)) - 1
    if after:
        last = int.from_bytes(_parts(after)[0], "big") - one.interval
    return NftElement(one.name, make(key), make(last), goto, value=make(value) if value else None)


def leading_to(element: Element, goto: str, value: bytes) -> Element:
    """Return an element with the chain and the value that the kernel says it has."""
    if isinstance(element, NftLink):
        return replace(element, goto=goto)
    address = ADDRESSES[len(value)](value) if value else None
    return replace(element, goto=goto, value=address)


def _parts(content: bytes) -> tuple[bytes, bool, str, bytes]:
    """Return an element's key, whether a range is over there, its chain, and its value."""
    found = dict(attributes(content))
    if found.get(NFTA_SET_ELEM_USERDATA) == OPEN_INTERVAL:
        del found[NFTA_SET_ELEM_USERDATA]
    flags = int.from_bytes(found.pop(NFTA_SET_ELEM_FLAGS, b""), "big")
    try:
        key = dict(attributes(found.pop(nft.NFTA_SET_ELEM_KEY)))[nft.NFTA_DATA_VALUE]
        goto, data = "", dict(attributes(found.pop(nft.NFTA_SET_ELEM_DATA, b"")))
        value = data.get(nft.NFTA_DATA_VALUE, b"")
        if data and not value:
            verdict = dict(attributes(data[nft.NFTA_DATA_VERDICT]))
            if verdict[nft.NFTA_VERDICT_CODE] != struct.pack(">i", GOTO):
                raise _UnreadableError
            goto = text(verdict[nft.NFTA_VERDICT_CHAIN][:-1])
    except KeyError as error:
        raise _UnreadableError from error
    if found or flags & ~INTERVAL_END:
        raise _UnreadableError
    return key, bool(flags), goto, value


def read_element(content: bytes) -> tuple[bytes, str, bytes] | None:
    """Return a single element's key, its chain and its value; None for what we never write."""
    try:
        key, is_end, goto, value = _parts(content)
    except _UnreadableError:
        return None
    return None if is_end else (key, goto, value)


UNHOOK, REMOVE, MAKE, DEFINE, ADD, CONNECT, DROP = range(7)
"""The parts of a transaction, by when they must happen.

Rules name sets and chains, map elements name chains. So: unhook first (rules and elements
away), then define, then fill, then connect, and only then drop what nothing names any more.
"""

_OURS = string(1, TABLE)
_TABLE: Request = (nft.NFT_MSG_NEWTABLE, NLM_F_CREATE, _OURS)


def requests(
    actions: Iterable[Change[NftObject]], compiled: Mapping[NftChain, tuple[bytes, ...]]
) -> list[Request]:
    """Return the transaction, in the order the kernel's references demand."""
    actions = list(actions)
    # For a chain to be added to; unless the table goes for good.
    is_last = all(isinstance(a.object, NftTable) and a.verb is Verb.DELETE for a in actions)
    steps = [] if is_last else [(MAKE, _TABLE)]
    removed: list[Element] = []
    added: list[Element] = []
    for number, action in enumerate(actions):
        is_gone = action.verb is Verb.DELETE
        match action.object:
            case NftTable() if is_gone:
                # Made first, so that deleting a table that is already gone is no error.
                steps += [(UNHOOK, _TABLE), (UNHOOK, (nft.NFT_MSG_DELTABLE, 0, _OURS))]
            case NftTable():
                pass  # always there
            case NftChain() as chain:
                steps += _of_chain(action, chain, compiled)
            case NftSet() as one if is_gone:
                name = string(nft.NFTA_SET_NAME, one.name)
                steps.append((DROP, (nft.NFT_MSG_DELSET, 0, _OURS + name)))
            case NftSet() as one:
                body = _OURS + _set_body(one, number)
                steps.append((DEFINE, (nft.NFT_MSG_NEWSET, NLM_F_CREATE, body)))
            case NftCounter() as counter:
                steps.append(_of_counter(counter, is_gone=is_gone))
            case NftElement() | NftLink() as element:
                before = element if is_gone else action.was
                removed += [before] if isinstance(before, Element) else []
                added += [] if is_gone else [element]
    steps += [(REMOVE, r) for r in _of_elements(nft.NFT_MSG_DELSETELEM, 0, removed)]
    steps += [(ADD, r) for r in _of_elements(nft.NFT_MSG_NEWSETELEM, NLM_F_CREATE, added)]
    return [request for _, request in sorted(steps, key=itemgetter(0))]


def _of_chain(
    action: Change[NftObject], chain: NftChain, compiled: Mapping[NftChain, tuple[bytes, ...]]
) -> Iterator[tuple[int, Request]]:
    name, place = string(3, chain.name), _OURS + string(nft.NFTA_RULE_CHAIN, chain.name)
    if action.verb is Verb.DELETE or action.was is not None:
        yield UNHOOK, (nft.NFT_MSG_DELRULE, 0, place)
    if action.verb is Verb.DELETE:
        yield DROP, (nft.NFT_MSG_DELCHAIN, 0, _OURS + name)
        return
    if chain.hook:
        number = next(n for n, hook in nft.HOOKS.items() if hook == chain.hook)
        hook = attribute(1, _be32(number)) + attribute(2, struct.pack(">i", chain.priority))
        name += nested(4, hook) + attribute(5, _be32(ACCEPT)) + string(7, chain.type)
    yield DEFINE, (nft.NFT_MSG_NEWCHAIN, NLM_F_CREATE, _OURS + name)
    for rule in compiled[chain]:
        body = place + attribute(nft.NFTA_RULE_EXPRESSIONS | NLA_F_NESTED, rule)
        yield CONNECT, (nft.NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body)


def _of_counter(counter: NftCounter, *, is_gone: bool) -> tuple[int, Request]:
    body = _OURS + string(nft.NFTA_OBJ_NAME, counter.name)
    body += attribute(nft.NFTA_OBJ_TYPE, _be32(nft.NFT_OBJECT_COUNTER))
    if is_gone:
        return DROP, (nft.NFT_MSG_DELOBJ, 0, body)
    none = attribute(nft.NFTA_COUNTER_BYTES, bytes(8))
    none += attribute(nft.NFTA_COUNTER_PACKETS, bytes(8))
    return DEFINE, (nft.NFT_MSG_NEWOBJ, NLM_F_CREATE, body + nested(nft.NFTA_OBJ_DATA, none))


def _set_body(one: NftSet, number: int) -> bytes:
    key_type = next(n for n, name in KEY_TYPES.items() if name == one.type)
    sizes = [PARTS[part][1] for part in one.type.split(" . ")]
    flags = SET_INTERVAL * one.interval | SET_MAP * (one.verdicts or one.values)
    order = HOST_ORDER if one.type == LINK else BIG_ENDIAN
    body = (
        string(nft.NFTA_SET_NAME, one.name)
        + attribute(nft.NFTA_SET_FLAGS, _be32(flags))
        + attribute(NFTA_SET_KEY_TYPE, _be32(key_type))
        + attribute(NFTA_SET_KEY_LEN, _be32(sum(sizes)))
        + attribute(NFTA_SET_ID, _be32(number + 1))
        + attribute(NFTA_SET_USERDATA, order)
    )
    if one.values:
        body += attribute(NFTA_SET_DATA_TYPE, _be32(key_type))
        return body + attribute(NFTA_SET_DATA_LEN, _be32(sum(sizes)))
    return body + (attribute(NFTA_SET_DATA_TYPE, _be32(DATA_VERDICT)) if one.verdicts else b"")


def _of_elements(kind: int, flags: int, elements: Iterable[Element]) -> Iterator[Request]:
    """Yield the requests that put elements in, or take them away."""
    ordered = sorted(elements, key=lambda e: e.key)
    for name, group in groupby(ordered, key=lambda e: e.set):
        parts = (part for e in group for part in _encode(e, is_interval=is_of_ranges(name)))
        while batch := b"".join(islice(parts, PER_MESSAGE)):
            place = string(nft.NFTA_SET_ELEM_LIST_TABLE, TABLE)
            place += string(nft.NFTA_SET_ELEM_LIST_SET, name)
            yield kind, flags, place + nested(nft.NFTA_SET_ELEM_LIST_ELEMENTS, batch)


def _encode(element: Element, *, is_interval: bool) -> Iterator[bytes]:
    """Return an element; a range is two, of which the second says where it is over."""
    data = b""
    if element.goto:
        verdict = attribute(nft.NFTA_VERDICT_CODE, struct.pack(">i", GOTO))
        verdict += string(nft.NFTA_VERDICT_CHAIN, element.goto)
        data = nested(nft.NFTA_SET_ELEM_DATA, nested(nft.NFTA_DATA_VERDICT, verdict))
    elif isinstance(element, NftElement) and element.value:
        value = attribute(nft.NFTA_DATA_VALUE, element.value.packed)
        data = nested(nft.NFTA_SET_ELEM_DATA, value)
    yield _part(key_of(element), data)
    if isinstance(element, NftLink) or not is_interval:
        return
    if (end := int(element.last) + 1) < 1 << element.last.max_prefixlen:
        over = attribute(NFTA_SET_ELEM_FLAGS, _be32(INTERVAL_END))
        yield _part(type(element.last)(end).packed, over)


def key_of(element: Element) -> bytes:
    """Return an element's key as the kernel has it."""
    if isinstance(element, NftElement):
        return element.first.packed
    name = element.link.encode().ljust(PARTS[LINK][1], b"\0")
    return name + (element.address.packed if element.address else b"")


def _part(key: bytes, more: bytes) -> bytes:
    keyed = nested(nft.NFTA_SET_ELEM_KEY, attribute(nft.NFTA_DATA_VALUE, key))
    return nested(nft.NFTA_LIST_ELEM, keyed + more)


def _be32(number: int) -> bytes:
    return struct.pack(">I", number)
