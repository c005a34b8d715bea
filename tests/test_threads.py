"""Two threads over one node: every interleaving at the calls of what they share.

Each lock was taken away once, and seen red here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from baton import Baton, Lock, Told
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

from reconciler import drift
from reconciler.agent import Agent
from reconciler.core.attachment import IntentState
from reconciler.core.cloud import Limits
from reconciler.core.plan import Change, Plan, Verb
from reconciler.domains.sysctl import Sysctl
from reconciler.drift import Accounts
from reconciler.engine import Outcome
from reconciler.errors import ApplyError
from reconciler.node import LocalNode
from reconciler.suspects import Suspects
from reconciler.targets.state import StateDirectory
from reconciler.world import World

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

    def __init__(self) -> None:
        self.now = 1000.0
        self.baton: Baton | None = None
        self.lock = Lock()
        self.state = FakeState()
        first = eni(0, 0, primary=SUBNET[10])
        clock = {"journal": self.state, "clock": lambda: self.now}
        self.ec2 = FakeEc2([first], Limits(3, 10), SUBNET, **clock)
        self.netlink = Netlink()
        self.netlink.plug(first.mac, "eth0")
        ec2 = Told(self.ec2, self._point)
        self.node = LocalNode(
            Told(self.state, self._point),
            World(
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
        self.node._binding = self.lock  # type: ignore[assignment]
        self.document = document(warmPool=MANY)
        self.want(1)
        for _ in range(3):
            self.pool_pass()
            self.kernel_pass()
            self.now += 100.0
        self.document = document(warmPool=NONE)

    def _point(self) -> None:
        if self.baton is not None:
            self.baton.point()

    def want(self, number: int) -> None:
        self.netlink.namespaces.add(f"/run/netns/pod{number}@1")
        self.state.put(intent(number))

    def release(self, number: int) -> None:
        self.state.put(intent(number, IntentState.RELEASED))

    def pool_pass(self) -> None:
        self.node.pool_pass(self.document)

    def kernel_pass(self) -> None:
        self.node.kernel_pass(self.document)

    def pods_pass(self) -> None:
        self.node.pods_pass(frozenset({key(1), key(2)}))

    def together(self, first: Callable[[], None], second: Callable[[], None], *when: Any) -> Baton:
        baton = self.lock.baton = self.baton = Baton(second, *when)
        first()
        baton.finish()
        self.lock.baton = self.baton = None
        return baton

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


@pytest.mark.parametrize("serve", ["kernel_pass", "pods_pass"])
@pytest.mark.parametrize("happening", [bind, replace], ids=["comes", "goes and comes"])
def test_no_pod_gets_what_the_pools_thread_gives_back(happening: Any, serve: str) -> None:
    """Wherever either thread stands when the other goes on."""
    walked, most = set(), [1, 1]
    for at in count():
        if at >= most[0]:
            break
        for back in (None, *range(most[1])):
            shared = Shared()
            second = happening(shared, getattr(shared, serve))
            baton = shared.together(shared.pool_pass, second, at, back)
            shared.check()
            most = [max(pair) for pair in zip(most, baton.calls, strict=True)]
            walked.add((at, back))
            if back is not None and back >= baton.calls[1]:
                break
    assert len(walked) > 30


# -- what both loops book ------------------------------------------------------------------


def refused(name: str) -> dict[str, Outcome]:
    """A pass that could not set something."""
    action = Change(Verb.UPDATE, Sysctl(name, "1"), "it is 0")
    plan = Plan((action,))
    error = ApplyError(str(action), "EPERM", "no")
    return {"sysctl": Outcome(plan=plan, remaining=plan, errors=(error,))}


def test_what_two_threads_book_at_once_is_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    accounts, lock = Accounts(Suspects()), Lock()
    accounts._lock = lock  # type: ignore[assignment]
    both = ("net/ipv4/ip_forward", "net/ipv4/conf/eth1/rp_filter")
    baton = Baton(lambda: accounts.book(refused(both[1]), everything=False), at=0)
    lock.baton = baton

    def chance() -> float:
        baton.point()  # the one has read what is known, and has not written yet
        return 0.5

    monkeypatch.setattr(drift.random, "random", chance)
    accounts.book_pods(refused(both[0]))
    baton.finish()
    assert {name for _, (_, name) in accounts.struggles.known} == set(both)


# -- the right to answer -------------------------------------------------------------------


class Answers(dict[Any, Any]):
    """What was answered; each question to it is a moment at which the other thread goes on."""

    def __init__(self, point: Callable[[], None]) -> None:
        super().__init__()
        self._point = point

    def get(self, *arguments: Any) -> Any:
        found = super().get(*arguments)
        self._point()
        return found


@pytest.mark.parametrize("at", [0, 1], ids=["meanwhile", "afterwards"])
def test_of_two_calls_of_one_attempt_one_is_told_what_the_pod_was_given(
    tmp_path: Path, at: int
) -> None:
    agent = Agent(tmp_path / "document", StateDirectory(tmp_path), events=False)
    lock = Lock()
    agent._changed = lock  # type: ignore[assignment]
    told: list[bool] = []
    baton = lock.baton = Baton(lambda: told.append(agent.claim(key(1), "a")), at)
    agent._answered = Answers(baton.point)
    told.append(agent.claim(key(1), "a"))
    baton.finish()
    assert sorted(told) == [False, True]
    assert agent.claim(key(1), "b"), "another attempt"
    agent.disclaim(key(1))
    assert agent.claim(key(1), "b"), "nobody heard it"
    assert not agent.claim(key(1), "b")
