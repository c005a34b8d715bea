"""A daemon that has just started: what it keeps until it is known how many pods there are."""

from __future__ import annotations

from typing import Any

from builders import SUBNET, document, eni, intent, node
from fake_cloud import FakeEc2, FakeImds, follow_attachments
from fakes import (
    FakeConntrack,
    FakeNetlink,
    FakeNft,
    FakeRemains,
    FakeState,
    FakeSurroundings,
    FakeSysctl,
)

from reconciler.ipam.cloud import Limits
from reconciler.ipam.start import START_S
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode


class Node:
    """A node with ENIs of ours, and an empty state directory."""

    def __init__(self) -> None:
        self.now = 10_000.0
        held = [eni(0, 9, primary=SUBNET[10]), eni(1, 9), eni(2, 9)]
        self.state = FakeState()
        self.ec2 = FakeEc2(held, Limits(4, 10), SUBNET, journal=self.state, clock=lambda: self.now)
        self.netlink = FakeNetlink()
        self.links: set[str] = set()
        self.document = document(
            warmPool={"addresses": {"warm": 2, "minimum": 4, "surplus": 0}, "cooldown": "1s"}
        )
        self.start()

    def start(self) -> None:
        """Another process."""
        self.ec2.restart()
        self.state.restart()
        self.node = LocalNode(
            self.state,
            Environment(
                imds=FakeImds(node(), self.ec2),
                make_ec2=lambda *_: self.ec2,
                netlink=self.netlink,
                nft=FakeNft(),
                sysctl=FakeSysctl({}),
                conntrack=FakeConntrack(),
                surroundings=FakeSurroundings(),
                remains=FakeRemains(),
                now=lambda: self.now,
                clock=lambda: self.now,
            ),
        )

    def turn(self, seconds: float, *, look: bool = False) -> set[str]:
        """Run both passes; return the reasons of what the pool is refused."""
        self.links = follow_attachments(self.netlink, self.ec2, self.links)
        outcome = self.node.pool.run(self.document, look=look)
        self.links = follow_attachments(self.netlink, self.ec2, self.links)
        self.node.kernel_pass(self.document)
        self.now += seconds
        self.ec2.settle()
        return {r.reason for r in outcome.remaining.refusals}

    def live(self, seconds: float) -> None:
        """Run passes when they are due, as the daemon does."""
        end = self.now + seconds
        while self.now < end:
            self.turn(min(self.node.pool.schedule.due_s, end - self.now))

    def start_pods(self, *numbers: int) -> None:
        for number in numbers:
            self.netlink.namespaces.add(f"/run/netns/pod{number}@{number}")
            self.state.put(intent(number))

    @property
    def taken(self) -> list[Any]:
        """What EC2 was asked to take back."""
        asked = ("Unassign", "Detach", "Delete")
        return [call for call in self.ec2.log if call.startswith(asked)]


def test_after_a_boot_nothing_is_given_back_while_pods_are_still_coming() -> None:
    made = Node()
    assert made.turn(1.0, look=True) == {"DemandUnknown"}
    assert made.turn(1.0) == {"DemandUnknown"}
    for first in range(0, 25, 5):
        made.start_pods(*range(first, first + 5))
        made.turn(30.0)
    assert len(made.state.observe().attachments) == 25
    made.live(1000.0)
    assert made.taken == []
    assert made.state.observe().quarantined == ()
    assert made.ec2.calls.get("AttachNetworkInterface", 0) == 0


def test_what_is_not_needed_goes_once_the_time_is_over_without_any_event() -> None:
    made = Node()
    made.start_pods(1)
    made.live(START_S - 1.0)
    assert made.taken == []
    assert made.state.observe().quarantined == ()
    assert made.node.pool.schedule.due_s <= 30.0
    made.live(60.0)
    assert made.taken
    made.live(1000.0)
    assert sum(len(e.secondaries) for e in made.ec2.enis) == 4
    assert made.turn(1.0) == set()


def test_a_restart_in_the_same_boot_knows_the_demand_and_keeps_nothing() -> None:
    made = Node()
    made.start_pods(1)
    made.turn(1.0, look=True)
    made.turn(1.0)
    assert made.state.observe().attachments
    made.start()
    assert "DemandUnknown" not in made.turn(1.0, look=True)
    made.live(60.0)
    assert made.taken
