"""A node of fakes, on which passes over the pool and the kernel follow each other."""

from __future__ import annotations

from collections import Counter
from typing import Any

from builders import BEGIN_S, SUBNET, document, eni, intent, node
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

from reconciler.core.attachment import IntentState
from reconciler.engine.converge import Outcome
from reconciler.ipam.cloud import Limits
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode


class Simulation:
    """A node with pods, whose pool and kernel passes follow each other."""

    def __init__(self, ec2: FakeEc2 | None = None, **parts: Any) -> None:
        self.now = BEGIN_S
        self.skew = 0.0  # of the wall clock
        self.document = document(**parts)
        self.state = FakeState()
        first = eni(0, 0, primary=SUBNET[10])
        self.ec2 = ec2 or FakeEc2(
            [first], Limits(3, 10), SUBNET, journal=self.state, clock=lambda: self.now
        )
        self.imds = FakeImds(node(), self.ec2)
        self.netlink = FakeNetlink()
        self.conntrack = FakeConntrack()
        self.remains = FakeRemains()
        self.netlink.plug(first.mac, "eth0")
        self.environment = Environment(
            imds=self.imds,
            make_ec2=lambda *_: self.ec2,
            netlink=self.netlink,
            nft=FakeNft(),
            sysctl=FakeSysctl({"net/ipv4/ip_forward": "1"}),
            conntrack=self.conntrack,
            surroundings=FakeSurroundings(),
            remains=self.remains,
            now=lambda: self.now + self.skew,
            clock=lambda: self.now,
        )
        self.refusals: Counter[str] = Counter()
        self.start()

    def start(self) -> None:
        """Another process, which knows what the one before has written down."""
        self.state.restart()
        self.node = LocalNode(self.state, self.environment)

    def turn(self, seconds: float = 300.0) -> None:
        self.turn_pool()
        self.node.kernel_pass(self.document)
        self.now += seconds

    def turn_pool(self) -> Outcome:
        outcome = self.node.pool.run(self.document)
        self.refusals.update({r.reason for r in outcome.remaining.refusals})
        return outcome

    def start_pod(self, number: int) -> None:
        self.netlink.namespaces.add(f"/run/netns/pod{number}@{number}")
        self.state.put(intent(number))

    def end_pod(self, number: int) -> None:
        self.netlink.lose_namespace(f"/run/netns/pod{number}@{number}")
        self.state.put(intent(number, IntentState.RELEASED))
