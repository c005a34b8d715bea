"""Somebody else breaks it: seen at once, only that repaired, counted and named in the log."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from waiting import until

from lab import netns
from lab.traffic import Receiver, Stream, probe

pytestmark = pytest.mark.lab

VPC_HOST = "10.0.9.10"

HOST = {
    "a rule": ["ip", "rule", "delete", "priority", "1024"],
    "all rules of ours": [
        "sh",
        "-c",
        "for i in 1 2 3 4 5 6; do ip rule delete protocol 201; done",
    ],
    "a pod's route": ["sh", "-c", "ip route flush table 512"],
    "an ENI's default route": ["ip", "route", "delete", "default", "table", "1537"],
    "an ENI's address": ["sh", "-c", "ip address flush dev eth1"],
    "an ENI's link": ["ip", "link", "set", "eth1", "down"],
    "an ENI's MTU": ["ip", "link", "set", "eth2", "mtu", "1500"],
    "the ruleset": ["nft", "flush", "ruleset"],
    "an exclusion": [
        "nft",
        "delete",
        "element",
        "inet",
        "node_network",
        "no_snat_ipv4",
        "{",
        "10.0.0.0/16",
        "}",
    ],
    "a chain's rules": ["nft", "flush", "chain", "inet", "node_network", "source_nat"],
    "what refuses packets for a pod that is gone": [
        "nft",
        "flush",
        "chain",
        "inet",
        "node_network",
        "held",
    ],
    "forwarding": [
        "sh",
        "-c",
        # A setting tells nobody that it was changed; something else that happens makes us look.
        "echo 0 > /proc/sys/net/ipv4/ip_forward; "
        "ip rule add priority 9 lookup main; ip rule delete priority 9",
    ],
    "garbage with our stamp": [
        "ip",
        "rule",
        "add",
        "priority",
        "1600",
        "lookup",
        "1600",
        "protocol",
        "201",
    ],
    "a host veth's MAC": [
        "sh",
        "-c",
        "ip link set $(ls /proc/sys/net/ipv4/conf | grep ^nn | head -1) address 02:00:00:00:00:77",
    ],
    "the host's neighbour": [
        "sh",
        "-c",
        "v=$(ls /proc/sys/net/ipv4/conf | grep ^nn | head -1); "
        "a=$(ip -o route show table 512 dev $v | cut -d' ' -f1); "
        "ip neighbour replace $a dev $v lladdr 02:00:00:00:00:78 nud permanent; "
        # Of neighbours the daemon hears nothing: it is seen with the next look at everything.
        "ip rule add priority 77 from 192.0.2.200 lookup main; ip rule delete priority 77",
    ],
    "a host veth": [
        "sh",
        "-c",
        "ip link set $(ls /proc/sys/net/ipv4/conf | grep ^nn | head -1) down",
    ],
}

POD = {
    "the pod's default route": ["ip", "route", "delete", "default"],
    "the pod's neighbour": ["ip", "neighbour", "flush", "dev", "eth0", "nud", "permanent"],
    "the pod's address": ["ip", "address", "flush", "dev", "eth0"],
    "the pod's address, with another in its place": [
        "sh",
        "-c",
        "ip address flush dev eth0; ip address add 192.0.2.9/32 dev eth0",
    ],
    "the pod's MTU": ["ip", "link", "set", "eth0", "mtu", "1400"],
    "the pod's link": ["ip", "link", "delete", "eth0"],
    "the pod's link's name": ["sh", "-c", "ip link set eth0 down; ip link set eth0 name eth9"],
}


def repaired(cluster: Any, before: float) -> None:
    until(lambda: cluster.drift() > before and cluster.status()["settled"], cluster.log)


@pytest.mark.parametrize("what", HOST)
def test_what_is_broken_on_the_host_is_put_right(cluster: Any, what: str) -> None:
    with cluster.pods(1) as (one,), Receiver(cluster.lab.names.namespace("vpchost")):
        before = cluster.drift()
        with cluster.still():  # some take several steps, and each would be a repair of its own
            done = cluster.lab.run("node1", HOST[what])
        assert done.returncode == 0, done.stderr
        repaired(cluster, before)
        assert cluster.diff().stdout == ""
        assert probe(one.namespace, VPC_HOST).source == one.address
    until(lambda: "drift repaired" in cluster.logged(), "the line of the log")


@pytest.fixture(scope="module")
def repairing(make_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A node whose pods are looked at every second and put right."""
    with make_cluster(tmp_path_factory.mktemp("repairing")) as made:
        text = made.config.read_text()
        made.config.write_text(text + "reconcile: {resync: 1s}\npods: {repair: all}\n")
        made.start()
        yield made


@pytest.mark.parametrize("what", POD)
def test_what_is_broken_in_a_pod_is_put_right_by_the_next_full_look(
    repairing: Any, what: str
) -> None:
    """No notification leaves a pod's namespace: the timer finds it, here every second."""
    with repairing.pods(1) as (one,), Receiver(repairing.lab.names.namespace("vpchost")):
        before = repairing.drift()
        argv = ["nsenter", f"--net={netns.path(one.namespace)}", "--", *POD[what]]
        with repairing.still():
            subprocess.run(argv, check=True, capture_output=True)
        repaired(repairing, before)
        assert probe(one.namespace, VPC_HOST).source == one.address


def test_foreign_rules_routes_and_tables_are_left_alone(cluster: Any) -> None:
    cluster.ip("rule", "add", "priority", "77", "lookup", "main")
    cluster.ip("route", "add", "192.0.2.0/24", "dev", "eth0", "proto", "static")
    cluster.lab.run("node1", ["nft", "add", "table", "inet", "firewall"], check=True)
    before = cluster.drift()
    cluster.ip("rule", "delete", "priority", "512")
    repaired(cluster, before)
    assert "77:" in cluster.ip("rule")
    assert "192.0.2.0/24" in cluster.ip("route")
    assert "firewall" in cluster.lab.run("node1", ["nft", "list", "tables"]).stdout
    assert cluster.diff().returncode == 0
    cluster.ip("rule", "delete", "priority", "77")
    cluster.ip("route", "delete", "192.0.2.0/24")
    cluster.lab.run("node1", ["nft", "delete", "table", "inet", "firewall"], check=True)


def test_repairing_one_thing_pauses_no_other_pods_connection(cluster: Any) -> None:
    with (
        cluster.pods(2) as (one, other),
        Receiver(cluster.lab.names.namespace("vpchost")),
        Stream(other.namespace, VPC_HOST) as stream,
    ):
        before = cluster.drift()
        cluster.ip("route", "delete", f"{one.address}/32", "table", "512")
        assert stream.exchange("during")
        repaired(cluster, before)
        assert stream.exchange("after")
        assert probe(one.namespace, VPC_HOST).source == one.address
