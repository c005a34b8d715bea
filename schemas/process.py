"""Processes that check documents, from the side of who asks: one process for one question.

Of its own, so that one can be started before anything else is imported.
"""

from __future__ import annotations

import subprocess
import sys
import threading

CHECKER = "schemas.apart"

ANSWER_S = 60.0
"""Seconds in which a document must be checked; the largest takes some 3 on a quiet machine."""

MAX_ANSWER = 16 << 20
"""Bytes of an answer: a document of 1 MiB in the longest words of ``schemas.wire``."""


class Checkers:
    """Starts processes, and asks them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process that will be asked next: it loads its modules meanwhile."""
        with self._lock:
            if self._ready is None:
                self._ready = start(CHECKER)

    def ask(self, question: bytes) -> bytes:
        """Return the answer of a process, which has ended by then.

        Raises:
            OSError: it could not be started, failed, took too long, or said too much.
        """
        with self._lock:
            process, self._ready = self._ready, None
        process = process or start(CHECKER)
        try:
            answer, _ = process.communicate(question, ANSWER_S)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"no answer for {ANSWER_S:.0f} s") from error
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
        if process.returncode:
            raise OSError(f"it ended with status {process.returncode}")
        if len(answer) > MAX_ANSWER:
            raise OSError(f"its answer is longer than {MAX_ANSWER} bytes")
        return answer


def start(module: str) -> subprocess.Popen[bytes]:
    """Start a module of ours that reads questions, and writes answers."""
    # A session of its own: a terminal's Ctrl-C is for who asks, whose end it sees.
    return subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


CHECKERS = Checkers()
"""Of this process."""
