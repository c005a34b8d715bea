"""One question to the running reconciler."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from reconciler.errors import UnansweredError

TIMEOUT_S = 10.0


def ask(path: Path, question: dict[str, Any]) -> dict[str, Any]:
    """Send one question, return its answer.

    Raises:
        UnansweredError: nobody answers, or the answer is a refusal.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
            s.settimeout(TIMEOUT_S)
            s.connect(str(path))
            with s.makefile("rwb") as stream:
                stream.write(json.dumps(question).encode() + b"\n")
                stream.flush()
                answer: dict[str, Any] = json.loads(stream.readline())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UnansweredError(f"{path}: {why}; is 'node-network run' running?") from error
    if not answer.get("ok"):
        raise UnansweredError(f"{path}: {answer.get('msg')}")
    return answer
