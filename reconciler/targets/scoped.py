"""Targets of which a look sees less than all there is, because the rest is known or not needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from reconciler.core.attachment import AttachmentKey
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError
from reconciler.ipam.records import Records, SetAside
from reconciler.targets.state.codec import Record

S = TypeVar("S")
Look = Callable[[Iterable[Any]], S]
Apply = Callable[[Sequence[Any]], tuple[ApplyError, ...]]


class RecordsTarget(Protocol):
    """The records of the state directory."""

    def observe(self, desired: Iterable[object] = ()) -> Records:
        """Read all."""

    def observe_at(self, keys: Collection[AttachmentKey], before: Records) -> Records:
        """Read those of some attachments again, and those that are no pod's."""

    def apply(self, actions: Sequence[Change[Record | SetAside]]) -> tuple[ApplyError, ...]:
        """Write and remove."""


class ScopedTarget(Generic[S]):
    """A target with another look in the place of its ``observe``, and its own ``apply``."""

    def __init__(self, look: Look[S], apply: Apply) -> None:
        self.observe = look
        self.apply = apply


def seen_first(seen: S, look: Look[S]) -> Look[S]:
    """Return a look that shows the first time what was seen a moment ago."""
    return _once(lambda _: seen, look)


def _once(first: Look[S], then: Look[S]) -> Look[S]:
    left = [first]
    return lambda desired: (left.pop() if left else then)(desired)


def known_records(state: RecordsTarget, records: Records) -> ScopedTarget[Records]:
    """Return the records, of which intents and attachments were read a moment ago.

    What is written by others of this process meanwhile, the pool's records, is read again.
    """
    first = _once(lambda _: state.observe_at((), records), state.observe)
    return ScopedTarget(first, state.apply)


def records_of(
    state: RecordsTarget, keys: frozenset[AttachmentKey], before: Records
) -> ScopedTarget[Records]:
    """Return the records, of which only those of some attachments are read again."""
    return ScopedTarget(lambda _: state.observe_at(keys, before), state.apply)
