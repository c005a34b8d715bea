"""Instance metadata that answers anything at all: what a look at it costs, and how it ends."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from reconciler.errors import ObserveError
from reconciler.targets import imds
from reconciler.targets.imds import ADDRESSES, BOUNDS, MAX_INTERFACES, MAX_ITEMS, Imds

MAC = "02:00:00:00:00:01"
BASE = f"/latest/meta-data/network/interfaces/macs/{MAC}"
KEYS = {
    "/latest/api/token": "token",
    "/latest/meta-data/mac": MAC,
    "/latest/meta-data/instance-id": "i-1",
    "/latest/meta-data/instance-type": "m5.large",
    "/latest/meta-data/placement/availability-zone": "us-east-1a",
    "/latest/meta-data/placement/region": "us-east-1",
    "/latest/meta-data/network/interfaces/macs/": f"{MAC}/",
    f"{BASE}/vpc-ipv4-cidr-blocks": "10.0.0.0/16",
    f"{BASE}/local-ipv4s": "10.0.1.10\n10.0.1.11",
    f"{BASE}/ipv4-prefix": "10.0.1.16/28",
}

Answer = Callable[[str], Iterable[bytes]]
"""By a request's path, what is sent; the connection is closed after it."""


def whole(path: str) -> Iterable[bytes]:
    """What the real service answers."""
    if path not in KEYS:
        return [b"HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\nConnection: close\r\n\r\nnot"]
    body = KEYS[path].encode()
    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return [head.encode(), body]


def instead(key: str, answer: Callable[[], Iterable[bytes]]) -> Answer:
    """Answer one key in another way."""
    return lambda path: answer() if path.endswith(key) else whole(path)


class Service:
    """A service on loopback."""

    def __init__(self, answer: Answer, family: socket.AddressFamily = socket.AF_INET) -> None:
        self.requests: list[str] = []
        self.sent = 0
        self._answer = answer
        self._ended = threading.Event()
        self._listener = socket.create_server(("", 0), family=family)
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                s, _ = self._listener.accept()
            except OSError:
                return
            with suppress(OSError), s:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += s.recv(65536)
                path = head.split()[1].decode()
                self.requests.append(path)
                for part in self._answer(path):
                    if self._ended.is_set():
                        break
                    s.sendall(part)
                    self.sent += len(part)

    def close(self) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@contextmanager
def serving(
    answer: Answer, family: socket.AddressFamily = socket.AF_INET
) -> Iterator[tuple[Service, Imds]]:
    service = Service(answer, family)
    try:
        yield service, Imds("::1" if family == socket.AF_INET6 else "127.0.0.1", service.port)
    finally:
        service.close()


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of time that a test can wait out."""
    monkeypatch.setattr(imds, "BOUNDS", replace(BOUNDS, total_s=60.0, request_s=0.4))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_what_is_read(family: socket.AddressFamily) -> None:
    with serving(whole, family) as (_, target):
        assert target.node().instance_id == "i-1"
        assert target.region() == "us-east-1"
        assert (MAC, IPv4Network("10.0.1.16/28")) in target.interfaces()


@pytest.mark.parametrize(
    ("mode", "address"),
    [
        (None, "169.254.169.254"),
        ("IPv4", "169.254.169.254"),
        ("IPv6", "fd00:ec2::254"),
        ("ipv6", "fd00:ec2::254"),
        ("else", "169.254.169.254"),
    ],
)
def test_the_sdks_own_setting_chooses_the_family(
    mode: str | None, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"
    monkeypatch.delenv(name, raising=False)
    if mode is not None:
        monkeypatch.setenv(name, mode)
    assert Imds()._address == address
    assert set(ADDRESSES.values()) == {"169.254.169.254", "fd00:ec2::254"}


OK = b"HTTP/1.1 200 OK\r\n"

ENDLESS: dict[str, Callable[[], Iterable[bytes]]] = {
    "a body of 10^12 bytes": lambda: itertools.chain(
        [OK + b"Content-Length: 1000000000000\r\n\r\n"], itertools.repeat(b"x" * 65536)
    ),
    "a body without a length": lambda: itertools.chain(
        [OK + b"\r\n"], itertools.repeat(b"x" * 65536)
    ),
    "a chunk of 10^12 bytes": lambda: itertools.chain(
        [OK + b"Transfer-Encoding: chunked\r\n\r\nE8D4A51000\r\n"], itertools.repeat(b"x" * 65536)
    ),
    "chunks without end": lambda: itertools.chain(
        [OK + b"Transfer-Encoding: chunked\r\n\r\n"], itertools.repeat(b"4\r\nabcd\r\n" * 1000)
    ),
    "trailers without end": lambda: itertools.chain(
        [OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"], itertools.repeat(b"X: y\r\n" * 1000)
    ),
    "headers without end": lambda: itertools.chain([OK], itertools.repeat(b"X: y\r\n" * 1000)),
    "100 headers of 64 KB": lambda: [OK, *[b"X: " + b"y" * 65000 + b"\r\n"] * 99, b"\r\n"],
    "a status line without end": lambda: itertools.repeat(b"HTTP/1.1 " * 1000),
    "100 Continue without end": lambda: itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_answer_without_end_is_an_error_after_a_bounded_number_of_bytes(name: str) -> None:
    with serving(instead("/local-ipv4s", ENDLESS[name])) as (service, target):
        tracemalloc.start()
        try:
            with pytest.raises(ObserveError):
                target.interfaces()
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # What the kernel's buffers on both sides take is sent, and never read.
    assert service.sent < BOUNDS.total_bytes + (1 << 24)
    assert peak < 8 * BOUNDS.total_bytes


def drip(text: bytes) -> Callable[[], Iterator[bytes]]:
    def parts() -> Iterator[bytes]:
        yield text
        while True:
            threading.Event().wait(0.05)
            yield b"x"

    return parts


@pytest.mark.parametrize(
    "text",
    [b"", OK, OK + b"X: ", OK + b"Content-Length: 9999\r\n\r\n", b"HTTP/1.1 100 Continue\r\n"],
    ids=["status", "headers", "a header", "body", "continue"],
)
@pytest.mark.usefixtures("patience")
def test_a_byte_now_and_then_does_not_prolong_a_requests_time(text: bytes) -> None:
    with (
        serving(instead("/region", drip(text))) as (_, target),
        pytest.raises(ObserveError, match="not answered within"),
    ):
        target.region()


def test_all_requests_of_a_look_together_have_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imds, "BOUNDS", replace(BOUNDS, total_s=1.0))

    def slow(path: str) -> Iterator[bytes]:
        threading.Event().wait(0.3)
        yield from whole(path)

    with (
        serving(slow) as (service, target),
        pytest.raises(ObserveError, match="all requests not within 1 s"),
    ):
        target.node()
    assert len(service.requests) < 6


@pytest.mark.usefixtures("patience")
def test_a_service_that_accepts_and_says_nothing_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(ObserveError):
        Imds("127.0.0.1", silent.getsockname()[1]).region()


def test_no_more_interfaces_are_asked_for_than_an_instance_can_have() -> None:
    macs = "\n".join(
        f"02:00:00:00:{i // 256:02x}:{i % 256:02x}/" for i in range(MAX_INTERFACES + 1)
    ).encode()
    answer = [OK + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(macs), macs]
    with (
        serving(instead("/macs/", lambda: answer)) as (service, target),
        pytest.raises(ObserveError, match="has more than 128 entries"),
    ):
        target.interfaces()
    assert len(service.requests) == 2


@pytest.mark.parametrize("key", ["/local-ipv4s", "/ipv4-prefix", "/vpc-ipv4-cidr-blocks"])
def test_no_list_is_longer_than_anything_can_hold(key: str) -> None:
    body = b"10.0.1.10\n" * (MAX_ITEMS + 1)
    answer = [OK + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body), body]
    with (
        serving(instead(key, lambda: answer)) as (_, target),
        pytest.raises(ObserveError, match="has more than 256 entries"),
    ):
        target.node() if key.startswith("/vpc") else target.interfaces()


def test_no_more_requests_are_made_than_a_look_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imds, "BOUNDS", replace(BOUNDS, requests=3))
    with (
        serving(whole) as (service, target),
        pytest.raises(ObserveError, match="at most 3 requests"),
    ):
        target.node()
    assert len(service.requests) == 3


def test_a_body_that_ends_early_is_an_error_and_not_a_shorter_list() -> None:
    """A list of addresses that is cut in its middle would show less than the ENI holds."""
    short = [OK + b"Content-Length: 100\r\nConnection: close\r\n\r\n10.0.1.10\n10.0.1.11"]
    with (
        serving(instead("/local-ipv4s", lambda: short)) as (_, target),
        pytest.raises(ObserveError, match="IncompleteRead"),
    ):
        target.interfaces()


def test_no_redirect_is_followed_and_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setitem(os.environ, "no_proxy", "")
    with serving(whole) as (_, target):
        assert target.region() == "us-east-1"
    away = [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"]
    with (
        serving(instead("/region", lambda: away)) as (service, target),
        pytest.raises(ObserveError, match="HTTP 302"),
    ):
        target.region()
    assert len(service.requests) == 2


@pytest.mark.parametrize("body", [b"\xff\xfe", b"not an address", b"10.0.0.0/99"])
def test_what_is_no_list_of_addresses_is_an_error(body: bytes) -> None:
    answer = [OK + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body), body]
    with (
        serving(instead("/ipv4-prefix", lambda: answer)) as (_, target),
        pytest.raises(ObserveError),
    ):
        target.interfaces()
