"""``ec2.mode``: what is asked of EC2, and what the node serves without it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from builders import SUBNET, document, eni
from fake_cloud import FakeEc2
from simulation import Simulation

from reconciler.ipam.cloud import Limits

DAY_S = 24 * 3600.0
READS = ("Describe",)


def simulation(mode: str, *enis: Any, **parts: Any) -> Simulation:
    """Return a node whose ENIs are these, in a mode."""
    held = list(enis) or [eni(0, 9, primary=SUBNET[10]), eni(1, 9)]
    sim = Simulation(FakeEc2(held, Limits(3, 10), SUBNET))
    sim.document = document(ec2={"mode": mode}, **parts)
    for one in held[1:]:
        sim.netlink.plug(one.mac, f"eth{one.device_index}")
    return sim


def mutating(sim: Simulation) -> dict[str, int]:
    return {c: n for c, n in sim.ec2.calls.items() if not c.startswith(READS)}


def live(sim: Simulation, pods: int, seconds: float = DAY_S) -> None:
    """Have pods start, and most of them end half-way."""
    for number in range(pods):
        sim.start_pod(number)
    end = sim.now + seconds
    while sim.now < end:
        if sim.now > end - seconds / 2:
            for number in range(2, pods):
                sim.end_pod(number)
        sim.turn(min(sim.node.pool.schedule.due_s, 900.0))


def test_frozen_for_a_day_no_call_is_made_and_status_says_which_would_be() -> None:
    sim = simulation("frozen", warmPool={"addresses": {"warm": 2, "surplus": 0}})
    live(sim, 18)
    assert sim.ec2.calls == {}
    told = [r for r in sim.turn_pool().remaining.refusals if r.reason == "HeldByMode"]
    assert ["ec2.mode is frozen" in r.message for r in told] == [True]
    assert "the release of 14 addresses that are not needed" in told[0].message
    assert len(sim.state.observe().attachments) == 2


def test_frozen_says_what_it_would_ask_for_pods_that_get_no_address() -> None:
    sim = simulation("frozen", eni(0, 2, primary=SUBNET[10]))
    live(sim, 5, 60.0)
    assert sim.ec2.calls == {}
    assert len(sim.state.observe().attachments) == 2
    told = [r.message for r in sim.turn_pool().remaining.refusals if r.reason == "HeldByMode"]
    assert ["9 more addresses" in message for message in told] == [True]


def test_frozen_serves_what_metadata_shows_although_ec2_denies_everything() -> None:
    sim = simulation("frozen")
    sim.ec2.fault = ("DescribeNetworkInterfaces", "UnauthorizedOperation")
    live(sim, 18, 60.0)
    assert len(sim.state.observe().attachments) == 18
    assert sim.ec2.calls == {}


def test_an_address_that_metadata_shows_later_serves_a_pod() -> None:
    sim = simulation("frozen", eni(0, 1, primary=SUBNET[10]))
    live(sim, 2, 60.0)
    assert len(sim.state.observe().attachments) == 1
    more = eni(0, 3, primary=SUBNET[10])
    sim.ec2.enis = [more]
    assert sim.node.pool.hear()
    sim.node.pool.run(sim.document)
    sim.turn(1.0)
    assert len(sim.state.observe().attachments) == 2


def test_keep_assigns_and_gives_nothing_back() -> None:
    warm = {"addresses": {"warm": 2, "surplus": 0}}
    sim = simulation("keep", eni(0, 0, primary=SUBNET[10]), warmPool=warm)
    live(sim, 5)
    assert set(mutating(sim)) == {"AssignPrivateIpAddresses"}
    (only,) = sim.ec2.enis
    assert len(only.secondaries) == 5 + 2
    assert sim.state.observe().quarantined == ()
    assert sim.refusals["HeldByMode"]
    sim.document = document(warmPool=warm)
    live(sim, 0, 600.0)
    assert "UnassignPrivateIpAddresses" in sim.ec2.calls


def test_what_ec2_was_asked_to_take_back_serves_no_pod_when_the_mode_changes() -> None:
    sim = simulation("full", warmPool={"addresses": {"warm": 2, "surplus": 0}})
    sim.ec2.fault = ("UnassignPrivateIpAddresses", "InternalError")
    while not any(q.asked for q in sim.state.observe().quarantined):
        sim.turn(30.0)
    asked = {q.network for q in sim.state.observe().quarantined if q.asked}
    sim.document = document(ec2={"mode": "frozen"})
    sim.turn(1.0)
    assert {q.network for q in sim.state.observe().quarantined} == asked


@pytest.mark.parametrize("mode", ["keep", "frozen"])
def test_an_eni_that_no_pod_needs_stays_attached(mode: str) -> None:
    sim = simulation(mode, eni(0, 9, primary=SUBNET[10]), replace(eni(1, 9), created_at=0.0))
    live(sim, 1, 3600.0)
    assert "DetachNetworkInterface" not in sim.ec2.calls
    assert [e.status for e in sim.ec2.enis] == ["attached", "attached"]
