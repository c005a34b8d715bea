"""What holds of every plan for the pool, whatever the node has and whatever is wanted of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from typing import Any

from builders import SUBNET, attachment, document, eni, inputs
from hypothesis import given, settings
from hypothesis import strategies as st

from reconciler.core.datapath import IpNetwork, host_network
from reconciler.domains import eni as domain
from reconciler.ipam import pool_plan
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.ipam.ec2_action import (
    AssignAddresses,
    AssignPrefixes,
    AttachEni,
    DelegatePrefix,
    DeleteEni,
    DetachEni,
    ReleaseAddresses,
    ReleasePrefixes,
)
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_status import Ec2Inputs, Pool, find_pool_status
from reconciler.ipam.release import given_back, unit_networks
from reconciler.ipam.sources import Disagreements
from reconciler.ipam.start import NOTHING, keep

GIVES = AssignAddresses | AssignPrefixes | DelegatePrefix | AttachEni
TAKES = ReleaseAddresses | ReleasePrefixes | DetachEni | DeleteEni

POOLS: list[dict[str, Any]] = [
    {"warmPool": {"addresses": {"warm": 2, "minimum": 0, "surplus": 0}}},
    {"warmPool": {"addresses": {"warm": 0, "minimum": 30, "surplus": 2}}},
    {"warmPool": {"enis": {"warm": 1}}},
    {"warmPool": {"addresses": {"warm": 2}}, "eni": {"allocate": "prefixes"}},
    {"warmPool": {"prefixes": {"warm": 1}}, "eni": {"allocate": "prefixes"}},
]
FAMILIES = [["ipv4"], ["ipv4", "ipv6"], ["ipv6"]]
SUBNETS = ["subnet-a", "subnet-b"]
UNUSED = SUBNET[200]
"""No ENI has it: a pod that uses it has lost it."""


@st.composite
def enis(draw: st.DrawFn, index: int) -> Any:
    """One of ours, attached or not, with addresses, prefixes, or both."""
    attached = index == 0 or draw(st.booleans())
    fields: dict[str, Any] = {"eni_id": f"eni-{index}"}
    if not attached:
        fields |= {"device_index": None, "status": "available", "attachment_id": None}
    if draw(st.booleans()):
        fields["prefixes"] = (ip_network(f"10.0.{10 + index}.0/28"),)
    if draw(st.booleans()):
        fields["ipv6_prefixes"] = (ip_network(f"2001:db8:0:{index}::/80"),)
    fields["subnet_id"] = "subnet-a" if index == 0 else draw(st.sampled_from(SUBNETS))
    return eni(index, draw(st.integers(0, 9)), **fields)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Pool, Cloud]:
    """A node's pool, and what is wanted of it."""
    held = tuple(draw(enis(i)) for i in range(draw(st.integers(1, 4))))
    free = draw(st.sampled_from([0, 3, 200]))
    subnets = {
        name: Subnet(name, "us-east-1a", SUBNET, free, blocks, families=("ipv4", "ipv6"))
        for name in SUBNETS
        for blocks in [draw(st.sampled_from([None, 0, 10]))]
    }
    cloud = Cloud(held, Limits(draw(st.integers(2, 5)), 10), subnets)
    units = sorted({n for e in held for n in unit_networks(e)}, key=str)
    some = st.sets(st.sampled_from(units)) if units else st.just(set[IpNetwork]())
    quarantined = draw(some | st.just(set(units)))
    pods, lost = [], []
    for number in range(draw(st.integers(0, 3))):
        device = draw(st.integers(0, len(held) - 1))
        address = draw(st.sampled_from([UNUSED + number, *held[device].secondaries[:1]]))
        pods.append(attachment(number, device, address=address))
        if address >= UNUSED:
            lost.append((f"eni-{device}", host_network(address)))
    used = {a for p in pods for a in p.addresses}
    ec2 = Ec2Inputs(
        used=frozenset(used),
        quarantined=frozenset(n for n in quarantined if not any(a in n for a in used)),
        maybe_released=frozenset(draw(some)) & quarantined,
        disagreements=Disagreements(lost=frozenset(lost)),
        kept=draw(st.sampled_from([NOTHING, keep(draw(st.permutations(held))[:2], 0.0)])),
        nonce="n",
    )
    doc = document(**draw(st.sampled_from(POOLS)), families=draw(st.sampled_from(FAMILIES)))
    demand = Demand(len(pods), draw(st.integers(0, 9)), draw(st.integers(0, 40)))
    wanted = inputs(1, tuple(pods), document=doc, ec2=ec2, now=10_000.0, demand=demand)
    return domain.desire(wanted), cloud


@settings(max_examples=400)
@given(situations())
def test_no_plan_gives_to_an_eni_and_takes_from_it(situation: tuple[Pool, Cloud]) -> None:
    """An ENI that is to be detached gets no addresses, nor does one that gives some back."""
    plan = pool_plan.plan(*situation)
    grown = {a.eni_id for a in plan.actions if isinstance(a, GIVES)}
    shrunk = {a.eni_id for a in plan.actions if isinstance(a, TAKES)}
    assert not grown & shrunk, [str(a) for a in plan.actions]


@settings(max_examples=400)
@given(situations())
def test_no_plan_gives_back_what_a_start_keeps(situation: tuple[Pool, Cloud]) -> None:
    """Neither a unit nor an ENI, but what no pod may get; and without the start it is as usual."""
    wanted, cloud = situation
    at = find_pool_status(wanted, cloud)
    kept = [e for e in cloud.enis if e.eni_id in wanted.ec2.kept.enis]
    kept = [e for e in kept if e.device_index is None or e.eni_id in at.fitting]
    networks = {n for e in kept for n in unit_networks(e)} - wanted.ec2.maybe_released
    assert not pool_plan.quarantine(wanted, cloud) & networks
    taken = [a for a in pool_plan.plan(wanted, cloud).actions if isinstance(a, TAKES)]
    assert not {n for a in taken for n in given_back(a, cloud.enis)} & networks
    ends = {a.eni_id for a in taken if isinstance(a, DetachEni | DeleteEni)}
    assert not ends & {e.eni_id for e in kept}


def given_at_start(enis: list[Any], *, kept: bool, **fields: Any) -> tuple[Pool, Cloud]:
    """A node that needs nothing of what these ENIs have beyond two addresses."""
    cloud = Cloud(
        tuple(enis), Limits(4, 10), {"subnet-a": Subnet("subnet-a", "us-east-1a", SUBNET, 200)}
    )
    ec2 = Ec2Inputs(kept=keep(enis, 0.0) if kept else NOTHING, nonce="n")
    doc = document(warmPool={"addresses": {"warm": 2, "minimum": 0, "surplus": 0}}, **fields)
    return domain.desire(inputs(1, document=doc, ec2=ec2, now=10_000.0, clock=13.0)), cloud


def test_what_a_start_keeps_is_told_with_its_numbers_and_its_time() -> None:
    loose = eni(None, 9, eni_id="eni-loose")
    wanted, cloud = given_at_start([eni(0, 9), eni(1, 9), loose], kept=True)
    assert pool_plan.quarantine(wanted, cloud) == frozenset()
    plan = pool_plan.plan(wanted, cloud)
    assert plan.actions == ()
    (told,) = plan.refusals
    assert told.reason == "DemandUnknown"
    assert "16 addresses beyond 2; eni-loose, attached to nothing" in told.message
    assert "in 287 s" in told.message
    usual, _ = given_at_start([eni(0, 9), eni(1, 9), loose], kept=False)
    assert len(pool_plan.quarantine(usual, cloud)) == 16
    assert [str(a.eni_id) for a in pool_plan.plan(usual, cloud).actions] == ["eni-loose"]


def test_what_came_after_the_start_follows_the_usual_rules() -> None:
    wanted, cloud = given_at_start([eni(0, 9)], kept=True)
    later = replace(cloud, enis=(*cloud.enis, eni(1, 9)))
    assert pool_plan.quarantine(wanted, later) == {host_network(a) for a in eni(1, 9).secondaries}


def test_a_start_that_keeps_nothing_that_could_go_says_nothing() -> None:
    wanted, cloud = given_at_start([eni(0, 2)], kept=True)
    assert pool_plan.plan(wanted, cloud).refusals == ()


def test_an_eni_whose_pod_has_lost_its_address_is_not_detached_while_it_is_asked_for() -> None:
    pod = attachment(1, 1, address=UNUSED)
    units = frozenset(map(host_network, eni(1, 9).secondaries))
    wanted, cloud = given_at_start([eni(0, 9), eni(1, 9)], kept=False)
    ec2 = Ec2Inputs(
        used=frozenset({UNUSED}),
        quarantined=units,
        disagreements=Disagreements(lost=frozenset({("eni-1", host_network(UNUSED))})),
    )
    plan = pool_plan.plan(replace(wanted, attachments=(pod,), ec2=ec2), cloud)
    assert [type(a) for a in plan.actions] == [AssignAddresses]


def test_an_eni_that_goes_is_given_no_prefix() -> None:
    leaving = frozenset(map(host_network, eni(1, 9).secondaries))
    primary = eni(0, 9, ipv6_prefixes=(ip_network("2001:db8::/80"),))
    wanted, cloud = given_at_start([primary, eni(1, 9)], kept=False, families=["ipv4", "ipv6"])
    subnets = {n: replace(s, families=("ipv4", "ipv6")) for n, s in cloud.subnets.items()}
    wanted = replace(wanted, ec2=replace(wanted.ec2, quarantined=leaving))
    plan = pool_plan.plan(wanted, replace(cloud, subnets=subnets))
    assert [type(a) for a in plan.actions] == [DetachEni]
