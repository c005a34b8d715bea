"""Connections out of a pod's namespace, to see whether packets come and go. Nothing is kept.

A socket belongs to the namespace that it was made in, so all are made there and waited for here.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

from reconciler.diagnostics.connectivity import Answer, Target
from reconciler.errors import NamespaceError
from reconciler.targets.netlink.namespaces import entered

LONGEST_S = 2.0
"""For all together: a lost SYN is sent again after one second (RFC 6298, 2.1)."""

NO_ONE = b"\x07invalid\x00"
"""A name that does not exist (RFC 6761, 6.4), as DNS writes it: any answer shows a server."""

REACHED = {errno.ECONNREFUSED}
"""What only the other end's answer brings about: a reset has come back."""


def probe(netns: str, targets: Sequence[Target]) -> Mapping[Target, Answer]:
    """Try to reach each target from a pod's namespace, all at once.

    Raises:
        NamespaceError: the namespace cannot be entered.
    """
    found: dict[Target, Answer] = {}
    with ExitStack() as opened, selectors.DefaultSelector() as waiting:
        try:
            with entered(netns):
                for target in targets:
                    _begin(target, opened, waiting, found)
        except OSError as error:
            raise NamespaceError(netns, error.strerror or str(error)) from error
        deadline = time.monotonic() + LONGEST_S
        while waiting.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                waiting.unregister(key.fileobj)
                found[key.data] = _end(key.data, key.fileobj)  # type: ignore[arg-type]
    return {t: found.get(t, Answer(None, "no answer")) for t in targets}


def _begin(
    target: Target,
    opened: ExitStack,
    waiting: selectors.BaseSelector,
    found: dict[Target, Answer],
) -> None:
    family = socket.AF_INET if target.address.version == 4 else socket.AF_INET6
    kind = socket.SOCK_DGRAM if target.is_dns else socket.SOCK_STREAM
    made = opened.enter_context(socket.socket(family, kind | socket.SOCK_CLOEXEC))
    made.setblocking(False)
    number = made.connect_ex((str(target.address), target.port))
    if number not in (0, errno.EINPROGRESS):
        found[target] = _judge(number)
        return
    if target.is_dns:
        question = struct.pack("!6H", os.getpid() & 0xFFFF, 0x0100, 1, 0, 0, 0) + NO_ONE
        try:
            made.send(question + struct.pack("!2H", 1, 1))
        except OSError as error:
            found[target] = _judge(error.errno or errno.EIO)
            return
    ready = selectors.EVENT_READ if target.is_dns else selectors.EVENT_WRITE
    waiting.register(made, ready, target)


def _end(target: Target, made: socket.socket) -> Answer:
    if not target.is_dns:
        return _judge(made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    try:
        made.recv(512)
    except OSError as error:
        return _judge(error.errno or errno.EIO)
    return Answer(True, "answers")


def _judge(number: int) -> Answer:
    if number == 0:
        return Answer(True, "connected")
    if number in REACHED:
        return Answer(True, "reached; no process listens on that port")
    return Answer(False, os.strerror(number))
