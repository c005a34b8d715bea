"""The last result of a read that takes long, refreshed beside the loop that serves pods."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

QUICK_S, IDLE_SHARE = 0.25, 5
"""Seconds up to which a read may follow another at once. A longer one is good for so many times as
long as it took: what is read may change without end."""


class Latest(Generic[T]):
    """The last result of a read.

    Args:
        read: returns the result, which nothing changes afterwards.
        clock: monotonic seconds.

    Attributes:
        apart: another thread takes the turns; else ``observe`` takes one.
    """

    def __init__(self, read: Callable[[], T], clock: Callable[[], float] = time.monotonic) -> None:
        self._read = read
        self._clock = clock
        self._last: tuple[T, float] | None = None
        """Written by the thread that reads: the result, and until when it is good."""
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self.apart = False

    def observe(self) -> T:
        """Return the last result, and have it refreshed; the first one is waited for."""
        if self.apart and self._last is not None:
            self._asked.set()
            return self._last[0]
        self.turn()
        assert self._last is not None
        return self._last[0]

    def turn(self) -> bool:
        """Read, unless the last result is still good; say whether there is another one."""
        self._asked.clear()
        before, started = self._last, self._clock()
        if before is not None and (started < before[1] or self._stopped.is_set()):
            return False
        found = self._read()
        ended = self._clock()
        idle_s = IDLE_SHARE * (ended - started) if ended - started > QUICK_S else 0.0
        self._last = found, ended + idle_s
        return before is None or found != before[0]

    def wait(self) -> None:
        """Wait until it is asked for, and the last result is good no more."""
        self._asked.wait()
        if self._last is not None:
            self._stopped.wait(max(0.0, self._last[1] - self._clock()))

    def stop(self) -> None:
        """End ``wait``, now and ever after."""
        self._stopped.set()
        self._asked.set()
