"""EC2 within one pass over the pool: after the look its own answers tell what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from reconciler.errors import ApplyError, ReconcilerError
from reconciler.ipam.budget import Failure, classify
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.ec2_action import Ec2Action
from reconciler.ipam.pool_status import Pool
from reconciler.node.targets import Ec2Target
from reconciler.targets.scoped import seen_first

REFUSED = {Failure.DENIED, Failure.THROTTLED, Failure.EXHAUSTED}
"""Kinds of failures after which a look would show nothing new: the call has had no effect, and
not because what it names is other than was believed."""


def kind_of(error: ReconcilerError) -> Failure | None:
    """Return what an answer of EC2 means; None if it is none."""
    return classify(error.reason) if isinstance(error, ApplyError) else None


class AnsweredEc2:
    """EC2 after a look: what it answers to the calls that follow needs no look of its own.

    Args:
        ec2: makes the calls.
        seen: the look.
        before: called with the actions first; what it refuses is not done.
    """

    def __init__(
        self,
        ec2: Ec2Target,
        seen: Cloud,
        before: Callable[[Sequence[Ec2Action]], tuple[ApplyError, ...]],
    ) -> None:
        self._ec2 = ec2
        self._before = before
        self._look = seen_first(seen, ec2.observe)

    def observe(self, desired: Iterable[Pool]) -> Cloud:
        """Return what was seen; after calls, what their answers have made of it."""
        return self._look(desired)

    def apply(self, actions: Sequence[Ec2Action]) -> tuple[ApplyError, ...]:
        """Hand on what may be done."""
        refused = self._before(actions)
        held = {failure.action for failure in refused}
        failures = (*refused, *self._ec2.apply([a for a in actions if str(a) not in held]))
        # Of a call that EC2 refused outright it is known that nothing has happened.
        if all(kind_of(failure) in REFUSED for failure in failures):
            self._look = lambda _: self._ec2.told()
        else:
            self._look = self._ec2.observe
        return failures
