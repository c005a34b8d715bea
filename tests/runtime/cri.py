"""The container runtime interface, as kubelet speaks it: gRPC over a socket, a few messages.

Numbers of fields are those of k8s.io/cri-api, pkg/apis/runtime/v1/api.proto. The few messages
are written by hand, so that no generated code is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import grpc

VARINT, BYTES = 0, 2
"""Wire types. Source: protobuf.dev, "Encoding"."""

Message = dict[int, "int | str | Message"]
READY = 0
"""PodSandboxState.SANDBOX_READY."""


class Cri:
    """A connection to a runtime's RuntimeService."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def run(self, name: str, cgroup: str, attempt: int = 0) -> str:
        """Start a pod's sandbox; return its ID.

        Raises:
            grpc.RpcError: the runtime refused, or went away.
        """
        metadata: Message = {1: name, 2: f"uid-{name}", 3: "default", 4: attempt}
        config: Message = {1: metadata, 2: name, 8: {1: f"/{cgroup}", 2: {}}}
        answer = self._call("RunPodSandbox", {1: config})
        return text(answer, 1)

    def address(self, sandbox: str) -> str:
        """Return the address that the runtime tells kubelet."""
        status = self._call("PodSandboxStatus", {1: sandbox})
        return text(decode(decode(status[1][0])[5][0]), 1)

    def stop(self, sandbox: str) -> None:
        """Stop a sandbox."""
        self._call("StopPodSandbox", {1: sandbox})

    def remove(self, sandbox: str) -> None:
        """Remove a sandbox; one that is not there is removed already."""
        self._call("RemovePodSandbox", {1: sandbox})

    def sandboxes(self) -> dict[str, tuple[str, int]]:
        """Return all sandboxes: name and state by ID."""
        found = {}
        for item in self._call("ListPodSandbox", {}).get(1, []):
            body = decode(item)
            (state,) = body.get(3, [READY])
            found[text(body, 1)] = (text(decode(body[2][0]), 1), int(state))
        return found

    def is_ready(self) -> bool:
        """Whether runtime and network are, by the runtime's word."""
        try:
            status = decode(self._call("Status", {})[1][0])
        except grpc.RpcError:
            return False
        return all(2 in decode(condition) for condition in status[1])

    def _call(self, method: str, request: Message) -> dict[int, list[int | bytes]]:
        call = self._channel.unary_unary(f"/runtime.v1.RuntimeService/{method}")
        return decode(call(encode(request), timeout=60))


def encode(message: Message) -> bytes:
    """Return a message as it goes over the wire."""
    out = b""
    for number, value in message.items():
        if isinstance(value, int):
            out += _varint(number << 3 | VARINT) + _varint(value)
        else:
            body = encode(value) if isinstance(value, dict) else value.encode()
            out += _varint(number << 3 | BYTES) + _varint(len(body)) + body
    return out


def decode(body: int | bytes) -> dict[int, list[int | bytes]]:
    """Return the fields of a message; those inside of it stay bytes."""
    assert isinstance(body, bytes)
    found: dict[int, list[int | bytes]] = {}
    stream = iter(body)
    for tag in _varints(stream):
        number, wire_type = tag >> 3, tag & 7
        assert wire_type in (VARINT, BYTES), f"field {number} has wire type {wire_type}"
        value: int | bytes = next(_varints(stream))
        if wire_type == BYTES:
            assert isinstance(value, int)
            value = bytes(next(stream) for _ in range(value))
        found.setdefault(number, []).append(value)
    return found


def text(message: dict[int, list[int | bytes]], number: int) -> str:
    """Return a field that is text."""
    (value,) = message[number]
    assert isinstance(value, bytes)
    return value.decode()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def _varints(stream: Iterator[int]) -> Iterator[int]:
    for byte in stream:
        value, shift = byte & 0x7F, 7
        while byte & 0x80:
            byte = next(stream)
            value |= (byte & 0x7F) << shift
            shift += 7
        yield value
