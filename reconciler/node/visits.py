"""Pods' own namespaces: which of them a pass enters, and what is said of the others.

A pod chooses what is in its namespace. One that fills it, or changes it without end, costs the
node one bounded read now and then, and other pods nothing.
"""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.domains.inputs import Inputs
from reconciler.engine.backoff import Backoffs, Delays
from reconciler.engine.converge import gaps
from reconciler.errors import Issue, ReconcilerError, boundary
from reconciler.ipam.records import Records
from reconciler.node.kernel_domains import alone, inside_objects
from reconciler.node.pass_result import Inspect, PassResult
from reconciler.targets.kernel import Kernel

BACKOFF_S = Delays(1.0, 60.0)
"""Until an unreadable namespace is read again: that of a pod that is starting may be unreadable
for a moment, and its ADD waits."""

MAX_NAMED = 20  # pods that get a condition each; all others are counted in one more

INSPECT_S = 0.25
"""Seconds of one look into the namespaces of pods whose ADD was answered: for hundreds of them, if
none is slow. Pods that come meanwhile wait for it."""

SHARE = 32
"""Pods whose namespaces are looked into at a time, unless there is a reason to look into all
(decision 38): a pod that comes meanwhile waits for some 10 ms."""

Keys = frozenset[AttachmentKey]


class Failure(NamedTuple):
    """The failed reads of one namespace: why the last one failed, and how many did in a row.

    Until ``until``, in monotonic seconds, it is left alone.
    """

    why: str
    times: int
    until: float


class Visits:
    """Which pods' namespaces are to be entered; ``unread`` are those that could not be read."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.unread: Mapping[AttachmentKey, Failure] = {}
        self._proven: Keys = frozenset()

    def choose(self, inputs: Inputs, *, audit: bool) -> Keys | None:
        """Name the pods whose own namespace is put right; None for all of them.

        Unless the document says otherwise, a namespace is the pod's own from the moment on at
        which everything that ADD puts there was seen.
        """
        if inputs.document.pods.repair == "all":
            living = frozenset(a.key for a in inputs.attachments)
            return None if audit else living - self._proven
        return frozenset(a.key for a in inputs.attachments if a.unfinished) - self._proven

    def readable_at(self, inputs: Inputs) -> tuple[float, ...]:
        """When unreadable namespaces that matter are tried again; monotonic seconds."""
        all_matter = inputs.document.pods.repair == "all"
        waiting = {a.key for a in inputs.attachments if a.unfinished or all_matter}
        return tuple(f.until for k, f in self.unread.items() if k in waiting)

    def unreadable(self) -> Keys:
        """Pods whose namespaces are left alone now."""
        now = self._clock()
        return frozenset(key for key, f in self.unread.items() if f.until > now)

    def note(self, looked: Iterable[AttachmentKey], failed: Mapping[AttachmentKey, str]) -> None:
        """Take over whose namespaces were read, and why reading failed for some of them."""
        known = {k: f for k, f in self.unread.items() if k not in frozenset(looked)}
        for key, why in failed.items():
            times = self.unread[key].times + 1 if key in self.unread else 1
            known[key] = Failure(why, times, self._clock() + BACKOFF_S.after(times))
        self.unread = known

    def forget_others(self, keys: Keys) -> None:
        """Forget what failed of pods that are gone."""
        self.unread = {k: f for k, f in self.unread.items() if k in keys}

    def is_proven(self, keys: Keys) -> Keys:
        """Return those of some pods whose objects were all seen in place."""
        return keys & self._proven

    def prove(
        self,
        records: Records,
        visited: Iterable[Attachment],
        done: Mapping[AttachmentKey, Attachment],
    ) -> None:
        """Remember whose objects were all seen in place, the pod's own included."""
        withheld = {a.key for a in visited} - done.keys()
        bound = {a.key for a in records.attachments}
        self._proven = (self._proven - withheld | done.keys()) & bound - records.released

    def prove_some(self, keys: Keys, done: Iterable[AttachmentKey]) -> None:
        """Remember the same of some pods alone."""
        self._proven = self._proven - keys | frozenset(done)


class Inspection:
    """Looks into the namespaces of pods whose ADD was answered; changes nothing.

    What is in there is the pods' own affair. So this comes last, takes ``INSPECT_S`` at most, and
    goes on with the next pod when it is called again.
    """

    def __init__(self, kernel: Kernel, visits: Visits) -> None:
        self._kernel = kernel
        self._visits = visits
        self._last: AttachmentKey | None = None
        self._changed: dict[AttachmentKey, str] = {}

    def run(self, result: PassResult, backoffs: Backoffs) -> PassResult:
        """Add what there is to say of all pods.

        That is those that differ from what ADD has left, and those that could not be read. The
        latter are looked into each time; the others by an audit, a share of them by a regular one.
        """
        del backoffs  # nothing is done that could be in vain
        inputs, unread = result.inputs, self._visits.unread
        if inputs.document.pods.repair == "none":
            entered = frozenset(a.key for a in inputs.visited)
            pods = [a for a in inputs.attachments if a.key not in entered]
            share = self._choose(pods, result)
            self._inspect([a for a in pods if a.key in share or a.key in unread], share, inputs)
        else:
            self._changed.clear()
        living = {a.key: a for a in inputs.attachments}
        self._changed = {k: kinds for k, kinds in self._changed.items() if k in living}
        changed = [f"{living[k].pod or k} ({kinds})" for k, kinds in sorted(self._changed.items())]
        why = {key: failure.why for key, failure in self._visits.unread.items()}
        found = (*unreadable_pods(why, inputs.attachments), *_changed_by_pods(changed))
        return replace(result, pods=found)

    def _choose(self, pods: Sequence[Attachment], result: PassResult) -> Keys:
        """Name those whose turn it is."""
        if result.inspect is Inspect.NONE:
            return frozenset()
        most = SHARE if result.inspect is Inspect.SOME else len(pods)
        return frozenset(a.key for a in self._in_turn(pods)[:most])

    def _in_turn(self, pods: Sequence[Attachment]) -> Sequence[Attachment]:
        start = bisect([a.key for a in pods], self._last) if self._last else 0
        return (*pods[start:], *pods[:start])

    def _inspect(self, pods: Sequence[Attachment], share: Keys, inputs: Inputs) -> None:
        deadline = time.monotonic() + INSPECT_S
        for pod in self._in_turn(pods):
            if time.monotonic() > deadline:
                return
            if pod.key in share:
                self._last = pod.key
            self._changed.pop(pod.key, None)
            if pod.netns_alive and pod.key not in self._visits.unreadable():
                why = self._inspect_one(pod, inputs)
                self._visits.note([pod.key], {pod.key: why} if why else {})

    def _inspect_one(self, pod: Attachment, inputs: Inputs) -> str:
        """Note what a pod has changed; return why that cannot be read, if so."""
        wanted = inside_objects(alone(pod, inputs))
        try:
            with boundary("the look into a pod"):
                seen = self._kernel.observe_inside(wanted)
        except ReconcilerError as error:
            return str(error)
        for unread in seen.unread_places.values():
            return unread.why
        if kinds := {o.kind for o in wanted.difference(seen)}:
            self._changed[pod.key] = ", ".join(sorted(kinds))
        return ""


def unread_of(observed: object, pods: Iterable[Attachment]) -> dict[AttachmentKey, str]:
    """Say why the namespaces of some pods could not be read."""
    places = gaps(observed).unread_places
    return {a.key: places[a.netns].why for a in pods if a.netns in places}


def unreadable_pods(
    unread: Mapping[AttachmentKey, str], attachments: Iterable[Attachment]
) -> Iterator[Issue]:
    """Name the pods whose namespaces could not be read, and what follows."""
    pods = {a.key: a for a in attachments}
    known = [(pods[key], why) for key, why in sorted(unread.items()) if key in pods]
    for pod, why in known[:MAX_NAMED]:
        yield Issue(
            f"pod {pod.pod or pod.key}",
            "NamespaceUnreadable",
            f"its namespace {pod.netns} cannot be read: {why}; nothing in there is "
            "compared or changed, and all that the host has of it is kept; it is looked at "
            f"again at least every {BACKOFF_S.longest:.0f} s",
        )
    if len(known) > MAX_NAMED:
        more = f"{len(known) - MAX_NAMED} more cannot be read either"
        yield Issue("pods", "NamespaceUnreadable", more)


def _changed_by_pods(pods: Sequence[str]) -> Iterator[Issue]:
    if pods:
        more = f" and {len(pods) - MAX_NAMED} more" if len(pods) > MAX_NAMED else ""
        yield Issue(
            "pods",
            "ChangedByPod",
            "what ADD has put into their own namespaces is not all there as it was: "
            f"{', '.join(pods[:MAX_NAMED])}{more}; by pods.repair it is theirs, so nothing is put "
            "back; if they should have it, restart them, or set pods.repair to all",
        )
