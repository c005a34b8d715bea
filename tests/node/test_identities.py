"""A node's life with dedicated addresses: what the pool holds for them, and gives back after."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from builders import document
from node.test_groups import Sim

RULES = {"rules": [{"namespace": "pay-*", "to": ["10.100.0.0/16"], "as": "dedicated"}]}


def addresses(sim: Sim) -> dict[str, str]:
    return {i.namespace: str(i.addresses[0]) for i in sim.state.observe().identities}


def held(sim: Sim) -> set[str]:
    return {str(a) for e in sim.ec2.enis for a in e.pod_addresses}


def edit(sim: Sim, **parts: Any) -> None:
    pool = {"addresses": {"warm": 0, "minimum": 0, "surplus": 0}, "cooldown": "0s"}
    sim.document = document(warmPool=pool, **parts)


def test_the_pool_grows_for_a_namespace_keeps_its_address_and_gives_it_back_with_the_rule() -> (
    None
):
    sim = Sim()
    edit(sim, snat=RULES)
    sim.start_named(1, "pay-a")
    sim.settle(6)
    before = addresses(sim)
    assert set(before) == {"pay-a"}
    assert len(held(sim)) == 2  # the pod's, and its namespace's
    sim.end_pod(1)
    sim.settle(8)
    assert held(sim) == set(before.values())
    sim.start()
    sim.start_named(2, "pay-a")
    sim.start_named(3, "pay-b")
    sim.settle(8)
    assert addresses(sim)["pay-a"] == before["pay-a"]
    assert set(addresses(sim)) == {"pay-a", "pay-b"}
    assert len(held(sim)) == 4
    edit(sim)
    sim.settle(8)
    assert addresses(sim) == {}
    assert len(held(sim)) == 2
    assert before["pay-a"] not in held(sim)


def test_one_that_somebody_takes_away_in_ec2_is_replaced() -> None:
    sim = Sim()
    edit(sim, snat=RULES)
    sim.start_named(1, "pay-a")
    sim.settle(6)
    (lost,) = addresses(sim).values()
    (eni,) = sim.ec2.enis
    left = tuple(a for a in eni.secondaries if str(a) != lost)
    sim.ec2._change(eni.eni_id, secondaries=left)
    sim.ec2._taken.add(ip_address(lost))  # and gives it to somebody else
    sim.settle(10)
    (now,) = addresses(sim).values()
    assert now != lost
    assert now in held(sim)
