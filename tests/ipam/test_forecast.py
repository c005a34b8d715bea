"""When addresses are used up, and how many there still are."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from math import inf

import pytest
from builders import SUBNET, document, eni, inputs

from reconciler.domains.eni import desire
from reconciler.ipam import forecast
from reconciler.ipam.cloud import Cloud, Limits, Subnet
from reconciler.ipam.forecast import LEAST_S, STEP_S, WINDOW_S, Use
from reconciler.ipam.pool import Demand

LIMITS = Limits(3, 10)


def seen(free: int, *enis: int) -> Cloud:
    """ENIs that hold so many addresses each, in one subnet."""
    subnet = Subnet(SUBNET, "us-east-1a", ip_network("10.0.0.0/24"), free)
    made = tuple(replace(eni(n, count), subnet_id=SUBNET) for n, count in enumerate(enis))
    return Cloud(made, LIMITS, {SUBNET: subnet})


@pytest.mark.parametrize(
    ("free", "mode", "most", "left"),
    [
        (200, "full", None, 27 - 4),  # three ENIs of nine addresses each
        (200, "full", 2, 18 - 4),
        (5, "full", None, 9 - 4 + 5),  # the subnet has no more
        (200, "frozen", None, 9 - 4),
    ],
)
def test_what_is_left_is_held_or_to_be_had_within_limits_and_subnet(
    free: int, mode: str, most: int | None, left: int
) -> None:
    made = document(eni={"max": most}, ec2={"mode": mode})
    pool = desire(inputs(1, document=made, demand=Demand(3, 1, 0)))
    supply = forecast.find_supply(pool, seen(free, 9))
    assert supply.left == left
    assert (supply.most, supply.enis) == ((most or 3) * 9, most or 3)
    assert supply.low <= supply.aim <= supply.high


def test_without_limits_what_the_instance_allows_is_not_told() -> None:
    pool = desire(inputs(1, demand=Demand(3)))
    supply = forecast.find_supply(pool, replace(seen(200, 9), limits=None))
    assert (supply.most, supply.enis, supply.left) == (None, None, 6)


def used(*entries: tuple[float, int]) -> tuple[Use, ...]:
    past: tuple[Use, ...] = ()
    for at, addresses in entries:
        past = forecast.after(past, addresses, at)
    return past


def test_ten_a_minute_of_a_hundred_left_lasts_ten_minutes() -> None:
    past = used(*((60.0 * n, 10 * n) for n in range(11)))
    assert forecast.seconds_left(past, 100, 600.0) == pytest.approx(600.0)


@pytest.mark.parametrize("past", [(), used((0, 5)), used((0, 9), (300, 9)), used((0, 9), (9, 3))])
def test_what_does_not_grow_lasts_for_ever(past: tuple[Use, ...]) -> None:
    assert forecast.seconds_left(past, 1, 300.0) == inf


def test_a_burst_counts_as_if_it_had_taken_five_minutes_and_is_forgotten() -> None:
    past = used((0.0, 10), (7200.0, 11), (7201.0, 30))
    assert forecast.seconds_left(past, 20, 7201.0) == pytest.approx(20 * WINDOW_S / 20)
    assert forecast.seconds_left(used((0.0, 10), (1.0, 30)), 20, 1.0) == LEAST_S
    assert forecast.seconds_left(past, 20, 7201.0 + WINDOW_S) == inf


def test_the_past_that_is_kept_has_a_bound_however_often_it_is_looked_at() -> None:
    past = used(*((n / 10, n) for n in range(30_000)))
    assert len(past) <= WINDOW_S / STEP_S + 3
    assert forecast.seconds_left(past, 100, 2999.9) == pytest.approx(10.0, rel=0.05)
