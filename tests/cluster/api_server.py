"""A false API server on loopback, over TLS: as good or as hostile as a test wants it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from reconciler.cluster.api import parse
from reconciler.cluster.report import Request
from reconciler.errors import ClusterError

Json = dict[str, Any]
NODE: Json = {
    "kind": "Node",
    "metadata": {"name": "node-1", "uid": "u-1", "resourceVersion": "1"},
    "spec": {},
    "status": {"conditions": [{"type": "Ready", "status": "True"}]},
}


def certify(directory: Path) -> None:
    """Make a certificate of its own for 127.0.0.1, and a token, as kubelet mounts them."""
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "api")])
    now = dt.datetime.now(dt.UTC)
    loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([loopback]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "ca.crt").write_bytes(made.public_bytes(pem))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "server.key").write_bytes(key.private_bytes(pem, form, plain))
    (directory / "token").write_text("token-1\n")


class Objects:
    """What an API server does with a Node and Events.

    Attributes:
        denied: verbs and resources that are refused, as ``patch nodes/status``.
        rules: of a ClusterRole; what they do not grant is refused. None: all is granted.
        asked: each request: method, path, token.
    """

    def __init__(self) -> None:
        self.node: Json = json.loads(json.dumps(NODE))
        self.events: list[Json] = []
        self.denied: set[str] = set()
        self.rules: list[Json] | None = None
        self.asked: list[tuple[str, str, str]] = []

    @property
    def condition(self) -> Json:
        """Our condition; empty if there is none."""
        found = [c for c in self.node["status"]["conditions"] if c["type"] == "NodeNetworkReady"]
        return found[0] if found else {}

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        """Return status and body of an answer."""
        self.asked.append((method, path, token))
        match method, path.strip("/").split("/")[2:]:
            case "GET", ["nodes", "node-1"]:
                right, act = "get nodes", lambda: self.node
            case "PATCH", ["nodes", "node-1", "status"]:
                right, act = "patch nodes/status", lambda: self._merge(body)
            case "PATCH", ["nodes", "node-1"]:
                right, act = "patch nodes", lambda: self._patch(body)
            case "POST", ["namespaces", namespace, "events"]:
                right, act = "create events", lambda: self._create(namespace, body)
            case _:
                return 404, {"kind": "Status", "message": "not found"}
        if right in self.denied or not self._grants(right):
            return 403, {"kind": "Status", "message": f"cannot {right}"}
        try:
            return 200, act()
        except LookupError:
            return 422, {"kind": "Status", "message": "the patch does not apply"}

    def _grants(self, right: str) -> bool:
        """Whether the rules grant a right, as RBAC evaluates them without wildcards and names."""
        verb, resource = right.split()
        return self.rules is None or any(
            "" in rule["apiGroups"] and resource in rule["resources"] and verb in rule["verbs"]
            for rule in self.rules
        )

    def _merge(self, body: Json) -> Json:
        (new,) = body["status"]["conditions"]
        conditions = self.node["status"]["conditions"]
        others = [c for c in conditions if c["type"] != new["type"]]
        self.node["status"]["conditions"] = [*others, new]
        return self.node

    def _patch(self, steps: list[Json]) -> Json:
        taints = list(self.node["spec"].get("taints", []))
        for step in steps:
            place = int(step["path"].removeprefix("/spec/taints/"))
            if step["op"] == "test" and taints[place] != step["value"]:
                raise LookupError
            if step["op"] == "remove":
                del taints[place]
        self.node["spec"]["taints"] = taints
        return self.node

    def _create(self, namespace: str, body: Json) -> Json:
        assert body["metadata"] == {"generateName": "node-network-", "namespace": namespace}
        self.events.append(body)
        return body


class InMemory:
    """The API server without a network; ``fails`` is raised instead of an answer."""

    def __init__(self, objects: Objects) -> None:
        self.objects = objects
        self.fails: ClusterError | None = None
        self.false_answer: bytes | None = None

    def call(self, request: Request) -> Json:
        """Answer a request as ``ApiServer`` does."""
        path = "/" + "/".join(request.path)
        if self.fails is not None:
            self.objects.asked.append((request.method, path, ""))
            raise self.fails
        body = json.loads(request.body or "null")
        status, answer = self.objects.answer(request.method, path, "", body)
        text = json.dumps(answer).encode() if self.false_answer is None else self.false_answer
        head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\n\r\n"
        return parse(head.encode() + text, request)


Behave = Callable[[ssl.SSLSocket], None]


@contextmanager
def serving(directory: Path, behave: Behave) -> Iterator[int]:
    """Serve on a port of loopback, each connection by a function in a thread of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "ca.crt", directory / "server.key")
    listening = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(plain: socket.socket) -> None:
        with suppress(OSError), context.wrap_socket(plain, server_side=True) as connection:
            behave(connection)

    def accept() -> None:
        with suppress(OSError):
            while True:
                plain, _ = listening.accept()
                threads.append(threading.Thread(target=serve, args=(plain,)))
                threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        accepting.join()
        for thread in threads:
            thread.join()


def behaving(objects: Objects) -> Behave:
    """Return what answers as an API server does."""

    def behave(connection: ssl.SSLSocket) -> None:
        method, path, headers, body = read_request(connection)
        token = headers["authorization"].removeprefix("Bearer ")
        status, answer = objects.answer(method, path, token, json.loads(body or "null"))
        say(connection, status, json.dumps(answer).encode())

    return behave


def read_request(connection: ssl.SSLSocket) -> tuple[str, str, dict[str, str], bytes]:
    """Read one request."""
    received = b""
    while b"\r\n\r\n" not in received:
        chunk = connection.recv(65536)
        if not chunk:
            raise ConnectionError
        received += chunk
    head, _, body = received.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    pairs = (line.partition(": ") for line in lines)
    headers = {name.lower(): value for name, _, value in pairs}
    while len(body) < int(headers.get("content-length", 0)):
        body += connection.recv(65536)
    method, path, _ = first.split()
    return method, path, headers, body


def say(connection: ssl.SSLSocket, status: int, body: bytes) -> None:
    """Answer, and close."""
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode() + body)
