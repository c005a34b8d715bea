"""The API server: one request at a time, as the pod's ServiceAccount. The door to TLS.

Whoever answers may hang, answer byte by byte, or without end: a call has one deadline for all of
it, and a bound on bytes. Every connection is used once, so nothing of an earlier one is left.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import socket
import ssl
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote

from reconciler.cluster.report import Request, bounded
from reconciler.errors import FOREIGN_TEXT, ClusterError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where kubelet mounts token and CA. Source: Kubernetes, "Accessing the API from a Pod"."""

CALL_S = 5.0  # seconds for a whole call
MOST_ANSWER = 1 << 20
"""Bytes of an answer: etcd takes 1.5 MiB, and a Node with 50 images has some 50 KiB."""

MOST_TOKEN = 1 << 16  # bytes of the token and of the CA's file
CHUNK = 1 << 16

UNREACHABLE, DENIED, REFUSED = "ClusterUnreachable", "ClusterDenied", "ClusterRefused"
UNREADABLE = "ClusterAnswerUnreadable"


class ApiServer:
    """The API server of the cluster that this pod is in.

    Args:
        directory: where token and CA are; read for each call, because kubelet renews the token
            within the hour.
    """

    def __init__(self, directory: Path = SERVICE_ACCOUNT, call_s: float = CALL_S) -> None:
        self._directory, self._call_s = directory, call_s

    def call(self, request: Request) -> dict[str, Any]:
        """Make a request; return the JSON object of its answer.

        Raises:
            ClusterError: it was not answered in time, was refused, or the answer is none.
        """
        deadline = time.monotonic() + self._call_s

        def left() -> float:
            seconds = deadline - time.monotonic()
            if seconds <= 0:
                raise TimeoutError(f"no whole answer within {self._call_s:g} s")
            return seconds

        try:
            received = self._exchange(request, left)
        except (OSError, ValueError) as error:  # of TLS, too
            why = bounded(str(error) or type(error).__name__, FOREIGN_TEXT)
            raise ClusterError(request.what, why, reason=UNREACHABLE) from error
        return parse(received, request)

    def _exchange(self, request: Request, left: Callable[[], float]) -> bytes:
        host, port = _address()
        token = _read(self._directory / "token").decode("ascii").strip()
        if not token.isprintable() or " " in token:
            raise ValueError(f"{self._directory}/token is no token")
        authorities = _read(self._directory / "ca.crt").decode("ascii")
        context = ssl.create_default_context(cadata=authorities)
        with (
            socket.create_connection((host, port), timeout=left()) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            connection.settimeout(left())
            connection.sendall(_head(request, host, port, token) + request.body.encode())
            received = bytearray()
            connection.settimeout(left())
            while chunk := connection.recv(CHUNK):
                received += chunk
                if len(received) > MOST_ANSWER:
                    raise ValueError(f"the answer has more than {MOST_ANSWER} bytes")
                connection.settimeout(left())
        return bytes(received)


def _address() -> tuple[str, int]:
    """Return where kubelet says that the API server is.

    Raises:
        ValueError: this process is not in a cluster's pod.
    """
    host = os.environ.get("KUBERNETES_SERVICE_HOST", "")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port.isdecimal():
        raise ValueError("KUBERNETES_SERVICE_HOST and _PORT are not set, as kubelet does in a pod")
    return host, int(port)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        text = file.read(MOST_TOKEN + 1)
    if len(text) > MOST_TOKEN:
        raise ValueError(f"{path} has more than {MOST_TOKEN} bytes")
    return text


def _head(request: Request, host: str, port: int, token: str) -> bytes:
    named = f"[{host}]" if ":" in host else host
    path = "".join(f"/{quote(part, safe='')}" for part in request.path)
    lines = [
        f"{request.method} {path} HTTP/1.1",
        f"Host: {named}:{port}",
        f"Authorization: Bearer {token}",
        "Accept: application/json",
        "User-Agent: node-network",
        "Connection: close",
    ]
    if request.body:
        lines += [f"Content-Type: {request.kind}", f"Content-Length: {len(request.body.encode())}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")


class _Received:
    """What ``HTTPResponse`` takes for a socket: bytes that are all here already."""

    def __init__(self, received: bytes) -> None:
        self._received = received

    def makefile(self, *_: Any) -> io.BytesIO:
        return io.BytesIO(self._received)


def parse(received: bytes, request: Request) -> dict[str, Any]:
    """Return the JSON object of an answer.

    Raises:
        ClusterError: it says no, or cannot be understood.
    """
    try:
        response = http.client.HTTPResponse(_Received(received), method=request.method)  # type: ignore[arg-type]
        response.begin()
        body = json.loads(response.read())
        if not isinstance(body, dict):
            raise TypeError("no object")
    except (http.client.HTTPException, ValueError, TypeError, RecursionError, OSError) as error:
        why = bounded(f"its answer cannot be understood: {type(error).__name__}", FOREIGN_TEXT)
        raise ClusterError(request.what, why, reason=UNREADABLE) from error
    status = response.status
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return body
    said = bounded(str(body.get("message", "")), FOREIGN_TEXT)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        why = (
            f"HTTP {status}: the ServiceAccount has no right to {request.right}, which the chart "
            f"grants for kubernetes.report: {said}"
        )
        raise ClusterError(request.what, why, reason=DENIED, status=status)
    raise ClusterError(request.what, f"HTTP {status}: {said}", reason=REFUSED, status=status)
