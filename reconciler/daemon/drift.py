"""Drift: an owned object that another writer changed, told apart from what was asked for."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from reconciler.core.attachment import AttachmentKey
from reconciler.daemon import telemetry
from reconciler.daemon.overview import Repair
from reconciler.daemon.triggers import ChangeAttribution
from reconciler.domains.link import Veth
from reconciler.engine.backoff import Backoffs
from reconciler.engine.converge import Outcome, Outcomes, actions_of, gaps
from reconciler.engine.plan import Action, Key, Verb
from reconciler.ipam.cloud import Cloud
from reconciler.ipam.ec2_action import AttachEni, DetachEni
from reconciler.ipam.records import Records

log = logging.getLogger(__name__)

MOST_REPAIRS, MOST_SHOWN, MOST_COMMAND = 50, 3, 400
"""Repairs that are remembered, commands of each, and characters of a command."""

LINES = 20
"""Actions of one domain, kind and verb that a pass logs one by one; of more the first one with the
number of those like it. An edit of the document can ask for 20,000."""


class DriftTracker:
    """What each domain desired when it was last seen settled, and what did not stay so.

    Attributes:
        attribution: who else is at work.
        backoffs: objects that are put back again and again, or cannot be.
    """

    def __init__(self, attribution: ChangeAttribution) -> None:
        self._settled: dict[str, set[object]] = {}
        self._inside: dict[str, set[object]] = {}
        """The same of pods' namespaces, also of those that the last pass did not look into."""
        self._attached: set[str] = set()
        self.attribution = attribution
        self._lock = threading.Lock()
        """Both loops book, and each books on what the other has booked."""
        self._repaired: deque[Repair] = deque(maxlen=MOST_REPAIRS)
        self.backoffs = Backoffs()

    @property
    def repaired(self) -> tuple[Repair, ...]:
        """What was repaired lately, the latest last."""
        with self._lock:
            return tuple(self._repaired)

    def clear(self) -> None:
        """Forget it: the document has changed, and with it what is asked for."""
        with self._lock:
            self._settled.clear()
            self._inside.clear()
            self.backoffs = Backoffs()

    def forget_backoffs(self) -> None:
        """Let every object be put in its place again at once: somebody has asked for it."""
        with self._lock:
            self.backoffs = Backoffs()

    def book(self, outcomes: Outcomes, *, everything: bool) -> None:
        """Log and count what a pass has done; ``everything``: it looked into every pod."""
        with self._lock:
            self._count_all(outcomes)
            for outcome in outcomes.values():
                self._follow_enis(outcome)
            links = outcomes["link"].desired if "link" in outcomes else None
            if isinstance(links, frozenset):  # an observation of the kernel, and it could plan
                self.backoffs = self.backoffs.asked_for(o.plan for o in outcomes.values())
            seen = links if isinstance(links, frozenset) else ()
            pods = {o.pod_netns for o in seen if isinstance(o, Veth)}
            for name, outcome in outcomes.items():
                if outcome.settled and isinstance(outcome.desired, frozenset):
                    # A pass that looked into some pods only says nothing about the others.
                    inside: set[object] = set() if everything else self._inside.get(name, set())
                    inside.difference_update(
                        [o for o in inside if getattr(o, "netns", "") not in pods]
                    )
                    inside.update(o for o in outcome.desired if getattr(o, "netns", ""))
                    self._inside[name] = inside
                    self._settled[name] = set(outcome.desired)

    def book_pods(self, outcomes: Outcomes) -> None:
        """Log and count what a pass over some pods alone has done."""
        with self._lock:
            self._count_all(outcomes, of_pods=True)
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
            there = {e.eni_id for e in outcome.observed.enis}
            self._attached = (self._attached & there | now) - ended

    def _count_all(self, outcomes: Outcomes, *, of_pods: bool = False) -> None:
        now, other_writers = time.monotonic(), self.attribution.lately()
        done: list[Action] = []
        repaired: list[Action] = []
        failed: list[tuple[Action, str]] = []
        groups: dict[_Group, list[Action]] = {}
        reverted = {(a.kind, a.key) for o in outcomes.values() for a in o.reverted}
        for name, outcome in outcomes.items():
            left: dict[tuple[str, Key], list[Action]] = {}  # looked up for each of very many
            for action in outcome.remaining.actions:
                left.setdefault((action.kind, action.key), []).append(action)
            errors = {getattr(e, "action", ""): e for e in outcome.errors}
            # Whoever makes more than a look shows is named; 80,000 of them are not remembered.
            masses = {kind.kind for kind in gaps(outcome.observed).cut_kinds}
            for action in outcome.plan.actions:
                is_one_of_many = action.kind in masses and action.verb is Verb.DELETE
                if (action.kind, action.key) in reverted and not is_one_of_many:
                    repaired.append(action)
                    continue
                if action in left.get((action.kind, action.key), ()):  # it failed: a condition
                    if error := errors.get(str(action)):
                        failed.append((action, getattr(error, "message", str(error))))
                    continue
                done.append(action)
                drift = self._is_drift(name, action)
                of = str(getattr(getattr(action, "object", None), "set", ""))
                group = _Group(name, action.kind, of, action.verb, drift)
                groups.setdefault(group, []).append(action)
                if drift and not is_one_of_many:
                    repaired.append(action)
        pods = _names_of_pods(outcomes)
        for group, actions in groups.items():
            _tell(group, actions, pods, is_usual=of_pods or group.domain == "attachment")
        self._repaired.extend(_repairs(groups, other_writers))
        backoffs = self.backoffs.after_failures(failed, now, random.random())
        backoffs = backoffs.after_repairs(repaired, now, other_writers)
        self.backoffs = backoffs.after_success(done).since(now)

    def _is_drift(self, name: str, action: Action) -> bool:
        if isinstance(action, AttachEni):
            return action.eni_id in self._attached
        settled = self._settled.get(name)
        if settled is None:
            return False
        target = getattr(action, "object", None)
        is_known = target in settled or target in self._inside[name]
        return is_known is not (action.verb is Verb.DELETE)


class _Group(NamedTuple):
    """What is counted, and said, together."""

    domain: str
    kind: str
    of: str  # the set of an element
    verb: Verb
    is_drift: bool


def _repairs(
    groups: Mapping[_Group, Sequence[Action]], others: tuple[str, ...]
) -> Iterator[Repair]:
    """Yield what was repaired, by domain, kind and verb: a set's elements with those of others."""
    alike: dict[tuple[str, str, Verb], list[Action]] = {}
    for group, actions in groups.items():
        if group.is_drift:
            alike.setdefault((group.domain, group.kind, group.verb), []).extend(actions)
    for (domain, kind, verb), repaired in alike.items():
        shown = tuple(str(a)[:MOST_COMMAND] for a in repaired[:MOST_SHOWN])
        count, why = len(repaired), repaired[0].reason
        yield Repair(time.time(), domain, kind, verb.name.lower(), count, shown, why, others)


def _names_of_pods(outcomes: Outcomes) -> dict[str, AttachmentKey]:
    """Return what tells a pod's objects from others: its link, its namespace, its addresses."""
    records = outcomes["attachment"].observed if "attachment" in outcomes else None
    if not isinstance(records, Records):
        return {}
    found: dict[str, AttachmentKey] = {}
    for a in records.attachments:
        names = (a.key.container_id, a.netns, a.veth, *(str(int(own)) for own in a.addresses))
        found.update(dict.fromkeys(filter(None, names), a.key))
    return found


def _tell(
    group: _Group, actions: Sequence[Action], pods: Mapping[str, AttachmentKey], *, is_usual: bool
) -> None:
    """Count what was done and say it: one by one, or if it is much, in one line.

    ``is_usual``: it is what each pod brings with it, of which the answer to its ADD or DEL is all
    that is told, unless everything is.
    """
    labels = (group.domain, group.kind, group.verb.name.lower())
    telemetry.ACTIONS.labels(*labels).inc(len(actions))
    if group.is_drift:
        telemetry.DRIFT.labels(*labels).inc(len(actions))
    level = logging.WARNING if group.is_drift else logging.DEBUG if is_usual else logging.INFO
    if not log.isEnabledFor(level):
        return
    message = "drift repaired" if group.is_drift else "action applied"
    shown = actions if len(actions) <= LINES else actions[:1]
    for action in shown:
        alike: dict[str, Any] = {"alike": len(actions) - 1} if len(shown) < len(actions) else {}
        told = {"domain": group.domain, "action": str(action), "reason": action.reason}
        key = next((pods[name] for part in action.key if (name := str(part)) in pods), None)
        whose: dict[str, Any] = {"key": key} if key else {}
        log.log(level, message, extra=whose | told | alike)
