"""No pod waits for conntrack; the end of a cooldown does."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

import pytest
from fakes import FakeConntrack
from node.test_passes import Simulation
from waiting import until

from reconciler.core.attachment import Cooling
from reconciler.domains.conntrack import ConntrackFlush, Flow
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError, ObserveError
from reconciler.node.cooldown import Cooldowns

ONE, OTHER = ip_address("10.0.1.7"), ip_address("10.0.1.8")


class Recorder(FakeConntrack):
    """Counts looks, and fails or does nothing if told."""

    def __init__(self, addresses: Iterable[Any] = ()) -> None:
        super().__init__(addresses)
        self.looks: list[frozenset[Any]] = []
        self.is_unreadable = self.is_deaf = False

    def observe(self, desired: Iterable[ConntrackFlush]) -> frozenset[Flow]:
        desired = list(desired)
        self.looks.append(desired[0].addresses)
        if self.is_unreadable:
            raise ObserveError("conntrack", "EPERM")
        return super().observe(desired)

    def apply(self, actions: Sequence[Change[Flow]]) -> tuple[ApplyError, ...]:
        return () if self.is_deaf else super().apply(actions)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_connections_end_as_soon_as_their_pod_has_left(clock: Clock) -> None:
    target = Recorder({ONE})
    cooldowns = Cooldowns(target, clock)
    busy, outcome = cooldowns.review([Cooling(ONE, 130.0)])
    assert target.addresses == set()
    assert [str(a) for a in outcome.plan.actions] == [
        f"conntrack -D -s {ONE}; conntrack -D -d {ONE}"
    ]
    assert busy == {ONE}, "its time is not over"
    _, outcome = cooldowns.review([Cooling(ONE, 130.0)])
    assert outcome.plan.actions == (), "said once"


def test_connections_of_an_address_that_spares_them_are_waited_for(clock: Clock) -> None:
    target = Recorder({ONE, OTHER})
    cooldowns = Cooldowns(target, clock)
    spared = Cooling(ONE, 130.0, spares=True)
    cooldowns.review([spared, Cooling(OTHER, 130.0)])
    assert target.addresses == {ONE}
    assert target.looks[0] == {OTHER}, "nothing is to be ended yet"
    for clock.now in (130.0, 200.0):
        busy, outcome = cooldowns.review([spared])
        assert busy == {ONE}, "a connection uses it still"
        assert outcome.plan.actions == ()
    target.addresses.clear()
    busy, _ = cooldowns.review([spared])
    assert busy == frozenset()


def test_a_cooldown_costs_two_rounds_however_many_passes_there_are(clock: Clock) -> None:
    target = Recorder()
    cooldowns = Cooldowns(target, clock)
    for _ in range(300):
        busy, _ = cooldowns.review([Cooling(ONE, 130.0)])
        assert (busy == frozenset()) is (clock.now >= 130.0)
        clock.now += 1.0
    assert target.looks == [{ONE}] * 2


def test_addresses_that_cool_together_share_a_round(clock: Clock) -> None:
    target = Recorder()
    Cooldowns(target, clock).review([Cooling(ONE, 130.0), Cooling(OTHER, 131.0)])
    assert target.looks == [{ONE, OTHER}]


def test_what_comes_while_an_address_cools_is_ended_before_it_is_given_out(clock: Clock) -> None:
    """A client that goes on with the same ports."""
    target = Recorder()
    cooldowns = Cooldowns(target, clock)
    cooldowns.review([Cooling(ONE, 130.0)])
    target.addresses, target.is_deaf, clock.now = {ONE}, True, 131.0
    assert cooldowns.review([Cooling(ONE, 130.0)])[0] == {ONE}
    target.is_deaf = False
    assert cooldowns.review([Cooling(ONE, 130.0)])[0] == frozenset()
    assert target.addresses == set()


def test_an_address_that_cools_again_is_asked_for_again(clock: Clock) -> None:
    cooldowns = Cooldowns(Recorder(), clock)
    clock.now = 131.0
    assert cooldowns.review([Cooling(ONE, 130.0)])[0] == frozenset()
    assert cooldowns.review([Cooling(ONE, 160.0)])[0] == {ONE}


def test_while_conntrack_cannot_be_read_no_cooldown_ends(clock: Clock) -> None:
    target = Recorder()
    target.is_unreadable, clock.now = True, 200.0
    cooldowns = Cooldowns(target, clock)
    busy, outcome = cooldowns.review([Cooling(ONE, 130.0)])
    assert (busy, [type(e) for e in outcome.errors]) == ({ONE}, [ObserveError])
    target.is_unreadable = False
    busy, outcome = cooldowns.review([Cooling(ONE, 130.0)])
    assert (busy, outcome.errors) == (frozenset(), ())


def test_a_trouble_ends_when_its_address_is_asked_for_no_more(clock: Clock) -> None:
    target = Recorder()
    target.is_unreadable = True
    cooldowns = Cooldowns(target, clock)
    assert cooldowns.review([Cooling(ONE, 130.0)])[1].errors
    assert cooldowns.review([])[1].settled


class Slow(Recorder):
    """Each look takes until it is let go: a table that a pod has filled."""

    def __init__(self, addresses: Iterable[Any] = ()) -> None:
        super().__init__(addresses)
        self.went, self.go = threading.Event(), threading.Event()

    def observe(self, desired: Iterable[ConntrackFlush]) -> frozenset[Flow]:
        self.went.set()
        assert self.go.wait(30.0)
        return super().observe(desired)


def run(
    cooldowns: Cooldowns, told: threading.Event, stopping: threading.Event
) -> threading.Thread:
    """The daemon's loop."""

    def loop() -> None:
        while not stopping.is_set():
            if cooldowns.turn():
                told.set()
            cooldowns.wait()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    return thread


def test_pods_come_and_go_while_conntrack_is_being_read() -> None:
    sim = Simulation(warmPool={"addresses": {"warm": 4}, "cooldown": "10s"})
    sim.conntrack = slow = Slow()
    sim.node.cooldowns._target = slow
    sim.turn()
    sim.start_pod(1)
    sim.turn(1.0)
    (held,) = sim.state.observe().attachments
    slow.addresses = set(held.addresses)
    sim.node.cooldowns.apart = True
    told = threading.Event()
    thread = run(sim.node.cooldowns, told, stopping := threading.Event())
    try:
        sim.end_pod(1)
        sim.turn(20.0)
        sim.turn(1.0)
        assert slow.went.wait(30.0)
        sim.start_pod(2)
        sim.turn(1.0)
        assert len(sim.state.observe().attachments) == 1, "the next pod has its address"
        assert [c.address for c in sim.state.observe().cooling] == [*held.addresses]
        slow.go.set()
        assert told.wait(30.0), "the answer wakes the loop"
        until(lambda: not slow.addresses)

        def ended() -> bool:
            sim.turn(1.0)
            return sim.state.observe().cooling == ()

        until(ended)
    finally:
        slow.go.set()
        stopping.set()
        sim.node.cooldowns.stop()
        thread.join(30.0)
    assert not thread.is_alive()


def test_a_round_of_its_own_thread_comes_when_a_cooldown_is_over(clock: Clock) -> None:
    """Without anybody asking: the loop is told when there is something to end."""
    cooldowns = Cooldowns(Recorder(), clock)
    cooldowns.apart = True
    told = threading.Event()
    assert cooldowns.review([Cooling(ONE, 100.05)])[0] == {ONE}
    thread = run(cooldowns, told, stopping := threading.Event())
    try:
        until(lambda: cooldowns._ended == {Cooling(ONE, 100.05): True})
        assert not told.is_set()
        clock.now = 101.0
        assert told.wait(30.0)
        assert cooldowns.review([Cooling(ONE, 100.05)])[0] == frozenset()
    finally:
        stopping.set()
        cooldowns.stop()
        thread.join(30.0)
