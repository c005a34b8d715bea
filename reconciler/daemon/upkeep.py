"""What this process has on the host and must keep: its directory, its lock, its socket."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from reconciler.daemon.duty import Duties
from reconciler.engine.issue import Issue
from reconciler.errors import LockedError

log = logging.getLogger(__name__)


class Property(Protocol):
    """What this process has on the host, and others can take away."""

    @property
    def is_own(self) -> bool:
        """Whether it still is this process's."""
        ...

    def reclaim(self) -> tuple[Issue, ...]:
        """Make again what is gone, and say so.

        Raises:
            LockedError: another reconciler has it.
            StateError: it cannot be made.
        """
        ...


class Upkeep:
    """Makes again what others have taken away.

    Args:
        duties: reports what fails.
        step_back: called when another reconciler has taken the node over.

    Attributes:
        properties: in the order in which they are made again.
    """

    def __init__(self, duties: Duties, step_back: Callable[[LockedError], None]) -> None:
        self.properties: list[Property] = []
        self._duties, self._step_back = duties, step_back

    @property
    def is_complete(self) -> bool:
        """Whether all of it still is this process's."""
        return all(each.is_own for each in self.properties)

    def keep(self) -> bool:
        """Make again what others have taken of ours; return whether this node is still ours.

        Raises nothing: what cannot be made again is a condition, and tried with the next pass.
        """
        found: list[Issue] = []
        with self._duties.over("keeping the state directory"):
            try:
                for each in self.properties:
                    found += each.reclaim()
            except LockedError as error:
                log.error("another reconciler has taken over", extra={"error": str(error)})
                self._step_back(error)
                return False
        with self._duties.over("the conditions of the state directory"):
            self._duties.conditions.note("state directory", found)
        return True
