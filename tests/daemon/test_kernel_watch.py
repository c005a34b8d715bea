"""The kernel's notifications: whoever makes them without end costs latency only."""

from __future__ import annotations

import socket
import struct
import subprocess
from typing import Any

import hostility
import pytest
from conftest import namespace
from waiting import until

from lab import netns
from reconciler.daemon import triggers as told
from reconciler.daemon.duty import Conditions, Duties, Watchdog
from reconciler.daemon.ledger import Notifications
from reconciler.daemon.triggers import MAX_AUTHORS, MOST, ChangeAttribution, KernelWatch, Triggers


class Endless:
    """A socket on which there is always one more."""

    def __init__(self, most: int) -> None:
        self.read = 0
        self._most = most

    def recv(self, size: int, flags: int) -> bytes:
        assert size
        assert flags == socket.MSG_DONTWAIT
        self.read += 1
        assert self.read <= self._most, "it reads for ever"
        return b""


def test_notifications_without_end_do_not_keep_the_watch_from_marking() -> None:
    endless: Any = Endless(10 * told.MAX_READ)
    told._drain(endless, ChangeAttribution(), Notifications())
    assert endless.read == told.MAX_READ


def test_lost_notifications_are_no_error() -> None:
    class Full:
        def recv(self, *_: Any) -> bytes:
            raise OSError(105, "No buffer space available")

    full: Any = Full()
    told._drain(full, ChangeAttribution(), Notifications())


FLOOD = (
    *("address add 192.0.2.9/32 dev lo", "address delete 192.0.2.9/32 dev lo"),
    *("rule add priority 77 lookup main", "rule delete priority 77"),
)


@pytest.mark.kernel
def test_a_flood_of_changes_is_marked_again_and_again_and_ends_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small = told._rtnetlink

    def soon_full() -> socket.socket:
        s = small()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)  # ENOBUFS
        return s

    monkeypatch.setattr(told, "_rtnetlink", soon_full)
    conditions = Conditions()
    dog = Watchdog(lambda *_: None)
    with namespace("home") as home, netns.inside(home):
        marks = Triggers()
        watch = KernelWatch(marks, ChangeAttribution(), Duties(conditions, dog), Notifications())
        watch.keep()
        try:
            with hostility.loop(home, *FLOOD):
                for _ in range(20):
                    assert marks.wait(10.0) == {"kernel"}
            while marks.wait(0.2):
                pass
            subprocess.run(["ip", "link", "set", "lo", "down"], check=True)
            until(lambda: bool(marks.wait(0.1)), "a mark after the flood")
            assert conditions.all() == []
        finally:
            watch.stop()


def test_thousands_of_authors_are_not_all_looked_up_or_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(told, "_name", lambda pid: asked.append(pid) or f"x (pid {pid})")
    known = ChangeAttribution()

    def notification(pid: int) -> bytes:
        return struct.pack("=IHHII", 16, 16, 0, 0, pid)

    known.hear(notification(7) * 1000)
    assert asked == [7], "once for each author"
    known.hear(b"".join(notification(pid) for pid in range(1000, 3000)))
    assert len(asked) <= 1 + MAX_AUTHORS
    for pid in range(5000, 6000):
        known.hear(notification(pid))
    assert len(known._seen) <= MAX_AUTHORS
    assert len(known.lately()) == MOST
