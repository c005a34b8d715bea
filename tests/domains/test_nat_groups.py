"""Groups' SNAT policies in the ruleset."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from builders import SUBNET, attachment, document, eni, inputs

from reconciler.domains import nat
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_objects import NftChain, NftElement, NftSet

PAY = {"name": "pay", "match": {"namespace": "pay-*"}, "snat": {"excludeCIDRs": ["10.100.0.0/16"]}}
OUT = {"name": "out", "match": {"namespace": "out"}, "snat": {"mode": "external"}}
PLAIN = {"name": "plain", "match": {"namespace": "plain"}}


def node(pods: int = 1, **parts: Any) -> Inputs:
    """Three ENIs, the second of group pay, the third of group out, with so many pods on each."""
    enis = (eni(0), eni(1, group="pay"), eni(2, group="out"))
    bound = tuple(
        attachment(20 * device + n, device, address=SUBNET[11 + 20 * device + n])
        for device in range(3)
        for n in range(pods)
    )
    given = {"podGroups": [PAY, OUT, PLAIN]} | parts
    return inputs(3, bound, enis=enis, document=document(**given))


def chains(now: Inputs) -> dict[str, NftChain]:
    return {o.name: o for o in nat.desire(now) if isinstance(o, NftChain)}


def elements(now: Inputs, name: str) -> dict[str, str]:
    found = (o for o in nat.desire(now) if isinstance(o, NftElement) and o.set == name)
    return {o.text: o.goto for o in found}


def test_a_pod_is_led_to_the_policy_of_the_group_whose_eni_it_is_on() -> None:
    assert elements(node(), "group_mark_ipv4") == {
        "10.0.1.31": "snat_mark_pay",
        "10.0.1.51": "snat_mark_out",
    }
    assert elements(node(), "group_nat_ipv4") == {
        "10.0.1.31": "source_nat_pay",
        "10.0.1.51": "source_nat_out",
    }
    assert set(elements(node(), "no_snat_ipv4_pay")) == {
        "10.0.0.0/16",
        "10.100.0.0/16",
        "100.64.0.0/16",
    }
    assert set(elements(node(), "no_snat_ipv4_out")) == {"0.0.0.0/0"}
    assert set(elements(node(), "no_snat_ipv4")) == {"10.0.0.0/16", "100.64.0.0/16"}


def test_the_groups_policy_is_asked_first_and_alone() -> None:
    made = chains(node())
    _, held, by_group, default = made["first"].rules
    assert '"held"' in held  # a group's policy is the last word
    assert "@group_mark_ipv4" in by_group
    assert "@no_snat_ipv4" in default
    (mark,) = made["snat_mark_pay"].rules
    assert "@no_snat_ipv4_pay" in mark
    by_group, default = made["source_nat"].rules
    assert "@group_nat_ipv4" in by_group
    assert '"oifname"' in by_group
    (nat_rule,) = made["source_nat_pay"].rules
    assert '"snat"' in nat_rule
    assert not made["source_nat_pay"].hook


def test_the_number_of_rules_is_the_same_for_any_number_of_pods() -> None:
    one, eight = chains(node(1)), chains(node(8))
    assert one == eight
    assert len(elements(node(8), "group_mark_ipv4")) == 16


def test_a_group_without_a_policy_of_its_own_has_no_part_in_the_ruleset() -> None:
    plain = node(podGroups=[PLAIN])
    plain = replace(plain, enis=(eni(0), eni(1, group="plain"), eni(2)))
    none = replace(plain, document=document(), enis=(eni(0), eni(1), eni(2)))
    assert nat.desire(plain) == nat.desire(none)
    assert not [o for o in nat.desire(none) if isinstance(o, NftSet) and "group" in o.name]


def test_pods_of_a_group_that_is_gone_have_the_documents_policy() -> None:
    gone = node(podGroups=[PAY])
    assert set(elements(gone, "group_mark_ipv4")) == {"10.0.1.31"}


def test_only_families_that_are_translated_have_policies() -> None:
    both = node(families=["ipv4", "ipv6"])
    pod = attachment(1, 1, addresses=(SUBNET[31], ip_address("2001:db8:1:0:7::1")))
    both = replace(both, attachments=(pod,))
    assert set(elements(both, "group_mark_ipv4")) == {"10.0.1.31"}
    assert not [
        o for o in nat.desire(both) if isinstance(o, NftSet) and "group_nat_ipv6" in o.name
    ]
