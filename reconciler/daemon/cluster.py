"""The loop that tells the cluster how the node's network is; nothing waits for it.

It looks at what other loops have left, and makes the Node object say it: the API server is read,
compared, written, and its answer read again. Each right that is refused has a backoff of its own,
so that a role which lacks one still serves for the others.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from math import inf
from typing import Any, Protocol

from reconciler.cluster import events, report
from reconciler.cluster.api import UNREADABLE
from reconciler.cluster.events import GAP_S, Bucket, Event, Ledger
from reconciler.cluster.report import NodeCondition, NodeSeen, Reading, Request
from reconciler.daemon.kernel_loop import KernelLoop
from reconciler.daemon.parts import Parts
from reconciler.daemon.status import count_addresses, find_obstacle
from reconciler.engine.backoff import Delays
from reconciler.errors import ClusterError, Issue
from reconciler.ipam.pool import beyond, capacity
from schemas.document import MAX_PODS, Kubernetes

TELLING = "telling the cluster"  # the duty, as conditions, metrics and the watchdog name it

LOOK_S, OFF_S = 1.0, 5.0
"""Seconds between looks at what other loops have left, and at a document that asks for none."""

BACKOFF_S = Delays(5.0, 300.0, jitter=0.5)  # of one right, after it was refused or not answered

CALLS, CALLS_PER_S = 10.0, 1 / 3
"""Calls at once, and then a second: 30 in any minute at most."""

NEVER = inf, -inf  # since when pods wait, and when one was last seen to: monotonic seconds

EVENTS_AT_ONCE = 5  # in one turn: the watchdog gives it two minutes, and each call five seconds

MOST_REFUSALS = 256  # pods and reasons that are kept between two turns


class Api(Protocol):
    """The API server; ``call`` returns the object it answers, or raises a ``ClusterError``."""

    def call(self, request: Request) -> dict[str, Any]: ...


class Refusals:
    """ADDs that were refused since the cluster's loop has last asked, as Events."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._events: dict[events.Cause, Event] = {}

    def note(self, pod: str, uid: str, issue: Issue) -> None:
        """Take note of one; ``pod`` is namespace/name."""
        event = events.refusal(pod, uid, issue, self._now())
        if event is None:
            return
        with self._lock:
            before = self._events.get(event.cause)
            if before is not None:
                event = replace(event, count=before.count + 1, first=before.first)
            elif len(self._events) >= MOST_REFUSALS:
                return
            self._events[event.cause] = event

    def take(self) -> tuple[Event, ...]:
        """Return them, and forget them."""
        with self._lock:
            taken = tuple(self._events.values())
            self._events.clear()
            return taken


@dataclass(frozen=True, slots=True)
class Failed:
    """A right that was refused, or a call of its kind that was not answered."""

    times: int  # in a row
    until: float  # monotonic seconds; it is not tried before
    error: ClusterError


class Reporter:
    """Tells the cluster.

    Attributes:
        refusals: takes the ADDs that were refused.
    """

    def __init__(self, parts: Parts, kernel: KernelLoop, api: Api) -> None:
        self._parts, self._kernel, self._api = parts, kernel, api
        self.refusals = Refusals(parts.node.environment.now)
        self._settings = Kubernetes()
        self._seen: NodeSeen | None = None
        self._ledger = Ledger()
        self._failed: dict[str, Failed] = {}
        self._calls = Bucket(CALLS, CALLS_PER_S, CALLS)
        self._is_cut_off = False
        self._waited = NEVER
        self._numbers = (0, 0, 0)

    def turn(self) -> None:
        """Tell what is to be told, and wait for a moment."""
        parts = self._parts
        with parts.duties.over(TELLING, slow=True):
            self._take_settings()
            refusals = self.refusals.take()
            if self._settings.report:
                self.tell(refusals)
        parts.stopping.wait(LOOK_S if self._settings.report else OFF_S)

    def _take_settings(self) -> None:
        """Take over what the document says, with this node's overrides once a pass knows them."""
        latest, accepted = self._kernel.progress.latest, self._parts.document.accepted
        if latest is not None:
            settings = latest.inputs.document.kubernetes
        elif self._settings == Kubernetes() and accepted.document is not None:
            settings = accepted.document.kubernetes
        else:
            return
        if settings != self._settings:
            self._settings, self._seen, self._failed = settings, None, {}
            self._parts.conditions.note("cluster", [])
            self._parts.conditions.note("kubelet", [])

    def tell(self, refusals: tuple[Event, ...] = ()) -> None:
        """Make the API server show what is known now; what fails is a condition."""
        environment = self._parts.node.environment
        now = environment.clock()
        self._is_cut_off = False
        self._ledger = self._ledger.after_refusals(refusals, now)
        name = environment.node_name
        if not name:
            message = "NODE_NAME is not set: the name of this node in Kubernetes is not known"
            self._parts.conditions.note("cluster", [Issue("node", "NodeNameUnknown", message)])
            return
        reading = self._read(now)
        self._tell_node(name, reading)
        self._parts.conditions.note("kubelet", self._find_beyond())
        if self._seen is not None:
            if 0 < self._seen.most_pods <= MAX_PODS:
                self._parts.node.known.learn_pods(self._seen.most_pods)
            node = (name, self._seen.uid)
            self._ledger = self._ledger.after_troubles(reading.told, node, now, environment.now())
        self._tell_events(name, now)
        self._parts.conditions.note("cluster", _issues(self._failed))

    def _read(self, now: float) -> Reading:
        parts, progress = self._parts, self._kernel.progress
        cloud, latest = parts.node.known.cloud, progress.latest
        if latest is not None:
            records = latest.records
            counts = count_addresses(records, cloud, latest.inputs.host.withheld)
            waiting = records.demand.waiting + len(records.unfinished)
            self._numbers = (counts["assigned"], sum(counts.values()), waiting)
        in_use, held, waiting = self._numbers
        if waiting:
            self._waited = (min(self._waited[0], now), now)
        elif now - self._waited[1] > GAP_S:
            self._waited = NEVER
        return Reading(
            parts.conditions.issues(),
            find_obstacle(progress, cloud, parts.conditions.texts, now),
            progress.has_converged,
            *(in_use, held, waiting),
            max(0.0, now - self._waited[0]),
        )

    def _find_beyond(self) -> Iterator[Issue]:
        """Yield that kubelet takes more pods than there can be addresses, if it does."""
        latest, cloud = self._kernel.progress.latest, self._parts.node.known.cloud
        if self._seen is None or latest is None or cloud is None or cloud.limits is None:
            return
        attached = [e for e in cloud.enis if e.device_index is not None]
        foreign = sum(not e.owned for e in attached)
        found = capacity(latest.inputs.document, cloud.limits, foreign=foreign)
        if told := beyond(self._seen.most_pods, latest.inputs.node.instance_type, found):
            yield Issue("kubelet", "KubeletMaxPodsTooHigh", told)

    # -- the Node -----------------------------------------------------------------------------

    def _tell_node(self, name: str, reading: Reading) -> None:
        wanted, taint = report.describe(reading), self._settings.startup_taint
        seen = self._seen
        if seen is not None and not self._todo(name, wanted, reading, seen):
            return
        seen = self._see(look := report.look(name), taint)
        if seen is None:
            return
        self._failed.pop(look.right, None)
        for request in self._todo(name, wanted, reading, seen):
            after = self._see(request, taint)
            if after is None:
                continue
            seen = after
            if request.right in {r.right for r in self._todo(name, wanted, reading, seen)}:
                why = "it was answered, and the answer does not show it"
                self._fail(request, ClusterError(request.what, why, reason=UNREADABLE))
            else:
                self._failed.pop(request.right, None)
        self._seen = seen

    def _todo(
        self, name: str, wanted: NodeCondition, reading: Reading, seen: NodeSeen
    ) -> list[Request]:
        """Return what is to be written of a Node that was seen, and may be tried now."""
        wall = self._parts.node.environment.now()
        todo = []
        if report.is_due(wanted, seen, wall - _seconds(seen.heartbeat)):
            todo.append(report.tell(name, wanted, seen, _text(wall)))
        if seen.taints and reading.can_serve:
            todo.append(report.untaint(name, seen))
        return [r for r in todo if self._may(r)]

    def _see(self, request: Request, taint: str | None) -> NodeSeen | None:
        """Make a request that is answered with the Node; return what is seen, None if nothing."""
        body = self._ask(request)
        if body is None:
            return None
        try:
            return report.read_node(body, taint)
        except ValueError as error:
            self._fail(request, ClusterError(request.what, str(error), reason=UNREADABLE))
            return None

    def _tell_events(self, name: str, now: float) -> None:
        for event in self._ledger.due(now)[:EVENTS_AT_ONCE]:
            request = events.create(event, name, _text(event.first), _text(event.last))
            if self._ask(request) is None:
                return
            self._failed.pop(request.right, None)
            self._ledger = self._ledger.after_telling(event, now)

    # -- calls --------------------------------------------------------------------------------

    def _may(self, request: Request) -> bool:
        failed = self._failed.get(request.right)
        now = self._parts.node.environment.clock()
        return not self._is_cut_off and (failed is None or now >= failed.until)

    def _ask(self, request: Request) -> dict[str, Any] | None:
        """Make a request if it may be made now; None if it may not, or has failed."""
        now = self._parts.node.environment.clock()
        if not self._may(request) or self._calls.left(now) < 1:
            return None
        self._calls = self._calls.spent(now)
        try:
            return self._api.call(request)
        except ClusterError as error:
            self._fail(request, error)
            return None

    def _fail(self, request: Request, error: ClusterError) -> None:
        """Note a failure; if there was no answer, nothing else is asked in this turn."""
        before = self._failed.get(request.right)
        times = before.times + 1 if before else 1
        until = self._parts.node.environment.clock() + BACKOFF_S.after(times, random.random())
        self._failed[request.right] = Failed(times, until, error)
        self._is_cut_off |= error.status == 0


def _issues(failed: dict[str, Failed]) -> list[Issue]:
    """Return one issue for each reason."""
    texts: dict[str, list[str]] = {}
    for right in sorted(failed):
        error = failed[right].error
        texts.setdefault(error.reason, []).append(str(error))
    return [Issue("the API server", reason, "; ".join(of)) for reason, of in texts.items()]


def _text(wall: float) -> str:
    return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: str) -> float:
    """Return a time of the API server's in seconds since the epoch; long ago if it is none."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return 0.0
