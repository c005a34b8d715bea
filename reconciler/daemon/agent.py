"""The daemon: its parts, its threads, and what others may ask of it."""

from __future__ import annotations

import gc
import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from reconciler.cluster.api import ApiServer
from reconciler.daemon import gauges, telemetry
from reconciler.daemon.cluster import Api, Reporter
from reconciler.daemon.kernel_loop import KernelLoop
from reconciler.daemon.ledger import Notifications
from reconciler.daemon.overview import (
    age,
    describe_budget,
    describe_obstacle,
    describe_outlook,
    describe_repairs,
)
from reconciler.daemon.parts import Parts, Upkeep
from reconciler.daemon.pool_loop import PoolLoop
from reconciler.daemon.source_loop import SourceLoop
from reconciler.daemon.status import describe, describe_sources, find_obstacle
from reconciler.daemon.triggers import FileWatch, KernelWatch
from reconciler.errors import Issue, LockedError, ReconcilerError, boundary
from reconciler.node.environment import Environment, State
from reconciler.node.neighbours import NeighboursAgain
from reconciler.targets.files.installation import INTERIM
from schemas.apart import Documents

log = logging.getLogger(__name__)

SWITCH_S = 0.0005
"""Seconds a thread may keep the interpreter from others, instead of Python's 0.005: a pod must
not wait that long, after each of its system calls, for the thread that works on EC2's answer."""

COLLECTIONS = (10_000, 20, 20)
"""When Python looks for cycles of dead objects, instead of after 700 new ones: with that, a pod
would pay for ten looks. What libraries have made at the start is not looked at again."""

READING, KEEPING = "reading the document", "keeping the document"
DESCRIBING = "describing the document"
COOLDOWNS = "ending the connections of addresses that cool"
REMOVALS = "deleting the links of pods that are gone"
NEIGHBOURS = "asking for neighbours again"
OTHERS = "looking at other owners"  # duties, as conditions, metrics and the watchdog name them

WATCHES_S, READING_S = 10.0, 60.0
"""Seconds between looks whether all that should be watched is, and after which the document is
read again even if no hint says that it changed."""

JOIN_S = 5.0  # seconds that a thread is given to end


class Slow(Protocol):
    """Work that takes long; while ``apart``, another thread takes its turns."""

    apart: bool

    def wait(self) -> None: ...  # until there is something for a turn to do
    def turn(self) -> bool: ...  # whether the kernel loop should look at what came of it
    def stop(self) -> None: ...  # ends ``wait``


class Apart(NamedTuple):
    """Slow work in a thread of its own."""

    work: Slow
    thread: str
    duty: str  # as conditions, metrics and the watchdog name it
    hint: str  # to the kernel loop


class Agent:
    """The daemon. After a start it rebuilds what it knows by observing.

    Args:
        state: the directory of records; its lock must be held.
        environment: everything outside; by default this host.
        keep_dir: where the last good document is kept; by default beside the records.
        events: whether to listen for changes of files and of the kernel; if not, they are seen by
            the clock alone.
        api: the API server of the cluster; by default the one whose pod this is.
        documents: what checks documents; by default this process.
    """

    def __init__(
        self,
        document_path: Path,
        state: State,
        environment: Environment | None = None,
        *,
        keep_dir: Path | None = None,
        events: bool = True,
        api: Api | None = None,
        documents: Documents | None = None,
    ) -> None:
        self.parts = parts = Parts(
            document_path, state, environment, keep_dir or state.root, documents
        )
        self.upkeep = Upkeep(parts.duties, self._step_back)
        self.upkeep.properties.append(state)
        self.pool = PoolLoop(parts)
        self.sources = SourceLoop(parts)
        heard = Notifications()
        self.kernel = KernelLoop(parts, self.pool, self.upkeep, self.sources.hints, heard)
        self.reporter = Reporter(parts, self.kernel, api or ApiServer())
        env = parts.node.environment
        self._apart = (
            Apart(parts.node.cooldowns, "cooldowns", COOLDOWNS, "cooldown"),
            Apart(env.netlink.removals, "links", REMOVALS, "intent"),
            # Of looks at other owners the first is the first full pass's own.
            Apart(env.surroundings.latest, "others", OTHERS, "others"),
        )
        self.neighbours = NeighboursAgain(env.netlink.learnt, parts.node.known, env.clock)
        self._displaced: LockedError | None = None
        self._began = time.monotonic()
        reading = parts.document.reader.hints
        installed = parts.node.after.installation.directories
        self._watches: tuple[FileWatch | KernelWatch, ...] = ()
        if events:
            self._watches = (
                FileWatch(document_path.parent, reading, "document"),
                KernelWatch(parts.hints, parts.drift.attribution, parts.duties, heard),
                *(FileWatch(d, parts.hints, "files", INTERIM) for d in installed),
            )

    def run(self) -> None:
        """Reconcile until ``stop`` is called.

        Raises:
            DocumentError: the document is invalid, and no earlier one is kept.
            LockedError: another reconciler has taken the node over.
        """
        parts = self.parts
        sys.setswitchinterval(SWITCH_S)
        gc.freeze()
        gc.set_threshold(*COLLECTIONS)
        parts.document.take_first()
        self._recall_answered()
        parts.watchdog.start()
        pool = self._start("pool", "the pool loop", self.pool.turn)
        self._start("reader", "the document's reader", self._read)
        watches = self._start("watches", "the watches' loop", self._keep_watches)
        for each in self._apart:
            each.work.apart = True
            self._start(each.thread, f"the {each.thread} loop", partial(self._take_turn, each))
        self._start("sources", "the loop of sources", self.sources.turn)
        self._start("cluster", "the loop that tells the cluster", self.reporter.turn)
        where = {"document": parts.document.path, "state": parts.node.state.root}
        log.info("started", extra=where)
        try:
            parts.duties.forever("the kernel loop", self.kernel.turn, parts.stopping)
        finally:
            parts.stopping.set()
            parts.pool_hints.mark("stop")
            self.sources.hints.mark("stop")
            parts.document.reader.hints.mark("stop")
            for each in self._apart:
                each.work.stop()
            watches.join(timeout=JOIN_S)
            for watch in self._watches:
                watch.stop()
            parts.watchdog.stop()
            pool.join(timeout=JOIN_S)
            log.info("stopped")
        if self._displaced is not None:
            raise self._displaced

    def stop(self) -> None:
        """End ``run`` after the pass under way; pods are not touched."""
        self.parts.stopping.set()
        self.parts.hints.mark("stop")

    def find_obstacle(self) -> Issue | None:
        """Say why no pod can start on this node; None if they can."""
        parts = self.parts
        return find_obstacle(
            self.kernel.progress, parts.node.known.cloud, parts.conditions.texts, time.monotonic()
        )

    def status(self) -> dict[str, Any]:
        """Describe the node, as ``schemas.status`` publishes it."""
        parts, environment = self.parts, self.parts.node.environment
        now, clock = environment.now(), environment.clock()
        status = describe(
            parts.document.path,
            parts.document.accepted,
            self.kernel.progress,
            self.pool.report,
            parts.node.known.cloud,
            parts.conditions.all(),
            parts.node.pool.ec2_calls,
            now,
            is_pending=parts.node.pool.schedule.is_pending,
        )
        latest, outlook = self.kernel.progress.latest, self.pool.look_ahead()
        looks = {
            "node": age(time.monotonic(), latest.observed_at) if latest else None,
            "ec2": age(clock, outlook.looked_at) if outlook.looked_at is not None else None,
        }
        return {
            "formatVersion": 1,
            "version": telemetry.release(),
            "uptimeSeconds": age(time.monotonic(), self._began),
            **status,
            "obstacle": describe_obstacle(self.find_obstacle()),
            **describe_outlook(outlook, clock),
            "ec2Budget": describe_budget(parts.node.pool.ec2_tally, clock),
            "sources": describe_sources(parts.node.known.egress, now),
            "looks": [{"of": of, "ageSeconds": at} for of, at in looks.items() if at is not None],
            "repaired": describe_repairs(parts.drift.repaired, now),
            "metrics": telemetry.exposition(self.gauges()),
        }

    def gauges(self) -> dict[telemetry.Family, telemetry.Series]:
        """Return the metrics that are read from what is known now."""
        parts, known = self.parts, self.parts.node.known
        state = gauges.State(
            now=parts.node.environment.now(),
            clock=parts.node.environment.clock(),
            obstacle=self.find_obstacle(),
            progress=self.kernel.progress,
            outlook=self.pool.look_ahead(),
            cloud=known.cloud,
            egress=known.egress,
            accepted=parts.document.accepted,
            conditions=parts.conditions.issues(),
            waiting=parts.requests.reasons,
            calls=parts.node.pool.ec2_tally,
        )
        return gauges.read(state)

    def _step_back(self, error: LockedError) -> None:
        self._displaced = error
        self.stop()

    def _recall_answered(self) -> None:
        """Count ADDs of finished attachments as answered: their connections are gone.

        What is bound and unfinished was never answered: the next ADD for it is.
        """
        with suppress(ReconcilerError), boundary("recall"):  # the first pass reports it
            records = self.parts.node.state.observe()
            finished = {a.key for a in records.attachments if not a.unfinished}
            answered = {i.key: i.attempt for i in records.intents if i.key in finished}
            self.parts.requests.recall(answered)

    def _start(self, name: str, loop: str, turn: Callable[[], None]) -> threading.Thread:
        """Take turns in a thread of its own until the daemon ends."""
        duties, stopping = self.parts.duties, self.parts.stopping
        thread = threading.Thread(
            target=duties.forever, args=(loop, turn, stopping), name=name, daemon=True
        )
        thread.start()
        return thread

    def _read(self) -> None:
        reader = self.parts.document.reader
        reader.hints.wait(READING_S)
        with self.parts.duties.over(READING):
            reader.look_again()
        with self.parts.duties.over(KEEPING):
            self.parts.document.keep()
        with self.parts.duties.over(DESCRIBING):
            self.parts.document.describe_wanted()

    def _take_turn(self, apart: Apart) -> None:
        apart.work.wait()
        with self.parts.watchdog.over(apart.duty, slow=True):
            has_news = apart.work.turn()
        if has_news:
            self.parts.hints.mark(apart.hint)

    def _keep_watches(self) -> None:
        """See to it that everything is watched, and look after it from time to time.

        Nor does the kernel tell of a neighbour whose MAC is wrong.
        """
        parts = self.parts
        for watch in self._watches:
            with parts.duties.over(watch.name):
                watch.keep()
        # By another name than the making: that it was looked for does not end what that failed by.
        with parts.duties.over("looking for the state directory"):
            if not all(each.is_own for each in self.upkeep.properties):
                parts.hints.mark("files")  # no pod can ask until it is made again
        with parts.duties.over(NEIGHBOURS):
            self.neighbours.turn()
        parts.stopping.wait(WATCHES_S)
