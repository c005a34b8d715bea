"""A question that stays open for a while: is what was applied to stay?

Enter answers it in the same terminal, ``apply --confirmed`` from any other shell: an edit may have
cut the one that it was made from. A file stands for the question; who removes it has answered.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from reconciler.errors import StateError

NAME = "unconfirmed"
"""Of the file, in the state directory."""

AGAIN_S = 0.2  # seconds between two looks whether the file is still there


class Question:
    """The open question of this process.

    Raises:
        StateError: its file cannot be made.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / NAME
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            # One that a killed process has left is taken over. Its lock says that somebody waits.
            self._fd = os.open(self._path, flags, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StateError(f"cannot make {self._path}: {error.strerror}") from error

    def wait(self, seconds: float, keys: int | None) -> bool:
        """Return whether it is confirmed.

        ``keys``: descriptor of the terminal on which Enter confirms; None without one.
        """
        if keys is not None and os.isatty(keys):
            termios.tcflush(keys, termios.TCIFLUSH)  # what was typed before it was asked
        deadline = time.monotonic() + seconds
        while self._path.exists():
            left = deadline - time.monotonic()
            if left <= 0:
                return not self.close()
            ready, _, _ = select.select(
                [keys] if keys is not None else [], [], [], min(left, AGAIN_S)
            )
            if ready and keys is not None:
                typed = _read(keys)
                if b"\n" in typed:
                    self.close()
                    return True
                keys = keys if typed else None  # the terminal is gone: that is no answer
        return True

    def close(self) -> bool:
        """Ask no longer; return whether it was still open."""
        try:
            self._path.unlink()
        except FileNotFoundError:
            return False
        return True


def _read(keys: int) -> bytes:
    try:
        return os.read(keys, 4096)
    except OSError:  # EIO: of a terminal that was hung up
        return b""


def confirm(state_dir: Path) -> None:
    """Answer the question that another process asks.

    Raises:
        StateError: none does.
    """
    path = state_dir / NAME
    none = f"nothing in {state_dir} waits to be confirmed"
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise StateError(none) from error
    except OSError as error:
        cure = "; run as root" if isinstance(error, PermissionError) else ""
        raise StateError(f"cannot open {path}: {error.strerror}{cure}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        is_asked = True
    else:
        is_asked = False  # it was killed, and has gone back to nothing
    finally:
        os.close(fd)
    path.unlink(missing_ok=True)
    if not is_asked:
        raise StateError(f"{none}: what has asked was killed, and the node stays as it left it")


@contextmanager
def interruptible() -> Iterator[None]:
    """Have SIGTERM end it as Ctrl-C does, the first of both; a terminal that is hung up does not.

    What is printed then goes nowhere.
    """
    ending = (signal.SIGINT, signal.SIGTERM)

    def end(*_: Any) -> None:
        for number in ending:
            signal.signal(number, signal.SIG_IGN)  # impatience must not keep it from going back
        raise KeyboardInterrupt

    def hang_up(*_: Any) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for fd in (1, 2):
            os.dup2(nowhere, fd)

    handlers = {signal.SIGHUP: hang_up, **dict.fromkeys(ending, end)}
    with _handled(handlers):
        yield


def uninterruptible() -> AbstractContextManager[None]:
    """Let none of these signals end it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    return _handled(dict.fromkeys(numbers, signal.SIG_IGN))


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
