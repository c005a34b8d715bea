"""The fabric does to IPv6 packets what a VPC does."""

from __future__ import annotations

import dataclasses
import json
import socket
from ipaddress import IPv6Address, IPv6Network

import pytest
from waiting import until

from lab.topology import INTERNET_IPV6_HOST, PEER_IPV6_HOST
from lab.traffic import Receiver, probe

pytestmark = pytest.mark.lab

NODE1, NODE2 = "2001:db8:ec2:1::10", "2001:db8:ec2:2::10"
PREFIX = IPv6Network("2001:db8:ec2:1:5::/80")
POD = "2001:db8:ec2:1:5::7"
INTERNET, PEER = str(INTERNET_IPV6_HOST), str(PEER_IPV6_HOST)
SPOOFED = "source is no address of this ENI"
PORT = 9000


def plug(vpc, node, ipv4, ipv6, **changes):
    return vpc.plug(node, 0, ipv4, ipv6_addresses=(IPv6Address(ipv6),), **changes)


@pytest.fixture
def both(vpc):
    """Two instances; the first one's ENI has a prefix, too."""
    eni = plug(vpc, "node1", "10.0.1.10", NODE1, ipv6_prefixes=(PREFIX,))
    plug(vpc, "node2", "10.0.2.10", NODE2)
    return eni


@pytest.mark.usefixtures("both")
def test_an_instance_gets_its_address_and_takes_the_routers_advertisement(vpc):
    (link,) = json.loads(vpc.ip("node1", "-6", "-j", "address", "show", "dev", "eth0"))
    held = {(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["scope"] == "global"}
    assert held == {(NODE1, 128)}
    (default,) = json.loads(vpc.ip("node1", "-6", "-j", "route", "show", "default"))
    assert (default["gateway"], default["dev"], default["protocol"]) == (
        "fe80:ec2::1",
        "eth0",
        "ra",
    )


def test_subnets_reach_each_other_and_see_true_addresses(vpc, both):
    with Receiver(vpc.ns("node2")):
        assert probe(vpc.ns("node1"), NODE2).source == NODE1
    assert drops(vpc) == ()
    with vpc.inside("vpc"):
        sent = {(f.eni, f.source, f.destination) for f in vpc.fabric.passed()}
    assert (both.eni_id, NODE1, NODE2) in sent


@pytest.mark.usefixtures("both")
def test_any_address_of_a_prefix_is_delivered_by_the_enis_mac(vpc):
    vpc.ip("node1", "-6", "address", "add", f"{POD}/128", "dev", "lo", "nodad")
    with Receiver(vpc.ns("node1")):
        assert probe(vpc.ns("node2"), POD).source == NODE2
        assert probe(vpc.ns("peer"), POD).source == PEER
        assert probe(vpc.ns("internet"), POD).source == INTERNET
    assert drops(vpc) == ()


@pytest.mark.usefixtures("both")
def test_prefix_addresses_pass_the_source_check_and_every_gateway(vpc):
    for place, destination in (("peer", PEER), ("internet", INTERNET)):
        with socket_in(vpc, place) as receiver:
            receiver.bind(("::", PORT))
            send(vpc, "node1", POD, destination)
            assert receiver.recvfrom(100)[1][0] == POD
    assert drops(vpc) == ()


def test_a_spoofed_source_is_dropped_and_written_down(vpc, both):
    spoofed = "2001:db8:ec2:1:6::7"
    send(vpc, "node1", spoofed, NODE2)
    (drop,) = until(lambda: drops(vpc))
    assert (drop.reason, drop.eni, drop.source) == (SPOOFED, both.eni_id, spoofed)


@pytest.mark.usefixtures("both")
def test_what_is_no_address_of_the_vpc_does_not_pass_the_internet_gateway(vpc):
    send(vpc, "peer", PEER, INTERNET)
    (drop,) = until(lambda: drops(vpc))
    assert (drop.reason, drop.source) == ("no public address", PEER)


def test_a_prefix_that_is_taken_away_is_neither_reached_nor_allowed(vpc, both):
    vpc.readdress(dataclasses.replace(both, ipv6_prefixes=()))
    send(vpc, "node1", POD, NODE2)
    (drop,) = until(lambda: drops(vpc))
    assert drop.source == POD
    assert str(PREFIX) not in vpc.ip("vpc", "-6", "route", "show", "table", "all")


def test_unplugging_leaves_nothing(vpc):
    plug(vpc, "node2", "10.0.2.10", NODE2)
    before = state(vpc)
    eni = plug(vpc, "node1", "10.0.1.10", NODE1, ipv6_prefixes=(PREFIX,))
    assert state(vpc) != before
    vpc.unplug(eni)
    until(lambda: state(vpc) == before, lambda: f"{state(vpc)} as {before}")


def state(vpc):
    rules = vpc.run("vpc", "nft", "list", "table", "ip6", "lab")
    return vpc.ip("vpc", "-6", "route", "show", "table", "all"), rules


def drops(vpc):
    with vpc.inside("vpc"):
        return vpc.fabric.drops()


def socket_in(vpc, part):
    with vpc.inside(part):
        made = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    made.settimeout(5)
    return made


def send(vpc, part, source, destination):
    """Send a datagram with a source that need not be the part's own."""
    with socket_in(vpc, part) as sender:
        sender.setsockopt(socket.IPPROTO_IPV6, 75, 1)  # IPV6_TRANSPARENT (linux/in6.h)
        sender.bind((source, 0))
        sender.sendto(b"x", (destination, PORT))
