"""What of the stock plugin's becomes ours and what goes, decided from values alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from builders import SUBNET, attachment, document, eni, inputs, intent
from fakes import FakeRemains, FakeState
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.attachment import AttachmentKey, IntentState
from reconciler.diagnostics import stock_plugin
from reconciler.diagnostics.stock_objects import (
    Allocation,
    IptablesChain,
    IptablesRule,
    Leftover,
    PodEnd,
    Sighting,
    StockRoute,
    StockRule,
    StockTable,
)
from reconciler.domains import attachment as attachment_domain
from reconciler.domains import eni as eni_domain
from reconciler.domains import link, route
from reconciler.domains.inputs import Predecessor
from reconciler.domains.link import Veth
from reconciler.domains.route import Route
from reconciler.engine.converge import Domain, converge
from reconciler.engine.plan import Change, Verb
from reconciler.ipam.cloud import Cloud, Limits
from reconciler.ipam.ec2_action import AdoptEni
from reconciler.ipam.records import Records
from reconciler.migration import takeover
from reconciler.node.stock_plugin import StockPlugin

POD = SUBNET[31]  # the first of the second ENI's
VETH = "eni0123456789a"
ENIS = (eni(0), eni(1))
LINKS = {e.mac: f"eth{e.device_index}" for e in ENIS}
KEY = AttachmentKey("c0ffee", "eth0")
TO_POD = StockRule(512, 254, destination=ip_network(f"{POD}/32"))
POD_ROUTE = StockRoute(254, ip_network(f"{POD}/32"), VETH)
END = PodEnd("/run/netns/x@7", "eth0", "02:11:00:00:00:01", "02:11:00:00:00:02")
SEEN = Sighting(
    rules=(TO_POD, StockRule(1024, 254, mark=0x80, mask=0x80)),
    routes=(POD_ROUTE, StockRoute(254, ip_network("10.0.1.0/24"), "eth0", protocol=2)),
    allocations={POD: Allocation(KEY, POD, "default/web")},
)


def consider(seen: Sighting = SEEN, **fields: Any) -> Predecessor:
    values: dict[str, Any] = {
        "ends": {VETH: END},
        "enis": ENIS,
        "records": Records(),
    }
    values |= fields
    return takeover.consider(seen, values.pop("ends"), **values)


def asked(*refusals: Any, enis: Any = ENIS) -> takeover.Retirement:
    return takeover.Retirement(refusals, enis, LINKS)


def test_a_pod_becomes_ours_with_the_name_macs_and_namespace_it_has() -> None:
    found = consider()
    ((bound, wanted),) = found.adoptions
    assert (bound.key, bound.addresses, bound.eni_id, bound.veth) == (KEY, (POD,), "eni-1", VETH)
    assert (bound.host_mac, bound.pod_mac) == (END.host_mac, END.mac)
    assert (bound.netns, bound.pod) == ("/run/netns/x@7", "default/web")
    assert (wanted.state, wanted.netns, wanted.netns_inode) == (
        IntentState.WANTED,
        "/run/netns/x",
        7,
    )
    assert (found.held, found.refusals) == ({POD}, ())


def test_unasked_its_addresses_are_held_and_nothing_else_happens() -> None:
    found = StockPlugin(FakeRemains(SEEN)).consider(Records(), ENIS, asked=False, now=0.0)
    assert found == Predecessor(held=frozenset({POD}))


@pytest.mark.parametrize(
    ("change", "fields", "why"),
    [
        ({"allocations": {}}, {}, "does not name it"),
        ({"allocations": {}, "unread": "x.json is torn"}, {}, "x.json is torn"),
        ({}, {"ends": {}}, "network namespace"),
        ({}, {"enis": (eni(0),)}, "no ENI has it"),
        ({}, {"enis": (eni(0), eni(1, owned=False))}, "eni-1 does not carry"),
    ],
)
def test_one_pod_that_cannot_be_explained_holds_up_all(
    change: dict[str, Any], fields: dict[str, Any], why: str
) -> None:
    other = StockRoute(254, ip_network(f"{SUBNET[11]}/32"), "eni0123456789b")
    known = Allocation(AttachmentKey("cafe", "eth0"), SUBNET[11], "default/db")
    seen = replace(SEEN, routes=(*SEEN.routes, other))
    allocations = change.get("allocations", seen.allocations) | {SUBNET[11]: known}
    seen = replace(seen, **(change | {"allocations": allocations}))
    ends = fields.pop("ends", {VETH: END}) | {other.device: END}
    found = consider(seen, ends=ends, **fields)
    assert found.adoptions == ()
    (refusal,) = found.refusals
    assert refusal.reason == "StockPodUnknown"
    assert why in refusal.message
    assert takeover.plan(asked(refusal), seen).actions == ()


def test_pods_wait_for_their_eni_without_a_complaint() -> None:
    """EC2 is slower than the kernel: its tags come first."""
    waiting = consider(enis=(eni(0), eni(1, owned=False, stock=True)))
    assert (waiting.adoptions, waiting.refusals, waiting.held) == ((), (), {POD})


def test_while_its_daemon_runs_nothing_is_taken_over() -> None:
    found = consider(replace(SEEN, running=True))
    assert (found.taking_over, found.adoptions, found.held) == (False, (), {POD})
    assert [r.reason for r in found.refusals] == ["StockPluginRunning"]


def test_what_a_crash_left_half_recorded_is_completed() -> None:
    ((bound, wanted),) = consider().adoptions
    assert consider(records=Records((), (bound,))).adoptions == ((bound, wanted),)
    done = consider(records=Records((wanted,), (bound,)))
    assert (done.adoptions, done.held) == ((), frozenset())


def test_a_pod_that_was_given_back_is_not_taken_up_again() -> None:
    ((_, wanted),) = consider().adoptions
    released = replace(wanted, state=IntentState.RELEASED)
    assert consider(records=Records((released,))).adoptions == ()


def test_adoption_settles_and_binds_nobody_to_an_address_that_is_held() -> None:
    """A new pod that waits gets no address that a pod of the stock plugin's has."""
    held = frozenset(e for one in ENIS for e in one.pod_addresses if e != SUBNET[39])
    adoptions = consider().adoptions
    now = inputs(2, predecessor=Predecessor(True, held, adoptions))
    world = FakeState(Records((intent(1), intent(2))))
    domain = Domain("attachment", attachment_domain.desire, attachment_domain.plan, world)
    outcome = converge([domain], now)["attachment"]
    assert outcome.remaining.actions == ()
    assert [r.reason for r in outcome.remaining.refusals] == ["AddressesExhausted"]
    bound = {a.key: a.addresses for a in world.observe().attachments}
    assert bound == {KEY: (POD,), intent(1).key: (SUBNET[39],)}


def test_rules_go_before_the_routes_they_lead_to() -> None:
    """Between the two a rule would find the subnet's route, and the packet would leave."""
    plan = takeover.plan(asked(), SEEN)
    kinds = [a.kind for a in plan.actions]
    assert kinds == ["stock-rule", "stock-rule", "stock-route"]
    assert {a.verb for a in plan.actions} == {Verb.DELETE}


def test_unasked_what_is_there_is_foreign_with_a_word_on_what_to_do() -> None:
    seen = replace(SEEN, tables=frozenset({"aws-cni", "nat"}))
    enis = (eni(0), eni(1, owned=False, stock=True))
    plan = stock_plugin.plan(stock_plugin.Whereabouts(enis, LINKS), seen)
    assert not plan  # it differs from nothing
    assert StockTable() in plan.foreign
    (notice,) = plan.findings
    assert notice.reason == "StockPluginPresent"
    for words in ("1 ENIs (eni-1)", "1 nftables tables", "2 ip rules", "set takeOver"):
        assert words in notice.message
    clean = stock_plugin.plan(stock_plugin.Whereabouts(ENIS, LINKS), Sighting())
    assert (clean.foreign, clean.findings) == ((), ())


def test_a_table_that_cannot_be_read_is_in_the_way_only_while_something_is_left() -> None:
    unreadable = {("nft", "nat"): "there is no iptables-nft-save"}
    plan = takeover.plan(asked(), replace(SEEN, unlisted=unreadable))
    assert (plan.actions, [r.reason for r in plan.refusals]) == ((), ["IptablesUnreadable"])
    assert takeover.plan(asked(), Sighting(unlisted=unreadable)) == takeover.plan(
        asked(), Sighting()
    )


rules = st.builds(
    StockRule,
    priority=st.sampled_from([0, 512, 513, 1024, 1535, 1536, 1537, 32765, 32766]),
    table=st.sampled_from([2, 3, 100, 102, 253, 254, 255, 512, 1537]),
    destination=st.sampled_from([None, ip_network("10.0.1.31/32"), ip_network("10.0.0.0/16")]),
    source=st.sampled_from([None, ip_network("10.0.1.31/32"), ip_network("10.0.0.0/16")]),
    mark=st.sampled_from([None, 0x80, 1]),
    mask=st.sampled_from([0, 0x80, 0xFF]),
    protocol=st.sampled_from([0, 2, 3, 4, 16, 99]),
    extra=st.sampled_from(["", "FRA_IIFNAME=eth0"]),
)


@given(st.lists(rules, unique=True, max_size=20))
def test_only_rules_of_the_exact_shape_are_ever_removed(present: list[StockRule]) -> None:
    """Said a second time, as a table, so that a slip in one of them is seen."""
    host, main = ip_network("10.0.1.31/32"), 254
    for action in takeover.plan(asked(), Sighting(rules=tuple(present))).actions:
        assert isinstance(action, Change)
        r = action.object
        assert (r.extra, r.protocol in {0, 2, 3}) == ("", True)
        shape = (r.priority, r.source, r.table, r.mark)
        match r.priority:
            case 512:
                assert (shape, r.destination) == ((512, None, main, None), host)
            case 1024:
                assert (shape, r.destination, r.mask) == ((1024, None, main, 0x80), None, 0x80)
            case 1535:
                assert shape == (1535, None, main, None)
                assert r.destination is not None
            case 1536 | 32765:
                assert (r.source, r.mark) == (host, None)
                assert r.table in {2, 3, 100}
            case _:
                raise AssertionError(r)


def test_only_routes_of_the_exact_shape_are_ever_removed() -> None:
    gateway = ip_address("10.0.1.1")
    default = ip_network("0.0.0.0/0")
    ours = [
        StockRoute(2, ip_network("10.0.1.1/32"), "eth1"),
        StockRoute(2, default, "eth1", gateway),
        POD_ROUTE,
        # Another prefix of its links: known by its rule.
        replace(POD_ROUTE, device="abcd0123456789a"),
    ]
    others = [
        StockRoute(2, ip_network("10.0.1.1/32"), "eth0"),
        StockRoute(2, default, "eth1", ip_address("10.0.1.2")),
        StockRoute(2, default, "eth1", gateway, metric=5),
        StockRoute(3, default, "eth1", gateway),
        StockRoute(254, default, "eth0", gateway, protocol=16),
        replace(POD_ROUTE, gateway=gateway),
        replace(POD_ROUTE, protocol=4),
        replace(POD_ROUTE, table=77),
        StockRoute(254, ip_network("10.0.1.77/32"), "cali123456789ab"),
        StockRoute(254, ip_network("10.0.1.78/32"), "eni0"),
        StockRoute(254, ip_network("10.0.1.0/24"), VETH),
    ]
    seen = Sighting(rules=(TO_POD,), routes=(*ours, *others))
    found = stock_plugin.recognise(seen, ENIS, LINKS)
    assert {o for o in found if isinstance(o, StockRoute)} == set(ours)


def test_rules_of_iptables_are_known_by_target_or_by_comment_and_place() -> None:
    jump = '-m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0'
    mark = '-i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark'
    nat = (
        ":POSTROUTING ACCEPT [0:0]",
        ":AWS-SNAT-CHAIN-0 - [0:0]",
        ":AWS-SNAT-CHAIN-12 - [0:0]",
        ":AWS-SNAT-CHAIN-X - [0:0]",
        f"-A POSTROUTING {jump}",
        f"-A POSTROUTING {jump}",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        '-A POSTROUTING -m comment --comment "it\'s AWS, SNAT" -j SNAT --to-source 10.0.1.10',
        "-A AWS-SNAT-CHAIN-0 -d 10.0.0.0/16 -j RETURN",
    )
    mangle = (f"-A PREROUTING {mark}", f"-A OUTPUT {mark}")
    saved = {("nft", "nat"): nat, ("legacy", "mangle"): mangle}
    found: frozenset[Leftover] = stock_plugin.recognise(Sighting(saved=saved), ENIS, LINKS)
    assert found == {
        IptablesChain("nft", "nat", "AWS-SNAT-CHAIN-0"),
        IptablesChain("nft", "nat", "AWS-SNAT-CHAIN-12"),
        IptablesRule("nft", "nat", "POSTROUTING", jump, 0),
        IptablesRule("nft", "nat", "POSTROUTING", jump, 1),
        IptablesRule("legacy", "mangle", "PREROUTING", mark),
    }


def test_its_link_is_claimed_by_the_mac_that_was_recorded_and_no_other_is() -> None:
    ((bound, _),) = consider().adoptions
    (wanted,) = [o for o in link.desire(inputs(2, (bound,))) if isinstance(o, Veth)]
    theirs = replace(wanted, alias="")
    (claim,) = link.plan([wanted], [theirs]).actions
    assert (claim.verb, claim.reason) == (Verb.UPDATE, f"alias none -> {bound.alias}")
    for other in (replace(theirs, mac="02:11:00:00:00:99"), replace(theirs, alias="calico")):
        plan = link.plan([wanted], [other])
        assert (plan.actions, [r.reason for r in plan.refusals]) == ((), ["ForeignObject"])


def test_a_route_in_a_pod_that_says_the_same_is_stamped_and_no_other_is() -> None:
    wanted = Route("/run/netns/x@7", 254, ip_network("169.254.1.1/32"), "eth0")
    (stamp,) = route.plan([wanted], [replace(wanted, protocol=3)]).actions
    assert (stamp.verb, stamp.reason) == (Verb.UPDATE, "protocol 3 -> 201")
    for other in (
        replace(wanted, protocol=4),
        replace(wanted, protocol=3, device="eth1"),
        replace(wanted, protocol=3, gateway=ip_address("10.0.0.1")),
    ):
        assert [r.reason for r in route.plan([wanted], [other]).refusals] == ["ForeignObject"]
    host = replace(wanted, netns="")
    refused = route.plan([host], [replace(host, protocol=3)])
    assert [r.reason for r in refused.refusals] == ["ForeignObject"]


def pool(*enis: Any, taking_over: bool = True) -> tuple[Any, Cloud]:
    now = inputs(1, predecessor=Predecessor(taking_over), document=document())
    return eni_domain.desire(now), Cloud(enis, Limits(3, 10), {})


STOCK = {"stock": True, "stock_tags": ("node.k8s.amazonaws.com/instance_id",)}


def test_its_enis_become_ours_before_the_pool_is_measured() -> None:
    """Without them the pool would seem short, and would grow."""
    plan = eni_domain.plan(*pool(eni(0, 0, **STOCK), eni(1, owned=False, **STOCK)))
    assert [type(a) for a in plan.actions] == [AdoptEni, AdoptEni]
    assert plan.refusals == ()
    unasked = eni_domain.plan(*pool(eni(0), eni(1, owned=False, **STOCK), taking_over=False))
    assert not [a for a in unasked.actions if isinstance(a, AdoptEni)]


def test_an_eni_that_is_ours_already_only_loses_its_tags_and_the_pool_goes_on() -> None:
    plan = eni_domain.plan(*pool(eni(0, 0, **STOCK)))
    assert [type(a) for a in plan.actions] == [AdoptEni]
    assert [r.reason for r in plan.refusals]  # it was measured, and found short


def test_an_eni_that_is_attached_to_nothing_stays_whose_it_is() -> None:
    plan = eni_domain.plan(*pool(eni(0), eni(None, owned=False, eni_id="eni-free", **STOCK)))
    assert not [a for a in plan.actions if isinstance(a, AdoptEni)]


def test_an_attachment_of_our_own_has_the_macs_of_its_key() -> None:
    assert attachment(1).host_mac.startswith("02:4e:4e")
    assert attachment(1, kept_macs=("02:11:00:00:00:01", "")).pod_mac.startswith("02:4e:4e")
