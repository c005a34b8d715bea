"""Drift: an owned object that somebody else changed, told from what was asked for."""

from __future__ import annotations

import logging
import random
import time
from typing import Any

from reconciler import telemetry
from reconciler.core.call import AttachEni, DetachEni
from reconciler.core.cloud import Cloud
from reconciler.core.plan import Action, Verb
from reconciler.core.struggle import Struggles
from reconciler.domains.link import Veth
from reconciler.engine import Outcome, Outcomes, actions_of
from reconciler.suspects import Suspects

log = logging.getLogger(__name__)


class Accounts:
    """What each domain desired when it was last seen settled, and what did not stay so.

    Args:
        suspects: who else may be at work.

    Attributes:
        struggles: objects that are put back again and again, or cannot be.
    """

    def __init__(self, suspects: Suspects) -> None:
        self._settled: dict[str, set[Any]] = {}
        self._inside: dict[str, set[Any]] = {}
        """The same of pods' namespaces, also of those that the last pass did not look into."""
        self._attached: set[str] = set()
        self._suspects = suspects
        self.struggles = Struggles()

    def clear(self) -> None:
        """Forget it: the document has changed, and with it what is asked for."""
        self._settled.clear()
        self._inside.clear()
        self.struggles = Struggles()

    def book(self, outcomes: Outcomes, *, everything: bool) -> None:
        """Log and count what was done.

        Args:
            outcomes: of one pass.
            everything: whether the pass looked into every pod.
        """
        self._count_all(outcomes)
        for outcome in outcomes.values():
            self._follow_enis(outcome)
        links = outcomes["link"].desired if "link" in outcomes else None
        if links is not None:  # a look at the kernel, and it could plan
            self.struggles = self.struggles.asked_for(o.plan for o in outcomes.values())
        pods = {o.pod_netns for o in links or () if isinstance(o, Veth)}
        for name, outcome in outcomes.items():
            if outcome.settled and isinstance(outcome.desired, frozenset):
                # A pass that looked into some pods only says nothing about the others.
                inside = set() if everything else self._inside.get(name, set())
                inside.difference_update([o for o in inside if o.netns not in pods])
                inside.update(o for o in outcome.desired if getattr(o, "netns", ""))
                self._inside[name] = inside
                self._settled[name] = set(outcome.desired)

    def book_pods(self, outcomes: Outcomes) -> None:
        """Log and count what a pass over some pods alone has done."""
        self._count_all(outcomes)
        for name, action in actions_of(outcomes):
            if action in outcomes[name].remaining.actions or name not in self._settled:
                continue
            target = getattr(action, "object", None)
            if action.verb is Verb.DELETE:
                self._settled[name].discard(target)
                self._inside[name].discard(target)
            else:
                books = self._inside if getattr(target, "netns", "") else self._settled
                books[name].add(target)

    def _follow_enis(self, outcome: Outcome) -> None:
        """Remember which ENIs are attached by our will."""
        if isinstance(outcome.observed, Cloud):
            now = {e.eni_id for e in outcome.observed.enis if e.status == "attached"}
            ended = {a.eni_id for a in outcome.plan.actions if isinstance(a, DetachEni)}
            self._attached = (self._attached | now) - ended

    def _count_all(self, outcomes: Outcomes) -> None:
        now, suspects = time.monotonic(), self._suspects.lately()
        done = []
        reverted = {(a.kind, a.key) for o in outcomes.values() for a in o.reverted}
        for name, action in actions_of(outcomes):
            outcome = outcomes[name]
            if (action.kind, action.key) in reverted:
                self.struggles = self.struggles.after_repair(action, now, suspects)
                continue
            if action in outcome.remaining.actions:  # it failed: a condition
                for error in outcome.errors:
                    if getattr(error, "action", "") == str(action):
                        self.struggles = self.struggles.after_failure(
                            action, now, getattr(error, "message", str(error)), random.random()
                        )
                continue
            done.append(action)
            drift = self._is_drift(name, action)
            self._count(name, action, drift=drift)
            if drift:
                self.struggles = self.struggles.after_repair(action, now, suspects)
        self.struggles = self.struggles.after_success(done).since(now)

    def _count(self, name: str, action: Action, *, drift: bool) -> None:
        labels = (name, action.kind, action.verb.name.lower())
        telemetry.ACTIONS.labels(*labels).inc()
        if drift:
            telemetry.DRIFT.labels(*labels).inc()
        log.log(
            logging.WARNING if drift else logging.INFO,
            "drift repaired" if drift else "action applied",
            extra={"domain": name, "action": str(action), "reason": action.reason},
        )

    def _is_drift(self, name: str, action: Action) -> bool:
        if isinstance(action, AttachEni):
            return action.eni_id in self._attached
        settled = self._settled.get(name)
        if settled is None:
            return False
        target = getattr(action, "object", None)
        is_known = target in settled or target in self._inside[name]
        return is_known is not (action.verb is Verb.DELETE)
