"""What was asked of EC2, how it went, and how long it took, since this process has started."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace

from reconciler.ipam.budget import Bucket

OK, HELD_BACK = "ok", "held back"
"""Outcomes beside the kinds of failures (``ipam.budget.Failure``): an answer, and a call that was
not made because the node's own budget was used up."""

BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0)
"""Seconds by which calls are sorted; none takes longer than ``caller.ANSWER_S``."""


@dataclass(frozen=True, slots=True)
class Tallied:
    """The calls of one action.

    Attributes:
        outcomes: how many had each.
        took: how many of those made took at most so many seconds as ``BOUNDS_S`` has in the same
            place, and more than the one before it; the last is of those that took longer.
        seconds: that all of them took.
        bucket: of the node's budget, after the last one.
    """

    outcomes: Mapping[str, int]
    took: tuple[int, ...] = (0,) * (len(BOUNDS_S) + 1)
    seconds: float = 0.0
    bucket: Bucket | None = None


NONE = Tallied({})


class Tally:
    """Counts calls by action; any thread may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: dict[str, Tallied] = {}

    def note(self, action: str, outcome: str, bucket: Bucket, seconds: float = 0.0) -> None:
        """Count a call; one that was not made took no time."""
        with self._lock:
            known = self._calls.get(action, NONE)
            outcomes = {**known.outcomes, outcome: known.outcomes.get(outcome, 0) + 1}
            counted = replace(known, outcomes=outcomes, bucket=bucket)
            if outcome != HELD_BACK:
                at = bisect_left(BOUNDS_S, seconds)
                took = tuple(n + (place == at) for place, n in enumerate(known.took))
                counted = replace(counted, took=took, seconds=known.seconds + seconds)
            self._calls[action] = counted

    def all(self) -> Mapping[str, Tallied]:
        """Return what was counted, by action."""
        with self._lock:
            return dict(self._calls)
