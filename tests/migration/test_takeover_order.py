"""Nothing of the stock plugin's goes before all of ours that replaces it was seen in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from builders import SUBNET, document, eni, intent, node
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

from reconciler.core.attachment import AttachmentKey, IntentState
from reconciler.diagnostics.stock_objects import (
    Allocation,
    PodEnd,
    Sighting,
    StockRoute,
    StockRule,
)
from reconciler.domains.link import PodLink, Veth
from reconciler.domains.route import Route
from reconciler.errors import ApplyError
from reconciler.ipam.cloud import Limits
from reconciler.node.environment import Environment
from reconciler.node.passes import LocalNode

POD, VETH, NETNS = SUBNET[19], "eni0123456789a", "/run/netns/x@7"
KEY = AttachmentKey("c0ffee", "eth0")
HOST = ip_network(f"{POD}/32")
SEEN = Sighting(
    rules=(StockRule(512, 254, destination=HOST),),
    routes=(StockRoute(254, HOST, VETH),),
    saved={("nft", "nat"): (":AWS-SNAT-CHAIN-0 - [0:0]",)},
    allocations={POD: Allocation(KEY, POD, "default/web")},
)


class StubbornNft(FakeNft):
    """Refuses everything for a while."""

    stubborn = True

    def apply(self, actions: Any) -> tuple[ApplyError, ...]:
        if self.stubborn:
            return tuple(ApplyError(str(a), "TransactionRefused", "busy") for a in actions)
        return super().apply(actions)


class TagDenyingEc2(FakeEc2):
    """Denies tags for a while."""

    denies = False

    @contextmanager
    def _call(self, name: str) -> Iterator[None]:
        if self.denies and name == "CreateTags":
            self.fault = ("before", "UnauthorizedOperation")
        with super()._call(name):
            yield


class Taken:
    """A node of the stock plugin's with one pod, in memory."""

    def __init__(self, asked: bool = True, remains: Any = None) -> None:
        self.now = 1000.0
        tags = ("node.k8s.amazonaws.com/instance_id",)
        first = eni(0, 9, primary=SUBNET[10], stock=True, stock_tags=tags)
        self.document = document(takeOver="amazon-vpc-cni" if asked else "none")
        self.state = FakeState()
        self.ec2 = TagDenyingEc2([first], Limits(3, 10), SUBNET, journal=self.state)
        self.remains = FakeRemains(SEEN, **{VETH: PodEnd(NETNS, "eth0", "02:11::1", "02:11::2")})
        self.sysctl = FakeSysctl({"net/ipv4/ip_forward": "0", "net/ipv4/conf/eth0/rp_filter": "1"})
        self.nft = StubbornNft()
        self.nft.stubborn = False
        ends = [
            Veth(VETH, "02:11::1", 9001, ""),
            PodLink(NETNS, "eth0", "02:11::2", 9001, True, VETH),
        ]
        self.netlink = FakeNetlink(ends, {NETNS})
        self.netlink.plug(first.mac, "eth0")
        self.node = LocalNode(
            self.state,
            Environment(
                imds=FakeImds(node(), self.ec2),
                make_ec2=lambda *_: self.ec2,
                netlink=self.netlink,
                nft=self.nft,
                sysctl=self.sysctl,
                conntrack=FakeConntrack(),
                surroundings=FakeSurroundings(),
                remains=remains or self.remains,
                now=lambda: self.now,
                clock=lambda: self.now,
            ),
        )

    def turn(self) -> Any:
        self.node.pool.run(self.document)
        result = self.node.after.run(self.node.kernel_pass(self.document))
        self.now += 1
        return result

    @property
    def untouched(self) -> bool:
        seen = self.remains.sighting
        return (seen.rules, seen.routes, seen.saved) == (SEEN.rules, SEEN.routes, SEEN.saved)

    @property
    def gone(self) -> bool:
        seen = self.remains.sighting
        return not (seen.rules or seen.routes or seen.saved)


def test_a_take_over_is_done_in_one_turn_when_nothing_is_in_the_way() -> None:
    taken = Taken()
    result = taken.turn()
    assert result.settled, [str(e) for o in result.outcomes.values() for e in o.errors]
    assert taken.gone
    (bound,) = taken.state.observe().attachments
    assert (bound.key, bound.addresses, bound.veth) == (KEY, (POD,), VETH)
    assert taken.turn().settled


def nft_refuses(taken: Taken) -> Callable[[], None]:
    taken.nft.stubborn = True
    return lambda: setattr(taken.nft, "stubborn", False)


def a_foreign_route_in_the_pod(taken: Taken) -> Callable[[], None]:
    gateway = Route(NETNS, 254, ip_network("0.0.0.0/0"), "eth0", SUBNET[1], protocol=99)
    taken.netlink.replace(gateway)
    return lambda: taken.netlink.replace(replace(gateway, protocol=201))


def a_second_pod_without_an_entry(taken: Taken) -> Callable[[], None]:
    route = StockRoute(254, ip_network(f"{SUBNET[12]}/32"), "eni0123456789b")
    taken.remains.sighting = replace(SEEN, routes=(*SEEN.routes, route))

    def heal() -> None:
        taken.remains.sighting = replace(taken.remains.sighting, routes=SEEN.routes)

    return heal


def an_unreadable_pod(taken: Taken) -> Callable[[], None]:
    taken.netlink.namespaces.discard(NETNS)
    return lambda: taken.netlink.namespaces.add(NETNS)


def an_eni_whose_tags_are_refused(taken: Taken) -> Callable[[], None]:
    """Its pod waits for it, without being refused."""
    address, veth, netns = SUBNET[31], "eni0123456789b", "/run/netns/y@8"
    second = eni(1, 9, owned=False, stock=True, stock_tags=("eks:eni:owner",))
    taken.ec2.enis.append(second)
    taken.netlink.plug(second.mac, "eth1")
    taken.netlink.namespaces.add(netns)
    taken.netlink.replace(Veth(veth, "02:12::1", 9001, ""))
    taken.netlink.replace(PodLink(netns, "eth0", "02:12::2", 9001, True, veth))
    taken.sysctl.values["", "net/ipv4/conf/eth1/rp_filter"] = "1"
    key = AttachmentKey("cafe", "eth0")
    taken.remains.ends[veth] = PodEnd(netns, "eth0", "02:12::1", "02:12::2")
    taken.remains.sighting = replace(
        SEEN,
        routes=(*SEEN.routes, StockRoute(254, ip_network(f"{address}/32"), veth)),
        allocations=dict(SEEN.allocations) | {address: Allocation(key, address, "default/db")},
    )
    taken.ec2.denies = True

    def heal() -> None:
        taken.ec2.denies = False
        taken.now += 3600  # a call that was denied rests

    return heal


@pytest.mark.parametrize(
    "trouble",
    [
        nft_refuses,
        a_foreign_route_in_the_pod,
        a_second_pod_without_an_entry,
        an_unreadable_pod,
        an_eni_whose_tags_are_refused,
    ],
)
def test_whatever_is_not_in_its_place_keeps_all_that_is_the_stock_plugins(trouble: Any) -> None:
    taken = Taken()
    heal = trouble(taken)
    before = taken.remains.sighting
    for _ in range(3):
        taken.turn()
        assert taken.remains.sighting == before
    heal()
    for _ in range(12):  # a refused take-over is looked at again every five seconds
        taken.turn()
    assert taken.gone


def test_unasked_its_pods_addresses_are_neither_given_away_nor_given_back() -> None:
    taken = Taken(asked=False)
    for number in range(8):
        taken.netlink.namespaces.add(f"/run/netns/pod{number}@{number}")
        taken.state.put(intent(number))
    for _ in range(5):
        taken.turn()
    bound = [a for x in taken.state.observe().attachments for a in x.addresses]
    assert len(bound) == len(set(bound)) == 8
    assert POD not in bound
    for number in range(8):
        taken.netlink.lose_namespace(f"/run/netns/pod{number}@{number}")
        taken.state.put(intent(number, IntentState.RELEASED))
    for _ in range(40):
        taken.now += 300
        taken.turn()
    assert POD in {a for e in taken.ec2.enis for a in e.pod_addresses}
    assert taken.untouched
