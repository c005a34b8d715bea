"""What threads tell each other: hints, documents, cooldowns, answers; at every point of both."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from baton import Lock, expose
from builders import SUBNET, inputs
from daemon.test_surprise import House
from daemon.test_threads import Point, Scene, walk, without_it_fails
from fakes import (
    FakeConntrack,
    FakeRemains,
)

from reconciler.core.attachment import Cooling
from reconciler.daemon import listener, triggers
from reconciler.daemon.document import Reader, Reading
from reconciler.daemon.triggers import Triggers
from reconciler.ipam.records import Records
from reconciler.node.cooldown import Cooldowns
from reconciler.node.stock_plugin import StockPlugin
from reconciler.targets.ec2 import caller as ec2_caller
from reconciler.targets.ec2.caller import Subprocess

# -- hints ---------------------------------------------------------------------------------


@without_it_fails
@pytest.mark.parametrize("earlier", [("pool",), ()], ids=["after another", "the first"])
def test_no_hint_is_lost(
    monkeypatch: pytest.MonkeyPatch, kind: type[Lock], earlier: tuple[str, ...]
) -> None:
    monkeypatch.setattr(triggers, "SETTLE_S", 0.0)

    def scene(point: Point) -> Scene:
        hints = Triggers()
        hints._condition = lock = kind()  # type: ignore[assignment]
        for what in earlier:
            hints.mark(what)
        expose(hints, point, "_marks")
        told: set[str] = set()

        def check() -> None:
            assert told | hints.wait(0.0) == {"kernel", *earlier}

        return Scene(
            lambda: told.update(hints.wait(60.0)), lambda: hints.mark("kernel"), check, (lock,)
        )

    assert walk(scene) > 3


def test_a_new_document_is_taken_once_whenever_it_was_read(tmp_path: Path) -> None:
    path = tmp_path / "document"

    def scene(point: Point) -> Scene:
        path.write_text("one")
        reader = Reader(path, lambda: None)
        reader.look_first()
        expose(reader, point, "_last", "_taken")
        path.write_text("two")
        taken: list[Reading | None] = []

        def take() -> None:
            taken.append(reader.take())

        def check() -> None:
            take()
            assert [t.text for t in taken if t is not None] == ["two"]

        return Scene(reader.look_again, take, check)

    walk(scene)


def test_pods_that_come_while_the_pool_is_planned_have_it_planned_again(tmp_path: Path) -> None:
    """Also if there are as many as before, and the pass has seen less."""
    house = House(tmp_path)
    house.begin_pod()
    house.work()
    agent, read = house.agent, house.state.observe
    agent.parts.pool_hints.wait(0.0)
    before = agent.pool.report.demand
    records = [house.state._records.pop(place) for place in list(house.state._records)]

    def observe(*arguments: Any) -> Records:
        house.state.observe = read  # type: ignore[method-assign]
        seen = read(*arguments)
        for record in records:
            house.state.put(record)
        agent.kernel.full_pass(audit=False)
        return seen

    house.state.observe = observe  # type: ignore[method-assign]
    agent.pool.run_pass(0, look=False)
    assert agent.pool.report.demand != before
    assert "pool" in agent.parts.pool_hints.wait(0.0)


# -- cooldowns -----------------------------------------------------------------------------


@without_it_fails
def test_what_is_done_for_an_address_that_cools_is_told_once(kind: type[Lock]) -> None:
    one, other = Cooling(SUBNET[11], 0.0), Cooling(SUBNET[12], 0.0)

    def scene(point: Point) -> Scene:
        conntrack = FakeConntrack({one.address, other.address})
        cooldowns = Cooldowns(conntrack, lambda: 100.0)
        cooldowns.apart = True
        cooldowns.review([one])
        cooldowns._changed = lock = kind()  # type: ignore[assignment]
        expose(cooldowns, point, "_ended", "_quiet", "_outcome")
        told: list[str] = []

        def review() -> frozenset[Any]:
            busy, outcome = cooldowns.review([one, other])
            told.extend(str(a.object.address) for a in outcome.plan.actions)  # type: ignore[attr-defined]
            return busy

        def check() -> None:
            for _ in range(2):
                cooldowns.turn()
                busy = review()
            assert busy == frozenset()
            assert sorted(told) == [str(one.address), str(other.address)]

        return Scene(review, cooldowns.turn, check, (lock,))

    assert walk(scene) > 10


# -- what the stock plugin has left --------------------------------------------------------


class OneAtATime:
    """A target that no two threads may be in."""

    def __init__(self, target: Any, point: Point) -> None:
        self._target, self._point = target, point
        self._is_busy = False

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> Any:
            assert not self._is_busy, "another thread is in it"
            self._is_busy = True
            self._point()
            self._is_busy = False
            return getattr(self._target, name)(*arguments)

        return call


@without_it_fails
def test_both_loops_look_at_the_stock_plugin_one_after_the_other(kind: type[Lock]) -> None:
    def scene(point: Point) -> Scene:
        watch = StockPlugin(OneAtATime(FakeRemains(), point))
        watch._lock = lock = kind()  # type: ignore[assignment]
        expose(watch, point, "_look")

        def consider(now: float) -> Any:
            return watch.consider(Records(), (), asked=False, now=now)

        def first() -> None:
            found = consider(1000.0)
            watch.retire(inputs(predecessor=found), Records(), in_place=False)

        def check() -> None:
            assert watch._look.at == 2000.0, "an older look has replaced it"

        return Scene(first, lambda: consider(2000.0), check, (lock,))

    assert walk(scene) > 5


# -- threads of the socket, and the process that calls EC2 ---------------------------------


@without_it_fails
@pytest.mark.parametrize("most", [1, 2])
def test_as_many_questions_are_under_way_as_may_be_and_each_has_a_thread(
    monkeypatch: pytest.MonkeyPatch, kind: type[Lock], most: int
) -> None:
    started: list[Any] = []

    class Thread:
        def __init__(self, **_: Any) -> None:
            self.start = lambda: started.append(self)

    threads = SimpleNamespace(Lock=threading.Lock, Thread=Thread)
    monkeypatch.setattr(listener, "threading", threads)

    def scene(point: Point) -> Scene:
        started.clear()
        made = listener.Workers()
        made._idle = 1
        made._lock = lock = kind()  # type: ignore[assignment]
        expose(made, point, "_idle", "_busy")
        taken: list[bool] = []

        def run() -> None:
            taken.append(made.run("add", most, lambda: None))

        def check() -> None:
            assert taken.count(True) == most
            assert (made._idle, len(started)) == (0, most - 1)

        return Scene(run, run, check, (lock,))

    assert walk(scene) > 5


class Answering:
    """A process that answers each question, until it is killed."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.stdin = self.stdout = self
        self._question: dict[str, Any] = {}
        self._is_dead = False

    def write(self, line: bytes) -> None:
        self._question = json.loads(line)

    def answer(self) -> bytes:
        if self._is_dead:
            raise ConnectionResetError("it ended without an answer")
        return json.dumps({"number": self._question["number"], "answer": "ok"}).encode()

    def poll(self) -> int | None:
        return -9 if self._is_dead else None

    def kill(self) -> None:
        self._is_dead = True

    def wait(self, _: float) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


@without_it_fails
def test_the_process_that_calls_ec2_is_not_ended_within_a_call(
    monkeypatch: pytest.MonkeyPatch, kind: type[Lock]
) -> None:
    def scene(point: Point) -> Scene:
        def read_line(process: Any) -> Any:
            point()
            return process.answer()

        monkeypatch.setattr(ec2_caller.subprocess, "Popen", Answering)
        monkeypatch.setattr(ec2_caller, "_read_line", read_line)
        caller = Subprocess("us-east-1")
        caller._lock = lock = kind()  # type: ignore[assignment]
        expose(caller, point, "_process")
        told: list[Any] = []

        def check() -> None:
            assert told == ["ok"]
            assert caller._idle is not None
            caller._idle.cancel()

        return Scene(lambda: told.append(caller("X", "x", {})), caller.close, check, (lock,))

    assert walk(scene) > 3
