"""What every loop reports to: conditions, the watchdog, and duties, which put both around work.

A loop of the daemon is a sequence of duties: a pass, the answers to pods, the drift tracker. Each
is watched, fails alone, and is a condition while it fails. If one raises, the next is done all the
same, and the thread goes on.
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from reconciler.daemon import telemetry
from reconciler.engine.backoff import Delays
from reconciler.engine.converge import Outcome
from reconciler.errors import InternalError, Issue, ReconcilerError, boundary
from reconciler.ipam.pod_name import PodNames
from reconciler.ipam.records import Records

log = logging.getLogger(__name__)

MOST_TRACED = 256
"""Distinct failures whose traceback is logged; a limit, so that the log has an end."""

MOST_OF_ONE = 50  # conditions that are kept of one domain

STUCK_S, DEAD_S = 10.0, 60.0
"""Seconds after which a pass counts as stuck (with 250 pods it takes a tenth of a second, and with
a rule set of many thousand rules a few seconds), and ``/livez`` asks for a restart: only the pass
is lost."""

SLOW_STUCK_S, SLOW_DEAD_S = 120.0, 600.0
"""The same for what waits for EC2: a call may take 40 s (``ec2_caller.ANSWER_S``), and a pass over
the pool makes several."""

EVERY_S = 5.0  # seconds between looks of the watchdog
FRAMES = 12  # of the stack, innermost: enough to name the target and its system call

BACKOFF_S = Delays(0.5, 5.0, jitter=0.5)
"""After a turn of a loop has failed. Each turn serves pods first, so they wait no longer."""

Condition = dict[str, Any]  # subject, reason, text, and since when, as ``status`` prints it


class Conditions:
    """What is wrong now, by domain, each issue once; any thread may read and write it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, dict[str, Condition]] = {}
        self._for_all: dict[str, frozenset[str]] = {}
        self._traced: set[tuple[str, str]] = set()
        self._records = Records()
        self._names: PodNames | None = PodNames()

    def know(self, records: Records) -> None:
        """Take over which pods the node has, so that conditions name them."""
        with self._lock:
            if records is not self._records:
                self._records, self._names = records, None

    def named(self, issue: Issue) -> Issue:
        """Return an issue that names the pods it is about."""
        with self._lock:
            if self._names is None:
                self._names = PodNames.of(self._records)
            names = self._names
        return names.complete(issue)

    def report(self, domain: str, outcome: Outcome, *, is_logged: bool = False) -> None:
        """Replace a domain's issues by an outcome's errors and refusals, as ``note`` does."""
        for error in outcome.errors:
            surprise = error if isinstance(error, InternalError) else error.__cause__
            if isinstance(surprise, InternalError):
                self.trace(surprise)
        issues = (*outcome.remaining.refusals, *(e.issue for e in outcome.errors))
        self.note(domain, issues, is_logged=is_logged)

    def trace(self, error: InternalError) -> None:
        """Count a failure that no code expects; log its traceback, once for each distinct one."""
        telemetry.INTERNAL_ERRORS.labels(error.what).inc()
        distinct = error.what, error.place
        with self._lock:
            if distinct in self._traced or len(self._traced) >= MOST_TRACED:
                return
            self._traced.add(distinct)
        log.error("internal error in %s; its traceback, once:\n%s", error.what, error.trace)

    def note(self, domain: str, issues: Iterable[Issue], *, is_logged: bool = False) -> None:
        """Replace all of a domain's issues; log each that begins or ends.

        What they say is left out if it is in the log already (``is_logged``).
        """
        issues = tuple(issues)
        with self._lock:
            if not issues and not self._known.get(domain):
                return  # as nearly always
        now = datetime.now(UTC).isoformat(timespec="seconds")
        bounded = {f"{i.subject}/{i.reason}": i for i in map(self.named, _bounded(issues))}
        current: dict[str, Condition] = {
            key: {"subject": i.subject, "reason": i.reason, "text": i.message}
            for key, i in bounded.items()
        }
        with self._lock:
            known = self._known.get(domain, {})
            for key in known.keys() - current.keys():
                log.info("condition ended", extra={"domain": domain, **known[key]})
            for key, body in current.items():
                if key not in known:
                    telemetry.count_failure(domain, str(body["reason"]))
                    shown = {k: v for k, v in body.items() if k != "text" or not is_logged}
                    log.warning("condition began", extra={"domain": domain, **shown})
                body["since"] = known.get(key, {}).get("since", now)
            self._known[domain] = current
            self._for_all[domain] = frozenset(k for k, i in bounded.items() if i.for_all)

    def all(self, *, besides: Collection[str] = (), for_all: bool = False) -> list[Condition]:
        """Return every condition, by subject; those of some domains are left out.

        Or only those that keep every pod waiting (``for_all``).
        """
        with self._lock:
            domains = [domain for domain in self._known if domain not in besides]
            known = [
                condition
                for domain in domains
                for key, condition in self._known[domain].items()
                if not for_all or key in self._for_all[domain]
            ]
            return sorted(known, key=lambda c: str(c["subject"]))

    def issues(self) -> tuple[tuple[str, Issue], ...]:
        """Return every condition as an issue, with its domain."""
        with self._lock:
            return tuple(
                (domain, Issue(str(c["subject"]), str(c["reason"]), str(c["text"])))
                for domain, of in self._known.items()
                for c in of.values()
            )

    def texts(self, domain: str) -> list[str]:
        """Return what is wrong with one domain, each with its reason."""
        with self._lock:
            return [f"{c['reason']}: {c['text']}" for c in self._known.get(domain, {}).values()]


def _bounded(issues: Iterable[Issue]) -> list[Issue]:
    """Keep the first ones, and say how many there are more.

    A transaction of ten thousand actions that is refused is as many issues.
    """
    distinct = list({(i.subject, i.reason): i for i in issues}.values())
    if (more := len(distinct) - MOST_OF_ONE) <= 0:
        return distinct
    message = (
        f"{more} more, not listed; "
        "those that are listed come first in the plan, so start with them"
    )
    return [*distinct[:MOST_OF_ONE], Issue("conditions", "MoreOfThem", message)]


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched of one thread."""

    what: str  # its pass, or its own name
    since: float  # monotonic seconds at which that began, or it was last heard of
    thread: int  # its identifier
    slow: bool = False  # whether it may wait for EC2

    @property
    def seconds(self) -> float:
        """Seconds since its pass began, or since it was last heard of."""
        return time.monotonic() - self.since

    @property
    def is_stuck(self) -> bool:
        """Whether that is too long."""
        return self.seconds >= (SLOW_STUCK_S if self.slow else STUCK_S)

    @property
    def is_dead(self) -> bool:
        """Whether only a restart helps."""
        return self.seconds >= (SLOW_DEAD_S if self.slow else DEAD_S)

    @property
    def stack(self) -> list[str]:
        """Where it stands now, innermost first: file, line and function."""
        frame = sys._current_frames().get(self.thread)
        return [
            f"{entry.filename.rpartition('/')[2]}:{entry.lineno} {entry.name}"
            for entry in reversed(traceback.extract_stack(frame)[-FRAMES:] if frame else ())
        ]

    @property
    def where(self) -> str:
        """The innermost line of ours that it stands in."""
        return next(iter(self.stack), "the end of its thread")

    def __str__(self) -> str:
        return f"{self.what} has not ended for {self.seconds:.0f} s; it stands at {self.where}"


class Watchdog:
    """Notices a thread that makes no progress, and logs its stack.

    A thread that works in passes is alive if it waits, or if its pass began not long ago. A thread
    that waits for clients is alive if it has lately said so. The watchdog is a thread of its own,
    because one that is stuck in a system call cannot report itself.

    Args:
        tell: called with each look: with what has been stuck longest, or with None.
    """

    def __init__(self, tell: Callable[[Watched | None], None]) -> None:
        self._tell = tell
        self._passes: dict[int, Watched] = {}
        self._heard: dict[int, Watched] = {}
        self._logged: Watched | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End watching."""
        self._ended.set()
        self._thread.join()

    @contextmanager
    def over(self, what: str, *, slow: bool = False) -> Iterator[None]:
        """Watch a pass of the calling thread; within another one, it is watched in its place."""
        thread = threading.get_ident()
        around = self._passes.get(thread)
        self._passes[thread] = Watched(what, time.monotonic(), thread, slow)
        try:
            yield
        finally:
            if around is None:
                del self._passes[thread]
            else:
                self._passes[thread] = around

    def hear(self, what: str) -> None:
        """Note that the calling thread is alive; it must call this every few seconds from now."""
        thread = threading.get_ident()
        self._heard[thread] = Watched(what, time.monotonic(), thread)

    def let_go(self) -> None:
        """Watch the calling thread no longer: it ends as it should."""
        self._heard.pop(threading.get_ident(), None)

    @property
    def stuck(self) -> Watched | None:
        """What is stuck, the longest if several are; None if nothing is."""
        stuck = [w for w in self._all() if w.is_stuck]
        return min(stuck, key=lambda w: w.since, default=None)

    @property
    def is_alive(self) -> bool:
        """Whether every thread waits, or went on less than a minute ago."""
        return not any(w.is_dead for w in self._all())

    def _all(self) -> list[Watched]:
        return [*self._passes.copy().values(), *self._heard.copy().values()]

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            try:
                with boundary("the watchdog"):
                    self._look()
            except ReconcilerError as error:  # a later observation may see what this one could not
                log.exception("the watchdog failed", extra={"error": error})

    def _look(self) -> None:
        stuck = self.stuck
        self._tell(stuck)
        if stuck and stuck != self._logged:
            self._logged = stuck  # once for each pass
            stack = " < ".join(stuck.stack)
            told = {"pass": stuck.what, "seconds": round(stuck.seconds), "stack": stack}
            log.error("a pass does not end", extra=told)


class Duties:
    """Runs duties, of any thread."""

    def __init__(self, conditions: Conditions, watchdog: Watchdog) -> None:
        self.conditions, self.watchdog = conditions, watchdog

    @contextmanager
    def over(self, name: str, *, slow: bool = False) -> Iterator[None]:
        """Surround one duty: what it raises is a condition, and ends with its next success.

        Duties are named from a small fixed set of texts. A slow one may wait for EC2.
        """
        error: tuple[ReconcilerError, ...] = ()
        try:
            with self.watchdog.over(name, slow=slow), boundary(name):
                yield
        except ReconcilerError as failure:
            error = (failure,)
        self.report(name, *error)

    def report(self, name: str, *errors: ReconcilerError) -> None:
        """Say how a duty went: well, or what it has failed by."""
        try:
            with boundary("the conditions"):
                self.conditions.report(name, Outcome(errors=errors))
        except ReconcilerError as failure:  # then the log is all there is
            log.exception("conditions are not kept", extra={"error": failure, "duty": name})

    def note_end(self, ended: threading.ExceptHookArgs) -> None:
        """Take note of a thread of a library that has ended by an exception (``threading``)."""
        if ended.exc_value is not None:
            self.conditions.trace(InternalError("a thread of a library", ended.exc_value))

    def forever(self, name: str, turn: Callable[[], None], stopping: threading.Event) -> None:
        """Take turns until told to stop; after one that fails, back off.

        Each waits until there is something to do.
        """
        failures = 0
        while not stopping.is_set():
            try:
                with boundary(name):
                    turn()
            except ReconcilerError as failure:
                self.report(name, failure)
                failures += 1
                stopping.wait(BACKOFF_S.after(failures, random.random()))
            else:
                if failures:
                    self.report(name)
                failures = 0

    def heard(self, name: str, turn: Callable[[], None], stopping: threading.Event) -> None:
        """Take turns as ``forever`` does, each of a few seconds; the watchdog hears of each."""

        def heard_turn() -> None:
            self.watchdog.hear(name)
            turn()

        try:
            self.forever(name, heard_turn, stopping)
        finally:
            self.watchdog.let_go()
