"""nftables straight from the kernel: what a namespace's ruleset has, and changes of it.

Not by libnftables, which makes an object of every chain, of which a cluster with thousands of
services has tens of thousands, and reads all elements of all sets to show one. Chains are asked
for with every full pass, elements for every pod.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import ClassVar, TypeVar

from reconciler.errors import ObserveError
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import attribute, attributes, reading
from reconciler.targets.netlink.namespaces import own_namespace
from reconciler.targets.netlink.nf_tables import Chain
from reconciler.targets.netlink.nfnetlink import (
    FAMILIES,
    HEADERS,
    NFNL_SUBSYS_NFTABLES,
    NUMBERS,
    Channel,
    Request,
)

MAX_OBJECTS = 10_000
"""Rules, sets or objects that are kept of one table of ours; it has fewer than a hundred, and one
with more is made anew."""

MAX_BYTES_OF_RULES = 4 << 20
"""Bytes of the rules of our table, or of a foreign chain. One of nftables' has some 300, one of
iptables' with a comment 700; and one may have 128 expressions, each of which becomes an object."""

T = TypeVar("T")


class TooMuchError(ObserveError):
    """There is more than is read."""


class Nfnetlink(Channel):
    """The ruleset of the namespace its thread was in when it was made.

    What is read raises ``ObserveError`` if the kernel refuses, never holds still, or has more than
    is read.
    """

    _ours: ClassVar[dict[int, tuple[int, int]]] = {}
    """By namespace: the number of the last change, if it was one of our table, and the number of
    the one before the first in that row."""

    def __init__(self) -> None:
        super().__init__(NFNL_SUBSYS_NFTABLES)
        weakref.finalize(self, self._socket.close)
        self._namespace = own_namespace()[1]

    def generation(self) -> int:
        """Return a number that every change of any ruleset in this namespace changes."""
        with reading("nftables"):
            (message,) = self.stream(nft.NFT_MSG_GETGEN, 0)
        return _number_in(message, nft.NFTA_GEN_ID)

    def foreign_generation(self) -> int:
        """Return a number that every change changes but those of our own table.

        A pod is an element of ours, and no reason to read what others have.
        """
        now = self.generation()
        last, before = self._ours.get(self._namespace, (0, 0))
        return before if last == now else now

    def commit_ours(self, requests: Iterable[Request]) -> None:
        """Change our own table, as one transaction; what others have is known to be as before.

        Raises:
            OSError: what the kernel has answered to the first that it refused.
            ObserveError: the kernel refused to number it.
        """
        before, foreign = self.generation(), self.foreign_generation()
        self.commit(requests, "inet")
        if self.generation() == before + 1:  # there was no other change meanwhile
            self._ours[self._namespace] = (before + 1, foreign)

    def list_tables(self, family: str) -> frozenset[str]:
        """Name the tables of a family, whoever owns them.

        libnftables 1.0.6 prints no JSON for a table that has flags, as firewalld's may have.
        """

        def names(messages: Iterable[bytes]) -> frozenset[str]:
            ours = (m for m in messages if FAMILIES.get(m[16]) == family)
            return frozenset(nft.text(nft.parts(m)[nft.NFTA_TABLE_NAME][:-1]) for m in ours)

        return self.dump(nft.NFT_MSG_GETTABLE, "tables", names)

    def table_flags(self, family: str, table: str) -> int | None:
        """Return a table's flags; None if there is no such table."""
        body = nft.string(nft.NFTA_TABLE_NAME, table)
        with reading("nftables"):
            found = self.one(nft.NFT_MSG_GETTABLE, body, NUMBERS[family])
        return None if found is None else _number_in(found, nft.NFTA_TABLE_FLAGS)

    def chains(self, choose: Callable[[Iterable[Chain]], T], *, hooked: bool = False) -> T:
        """Choose, as in ``dump``, of every chain there is; there may be very many.

        If only hooked ones are wanted, which packets enter by a hook, no others are even decoded.
        """
        dormant = self.dump(nft.NFT_MSG_GETTABLE, "tables", _dormant)

        def some(messages: Iterable[bytes]) -> T:
            if hooked:
                messages = (m for m in messages if nft.plain_chain(m) is None)
            found = map(nft.decode_chain, messages)
            return choose(replace(c, hook="") if c.home in dormant else c for c in found)

        return self.dump(nft.NFT_MSG_GETCHAIN, "chains", some)

    def table_chains(self, family: str, table: str) -> list[Chain]:
        """List the chains of one table; those of others are not decoded."""
        is_of_it = _of_table(nft.string(nft.NFTA_CHAIN_TABLE, table), NUMBERS[family])

        def ours(messages: Iterable[bytes]) -> list[Chain]:
            return [nft.decode_chain(m) for m in islice(filter(is_of_it, messages), MAX_OBJECTS)]

        return self.dump(nft.NFT_MSG_GETCHAIN, "chains", ours)

    def table_rules(self, family: str, table: str) -> list[tuple[bytes, bytes]]:
        """List the rules of one table in order: the name of its chain, and its expressions.

        Raises:
            TooMuchError: there are more than we would ever put there.
        """
        body = nft.string(nft.NFTA_RULE_TABLE, table)
        found = _all_rules(self, "rules", family, body, MAX_OBJECTS, MAX_BYTES_OF_RULES)
        chain, expressions = nft.NFTA_RULE_CHAIN, nft.NFTA_RULE_EXPRESSIONS
        return [(r[chain][:-1], r.get(expressions, b"")) for r in map(nft.parts, found)]

    def mentions(self, family: str, table: str, word: bytes) -> bool:
        """Whether a word stands anywhere in a table's rules, or in a chain's name."""
        body, number = nft.string(nft.NFTA_RULE_TABLE, table), NUMBERS[family]
        is_of_it = _of_table(body, number)

        def any_of(messages: Iterable[bytes]) -> bool:
            return any(word in m for m in messages if is_of_it(m))

        kinds = nft.NFT_MSG_GETCHAIN, nft.NFT_MSG_GETRULE
        return any(self.dump(kind, "rules", any_of, body, number) for kind in kinds)

    def table_parts(self, kind: int, family: str, table: str) -> list[dict[int, bytes]]:
        """List a table's sets, objects or flowtables (the kind of request), by attributes."""

        def some(messages: Iterable[bytes]) -> list[dict[int, bytes]]:
            return [nft.parts(m) for m in islice(messages, MAX_OBJECTS)]

        return self.dump(kind, "tables", some, nft.string(1, table), NUMBERS[family])

    def table_elements(self, family: str, table: str, name: bytes, limit: int) -> list[bytes]:
        """List a set's elements, each as its attributes; no more than the limit."""

        def some(messages: Iterable[bytes]) -> list[bytes]:
            listed = (nft.parts(m).get(nft.NFTA_SET_ELEM_LIST_ELEMENTS, b"") for m in messages)
            found = (element for one in listed for _, element in attributes(one))
            return list(islice(found, limit))

        body = nft.string(nft.NFTA_SET_ELEM_LIST_TABLE, table)
        body += attribute(nft.NFTA_SET_ELEM_LIST_SET, name)
        return self.dump(nft.NFT_MSG_GETSETELEM, "elements", some, body, NUMBERS[family])

    def rules(self, chain: Chain, limit: int, size: int = MAX_BYTES_OF_RULES) -> list[bytes]:
        """Return the rules of any owner's chain in order, each as its attributes.

        A chain of more rules than the limit, or of more bytes than the size, is not read.
        """
        table, name = chain.place
        body = attribute(nft.NFTA_RULE_TABLE, table) + attribute(nft.NFTA_RULE_CHAIN, name)
        found = _all_rules(self, f"chain {chain.path}", chain.family, body, limit, size)
        return [m[HEADERS:] for m in found]

    def elements(
        self, family: str, table: bytes, name: bytes, limit: int
    ) -> tuple[int, list[bytes]]:
        """Return the flags of a set, and the messages that list its elements.

        Names are the kernel's bytes. A message has some hundred elements; a set of more than
        ``limit`` messages is not read.
        """
        body = attribute(nft.NFTA_SET_TABLE, table) + attribute(nft.NFTA_SET_NAME, name)
        what = f"set {family} {nft.text(table[:-1])} {nft.text(name[:-1])}"
        # Both questions have the same attributes (NFTA_SET_ELEM_LIST_TABLE and _SET).
        some = partial(_within, limit, sys.maxsize)
        found = self.dump(nft.NFT_MSG_GETSETELEM, what, some, body, NUMBERS[family])
        if len(found) > limit:
            raise ObserveError(what, "it has more elements than are looked at")
        with reading(what):
            (message,) = self.stream(nft.NFT_MSG_GETSET, 0, body, NUMBERS[family])
        return _number_in(message, nft.NFTA_SET_FLAGS), found

    def find_elements(
        self, table: str, keys: Iterable[tuple[str, bytes]], family: str = "inet"
    ) -> list[tuple[str, bytes] | None]:
        """Look for elements of sets without ranges, by set and key (addresses in network order).

        Returns:
            For each the chain that its verdict names, and its value, each empty if it has none;
            None if there is no such element, table or set.
        """
        with reading("nftables"):
            asked = [nft.element(table, name, key) for name, key in keys]
            found = [self.one(nft.NFT_MSG_GETSETELEM, body, NUMBERS[family]) for body in asked]
        return [None if message is None else _leads_to(message) for message in found]


def _dormant(messages: Iterable[bytes]) -> frozenset[tuple[str, bytes]]:
    """Return tables whose chains no packet enters, MAX_OBJECTS at most."""
    found = (
        (FAMILIES.get(m[16], ""), nft.parts(m)[nft.NFTA_TABLE_NAME])
        for m in messages
        if _number_in(m, nft.NFTA_TABLE_FLAGS) & nft.NFT_TABLE_F_DORMANT
    )
    return frozenset(islice(found, MAX_OBJECTS))


def _number_in(message: bytes, kind: int) -> int:
    return int.from_bytes(nft.parts(message).get(kind, b""), "big")


def _of_table(start: bytes, family: int) -> Callable[[bytes], bool]:
    """Tell which messages begin with a table's name and are of its family."""
    place = slice(HEADERS, HEADERS + len(start))
    return lambda message: message[16] == family and message[place] == start


def _all_rules(
    kernel: Channel, what: str, family: str, body: bytes, limit: int, size: int
) -> list[bytes]:
    some = partial(_within, limit, size)
    found = kernel.dump(nft.NFT_MSG_GETRULE, what, some, body, NUMBERS[family])
    if len(found) > limit:
        raise TooMuchError(what, f"it has more than {limit} rules, and is not looked at")
    if sum(len(m) - HEADERS for m in found) > size:
        why = f"its rules have more than {size} bytes, and are not looked at"
        raise TooMuchError(what, why)
    return found


def _within(limit: int, size: int, messages: Iterable[bytes]) -> list[bytes]:
    """Return messages until they, or the bytes of their attributes, are more than so many."""
    found = []
    for message in messages:
        found.append(message)
        size -= len(message) - HEADERS
        if size < 0 or len(found) > limit:
            break
    return found


def _leads_to(message: bytes) -> tuple[str, bytes]:
    ((_, found),) = attributes(nft.parts(message)[nft.NFTA_SET_ELEM_LIST_ELEMENTS])
    return nft.leads_to(found)
