"""The kernel's objects and its links' settings as one target.

A setting of a link appears with the link and must be there before an address is, so both belong
into one plan, in the order in which the domains build upon each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from typing import Any, Protocol

from reconciler.domains.sysctl import Sysctl
from reconciler.engine.converge import Target
from reconciler.engine.observed import Observed
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError


class KernelTarget(Protocol):
    """What is looked at and changed by rtnetlink."""

    def observe(self, desired: Iterable[Any]) -> Observed:
        """Look at the host, and at pods' namespaces as far as they are named."""

    def observe_at(self, places: Iterable[Any]) -> Observed:
        """Look where these objects live, and nowhere else."""

    def observe_inside(self, places: Iterable[Any]) -> Observed:
        """Look into pods' namespaces only."""

    def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
        """Carry out actions in order."""


class Kernel:
    """Passes each object on to the target that knows it; decides nothing."""

    def __init__(self, netlink: KernelTarget, sysctl: Target) -> None:
        self._netlink = netlink
        self._sysctl = sysctl

    def observe(self, desired: Iterable[Any]) -> Observed:
        """Look at both.

        Raises:
            ObserveError: the kernel could not be read.
        """
        return self._look(self._netlink.observe, desired)

    def observe_at(self, places: Iterable[Any]) -> Observed:
        """Look where these objects of pods live, and nowhere else.

        Raises:
            ObserveError: the kernel could not be read.
        """
        return self._look(self._netlink.observe_at, places)

    def observe_inside(self, places: Iterable[Any]) -> Observed:
        """Look into pods' namespaces only; raise nothing."""
        return self._look(self._netlink.observe_inside, places)

    def _look(self, look: Callable[[list[Any]], Iterable[Any]], at: Iterable[Any]) -> Observed:
        at = list(at)
        settings = [o for o in at if isinstance(o, Sysctl)]
        seen = Observed().with_these(look([o for o in at if not isinstance(o, Sysctl)]))
        return seen.with_these(self._sysctl.observe(settings)) if settings else seen

    def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
        """Carry out actions in order."""
        failures: list[ApplyError] = []
        for is_setting, group in groupby(actions, key=lambda a: isinstance(a.object, Sysctl)):
            failures += (self._sysctl if is_setting else self._netlink).apply(list(group))
        return tuple(failures)
