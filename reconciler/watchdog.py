"""Notices a pass that does not end, and says where it stands.

The loop is alive if it waits, or if the pass it is in has begun not long ago. A thread looks at
that from outside, because a thread that is stuck in a system call can say nothing itself.
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

log = logging.getLogger(__name__)

STUCK_S = 10.0
"""Seconds after which a pass counts as stuck: with 250 pods one takes a tenth of a second, and the
slowest thing in it that may work after all, a rule set of many thousand rules, a few seconds."""

DEAD_S = 60.0
"""Seconds after which the process is worth a restart: it loses nothing but the pass."""

EVERY_S = 2.0
"""Seconds between looks."""

FRAMES = 12
"""Of the stack, innermost: enough to name the target and its system call."""


@dataclass(frozen=True, slots=True)
class Stuck:
    """A pass that does not end.

    Attributes:
        what: which pass.
        seconds: since it began.
        where: the innermost line of ours that it stands in.
    """

    what: str
    seconds: float
    where: str

    def __str__(self) -> str:
        return f"{self.what} has not ended for {self.seconds:.0f} s; it stands at {self.where}"


class Watchdog:
    """Watches the passes of one thread.

    Args:
        tell: hears of a pass that does not end, again with each look, and of nothing once it has.
    """

    def __init__(self, tell: Callable[[Stuck | None], None]) -> None:
        self._tell = tell
        self._pass: tuple[str, float, int] | None = None
        self._logged: tuple[str, float, int] | None = None
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
    def over(self, what: str) -> Iterator[None]:
        """Watch a pass of the calling thread.

        Args:
            what: which pass, as the log and the condition name it.
        """
        self._pass = (what, time.monotonic(), threading.get_ident())
        try:
            yield
        finally:
            self._pass = None

    @property
    def stuck(self) -> Stuck | None:
        """The pass that does not end, if there is one."""
        watched = self._pass
        if watched is None or (seconds := time.monotonic() - watched[1]) < STUCK_S:
            return None
        stack = _stack(watched[2])
        return Stuck(watched[0], seconds, stack[-1] if stack else "its thread has ended")

    @property
    def is_alive(self) -> bool:
        """Whether the loop ticks: it waits, or its pass began less than a minute ago."""
        watched = self._pass
        return watched is None or time.monotonic() - watched[1] < DEAD_S

    def _watch(self) -> None:
        while not self._ended.wait(EVERY_S):
            watched, stuck = self._pass, self.stuck
            self._tell(stuck)
            if stuck and watched and watched != self._logged:
                self._logged = watched  # once for each pass
                log.error(
                    "a pass does not end",
                    extra={
                        "pass": stuck.what,
                        "seconds": round(stuck.seconds),
                        "stack": " < ".join(reversed(_stack(watched[2]))),
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
