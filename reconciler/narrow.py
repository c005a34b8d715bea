"""Targets that look at less than all there is, because the rest is known or nobody asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from reconciler.core.attachment import AttachmentKey
from reconciler.core.records import Records
from reconciler.errors import ApplyError


class Places:
    """A target that looks only where some objects live."""

    def __init__(self, target: Any, places: frozenset[Any]) -> None:
        self._target = target
        self._places = places
        self.apply = target.apply

    def observe(self, desired: Iterable[Any]) -> Any:
        """Look there."""
        del desired  # what is not wanted any more has its place as well
        return self._target.observe_at(self._places)


class JustRead:
    """The state directory, of which intents and attachments were read a moment ago.

    What is written by others of this process meanwhile, the pool's records, is read again.
    """

    def __init__(self, state: Any, records: Records) -> None:
        self._state = state
        self._records: Records | None = records

    def observe(self, desired: Iterable[Any]) -> Records:
        """Return what was read, the first time; read everything from then on."""
        del desired
        before, self._records = self._records, None
        seen: Records = (
            self._state.observe_at((), before) if before is not None else self._state.observe()
        )
        return seen

    def apply(self, actions: Sequence[Any]) -> tuple[ApplyError, ...]:
        """Carry out actions; return what failed."""
        failures: tuple[ApplyError, ...] = self._state.apply(actions)
        return failures


class Asked:
    """The state directory, of which only some attachments' records are read again."""

    def __init__(self, state: Any, keys: frozenset[AttachmentKey], before: Records) -> None:
        self._state = state
        self._keys = keys
        self._records = before
        self.apply = state.apply

    def observe(self, desired: Iterable[Any]) -> Records:
        """Read those again, and keep what was known of all others."""
        del desired
        self._records = self._state.observe_at(self._keys, self._records)
        return self._records
