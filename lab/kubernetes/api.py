"""The API server, asked directly: a call costs a fiftieth of a kubectl."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from typing import Any

from lab import netns
from lab.kubernetes.places import API_PORT, CONTROL, CONTROL_ADDRESS
from lab.lifecycle import Lab

TIMEOUT_S = 20.0

Body = dict[str, Any]


class ApiError(Exception):
    """The API server refused.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """Who asks with one token; each call has a connection of its own, so threads may share it."""

    def __init__(self, lab: Lab, token: str) -> None:
        self._namespace = lab.names.namespace(CONTROL)
        self._token = token
        self._context = ssl._create_unverified_context()

    def is_ready(self) -> bool:
        """Whether the server says that it is ready."""
        try:
            return self._ask("GET", "/readyz", None)[0] == http.client.OK
        except OSError:
            return False

    def get(self, path: str) -> Body:
        """Return an object or a list.

        Raises:
            ApiError: there is none, or the server refused.
        """
        return self._call("GET", path, None)

    def items(self, path: str) -> list[Body]:
        """Return the objects of a list."""
        found: list[Body] = self.get(path)["items"]
        return found

    def post(self, path: str, body: Body) -> Body:
        """Create an object.

        Raises:
            ApiError: the server refused.
        """
        return self._call("POST", path, body)

    def patch(self, path: str, body: Body) -> Body:
        """Change an object by a strategic merge patch.

        Raises:
            ApiError: the server refused.
        """
        return self._call("PATCH", path, body)

    def delete(self, path: str, body: Body | None = None) -> None:
        """Delete an object; one that is not there is deleted already.

        Raises:
            ApiError: the server refused.
        """
        try:
            self._call("DELETE", path, body or {})
        except ApiError as error:
            if error.status != http.client.NOT_FOUND:
                raise

    def _call(self, method: str, path: str, body: Body | None) -> Body:
        status, text = self._ask(method, path, body)
        if status >= http.client.BAD_REQUEST:
            raise ApiError(status, f"{method} {path}: {text[:1000]}")
        answer: Body = json.loads(text)
        return answer

    def _ask(self, method: str, path: str, body: Body | None) -> tuple[int, str]:
        with netns.inside(self._namespace):
            plain = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        plain.settimeout(TIMEOUT_S)
        try:
            plain.connect((str(CONTROL_ADDRESS), API_PORT))
            stream = self._context.wrap_socket(plain)
        except OSError:
            plain.close()
            raise
        connection = http.client.HTTPConnection(str(CONTROL_ADDRESS), API_PORT)
        connection.sock = stream
        try:
            kind = (
                "application/strategic-merge-patch+json"
                if method == "PATCH"
                else "application/json"
            )
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
            content = None if body is None else json.dumps(body)
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()
