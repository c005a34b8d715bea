"""Sysctls: what only examples show well."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from builders import SUBNET, attachment, document, inputs
from fakes import FakeSysctl

from reconciler.domains import sysctl
from reconciler.domains.sysctl import FORWARDING

V6 = document(families=["ipv6"])
OWN = ip_address("2001:db8:7::9")


def names(settings: Any) -> set[str]:
    return {s.name for s in settings}


def test_a_node_of_ipv4_is_left_alone_in_ipv6() -> None:
    now = inputs(2, (attachment(1),))
    assert not [n for n in names(sysctl.desire(now)) if "ipv6" in n]
    assert sysctl.desire_pods(now) == frozenset()


def test_forwarding_is_switched_on_after_the_primarys_default_route_is_safe() -> None:
    """Before, the kernel would throw away what it learnt from the router."""
    wanted = sysctl.desire(inputs(2, document=V6))
    world = FakeSysctl({s.name: "none" for s in wanted})
    plan = sysctl.plan(wanted, world.observe(wanted))
    assert plan.actions[-1].key == ("", FORWARDING)
    assert ("", "net/ipv6/conf/eth0/accept_ra") in [a.key for a in plan.actions[:-1]]


def test_the_router_is_believed_on_the_primary_alone() -> None:
    said = {s.name: s.value for s in sysctl.desire(inputs(2, document=V6))}
    assert said["net/ipv6/conf/eth0/accept_ra"] == "2"
    assert said["net/ipv6/conf/eth1/accept_ra"] == "0"


def test_both_ends_of_a_link_speak_ipv6_if_its_pod_does() -> None:
    v6 = attachment(1, addresses=(SUBNET[11], OWN))
    now = inputs(1, (v6, attachment(2)), document=V6)
    said = {(s.netns, s.name) for s in sysctl.desire_pods(now)}
    assert said == {
        ("", f"net/ipv6/conf/{v6.veth}/disable_ipv6"),
        ("", f"net/ipv6/conf/{v6.veth}/accept_ra"),
        (v6.netns, "net/ipv6/conf/eth0/disable_ipv6"),
        (v6.netns, "net/ipv6/conf/lo/disable_ipv6"),
    }


def checks(spoofing: str = "deny", **filters: str) -> dict[str, str]:
    host = {"all": "0", "eth0": "0"} | filters
    asked = document(pods={"spoofing": spoofing})
    now = inputs(2, document=asked, source_filters=host)
    return {
        s.name.removeprefix("net/ipv4/conf/"): s.value for s in sysctl.desire_source_check(now)
    }


OFF = {"eth0/accept_local": "1", "eth1/accept_local": "1", "eth1/rp_filter": "0"}
ON = {"eth0/accept_local": "0", "eth1/accept_local": "0", "eth1/rp_filter": "2"}


def test_the_kernel_looks_at_no_source_where_our_ruleset_does() -> None:
    assert checks() == OFF


def test_with_spoofing_allowed_the_kernel_looks_as_ever() -> None:
    assert checks("allow") == ON


def test_on_a_host_that_looks_at_all_links_secondary_enis_are_loose() -> None:
    """The larger of both filters counts: with 0 these would be as strict as all."""
    for strict in ("1", "2", "unreadable"):
        assert checks(all=strict) == ON
    now = inputs(2)
    assert {s.value for s in sysctl.desire_source_check(now)} == {"0", "2"}, "nothing was read"


def test_the_primarys_filter_is_the_hosts() -> None:
    for own in ("1", "2"):
        assert checks(eth0=own) == OFF | {"eth0/accept_local": "0"}
