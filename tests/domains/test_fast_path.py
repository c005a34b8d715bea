"""The fast path: which links are in it, and what is made of what is there."""

from __future__ import annotations

from dataclasses import replace

from builders import attachment, eni, inputs

from reconciler.domains import fast_path
from reconciler.domains.fast_path import FlowLink, FlowObject, FlowTable
from reconciler.engine.plan import Change, Verb


def actions(desired: frozenset[FlowObject], observed: frozenset[FlowObject]) -> list[str]:
    plan = fast_path.plan(desired, observed)
    return [f"{a.verb} {' '.join(map(str, a.key))}" for a in plan.actions if isinstance(a, Change)]


def test_links_of_enis_and_pods_are_in_it_and_the_primarys_in_any_case() -> None:
    pods = (attachment(1, 0), attachment(2, 1))
    now = inputs(2, pods)
    enis = {FlowTable(), FlowLink("eth0"), FlowLink("eth1")}
    assert fast_path.desire(now) == enis | {FlowLink(p.veth) for p in pods}
    unused = replace(now, enis=(eni(0, owned=False), eni(1)))
    assert fast_path.desire(unused) == fast_path.desire(now)


def test_a_pod_that_can_have_no_link_is_not() -> None:
    gone = replace(attachment(1), netns_alive=False)
    assert fast_path.links_of_pods(inputs(1, (gone,))) == frozenset()
    assert fast_path.links_of_pods(inputs(1, (gone,), linked=frozenset({gone.key}))) == {
        FlowLink(gone.veth)
    }


def test_the_table_comes_first_and_goes_alone() -> None:
    table, one = FlowTable(), FlowLink("a")
    whole = frozenset({table, one})
    assert actions(whole, frozenset()) == ["+ node_network_flows", "+ a"]
    assert actions(frozenset(), whole) == ["- node_network_flows"]
    assert actions(whole, whole) == []
    assert actions(frozenset({table}), whole) == ["- a"]


def test_a_table_that_is_not_as_written_is_made_anew_with_all_its_links() -> None:
    odd = frozenset({FlowTable(readable=False), FlowLink("a")})
    made = actions(frozenset({FlowTable(), FlowLink("a")}), odd)
    assert made == ["- node_network_flows", "+ node_network_flows", "+ a"]


def test_each_object_says_its_command() -> None:
    for o in (FlowTable(), FlowLink("eth0")):
        assert {o.command(v).split()[0] for v in Verb} == {"nft"}
