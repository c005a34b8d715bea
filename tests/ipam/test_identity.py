"""Which namespaces have an address of their own, and what the pool holds for them."""

from __future__ import annotations

from typing import Any

from builders import SUBNET, attachment, document, eni, intent

from reconciler.core.attachment import IntentState
from reconciler.ipam.identity import (
    MAX_IDENTITIES,
    EgressIdentity,
    Owner,
    is_asked_for,
    missing,
    owner_of,
    owners,
    rules_of,
)
from reconciler.ipam.pool import Demand, band
from reconciler.ipam.pool_groups import demand_of, demands
from reconciler.ipam.records import Records
from schemas.document import NodeNetwork
from schemas.pool import AddressTarget


def given(*rules: tuple[str, str], **more: Any) -> NodeNetwork:
    listed = [{"namespace": n, "to": ["10.100.0.0/16"], "as": word} for n, word in rules]
    return document(snat={"rules": listed}, **more)


PAY = EgressIdentity("pay", "", (SUBNET[12],), "eni-0")


def test_the_rules_for_a_pod_are_those_whose_pattern_its_namespace_matches() -> None:
    rules = given(("pay-*", "pod"), ("*", "node"), ("pay-[a-c]", "dedicated")).snat.rules
    assert rules_of("pay-a/x", rules) == (0, 1, 2)
    assert rules_of("web/pay-a", rules) == (1,)
    assert rules_of("", rules) == ()  # its name is not known


def test_an_identity_is_of_a_namespace_and_of_the_group_of_its_pod() -> None:
    groups = [{"name": "front", "match": {"pod": "web-*"}}]
    here = given(("pay", "dedicated"), ("out", "pod"), podGroups=groups)
    assert owner_of("pay/api", here) == Owner("pay")
    assert owner_of("pay/web-1", here) == Owner("pay", "front")
    assert owner_of("out/api", here) is None
    assert is_asked_for(Owner("pay", "front"), here)
    assert not is_asked_for(Owner("pay", "gone"), here)
    assert not is_asked_for(Owner("out"), here)
    assert owners(["pay/a", "pay/b", ""], here) == {Owner("pay")}


def test_there_are_so_many_and_no_more_and_none_for_what_is_no_namespace() -> None:
    held = [EgressIdentity(f"n{n}", "", (SUBNET[12],), "eni-0") for n in range(MAX_IDENTITIES - 1)]
    wanted = [Owner("n0"), Owner("b"), Owner("a"), Owner("../c"), Owner("A"), Owner("")]
    assert missing(wanted, held) == ([Owner("a")], [Owner("b")])


def test_demand_has_what_is_dedicated_and_what_is_to_be() -> None:
    here = given(("*", "dedicated"))
    records = Records(
        attachments=(attachment(1, pod="pay/a"), attachment(2, pod="web/b")),
        intents=(intent(3, pod="new/c"), intent(4, IntentState.RELEASED, pod="old/d")),
        identities=(PAY,),
    )
    demand = demand_of(records, here)
    assert demand == Demand(assigned=2, cooling=0, waiting=3, dedicated=1)
    assert demand.total == 6
    assert str(demand).endswith("+ waiting 3 + dedicated 1")
    assert demand_of(records, document()).waiting == 1


def test_what_is_dedicated_is_held_on_top_of_max_pods() -> None:
    demand = Demand(assigned=3, cooling=1, dedicated=2)
    found = band(AddressTarget(warm=9), demand, per_eni=9, max_pods=5)
    assert (found.low, found.binds) == (8, "maxPods")
    assert found.terms[-1][2] == "maxPods 5 + cooling 1 + dedicated 2, at most"


def test_an_identity_counts_for_the_group_whose_eni_it_is_on() -> None:
    groups = [{"name": "front", "match": {"pod": "web-*"}}]
    here = given(("pay", "dedicated"), podGroups=groups)
    held = EgressIdentity("pay", "front", (SUBNET[31],), "eni-1")
    records = Records(
        attachments=(attachment(1, 1, pod="pay/web-1"), attachment(2, 0, pod="pay/api")),
        identities=(held,),
    )
    demand = demand_of(records, here)
    assert demand.waiting_in == ()  # that of no group is missing
    assert demand.waiting == 1
    enis = (eni(0), eni(1, group="front"))
    assert demands(records, demand, here, enis, ()) == {"front": Demand(1, 0, 0, dedicated=1)}
    without = Records(attachments=records.attachments)
    assert demand_of(without, here).waiting_in == (("front", 1),)
