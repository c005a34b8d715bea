"""Names of every nftables chain, straight from the kernel.

libnftables makes an object of each, a cluster with thousands of services has tens of thousands,
and this is asked with every full pass. Constants: linux/netfilter/nf_tables.h, nfnetlink.h.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from reconciler.errors import ObserveError

NETLINK_NETFILTER = 12
NFNL_SUBSYS_NFTABLES = 10
NFT_MSG_GETCHAIN, NFT_MSG_GETGEN = 4, 16
NLM_F_REQUEST, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x10, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3

NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY = 1, 3, 4, 5
NFTA_HOOK_HOOKNUM, NFTA_GEN_ID = 1, 1
NF_INET_FORWARD, NF_DROP = 2, 0

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
    for message in _ask(NFT_MSG_GETGEN, 0):
        return int.from_bytes(dict(_attributes(message[HEADERS:]))[NFTA_GEN_ID], "big")
    raise ObserveError("nftables' generation", "the kernel says nothing")


def list_chains() -> list[Chain]:
    """List every chain of this namespace.

    Raises:
        ObserveError: the kernel refused, or never held still.
    """
    for _ in range(ATTEMPTS):
        messages = _ask(NFT_MSG_GETCHAIN, NLM_F_DUMP)
        if not any(struct.unpack_from("H", m, 6)[0] & NLM_F_DUMP_INTR for m in messages):
            return [_decode(m) for m in messages]
    raise ObserveError("nftables' chains", f"they changed during each of {ATTEMPTS} dumps")


def _ask(kind: int, flags: int) -> list[bytes]:
    """Send a request and return its answers; a single one if it is no dump."""
    kind |= NFNL_SUBSYS_NFTABLES << 8
    request = struct.pack("IHHII4x", HEADERS, kind, NLM_F_REQUEST | flags, 0, 0)
    answers: list[bytes] = []
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        ) as s:
            s.send(request)
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
    except OSError as error:
        raise ObserveError("nftables' chains", str(error)) from error


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
