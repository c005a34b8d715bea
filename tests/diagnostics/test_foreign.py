"""What of other owners hurts: each finding comes with its cause, and goes with it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from builders import attachment, document, inputs
from hypothesis import given
from hypothesis import strategies as st

from reconciler.core.facts import ForwardChain, covers
from reconciler.diagnostics import findings
from reconciler.diagnostics.findings import judge
from reconciler.diagnostics.foreign import (
    MARK_USERS,
    NETWORK_MANAGER,
    NETWORKD,
    Foreign,
    ForeignRule,
    Manager,
    Networkd,
    Ours,
    Pod,
    Setting,
    Tool,
    Traffic,
)
from reconciler.diagnostics.ruleset import BaseChain, ChainId, Ruleset, Verdict
from reconciler.diagnostics.stock_objects import (
    IptablesChain,
    Leftover,
    StockRule,
    StockTable,
)
from reconciler.domains import forward
from reconciler.engine.plan import Verb

OURS = Ours(
    families=frozenset({"ip"}),
    mark_mask=0xFF,
    patterns=frozenset({"nn*"}),
    eni_links=frozenset({"eth1"}),
    sources=frozenset({ip_network("100.64.1.7/32")}),
)
DOCKER = ForwardChain("ip", "filter", "FORWARD", drops=True)
BOTH = frozenset({("iifname", "nn*"), ("oifname", "nn*")})


def reasons(seen: Foreign, ours: Ours = OURS) -> list[str]:
    return [f.reason for f in judge(seen, ours)]


def text(seen: Foreign, ours: Ours = OURS) -> str:
    return "\n".join(f"{i.reason}: {i.subject}: {i.message}" for i in judge(seen, ours))


def test_a_node_with_nobody_else_has_no_findings() -> None:
    assert judge(Foreign(), OURS) == ()


@pytest.mark.parametrize("family", ["ip", "inet"])
def test_a_forward_chain_that_drops_is_named_with_the_option(family: str) -> None:
    said = text(Foreign(forward=(replace(DOCKER, family=family),)))
    assert said.startswith(f"ForwardingDropped: chain {family} filter FORWARD: ")
    assert "routing.acceptForwarded" in said


@pytest.mark.parametrize(
    "chain",
    [
        replace(DOCKER, drops=False),
        replace(DOCKER, family="ip6"),
        replace(DOCKER, accepts=BOTH),
        replace(DOCKER, accepts=frozenset({("iifname", "n*"), ("oifname", "*")})),
    ],
    ids=["accepts by policy", "not a family of pods", "accepts pods", "accepts more"],
)
def test_a_forward_chain_that_lets_pods_pass_is_no_finding(chain: ForwardChain) -> None:
    assert reasons(Foreign(forward=(chain,))) == []


def test_a_chain_that_lets_pods_pass_in_one_direction_only_is_a_finding() -> None:
    half = replace(DOCKER, accepts=frozenset({("iifname", "nn*")}))
    assert reasons(Foreign(forward=(half,))) == ["ForwardingDropped"]


def test_legacy_iptables_gets_the_commands_an_operator_must_run() -> None:
    said = text(Foreign(forward=(replace(DOCKER, backend="legacy"),)))
    assert "iptables-legacy -A FORWARD -i nn+ -j ACCEPT" in said
    assert "iptables-legacy -A FORWARD -o nn+ -j ACCEPT" in said


def test_a_chain_that_a_rule_shuts_gets_commands_that_come_before_it() -> None:
    shut = replace(DOCKER, drops=False, shut=True)
    assert "iptables-nft -I FORWARD -o nn+ -j ACCEPT" in text(Foreign(forward=(shut,)))
    native = replace(shut, family="inet", table="mine", name="fw")
    said = text(Foreign(forward=(native,)), replace(OURS, accept_forwarded=True))
    assert "nft insert rule inet mine fw iifname 'nn*' accept" in said
    assert (
        forward.desire(
            inputs(1, document=document(routing={"acceptForwarded": True}), forward=(shut,))
        )
        == frozenset()
    ), "its owner has decided"


def test_firewalld_is_a_finding_until_a_zone_accepts_pods() -> None:
    said = text(Foreign(tables=frozenset({"firewalld"})))
    assert "firewall-cmd --permanent --zone=trusted --add-interface=nn+" in said
    assert (
        reasons(Foreign(tables=frozenset({"firewalld"}), firewalld_accepts=frozenset({"nn*"})))
        == []
    )


def test_firewalld_is_a_finding_while_its_rules_reject_whatever_is_configured() -> None:
    """A zone that was edited for good, and never loaded."""
    chain = ChainId("nft", "inet", "firewalld", "filter_FORWARD")
    ruleset = Ruleset((BaseChain(chain, "forward"),), {chain: ((Verdict("drop"),),)})
    pods = (Pod("nn1", ip_address("100.64.1.7"), "eth1"),)
    ours = replace(OURS, traffic=Traffic(pods, patterns=("nn*",)))
    tables, accepts = frozenset({"firewalld"}), frozenset({"nn*"})
    seen = Foreign(tables=tables, firewalld_accepts=accepts, ruleset=ruleset)
    assert text(seen, ours).endswith("run: firewall-cmd --reload")
    loaded = replace(seen, ruleset=replace(ruleset, rules={chain: ((Verdict("accept"),),)}))
    assert reasons(loaded, ours) == []


def test_networkd_is_a_finding_by_what_its_configuration_says_in_the_end() -> None:
    on, off = Setting(True, "/etc/systemd/networkd.conf"), Setting(False, "/x.conf")
    eth1 = Manager("eth1", NETWORKD, "/run/systemd/network/70-eth1.network")
    assert reasons(Foreign(networkd=Networkd(off, off))) == []
    assert reasons(Foreign(networkd=Networkd(on, off))) == ["NetworkdDeletesRules"]
    assert reasons(Foreign(networkd=Networkd(off, on))) == [], "it manages no link of ours"
    both = Foreign(networkd=Networkd(on, on), managers=(eth1,))
    assert reasons(both) == ["NetworkdDeletesRules", "NetworkdDeletesRoutes", "ToolsManageEnis"]
    assert "/etc/systemd/networkd.conf" in text(both)


def test_who_manages_our_links_is_named_with_the_file() -> None:
    seen = Foreign(
        managers=(
            Manager("eth0", NETWORKD, "/usr/lib/systemd/network/80-ec2.network"),
            Manager("nn0123456789abc", NETWORK_MANAGER, "/run/NetworkManager/devices/7"),
            Manager("nn1123456789abc", NETWORK_MANAGER, "/run/NetworkManager/devices/8"),
        ),
        tools=(Tool("nm-cloud-setup", "/etc/systemd/system/x.wants/nm-cloud-setup.timer", "off"),),
    )
    assert reasons(seen) == ["ToolsManageEnis", "ToolsManagePods"], "the primary link is theirs"
    said = text(seen)
    assert "nm-cloud-setup.timer" in said
    assert "2 links of pods" in said
    assert "interface-name:nn*" in said


@pytest.mark.parametrize("user", MARK_USERS, ids=lambda u: u.name)
@given(shift=st.integers(0, 24))
def test_marks_conflict_exactly_where_bits_overlap(user: object, shift: int) -> None:
    (user,) = (u for u in MARK_USERS if u is user)
    mask = 0xFF << shift
    seen = Foreign(chains=frozenset(f"{user.chains[0]}X{n}" for n in range(3)))
    wanted = ["MarkConflict"] if user.mask & mask else []
    assert reasons(seen, replace(OURS, mark_mask=mask)) == wanted


def test_a_user_of_marks_is_known_by_its_table_as_well() -> None:
    said = text(Foreign(tables=frozenset({"aws-cni", "kube-proxy"})))
    assert said.startswith("MarkConflict: table aws-cni: amazon-vpc-cni-k8s uses bits 0x80 ")


def test_the_default_mask_lives_with_kube_proxy_portmap_calico_and_tailscale() -> None:
    names = {"KUBE-SERVICES", "CNI-HOSTPORT-DNAT", "cali-FORWARD", "ts-forward", "ISTIO_POSTRTN"}
    assert reasons(Foreign(chains=frozenset(names))) == []


def test_a_foreign_rule_conflicts_when_its_mask_holds_our_bits() -> None:
    ours = ForeignRule("ipv4", 5000, 100, 0x1, 0xFFFFFFFF)
    theirs = ForeignRule("ipv4", 9, 2004, 0x200, 0xF00)
    assert reasons(Foreign(rules=(ours, theirs))) == ["MarkConflict"]
    assert "ip rule 5000: from all fwmark 0x1/0xffffffff lookup 100" in text(
        Foreign(rules=(ours,))
    )


def test_bits_that_nobody_uses_here_are_named_with_what_a_move_does() -> None:
    rule = ForeignRule("ipv4", 1000, 100, 0x1, 0x1)
    busy = frozenset({"KUBE-SERVICES", "CNI-HOSTPORT-DNAT"})  # bits 13 to 15
    said = text(Foreign(chains=busy, rules=(rule,)))
    assert "set routing.markMask to 0xff0000, which nothing that was seen here uses (new " in said
    assert said.endswith("open ones through the node's address are cut)")
    others = ForeignRule("ipv4", 9, 9, 0, 0xFFFFE00F)
    assert "markMask to 0xff0," in text(Foreign(rules=(rule, others)))
    every = ForeignRule("ipv4", 9, 9, 1, 0xFFFFFFFF)
    assert "(no eight adjacent bits for routing.markMask are free here)" in text(
        Foreign(rules=(every,))
    )


def test_what_a_take_over_is_about_to_remove_is_no_finding() -> None:
    """With ``takeOver`` the plan removes these itself, and there is nothing for an operator."""
    pod = ip_network("100.64.1.7/32")
    seen = Foreign(
        chains=frozenset({"AWS-SNAT-CHAIN-0"}),
        tables=frozenset({"aws-cni"}),
        rules=(
            ForeignRule("ipv4", 1024, 254, 0x80, 0x80),
            ForeignRule("ipv4", 1536, 2, source=pod),
        ),
    )
    assert reasons(seen) == ["MarkConflict", "MarkConflict", "RuleBeforeOurs"]
    leaving: frozenset[Leftover] = frozenset(
        {
            IptablesChain("nft", "nat", "AWS-SNAT-CHAIN-0"),
            StockTable(),
            StockRule(1024, 254, mark=0x80, mask=0x80),
            StockRule(1536, 2, source=pod),
        }
    )
    assert reasons(findings.without(seen, leaving)) == []
    assert reasons(findings.without(seen, frozenset({StockTable()}))) == reasons(seen)


def test_a_rule_that_chooses_before_ours_is_a_finding_and_many_are_one() -> None:
    pod = ip_network("100.64.1.7/32")
    early = ForeignRule("ipv4", 1000, 2, source=pod)
    assert reasons(Foreign(rules=(early, replace(early, source=None)))) == ["RuleBeforeOurs"]
    harmless = (
        replace(early, priority=0, table=255, source=None),  # the kernel's own, moved or not
        replace(early, priority=10001),
        replace(early, source=None, destination=pod),
        replace(early, source=None, destination=ip_network("198.51.100.0/24")),
        replace(early, source=ip_network("10.0.1.10/32")),
        replace(early, selects_more=True),
        replace(early, mark=0x200, mask=0xF00),
        replace(early, family="ipv6", source=None),
    )
    assert reasons(Foreign(rules=harmless)) == []


@pytest.mark.parametrize(
    "rule",
    [
        ForeignRule("ipv4", 0, 7),
        ForeignRule("ipv4", 100, 0, does="prohibit"),
        ForeignRule("ipv4", 100, 0, does="goto 32766"),
        ForeignRule("ipv4", 100, 254, destination=ip_network("100.64.0.0/16")),
    ],
    ids=str,
)
def test_a_rule_that_drops_or_skips_or_is_for_pods_network_is_a_finding(rule: ForeignRule) -> None:
    assert reasons(Foreign(rules=(rule,))) == ["RuleBeforeOurs"]
    assert str(rule) in text(Foreign(rules=(rule,)))


def test_what_could_not_be_read_is_said() -> None:
    assert text(Foreign(unread=(("links", "no memory"),))) == "ForeignUnread: links: no memory"


@given(st.text("nab", max_size=3), st.text("nab", max_size=4))
def test_a_pattern_covers_what_begins_so(prefix: str, name: str) -> None:
    assert covers(f"{prefix}*", f"{name}*") is name.startswith(prefix)
    assert covers(prefix, name) is (prefix == name)


def test_rules_of_ours_stand_only_where_they_help_and_are_asked_for() -> None:
    chains = (
        DOCKER,
        replace(DOCKER, name="OTHER", drops=False),
        replace(DOCKER, family="ip6"),
        replace(DOCKER, backend="legacy"),
    )
    off = inputs(1, (attachment(1, 0),), forward=chains)
    assert forward.desire(off) == frozenset()
    on = replace(off, document=document(routing={"acceptForwarded": True}))
    wanted = forward.desire(on)
    assert {(r.family, r.chain, r.way) for r in wanted} == {
        ("ip", "FORWARD", "iifname"),
        ("ip", "FORWARD", "oifname"),
    }
    plan = forward.plan(wanted, frozenset())
    assert {a.verb for a in plan.actions} == {Verb.CREATE}
    assert str(plan.actions[0]).startswith("nft add rule ip filter FORWARD iifname")
    assert not forward.plan(wanted, wanted)
    undone = forward.plan(forward.desire(off), wanted)
    assert [a.verb for a in undone.actions] == [Verb.DELETE] * len(wanted)


def test_a_pod_of_an_earlier_prefix_is_let_through_by_its_name() -> None:
    old = replace(attachment(1, 0), veth="old0123456789ab")
    now = inputs(1, (old,), document=document(pods={"vethPrefix": "new"}))
    assert now.veth_patterns == {"new*", "old0123456789ab"}
    assert findings.desire(now).patterns == now.veth_patterns


@pytest.mark.parametrize(
    ("snat", "keeps"),
    [
        ({}, False),
        ({"mode": "external"}, True),
        ({"onlyCIDRs": ["203.0.113.0/24"]}, True),
        ({"onlyCIDRs": ["198.51.100.0/22"]}, False),
    ],
)
def test_every_setting_that_keeps_pods_addresses_is_asked_about(
    snat: dict[str, object], keeps: bool
) -> None:
    kept = findings.desire(inputs(document=document(snat=snat))).traffic.kept
    assert (findings.BEYOND in kept) is keeps
    assert ip_network("10.0.0.0/16") in kept
