"""The connections of addresses that cool, looked for and ended beside the loop that serves pods.

What conntrack holds is as much as pods have opened, so no pod may wait for it. Only the end of a
cooldown waits for an answer, and the answer wakes the loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from reconciler.core.attachment import Cooling
from reconciler.core.datapath import IpAddress
from reconciler.domains import conntrack
from reconciler.domains.conntrack import ConntrackFlush
from reconciler.engine.backoff import Delays
from reconciler.engine.converge import Domain, Outcome, always, converge
from reconciler.engine.plan import Plan
from reconciler.node.environment import Connections

IDLE_SHARE = 5
"""Rounds begin this many durations apart at least: a sixth of a core at most goes to a table that
takes long to walk, and pods that end together share a round."""

RETRY_S = Delays(1.0, 30.0)  # after a round that failed, or left connections

LONGEST_S = 30.0  # seconds between looks at the clock, which may step


class Cooldowns:
    """What is known of the connections of each address that cools.

    While ``apart``, another thread runs the rounds; else each review runs one.
    """

    def __init__(self, conntrack: Connections, now: Callable[[], float]) -> None:
        self._target = conntrack
        self._now = now
        self._changed = threading.Condition()
        self._ended: dict[Cooling, bool] = {}  # whether its connections were, since its pod left
        self._quiet: frozenset[Cooling] = frozenset()  # of which none was seen after their time
        self._outcome = Outcome()
        self._failures = 0
        self._idle_until = float("-inf")
        self._stopping = False
        self.apart = False

    def review(self, cooling: Iterable[Cooling]) -> tuple[frozenset[IpAddress], Outcome]:
        """Take over which addresses cool, all of them.

        Returns addresses that may have connections left; and what the rounds since the last review
        have done, and could not do.
        """
        now = set(cooling)
        with self._changed:
            if now != self._ended.keys():
                self._ended = {c: self._ended.get(c, c.spares) for c in now}
                self._quiet &= now
                self._changed.notify_all()
        if not self.apart:
            self.turn()
        with self._changed:
            outcome = self._outcome
            self._outcome = replace(outcome, plan=Plan())
            return frozenset(c.address for c in now - self._quiet), outcome

    def turn(self) -> bool:
        """End the connections of addresses that have just begun to cool, or whose time is over.

        Those of an address that spares them end by themselves; they are looked for when its time
        is over.

        Returns whether there is something new for the next review.
        """
        with self._changed:
            now = self._now()
            due = {c for c, e in self._ended.items() if not e or c.until <= now} - self._quiet
            if not due:
                # What a round could not do has come to its end in another way.
                self._outcome = replace(self._outcome, remaining=Plan(), errors=())
                return False
        started = time.monotonic()
        spared = frozenset(c.address for c in due if c.spares)
        flush = ConntrackFlush(frozenset(c.address for c in due), spared)
        domain = Domain("conntrack", always(flush), conntrack.plan, self._target)
        outcome = converge([domain], None)["conntrack"]
        left = {a.key for a in outcome.remaining.actions}
        seen = outcome.observed if isinstance(outcome.observed, frozenset) else ()
        left |= {flow.key for flow in seen if flow.address in spared}
        # Without a plan nothing is left to do, and nothing is known either.
        known = outcome.observed is not None and (left or not outcome.errors)
        gone = {c for c in due if known and c.key not in left}
        quiet = {c for c in gone if c.until <= now}
        with self._changed:
            self._ended |= {c: True for c in gone if c in self._ended}
            self._quiet |= quiet & self._ended.keys()
            self._outcome = replace(outcome, plan=self._outcome.plan + outcome.plan)
            self._failures = self._failures + 1 if gone != due else 0
            ended = time.monotonic()
            retry_s = RETRY_S.after(self._failures)
            self._idle_until = ended + max(IDLE_SHARE * (ended - started), retry_s)
        return bool(quiet or outcome.plan.actions or outcome.errors)

    def stop(self) -> None:
        """End ``wait``, now and ever after."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait until there is something for a round to do, and not too soon after the last."""
        with self._changed:
            soonest = self._idle_until
            while not self._stopping:
                due_at = time.monotonic() + self._due_s()
                left = max(due_at, soonest) - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(min(left, LONGEST_S))

    def _due_s(self) -> float:
        now = self._now()
        open_ = [(c, ended) for c, ended in self._ended.items() if c not in self._quiet]
        return min((c.until - now if e else 0.0 for c, e in open_), default=LONGEST_S)
