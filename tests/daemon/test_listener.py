"""The one thread that serves connections: what others do to it costs others nothing."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from waiting import until

from reconciler.daemon import telemetry
from reconciler.daemon.duty import Conditions, Duties, Watchdog
from reconciler.daemon.listener import OWN, SHARE, Bounds, Listener

BOUNDS = Bounds(connections=8, request_bytes=1000, request_s=30.0, answer_s=30.0, grace_s=0.0)


class Served:
    """A listener whose answers are the requests themselves, and what it was given."""

    def __init__(self, path: Path, bounds: Bounds = BOUNDS, take: Any = None) -> None:
        self.path = path
        self.asked: list[bytes] = []
        self.conditions = Conditions()
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(str(path))
        listening.listen(64)
        self.listener = Listener(
            f"test {path}",
            listening,
            bounds,
            lambda received: b"\n" in received,
            take or self._take,
            Duties(self.conditions, Watchdog(lambda _: None)),
        )

    def _take(self, _: socket.socket, request: bytes) -> bytes:
        self.asked.append(request)
        return request

    def connect(self) -> socket.socket:
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(10)
        s.connect(str(self.path))
        return s

    def ask(self, text: bytes = b"hello\n") -> bytes:
        with self.connect() as s:
            s.sendall(text)
            return s.makefile("rb").read()

    def cut(self, why: str) -> float:
        return telemetry.CONNECTIONS_CUT.labels(f"test {self.path}", why)._value.get()


@contextmanager
def served(path: Path, bounds: Bounds = BOUNDS, take: Any = None) -> Iterator[Served]:
    made = Served(path, bounds, take)
    made.listener.start()
    try:
        yield made
    finally:
        made.listener.stop()


def is_closed(s: socket.socket) -> bool:
    s.setblocking(False)
    try:
        return s.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def test_a_request_that_comes_in_parts_is_answered_whole(tmp_path: Path) -> None:
    with served(tmp_path / "s") as server, server.connect() as s:
        for part in (b"he", b"ll", b"o\n"):
            s.sendall(part)
        assert s.makefile("rb").read() == b"hello\n"


def test_what_is_said_before_the_other_side_stops_talking_is_a_request(tmp_path: Path) -> None:
    with served(tmp_path / "s") as server, server.connect() as s:
        s.sendall(b"hint")
        s.shutdown(socket.SHUT_WR)
        assert s.makefile("rb").read() == b"hint"


def test_idle_connections_make_room_for_new_ones_the_oldest_first(tmp_path: Path) -> None:
    with served(tmp_path / "s") as server, ExitStack() as stack:
        idle = [stack.enter_context(server.connect()) for _ in range(BOUNDS.connections)]
        until(lambda: server.ask() == b"hello\n")
        until(lambda: is_closed(idle[0]))
        assert not is_closed(idle[-1])
        more = [stack.enter_context(server.connect()) for _ in range(3 * BOUNDS.connections)]
        assert server.ask() == b"hello\n"
        until(lambda: sum(map(is_closed, [*idle, *more])) > 3 * BOUNDS.connections)
        assert server.cut("crowded out") > 3 * BOUNDS.connections


def test_a_burst_of_those_who_are_about_to_ask_cuts_none_of_its_own(tmp_path: Path) -> None:
    """The executable connects first and writes its intent to the disk before it asks."""
    with served(tmp_path / "s", replace(BOUNDS, grace_s=30.0)) as server, ExitStack() as stack:
        burst = [stack.enter_context(server.connect()) for _ in range(2 * BOUNDS.connections)]
        burst[-1].sendall(b"hello\n")
        until(lambda: server.listener._places._resume_at is not None, "a pause instead of a cut")
        for s in burst[:-1]:
            s.sendall(b"hello\n")
        assert [s.makefile("rb").read() for s in burst] == [b"hello\n"] * len(burst)


def test_whoever_speaks_slower_than_its_time_is_cut(tmp_path: Path) -> None:
    """The time is for the whole request: a byte now and then does not prolong it."""
    bounds = replace(BOUNDS, request_s=0.3)
    with served(tmp_path / "s", bounds) as server, server.connect() as s:

        def drip() -> bool:
            with suppress(OSError):
                s.setblocking(True)
                s.send(b"x")
            return is_closed(s)

        until(drip)
        assert (server.asked, server.cut("late")) == ([], 1)


def test_a_request_without_end_is_read_no_further_than_its_bound(tmp_path: Path) -> None:
    with served(tmp_path / "s") as server, server.connect() as s:
        with suppress(OSError):
            s.sendall(b"x" * (1 << 22))
        until(lambda: server.asked)
        assert [len(a) for a in server.asked] == [BOUNDS.request_bytes + 1]
        assert server.cut("too long") == 1


def test_whoever_does_not_read_its_answer_is_cut_and_nobody_waits_for_it(tmp_path: Path) -> None:
    bounds = replace(BOUNDS, answer_s=1.0)
    huge = b"x" * (1 << 20)  # more than a socket holds, and little to read in that time
    with (
        served(tmp_path / "s", bounds, lambda *_: huge) as server,
        ExitStack() as stack,
    ):
        for _ in range(4):
            stack.enter_context(server.connect()).sendall(b"more\n")
        assert server.ask() == huge
        until(lambda: server.cut("late") == 4)


def test_slow_readers_make_room_for_new_connections(tmp_path: Path) -> None:
    huge = b"x" * (1 << 22)
    with served(tmp_path / "s", take=lambda *_: huge) as server, ExitStack() as stack:
        for _ in range(2 * BOUNDS.connections):
            stack.enter_context(server.connect()).sendall(b"more\n")
        assert server.ask() == huge


def test_what_others_have_taken_is_waited_for_and_not_cut(tmp_path: Path) -> None:
    taken: list[socket.socket] = []
    with (
        served(tmp_path / "s", take=lambda s, _: taken.append(s)) as server,
        ExitStack() as stack,
    ):
        waiting = [stack.enter_context(server.connect()) for _ in range(BOUNDS.connections)]
        for s in waiting:
            s.sendall(b"hello\n")
        until(lambda: len(taken) == BOUNDS.connections)
        for _ in range(BOUNDS.connections):
            waiting.append(stack.enter_context(server.connect()))
            waiting[-1].sendall(b"hello\n")
        until(lambda: len(taken) == BOUNDS.connections)
        for _ in waiting:
            until(lambda: taken)
            one = taken.pop(0)
            one.setblocking(True)
            one.sendall(b"done\n")
            server.listener.close(one)
        assert [s.makefile("rb").read() for s in waiting] == [b"done\n"] * len(waiting)


def test_an_error_of_ours_costs_one_connection_and_is_a_condition(tmp_path: Path) -> None:
    def fail_once(_: socket.socket, request: bytes) -> bytes:
        if request == b"bad\n":
            raise LookupError("a bug")
        return request

    with served(tmp_path / "s", take=fail_once) as server:
        assert server.ask(b"bad\n") == b""
        assert "a bug" in server.conditions.all()[0]["text"]
        assert server.ask() == b"hello\n"
        assert server.conditions.all() == []


@contextmanager
def descriptors(soft: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_connections_leave_descriptors_for_the_daemon(tmp_path: Path) -> None:
    """Of few, connections get an eighth; of many, all but what the daemon needs itself."""
    many = replace(BOUNDS, connections=1000)
    with served(tmp_path / "s", many) as server:
        room = server.listener._places._room
        for soft, most in ((256, OWN), (1024, 1024 - OWN), (4096, 1000)):
            with descriptors(soft):
                assert room() == most
        with descriptors(160):
            assert room() == max(160 // SHARE, 160 - OWN)


def test_without_a_descriptor_left_accepting_pauses_and_goes_on_by_itself(tmp_path: Path) -> None:
    tries: list[None] = []
    with served(tmp_path / "s") as server, socket.socket(socket.AF_UNIX) as s:
        accept = server.listener._places.accept

        def count() -> None:
            tries.append(None)
            accept()

        server.listener._places.accept = count  # type: ignore[method-assign]
        lowest = os.dup(0)
        os.close(lowest)
        with descriptors(lowest):
            s.connect(str(server.path))
            until(lambda: len(tries) >= 3)
        s.sendall(b"hello\n")
        s.settimeout(10)
        assert s.recv(100) == b"hello\n"
        assert len(tries) < 50, "it has tried without end"


def test_stopping_closes_what_is_open_and_ends_the_thread(tmp_path: Path) -> None:
    with served(tmp_path / "s") as server:
        s = server.connect()
        until(lambda: server.ask() == b"hello\n")
        server.listener.stop()
        assert s.recv(1) == b""
        s.close()
        assert f"test {server.path}" not in {t.name for t in threading.enumerate()}
        server.listener.stop = lambda: None  # type: ignore[method-assign]
