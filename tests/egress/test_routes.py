"""Route tables: the longest prefix decides, and what every table says counts."""

from __future__ import annotations

import time
from ipaddress import IPv4Network, ip_address, ip_network
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reconciler.egress.routes import TARGETS, Route, entries_of
from reconciler.targets.ec2.decode_vpc import MAX_ROUTES

GATEWAYS = [
    "tgw-1",
    "pcx-1",
    "vgw-1",
    "lgw-1",
    "eni-1",
    "arn:aws:networkmanager::1:core-network/c",
]
OTHERS = ["igw-1", "nat-1", "vpce-1", "cagw-1", "local", "eigw-1"]


def rtb(*routes: str, name: str = "rtb-1") -> Any:
    """A table: routes as ``10.0.0.0/8 tgw-1``."""
    pairs = (text.split() for text in routes)
    return name, tuple(Route(IPv4Network(to), target) for to, target in pairs)


def sent(word: str, *tables: Any) -> dict[str, str]:
    return {str(e.network): e.via for e in entries_of(word, tables)}


def test_a_word_means_its_targets_and_no_gateway_that_knows_no_pod() -> None:
    every = [f"10.{n}.0.0/16 {t}" for n, t in enumerate(GATEWAYS + OTHERS)]
    assert set(sent("@routes", rtb(*every)).values()) == set(GATEWAYS)
    assert set(sent("@transit", rtb(*every)).values()) == {GATEWAYS[0], GATEWAYS[5]}
    assert set(sent("@onprem", rtb(*every)).values()) == {"vgw-1", "lgw-1"}


def test_a_longer_prefix_to_a_nat_gateway_is_cut_out() -> None:
    found = sent("@routes", rtb("10.0.0.0/14 tgw-1", "10.1.0.0/16 nat-1", "10.1.7.0/24 pcx-1"))
    assert found == {"10.0.0.0/16": "tgw-1", "10.2.0.0/15": "tgw-1", "10.1.7.0/24": "pcx-1"}


def test_a_longer_prefix_to_another_word_is_cut_out_too() -> None:
    found = sent("@transit", rtb("10.0.0.0/15 tgw-1", "10.1.0.0/16 pcx-1"))
    assert found == {"10.0.0.0/16": "tgw-1"}


def test_of_several_tables_only_what_all_say_counts() -> None:
    one = rtb("10.0.0.0/8 tgw-1", "172.16.0.0/12 tgw-1")
    other = rtb("10.64.0.0/10 vgw-1", "0.0.0.0/0 nat-1", name="rtb-2")
    assert sent("@routes", one, other) == {"10.64.0.0/10": "tgw-1"}
    assert sent("@routes", one, rtb("0.0.0.0/0 nat-1")) == {}


def test_a_default_route_to_a_transit_gateway_is_everything() -> None:
    assert sent("@transit", rtb("10.0.0.0/16 local", "0.0.0.0/0 tgw-1"))["128.0.0.0/1"] == "tgw-1"
    assert sent("@transit", rtb("0.0.0.0/0 tgw-1")) == {"0.0.0.0/0": "tgw-1"}


networks = st.builds(
    lambda number, length: IPv4Network((number << (32 - length), length)),
    st.integers(0, 15),
    st.integers(4, 8),
)
tables = st.lists(
    st.dictionaries(networks, st.sampled_from(GATEWAYS + OTHERS), max_size=6).map(
        lambda routes: ("rtb", tuple(Route(n, t) for n, t in routes.items()))
    ),
    min_size=1,
    max_size=3,
)


@given(tables, st.sampled_from(sorted(TARGETS)), st.integers(0, 2**32 - 1))
def test_an_address_counts_if_the_routers_of_all_subnets_send_it_there(
    several: Any, word: str, number: int
) -> None:
    address = ip_address(number)

    def target(routes: tuple[Route, ...]) -> str:
        fitting = [r for r in routes if address in r.network]
        return max(fitting, key=lambda r: r.network.prefixlen).target if fitting else "none"

    expected = all(target(routes).startswith(TARGETS[word]) for _, routes in several)
    assert any(address in e.network for e in entries_of(word, several)) is expected


def test_a_table_of_as_many_routes_as_are_read_takes_no_core_from_pods() -> None:
    """A second of it for each table, three words of each look, when each route met each other."""
    routes = [f"10.{n >> 8}.{n & 255}.0/24 {('nat-1', 'tgw-1')[n % 2]}" for n in range(MAX_ROUTES)]
    begin = time.process_time()
    found = sent("@transit", rtb("10.0.0.0/8 tgw-2", *routes))
    assert time.process_time() - begin < 0.5
    assert "10.0.0.0/24" not in found
    assert found["10.0.1.0/24"] == "tgw-1"


def test_no_table_says_nothing() -> None:
    assert entries_of("@routes", ()) == ()
    assert ip_network("10.0.0.0/8") not in sent("@routes", rtb())
