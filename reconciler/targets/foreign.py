"""One look at everything of other owners; each source fails alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from reconciler.core.remembered import Remembered
from reconciler.diagnostics.foreign import NO_RULES, Foreign, ForeignRule
from reconciler.diagnostics.ruleset import Ruleset, chain_names, forward_chains, joined
from reconciler.errors import ObserveError
from reconciler.targets.files.host import HostFiles
from reconciler.targets.iptables.legacy import PRIORITIES, LegacyTables
from reconciler.targets.netlink.nf_tables import Chain
from reconciler.targets.netlink.queries import Queries
from reconciler.targets.nftables.foreign_chains import (
    NEVER_FIREWALLS,
    ForeignChains,
    ForwardRules,
    Seen,
)

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
        nft, legacy, failed = NO_RULES, NO_RULES, list[tuple[str, str]]()
        with _noting(failed):
            nft = ForeignChains(NEVER_FIREWALLS).observe().ruleset
        with _noting(failed):
            legacy = LegacyTables().ruleset(PRIORITIES)
        return joined(nft, legacy), tuple(f"{what}: not looked at: {why}" for what, why in failed)

    def observe(self) -> Foreign:
        """Return the latest look; raise nothing: what cannot be read is named in the answer."""
        return self.latest.observe()

    def _observe(self) -> Foreign:
        seen = Seen(NO_RULES, frozenset(), self._with_ours)
        rules: tuple[ForeignRule, ...] = ()
        legacy, failed = NO_RULES, list[tuple[str, str]]()
        with _noting(failed):
            seen = self._chains.observe()
        self._with_ours, is_seen = seen.with_ours, not failed
        with _noting(failed):
            rules = self._netlink.foreign_rules()
        failed += self._netlink.unread_rules()
        with _noting(failed):
            legacy = self._legacy.ruleset(LEGACY_TABLES)
        ruleset = self._joined(seen.ruleset, legacy)
        return Foreign(
            chains=frozenset(name for _, name in seen.names) | chain_names(legacy),
            forward=forward_chains(ruleset) if is_seen else None,
            ruleset=ruleset,
            rules=rules,
            tables=frozenset(table for table, _ in seen.names),
            firewalld_accepts=self._host.firewalld_accepts(),
            networkd=self._host.networkd(),
            managers=self._host.managers(),
            tools=self._host.tools(),
            unread=(*failed, *ruleset.unread),
        )


QUICK_S, IDLE_SHARE = 0.25, 5
"""Seconds up to which a read may follow another at once. A longer one is good for so many times as
long as it took: what is read may change without end."""


class Latest(Generic[T]):
    """The last result of a read that takes long, refreshed beside the loop that serves pods.

    Attributes:
        apart: another thread takes the turns; else ``observe`` takes one.
    """

    def __init__(self, read: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._last: tuple[T, float] | None = None
        """Written by the thread that reads: the result, and until when it is good."""
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self.apart = False

    def observe(self) -> T:
        """Return the last result, and have it refreshed; the first one is waited for."""
        last = self._last
        if self.apart and last is not None:
            self._asked.set()
        else:
            last = self._refresh()
        return last[0]

    def turn(self) -> bool:
        """Read, unless the last result is still good; say whether there is another one."""
        before = self._last
        after = self._refresh()
        return before is None or after[0] != before[0]

    def _refresh(self) -> tuple[T, float]:
        self._asked.clear()
        last, started = self._last, self._clock()
        if last is None or (started >= last[1] and not self._stopped.is_set()):
            found, ended = self._read(), self._clock()
            idle_s = IDLE_SHARE * (ended - started) if ended - started > QUICK_S else 0.0
            last = self._last = found, ended + idle_s
        return last

    def wait(self) -> None:
        """Wait until it is asked for, and the last result is good no more."""
        self._asked.wait()
        if self._last is not None:
            self._stopped.wait(max(0.0, self._last[1] - self._clock()))

    def stop(self) -> None:
        """End ``wait``, now and ever after."""
        self._stopped.set()
        self._asked.set()


@contextmanager
def _noting(unread: list[tuple[str, str]]) -> Iterator[None]:
    """Let a source fail alone: note what could not be read, and why."""
    try:
        yield
    except ObserveError as error:
        unread.append((error.what, error.why))
