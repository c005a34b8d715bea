"""Notifications of the kernel between the thread that hears them and the loop that weighs them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping

from reconciler.engine.converge import Outcome
from reconciler.targets.expected import Expected, Verdict
from reconciler.targets.netlink.read import name_of

MOST_BYTES = 1 << 20
"""That are kept: some two thousand pods' worth. Of more it is only known that there were some."""

UNDECIDED_S = 0.25  # seconds for which the rest of what the kernel tells of a link is waited for


class Notifications:
    """What was heard since the loop last asked, as sockets have received it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: list[bytes] = []
        self._size = 0
        self._heard_at: float | None = None
        self._is_lost = True

    def hear(self, data: bytes) -> None:
        """Keep what a socket has received."""
        with self._lock:
            self._heard_at = time.monotonic()
            self._size += len(data)
            if self._size > MOST_BYTES:
                self._lose()
            elif not self._is_lost:
                self._told.append(data)

    def lose(self) -> None:
        """Note that something may have been missed."""
        with self._lock:
            self._lose()

    def _lose(self) -> None:
        self._told, self._is_lost = [], True

    def begin(self) -> None:
        """Forget everything: what it is about is looked at from now on."""
        with self._lock:
            self._told, self._size, self._is_lost = [], 0, False

    def told(self) -> tuple[bytes, ...] | None:
        """Return what was heard since it was last forgotten; None if that is not all.

        Nor is it if nothing was ever heard: then the notification has another source.
        """
        with self._lock:
            if self._is_lost or self._heard_at is None:
                return None
            return tuple(self._told)

    def forget(self, told: tuple[bytes, ...]) -> None:
        """Forget what was weighed; what has come meanwhile stays."""
        with self._lock:
            if not self._is_lost:
                del self._told[: len(told)]
                self._size = sum(map(len, self._told))

    @property
    def heard_at(self) -> float:
        """Monotonic seconds at which the last one was heard."""
        with self._lock:
            return self._heard_at or 0.0


class Ledger:
    """Weighs notifications against what passes have seen, and done; the kernel loop's own."""

    def __init__(self, notifications: Notifications) -> None:
        self._notifications = notifications
        self._expected = Expected()

    def begin(self) -> None:
        """Begin a full pass: all that was told is looked at; nothing is expected until then."""
        self._expected.is_whole = False
        self._notifications.begin()

    def learn(self, outcomes: Mapping[str, Outcome], *, settled: bool) -> None:
        """Take over what a full pass has seen."""
        self._expected.learn(outcomes, settled=settled)

    def follow(self, outcomes: Mapping[str, Outcome], gone: Iterable[object] = ()) -> None:
        """Take over what a pass over some pods has done; ``gone`` is not wanted any more."""
        self._expected.follow(outcomes, gone)

    def weigh(self, now: float) -> Verdict:
        """Say what was told since; what takes no full pass is done with.

        ``now``: monotonic seconds.
        """
        told = self._notifications.told()
        if told is None:
            return Verdict.NEWS
        verdict = self._expected.judge(told, name_of)
        if verdict in (Verdict.EXPLAINED, Verdict.OTHERS):
            self._notifications.forget(told)
        elif verdict is Verdict.UNDECIDED and now - self._notifications.heard_at >= UNDECIDED_S:
            return Verdict.NEWS
        return verdict
