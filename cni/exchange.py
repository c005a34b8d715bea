"""The reconciler's socket: one question, one answer, within a time."""

from __future__ import annotations

import socket
import time

from cni import strict_json

CONNECT_S = 2.0
"""Seconds in which ADD must reach the socket. Its queue has 512 places: longer means that the
reconciler does not accept."""

SHORT_S = 0.25  # seconds for what must not wait: the hint of a DEL, each half of a STATUS
MAX_ANSWER = 1 << 20  # bytes of an answer
SOCKET = "node-network.sock"  # in the state directory

Connection = socket.socket


def connect(state_dir: str, timeout_s: float) -> Connection:
    """Return a connection to the reconciler.

    Raises:
        OSError: no process listens, or it does not accept in time, or this user may not.
    """
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        s.settimeout(timeout_s)
        s.connect(f"{state_dir}/{SOCKET}")
    except OSError:
        s.close()
        raise
    return s


def ask(s: Connection, question: dict[str, object], timeout_s: float) -> dict[str, object]:
    """Ask, return the answer; all of it must be here within the time.

    Raises:
        OSError: the connection broke or the time ran out.
        ValueError: the answer is no JSON object.
    """
    reply = strict_json.read(ask_for_text(s, question, timeout_s))
    if not isinstance(reply, dict):
        raise ValueError("the answer is no object")
    return reply


def ask_for_text(s: Connection, question: dict[str, object], timeout_s: float) -> str:
    """Ask, return the answer as it came; all of it must be here within the time.

    Raises:
        OSError: the connection broke or the time ran out.
        ValueError: the answer is too long, or no text.
    """
    deadline = time.monotonic() + timeout_s
    s.settimeout(timeout_s)
    s.sendall(encode(question))
    received = b""
    while not received.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the time ran out")
        s.settimeout(left)
        part = s.recv(65536)
        if not part:
            raise ConnectionResetError("the connection was closed")
        received += part
        if len(received) > MAX_ANSWER:
            raise ValueError(f"the answer has no end within {MAX_ANSWER} bytes")
    return received.decode()


def hint(state_dir: str, question: dict[str, object]) -> None:
    """Tell the reconciler, if one is there, that something was recorded; wait for no answer."""
    try:
        with connect(state_dir, SHORT_S) as connection:
            connection.sendall(encode(question))
    except OSError:
        return


def encode(question: dict[str, object]) -> bytes:
    """Return a question as it is sent."""
    return strict_json.write(question).encode() + b"\n"
