"""Chains of other owners: their names, and those that routed packets come to, rule by rule."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from reconciler.core.datapath import ALIAS, TABLE
from reconciler.diagnostics import ruleset as of
from reconciler.diagnostics.foreign import sign_of
from reconciler.errors import ObserveError
from reconciler.targets.netlink.nf_tables import Chain
from reconciler.targets.netlink.ruleset import MAX_BYTES_OF_RULES, Nfnetlink
from reconciler.targets.nftables.expressions import decode_elements, decode_rule, name_of

KUBE_PROXY = "kube-proxy"
"""Its table in mode nftables, one for each family."""

NEVER_FIREWALLS = frozenset({("inet", TABLE), ("ip", KUBE_PROXY), ("ip6", KUBE_PROXY)})
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
            of.ChainId("nft", c.family, *map(name_of, c.place)): c for c in wanted[:MAX_BASES]
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
        if (chain.family, chain.table) == ("inet", TABLE):
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
        return tuple(map(decode_rule, found))

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
        found = decode_elements(messages, is_interval=bool(flags & NFT_SET_INTERVAL))
        self._left_elements -= len(found.ranges)
        return found if self._left_elements >= 0 else None


def _raw(name: str) -> bytes:
    return name.encode(errors="surrogateescape") + b"\0"
