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
        last = self._last
        if self.apart and last is not None:
            self._asked.set()
        else:
            last = self._refresh()
        return last[0]

    def turn(self) -> bool:
        """Read, unless the last result is still good; say whether there is another one."""
        before = self._last
        after = self._refresh()
        return before is None or after[0] != before[0]

    def _refresh(self) -> tuple[T, float]:
        self._asked.clear()
        last, started = self._last, self._clock()
        if last is None or (started >= last[1] and not self._stopped.is_set()):
            found, ended = self._read(), self._clock()
            idle_s = IDLE_SHARE * (ended - started) if ended - started > QUICK_S else 0.0
            last = self._last = found, ended + idle_s
        return last

    def wait(self) -> None:
        """Wait until it is asked for, and the last result is good no more."""
        self._asked.wait()
        if self._last is not None:
            self._stopped.wait(max(0.0, self._last[1] - self._clock()))

    def stop(self) -> None:
        """End ``wait``, now and ever after."""
        self._stopped.set()
        self._asked.set()
