"""Egress identities: bound with pods' addresses, kept, and given back with a cooldown."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from builders import SUBNET, attachment, document, eni, inputs, intent
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.attachment import Attachment, AttachmentKey, Cooling
from reconciler.domains import attachment as domain
from reconciler.engine.plan import Plan, Verb
from reconciler.ipam.identity import IDLE_S, LOST_S, EgressIdentity
from reconciler.ipam.records import Records
from reconciler.ipam.release import Quarantine

RULES = [{"namespace": "pay-*", "to": ["10.100.0.0/16", "::/0"], "as": "dedicated"}]
NOW = 1000.0


def parts(**more: Any) -> dict[str, Any]:
    rules = [RULES[0] | {"to": ["10.100.0.0/16"]}]
    return {"snat": {"rules": rules}, "warmPool": {"cooldown": "30s"}} | more


def plan(records: Records, devices: int = 1, keys: Any = None, **fields: Any) -> Plan:
    fields = {"document": document(**parts()), "now": NOW} | fields
    desired = domain.desire(inputs(devices, **fields))
    if keys is None:
        return domain.plan(desired, records)
    return domain.plan_pods(keys, desired, records)


def bound(found: Plan, verb: Verb = Verb.CREATE) -> dict[tuple[str, str], tuple[str, ...]]:
    return {
        (o.namespace, o.group): tuple(map(str, o.addresses))
        for a in found.actions
        if a.verb is verb and isinstance(o := getattr(a, "object", None), EgressIdentity)
    }


def objects(found: Plan, verb: Verb, kind: type) -> list[Any]:
    every = [(a.verb, getattr(a, "object", None)) for a in found.actions]
    return [o for v, o in every if v is verb and isinstance(o, kind)]


def asking(*pods: str) -> Records:
    return Records(intents=tuple(intent(n, pod=pod) for n, pod in enumerate(pods)))


HELD = EgressIdentity("pay-a", "", (SUBNET[13],), "eni-0")


def test_a_namespace_gets_an_address_before_its_first_pod_and_only_one() -> None:
    found = plan(asking("pay-a/x", "pay-a/y", "web/z", "pay-b/x"))
    assert bound(found) == {("pay-a", ""): ("10.0.1.11",), ("pay-b", ""): ("10.0.1.12",)}
    pods = objects(found, Verb.CREATE, Attachment)
    assert [str(a.addresses[0]) for a in pods] == [f"10.0.1.{n}" for n in (13, 14, 15, 16)]
    assert found.refusals == ()


def test_an_add_is_answered_with_its_namespaces_address_bound() -> None:
    found = plan(asking("pay-a/x", "pay-b/y"), keys={AttachmentKey("pod0", "eth0")})
    assert set(bound(found)) == {("pay-a", "")}
    kinds = [type(getattr(a, "object", None)) for a in found.actions]
    assert kinds == [EgressIdentity, Attachment]


def test_no_pod_gets_the_address_of_a_namespace() -> None:
    records = replace(asking("web/x"), identities=(replace(HELD, addresses=(SUBNET[11],)),))
    (pod,) = objects(plan(records), Verb.CREATE, Attachment)
    assert pod.addresses == (SUBNET[12],)


def test_it_is_of_an_eni_of_the_pods_group() -> None:
    groups = [{"name": "pay", "match": {"namespace": "pay-*"}}]
    enis = (eni(0), eni(1, group="pay"))
    here = document(**parts(podGroups=groups))
    found = plan(asking("pay-a/x"), 2, enis=enis, document=here)
    assert bound(found) == {("pay-a", "pay"): ("10.0.1.31",)}


def test_with_two_families_it_has_an_address_of_each_on_one_eni() -> None:
    prefix = ip_network("2001:db8:1:0:7::/80")
    enis = (eni(0, secondaries=0), eni(1, ipv6_prefixes=(prefix,)))
    here = document(**parts(families=["ipv4", "ipv6"]))
    found = plan(asking("pay-a/x"), 2, enis=enis, document=here)
    assert bound(found) == {("pay-a", ""): ("10.0.1.31", "2001:db8:1:0:7::1")}
    # One from before IPv6 gets the second address, and keeps the first.
    held = EgressIdentity("pay-a", "", (SUBNET[33],), "eni-1")
    found = plan(replace(asking("pay-a/x"), identities=(held,)), 2, enis=enis, document=here)
    assert bound(found, Verb.UPDATE) == {("pay-a", ""): ("10.0.1.33", "2001:db8:1:0:7::1")}
    (pod,) = objects(found, Verb.CREATE, Attachment)
    assert pod.addresses == (SUBNET[31], ip_address("2001:db8:1:0:7::2"))


def test_a_family_that_it_has_no_address_of_is_named_while_pods_have_one() -> None:
    """Else its pods' connections of that family are refused, and nobody is told."""
    enis = (eni(0), eni(1, ipv6_prefixes=(ip_network("2001:db8:1:0:7::/80"),)))
    here = document(**parts(families=["ipv4", "ipv6"], snat={"rules": RULES}))
    records = replace(asking("pay-a/x"), identities=(HELD,))
    found = plan(records, 2, enis=enis, document=here)
    (told,) = [i for i in found.refusals if i.reason == "IdentityMissing"]
    assert told.subject == "egress identity of namespace pay-a"
    assert "eni-0, which has its 10.0.1.13, has no free ipv6 address" in told.message
    # No rule is about IPv6: nothing of it is refused.
    here = document(**parts(families=["ipv4", "ipv6"]))
    assert not plan(records, 2, enis=enis, document=here).refusals
    # No pod of it is here: nobody is refused.
    here = document(**parts(families=["ipv4", "ipv6"], snat={"rules": RULES}))
    idle = Records(identities=(replace(HELD, idle_since=NOW),))
    assert not plan(idle, 2, enis=enis, document=here).refusals


def test_an_address_that_is_reserved_or_on_the_host_later_is_named() -> None:
    records = Records(attachments=(attachment(1, pod="pay-a/x"),), identities=(HELD,))
    own = ip_network((HELD.addresses[0], 32))
    (told,) = plan(records, reserved=frozenset({own})).refusals
    assert (told.subject, told.reason) == (
        "egress identity of namespace pay-a",
        "AddressReserved",
    )
    assert "10.0.1.13, which reservedAddresses names since" in told.message
    (told,) = plan(records, occupied={own: "it is on eth0"}).refusals
    assert told.reason == "AddressOnHost"
    assert "packets for namespace pay-a end at the host" in told.message


def test_on_a_node_of_ipv6_alone_it_is_of_the_prefix() -> None:
    rules = [RULES[0] | {"to": ["::/0"]}]
    enis = (eni(0, 0, ipv6_prefixes=(ip_network("2001:db8:1:0:7::/80"),)),)
    here = document(snat={"rules": rules}, families=["ipv6"])
    assert bound(plan(asking("pay-a/x"), enis=enis, document=here)) == {
        ("pay-a", ""): ("2001:db8:1:0:7::1",)
    }


@pytest.mark.parametrize("why", ["none", "quarantined", "cooling", "reserved"])
def test_without_a_free_address_it_is_refused_by_name_and_others_are_served(why: str) -> None:
    records = asking("pay-a/x")
    fields: dict[str, Any] = {"enis": (eni(0, 1),)}
    match why:
        case "none":
            fields = {"enis": (eni(0, 0),)}
        case "quarantined":
            records = replace(
                records, quarantined=(Quarantine(ip_network((SUBNET[11], 32)), NOW),)
            )
        case "cooling":
            records = replace(records, cooling=(Cooling(SUBNET[11], NOW + 9),))
        case "reserved":
            fields["reserved"] = frozenset({SUBNET})
    found = plan(records, **fields)
    assert bound(found) == {}
    told = {i.reason: i for i in found.refusals}
    assert told["IdentityMissing"].subject == "egress identity of namespace pay-a"
    assert "is free" in told["IdentityMissing"].message
    assert "refused until" in told["IdentityMissing"].message


def test_what_is_no_namespace_gets_none_and_is_named() -> None:
    found = plan(asking("pay-../../etc/x"))
    assert bound(found) == {}
    assert [i.reason for i in found.refusals] == ["NotANamespace"]


def test_a_rule_that_goes_gives_the_address_back_and_spares_its_connections() -> None:
    records = Records(attachments=(attachment(1, pod="pay-a/x"),), identities=(HELD,))
    found = plan(records, document=document(warmPool={"cooldown": "30s"}))
    assert objects(found, Verb.CREATE, Cooling) == [Cooling(SUBNET[13], NOW + 30, spares=True)]
    assert objects(found, Verb.DELETE, EgressIdentity) == [HELD]
    verbs = [a.verb for a in found.actions if "13" in str(a) or "pay-a" in str(a)]
    assert verbs == [Verb.CREATE, Verb.DELETE]  # the address is held at every point


@pytest.mark.parametrize("open_", [True, False])
def test_it_rests_from_when_it_is_released_whatever_an_earlier_process_has_begun(
    open_: bool,
) -> None:
    """Which died before the release: until now the ruleset has led to the address."""
    records = Records(identities=(HELD,), cooling=(Cooling(SUBNET[13], NOW - 1, spares=True),))
    flows = frozenset({SUBNET[13]} if open_ else ())
    found = plan(records, document=document(warmPool={"cooldown": "30s"}), flows=flows)
    assert objects(found, Verb.UPDATE, Cooling) == [Cooling(SUBNET[13], NOW + 30, spares=True)]
    assert objects(found, Verb.DELETE, Cooling) == []
    assert objects(found, Verb.DELETE, EgressIdentity) == [HELD]
    # If the rule has come back instead, that rest ends as any, and the namespace keeps it.
    found = plan(records, flows=flows)
    assert len(objects(found, Verb.DELETE, Cooling)) == (not open_)
    assert objects(found, Verb.DELETE, EgressIdentity) == []


def test_it_stays_without_a_pod_for_a_day() -> None:
    (idle,) = objects(plan(Records(identities=(HELD,))), Verb.UPDATE, EgressIdentity)
    assert idle == replace(HELD, idle_since=NOW)
    assert plan(Records(identities=(idle,)), now=NOW + IDLE_S - 1).actions == ()
    late = plan(Records(identities=(idle,)), now=NOW + IDLE_S)
    assert objects(late, Verb.DELETE, EgressIdentity) == [idle]
    assert objects(late, Verb.CREATE, Cooling)
    again = replace(asking("pay-a/x"), identities=(idle,))
    assert HELD in objects(plan(again, now=NOW + 60), Verb.UPDATE, EgressIdentity)


def test_it_is_replaced_when_ec2_has_not_shown_it_for_a_while_and_not_before() -> None:
    bound_to = (attachment(1, pod="pay-a/x"),)
    records = Records(attachments=bound_to, identities=(replace(HELD, addresses=(SUBNET[99],)),))
    found = plan(records)
    (lost,) = objects(found, Verb.UPDATE, EgressIdentity)
    assert lost.lost_since == NOW
    assert [i.reason for i in found.refusals] == ["IdentityLost"]
    records = replace(records, identities=(lost,))
    assert objects(plan(records, now=NOW + LOST_S - 1), Verb.DELETE, EgressIdentity) == []
    late = plan(records, now=NOW + LOST_S)
    assert objects(late, Verb.DELETE, EgressIdentity) == [lost]
    assert objects(late, Verb.CREATE, Cooling) == []  # it is not ours any more
    assert bound(plan(replace(records, identities=()))) == {("pay-a", ""): ("10.0.1.11",)}


def test_an_address_that_a_pod_has_is_taken_from_the_namespace() -> None:
    """A record that was kept, or put back by hand, may name what a pod was given since."""
    pod = attachment(1, pod="pay-a/x", address=SUBNET[13])
    found = plan(Records(attachments=(pod,), identities=(HELD,)))
    assert objects(found, Verb.DELETE, EgressIdentity) == [HELD]
    assert objects(found, Verb.CREATE, Cooling) == []


def test_the_node_without_an_address_of_the_family_is_named() -> None:
    rules = [{"namespace": "*", "to": ["::/0"], "as": "node"}]
    here = document(snat={"rules": rules}, families=["ipv4", "ipv6"])
    told = plan(Records(), document=here).refusals
    assert [(i.subject, i.reason) for i in told] == [("snat.rules[0]", "NodeAddressMissing")]
    own = eni(0, host_addresses=(ip_address("2001:db8:1::10"),))
    assert plan(Records(), document=here, enis=(own,)).refusals == ()


@given(
    st.lists(st.sampled_from(["pay-a", "pay-b", "web"]), max_size=6),
    st.integers(0, 8),
    st.sets(st.integers(11, 19)),
)
def test_no_address_has_two_holders_whatever_there_is(
    namespaces: list[str], room: int, cooling: set[int]
) -> None:
    records = asking(*(f"{ns}/p{n}" for n, ns in enumerate(namespaces)))
    cold = tuple(Cooling(SUBNET[n], NOW + 9) for n in sorted(cooling))
    records = replace(records, cooling=cold)
    found = plan(records, enis=(eni(0, room),))
    given_out = [a for own in bound(found).values() for a in own]
    given_out += [str(a.addresses[0]) for a in objects(found, Verb.CREATE, Attachment)]
    assert len(given_out) == len(set(given_out))
    assert not {str(c.address) for c in cold} & set(given_out)
    pays = {ns for ns in namespaces if ns != "web"}
    refused = [i for i in found.refusals if i.reason == "IdentityMissing"]
    assert len(bound(found)) + len(refused) == len(pays)
