"""Threads that work for connections: so many of a kind at once, a few kept for the next."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from queue import SimpleQueue

SPARE_THREADS = 4
"""Threads that are kept for the next connections."""


class Workers:
    """Runs what waits in threads, so many of a kind at once, of which a few are kept for the next.

    A pod waits for a thread to start as long as for a link of its to be made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle = 0
        self._busy: Counter[str] = Counter()
        self._work: SimpleQueue[tuple[str, Callable[[], None]] | None] = SimpleQueue()

    def run(self, kind: str, most: int, what: Callable[[], None]) -> bool:
        """Have a thread do something; False if it does so much of this kind already."""
        with self._lock:
            if self._busy[kind] >= most:
                return False
            if self._idle:
                self._idle -= 1
            else:
                threading.Thread(target=self._go, name="exchange", daemon=True).start()
            self._busy[kind] += 1
        self._work.put((kind, what))
        return True

    def stop(self) -> None:
        """End the threads that are idle."""
        with self._lock:
            for _ in range(self._idle):
                self._work.put(None)
            self._idle = 0

    def _go(self) -> None:
        while work := self._work.get():
            kind, what = work
            try:
                what()  # what it raises ends this thread only
            finally:
                with self._lock:
                    self._busy[kind] -= 1
            with self._lock:
                if self._idle >= SPARE_THREADS:
                    return
                self._idle += 1
