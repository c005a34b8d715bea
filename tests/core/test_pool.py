"""The pool's arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.pool import Demand, Growth, grow, target


@pytest.mark.parametrize(
    ("warm", "minimum", "demand", "expected"),
    [
        (2, 24, Demand(), 24),
        (2, 24, Demand(assigned=23), 25),
        (4, 0, Demand(assigned=3, cooling=5), 12),
        (0, 0, Demand(waiting=7), 7),
        (0, 0, Demand(), 0),
    ],
)
def test_target(warm: int, minimum: int, demand: Demand, expected: int) -> None:
    assert target(warm=warm, minimum=minimum, demand=demand) == expected


def test_existing_enis_are_filled_before_new_ones_are_made() -> None:
    assert grow(24, rooms=[9], new_enis=2, per_eni=9) == Growth(((0, 9),), (9, 6), 0)


def test_what_no_limit_leaves_room_for_is_said() -> None:
    assert grow(10, rooms=[1, 2], new_enis=0, per_eni=9) == Growth(((0, 1), (1, 2)), (), 7)


@given(
    st.integers(-3, 60),
    st.lists(st.integers(0, 9), max_size=4),
    st.integers(0, 3),
    st.integers(0, 9),
)
def test_growth_adds_up_and_exceeds_nothing(
    shortfall: int, rooms: list[int], new_enis: int, per_eni: int
) -> None:
    growth = grow(shortfall, rooms=rooms, new_enis=new_enis, per_eni=per_eni)
    met = sum(count for _, count in growth.assign) + sum(growth.create)
    assert met + growth.unmet == max(shortfall, 0)
    assert all(0 < count <= rooms[position] for position, count in growth.assign)
    assert len(growth.create) <= new_enis
    assert all(0 < count <= per_eni for count in growth.create)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_meeting_the_target_leaves_nothing_to_grow(assigned: int, warm: int, minimum: int) -> None:
    demand = Demand(assigned=assigned)
    total = target(warm=warm, minimum=minimum, demand=demand)
    growth = grow(total - total, rooms=[99], new_enis=9, per_eni=9)
    assert growth == Growth()
