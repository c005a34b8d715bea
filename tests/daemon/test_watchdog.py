"""The watchdog: silent while passes end, exact about one that does not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from waiting import until

from reconciler.daemon import duty
from reconciler.daemon.duty import Watchdog, Watched

Told = list[Watched | None]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(duty, "EVERY_S", 0.01)
    monkeypatch.setattr(duty, "STUCK_S", 0.1)
    monkeypatch.setattr(duty, "DEAD_S", 0.3)
    return []


@pytest.fixture
def watching(told: Told) -> Iterator[Watchdog]:
    dog = Watchdog(told.append)
    dog.start()
    yield dog
    dog.stop()


def read_from(pipe: int) -> None:
    os.read(pipe, 1)


def test_passes_that_end_are_no_trouble_however_many(
    told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All together they take longer than one may; by a clock that no busy machine holds up."""
    now = [1000.0]
    monkeypatch.setattr(duty, "time", SimpleNamespace(monotonic=lambda: now[0]))
    dog = Watchdog(told.append)
    for _ in range(20):
        with dog.over("a pass"):
            now[0] += duty.STUCK_S * 0.9
            dog._look()
            assert dog.is_alive
    assert told == [None] * 20


def test_a_pass_that_hangs_is_told_with_its_place_until_it_ends(
    watching: Watchdog, told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = os.pipe()

    def hang() -> None:
        with watching.over("the pass over everything"):
            read_from(ours)

    thread = threading.Thread(target=hang)
    thread.start()
    try:
        until(lambda: told and told[-1] is not None)
        until(lambda: not watching.is_alive)
        stuck = told[-1]
        assert stuck is not None
        assert stuck.what == "the pass over everything"
        assert stuck.where.startswith("test_watchdog.py:")
        assert stuck.where.endswith(" read_from")
        assert stuck.seconds >= 0.1
    finally:
        os.write(theirs, b"x")
        thread.join()
        os.close(ours)
        os.close(theirs)
    until(lambda: told[-1] is None)
    assert watching.is_alive
    (record,) = [r for r in caplog.records if r.message == "a pass does not end"]  # said once
    assert "read_from < " in vars(record)["stack"]


def test_of_several_threads_the_one_that_is_stuck_longest_is_told(
    watching: Watchdog, told: Told
) -> None:
    ours, theirs = os.pipe()

    def hang(what: str) -> None:
        with watching.over(what):
            read_from(ours)

    threads = [threading.Thread(target=hang, args=(f"duty {n}",)) for n in range(2)]
    try:
        for number, thread in enumerate(threads):
            thread.start()
            until(lambda n=number: len(watching._passes) == n + 1)
        with watching.over("a pass that ends"):
            pass
        until(lambda: told and told[-1] is not None and told[-1].what == "duty 0")
    finally:
        os.write(theirs, b"xx")
        for thread in threads:
            thread.join()
        os.close(ours)
        os.close(theirs)
    until(lambda: told[-1] is None)


def test_a_thread_that_should_say_that_it_is_alive_and_does_not_is_told(
    watching: Watchdog, told: Told
) -> None:
    """Also if it has ended, which no other thread would notice."""

    def say_once(*, properly: bool) -> None:
        watching.hear("a listener")
        if properly:
            watching.let_go()

    for properly in (True, False):
        thread = threading.Thread(target=say_once, kwargs={"properly": properly})
        thread.start()
        thread.join()
    until(lambda: not watching.is_alive)
    stuck = watching.stuck
    assert stuck is not None
    assert str(stuck).startswith("a listener has not ended for")
    assert stuck.where == "the end of its thread"


def test_what_waits_for_ec2_has_longer_and_a_pass_within_a_pass_is_watched_in_its_place(
    watching: Watchdog,
) -> None:
    with watching.over("the pool", slow=True):
        until(lambda: watching._passes and next(iter(watching._passes.values())).seconds > 0.3)
        assert watching.stuck is None
        assert watching.is_alive
        with watching.over("inner"):
            until(lambda: watching.stuck)
            assert watching.stuck is not None
            assert watching.stuck.what == "inner"
        assert watching.stuck is None


def test_a_watchdog_that_cannot_tell_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duty, "EVERY_S", 0.001)
    calls = iter(range(1000))

    def tell(_: Watched | None) -> None:
        if next(calls) < 3:
            raise KeyError("x")

    dog = Watchdog(tell)
    dog.start()
    try:
        until(lambda: next(calls) > 6, "calls after those that failed")
    finally:
        dog.stop()
