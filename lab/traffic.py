"""Probes and receivers: real connections between namespaces, and whose address was seen."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from lab import netns

PORT = 7777
TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of one connection.

    Attributes:
        source: the address the receiver saw; empty if nothing came back.
        failure: why, in the socket's words; empty if something did.
    """

    source: str
    failure: str = ""

    def __str__(self) -> str:
        return self.source or f"no answer ({self.failure})"


class Receiver:
    """Answers every TCP connection with the address it came from, then echoes lines.

    It listens in both families, on a socket each: one for both would write an IPv4 address in
    the IPv6 way.
    """

    def __init__(self, namespace: str, port: int = PORT) -> None:
        with netns.inside(namespace):
            self._sockets = [
                socket.create_server((address, port), family=family, reuse_port=True)
                for address, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6))
            ]
        self._connections: list[socket.socket] = []
        self._threads = [
            threading.Thread(target=self._accept, args=(s,), daemon=True) for s in self._sockets
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop answering and cut what is open."""
        for listener in self._sockets:
            # shutdown wakes the thread in accept; close alone would leave it there.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._threads:
            thread.join()
        for connection in self._connections:
            connection.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, peer = listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=_echo, args=(connection, peer[0]), daemon=True).start()


class Stream:
    """A connection that stays open.

    Args:
        timeout_s: seconds for each answer.
        source: address to come from; "" leaves it to the kernel.
    """

    def __init__(
        self,
        namespace: str,
        address: str,
        port: int = PORT,
        *,
        timeout_s: float = TIMEOUT_S,
        source: str = "",
    ) -> None:
        with netns.inside(namespace):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            self._socket = socket.socket(family, socket.SOCK_STREAM)
        self._socket.settimeout(timeout_s)
        try:
            if source:
                self._socket.bind((source, 0))
            self._socket.connect((address, port))
            self._lines = self._socket.makefile("r")
            self.source = self._lines.readline().strip()
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def exchange(self, text: str) -> bool:
        """Send a line and wait for it to come back; False if the connection is cut."""
        try:
            self._socket.sendall(f"{text}\n".encode())
            return self._lines.readline().strip() == text
        except OSError:
            return False


def probe(namespace: str, address: str, port: int = PORT, *, timeout_s: float = TIMEOUT_S) -> Seen:
    """Connect once and return the address the receiver saw."""
    try:
        with Stream(namespace, address, port, timeout_s=timeout_s) as stream:
            return Seen(stream.source)
    except OSError as error:
        return Seen("", str(error) or type(error).__name__)


def _echo(connection: socket.socket, peer: str) -> None:
    with suppress(OSError), connection, connection.makefile("rwb") as stream:
        stream.write(f"{peer}\n".encode())
        stream.flush()
        for line in stream:
            stream.write(line)
            stream.flush()
