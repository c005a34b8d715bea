"""Health and metrics over HTTP, for kubelet's probes and for Prometheus.

``/livez``: the loop ticks. ``/readyz``: pods can be served. ``/metrics``: all counters. All are
answered from what is known, at once: none waits for EC2 or for a pass.
"""

from __future__ import annotations

import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from reconciler import telemetry
from reconciler.agent import Agent
from reconciler.errors import StateError

TEXT = "text/plain; charset=utf-8"


class HealthServer:
    """Answers on one address.

    Args:
        listen: ``host:port``; an IPv6 host in brackets, or none for every address of the host.
        agent: whose health it is.

    Raises:
        StateError: nobody can listen there.
    """

    def __init__(self, listen: str, agent: Agent) -> None:
        host, colon, port = listen.rpartition(":")
        if not colon or not port.isdigit():
            raise StateError(f"cannot listen on {listen!r}: it must be host:port")
        try:
            self._server = _Http((host.strip("[]"), int(port)), _Answer)
        except (OSError, OverflowError) as error:
            raise StateError(
                f"cannot listen on {listen}: {error}; choose another with --listen"
            ) from error
        self._server.agent = agent

    @property
    def port(self) -> int:
        """The port that is listened on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._server.serve_forever, name="health", daemon=True).start()

    def stop(self) -> None:
        """End answering."""
        self._server.shutdown()
        self._server.server_close()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    agent: Agent


class _Answer(BaseHTTPRequestHandler):
    server: _Http
    timeout = 5.0

    def do_GET(self) -> None:
        """Answer one question."""
        agent = self.server.agent
        match self.path.partition("?")[0]:
            case "/livez":
                self._say(agent.watchdog.is_alive, str(agent.watchdog.stuck or "ok"))
            case "/readyz":
                obstacle = agent.find_obstacle()
                self._say(obstacle is None, str(obstacle or "ok"))
            case "/metrics":
                self._send(HTTPStatus.OK, telemetry.exposition(), telemetry.CONTENT_TYPE)
            case _:
                self._send(HTTPStatus.NOT_FOUND, "/livez, /readyz or /metrics\n", TEXT)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Say nothing: a probe every few seconds is no event."""

    def _say(self, is_well: bool, text: str) -> None:
        status = HTTPStatus.OK if is_well else HTTPStatus.SERVICE_UNAVAILABLE
        self._send(status, f"{text}\n", TEXT)

    def _send(self, status: HTTPStatus, text: str, kind: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
