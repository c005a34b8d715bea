"""The watchdog: silent while passes end, exact about one that does not."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest
from waiting import until

from reconciler import watchdog
from reconciler.watchdog import Stuck, Watchdog

Told = list[Stuck | None]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    monkeypatch.setattr(watchdog, "EVERY_S", 0.01)
    monkeypatch.setattr(watchdog, "STUCK_S", 0.1)
    monkeypatch.setattr(watchdog, "DEAD_S", 0.3)
    return []


@pytest.fixture
def watching(told: Told) -> Iterator[Watchdog]:
    dog = Watchdog(told.append)
    dog.start()
    yield dog
    dog.stop()


def read_from(pipe: int) -> None:
    os.read(pipe, 1)


def test_passes_that_end_are_no_trouble_however_many(watching: Watchdog, told: Told) -> None:
    looks = len(told)
    while len(told) < looks + 20:
        with watching.over("a pass"):
            assert watching.is_alive
    assert set(told) == {None}


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
