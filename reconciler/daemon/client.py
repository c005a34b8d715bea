"""One question to the running reconciler."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

from cni import exchange, protocol
from reconciler.errors import UnansweredError

TIMEOUT_S = 10.0  # seconds until the whole answer must be here, however it trickles in

BUSY_S, AGAIN_S = 1.0, 0.05
"""Seconds for which ``status`` is asked again if the reconciler says to try again, and between two
tries: the thread of an earlier answer may not have ended when the next question comes."""


def ask(path: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Send one question, return its answer.

    Raises:
        UnansweredError: no reconciler answers, or the answer is a refusal.
    """
    deadline = time.monotonic() + BUSY_S
    while not (answer := _ask_once(path, question)).get("ok"):
        is_busy = question.get("do") == "status" and answer.get("code") == protocol.TRY_AGAIN
        if not is_busy or time.monotonic() > deadline:
            raise UnansweredError(f"{path}: {answer.get('msg')}")
        time.sleep(AGAIN_S)
    return answer


def _ask_once(path: Path, question: dict[str, Any]) -> dict[str, Any]:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(TIMEOUT_S)
            s.connect(str(path))
            answer = exchange.ask(s, question, TIMEOUT_S)
    except PermissionError as error:
        raise UnansweredError(f"{path}: {error.strerror}; run as root") from error
    except TimeoutError as error:
        why = f"no answer within {TIMEOUT_S:g} s"
        raise UnansweredError(f"{path}: {why}; the reconciler is there: see its log") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise UnansweredError(f"{path}: {why}; is 'node-network run' running?") from error
    except ValueError as error:
        why = f"this is no answer: {error}"
        raise UnansweredError(f"{path}: {why}; see the reconciler's log") from error
    return answer
