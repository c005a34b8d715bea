"""Two threads over one object: every interleaving at the calls and fields that they share.

Each lock is also replaced by one that keeps nobody out, and then the test must fail.
"""

from __future__ import annotations

import logging
import os
import struct
import threading
from collections.abc import Callable
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from baton import Baton, Lock, NoLock, Told, expose
from builders import SUBNET, document, eni, intent, key, node
from fake_cloud import FakeEc2, FakeImds
from fakes import (
    FakeConntrack,
    FakeNetlink,
    FakeNft,
    FakeRemains,
    FakeState,
    FakeSurroundings,
    FakeSysctl,
)

from reconciler.core.attachment import Cooling, IntentState
from reconciler.core.remembered import Remembered, RememberedWhileAsked
from reconciler.daemon import drift, telemetry
from reconciler.daemon.drift import DriftTracker
from reconciler.daemon.duty import Conditions
from reconciler.daemon.requests import PodHints, Requests
from reconciler.daemon.triggers import ChangeAttribution, Triggers
from reconciler.domains.sysctl import Sysctl
from reconciler.engine.converge import Outcome
from reconciler.engine.plan import Change, Plan, Verb
from reconciler.errors import ApplyError, InternalError, Issue
from reconciler.ipam.cloud import Limits
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode
from reconciler.targets.state.directory import StateDirectory

Point = Callable[[], None]

without_it_fails = pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Lock, id="locked"),
        pytest.param(NoLock, id="unlocked", marks=pytest.mark.xfail(strict=True)),
    ],
)
"""The test must fail with a lock that keeps nobody out."""


class Scene(NamedTuple):
    """What two threads do, and what must be true after it.

    Attributes:
        locks: theirs.
    """

    first: Callable[[], Any]
    second: Callable[[], Any]
    check: Callable[[], Any]
    locks: tuple[Any, ...] = ()


def walk(make: Callable[[Point], Scene]) -> int:
    """Play a scene once for every moment at which each thread may take over; count them.

    Args:
        make: sets the scene anew; it is given what to call at each moment.
    """
    walked, most = 0, 1
    for at in count():
        if at >= most:
            return walked
        for back in chain([None], count()):
            batons: list[Baton] = []
            scene = make(lambda batons=batons: [b.point() for b in batons] and None)  # type: ignore[misc]
            batons.append(baton := Baton(scene.second, at, back))
            for lock in scene.locks:
                lock.baton = baton
            try:
                scene.first()
            except BaseException as error:
                baton.finish(error)
                raise
            baton.finish()
            batons.clear()
            for lock in scene.locks:
                lock.baton = None
            scene.check()
            walked, most = walked + 1, max(most, baton.calls[0])
            if back is not None and back >= baton.calls[1]:
                break
    raise AssertionError


MANY = {"addresses": {"warm": 0, "minimum": 2, "surplus": 0}, "cooldown": "0s"}
NONE = {"addresses": {"warm": 0, "minimum": 0, "surplus": 0}, "cooldown": "0s"}


class Netlink(FakeNetlink):
    """The kernel; something else happens when it is next changed."""

    def __init__(self) -> None:
        super().__init__()
        self.meanwhile: Callable[[], None] | None = None

    def apply(self, actions: Any) -> Any:
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        return super().apply(actions)


class Shared:
    """A node that holds two addresses, of which the next pass over the pool needs none.

    Pod 1 has the first of them, and the second is free.
    """

    def __init__(self, point: Point, kind: type[Lock]) -> None:
        self.now = 1000.0
        self.lock = kind()
        self.state = FakeState()
        first = eni(0, 0, primary=SUBNET[10])
        clock = {"journal": self.state, "clock": lambda: self.now}
        self.ec2 = FakeEc2([first], Limits(3, 10), SUBNET, **clock)
        self.netlink = Netlink()
        self.netlink.plug(first.mac, "eth0")
        ec2 = Told(self.ec2, point)
        self.node = LocalNode(
            Told(self.state, point),
            Environment(
                imds=FakeImds(node(), self.ec2),
                make_ec2=lambda *_: ec2,
                netlink=self.netlink,
                nft=FakeNft(),
                sysctl=FakeSysctl({"net/ipv4/ip_forward": "1"}),
                conntrack=FakeConntrack(),
                surroundings=FakeSurroundings(),
                remains=FakeRemains(),
                now=lambda: self.now,
                clock=lambda: self.now,
            ),
        )
        self.node.pool.binding = self.lock  # type: ignore[assignment]
        self.document = document(warmPool=MANY)
        self.want(1)
        for _ in range(3):
            self.pool_pass()
            self.kernel_pass()
            self.now += 100.0
        self.document = document(warmPool=NONE)

    def want(self, number: int) -> None:
        self.netlink.namespaces.add(f"/run/netns/pod{number}@{number}")
        self.state.put(intent(number))

    def release(self, number: int) -> None:
        self.state.put(intent(number, IntentState.RELEASED))

    def pool_pass(self) -> None:
        self.node.pool.run(self.document)

    def kernel_pass(self) -> None:
        self.node.kernel_pass(self.document)

    def pods_pass(self) -> None:
        self.node.pods_pass(frozenset({key(1), key(2)}))

    def check(self) -> None:
        """No pod has an address that was, or is being, given back; none is had twice."""
        records = self.state.observe()
        bound = [own for a in records.attachments for own in a.addresses]
        assert len(bound) == len(set(bound))
        assert set(bound) <= self.ec2.holds(), "in use, and given back"
        leaving = [a for q in records.quarantined for a in q.network]
        assert not set(bound) & set(leaving), "in use, and about to be given back"


def bind(shared: Shared, serve: Callable[[], None]) -> Callable[[], None]:
    """A pod comes while the pool's thread is at work."""

    def second() -> None:
        shared.want(2)
        serve()

    return second


def replace(shared: Shared, serve: Callable[[], None]) -> Callable[[], None]:
    """A pod goes, and another one comes while the first one's link is being removed."""

    def second() -> None:
        shared.release(1)
        shared.netlink.meanwhile = lambda: shared.want(2)
        serve()

    return second


@without_it_fails
@pytest.mark.parametrize("serve", ["kernel_pass", "pods_pass"])
@pytest.mark.parametrize("happening", [bind, replace], ids=["comes", "goes and comes"])
def test_no_pod_gets_what_the_pools_thread_gives_back(
    happening: Any, serve: str, kind: type[Lock]
) -> None:
    """Wherever either thread stands when the other goes on."""

    def scene(point: Point) -> Scene:
        shared = Shared(point, kind)
        second = happening(shared, getattr(shared, serve))
        return Scene(shared.pool_pass, second, shared.check, (shared.lock,))

    assert walk(scene) > 30


# -- what both loops book ------------------------------------------------------------------


def refused(name: str) -> dict[str, Outcome]:
    """A pass that could not set something."""
    action = Change(Verb.UPDATE, Sysctl(name, "1"), "it is 0")
    plan = Plan((action,))
    error = ApplyError(str(action), "EPERM", "no")
    return {"sysctl": Outcome(plan=plan, remaining=plan, errors=(error,))}


@without_it_fails
def test_what_two_threads_book_at_once_is_all_kept(
    monkeypatch: pytest.MonkeyPatch, kind: type[Lock]
) -> None:
    both = ("net/ipv4/ip_forward", "net/ipv4/conf/eth1/rp_filter")

    def scene(point: Point) -> Scene:
        def chance() -> float:
            point()  # the one has read what is known, and has not written yet
            return 0.5

        def check() -> None:
            assert {name for _, (_, name) in tracker.backoffs.known} == set(both)

        monkeypatch.setattr(drift.random, "random", chance)
        tracker = DriftTracker(ChangeAttribution())
        tracker._lock = lock = kind()  # type: ignore[assignment]
        return Scene(
            lambda: tracker.book_pods(refused(both[0])),
            lambda: tracker.book(refused(both[1]), everything=False),
            check,
            (lock,),
        )

    walk(scene)


# -- the right to answer -------------------------------------------------------------------


@without_it_fails
def test_of_two_calls_of_one_attempt_one_is_told_what_the_pod_was_given(
    kind: type[Lock],
) -> None:
    def scene(point: Point) -> Scene:
        requests = Requests(Triggers(), Conditions(), threading.Event())
        requests._changed = lock = kind()  # type: ignore[assignment]
        expose(requests, point, "_answered")
        told: list[bool] = []

        def claim() -> None:
            told.append(requests.claim(key(1), "a"))

        def check() -> None:
            assert sorted(told) == [False, True]
            assert requests.claim(key(1), "b"), "another attempt"
            requests.disclaim(key(1))
            assert requests.claim(key(1), "b"), "nobody heard it"
            assert not requests.claim(key(1), "b")

        return Scene(claim, claim, check, (lock,))

    walk(scene)


@without_it_fails
def test_what_a_check_finds_to_differ_while_hints_are_taken_is_repaired(kind: type[Lock]) -> None:
    def scene(point: Point) -> Scene:
        pods = PodHints(Triggers())
        pods._lock = lock = kind()  # type: ignore[assignment]
        pods.repair(key(1))
        expose(pods, point, "_differing", "_released")
        taken: set[Any] = set()

        def check() -> None:
            assert taken | pods.take() == {key(1), key(2)}

        return Scene(
            lambda: taken.update(pods.take()), lambda: pods.repair(key(2)), check, (lock,)
        )

    assert walk(scene) > 3


# -- records -------------------------------------------------------------------------------


@without_it_fails
def test_a_record_that_goes_while_another_thread_reads_is_not_remembered(
    tmp_path: Path, kind: type[Lock]
) -> None:
    numbers = count()
    cooling = Cooling(SUBNET[11], 4e9)

    def scene(point: Point) -> Scene:
        state = StateDirectory(tmp_path / str(next(numbers)))
        state.prepare()
        state.lock()
        state.apply([Change(Verb.CREATE, cooling, "")])
        state._memory = lock = kind()  # type: ignore[assignment]
        expose(state._ours[Cooling], point, "_parsed", "_known", "_unwritten")

        def check() -> None:
            assert state.observe().cooling == ()
            assert state.observe().unwritten == frozenset()

        return Scene(
            state.observe,
            lambda: state.apply([Change(Verb.DELETE, cooling, "")]),
            check,
            (lock,),
        )

    assert walk(scene) > 10


# -- what is wrong -------------------------------------------------------------------------


def counted(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(f"node_network_{name}_total", labels) or 0.0


@without_it_fails
def test_what_two_threads_report_begins_once_and_is_traced_once(
    kind: type[Lock], caplog: pytest.LogCaptureFixture
) -> None:
    surprise = InternalError("a duty of both", KeyError("x"))

    def scene(point: Point) -> Scene:
        conditions = Conditions()
        conditions._lock = lock = kind()  # type: ignore[assignment]
        expose(conditions, point, "_known", "_traced")
        caplog.clear()
        before = counted("failures", domain="both", reason="InternalError")

        def report() -> None:
            conditions.report("both", Outcome(errors=(surprise,)))

        def check() -> None:
            assert counted("failures", domain="both", reason="InternalError") == before + 1
            assert [r.levelno for r in caplog.records].count(logging.ERROR) == 1

        return Scene(report, report, check, (lock,))

    assert walk(scene) > 5


class Asks:
    """Of a list that is gone through, each step is a moment."""

    def __init__(self, point: Point) -> None:
        self._point = point

    def __contains__(self, _: object) -> bool:
        self._point()
        return False


@without_it_fails
def test_conditions_are_listed_while_another_thread_reports_the_first_of_a_domain(
    kind: type[Lock],
) -> None:
    def scene(point: Point) -> Scene:
        conditions = Conditions()
        conditions._lock = lock = kind()  # type: ignore[assignment]
        found = [Issue("x", "Y", "z")]
        conditions.note("one", found)
        conditions.note("two", found)

        def check() -> None:
            assert len(conditions.all()) == 3

        return Scene(
            lambda: conditions.all(besides=Asks(point)),  # type: ignore[arg-type]
            lambda: conditions.note("three", found),
            check,
            (lock,),
        )

    walk(scene)


def heard(*processes: int) -> bytes:
    """Notifications of changes by these processes."""
    return b"".join(struct.pack("=IHHII", 16, 16, 0, 0, number) for number in processes)


def test_who_is_heard_of_while_another_thread_asks_is_named() -> None:
    def scene(point: Point) -> Scene:
        suspects = ChangeAttribution()
        suspects.hear(heard(1))
        expose(suspects, point, "_seen")

        def check() -> None:
            assert {name.split()[-1] for name in suspects.lately()} == {"1)", f"{os.getppid()})"}

        return Scene(suspects.lately, lambda: suspects.hear(heard(os.getppid())), check)

    walk(scene)


def test_each_thread_gets_the_answer_to_its_own_question() -> None:
    def scene(point: Point) -> Scene:
        remembered = Remembered(str)
        remembered(0)
        expose(remembered, point, "_last")
        told: dict[int, str] = {}

        def ask(number: int) -> None:
            told[number] = remembered(number)

        def check() -> None:
            assert told == {0: "0", 1: "1"}

        return Scene(lambda: ask(0), lambda: ask(1), check)

    assert walk(scene) > 3


@pytest.mark.parametrize("second", ["another question", "the end of a full pass"])
def test_each_thread_gets_its_answer_while_another_asks_or_a_pass_ends(second: str) -> None:
    def scene(point: Point) -> Scene:
        remembered = RememberedWhileAsked(str)
        remembered(0)
        expose(remembered, point, "_known")
        told: dict[int, str] = {}

        def ask(number: int) -> None:
            told[number] = remembered(number)

        def check() -> None:
            ask(1)
            assert told == {0: "0", 1: "1"}

        other = remembered.end_pass if "end" in second else partial(ask, 1)
        return Scene(lambda: ask(0), other, check)

    assert walk(scene) > 3
