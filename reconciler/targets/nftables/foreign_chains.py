"""Chains of other owners: their names, those that routed packets come to, and our rules there."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from reconciler.core.datapath import ALIAS, FLOWS, TABLE
from reconciler.diagnostics import ruleset as of
from reconciler.diagnostics.foreign import sign_of
from reconciler.domains.forward import ForwardAccept
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import NLM_F_APPEND, NLM_F_CREATE, attribute, nested
from reconciler.targets.netlink.nf_tables import Chain
from reconciler.targets.netlink.nfnetlink import Request
from reconciler.targets.netlink.ruleset import MAX_BYTES_OF_RULES, Nfnetlink
from reconciler.targets.nftables import expressions as raw

KUBE_PROXY = "kube-proxy"
"""Its table in mode nftables, one for each family."""

OURS = frozenset({("inet", TABLE), ("inet", FLOWS)})

NEVER_FIREWALLS = OURS | {("ip", KUBE_PROXY), ("ip6", KUBE_PROXY)}
"""Families and tables whose chains are not read: ours, and kube-proxy's, which drops only packets
to services without endpoints."""

MAX_RULES, MAX_RULES_IN_ALL = 5_000, 20_000
"""Rules that are read of one chain, and of all in one look; a rule costs some 20 microseconds. A
longer chain is not read, and said not to have been."""

MAX_SET_MESSAGES = 64
"""Answers in which the kernel lists a set: some 5,000 elements. A larger set may hold anything."""

MAX_SETS, MAX_ELEMENTS_IN_ALL = 1024, 50_000
"""Sets, and elements of all of them, that are kept of one look; an element takes 150 to 400 bytes.
Sets beyond it may hold anything."""

MAX_BYTES_IN_ALL = 16 << 20
"""Bytes of all rules in one look; as objects they take three times as many."""

MAX_BASES = 256
"""Chains with a hook; a node has some twenty."""

MAX_CHAINS = 4096
"""Chains in one look: Calico has two for each pod, kube-proxy a few for each service."""

MAX_NAMES = 5_000
"""Names of chains that are kept of all there are; of later ones only those that have a hook, or
that are the first to tell a program which marks packets. A cluster with 10,000 services has some
60,000 chains on each node."""

NFT_SET_INTERVAL = 4
META_KEYS = {"iifname": 6, "oifname": 7}
VERDICT_REGISTER, REGISTER, EQUAL, ACCEPT = 0, 1, 0, 1


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at what others have.

    Attributes:
        names: (table, name) of their chains.
        with_ours: chains with hook forward that have rules with our comment.
    """

    ruleset: of.Ruleset
    names: frozenset[tuple[str, str]]
    with_ours: frozenset[Chain]


class ForeignChains:
    """nftables chains that are not ours, iptables-nft's among them.

    Args:
        besides: families and tables that are left out.
        translations: also those that may translate a destination. They are most of all there are
            where services are: kube-proxy has a few for each.
    """

    def __init__(
        self, besides: frozenset[tuple[str, str]] = frozenset(), *, translations: bool = True
    ) -> None:
        self._besides = besides
        self._translations = translations
        self._kernel = Nfnetlink()
        self._seen: tuple[int, Seen] | None = None

    def observe(self) -> Seen:
        """Read all chains that routed packets come to, unless none has changed since.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        now = self._kernel.foreign_generation()
        if self._seen is None or self._seen[0] != now:
            # A change that comes in between has a later number, and is seen next time.
            found, before = self._observe(), self._seen
            if before is not None and before[1].ruleset == found.ruleset:
                found = replace(found, ruleset=before[1].ruleset)
            self._seen = (now, found)
        return self._seen[1]

    def _is_wanted(self, chain: Chain) -> bool:
        translates = chain.type == "nat" and chain.hook != "postrouting"
        is_besides = (chain.family, chain.table) in self._besides
        return not is_besides and (self._translations or not translates)

    def _observe(self) -> Seen:
        names, hooked = self._kernel.chains(choose)
        # Those that our own rules may be put into are read before a bound is reached.
        wanted = sorted(filter(self._is_wanted, hooked), key=lambda c: c.hook != "forward")
        found = {
            of.ChainId("nft", c.family, *map(raw.name_of, c.place)): c for c in wanted[:MAX_BASES]
        }
        bases = tuple(
            of.BaseChain(name, c.hook, c.type, c.priority, c.drops, c.devices)
            for name, c in found.items()
        )
        reading = Reading(self._kernel)
        reading.follow([*found])
        forward = [name for name, c in found.items() if c.hook == "forward"]
        unread = [(f"chain {c}", reading.unread[c]) for c in forward if c in reading.unread]
        if len(wanted) > MAX_BASES:
            why = f"{len(wanted)} have a hook, and {MAX_BASES} at most are read"
            unread.append(("other owners' chains", why))
        ruleset = of.Ruleset(bases, reading.rules, reading.elements, tuple(unread))
        with_ours = frozenset(found[name] for name in forward if name in reading.with_ours)
        return Seen(ruleset, names, with_ours)


def choose(chains: Iterable[Chain]) -> tuple[frozenset[tuple[str, str]], list[Chain]]:
    """Keep the names of other owners' chains, within bounds, and the chains that have a hook."""
    names: set[tuple[str, str]] = set()
    hooked: list[Chain] = []
    told: set[str] = set()
    for chain in chains:
        if (chain.family, chain.table) in OURS:
            continue
        sign = sign_of(chain.name)
        if len(names) < MAX_NAMES or chain.hook or (sign and sign not in told):
            names.add((chain.table, chain.name))
            told.add(sign)
        if chain.hook:
            hooked.append(chain)
    return frozenset(names), hooked


class Reading:
    """One look, with what is left of its bounds.

    Attributes:
        rules, elements: as in ``Ruleset``.
        unread: why a chain was not read.
        with_ours: chains that have rules with our comment.
    """

    def __init__(self, kernel: Nfnetlink) -> None:
        self._kernel = kernel
        self._left = MAX_RULES_IN_ALL
        self._left_bytes = MAX_BYTES_IN_ALL
        self._left_elements = MAX_ELEMENTS_IN_ALL
        self.rules: dict[of.ChainId, tuple[of.Rule, ...] | None] = {}
        self.elements: dict[tuple[str, str, str], of.Elements | None] = {}
        self.unread: dict[of.ChainId, str] = {}
        self.with_ours: set[of.ChainId] = set()

    def follow(self, chains: list[of.ChainId]) -> None:
        """Read these chains, and all that they lead to."""
        while chains:
            chain = chains.pop(0)
            if chain in self.rules:
                continue
            rules = self.rules[chain] = (
                self._rules(chain) if len(self.rules) < MAX_CHAINS else None
            )
            for expression in (e for rule in rules or () for e in rule):
                verdicts: Iterable[of.Verdict | None] = ()
                if isinstance(expression, of.Verdict):
                    verdicts = (expression,)
                elif isinstance(expression, of.InSet):
                    verdicts = self._verdicts_of((chain.family, chain.table, expression.set))
                chains += [chain.beside(v.chain) for v in verdicts if v and v.chain]

    def _rules(self, chain: of.ChainId) -> tuple[of.Rule, ...] | None:
        place = _raw(chain.table), _raw(chain.name)
        there = Chain(chain.family, chain.table, chain.name, place=place)
        most, size = min(MAX_RULES, self._left), min(MAX_BYTES_OF_RULES, self._left_bytes)
        try:
            found = self._kernel.rules(there, most, size)
        except ObserveError as error:
            self.unread[chain] = error.why
            return None
        self._left -= len(found)
        self._left_bytes -= sum(map(len, found))
        if any(ALIAS.encode() in body for body in found):
            self.with_ours.add(chain)
        return tuple(map(raw.decode_rule, found))

    def _verdicts_of(self, place: tuple[str, str, str]) -> Iterable[of.Verdict | None]:
        """Read a set, unless it was; return the verdicts that are in it."""
        if place in self.elements:
            return ()
        found = self.elements[place] = self._elements(*place)
        return [verdict for _, _, verdict in found.ranges] if found else ()

    def _elements(self, family: str, table: str, name: str) -> of.Elements | None:
        if len(self.elements) >= MAX_SETS or self._left_elements <= 0:
            return None
        place = _raw(table), _raw(name)
        try:
            flags, messages = self._kernel.elements(family, *place, MAX_SET_MESSAGES)
        except ObserveError:
            return None
        found = raw.decode_elements(messages, is_interval=bool(flags & NFT_SET_INTERVAL))
        self._left_elements -= len(found.ranges)
        return found if self._left_elements >= 0 else None


def _raw(name: str) -> bytes:
    return name.encode(errors="surrogateescape") + b"\0"


class ForwardRules:
    """Rules of ours in the namespace this object was made in.

    Args:
        with_ours: returns the chains that have some, as far as is known.
    """

    def __init__(self, with_ours: Callable[[], Iterable[Chain]]) -> None:
        self._kernel = Nfnetlink()
        self._with_ours = with_ours

    def observe(self, desired: Iterable[ForwardAccept] = ()) -> frozenset[ForwardAccept]:
        """List the rules that carry our comment; of other chains' rules none is read.

        Raises:
            ObserveError: the kernel refused, or a chain has too many rules.
        """
        handles: dict[ForwardAccept, tuple[int, ...]] = {}
        chains = [*self._with_ours(), *map(_chain, desired)]
        for chain in {(c.family, c.place): c for c in chains}.values():
            for body in self._kernel.rules(chain, MAX_RULES):
                has = ALIAS.encode() in body
                handle, comment = raw.handle_and_comment(body) if has else (0, "")
                if comment != ALIAS:
                    continue
                # One that was changed is like none that is ever desired.
                other = "", f"another rule, of {len(body)} bytes"
                way, pattern = of.accepted_link(raw.decode_rule(body)) or other
                found = ForwardAccept(chain.family, chain.table, chain.name, way, pattern)
                handles[found] = (*handles.get(found, ()), handle)
        return frozenset(replace(found, handles=h) for found, h in handles.items())

    def apply(self, actions: Sequence[Change[ForwardAccept]]) -> tuple[ApplyError, ...]:
        """Carry out actions, each a transaction: one chain's owner is not another's."""
        failures = []
        for action in actions:
            try:
                self._kernel.commit(_requests(action), action.object.family)
            except OSError as error:
                failures.append(ApplyError.from_errno(str(action), error))
        return tuple(failures)


def _chain(rule: ForwardAccept) -> Chain:
    place = rule.table.encode() + b"\0", rule.chain.encode() + b"\0"
    return Chain(rule.family, rule.table, rule.chain, "forward", place=place)


def _requests(action: Change[ForwardAccept]) -> list[Request]:
    rule = action.object
    table, name = _chain(rule).place
    place = attribute(nft.NFTA_RULE_TABLE, table) + attribute(nft.NFTA_RULE_CHAIN, name)
    if action.verb is Verb.DELETE:
        handles = [attribute(raw.NFTA_RULE_HANDLE, struct.pack(">Q", n)) for n in rule.handles]
        return [(nft.NFT_MSG_DELRULE, 0, place + handle) for handle in handles]
    comment = ALIAS.encode() + b"\0"
    body = (
        place
        + nested(nft.NFTA_RULE_EXPRESSIONS, _expressions(rule.way, rule.pattern))
        + attribute(raw.NFTA_RULE_USERDATA, bytes([raw.COMMENT, len(comment)]) + comment)
    )
    return [(nft.NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, body)]


def _expressions(way: str, pattern: str) -> bytes:
    """Return expressions that accept what comes from, or goes to, links of a name."""
    name = pattern.encode()
    name = name[:-1] if pattern.endswith("*") else name.ljust(of.IFNAMSIZ, b"\0")
    register = attribute(1, _be32(REGISTER))
    value = nested(3, attribute(nft.NFTA_DATA_VALUE, name))
    verdict = nested(nft.NFTA_DATA_VERDICT, attribute(nft.NFTA_VERDICT_CODE, _be32(ACCEPT)))
    expressions = (
        ("meta", register + attribute(2, _be32(META_KEYS[way]))),
        ("cmp", register + attribute(2, _be32(EQUAL)) + value),
        ("counter", attribute(1, bytes(8)) + attribute(2, bytes(8))),
        ("immediate", attribute(1, _be32(VERDICT_REGISTER)) + nested(2, verdict)),
    )
    return b"".join(
        nested(nft.NFTA_LIST_ELEM, nft.string(1, kind) + nested(2, content))
        for kind, content in expressions
    )


def _be32(number: int) -> bytes:
    return struct.pack(">I", number)
