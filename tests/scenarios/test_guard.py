"""What pods may send: with the packets that they must not, and with those that go on."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab import netns
from lab.pod import Pod
from reconciler.core.datapath import FLOWS
from reconciler.targets.netlink.ruleset import Nfnetlink
from reconciler.targets.nftables.flows import Flows
from reconciler.targets.nftables.target import Nft

pytestmark = pytest.mark.lab

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool: {addresses: {warm: 2, minimum: 24, surplus: 0}, cooldown: 2s}
reconcile: {resync: 2s}
families: [ipv4, ipv6]
"""
METADATA = {"ipv4": "169.254.169.254", "ipv6": "fd00:ec2::254"}
AT_ONCE_S = 2.0
"""Seconds; ``test_gone`` says why not less."""

ALLOW = DOCUMENT + "pods: {spoofing: allow}\n"
PORT = 7778
FAMILIES = ("ipv4", "ipv6")


class Place:
    """Pods of node1, of which one listens for datagrams and counts by source."""

    def __init__(self, cluster: Any, pods: list[Pod]) -> None:
        self.cluster = cluster
        self.pods = pods
        self.sender, self.neighbour, self.receiver = pods[:3]
        self.node = cluster.lab.names.namespace("node1")

    def own(self, one: Pod, family: str) -> str:
        """Return a pod's address of a family."""
        return one.addresses[FAMILIES.index(family)]

    def counted(self, reason: str = "spoofed") -> int:
        with netns.inside(self.node):
            return Nft().count()[reason]

    def edit(self, document: str) -> None:
        generation = self.cluster.status()["document"]["generation"]
        self.cluster.config.write_text(document)
        until(
            lambda: (
                self.cluster.status()["document"]["generation"] > generation
                and self.cluster.status()["settled"]
            ),
            "the edit",
        )

    def arrives(self, source: str, family: str, *, sender: Pod | None = None) -> bool:
        """Whether a datagram with a source reaches the receiver before one with the true source.

        The second comes by the same way, so that nothing has to be waited for.
        """
        sender = sender or self.sender
        to, own = self.own(self.receiver, family), self.own(sender, family)
        kind = socket.AF_INET6 if family == "ipv6" else socket.AF_INET
        with netns.inside(self.receiver.namespace):
            receiver = socket.socket(kind, socket.SOCK_DGRAM)
        with closing(receiver):
            receiver.bind((to, PORT))
            receiver.settimeout(5)
            for address in (source, own):
                send(sender.namespace, kind, address, to)
            first = receiver.recvfrom(64)[1][0]
        assert first in (source, own)
        return bool(first == source)


def send(namespace: str, kind: int, source: str, to: str) -> None:
    """Send a datagram from any address, as a process with NET_ADMIN can."""
    with netns.inside(namespace), socket.socket(kind, socket.SOCK_DGRAM) as s:
        freebind = (
            (socket.IPPROTO_IPV6, 78)  # IPV6_FREEBIND
            if kind == socket.AF_INET6
            else (socket.IPPROTO_IP, 15)  # IP_FREEBIND
        )
        s.setsockopt(*freebind, 1)
        if kind == socket.AF_INET:
            s.setsockopt(socket.IPPROTO_IP, 19, 1)  # IP_TRANSPARENT: the kernel asks for no route
        s.bind((source, 0))
        s.sendto(b"?", (to, PORT))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, make_cluster: Any) -> Iterator[Place]:
    with make_cluster(tmp_path_factory.mktemp("guard")) as cluster:
        cluster.config.write_text(DOCUMENT)
        cluster.start()
        with cluster.pods(3) as pods:
            yield Place(cluster, pods)


def others(place: Place, family: str) -> dict[str, str]:
    """Addresses of others, by whose they are."""
    ipv6 = family == "ipv6"
    return {
        "its neighbour": place.own(place.neighbour, family),
        "the node": "2001:db8:ec2:1::10" if ipv6 else "10.0.1.10",
        "a host of the VPC": "2001:db8:ec2:9::10" if ipv6 else "10.0.9.10",
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_what_carries_an_address_of_another_is_dropped_and_counted(
    place: Place, family: str
) -> None:
    for whose, source in others(place, family).items():
        before = place.counted()
        assert not place.arrives(source, family), whose
        assert place.counted() == before + 1, whose
    until(
        lambda: place.cluster.status()["packetsRefused"]["spoofed"] == place.counted(),
        "the count in status",
    )
    metric = 'node_network_packets_refused_total{reason="spoofed"}'
    assert f"{metric} {float(place.counted())}" in place.cluster.status()["metrics"]


def test_what_ipv6_says_on_a_link_itself_goes_on(place: Place) -> None:
    """Neighbour discovery, and duplicate address detection from the unspecified address."""
    before = place.counted()
    veth = next(
        a["veth"]
        for a in place.cluster.status()["attachments"]
        if place.sender.address in a["addresses"]
    )
    words = place.cluster.ip("-6", "-o", "address", "show", "dev", veth, "scope", "link").split()
    host = words[words.index("inet6") + 1].partition("/")[0]
    with netns.inside(place.sender.namespace):
        subprocess.run(["ip", "address", "add", "fe80::abcd/64", "dev", "eth0"], check=True)
        shown = ["ip", "-6", "address", "show", "dev", "eth0"]
        until(lambda: not subprocess.check_output([*shown, "tentative"]), "the end of DAD")
        failed = subprocess.check_output([*shown, "dadfailed"])
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
            s.sendto(b"?", (host, PORT, 0, socket.if_nametoindex("eth0")))
        found = ["ip", "-6", "neighbour", "show", host, "dev", "eth0"]
        until(lambda: b"lladdr" in subprocess.check_output(found), "the host's answer")
        subprocess.run(["ip", "address", "del", "fe80::abcd/64", "dev", "eth0"], check=True)
    assert not failed
    assert place.counted() == before


@pytest.mark.parametrize(
    "command",
    [
        "nft flush map inet node_network guarded_ipv4",
        "nft flush chain inet node_network guard",
        "nft flush chain inet node_network from_pod",
        "nft flush map inet node_network links",
    ],
)
def test_what_somebody_takes_away_of_it_is_put_back(place: Place, command: str) -> None:
    neighbour, before = place.own(place.neighbour, "ipv4"), place.cluster.drift()
    assert place.cluster.lab.run("node1", command.split()).returncode == 0
    until(lambda: place.cluster.drift() > before, "the repair")
    until(lambda: place.cluster.status()["settled"], "settled")
    assert not place.arrives(neighbour, "ipv4")
    assert place.arrives(place.own(place.sender, "ipv4"), "ipv4")


def test_allowed_they_arrive_as_before_and_denied_again_they_do_not(place: Place) -> None:
    place.edit(ALLOW)
    try:
        for family in FAMILIES:
            arrives = {w: place.arrives(s, family) for w, s in others(place, family).items()}
            # The kernel itself refuses an IPv4 source that is its own (fib_validate_source).
            expected = {"its neighbour": True, "the node": family == "ipv6"}
            assert arrives == expected | {"a host of the VPC": True}
    finally:
        place.edit(DOCUMENT)
    for family in FAMILIES:
        assert not any(place.arrives(s, family) for s in others(place, family).values())


def test_a_link_that_is_not_ours_is_left_alone(place: Place) -> None:
    """Whatever it is called, and whatever it sends."""
    name = f"{place.node}-other"
    netns.make(name)
    script = f"""
        ip link add nnother type veth peer name eth0 netns {name}
        ip link set nnother up
        ip route add 192.0.2.1 dev nnother
        ip -n {name} address add 192.0.2.1 dev eth0
        ip -n {name} link set eth0 up
        ip -n {name} route add default dev eth0
        echo 1 >/proc/sys/net/ipv4/conf/nnother/proxy_arp
    """
    to = place.own(place.receiver, "ipv4")
    try:
        with netns.inside(place.node):
            subprocess.run(["sh", "-ec", script], check=True)
        with netns.inside(place.receiver.namespace):
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with closing(receiver):
            receiver.bind((to, PORT))
            receiver.settimeout(5)
            send(name, socket.AF_INET, "192.0.2.77", to)
            assert receiver.recvfrom(64)[1][0] == "192.0.2.77"
    finally:
        netns.remove(name)
        with netns.inside(place.node):
            subprocess.run(["ip", "link", "delete", "nnother"], check=False, capture_output=True)


class Beyond:
    """The other end of an ENI: whatever is put there, no VPC has looked at."""

    def __init__(self, place: Place, device: int) -> None:
        names = place.cluster.lab.names
        link = f"eth{device}"
        with netns.inside(place.node):
            words = subprocess.check_output(["ip", "-j", "link", "show", link])
            self._mac = bytes.fromhex(json.loads(words)[0]["address"].replace(":", ""))
            index = json.loads(words)[0]["link_index"]
        with netns.inside(names.namespace("vpc")):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
            self._socket.bind((socket.if_indextoname(index), 0))

    def close(self) -> None:
        self._socket.close()

    def send(self, source: str, to: str, port: int, *, source_port: int = 53) -> None:
        """Send a datagram to an address of the node or of a pod."""
        addresses = ip_address(source).packed + ip_address(to).packed
        head = bytes([0x45, 0, 0, 29, 0, 0, 0, 0, 64, 17])
        total = sum(struct.unpack("!10H", head + bytes(2) + addresses))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        packet = head + struct.pack("!H", ~total & 0xFFFF) + addresses
        datagram = struct.pack("!HHHH", source_port, port, 9, 0) + b"?"
        own = bytes.fromhex("024200000001")
        self._socket.send(self._mac + own + b"\x08\x00" + packet + datagram)


def listen(namespace: str, address: str, port: int = PORT) -> socket.socket:
    with netns.inside(namespace):
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    receiver.bind((address, port))
    receiver.settimeout(5)
    return receiver


SETTINGS = ("eth0/accept_local", "eth1/accept_local", "eth1/rp_filter")


def settings(place: Place) -> list[str]:
    with netns.inside(place.node):
        return [Path(f"/proc/sys/net/ipv4/conf/{s}").read_text().strip() for s in SETTINGS]


NOBODYS = {
    "the node's own": "10.0.1.10",
    "loopback": "127.0.0.1",
    "a group": "224.0.0.5",
    "all hosts": "255.255.255.255",
    "its subnet's broadcast": "10.0.1.255",
}


def refused_from_beyond(place: Place) -> None:
    """See that a source which no host beyond can have reaches neither the node nor a pod."""
    pod_address, vpc_host = place.own(place.receiver, "ipv4"), "10.0.9.10"
    own = {"the ENI's own": place.cluster.ip("-o", "-4", "address", "show", "eth1").split()[3]}
    sources = NOBODYS | {whose: a.partition("/")[0] for whose, a in own.items()}
    for device in (0, 1):
        for namespace, to in (
            (place.receiver.namespace, pod_address),
            (place.node, "10.0.1.10"),
        ):
            with closing(Beyond(place, device)) as beyond, listen(namespace, to) as receiver:
                for whose, source in sources.items():
                    for sent in (source, vpc_host):
                        beyond.send(sent, to, PORT)
                    assert receiver.recvfrom(64)[1][0] == vpc_host, (whose, device, to)


def test_with_the_kernels_look_off_what_nobody_beyond_can_have_is_refused(place: Place) -> None:
    until(lambda: settings(place) == ["1", "1", "0"], "the kernel's look off")
    with netns.inside(place.node):
        veths = [a["veth"] for a in place.cluster.status()["attachments"]]
        files = [Path(f"/proc/sys/net/ipv4/conf/{v}/accept_local") for v in veths]
        assert {f.read_text().strip() for f in files} == {"1"}
    before = place.counted("martian")
    refused_from_beyond(place)
    assert place.counted("martian") == before + 2 * 2 * (len(NOBODYS) + 1)


def test_nobody_beyond_speaks_in_a_connection_of_the_host_that_is_open(place: Place) -> None:
    to = place.own(place.receiver, "ipv4")
    with (
        closing(Beyond(place, 1)) as beyond,
        listen(place.receiver.namespace, to) as receiver,
        listen(place.node, "10.0.1.10", 5353) as host,
    ):
        host.sendto(b"own", (to, PORT))
        assert receiver.recvfrom(64) == (b"own", ("10.0.1.10", 5353))
        receiver.sendto(b"yes", ("10.0.1.10", 5353))
        assert host.recvfrom(64)[0] == b"yes"
        beyond.send("10.0.1.10", to, PORT, source_port=5353)
        host.sendto(b"own", (to, PORT))
        assert receiver.recvfrom(64)[0] == b"own"


def test_a_host_that_becomes_strict_everywhere_still_takes_packets_by_every_eni(
    place: Place,
) -> None:
    """The kernel takes the larger filter of a link's own and of ``all``."""

    def say(value: str) -> None:
        with netns.inside(place.node):
            Path("/proc/sys/net/ipv4/conf/all/rp_filter").write_text(value)

    say("1")
    try:
        until(lambda: settings(place) == ["0", "0", "2"], "the kernel's look on, and loose")
        refused_from_beyond(place)
    finally:
        say("0")
    until(lambda: settings(place) == ["1", "1", "0"], "the kernel's look off again")


def ask_metadata(one: Pod, family: str, kind: int) -> str:
    """Say what becomes of a pod's question to instance metadata: "answered", or an error."""
    with (
        netns.inside(one.namespace),
        socket.socket(socket.AF_INET6 if family == "ipv6" else socket.AF_INET, kind) as s,
    ):
        s.settimeout(5 * AT_ONCE_S)
        try:
            s.connect((METADATA[family], 80))
            s.send(b"GET / HTTP/1.0\r\n\r\n")
            return "answered" if s.recv(1) else "closed"
        except OSError as error:
            return type(error).__name__


def test_metadata_is_refused_at_once_to_those_whom_the_document_denies_it(place: Place) -> None:
    stream, datagram = socket.SOCK_STREAM, socket.SOCK_DGRAM
    one = place.cluster.add(pod_name="pay-1")
    other = place.sender
    assert [ask_metadata(p, "ipv4", stream) for p in (one, other)] == ["answered"] * 2
    deny = "{match: {namespace: default, pod: pay-*}, access: deny}"
    place.edit(DOCUMENT + f"pods: {{metadata: [{deny}]}}\n")
    late = place.cluster.add(pod_name="pay-2")
    try:
        before = place.counted("metadata")
        for refused in (one, late):
            for family in FAMILIES:
                begin = time.monotonic()
                assert ask_metadata(refused, family, stream) == "ConnectionRefusedError"
                told = ask_metadata(refused, family, datagram)
                assert told == {"ipv4": "OSError", "ipv6": "PermissionError"}[family]
                assert time.monotonic() - begin < 2 * AT_ONCE_S
        assert place.counted("metadata") >= before + 8
        assert ask_metadata(other, "ipv4", stream) == "answered"
        traced = place.cluster.trace(one.address, METADATA["ipv4"])
        assert "pods.metadata denies the pod" in traced.planned.troubles[0]
        assert traced.differences == ()
    finally:
        place.edit(DOCUMENT)
    assert [ask_metadata(p, "ipv4", stream) for p in (one, late)] == ["answered"] * 2
    for made in (one, late):
        place.cluster.delete(made)


def test_where_the_kernel_has_no_flowtables_it_is_said_and_pods_start(place: Place) -> None:
    with netns.inside(place.node):
        if not Flows().refusal():
            pytest.skip("this kernel has them; make e2e-kernel")
    place.edit(DOCUMENT + "datapath: {fastPath: auto}\n")
    cluster = place.cluster
    (found,) = cluster.status()["conditions"]
    assert (found["reason"], found["subject"]) == ("NoFlowtables", "datapath.fastPath")
    cluster.delete(cluster.add())
    with netns.inside(place.node):
        assert FLOWS not in Nfnetlink().list_tables("inet")
    place.edit(DOCUMENT)
    assert not cluster.status()["conditions"]
