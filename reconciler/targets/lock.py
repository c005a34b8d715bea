"""One reconciler for each network namespace, whatever its state directory is called.

Two of them take each other's addresses, routes and nftables table for garbage. The lock is an
abstract Unix socket: its name belongs to the network namespace, and the kernel frees it when its
process ends, however that comes about (unix(7), "Abstract sockets").
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from pathlib import Path

from reconciler.errors import Issue, LockedError, StateError
from reconciler.targets.netlink.message import HEADER, NLM_F_DUMP, Socket, attributes, native

NAME = "\0node-network/lock"
"""A leading NUL makes it abstract."""

CREDENTIALS = struct.Struct("=iII")
"""``struct ucred`` of linux/socket.h: process, user, group."""

ANSWER_S = 1.0
"""Seconds in which the kernel must connect us to the holder; its queue may be full."""

CAP_NET_ADMIN = 12
"""Of linux/capability.h: without it nothing of the network can be changed."""

SO_RCVBUFFORCE = 33
PROOF = (1 << 30) - 1
"""Bytes of the receive buffer that the lock's socket asks for, of which none is ever used. Only
CAP_NET_ADMIN gets more than net.core.rmem_max, so the size, which sock_diag tells, proves it. What
else could, the number of the process, is not told across namespaces of processes."""

SOCK_DIAG = 4
"""The netlink family of linux/sock_diag.h: it describes sockets whose owners do not answer."""

DIAG_ASK = struct.Struct("=BBHIIIII")
"""``struct unix_diag_req`` of linux/unix_diag.h: family, protocol, padding, states, inode, what
to show, cookie."""

SOCK_DIAG_BY_FAMILY, SHOW_NAME, SHOW_MEMORY, SHOW_USER = 20, 0x01, 0x20, 0x40
DIAG_ANSWER, DIAG_NAME, DIAG_MEMORY, DIAG_USER = 16, 0, 5, 7

MAX_COMMAND = 200
"""Characters of the holder's command line that are told."""


class NamespaceLock:
    """The lock of this network namespace.

    Anybody in the namespace may bind the name. A process that cannot be a reconciler, because it
    has not the rights of one, keeps none from starting; it is told as a finding.
    """

    def __init__(self) -> None:
        self._socket: socket.socket | None = None

    def take(self) -> tuple[Issue, ...]:
        """Become the only reconciler of the namespace; say who has its name without being one.

        Raises:
            LockedError: another reconciler is, or may be, here.
            StateError: the kernel refuses for another reason.
        """
        if self._socket is not None:
            return ()
        s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        can_prove = True
        try:
            s.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, PROOF)
        except OSError:
            can_prove = False
        try:
            s.bind(NAME)
            s.listen(8)  # a process that finds it taken asks who holds it
        except OSError as error:
            s.close()
            return _judge_holder(error, can_prove=can_prove)
        self._socket = s
        return ()

    is_own = True
    """Nothing takes it away; whether it can be taken is asked with each full pass."""

    reclaim = take

    def release(self) -> None:
        """Let another reconciler begin."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _judge_holder(refusal: OSError, *, can_prove: bool) -> tuple[Issue, ...]:
    """Tell a reconciler from others; where none can prove what it may, root may be one."""
    process, user, proof = 0, *_find_owner()
    try:
        process, user = _find_holder()
    except (ConnectionRefusedError, BlockingIOError):
        pass  # not listening yet, or any more; or its queue is full: only the kernel answers
    except OSError as error:
        raise StateError(
            f"cannot lock this network namespace: {refusal.strerror}, and its holder cannot "
            f"be asked: {error.strerror}"
        ) from error
    is_able = proof >= PROOF if can_prove and proof else _may_administer(process)
    who = f"process {process or '?'} of user {user}{_command(process)}"
    if user == 0 and is_able:
        raise LockedError(
            f"{who} already reconciles this network namespace, with a state directory of its "
            "own: end it, or start this one with the same --state-dir"
        )
    text = (
        f"{who} holds {NAME[1:]} and cannot be a reconciler; without the lock a second "
        "reconciler with another --state-dir would not be noticed: end that process"
    )
    return (Issue("network namespace", "LockOccupied", text),)


def _find_holder() -> tuple[int, int]:
    """Return process (0 if it cannot be seen from here) and user of the listener."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as s:
        s.settimeout(ANSWER_S)
        s.connect(NAME)
        found = s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    process, user, _ = CREDENTIALS.unpack(found)
    return process, user


def _find_owner() -> tuple[int, int]:
    """Return the user whose socket has the name, and its receive buffer's size in bytes.

    Both are 0 if the kernel cannot tell: it may be a reconciler's.
    """
    show = SHOW_NAME | SHOW_MEMORY | SHOW_USER
    ask = DIAG_ASK.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, 0, show, 0, 0)
    with suppress(OSError, struct.error), Socket(SOCK_DIAG) as s:
        for found in s.ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, ask):
            told = dict(attributes(found, HEADER.size + DIAG_ANSWER))
            is_stream = found[HEADER.size + 1] == socket.SOCK_STREAM
            if is_stream and told.get(DIAG_NAME) == NAME.encode() and DIAG_USER in told:
                # SK_MEMINFO_RCVBUF is the second number.
                return native(told[DIAG_USER]), native(told.get(DIAG_MEMORY, b"")[4:8])
    return 0, 0


def _may_administer(process: int) -> bool:
    """Whether a process may change the network; one that cannot be seen is taken for able."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
        (line,) = (x for x in status.splitlines() if x.startswith("CapEff:"))
        return bool(int(line.split()[1], 16) >> CAP_NET_ADMIN & 1)
    except (OSError, ValueError, IndexError):
        return True


def _command(process: int) -> str:
    """Return a process's command line in brackets; nothing if it cannot be read."""
    with suppress(OSError):
        with Path(f"/proc/{process}/cmdline").open("rb") as f:
            words = f.read(MAX_COMMAND).split(b"\0")
        text = " ".join(w.decode(errors="backslashreplace") for w in words if w)
        return f" ({text})" if text else ""
    return ""
