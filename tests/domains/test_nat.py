"""The ruleset: what only examples show well."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from builders import attachment, document, eni, inputs

from reconciler.domains import nat
from reconciler.domains import rule as rule_domain
from reconciler.domains.nat_objects import NftChain, NftCounter, NftElement, NftLink, NftSet
from reconciler.domains.nat_rules import CONFIRMED, UNCONFIRMED
from reconciler.egress.destinations import Egress
from reconciler.egress.source import Entry, Source
from reconciler.ipam.pool_status import Ec2Inputs


def chains(now: Any) -> dict[str, NftChain]:
    return {o.name: o for o in nat.desire(now) if isinstance(o, NftChain)}


def elements(now: Any, name: str) -> set[str]:
    return {o.text for o in nat.desire(now) if isinstance(o, NftElement) and o.set == name}


def test_the_chains_stand_where_the_design_puts_them() -> None:
    places = {name: c.place for name, c in chains(inputs(2)).items() if c.hook}
    assert places == {
        "guard": ("filter", "prerouting", -300, "accept"),
        "arrival": ("nat", "prerouting", -150, "accept"),
        "route_mark": ("filter", "prerouting", -89, "accept"),
        "sent": ("filter", "output", -10, "accept"),
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


def test_a_connection_bound_to_an_eni_leaves_by_it_whatever_the_pods_own_is() -> None:
    found = chains(inputs(2))
    (bound,) = [json.loads(rule) for rule in found["choice"].rules]
    assert (bound[0]["match"]["op"], bound[0]["match"]["right"]) == ("!=", 0)
    assert bound[-1] == {"goto": {"target": "bound"}}
    assert [verdict(rule) for rule in found["bound"].rules] == ["eni_0", "eni_1"]


def test_a_pods_own_eni_is_chosen_once() -> None:
    """By the guard's lookup, which knows the pod by then; without a guard behind conntrack."""
    for spoofing, chosen_in in (("deny", "guard"), ("allow", "choice")):
        found = chains(inputs(2, document=document(pods={"spoofing": spoofing})))
        for name in {"guard", "choice"} & found.keys():
            last = json.loads(found[name].rules[-1])
            assert (last == [{"goto": {"target": "own"}}]) is (name == chosen_in)
        by_eni, own = [json.loads(rule) for rule in found["own"].rules]
        assert by_eni[0]["match"]["left"] == {"meta": {"key": "iifgroup"}}
        assert own[0]["vmap"]["data"] == "@pod_eni_ipv4"


def test_the_main_table_is_asked_for_where_the_document_has_destinations_for_it() -> None:
    routing = {"externalServiceCIDRs": ["172.20.0.0/16"]}
    now = inputs(2, document=document(routing=routing, families=["ipv4", "ipv6"]))
    by_main, *others = [json.loads(rule) for rule in chains(now)["choice"].rules]
    assert by_main[0]["match"]["right"] == "@by_main_ipv4"
    assert by_main[-1] == {"goto": {"target": "eni_0"}}  # before what the connection is bound to
    assert "by_main" not in json.dumps(others)


def verdict(rule: str) -> str:
    target: str = json.loads(rule)[-1]["goto"]["target"]
    return target


def test_what_comes_in_for_the_host_is_bound_to_the_eni_it_came_by() -> None:
    """By a chain of type nat, which the kernel asks for a connection's first packet alone."""
    now = inputs(3)
    by_link = {o.link: o.goto for o in nat.desire(now) if getattr(o, "set", "") == "arrivals"}
    marks = {}
    for link, chain in by_link.items():
        (rule,) = [json.loads(r) for r in chains(now)[chain].rules]
        assert rule[0]["match"]["left"] == {"fib": {"result": "type", "flags": ["daddr", "iif"]}}
        marks[link] = rule[-1]["mangle"]["value"]["|"][1]
    assert marks == {"eth0": 0x80, "eth1": 1, "eth2": 2}
    by_pod, to_pods, by_name = [json.loads(rule) for rule in chains(now)["arrival"].rules]
    assert by_pod[-1] == {"return": None}
    assert by_name[0]["vmap"]["data"] == "@arrivals"
    assert to_pods[-1] == {"return": None}  # a pod's address is none of the host


def test_other_mark_bits_may_be_chosen() -> None:
    now = inputs(2, document=document(routing={"markMask": "0xff0000"}))
    (rule,) = chains(now)["eni_1"].rules
    assert json.loads(rule)[0]["mangle"]["value"]["|"][1] == 0x10000
    assert {(r.mark, r.mask) for r in rule_domain.desire(now) if r.mark is not None} == {
        (0x800000, 0xFF0000),
        (0x10000, 0xFF0000),
    }


def test_what_leaves_gets_the_primarys_address_and_a_random_port() -> None:
    (rule,) = chains(inputs(2))["source_nat"].rules
    assert json.loads(rule)[-1] == {
        "snat": {"family": "ip", "addr": "10.0.1.10", "flags": "fully-random"}
    }
    assert json.loads(rule)[0]["match"]["right"] == "eth0"


def rules(now: Any) -> set[NftChain]:
    return {o for o in nat.desire(now) if isinstance(o, NftChain)}


POLICIES: list[dict[str, Any]] = [
    {"mode": "external"},
    {"excludeCIDRs": ["192.0.2.0/24"]},
    {"onlyCIDRs": ["192.0.2.0/24"]},
]


@pytest.mark.parametrize("snat", POLICIES, ids=str)
def test_a_policy_is_elements_of_one_set_and_no_rule(snat: dict[str, Any]) -> None:
    assert rules(inputs(2, document=document(snat=snat))) == rules(inputs(2))


def test_in_mode_external_every_destination_sees_pods() -> None:
    now = inputs(2, document=document(snat={"mode": "external"}))
    assert elements(now, "no_snat_ipv4") == {"0.0.0.0/0"}


def test_with_only_cidrs_all_others_see_pods_and_so_does_the_vpc() -> None:
    snat = {"onlyCIDRs": ["0.0.0.0/1", "10.0.0.0/8"], "excludeCIDRs": ["10.9.0.0/16"]}
    now = inputs(1, document=document(snat=snat))
    assert elements(now, "no_snat_ipv4") == {
        "10.0.0.0/16",
        "10.9.0.0/16",
        "100.64.0.0/16",
        "128.0.0.0/1",
    }


def test_an_element_that_a_source_brings_says_so_when_it_is_added() -> None:
    entry = Entry(ip_network("10.100.0.0/16"), "pcx-1", "shared-services")
    egress = Egress("vpc-1", (Source("@peering", (entry,), 1.0),))
    before = inputs(1, document=document(snat={"excludeCIDRs": ["10.0.0.0/8"]}))
    after = inputs(1, document=document(snat={"excludeCIDRs": ["@peering"]}), egress=egress)
    plan = nat.plan(nat.desire(after), nat.desire(before))
    assert [f"{a} # {a.reason}" for a in plan.actions] == [
        "nft add element inet node_network no_snat_ipv4 { 10.0.0.0/16 } # missing",
        "nft add element inet node_network no_snat_ipv4 { 10.100.0.0/16 }"
        ' # missing: @peering pcx-1, "shared-services"',
        "nft delete element inet node_network no_snat_ipv4 { 10.0.0.0/8 } # not desired",
    ]
    assert nat.plan(nat.desire(after), nat.desire(after)).actions == ()


@pytest.mark.parametrize(
    ("ports", "flags"), [("fully-random",) * 2, ("random",) * 2, ("sequential", None)]
)
def test_ports_are_allocated_as_the_document_says(ports: str, flags: str | None) -> None:
    now = inputs(1, document=document(snat={"ports": ports}))
    (rule,) = chains(now)["source_nat"].rules
    assert json.loads(rule)[-1]["snat"].get("flags") == flags


def test_external_service_addresses_are_routed_by_main() -> None:
    routing = {"externalServiceCIDRs": ["172.20.0.0/17", "172.20.128.0/17"]}
    now = inputs(1, document=document(routing=routing))
    assert elements(now, "by_main_ipv4") == {"172.20.0.0/16"}


def test_the_vpc_is_always_excluded_and_neighbours_become_one_range() -> None:
    now = inputs(1, document=document(snat={"excludeCIDRs": ["10.1.0.0/16", "192.0.2.9"]}))
    assert elements(now, "no_snat_ipv4") == {"10.0.0.0/15", "100.64.0.0/16", "192.0.2.9"}


def test_a_pod_whose_eni_is_gone_is_known_but_sent_nowhere() -> None:
    now = inputs(1, (attachment(1, 2),))
    assert elements(now, "pods_ipv4") == {str(attachment(1, 2).addresses[0])}
    assert elements(now, "pod_eni_ipv4") == set()
    (known,) = [o for o in nat.desire(now) if isinstance(o, NftLink) and o.address]
    assert known.goto == "own"  # which finds none for it


def test_families_are_data() -> None:
    v6 = attachment(1, 1, address=ip_address("2001:db8::9"))
    both = document().model_copy(update={"families": ("ipv4", "ipv6")})
    now = replace(inputs(2, (v6,)), document=both)
    sets = {o.name: o.type for o in nat.desire(now) if isinstance(o, NftSet)}
    assert sets["pods_ipv6"] == "ipv6_addr"
    assert elements(now, "pods_ipv6") == {"2001:db8::9"}
    assert elements(now, "no_snat_ipv6") == {"::/0"}
    assert len(chains(now)["own"].rules) == 3
    assert len(chains(now)["guard"].rules) == 6


def test_what_is_held_is_what_pods_may_get_whether_they_have_it_or_not() -> None:
    enis = (eni(0, 2), eni(1, 0, prefixes=(ip_network("10.0.9.16/28"),)))
    for now in (inputs(2, enis=enis), inputs(2, (attachment(1, 0),), enis=enis)):
        assert elements(now, "held_ipv4") == {"10.0.1.11-10.0.1.12", "10.0.9.16/28"}


def test_what_goes_back_to_ec2_is_not_held_for_it_may_be_another_nodes() -> None:
    prefix, single = ip_network("10.0.9.16/28"), ip_network("10.0.1.12/32")
    enis = (eni(0, 3), eni(1, 0, prefixes=(prefix,)))
    now = inputs(2, enis=enis, ec2=Ec2Inputs(quarantined=frozenset({prefix, single})))
    assert elements(now, "held_ipv4") == {"10.0.1.11", "10.0.1.13"}


@pytest.mark.parametrize("fields", [{"owned": False}, {"status": "detaching"}], ids=str)
def test_an_eni_that_serves_no_pods_holds_nothing(fields: dict[str, Any]) -> None:
    now = inputs(2, enis=(eni(0, 1), eni(1, 4, **fields)))
    assert elements(now, "held_ipv4") == {"10.0.1.11"}


def test_a_prefix_of_ipv6_is_held_as_one_range() -> None:
    prefix = ip_network("2001:db8:1:2:3::/80")
    both = document().model_copy(update={"families": ("ipv4", "ipv6")})
    now = inputs(1, enis=(eni(0, 1, ipv6_prefixes=(prefix,)),), document=both)
    assert elements(now, "held_ipv6") == {"2001:db8:1:2:3::/80"}


def test_packets_to_held_addresses_are_refused_only_on_their_way_out_by_an_eni() -> None:
    found = chains(inputs(2))
    routed, unrouted = {"meta": {"key": "oifname"}}, {"fib": "oifname"}
    for name, left in (("held", unrouted), ("held_sent", routed)):
        leaving = [json.loads(rule) for rule in found[name].rules]
        if name == "held":  # the guard's mark would lead to what the guard has chosen
            (mark, *_), *leaving, own = leaving
            assert mark["mangle"]["value"] == {"&": [{"meta": {"key": "mark"}}, 0xFFFFFF00]}
            assert own == [{"goto": {"target": "own"}}]
        for rule in leaving:
            way = rule[0]["match"]["left"]
            assert way == left or way["fib"]["result"] == left["fib"]
        assert [rule[0]["match"]["right"] for rule in leaving] == ["eth0", "eth1"]
        assert {rule[1]["goto"]["target"] for rule in leaving} == {"refuse"}


def test_packets_of_open_connections_are_not_looked_at() -> None:
    found = chains(inputs(2))
    first, plain, by_primary, bound, *unknown = map(json.loads, found["route_mark"].rules)
    assert first == [UNCONFIRMED, {"jump": {"target": "first"}}]
    assert (plain[0]["match"]["right"], plain[1]) == (0, {"return": None})
    assert by_primary[0]["match"]["right"] == 0x80
    assert by_primary[1:] == [*json.loads(found["eni_0"].rules[0]), {"return": None}]
    assert (bound[0]["match"]["op"], bound[-1]) == ("!=", {"goto": {"target": "bound"}})
    # One that conntrack does not know is looked at, too.
    look, choose = [{"jump": {"target": "first"}}], [{"goto": {"target": "choice"}}]
    assert unknown == [look, choose]
    # With destinations of the main table, and without the guard, there is more to choose.
    for more in (
        {"routing": {"externalServiceCIDRs": ["172.20.0.0/16"]}},
        {"pods": {"spoofing": "allow"}},
    ):
        slower = chains(inputs(2, document=document(**more)))["route_mark"].rules
        later = [CONFIRMED, {"goto": {"target": "choice"}}]
        assert [json.loads(rule) for rule in slower] == [later, look, choose]
    later, *looked = [json.loads(rule) for rule in found["sent"].rules]
    assert later == [CONFIRMED, {"return": None}]
    for rules, held in ((found["first"].rules, "held"), (looked, "held_sent")):
        known, to_held, *_ = [json.loads(r) if isinstance(r, str) else r for r in rules]
        assert (known[0]["match"]["right"], known[1]) == ("@pods_ipv4", {"return": None})
        assert to_held[-1] == {"jump": {"target": held}}


def test_what_came_by_an_eni_is_answered_from_the_hosts_address() -> None:
    """A reset has the gone pod's, which the VPC takes from that one's ENI alone."""
    *came, tcp, others = [json.loads(rule) for rule in chains(inputs(2))["refuse"].rules]
    assert [rule[0]["match"]["right"] for rule in came] == ["eth0", "eth1"]
    assert {rule[1]["reject"]["expr"] for rule in came} == {"port-unreachable"}
    assert tcp[-1] == {"reject": {"type": "tcp reset"}}
    assert others == [{"reject": {"type": "icmpx", "expr": "port-unreachable"}}]


def test_a_pod_is_marked_with_the_device_its_eni_has_now() -> None:
    """ENIs that were detached and attached again may have changed places."""
    one = attachment(1, 1)
    swapped = (eni(0), eni(2, eni_id="eni-1"), eni(1, eni_id="eni-2"))
    now = inputs(3, (one,), enis=swapped)
    (element,) = [o for o in nat.desire(now) if isinstance(o, NftElement) and o.goto]
    assert element.goto == "eni_2"


def links(now: Any) -> set[tuple[str, str, str]]:
    found = [o for o in nat.desire(now) if isinstance(o, NftLink) and o.set != "arrivals"]
    return {(o.set, o.link, str(o.address or o.goto)) for o in found}


def test_a_pods_link_is_guarded_with_every_address_that_the_pod_has() -> None:
    one = attachment(1, addresses=(ip_address("10.0.1.50"), ip_address("fd00::ac:1")))
    both = document(egressFamilies=["ipv6"])
    assert links(inputs(1, (one,), document=both)) == {
        ("links", one.veth, "from_pod"),
        ("guarded_ipv4", one.veth, "10.0.1.50"),
        ("guarded_ipv6", one.veth, "fd00::ac:1"),
        ("links", "eth0", "from_eni"),
    }


def test_a_pod_without_a_link_or_a_namespace_to_make_one_in_is_not_guarded() -> None:
    """Whose link it is that has that name is not known."""
    found = links(inputs(1, (attachment(1, netns_alive=False),)))
    assert found == {("links", "eth0", "from_eni")}


def test_the_guard_asks_the_same_of_any_number_of_pods() -> None:
    many = tuple(attachment(n, address=ip_address(f"10.0.1.{n}")) for n in range(1, 90))
    assert rules(inputs(2, many)) == rules(inputs(2))


def test_what_a_pod_may_send_is_asked_before_conntrack_hears_of_it() -> None:
    by_eni, known, by_link, others = map(json.loads, chains(inputs(2))["guard"].rules)
    *_, source, good = by_eni
    assert (source["match"]["op"], source["match"]["right"]) == ("==", "unicast")
    assert good == {"return": None}
    assert [rule[0]["vmap"]["data"] for rule in (known, by_link)] == ["@guarded_ipv4", "@links"]
    assert others == [{"goto": {"target": "own"}}]
    (martian,) = map(json.loads, chains(inputs(2))["from_eni"].rules)
    assert (martian[1]["match"]["op"], martian[2]) == ("!=", {"goto": {"target": "no_source"}})
    *kept, dropped = [json.loads(rule) for rule in chains(inputs(2))["from_pod"].rules]
    assert [rule[0]["match"]["left"]["payload"]["protocol"] for rule in kept] == ["ip6", "ip6"]
    assert dropped == [{"counter": "spoofed"}, {"drop": None}]


def test_allowed_nothing_of_the_guard_is_there() -> None:
    now = inputs(2, (attachment(1),), document=document(pods={"spoofing": "allow"}))
    assert links(now) == set()
    assert not {"guard", "from_pod", "from_eni", "no_source"} & chains(now).keys()
    named = {o.name for o in nat.desire(now) if isinstance(o, NftSet | NftCounter)}
    assert not {"links", "guarded_ipv4", "spoofed"} & named


PAY: list[dict[str, Any]] = [
    {"match": {"namespace": "pay-*", "pod": "bank-*"}, "access": "allow"},
    {"match": {"namespace": "pay-*"}, "access": "deny"},
]


@pytest.mark.parametrize(
    ("pod", "denied"),
    [
        ("pay-eu/web-1", True),
        ("pay-eu/bank-1", False),
        ("shop/bank-1", False),
        ("shop/pay-1", False),
        ("", True),
    ],
)
def test_the_first_entry_that_matches_a_pod_decides_whether_it_gets_metadata(
    pod: str, denied: bool
) -> None:
    one = attachment(1, pod=pod, addresses=(ip_address("10.0.1.50"), ip_address("2001:db8::9")))
    now = inputs(1, (one,), document=document(pods={"metadata": PAY}, families=["ipv4", "ipv6"]))
    assert elements(now, "no_metadata_ipv4") == ({"10.0.1.50"} if denied else set())
    assert elements(now, "no_metadata_ipv6") == ({"2001:db8::9"} if denied else set())


def test_a_pod_whose_name_is_not_known_gets_metadata_where_nobody_is_denied_it() -> None:
    every = [{"match": {"namespace": "*"}, "access": "allow"}]
    for metadata in ([], every):
        now = inputs(1, (attachment(1),), document=document(pods={"metadata": metadata}))
        assert elements(now, "no_metadata_ipv4") == set()


def test_metadata_is_asked_about_in_first_packets_alone_and_refused_with_a_reset() -> None:
    now = inputs(1, document=document(pods={"metadata": PAY}))
    _, to_metadata, to_held, _ = [json.loads(r) for r in chains(now)["first"].rules]
    assert [e["match"]["right"] for e in to_metadata[:2]] == [
        "169.254.169.254",
        "@no_metadata_ipv4",
    ]
    assert to_held[-1] == {"jump": {"target": "held"}}
    tcp, others = [json.loads(rule) for rule in chains(now)["no_metadata"].rules]
    assert tcp[-1] == {"reject": {"type": "tcp reset"}}
    assert others[-1] == {"reject": {"type": "icmpx", "expr": "admin-prohibited"}}
    assert "no_metadata" not in chains(inputs(1))
