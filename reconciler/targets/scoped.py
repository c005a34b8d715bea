"""Targets of which a look sees less than all there is, because the rest is known or not needed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.engine.converge import Target
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError
from reconciler.ipam.records import Records, SetAside
from reconciler.targets.state.codec import Record

D = TypeVar("D")
S = TypeVar("S")
A = TypeVar("A")
Look = Callable[[Iterable[D]], S]
Apply = Callable[[Sequence[A]], tuple[ApplyError, ...]]
RecordAction = Change[Record | SetAside]


class RecordsTarget(Target[object, Records, RecordAction], Protocol):
    """The records of the state directory."""

    def observe(self, desired: Iterable[object] = ()) -> Records:
        """Read all."""

    def observe_at(self, keys: Collection[AttachmentKey], before: Records) -> Records:
        """Read those of some attachments again, and those that are no pod's."""

    def apply(self, actions: Sequence[RecordAction]) -> tuple[ApplyError, ...]:
        """Write and remove."""


class ScopedTarget(Generic[D, S, A]):
    """A target with another look in the place of its ``observe``, and its own ``apply``."""

    def __init__(self, look: Look[D, S], apply: Apply[A]) -> None:
        self.observe = look
        self.apply = apply


def seen_first(seen: S, look: Look[D, S]) -> Look[D, S]:
    """Return a look that shows the first time what was seen a moment ago."""
    return _once(lambda _: seen, look)


def _once(first: Look[D, S], then: Look[D, S]) -> Look[D, S]:
    left = [first]
    return lambda desired: (left.pop() if left else then)(desired)


def known_records(
    state: RecordsTarget, records: Records
) -> ScopedTarget[object, Records, RecordAction]:
    """Return the records, of which intents and attachments were read a moment ago.

    What is written by others of this process meanwhile, the pool's records, is read again. Of
    attachments that only the kernel has shown no file tells that they are not on disk.
    """
    attachments = {i for i in records.unwritten if i[0] == Attachment.kind}

    def look(_: Iterable[object]) -> Records:
        seen = state.observe_at((), records)
        if attachments <= seen.unwritten:
            return seen
        return replace(seen, unwritten=seen.unwritten | attachments)

    return ScopedTarget(_once(look, state.observe), state.apply)


def records_of(
    state: RecordsTarget, keys: frozenset[AttachmentKey], before: Records
) -> ScopedTarget[object, Records, RecordAction]:
    """Return the records, of which only those of some attachments are read again."""
    return ScopedTarget(lambda _: state.observe_at(keys, before), state.apply)
