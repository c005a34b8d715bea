"""EC2 within one pass over the pool: after the look its own answers tell what follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from reconciler.errors import ApplyError, ReconcilerError
from reconciler.ipam.budget import Failure, classify
from reconciler.ipam.cloud import Cloud
from reconciler.targets.scoped import ObservedTarget

REFUSED = {Failure.DENIED, Failure.THROTTLED, Failure.EXHAUSTED}
"""Kinds of failures after which a look would show nothing new: the call has had no effect, and
not because what it names is other than was believed."""


def kind_of(error: ReconcilerError) -> Failure | None:
    """Return what an answer of EC2 means; None if it is none."""
    return classify(error.reason) if isinstance(error, ApplyError) else None


class AnsweredEc2(ObservedTarget):
    """EC2 after a look: what it answers to the calls that follow needs no look of its own."""

    def __init__(
        self, ec2: Any, seen: Cloud, before: Callable[[Sequence[Any]], tuple[ApplyError, ...]]
    ) -> None:
        super().__init__(ec2, seen, before)
        self._is_told = False

    def observe(self, desired: Any) -> Any:
        """Return what was seen; after calls, what their answers have made of it."""
        return self._target.told() if self._is_told else super().observe(desired)

    def apply(self, actions: Sequence[Any]) -> tuple[ApplyError, ...]:
        """Hand on what may be done."""
        failures = super().apply(actions)
        # Of a call that EC2 refused outright it is known that nothing has happened.
        self._is_told = all(kind_of(failure) in REFUSED for failure in failures)
        return failures
