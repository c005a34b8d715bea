"""Two threads of which one runs at a time, and the moments at which the other takes over.

The daemon's loops share one node. A test starts the second thread in the middle of the first
one's pass, at one chosen call of a target, and may give the turn back at one chosen call of the
second. A lock that the one holds makes the other wait, and it goes on as soon as it is free. So
every interleaving at those calls can be walked, and each is the same each time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from fakes import CrashError

LONGEST_S = 60.0
"""Seconds; far beyond what any pass takes, so that a deadlock fails."""


class Baton:
    """Runs ``second`` in a thread of its own beside the thread that makes the baton.

    Args:
        second: what the other thread does.
        at: the number of the first one's call, from 0, at which it begins.
        back: the number of the second's call at which the first goes on; None: at its end.

    Attributes:
        calls: how many calls either has made so far, the first one's and the second's.
    """

    def __init__(self, second: Callable[[], Any], at: int, back: int | None = None) -> None:
        self.calls = [0, 0]
        self._second = second
        self._at, self._back = at, back
        self._turns = (threading.Semaphore(0), threading.Semaphore(0))
        self._first = threading.current_thread()
        self._thread: threading.Thread | None = None
        self._waiting = [False, False]
        self._is_over = self._is_finishing = False
        self._died: BaseException | None = None
        self._error: BaseException | None = None

    @property
    def _me(self) -> int:
        return int(threading.current_thread() is not self._first)

    def point(self) -> None:
        """Let the other one go on, if this is the moment for it."""
        me = self._me
        self.calls[me] += 1
        number = self.calls[me] - 1
        if me == 0 and number == self._at and self._thread is None:
            self._begin()
        elif me == 1 and number == self._back:
            self._switch()

    def finish(self, died: BaseException | None = None) -> None:
        """Have the second come to its end, after the first.

        Args:
            died: of what the first has died, and the second with it.

        Raises:
            BaseException: the second has failed.
        """
        self._died = died
        self._is_finishing = True
        while self._thread is not None and not self._is_over:
            self._switch()
        if self._thread is None and died is None:
            self._at = -1
            self._second()
        if self._error is not None:
            raise self._error

    def wait_for(self, is_free: Callable[[], bool]) -> None:
        """Leave the turn to the other until something is free."""
        while not is_free():
            assert self._thread is None or not self._is_alone, "it would wait for ever"
            self._waiting[self._me] = True
            if self._thread is None:
                self._begin()
            else:
                self._switch()
        self._waiting[self._me] = False

    @property
    def _is_alone(self) -> bool:
        """Whether the other has come to its end."""
        return self._is_finishing if self._me else self._is_over

    def released(self) -> None:
        """Let the other one go on, if it waits."""
        if self._waiting[1 - self._me] and self._died is None:
            self._switch()

    def _begin(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._await(0)

    def _run(self) -> None:
        try:
            self._second()
        except BaseException as error:  # noqa: BLE001 - ``finish`` raises it
            self._error = error
        finally:
            self._is_over = True
            self._turns[0].release()

    def _switch(self) -> None:
        me = self._me
        self._turns[1 - me].release()
        self._await(me)

    def _await(self, me: int) -> None:
        assert self._turns[me].acquire(timeout=LONGEST_S), "a deadlock"
        other = self._died if me else self._error
        if isinstance(other, CrashError):
            raise CrashError  # one process: both die


class Lock:
    """A reentrant lock or a condition, as far as two threads that take turns can tell.

    Attributes:
        baton: of the two threads; None while there is one only.
    """

    def __init__(self) -> None:
        self.baton: Baton | None = None
        self._owner: threading.Thread | None = None
        self._depth = 0
        self._notices = 0

    def __enter__(self) -> None:
        me = threading.current_thread()
        if self._owner not in (None, me):
            assert self.baton is not None
            self.baton.wait_for(lambda: self._owner is None)
        self._owner = me
        self._depth += 1

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = None
            if self.baton is not None and kind is not CrashError:
                self.baton.released()

    def notify_all(self) -> None:
        """Wake the other, if it waits."""
        self._notices += 1

    def wait_for(self, predicate: Callable[[], Any], timeout: float = 60.0) -> None:
        """Wait until something holds; fail if nobody will ever say so."""
        while not predicate() and timeout > 0:
            assert self.baton is not None
            self.baton.point()  # a condition that keeps nobody out loses what is said here
            seen, depth, self._owner = self._notices, self._depth, None
            self._depth = 0
            self.baton.wait_for(lambda seen=seen: self._notices > seen and self._owner is None)
            self._owner, self._depth = threading.current_thread(), depth


class NoLock(Lock):
    """A lock that keeps nobody out."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def expose(subject: object, point: Callable[[], None], *fields: str) -> None:
    """Make each reading and each writing of some fields a moment at which the other takes over.

    What was read may be old by the time that it is used.
    """

    def access(name: str) -> property:
        def read(self: Any) -> Any:
            value = self.__dict__[name]
            point()
            return value

        def write(self: Any, value: Any) -> None:
            point()
            self.__dict__[name] = value

        return property(read, write)

    kind = type(subject)
    subject.__class__ = type(kind.__name__, (kind,), {name: access(name) for name in fields})


class Told:
    """A target each of whose calls is a moment at which the other thread may take over."""

    def __init__(self, target: Any, point: Callable[[], None]) -> None:
        self._target = target
        self._point = point

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            self._point()
            return found(*arguments, **options)

        return call
