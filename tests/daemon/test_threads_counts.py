"""What one thread counts or keeps, and another one takes; at every point of both."""

from __future__ import annotations

import logging
from contextlib import suppress
from threading import Event
from typing import Any

import pytest
from baton import Lock, expose
from builders import key
from daemon.test_threads import Point, Scene, walk, without_it_fails

from reconciler.daemon.cluster import Refusals
from reconciler.daemon.ledger import Notifications
from reconciler.daemon.logs import KeyValue, LogWriter
from reconciler.daemon.requests import Checks, PodHints
from reconciler.daemon.triggers import Triggers
from reconciler.errors import Issue
from reconciler.ipam.budget import Bucket
from reconciler.targets.ec2.caller import Early
from reconciler.targets.ec2.tally import Tally


@without_it_fails
def test_calls_of_two_threads_are_all_counted(kind: type[Lock]) -> None:
    def scene(point: Point) -> Scene:
        class Slow(dict[str, Any]):
            def get(self, *arguments: Any) -> Any:
                found = super().get(*arguments)
                point()
                return found

        tally = Tally()
        tally._calls = Slow()
        tally._lock = lock = kind()  # type: ignore[assignment]

        def note() -> None:
            tally.note("X", "ok", Bucket(1.0, 0.0))

        def check() -> None:
            assert tally.all()["X"].outcomes == {"ok": 2}

        return Scene(note, note, check, (lock,))

    assert walk(scene) > 1


@without_it_fails
def test_what_is_heard_while_the_loop_forgets_what_it_has_weighed_stays(kind: type[Lock]) -> None:
    def scene(point: Point) -> Scene:
        heard = Notifications()
        heard._lock = lock = kind()  # type: ignore[assignment]
        heard.begin()
        heard.hear(b"first")
        told = heard.told()
        assert told == (b"first",)
        expose(heard, point, "_told", "_size")

        def check() -> None:
            assert heard.told() == (b"second",)
            assert heard._size == len(b"second")

        return Scene(lambda: heard.forget(told), lambda: heard.hear(b"second"), check, (lock,))

    assert walk(scene) > 3


@without_it_fails
def test_an_add_that_is_refused_while_refusals_are_told_is_told_once(kind: type[Lock]) -> None:
    def scene(point: Point) -> Scene:
        refusals = Refusals(lambda: 1.0)
        refusals._lock = lock = kind()  # type: ignore[assignment]

        def refuse() -> None:
            refusals.note("n/p", "u", Issue("x", "PoolExhausted", "none is free"))

        refuse()
        expose(refusals, point, "_events")
        told: list[int] = []

        def take() -> None:
            told.extend(e.count for e in refusals.take())

        def check() -> None:
            take()
            assert sum(told) == 2

        return Scene(take, refuse, check, (lock,))

    assert walk(scene) > 3


class EndError(Exception):
    """Ends a loop where the test has seen enough of it."""


@without_it_fails
def test_a_check_that_is_asked_for_while_the_loop_takes_them_is_answered(kind: type[Lock]) -> None:
    class Hints(Triggers):
        def mark(self, what: str) -> None:
            raise EndError  # it would wait now

    def scene(point: Point) -> Scene:
        checks = Checks(Hints(), PodHints(Hints()), Event())
        checks._changed = lock = kind()  # type: ignore[assignment]
        expose(checks, point, "_asked")
        taken: set[Any] = set()

        def ask() -> None:
            with suppress(EndError):
                checks.check(key(2))

        def check() -> None:
            assert taken | checks.take() == {key(2)}

        return Scene(lambda: taken.update(checks.take()), ask, check, (lock,))

    assert walk(scene) > 3


@without_it_fails
def test_a_process_that_was_started_early_is_taken_by_one(kind: type[Lock]) -> None:
    class Process:
        def poll(self) -> None: ...

    def scene(point: Point) -> Scene:
        early = Early()
        early._lock = lock = kind()  # type: ignore[assignment]
        early._process = process = Process()  # type: ignore[assignment]
        expose(early, point, "_process")
        taken: list[Any] = []

        def take() -> None:
            taken.append(early.take())

        def check() -> None:
            assert sorted(taken, key=bool) == [None, process]

        return Scene(take, take, check, (lock,))

    assert walk(scene) > 3


@without_it_fails
def test_what_waits_to_be_written_is_counted_while_a_line_comes(
    monkeypatch: pytest.MonkeyPatch, kind: type[Lock]
) -> None:
    write_on = LogWriter._write_on
    monkeypatch.setattr(LogWriter, "_write_on", lambda _: None)  # no thread but the two
    lines = [logging.LogRecord("x", logging.INFO, "", 0, m, None, None) for m in ("one", "two")]

    def scene(point: Point) -> Scene:
        writer = LogWriter(-1, KeyValue())
        writer._changed = lock = kind()  # type: ignore[assignment]
        first, second = lines
        writer.emit(first)
        written: list[bytes] = []

        def write(text: bytes) -> None:
            if b"two" in text:
                raise EndError
            written.append(text)

        writer._write = write  # type: ignore[method-assign]
        expose(writer, point, "_bytes")

        def work() -> None:
            with suppress(EndError):
                write_on(writer)

        def check() -> None:
            every = sum(len(writer.format(line)) + 1 for line in lines)
            assert writer._bytes == every - sum(map(len, written))

        return Scene(work, lambda: writer.emit(second), check, (lock,))

    assert walk(scene) > 3
