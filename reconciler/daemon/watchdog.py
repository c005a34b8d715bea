"""Notices a thread that makes no progress, and logs its stack.

A thread that works in passes is alive if it waits, or if its pass began not long ago. A thread
that waits for clients is alive if it has lately said so. The watchdog is a thread of its own,
because one that is stuck in a system call cannot report itself.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from reconciler.errors import ReconcilerError, boundary

log = logging.getLogger(__name__)

STUCK_S = 10.0
"""Seconds after which a pass counts as stuck: with 250 pods it takes a tenth of a second, and
with a rule set of many thousand rules a few seconds."""

DEAD_S = 60.0
"""Seconds after which ``/livez`` asks for a restart: only the pass is lost."""

EVERY_S = 2.0
"""Seconds between looks."""

SLOW_STUCK_S, SLOW_DEAD_S = 120.0, 600.0
"""The same for what waits for EC2: a call may take 40 s (``ec2_caller.ANSWER_S``), and a pass over
the pool makes several."""

FRAMES = 12
"""Of the stack, innermost: enough to name the target and its system call."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """A pass that does not end, or a thread that has stopped reporting.

    Attributes:
        what: which pass, or which thread.
        seconds: since it began, or was last heard of.
        where: the innermost line of ours that it stands in.
    """

    what: str
    seconds: float
    where: str

    def __str__(self) -> str:
        return f"{self.what} has not ended for {self.seconds:.0f} s; it stands at {self.where}"


@dataclass(frozen=True, slots=True)
class _Watched:
    """What is watched of one thread.

    Attributes:
        what: its pass, or its own name.
        since: monotonic seconds at which that began, or it was last heard of.
        thread: its identifier.
        slow: whether it may wait for EC2.
    """

    what: str
    since: float
    thread: int
    slow: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since

    @property
    def is_stuck(self) -> bool:
        return self.seconds >= (SLOW_STUCK_S if self.slow else STUCK_S)

    @property
    def is_dead(self) -> bool:
        return self.seconds >= (SLOW_DEAD_S if self.slow else DEAD_S)


class Watchdog:
    """Watches all threads of the daemon.

    Args:
        tell: called with each look: with what has been stuck longest, or with None.
    """

    def __init__(self, tell: Callable[[Stuck | None], None]) -> None:
        self._tell = tell
        self._passes: dict[int, _Watched] = {}
        self._heard: dict[int, _Watched] = {}
        self._logged: _Watched | None = None
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
        """Watch a pass of the calling thread; within another one, it is watched in its place.

        Args:
            what: which pass, as the log and the condition name it.
            slow: whether it may wait for EC2.
        """
        thread = threading.get_ident()
        around = self._passes.get(thread)
        self._passes[thread] = _Watched(what, time.monotonic(), thread, slow)
        try:
            yield
        finally:
            if around is None:
                del self._passes[thread]
            else:
                self._passes[thread] = around

    def hear(self, what: str) -> None:
        """Note that the calling thread is alive; from now on it must call this every few seconds.

        Args:
            what: what the thread does.
        """
        thread = threading.get_ident()
        self._heard[thread] = _Watched(what, time.monotonic(), thread)

    def let_go(self) -> None:
        """Watch the calling thread no longer: it ends as it should."""
        self._heard.pop(threading.get_ident(), None)

    @property
    def stuck(self) -> Stuck | None:
        """What is stuck, the longest if several are; None if nothing is."""
        watched = self._find_stuck()
        if watched is None:
            return None
        stack = _stack(watched.thread)
        return Stuck(
            watched.what, watched.seconds, stack[-1] if stack else "the end of its thread"
        )

    @property
    def is_alive(self) -> bool:
        """Whether every thread waits, or went on less than a minute ago."""
        return not any(w.is_dead for w in self._all())

    def _all(self) -> list[_Watched]:
        return [*self._passes.copy().values(), *self._heard.copy().values()]

    def _find_stuck(self) -> _Watched | None:
        stuck = [w for w in self._all() if w.is_stuck]
        return min(stuck, key=lambda w: w.since, default=None)

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            try:
                with boundary("the watchdog"):
                    self._look()
            except ReconcilerError as error:  # a later observation may see what this one could not
                log.exception("the watchdog failed", extra={"error": error})

    def _look(self) -> None:
        self._tell(self.stuck)
        watched = self._find_stuck()
        if watched and watched != self._logged:
            self._logged = watched  # once for each pass
            log.error(
                "a pass does not end",
                extra={
                    "pass": watched.what,
                    "seconds": round(watched.seconds),
                    "stack": " < ".join(reversed(_stack(watched.thread))),
                },
            )


def _stack(thread: int) -> list[str]:
    """Return where a thread stands, outermost first: file, line and function."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return []
    return [
        f"{entry.filename.rpartition('/')[2]}:{entry.lineno} {entry.name}"
        for entry in traceback.extract_stack(frame)[-FRAMES:]
    ]
