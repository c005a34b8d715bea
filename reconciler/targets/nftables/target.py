"""nftables: our table, our rules in chains of others, and what of others concerns us.

One transaction per plan. Of other owners' tables nothing is looked at but the names of their
chains and the few rules that stand in a chain with hook forward itself, and those are decoded as
the kernel has them (``rules.py``): more would cost what they have, and libnftables must never see
it.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from reconciler.core.datapath import ALIAS, TABLE, IpAddress
from reconciler.core.forward import ForwardChain
from reconciler.core.predecessor import StockTable
from reconciler.diagnostics.mark import sign_of
from reconciler.domains.forward import ForwardAccept
from reconciler.domains.nat import NftChain, NftElement, NftObject, canonical
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.netlink.message import NLM_F_APPEND, NLM_F_CREATE, attribute
from reconciler.targets.netlink.nf_tables import (
    NFT_MSG_DELRULE,
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWRULE,
    NFT_MSG_NEWTABLE,
    NFTA_TABLE_NAME,
    Chain,
    verdict_of,
)
from reconciler.targets.netlink.nfnetlink import Request
from reconciler.targets.netlink.ruleset import MAX_BYTES_OF_RULES, Nfnetlink
from reconciler.targets.nftables import table
from reconciler.targets.nftables.compiler import CompileError, Compiler
from reconciler.targets.nftables.elements import Reader
from reconciler.targets.nftables.foreign_rules import accept_link, decode_rule, identity

Json = dict[str, Any]


class Nft:
    """Our table in the network namespace this object was made in."""

    def __init__(self) -> None:
        self.kernel = Nfnetlink()
        self._compiler = Compiler()
        self._elements = Reader()
        self._texts: Mapping[bytes, str] = {}
        self._seen: tuple[int, frozenset[NftObject]] | None = None

    def observe(self, desired: Iterable[NftObject] = ()) -> frozenset[NftObject]:
        """Read our table, unless no ruleset has changed since; the empty set if there is none.

        The whole table is always looked at; of what is desired the rules are, to know them again.

        Raises:
            ObserveError: the kernel refused.
        """
        is_new = self._learn(o for o in desired if isinstance(o, NftChain))
        now = self.kernel.generation()
        if self._seen is None or self._seen[0] != now or is_new:
            # A change that comes in between has a later number, and is seen next time.
            self._seen = now, table.read(self.kernel, self._texts, self._elements)
        return self._seen[1]

    def _learn(self, chains: Iterable[NftChain]) -> bool:
        """Know rules by their bytes; say whether there are any that were not known."""
        try:
            compiled = self._compiler.compile(chains)
        except CompileError:
            return False  # nothing will be like it, and applying it will say why
        texts = {
            raw: rule
            for chain, raws in compiled.items()
            for raw, rule in zip(raws, chain.rules, strict=True)
        }
        before, self._texts = self._texts, texts
        return not texts.keys() <= before.keys()

    def observe_at(self, places: Iterable[NftElement]) -> frozenset[NftObject]:
        """Read single elements of sets without ranges; the cost does not grow with the sets.

        Raises:
            ObserveError: the kernel refused.
        """
        places = list(places)
        verdicts = self.kernel.find_elements(TABLE, [(e.set, e.first.packed) for e in places])
        return frozenset(
            replace(element, goto=verdict)
            for element, verdict in zip(places, verdicts, strict=True)
            if verdict is not None
        )

    def apply(self, actions: Sequence[Change[NftObject]]) -> tuple[ApplyError, ...]:
        """Commit all actions as one transaction: all of them happen, or none."""
        chains = [
            a.object
            for a in actions
            if isinstance(a.object, NftChain) and a.verb is not Verb.DELETE
        ]
        try:
            compiled = self._compiler.compile(chains) if chains else {}
            self.kernel.commit_ours(table.requests(actions, compiled))
        except (CompileError, OSError, ObserveError) as error:
            why = getattr(error, "strerror", None) or str(error)
            return tuple(ApplyError(str(a), "TransactionRefused", why) for a in actions)
        return ()


KUBE_PROXY = "kube-proxy"
"""Its table in mode nftables, one for each family."""


PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}

MAX_ENDPOINTS = 5_000
"""Of one service; EndpointSlices of a service that large are more than anybody has."""


class KubeProxyTable:
    """kube-proxy's tables in its mode nftables, read for ``trace`` and never changed.

    Names: Kubernetes ``pkg/proxy/nftables/proxier.go``.
    """

    def __init__(self) -> None:
        self._kernel = Nfnetlink()

    def tables(self, family: str) -> frozenset[str]:
        """Name the tables of a family, whoever owns them.

        Raises:
            ObserveError: the kernel refused.
        """
        return self._kernel.list_tables(family)

    def service(
        self, family: str, address: IpAddress, protocol: str, port: int
    ) -> list[Json | list[Json]]:
        """Return the element of the map of services that is of this one; nothing if there is none.

        Raises:
            ObserveError: the kernel refused.
        """
        parts = (address.packed, bytes([PROTOCOLS[protocol]]), struct.pack(">H", port))
        key = b"".join(part + bytes(-len(part) % 4) for part in parts)
        (chain,) = self._kernel.find_elements(KUBE_PROXY, [("service-ips", key)], family)
        if not chain:
            return []
        return [[{"concat": [str(address), protocol, port]}, {"goto": {"target": chain}}]]

    def rules(self, family: str, chain: str) -> list[Json]:
        """Return the expressions of each rule of a chain, and where its maps lead.

        Raises:
            ObserveError: the kernel refused, or the chain is longer than any of kube-proxy's.
        """
        place = KUBE_PROXY.encode() + b"\0", chain.encode() + b"\0"
        there = Chain(family, KUBE_PROXY, chain, place=place)
        bodies = [decode_rule(r).body for r in self._kernel.rules(there, MAX_RULES)]
        return [part for body in bodies for part in (*body, *self._choices(family, body))]

    def _choices(self, family: str, body: list[Json]) -> Iterator[Json]:
        """Spell out the verdicts among which a rule chooses."""
        for part in body:
            if isinstance(vmap := part.get("vmap"), dict):
                name = str(vmap["data"]["set"]).encode() + b"\0"
                for element in self._kernel.table_elements(
                    family, KUBE_PROXY, name, MAX_ENDPOINTS
                ):
                    yield {"goto": {"target": verdict_of(element)}}


NEVER_FIREWALLS = frozenset({("inet", TABLE), ("ip", KUBE_PROXY), ("ip6", KUBE_PROXY)})
"""Families and tables whose forward chains drop nothing that others may have; not worth a look at
their rules."""

MAX_NAMES = 5_000
"""Names of chains that are kept of all there are; of later ones only those that are hooked, or
that are the first to tell a program which marks packets. A cluster with 10,000 services has some
60,000 chains on each node."""

MAX_RULES, MAX_RULES_IN_ALL = 1_000, 10_000
"""Rules that are looked at of one foreign chain, and of all. Whoever has more in a forward chain
itself is told that it was not looked at; a rule costs 50 microseconds to decode. All together
have no more bytes than one chain may have."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of other owners.

    Attributes:
        names: (table, name) of their chains.
        forward: their chains with hook forward, as far as they were looked at.
        ours: our rules in them.
        unread: what was not looked at, and why.
    """

    names: frozenset[tuple[str, str]]
    forward: tuple[ForwardChain, ...]
    ours: frozenset[ForwardAccept]
    unread: tuple[tuple[str, str], ...] = ()


class ForwardRules:
    """Our rules in forward chains of other owners, in the namespace this object was made in."""

    def __init__(self) -> None:
        self._kernel = Nfnetlink()
        self._seen: tuple[int, Seen] | None = None

    def chains(self) -> tuple[frozenset[tuple[str, str]], tuple[ForwardChain, ...]]:
        """Return (table, name) of chains that are not ours, and the forward chains of them.

        Raises:
            ObserveError: the kernel refused.
        """
        seen = self._look()
        return seen.names, seen.forward

    def unread(self) -> tuple[tuple[str, str], ...]:
        """Return the chains that are not looked at, each with the reason.

        Raises:
            ObserveError: the kernel refused.
        """
        return self._look().unread

    def observe(self, desired: Iterable[ForwardAccept] = ()) -> frozenset[ForwardAccept]:
        """List the rules that carry our comment.

        Raises:
            ObserveError: the kernel refused.
        """
        del desired  # a chain that is not desired any more has to be looked at as well
        return self._look().ours

    def apply(self, actions: Sequence[Change[ForwardAccept]]) -> tuple[ApplyError, ...]:
        """Carry out actions, each a transaction: one chain's owner is not another's."""
        failures = []
        for action in actions:
            try:
                self._kernel.commit(_accept_requests(action), action.object.family)
            except OSError as error:
                number = error.errno or 0
                failures.append(
                    ApplyError.from_errno(str(action), number, os.strerror(number), error)
                )
        return tuple(failures)

    def _look(self) -> Seen:
        """Look at everything, unless no ruleset has changed since the last observation."""
        now = self._kernel.foreign_generation()
        if self._seen is None or self._seen[0] != now:
            # A change that comes in between has a later number, and is seen next time.
            self._seen = (now, self._look_anew())
        return self._seen[1]

    def _look_anew(self) -> Seen:
        names, hooked = self._kernel.chains(_choose)
        chains: list[ForwardChain] = []
        handles: dict[ForwardAccept, tuple[int, ...]] = {}
        unread: list[tuple[str, str]] = []
        left, left_bytes = MAX_RULES_IN_ALL, MAX_BYTES_OF_RULES
        for chain in hooked:
            if chain.hook != "forward" or (chain.family, chain.table) in NEVER_FIREWALLS:
                continue
            try:
                raw = self._kernel.rules(chain, min(MAX_RULES, left), left_bytes)
            except ObserveError as error:
                unread.append((error.what, error.why))
                continue
            rules = [decode_rule(r) for r in raw]
            left -= len(rules)
            left_bytes -= sum(map(len, raw))
            chains.append(_forward_chain(chain, [r.body for r in rules]))
            for rule in rules:
                if rule.comment == ALIAS:
                    found = _our_accept(chain, rule.body)
                    handles[found] = (*handles.get(found, ()), rule.handle)
        ours = frozenset(replace(found, handles=h) for found, h in handles.items())
        return Seen(names, tuple(chains), ours, tuple(unread))


def _choose(chains: Iterable[Chain]) -> tuple[frozenset[tuple[str, str]], list[Chain]]:
    """Keep the names of other owners' chains, within bounds, and the chains that are hooked."""
    names: set[tuple[str, str]] = set()
    hooked: list[Chain] = []
    told: set[str] = set()
    for chain in chains:
        if (chain.family, chain.table) == ("inet", TABLE):
            continue
        sign = sign_of(chain.name)
        if len(names) < MAX_NAMES or chain.hook or (sign and sign not in told):
            names.add((chain.table, chain.name))
            told.add(sign)
        if chain.hook:
            hooked.append(chain)
    return frozenset(names), hooked


def _forward_chain(chain: Chain, bodies: Sequence[list[Json]]) -> ForwardChain:
    end = next((n for n, body in enumerate(bodies) if _stops(body)), None)
    return ForwardChain(
        chain.family,
        chain.table,
        chain.name,
        drops=chain.drops,
        shut=end is not None,
        accepts=frozenset(found for b in bodies[:end] if (found := _accepted(b))),
    )


def _our_accept(chain: Chain, body: list[Json]) -> ForwardAccept:
    """Return the rule; one that somebody has changed is none that is ever desired."""
    way, pattern = _accepted(body) or ("", canonical(body))
    return ForwardAccept(chain.family, chain.table, chain.name, way, pattern)


def _stops(body: list[Json]) -> bool:
    """Whether a rule drops or rejects every packet; of iptables' targets REJECT is no verdict."""
    match body:
        case [{"drop": _}] | [{"reject": _}] | [{"xt": {"type": "target", "name": "REJECT"}}]:
            return True
        case _:
            return False


def _accepted(body: list[Json]) -> tuple[str, str] | None:
    """Return (iifname or oifname, pattern) of a rule that accepts by that alone."""
    match body:
        case [
            {"match": {"op": "==", "left": {"meta": {"key": str(way)}}, "right": str(pattern)}},
            {"accept": _},
        ] if way in ("iifname", "oifname"):
            return way, pattern
    return None


def _accept_requests(action: Change[ForwardAccept]) -> list[Request]:
    rule = action.object
    if action.verb is Verb.DELETE:
        return [
            (NFT_MSG_DELRULE, 0, identity(rule.table, rule.chain, handle))
            for handle in rule.handles
        ]
    body = accept_link(rule.table, rule.chain, rule.way, rule.pattern, ALIAS)
    return [(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body)]


class StockTables:
    """Tables of family ip that other owners have: their names, and how to be rid of one."""

    def __init__(self) -> None:
        self._kernel = Nfnetlink()

    def observe(self) -> frozenset[str]:
        """List the names.

        Raises:
            ObserveError: the kernel refused.
        """
        return self._kernel.list_tables("ip")

    def mentions(self, table: str, word: str) -> bool:
        """Whether a word stands in a chain's name or a rule of a table of family ip.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        return self._kernel.mentions("ip", table, word.encode())

    def apply(self, actions: Sequence[Change[StockTable]]) -> tuple[ApplyError, ...]:
        """Delete tables, all or none."""
        requests: list[Request] = []
        for action in actions:
            name = attribute(NFTA_TABLE_NAME, action.object.name.encode() + b"\0")
            # Made first, so that deleting a table that is already gone is no error.
            requests += [(NFT_MSG_NEWTABLE, NLM_F_CREATE, name), (NFT_MSG_DELTABLE, 0, name)]
        try:
            self._kernel.commit(requests, "ip")
        except OSError as error:
            why = error.strerror or str(error)
            return tuple(ApplyError(str(a), "TransactionRefused", why) for a in actions)
        return ()
