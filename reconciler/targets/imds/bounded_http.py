"""HTTP requests to a service that may answer anything: bounded in bytes and in total time.

Standard library HTTP: a handful of small requests to a link-local address needs no client. It
follows no redirect and knows no proxy. What it lacks are bounds: it waits anew for each byte, and
reads headers, "100 Continue" and chunks for as long as they come. So each read goes by a reader
here that has what is left of one budget.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one look at a service may cost.

    Attributes:
        requests: how many there may be.
        total_bytes: of all answers together, headers included.
        body_bytes: of one answer's body.
        total_s: seconds for all requests together.
        request_s: seconds for one request, from connecting to the last byte of its answer.
    """

    requests: int
    total_bytes: int
    body_bytes: int
    total_s: float
    request_s: float


class MissingError(ValueError):
    """There is no such key: HTTP 404."""


class BoundedHttp:
    """One look at a service: requests over a connection that is opened when it is needed.

    Args:
        address: an IP address, so that no resolver is asked.
        port: where it listens.
        bounds: what the look may cost.
    """

    def __init__(self, address: str, port: int, bounds: Bounds) -> None:
        self._budget = _Budget(bounds)
        self._connection = _Connection(address, port, self._budget)

    def request(self, method: str, path: str, headers: dict[str, str]) -> str:
        """Return the answer's text, without white space around it.

        Raises:
            MissingError: the service has no such path.
            OSError, ValueError, http.client.HTTPException: it does not answer within the bounds,
                or not with success.
        """
        self._budget.begin_request()
        what, bounds = f"{method} {path}", self._budget.bounds
        most = bounds.body_bytes
        try:
            self._connection.request(method, path, headers=headers)
            response = self._connection.getresponse()
            # Never all of it at once: that many bytes are set aside before the first one comes.
            body = response.read(most + 1)
        except TimeoutError as error:
            raise TimeoutError(
                f"{what}: not answered within {bounds.request_s:g} s, or all requests not within "
                f"{bounds.total_s:g} s"
            ) from error
        if len(body) > most:
            raise ValueError(f"{what}: the answer has more than {most} bytes")
        if response.length:
            raise http.client.IncompleteRead(body, response.length)
        if response.status == http.HTTPStatus.NOT_FOUND:
            raise MissingError(f"{what}: HTTP {response.status}")
        if response.status != http.HTTPStatus.OK:
            raise ValueError(f"{what}: HTTP {response.status}")
        return body.decode().strip()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class _Budget:
    """What is left of a look's bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self._end = time.monotonic() + bounds.total_s
        self._request_end = self._end
        self._requests = bounds.requests
        self._bytes = bounds.total_bytes

    def begin_request(self) -> None:
        if not self._requests:
            raise ValueError(f"one look makes at most {self.bounds.requests} requests")
        self._requests -= 1
        self._request_end = min(self._end, time.monotonic() + self.bounds.request_s)

    def seconds(self) -> float:
        """Return how long the next system call may wait."""
        left = self._request_end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def spend(self, count: int) -> None:
        self._bytes -= count
        if self._bytes < 0:
            raise ValueError(f"the answers have more than {self.bounds.total_bytes} bytes")


class _Connection(http.client.HTTPConnection):
    def __init__(self, address: str, port: int, budget: _Budget) -> None:
        super().__init__(address, port)
        self._budget = budget

    def connect(self) -> None:
        self.timeout = self._budget.seconds()
        super().connect()
        self.sock: Any = _Socket(self.sock, self._budget)


class _Socket:
    """As much of a socket as ``http.client`` uses, within a budget."""

    def __init__(self, inner: socket.socket, budget: _Budget) -> None:
        self._inner, self._budget = inner, budget

    def sendall(self, data: bytes) -> None:
        self._inner.settimeout(self._budget.seconds())
        self._inner.sendall(data)

    def makefile(self, _: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self._inner, self._budget))

    def close(self) -> None:
        self._inner.close()


class _Reader(io.RawIOBase):
    """Reads a socket within a budget, and keeps it open until it is closed itself."""

    def __init__(self, inner: socket.socket, budget: _Budget) -> None:
        self._socket, self._budget = inner, budget
        self._raw = inner.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._socket.settimeout(self._budget.seconds())
        count = self._raw.readinto(buffer) or 0
        self._budget.spend(count)
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()
