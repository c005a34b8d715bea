"""Packets for a pod that is gone are refused at once, and no others are."""

from __future__ import annotations

import errno
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest
from waiting import until

from lab import netns
from lab.pod import Pod
from lab.traffic import Receiver, Stream, probe

pytestmark = pytest.mark.lab

AT_ONCE_S = 2.0
"""Seconds. In the lab an ICMP error may arrive while ``connect`` still holds the socket: Linux
then only notes it (tcp_v6_err), and gives up at the answer to the next SYN, a second later."""

PORT = 7777


class Place:
    """Pods on each ENI of node1, one on node2, and where clients of theirs may be."""

    def __init__(self, cluster: Any, near: list[Pod], far: Pod) -> None:
        self.cluster = cluster
        self.near = near
        names = cluster.lab.names
        self.clients = {
            "a pod of the node": near[0].namespace,
            "a pod of another node": far.namespace,
            "a host of the VPC": names.namespace("vpchost"),
            "the node itself": names.namespace("node1"),
            "another node": names.namespace("node2"),
        }

    def end(self, *, secondary: bool) -> Pod:
        """End a pod whose ENI is the primary, or another one."""
        one = next(p for p in self.near[1:] if bool(p.device) is secondary)
        self.near.remove(one)
        self.cluster.delete(one)
        return one


@pytest.fixture(scope="module")
def place(cluster: Any) -> Iterator[Place]:
    with cluster.pods(21) as near, cluster.pods(1, "node2") as (far,):
        yield Place(cluster, near, far)


def knock(namespace: str, address: str, kind: int = socket.SOCK_STREAM) -> tuple[str, float]:
    """Return what a client is told, and after how many seconds."""
    with netns.inside(namespace), socket.socket(socket.AF_INET, kind) as client:
        client.settimeout(3)
        begin = time.monotonic()
        try:
            client.connect((address, PORT))
            client.send(b"?")
            client.recv(1)
        except OSError as error:
            told = errno.errorcode.get(error.errno or 0, str(error))
            return told, time.monotonic() - begin
    return "an answer", time.monotonic() - begin


@pytest.mark.parametrize("secondary", [False, True], ids=["primary ENI", "secondary ENI"])
def test_clients_of_a_pod_that_is_gone_are_refused_at_once(place: Place, secondary: bool) -> None:
    gone = place.end(secondary=secondary)
    for client, namespace in place.clients.items():
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            told, seconds = knock(namespace, gone.address, kind)
            # The kernel tells who sends a datagram from the node itself by the call that sends it.
            is_own = client == "the node itself" and kind == socket.SOCK_DGRAM
            assert told == ("EPERM" if is_own else "ECONNREFUSED"), (client, kind)
            assert seconds < AT_ONCE_S, (client, kind)
    assert place.cluster.lab.drops() == []


def test_connections_of_this_node_that_are_open_end_with_the_pod(place: Place) -> None:
    one = next(p for p in place.near[1:] if p.device)
    with Receiver(one.namespace), Stream(place.near[0].namespace, one.address) as stream:
        assert stream.exchange("before")
        place.near.remove(one)
        place.cluster.delete(one)
        begin = time.monotonic()
        assert not stream.exchange("after")
        assert time.monotonic() - begin < AT_ONCE_S


def test_the_next_pod_of_that_address_is_reached_at_once(place: Place) -> None:
    gone = place.end(secondary=True)
    namespace = place.clients["a pod of another node"]
    assert knock(namespace, gone.address)[0] == "ECONNREFUSED"
    until(lambda: not place.cluster.records("cooling"), "cooldown")
    made = []
    while not any(p.address == gone.address for p in made):
        assert len(made) < 30, "the address is not given again"
        made.append(place.cluster.add())
    with Receiver(made[-1].namespace):
        for client in place.clients.values():
            assert probe(client, gone.address).source
    place.near.extend(made)


def test_a_pod_that_no_record_of_ours_knows_is_not_refused(place: Place) -> None:
    """One of the stock plugin's: an address of an ENI, a rule to it, and its route in main."""
    gone = place.end(secondary=False)
    node, name = place.clients["the node itself"], f"{place.clients['the node itself']}-other"
    netns.make(name)
    try:
        script = f"""
            ip link add eniother type veth peer name eth0 netns {name}
            ip link set eniother up
            ip route add {gone.address} dev eniother
            ip rule add priority 512 to {gone.address} lookup main
            ip -n {name} address add {gone.address} dev eth0
            ip -n {name} link set eth0 up
            ip -n {name} route add 169.254.1.1 dev eth0
            ip -n {name} route add default via 169.254.1.1 dev eth0
            echo 1 >/proc/sys/net/ipv4/conf/eniother/proxy_arp
        """
        with netns.inside(node):
            subprocess.run(["sh", "-ec", script], check=True)
        with Receiver(name):
            for where, client in place.clients.items():
                assert probe(client, gone.address).source, where
    finally:
        netns.remove(name)
        with netns.inside(node):
            rule = ["ip", "rule", "delete", "priority", "512", "to", gone.address]
            for words in (["ip", "link", "delete", "eniother"], rule):
                subprocess.run(words, check=False)


def test_a_service_whose_pod_is_gone_is_refused_by_its_own_address(place: Place) -> None:
    """kube-proxy has translated the destination; conntrack must translate the answer back."""
    gone, service = place.end(secondary=True), "172.20.0.1"
    node = place.clients["the node itself"]
    script = f"""
        nft add table ip service
        nft add chain ip service in '{{ type nat hook prerouting priority dstnat; }}'
        nft add chain ip service out '{{ type nat hook output priority -100; }}'
        nft add rule ip service in ip daddr {service} dnat to {gone.address}
        nft add rule ip service out ip daddr {service} dnat to {gone.address}
    """
    try:
        with netns.inside(node):
            subprocess.run(["sh", "-ec", script], check=True)
        for client in ("a pod of the node", "the node itself"):
            told, seconds = knock(place.clients[client], service)
            assert (told, seconds < AT_ONCE_S) == ("ECONNREFUSED", True), client
    finally:
        with netns.inside(node):
            subprocess.run(["nft", "delete", "table", "ip", "service"], check=False)


@pytest.mark.parametrize("secondary", [False, True], ids=["primary ENI", "secondary ENI"])
def test_trace_says_that_no_pod_has_the_address(place: Place, secondary: bool) -> None:
    gone = place.end(secondary=secondary)
    traced = place.cluster.trace(place.near[0].address, gone.address)
    assert traced.planned.troubles == (
        f"{gone.address} is this node's, and no pod has it: the sender is told so at once",
    )
    assert traced.differences == ()


def test_the_difference_shows_what_refuses(place: Place) -> None:
    cluster = place.cluster
    cluster.stop("node1")
    try:
        flush = ["nft", "flush", "chain", "inet", "node_network", "refuse"]
        assert cluster.lab.run("node1", flush).returncode == 0
        assert "nft flush chain inet node_network refuse" in cluster.diff().stdout
    finally:
        cluster.start("node1")
    until(lambda: cluster.diff().returncode == 0, "no difference")  # cooldowns end meanwhile
    gone = place.end(secondary=True)
    assert knock(place.clients["a host of the VPC"], gone.address)[0] == "ECONNREFUSED"
