"""Health, metrics and a page over HTTP, for kubelet's probes, for Prometheus and for people.

``/livez``: every thread makes progress. ``/readyz``: pods can start. ``/metrics``: all counters.
All are answered at once from what is known; none waits for EC2 or for a pass. Any client that
reaches the address may ask; ``listener`` limits what that costs.

``/`` is a page for a browser, and ``/status.json`` what it shows: the answer of
``node-network status -o json`` without the metrics. ``/document.json`` is what the document sets,
line by line; another process finds it out once somebody asks. They name pods. So they are on
loopback alone, and the Host header must name loopback: a page of elsewhere that has its own name
resolve to 127.0.0.1 (DNS rebinding) is refused.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import time
from collections.abc import Sequence
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path

from reconciler.daemon import telemetry
from reconciler.daemon.agent import Agent
from reconciler.daemon.listener import Bounds, Listener
from reconciler.daemon.status import shorten
from reconciler.errors import StateError
from schemas.settings import MOST

TEXT, HTML, JSON = "text/plain; charset=utf-8", "text/html; charset=utf-8", "application/json"

METRICS = ("/metrics",)
PAGE = ("/", "/status.json", "/document.json")
PATHS = ("/livez", "/readyz", *METRICS)

MOST_STATUS = 1 << 20  # bytes of status.json; the longest lists lose their ends
STATUS_S = 0.5
"""Seconds for which a status is told again: some milliseconds of work, however many ask."""

BOUNDS = Bounds(connections=16, request_bytes=16384, request_s=5.0, answer_s=5.0, grace_s=0.0)
"""Probes come one at a time, every few seconds, and wait for five at most; their headers are some
hundred bytes. 16 KiB is what other servers take of a request's head."""


class HealthServer(Listener):
    """Answers on one address.

    Args:
        listen: ``host:port``; an IPv6 host in brackets, or none for every address of the host.
        paths: those that are answered; any other is not found.

    Raises:
        StateError: nothing can listen there.
    """

    def __init__(self, listen: str, agent: Agent, paths: Sequence[str] = PATHS) -> None:
        listening = _listen(listen)
        host, self.port = listening.getsockname()[:2]
        is_all = tuple(paths) == PATHS
        page = _Page(agent) if is_all and ip_address(host).is_loopback else None
        answered = (*paths, *PAGE) if page else tuple(paths)

        def is_whole(received: bytearray) -> bool:
            return b"\r\n\r\n" in received or b"\n\n" in received

        def take(_: socket.socket, request: bytes) -> bytes:
            return _answer(request, agent, answered, page)

        name = "health" if is_all else "metrics"
        super().__init__(name, listening, BOUNDS, is_whole, take, agent.parts.duties)


class _Page:
    """The page, and the status that it shows; the listener's thread alone calls it."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self._status, self._made_at = "", float("-inf")

    def answer(self, path: str, host: str) -> bytes:
        """Answer a request for one of ``PAGE``; ``host`` is its header of that name."""
        if not _is_loopback(host):
            text = "ask for localhost, 127.0.0.1 or [::1]\n"
            return _response(HTTPStatus.MISDIRECTED_REQUEST, text)
        if path == "/status.json":
            return _response(HTTPStatus.OK, self._tell_status(), NEVER_KEPT, kind=JSON)
        if path == "/document.json":
            return _response(HTTPStatus.OK, self._tell_document(), NEVER_KEPT, kind=JSON)
        # Read each time: it is asked for seldom, and would be memory for good.
        text = Path(__file__).with_name("page.html").read_text()
        return _response(HTTPStatus.OK, text, f"{_policy(text)}{NEVER_KEPT}", kind=HTML)

    def _tell_status(self) -> str:
        now = time.monotonic()
        if now - self._made_at > STATUS_S:
            status = self._agent.status()
            del status["metrics"]  # /metrics has them
            self._status, self._made_at = json.dumps(shorten(status, MOST_STATUS)), now
        return self._status

    def _tell_document(self) -> str:
        """Tell the document's settings; null until they are known, which takes a second."""
        document, facts = self._agent.parts.document, self._agent.parts.node.known.facts
        node = {
            "instance_type": facts.instance_type if facts else "",
            "zone": facts.availability_zone if facts else "",
            "node_name": facts.name if facts else "",
        }
        found = document.find_settings(node)
        listed = None if found is None else [setting._asdict() for setting in found.settings]
        told = {
            "formatVersion": 1,
            "path": str(document.path),
            "generation": document.accepted.generation,
            "settings": listed,
            "most": MOST,
            "failure": found.failure if found else "",
        }
        return json.dumps(told)


NEVER_KEPT = "Cache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n"


def _is_loopback(host: str) -> bool:
    """Whether a Host header names loopback; one that is missing comes from no browser."""
    name = re.sub(r":[0-9]{1,5}$", "", host).strip("[]")
    if name in ("", "localhost"):
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _policy(page: str) -> str:
    """Return the header that lets a browser run nothing but the page's own script and style."""

    def digest(element: str) -> str:
        (text,) = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        f"Content-Security-Policy: default-src 'none'; script-src 'sha256-{digest('script')}'; "
        f"style-src 'sha256-{digest('style')}'; connect-src 'self'; base-uri 'none'; "
        f"form-action 'none'; frame-ancestors 'none'\r\n"
    )


def _answer(request: bytes, agent: Agent, paths: Sequence[str], page: _Page | None) -> bytes:
    if len(request) > BOUNDS.request_bytes:
        text = f"a request has at most {BOUNDS.request_bytes} bytes\n"
        return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
    match request.split(b"\n", 1)[0].split():
        case [b"GET", path, version] if version.startswith(b"HTTP/1."):
            accept = _header(request, b"accept")
            name = path.partition(b"?")[0].decode("latin-1")
            if page and name in PAGE:
                return page.answer(name, _header(request, b"host"))
            return _answer_get(name, accept, agent, paths)
        case [_, _, version] if version.startswith(b"HTTP/1."):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, "GET only\n", "Allow: GET\r\n")
        case _:
            return _response(HTTPStatus.BAD_REQUEST, "this is no HTTP/1 request\n")


def _answer_get(path: str, accept: str, agent: Agent, paths: Sequence[str]) -> bytes:
    match path if path in paths else "":
        case "/livez":
            watchdog = agent.parts.watchdog
            return _health(str(watchdog.stuck or "ok"), is_well=watchdog.is_alive)
        case "/readyz":
            obstacle = agent.find_obstacle()
            return _health(str(obstacle or "ok"), is_well=obstacle is None)
        case "/metrics":
            text = telemetry.exposition(agent.gauges(), accept)
            return _response(HTTPStatus.OK, text, kind=telemetry.content_type(accept))
        case _:
            return _response(HTTPStatus.NOT_FOUND, f"{', '.join(paths)}\n")


def _header(request: bytes, name: bytes) -> str:
    """Return a header's value, of several lines joined; "" if there is none."""
    pairs = (line.partition(b":") for line in request.splitlines()[1:])
    found = (value.strip() for key, _, value in pairs if key.strip().lower() == name)
    return b", ".join(found).decode("latin-1")


def _listen(listen: str) -> socket.socket:
    """Return a socket that listens; of both families if no host is named and there is IPv6."""
    host, colon, port = listen.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not colon or not port.isdecimal() or (":" in host and not bracketed):
        why = "it must be host:port, an IPv6 host in brackets"
        raise StateError(f"cannot listen on {listen!r}: {why}")
    host = host[1:-1] if bracketed else host
    try:
        if not host and socket.has_dualstack_ipv6():
            family = socket.AF_INET6
            return socket.create_server(("", int(port)), family=family, dualstack_ipv6=True)
        (family, _, _, _, address), *_ = socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        # The port as it was asked for: a resolver may cut a number that is none.
        return socket.create_server((address[0], int(port), *address[2:]), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        why = f"{error}; choose another with --listen"
        raise StateError(f"cannot listen on {listen}: {why}") from error


def _health(text: str, *, is_well: bool) -> bytes:
    return _response(HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE, f"{text}\n")


def _response(status: HTTPStatus, text: str, more: str = "", *, kind: str = TEXT) -> bytes:
    body = text.encode(errors="backslashreplace")
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n{more}\r\n"
    )
    return head.encode() + body
