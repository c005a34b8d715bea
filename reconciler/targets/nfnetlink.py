"""nftables straight from the kernel, for what libnftables would read too much for.

It makes an object of every chain, of which a cluster with thousands of services has tens of
thousands; and it reads all elements of all sets to show one. Chains are asked for with every full
pass, elements for every pod. Constants: linux/netfilter/nf_tables.h, nfnetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reconciler.errors import ObserveError

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETCHAIN, NFT_MSG_GETSETELEM, NFT_MSG_GETGEN = 4, 13, 16
NLM_F_REQUEST, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x10, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3

NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY = 1, 3, 4, 5
NFTA_HOOK_HOOKNUM, NFTA_GEN_ID = 1, 1
NF_INET_FORWARD, NF_DROP = 2, 0

NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA = 1, 1, 2
NFTA_DATA_VALUE, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN = 1, 2, 2
NLA_F_NESTED = 1 << 15

NFPROTO_INET = 1
FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
ROUTED = {"inet", "ip", "ip6"}
"""Families whose packets are routed; the numbers of a bridge's or netdev's hooks mean others."""

HEADERS = 20
"""Bytes of ``nlmsghdr`` and ``nfgenmsg``."""

ATTEMPTS = 30
"""Of a dump that the kernel marks as interrupted; as in the rtnetlink target."""

BUFFER = 1 << 18


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain of any table.

    Attributes:
        forwards: routed packets that are not for the host pass it.
        drops: its policy is to drop.
    """

    family: str
    table: str
    name: str
    forwards: bool = False
    drops: bool = False


def generation() -> int:
    """Return a number that every change of any ruleset in this namespace changes.

    Raises:
        ObserveError: the kernel refused.
    """
    with _socket() as s:
        (message,) = _ask(s, NFT_MSG_GETGEN, 0)
    return int.from_bytes(dict(_attributes(message[HEADERS:]))[NFTA_GEN_ID], "big")


def list_chains() -> list[Chain]:
    """List every chain of this namespace.

    Raises:
        ObserveError: the kernel refused, or never held still.
    """
    with _socket() as s:
        for _ in range(ATTEMPTS):
            messages = _ask(s, NFT_MSG_GETCHAIN, NLM_F_DUMP)
            if not any(struct.unpack_from("H", m, 6)[0] & NLM_F_DUMP_INTR for m in messages):
                return [_decode(m) for m in messages]
    raise ObserveError("nftables' chains", f"they changed during each of {ATTEMPTS} dumps")


def find_elements(table: str, keys: Iterable[tuple[str, bytes]]) -> list[str | None]:
    """Look for single elements of sets without ranges, of a table of family ``inet``.

    Args:
        table: the table's name.
        keys: of each element the set, or verdict map, and its key as the kernel has it: an address
            in network order.

    Returns:
        For each the chain that its verdict names, or "" if it has none; None if there is no such
        element, table or set.

    Raises:
        ObserveError: the kernel refused.
    """
    found: list[str | None] = []
    with _socket() as s:
        for name, key in keys:
            try:
                (message,) = _ask(s, NFT_MSG_GETSETELEM, 0, _element(table, name, key))
            except FileNotFoundError:
                found.append(None)
            else:
                found.append(_verdict(message))
    return found


def _element(table: str, name: str, key: bytes) -> bytes:
    """Return a request's body: which element of which set is meant."""
    keyed = _nested(NFTA_SET_ELEM_KEY, _attribute(NFTA_DATA_VALUE, key))
    return (
        _attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")
        + _attribute(NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0")
        + _nested(NFTA_SET_ELEM_LIST_ELEMENTS, _nested(NFTA_LIST_ELEM, keyed))
    )


def _verdict(message: bytes) -> str:
    way = (
        NFTA_SET_ELEM_LIST_ELEMENTS,
        NFTA_LIST_ELEM,
        NFTA_SET_ELEM_DATA,
        NFTA_DATA_VERDICT,
        NFTA_VERDICT_CHAIN,
    )
    content = message[HEADERS:]
    for kind in way:
        content = dict(_attributes(content)).get(kind, b"")
    return content[:-1].decode()


@contextmanager
def _socket() -> Iterator[socket.socket]:
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        ) as s:
            yield s
    except OSError as error:
        raise ObserveError("nftables", str(error)) from error


def _ask(s: socket.socket, kind: int, flags: int, body: bytes = b"") -> list[bytes]:
    """Send a request and return its answers; a single one if it is no dump.

    Raises:
        OSError: what the kernel answered instead.
    """
    kind |= NFNL_SUBSYS_NFTABLES << 8
    # What is asked for single things is asked of tables of family inet; dumps are of all.
    family = NFPROTO_INET if body else 0
    length = HEADERS + len(body)
    s.send(struct.pack("IHHIIB3x", length, kind, NLM_F_REQUEST | flags, 0, 0, family) + body)
    answers: list[bytes] = []
    while True:
        for message in _messages(s.recv(BUFFER)):
            (answer,) = struct.unpack_from("H", message, 4)
            if answer == NLMSG_DONE:
                return answers
            if answer == NLMSG_ERROR:
                (number,) = struct.unpack_from("i", message, 16)
                raise OSError(-number, os.strerror(-number))
            answers.append(message)
        if not flags:
            return answers


def _messages(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(data):
        (length,) = struct.unpack_from("I", data, offset)
        yield data[offset : offset + length]
        offset += length + 3 & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset < len(data):
        length, kind = struct.unpack_from("HH", data, offset)
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += length + 3 & ~3


def _attribute(kind: int, content: bytes) -> bytes:
    padding = -len(content) % 4
    return struct.pack("HH", 4 + len(content), kind) + content + bytes(padding)


def _nested(kind: int, content: bytes) -> bytes:
    return _attribute(kind | NLA_F_NESTED, content)


def _decode(message: bytes) -> Chain:
    family = FAMILIES.get(message[16], "")
    found = dict(_attributes(message[HEADERS:]))
    table, name = (found[k][:-1].decode() for k in (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME))
    if NFTA_CHAIN_HOOK not in found or family not in ROUTED:
        return Chain(family, table, name)
    hook = dict(_attributes(found[NFTA_CHAIN_HOOK]))[NFTA_HOOK_HOOKNUM]
    policy = found.get(NFTA_CHAIN_POLICY, b"\1")
    return Chain(
        family,
        table,
        name,
        forwards=int.from_bytes(hook, "big") == NF_INET_FORWARD,
        drops=int.from_bytes(policy, "big") == NF_DROP,
    )
