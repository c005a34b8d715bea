"""The fabric does to packets what a VPC does."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest
from waiting import until

from lab.traffic import Receiver, Stream, probe

pytestmark = pytest.mark.lab

INTERNET, PEER = "198.51.100.10", "10.100.0.10"
SPOOFED = "source is no address of this ENI"
NOT_PUBLIC = "no public address"
PORT = 9000
PACKETS = 3


# -- links --------------------------------------------------------------------------------


def test_an_instance_starts_with_its_first_link_configured_as_dhcp_would(vpc):
    eni = vpc.plug("node1", 0, "10.0.1.10")
    (link,) = json.loads(vpc.ip("node1", "-j", "address", "show", "dev", "eth0"))
    assert link["address"] == eni.mac
    assert link["mtu"] == 9001
    assert "UP" in link["flags"]
    ipv4 = [(a["local"], a["prefixlen"]) for a in link["addr_info"] if a["family"] == "inet"]
    assert ipv4 == [("10.0.1.10", 24)]
    (default,) = json.loads(vpc.ip("node1", "-j", "route", "show", "default"))
    assert (default["gateway"], default["dev"], default["protocol"]) == (
        "10.0.1.1",
        "eth0",
        "dhcp",
    )


def test_a_hot_plugged_link_has_the_enis_mac_and_nothing_else(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    eni = vpc.plug("node1", 1, "10.0.1.20", "10.0.1.21")
    (link,) = json.loads(vpc.ip("node1", "-j", "address", "show", "dev", "eth1"))
    assert link["address"] == eni.mac
    assert "UP" not in link["flags"]
    assert link["addr_info"] == []
    assert "eth1" not in vpc.ip("node1", "route", "show", "table", "all")


@pytest.mark.parametrize("device", [0, 1])
def test_unplugging_removes_the_link_and_all_that_leads_there(vpc, prefix, device):
    vpc.plug("vpchost", 0, "10.0.9.10")
    before = _fabric_state(vpc)
    eni = vpc.plug("node1", device, "10.0.1.20", "10.0.1.21", prefixes=(prefix,))
    assert all(new != old for new, old in zip(_fabric_state(vpc), before, strict=True))
    vpc.unplug(eni)
    assert _fabric_state(vpc) == before
    assert f"eth{device}" not in vpc.ip("node1", "link")


def test_taking_addresses_away_leaves_the_fabric_as_it_was(vpc, prefix):
    eni = vpc.plug("node1", 0, "10.0.1.10")
    before = _fabric_state(vpc)
    more = (*eni.addresses, IPv4Address("10.0.1.77"))
    vpc.readdress(dataclasses.replace(eni, addresses=more, prefixes=(prefix,)))
    assert _fabric_state(vpc) != before
    vpc.readdress(eni)
    assert _fabric_state(vpc) == before


def test_an_eni_can_move_to_another_instance(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    vpc.plug("vpchost", 0, "10.0.9.10")
    vpc.plug("node2", 0, "10.0.2.10")
    eni = vpc.plug("node1", 1, "10.0.1.20")
    vpc.unplug(eni)
    moved = dataclasses.replace(eni, instance_id="i-node2", device_index=1)
    with vpc.inside("vpc"):
        vpc.fabric.plug(moved)
    with _frames(vpc, "node2", "eth1") as received:
        _send(vpc, "vpchost", "10.0.9.10", "10.0.1.20")
        assert received("10.0.1.20") == eni.mac


# -- delivery -----------------------------------------------------------------------------


def test_subnets_reach_each_other_and_see_true_addresses(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    sender = vpc.plug("node2", 0, "10.0.2.10")
    with Receiver(vpc.ns("node1")):
        assert probe(vpc.ns("node2"), "10.0.1.10").source == "10.0.2.10"
    flows = [f for f in _passed(vpc) if f.eni == sender.eni_id]
    assert [(f.source, f.destination) for f in flows] == [("10.0.2.10", "10.0.1.10")]
    assert flows[0].packets >= 3  # SYN, ACK, FIN
    assert _drops(vpc) == ()


def test_an_open_connection_carries_both_ways(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    vpc.plug("node2", 0, "10.0.2.10")
    with Receiver(vpc.ns("node1")), Stream(vpc.ns("node2"), "10.0.1.10") as stream:
        assert stream.source == "10.0.2.10"
        assert stream.exchange("one")
        assert stream.exchange("two")


@pytest.mark.parametrize("address", ["10.0.1.20", "10.0.1.21", "10.0.1.32", "10.0.1.47"])
def test_secondary_addresses_and_prefixes_are_delivered_by_mac(vpc, prefix, address):
    vpc.plug("node1", 0, "10.0.1.10")
    vpc.plug("vpchost", 0, "10.0.9.10")
    eni = vpc.plug("node1", 1, "10.0.1.20", "10.0.1.21", prefixes=(prefix,))
    # Nothing on the node has these addresses, so nothing on it answers ARP for them.
    with _frames(vpc, "node1", "eth1") as received:
        _send(vpc, "vpchost", "10.0.9.10", address)
        assert received(address) == eni.mac


def test_neighbours_in_a_subnet_find_each_other_without_the_proxys_delay(vpc, prefix):
    vpc.plug("node1", 0, "10.0.1.10")
    vpc.plug("vpchost", 0, "10.0.1.11", subnet="nodes-a")
    vpc.plug("node1", 1, "10.0.1.20", prefixes=(prefix,))
    # Linux answers for others after a random part of 0.8 s (neigh/*/proxy_delay): for sixteen
    # addresses at least one such wait would be longer than this, each time. What is busy once is
    # the machine.
    for _ in range(5):
        with _frames(vpc, "node1", "eth1") as received:
            began = time.monotonic()
            for address in prefix:
                _send(vpc, "vpchost", "10.0.1.11", str(address))
            for address in prefix:
                received(str(address))
            took_s = time.monotonic() - began
        if took_s < 0.4:
            return
        vpc.ip("vpchost", "neighbour", "flush", "dev", "eth0")
    pytest.fail(f"it took {took_s:.1f} s")


def test_the_metadata_and_endpoint_addresses_are_reached_by_the_default_route(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    for address in ("169.254.169.254", "10.0.0.10", "10.0.1.1", "10.0.2.1"):
        # Nobody listens in a fabric without servers; a refusal comes from there nevertheless.
        assert "refused" in probe(vpc.ns("node1"), address, 80).failure


# -- the source check ---------------------------------------------------------------------


def test_a_spoofed_source_is_dropped_and_written_down_with_its_eni(vpc):
    eni = vpc.plug("node1", 0, "10.0.1.10")
    vpc.plug("vpchost", 0, "10.0.9.10")
    with _datagrams(vpc, "vpchost") as received:
        _send(vpc, "node1", "10.0.1.77", "10.0.9.10", packets=PACKETS)
        _send(vpc, "node1", "10.0.1.10", "10.0.9.10")
        assert received() == "10.0.1.10"  # sent last, so the others have been dealt with
    (drop,) = _drops(vpc)
    assert (drop.reason, drop.eni) == (SPOOFED, eni.eni_id)
    assert (drop.source, drop.destination, drop.packets) == ("10.0.1.77", "10.0.9.10", PACKETS)


def test_an_address_of_one_eni_may_not_leave_by_another(vpc):
    first = vpc.plug("node1", 0, "10.0.1.10")
    vpc.plug("node1", 1, "10.0.1.20")
    vpc.plug("vpchost", 0, "10.0.9.10")
    _send(vpc, "node1", "10.0.1.20", "10.0.9.10")  # the default route leads over eth0
    (drop,) = until(lambda: _drops(vpc))
    assert (drop.eni, drop.source) == (first.eni_id, "10.0.1.20")


def test_more_spoofed_flows_than_can_be_written_down_are_dropped_all_the_same(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    vpc.plug("vpchost", 0, "10.0.9.10")
    written_down_at_most = 65535
    with vpc.inside("node1"):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, _datagrams(vpc, "vpchost") as received:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
        sender.bind(("10.0.1.77", 0))
        for number in range(written_down_at_most + 1000):
            sender.sendto(b"x", (str(IPv4Address("203.0.113.0") + number), PORT))
        _send(vpc, "node1", "10.0.1.77", "10.0.9.10")
        _send(vpc, "node1", "10.0.1.10", "10.0.9.10")
        assert received() == "10.0.1.10"


def test_what_was_dropped_can_be_forgotten(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    _send(vpc, "node1", "10.0.1.77", "10.0.2.10")
    _send(vpc, "node1", "10.0.1.10", "10.0.2.10")
    until(lambda: _drops(vpc) and _passed(vpc))
    with vpc.inside("vpc"):
        vpc.fabric.forget()
    assert _drops(vpc) == ()
    assert _passed(vpc) == ()


def test_without_source_check_any_source_passes(vpc):
    eni = vpc.plug("node1", 0, "10.0.1.10")
    vpc.plug("vpchost", 0, "10.0.9.10")
    vpc.readdress(dataclasses.replace(eni, source_dest_check=False))
    with _datagrams(vpc, "vpchost") as received:
        _send(vpc, "node1", "10.0.1.77", "10.0.9.10")
        assert received() == "10.0.1.77"
    assert _drops(vpc) == ()
    vpc.readdress(eni)
    _send(vpc, "node1", "10.0.1.77", "10.0.9.10")
    until(lambda: [d.source for d in _drops(vpc)] == ["10.0.1.77"])


def test_a_new_address_passes_and_one_taken_away_is_dropped_again(vpc, prefix):
    eni = vpc.plug("node1", 0, "10.0.1.10")
    vpc.plug("vpchost", 0, "10.0.9.10")
    more = (*eni.addresses, IPv4Address("10.0.1.77"))
    with _datagrams(vpc, "vpchost") as received:
        vpc.readdress(dataclasses.replace(eni, addresses=more, prefixes=(prefix,)))
        for source in ("10.0.1.77", "10.0.1.40", "10.0.1.10"):
            _send(vpc, "node1", source, "10.0.9.10")
            assert received() == source
    assert _drops(vpc) == ()
    vpc.readdress(eni)
    for source in ("10.0.1.77", "10.0.1.40"):
        _send(vpc, "node1", source, "10.0.9.10")
    until(lambda: {d.source for d in _drops(vpc)} == {"10.0.1.77", "10.0.1.40"})


def test_an_address_that_moves_to_another_eni_is_delivered_there(vpc):
    vpc.plug("vpchost", 0, "10.0.9.10")
    vpc.plug("node1", 0, "10.0.1.10")
    one = vpc.plug("node1", 1, "10.0.1.20", "10.0.1.99")
    two = vpc.plug("node1", 2, "10.0.1.30")
    vpc.readdress(dataclasses.replace(one, addresses=one.addresses[:1]))
    vpc.readdress(dataclasses.replace(two, addresses=(*two.addresses, IPv4Address("10.0.1.99"))))
    with _frames(vpc, "node1", "eth2") as received:
        _send(vpc, "vpchost", "10.0.9.10", "10.0.1.99")
        assert received("10.0.1.99") == two.mac


# -- gateways -----------------------------------------------------------------------------


def test_the_internet_sees_the_primary_address_itself(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    with Receiver(vpc.ns("internet")):
        assert probe(vpc.ns("node1"), INTERNET).source == "10.0.1.10"


def test_the_internet_reaches_the_primary_address_only(vpc):
    vpc.plug("node1", 0, "10.0.1.10", "10.0.1.11")
    with Receiver(vpc.ns("node1")):
        assert probe(vpc.ns("internet"), "10.0.1.10").source == INTERNET
    _send(vpc, "internet", INTERNET, "10.0.1.11")
    (drop,) = until(lambda: _drops(vpc))
    assert (drop.reason, drop.eni, drop.destination) == (NOT_PUBLIC, "igw", "10.0.1.11")


def test_a_secondary_address_does_not_pass_the_internet_gateway(vpc):
    eni = vpc.plug("node1", 0, "10.0.1.10", "10.0.1.11")
    _send(vpc, "node1", "10.0.1.11", INTERNET, packets=PACKETS)
    until(lambda: [d.packets for d in _drops(vpc)] == [PACKETS])
    (drop,) = _drops(vpc)
    assert (drop.reason, drop.eni, drop.source) == (NOT_PUBLIC, eni.eni_id, "10.0.1.11")


def test_the_primary_address_of_a_secondary_eni_does_not_pass_the_internet_gateway(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    eni = vpc.plug("node1", 1, "10.0.1.20")
    vpc.ip("node1", "link", "set", "eth1", "up")
    vpc.settle()
    vpc.ip("node1", "address", "add", "10.0.1.20/32", "dev", "eth1")
    vpc.ip("node1", "route", "add", "10.0.1.1", "dev", "eth1", "table", "100")
    vpc.ip("node1", "route", "add", "default", "via", "10.0.1.1", "dev", "eth1", "table", "100")
    vpc.ip("node1", "rule", "add", "from", "10.0.1.20", "lookup", "100")
    _send(vpc, "node1", "10.0.1.20", INTERNET)
    (drop,) = until(lambda: _drops(vpc))
    assert (drop.reason, drop.eni) == (NOT_PUBLIC, eni.eni_id)


def test_the_peered_vpc_sees_and_reaches_every_address(vpc):
    vpc.plug("node1", 0, "10.0.1.10", "10.0.1.11")
    vpc.ip("node1", "address", "add", "10.0.1.11/32", "dev", "lo")
    with Receiver(vpc.ns("peer")), Receiver(vpc.ns("node1")):
        assert probe(vpc.ns("node1"), PEER).source == "10.0.1.10"
        assert probe(vpc.ns("peer"), "10.0.1.10").source == PEER
        assert probe(vpc.ns("peer"), "10.0.1.11").source == PEER
    with _datagrams(vpc, "peer", PEER) as received:
        _send(vpc, "node1", "10.0.1.11", PEER)
        assert received() == "10.0.1.11"
    assert _drops(vpc) == ()


def test_a_peering_is_no_way_to_the_internet(vpc):
    vpc.plug("node1", 0, "10.0.1.10")
    _send(vpc, "peer", PEER, INTERNET)
    (drop,) = until(lambda: _drops(vpc))
    assert (drop.reason, drop.eni, drop.source) == (NOT_PUBLIC, "pcx", PEER)


# -- helpers ------------------------------------------------------------------------------


def _drops(vpc):
    with vpc.inside("vpc"):
        return vpc.fabric.drops()


def _passed(vpc):
    with vpc.inside("vpc"):
        return vpc.fabric.passed()


def _fabric_state(vpc):
    """Everything in the fabric that an ENI leaves its mark on."""
    rules = vpc.run("vpc", "nft", "list", "table", "ip", "lab")
    links = {link["ifname"] for link in json.loads(vpc.ip("vpc", "-j", "link"))}
    routes = vpc.ip("vpc", "-4", "route", "show", "table", "all")
    neighbours = vpc.ip("vpc", "neighbour", "show", "nud", "permanent")
    return links, routes, neighbours, rules


def _send(vpc, part, source, destination, packets=1):
    """Send datagrams with a source that need not be the part's own."""
    with vpc.inside(part):
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
        sender.bind((source, 0))
        for _ in range(packets):
            sender.sendto(b"x", (destination, PORT))


@contextmanager
def _datagrams(vpc, part, address="0.0.0.0"):
    """Receive datagrams; the function yielded waits for one and says who sent it."""
    with vpc.inside(part):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver:
        receiver.bind((address, PORT))
        receiver.settimeout(5)
        yield lambda: receiver.recvfrom(100)[1][0]


@contextmanager
def _frames(vpc, part, link):
    """Listen on a link; the function yielded waits for a destination and says to which MAC."""
    vpc.ip(part, "link", "set", link, "up")
    vpc.settle()
    with vpc.inside(part):
        listener = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    seen = {}

    def wait(address):
        while address not in seen:
            frame = listener.recv(2000)
            seen[socket.inet_ntoa(frame[30:34])] = frame[:6].hex(":")
        return seen[address]

    with listener:
        listener.bind((link, 0x0800))
        listener.settimeout(5)
        yield wait
