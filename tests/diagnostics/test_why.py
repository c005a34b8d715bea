"""Why objects are there: each rule, route, set and address by its setting, pod or ENI."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from builders import all_inputs, attachment, document, eni, inputs, intent, key
from hypothesis import given, settings

from reconciler.core.attachment import Cooling, IntentState
from reconciler.diagnostics import why, why_pod, why_set
from reconciler.domains import nat, route, rule
from reconciler.domains.inputs import Inputs
from reconciler.domains.nat_objects import NftElement, NftLink
from reconciler.egress.destinations import Egress
from reconciler.egress.source import Entry, Source
from reconciler.engine.plan import Verb
from reconciler.errors import UnknownPodError
from reconciler.ipam.records import Records
from reconciler.ipam.release import Quarantine
from schemas.load import find_places, load
from schemas.origin import Origins

TEXT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
snat:
  excludeCIDRs:
    - 10.100.0.0/16
    - "@peering"
reservedAddresses: [10.0.1.14]
pods:
  metadata:
    - {match: {namespace: pay-*}, access: deny}
overrides:
  - match: {zone: us-east-1b}
    set: {snat: {excludeCIDRs: [10.200.0.0/16]}}
  - match: {instanceType: m5.*}
    set: {warmPool: {cooldown: 60s}}
"""


def origins(zone: str = "us-east-1a") -> Origins:
    places, known = find_places(TEXT, "x.yaml"), load(TEXT, "x.yaml")
    return Origins.on(places, known, instance_type="m5.large", zone=zone, node_name="")


WHERE = origins().of
PAY = attachment(1, 1, pod="pay-eu/web")
WEB = attachment(2, 0, pod="default/web")


def here(**fields: Any) -> Inputs:
    """Two ENIs, a pod on each, and the document of ``TEXT``."""
    entry = Entry(ip_network("10.101.0.0/16"), "pcx-1", "shared")
    egress = Egress("vpc-1", (Source("@peering", (entry,), 1.0),))
    known = load(TEXT, "x.yaml").model_copy(update={"overrides": ()})
    return inputs(2, (PAY, WEB), document=known, egress=egress, **fields)


@pytest.mark.parametrize(
    ("zone", "path", "said"),
    [
        ("us-east-1a", ("snat", "excludeCIDRs", 1), "snat.excludeCIDRs[1] (line 6)"),
        ("us-east-1a", ("snat",), "snat (line 3)"),
        ("us-east-1a", ("families",), "families (by default)"),
        ("us-east-1a", ("warmPool", "cooldown"), "warmPool.cooldown (line 15, in overrides[1])"),
        (
            "us-east-1b",
            ("snat", "excludeCIDRs", 0),
            "snat.excludeCIDRs[0] (line 13, in overrides[0])",
        ),
    ],
)
def test_a_setting_is_named_with_the_line_that_is_in_force_on_this_node(
    zone: str, path: tuple[str | int, ...], said: str
) -> None:
    assert origins(zone).of(*path) == said


@settings(max_examples=20)
@given(all_inputs())
def test_every_object_that_is_desired_has_a_sentence_and_names_it(now: Inputs) -> None:
    def where(*path: str | int) -> str:
        return ".".join(map(str, path))

    rules = {r.command for r in why.explain_rules(now, where)}
    assert rules == {r.command(Verb.CREATE) for r in rule.desire(now)}
    routes = {r.command for r in why.explain_routes(now, where)}
    assert routes == {r.command(Verb.CREATE) for r in route.desire(now) if not r.netns}
    elements: dict[str, int] = {}
    for o in nat.desire(now):
        if isinstance(o, NftElement | NftLink):
            elements[o.set] = elements.get(o.set, 0) + 1
    for found in why_set.explain_sets(now, where):
        (named,) = why_set.explain_sets(now, where, found.name)
        assert len(named.elements) == elements.get(found.name, 0)
        assert why_set.noun_of(found.name) in why_set.ABOUT, "say in ABOUT what it is for"
        assert all(why and not why.startswith(" has") for _, why in named.elements), named
    said = [*why.explain_rules(now, where), *why.explain_routes(now, where)]
    assert not [r for r in said if "an ENI" in r.why], said


def test_rules_are_explained_in_the_kernels_order_with_what_removes_them() -> None:
    told = why.explain_rules(here(), WHERE)
    assert [r.number for r in told] == [512, 1024, 1537, 32765]
    assert told[2].command == (
        "ip rule add priority 1537 fwmark 0x1/0xff lookup 1537 protocol 201"
    )
    assert told[2].why == (
        "packets of pods and connections on eni-1 (device 1, eth1) are marked so by the bits of "
        "routing.markMask (by default), and leave by that ENI; it goes when the ENI is given back "
        "or detached"
    )


def test_a_pods_route_names_the_pod_and_an_enis_route_the_router() -> None:
    told = {r.command.split(" dev")[0]: r.why for r in why.explain_routes(here(), WHERE)}
    pods = told[f"ip route replace {PAY.addresses[0]}/32"]
    assert pods == "it leads to pod pay-eu/web by the host end of its link; it goes with its DEL"
    assert "eni-1 (device 1, eth1)" in told["ip route replace 0.0.0.0/0 via 10.0.1.1"]


def elements(name: str, now: Inputs) -> dict[str, str]:
    (found,) = why_set.explain_sets(now, WHERE, name)
    return dict(found.elements)


def test_elements_are_explained_by_the_lines_of_the_document() -> None:
    assert elements("no_snat_ipv4", here()) == {
        "10.0.0.0/16": "10.0.0.0/16 of the VPC",
        "10.100.0.0/15": (
            "10.100.0.0/16 by snat.excludeCIDRs[0] (line 5), 10.101.0.0/16 of @peering pcx-1, "
            '"shared" by snat.excludeCIDRs[1] (line 6)'
        ),
        "100.64.0.0/16": "100.64.0.0/16 of the VPC",
    }
    (denied,) = elements("no_metadata_ipv4", here()).items()
    assert denied == (str(PAY.addresses[0]), "pod pay-eu/web, by pods.metadata[0] (line 10)")
    assert elements("pod_eni_ipv4", here())[str(WEB.addresses[0])] == "pod default/web, on eni-0"
    external = replace(here(), document=document(snat={"mode": "external"}))
    assert elements("no_snat_ipv4", external) == {"0.0.0.0/0": "snat.mode (by default)"}
    assert why_set.explain_sets(here(), WHERE, "nothing") == []


RECORDS = Records(
    intents=(intent(1, pod="pay-eu/web"), intent(3, pod="default/late")),
    attachments=(PAY, WEB),
    cooling=(Cooling(ip_address("10.0.1.15"), 120.0),),
    quarantined=(Quarantine(ip_network("10.0.1.16/32"), 70.0),),
)


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (str(PAY.addresses[0]), "assigned: pod pay-eu/web has it, with link"),
        ("10.0.1.15", "cooling: its pod has ended; allocatable in 20 s, by warmPool.cooldown "),
        ("10.0.1.16", "quarantined for 30 s, with 10.0.1.16/32: the pool does not need it"),
        ("10.0.1.14", "reserved, by reservedAddresses[0] (line 7): no pod is given it"),
        ("10.0.1.17", "on the host: eth0; no pod is given it"),
        ("10.0.1.18", "allocatable: the next pod may get it"),
        ("10.0.1.10", "it is the node's own address on eni-0 (device 0): no pod is given it"),
    ],
)
def test_an_address_of_this_node_has_one_state(address: str, said: str) -> None:
    now = here(occupied={ip_network("10.0.1.17/32"): "eth0"}, now=100.0)
    told = list(why_pod.own_address(ip_address(address), RECORDS, now, WHERE))
    assert told[-1].startswith(said), told
    assert len(told) == (1 if "own address" in said else 2)
    assert list(why_pod.own_address(ip_address("192.0.2.1"), RECORDS, now, WHERE)) == []


def test_a_pod_is_explained_by_its_records_its_eni_and_its_settings() -> None:
    found = why_pod.find(RECORDS, "pay-eu/web")
    rows = dict(why_pod.explain_pod(found, here(), WHERE, since="2026-01-01T00:00:00+00:00"))
    assert rows["state"].startswith("ready: all of its objects were seen in place")
    assert rows["address"] == (
        f"{PAY.addresses[0]}: the first free one on eni-1 (device 1, eth1) in subnet subnet-a, by "
        "eni.subnets (by default), when it asked"
    )
    assert rows["since"].startswith("2026-01-01T00:00:00+00:00")
    assert rows["group"] == "none"
    assert "60 s" not in rows["ends"]  # the override is not in these inputs
    assert rows["ends"].endswith("by warmPool.cooldown (line 15, in overrides[1])")
    assert rows["object"].startswith("nsenter --net=/run/netns/pod1 ip route replace")


def test_a_pod_that_waits_is_found_and_one_that_is_ambiguous_is_not() -> None:
    waits = why_pod.find(RECORDS, "late")
    assert waits.key == key(3)
    rows = dict(why_pod.explain_pod(waits, here(), WHERE))
    assert rows["state"] == "wanted: waits for an address"
    assert "address" not in rows
    for text in ("web", "nothing", "pod"):
        with pytest.raises(UnknownPodError):
            why_pod.find(RECORDS, text)
    released = Records(intents=(intent(1, IntentState.RELEASED),), attachments=(PAY,))
    assert why_pod.find(released, "web").state == "released"


def test_an_eni_that_serves_a_pod_no_more_is_no_error() -> None:
    alone = replace(here(), enis=(eni(0),), links={})
    found = why_pod.find(RECORDS, "pay-eu/web")
    rows = dict(why_pod.explain_pod(found, alone, WHERE))
    assert rows["address"] == f"{PAY.addresses[0]}: of an ENI that EC2 shows here no more"
