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
from pathlib import Path
from typing import Any

from reconciler.agent import Agent
from reconciler.core.attachment import Attachment, AttachmentKey, netns_path
from reconciler.core.datapath import family_of, host_network
from reconciler.core.plan import Refusal
from reconciler.errors import StateError

log = logging.getLogger(__name__)

TRY_AGAIN = 11
"""CNI specification, "Error codes": try again later."""

MALFORMED = 6
"""CNI specification, "Error codes": failed to decode content."""

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


class _Unix(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 512  # a node's worth of pods may ask at once
    agent: Agent


class _Exchange(socketserver.StreamRequestHandler):
    server: _Unix

    def handle(self) -> None:
        """Read one question, write one answer."""
        line = self.rfile.readline(MAX_REQUEST_BYTES)
        try:
            question = json.loads(line)
            reply = _answer(self.server.agent, question)
        except (ValueError, KeyError, TypeError) as error:
            reply = _refuse(MALFORMED, "the request cannot be understood", repr(error))
        # The other side may have given up meanwhile; its intent says what it wanted.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(json.dumps(reply).encode() + b"\n")


def _answer(agent: Agent, question: dict[str, Any]) -> dict[str, Any]:
    match question["do"]:
        case "add":
            key = _key(question)
            budget_s = float(question.get("budgetSeconds", 30))
            if not 0 < budget_s <= LONGEST_BUDGET_S:
                raise ValueError(f"budgetSeconds {budget_s}")
            outcome = agent.await_attachment(key, budget_s)
            log.info("add answered", extra={"key": key, "outcome": _word(outcome)})
            if isinstance(outcome, Refusal):
                return _refuse(TRY_AGAIN, f"{outcome.reason}: {outcome.message}", outcome.subject)
            return _result(outcome, agent.pod_mtu)
        case "del":
            key = _key(question)
            agent.release(key)  # the release is on disk: there is nothing to wait for
            log.info("del answered", extra={"key": key})
            return {"ok": True}
        case "status":
            return {"ok": True, "status": agent.status()}
        case other:
            return _refuse(MALFORMED, f"unknown request {other!r}", "")


def _result(attachment: Attachment, mtu: int) -> dict[str, Any]:
    """Return what the pod was given, in the terms of a CNI result."""
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


def _refuse(code: int, message: str, details: str) -> dict[str, Any]:
    return {"ok": False, "code": code, "msg": message, "details": details}


def _word(outcome: Attachment | Refusal) -> str:
    if isinstance(outcome, Refusal):
        return outcome.reason
    return " ".join(map(str, outcome.addresses))
