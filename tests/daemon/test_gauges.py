"""What a scrape reads from the daemon's state, by a daemon whose outside is faked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from builders import SUBNET, intent
from daemon.test_surprise import House
from waiting import until

from reconciler.core.attachment import Attachment
from reconciler.daemon import gauges, status
from reconciler.daemon.telemetry import REGISTRY, Durations, exposition
from reconciler.errors import Issue
from reconciler.ipam.budget import BUCKETS
from reconciler.ipam.forecast import WINDOW_S
from reconciler.ipam.identity import EgressIdentity


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def read(house: House) -> dict[str, Any]:
    return {family.name: dict(series) for family, series in house.agent.gauges().items()}


def test_before_anything_was_seen_what_is_not_known_is_not_told(house: House) -> None:
    told = read(house)
    assert told["ready"] == {(): False}
    unknown = (
        "pods",
        "addresses",
        "eni_limit",
        "pool_exhaustion_seconds",
        "look_timestamp_seconds",
    )
    assert {name: told[name] for name in unknown} == {name: {} for name in unknown}
    assert "# TYPE node_network_pool_exhaustion_seconds gauge" in exposition(house.agent.gauges())


def test_a_working_node_is_told_whole_and_in_step_with_its_status(house: House) -> None:
    house.work()
    house.disturb()
    house.work()
    told, status = read(house), house.agent.status()
    assert told["ready"] == {(): True}
    assert told["pods"] == {(): len(status["attachments"])}
    assert told["pods"][()] > 0
    by_state: Counter[str] = Counter()
    for (state, eni, subnet), count in told["addresses"].items():
        by_state[state] += count
        assert (eni, subnet) in {(e["id"], told_subnet(house)) for e in status["enis"]} or (
            state == "cooling"
        )
    assert by_state == Counter({s: n for s, n in status["pool"].items() if n})
    assert sum(told["enis"].values()) == len(status["enis"])
    assert {owner for owner, _, _ in told["enis"]} == {"ours"}
    assert (told["eni_limit"][()], told["address_limit"][()]) == (3, 27)
    assert told["pool_target_addresses"].keys() == {("low",), ("aim",), ("high",)}
    assert told["document_accepted_timestamp_seconds"][()] == 1000.0
    assert told["look_timestamp_seconds"]["ec2",] == pytest.approx(house.now, abs=300)
    assert {"node", "ec2"} == {of for (of,) in told["look_timestamp_seconds"]}
    assert told["subnet_free_addresses"][told_subnet(house),] <= SUBNET.num_addresses


def test_an_address_of_a_namespace_is_dedicated_in_metrics_as_in_the_status(house: House) -> None:
    house.work()
    latest, cloud = house.agent.kernel.progress.latest, house.agent.parts.node.known.cloud
    assert latest is not None
    assert cloud is not None
    eni = next(e for e in cloud.enis if e.serves_pods)
    given = {own for a in latest.records.attachments for own in a.vpc_addresses}
    free = next(a for a in eni.pod_addresses if a not in given)
    identity = EgressIdentity("pay-a", "", (free,), eni.eni_id)
    records = replace(latest.records, identities=frozenset({identity}))
    told = gauges.count_addresses(records, cloud, latest.inputs)
    counted = status.count_addresses(records, cloud, latest.inputs.host.withheld)
    assert told["dedicated", eni.eni_id, eni.subnet_id] == counted["dedicated"] == 1
    by_state: Counter[str] = Counter()
    for (state, *_), count in told.items():
        by_state[state] += int(count)
    assert by_state == Counter({state: count for state, count in counted.items() if count})


def told_subnet(house: House) -> str:
    return house.ec2.enis[0].subnet_id


def test_calls_are_told_by_action_and_outcome_with_their_times_and_what_is_left(
    house: House,
) -> None:
    house.work()
    told = read(house)
    calls = {action: n for (action, outcome), n in told["ec2_calls"].items() if outcome == "ok"}
    assert calls == dict(house.ec2.calls)
    took = told["ec2_call_seconds"]["AssignPrivateIpAddresses",]
    assert isinstance(took, Durations)
    assert sum(took.counts) == calls["AssignPrivateIpAddresses"]
    capacity, _ = BUCKETS["AssignPrivateIpAddresses"]
    assert told["ec2_budget_calls"]["AssignPrivateIpAddresses",] == capacity


def test_conditions_are_counted_by_domain_and_reason_and_end(house: House) -> None:
    conditions = house.agent.parts.conditions
    conditions.note("eni", [Issue(f"subnet {n}", "SubnetExhausted", "full") for n in range(3)])
    assert read(house)["conditions"]["eni", "SubnetExhausted"] == 3
    conditions.note("eni", [])
    assert ("eni", "SubnetExhausted") not in read(house)["conditions"]


def test_pods_that_wait_are_told_by_the_reason_that_their_runtime_is_told(house: House) -> None:
    house.work()
    house.ec2.fault = ("UnauthorizedOperation", "before")
    for _ in range(30):
        house.begin_pod()
    assert read(house)["pods_waiting"] == {("Pending",): 30}
    house.agent.kernel.full_pass(audit=True)
    waiting = read(house)["pods_waiting"]
    assert waiting["AddressesExhausted",] > 0
    requests = house.agent.parts.requests
    left = [k for k in requests._asked if k in requests._waiting]
    assert waiting["AddressesExhausted",] == len(left)
    house.agent.parts.requests._asked.clear()
    assert read(house)["pods_waiting"] == {}


def test_pods_that_keep_coming_have_a_time_at_which_addresses_are_used_up(house: House) -> None:
    house.work()
    assert read(house)["pool_exhaustion_seconds"] == {(): float("inf")}
    for _ in range(6):
        house.begin_pod()
        house.work()
    told = read(house)
    left, lasts = told["pool_addresses_left"][()], told["pool_exhaustion_seconds"][()]
    assert 0 < left < 27
    assert lasts == pytest.approx(left * min(6 * 200.0, WINDOW_S) / 5, rel=0.35)


def test_an_add_is_timed_until_its_pass_began_and_until_it_was_placed(house: House) -> None:
    def counted(phase: str) -> tuple[float, float]:
        name = "node_network_cni_add_phase_seconds"
        values = [
            REGISTRY.get_sample_value(f"{name}_{w}", {"phase": phase}) for w in ("count", "sum")
        ]
        return (values[0] or 0.0, values[1] or 0.0)

    house.work()
    house.begin_pod()
    before = counted("wait"), counted("place")
    requests, told = house.agent.parts.requests, []
    thread = Thread(target=lambda: told.append(requests.await_attachment(intent(1).key, 10.0)))
    thread.start()
    until(lambda: requests._asked[intent(1).key] > 0)
    house.agent.kernel.pods_pass()
    thread.join()
    assert isinstance(told[0], Attachment)
    for (count, seconds), phase in zip(before, ("wait", "place"), strict=True):
        now, all_seconds = counted(phase)
        assert now == count + 1
        assert 0 <= all_seconds - seconds < 10
