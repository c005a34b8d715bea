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
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import ClassVar, Self, TypeVar

from reconciler.errors import ObserveError

NETLINK_NETFILTER = 12
NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_NFTABLES = 1, 10
NFT_MSG_GETTABLE, NFT_MSG_GETCHAIN, NFT_MSG_GETSETELEM, NFT_MSG_GETGEN = 1, 4, 13, 16
NFT_MSG_NEWTABLE, NFT_MSG_DELTABLE, NFT_MSG_NEWCHAIN, NFT_MSG_DELCHAIN = 0, 2, 3, 5
NFT_MSG_NEWSET, NFT_MSG_GETSET, NFT_MSG_DELSET = 9, 10, 11
NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM = 12, 14
NFT_MSG_GETOBJ, NFT_MSG_GETFLOWTABLE = 19, 23
NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = 6, 7, 8
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_CREATE, NLM_F_APPEND = 0x400, 0x800
NLMSG_ERROR, NLMSG_DONE = 2, 3

NFTA_TABLE_NAME, NFTA_TABLE_FLAGS = 1, 2
NFT_TABLE_F_DORMANT = 1
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK, NFTA_CHAIN_POLICY = 1, 3, 4, 5
NFTA_CHAIN_TYPE = 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY, NFTA_GEN_ID = 1, 2, 1
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_EXPRESSIONS = 1, 2, 4
NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_FLAGS = 1, 2, 3
NF_DROP = 0
HOOKS = {0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting", 5: "ingress"}
HOOKS_OF_NETDEV = {0: "ingress", 1: "egress"}
NFTA_HOOK_DEV, NFTA_HOOK_DEVS = 3, 4

NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_LIST_ELEM, NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA = 1, 1, 2
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 1, 2
NLA_F_NESTED = 1 << 15

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
NUMBERS = {name: number for number, name in FAMILIES.items()}
ROUTED = {"inet", "ip", "ip6"}
"""Families whose packets are routed; the numbers of a bridge's or netdev's hooks mean others."""

HEADERS = 20
"""Bytes of ``nlmsghdr`` and ``nfgenmsg``."""

ATTEMPTS = 30
"""Of a dump that the kernel marks as interrupted; as in the rtnetlink target."""

MAX_OBJECTS = 10_000
"""Rules, sets or objects that are kept of one table of ours; it has fewer than a hundred, and one
with more is made anew."""

MAX_BYTES_OF_RULES = 4 << 20
"""Bytes of the rules of our table, or of a foreign chain. One of nftables' has some 300, one of
iptables' with a comment 700; and one may have 128 expressions, each of which becomes an object."""

BUFFER = 1 << 18
"""Bytes for one answer: the kernel sends a dump in pieces of 32 KiB at most, and the next one only
when this one was read, so a dump of any size takes this much memory."""

SILENCE_S = 10
"""Seconds without an answer after which a question is given up; the kernel answers in
milliseconds, and a walk over a conntrack table of a million entries in half a second."""


SO_SNDBUFFORCE = 32
"""Of asm-generic/socket.h; Python has no name for it. Goes beyond net.core.wmem_max."""

T = TypeVar("T")

Request = tuple[int, int, bytes]
"""Kind, flags and attributes of a message."""


class TooMuchError(Exception):
    """A table of ours has more than we would ever put there."""


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
        self._room = 1 << 17
        """Bytes that can be sent at once; the default of Linux is 208 KiB."""

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

    def tell(self, requests: Iterable[Request], family: int = 0) -> None:
        """Send requests at once; only what fails is answered.

        Raises:
            OSError: they could not be sent.
        """
        self._socket.send(
            b"".join(
                self._message(self._subsystem << 8 | kind, flags, body, family)
                for kind, flags, body in requests
            )
        )

    def commit(self, requests: Iterable[Request], family: int) -> None:
        """Carry out requests as one transaction: all of them, or none.

        Raises:
            OSError: what the kernel has answered to the first that it refused.
        """
        requests = list(requests)
        if not requests:
            return
        # The acknowledgement of the last one comes once all have been tried.
        kind, flags, body = requests[-1]
        requests[-1] = (kind, flags | NLM_F_ACK, body)
        first = self._sequence + 1
        parts = [self._message(NFNL_MSG_BATCH_BEGIN, 0, b"", 0, self._subsystem)]
        parts += [
            self._message(self._subsystem << 8 | kind, flags, body, family)
            for kind, flags, body in requests
        ]
        last = self._sequence
        parts.append(self._message(NFNL_MSG_BATCH_END, 0, b"", 0, self._subsystem))
        data = b"".join(parts)
        self._make_room(len(data))
        self._socket.send(data)
        refused: OSError | None = None
        while True:
            try:
                answers = self._socket.recv(BUFFER)
            except OSError as lost:
                if lost.errno != errno.ENOBUFS:
                    raise
                # Each refusal has the whole message in it; the first ones are there.
                raise next((r for r in self.errors() if r.errno), lost) from lost
            for message in _messages(answers):
                answer, _, number = struct.unpack_from("HHI", message, 4)
                if answer != NLMSG_ERROR or not first <= number <= last:
                    continue
                (error,) = struct.unpack_from("i", message, 16)
                if error and refused is None:
                    refused = OSError(-error, os.strerror(-error))
                if number in (first, last):
                    if refused:
                        raise refused
                    return

    def _make_room(self, size: int) -> None:
        """Let a message of this many bytes be sent at once, as a transaction has to be."""
        if size > self._room:
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 * size)
            self._room = size

    def _message(
        self, kind: int, flags: int, body: bytes, family: int, resource: int = 0
    ) -> bytes:
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        length = HEADERS + len(body)
        header = (length, kind, flags | NLM_F_REQUEST, self._sequence, 0, family, 0)
        return (
            struct.pack("IHHIIBB", *header)
            + struct.pack(">H", resource)
            + body
            + bytes(-length % 4)
        )

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
    """A chain of any table. Names can be printed; they may be of bytes that are no text.

    Attributes:
        hook: where routed packets enter it; "" if only other chains lead here.
        type: filter, nat or route; "" as above.
        drops: its policy is to drop.
        devices: links by which packets come to it, for hooks ingress and egress.
        place: table and name as the kernel has them.
    """

    family: str
    table: str
    name: str
    hook: str = ""
    type: str = ""
    priority: int = 0
    drops: bool = False
    devices: tuple[str, ...] = ()
    place: tuple[bytes, bytes] = field(default=(b"", b""), compare=False, repr=False)

    @property
    def home(self) -> tuple[str, bytes]:
        """Its family, and its table as the kernel has it."""
        return self.family, self.place[0]

    @property
    def path(self) -> str:
        """As ``nft`` names it."""
        return f"{self.family} {self.table} {self.name}"


class Nfnetlink:
    """A socket into the namespace its thread was in when it was made; it stays there for life."""

    _ours: ClassVar[dict[int, tuple[int, int]]] = {}
    """By namespace: the number of the last change, if it was one of our table, and the number of
    the one before the first in that row."""

    def __init__(self) -> None:
        self._channel = Channel(NFNL_SUBSYS_NFTABLES)
        weakref.finalize(self, self._channel.close)
        self._namespace = os.stat("/proc/thread-self/ns/net").st_ino  # noqa: PTH116 - no file

    def generation(self) -> int:
        """Return a number that every change of any ruleset in this namespace changes.

        Raises:
            ObserveError: the kernel refused.
        """
        with _observing():
            (message,) = self._channel.stream(NFT_MSG_GETGEN, 0)
        return int.from_bytes(dict(attributes(message[HEADERS:]))[NFTA_GEN_ID], "big")

    def foreign_generation(self) -> int:
        """Return a number that every change changes but those of our own table.

        A pod is an element of ours, and no reason to read what others have.

        Raises:
            ObserveError: the kernel refused.
        """
        now = self.generation()
        last, before = self._ours.get(self._namespace, (0, 0))
        return before if last == now else now

    def list_tables(self, family: str) -> frozenset[str]:
        """Name the tables of a family, whoever owns them.

        libnftables 1.0.6 prints no JSON for a table that has flags, as firewalld's may have.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """

        def names(messages: Iterable[bytes]) -> frozenset[str]:
            return frozenset(
                text(dict(attributes(m[HEADERS:]))[NFTA_TABLE_NAME][:-1])
                for m in messages
                if FAMILIES.get(m[16]) == family
            )

        return self._dump(NFT_MSG_GETTABLE, "tables", names)

    def chains(self, choose: Callable[[Iterable[Chain]], T], *, hooked: bool = False) -> T:
        """Go through every chain of this namespace, of which there may be very many.

        Args:
            choose: given them one by one, returns what is to be kept; again from the first one if
                the ruleset changes meanwhile.
            hooked: only those that packets enter by a hook; the others are not even decoded.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        dormant = self._dormant()

        def some(messages: Iterable[bytes]) -> T:
            if hooked:
                messages = (m for m in messages if _plain_chain(m) is None)
            found = map(_decode, messages)
            return choose(replace(c, hook="") if c.home in dormant else c for c in found)

        return self._dump(NFT_MSG_GETCHAIN, "chains", some)

    def _dormant(self) -> frozenset[tuple[str, bytes]]:
        """Return tables whose chains no packet enters, MAX_OBJECTS at most."""

        def some(messages: Iterable[bytes]) -> frozenset[tuple[str, bytes]]:
            tables = ((FAMILIES.get(m[16], ""), dict(attributes(m[HEADERS:]))) for m in messages)
            found = (
                (family, t[NFTA_TABLE_NAME])
                for family, t in tables
                if int.from_bytes(t.get(NFTA_TABLE_FLAGS, b""), "big") & NFT_TABLE_F_DORMANT
            )
            return frozenset(islice(found, MAX_OBJECTS))

        return self._dump(NFT_MSG_GETTABLE, "tables", some)

    def table_flags(self, family: str, table: str) -> int | None:
        """Return a table's flags; None if there is no such table.

        Raises:
            ObserveError: the kernel refused.
        """
        with _observing():
            try:
                (message,) = self._channel.stream(
                    NFT_MSG_GETTABLE, 0, _string(NFTA_TABLE_NAME, table), NUMBERS[family]
                )
            except FileNotFoundError:
                return None
        flags = dict(attributes(message[HEADERS:])).get(NFTA_TABLE_FLAGS, b"")
        return int.from_bytes(flags, "big")

    def table_chains(self, family: str, table: str) -> list[Chain]:
        """List the chains of one table; those of others are not decoded.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        start = _string(NFTA_CHAIN_TABLE, table)
        place, number = slice(HEADERS, HEADERS + len(start)), NUMBERS[family]

        def ours(messages: Iterable[bytes]) -> list[Chain]:
            found = (m for m in messages if m[16] == number and m[place] == start)
            return [_decode(m) for m in islice(found, MAX_OBJECTS)]

        return self._dump(NFT_MSG_GETCHAIN, "chains", ours)

    def table_rules(self, family: str, table: str) -> list[tuple[bytes, bytes]]:
        """List the rules of one table in order: the name of its chain, and its expressions.

        Raises:
            TooMuchError: there are more than are worth reading.
            ObserveError: the kernel refused, or never held still.
        """

        def some(messages: Iterable[bytes]) -> list[bytes]:
            kept = _within(islice(messages, MAX_OBJECTS), MAX_BYTES_OF_RULES)
            return [m[HEADERS:] for m in kept]

        bodies = self._dump(
            NFT_MSG_GETRULE, "rules", some, _string(NFTA_RULE_TABLE, table), NUMBERS[family]
        )
        if len(bodies) == MAX_OBJECTS or sum(map(len, bodies)) > MAX_BYTES_OF_RULES:
            raise TooMuchError
        found = (dict(attributes(body)) for body in bodies)
        return [(f[NFTA_RULE_CHAIN][:-1], f.get(NFTA_RULE_EXPRESSIONS, b"")) for f in found]

    def mentions(self, family: str, table: str, word: bytes) -> bool:
        """Whether a word stands anywhere in a table's rules, or in a chain's name.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        body, number = _string(NFTA_RULE_TABLE, table), NUMBERS[family]
        place = slice(HEADERS, HEADERS + len(body))

        def any_of(messages: Iterable[bytes]) -> bool:
            return any(word in m for m in messages if m[16] == number and m[place] == body)

        return any(
            self._dump(kind, "rules", any_of, body, number)
            for kind in (NFT_MSG_GETCHAIN, NFT_MSG_GETRULE)
        )

    def table_parts(self, kind: int, family: str, table: str) -> list[dict[int, bytes]]:
        """List a table's sets, objects or flowtables, each by its attributes.

        Args:
            kind: NFT_MSG_GETSET, NFT_MSG_GETOBJ or NFT_MSG_GETFLOWTABLE.
            family: of the table.
            table: its name.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """

        def some(messages: Iterable[bytes]) -> list[dict[int, bytes]]:
            return [dict(attributes(m[HEADERS:])) for m in islice(messages, MAX_OBJECTS)]

        return self._dump(kind, "tables", some, _string(1, table), NUMBERS[family])

    def table_elements(self, family: str, table: str, name: bytes, limit: int) -> list[bytes]:
        """List a set's elements, each as its attributes; no more than the limit.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """

        def some(messages: Iterable[bytes]) -> list[bytes]:
            found = (
                content
                for message in messages
                for kind, part in attributes(message[HEADERS:])
                if kind == NFTA_SET_ELEM_LIST_ELEMENTS
                for _, content in attributes(part)
            )
            return list(islice(found, limit))

        body = _string(NFTA_SET_ELEM_LIST_TABLE, table) + attribute(NFTA_SET_ELEM_LIST_SET, name)
        return self._dump(NFT_MSG_GETSETELEM, "elements", some, body, NUMBERS[family])

    def rules(self, chain: Chain, limit: int, size: int = MAX_BYTES_OF_RULES) -> list[bytes]:
        """Return the rules of a chain in order, each as the attributes of its message.

        Args:
            chain: of any owner.
            limit: number of rules; of a longer chain none is returned.
            size: bytes of all its rules, likewise.

        Raises:
            ObserveError: the kernel refused, never held still, or the chain is longer.
        """
        table, name = chain.place
        body = attribute(NFTA_RULE_TABLE, table) + attribute(NFTA_RULE_CHAIN, name)
        what = f"chain {chain.path}"

        def some(messages: Iterable[bytes]) -> list[bytes]:
            return [m[HEADERS:] for m in _within(islice(messages, limit + 1), size)]

        found = self._dump(NFT_MSG_GETRULE, what, some, body, NUMBERS[chain.family])
        if len(found) > limit:
            raise ObserveError(what, f"it has more than {limit} rules, and is not looked at")
        if sum(map(len, found)) > size:
            raise ObserveError(
                what, f"its rules have more than {size} bytes, and are not looked at"
            )
        return found

    def elements(
        self, family: str, table: bytes, name: bytes, limit: int
    ) -> tuple[int, list[bytes]]:
        """Return the flags of a set, and the messages that list its elements.

        Args:
            family: of its table.
            table: as the kernel has it.
            name: likewise.
            limit: number of messages, each of some hundred elements; of a larger set none.

        Raises:
            ObserveError: the kernel refused, never held still, or the set is larger.
        """
        body = attribute(NFTA_SET_TABLE, table) + attribute(NFTA_SET_NAME, name)
        what = f"set {family} {text(table[:-1])} {text(name[:-1])}"

        def some(messages: Iterable[bytes]) -> list[bytes]:
            return list(islice(messages, limit + 1))

        # Both questions have the same attributes (NFTA_SET_ELEM_LIST_TABLE and _SET).
        found = self._dump(NFT_MSG_GETSETELEM, what, some, body, NUMBERS[family])
        if len(found) > limit:
            raise ObserveError(what, "it has more elements than are looked at")
        with _observing(what):
            asked = self._channel.stream(NFT_MSG_GETSET, 0, body, NUMBERS[family])
            flags = [dict(attributes(m[HEADERS:])).get(NFTA_SET_FLAGS, b"") for m in asked]
        return int.from_bytes(flags[0] if flags else b"", "big"), found

    def commit(self, requests: Iterable[Request], family: str) -> None:
        """Carry out requests as one transaction: all of them, or none.

        Raises:
            OSError: what the kernel has answered to the first that it refused.
        """
        self._channel.commit(requests, NUMBERS[family])

    def commit_ours(self, requests: Iterable[Request]) -> None:
        """Change our own table, as one transaction; what others have is known to be as before.

        Raises:
            OSError: what the kernel has answered to the first that it refused.
            ObserveError: the kernel refused to number it.
        """
        before, foreign = self.generation(), self.foreign_generation()
        self.commit(requests, "inet")
        if self.generation() == before + 1:  # nobody else has changed anything meanwhile
            self._ours[self._namespace] = (before + 1, foreign)

    def find_elements(
        self, table: str, keys: Iterable[tuple[str, bytes]], family: str = "inet"
    ) -> list[str | None]:
        """Look for single elements of sets without ranges.

        Args:
            table: the table's name.
            family: of the table.
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
                    (message,) = self._channel.stream(
                        NFT_MSG_GETSETELEM, 0, _element(table, name, key), NUMBERS[family]
                    )
                except FileNotFoundError:
                    found.append(None)
                else:
                    found.append(_verdict(message))
        return found

    def _dump(
        self,
        kind: int,
        what: str,
        choose: Callable[[Iterable[bytes]], T],
        body: bytes = b"",
        family: int = 0,
    ) -> T:
        """Return what is chosen of a dump during which nothing has changed."""
        with _observing(what):
            for _ in range(ATTEMPTS):
                flags = 0

                def messages() -> Iterator[bytes]:
                    nonlocal flags
                    for message in self._channel.stream(kind, NLM_F_DUMP, body, family):
                        flags |= struct.unpack_from("H", message, 6)[0]
                        yield message

                stream = messages()
                chosen = choose(stream)
                deque(stream, maxlen=0)  # the next question has to wait for its end
                if not flags & NLM_F_DUMP_INTR:
                    return chosen
        raise ObserveError(what, f"changed during each of {ATTEMPTS} dumps")


def _within(messages: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield messages until what their attributes have is more than so many bytes."""
    for message in messages:
        yield message
        size -= len(message) - HEADERS
        if size < 0:
            return


def _element(table: str, name: str, key: bytes) -> bytes:
    """Return a request's body: which element of which set is meant."""
    keyed = nested(NFTA_SET_ELEM_KEY, attribute(NFTA_DATA_VALUE, key))
    return (
        attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")
        + attribute(NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0")
        + nested(NFTA_SET_ELEM_LIST_ELEMENTS, nested(NFTA_LIST_ELEM, keyed))
    )


def _verdict(message: bytes) -> str:
    found = dict(attributes(message[HEADERS:]))
    ((_, element),) = attributes(found[NFTA_SET_ELEM_LIST_ELEMENTS])
    return verdict_of(element)


def verdict_of(element: bytes) -> str:
    """Return the chain that an element's verdict names; "" if it has none."""
    for kind in (NFTA_SET_ELEM_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CHAIN):
        element = dict(attributes(element)).get(kind, b"")
    return text(element[:-1])


def _string(kind: int, content: str) -> bytes:
    return attribute(kind, content.encode() + b"\0")


def text(name: bytes) -> str:
    """Return a name that can be printed, and compared with ours, whatever its bytes are."""
    return name.decode(errors="backslashreplace")


@contextmanager
def _observing(what: str = "nftables") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ObserveError(what, str(error)) from error


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


def _plain_chain(message: bytes) -> tuple[bytes, bytes] | None:
    """Return table and name of a chain that has no hook; None if it may have one.

    By the place of its attributes (nf_tables_fill_chain_info): table, name, handle, and then the
    hook, if there is one. A cluster with 10,000 services has 60,000 without.
    """
    length, kind = struct.unpack_from("HH", message, HEADERS)
    name_at = HEADERS + (length + 3 & ~3)
    name_length, name_kind = struct.unpack_from("HH", message, name_at)
    handle_at = name_at + (name_length + 3 & ~3)
    more = message[handle_at + 12 : handle_at + 16]
    handle = message[handle_at + 2 : handle_at + 4]
    if (kind, name_kind, handle) != (NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME, _HANDLE):
        return None
    if len(more) == 4 and more[2] & 0x3F == NFTA_CHAIN_HOOK:
        return None
    return message[HEADERS + 4 : HEADERS + length], message[name_at + 4 : name_at + name_length]


_HANDLE = struct.pack("H", 2)
"""NFTA_CHAIN_HANDLE."""


def _decode(message: bytes) -> Chain:
    if plain := _plain_chain(message):
        family = FAMILIES.get(message[16], "")
        return Chain(family, text(plain[0][:-1]), text(plain[1][:-1]), place=plain)
    family = FAMILIES.get(message[16], "")
    found = dict(attributes(message[HEADERS:]))
    place = found[NFTA_CHAIN_TABLE], found[NFTA_CHAIN_NAME]
    table, name = (text(part[:-1]) for part in place)
    if NFTA_CHAIN_HOOK not in found or family not in ROUTED | {"netdev"}:
        return Chain(family, table, name, place=place)
    hook = dict(attributes(found[NFTA_CHAIN_HOOK]))
    policy = found.get(NFTA_CHAIN_POLICY, b"\1")
    hooks = HOOKS_OF_NETDEV if family == "netdev" else HOOKS
    devices = [hook[NFTA_HOOK_DEV]] if NFTA_HOOK_DEV in hook else []
    devices += [name for _, name in attributes(hook.get(NFTA_HOOK_DEVS, b""))]
    return Chain(
        family,
        table,
        name,
        hooks.get(int.from_bytes(hook[NFTA_HOOK_HOOKNUM], "big"), ""),
        text(found.get(NFTA_CHAIN_TYPE, b"")[:-1]),
        int.from_bytes(hook[NFTA_HOOK_PRIORITY], "big", signed=True),
        drops=int.from_bytes(policy, "big") == NF_DROP,
        place=place,
        devices=tuple(dict.fromkeys(text(name[:-1]) for name in devices)),
    )
