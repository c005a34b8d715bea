"""One look at everything of other owners; each source fails alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from reconciler.core.remembered import Remembered
from reconciler.diagnostics.foreign import NO_RULES, Foreign, ForeignRule
from reconciler.diagnostics.ruleset import Ruleset, chain_names, forward_chains, joined
from reconciler.errors import ObserveError
from reconciler.targets.files.host import HostFiles
from reconciler.targets.iptables.legacy import PRIORITIES, LegacyTables
from reconciler.targets.latest import Latest
from reconciler.targets.netlink.nf_tables import Chain
from reconciler.targets.netlink.queries import Queries
from reconciler.targets.nftables.foreign_chains import NEVER_FIREWALLS, ForeignChains
from reconciler.targets.nftables.forward_rules import ForwardRules

T = TypeVar("T")

LEGACY_TABLES = ("filter", "mangle", "raw")
"""Those that are looked at with every full pass."""


class Surroundings:
    """The namespace this object was made in, and the host's files.

    Attributes:
        forward: our rules in other owners' chains.
        latest: the latest look at everything; a thread may refresh it.
    """

    def __init__(self) -> None:
        self._with_ours: frozenset[Chain] = frozenset()
        self.forward = ForwardRules(lambda: self._with_ours)
        self._chains = ForeignChains(NEVER_FIREWALLS, translations=False)
        self._joined = Remembered(joined)
        self._legacy = LegacyTables()
        self._netlink = Queries()
        self._host = HostFiles()
        self.latest = Latest(self._observe)

    def chains(self) -> tuple[Ruleset, tuple[str, ...]]:
        """Read every chain of others that a packet may pass, but kube-proxy's own table.

        Returns:
            The chains; and what could not be looked at, with the reason.
        """
        tries = _Tries()
        nft = tries.read(lambda: ForeignChains(NEVER_FIREWALLS).observe().ruleset, NO_RULES)
        legacy = tries.read(lambda: LegacyTables().ruleset(PRIORITIES), NO_RULES)
        unread = (f"{what}: not looked at: {why}" for what, why in tries.unread)
        return joined(nft, legacy), tuple(unread)

    def observe(self) -> Foreign:
        """Return the latest look; raise nothing: what cannot be read is named in the answer."""
        return self.latest.observe()

    def _observe(self) -> Foreign:
        tries = _Tries()
        nft = tries.read(self._chains.observe, None)
        self._with_ours = nft.with_ours if nft else self._with_ours
        no_rules: tuple[ForeignRule, ...] = ()
        rules = tries.read(self._netlink.foreign_rules, no_rules)
        tries.unread += self._netlink.unread_rules()
        legacy = tries.read(lambda: self._legacy.ruleset(LEGACY_TABLES), NO_RULES)
        ruleset: Ruleset = self._joined(nft.ruleset if nft else NO_RULES, legacy)
        names = nft.names if nft else frozenset()
        return Foreign(
            chains=frozenset(name for _, name in names) | chain_names(legacy),
            forward=forward_chains(ruleset) if nft else None,
            ruleset=ruleset,
            rules=rules,
            tables=frozenset(table for table, _ in names),
            firewalld_accepts=self._host.firewalld_accepts(),
            networkd=self._host.networkd(),
            managers=self._host.managers(),
            tools=self._host.tools(),
            unread=(*tries.unread, *ruleset.unread),
        )


class _Tries:
    """Reads several sources; keeps what could not be read, and why."""

    def __init__(self) -> None:
        self.unread: list[tuple[str, str]] = []

    def read(self, source: Callable[[], T], otherwise: T) -> T:
        try:
            return source()
        except ObserveError as error:
            self.unread.append((error.what, error.why))
            return otherwise
