"""netlink messages: their form, and the sockets they are sent and received by (netlink(7)).

The modules of each family know what is in a message. Constants: linux/netlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, Self

from reconciler.errors import ObserveError

NETLINK_ROUTE, NETLINK_NETFILTER = 0, 12

HEADER = struct.Struct("=IHHII")
"""``struct nlmsghdr``: length, type, flags, sequence, port."""

ATTRIBUTE = struct.Struct("=HH")
"""``struct nlattr``: length, type."""

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x1, 0x4, 0x10, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE, NLM_F_APPEND = 0x100, 0x200, 0x400, 0x800
NLA_F_NESTED, NLA_TYPE_MASK = 1 << 15, 0x3FFF

RECEIVE_BYTES = 1 << 17
"""For one answer. The kernel sends a dump in pieces of 32 KiB at most, and the next piece only
when this one was read, so a dump of any size takes this much memory."""

DUMP_ATTEMPTS = 30
"""A dump the kernel marks as interrupted (NLM_F_DUMP_INTR) is not the truth. Cilium settled on
30 tries (cilium/cilium#35614)."""


class KernelError(OSError):
    """The kernel's answer is an error."""

    def __init__(self, code: int) -> None:
        super().__init__(code, os.strerror(code))

    def __str__(self) -> str:
        return str(self.strerror)


class InterruptedDumpError(OSError):
    """The table changed during a dump. The dump was read to its end."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "it changed while it was read")


class Bounds(NamedTuple):
    """How much is read for one question: bytes and seconds over all tries, and tries of a dump."""

    size: int
    attempts: int
    seconds: float


class Meter:
    """Counts the bytes and the time of one question about a table."""

    def __init__(self, what: str, bounds: Bounds) -> None:
        self._what = what
        self._bounds = bounds
        self._left = bounds.size
        self._until = time.monotonic() + bounds.seconds

    def count(self, size: int) -> None:
        """Add an answer's bytes; raise ``ObserveError`` if it is too much, or takes too long."""
        self._left -= size
        if self._left < 0:
            limit = self._bounds.size >> 20
            raise ObserveError(self._what, f"they are more than {limit} MiB, the limit")
        if time.monotonic() > self._until:
            limit_s = self._bounds.seconds
            raise ObserveError(self._what, f"reading them took longer than {limit_s:.0f} s")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Turn an ``OSError`` into an ``ObserveError``."""
    try:
        yield
    except OSError as error:
        raise ObserveError(what, str(error)) from error


def open_socket(protocol: int, groups: int = 0) -> socket.socket:
    """Open a socket in the namespace this thread is in, for life; hear multicast groups (bits)."""
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    if groups:
        s.bind((0, groups))
    return s


class Socket:
    """Asks the kernel, in the namespace its thread was in when it was made."""

    def __init__(self, protocol: int) -> None:
        self._socket = open_socket(protocol)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket; a dump that was not read to its end ends with it."""
        self._socket.close()

    def ask(
        self, kind: int, flags: int, body: bytes, meter: Meter | None = None
    ) -> Iterator[bytes]:
        """Ask a question; yield the messages of its answer as they come.

        What is no dump and wants no acknowledgement is answered once. Raises ``KernelError``,
        ``InterruptedDumpError``, ``ObserveError`` by the meter, and ``OSError`` without an answer.
        """
        self._socket.send(self._pack(kind, flags, body))
        number = self._sequence
        is_answered_once = not flags & (NLM_F_DUMP | NLM_F_ACK)
        interrupted = pieces = 0
        while True:
            data = self._socket.recv(RECEIVE_BYTES)
            if meter is not None:
                meter.count(len(data))
            is_first = True
            for answer, its_flags, its_number, _, message in split(data):
                if its_number != number:
                    continue  # left of a question whose answer was not read to its end
                interrupted |= its_flags & NLM_F_DUMP_INTR
                if answer in (NLMSG_ERROR, NLMSG_DONE):
                    if code := code_of(message):
                        raise KernelError(code)
                    # What came in one piece is of one moment, whatever changed until the kernel
                    # found that there is no more (``netlink_dump_done``).
                    if interrupted and pieces > 1:
                        raise InterruptedDumpError
                    return
                pieces += is_first
                is_first = False
                yield message
            if is_answered_once and not is_first:
                return

    def _pack(self, kind: int, flags: int, body: bytes) -> bytes:
        """Return a request, with the next number."""
        self._sequence = self._sequence % 0xFFFFFFFF + 1
        length = HEADER.size + len(body)
        header = HEADER.pack(length, kind, flags | NLM_F_REQUEST, self._sequence, 0)
        return header + body + bytes(-length % 4)


def split(data: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    """Yield type, flags, sequence, port and whole of each message; ``OSError`` if one is cut."""
    position, end = 0, len(data)
    try:
        while position < end:
            length, kind, flags, sequence, port = HEADER.unpack_from(data, position)
            if not HEADER.size <= length <= end - position:
                raise OSError(errno.EBADMSG, f"a message of {length} bytes is cut off")
            yield kind, flags, sequence, port, data[position : position + length]
            position += length + 3 & ~3
    except struct.error as error:
        raise OSError(errno.EBADMSG, "a message without a header") from error


def code_of(message: bytes) -> int:
    """Return the errno in an error message, or in the end of a dump; 0 if it went well."""
    return -native(message[16:20], signed=True)


def attributes(data: bytes, position: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield type and content of each attribute in a row; ``struct.error`` if one is cut off."""
    end = len(data)
    while position < end:
        length, kind = ATTRIBUTE.unpack_from(data, position)
        if length < ATTRIBUTE.size:
            raise struct.error(f"an attribute of {length} bytes")
        yield kind & NLA_TYPE_MASK, data[position + 4 : position + length]
        position += length + 3 & ~3


def attribute(kind: int, content: bytes) -> bytes:
    """Return an attribute, filled up to four bytes."""
    length = ATTRIBUTE.size + len(content)
    return ATTRIBUTE.pack(length, kind) + content + bytes(-length % 4)


def nested(kind: int, content: bytes) -> bytes:
    """Return an attribute that holds others."""
    return attribute(kind | NLA_F_NESTED, content)


def native(value: bytes, *, signed: bool = False) -> int:
    """Return a number that the kernel has in its own byte order."""
    return int.from_bytes(value, sys.byteorder, signed=signed)
