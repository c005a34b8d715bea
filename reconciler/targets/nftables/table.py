"""Our table, read and written as the kernel has it.

If there is something in it that we never write, it is unreadable, and the table is made anew.
Constants: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from reconciler.core.datapath import FAMILIES, TABLE
from reconciler.domains.nat import NftChain, NftElement, NftObject, NftSet, NftTable
from reconciler.engine.plan import Change, Verb
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import (
    NLA_F_NESTED,
    NLM_F_APPEND,
    NLM_F_CREATE,
    attribute,
    nested,
)
from reconciler.targets.netlink.nf_tables import Chain, string, text
from reconciler.targets.netlink.nfnetlink import Request
from reconciler.targets.netlink.ruleset import MAX_OBJECTS, Nfnetlink, TooMuchError
from reconciler.targets.nftables import elements

NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN = 4, 5
NFTA_SET_DATA_TYPE, NFTA_SET_ID, NFTA_SET_USERDATA = 6, 10, 13
SET_ANONYMOUS, SET_INTERVAL, SET_MAP = 0x1, 0x4, 0x8
DATA_VERDICT = 0xFFFFFF00
KEY_TYPES = {7: "ipv4_addr", 8: "ipv6_addr"}
"""libnftables' numbers of types; the kernel only keeps them."""

KEY_BYTES = {f.nft_type: (4 if f.version == 4 else 16) for f in FAMILIES.values()}
BIG_ENDIAN = bytes([0, 4]) + struct.pack("I", 2)
"""User data of a set: its keys' byte order, for nft to print them by."""

TABLE_FLAGS = {1: "dormant", 2: "owner", 4: "persist"}
ACCEPT = 1

T = TypeVar("T")

UNREADABLE = frozenset({NftTable(readable=False)})


class _UnreadableError(Exception):
    """There is something that we never write."""


def read(
    kernel: Nfnetlink, texts: Mapping[bytes, str], reader: elements.Reader
) -> frozenset[NftObject]:
    """Return what is in our table; the empty set if there is none.

    Raises:
        ObserveError: the kernel refused, or never held still.
    """
    flags = kernel.table_flags("inet", TABLE)
    if flags is None:
        return frozenset()
    words = tuple(word for bit, word in TABLE_FLAGS.items() if flags & bit)
    try:
        return frozenset((NftTable(flags=words), *_chains(kernel, texts), *_sets(kernel, reader)))
    except _UnreadableError:
        return UNREADABLE


def _chains(kernel: Nfnetlink, texts: Mapping[bytes, str]) -> list[NftChain]:
    rules: dict[str, list[str]] = {}
    chains = _bounded(kernel.table_chains("inet", TABLE))
    try:
        found = kernel.table_rules("inet", TABLE)
    except TooMuchError as error:
        raise _UnreadableError from error
    for name, expressions in found:
        # It is like no desired rule, so it is deleted. Not its bytes: they hold its
        # counters, which packets change, and may be long.
        known = texts.get(expressions) or f"unknown, of {len(expressions)} bytes"
        rules.setdefault(text(name), []).append(known)
    return [_chain(c, rules.get(c.name, ())) for c in chains]


def _bounded(found: list[T]) -> list[T]:
    if len(found) >= MAX_OBJECTS:
        raise _UnreadableError  # to make the table anew is cheaper than to take each of them away
    return found


def _chain(chain: Chain, rules: Sequence[str]) -> NftChain:
    if chain.name.encode() + b"\0" != chain.place[1]:
        raise _UnreadableError  # bytes that are no text: nothing could be done by that name
    return NftChain(
        chain.name,
        tuple(rules),
        chain.type,
        chain.hook,
        chain.priority,
        "drop" if chain.drops else "",
    )


def _sets(kernel: Nfnetlink, reader: elements.Reader) -> Iterator[NftObject]:
    for kind in (nft.NFT_MSG_GETOBJ, nft.NFT_MSG_GETFLOWTABLE):
        if kernel.table_parts(kind, "inet", TABLE):
            raise _UnreadableError
    reader.begin()
    for found in _bounded(kernel.table_parts(nft.NFT_MSG_GETSET, "inet", TABLE)):
        numbers = {kind: int.from_bytes(found.get(kind, b""), "big") for kind in (3, 4, 6)}
        flags, data = numbers[nft.NFTA_SET_FLAGS], numbers[NFTA_SET_DATA_TYPE]
        if flags & SET_ANONYMOUS:
            continue  # a part of a rule
        key_type = KEY_TYPES.get(numbers[NFTA_SET_KEY_TYPE])
        is_map = bool(flags & SET_MAP)
        name = found[nft.NFTA_SET_NAME]
        if (
            key_type is None
            or text(name).encode() != name
            or flags & ~(SET_INTERVAL | SET_MAP)
            or is_map is not (data == DATA_VERDICT)
        ):
            raise _UnreadableError
        interval = bool(flags & SET_INTERVAL)
        yield NftSet(text(name[:-1]), key_type, interval=interval, verdicts=is_map)
        try:
            yield from reader.read(kernel, name, key_type, is_interval=interval)
        except elements.UnknownError as error:
            raise _UnreadableError from error
    reader.end()


@dataclass(slots=True)
class _Stages:
    """The parts of a transaction, by when they must happen.

    Rules name sets and chains, map elements name chains. So: unhook first (rules and elements
    away), then define, then fill, then connect, and only then drop what nothing names any more.
    """

    unhook: list[Request] = field(default_factory=list)
    removed: list[NftElement] = field(default_factory=list)
    define: list[Request] = field(default_factory=list)
    added: list[NftElement] = field(default_factory=list)
    connect: list[Request] = field(default_factory=list)
    drop: list[Request] = field(default_factory=list)


def requests(
    actions: Iterable[Change[NftObject]], compiled: Mapping[NftChain, tuple[bytes, ...]]
) -> list[Request]:
    """Return the transaction, in the order the kernel's references demand."""
    stages = _Stages()
    for number, action in enumerate(actions):
        if action.verb is Verb.DELETE:
            _remove(stages, action.object)
        else:
            _put(stages, action, compiled, number)
    return [
        *stages.unhook,
        *elements.removal(stages.removed),
        _TABLE,  # for a chain to be added to
        *stages.define,
        *elements.addition(stages.added),
        *stages.connect,
        *stages.drop,
    ]


def _remove(stages: _Stages, obj: NftObject) -> None:
    match obj:
        case NftTable():
            # Made first, so that deleting a table that is already gone is no error.
            stages.unhook += [_TABLE, (nft.NFT_MSG_DELTABLE, 0, string(1, TABLE))]
        case NftChain():
            stages.unhook.append(_flush(obj.name))
            stages.drop.append((nft.NFT_MSG_DELCHAIN, 0, _OURS + string(3, obj.name)))
        case NftSet():
            stages.drop.append(
                (nft.NFT_MSG_DELSET, 0, _OURS + string(nft.NFTA_SET_NAME, obj.name))
            )
        case NftElement():
            stages.removed.append(obj)


def _put(
    stages: _Stages,
    action: Change[NftObject],
    compiled: Mapping[NftChain, tuple[bytes, ...]],
    number: int,
) -> None:
    match action.object:
        case NftTable():
            pass  # always there: see requests()
        case NftChain() as chain:
            if action.was is not None:
                stages.unhook.append(_flush(chain.name))
            stages.define.append((nft.NFT_MSG_NEWCHAIN, NLM_F_CREATE, _OURS + _chain_body(chain)))
            stages.connect += [_rule(chain.name, rule) for rule in compiled[chain]]
        case NftSet() as one:
            stages.define.append(
                (nft.NFT_MSG_NEWSET, NLM_F_CREATE, _OURS + _set_body(one, number))
            )
        case NftElement() as element:
            if isinstance(action.was, NftElement):
                stages.removed.append(action.was)
            stages.added.append(element)


_OURS = string(1, TABLE)
_TABLE: Request = (nft.NFT_MSG_NEWTABLE, NLM_F_CREATE, _OURS)


def _be32(number: int) -> bytes:
    return struct.pack(">I", number)


def _flush(chain: str) -> Request:
    return nft.NFT_MSG_DELRULE, 0, _OURS + string(nft.NFTA_RULE_CHAIN, chain)


def _rule(chain: str, expressions: bytes) -> Request:
    listed = attribute(nft.NFTA_RULE_EXPRESSIONS | NLA_F_NESTED, expressions)
    return (
        nft.NFT_MSG_NEWRULE,
        NLM_F_CREATE | NLM_F_APPEND,
        _OURS + string(nft.NFTA_RULE_CHAIN, chain) + listed,
    )


def _chain_body(chain: NftChain) -> bytes:
    body = string(3, chain.name)
    if chain.hook:
        number = next(n for n, hook in nft.HOOKS.items() if hook == chain.hook)
        place = attribute(1, _be32(number)) + attribute(2, struct.pack(">i", chain.priority))
        body += nested(4, place) + attribute(5, _be32(ACCEPT)) + string(7, chain.type)
    return body


def _set_body(one: NftSet, number: int) -> bytes:
    key_type = next(n for n, name in KEY_TYPES.items() if name == one.type)
    flags = SET_INTERVAL * one.interval | SET_MAP * one.verdicts
    body = (
        string(nft.NFTA_SET_NAME, one.name)
        + attribute(nft.NFTA_SET_FLAGS, _be32(flags))
        + attribute(NFTA_SET_KEY_TYPE, _be32(key_type))
        + attribute(NFTA_SET_KEY_LEN, _be32(KEY_BYTES[one.type]))
        + attribute(NFTA_SET_ID, _be32(number + 1))
        + attribute(NFTA_SET_USERDATA, BIG_ENDIAN)
    )
    if one.verdicts:
        body += attribute(NFTA_SET_DATA_TYPE, _be32(DATA_VERDICT))
    return body
