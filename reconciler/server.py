"""The Unix socket: the CNI executable waits here, and ``status`` asks here.

One JSON object on one line each way, one exchange per connection. The socket carries questions
only; what is wanted was written to the state directory before.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socketserver
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from cni import protocol
from reconciler.agent import Agent
from reconciler.core.attachment import Attachment, AttachmentKey, netns_path
from reconciler.core.datapath import family_of, host_network
from reconciler.core.plan import Refusal
from reconciler.errors import StateError

log = logging.getLogger(__name__)

CODES = {
    "AlreadyAttached": protocol.ALREADY_ATTACHED,
    "InterfaceExists": protocol.INTERFACE_EXISTS,
    "NotAttached": protocol.UNKNOWN_CONTAINER,
    "Differs": protocol.KERNEL_DIFFERS,
    "ForeignObject": protocol.KERNEL_DIFFERS,
    "NotAvailable": protocol.NOT_AVAILABLE,
    "Limited": protocol.LIMITED,
}
"""What the executable says, by reason; for all others there is a point in trying again later."""

MALFORMED = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What a question raises that is none."""

LOGGED = {do: f"{do} answered" for do in ("add", "del", "check", "release")}
"""What a pod's way is followed by, in the log, by question."""

SPARE_THREADS = 4
"""Threads that are kept for the next connections."""

SPEAK_S = 10.0
"""Seconds in which the other side must have asked, and then taken its answer."""

MAX_REQUEST_BYTES = 65536
LONGEST_BUDGET_S = 110.0
"""Seconds; kubelet gives a sandbox two minutes."""


class Server:
    """Answers on one socket path, each connection in a thread of its own.

    Raises:
        StateError: the socket cannot be made.
    """

    def __init__(self, path: Path, agent: Agent) -> None:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()  # left by a process that was killed; the lock says it is gone
        previous = os.umask(0o177)
        try:
            self._server = _Unix(str(path), _Exchange)
        except OSError as error:
            # AF_UNIX takes 107 bytes (unix(7)).
            raise StateError(f"cannot listen on {path}: {error}; use another directory") from error
        finally:
            os.umask(previous)
        self._server.agent = agent
        self._path = path

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._server.serve_forever, name="server", daemon=True).start()

    def stop(self) -> None:
        """End answering; what is under way is finished by its own thread."""
        self._server.shutdown()
        self._server.server_close()
        self._path.unlink(missing_ok=True)


class _Unix(socketserver.UnixStreamServer):
    """Gives each connection a thread, of which a few are kept for the next ones.

    A pod waits for a thread to start as long as for a link of its to be made.
    """

    request_queue_size = 512  # a node's worth of pods may ask at once
    agent: Agent

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._lock = threading.Lock()
        self._idle = 0
        self._accepted: SimpleQueue[tuple[Any, Any] | None] = SimpleQueue()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Hand a connection to a thread that is idle, or to a new one."""
        with self._lock:
            if self._idle:
                self._idle -= 1
            else:
                threading.Thread(target=self._work, name="exchange", daemon=True).start()
        self._accepted.put((request, client_address))

    def server_close(self) -> None:
        """Close the socket, and end the threads that are idle."""
        super().server_close()
        with self._lock:
            for _ in range(self._idle):
                self._accepted.put(None)
            self._idle = 0

    def _work(self) -> None:
        while (accepted := self._accepted.get()) is not None:
            try:
                self.finish_request(*accepted)  # an error of ours ends this thread, and no other
            finally:
                self.shutdown_request(accepted[0])
            with self._lock:
                if self._idle >= SPARE_THREADS:
                    return
                self._idle += 1


class _Exchange(socketserver.StreamRequestHandler):
    server: _Unix
    timeout = SPEAK_S

    def handle(self) -> None:
        """Read one question, write one answer."""
        agent, began = self.server.agent, time.monotonic()
        question: Any = None
        try:
            question = json.loads(self.rfile.readline(MAX_REQUEST_BYTES))
            reply = _answer(agent, question)
        except MALFORMED as error:
            reply = _refuse(protocol.DECODING_FAILURE, "the request cannot be understood", error)
        except OSError:
            return  # nobody says anything any more
        told = self._say(reply)
        do = question.get("do") if isinstance(question, dict) else None
        if do == "add" and reply["ok"] and not told:
            agent.disclaim(_key(question))
        if isinstance(do, str) and do in LOGGED:
            # A DEL has left no more than a hint, and is gone.
            _log(
                question,
                reply,
                told=told or do == "del",
                milliseconds=(time.monotonic() - began) * 1000,
            )

    def _say(self, reply: dict[str, Any]) -> bool:
        """Write the answer; return whether the other side was still there to take it.

        If not, its intent says what it wanted.
        """
        try:
            self.wfile.write(json.dumps(reply).encode() + b"\n")
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
            "outcome": reply.get("reason", "ok") if told else "nobody took it",
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
            agent.take_over(question["intent"])
            agent.release(_key(question))
            return {"ok": True}
        case "check":
            verdict = agent.check(_key(question))
            return _result(verdict, agent.pod_mtu)
        case "ready":
            obstacle = agent.find_obstacle()
            return _refuse_for(obstacle) if obstacle else {"ok": True}
        case "status":
            return {"ok": True, "status": agent.status()}
        case other:
            return _refuse(protocol.DECODING_FAILURE, f"unknown request {other!r}", "")


def _answer_add(agent: Agent, question: dict[str, Any]) -> dict[str, Any]:
    key, attempt = _key(question), str(question.get("attempt", ""))
    budget_s = float(question.get("budgetSeconds", 30))
    if not 0 < budget_s <= LONGEST_BUDGET_S:
        raise ValueError(f"budgetSeconds {budget_s}")
    # Of this thread: the one that the process is known by is in a pod's namespace now and then.
    if question.get("netnsInode") == Path("/proc/thread-self/ns/net").stat().st_ino:
        why = "the host would lose its own network"
        return _refuse(
            protocol.INVALID_ENVIRONMENT, "CNI_NETNS is the reconciler's own namespace", why
        )
    message = "it has its interface already, and keeps it; a DEL for it comes first"
    already = Refusal(f"attachment {key}", "AlreadyAttached", message)
    # First, for whoever hears of another failure takes back what the first ADD was given.
    if agent.was_answered(key, attempt):
        return _result(already, agent.pod_mtu)
    outcome = agent.await_attachment(key, budget_s)
    if isinstance(outcome, Attachment) and not agent.claim(key, attempt):
        outcome = already
    return _result(outcome, agent.pod_mtu)


def _refuse_for(refusal: Refusal) -> dict[str, Any]:
    code = CODES.get(refusal.reason, protocol.TRY_AGAIN)
    reply = _refuse(code, f"{refusal.reason}: {refusal.message}", refusal.subject)
    return reply | {"reason": refusal.reason}


def _result(attachment: Attachment | Refusal, mtu: int) -> dict[str, Any]:
    """Return what the pod was given, in the terms of a CNI result, or why it was not."""
    if isinstance(attachment, Refusal):
        return _refuse_for(attachment)
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
