"""Triggers: hints that something may have changed, and the watches that mark them.

Hints carry no content. The loop observes for itself; losing every trigger costs latency, never
correctness. So a watch that fails or is lost is only a condition, and is tried again. This is the
door to ``watchdog``, the library.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from watchdog import events
from watchdog.observers import Observer

from reconciler.daemon.duty import Duties
from reconciler.daemon.ledger import Notifications
from reconciler.errors import WatchError
from reconciler.targets.netlink import message, nf_tables
from reconciler.targets.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES

log = logging.getLogger(__name__)

RTNLGRP = 1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000 | 0x800000
"""Links, then addresses, routes and rules of IPv4 and of IPv6, then IPv4's settings, of which
rp_filter is one (RTNLGRP_* of linux/rtnetlink.h, as bits). Neighbours are left out: every ARP
exchange would wake us."""

NFNLGRP_NFTABLES = 1 << 7 - 1  # nftables changes (linux/netfilter/nfnetlink.h), as a bit

NEW_RULESET = NFNL_SUBSYS_NFTABLES << 8 | nf_tables.NFT_MSG_NEWGEN
"""Type of the notification that ends each change of a ruleset."""

PID_MAX_LIMIT = 1 << 22
"""Of the kernel. The port that bind chooses for a process's second socket is above."""

CHANGES = [
    *(events.DirCreatedEvent, events.DirModifiedEvent, events.DirMovedEvent),
    *(events.DirDeletedEvent, events.FileCreatedEvent, events.FileModifiedEvent),
    *(events.FileMovedEvent, events.FileDeletedEvent, events.FileClosedEvent),
]
"""What happens to files, but for their being opened and read, which the kernel then does not tell.
A file that is executed is opened: each ADD would wake us twice, for each plugin of its chain."""

SETTLE_S = 0.02
"""Seconds a burst of hints is given to end before the loop looks once for all of them."""

ALIVE_S = 5.0  # seconds after which the thread that listens to the kernel says that it is alive

BURST_S, MAX_READ = 0.01, 256
"""Seconds between two readings of the kernel's notifications, and how many are read each time of
one socket; each reading marks at once."""

RECENT_S, MOST = 10.0, 8  # seconds for which another writer is remembered, and names that are told
MAX_AUTHORS = 64  # of one notification, and names that are remembered


class Triggers:
    """What may have changed since the loop last asked."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._marks: dict[str, float] = {}

    def mark(self, what: str) -> None:
        """Say that "intent", "kernel", "document", "pool", "look", "files" may have changed.

        "sources": what the document's sources stand for has. "retry": a person asks for what is in
        backoff. "stop" ends the loop.
        """
        with self._condition:
            self._marks[what] = time.monotonic()
            self._condition.notify_all()

    def forget(self, what: str, *, before: float) -> None:
        """Drop a hint that is older than a look which began at these monotonic seconds."""
        with self._condition:
            if self._marks.get(what, before) < before:
                del self._marks[what]

    def wait(self, timeout_s: float) -> frozenset[str]:
        """Wait for a hint, or for the time to look anyway; return all hints and clear them."""
        with self._condition:
            self._condition.wait_for(lambda: bool(self._marks), timeout_s)
            if self._marks and not self._marks.keys() & {"intent", "stop"}:
                # An editor truncates, then writes; one change is many notifications.
                deadline = time.monotonic() + SETTLE_S
                while (left := deadline - time.monotonic()) > 0 and "intent" not in self._marks:
                    self._condition.wait(left)
            marks = frozenset(self._marks)
            self._marks.clear()
            return marks


# -- files ----------------------------------------------------------------------------------------


class FileWatch:
    """Marks something when anything happens in a directory.

    The directory, not a file: a ConfigMap mount changes by swapping the ``..data`` link, and
    editors replace files by renaming.

    Args:
        directory: until it is there, nothing is marked.
        besides: names of files that tell nothing.
    """

    def __init__(
        self, directory: Path, triggers: Triggers, what: str, besides: frozenset[str] = frozenset()
    ) -> None:
        self.name = f"the watch of {directory}"
        self._directory, self._triggers, self._what = directory, triggers, what
        self._handler = _Mark(triggers, what, besides | {directory.name} if besides else besides)
        self._observer: Any = None  # of the watchdog library, which has no types
        self._inode = 0

    def keep(self) -> None:
        """Begin to watch; begin again if the watch was lost or the directory replaced.

        Raises:
            WatchError: it cannot be watched now.
        """
        try:
            inode = self._directory.stat().st_ino
        except OSError:
            inode = 0  # it is looked at by the clock until it is there
        if self._is_watching(inode):
            return
        self.stop()
        if not inode:
            return
        with ExitStack() as undo:
            try:
                observer = Observer()  # takes one of fs.inotify.max_user_instances
                undo.callback(observer.stop)
                observer.schedule(self._handler, str(self._directory), event_filter=CHANGES)
                observer.start()
            except OSError as error:
                raise WatchError(str(self._directory), _why(error)) from error
            undo.pop_all()
        self._observer, self._inode = observer, inode
        self._triggers.mark(self._what)  # something may have happened meanwhile

    def _is_watching(self, inode: int) -> bool:
        observer = self._observer
        return (
            observer is not None
            and inode == self._inode
            and observer.is_alive()
            and all(emitter.is_alive() for emitter in observer.emitters)
        )

    def stop(self) -> None:
        """End watching."""
        observer, self._observer = self._observer, None
        if observer is not None:
            observer.stop()
            observer.join()


def _why(error: OSError) -> str:
    """Say what to do about it, where that is known (inotify_init(2), inotify_add_watch(2))."""
    cure = {
        errno.EMFILE: "all inotify instances of this user, or descriptors of this process, are in "
        "use; raise fs.inotify.max_user_instances",
        errno.ENOSPC: "all inotify watches of this user are in use; raise "
        "fs.inotify.max_user_watches",
    }.get(error.errno or 0)
    return f"{error.strerror or error}" + (f" ({cure})" if cure else "")


class _Mark(events.FileSystemEventHandler):  # type: ignore[misc]  # watchdog is behind this door
    def __init__(self, triggers: Triggers, what: str, besides: frozenset[str]) -> None:
        self._triggers, self._what, self._besides = triggers, what, besides

    def on_any_event(self, event: events.FileSystemEvent) -> None:
        if Path(os.fsdecode(event.src_path)).name not in self._besides:
            self._triggers.mark(self._what)


# -- the kernel -----------------------------------------------------------------------------------


class ChangeAttribution:
    """The others who lately changed the kernel's networking, by name.

    nftables names the process behind each change. rtnetlink gives the port of the socket that
    asked, which is the process's number for the first socket it opened, and what it is called can
    be read for as long as it lives. Both are hints for people, never grounds to act on.
    """

    def __init__(self) -> None:
        self._seen: Mapping[str, float] = {}
        self._own = os.getpid()

    def hear(self, notifications: bytes) -> None:
        """Remember who is behind some notifications; what cannot be understood tells nothing."""
        authors = set(itertools.islice(_authors(notifications), MAX_AUTHORS))
        names = {name or _name(pid) for pid, name in authors if pid != self._own}
        if names:
            seen = {**self._seen, **dict.fromkeys(names, time.monotonic())}
            if len(seen) > MAX_AUTHORS:
                seen = {name: seen[name] for name in sorted(seen, key=seen.__getitem__)[-MOST:]}
            self._seen = seen

    def lately(self) -> tuple[str, ...]:
        """Return who it was in the last seconds, the latest first, as ``name (pid 1234)``."""
        since = time.monotonic() - RECENT_S
        recent = {name: at for name, at in self._seen.items() if at >= since}
        return tuple(sorted(recent, key=recent.__getitem__, reverse=True)[:MOST])


def _authors(notifications: bytes) -> Iterator[tuple[int, str]]:
    """Yield number and name of each author; no name if the notification has none."""
    with suppress(OSError, struct.error):
        for kind, _, _, port, body in message.split(notifications):
            if kind != NEW_RULESET:
                if 0 < port < PID_MAX_LIMIT:
                    yield port, ""
                continue
            found = nf_tables.parts(body)
            if pid := int.from_bytes(found.get(nf_tables.NFTA_GEN_PROC_PID, b"")[:4], "big"):
                name = found.get(nf_tables.NFTA_GEN_PROC_NAME, b"").rstrip(b"\0")
                yield pid, f"{name.decode(errors='replace')} (pid {pid})"


def _name(pid: int) -> str:
    try:
        name = Path(f"/proc/{pid}/comm").read_text(errors="backslashreplace").strip()
    except OSError:
        return f"a process that has ended (pid {pid})"
    return f"{name} (pid {pid})"


class KernelWatch:
    """Marks "kernel" on rtnetlink and nftables notifications of this network namespace."""

    name = "the watch of the kernel"

    def __init__(
        self,
        triggers: Triggers,
        attribution: ChangeAttribution,
        duties: Duties,
        notifications: Notifications,
    ) -> None:
        self._triggers, self._attribution, self._duties = triggers, attribution, duties
        self._notifications = notifications
        self._ended = threading.Event()
        self._stop, self._wake = socket.socketpair()
        self._sockets: list[socket.socket] = []
        self._thread: threading.Thread | None = None

    def keep(self) -> None:
        """Begin to listen; the thread then opens its sockets again by itself."""
        if self._thread is None:
            listen = self._duties.heard
            words = (self.name, self._turn, self._ended)
            self._thread = threading.Thread(
                target=listen, args=words, name="kernel-watch", daemon=True
            )
            self._thread.start()

    def stop(self) -> None:
        """End listening."""
        self._ended.set()
        self._wake.close()
        if self._thread is not None:
            self._thread.join()
        self._close()
        self._stop.close()

    def _turn(self) -> None:
        """Wait for notifications for a while, and mark; open what they come by, if that is due."""
        with ExitStack() as undo:
            undo.callback(self._close)  # if anything fails, the next turn opens them anew
            if not self._sockets:
                self._open()
            ready = _ready([self._stop, *self._sockets], ALIVE_S)
            if self._stop in ready:
                return
            if ready:
                undo.callback(self._triggers.mark, "kernel")  # once they can be weighed
            for s in ready:
                _drain(s, self._attribution, self._notifications)
            undo.pop_all()
            if ready:
                self._triggers.mark("kernel")
        if ready:  # more of the same burst come together: each by itself would stop a pass of ours
            _ready([self._stop], BURST_S)

    def _open(self) -> None:
        try:
            self._sockets.append(_rtnetlink())
            self._sockets.append(message.open_socket(message.NETLINK_NETFILTER, NFNLGRP_NFTABLES))
        except OSError as error:
            raise WatchError("the kernel's networking", error.strerror or str(error)) from error
        self._notifications.lose()  # something may have happened meanwhile
        self._triggers.mark("kernel")

    def _close(self) -> None:
        while self._sockets:
            with suppress(OSError):
                self._sockets.pop().close()


def _rtnetlink() -> socket.socket:
    return message.open_socket(message.NETLINK_ROUTE, RTNLGRP)


def _ready(sockets: list[socket.socket], timeout_s: float) -> list[socket.socket]:
    """Wait until some can be read; not by select(2), which knows descriptors below 1,024 only."""
    poll = select.poll()
    for s in sockets:
        poll.register(s, select.POLLIN)
    ready = {fd for fd, _ in poll.poll(timeout_s * 1000)}
    return [s for s in sockets if s.fileno() in ready]


def _drain(s: socket.socket, attribution: ChangeAttribution, notifications: Notifications) -> None:
    """Read notifications; what they are about is weighed, or looked at, elsewhere.

    At most ``MAX_READ``: changes without end must not keep this thread from marking the next
    burst. What is left is read then, or lost, which marks as much.
    """
    try:
        for _ in range(MAX_READ):
            told = s.recv(65536, socket.MSG_DONTWAIT)
            attribution.hear(told)
            notifications.hear(told)
    except BlockingIOError:
        return
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        # Notifications were lost. What we know is the same: look.
        notifications.lose()
        log.debug("kernel notifications lost", extra={"error": str(error)})
