"""Targets that look at less than all there is, because the rest is known or not needed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from reconciler.core.attachment import AttachmentKey
from reconciler.errors import ApplyError
from reconciler.ipam.records import Records


class ScopedTarget:
    """A target that looks only where what is desired lives, and some objects that are not."""

    def __init__(self, target: Any, gone: frozenset[Any]) -> None:
        self._target = target
        self._gone = gone
        self.apply = target.apply

    def observe(self, desired: Iterable[Any]) -> Any:
        """Look there."""
        return self._target.observe_at(self._gone.union(desired))


class StateReadOnce:
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


class ScopedState:
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


class ObservedTarget:
    """A target that was looked at already: the first look costs nothing.

    Args:
        target: what is looked at and changed.
        seen: the look.
        before: called with the actions first; what it refuses is not done.
    """

    def __init__(
        self,
        target: Any,
        seen: Any,
        before: Callable[[Sequence[Any]], tuple[ApplyError, ...]] = lambda _: (),
    ) -> None:
        self._target = target
        self._seen = seen
        self._before = before

    def observe(self, desired: Iterable[Any]) -> Any:
        """Return what was seen; the next time, look."""
        seen, self._seen = self._seen, None
        return seen if seen is not None else self._target.observe(desired)

    def apply(self, actions: Sequence[Any]) -> tuple[ApplyError, ...]:
        """Hand on what may be done."""
        refused = self._before(actions)
        held = {failure.action for failure in refused}
        done: tuple[ApplyError, ...] = self._target.apply(
            [a for a in actions if str(a) not in held]
        )
        return (*refused, *done)
