"""The margin of a pool, held against whole plans: within it a pass does and says nothing new."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from typing import Any

import pytest
from builders import SUBNET, document, eni, inputs
from hypothesis import event, given, settings
from hypothesis import strategies as st

from reconciler.daemon.schedule import Links, hints_of
from reconciler.daemon.status import PoolReport
from reconciler.domains import eni as domain
from reconciler.engine.plan import Plan
from reconciler.ipam import pool_groups
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.ipam.forecast import Outlook, as_of, find_supply
from reconciler.ipam.margin import Margin, find_margin
from reconciler.ipam.pool import Demand
from reconciler.ipam.pool_status import Ec2Inputs, Pool
from reconciler.ipam.start import NOTHING, keep
from reconciler.node.pass_result import PassResult

POOLS: list[dict[str, Any]] = [
    {"warmPool": {"addresses": {"warm": 2, "minimum": 0, "surplus": 6}}},
    {"warmPool": {"addresses": {"warm": 0, "minimum": 12, "surplus": 2}}, "maxPods": 14},
    {"warmPool": {"addresses": {"warm": 3, "minimum": 9, "surplus": 0}}, "ec2": {"mode": "keep"}},
    {"warmPool": {"enis": {"warm": 1}}},
    {"warmPool": {"addresses": {"warm": 2}}, "eni": {"allocate": "prefixes"}},
    {"warmPool": {"prefixes": {"warm": 1}}, "eni": {"allocate": "prefixes"}},
    {"warmPool": {"addresses": {"warm": 4, "surplus": 9}}, "eni": {"usePrimary": False}},
]
FAMILIES = [["ipv4"], ["ipv4", "ipv6"], ["ipv6"]]
LIMITS = Limits(4, 10)


@st.composite
def clouds(draw: st.DrawFn, *, prefixes: bool, ipv6: bool) -> Cloud:
    """What EC2 shows: mostly what the document wants, and now and then something else."""
    seldom = st.integers(0, 9).map(lambda number: number == 0)
    held = []
    for index in range(draw(st.integers(1, 3))):
        fields: dict[str, Any] = {"subnet_id": "other" if draw(seldom) else "subnet-a"}
        if prefixes is not draw(seldom):
            fields["prefixes"] = (ip_network(f"10.0.{10 + index}.0/28"),)
        if ipv6 is not draw(seldom):
            fields["ipv6_prefixes"] = (ip_network(f"2001:db8:0:{index}::/80"),)
        singles = prefixes is draw(seldom)
        held.append(eni(index, draw(st.integers(1, 9)) if singles else 0, **fields))
    subnets = {
        name: Subnet(name, "us-east-1a", SUBNET, 200, 10, families=("ipv4", "ipv6"))
        for name in ("subnet-a", "other")
    }
    return Cloud(tuple(held), LIMITS, subnets)


@st.composite
def situations(draw: st.DrawFn) -> tuple[Pool, Pool, Cloud]:
    """Two demands of one node, each with the addresses that are used."""
    families = draw(st.sampled_from(FAMILIES))
    doc = document(**draw(st.sampled_from(POOLS)), families=families)
    prefixes, ipv6 = doc.eni.allocate == "prefixes", "ipv6" in families
    cloud = draw(clouds(prefixes=prefixes, ipv6=ipv6))
    addresses = [a for e in cloud.enis for a in e.pod_addresses]

    known = draw(st.sampled_from([NOTHING, keep(cloud.enis, 0.0)]))
    around = draw(st.integers(0, len(addresses)))

    def one() -> Pool:
        size = min(around + draw(st.integers(0, 3)), len(addresses))
        used = set[IPv4Address](draw(st.permutations(addresses))[:size])
        cooling = draw(st.integers(0, len(used)))
        demand = Demand(len(used) - cooling, cooling, draw(st.sampled_from([0] * 9 + [1])))
        ec2 = Ec2Inputs(used=frozenset(used), nonce="n", kept=known)
        return domain.desire(inputs(3, document=doc, ec2=ec2, now=10_000.0, demand=demand))

    return one(), one(), cloud


def says(desired: Pool, cloud: Cloud) -> Plan:
    return pool_groups.plan(desired, cloud)


@settings(max_examples=150)
@given(situations())
def test_within_the_margin_a_pass_over_the_pool_does_and_says_nothing_new(
    situation: tuple[Pool, Pool, Cloud],
) -> None:
    before, after, cloud = situation
    if pool_groups.quarantine(before, cloud):
        return
    plan = says(before, cloud)
    margin = find_margin(before, cloud, plan)
    if margin is None or not margin.covers(after.demand):
        return
    event("within")
    assert says(after, cloud) == plan
    assert not pool_groups.quarantine(after, cloud)
    again = find_margin(after, cloud, plan)
    assert again is not None
    assert replace(again, demand=margin.demand) == margin
    outlook = as_of(Outlook(find_supply(before, cloud)), margin, after.demand, 0.0)
    assert outlook.supply == find_supply(after, cloud)


def margin_of(doc: dict[str, Any], demand: Demand, held: int) -> Margin:
    wanted = domain.desire(inputs(1, document=document(**doc), demand=demand))
    cloud = Cloud(
        (eni(0, held),), LIMITS, {"subnet-a": Subnet("subnet-a", "us-east-1a", SUBNET, 9)}
    )
    margin = find_margin(wanted, cloud, says(wanted, cloud))
    assert margin is not None
    return margin


def test_pods_that_come_and_go_are_within_a_band_and_what_lies_beyond_is_not() -> None:
    margin = margin_of(POOLS[0], Demand(2), 8)
    assert [n for n in range(9) if margin.covers(Demand(n))] == [0, 1, 2, 3, 4, 5, 6]
    assert margin.covers(Demand(2, cooling=4))
    assert not margin.covers(Demand(2, cooling=5))
    assert not margin.covers(Demand(2, waiting=1))
    assert not margin.covers(Demand(2, dedicated=1))


@pytest.mark.parametrize(
    ("demand", "planned_for", "told"),
    [
        (Demand(2), Demand(2), set()),
        (Demand(6), Demand(2), set()),
        (Demand(7), Demand(2), {"pool"}),
        (Demand(2, waiting=1), Demand(2), {"pool"}),
        (Demand(6), None, {"pool"}),
    ],
)
def test_the_pools_loop_is_woken_for_what_it_would_act_on(
    demand: Demand, planned_for: Demand | None, told: set[str]
) -> None:
    result: Any = PassResult({}, 0.0, None, inputs(1))  # type: ignore[arg-type]
    margin = margin_of(POOLS[0], Demand(2), 8)
    before = Links(
        linked=frozenset(
            hints_of(result, Links(), demand, planned_for=demand, margin=None)[1].linked
        )
    )
    hints, _ = hints_of(result, before, demand, planned_for=planned_for, margin=margin)
    assert hints == told
    without, _ = hints_of(result, before, demand, planned_for=planned_for, margin=None)
    assert without == ({"pool"} if demand != planned_for else set())


def test_a_node_is_settled_for_each_demand_within_the_margin() -> None:
    report = PoolReport(Demand(2), margin=margin_of(POOLS[0], Demand(2), 8))
    assert report.is_for(Demand(6))
    assert not report.is_for(Demand(7))
    assert not PoolReport(Demand(2)).is_for(Demand(6))
