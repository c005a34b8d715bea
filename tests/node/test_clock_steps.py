"""What waits waits no other time because the wall clock steps."""

from __future__ import annotations

from dataclasses import replace

import pytest
from builders import intent
from node.test_passes import HOUR_S
from simulation import Simulation

# -- the wall clock steps -----------------------------------------------------------------

STEPS = [-HOUR_S, HOUR_S]
both_ways = pytest.mark.parametrize("step", STEPS, ids=["back", "ahead"])


@both_ways
def test_one_throttled_call_rests_for_seconds_whatever_the_clock_does(step: float) -> None:
    """Three new pods have waited 3,605 s for one call that was throttled before the step."""
    sim = Simulation(warmPool={"addresses": {"warm": 1, "surplus": 0}})
    sim.turn(1.0)
    for number in range(3):
        sim.start_pod(number)
    sim.ec2.fault = ("before", "RequestLimitExceeded")
    began = sim.now
    sim.turn(0.1)
    sim.skew += step
    while len(sim.state.observe().attachments) < 3:
        assert sim.now - began < 10.0
        sim.turn(1.0)


@both_ways
def test_a_doubt_lasts_as_long_as_it_lasts_whatever_the_clock_does(step: float) -> None:
    sim = Simulation(warmPool={"addresses": {"warm": 2}})
    sim.start_pod(1)
    for _ in range(2):
        sim.turn(61.0)
    (held,) = sim.state.observe().attachments
    sim.ec2.enis = [replace(e, secondaries=e.secondaries[1:]) for e in sim.ec2.enis]
    assert not sim.ec2.holds() & {*held.addresses}
    sim.turn(10.0)
    sim.skew += step
    sim.turn(10.0)
    assert not sim.refusals["AddressLost"], "both have lacked it for 10 s only"
    sim.turn(20.0)
    sim.turn(1.0)
    assert sim.refusals["AddressLost"]


@both_ways
def test_a_pod_that_seems_dead_is_given_its_time_whatever_the_clock_does(step: float) -> None:
    sim = Simulation(warmPool={"addresses": {"warm": 2}})
    sim.start_pod(1)
    sim.turn(1.0)
    (held,) = sim.state.observe().attachments
    sim.netlink.lose_namespace("/run/netns/pod1@1")
    sim.state.put(replace(intent(1), netns_alive=False))
    sim.state.put(replace(held, netns_alive=False))
    sim.turn(1.0)
    sim.skew += step
    sim.turn(8.0)
    sim.turn(2.0)  # its pass comes first, 9 s after the pod was seen dead
    assert [a.key for a in sim.state.observe().attachments] == [held.key], "9 s are not 10"
    sim.turn(0.0)
    assert sim.state.observe().attachments == ()


def test_creations_of_a_clock_that_was_ahead_forbid_none_for_longer_than_an_hour() -> None:
    sim = Simulation(warmPool={"addresses": {"warm": 0, "minimum": 12, "surplus": 0}})
    sim.skew = 365 * 24 * HOUR_S
    sim.turn(1.0)
    assert len(sim.ec2.enis) == 2
    sim.skew = 0.0
    for _ in range(14):
        sim.turn(300.0)
    assert sim.state.observe().creations == ()
