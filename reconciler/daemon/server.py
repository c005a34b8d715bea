"""The Unix socket: the CNI executable waits here, and ``status`` asks here.

One JSON object on one line each way, one exchange per connection. The socket carries questions
only; what is wanted was written to the state directory before.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from pathlib import Path
from typing import Any

from cni import protocol
from reconciler.daemon import answers
from reconciler.daemon.agent import Agent
from reconciler.daemon.answers import MALFORMED, encode, refuse
from reconciler.daemon.listener import Bounds, Listener
from reconciler.daemon.workers import Workers
from reconciler.engine.issue import Issue
from reconciler.errors import InternalError, ReconcilerError, StateError, boundary

log = logging.getLogger(__name__)

ANSWERING = "an answer on the socket"
"""The duty, as conditions and the watchdog name it."""

LOGGED = {do: f"{do} answered" for do in answers.OF_A_POD}
"""What a pod's way is followed by, in the log, by question."""

QUEUE = 512
"""Connections that the kernel keeps for us; a node's worth of pods may ask at once."""

BOUNDS = Bounds(connections=1024, request_bytes=65536, request_s=10.0, answer_s=10.0, grace_s=0.1)
"""A node's pods may all ask at once, and each waits on its connection. The executable connects,
writes its intent to the disk, and then asks, with some hundred bytes; ``release`` has an intent in
it, of some kilobytes."""

AT_ONCE = {"add": 768, "check": 64, "status": 4}
"""Questions of a kind that may be under way, each in a thread of its own. No instance has more
than 737 pods, and 768 threads that wait take some 15 MB; an answer to ``status`` is the only large
one."""

OTHERS_AT_ONCE = 32
"""The same for all other kinds together: they wait for nothing."""


class Server:
    """Answers on one socket path, each question in a thread of its own.

    Only root may connect: the socket's mode is 0600.

    Raises:
        StateError: the socket cannot be made.
    """

    def __init__(self, path: Path, agent: Agent) -> None:
        self._agent = agent
        self._path = path
        self._workers = Workers()
        self._listener, self._place = self._open()

    def _open(self) -> tuple[Listener, Place]:
        listener: Listener

        def take(connection: socket.socket, line: bytes) -> bytes | None:
            return self._take(listener, connection, line)

        listener = Listener(
            "the socket",
            _listen(self._path),
            BOUNDS,
            lambda received: b"\n" in received,
            take,
            duties=self._agent.parts.duties,
            watchdog=self._agent.parts.watchdog,
        )
        return listener, _place(self._path)

    def start(self) -> None:
        """Begin to answer."""
        self._listener.start()

    @property
    def is_own(self) -> bool:
        """Whether the socket's path leads here."""
        return _place(self._path) == self._place

    def reclaim(self) -> tuple[Issue, ...]:
        """Listen again if the socket's path does not lead here; say so.

        The lock must be held: another reconciler's socket would be taken away.

        Raises:
            StateError: the socket cannot be made.
        """
        if self.is_own:
            return ()
        before = self._listener
        listener, place = self._open()
        try:
            listener.start()
        except RuntimeError:  # no thread can be started: next time again
            listener.stop()
            raise
        self._listener, self._place = listener, place
        before.stop()
        return (
            Issue(
                f"socket {self._path}",
                "SocketReplaced",
                "it was removed or replaced by another program, so that no pod could ask for its "
                "network; it is made again. Find out who removes it",
            ),
        )

    def stop(self) -> None:
        """End answering; what is under way is finished by its own thread."""
        self._listener.stop()
        self._workers.stop()
        if self.is_own:  # or else it is another reconciler's
            self._path.unlink(missing_ok=True)

    def _take(self, listener: Listener, connection: socket.socket, line: bytes) -> bytes | None:
        """Give a question to a thread; refuse what is none, and what is too much at once."""
        began = time.monotonic()
        try:
            if len(line) > BOUNDS.request_bytes:
                raise ValueError(f"it has more than {BOUNDS.request_bytes} bytes")
            question = json.loads(line)
            do = str(question["do"])
        except MALFORMED as error:
            return encode(
                refuse(protocol.DECODING_FAILURE, "the request cannot be understood", error)
            )
        kind, most = (do, AT_ONCE[do]) if do in AT_ONCE else ("other", OTHERS_AT_ONCE)

        def exchange() -> None:
            try:
                with self._agent.parts.duties.over(ANSWERING, slow=True):
                    self._exchange(connection, question, began)
            finally:
                listener.close(connection)

        try:
            if self._workers.run(kind, most, exchange):
                return None
            message = f"{most} questions of this kind are under way"
        except RuntimeError as error:  # EAGAIN in pthread_create(3)
            message = f"the reconciler: {error}: its pids cgroup or the host has as many as it may"
        return encode(refuse(protocol.TRY_AGAIN, message, do))

    def _exchange(self, connection: socket.socket, question: dict[str, Any], began: float) -> None:
        """Answer one question; also if that fails in a way that no code expects."""
        surprise: InternalError | None = None
        try:
            answers.check(question)
        except MALFORMED as error:
            reply = refuse(protocol.DECODING_FAILURE, "the request cannot be understood", error)
        else:
            try:
                with boundary(ANSWERING):
                    reply = answers.answer(self._agent, question)
            except ReconcilerError as error:
                surprise = error if isinstance(error, InternalError) else None
                reason = type(error).__name__
                reply = answers.refuse_for(Issue("the reconciler", reason, str(error)))
        told = _say(connection, reply)
        do = str(question["do"])
        if do == "add" and reply["ok"] and not told:
            self._agent.parts.requests.disclaim(answers.key_of(question))
        if do in LOGGED:
            # A DEL leaves only a hint, and does not wait for the answer.
            _log(
                question,
                reply,
                told=told or do == "del",
                milliseconds=(time.monotonic() - began) * 1000,
            )
        if surprise is not None:
            raise surprise  # to be a condition


Place = tuple[int, int] | None
"""Device and inode of a path; None if there is nothing."""


def _place(path: Path) -> Place:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _listen(path: Path) -> socket.socket:
    """Return a listening socket that only root may connect to.

    Raises:
        StateError: it cannot be made.
    """
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # left by a process that was killed; the lock says it is gone
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        listening.bind(str(path))
        listening.listen(QUEUE)
    except OSError as error:
        listening.close()
        # AF_UNIX takes 107 bytes (unix(7)).
        raise StateError(f"cannot listen on {path}: {error}; use another directory") from error
    finally:
        os.umask(previous)
    return listening


def _say(connection: socket.socket, reply: dict[str, Any]) -> bool:
    """Write the answer; return whether the other side was still there to take it.

    If not, its intent says what it wanted.
    """
    connection.settimeout(BOUNDS.answer_s)
    try:
        connection.sendall(encode(reply))  # the timeout is for all of it
    except OSError:
        return False
    return True


def _log(
    question: dict[str, Any], reply: dict[str, Any], *, told: bool, milliseconds: float
) -> None:
    log.info(
        LOGGED[question["do"]],
        extra={
            "key": f"{question.get('containerID')}/{question.get('ifname')}",
            "pod": question.get("pod", ""),
            "trace": question.get("trace", ""),
            "attempt": question.get("attempt", ""),
            "outcome": reply.get("reason", "ok") if told else "client_gone",
            "ms": round(milliseconds, 1),
        },
    )
