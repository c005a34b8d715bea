"""Death before and after every effect, every look one step late, every event lost: in turn.

A scenario is run once undisturbed, which tells how many effects, looks and passes it has. Then it
is run again for each of them, with one thing gone wrong there, and must come to the same end.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import pytest
from fate import Life, Point

Scenario = Callable[[Life], None]


def first_start(life: Life) -> None:
    """Pods are there already when the daemon comes for the first time."""
    for number in range(3):
        life.begin_pod(number)
    life.work()
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


def the_document_changes(life: Life) -> None:
    life.begin_pod(1)
    life.work()
    life.edit(snat={"mode": "external"})
    life.work()
    life.edit(snat={"excludeCIDRs": ["198.18.0.0/15", "192.0.2.0/24"]})
    life.work()
    life.edit(warmPool={"addresses": {"warm": 1, "minimum": 8, "surplus": 0}, "cooldown": "5s"})
    life.work()
    life.work()


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


POOL = {"addresses": {"warm": 1, "minimum": 2, "surplus": 0}, "cooldown": "5s"}
SCENARIOS: dict[Scenario, int] = {
    first_start: 30,
    pods_come_and_go: 90,
    the_document_changes: 30,
    an_eni_is_added_and_given_back: 120,
    prefixes_take_over_from_single_addresses: 35,
    records_are_lost: 35,
}
"""With the least number of effects each must have, or it would prove nothing."""


def live(scenario: Scenario, strike: Point | None = None) -> Life:
    """Run a scenario to its end, then let the clock work until all is calm."""
    life = Life(strike, {"warmPool": POOL})
    scenario(life)
    for seconds in (70.0, 70.0, 70.0, 3700.0, 70.0, 70.0, 70.0):
        life.tick(seconds)  # an unfinished creation counts for an hour
    life.check_end()
    return life


SHARE = int(os.environ.get("CRASH_SHARE", "5"))
"""One of how many points is tried, from a random one on; ``make soak`` tries all."""


def check(scenario: Scenario, points: list[Point]) -> None:
    for strike in points[random.randrange(SHARE) :: SHARE]:
        try:
            life = live(scenario, strike)
        except AssertionError as error:
            error.add_note(f"struck {strike[0]} number {strike[1]}")
            raise
        assert life.deaths == (strike[0] in ("before", "after")), strike


by_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: s.__name__)


@by_scenario
def test_death_before_or_after_any_effect_changes_nothing_in_the_end(scenario: Scenario) -> None:
    calm = live(scenario)
    count = calm.fate.counts["effect"]
    assert count >= SCENARIOS[scenario], calm.fate.log
    check(scenario, [(side, n) for n in range(count) for side in ("before", "after")])


@by_scenario
def test_any_look_at_kernel_or_ec2_may_be_one_step_late(scenario: Scenario) -> None:
    count = live(scenario).fate.counts["look"]
    assert count >= 80
    check(scenario, [("look", n) for n in range(count)])


@by_scenario
def test_any_event_may_be_lost(scenario: Scenario) -> None:
    count = live(scenario).fate.counts["pass"]
    assert count >= 6
    check(scenario, [("pass", n) for n in range(count)])
