"""Which Events are told, and when: few of each kind, few in all, whatever pods do. Pure.

A pod that fails thousands of times makes one Event at first, then one after 5, 10, 20 minutes, and
so on, each with the number of failures since the one before. Events about pods and about the node
have a budget each, so that pods cannot use up the node's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from reconciler.cluster.report import Request, bounded, word
from reconciler.engine.backoff import Delays
from reconciler.errors import Issue

LASTS_S = 60.0
"""Seconds that a condition of the node must last: what ends by itself needs no person."""

GAP_S = 30.0
"""Seconds for which a cause may be away and still goes on: between two ADDs of one pod, which
kubelet makes some ten seconds apart, nothing waits."""

AGAIN_S = {"Node": Delays(3600.0, 3600.0), "Pod": Delays(300.0, 3600.0)}
"""After how long an Event is told again while its cause goes on. The API server forgets Events
after an hour (``--event-ttl``)."""

FORGET_S = 7200.0  # seconds after which what has not come again is told as something new
MOST_KNOWN = 256  # causes that are remembered of one kind
MOST_WAITING_S = 900.0  # seconds after which what could not be told is old, and dropped

BURST, PER_S = 10.0, {"Node": 1 / 60, "Pod": 1 / 30}
"""Events that may be told at once, of one kind, and then a second."""

TRIVIAL = frozenset({"AlreadyAttached", "Withdrawn", "ReconcilerEnding"})
"""Reasons for which an ADD gets no address and nothing is wrong."""

Cause = tuple[str, str, str, str]  # kind, namespace, name, reason


@dataclass(frozen=True, slots=True)
class Event:
    """An Event of type Warning.

    Attributes:
        kind: of the object: Node or Pod.
        count: how often it has happened since it was last told.
        first: when it first did, in seconds since the epoch.
        last: when it last did.
    """

    kind: str
    namespace: str
    name: str
    uid: str
    reason: str
    message: str
    count: int = 1
    first: float = 0.0
    last: float = 0.0

    @property
    def cause(self) -> Cause:
        """What it is told of; Events of one cause are told seldom."""
        return self.kind, self.namespace, self.name, self.reason


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one cause. ``told_at`` and ``seen_at`` are in monotonic seconds."""

    event: Event  # as it would be told now; count 0 if there is nothing to tell
    since: float  # monotonic seconds at which it began
    seen_at: float
    told_at: float | None = None
    times: int = 0  # that it was told


@dataclass(frozen=True, slots=True)
class Bucket:
    """A budget: so many at once, and then so many a second."""

    most: float
    per_s: float
    tokens: float
    at: float = 0.0  # monotonic seconds of the last look

    def left(self, now: float) -> float:
        """Return how many there are now."""
        return min(self.most, self.tokens + max(0.0, now - self.at) * self.per_s)

    def spent(self, now: float) -> Bucket:
        """Return it with one less."""
        return replace(self, tokens=self.left(now) - 1, at=now)


@dataclass(frozen=True, slots=True)
class Ledger:
    """What was told, and what is to be told."""

    known: Mapping[Cause, Known] = field(default_factory=dict)
    buckets: Mapping[str, Bucket] = field(
        default_factory=lambda: {
            kind: Bucket(BURST, per_s, BURST) for kind, per_s in PER_S.items()
        }
    )

    def after_troubles(
        self, issues: Iterable[Issue], node: tuple[str, str], now: float, wall: float
    ) -> Ledger:
        """Take what is wrong with the node now; one Event for each reason.

        Args:
            issues: the most important first.
            node: its name and UID.
            now: monotonic seconds.
            wall: seconds since the epoch.
        """
        name, uid = node
        grouped: dict[str, list[Issue]] = {}
        for issue in issues:
            grouped.setdefault(word(issue.reason), []).append(issue)
        known = {c: _ended(k) if c[0] == "Node" else k for c, k in self.known.items()}
        for reason, of in grouped.items():
            more = f", and {len(of) - 1} more" if len(of) > 1 else ""
            message = bounded(f"{of[0].subject}: {of[0].message}{more}")
            event = Event("Node", "default", name, uid, reason, message, 1, wall, wall)
            before = self.known.get(event.cause)
            if before is None or now - before.seen_at > GAP_S:  # it begins
                before = replace(before or Known(event, now, now), since=now)
            else:
                event = replace(event, first=before.event.first)
            known[event.cause] = replace(before, event=event, seen_at=now)
        kept = {c: k for c, k in known.items() if c[0] != "Node" or not _is_over(k, now)}
        return replace(self, known=_bounded(kept))

    def after_refusals(self, refusals: Iterable[Event], now: float) -> Ledger:
        """Take pods' ADDs that were refused; their counts add up."""
        known = {c: k for c, k in self.known.items() if c[0] != "Pod" or not _is_over(k, now)}
        for event in refusals:
            before = known.pop(event.cause, None)
            if before is None:
                known[event.cause] = Known(event, now, now)
                continue
            untold = before.event.count
            first = before.event.first if untold else event.first
            event = replace(event, count=untold + event.count, first=first)
            known[event.cause] = replace(before, event=event, seen_at=now)
        return replace(self, known=_bounded(known))

    def due(self, now: float) -> tuple[Event, ...]:
        """Return the Events that are to be told now: the node's first, no more than the budget."""
        found: list[Event] = []
        for kind in ("Node", "Pod"):
            left = int(self.buckets[kind].left(now))
            due = [
                k.event for k in self.known.values() if _is_due(k, now) and k.event.kind == kind
            ]
            found += due[:left]
        return tuple(found)

    def after_telling(self, event: Event, now: float) -> Ledger:
        """Note that an Event was told."""
        before = self.known[event.cause]
        left = 1 if event.kind == "Node" else 0  # it goes on until it is over
        told = replace(before.event, count=left)
        after = replace(before, event=told, told_at=now, times=before.times + 1)
        spent = self.buckets[event.kind].spent(now)
        known = {**self.known, event.cause: after}
        return Ledger(known, {**self.buckets, event.kind: spent})


def _ended(known: Known) -> Known:
    return replace(known, event=replace(known.event, count=0))


def _is_due(known: Known, now: float) -> bool:
    kind = known.event.kind
    if not known.event.count or (kind == "Node" and now - known.since < LASTS_S):
        return False
    return known.told_at is None or now - known.told_at >= AGAIN_S[kind].after(known.times)


def _is_over(known: Known, now: float) -> bool:
    """Whether a cause is forgotten: it goes on no more, and was told long ago or never will be."""
    if known.event.kind == "Node" and known.event.count:
        return False
    if known.told_at is None:
        return now - known.seen_at > (GAP_S if known.event.kind == "Node" else MOST_WAITING_S)
    return now - max(known.seen_at, known.told_at) >= FORGET_S


def _bounded(known: dict[Cause, Known]) -> dict[Cause, Known]:
    """Keep the causes of each kind that were seen last."""
    for kind in ("Node", "Pod"):
        of = sorted((k.seen_at, c) for c, k in known.items() if c[0] == kind)
        for _, cause in of[: max(0, len(of) - MOST_KNOWN)]:
            del known[cause]
    return known


def refusal(pod: str, uid: str, issue: Issue, wall: float) -> Event | None:
    """Return the Event of a refused ADD; None if there is no pod, or nothing is wrong."""
    namespace, _, name = pod.partition("/")
    if not namespace or not name or issue.reason in TRIVIAL:
        return None
    message = bounded(issue.message)
    return Event("Pod", namespace, name, uid[:128], word(issue.reason), message, 1, wall, wall)


def create(event: Event, node: str, first: str, last: str) -> Request:
    """Return what creates an Event; ``first`` and ``last`` are in RFC 3339."""
    times = f" ({event.count} times since {first})" if event.count > 1 else ""
    involved = {"apiVersion": "v1", "kind": event.kind, "name": event.name, "uid": event.uid}
    if event.kind == "Pod":
        involved["namespace"] = event.namespace
    body: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"generateName": "node-network-", "namespace": event.namespace},
        "involvedObject": involved,
        "type": "Warning",
        "reason": event.reason,
        "message": event.message + times,
        "count": event.count,
        "firstTimestamp": first,
        "lastTimestamp": last,
        "source": {"component": "node-network", "host": node},
    }
    return Request(
        "POST",
        ("api", "v1", "namespaces", event.namespace, "events"),
        f"creating an Event on a {event.kind}",
        "create events",
        "application/json",
        json.dumps(body),
    )
