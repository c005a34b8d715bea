"""One question to the running reconciler."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from cni import exchange
from reconciler.errors import UnansweredError

TIMEOUT_S = 10.0
"""Seconds until the whole answer must be here, however it trickles in."""


def ask(path: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Send one question, return its answer.

    Raises:
        UnansweredError: no reconciler answers, or the answer is a refusal.
    """
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
    if not answer.get("ok"):
        raise UnansweredError(f"{path}: {answer.get('msg')}")
    return answer
