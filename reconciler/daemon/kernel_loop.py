"""The kernel loop: serves pods, repairs drift, and takes over a changed document.

It works on the last observation of EC2 and never waits for one.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import random
import time
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

from reconciler.core.attachment import AttachmentKey
from reconciler.daemon import schedule, telemetry
from reconciler.daemon.ledger import Ledger, Notifications
from reconciler.daemon.parts import Parts, Upkeep
from reconciler.daemon.pool_loop import PoolLoop
from reconciler.daemon.requests import in_parts
from reconciler.daemon.schedule import Links, Schedule
from reconciler.daemon.status import Progress
from reconciler.daemon.triggers import Triggers
from reconciler.engine.converge import Outcome, Outcomes
from reconciler.errors import InternalError, Issue, ReconcilerError, boundary
from reconciler.ipam.pool_groups import demand_of
from reconciler.node.pass_result import Inspect, PassResult
from reconciler.targets.expected import Verdict

log = logging.getLogger(__name__)

FULL_PASS, PODS_PASS = "the pass over everything", "the pass over some pods"
"""Duties, as conditions, metrics and the watchdog name them."""

TIDY_S = 3.0  # seconds without any work after which memory is given back

MUCH = 20  # passes over some pods that leave as much behind as one over everything

BATCH = 8
"""New pods that are served together. Each set of changes and each look have a price of their own,
a tenth to a third of a pod's. But what was answered is told by threads that share the interpreter
with the next part: of a hundred pods the median waits 0.5 to 0.6 of the last one's time with 8,
and 0.85 with 16."""

ANSWER_S = 0.001
"""Seconds in which this thread leaves the interpreter to those that now tell pods' runtimes."""


class KernelLoop:
    """Runs the passes over the kernel."""

    def __init__(
        self,
        parts: Parts,
        pool: PoolLoop,
        upkeep: Upkeep,
        source_hints: Triggers,
        notifications: Notifications,
    ) -> None:
        self._parts, self._pool, self._upkeep = parts, pool, upkeep
        self._source_hints = source_hints
        self.progress = Progress()
        self._schedule = Schedule()
        self._hints = frozenset({"start"})
        self._is_untidy = True
        self._work = 0
        self._links = Links()
        self._leaving: dict[AttachmentKey, str] = {}
        self._ledger = Ledger(notifications)

    def turn(self) -> None:
        """Do what hints ask for, and what is due; then wait for more."""
        parts, hints = self._parts, self._hints
        if "retry" in hints:
            parts.drift.forget_backoffs()
        if "intent" in hints and self.progress.latest is not None:
            with parts.duties.over("serving pods"):
                hints -= {"intent"} if self.pods_pass() else set()
            parts.requests.note_served()
            self._schedule = replace(self._schedule, pods_at=time.monotonic())
            self._is_untidy, self._work = True, self._work + 1
        if "document" in hints:
            # A document that says nothing new is no reason to look into every pod.
            hints -= {"document"}
            with parts.duties.over("taking over the document"):
                hints |= {"edited"} if self._take_document() else frozenset()
        if hints and hints <= schedule.SLIGHT and not parts.requests.is_awaited:
            hints = self._do_lightly(hints)
        if _share_due_s(parts, self.progress.latest, self._schedule) <= 0:
            self._schedule = replace(self._schedule, share_at=time.monotonic())
            with parts.duties.over("some pods' namespaces"):
                _look_into_some(parts, self.progress.latest)
        if self._due_s(hints) <= 0:
            # Also without a notification: the watch of a replaced directory is lost.
            parts.document.reader.hints.mark("document")
            audit = _is_audit_due(parts, self._schedule, hints)
            wait_s = self.full_pass(audit=audit, is_regular=hints <= schedule.LIGHT)
            self._schedule = replace(self._schedule, wait_s=wait_s)
            hints = frozenset()
        self._hints = hints
        is_calm = self._is_untidy and not hints
        share_s = _share_due_s(parts, self.progress.latest, self._schedule)
        due_s = min(self._due_s(hints), share_s)
        told = parts.hints.wait(min(due_s, TIDY_S) if is_calm else due_s)
        if is_calm and not told:
            with parts.duties.over("tidying up"):
                self._tidy()
        self._hints |= told

    def _due_s(self, hints: frozenset[str]) -> float:
        now = time.monotonic()
        due_s = self._schedule.full_pass_at + schedule.RETRY_S - now
        with self._parts.duties.over("the schedule of passes"):
            awaited = self._parts.requests.is_awaited
            due_s = schedule.due_s(self._schedule, hints, now, is_awaited=awaited)
        return due_s  # noqa: RET504 - it is the first one if that duty fails

    def _do_lightly(self, hints: frozenset[str]) -> frozenset[str]:
        """Do what takes no full pass, unless one is due anyway; return what is left.

        Addresses begin to cool at once: clients of the pod that had one wait for its connections
        to end. What the kernel tells waits as a full pass would.
        """
        if self._due_s(frozenset()) <= 0:
            return hints
        if "cooldown" in hints and self._end_cooldowns():
            hints -= {"cooldown"}
        if "kernel" in hints and self._due_s(hints) <= 0:
            now, verdict = time.monotonic(), Verdict.NEWS
            with self._parts.duties.over("weighing what the kernel tells"):
                verdict = self._ledger.weigh(now)
            self._schedule = self._schedule.after_weighing(verdict, now)
            hints = schedule.left_of(hints, verdict)
        if "others" in hints and self._judge_others():
            hints -= {"others"}
        return hints

    def _judge_others(self) -> bool:
        """Do what follows a full pass, as other owners have changed; return whether it is done.

        Their rules and rulesets make no difference to the pass itself, unless it takes over from
        one of them. A thread looks at them again, and says if there is anything new.
        """
        latest = self.progress.latest
        if latest is None or latest.inputs.host.predecessor.taking_over:
            return False
        before = latest.outcomes
        again = replace(latest, findings=None, pods=None, inspect=Inspect.NONE)
        result = _follow(self._parts, again)
        self.progress = self.progress.after_observation(result)
        made = {name: o for name, o in result.outcomes.items() if o is not before.get(name)}
        _account(self._parts, result, made)
        return all(o.settled for o in made.values())

    def _end_cooldowns(self) -> bool:
        """Take over which addresses cool, and end what has cooled; return whether that is all."""
        parts = self._parts
        try:
            with boundary("the cooldowns"):
                result = parts.node.cooling_pass()
        except ReconcilerError:
            return False  # a full pass says why
        with parts.duties.over("the books of drift"):
            parts.drift.book_pods(result.outcomes)
        with parts.duties.over("the conditions"):
            parts.conditions.report("conntrack", result.outcomes["conntrack"])
            parts.conditions.know(result.records)
        self.progress = self.progress.after_observation(result)
        with parts.duties.over("waking the pool"):
            self._tell_pool(result)
        return result.settled

    def _tidy(self) -> None:
        """Give back the memory that much work has left, now that no pod waits.

        glibc keeps the top of each thread's heap; a burst of pods has a thread for each
        (malloc_trim(3)). Other C libraries have no such function, and give back by themselves. It
        costs as much as a pod or two, so a few pods wait for the next full pass.
        """
        self._is_untidy = False
        if self._work < MUCH:
            return
        self._work = 0
        gc.collect()
        with suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)

    def _take_document(self) -> bool:
        """Take over a changed document; return whether it was."""
        if not self._parts.document.take():
            return False
        self._parts.drift.clear()
        self._parts.pool_hints.mark("look")
        self._source_hints.mark("document")
        return True

    # -- some pods ------------------------------------------------------------------------

    def pods_pass(self) -> bool:
        """Serve the pods that ask; return whether all that could be done for them was done."""
        settled, under_way = True, self._parts.node.environment.netlink.removals.names
        gone = _take_gone(self._leaving, under_way)
        for asking in in_parts(self._parts.requests.asked, BATCH):
            # Later parts are of ADDs that wait too, whose DEL may have come meanwhile.
            keys = dict.fromkeys((*asking, *gone, *self._parts.pods.take(BATCH)))
            gone = ()
            settled &= not keys or self._serve(tuple(keys))
        self._run_checks()
        return settled

    def _serve(self, keys: tuple[AttachmentKey, ...]) -> bool:
        parts, started = self._parts, time.monotonic()
        try:
            with parts.watchdog.over(PODS_PASS), boundary(PODS_PASS):
                result = parts.node.pods_pass(keys, backoffs=parts.drift.backoffs)
        except ReconcilerError as error:
            log.warning("pods were not served alone", extra={"error": str(error)})
            _report_pods(parts, error)
            return False
        telemetry.PASS_SECONDS.labels("pods").observe(time.monotonic() - started)
        with parts.duties.over("the answers to pods"):
            self._publish(result, started)
        _report_pods(parts, *(e for o in result.outcomes.values() for e in o.errors))
        with parts.duties.over("the books of drift"):
            parts.drift.book_pods(result.outcomes)
        with parts.duties.over("what is expected of the kernel"):
            self._ledger.follow(result.outcomes, result.gone)
        with parts.duties.over("waking the pool"):
            self._tell_pool(result)
        if parts.node.after.fast_path.is_on:
            with parts.duties.over("the fast path"):
                parts.node.after.fast_path.follow(result)
        return result.served

    def _run_checks(self) -> None:
        parts, unforeseen = self._parts, list[InternalError]()
        for key in (keys := parts.checks.take()):
            observed_at = time.monotonic()
            try:
                with parts.watchdog.over(f"the check of {key}"), boundary("check"):
                    verdict = parts.node.check(key)
            except ReconcilerError as error:
                unforeseen += [error] if isinstance(error, InternalError) else []
                verdict = Issue(f"attachment {key}", "NotSettled", str(error))
            parts.checks.answer(key, verdict, observed_at)
        if keys:
            parts.duties.report("check", *unforeseen)

    def _publish(self, result: PassResult, started: float) -> None:
        before = self.progress.latest
        self.progress = self.progress.after_observation(result)
        self._parts.conditions.know(result.records)
        self._leaving |= result.leaving
        asked = self._parts.requests.publish(result, started)
        if asked:
            time.sleep(ANSWER_S)
        for key, intent in asked.items():
            if found := result.done.get(key):
                addresses = " ".join(map(str, found.addresses))
                given = {"addresses": addresses, "eni": found.eni_id, "veth": found.veth}
                asked_by = {n: getattr(intent, n) for n in ("pod", "trace", "attempt")}
                log.debug("attachment in place", extra={"key": key, **given, **asked_by})
        if before is None or result.records.cooling != before.records.cooling:
            # Some have begun to cool after this pass took over which do.
            self._parts.hints.mark("cooldown")

    def _tell_pool(self, result: PassResult) -> None:
        """Wake the pool's loop if there is something for it."""
        pool, demand = self._pool, demand_of(result.records, result.inputs.document)
        pool.learn(demand)
        planned_for = pool.planned_for  # before the margin: a pass replaces that one first
        hints, self._links = schedule.hints_of(
            result, self._links, demand, planned_for=planned_for, margin=pool.report.margin
        )
        for hint in hints:
            self._parts.pool_hints.mark(hint)

    # -- everything -----------------------------------------------------------------------

    def full_pass(self, *, audit: bool, is_regular: bool = False) -> float:
        """Run one pass over everything; return seconds until the next is due without a hint.

        An audit looks into every pod's namespace, too; one that is only due by the clock, into
        some. The others have their turn until the next one.
        """
        parts = self._parts
        started = time.monotonic()
        self._schedule = replace(self._schedule, full_pass_at=started, undecided_until=started)
        self._ledger.begin()
        self._is_untidy, self._work = True, self._work + MUCH
        if not self._upkeep.keep():
            return schedule.RETRY_S
        try:
            with parts.watchdog.over(FULL_PASS), boundary(FULL_PASS):
                result = parts.node.kernel_pass(
                    parts.document.current,
                    audit=audit,
                    is_regular=is_regular,
                    backoffs=parts.drift.backoffs,
                    asking=tuple(parts.requests.asked),
                )
        except ReconcilerError as error:
            parts.conditions.report("node", Outcome(errors=(error,)))
            self.progress = self.progress.after_failure(started)
            return schedule.RETRY_S
        took_s = time.monotonic() - started
        self._schedule = self._schedule.after_full_pass(started, took_s, audit=audit)
        telemetry.PASS_SECONDS.labels("audit" if audit else "full").observe(took_s)
        with parts.duties.over("what is expected of the kernel"):
            self._ledger.learn(result.outcomes, settled=result.served)
        if result.settled:
            parts.hints.forget("kernel", before=result.observed_at)
        parts.conditions.report("node", Outcome())
        with parts.duties.over("the answers to pods"):
            self._publish(result, started)
        return self._finish(result, started)

    def _finish(self, result: PassResult, started: float) -> float:
        """Do the duties of a full pass that can wait until pods were answered."""
        parts = self._parts
        result = _follow(parts, result)
        generation = parts.document.accepted.generation
        self.progress = self.progress.after_pass(result, generation, started)
        with parts.duties.over("the counters of packets"):
            counted = parts.node.environment.nft.count()
            self.progress = self.progress.after_counting(counted)
        _account(parts, result, result.outcomes)
        due_s, node = schedule.RETRY_S, parts.node
        with parts.duties.over("the next pass's time"):
            ends = (*node.dead.until.values(), *node.visits.readable_at(result.inputs))
            resync_s = parts.document.resync_s * random.uniform(0.9, 1.0)
            now = time.monotonic()
            due_s = schedule.next_pass_s(result, parts.drift.backoffs, ends, resync_s, now)
        with parts.duties.over("waking the pool"):
            self._tell_pool(result)
        return due_s


def _take_gone(
    leaving: dict[AttachmentKey, str], under_way: Collection[str]
) -> tuple[AttachmentKey, ...]:
    """Take out, and return, the pods whose link was being deleted and is not any more."""
    gone = tuple(key for key, name in leaving.items() if name not in under_way)
    for key in gone:
        del leaving[key]
    return gone


def _follow(parts: Parts, result: PassResult) -> PassResult:
    """Take the steps that follow a full pass."""
    for name, step in parts.node.after:
        with parts.duties.over(name):
            result = step.run(result, parts.drift.backoffs)
    return result


def _account(parts: Parts, result: PassResult, outcomes: Outcomes) -> None:
    """Book and report what was done."""
    with parts.duties.over("the books of drift"):
        parts.drift.book(outcomes, everything=result.inspect is not Inspect.NONE)
    with parts.duties.over("the conditions"):
        if result.findings is not None:
            parts.conditions.note("foreign", result.findings)
        if result.pods is not None:
            parts.conditions.note("pods", result.pods)
        for name, outcome in outcomes.items():
            parts.conditions.report(name, outcome)


def _report_pods(parts: Parts, *errors: ReconcilerError) -> None:
    """Say what no code expects of a pass over some pods; all else is for the full pass."""
    unforeseen = [e for e in errors if isinstance(e, InternalError)]
    parts.duties.report(PODS_PASS, *unforeseen)


def _is_audit_due(parts: Parts, known: Schedule, hints: frozenset[str]) -> bool:
    is_due = True
    with parts.duties.over("the schedule of audits"):
        resync_s = parts.document.resync_s
        is_due = schedule.is_audit_due(known, hints, time.monotonic(), resync_s)
    return is_due  # noqa: RET504 - it is due if that duty fails


def _share_due_s(parts: Parts, latest: PassResult | None, known: Schedule) -> float:
    """Return seconds until the next pods' namespaces are looked into between audits."""
    due_s = float("inf")
    with parts.duties.over("the schedule of looks into pods"):
        pods = len(latest.inputs.attachments) if latest else 0
        due_s = schedule.share_due_s(known, pods, parts.document.resync_s, time.monotonic())
    return due_s  # noqa: RET504 - an audit looks into all if that duty fails


def _look_into_some(parts: Parts, latest: PassResult | None) -> None:
    """Look into the namespaces of the next pods, so that each has its turn within a resync."""
    if latest is not None:
        told = replace(latest, inspect=Inspect.SOME)
        found = parts.node.after.inspection.run(told, parts.drift.backoffs).pods
        parts.conditions.note("pods", found or ())
