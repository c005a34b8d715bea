"""The pool loop: passes over EC2, beside the loop that serves pods."""

from __future__ import annotations

import random
import time
from contextlib import suppress

from reconciler.daemon import telemetry
from reconciler.daemon.parts import Parts
from reconciler.daemon.status import PoolReport
from reconciler.engine.backoff import Delays
from reconciler.engine.converge import Outcome
from reconciler.errors import ReconcilerError, boundary
from reconciler.ipam import forecast
from reconciler.ipam.budget import CallBackoffs
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.forecast import Outlook
from reconciler.ipam.margin import Margin, find_margin
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_status import Pool

POOL_PASS = "the pass over the pool"  # the duty, as conditions, metrics and the watchdog name it
POOL_BACKOFF_S = Delays(1.0, 60.0, jitter=1)  # after EC2 failed


class PoolLoop:
    """Keeps the pool at its target.

    Attributes:
        planned_for: the demand that the pool was last planned for; None while its pass is under
            way.
        report: of the last pass.
        outlook: for how long there are addresses, as of the last pass.
        wanted: the demand as of the last pass over the kernel.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._failures = 0
        self._hints = frozenset({"start"})
        self._owes_observation = False
        self.planned_for: Demand | None = None
        self.report = PoolReport()
        self.outlook = Outlook()
        self.wanted: Demand | None = None

    def learn(self, demand: Demand) -> None:
        """Take over what pods need now."""
        self.wanted = demand

    def look_ahead(self) -> Outlook:
        """Return for how long there are addresses, by what pods need now."""
        clock, margin = self._parts.node.pool.schedule.clock, self.report.margin
        return forecast.as_of(self.outlook, margin, self.wanted, clock())

    def turn(self) -> None:
        """Run a pass, and wait for what asks for the next one."""
        parts, look = self._parts, self._owes_observation or not self._hints <= {"pool"}
        if "retry" in self._hints:
            self._failures = 0
            parts.node.pool.schedule.calls = CallBackoffs()
        wait_s, self._failures = self.run_pass(self._failures, look=look)
        self._hints = self._await_hint(wait_s)
        if not (self._failures and self._hints):
            return
        # New demand does not make a failing EC2 answer: wait for the backoff, or for a person.
        deadline = time.monotonic() + wait_s
        while not self._hints & {"retry", "stop"} and (left := deadline - time.monotonic()) > 0:
            self._hints |= parts.pool_hints.wait(left)

    def _await_hint(self, wait_s: float) -> frozenset[str]:
        """Wait for a hint or the time; read metadata meanwhile.

        It costs nothing, so what it shows need not wait for the next observation of EC2. If it
        does not answer, that is for the next pool pass to report.
        """
        parts, pool = self._parts, self._parts.node.pool
        schedule = pool.schedule
        deadline = time.monotonic() + wait_s
        while (left := deadline - time.monotonic()) > 0:
            was_unconfirmed = schedule.is_unconfirmed
            most_s = min(left, parts.document.resync_s, schedule.hear_after_s)
            if hints := parts.pool_hints.wait(most_s):
                parts.requests.let_pods_go_first()
                return hints
            self.outlook = self.look_ahead()
            with suppress(ReconcilerError), boundary("hear"):
                if pool.hear():
                    parts.hints.mark("pool")
                    return frozenset({"look"})
            if was_unconfirmed and not schedule.is_unconfirmed:
                return frozenset({"pool"})  # what is not needed can be given back now
        return frozenset()

    def run_pass(self, failures: int, *, look: bool = True) -> tuple[float, int]:
        """Run one pass; return seconds until the next, and failures in a row.

        Args:
            failures: before it, in a row.
            look: at EC2, whatever follows; or else only if something follows from the last
                observation.
        """
        parts, node, pool = self._parts, self._parts.node, self._parts.node.pool
        started, before = time.monotonic(), self.planned_for
        self.planned_for = None  # whatever changes from here on is told, this pass may not see it
        cloud, calls = node.known.cloud, pool.ec2_calls
        generation = parts.document.accepted.generation
        with parts.duties.over("sweeping the records"):
            node.state.sweep()
        try:
            with parts.watchdog.over(POOL_PASS, slow=True), boundary(POOL_PASS):
                outcome = pool.run(parts.document.current, look=look)
            self._owes_observation = False
        except ReconcilerError as error:
            outcome, self._owes_observation = Outcome(errors=(error,)), look
        telemetry.PASS_SECONDS.labels("pool").observe(time.monotonic() - started)
        parts.conditions.report("eni", outcome)
        with parts.duties.over("the pool's books of drift"):
            parts.drift.book({"eni": outcome}, everything=True)
        with parts.duties.over("the pool's outlook"):
            self.outlook = self._look_out(outcome)
        if node.known.cloud != cloud or pool.ec2_calls != calls:
            parts.hints.mark("pool")
        if outcome.errors:
            self.report = PoolReport(self.report.demand, generation, fails=True)
            self.planned_for = before
            return POOL_BACKOFF_S.after(failures + 1, random.random()), failures + 1
        margin = None
        with parts.duties.over("the pool's margin"):
            margin = self._find_margin(outcome, pool.demand)
        self.report = PoolReport(pool.demand, generation, margin=margin)
        self.planned_for = pool.demand
        return pool.schedule.due_s, 0

    def _find_margin(self, outcome: Outcome, demand: Demand | None) -> Margin | None:
        """Return for which demands another pass would do nothing; None if that cannot be said."""
        desired, observed = outcome.desired, outcome.observed
        schedule = self._parts.node.pool.schedule
        if schedule.failed or schedule.unfinished or schedule.is_pending or outcome.plan.actions:
            return None
        if not (isinstance(desired, Pool) and isinstance(observed, Cloud)):
            return None
        # What others have of the pool's addresses counts as assigned: then records alone do not
        # say what the pool has to cover.
        known = desired.demand == demand
        return find_margin(desired, observed, outcome.remaining) if known else None

    def _look_out(self, outcome: Outcome) -> Outlook:
        """Return what a pass leaves for further pods; what was known if it observed nothing."""
        before, schedule = self.outlook, self._parts.node.pool.schedule
        desired, observed = outcome.desired, outcome.observed
        if not (isinstance(desired, Pool) and isinstance(observed, Cloud)):
            return before
        supply, now = forecast.find_supply(desired, observed), schedule.clock()
        past = forecast.after(before.past, supply.used, now)
        return Outlook(supply, past, schedule.observed_at or before.looked_at)
