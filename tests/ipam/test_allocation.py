"""Which addresses a pod can get: what is stepped over, and that no range is walked for it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from itertools import islice

import pytest
from builders import eni
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.datapath import IpNetwork
from reconciler.ipam.allocation import Supply, offers

BLOCK = ip_network("10.0.1.64/28")
WIDE = ip_network("2001:db8:0:0:1::/80")

INSIDE = st.builds(
    lambda start, length: ip_network((int(BLOCK[start]), length), strict=False),
    st.integers(0, 15),
    st.integers(27, 32),
)


def offered(supply: Supply, taken: set[int], leaving: list[IpNetwork]) -> list[object]:
    return [addresses for _, addresses in islice(offers(supply, taken, leaving), 300)]


@given(st.sets(st.integers(0, 15)), st.lists(INSIDE, max_size=4))
def test_a_prefix_offers_what_is_not_taken_and_does_not_leave(
    taken: set[int], leaving: list[IpNetwork]
) -> None:
    supply = Supply((eni(0, 0, prefixes=(BLOCK,)),))
    numbers = {int(BLOCK[i]) for i in taken}
    expected = [(a,) for a in BLOCK if int(a) not in numbers and not any(a in n for n in leaving)]
    assert offered(supply, numbers, leaving) == expected


@pytest.mark.parametrize("leaving", ["2001:db8::/64", str(WIDE)])
def test_a_wide_prefix_that_leaves_as_a_whole_offers_nothing_at_once(leaving: str) -> None:
    """As of a local route for a range (AnyIP), which a program on the host has added."""
    held = replace(eni(0, 0), ipv6_prefixes=(WIDE,))
    supply = Supply((held,), families=("ipv6",))
    assert offered(supply, set(), [ip_network(leaving)]) == []


def test_most_of_a_wide_prefix_is_stepped_over() -> None:
    held = replace(eni(0, 0), ipv6_prefixes=(WIDE,))
    supply = Supply((held,), families=("ipv6",))
    first = next(offers(supply, set(), [ip_network("2001:db8:0:0:1::/81")]))
    assert first == (held, (ip_address("2001:db8:0:0:1:8000::"),))
