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
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cni import protocol
from reconciler.core.attachment import Attachment, AttachmentKey, netns_path
from reconciler.core.datapath import family_of, host_network
from reconciler.daemon.agent import Agent
from reconciler.daemon.listener import Bounds, Listener
from reconciler.engine.finding import Finding
from reconciler.engine.plan import Refusal
from reconciler.errors import InternalError, ReconcilerError, StateError, boundary
from reconciler.targets.netlink.namespaces import own_namespace

log = logging.getLogger(__name__)

CODES = {
    "AlreadyAttached": protocol.ALREADY_ATTACHED,
    "InterfaceExists": protocol.INTERFACE_EXISTS,
    "ObjectExists": protocol.OBJECT_EXISTS,
    "NetnsTaken": protocol.NETNS_TAKEN,
    "NotAttached": protocol.UNKNOWN_CONTAINER,
    "Differs": protocol.KERNEL_DIFFERS,
    "ForeignObject": protocol.KERNEL_DIFFERS,
    "NotAvailable": protocol.NOT_AVAILABLE,
    "Limited": protocol.LIMITED,
}
"""What the executable says, by reason; for all others there is a point in trying again later."""

MALFORMED = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What a question raises that is none."""

ANSWERING = "an answer on the socket"
"""The duty, as conditions and the watchdog name it."""

LOGGED = {do: f"{do} answered" for do in ("add", "del", "check", "release")}
"""What a pod's way is followed by, in the log, by question."""

QUEUE = 512
"""Connections that the kernel keeps for us; a node's worth of pods may ask at once."""

SPARE_THREADS = 4
"""Threads that are kept for the next connections."""

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

MAX_ANSWER = 1 << 20
"""Bytes of an answer: what the executable and ``node-network status`` read of one."""

LONGEST_BUDGET_S = 110.0
"""Seconds; kubelet gives a sandbox two minutes."""


class Server:
    """Answers on one socket path, each question in a thread of its own.

    Only root may connect: the socket's mode is 0600.

    Raises:
        StateError: the socket cannot be made.
    """

    def __init__(self, path: Path, agent: Agent) -> None:
        self._agent = agent
        self._path = path
        self._workers = _Workers()
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
            duties=self._agent.duties,
            watchdog=self._agent.watchdog,
        )
        return listener, _place(self._path)

    def start(self) -> None:
        """Begin to answer."""
        self._listener.start()

    @property
    def is_own(self) -> bool:
        """Whether the socket's path leads here."""
        return _place(self._path) == self._place

    def reclaim(self) -> tuple[Finding, ...]:
        """Listen again if the socket's path leads here no more; say so.

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
            Finding(
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
            return _encode(
                _refuse(protocol.DECODING_FAILURE, "the request cannot be understood", error)
            )
        kind, most = (do, AT_ONCE[do]) if do in AT_ONCE else ("other", OTHERS_AT_ONCE)

        def exchange() -> None:
            try:
                with self._agent.duties.over(ANSWERING, slow=True):
                    self._exchange(connection, question, began)
            finally:
                listener.close(connection)

        try:
            if self._workers.run(kind, most, exchange):
                return None
            message = f"{most} questions of this kind are under way"
        except RuntimeError as error:  # EAGAIN in pthread_create(3); Python says no more of it
            message = f"the reconciler: {error}: its pids cgroup or the host has as many as it may"
        return _encode(_refuse(protocol.TRY_AGAIN, message, do))

    def _exchange(self, connection: socket.socket, question: dict[str, Any], began: float) -> None:
        """Answer one question; also if that fails in a way that no code expects."""
        surprise: InternalError | None = None
        try:
            _check(question)
        except MALFORMED as error:
            reply = _refuse(protocol.DECODING_FAILURE, "the request cannot be understood", error)
        else:
            try:
                with boundary(ANSWERING):
                    reply = _answer(self._agent, question)
            except ReconcilerError as error:
                surprise = error if isinstance(error, InternalError) else None
                reason = type(error).__name__
                reply = _refuse_for(Refusal("the reconciler", reason, str(error)))
        told = _say(connection, reply)
        do = str(question["do"])
        if do == "add" and reply["ok"] and not told:
            self._agent.disclaim(_key(question))
        if do in LOGGED:
            # A DEL has left no more than a hint, and is gone.
            _log(
                question,
                reply,
                told=told or do == "del",
                milliseconds=(time.monotonic() - began) * 1000,
            )
        if surprise is not None:
            raise surprise  # to be a condition


class _Workers:
    """Runs what waits in threads, so many of a kind at once, of which a few are kept for the next.

    A pod waits for a thread to start as long as for a link of its to be made.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle = 0
        self._busy: Counter[str] = Counter()
        self._work: SimpleQueue[tuple[str, Callable[[], None]] | None] = SimpleQueue()

    def run(self, kind: str, most: int, what: Callable[[], None]) -> bool:
        """Have a thread do something; False if it does so much of this kind already."""
        with self._lock:
            if self._busy[kind] >= most:
                return False
            if self._idle:
                self._idle -= 1
            else:
                threading.Thread(target=self._go, name="exchange", daemon=True).start()
            self._busy[kind] += 1
        self._work.put((kind, what))
        return True

    def stop(self) -> None:
        """End the threads that are idle."""
        with self._lock:
            for _ in range(self._idle):
                self._work.put(None)
            self._idle = 0

    def _go(self) -> None:
        while work := self._work.get():
            kind, what = work
            try:
                what()  # an error of ours ends this thread, and no other
            finally:
                with self._lock:
                    self._busy[kind] -= 1
            with self._lock:
                if self._idle >= SPARE_THREADS:
                    return
                self._idle += 1


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
        connection.sendall(_encode(reply))  # the timeout is for all of it
    except OSError:
        return False
    return True


def _encode(reply: dict[str, Any]) -> bytes:
    return json.dumps(reply).encode() + b"\n"


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


def _answer(agent: Agent, question: dict[str, Any]) -> dict[str, Any]:
    match question["do"]:
        case "add":
            return _answer_add(agent, question)
        case "del":
            agent.release(_key(question))  # it is on disk: there is nothing to wait for
            return {"ok": True}
        case "release":
            try:
                agent.hand_over(question["intent"])
            except MALFORMED as error:
                return _refuse(protocol.DECODING_FAILURE, "it is no release", error)
            agent.release(_key(question))
            return {"ok": True}
        case "check":
            verdict = agent.check(_key(question))
            return _result(verdict, agent)
        case "ready":
            obstacle = agent.find_obstacle()
            return _refuse_for(obstacle) if obstacle else {"ok": True}
        case "status":
            return _within({"ok": True, "status": agent.status()})
        case other:
            return _refuse(protocol.DECODING_FAILURE, f"unknown request {other!r}", "")


def _check(question: dict[str, Any]) -> None:
    """Refuse a question that cannot be understood; what fails later is no fault of it.

    Raises:
        ValueError, KeyError, TypeError: it lacks something, or has it wrong.
    """
    if question["do"] in LOGGED:
        _key(question)
    if question["do"] == "add":
        _budget_s(question)


def _budget_s(question: dict[str, Any]) -> float:
    budget_s = float(question.get("budgetSeconds", 30))
    if not 0 < budget_s <= LONGEST_BUDGET_S:
        raise ValueError(f"budgetSeconds {budget_s}")
    return budget_s


def _answer_add(agent: Agent, question: dict[str, Any]) -> dict[str, Any]:
    key, attempt = _key(question), str(question.get("attempt", ""))
    budget_s = _budget_s(question)
    # Of this thread: the one that the process is known by is in a pod's namespace now and then.
    if question.get("netnsInode") == own_namespace()[1]:
        why = "the host would lose its own network"
        return _refuse(
            protocol.INVALID_ENVIRONMENT, "CNI_NETNS is the reconciler's own namespace", why
        )
    message = "it has its interface already, and keeps it; a DEL for it comes first"
    already = Refusal(f"attachment {key}", "AlreadyAttached", message)
    # First, for whoever hears of another failure takes back what the first ADD was given.
    if agent.was_answered(key, attempt):
        return _refuse_for(already)
    outcome = agent.await_attachment(key, budget_s)
    if isinstance(outcome, Attachment) and not agent.claim(key, attempt):
        outcome = already
    return _result(outcome, agent)


def _within(reply: dict[str, Any]) -> dict[str, Any]:
    """Return an answer to ``status`` that is not too long: the longest lists lose their ends.

    Of what was left out, ``shortened`` has the number, by list.
    """
    status, shortened = dict(reply["status"]), {}
    lists = {name: value for name, value in status.items() if isinstance(value, list)}
    while lists and len(_encode(reply)) > MAX_ANSWER:
        name = max(lists, key=lambda n: len(json.dumps(status[n])))
        status[name] = status[name][: len(status[name]) // 2]
        shortened[name] = len(lists[name]) - len(status[name])
        reply = {"ok": True, "status": status | {"shortened": shortened}}
    return reply


def _refuse_for(refusal: Refusal) -> dict[str, Any]:
    code = CODES.get(refusal.reason, protocol.TRY_AGAIN)
    reply = _refuse(code, f"{refusal.reason}: {refusal.message}", refusal.subject)
    return reply | {"reason": refusal.reason}


def _result(attachment: Attachment | Refusal, agent: Agent) -> dict[str, Any]:
    """Return what the pod was given, in the terms of a CNI result, or why it was not."""
    if isinstance(attachment, Refusal):
        return _refuse_for(attachment)
    mtu = agent.pod_mtu  # whoever was given something was so by a document
    # kubelet takes the pod's addresses from here: only those that others can reach it by.
    addresses = attachment.vpc_addresses
    families = [family_of(a) for a in addresses]
    return {
        "ok": True,
        "interfaces": [
            {"name": attachment.veth, "mac": attachment.host_mac, "mtu": mtu, "sandbox": ""},
            {
                "name": attachment.key.ifname,
                "mac": attachment.pod_mac,
                "mtu": mtu,
                "sandbox": netns_path(attachment.netns),
            },
        ],
        "ips": [
            {"address": str(host_network(a)), "gateway": str(family.gateway), "interface": 1}
            for a, family in zip(addresses, families, strict=True)
        ],
        "routes": [{"dst": str(f.everything), "gw": str(f.gateway)} for f in families],
        "dns": {},
    }


def _key(question: dict[str, Any]) -> AttachmentKey:
    return AttachmentKey(str(question["containerID"]), str(question["ifname"]))


def _refuse(code: int, message: str, details: object) -> dict[str, Any]:
    return {"ok": False, "code": code, "msg": message, "details": str(details)}
