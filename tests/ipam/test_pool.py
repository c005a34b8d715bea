"""The pool's arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reconciler.ipam.cloud import PREFIX_SIZE
from reconciler.ipam.pool import Demand, Place, Share, Space, band, grow
from schemas.pool import AddressTarget, EniTarget, PrefixTarget

demands = st.builds(Demand, st.integers(0, 60), st.integers(0, 20), st.integers(0, 20))
targets = st.one_of(
    st.builds(
        AddressTarget,
        warm=st.integers(0, 20),
        minimum=st.integers(0, 60),
        surplus=st.integers(0, 20),
    ),
    st.builds(EniTarget, warm=st.integers(0, 3)),
    st.builds(PrefixTarget, warm=st.integers(0, 3)),
)


@pytest.mark.parametrize(
    ("target", "demand", "expected", "binds"),
    [
        (AddressTarget(warm=2, minimum=24, surplus=0), Demand(), (24, 24, 24), "minimum"),
        (AddressTarget(warm=2, minimum=24, surplus=4), Demand(23), (25, 27, 29), "warm"),
        # A cooling address is held and serves nobody: it is never counted as warm (#2896).
        (AddressTarget(warm=4, minimum=0, surplus=0), Demand(3, cooling=5), (12, 12, 12), "warm"),
        (AddressTarget(warm=0, minimum=0, surplus=0), Demand(waiting=7), (7, 7, 7), "warm"),
        (EniTarget(warm=1), Demand(), (9, 9, 18), "ENIs"),
        (EniTarget(warm=1), Demand(10), (27, 27, 36), "ENIs"),
        (PrefixTarget(warm=1), Demand(16), (32, 32, 48), "prefixes"),
        (PrefixTarget(warm=0), Demand(17), (32, 32, 48), "prefixes"),
    ],
)
def test_band(target: Any, demand: Demand, expected: tuple[int, int, int], binds: str) -> None:
    found = band(target, demand, per_eni=9, max_pods=None)
    assert (found.low, found.aim, found.high) == expected
    assert found.binds == binds


def test_max_pods_bounds_what_is_held_and_cooling_comes_on_top() -> None:
    target = AddressTarget(warm=10, minimum=50, surplus=4)
    found = band(target, Demand(assigned=5, cooling=3), per_eni=9, max_pods=20)
    assert (found.low, found.high, found.binds) == (23, 23, "maxPods")
    busy = band(target, Demand(assigned=30), per_eni=9, max_pods=20)
    assert busy.low == 30  # what is in use is held in any case


@given(targets, demands, st.integers(0, 30), st.one_of(st.none(), st.integers(1, 60)))
def test_a_band_covers_what_is_used_and_has_its_edges_in_order(
    target: Any, demand: Demand, per_eni: int, max_pods: int | None
) -> None:
    found = band(target, demand, per_eni=per_eni, max_pods=max_pods)
    assert demand.total <= found.low <= found.aim <= found.high
    assert found.binds in {name for name, _, _ in found.terms}


def room(slots: int) -> Place:
    return Place("s", slots)


def ask(shortfall: int, *slots: int, **options: Any) -> Any:
    terms: dict[str, Any] = {
        "spaces": {"s": Space(200, 10)},
        "candidates": ("s",),
        "new_enis": 2,
        "slots": 9,
        "prefixes": False,
    }
    return grow(shortfall, places=[room(n) for n in slots], **(terms | options))


def test_existing_enis_are_filled_before_new_ones_are_made() -> None:
    growth = ask(24, 9)
    assert growth.shares == (Share("s", 9),)
    assert growth.creations == (Share("s", 9), Share("s", 6))
    assert growth.unmet == 0


def test_prefixes_are_counted_in_addresses_and_rounded_up() -> None:
    growth = ask(24, 9, prefixes=True)
    assert growth.shares == (Share("s", 0, 2),)
    assert growth.creations == ()


def test_where_no_whole_block_is_left_single_addresses_do() -> None:
    growth = ask(20, 9, prefixes=True, spaces={"s": Space(100, 1)})
    assert growth.shares == (Share("s", 4, 1),)
    assert growth.full == (("s", "no whole /28 free (84 addresses are)"),)


def test_blocks_that_are_reserved_take_nothing_of_what_is_free() -> None:
    reserved = {"s": Space(3, 5, apart=True)}
    growth = ask(60, 2, prefixes=True, spaces=reserved)
    assert (growth.shares, growth.creations) == ((Share("s", 0, 2),), (Share("s", 0, 2),))
    assert (growth.unmet, growth.full) == (0, ())
    without = ask(40, 0, prefixes=True, spaces={"s": Space(0, 5, apart=True)})
    assert without.full == (("s", "0 addresses free"),), "the ENI's own is from outside"
    less = ask(40, 9, prefixes=True, new_enis=0, spaces={"s": Space(30, 1, apart=True)})
    assert less.shares == (Share("s", 8, 1),)
    assert (
        less.full[0][1] == "no whole /28 free in its CIDR reservations (30 addresses outside are)"
    )


def test_a_new_eni_begins_with_one_kind_only() -> None:
    """One call asks for one kind; the rest is assigned once the ENI is there."""
    growth = ask(20, prefixes=True, spaces={"s": Space(100, 1)})
    assert growth.creations == (Share("s", 0, 1),)
    assert growth.unmet == 0


def test_the_first_subnet_with_room_gets_the_eni_and_the_others_are_explained() -> None:
    spaces = {"a": Space(1), "b": Space(50), "c": Space(99)}
    growth = ask(5, spaces=spaces, candidates=("a", "b", "c"))
    assert growth.creations == (Share("b", 5),)
    assert growth.full == (("a", "1 addresses free"),)


def test_what_no_limit_leaves_room_for_is_said() -> None:
    growth = ask(10, 1, 2, new_enis=0)
    assert growth.shares == (Share("s", 1), Share("s", 2))
    assert growth.unmet == 7


@given(
    st.integers(-3, 80),
    st.lists(st.integers(0, 9), max_size=4),
    st.integers(0, 3),
    st.integers(0, 9),
    st.integers(0, 120),
    st.integers(0, 4),
    st.booleans(),
)
def test_growth_adds_up_and_exceeds_nothing(
    shortfall: int,
    slots: list[int],
    new_enis: int,
    per_eni: int,
    free: int,
    blocks: int,
    prefixes: bool,
) -> None:
    space = Space(free, min(blocks, free // PREFIX_SIZE))
    options: dict[str, Any] = {"spaces": {"s": space}, "new_enis": new_enis, "slots": per_eni}
    growth = ask(shortfall, *slots, prefixes=prefixes, **options)
    everything = [*growth.shares, *growth.creations]
    got = sum(s.addresses + PREFIX_SIZE * s.prefixes for s in everything)
    deferred = sum(per_eni - s.prefixes for s in growth.creations if s.prefixes)
    assert got + growth.unmet + deferred >= max(shortfall, 0)
    assert got <= max(shortfall, 0) + PREFIX_SIZE - 1
    assert got + len(growth.creations) <= free or not got
    assert sum(s.prefixes for s in everything) <= space.blocks
    assert all(
        s.addresses + s.prefixes <= limit for s, limit in zip(growth.shares, slots, strict=True)
    )
    assert all(s.addresses + s.prefixes <= per_eni for s in growth.creations)
    assert all(not (s.addresses and s.prefixes) for s in growth.creations)
    assert len(growth.creations) <= new_enis
