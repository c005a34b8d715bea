"""When the pool is planned, EC2 observed and metadata read again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from reconciler.engine.backoff import Delays
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.pace import UNFINISHED_S, Left, observe_after_s, plan_after_s

SHRINK_S = 30.0
"""Seconds after a growth for which nothing else is chosen to be given back, so that pods that come
and go all the time do not make addresses do the same."""

HEAR_S = Delays(0.25)
"""Until metadata, which costs nothing and follows within seconds, is read for EC2's answers."""


@dataclass
class PoolSchedule:
    """What the last passes over the pool have left for later. Times are monotonic seconds.

    Attributes:
        clock: returns them.
        calls: EC2 actions that are not called for now.
        left: what the last observation has left open.
        failed: the last one was not good enough to plan on again.
        unfinished: an address or an ENI waits for its time to go.
        has_called: the last pass has called EC2.
        waits_to_shrink: something would be given back, were the last growth not so recent.
        readings: of metadata since EC2 was last called, those without an answer too.
        resync_s: the document's ``reconcile.ec2Resync``.
    """

    clock: Callable[[], float]
    calls: CallBackoffs = field(default_factory=CallBackoffs)
    left: Left = field(default_factory=Left)
    failed: bool = False
    unfinished: bool = False
    has_called: bool = False
    waits_to_shrink: bool = False
    readings: int = 0
    resync_s: float = 0.0
    observed_at: float = 0.0
    called_at: float = float("-inf")
    grown_at: float = float("-inf")

    @property
    def is_unconfirmed(self) -> bool:
        """Whether EC2 and metadata differ by the last observation.

        Nothing is given back meanwhile.
        """
        left = self.left
        return left.behind or left.disagreeing

    @property
    def is_pending(self) -> bool:
        """Whether what is not needed cannot be given back yet, or may not."""
        return self.is_unconfirmed or self.waits_to_shrink

    @property
    def hear_after_s(self) -> float:
        """Seconds until metadata is worth reading again for what it has not shown yet."""
        return HEAR_S.after(self.readings + 1) if self.is_unconfirmed else float("inf")

    @property
    def due_s(self) -> float:
        """Seconds until an observation is due, or something can be tried again."""
        now, left = self.clock(), self.left
        waits = [r.until - now for r in self.calls.by_scope.values() if r.until > now]
        waits.append(self._observe_at(left, self.resync_s) - now)
        if self.unfinished:
            waits.append(UNFINISHED_S)
        if self.waits_to_shrink:
            waits.append(self.grown_at + SHRINK_S - now)
        if self.has_called:
            waits.append(self._changed_at + plan_after_s(left) - now)
        return max(min(waits), 1.0)

    def leave(self, left: Left) -> None:
        """Remember what an observation has left open."""
        self.left = left

    def postpones_shrinking(self, *, wanted: bool) -> bool:
        """Whether what is wanted to be given back must wait, because the pool has just grown."""
        self.waits_to_shrink = wanted and self.clock() < self.grown_at + SHRINK_S
        return self.waits_to_shrink

    def needs_observation(self, left: Left, resync_s: float) -> bool:
        """Whether the last observation may not be planned on.

        Args:
            left: what it has left open, as of now.
            resync_s: as the document says now.
        """
        return self.failed or self.clock() >= self._observe_at(left, resync_s)

    def note_reading(self) -> None:
        """Metadata is being read."""
        self.readings += 1

    def note_calls(self, *, grows: bool) -> None:
        """EC2 has been called; some of it adds to the pool."""
        self.called_at, self.readings = self.clock(), 0
        if grows:
            self.grown_at = self.clock()

    @property
    def _changed_at(self) -> float:
        """When it became known what the pool has: by a look, or by EC2's answers."""
        return max(self.observed_at, self.called_at)

    def _observe_at(self, left: Left, resync_s: float) -> float:
        by_look = self.observed_at + observe_after_s(replace(left, behind=False), resync_s)
        return min(by_look, self._changed_at + observe_after_s(left, resync_s))
