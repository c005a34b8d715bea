"""The stand-in for the stock plugin leaves in the kernel what the plugin leaves, and it works."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from lab import netns, stock
from lab.stock import Connmark, Iptables, StockEni, StockError, StockNode, StockPod
from lab.traffic import Receiver, probe

pytestmark = pytest.mark.lab

INTERNET, PEER, VPC_HOST, NODE = "198.51.100.10", "10.100.0.10", "10.0.9.10", "10.0.1.10"
SUBNET = IPv4Network("10.0.1.0/24")
PRIMARY = StockEni(0, "eth0", IPv4Address(NODE), SUBNET)
SECONDARY = StockEni(1, "eth1", IPv4Address("10.0.1.20"), SUBNET)
BACKENDS = [
    (Iptables.NFT, None),
    (Iptables.NFT, Connmark.IPTABLES),
    (Iptables.LEGACY, None),
]


class Laid:
    """A node laid out in a fabric: pod "a" on the primary ENI, "b" on a secondary."""

    def __init__(self, vpc, **choices):
        self.vpc = vpc
        vpc.plug("vpchost", 0, VPC_HOST)
        self.enis = [
            vpc.plug("node1", 0, NODE, "10.0.1.11"),
            vpc.plug("node1", 1, "10.0.1.20", "10.0.1.21"),
        ]
        self.a = StockPod("default", "a", IPv4Address("10.0.1.11"), vpc.ns("pod-a"))
        self.b = StockPod("default", "b", IPv4Address("10.0.1.21"), vpc.ns("pod-b"), device=1)
        self.node = StockNode((PRIMARY, SECONDARY), (self.a, self.b), **choices)
        for pod in self.node.pods:
            netns.make(pod.netns)
        stock.apply(vpc.ns("node1"), stock.layout(self.node))
        vpc.settle()

    def json(self, part, *words):
        return json.loads(self.vpc.ip(part, "-j", *words))

    def seen(self, part, address):
        """Whose address a receiver there sees of pod a and of pod b."""
        with Receiver(self.vpc.ns(part)):
            return tuple(probe(p.netns, address).source for p in self.node.pods)

    def left_by(self, source):
        with self.vpc.inside("vpc"):
            flows = self.vpc.fabric.passed()
        devices = {e.eni_id: e.device_index for e in self.enis}
        return {devices[f.eni] for f in flows if f.source == source}

    def dropped(self):
        with self.vpc.inside("vpc"):
            return self.vpc.fabric.drops()


def test_the_rules_are_one_or_two_per_pod_and_one_per_secondary_eni(vpc):
    laid = Laid(vpc)
    rules = laid.json("node1", "-d", "rule")
    ours = [r for r in rules if r["priority"] not in (0, 32766, 32767)]
    assert [(r["priority"], r.get("dst", ""), r["src"], r["table"]) for r in ours] == [
        (512, "10.0.1.11", "all", "main"),
        (512, "10.0.1.21", "all", "main"),
        (1024, "", "all", "main"),
        (1536, "", "10.0.1.21", "2"),
        (32765, "", "10.0.1.20", "2"),
    ]
    assert {r["protocol"] for r in ours} == {"unspec"}
    (mark,) = [r for r in ours if "fwmark" in r]
    assert (mark["priority"], mark["fwmark"], mark["fwmask"]) == (1024, "0x80", "0x80")


def test_a_secondary_eni_has_its_address_its_table_and_no_connected_route(vpc):
    laid = Laid(vpc)
    (link,) = laid.json("node1", "address", "show", "dev", "eth1")
    assert (link["mtu"], "UP" in link["flags"]) == (9001, True)
    ipv4 = [(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["family"] == "inet"]
    assert ipv4 == [("10.0.1.20", 24)]
    assert laid.json("node1", "route", "show", "dev", "eth1") == []
    routes = laid.json("node1", "route", "show", "table", "2")
    assert [(r["dst"], r.get("gateway"), r["dev"]) for r in routes] == [
        ("default", "10.0.1.1", "eth1"),
        ("10.0.1.1", None, "eth1"),
    ]


def test_a_pod_has_a_veth_named_by_its_own_name_and_a_permanent_neighbour(vpc):
    laid = Laid(vpc)
    pod = laid.b
    assert pod.veth == "eniff6fc35a693"  # the start of sha1("default.b")
    (link,) = laid.json("node1", "link", "show", "dev", pod.veth)
    assert (link["address"], link["mtu"]) == (pod.mac, 9001)
    (route,) = laid.json("node1", "route", "show", "10.0.1.21")
    assert (route["dev"], route["scope"]) == (pod.veth, "link")
    (inside,) = laid.json("pod-b", "-4", "address", "show", "dev", "eth0")
    assert [(a["local"], a["prefixlen"]) for a in inside["addr_info"]] == [("10.0.1.21", 32)]
    ways = [(r["dst"], r.get("gateway")) for r in laid.json("pod-b", "route")]
    assert ways == [("default", "169.254.1.1"), ("169.254.1.1", None)]
    (neighbour,) = laid.json("pod-b", "-4", "neighbour")
    assert (neighbour["dst"], neighbour["lladdr"]) == ("169.254.1.1", pod.mac)
    assert neighbour["state"] == ["PERMANENT"]


@pytest.mark.parametrize(("iptables", "connmark"), BACKENDS)
def test_the_nat_chain_returns_for_each_cidr_and_then_translates(vpc, iptables, connmark):
    excluded = (IPv4Network("10.100.0.0/16"), IPv4Network("192.0.2.0/24"))
    Laid(vpc, iptables=iptables, connmark=connmark, exclude_cidrs=excluded)
    saved = vpc.run("node1", f"iptables-{iptables}-save").splitlines()
    chain = [line for line in saved if line.startswith("-A AWS-SNAT-CHAIN-0")]
    returns = [line.split()[3] for line in chain if line.endswith("RETURN")]
    assert returns == ["192.0.2.0/24", "10.100.0.0/16", "100.64.0.0/16", "10.0.0.0/16"]
    assert sum("AWS SNAT CHAIN EXCLUSION" in line for line in chain) == len(excluded)
    assert chain[-1].endswith("-j SNAT --to-source 10.0.1.10 --random-fully")
    assert '-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0' in saved
    assert sum('--comment "AWS, primary ENI"' in line for line in saved) == 3


@pytest.mark.parametrize(("iptables", "connmark"), BACKENDS)
def test_connections_are_marked_by_one_backend_only(vpc, iptables, connmark):
    Laid(vpc, iptables=iptables, connmark=connmark)
    saved = vpc.run("node1", f"iptables-{iptables}-save")
    by_nft = iptables is Iptables.NFT and connmark is None
    assert ("AWS-CONNMARK-CHAIN-0" in saved) is not by_nft
    assert ("table ip aws-cni" in vpc.run("node1", "nft", "list", "tables")) is by_nft


@pytest.mark.parametrize(("iptables", "connmark"), BACKENDS)
def test_pods_of_both_enis_are_seen_as_the_stock_plugin_shows_them(vpc, iptables, connmark):
    laid = Laid(vpc, iptables=iptables, connmark=connmark)
    assert laid.seen("vpchost", VPC_HOST) == ("10.0.1.11", "10.0.1.21")
    assert laid.left_by("10.0.1.11") == {0}
    assert laid.left_by("10.0.1.21") == {1}
    assert laid.seen("internet", INTERNET) == (NODE, NODE)
    assert laid.seen("peer", PEER) == (NODE, NODE)
    assert laid.left_by(NODE) == {0}
    assert laid.dropped() == ()


def test_an_excluded_network_sees_the_pods_themselves(vpc):
    laid = Laid(vpc, exclude_cidrs=(IPv4Network("10.100.0.0/16"),))
    assert laid.seen("peer", PEER) == ("10.0.1.11", "10.0.1.21")
    assert laid.left_by("10.0.1.21") == {1}
    assert laid.dropped() == ()


def test_pods_are_reached_from_the_vpc_and_from_each_other(vpc):
    laid = Laid(vpc)
    for pod in laid.node.pods:
        with Receiver(pod.netns):
            assert probe(vpc.ns("vpchost"), str(pod.address)).source == VPC_HOST
            other = laid.b if pod is laid.a else laid.a
            assert probe(other.netns, str(pod.address)).source == str(other.address)
    assert laid.dropped() == ()


def test_with_external_snat_nothing_is_translated(vpc):
    laid = Laid(vpc, external_snat=True)
    assert laid.seen("peer", PEER) == ("10.0.1.11", "10.0.1.21")
    assert "SNAT" not in vpc.run("node1", "iptables-nft-save").replace("AWS-SNAT-CHAIN-0", "")
    assert "aws-cni" not in vpc.run("node1", "nft", "list", "tables")


def test_pods_can_be_added_later(vpc):
    laid = Laid(vpc)
    late = StockPod("kube-system", "c", IPv4Address("10.0.1.12"), vpc.ns("pod-c"))
    netns.make(late.netns)
    eni = laid.enis[0]
    vpc.readdress(replace(eni, addresses=(*eni.addresses, late.address)))
    stock.apply(vpc.ns("node1"), stock.pod_steps(laid.node, [late]))
    vpc.settle()
    with Receiver(vpc.ns("vpchost")):
        assert probe(late.netns, VPC_HOST).source == "10.0.1.12"


def test_a_step_that_fails_says_where_and_why(vpc):
    lost = StockPod("default", "a", IPv4Address("10.0.1.11"), "nowhere")
    vpc.plug("node1", 0, NODE)
    node = StockNode((PRIMARY,))
    with pytest.raises(StockError, match=r"ip -batch - in .*node1: .*nowhere"):
        stock.apply(vpc.ns("node1"), stock.pod_steps(node, [lost]))


def test_the_checkpoint_is_the_daemons_file(tmp_path):
    pod = StockPod("default", "a", IPv4Address("10.0.1.11"), "x", container_id="c0ffee")
    path = tmp_path / "aws-node/ipam.json"
    stock.write_checkpoint([pod], path)
    assert json.loads(path.read_text()) == {
        "version": "vpc-cni-ipam/1",
        "allocations": [
            {
                "networkName": "aws-cni",
                "containerID": "c0ffee",
                "ifName": "eth0",
                "ipv4": "10.0.1.11",
                "allocationTimestamp": 1_700_000_000_000_000_000,
                "metadata": {
                    "k8sPodNamespace": "default",
                    "k8sPodName": "a",
                    "interfacesCount": 1,
                },
            }
        ],
    }
