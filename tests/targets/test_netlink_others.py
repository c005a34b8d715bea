"""Links, routes and rules of others in the kernel are told from ours."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from conftest import plug
from targets.test_netlink_contract import ENI_MAC, HOST_MAC, POD_MAC, ip

from lab import netns
from reconciler.domains import link, rule
from reconciler.domains.address import LinkAddress
from reconciler.domains.link import EniLink, PodLink, Veth
from reconciler.domains.rule import Rule
from reconciler.engine.plan import Change, Plan, Verb
from reconciler.targets.netlink.target import Netlink


@pytest.mark.kernel
def test_a_rule_with_another_selector_is_not_taken_for_ours(home: str) -> None:
    ip("rule", "add", "priority", "512", "iif", "lo", "lookup", "512", "protocol", "201")
    seen = [o for o in Netlink().observe([]) if isinstance(o, Rule) and o.priority == 512]
    assert [o.extra for o in seen] == ["FRA_IIFNAME=lo"]
    plan = rule.plan([Rule("ipv4", 512, 512)], seen)
    assert [a.verb for a in plan.actions] == [Verb.CREATE, Verb.DELETE]


@pytest.mark.kernel
@pytest.mark.parametrize(
    "edit",
    ["lookup 512 suppress_prefixlength 32", "not from all lookup 512", "unreachable", "blackhole"],
)
@pytest.mark.parametrize("beside", [True, False], ids=["beside ours", "in place of ours"])
def test_a_rule_of_ours_that_does_something_else_is_put_right(
    home: str, edit: str, *, beside: bool
) -> None:
    """Same priority, same table, and no packet takes it, or all do."""
    wanted, target = Rule("ipv4", 512, 512), Netlink()
    if beside:
        assert target.apply([Change(Verb.CREATE, wanted, "test")]) == ()
    # The kernel itself refuses some of them beside ours, as doubles.
    words = f"ip rule add {edit} priority 512 protocol 201".split()
    added = subprocess.run(words, capture_output=True, check=False).returncode == 0
    assert added or beside
    for _ in range(3):
        plan = rule.plan([wanted], [o for o in target.observe([]) if isinstance(o, Rule)])
        assert target.apply(plan.actions) == ()
    assert plan == Plan()
    assert ip("rule", "show", "priority", "512").split(maxsplit=1)[1].split() == (
        ["from", "all", "lookup", "512", "proto", "201"]
    )


@pytest.mark.kernel
@pytest.mark.parametrize("selector", [("from", "10.9.9.5/16"), ("to", "10.9.9.5/16")])
def test_a_foreign_rule_of_any_form_is_no_trouble(home: str, selector: tuple[str, str]) -> None:
    """The kernel keeps the host bits that somebody wrote."""
    ip("rule", "add", *selector, "lookup", "main", "priority", "999")
    ip("-6", "rule", "add", "from", "fd00::5/64", "lookup", "main", "priority", "999")
    assert not [o for o in Netlink().observe([]) if isinstance(o, Rule)]
    ip("rule", "add", *selector, "lookup", "512", "priority", "512", "protocol", "201")
    (ours,) = [o for o in Netlink().observe([]) if isinstance(o, Rule)]
    assert rule.plan([], [ours]).actions != ()


@pytest.mark.kernel
def test_another_link_with_the_mac_of_an_eni_is_not_the_eni(home: str, pod: str) -> None:
    plug(ENI_MAC, "eth1", Path(pod).name)
    ip("link", "add", "aaa0", "address", ENI_MAC, "type", "veth", "peer", "name", "aaa1")
    name = Netlink().links().names[ENI_MAC]
    wanted = EniLink(ENI_MAC, name, 1400)
    target = Netlink()
    for _ in range(2):
        seen = [o for o in target.observe([wanted]) if isinstance(o, EniLink)]
        plan = link.plan([wanted], seen)
        assert target.apply(plan.actions) == ()
    assert plan == Plan()


@pytest.mark.kernel
def test_links_stacked_on_an_eni_are_not_the_eni(home: str, pod: str) -> None:
    plug(ENI_MAC, "eth1", Path(pod).name)
    ip("link", "add", "br0", "address", ENI_MAC, "type", "bridge")
    assert Netlink().links().names == {ENI_MAC: "eth1"}


@pytest.mark.kernel
def test_a_path_that_leads_to_another_namespace_by_now_is_not_entered(home: str, pod: str) -> None:
    """Between a DEL and the next look, a runtime may have used the path for the next pod."""
    inode = Path(pod).stat().st_ino
    meant, stale = f"{pod}@{inode}", f"{pod}@{inode + 1}"
    alias = "node-network:pod/eth0"
    veth = Veth("nnveth", HOST_MAC, 9001, alias, True, True, 20048, stale, "eth0", POD_MAC)
    link = PodLink(stale, "eth0", POD_MAC, 9001, True, "nnveth")
    address = LinkAddress(stale, "eth0", ip_address("10.0.1.9"), 32)
    target = Netlink()
    failures = target.apply([Change(Verb.CREATE, o, "test") for o in (veth, link, address)])
    assert [f.reason for f in failures] == ["ENOENT"] * 3
    assert target.observe([link]).unread_places.keys() == {stale}
    assert target.apply([Change(Verb.CREATE, replace(veth, pod_netns=meant), "test")]) == ()
    seen = target.observe([replace(link, netns=meant)])
    assert [o.name for o in seen if isinstance(o, PodLink)] == ["eth0"]


@pytest.mark.kernel
def test_the_thread_is_back_home_after_entering_a_pod(home: str, pod: str) -> None:
    Netlink().observe([PodLink(pod, "eth0", "", 0)])
    assert netns.path(home).stat().st_ino == Path("/proc/thread-self/ns/net").stat().st_ino
