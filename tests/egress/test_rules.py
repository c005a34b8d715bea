"""What the destinations of ``snat.rules`` are, and what is said of rules that make no sense."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from builders import VPC, document
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.datapath import FAMILIES
from reconciler.core.ranges import find, print_range
from reconciler.egress.destinations import NO_EGRESS, Egress
from reconciler.egress.observation import make_question
from reconciler.egress.rules import covering, find_warnings, ranges_of
from reconciler.egress.source import Entry, Source
from schemas.snat import Snat

SERVICES = (ip_network("172.20.0.0/16"),)
PEERS = Egress("vpc-1", (Source("@peering", (Entry(ip_network("10.100.0.0/16"), "pcx-1"),), 1.0),))


def snat(*rules: tuple[str, list[str], str], **more: Any) -> Snat:
    listed = [{"namespace": n, "to": to, "as": word} for n, to, word in rules]
    return document(snat={"rules": listed} | more, families=["ipv4", "ipv6"]).snat


def ranges(*to: str, family: str = "ipv4", egress: Egress = NO_EGRESS) -> list[str]:
    (rule,) = snat(("pay", list(to), "node")).rules
    found = ranges_of(rule, egress, VPC, SERVICES, FAMILIES[family])
    return [print_range(*r) for r in found]


def test_what_is_wider_than_the_vpc_means_what_is_beyond_it() -> None:
    assert ranges("10.0.0.0/8") == ["10.1.0.0-10.255.255.255"]
    assert ranges("172.16.0.0/12") == ["172.16.0.0/14", "172.21.0.0-172.31.255.255"]
    whole = ranges("0.0.0.0/0")
    assert whole[0] == "0.0.0.0-9.255.255.255"
    assert "-169.253.255.255" in " ".join(whole)  # not instance metadata
    assert not [r for r in ranges("::/0", family="ipv6") if r.startswith(("fe80:", "fd00:ec2:"))]


def test_what_is_inside_the_vpc_is_meant_as_it_is_written() -> None:
    assert ranges("10.0.9.0/24") == ["10.0.9.0/24"]
    assert ranges("10.0.9.0/24", "10.0.0.0/8") == ["10.0.9.0/24", "10.1.0.0-10.255.255.255"]
    assert ranges("10.0.0.0/16") == ["10.0.0.0/16"]


def test_a_source_means_what_ec2_tells_and_nothing_before() -> None:
    assert ranges("@peering", egress=PEERS) == ["10.100.0.0/16"]
    assert ranges("@peering") == []
    assert ranges("@peering", family="ipv6", egress=PEERS) == []


def test_ec2_is_asked_for_the_sources_of_rules_and_policies_once() -> None:
    given = snat(("a", ["@peering", "pl-0a1b2c3d"], "node"), excludeCIDRs=["@peering"])
    assert make_question(given, (), "vpc-1").names == ("@peering", "pl-0a1b2c3d")


@given(st.lists(st.sampled_from(["0.0.0.0/0", "10.0.0.0/8", "10.0.9.0/24", "192.0.2.0/24"])))
def test_every_destination_is_in_the_ranges_or_local(to: list[str]) -> None:
    (rule,) = snat(("a", to or ["10.0.9.0/24"], "node")).rules
    found = ranges_of(rule, NO_EGRESS, VPC, SERVICES, FAMILIES["ipv4"])
    for text in ("10.0.9.7", "10.0.8.7", "10.9.0.1", "192.0.2.1", "169.254.169.254", "172.20.0.1"):
        address = ip_address(text)
        networks = [n for n in rule.to if not isinstance(n, str) and address in n]
        local = any(address in n for n in (*VPC, *SERVICES)) or text.startswith("169.254")
        inside = any(n.prefixlen > 16 for n in networks)
        assert bool(find(found, address)) is bool(networks and (inside or not local))


def test_the_rules_about_a_destination_are_named_in_order() -> None:
    given = snat(
        ("pay-*", ["192.0.2.0/24"], "pod"),
        ("web", ["198.51.100.0/24"], "node"),
        ("*", ["0.0.0.0/0"], "dedicated"),
    )
    found = covering(given.rules, NO_EGRESS, VPC, SERVICES, ip_address("192.0.2.7"))
    assert [(place, why) for place, _, why in found] == [(0, "192.0.2.0/24"), (2, "0.0.0.0/0")]


def warnings(*rules: tuple[str, list[str], str], **more: Any) -> list[str]:
    return [
        f"{i.subject} {i.reason}"
        for i in find_warnings(snat(*rules, **more), NO_EGRESS, VPC, SERVICES)
    ]


PRIVATE = ["10.100.0.0/16"]


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ([("a", PRIVATE, "node"), ("a", PRIVATE, "dedicated")], True),
        ([("*", ["10.0.0.0/8"], "node"), ("a", PRIVATE, "dedicated")], True),
        ([("a", PRIVATE, "node"), ("*", PRIVATE, "dedicated")], False),
        ([("a-*", PRIVATE, "node"), ("a-1", PRIVATE, "dedicated")], False),
        ([("a", ["10.100.0.0/17"], "node"), ("a", PRIVATE, "dedicated")], False),
        (
            [
                ("a", ["10.100.0.0/17"], "node"),
                ("*", ["10.100.128.0/17"], "pod"),
                ("a", PRIVATE, "dedicated"),
            ],
            True,
        ),
        ([("a", ["@peering"], "node"), ("a", ["@peering"], "pod")], True),
        ([("a", ["@routes"], "node"), ("a", ["@peering"], "pod")], False),
        ([("a", ["::/0"], "node"), ("a", ["2001:db8::/32"], "pod")], True),
        ([("a", ["10.0.0.0/8"], "node"), ("a", ["2001:db8::/32"], "pod")], False),
        ([("a", ["169.254.169.254"], "pod")], True),
    ],
    ids=str,
)
def test_a_rule_that_never_decides_is_named(rules: Any, told: bool) -> None:
    last = f"snat.rules[{len(rules) - 1}] RuleNeverMatches"
    assert (last in warnings(*rules)) is told


def test_private_addresses_on_their_way_to_the_internet_are_named() -> None:
    assert warnings(("a", ["203.0.113.0/24"], "pod")) == ["snat.rules[0] NoWayBack"]
    assert warnings(("a", ["0.0.0.0/0"], "dedicated")) == ["snat.rules[0] NoWayBack"]
    assert warnings(("a", ["203.0.113.0/24"], "node")) == []
    assert warnings(("a", ["10.100.0.0/16", "2001:db8::/32"], "pod")) == []
    assert warnings(("a", ["203.0.113.0/24"], "pod"), mode="external") == []
