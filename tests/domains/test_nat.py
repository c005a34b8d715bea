"""The ruleset: what only examples show well."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from builders import attachment, document, eni, inputs

from reconciler.domains import nat
from reconciler.domains.nat import NftChain, NftElement, NftSet


def chains(now: Any) -> dict[str, NftChain]:
    return {o.name: o for o in nat.desire(now) if isinstance(o, NftChain)}


def elements(now: Any, name: str) -> set[str]:
    return {o.text for o in nat.desire(now) if isinstance(o, NftElement) and o.set == name}


def test_the_chains_stand_where_the_design_puts_them() -> None:
    places = {name: c.place for name, c in chains(inputs(2)).items() if c.hook}
    assert places == {
        "node_port": ("filter", "prerouting", -150, "accept"),
        "snat_mark": ("nat", "prerouting", -90, "accept"),
        "route_mark": ("filter", "prerouting", -89, "accept"),
        "source_nat": ("nat", "postrouting", 100, "accept"),
    }


def test_marking_a_packet_leaves_other_owners_bits() -> None:
    """kube-proxy has set 0x4000 by then; losing it loses its masquerade."""
    for name, mark in (("eni_0", 0x80), ("eni_1", 1)):
        (rule,) = chains(inputs(2))[name].rules
        ((mangle,),) = [e.values() for e in json.loads(rule)]
        kept, bits = mangle["value"]["|"]
        assert kept["&"][1] == 0xFFFFFF00
        assert bits == mark


def test_a_connection_bound_to_the_primary_is_decided_before_the_pods_own_eni() -> None:
    bound, own = chains(inputs(2))["route_mark"].rules
    assert '"goto":{"target":"eni_0"}' in bound
    assert '"vmap"' in own


def test_what_leaves_gets_the_primarys_address_and_a_random_port() -> None:
    (rule,) = chains(inputs(2))["source_nat"].rules
    assert json.loads(rule)[-1] == {
        "snat": {"family": "ip", "addr": "10.0.1.10", "flags": "fully-random"}
    }
    assert json.loads(rule)[0]["match"]["right"] == "eth0"


def test_external_mode_translates_and_marks_nothing() -> None:
    now = inputs(2, (attachment(1, 1),), document=document(snat={"mode": "external"}))
    # The chains stay: without any of type nat, translations that are under way would end.
    assert [chains(now)[name].rules for name in ("snat_mark", "source_nat")] == [(), ()]
    assert elements(now, "no_snat_ipv4") == set()
    assert elements(now, "pod_eni_ipv4") == {str(attachment(1, 1).address)}


def test_the_vpc_is_always_excluded_and_neighbours_become_one_range() -> None:
    now = inputs(1, document=document(snat={"excludeCIDRs": ["10.1.0.0/16", "192.0.2.9"]}))
    assert elements(now, "no_snat_ipv4") == {"10.0.0.0/15", "100.64.0.0/16", "192.0.2.9"}


def test_a_pod_whose_eni_is_gone_is_known_but_sent_nowhere() -> None:
    now = inputs(1, (attachment(1, 2),))
    assert elements(now, "pods_ipv4") == {str(attachment(1, 2).address)}
    assert elements(now, "pod_eni_ipv4") == set()


def test_families_are_data() -> None:
    v6 = attachment(1, 1, address=ip_address("2001:db8::9"))
    both = document().model_copy(update={"families": ("ipv4", "ipv6")})
    now = replace(inputs(2, (v6,)), document=both)
    sets = {o.name: o.type for o in nat.desire(now) if isinstance(o, NftSet)}
    assert sets["pods_ipv6"] == "ipv6_addr"
    assert elements(now, "pods_ipv6") == {"2001:db8::9"}
    assert len(chains(now)["route_mark"].rules) == 3


def test_a_pod_is_marked_with_the_device_its_eni_has_now() -> None:
    """ENIs that were detached and attached again may have changed places."""
    one = attachment(1, 1)
    swapped = (eni(0), eni(2, eni_id="eni-1"), eni(1, eni_id="eni-2"))
    now = inputs(3, (one,), enis=swapped)
    (element,) = [o for o in nat.desire(now) if isinstance(o, NftElement) and o.goto]
    assert element.goto == "eni_2"
