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
                answer = json.loads(stream.readline())
    except PermissionError as error:
        raise UnansweredError(f"{path}: {error.strerror}; run as root") from error
    except TimeoutError as error:
        why = f"no answer within {TIMEOUT_S:g} s"
        raise UnansweredError(f"{path}: {why}; the reconciler is there: see its log") from error
    except OSError as error:
        why = error.strerror or str(error)
        raise UnansweredError(f"{path}: {why}; is 'node-network run' running?") from error
    except (ValueError, RecursionError) as error:
        why = "the answer ended early, or is no JSON"
        raise UnansweredError(f"{path}: {why}; see the reconciler's log") from error
    if not isinstance(answer, dict) or not answer.get("ok"):
        said = answer.get("msg") if isinstance(answer, dict) else "the answer is no JSON object"
        raise UnansweredError(f"{path}: {said}")
    return answer
