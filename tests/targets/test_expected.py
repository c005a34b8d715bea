"""What a notification is known by, against a real kernel: nothing foreign is taken for our own."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from builders import attachment, document, eni, inputs
from conftest import namespace, plug
from drift_injection import FOREIGN, HOST, POD_ON_HOST, run

from lab import netns
from reconciler.core.attachment import AttachmentKey
from reconciler.daemon.triggers import NFNLGRP_NFTABLES, RTNLGRP
from reconciler.domains.inputs import Inputs
from reconciler.engine.converge import converge, dry_run
from reconciler.node import kernel_domains
from reconciler.node.kernel_domains import KernelDomains
from reconciler.targets.expected import Expected, Verdict
from reconciler.targets.kernel import Kernel, SysctlTree
from reconciler.targets.netlink import message
from reconciler.targets.netlink.read import name_of
from reconciler.targets.netlink.target import Netlink
from reconciler.targets.nftables.target import Nft

ADDRESS = "10.0.1.50"
IPV6 = "2001:db8:0:1::7"

UNTOLD = ("accept_local", "neighbour")
"""What the kernel does not notify of, or what we do not listen to: it is found by the clock."""


QUIET_S = 0.02  # seconds: a link's carrier is told a moment after it is up

FIXED = ("name lan9",)
"""What the inputs of this test do not follow."""


class Ear:
    """Hears what the kernel tells, as the daemon does."""

    def __init__(self) -> None:
        self.sockets = [
            message.open_socket(message.NETLINK_ROUTE, RTNLGRP),
            message.open_socket(message.NETLINK_NETFILTER, NFNLGRP_NFTABLES),
        ]

    def told(self) -> list[bytes]:
        """Return what has come since it was last asked."""
        found = []
        for s in self.sockets:
            while True:
                try:
                    found.append(s.recv(1 << 16, socket.MSG_DONTWAIT))
                except BlockingIOError:
                    break
        return found

    def close(self) -> None:
        for s in self.sockets:
            s.close()


class Node:
    """A host with two ENIs, and a pod or two."""

    def __init__(self, home: str, pods: list[str]) -> None:
        self.home = home
        own: dict[str, Any] = {"addresses": (ip_address(ADDRESS), ip_address(IPV6))}
        self.pods = tuple(
            attachment(i + 1, 1, netns=str(netns.path(pod)))
            if i
            else attachment(1, 1, netns=str(netns.path(pod)), **own)
            for i, pod in enumerate(pods)
        )
        settings = SysctlTree()
        self.domains = KernelDomains(Kernel(Netlink(), settings), settings, Nft())
        self.expected = Expected()
        self.ear = Ear()

    def inputs(self, *pods: Any) -> Inputs:
        doc = document(families=["ipv4", "ipv6"])
        return inputs(2, tuple(pods), document=doc)

    def full_pass(self, *pods: Any) -> None:
        """Converge everything, and expect that."""
        outcomes = converge(self.domains.all, self.inputs(*pods))
        left = [a for o in outcomes.values() for a in o.undone]
        errors = [e for o in outcomes.values() for e in o.errors]
        assert not left, left
        assert not errors, errors
        self.expected.learn(outcomes, settled=True)

    def come(self, pod: Any, *others: Any) -> None:
        """Serve one pod alone."""
        outcomes = converge(self.domains.of_pods(), kernel_domains.alone(pod, self.inputs(pod)))
        assert all(o.settled for o in outcomes.values()), outcomes
        self.expected.follow(outcomes)

    def leave(self, pod: Any) -> None:
        """End one pod alone."""
        nothing = self.inputs().seeing(visit=frozenset())
        there = self.inputs(pod).seeing(linked=frozenset({pod.key}), visit=frozenset())
        gone = kernel_domains.pod_objects(there)
        outcomes = converge(self.domains.of_pods(gone), nothing)
        assert all(o.settled for o in outcomes.values()), outcomes
        self.expected.follow(outcomes, gone)

    def drifted(self, *pods: Any) -> bool:
        """Whether a look at everything would find something to do."""
        outcomes = dry_run(self.domains.all, self.inputs(*pods))
        return any(o.plan.actions or o.errors for o in outcomes.values())

    def judge(self, told: list[bytes]) -> Verdict:
        return self.expected.judge(told, name_of)


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with (
        namespace("home") as home,
        namespace("pod") as one,
        namespace("pod2") as two,
        namespace("vpc") as vpc,
        netns.inside(home),
    ):
        for e in (eni(0), eni(1)):
            plug(e.mac, f"eth{e.device_index}", vpc)
        made = Node(home, [one, two])
        yield made
        made.ear.close()


def settle(node: Node) -> list[bytes]:
    """Return what the kernel tells until it is quiet for a moment."""
    told: list[bytes] = []
    while select.select(node.ear.sockets, [], [], QUIET_S)[0]:
        told += node.ear.told()
    return told


def cuts(told: list[bytes]) -> list[bytes]:
    """Return single messages, as they might have been read."""
    return [body + bytes(-len(body) % 4) for data in told for *_, body in message.split(data)]


pytestmark = pytest.mark.kernel


def test_pods_that_come_and_go_are_no_news_wherever_the_reading_stops(node: Node) -> None:
    one, two = node.pods
    node.full_pass(one)
    settle(node)
    for act in (node.come, node.leave):
        act(two)
        told = cuts(settle(node))
        assert len(told) > 10
        assert node.judge(told) is Verdict.EXPLAINED
        for end in range(len(told)):
            assert node.judge(told[:end]) is not Verdict.NEWS, end
    node.come(two)
    node.leave(two)
    assert node.judge(settle(node)) is Verdict.EXPLAINED, "both at once"


def test_the_address_of_a_pod_that_has_gone_is_no_news_of_a_later_one(node: Node) -> None:
    one, two = node.pods
    node.full_pass(one)
    settle(node)
    node.come(two)
    node.leave(two)
    later = replace(two, key=AttachmentKey("later", "eth0"), veth="nn00000000000a")
    node.come(later)
    assert node.judge(settle(node)) is Verdict.EXPLAINED
    node.leave(later)
    assert node.judge(settle(node)) is Verdict.EXPLAINED


def test_what_went_with_a_pods_namespace_before_its_pass_is_no_news(node: Node) -> None:
    """The runtime removes the namespace as soon as DEL is answered: no pass deletes the link."""
    one, two = node.pods
    node.full_pass(one)
    node.come(two)
    settle(node)
    assert run(node.home, f"ip link del {two.veth}")
    told = settle(node)
    assert node.judge(told) is Verdict.NEWS, "nothing says yet that it leaves"
    node.leave(two)
    after = settle(node)
    assert node.judge(told + after) is Verdict.EXPLAINED
    assert run(node.home, f"ip link del {one.veth}")
    assert node.judge(told + after + settle(node)) is Verdict.NEWS, "that of a pod that stays"


@pytest.mark.parametrize("commands", [HOST, POD_ON_HOST], ids=["host", "pod"])
def test_whatever_others_change_is_news_also_among_our_own_changes(
    node: Node, commands: list[str]
) -> None:
    one, two = node.pods
    done = 0
    for number, command in enumerate(commands):
        if any(word in command for word in UNTOLD + FIXED):
            continue
        node.full_pass(one)
        settle(node)
        own: list[bytes] = []
        if is_among := not number % 3:
            node.come(two)
            own = settle(node)
        run(node.home, command.format(address=ADDRESS, veth=one.veth))
        foreign = settle(node)
        if not node.drifted(one, two) if is_among else not node.drifted(one):
            continue
        done += 1
        assert node.judge(foreign) is Verdict.NEWS, command
        assert node.judge(own + foreign) is Verdict.NEWS, command
        if is_among:
            node.leave(two)
            after = settle(node)
            assert node.judge(foreign + after) is Verdict.NEWS, command
            assert node.judge(own + foreign + after) is Verdict.NEWS, command
    assert done > len(commands) / 2


def test_what_is_no_matter_is_not_explained_either(node: Node) -> None:
    """Findings about other owners wait for it, and what the host takes for its own."""
    node.full_pass(node.pods[0])
    for command, undo in FOREIGN:
        settle(node)
        is_looked_at_apart = command.startswith(("ip rule", "nft"))
        wanted = Verdict.OTHERS if is_looked_at_apart else Verdict.NEWS
        assert run(node.home, command)
        there = settle(node)
        assert node.judge(there) is wanted, command
        assert run(node.home, undo)
        gone = settle(node)
        assert node.judge(gone) is wanted, undo
        node.come(node.pods[1])
        own = settle(node)
        assert node.judge(there + own + gone) is wanted, "among our own"
        node.leave(node.pods[1])


@pytest.mark.parametrize("length", [3, 17, 40])
def test_what_cannot_be_read_is_news(node: Node, length: int) -> None:
    node.full_pass(node.pods[0])
    settle(node)
    node.come(node.pods[1])
    told = settle(node)
    node.leave(node.pods[1])
    settle(node)
    assert node.judge([told[0][:length]]) is Verdict.NEWS
    assert node.judge([struct.pack("=IHHII", 16, 99, 0, 0, 0)]) is Verdict.NEWS


def test_nothing_is_expected_before_a_pass_has_seen_everything_in_place(node: Node) -> None:
    assert Expected().judge([], name_of) is Verdict.NEWS
    node.full_pass(node.pods[0])
    left = Expected()
    left.learn(converge(node.domains.all, node.inputs(node.pods[0])), settled=False)
    assert left.judge([], name_of) is Verdict.NEWS
