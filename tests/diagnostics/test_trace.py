"""Trace: the walk over values, and what it says when node and document differ."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from builders import attachment, document, inputs

from reconciler.core.datapath import LOCAL_TABLE
from reconciler.diagnostics.lookup import Found, Tables, make_tables
from reconciler.diagnostics.trace import Query, Trace, find_pod, trace
from reconciler.diagnostics.trace_check import compare, compare_inside
from reconciler.domains import nat, route, rule
from reconciler.domains.inputs import Inputs
from reconciler.domains.route import Route
from reconciler.domains.rule import Rule
from reconciler.errors import UnknownPodError

PEER, INTERNET = ip_address("10.100.0.10"), ip_address("198.51.100.10")
KERNEL = (
    Rule("ipv4", 0, LOCAL_TABLE, protocol=2),
    Rule("ipv4", 32766, 254, protocol=2),
    Rule("ipv4", 32767, 253, protocol=2),
)
MAIN = (
    Route("", 254, ip_network("0.0.0.0/0"), "eth0", ip_address("10.0.1.1"), protocol=16),
    Route("", 254, ip_network("10.0.1.0/24"), "eth0", protocol=2),
)


def node(snat: dict[str, Any] | None = None, **more: Any) -> Inputs:
    pods = (attachment(1, 0, pod="web/a"), attachment(2, 1, pod="web/b"))
    return inputs(3, pods, document=document(snat=snat or {}, **more))


def tables(now: Inputs) -> Tables:
    return make_tables(
        (*KERNEL, *rule.desire(now)),
        (*MAIN, *route.desire(now)),
        nat.desire(now),
        [now.enis[0].primary],
    )


def walk(now: Inputs, query: Query) -> Trace:
    return trace(query, now, tables(now))


def words(traced: Trace, about: str) -> list[str]:
    return [s.text for leg in traced.legs for s in leg.steps if s.about == about]


def test_every_decision_is_named_with_the_word_of_the_document_that_made_it() -> None:
    now = node({"excludeCIDRs": ["10.100.0.0/16"]})
    pod = now.attachments[1]
    traced = walk(now, Query(pod, PEER))
    (said,) = words(traced, "snat")
    assert said.endswith("in no_snat_ipv4 10.100.0.0/16, by snat.excludeCIDRs 10.100.0.0/16")
    assert words(traced, "mark") == [f"0x1: guarded_ipv4 has {pod.addresses[0]} : eni_1"]
    assert "rule 1537: fwmark 0x1/0xff lookup 1537; route default via" in words(traced, "route")[0]
    assert (traced.source, traced.device, traced.troubles) == (pod.addresses[0], 1, ())


def test_without_the_exclusion_the_peer_sees_the_node_and_the_answer_finds_the_pod() -> None:
    now = node()
    pod = now.attachments[1]
    traced = walk(now, Query(pod, PEER))
    assert (str(traced.source), traced.device) == ("10.0.1.10", 0)
    assert words(traced, "conntrack") == [f"10.0.1.10 becomes {pod.addresses[0]} again"]
    assert words(traced, "route")[-1].endswith(f"dev {pod.veth}")


def test_a_source_that_the_vpc_would_drop_is_a_trouble() -> None:
    """A foreign rule sends a pod of ENI 1 out of ENI 0."""
    now = node({"mode": "external"})
    there = tables(now)
    foreign = Rule("ipv4", 100, 254, source=ip_network("10.0.1.0/24"), protocol=0)
    there = replace(there, rules=(foreign, *there.rules))
    traced = trace(Query(now.attachments[1], PEER), now, there)
    assert traced.device == 0
    assert "the VPC drops it" in traced.troubles[0]


def test_where_the_node_differs_both_sides_are_named() -> None:
    now = node()
    pod = now.attachments[1]
    there = replace(tables(now), verdicts={}, links={})
    query = Query(pod, ip_address("10.0.9.10"))
    planned, actual = walk(now, query), trace(query, now, there)
    lookups = [d for leg in planned.legs for _, d in leg.lookups]
    answers = [
        Found(d.rule.table, d.device, d.route.gateway) for d in lookups if d.rule and d.route
    ]
    (said, *_) = compare(planned, actual, answers)
    assert "guarded_ipv4 has" in said
    assert "pod_eni_ipv4 does not know" in said


def test_a_pod_that_its_link_is_not_known_for_is_said_to_be_dropped() -> None:
    now = node()
    pod, query = now.attachments[1], Query(now.attachments[1], PEER)
    there = tables(now)
    own = (pod.veth, pod.addresses[0])
    lost = replace(there, links={k: v for k, v in there.links.items() if k != own})
    text = f"{pod.addresses[0]} is no address of {pod.veth}: what carries it is dropped"
    assert words(trace(query, now, lost), "guard") == [text]
    assert text in trace(query, now, lost).troubles
    for free in (there, replace(lost, links={})):
        assert words(trace(query, now, free), "guard") == []


def test_where_the_kernel_differs_the_command_to_ask_it_is_given() -> None:
    now = node()
    query = Query(now.attachments[1], ip_address("10.0.9.10"))
    planned = walk(now, query)
    answers = [Found(0, "", refusal="Invalid cross-device link"), Found(300, "eth9")]
    first, second = compare(planned, planned, answers)
    assert first.startswith(f"ip route get 10.0.9.10 from {now.attachments[1].addresses[0]} iif")
    assert "Invalid cross-device link" in first
    assert "the kernel says table 300 dev eth9" in second


def test_a_pod_that_sends_its_packets_elsewhere_is_told_with_what_its_kernel_says() -> None:
    pod = node().attachments[1]
    right = Found(254, pod.key.ifname, ip_address("169.254.1.1"))
    assert compare_inside(pod, PEER, right) == ()
    (lost,) = compare_inside(pod, PEER, Found(0, "", refusal="Network is unreachable"))
    assert lost.startswith(f"in the pod, ip route get {PEER}: the kernel says 'Network is unr")
    (other,) = compare_inside(pod, PEER, Found(254, "net1", ip_address("192.0.2.1")))
    assert "dev net1 via 192.0.2.1, not dev eth0 via 169.254.1.1" in other


def test_a_connection_by_a_port_of_the_node_is_answered_by_the_eni_it_came_by() -> None:
    now = node()
    for eni in now.enis:
        for pod in now.attachments:
            traced = walk(now, Query(pod, PEER, inbound=True, at=eni.primary))
            assert traced.device == eni.device_index
            assert traced.troubles == ()


def test_an_address_that_no_eni_has_is_a_trouble() -> None:
    now = node()
    stray = replace(now.attachments[0], addresses=(ip_address("10.0.1.250"),))
    traced = walk(now, Query(stray, PEER, inbound=True))
    assert "the VPC knows no way to it" in traced.troubles[0]


def test_a_pod_without_the_family_is_said_to_have_none() -> None:
    traced = walk(node(), Query(node().attachments[0], ip_address("2001:db8::1")))
    assert traced.troubles == ("the pod has no ipv6 address; see families in the document",)


@pytest.mark.parametrize("text", ["web/b", "b", "pod2"])
def test_a_pod_is_found_by_any_of_its_names(text: str) -> None:
    pods = node().attachments
    assert find_pod(pods, text) == pods[1]
    assert find_pod(pods, str(pods[1].addresses[0])) == pods[1]


def test_what_is_no_pods_name_or_several_is_refused_with_those_there_are() -> None:
    pods = node().attachments
    for text in ("c", "pod"):
        with pytest.raises(UnknownPodError, match="web/a, web/b"):
            find_pod(pods, text)
    assert find_pod(pods, "host") is None
