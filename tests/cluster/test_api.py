"""The client of the API server: over TLS, against servers that answer and servers that do not."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster.api_server import Behave, Objects, behaving, certify, read_request, say, serving

from reconciler.cluster import report
from reconciler.cluster.api import MOST_ANSWER, ApiServer
from reconciler.errors import ClusterError

LOOK = report.look("node-1")
CALL_S = 1.0


@pytest.fixture
def account(tmp_path: Path) -> Path:
    certify(tmp_path)
    return tmp_path


@pytest.fixture
def ended() -> Iterator[threading.Event]:
    """Set at the end of a test, for servers that wait."""
    event = threading.Event()
    yield event
    event.set()


def ask(monkeypatch: pytest.MonkeyPatch, account: Path, behave: Behave) -> object:
    """Return what a server answers to a look at the Node."""
    with serving(account, behave) as port:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        return ApiServer(account, CALL_S).call(LOOK)


def test_a_node_is_read_with_the_token_as_it_is_now(
    monkeypatch: pytest.MonkeyPatch, account: Path
) -> None:
    objects = Objects()
    assert ask(monkeypatch, account, behaving(objects)) == objects.node
    (account / "token").write_text("token-2")
    ask(monkeypatch, account, behaving(objects))
    assert objects.asked == [
        ("GET", "/api/v1/nodes/node-1", "token-1"),
        ("GET", "/api/v1/nodes/node-1", "token-2"),
    ]


def test_a_right_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, account: Path) -> None:
    objects = Objects()
    objects.denied = {"get nodes"}
    with pytest.raises(ClusterError, match="no right to get nodes, which the chart") as raised:
        ask(monkeypatch, account, behaving(objects))
    assert (raised.value.reason, raised.value.status) == ("ClusterDenied", 403)


def test_another_authority_is_not_believed(
    monkeypatch: pytest.MonkeyPatch, account: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    certify(other)
    objects = Objects()
    with serving(other, behaving(objects)) as port:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(port))
        with pytest.raises(ClusterError, match="certificate verify failed"):
            ApiServer(account, CALL_S).call(LOOK)
    assert objects.asked == []  # the token was not sent


@pytest.mark.parametrize("manner", ["hangs", "drips", "endless", "refuses"])
def test_no_server_takes_more_than_its_time_and_bytes(
    monkeypatch: pytest.MonkeyPatch, account: Path, ended: threading.Event, manner: str
) -> None:
    sent = 0

    def behave(connection: ssl.SSLSocket) -> None:
        nonlocal sent
        read_request(connection)
        if manner == "hangs":
            ended.wait(CALL_S * 3)
        while manner == "drips" and not ended.wait(0.05):
            connection.send(b"H")
        while manner == "endless":
            sent += connection.send(b"H" * 65536)

    began = time.monotonic()
    with pytest.raises(ClusterError) as raised:
        ask(monkeypatch, account, behave)
    assert raised.value.status == 0
    assert time.monotonic() - began < CALL_S * 4
    assert sent < 32 * MOST_ANSWER  # what the kernel buffers on both sides is among it


def test_a_server_that_makes_no_handshake_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, account: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(listening.getsockname()[1]))
        began = time.monotonic()
        with pytest.raises(ClusterError, match="timed out"):
            ApiServer(account, CALL_S).call(LOOK)
        assert time.monotonic() - began < CALL_S * 4


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"{", b"\xff", b"[" * 100_000, b"1" * 100_000, b'"x"'],
    ids=lambda b: repr(b[:8]),
)
def test_what_is_no_object_is_no_answer(
    monkeypatch: pytest.MonkeyPatch, account: Path, body: bytes
) -> None:
    def behave(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        say(connection, 200, body)

    with pytest.raises(ClusterError, match="cannot be understood") as raised:
        ask(monkeypatch, account, behave)
    assert raised.value.reason == "ClusterAnswerUnreadable"


def test_text_of_the_server_is_bounded(monkeypatch: pytest.MonkeyPatch, account: Path) -> None:
    def behave(connection: ssl.SSLSocket) -> None:
        read_request(connection)
        say(connection, 500, json.dumps({"message": "a\nb\x1b[31m" * 10_000}).encode())

    with pytest.raises(ClusterError) as raised:
        ask(monkeypatch, account, behave)
    assert len(str(raised.value)) < 500
    assert str(raised.value).isprintable()


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("token", None, "No such file"),
        ("token", b"x" * 70_000, "more than"),
        ("token", b"a\r\nX: y", "is no token"),
        ("token", b"\xff", "ascii"),
        ("ca.crt", b"nothing", "no start line"),
    ],
)
def test_what_is_mounted_may_be_missing_or_wrong(
    monkeypatch: pytest.MonkeyPatch, account: Path, name: str, content: bytes | None, why: str
) -> None:
    if content is None:
        (account / name).unlink()
    else:
        (account / name).write_bytes(content)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    with pytest.raises(ClusterError, match=why):
        ApiServer(account, CALL_S).call(LOOK)


def test_outside_of_a_cluster_there_is_no_api_server(
    monkeypatch: pytest.MonkeyPatch, account: Path
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ClusterError, match="KUBERNETES_SERVICE_HOST"):
        ApiServer(account, CALL_S).call(LOOK)
