"""The daemon's duties: what one raises is a condition, and never the end of anything."""

from __future__ import annotations

import logging
import threading

import pytest

from reconciler.daemon import duty
from reconciler.daemon.duty import Conditions, Duties, Watchdog
from reconciler.daemon.telemetry import exposition
from reconciler.engine.backoff import Delays
from reconciler.errors import StateError


@pytest.fixture
def conditions() -> Conditions:
    return Conditions()


@pytest.fixture
def duties(conditions: Conditions) -> Duties:
    return Duties(conditions, Watchdog(lambda _: None))


def fail(duties: Duties, error: Exception, name: str = "a duty") -> None:
    with duties.over(name):
        raise error


def test_a_duty_that_raises_is_a_condition_until_it_succeeds(
    duties: Duties, conditions: Conditions
) -> None:
    fail(duties, KeyError("CidrBlock"))
    (condition,) = conditions.all()
    assert (condition["subject"], condition["reason"]) == ("a duty", "InternalError")
    assert "KeyError: 'CidrBlock', at test_duty.py" in condition["text"]
    with duties.over("another"):
        pass
    assert conditions.all() == [condition]
    with duties.over("a duty"):
        pass
    assert conditions.all() == []


def test_what_was_raised_on_purpose_keeps_its_reason(
    duties: Duties, conditions: Conditions
) -> None:
    fail(duties, StateError("no room"))
    assert [(c["reason"], c["text"]) for c in conditions.all()] == [("State", "no room")]


def test_each_internal_error_is_counted_and_each_distinct_one_logged_once_with_its_traceback(
    duties: Duties, caplog: pytest.LogCaptureFixture
) -> None:
    def count() -> float:
        start = 'node_network_internal_errors_total{what="counted"} '
        lines = exposition().splitlines()
        return sum(float(x.removeprefix(start)) for x in lines if x.startswith(start))

    for _ in range(3):
        fail(duties, KeyError("x"), "counted")
    fail(duties, ValueError("y"), "counted")
    assert count() == 4
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert len(told) == 2
    assert "in fail\n    raise error\nKeyError: 'x'" in told[0]


def test_a_loop_whose_turns_raise_goes_on_after_a_while(
    duties: Duties, conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duty, "BACKOFF_S", Delays(0.001, 0.002))
    stopping, turns, seen = threading.Event(), iter(range(9)), []

    def turn() -> None:
        number = next(turns)
        seen.append([c["subject"] for c in conditions.all()])
        if number < 6:
            raise KeyError(number)
        if number == 8:
            stopping.set()

    duties.forever("a loop", turn, stopping)
    assert seen == [[], *[["a loop"]] * 6, [], []]


def test_conditions_that_cannot_be_kept_end_nothing(
    duties: Duties, conditions: Conditions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise KeyError("conditions")

    monkeypatch.setattr(conditions, "report", refuse)
    fail(duties, KeyError("x"))
    with duties.over("a duty"):
        pass


def test_the_end_of_a_librarys_thread_is_counted_and_logged(
    duties: Duties, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threading, "excepthook", duties.note_end)

    def end() -> None:
        raise KeyError("event")

    thread = threading.Thread(target=end)
    thread.start()
    thread.join()
    (told,) = [r.getMessage() for r in caplog.records if r.levelno == logging.ERROR]
    assert "KeyError: 'event'" in told
