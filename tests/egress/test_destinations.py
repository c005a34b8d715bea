"""Which destinations see pods, by the document and by what its sources stand for."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from builders import VPC, documents
from builders import document as make_document
from hypothesis import given

from reconciler.core.datapath import FAMILIES
from reconciler.core.ranges import coalesce, print_range
from reconciler.egress import destinations
from reconciler.egress.destinations import NO_EGRESS, Egress
from reconciler.egress.source import Entry, Failure, Source

IPV4 = FAMILIES["ipv4"]
PEERING = Source("@peering", (Entry(ip_network("10.100.0.0/16"), "pcx-1", "shared"),), 100.0)
KNOWN = Egress("vpc-1", (PEERING,))


def snat(**fields: Any) -> Any:
    return make_document(snat=fields).snat


def kept(policy: Any, egress: Egress, vpc: Any = ()) -> set[str]:
    ranges = destinations.untranslated(policy, egress, vpc, IPV4)
    return {print_range(*r) for r in ranges}


def test_a_source_stands_for_its_entries_beside_cidrs() -> None:
    policy = snat(excludeCIDRs=["@peering", "192.0.2.0/24"])
    assert kept(policy, KNOWN) == {"10.100.0.0/16", "192.0.2.0/24"}
    only = snat(onlyCIDRs=["@peering", "0.0.0.0/1"])
    assert kept(only, KNOWN) == {"128.0.0.0/1"}


def test_what_was_excluded_before_stays_while_a_source_was_never_answered() -> None:
    former = Egress("vpc-1", former=coalesce([ip_network("10.0.0.0/8")]))
    policy = snat(excludeCIDRs=["@peering", "192.0.2.0/24"])
    assert kept(policy, former) == {"10.0.0.0/8", "192.0.2.0/24"}
    known = Egress("vpc-1", (PEERING,), former.former)
    assert kept(policy, known) == {"10.100.0.0/16", "192.0.2.0/24"}


def test_of_only_cidrs_nothing_is_left_out_while_one_is_not_known() -> None:
    """Else everything that the unknown source means would see pods, the internet first."""
    assert kept(snat(onlyCIDRs=["@peering"]), NO_EGRESS, VPC) == set(map(str, VPC))


@given(documents())
def test_without_a_source_nothing_known_of_sources_changes_anything(document: Any) -> None:
    for family in FAMILIES.values():
        plain = destinations.untranslated(document.snat, NO_EGRESS, VPC, family)
        egress = Egress("vpc-1", (PEERING,), coalesce([ip_network("0.0.0.0/0")]))
        assert destinations.untranslated(document.snat, egress, VPC, family) == plain


def test_each_range_names_its_sources_and_their_parts() -> None:
    entries = (
        Entry(ip_network("10.100.0.0/16"), "pcx-1", "shared"),
        Entry(ip_network("10.101.0.0/16")),
    )
    egress = Egress("vpc-1", (Source("@peering", entries, 1.0),))
    policy = snat(excludeCIDRs=["@peering", "192.0.2.0/24"])
    ranges = destinations.untranslated(policy, egress, (), IPV4)
    (said,) = destinations.reasons(policy, egress, ranges).values()
    assert said == '@peering pcx-1, "shared" 10.100.0.0/16; @peering 10.101.0.0/16'


def test_a_destination_is_explained_by_its_source() -> None:
    policy = snat(excludeCIDRs=["@peering"])
    said = destinations.holder(policy.exclude_cidrs, KNOWN, ip_address("10.100.7.7"))
    assert said == '@peering pcx-1, "shared" 10.100.0.0/16'


def test_what_is_open_is_an_issue_that_says_what_to_do() -> None:
    policy = snat(excludeCIDRs=["@peering", "@routes", "pl-0a1b2c3d"])
    missed = Entry(ip_network("10.1.0.0/16"), "pcx-1", missed_at=90.0)
    denied = Failure("DescribeRouteTables", "UnauthorizedOperation", "allow it")
    sources = (Source("@peering", (missed,), 90.0), Source("@routes", (), 40.0, failure=denied))
    issues = destinations.find_issues(policy, Egress("vpc-1", sources), 100.0)
    assert [(i.subject, i.reason) for i in issues] == [
        ("snat source @peering", "SourceShrinks"),
        ("snat source @routes", "UnauthorizedOperation"),
        ("snat source pl-0a1b2c3d", "SourceUnknown"),
    ]
    assert "10.1.0.0/16 pcx-1" in issues[0].message
    assert issues[1].message == (
        "DescribeRouteTables: allow it; the last good value stays, 0 CIDRs of 60 s ago"
    )
    assert destinations.find_issues(snat(), Egress("vpc-1", sources), 100.0) == ()


@pytest.mark.parametrize(
    ("policy", "found"),
    [
        ({"excludeCIDRs": ["0.0.0.0/0"]}, ["ExcludesEverything"]),
        ({"excludeCIDRs": ["0.0.0.0/1", "128.0.0.0/1"]}, ["ExcludesEverything"]),
        ({"excludeCIDRs": ["@transit"]}, ["ExcludesEverything"]),
        ({"excludeCIDRs": ["172.16.0.0/12"]}, ["ExcludesServices"]),
        ({"excludeCIDRs": ["10.0.0.0/8", "@peering"]}, []),
        ({"mode": "external"}, []),
    ],
)
def test_more_than_anybody_means_is_a_warning(policy: dict[str, Any], found: list[str]) -> None:
    transit = Source("@transit", (Entry(ip_network("0.0.0.0/0"), "tgw-1"),), 1.0)
    egress, services = Egress("vpc-1", (PEERING, transit)), [ip_network("172.20.0.0/16")]
    warnings = destinations.find_warnings(snat(**policy), egress, VPC, services)
    assert [w.reason for w in warnings] == found
    if policy.get("excludeCIDRs") == ["@transit"]:
        assert "because of @transit tgw-1 0.0.0.0/0" in warnings[0].message
