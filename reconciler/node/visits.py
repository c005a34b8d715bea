"""Pods' own namespaces: which of them a pass enters, and what is said of the others."""

from __future__ import annotations

import time
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from reconciler.core.attachment import Attachment, AttachmentKey
from reconciler.core.unreadable import MAX_NAMED, Unread
from reconciler.domains.inputs import Inputs
from reconciler.engine.backoff import Backoffs
from reconciler.engine.issue import Issue
from reconciler.engine.observed import unread_places
from reconciler.errors import ReconcilerError, boundary
from reconciler.ipam.records import Records
from reconciler.node.kernel_domains import alone, inside_objects
from reconciler.node.pass_result import PassResult
from reconciler.targets.kernel import Kernel

INSPECT_S = 0.25
"""Seconds of one look into the namespaces of pods whose ADD was answered: for hundreds of them, if
none is slow. Pods that come meanwhile wait for it."""


class Visits:
    """Which pods' namespaces are to be entered.

    Args:
        clock: monotonic seconds.

    Attributes:
        unread: namespaces that could not be read; they are left alone for a while.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.unread = Unread()
        self._proven: frozenset[AttachmentKey] = frozenset()

    def choose(self, inputs: Inputs, *, audit: bool) -> frozenset[AttachmentKey] | None:
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
        waiting = {
            a.key
            for a in inputs.attachments
            if a.unfinished or inputs.document.pods.repair == "all"
        }
        return tuple(f.until for k, f in self.unread.known.items() if k in waiting)

    def unreadable(self) -> frozenset[AttachmentKey]:
        """Pods whose namespaces are left alone now."""
        return self.unread.unreadable(self.clock())

    def note(self, inputs: Inputs, observed: object) -> frozenset[AttachmentKey]:
        """Take over a look into the namespaces of the inputs; return whose could not be read."""
        places = unread_places(observed)
        looked = inputs.visited
        failed = {a.key: places[a.netns].why for a in looked if a.netns in places}
        self.unread = self.unread.after(frozenset(a.key for a in looked), failed, self.clock())
        return frozenset(failed)

    def is_proven(self, keys: frozenset[AttachmentKey]) -> frozenset[AttachmentKey]:
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

    def prove_some(self, keys: frozenset[AttachmentKey], done: Iterable[AttachmentKey]) -> None:
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

        That is those that differ from what ADD has left, and those that could not be read. If the
        pass was no audit, only those are looked into that could not be read the last time.
        """
        del backoffs  # nothing is done that could be in vain
        inputs, known = result.inputs, self._visits.unread.known
        if inputs.document.pods.repair == "none":
            entered = frozenset(a.key for a in inputs.visited)
            self._inspect(
                [
                    a
                    for a in inputs.attachments
                    if a.key not in entered and (result.audit or a.key in known)
                ],
                inputs,
            )
        else:
            self._changed.clear()
        living = {a.key: a for a in inputs.attachments}
        self._changed = {k: kinds for k, kinds in self._changed.items() if k in living}
        changed = [f"{living[k].pod or k} ({kinds})" for k, kinds in sorted(self._changed.items())]
        unread = self._visits.unread.findings(inputs.attachments)
        return replace(result, pods=(*unread, *_changed_by_pods(changed)))

    def _inspect(self, pods: Sequence[Attachment], inputs: Inputs) -> None:
        deadline = time.monotonic() + INSPECT_S
        start = bisect([a.key for a in pods], self._last) if self._last else 0
        for pod in (*pods[start:], *pods[:start]):
            if time.monotonic() > deadline:
                return
            self._last = pod.key
            self._changed.pop(pod.key, None)
            if pod.netns_alive and pod.key not in self._visits.unreadable():
                why = self._inspect_one(pod, inputs)
                failed = {pod.key: why} if why else {}
                visits = self._visits
                visits.unread = visits.unread.after([pod.key], failed, visits.clock())

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
