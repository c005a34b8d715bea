"""Other owners' rulesets load on the real programs, and go away without a trace."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import rulesets
import services
from conftest import namespace
from rulesets import Ruleset, RulesetError
from services import Endpoint, HostPort, Service

from lab import netns

pytestmark = pytest.mark.kernel

SERVICES = (
    Service(
        "default/web:http",
        "172.20.0.10",
        80,
        (Endpoint("100.64.1.5", 8080, local=True), Endpoint("100.64.2.6", 8080)),
        node_port=30080,
    ),
    Service(
        "default/near:http",
        "172.20.0.11",
        80,
        (Endpoint("100.64.1.5", 8080, local=True), Endpoint("100.64.2.6", 8080)),
        node_port=30081,
        local=True,
    ),
)
PORTS = (HostPort(8081, "100.64.1.5", 8080),)

RULESETS = {
    "kube-proxy nftables": services.kube_proxy("nftables", SERVICES, node="10.0.1.10"),
    "kube-proxy nftables, cluster CIDR": services.kube_proxy(
        "nftables", SERVICES, node="10.0.1.10", pod_cidr="100.64.0.0/16"
    ),
    "kube-proxy iptables-nft": services.kube_proxy(
        "iptables", SERVICES, node="10.0.1.10", pod_cidr="100.64.0.0/16"
    ),
    "kube-proxy iptables-legacy": services.kube_proxy(
        "iptables", SERVICES, node="10.0.1.10", backend="legacy"
    ),
    "kube-proxy ipvs, its sets and rules": services.kube_proxy("ipvs", SERVICES, node="10.0.1.10"),
    "portmap iptables-nft": services.portmap(PORTS),
    "portmap iptables-legacy": services.portmap(PORTS, backend="legacy"),
    "docker": rulesets.docker(),
    "firewalld": rulesets.firewalld(trusted=("nn+",)),
    "calico": rulesets.calico("nn", ("nn01234567890",)),
}


def foreign_objects(name: str) -> str:
    """Everything there is, but the policy lines of legacy tables, which stay for life."""
    lines = rulesets.listing(name).splitlines()
    with netns.inside(name):
        lines += subprocess.run(
            ["ipset", "list", "-n"], capture_output=True, text=True
        ).stdout.split()
    return "\n".join(x for x in lines if not x.startswith(("# legacy", "-P ")) or "DROP" in x)


@pytest.mark.parametrize("ruleset", RULESETS.values(), ids=RULESETS)
def test_a_ruleset_loads_and_leaves_nothing(ruleset: Ruleset) -> None:
    with namespace() as name:
        with rulesets.loaded(name, ruleset):
            assert foreign_objects(name)
        assert foreign_objects(name) == ""


def test_several_owners_share_tables_and_leave_in_any_order() -> None:
    first = services.kube_proxy("iptables", SERVICES, node="10.0.1.10")
    owners = (first, services.portmap(PORTS), rulesets.docker(), rulesets.calico("nn", ()))
    with namespace() as name:
        for owner in owners:
            rulesets.load(name, owner)
        for owner in owners:
            rulesets.remove(name, owner)
        assert foreign_objects(name) == ""


def test_jumps_stand_on_top_in_their_order() -> None:
    with namespace() as name, rulesets.loaded(name, RULESETS["docker"], RULESETS["calico"]):
        listed = subprocess.run(
            ["nsenter", f"--net={netns.path(name)}", "iptables-nft", "-S", "FORWARD"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    targets = [line.rpartition("-j ")[2] for line in listed[1:]]
    assert listed[0] == "-P FORWARD DROP"
    assert targets[:4] == ["cali-FORWARD", "ACCEPT", "DOCKER-USER", "DOCKER-ISOLATION-STAGE-1"]


@pytest.mark.parametrize("mode", ["nftables", "iptables"])
def test_a_few_hundred_services_fit(mode: services.Mode) -> None:
    many = services.kube_proxy(
        mode, (*SERVICES, *services.padding(400, node_ports=50)), node="10.0.1.10"
    )
    with namespace() as name:
        with rulesets.loaded(name, many):
            text = foreign_objects(name)
        assert "172.20.101.143" in text, "the last one's address"
        assert foreign_objects(name) == ""


def test_a_refused_ruleset_says_what_and_why() -> None:
    with namespace() as name, pytest.raises(RulesetError, match=r"nft -f -.*syntax error"):
        rulesets.load(name, Ruleset("broken", nft="table table\n"))
    assert not list(Path("/tmp").glob(f"xtables-{name}*"))
