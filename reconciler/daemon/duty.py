"""The daemon's duties: each is watched, fails alone, and is a condition while it fails.

A loop of the daemon is a sequence of duties: a pass, the answers to pods, the drift tracker. If
one raises, the next is done all the same, and the thread goes on.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from reconciler.daemon.conditions import Conditions
from reconciler.daemon.watchdog import Watchdog
from reconciler.engine.backoff import Delays
from reconciler.engine.converge import Outcome
from reconciler.errors import InternalError, ReconcilerError, boundary

log = logging.getLogger(__name__)

BACKOFF_S = Delays(0.5, 5.0, jitter=0.5)
"""After a turn of a loop has failed. Each turn serves pods first, so they wait no longer."""


class Duties:
    """Runs duties, of any thread.

    Args:
        conditions: told which duty fails, by the duty's name.
        watchdog: watches each while it is done.

    Attributes:
        conditions: the same.
    """

    def __init__(self, conditions: Conditions, watchdog: Watchdog) -> None:
        self.conditions = conditions
        self._watchdog = watchdog

    @contextmanager
    def over(self, name: str, *, slow: bool = False) -> Iterator[None]:
        """Surround one duty: what it raises is a condition, and ends with its next success.

        Args:
            name: the duty, from a small fixed set of texts.
            slow: whether it may wait for EC2.
        """
        error: tuple[ReconcilerError, ...] = ()
        try:
            with self._watchdog.over(name, slow=slow), boundary(name):
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

        Args:
            name: the loop.
            turn: one turn; it waits until there is something to do.
            stopping: set when it must end.
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
