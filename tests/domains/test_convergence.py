"""For every domain: what is planned, once applied, leaves nothing to plan.

And nothing foreign is touched. The worlds are the fakes, whose contracts are checked against the
real ones.
"""

from __future__ import annotations

import random
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from builders import SUBNET, all_inputs, documents, eni, inputs, intent
from fake_cloud import FakeEc2
from fakes import FakeNetlink, FakeNft, FakeState, FakeSysctl
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.attachment import Attachment, Cooling, IntentState
from reconciler.domains import address, attachment, link, nat, neighbour, route, rule, sysctl
from reconciler.domains import eni as eni_domain
from reconciler.domains.address import LinkAddress
from reconciler.domains.inputs import Inputs
from reconciler.domains.link import EniLink, PodLink, Veth
from reconciler.domains.nat_objects import NftChain, NftSet, NftTable
from reconciler.domains.neighbour import Neighbour
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.engine.converge import Domain, converge, dry_run
from reconciler.ipam.cloud import Limits
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_status import Ec2Inputs, find_pool_status
from reconciler.ipam.records import Records
from reconciler.node.kernel_domains import KernelDomains
from reconciler.targets.kernel import Kernel


def everything(value: Inputs) -> set[Any]:
    objects: set[Any] = set()
    for module in (link, address, neighbour, route, rule):
        objects |= module.desire(value)
    return objects


FOREIGN: list[Any] = [
    Rule("ipv4", 0, 255, protocol=2),
    Rule("ipv4", 32766, 254, protocol=2),
    Rule("ipv4", 512, 777, protocol=0),
    Rule("ipv6", 32766, 254, protocol=2),
    Rule("ipv4", 9000, 512, protocol=201),  # our number, but not our band
    Veth("calice0", "02:cc:00:00:00:01", 1500, "calico"),
    Veth("veth0", "02:cc:00:00:00:02", 1500, ""),
]


def foreign_in(netns: str) -> list[Any]:
    """What the pod itself, or another plugin, has put into its namespace."""
    return [
        PodLink(netns, "net1", "02:cc:00:00:00:03", 1500),
        LinkAddress(netns, "net1", ip_address("192.0.2.9"), 24, connected_route=True),
        LinkAddress(netns, "eth0", ip_address("192.0.2.10"), 32),
        Neighbour(netns, "net1", ip_address("192.0.2.1"), "02:cc:00:00:00:04"),
        Neighbour(netns, "eth0", ip_address("192.0.2.2"), "02:cc:00:00:00:05"),
        Neighbour(netns, "eth0", ip_address("2001:db8:9::2"), "02:cc:00:00:00:06"),
        Route(netns, 254, ip_network("192.0.2.0/24"), "net1", protocol=2),
    ]


class Watched(FakeNetlink):
    """Remembers every action it is given."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.given: list[Any] = []

    def apply(self, actions: Any) -> Any:
        self.given += actions
        return super().apply(actions)


def damage(objects: set[Any], chance: random.Random) -> set[Any]:
    """Lose some objects, alter others, and add garbage that carries our stamp."""
    left: set[Any] = set()
    for o in sorted(objects, key=repr):
        fate = chance.random()
        if fate < 0.3:
            continue
        if fate < 0.6:
            match o:
                case EniLink() | Veth() | PodLink():
                    o = replace(o, mtu=1400, up=chance.random() < 0.5)
                case Route():
                    o = replace(o, gateway=None if o.gateway else ip_address("10.0.1.99"))
                case Neighbour():
                    o = replace(o, mac="02:00:00:00:00:99")
                case LinkAddress():
                    o = replace(o, connected_route=True)
        left.add(o)
    # A pod's end cannot outlive the host's: the kernel deletes a pair as a whole.
    hosts = {o.name for o in left if isinstance(o, Veth)}
    left = {o for o in left if not isinstance(o, PodLink) or o.veth in hosts}
    left.add(Route("", 512, ip_network("10.9.9.9/32"), "eth0"))
    left.add(Rule("ipv4", 1600, 1600, 64, 0xFF))
    left.add(Veth("nnffffffffffff", "02:00:00:00:00:98", 9001, "node-network:gone/eth0"))
    return left


@given(all_inputs(), all_inputs(), st.integers(0, 2**32))
def test_applying_a_plan_for_the_kernel_leaves_nothing_to_plan(
    before: Inputs, now: Inputs, seed: int
) -> None:
    """From any earlier state, damaged in any way, one converge reaches the document.

    And no action on the way is about an object that is not ours.
    """
    remains = damage(everything(before), random.Random(seed))
    foreign = FOREIGN + [o for a in now.attachments for o in foreign_in(a.netns)]
    world = Watched([*remains, *foreign], {a.netns for a in now.attachments})
    for mac, name in now.links.items():
        world.plug(mac, name)
    nft = FakeNft(nat.desire(before))
    wanted = sysctl.desire(now) | sysctl.desire_source_check(now)
    settings = FakeSysctl({s.name: "0" for s in wanted})
    domains = KernelDomains(Kernel(world, settings), settings, nft).all
    converge(domains, now)
    after = dry_run(domains, now)
    assert [str(a) for o in after.values() for a in o.plan.actions] == []
    assert not [e for o in after.values() for e in o.errors]
    left = world.observe([*everything(now), *foreign])
    # Those on a pod's own link go with it if the pair had to be remade.
    assert {o for o in foreign if getattr(o, "device", "") != "eth0"} <= set(left)
    touched = {(a.kind, a.key) for a in world.given}
    assert not touched & {(o.kind, o.key) for o in foreign}


@given(all_inputs(), all_inputs())
def test_from_any_ruleset_to_any_other(before: Inputs, now: Inputs) -> None:
    nft = FakeNft(nat.desire(before))
    domain = [Domain("nat", nat.desire, nat.plan, nft)]
    assert converge(domain, now)["nat"].settled
    assert nft.observe() == nat.desire(now)


WRONG = [
    NftSet("no_snat_ipv4", "ipv6_addr", interval=True),
    NftSet("pods_ipv4", "ipv4_addr", interval=True),
    NftChain("source_nat", (), "filter", "postrouting", 100),
    NftChain("eni_0", (), "filter", "input", 0),
]


@given(all_inputs(), st.sampled_from(WRONG))
def test_a_set_or_chain_of_another_shape_is_replaced_whole(now: Inputs, wrong: Any) -> None:
    nft = FakeNft([NftTable(), wrong])
    assert converge([Domain("nat", nat.desire, nat.plan, nft)], now)["nat"].settled
    assert nft.observe() == nat.desire(now)


@st.composite
def pools(draw: st.DrawFn) -> tuple[FakeEc2, Inputs]:
    """An instance in any state of its pool, in a subnet of any fullness."""
    count = draw(st.integers(1, 3))
    enis = [eni(i, draw(st.integers(0, 9))) for i in range(count)]
    if draw(st.booleans()):
        enis.append(eni(None, 0, eni_id="eni-lost", primary=SUBNET[200]))
    if count > 1 and draw(st.booleans()):
        enis[1] = replace(enis[1], delete_on_termination=False)
    if count > 2 and draw(st.booleans()):
        enis[2] = replace(enis[2], owned=False)
    full = draw(st.sampled_from([0, 0, 170, 230]))
    taken = {SUBNET[i] for i in range(24, 24 + full)}
    world = FakeEc2(enis, Limits(3, 10), SUBNET, taken, journal=FakeState())
    # What is in use is on the node's own ENIs.
    held = [a for e in enis if e.serves_pods for a in e.secondaries]
    used = draw(st.sets(st.sampled_from(held))) if held else set()
    demand = Demand(len(used), 0, draw(st.integers(0, 9)))
    ec2 = Ec2Inputs(used=frozenset(used), nonce="n")
    return world, inputs(1, document=draw(documents()), demand=demand, ec2=ec2, now=1000.0)


@given(pools())
def test_applying_a_plan_for_the_pool_leaves_nothing_to_plan(pool: tuple[FakeEc2, Inputs]) -> None:
    """Whatever EC2 refuses was foreseen: no call fails, no limit is exceeded."""
    world, now = pool
    foreign = [e for e in world.enis if not e.owned]
    domain = [Domain("eni", eni_domain.desire, eni_domain.plan, world)]
    outcome = converge(domain, now)["eni"]
    assert outcome.remaining.actions == ()
    assert outcome.errors == ()
    assert foreign == [e for e in world.enis if not e.owned]
    cloud = world.observe()
    assert len([e for e in cloud.enis if e.device_index is not None]) <= 3
    assert all(len(e.secondaries) <= 9 for e in cloud.enis)
    at = find_pool_status(eni_domain.desire(now), cloud)
    assert at.stock.held >= at.band.low or outcome.remaining.refusals


@given(pools())
def test_a_plan_says_what_it_costs_in_calls(pool: tuple[FakeEc2, Inputs]) -> None:
    world, now = pool
    planned = eni_domain.plan(eni_domain.desire(now), world.observe())
    assert world.apply(planned.actions) == ()
    assert sorted(world.log) == sorted(c for a in planned.actions for c in a.calls)


@st.composite
def records(draw: st.DrawFn) -> Records:
    """Intents, attachments and cooling addresses in any combination."""
    numbers = range(8)
    intents, bound = [], []
    pool = iter([a for i in range(2) for a in eni(i).secondaries])
    for n in numbers:
        state = draw(st.sampled_from([None, IntentState.WANTED, IntentState.RELEASED]))
        if state is not None:
            intents.append(intent(n, state, netns_alive=draw(st.booleans())))
        if draw(st.booleans()):
            bound.append(
                Attachment(intent(n).key, f"/run/netns/pod{n}", (next(pool),), "eni-0", f"nn{n}")
            )
    cooling = [Cooling(next(pool), draw(st.sampled_from([5.0, 50.0]))) for _ in range(3)]
    return Records(tuple(intents), tuple(bound), tuple(sorted(cooling, key=lambda c: c.key)))


@given(records(), documents(), st.booleans())
def test_binding_and_releasing_settles_and_never_gives_an_address_twice(
    before: Records, doc: Any, clear: bool
) -> None:
    world = FakeState(before)
    now = inputs(2, document=doc, now=10.0, clear=before.released if clear else frozenset())
    domain = [Domain("attachment", attachment.desire, attachment.plan, world)]
    outcome = converge(domain, now)["attachment"]
    assert outcome.remaining.actions == ()
    after = world.observe()
    held = [own for a in after.attachments for own in a.addresses]
    held += [c.address for c in after.cooling]
    assert len(held) == len(set(held))
    gone = {a.key for a in before.attachments} - {a.key for a in after.attachments}
    assert gone <= (before.released if clear else set())
    cooled = {c.address for c in before.cooling if c.until <= 10}
    assert not cooled & {c.address for c in after.cooling}


@given(all_inputs(), st.randoms())
def test_desire_does_not_depend_on_the_order_of_pods_and_enis(now: Inputs, chance: Any) -> None:
    pods, enis = list(now.attachments), list(now.enis)
    chance.shuffle(pods)
    chance.shuffle(enis)
    other = replace(now, attachments=tuple(pods), enis=tuple(enis))
    assert everything(now) == everything(other)
    assert nat.desire(now) == nat.desire(other)
