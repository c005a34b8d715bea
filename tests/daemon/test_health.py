"""Probes over HTTP, with an agent of which nothing is asked: what others may ask, and how much."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from waiting import until

from reconciler.daemon import health
from reconciler.daemon.duty import Conditions, Duties, Watchdog
from reconciler.daemon.health import BOUNDS, HealthServer
from reconciler.errors import Issue, StateError


class Agent:
    """Is well."""

    def __init__(self) -> None:
        self.parts = self
        self.watchdog = Watchdog(lambda _: None)
        self.duties = Duties(Conditions(), self.watchdog)
        self.obstacle: Issue | None = None

    def find_obstacle(self) -> Issue | None:
        return self.obstacle

    def gauges(self) -> dict[Any, Any]:
        return {}


@contextmanager
def serving(listen: str, agent: Agent | None = None) -> Iterator[int]:
    made = HealthServer(listen, agent or Agent())  # type: ignore[arg-type]
    made.start()
    try:
        yield made.port
    finally:
        made.stop()


def test_what_serves_metrics_serves_nothing_else() -> None:
    made = HealthServer("127.0.0.1:0", Agent(), health.METRICS)  # type: ignore[arg-type]
    made.start()
    try:
        status, text = get(made.port, "/metrics")
        assert status == 200
        assert "node_network_" in text
        for path in (
            "/livez",
            "/readyz",
            "/",
            "",
            "/metrics/",
            "/debug",
            "/metrics%00",
            "metrics",
        ):
            found, said = get(made.port, path)
            assert (found, said) == (404, "/metrics\n"), path
    finally:
        made.stop()


@pytest.fixture
def port() -> Iterator[int]:
    with serving("127.0.0.1:0") as made:
        yield made


def get(port: int, path: str = "/livez", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=10)


def say(port: int, text: bytes) -> bytes:
    with connect(port) as s:
        with suppress(BrokenPipeError, ConnectionResetError):
            s.sendall(text)
        return s.makefile("rb").readline()


def test_what_is_answered(port: int) -> None:
    assert get(port) == (200, "ok\n")
    assert get(port, "/readyz?verbose") == (200, "ok\n")
    assert "node_network_connections_cut" in get(port, "/metrics")[1]
    assert get(port, "/nothing")[0] == 404


def test_a_text_of_others_is_told_whatever_is_in_it() -> None:
    agent = Agent()
    agent.obstacle = Issue("node", "NotAvailable", "a name of bytes: \udcff")
    with serving("127.0.0.1:0", agent) as port:
        assert get(port, "/readyz") == (503, "node: NotAvailable: a name of bytes: \\udcff\n")


@pytest.mark.parametrize(
    ("listen", "hosts"),
    [
        ("127.0.0.1:0", ["127.0.0.1"]),
        ("[::1]:0", ["::1"]),
        (":0", ["127.0.0.1", "::1"]),
        ("[::]:0", ["::1"]),
        ("0.0.0.0:0", ["127.0.0.1"]),
        ("localhost:0", ["localhost"]),
    ],
)
def test_an_address_of_either_family_is_listened_on(listen: str, hosts: list[str]) -> None:
    with serving(listen) as port:
        assert [get(port, host=host)[0] for host in hosts] == [200] * len(hosts)


@pytest.mark.parametrize("listen", ["::1:80", "[::1]", "[::1:80", "127.0.0.1:-1", "127.0.0.1:²"])
def test_what_is_no_address_is_refused_with_its_form(listen: str) -> None:
    with pytest.raises(StateError, match=r"host:port, an IPv6 host in brackets|cannot listen"):
        HealthServer(listen, Agent())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /livez HTTP/1.1\r\n\r\n", b"200 OK"),
        (b"GET /livez HTTP/1.0\n\n", b"200 OK"),
        (b"POST /livez HTTP/1.1\r\n\r\n", b"405 Method Not Allowed"),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"400 Bad Request"),
        (b"GET /livez\r\n\r\n", b"400 Bad Request"),
        (b"\r\n\r\n", b"400 Bad Request"),
        (b"GET /livez HTTP/1.1\r\n" + b"X: y\r\n" * 9000, b"431 Request Header Fields Too Large"),
        (b"GET /" + b"x" * 60_000, b"431 Request Header Fields Too Large"),
    ],
)
def test_a_request_is_answered_by_its_first_line_and_its_length(
    port: int, request_: bytes, status: bytes
) -> None:
    # The rest of what is too long is not read, so that its sender may be cut before it reads.
    assert say(port, request_) in {b"HTTP/1.1 " + status + b"\r\n", b""} or status[:3] == b"431"


def test_however_many_connect_and_say_nothing_a_probe_is_answered_and_no_thread_is_made(
    port: int,
) -> None:
    before = set(threading.enumerate())
    with ExitStack() as stack:
        for number in range(10 * BOUNDS.connections):
            with suppress(OSError):
                s = stack.enter_context(connect(port))
                s.sendall(b"GET /livez HTTP/1.1\r\n" if number % 2 else b"")
            if number % BOUNDS.connections == 0:
                assert get(port) == (200, "ok\n")
        assert get(port) == (200, "ok\n")
        assert set(threading.enumerate()) <= before  # those of an earlier test may have ended


def test_whoever_reads_the_metrics_slowly_keeps_nobody_else_from_them(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health.telemetry, "exposition", lambda *_: "x" * (1 << 23))
    with ExitStack() as stack:
        for _ in range(2 * BOUNDS.connections):
            s = stack.enter_context(connect(port))
            s.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert len(get(port, "/metrics")[1]) == 1 << 23


def test_a_connection_has_a_time_for_all_of_its_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "BOUNDS", replace(BOUNDS, request_s=0.3))
    with serving("127.0.0.1:0") as port, connect(port) as s:
        s.sendall(b"GET /livez HTTP/1.1\r\n")

        def is_cut() -> Any:
            try:
                s.sendall(b"X: y\r\n")
            except OSError:
                return True

        until(is_cut)
