"""Triggers: hints that something may have changed. They carry no content.

The loop looks for itself; losing every trigger costs latency, never correctness. This is the door
to ``watchdog``.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from pathlib import Path

from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from reconciler.suspects import Suspects

log = logging.getLogger(__name__)

NETLINK_NETFILTER = 12
NFNLGRP_NFTABLES = 7
"""Multicast group of nftables changes (linux/netfilter/nfnetlink.h)."""

RTNLGRP = 1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 0x40000
"""Links, then addresses, routes and rules of IPv4 and of IPv6 (RTNLGRP_* of linux/rtnetlink.h, as
bits). Neighbours are left out: every ARP exchange would wake us."""

SOL_NETLINK, NETLINK_ADD_MEMBERSHIP = 270, 1

SETTLE_S = 0.02
"""Seconds a burst of hints is given to end before the loop looks once for all of them."""

BURST_S = 0.01
"""Seconds between two readings of the kernel's notifications; each reading marks at once."""


class Triggers:
    """What may have changed since the loop last asked."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._marks: dict[str, float] = {}

    def mark(self, what: str) -> None:
        """Say that ``what`` may have changed.

        Args:
            what: "intent", "kernel", "document", "pool", "files" or "stop".
        """
        with self._condition:
            self._marks[what] = time.monotonic()
            self._condition.notify_all()

    def forget(self, what: str, *, before: float) -> None:
        """Drop a hint that is older than a look which has meanwhile been taken.

        Args:
            what: the hint.
            before: monotonic seconds at which that look began.
        """
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


class FileWatch:
    """Marks something when anything happens in a directory.

    The directory, not a file: a ConfigMap mount changes by swapping the ``..data`` link, and
    editors replace files by renaming.

    Args:
        directory: it must be there.
        triggers: where to mark.
        what: what to mark.
        besides: names of files that tell nothing.
    """

    def __init__(
        self,
        directory: Path,
        triggers: Triggers,
        what: str,
        *,
        besides: frozenset[str] = frozenset(),
    ) -> None:
        self._observer = Observer()
        handler = _Mark(triggers, what, besides | {directory.name} if besides else besides)
        self._observer.schedule(handler, str(directory), recursive=False)

    def start(self) -> None:
        """Begin to watch."""
        self._observer.start()

    def stop(self) -> None:
        """End watching."""
        self._observer.stop()
        self._observer.join()


class _Mark(FileSystemEventHandler):  # type: ignore[misc]  # watchdog is behind this door
    def __init__(self, triggers: Triggers, what: str, besides: frozenset[str]) -> None:
        self._triggers = triggers
        self._what = what
        self._besides = besides

    def on_any_event(self, event: FileSystemEvent) -> None:
        if event.event_type in {"opened", "closed_no_write"}:
            return
        if Path(os.fsdecode(event.src_path)).name not in self._besides:
            self._triggers.mark(self._what)


class KernelWatch:
    """Marks "kernel" on rtnetlink and nftables notifications of this network namespace.

    Args:
        triggers: where to mark.
        suspects: hears them.
    """

    def __init__(self, triggers: Triggers, suspects: Suspects) -> None:
        self._triggers = triggers
        self._suspects = suspects
        self._stop, self._wake = socket.socketpair()
        self._sockets = [_rtnetlink(), _nftables()]
        self._thread = threading.Thread(target=self._watch, name="kernel-watch", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()

    def stop(self) -> None:
        """End listening."""
        self._wake.close()
        self._thread.join()
        for s in (*self._sockets, self._stop):
            s.close()

    def _watch(self) -> None:
        while True:
            ready, _, _ = select.select([self._stop, *self._sockets], [], [])
            if self._stop in ready:
                return
            self._triggers.mark("kernel")
            for s in ready:
                _drain(s, self._suspects)
            # More of the same burst come together: each by itself would stop a pass of ours.
            if select.select([self._stop], [], [], BURST_S)[0]:
                return


def _drain(s: socket.socket, suspects: Suspects) -> None:
    """Read all notifications there are; what they are about is looked at elsewhere."""
    try:
        while True:
            suspects.hear(s.recv(65536, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return
    except OSError as error:
        # ENOBUFS: notifications were lost. What we know is the same: look.
        log.debug("kernel notifications lost", extra={"error": str(error)})


def _rtnetlink() -> socket.socket:
    s = socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    )
    s.bind((0, RTNLGRP))
    return s


def _nftables() -> socket.socket:
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    s.bind((0, 0))
    s.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, NFNLGRP_NFTABLES)
    return s
