"""``reservedAddresses``: held by the node, given to no pod, not given back."""

from __future__ import annotations

from typing import Any

from builders import SUBNET, document, eni
from fake_cloud import FakeEc2
from simulation import Simulation

from reconciler.ipam.cloud import Limits


def simulation(*reserved: str) -> tuple[Simulation, dict[str, Any]]:
    """Return a node of one ENI with nine addresses, and its document."""
    sim = Simulation(FakeEc2([eni(0, 9, primary=SUBNET[10])], Limits(1, 10), SUBNET))
    warm = {"addresses": {"warm": 0, "surplus": 0}, "cooldown": "0s"}
    parts = {"warmPool": warm, "reservedAddresses": list(reserved)}
    sim.document = document(**parts)
    return sim, parts


def addresses(sim: Simulation) -> set[str]:
    return {str(own) for a in sim.state.observe().attachments for own in a.addresses}


def test_no_pod_is_given_a_reserved_address_and_it_is_not_given_back() -> None:
    (only,) = simulation()[0].ec2.enis
    reserved = [str(a) for a in only.secondaries[:2]]
    sim, _ = simulation(*reserved)
    for number in range(9):
        sim.start_pod(number)
    for _ in range(4):
        sim.turn()
    assert len(addresses(sim)) == 7
    assert not addresses(sim) & {*reserved}
    for number in range(9):
        sim.end_pod(number)
    for _ in range(6):
        sim.turn()
    assert {str(a) for a in sim.ec2.enis[0].secondaries} == {*reserved}


def test_a_pod_keeps_what_is_reserved_later_and_is_named() -> None:
    sim, parts = simulation()
    sim.start_pod(1)
    for _ in range(2):
        sim.turn()
    (own,) = addresses(sim)
    sim.document = document(**parts | {"reservedAddresses": [own]})
    result = sim.node.kernel_pass(sim.document)
    told = [r for o in result.outcomes.values() for r in o.remaining.refusals]
    assert [r.reason for r in told] == ["AddressReserved"]
    assert own in told[0].message
    assert addresses(sim) == {own}
