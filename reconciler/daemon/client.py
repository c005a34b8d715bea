"""One question to the running reconciler."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from cni import exchange, protocol
from reconciler.daemon.unix_socket import STATUS
from reconciler.errors import UnansweredError

WHO_MAY = (
    "run as root, or for 'status' as a member of the group that the reconciler was started with "
    "(--status-group)"
)

TIMEOUT_S = 10.0  # seconds until the whole answer must be here, however it trickles in

BUSY_S, AGAIN_S = 1.0, 0.05
"""Seconds for which ``status`` is asked again if the reconciler says to try again, and between two
tries: the thread of an earlier answer may not have ended when the next question comes."""


class ForbiddenError(UnansweredError):
    """This user may not ask there."""

    reason = UnansweredError.reason


def ask_status(state_dir: Path) -> dict[str, Any]:
    """Return what the reconciler of a state directory says of itself.

    Who may not use its socket may be in the group that has one for this question.

    Raises:
        UnansweredError: no reconciler answers, or this user may not ask.
    """
    question = {"do": "status"}
    try:
        answer = ask(state_dir / exchange.SOCKET, question)
    except ForbiddenError as refusal:
        try:
            answer = ask(state_dir / STATUS, question)
        except ForbiddenError:
            raise refusal from None
        except UnansweredError as error:
            # There is no other socket, or none answers there.
            if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
                raise refusal from None
            raise
    status: dict[str, Any] = answer["status"]
    return status


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
            answer = json.loads(exchange.ask_for_text(s, question, TIMEOUT_S))
    except PermissionError as error:
        raise ForbiddenError(f"{path}: {error.strerror}; {WHO_MAY}") from error
    except TimeoutError as error:
        why = f"no answer within {TIMEOUT_S:g} s"
        raise UnansweredError(f"{path}: {why}; the reconciler is there: see its log") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise UnansweredError(f"{path}: {why}; is 'node-network run' running?") from error
    except (ValueError, RecursionError) as error:
        why = f"this is no answer: {error}"
        raise UnansweredError(f"{path}: {why}; see the reconciler's log") from error
    if not isinstance(answer, dict):
        why = "this is no answer: it is no object"
        raise UnansweredError(f"{path}: {why}; see the reconciler's log")
    return answer
