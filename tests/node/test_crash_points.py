"""Death before and after every effect, every look one step late, every event lost: in turn.

A scenario is run once undisturbed, which tells how many effects, looks and passes it has. Then it
is run again for each of them, with one thing gone wrong there, and must come to the same end.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from crash_fakes import AFTER, Point
from crash_injection import STOCK_POD, Life

from reconciler.ipam.start import START_S

Scenario = Callable[[Life], None]
POLICIES = sorted((Path(__file__).parents[2] / "deploy").glob("iam-policy*.json"))


def first_start(life: Life) -> None:
    """Pods are there already when the daemon comes for the first time."""
    for number in range(3):
        life.begin_pod(number)
    life.work()
    life.end_pod(1)
    life.work()


def pods_come_and_go(life: Life) -> None:
    life.work()
    for number in range(4):
        life.begin_pod(number)
    life.work()
    life.work()
    life.end_pod(0)
    life.end_pod(1, silently=True)
    life.begin_pod(9)
    life.work()
    life.work(20.0)
    life.work(20.0)


def links_are_deleted_apart(life: Life) -> None:
    """By a thread of its own, which may come late."""
    pods_come_and_go(life)


def the_document_changes(life: Life) -> None:
    life.begin_pod(1)
    life.work()
    life.edit(snat={"mode": "external"}, routing={"acceptForwarded": True})
    life.work()
    life.edit(snat={"excludeCIDRs": ["198.18.0.0/15", "192.0.2.0/24"]}, cni={"logLevel": "debug"})
    life.work()
    life.edit(warmPool=pool(minimum=8))
    life.work()
    life.work()
    life.edit(warmPool=pool(minimum=0, warm=0))
    life.begin_pod(2)
    for _ in range(5):
        life.work(70.0)


def families_change(life: Life) -> None:
    life.begin_pod(1)
    life.work()
    life.edit(families=["ipv4", "ipv6"])
    life.work()
    life.work()
    life.begin_pod(2)
    life.work()
    life.end_pod(1)
    life.edit(families=["ipv6"], egressFamilies=["ipv4"])
    life.work()
    life.begin_pod(3)
    life.work(20.0)
    life.work(20.0)


def an_eni_is_added_and_given_back(life: Life) -> None:
    for number in range(7):
        life.begin_pod(number)
    life.work()
    life.work()
    life.work()
    for number in range(1, 7):
        life.end_pod(number)
    life.work(20.0)
    for _ in range(5):
        life.work(70.0)


def prefixes_take_over_from_single_addresses(life: Life) -> None:
    life.begin_pod(1)
    life.work()
    life.work()
    life.edit(eni={"allocate": "prefixes"})
    life.end_pod(1)
    for _ in range(4):
        life.work(70.0)
    life.begin_pod(2)
    life.work()


def namespaces_get_addresses_and_give_them_back(life: Life) -> None:
    rules = [{"namespace": "pay-*", "to": ["10.100.0.0/16"], "as": "dedicated"}]
    life.begin_pod(1, "pay-a/x")
    life.work()
    small = pool(warm=0)  # one ENI has room for all: how many are made is not a matter of time
    life.edit(snat={"rules": rules}, warmPool=small)
    life.work()
    life.work()
    life.begin_pod(2, "pay-b/x")
    life.work()
    before = {i.namespace: i.addresses for i in life.disk.observe().identities}
    life.end_pod(2)
    life.work(20.0)
    life.begin_pod(3, "pay-b/y")
    life.work()
    now = {i.namespace: i.addresses for i in life.disk.observe().identities}
    assert before.items() <= now.items(), "another address for a namespace"
    life.edit(warmPool=small)
    life.end_pod(3)
    life.work(20.0)
    life.work(20.0)


def records_are_lost(life: Life) -> None:
    for number in range(3):
        life.begin_pod(number)
    life.work()
    life.work()
    life.lose_records()
    life.start()
    life.end_pod(2)
    life.work()
    life.work(20.0)


def a_node_of_the_stock_plugin_is_taken_over(life: Life) -> None:
    life.work()
    life.begin_pod(1)
    life.edit(takeOver="amazon-vpc-cni")
    for _ in range(3):
        life.work()
    life.begin_pod(2)
    life.work()
    life.end_pod(STOCK_POD)
    life.work(20.0)
    life.work(20.0)


def pool(*, warm: int = 1, minimum: int = 2) -> dict[str, Any]:
    addresses = {"warm": warm, "minimum": minimum, "surplus": 0}
    return {"addresses": addresses, "cooldown": "5s"}


SCENARIOS: dict[Scenario, tuple[int, int]] = {
    first_start: (40, 50),
    pods_come_and_go: (90, 70),
    links_are_deleted_apart: (90, 70),
    the_document_changes: (60, 80),
    families_change: (60, 70),
    an_eni_is_added_and_given_back: (120, 80),
    prefixes_take_over_from_single_addresses: (40, 70),
    namespaces_get_addresses_and_give_them_back: (60, 70),
    records_are_lost: (50, 70),
    a_node_of_the_stock_plugin_is_taken_over: (55, 80),
}
"""With the least number of effects, and of looks that matter, that each must have."""


def live(scenario: Scenario, strike: Point | None = None) -> Life:
    """Run a scenario to its end, then let the clock work until all is calm."""
    stock = scenario is a_node_of_the_stock_plugin_is_taken_over
    apart = scenario is links_are_deleted_apart
    life = Life(strike, {"warmPool": pool()}, stock=stock, apart=apart)
    scenario(life)
    # A start without records gives nothing back for a while; an unfinished creation counts for an
    # hour.
    for seconds in (70.0, 70.0, START_S, 70.0, 70.0, 3700.0, *[70.0] * 6):
        life.tick(seconds)
    life.check_end()
    assert life.kernel.cut == [], "a pod that ran has lost its link for a while"
    return life


@cache
def undisturbed(scenario: Scenario) -> Life:
    """Return the life in which nothing goes wrong; nobody may go on with it."""
    return live(scenario)


CALLS = frozenset(
    action.removeprefix("ec2:")
    for policy in POLICIES
    for statement in json.loads(policy.read_text())["Statement"]
    for action in statement["Action"]
    if not action.startswith(("ec2:Describe", "ec2:Get"))
)
"""All that may be asked of EC2 and that changes something."""

KERNEL = {f"{verb} {kind}" for kind in ("rule", "nft-element", "nft-chain") for verb in "+-"}
EFFECTS = frozenset(
    KERNEL
    | {
        f"{verb} {kind}"
        for kind in ("attachment", "cooling", "identity", "quarantine")
        for verb in "+-"
    }
    | {"record a creation", "~ creation", "- creation", "+ intent", "~ intent", "- intent"}
    | {
        "+ veth",
        "- veth",
        "+ pod-link",
        "+ address",
        "+ neighbour",
        "+ route",
        "~ link",
        "~ sysctl",
    }
    | {"+ nft-table", "+ nft-set", "~ nft-chain", "- conntrack", "+ nft-accept", "- nft-accept"}
    | {"+ executable", "+ conflist", "~ conflist", "+ boot-rule", "remember the look"}
    | {"- iptables-chain", "- stock-rule", "- stock-route"}
)
"""Verbs and nouns of what else is changed when nobody interferes."""


SHARE = int(os.environ.get("CRASH_SHARE", "25"))
"""One of how many points is tried, from a random one on; ``make soak`` tries all."""


def check(scenario: Scenario, points: list[Point]) -> list[Life]:
    """Strike at a share of these points, and return what became of each life."""
    lives = []
    for strike in points[random.randrange(min(SHARE, len(points))) :: SHARE]:
        try:
            life = live(scenario, strike)
        except AssertionError as error:
            error.add_note(f"struck {strike[0]} number {strike[1]}")
            raise
        assert life.deaths == (strike[0] in ("before", *AFTER)), strike
        lives.append(life)
    return lives


by_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)


@by_scenario
def test_death_before_or_after_any_effect_changes_nothing_in_the_end(scenario: Scenario) -> None:
    calm = undisturbed(scenario).fate
    assert calm.counts["effect"] >= SCENARIOS[scenario][0], calm.log
    check(scenario, calm.deaths)


@by_scenario
def test_a_start_may_come_only_after_the_world_has_moved_on(scenario: Scenario) -> None:
    count = undisturbed(scenario).fate.counts["effect"]
    check(scenario, [("down", n) for n in range(count)])


@by_scenario
def test_a_call_of_which_neither_answer_nor_look_tells_is_not_made_twice(
    scenario: Scenario,
) -> None:
    """Its caller died, and EC2 shows for a while what was before it."""
    calm = undisturbed(scenario)
    points = [("unseen", n) for n, what in enumerate(calm.fate.log) if what in CALLS]
    assert points
    for life in check(scenario, points):
        assert life.ec2.made == calm.ec2.made


@by_scenario
def test_any_look_may_be_one_step_late(scenario: Scenario) -> None:
    late = undisturbed(scenario).fate.late
    assert len(late) >= SCENARIOS[scenario][1]
    check(scenario, late)


@by_scenario
def test_any_event_may_be_lost(scenario: Scenario) -> None:
    count = undisturbed(scenario).fate.counts["pass"]
    assert count >= 6
    check(scenario, [("pass", n) for n in range(count)])


@by_scenario
def test_every_event_may_be_lost(scenario: Scenario) -> None:
    """The clock alone comes to the same end."""
    deaf = live(scenario, ("events", 0)).fate
    assert deaf.counts["pass"] == 0
    assert deaf.counts["effect"] > 0


def test_the_scenarios_have_every_effect_that_there_is() -> None:
    had = frozenset[str]().union(*(undisturbed(scenario).fate.kinds for scenario in SCENARIOS))
    assert had >= CALLS
    assert had >= EFFECTS
