"""Requests of the CNI executable that wait for the kernel loop: ADD, CHECK, and hints of DEL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from cni import protocol
from reconciler.cluster.report import STARTING
from reconciler.core.attachment import Attachment, AttachmentKey, Intent, IntentState
from reconciler.daemon import telemetry
from reconciler.daemon.duty import Conditions
from reconciler.daemon.triggers import Triggers
from reconciler.errors import FOREIGN_TEXT, InternalError, Issue
from reconciler.node.pass_result import PassResult

CONVERGE_S = 2.0
"""Seconds a CHECK gives the kernel to become what it should be; the specification wants some."""

CHECK_AGAIN_S = 0.1  # seconds between observations of one CHECK

MOST_HINTS = 1024
"""DELs that are honoured one by one, in the order they came: more than an instance has pods. A
full pass finds the rest, as it finds those whose hint never came."""

QUIET_S = 0.5  # seconds without a pod after which everything is observed, if something asks for it

POOL_PASS_S = 2.0
"""Seconds that they may put off observing EC2, unless one waits for what that would bring."""

HOPELESS = {"InterfaceExists", "ObjectExists", "NetnsTaken", InternalError.reason, "Withdrawn"}
"""Reasons for which no waiting helps an ADD: what is in the way is another's, or a bug of ours, or
it is not wanted any more."""

ENDING = "the reconciler was told to end while it waited; it is served by the next one"
"""What an ADD under way is told then, whatever its budget is."""

NO_CAUSE = frozenset(
    {"foreign", "forward", "fast-path", "executable", "conflist", "boot-rule", "conntrack"}
)
"""Domains whose errors are never why a pod's objects are not in place: other owners' doings, what
belongs on the host, and addresses that cool. They would stand ahead of the cause in a runtime's
error."""

PENDING = "Pending"  # of an ADD that no pass has come to yet

MOST_TEXT = FOREIGN_TEXT * 2  # characters of the causes that a runtime is told


T = TypeVar("T")
Told = dict[AttachmentKey, T]


class Requests:
    """ADDs that wait, what passes say to them, and which attempts of them were answered."""

    def __init__(self, hints: Triggers, conditions: Conditions, stopping: threading.Event) -> None:
        self._hints, self._conditions, self._stopping = hints, conditions, stopping
        self._changed = threading.Condition()
        self._asked: dict[AttachmentKey, float] = {}  # in the order in which they came
        self._looked: dict[AttachmentKey, float] = {}
        """When the last pass began that has looked at them; of those that ask only."""
        self._done: dict[AttachmentKey, tuple[Attachment, float]] = {}
        self._waiting: Told[Issue] = {}
        self._unplaced: Mapping[AttachmentKey, Issue] = {}
        self._published_at = float("-inf")
        self._served_at = float("-inf")
        self._answered: dict[AttachmentKey, str] = {}

    def await_attachment(self, key: AttachmentKey, budget_s: float) -> Attachment | Issue:
        """Wait until a pod's attachment was seen in place, or say why it is not."""
        with self._changed:
            # Under the lock: a pass that begins before it has not looked for this pod.
            asked_at = time.monotonic()
            self._asked[key] = asked_at
            self._hints.mark("intent")
            try:
                while (verdict := self._verdict(key, asked_at)) is None:
                    left = asked_at + budget_s - time.monotonic()
                    if left <= 0:
                        return self._explain(key)
                    self._changed.wait(left)
                if isinstance(verdict, Attachment):
                    _, began = self._done[key]
                    telemetry.ADD_SECONDS.labels("wait").observe(began - asked_at)
                    telemetry.ADD_SECONDS.labels("place").observe(time.monotonic() - began)
                return verdict
            finally:
                self._asked.pop(key, None)
                self._looked.pop(key, None)

    def _verdict(self, key: AttachmentKey, asked_at: float) -> Attachment | Issue | None:
        """Return what an ADD is told; None while it waits."""
        attachment, seen_at = self._done.get(key, (None, 0.0))
        if attachment is not None and seen_at >= asked_at:
            return attachment
        refusal = self._waiting.get(key)
        looked_at = self._looked.get(key, float("-inf"))
        if refusal and refusal.reason in HOPELESS and looked_at >= asked_at:
            return refusal
        if self._stopping.is_set():
            return Issue(f"intent {key}", protocol.ENDING, ENDING)
        return None

    def _explain(self, key: AttachmentKey) -> Issue:
        """Say why a pod has not got its attachment, and the cause of that."""
        refusal = self._waiting.get(key)
        if refusal is None and (own := self._unplaced.get(key)):
            return replace(own, message=own.message[:MOST_TEXT])
        if refusal is None:
            # No pass has come to this pod: only what keeps every pod waiting can be why. That EC2
            # cannot be observed does so until there is a first observation.
            was_pass = self._published_at > float("-inf")
            besides = NO_CAUSE | {"eni"} if was_pass else NO_CAUSE
            known = self._conditions.all(besides=besides, for_all=True)
            text = "; ".join(f"{c['subject']}: {c['text']}" for c in known)
            reason = "NotSettled" if text or was_pass else STARTING
            text = text or "its objects were not seen in place within the budget"
            return Issue(f"intent {key}", reason, text[:MOST_TEXT])
        causes = self._conditions.texts("eni")
        if refusal.reason == "AddressesExhausted" and causes:
            why = "; ".join(causes)[:MOST_TEXT]
            return replace(refusal, message=f"{refusal.message}; the pool cannot grow: {why}")
        return refusal

    def was_answered(self, key: AttachmentKey, attempt: str) -> bool:
        """Whether this ADD's result was told already."""
        with self._changed:
            return self._answered.get(key) == attempt

    def claim(self, key: AttachmentKey, attempt: str) -> bool:
        """Take the right to tell the runtime what a pod was given; only one ADD ever has it.

        An ADD that was killed before it heard the answer has not used it, so its retry can.
        """
        with self._changed:
            if self._answered.get(key) == attempt:
                return False
            self._answered[key] = attempt
            return True

    def disclaim(self, key: AttachmentKey) -> None:
        """Give that right back: the answer was not delivered."""
        with self._changed:
            self._answered.pop(key, None)

    def recall(self, answered: Mapping[AttachmentKey, str]) -> None:
        """Take over which ADDs an earlier process has answered: key to attempt."""
        with self._changed:  # the socket is open already
            self._answered = dict(answered)

    @property
    def asked(self) -> dict[AttachmentKey, bool]:
        """The attachments that ADDs wait for, in the order in which they came.

        Each with whether a pass has looked at it since.
        """
        with self._changed:
            looked = self._looked
            return {key: looked.get(key, float("-inf")) >= at for key, at in self._asked.items()}

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why each ADD under way waits, as a runtime is told; ``PENDING`` if it is not known."""
        with self._changed:
            known = {**self._unplaced, **self._waiting}
            return tuple(known[k].reason if k in known else PENDING for k in self._asked)

    @property
    def is_awaited(self) -> bool:
        """Whether an ADD waits for what a pass could not give it."""
        with self._changed:
            return not self._asked.keys().isdisjoint(self._waiting)

    def publish(self, result: PassResult, started: float) -> Mapping[AttachmentKey, Intent]:
        """Tell those that wait what a pass has found; return their wanted intents.

        Args:
            result: of the pass.
            started: monotonic seconds at which it began; who asked later waits for the next one.
        """
        with self._changed:
            self._forget_gone(result)
            self._done |= {key: (a, started) for key, a in result.done.items()}
            others = self._asked.keys() - (self._asked if result.asked is None else result.asked)
            about = self._asked.keys() - others
            self._waiting = _of(others, self._waiting) | dict(result.waiting)
            self._unplaced = _of(others, self._unplaced) | dict(result.unplaced)
            self._looked |= dict.fromkeys(about, started)
            self._published_at = started
            intents = result.records.among(about).intents
            wanted = {i.key: i for i in intents if i.state is IntentState.WANTED}
            if not result.outcomes["attachment"].failed:  # or else the records were not read
                gone = [k for k in about - wanted.keys() if self._asked[k] <= started]
                self._waiting |= {key: _withdrawn(key) for key in gone}
            self._changed.notify_all()
        return wanted

    def _forget_gone(self, result: PassResult) -> None:
        """Forget attachments that a pass has not found."""
        looked_for = result.asked
        if looked_for is None:
            looked_for = frozenset(self._done.keys() | self._answered.keys())
        present = {a.key for a in result.records.among(looked_for).attachments}
        for key in looked_for - present:
            self._done.pop(key, None)
            self._answered.pop(key, None)

    def note_served(self) -> None:
        """Note that pods were served now."""
        with self._changed:
            self._served_at = time.monotonic()

    def let_pods_go_first(self) -> None:
        """Wait until no pod has come for ``QUIET_S``: the caller would slow them down.

        At most ``POOL_PASS_S``, and not while an ADD waits for addresses, which EC2 may give.
        """
        deadline = time.monotonic() + POOL_PASS_S
        with self._changed:
            while not self.is_awaited and not self._stopping.is_set():
                left = min(self._served_at + QUIET_S, deadline) - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)


def _withdrawn(key: AttachmentKey) -> Issue:
    return Issue(f"intent {key}", "Withdrawn", "a DEL for it came while it waited")


def in_parts(asked: Mapping[AttachmentKey, bool], most: int) -> list[tuple[AttachmentKey, ...]]:
    """Divide what ADDs wait for, with at most so many in each that no pass has looked at yet.

    Those that were looked at wait for something that others lack too, an address for one: they are
    all in the first part, because they came first.
    """
    known = [key for key, is_known in asked.items() if is_known]
    new = [key for key, is_known in asked.items() if not is_known]
    rest = [tuple(new[i : i + most]) for i in range(most, len(new), most)]
    return [(*known, *new[:most]), *rest]


def _of(keys: Iterable[AttachmentKey], told: Mapping[AttachmentKey, T]) -> Told[T]:
    """Return what was told of some."""
    return {key: told[key] for key in keys if key in told}


class PodHints:
    """Pods that the kernel loop observes though no ADD waits for them."""

    def __init__(self, hints: Triggers) -> None:
        self._hints = hints
        self._lock = threading.Lock()
        self._released: dict[AttachmentKey, None] = {}
        self._differing: set[AttachmentKey] = set()

    def release(self, key: AttachmentKey) -> None:
        """Take a hint that an attachment was given back; its intent says so."""
        with self._lock:
            if len(self._released) < MOST_HINTS:
                self._released[key] = None
                self._hints.mark("intent")
            else:
                self._hints.mark("pool")  # a full pass finds all that was released

    def repair(self, key: AttachmentKey) -> None:
        """Take a hint that an attachment's objects differ from what they should be."""
        with self._lock:
            if len(self._differing) < MOST_HINTS:  # a full pass repairs what is beyond
                self._differing.add(key)
        self._hints.mark("intent")

    def take(self, most: int = 1) -> frozenset[AttachmentKey]:
        """Return what differs, and so many at most that were released; others are marked again.

        A pod that comes meanwhile must not wait for all of them.
        """
        with self._lock:
            leaving = list(self._released)[:most]
            for key in leaving:
                del self._released[key]
            keys = frozenset((*leaving, *self._differing))
            self._differing.clear()
            if self._released:
                self._hints.mark("intent")
            return keys


class Checks:
    """CHECKs that wait for a comparison with the kernel, and what was found."""

    def __init__(self, hints: Triggers, pods: PodHints, stopping: threading.Event) -> None:
        self._hints, self._pods, self._stopping = hints, pods, stopping
        self._changed = threading.Condition()
        self._asked: set[AttachmentKey] = set()
        self._found: dict[AttachmentKey, tuple[Attachment | Issue, float]] = {}

    def check(self, key: AttachmentKey) -> Attachment | Issue:
        """Compare an attachment's objects with the kernel; say which is the first that differs.

        What differs is also for the next pass to repair. It counts only if it still differs when
        the time for that is over.
        """
        message = "the reconciler has not come to look at it"
        verdict: Attachment | Issue = Issue(f"attachment {key}", "NotSettled", message)
        deadline = time.monotonic() + CONVERGE_S
        with self._changed:
            while (asked_at := time.monotonic()) < deadline and not self._stopping.is_set():
                self._asked.add(key)
                self._hints.mark("intent")
                was_checked = partial(self._was_checked, key, asked_at)
                self._changed.wait_for(was_checked, deadline - asked_at)
                verdict, _ = self._found.get(key, (verdict, 0.0))
                if isinstance(verdict, Attachment) or verdict.reason == "NotAttached":
                    break
                self._pods.repair(key)
                self._changed.wait(CHECK_AGAIN_S)
            self._asked.discard(key)
            self._found.pop(key, None)
            return verdict

    def _was_checked(self, key: AttachmentKey, since: float) -> bool:
        return key in self._found and self._found[key][1] >= since

    def take(self) -> frozenset[AttachmentKey]:
        """Return the attachments that CHECKs wait for, each once."""
        with self._changed:
            keys = frozenset(self._asked)
            self._asked.clear()
            return keys

    def answer(self, key: AttachmentKey, verdict: Attachment | Issue, observed_at: float) -> None:
        """Tell a CHECK what was found, as observed at these monotonic seconds."""
        with self._changed:
            # A verdict that came too late for its CHECK is never read.
            waited = observed_at - CONVERGE_S
            self._found = {k: found for k, found in self._found.items() if found[1] >= waited}
            self._found[key] = (verdict, observed_at)
            self._changed.notify_all()
