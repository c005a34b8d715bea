"""The daemon: two loops over one node, and what others may ask of it.

The kernel loop serves pods and repairs drift; it works on the last observation of EC2 and never
waits for one. The pool loop talks to EC2, and its results reach the kernel loop as observations.
"""

from __future__ import annotations

import gc
import logging
import random
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from reconciler.core.attachment import Attachment, AttachmentKey, IntentState
from reconciler.daemon import telemetry
from reconciler.daemon.change_attribution import ChangeAttribution
from reconciler.daemon.conditions import Conditions
from reconciler.daemon.drift import DriftTracker
from reconciler.daemon.duty import Duties
from reconciler.daemon.memory import give_back
from reconciler.daemon.reader import Reader, Reading
from reconciler.daemon.triggers import FileWatch, KernelWatch, Triggers
from reconciler.daemon.watchdog import Stuck, Watchdog
from reconciler.domains.left_out import left_out
from reconciler.engine.backoff import Delays
from reconciler.engine.converge import Outcome
from reconciler.engine.finding import Finding
from reconciler.engine.plan import Plan, Refusal
from reconciler.errors import InternalError, LockedError, ReconcilerError, boundary
from reconciler.ipam.pool import Demand
from reconciler.ipam.records import Records
from reconciler.node.environment import Environment
from reconciler.node.pass_result import PassResult, undone
from reconciler.node.passes import LocalNode
from reconciler.targets.files.installation import INTERIM
from reconciler.targets.state.directory import StateDirectory
from schemas.document import NodeNetwork
from schemas.load import DocumentError

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""Seconds until the kernel loop looks again when something is left to do."""

LEFT_OUT_S = 5.0
"""The same when nothing is left to do, but for pods whose data makes a domain raise."""

QUIET_S = 0.5
"""Seconds without a pod after which everything is looked at, if something asks for it."""

FULL_PASS_S = 1.0
"""Seconds that pods coming and going may put off a full pass."""

PASS_SHARE = 5
"""Full passes that only notifications ask for begin this many durations apart: a fifth of a core
at most goes to somebody who changes the kernel without end."""

POOL_PASS_S = 2.0
"""Seconds that they may put off a look at EC2, unless one waits for what it would bring."""

LIGHT = {"intent", "kernel", "pool", "cooldown", "files"}
"""Hints for which no pod's namespace needs a look, unless something of the pod is new: what
changes in there notifies nobody outside."""

SWITCH_S = 0.0005
"""Seconds a thread may keep the interpreter from others, instead of Python's 0.005: a pod must
not wait that long, after each of its system calls, for the thread that works on EC2's answer."""

TIDY_S = 3.0
"""Seconds without any work after which memory is given back."""

ANSWER_S = 0.001
"""Seconds in which this thread leaves the interpreter to those that now tell pods' runtimes."""

COLLECTIONS = (10_000, 20, 20)
"""When Python looks for cycles of dead objects, instead of after 700 new ones: with that, a pod
would pay for ten looks. What libraries have made at the start is not looked at again."""

CONVERGE_S = 2.0
"""Seconds a CHECK gives the kernel to become what it should be; the specification wants some."""

CHECK_AGAIN_S = 0.1
"""Seconds between looks of one CHECK."""

PATIENCE_S = 30.0
"""Seconds for which passes must fail before STATUS says so: a node that flaps to NotReady has its
pods taken out of every Service, though they run as before."""

HOST_WIDE = ("sysctl", "rule", "nat")
"""Domains without whose objects no pod reaches what is beyond the node, running ones included."""

MOST_HINTS = 1024
"""DELs that are honoured one by one, in the order they came: more than an instance has pods. A
full pass finds the rest, as it finds those whose hint never came."""

HOPELESS = {"InterfaceExists", "ObjectExists", "NetnsTaken", InternalError.reason}
"""Reasons for which no waiting helps an ADD: what is in the way is another's, or a bug of ours."""

ENDING = "the reconciler was told to end while it waited; it is served by the next one"
"""What an ADD under way is told then, whatever its budget is."""

NO_CAUSE = frozenset({"foreign", "mount", "document", "forward", "executable", "conflist"})
"""Domains whose conditions are never why a pod's objects are not in place: other owners' doings,
and what belongs on the host. They would stand ahead of the cause in a runtime's error."""

NEVER_CHANGES = (
    "it is a mount of its own, as subPath makes it: a ConfigMap's next version never arrives "
    "here, and neither does a file that an editor renames into its place; mount the whole "
    "ConfigMap as a directory, without subPath, and start this reconciler anew"
)

FULL_PASS, PODS_PASS = "the pass over everything", "the pass over some pods"
POOL_PASS, READING = "the pass over the pool", "reading the document"
COOLDOWNS = "ending the connections of addresses that cool"
"""Duties, as conditions, metrics and the watchdog name them."""

WATCHES_S = 10.0
"""Seconds between looks whether all that should be watched is."""

READING_S = 60.0
"""Seconds after which the document is read again, even if nothing has said that it changed."""

MOST_PROBLEMS = 20
"""Of a refused document that are told; ``validate`` tells all."""

POOL_BACKOFF_S = Delays(1.0, 60.0, jitter=1)
"""After EC2 failed."""


class Property(Protocol):
    """What this process has on the host, and others can take away."""

    @property
    def is_own(self) -> bool:
        """Whether it still is this process's."""
        ...

    def reclaim(self) -> tuple[Finding, ...]:
        """Make again what is gone, and say so.

        Raises:
            LockedError: another reconciler has it.
            StateError: it cannot be made.
        """
        ...


class Agent:
    """The daemon's state: everything in it is rebuilt by looking again.

    Args:
        document_path: file that holds the desired state.
        state: the directory of records; its lock must be held.
        environment: everything outside; by default this host.
        events: whether to listen for changes of files and of the kernel; if not, they are seen by
            the clock alone.

    Attributes:
        upkeep: what each pass over everything looks at first: whether the directory, its lock and
            the socket are still this process's own. Each makes again what it can.
        watchdog: knows whether every thread goes on.
        duties: runs what the daemon does, each duty by itself.
    """

    def __init__(
        self,
        document_path: Path,
        state: StateDirectory,
        environment: Environment | None = None,
        *,
        events: bool = True,
    ) -> None:
        self._path = document_path
        self._node = LocalNode(state, environment)
        self._triggers = Triggers()
        self._pool_triggers = Triggers()
        self._reader = Reader(self._path, lambda: self._triggers.mark("document"))
        attribution = ChangeAttribution()
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._asked: dict[AttachmentKey, float] = {}
        self._done: dict[AttachmentKey, tuple[Attachment, float]] = {}
        self._waiting: dict[AttachmentKey, Refusal] = {}
        self._published_at = float("-inf")
        self._answered: dict[AttachmentKey, str] = {}
        self._to_check: set[AttachmentKey] = set()
        self._to_mend: set[AttachmentKey] = set()
        self._checked: dict[AttachmentKey, tuple[Attachment | Refusal, float]] = {}
        self._failing_since: float | None = None
        self._limited_since: float | None = None
        self._has_converged = False
        self._withdrawn: dict[AttachmentKey, float] = {}
        self._drift = DriftTracker(attribution)
        self._document: NodeNetwork | None = None
        self._document_text = ""
        self._generation = self._passed_generation = 0
        self._refused: str | None = None
        self._conditions = Conditions()
        self._latest: PassResult | None = None
        self._released: dict[AttachmentKey, None] = {}
        self._pods_at = self._full_pass_at = self._audit_at = float("-inf")
        self._full_pass_s = 0.0
        self._untidy = True
        self._hints = frozenset({"start"})
        self._wait_s = 0.0
        self._pool_failures = 0
        self._pool_hints = frozenset({"start"})
        self._owes_observation = False
        self._pool_demand: Demand | None = None
        self._planned_for: Demand | None = None
        """Likewise what the pool was last planned for, but None while its pass is under way."""
        self._pool_fails = False
        self._taking_over = False
        self._linked: frozenset[str] = frozenset()
        self.upkeep: list[Property] = [state]
        self._displaced: LockedError | None = None
        self.watchdog = Watchdog(self._note_stuck)
        self.duties = Duties(self._conditions, self.watchdog)
        self._watches = self._make_watches(attribution) if events else ()

    def run(self) -> None:
        """Reconcile until ``stop`` is called.

        Raises:
            DocumentError: the document is invalid and there is no earlier one to keep.
            LockedError: another reconciler has taken the node over.
        """
        sys.setswitchinterval(SWITCH_S)
        gc.freeze()
        gc.set_threshold(*COLLECTIONS)
        self._accept_document(self._reader.look_first(), first=True)
        self._recall_answered()
        self.watchdog.start()
        pool = threading.Thread(target=self._pool_loop, name="pool", daemon=True)
        pool.start()
        threading.Thread(target=self._reader_loop, name="reader", daemon=True).start()
        watches = threading.Thread(target=self._watches_loop, name="watches", daemon=True)
        watches.start()
        self._node.cooldowns.apart = True
        cooldowns = threading.Thread(target=self._cooldown_loop, name="cooldowns", daemon=True)
        cooldowns.start()
        log.info("started", extra={"document": self._path, "state": self._node.state.root})
        try:
            self._kernel_loop()
        finally:
            self._stopping.set()
            self._pool_triggers.mark("stop")
            self._reader.hints.mark("stop")
            self._node.cooldowns.stop()
            watches.join(timeout=5)
            for watch in self._watches:
                watch.stop()
            self.watchdog.stop()
            pool.join(timeout=5)
            log.info("stopped")
        if self._displaced is not None:
            raise self._displaced

    def _make_watches(self, attribution: ChangeAttribution) -> tuple[FileWatch | KernelWatch, ...]:
        return (
            FileWatch(self._path.parent, self._reader.hints, "document"),
            KernelWatch(self._triggers, attribution, self.duties, self.watchdog),
            *(
                FileWatch(directory, self._triggers, "files", besides=INTERIM)
                for directory in self._node.runtime_directories
            ),
        )

    def _watches_loop(self) -> None:
        self.duties.forever("the watches' loop", self._keep_watches, self._stopping)

    def _keep_watches(self) -> None:
        """See to it that everything is watched, and look after it from time to time."""
        for watch in self._watches:
            with self.duties.over(watch.name):
                watch.keep()
        # By another name than the making: that it was looked for does not end what that failed by.
        with self.duties.over("looking for the state directory"):
            if not all(each.is_own for each in self.upkeep):
                self._triggers.mark("files")  # no pod can ask until it is made again
        self._stopping.wait(WATCHES_S)

    def _recall_answered(self) -> None:
        """Take what was seen in place once for answered: who asked has lost its connection.

        What is bound and unfinished was never answered: whoever asks for it again is told.
        """
        with suppress(ReconcilerError), boundary("recall"):  # the first pass reports it
            records = self._node.state.observe()
            finished = {a.key for a in records.attachments if not a.unfinished}
            with self._changed:  # the socket is open already
                self._answered = {i.key: i.attempt for i in records.intents if i.key in finished}

    def stop(self) -> None:
        """End ``run`` after the pass under way; pods are not touched."""
        self._stopping.set()
        self._triggers.mark("stop")

    @property
    def pod_mtu(self) -> int:
        """MTU of pods' links in bytes, by the document in force."""
        assert self._document is not None
        return self._document.pod_mtu

    def await_attachment(self, key: AttachmentKey, budget_s: float) -> Attachment | Refusal:
        """Wait until a pod's attachment was seen in place, or say why it is not.

        Args:
            key: the attachment.
            budget_s: seconds to wait at most.
        """
        with self._changed:
            # Not before it has the lock: a pass that begins in between would seem to have looked.
            asked_at = time.monotonic()
            deadline = asked_at + budget_s
            self._asked[key] = asked_at
            self._triggers.mark("intent")
            try:
                while True:
                    attachment, seen_at = self._done.get(key, (None, 0.0))
                    if attachment is not None and seen_at >= asked_at:
                        return attachment
                    if self._withdrawn.get(key, 0.0) >= asked_at:
                        message = "a DEL for it came while it waited"
                        return Refusal(f"intent {key}", "Withdrawn", message)
                    refusal = self._waiting.get(key)
                    if refusal and refusal.reason in HOPELESS and self._published_at >= asked_at:
                        return refusal
                    if self._stopping.is_set():
                        return Refusal(f"intent {key}", "NotSettled", ENDING)
                    left = deadline - time.monotonic()
                    if left <= 0:
                        return self._explain(key)
                    self._changed.wait(left)
            finally:
                self._asked.pop(key, None)

    def was_answered(self, key: AttachmentKey, attempt: str) -> bool:
        """Whether this ADD's result was told already."""
        with self._changed:
            return self._answered.get(key) == attempt

    def claim(self, key: AttachmentKey, attempt: str) -> bool:
        """Take the right to tell the runtime what a pod was given; only one ADD ever has it.

        An ADD that was killed before it heard the answer has not used it, so its retry can.

        Args:
            key: the attachment.
            attempt: which ADD it is, as its intent says.
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

    def check(self, key: AttachmentKey) -> Attachment | Refusal:
        """Compare an attachment's objects with the kernel; say which is the first that differs.

        What differs is also for the next pass to mend. It counts only if it still differs when
        the time for that is over.
        """
        verdict: Attachment | Refusal = Refusal(
            f"attachment {key}", "NotSettled", "the reconciler has not come to look at it"
        )
        deadline = time.monotonic() + CONVERGE_S
        with self._changed:
            while (asked_at := time.monotonic()) < deadline and not self._stopping.is_set():
                self._to_check.add(key)
                self._triggers.mark("intent")
                self._changed.wait_for(
                    partial(self._was_checked, key, asked_at), deadline - asked_at
                )
                verdict, _ = self._checked.get(key, (verdict, 0.0))
                if isinstance(verdict, Attachment) or verdict.reason == "NotAttached":
                    break
                if len(self._to_mend) < MOST_HINTS:  # a full pass mends what is beyond
                    self._to_mend.add(key)
                self._triggers.mark("intent")
                self._changed.wait(CHECK_AGAIN_S)
            self._to_check.discard(key)
            self._checked.pop(key, None)
            return verdict

    def _was_checked(self, key: AttachmentKey, since: float) -> bool:
        return key in self._checked and self._checked[key][1] >= since

    def find_obstacle(self) -> Refusal | None:
        """Say why no pod can start on this node; None if they can.

        Exhaustion is none: a node that says it is not ready loses the pods it has.
        """
        now = time.monotonic()
        with self._changed:
            cloud = self._node.cloud
            if cloud is None or not cloud.enis:
                return Refusal("node", "NotAvailable", self._troubles("no ENI is known yet"))
            failing = self._failing_since is not None and (
                not self._has_converged or now - self._failing_since > PATIENCE_S
            )
            if failing:
                return Refusal("node", "NotAvailable", self._troubles("no pass succeeds"))
            if self._limited_since is not None and now - self._limited_since > PATIENCE_S:
                why = self._troubles("rules or settings are missing", HOST_WIDE)
                return Refusal("node", "Limited", why)
        return None

    def hand_over(self, release: dict[str, Any]) -> None:
        """Take a release that the executable could not write down.

        Raises:
            ValueError, KeyError, TypeError: it is no release.
        """
        self._node.state.hand_over(release)

    def release(self, key: AttachmentKey) -> None:
        """Take a hint that an attachment was given back; its intent says so."""
        with self._changed:
            if len(self._released) < MOST_HINTS:
                self._released[key] = None
                self._triggers.mark("intent")
            else:
                self._triggers.mark("pool")  # a full pass finds all that was released

    def status(self) -> dict[str, Any]:
        """Describe the node: what is in force, what is held, what is wrong."""
        with self._changed:
            latest, cloud = self._latest, self._node.cloud
            records = latest.records if latest else None
            devices = {e.eni_id: e.device_index for e in cloud.enis} if cloud else {}
            pool = self._addresses(records) if records else {}
            for state, count in pool.items():
                telemetry.ADDRESSES.labels(state).set(count)
            return {
                "document": {
                    "path": str(self._path),
                    "generation": self._generation,
                    "refused": self._refused,
                },
                "settled": bool(
                    latest
                    and latest.settled
                    and self._passed_generation == self._generation
                    and (self._pool_fails or self._pool_demand == latest.records.demand)
                    and not self._node.is_pending
                ),
                "pool": pool,
                "conditions": self._conditions.all(),
                "enis": [
                    {
                        "id": e.eni_id,
                        "device": e.device_index,
                        "status": e.status,
                        "owned": e.owned,
                        "addresses": len(e.pod_addresses),
                        "prefixes": [str(p) for p in (*e.prefixes, *e.ipv6_prefixes)],
                    }
                    for e in (cloud.enis if cloud else ())
                ],
                "attachments": [
                    {
                        "pod": a.pod or str(a.key),
                        "addresses": [str(own) for own in a.addresses],
                        "eni": a.eni_id,
                        "device": devices.get(a.eni_id),
                        "veth": a.veth,
                    }
                    for a in (records.living if records else ())
                ],
                "cooling": [str(c.address) for c in (records.cooling if records else ())],
                "ec2Calls": dict(self._node.ec2_calls),
                "metrics": telemetry.exposition(),
            }

    def _troubles(self, instead: str, of: Iterable[str] = ("node", "eni")) -> str:
        """What is wrong with the node, or a word for it if no more is known."""
        texts = [text for name in of for text in self._conditions.texts(name)]
        return ("; ".join(texts) or instead)[: telemetry.FOREIGN_TEXT * 2]

    def _note_stuck(self, stuck: Stuck | None) -> None:
        found = [Finding("the loop", "PassStuck", str(stuck))] if stuck else []
        self._conditions.note("watchdog", found)

    # -- the kernel loop ------------------------------------------------------------------

    def _kernel_loop(self) -> None:
        self.duties.forever("the kernel loop", self._kernel_turn, self._stopping)

    def _kernel_turn(self) -> None:
        """Do what hints ask for, and what is due; then wait for more."""
        hints = self._hints
        if "intent" in hints and self._latest is not None:
            with self.duties.over("serving pods"):
                hints -= {"intent"} if self._pods_pass() else set()
            self._pods_at = time.monotonic()
            self._untidy = True
        if "document" in hints:
            # That it was read is no reason to look at every pod.
            hints -= {"document"}
            with self.duties.over("taking over the document"):
                hints |= {"edited"} if self._take_document() else frozenset()
        overdue = time.monotonic() - self._full_pass_at >= self._wait_s
        if overdue or (hints and self._put_off_s(hints) <= 0):
            # Not only when told: a directory that was replaced is watched no more.
            self._reader.hints.mark("document")
            self._wait_s = self._full_pass(audit=self._is_audit_due(hints))
            hints = frozenset()
        self._hints = hints
        due_s = self._full_pass_at + self._wait_s - time.monotonic()
        if not hints and self._untidy:
            due_s = min(due_s, TIDY_S)
        told = self._triggers.wait(min(due_s, self._put_off_s(hints)) if hints else due_s)
        if self._untidy and not hints and not told:
            with self.duties.over("tidying up"):
                self._tidy()
        self._hints |= told

    def _tidy(self) -> None:
        """Give back the memory that a burst of work has left, now that no pod waits."""
        self._untidy = False
        gc.collect()
        give_back()

    def _put_off_s(self, hints: frozenset[str]) -> float:
        """Return seconds until a full pass, 0 or less if it is time.

        Whoever changes the kernel without end shall not have us look without end.

        Each pod's links make the kernel notify us, so pods bring as many hints to look at
        everything as there are pods. Those that wait come first, but not for long.
        """
        if not hints <= {"kernel", "pool", "cooldown", "files"} or self._is_awaited():
            return 0.0
        quiet_at = min(self._pods_at + QUIET_S, self._full_pass_at + FULL_PASS_S)
        idle_until = self._full_pass_at + PASS_SHARE * self._full_pass_s
        return max(quiet_at, idle_until) - time.monotonic()

    def _is_awaited(self) -> bool:
        """Whether an ADD waits for what a pass could not give it."""
        with self._changed:
            return not self._asked.keys().isdisjoint(self._waiting)

    def _is_audit_due(self, hints: frozenset[str]) -> bool:
        assert self._document is not None
        resync_s = self._document.reconcile.resync.total_seconds()
        return not hints <= LIGHT or time.monotonic() - self._audit_at >= 0.9 * resync_s

    def _pods_pass(self) -> bool:
        """Serve the pods that ask; return whether all that could be done for them was done.

        Those that leave go one by one, because the kernel takes its time with each link (an RCU
        grace period, some 15 ms), and a pod that comes meanwhile shall not wait for all of them.
        """
        started = time.monotonic()
        with self._changed:
            leaving = list(self._released)[:1]
            for key in leaving:
                del self._released[key]
            keys = frozenset((*self._asked, *leaving, *self._to_mend))
            self._to_mend.clear()
            if self._released:
                self._triggers.mark("intent")
        settled = self._serve(keys, started) if keys else True
        self._run_checks()
        return settled

    def _serve(self, keys: frozenset[AttachmentKey], started: float) -> bool:
        try:
            with self.watchdog.over(PODS_PASS), boundary(PODS_PASS):
                result = self._node.pods_pass(keys, backoffs=self._drift.backoffs)
        except ReconcilerError as error:
            log.warning("pods were not served alone", extra={"error": str(error)})
            self._report_pods(error)
            return False
        telemetry.PASS_SECONDS.observe(time.monotonic() - started)
        with self.duties.over("the answers to pods"):
            self._publish(result, started)
        self._report_pods(*(e for o in result.outcomes.values() for e in o.errors))
        with self.duties.over("the books of drift"):
            self._drift.book_pods(result.outcomes)
        with self.duties.over("waking the pool"):
            self._tell_pool(result)
        return result.settled

    def _report_pods(self, *errors: ReconcilerError) -> None:
        """Say what no code expects of a pass over some pods; all else is for the full pass."""
        unforeseen = [e for e in errors if isinstance(e, InternalError)]
        self.duties.report(PODS_PASS, *unforeseen)

    def _run_checks(self) -> None:
        with self._changed:
            keys = frozenset(self._to_check)
            self._to_check.clear()
        for key in keys:
            observed_at = time.monotonic()
            verdict: Attachment | Refusal
            try:
                with self.watchdog.over(f"the check of {key}"), boundary("check"):
                    verdict = self._node.check(key)
            except ReconcilerError as error:
                self.duties.report("check", *([error] if isinstance(error, InternalError) else []))
                verdict = Refusal(f"attachment {key}", "NotSettled", str(error))
            with self._changed:
                # One that came too late for its CHECK is asked for by nobody.
                waited = observed_at - CONVERGE_S
                self._checked = {k: c for k, c in self._checked.items() if c[1] >= waited}
                self._checked[key] = (verdict, observed_at)
                self._changed.notify_all()

    def _full_pass(self, *, audit: bool) -> float:
        """Run one pass over everything; return seconds until the next is due without a hint."""
        assert self._document is not None
        self._untidy = True
        self._full_pass_at = started = time.monotonic()
        if not self._keep_own():
            return RETRY_S
        try:
            with self.watchdog.over(FULL_PASS), boundary(FULL_PASS):
                result = self._node.kernel_pass(
                    self._document, audit=audit, backoffs=self._drift.backoffs
                )
        except ReconcilerError as error:
            self._conditions.report("node", Outcome(errors=(error,)))
            with self._changed:
                self._latest = None  # what was known is not known any more
                self._failing_since = self._failing_since or started
            return RETRY_S
        self._full_pass_s = time.monotonic() - started
        telemetry.PASS_SECONDS.observe(self._full_pass_s)
        if audit:
            self._audit_at = started
        if result.settled:
            self._triggers.forget("kernel", before=result.observed_at)
        self._conditions.report("node", Outcome())
        with self.duties.over("the answers to pods"):
            self._publish(result, started)
        # After the pods that wait were answered.
        backoffs = self._drift.backoffs
        with self.duties.over("the look at other owners"):
            result = self._node.observe_others(result, backoffs=backoffs)
        with self.duties.over("the installation"):
            result = self._node.install(result, backoffs=backoffs)
        with self.duties.over("the look into pods"):
            self._conditions.note("pods", self._node.inspect(result, everyone=audit))
        limited = any(result.outcomes[name].failed for name in HOST_WIDE)
        with self._changed:
            self._latest, self._passed_generation = result, self._generation
            self._failing_since, self._has_converged = None, True
            self._limited_since = (self._limited_since or started) if limited else None
        with self.duties.over("the books of drift"):
            self._drift.book(result.outcomes, everything=audit)
        with self.duties.over("the conditions"):
            if result.findings is not None:
                self._conditions.note("foreign", result.findings)
            for name, outcome in result.outcomes.items():
                self._conditions.report(name, outcome)
        due_s = RETRY_S
        with self.duties.over("the next pass's time"):
            due_s = self._due(result)
        with self.duties.over("waking the pool"):
            self._tell_pool(result)
        return due_s

    def _keep_own(self) -> bool:
        """Make again what others have taken of ours; return whether this node is still ours.

        Raises nothing: what cannot be made again is a condition, and tried with the next pass.
        """
        found: list[Finding] = []
        with self.duties.over("keeping the state directory"):
            try:
                for each in self.upkeep:
                    found += each.reclaim()
            except LockedError as error:
                log.error("another reconciler has taken over", extra={"error": str(error)})
                self._displaced = error
                self.stop()
                return False
        with self.duties.over("the conditions of the state directory"):
            self._conditions.note("state directory", found)
        return True

    def _tell_pool(self, result: PassResult) -> None:
        """Wake the pool's loop if there is something for it."""
        if result.records.demand != self._planned_for:
            self._pool_triggers.mark("pool")
        if self._node.taking_over and not self._taking_over:
            self._pool_triggers.mark("pool")  # ENIs come first
        self._taking_over = self._node.taking_over
        inputs = result.inputs
        attached = frozenset(e.eni_id for e in inputs.enis if e.owned and e.device_index)
        linked = frozenset(e.eni_id for e in inputs.enis if e.mac in inputs.links) & attached
        if linked - self._linked:
            self._pool_triggers.mark("pool")  # an attachment is done
        if self._linked & attached - linked:
            self._pool_triggers.mark("look")  # EC2 says nothing when somebody detaches an ENI
        self._linked = linked

    def _due(self, result: PassResult) -> float:
        assert self._document is not None
        left = [o.remaining for o in result.outcomes.values() if not o.settled]
        due_at = [due for plan in left if (due := self._drift.backoffs.due(plan)) is not None]
        if due_at and not any(plan.actions for plan in left):
            return max(min(due_at) - time.monotonic(), RETRY_S)
        if left_out(result.outcomes) and not any(
            o.failed or undone(o) for o in result.outcomes.values()
        ):
            return LEFT_OUT_S
        if not result.settled:
            return RETRY_S
        ends = [until - time.monotonic() for until in self._node.dead_until]
        ends += [until - time.monotonic() for until in self._node.readable_at(result.inputs)]
        resync = self._document.reconcile.resync.total_seconds()
        return max(min([resync * random.uniform(0.9, 1.0), *ends]), 0.05)

    def _publish(self, result: PassResult, started: float) -> None:
        with self._changed:
            if self._latest is None or result.asked is None:
                self._latest = result
            else:
                self._latest = replace(self._latest, records=result.records)
            self._forget_gone(result)
            self._done |= {key: (a, started) for key, a in result.done.items()}
            self._waiting = dict(result.waiting)
            self._published_at = started
            intents = result.records.among(self._asked).intents
            asked = {i.key: i for i in intents if i.state is IntentState.WANTED}
            if not result.outcomes["attachment"].failed:  # or else nobody knows
                self._withdrawn = dict.fromkeys(self._asked.keys() - asked.keys(), started)
            self._changed.notify_all()
        if asked:
            time.sleep(ANSWER_S)
        for key, intent in asked.items():
            if attachment := result.done.get(key):
                log.info(
                    "attachment in place",
                    extra={
                        "key": key,
                        "addresses": " ".join(map(str, attachment.addresses)),
                        "eni": attachment.eni_id,
                        "veth": attachment.veth,
                        "pod": intent.pod,
                        "trace": intent.trace,
                        "attempt": intent.attempt,
                    },
                )

    def _forget_gone(self, result: PassResult) -> None:
        """Forget what was known of attachments that a pass no more has found."""
        looked_for = result.asked
        if looked_for is None:
            looked_for = frozenset(self._done.keys() | self._answered.keys())
        present = {a.key for a in result.records.among(looked_for).attachments}
        for key in looked_for - present:
            self._done.pop(key, None)
            self._answered.pop(key, None)

    def _addresses(self, records: Records) -> dict[str, int]:
        """Count pod addresses by state."""
        cloud = self._node.cloud
        enis = cloud.enis if cloud else ()
        held = {a for e in enis if e.serves_pods for a in e.pod_addresses}
        assigned = {own for a in records.attachments for own in a.vpc_addresses}
        cooling = {c.address for c in records.cooling}
        leaving = [q.network for q in records.quarantined]
        quarantined = {a for a in held if any(a in network for network in leaving)}
        occupied = self._latest.inputs.occupied if self._latest else ()
        on_host = {a for a in held if any(a in network for network in occupied)}
        return {
            "allocatable": len(held - assigned - cooling - quarantined - on_host),
            "assigned": len(assigned),
            "cooling": len(cooling),
            "quarantined": len(quarantined),
        }

    # -- the cooldowns' loop --------------------------------------------------------------

    def _cooldown_loop(self) -> None:
        self.duties.forever("the cooldowns' loop", self._cooldown_turn, self._stopping)

    def _cooldown_turn(self) -> None:
        with self.watchdog.over(COOLDOWNS, slow=True):
            has_news = self._node.cooldowns.turn()
        if has_news:
            self._triggers.mark("cooldown")
        self._node.cooldowns.wait()

    # -- the pool loop --------------------------------------------------------------------

    def _pool_loop(self) -> None:
        self.duties.forever("the pool loop", self._pool_turn, self._stopping)

    def _pool_turn(self) -> None:
        look = self._owes_observation or not self._pool_hints <= {"pool"}
        wait_s, self._pool_failures = self._pool_pass(self._pool_failures, look=look)
        self._pool_hints = self._await_pool_hint(wait_s)
        if self._pool_failures and "stop" not in self._pool_hints:
            # New demand does not make a failing EC2 answer: wait for the backoff.
            self._stopping.wait(wait_s if self._pool_hints else 0)

    def _await_pool_hint(self, wait_s: float) -> frozenset[str]:
        """Wait for a hint or the time; read metadata meanwhile.

        It costs nothing, so what it shows need not wait for the next observation of EC2. If it
        does not answer, that is for the next pool pass to report.
        """
        assert self._document is not None
        deadline = time.monotonic() + wait_s
        while (left := deadline - time.monotonic()) > 0:
            resync_s = self._document.reconcile.resync.total_seconds()
            was_unconfirmed = self._node.is_unconfirmed
            hints = self._pool_triggers.wait(min(left, resync_s, self._node.hear_after_s))
            if hints:
                self._let_pods_go_first()
                return hints
            with suppress(ReconcilerError), boundary("hear"):
                if self._node.hear():
                    self._triggers.mark("pool")
                    return frozenset({"look"})
            if was_unconfirmed and not self._node.is_unconfirmed:
                return frozenset({"pool"})  # what is not needed can be given back now
        return frozenset()

    def _let_pods_go_first(self) -> None:
        """Wait until no pod comes any more: this thread would take the interpreter from them.

        Not for long, and not if one waits, which is for the addresses that EC2 may give.
        """
        deadline = time.monotonic() + POOL_PASS_S
        with self._changed:
            while not self._is_awaited() and not self._stopping.is_set():
                left = min(self._pods_at + QUIET_S, deadline) - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)

    def _pool_pass(self, failures: int, *, look: bool = True) -> tuple[float, int]:
        """Run one pass; return seconds until the next, and failures in a row.

        Args:
            failures: before it, in a row.
            look: at EC2, whatever follows; or else only if something follows from the last
                observation.
        """
        assert self._document is not None
        demand, before = None, self._planned_for
        self._planned_for = None  # whatever changes from here on is told, this pass may not see it
        cloud, calls = self._node.cloud, self._node.ec2_calls
        with self.duties.over("sweeping the records"):
            self._node.state.sweep()
        try:
            with self.watchdog.over(POOL_PASS, slow=True), boundary(POOL_PASS):
                demand = self._node.state.observe().demand
                outcome = self._node.pool_pass(self._document, look=look)
            self._owes_observation = False
        except ReconcilerError as error:
            outcome, self._owes_observation = Outcome(errors=(error,)), look
        self._conditions.report("eni", outcome)
        for name, count in self._node.ec2_calls.items():
            telemetry.EC2_CALLS.labels(name).set(count)
        with self.duties.over("the pool's books of drift"):
            self._drift.book({"eni": outcome}, everything=True)
        if self._node.cloud is not cloud or self._node.ec2_calls != calls:
            self._triggers.mark("pool")
        self._pool_fails = bool(outcome.errors)
        self._planned_for = before if outcome.errors else demand
        if outcome.errors:
            return POOL_BACKOFF_S.after(failures + 1, random.random()), failures + 1
        self._pool_demand = demand
        due_s = self._node.pool_due_s
        return self._document.reconcile.ec2_resync.total_seconds() if due_s is None else due_s, 0

    # -- the document ---------------------------------------------------------------------

    def _reader_loop(self) -> None:
        self.duties.forever("the document's reader", self._reader_turn, self._stopping)

    def _reader_turn(self) -> None:
        self._reader.hints.wait(READING_S)
        with self.duties.over(READING):
            self._reader.look_again()

    def _take_document(self) -> bool:
        """Take over a changed document; return whether it was."""
        reading = self._reader.take()
        return reading is not None and self._accept_document(reading)

    def _accept_document(self, reading: Reading, *, first: bool = False) -> bool:
        """Take over a document, and say so; keep the last good one if it is invalid."""
        fixed = Finding(str(self._path), "DocumentNeverChanges", NEVER_CHANGES)
        self._conditions.note("mount", [fixed] if reading.fixed else [])
        if reading.refused:
            if first:
                raise reading.refused
            self._refuse_document(reading.refused)
            return False
        self._refused = None
        self._conditions.report("document", Outcome())
        if reading.text == self._document_text:
            return False  # an invalid edit that was taken back changes nothing
        self._document_text, self._document = reading.text, reading.document
        self._generation += 1
        self._drift.clear()
        if not first:  # or else the pool's loop begins with a look anyway
            self._pool_triggers.mark("look")
        log.info("document accepted", extra={"generation": self._generation})
        return True

    def _refuse_document(self, error: DocumentError) -> None:
        said = "\n".join(map(str, error.problems[:MOST_PROBLEMS]))
        if more := len(error.problems) - MOST_PROBLEMS:
            said += f"\nand {more} more" if more > 0 else ""
        if self._refused != said:
            for problem in said.splitlines():
                log.error("document refused, the last good one stays", extra={"problem": problem})
        self._refused = said
        message = f"{said}; the last good one stays in force"
        refusal = Refusal(str(self._path), "DocumentRefused", message)
        outcome = Outcome(remaining=Plan(refusals=(refusal,)))
        self._conditions.report("document", outcome, is_logged=True)

    def _explain(self, key: AttachmentKey) -> Refusal:
        """Say why a pod has not got its attachment, and what stands behind it."""
        refusal = self._waiting.get(key)
        if refusal is None:
            known = self._conditions.all(besides=NO_CAUSE)
            troubles = [f"{c['subject']}: {c['text']}" for c in known]
            text = "; ".join(troubles) or "its objects were not seen in place within the budget"
            return Refusal(f"intent {key}", "NotSettled", text[: telemetry.FOREIGN_TEXT * 2])
        causes = self._conditions.texts("eni")
        if refusal.reason == "AddressesExhausted" and causes:
            why = "; ".join(causes)[: telemetry.FOREIGN_TEXT * 2]
            return replace(refusal, message=f"{refusal.message}; the pool cannot grow: {why}")
        return refusal
