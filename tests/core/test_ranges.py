"""Ranges: sets of addresses, against the sets themselves."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.datapath import FAMILIES, IpAddress
from reconciler.core.ranges import Range, coalesce, complement, find, print_range, unite

EVERYTHING = FAMILIES["ipv4"].everything
networks = st.builds(
    lambda number, length: IPv4Network((number >> (32 - length) << (32 - length), length)),
    st.integers(0, 2**32 - 1),
    st.integers(0, 32),
)
lists = st.lists(networks, max_size=30)


def edges(cidrs: list[IPv4Network]) -> set[IpAddress]:
    """The addresses at which membership can change."""
    numbers = {n + d for c in cidrs for n in (int(c[0]), int(c[-1])) for d in (-1, 0, 1)}
    return {IPv4Address(n) for n in numbers | {0, 2**32 - 1} if 0 <= n < 2**32}


def holds(ranges: tuple[Range, ...], address: IpAddress) -> bool:
    return any(int(f) <= int(address) <= int(last) for f, last in ranges)


@given(lists)
def test_coalesced_ranges_cover_the_same_and_never_touch(cidrs: list[IPv4Network]) -> None:
    ranges = coalesce(cidrs)
    for (_, last), (first, _) in pairwise(ranges):
        assert int(last) + 1 < int(first)
    for address in edges(cidrs):
        assert holds(ranges, address) == any(address in c for c in cidrs)


@given(lists)
def test_the_complement_holds_exactly_what_is_left_out(cidrs: list[IPv4Network]) -> None:
    ranges = coalesce(cidrs)
    rest = complement(ranges, EVERYTHING)
    for address in edges(cidrs):
        assert holds(rest, address) != holds(ranges, address)
    assert unite((*ranges, *rest)) == coalesce([EVERYTHING])
    assert complement(rest, EVERYTHING) == ranges


@given(lists)
def test_the_range_around_an_address_is_found(cidrs: list[IPv4Network]) -> None:
    ranges = coalesce(cidrs)
    for address in edges(cidrs):
        around = find(ranges, address)
        assert (around is not None) == holds(ranges, address)
        assert around is None or holds((around,), address)


@given(networks)
def test_a_range_that_is_a_network_is_printed_as_one(cidr: IPv4Network) -> None:
    assert print_range(cidr[0], cidr[-1]) == (
        str(cidr[0]) if cidr.num_addresses == 1 else str(cidr)
    )


def test_ranges_of_ipv6_are_the_same() -> None:
    ranges = coalesce([ip_network("2001:db8::/33"), ip_network("2001:db8:8000::/33")])
    assert [print_range(*r) for r in ranges] == ["2001:db8::/32"]
    everything = FAMILIES["ipv6"].everything
    assert complement(complement(ranges, everything), everything) == ranges
    assert print_range(ip_address("::1"), ip_address("::3")) == "::1-::3"
