"""What the loops of one daemon work with, and what it must keep on the host."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from reconciler.daemon.document import InForce
from reconciler.daemon.drift import DriftTracker
from reconciler.daemon.duty import Conditions, Duties, Watchdog, Watched
from reconciler.daemon.requests import Checks, PodHints, Requests
from reconciler.daemon.triggers import ChangeAttribution, Triggers
from reconciler.errors import Issue, LockedError
from reconciler.node.environment import Environment, State
from reconciler.node.passes import LocalNode
from reconciler.targets.state.kept_document import KeptDocument
from schemas.apart import Documents

log = logging.getLogger(__name__)


class Parts:
    """Each part guards its own fields, so that any thread may call it.

    Attributes:
        hints: wakes the kernel loop.
        pool_hints: wakes the pool loop.
        stopping: set when the daemon ends.
    """

    def __init__(
        self,
        document_path: Path,
        state: State,
        environment: Environment | None,
        keep_dir: Path,
        documents: Documents | None = None,
    ) -> None:
        self.stopping = threading.Event()
        self.hints, self.pool_hints = Triggers(), Triggers()
        self.conditions = Conditions()
        self.watchdog = Watchdog(self._note_stuck)
        self.duties = Duties(self.conditions, self.watchdog)
        self.drift = DriftTracker(ChangeAttribution())
        self.node = LocalNode(state, environment, documents)
        self.document = InForce(
            document_path,
            KeptDocument(keep_dir),
            self.hints,
            self.conditions,
            self.node.environment.now,
            documents,
            self.node.known.prepare,
        )
        self.requests = Requests(self.hints, self.conditions, self.stopping)
        self.pods = PodHints(self.hints)
        self.checks = Checks(self.hints, self.pods, self.stopping)

    def _note_stuck(self, stuck: Watched | None) -> None:
        issues = [Issue("the loop", "PassStuck", str(stuck), for_all=True)] if stuck else []
        self.conditions.note("watchdog", issues)


class Property(Protocol):
    """What this process has on the host, and others can take away: directory, lock, socket."""

    @property
    def is_own(self) -> bool:
        """Whether it still is this process's."""
        ...

    def reclaim(self) -> tuple[Issue, ...]:
        """Make again what is gone, and say so.

        Raises:
            LockedError: another reconciler has it.
            StateError: it cannot be made.
        """
        ...


class Upkeep:
    """Makes again what others have taken away.

    Args:
        step_back: called when another reconciler has taken the node over.

    Attributes:
        properties: in the order in which they are made again.
    """

    def __init__(self, duties: Duties, step_back: Callable[[LockedError], None]) -> None:
        self.properties: list[Property] = []
        self._duties, self._step_back = duties, step_back

    def keep(self) -> bool:
        """Make again what others have taken of ours; return whether this node is still ours.

        Raises nothing: what cannot be made again is a condition, and tried with the next pass.
        """
        found: list[Issue] = []
        with self._duties.over("keeping the state directory"):
            try:
                for each in self.properties:
                    found += each.reclaim()
            except LockedError as error:
                log.error("another reconciler has taken over", extra={"error": str(error)})
                self._step_back(error)
                return False
        with self._duties.over("the conditions of the state directory"):
            self._duties.conditions.note("state directory", found)
        return True
