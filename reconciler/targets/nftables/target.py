"""nftables: our table, one transaction per plan; and the tables that a migration removes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from reconciler.core.datapath import TABLE
from reconciler.core.predecessor import StockTable
from reconciler.domains.nat import NftChain, NftElement, NftObject
from reconciler.engine.plan import Change, Verb
from reconciler.errors import ApplyError, ObserveError
from reconciler.targets.netlink.message import NLM_F_CREATE, attribute
from reconciler.targets.netlink.nf_tables import (
    NFT_MSG_DELTABLE,
    NFT_MSG_NEWTABLE,
    NFTA_TABLE_NAME,
)
from reconciler.targets.netlink.nfnetlink import Request
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.nftables import table
from reconciler.targets.nftables.compiler import CompileError, Compiler
from reconciler.targets.nftables.elements import Reader


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
