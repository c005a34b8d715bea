"""nfnetlink: questions to a subsystem of netfilter, and transactions.

Constants: linux/netfilter/nfnetlink.h.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from reconciler.errors import ObserveError
from reconciler.targets.netlink import message as netlink
from reconciler.targets.netlink.message import HEADER, NLMSG_ERROR, KernelError, code_of, split

NFNL_SUBSYS_CTNETLINK, NFNL_SUBSYS_NFTABLES = 1, 10
NFNL_MSG_BATCH_BEGIN, NFNL_MSG_BATCH_END = 0x10, 0x11

FAMILIES = {1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}
NUMBERS = {name: number for number, name in FAMILIES.items()}
"""Protocol families by number, and the other way round (NFPROTO_* of linux/netfilter.h)."""

FAMILY = struct.Struct(">BBH")
"""``struct nfgenmsg``: family, version, resource."""

HEADERS = HEADER.size + FAMILY.size
"""Bytes of ``nlmsghdr`` and ``nfgenmsg``."""

ANSWER_S = 10
"""Seconds without an answer after which a question is given up; the kernel answers in
milliseconds, and a walk over a conntrack table of a million entries in half a second."""

SO_SNDBUFFORCE = 32
"""Of asm-generic/socket.h; Python has no name for it. Goes beyond net.core.wmem_max."""

DEFAULT_SEND_BYTES = 1 << 17
"""That can be sent at once; the default of Linux is 208 KiB."""

Request = tuple[int, int, bytes]
"""Kind, flags and attributes of a message."""

T = TypeVar("T")


class Channel(netlink.Socket):
    """A socket to one subsystem of netfilter.

    Everything raises ``OSError`` if the kernel refuses or does not answer, but for ``dump``, which
    raises ``ObserveError``.
    """

    def __init__(self, subsystem: int) -> None:
        super().__init__(netlink.NETLINK_NETFILTER)
        self._subsystem = subsystem
        self._room = DEFAULT_SEND_BYTES
        # Not Python's own timeout, which costs each answer another system call.
        wait = struct.pack("ll", ANSWER_S, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)

    def stream(self, kind: int, flags: int, body: bytes = b"", family: int = 0) -> Iterator[bytes]:
        """Ask a question about one family, as ``ask`` does."""
        return self.ask(self._subsystem << 8 | kind, flags, FAMILY.pack(family, 0, 0) + body)

    def tell(self, requests: Iterable[Request], family: int = 0) -> None:
        """Send requests at once; only what fails is answered."""
        self._socket.send(b"".join(self._pack_all(requests, family)))

    def commit(self, requests: Iterable[Request], family: str) -> None:
        """Carry out requests as one transaction: all of them, or none."""
        requests = list(requests)
        if not requests:
            return
        # The acknowledgement of the last one comes once all have been tried.
        kind, flags, body = requests[-1]
        requests[-1] = (kind, flags | netlink.NLM_F_ACK, body)
        resource = FAMILY.pack(0, 0, self._subsystem)
        first = self._sequence + 1
        parts = [self._pack(NFNL_MSG_BATCH_BEGIN, 0, resource)]
        parts += self._pack_all(requests, NUMBERS[family])
        last = self._sequence
        parts.append(self._pack(NFNL_MSG_BATCH_END, 0, resource))
        data = b"".join(parts)
        if len(data) > self._room:  # a transaction has to be sent at once
            self._socket.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 * len(data))
            self._room = len(data)
        self._socket.send(data)
        refused = 0
        while True:
            try:
                answers = self._socket.recv(netlink.RECEIVE_BYTES)
            except OSError as lost:
                if lost.errno != errno.ENOBUFS:
                    raise
                # Each refusal has the whole message in it; the first ones are there.
                raise next((r for r in self.errors() if r.errno), lost) from lost
            for answer, _, number, _, message in split(answers):
                if answer != NLMSG_ERROR or not first <= number <= last:
                    continue
                refused = refused or code_of(message)
                if number in (first, last):
                    if refused:
                        raise KernelError(refused)
                    return

    def one(self, kind: int, body: bytes, family: int) -> bytes | None:
        """Return the one message that answers a question; None if there is no such thing."""
        try:
            (message,) = self.stream(kind, 0, body, family)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return message

    def dump(
        self,
        kind: int,
        what: str,
        choose: Callable[[Iterable[bytes]], T],
        body: bytes = b"",
        family: int = 0,
    ) -> T:
        """Return what is chosen of a dump during which nothing has changed.

        ``choose`` is given the messages one by one, and returns what is to be kept; again from the
        first one if there are changes meanwhile.
        """
        with netlink.reading(what):
            for _ in range(netlink.DUMP_ATTEMPTS):
                try:
                    messages = self.stream(kind, netlink.NLM_F_DUMP, body, family)
                    chosen = choose(messages)
                    deque(messages, maxlen=0)  # the next question has to wait for its end
                except netlink.InterruptedDumpError:
                    continue
                return chosen
        raise ObserveError(what, f"it changed during each of {netlink.DUMP_ATTEMPTS} dumps")

    def errors(self) -> Iterator[KernelError]:
        """Return what the kernel has answered to what was told; do not wait for more."""
        while True:
            try:
                answers = self._socket.recv(netlink.RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                continue  # some of the answers are lost
            for answer, _, _, _, message in split(answers):
                if answer == NLMSG_ERROR:
                    yield KernelError(code_of(message))

    def _pack_all(self, requests: Iterable[Request], family: int) -> list[bytes]:
        subsystem, head = self._subsystem << 8, FAMILY.pack(family, 0, 0)
        return [self._pack(subsystem | kind, flags, head + body) for kind, flags, body in requests]
