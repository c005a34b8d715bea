"""nftables: our table, one transaction per plan; and the tables that a migration removes.

The door to ``nftables``: libnftables translates a rule's text into the kernel's expressions. It
first loads the chains and sets of every owner, and a crafted one ends the process. So it works in
an empty network namespace, and the expressions that the kernel holds there are copied.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import nftables

from reconciler.core.datapath import FAMILIES, TABLE
from reconciler.diagnostics.stock_objects import StockTable
from reconciler.domains.nat_guard import COUNTERS
from reconciler.domains.nat_identities import FROM, UNIDENTIFIED
from reconciler.domains.nat_identities import SETS as RULED
from reconciler.domains.nat_objects import NftChain, NftElement, NftLink, NftObject
from reconciler.domains.nat_rules import LINK_MAPS, SETS, TO
from reconciler.engine.plan import Change, Keyed, Verb
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.netlink import nf_tables as nft
from reconciler.targets.netlink.message import NLM_F_CREATE
from reconciler.targets.netlink.namespaces import empty_namespace
from reconciler.targets.netlink.nfnetlink import Request
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.nftables import table
from reconciler.targets.nftables.flows import Flows

Json = dict[str, Any]
Compiled = dict[NftChain, tuple[bytes, ...]]
"""The expressions of each rule of some chains, as the kernel has them."""


class CompileError(Exception):
    """libnftables, or the kernel, does not take a rule of ours."""


class Nft:
    """Our table in the network namespace this object was made in; ``flows``: the fast path's."""

    def __init__(self) -> None:
        self.flows: Final = Flows()
        self.kernel = Nfnetlink()
        self._reader = table.Reader(self.kernel)
        self._compiled: Compiled = {}
        self._texts: dict[bytes, str] = {}
        self._seen: tuple[int, frozenset[NftObject]] | None = None

    def observe(self, desired: Iterable[NftObject] = ()) -> frozenset[NftObject]:
        """Read our table, unless no ruleset has changed since; the empty set if there is none.

        The whole table is always looked at; of what is desired the rules are, to know them again.

        Raises:
            ObserveError: the kernel refused.
        """
        is_new = self._learn([o for o in desired if isinstance(o, NftChain)])
        now = self.kernel.generation()
        if self._seen is None or self._seen[0] != now or is_new:
            # A change that comes in between has a later number, and is seen next time.
            self._seen = now, self._reader.read(self._texts)
        return self._seen[1]

    def _learn(self, chains: list[NftChain]) -> bool:
        """Know rules by their bytes; say whether there are any that were not known."""
        try:
            compiled = self._compile(chains)
        except CompileError:
            return False  # nothing will be like it, and applying it will say why
        rules = (pair for c, raws in compiled.items() for pair in zip(raws, c.rules, strict=True))
        before, self._texts = self._texts, dict(rules)
        return not self._texts.keys() <= before.keys()

    def _compile(self, chains: list[NftChain]) -> Compiled:
        """Translate rules; what it was last asked for is remembered.

        Raises:
            CompileError: one of them is refused.
            ObserveError: there is no namespace to translate them in.
        """
        if missing := [c for c in chains if c not in self._compiled]:
            kept = {c: self._compiled[c] for c in chains if c in self._compiled}
            self._compiled = kept | _compile(missing)
        return self._compiled

    def observe_at(self, places: Iterable[NftElement | NftLink]) -> frozenset[NftObject]:
        """Read single elements of sets without ranges; the cost does not grow with the sets.

        Raises:
            ObserveError: the kernel refused.
        """
        places = list(places)
        found = self.kernel.find_elements(TABLE, [(e.set, table.key_of(e)) for e in places])
        return frozenset(
            table.leading_to(element, *seen)
            for element, seen in zip(places, found, strict=True)
            if seen is not None
        )

    def count(self) -> dict[str, int]:
        """Return how many packets each of the table's counters has counted.

        Raises:
            ObserveError: the kernel refused, or never held still.
        """
        return table.count(self.kernel)

    def apply(self, actions: Sequence[Change[NftObject]]) -> tuple[ApplyError, ...]:
        """Commit all actions as one transaction: all of them happen, or none."""
        kept = [a.object for a in actions if a.verb is not Verb.DELETE]
        chains = [o for o in kept if isinstance(o, NftChain)]
        try:
            compiled = self._compile(chains) if chains else {}
            self.kernel.commit_ours(table.requests(actions, compiled))
        except (CompileError, OSError, ObserveError) as error:
            return _refused(actions, error)
        return ()


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
            name = nft.string(nft.NFTA_TABLE_NAME, action.object.name)
            # Made first, so that deleting a table that is already gone is no error.
            requests.append((nft.NFT_MSG_NEWTABLE, NLM_F_CREATE, name))
            requests.append((nft.NFT_MSG_DELTABLE, 0, name))
        try:
            self._kernel.commit(requests, "ip")
        except OSError as error:
            return _refused(actions, error)
        return ()


def _refused(actions: Sequence[Change[Keyed]], error: Exception) -> tuple[ApplyError, ...]:
    why = getattr(error, "strerror", None) or str(error)
    return tuple(ApplyError(str(a), "TransactionRefused", why) for a in actions)


def _compile(chains: list[NftChain]) -> Compiled:
    try:
        with empty_namespace():
            library = nftables.Nftables()
            code, _, error = library.json_cmd({"nftables": _script(chains)})
            if code != 0:
                raise CompileError(" ".join(str(error).split())[:256])
            made = Nfnetlink().table_rules("inet", TABLE)
    except OSError as error:
        why = f"no empty network namespace to translate our rules in: {error}"
        raise ObserveError("nftables", why) from error
    by_chain: dict[str, list[bytes]] = {c.name: [] for c in chains}
    for name, expressions in made:
        by_chain[nft.text(name)].append(expressions)
    if any(len(by_chain[c.name]) != len(c.rules) for c in chains):
        raise CompileError("the kernel holds another number of rules than were written")
    return {c: tuple(by_chain[c.name]) for c in chains}


def _script(chains: list[NftChain]) -> list[Json]:
    """Define everything that a rule may name, and then the rules."""
    place = {"family": "inet", "table": TABLE}
    named = {
        t for c in chains for rule in c.rules for t in re.findall(r'"target":"([^"]+)"', rule)
    }
    used = {name for c in chains for rule in c.rules for name in re.findall(r'"@([^"]+)"', rule)}
    chains_: dict[str, Json] = {name: {"name": name} for name in named | {c.name for c in chains}}
    for c in chains:
        if c.hook:
            hook = {"type": c.type, "hook": c.hook, "prio": c.priority, "policy": "accept"}
            chains_[c.name] |= hook
    counters = (*COUNTERS, UNIDENTIFIED)
    objects: list[tuple[str, Json]] = [("counter", {"name": name}) for name in counters]
    by_link = {"type": "ifname", "map": "verdict"}
    objects += [("map", by_link | {"name": name}) for name in LINK_MAPS]
    for family, sets in SETS.items():
        of = {"type": FAMILIES[family].nft_type}
        ranges = of | {"flags": ["interval"]}
        ruled = RULED[family]
        own = {n for n in used if n.startswith(f"{sets.no_snat}_") or _is_place(TO, n, family)}
        objects += [("set", ranges | {"name": name}) for name in (*sets.of_ranges, *sorted(own))]
        plain = {n for n in used if _is_place(FROM, n, family)}
        plain |= {sets.pods, sets.no_metadata, ruled.ruled}
        objects += [("set", of | {"name": name}) for name in sorted(plain)]
        maps = (sets.pod_eni, sets.group_mark, sets.group_nat, ruled.dedicated_eni)
        objects += [("map", of | {"name": name, "map": "verdict"}) for name in maps]
        objects.append(("map", of | {"name": ruled.dedicated, "map": of["type"]}))
        by_both = {"type": ["ifname", of["type"]], "map": "verdict"}
        objects.append(("map", by_both | {"name": sets.guarded}))
    objects += [("chain", chains_[name]) for name in sorted(chains_)]
    for c in chains:
        objects += [("rule", {"chain": c.name, "expr": json.loads(rule)}) for rule in c.rules]
    table: Json = {"add": {"table": {"family": "inet", "name": TABLE}}}
    return [table, *({"add": {kind: place | body}} for kind, body in objects)]


def _is_place(start: str, name: str, family: str) -> bool:
    """Whether a set is one of those that each rule of the document has."""
    return name.startswith(start) and name.endswith(f"_{family}")
