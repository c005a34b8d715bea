"""One look at everything of other owners; each source fails alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from reconciler.core.forward import ForwardChain
from reconciler.domains.foreign import Foreign, ForeignRule
from reconciler.errors import ObserveError
from reconciler.targets.host import HostFiles
from reconciler.targets.legacy import LegacyTables
from reconciler.targets.netlink import Netlink
from reconciler.targets.nft import ForwardRules

T = TypeVar("T")

Chains = tuple[frozenset[Any], tuple[ForwardChain, ...] | None]


class Surroundings:
    """The namespace this object was made in, and the host's files.

    Attributes:
        forward: our rules in other owners' chains.
    """

    def __init__(self) -> None:
        self.forward = ForwardRules()
        self._legacy = LegacyTables()
        self._netlink = Netlink()
        self._host = HostFiles()

    def observe(self) -> Foreign:
        """Look at everything; raise nothing: what cannot be read is named in the answer."""
        unread: list[tuple[str, str]] = []

        def tried(read: Callable[[], T], otherwise: T) -> T:
            try:
                return read()
            except ObserveError as error:
                unread.append((error.what, error.why))
                return otherwise

        nothing: Chains = (frozenset(), None)
        no_rules: tuple[ForeignRule, ...] = ()
        nft_chains, nft_forward = tried(self.forward.chains, nothing)
        unread += tried(self.forward.unread, ())
        legacy_chains, legacy_forward = tried(self._legacy.observe, nothing)
        return Foreign(
            chains=frozenset(name for _, name in nft_chains) | legacy_chains,
            forward=None if nft_forward is None else (*nft_forward, *(legacy_forward or ())),
            rules=tried(self._netlink.foreign_rules, no_rules),
            tables=frozenset(table for table, _ in nft_chains),
            firewalld_accepts=self._host.firewalld_accepts(),
            networkd=self._host.networkd(),
            managers=self._host.managers(),
            tools=self._host.tools(),
            unread=tuple(unread),
        )
