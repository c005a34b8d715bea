"""nfnetlink: a socket that streams, and nftables straight from the kernel.

The latter for what libnftables would read too much for: it makes an object of every chain, of
which a cluster with thousands of services has tens of thousands; and it reads all elements of all
sets to show one. Chains are asked for with every full pass, elements for every pod. Constants:
linux/netfilter/nf_tables.h, nfnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from reconciler.errors import ObserveError

NETLINK_NETFILTER = 12
NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_NFTABLES = 1, 10
NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETSETELEM, NFT_MSG_GETGEN = 1, 4, 13, 16
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLMSG_ERROR, NLMSG_DONE = 2, 3

NFTA_TABLE_NAME = 1
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
"""Bytes for one answer: the kernel sends a dump in pieces of 32 KiB at most, and the next one only
when this one was read, so a dump of any size takes this much memory."""

SILENCE_S = 10
"""Seconds without an answer after which a question is given up; the kernel answers in
milliseconds, and a walk over a conntrack table of a million entries in half a second."""


class Channel:
    """A socket of nfnetlink, in the namespace its thread is in when it is made.

    Args:
        subsystem: of netfilter that is asked.
    """

    def __init__(self, subsystem: int) -> None:
        self._subsystem = subsystem
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER
        )
        # Not Python's own timeout, which costs each answer another system call.
        self._socket.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", SILENCE_S, 0)
        )
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; a dump that was not read to its end ends with it."""
        self._socket.close()

    def stream(self, kind: int, flags: int, body: bytes = b"", family: int = 0) -> Iterator[bytes]:
        """Ask a question; return its answers as they come, one message each.

        Of what is no dump and wants no acknowledgement there is one answer.

        Raises:
            OSError: what the kernel answered instead.
        """
        self.tell([(kind, flags, body)], family)
        number = self._sequence
        while True:
            answered = False
            for message in _messages(self._socket.recv(BUFFER)):
                answer, _, its_number = struct.unpack_from("HHI", message, 4)
                if its_number != number:
                    continue  # left of a question whose answer was not read to its end
                if answer == NLMSG_DONE:
                    return
                if answer == NLMSG_ERROR:
                    (error,) = struct.unpack_from("i", message, 16)
                    if not error:
                        return  # an acknowledgement
                    raise OSError(-error, os.strerror(-error))
                answered = True
                yield message
            if answered and not flags & (NLM_F_DUMP | NLM_F_ACK):
                return

    def tell(self, requests: Iterable[tuple[int, int, bytes]], family: int = 0) -> None:
        """Send requests (kind, flags, body) at once; only what fails is answered.

        Raises:
            OSError: they could not be sent.
        """
        data = b""
        for kind, flags, body in requests:
            kind |= self._subsystem << 8
            self._sequence = self._sequence % 0xFFFFFFFF + 1
            length = HEADERS + len(body)
            header = (length, kind, flags | NLM_F_REQUEST, self._sequence, 0, family)
            data += struct.pack("IHHIIB3x", *header) + body + bytes(-length % 4)
        self._socket.send(data)

    def errors(self) -> Iterator[OSError]:
        """Return what the kernel has answered to what was told; do not wait for more."""
        while True:
            try:
                answers = self._socket.recv(BUFFER, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue  # some of the answers are lost
            for message in _messages(answers):
                if struct.unpack_from("H", message, 4)[0] == NLMSG_ERROR:
                    (code,) = struct.unpack_from("i", message, 16)
                    yield OSError(-code, os.strerror(-code))


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


class Nfnetlink:
    """A socket into the namespace its thread was in when it was made; it stays there for life."""

    def __init__(self) -> None:
        self._channel = Channel(NFNL_SUBSYS_NFTABLES)
        weakref.finalize(self, self._channel.close)

    def generation(self) -> int:
        """Return a number that every change of any ruleset in this namespace changes.

        Raises:
            ObserveError: the kernel refused.
        """
        with _observing():
            (message,) = self._ask(NFT_MSG_GETGEN, 0)
        return int.from_bytes(dict(attributes(message[HEADERS:]))[NFTA_GEN_ID], "big")

    def list_tables(self, family: str) -> frozenset[str]:
        """Name the tables of a family, whoever owns them.

        libnftables 1.0.6 prints no JSON for a table that has flags, as firewalld's may have.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        found = [(FAMILIES.get(m[16], ""), m) for m in self._dump(NFT_MSG_GETTABLE, "tables")]
        return frozenset(
            dict(attributes(message[HEADERS:]))[NFTA_TABLE_NAME][:-1].decode()
            for its_family, message in found
            if its_family == family
        )

    def list_chains(self) -> list[Chain]:
        """List every chain of this namespace.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        return [_decode(m) for m in self._dump(NFT_MSG_GETCHAIN, "chains")]

    def find_elements(self, table: str, keys: Iterable[tuple[str, bytes]]) -> list[str | None]:
        """Look for single elements of sets without ranges, of a table of family ``inet``.

        Args:
            table: the table's name.
            keys: of each element the set, or verdict map, and its key as the kernel has it: an
                address in network order.

        Returns:
            For each the chain that its verdict names, or "" if it has none; None if there is no
            such element, table or set.

        Raises:
            ObserveError: the kernel refused.
        """
        found: list[str | None] = []
        with _observing():
            for name, key in keys:
                try:
                    (message,) = self._ask(NFT_MSG_GETSETELEM, 0, _element(table, name, key))
                except FileNotFoundError:
                    found.append(None)
                else:
                    found.append(_verdict(message))
        return found

    def _dump(self, kind: int, what: str) -> list[bytes]:
        with _observing():
            for _ in range(ATTEMPTS):
                messages = self._ask(kind, NLM_F_DUMP)
                if not any(struct.unpack_from("H", m, 6)[0] & NLM_F_DUMP_INTR for m in messages):
                    return messages
        raise ObserveError(f"nftables' {what}", f"changed during each of {ATTEMPTS} dumps")

    def _ask(self, kind: int, flags: int, body: bytes = b"") -> list[bytes]:
        """Send a request and return its answers; a single one if it is no dump.

        Raises:
            OSError: what the kernel answered instead.
        """
        # What is asked for single things is asked of tables of family inet; dumps are of all.
        family = NFPROTO_INET if body else 0
        return list(self._channel.stream(kind, flags, body, family))


def _element(table: str, name: str, key: bytes) -> bytes:
    """Return a request's body: which element of which set is meant."""
    keyed = nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, key))
    return (
        attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")
        + attribute(NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0")
        + nested(NFTA_SET_ELEM_LIST_ELEMENTS, nested(NFTA_LIST_ELEM, keyed))
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
        content = dict(attributes(content)).get(kind, b"")
    return content[:-1].decode()


@contextmanager
def _observing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ObserveError("nftables", str(error)) from error


def _messages(data: bytes) -> Iterator[bytes]:
    offset = 0
    while offset < len(data):
        (length,) = struct.unpack_from("I", data, offset)
        yield data[offset : offset + length]
        offset += length + 3 & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Return kind and content of each attribute in a row."""
    offset = 0
    while offset < len(data):
        length, kind = struct.unpack_from("HH", data, offset)
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += length + 3 & ~3


def attribute(kind: int, content: bytes) -> bytes:
    """Return an attribute."""
    padding = -len(content) % 4
    return struct.pack("HH", 4 + len(content), kind) + content + bytes(padding)


def nested(kind: int, content: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, content)


def _decode(message: bytes) -> Chain:
    family = FAMILIES.get(message[16], "")
    found = dict(attributes(message[HEADERS:]))
    table, name = (found[k][:-1].decode() for k in (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME))
    if NFTA_CHAIN_HOOK not in found or family not in ROUTED:
        return Chain(family, table, name)
    hook = dict(attributes(found[NFTA_CHAIN_HOOK]))[NFTA_HOOK_HOOKNUM]
    policy = found.get(NFTA_CHAIN_POLICY, b"\1")
    return Chain(
        family,
        table,
        name,
        forwards=int.from_bytes(hook, "big") == NF_INET_FORWARD,
        drops=int.from_bytes(policy, "big") == NF_DROP,
    )
