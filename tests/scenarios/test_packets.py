"""Every row of the demo's table: the source the receiver saw, the ENI it left by, the answer."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab import netns
from lab.pod import Pod
from lab.topology import INTERNET_HOST, PEER_CIDR, PEER_HOST
from lab.traffic import Receiver, Stream, probe
from reconciler.node.neighbours import NeighboursAgain
from reconciler.node.passes import LocalNode
from reconciler.targets.state.directory import StateDirectory

pytestmark = pytest.mark.lab

NODE = "10.0.1.10"
VPC_HOST = "10.0.9.10"


class Traffic:
    """Pods on every ENI of node1, one on node2, and receivers everywhere."""

    def __init__(self, cluster: Any, near: list[Pod], far: Pod) -> None:
        self.cluster = cluster
        self.far = far
        devices = {a: e["device"] for e in cluster.lab.enis("node1") for a in e["addresses"]}
        self.by_device: dict[int, list[Pod]] = {}
        for one in near:
            self.by_device.setdefault(devices[one.address], []).append(one)

    def address(self, destination: str) -> str:
        return {
            "pod on the same node": self.by_device[0][1].address,
            "pod on the other node": self.far.address,
            "VPC host": VPC_HOST,
            "peered VPC": str(PEER_HOST),
            "internet": str(INTERNET_HOST),
        }[destination]

    def measure(self, device: int, destination: str) -> tuple[str, int | None]:
        """Return the source seen and the device it left by; None if it stayed on the node."""
        address = self.address(destination)
        self.cluster.lab.ask("forget")
        seen = probe(self.by_device[device][0].namespace, address)
        assert seen.source, f"{destination}: {seen}; dropped: {self.cluster.lab.drops()}"
        assert self.cluster.lab.drops() == []
        devices = {e["id"]: e["device"] for e in self.cluster.lab.enis("node1")}
        # By source as well: the last packets of an earlier connection may come late.
        flow = {"source": seen.source, "destination": address}
        flows = [f for f in self.cluster.lab.passed() if flow.items() <= f.items()]
        left = [devices[f["eni"]] for f in flows if f["eni"] in devices]
        return seen.source, left[0] if left else None


@pytest.fixture(scope="module")
def traffic(cluster: Any) -> Iterator[Traffic]:
    with cluster.pods(20) as near, cluster.pods(1, "node2") as (far,):
        made = Traffic(cluster, near, far)
        names = cluster.lab.names
        places = [names.namespace(p) for p in ("vpchost", "peer", "internet")]
        places += [made.by_device[0][1].namespace, far.namespace]
        receivers = [Receiver(place) for place in places]
        try:
            yield made
        finally:
            for receiver in receivers:
                receiver.close()


DESTINATIONS = [
    "pod on the same node",
    "pod on the other node",
    "VPC host",
    "peered VPC",
    "internet",
]


@pytest.mark.parametrize("device", [0, 1, 2], ids=lambda d: f"eni{d}")
@pytest.mark.parametrize("destination", DESTINATIONS)
def test_row_without_an_exclusion(traffic: Traffic, device: int, destination: str) -> None:
    own = traffic.by_device[device][0].address
    expected: dict[str, tuple[str, int | None]] = {
        "pod on the same node": (own, None),
        "pod on the other node": (own, device),
        "VPC host": (own, device),
        "peered VPC": (NODE, 0),
        "internet": (NODE, 0),
    }
    assert traffic.measure(device, destination) == expected[destination]


@pytest.fixture
def excluded(cluster: Any) -> Iterator[None]:
    """The peer's range is in excludeCIDRs while the test runs, on the running reconciler."""
    before = cluster.config.read_text()
    text = before.replace("excludeCIDRs: []", f'excludeCIDRs: ["{PEER_CIDR}"]')
    for content in (text, before):
        fresh = cluster.config.with_name("fresh.yaml")
        fresh.write_text(content)
        fresh.replace(cluster.config)
        wanted = str(PEER_CIDR) in content

        def holds(wanted: bool = wanted) -> bool:
            listing = cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout
            return (str(PEER_CIDR) in listing) is wanted

        until(holds, f"{PEER_CIDR} {'in' if wanted else 'out of'} the set")
        if content is text:
            yield


@pytest.mark.parametrize("device", [0, 1, 2], ids=lambda d: f"eni{d}")
@pytest.mark.parametrize("destination", DESTINATIONS)
@pytest.mark.usefixtures("excluded")
def test_row_with_the_peer_excluded(traffic: Traffic, device: int, destination: str) -> None:
    own = traffic.by_device[device][0].address
    expected: dict[str, tuple[str, int | None]] = {
        "pod on the same node": (own, None),
        "pod on the other node": (own, device),
        "VPC host": (own, device),
        "peered VPC": (own, device),
        "internet": (NODE, 0),
    }
    assert traffic.measure(device, destination) == expected[destination]


@pytest.mark.parametrize("device", [0, 1, 2], ids=lambda d: f"eni{d}")
def test_an_open_connection_outlives_the_edit_in_both_directions(
    traffic: Traffic, request: pytest.FixtureRequest, device: int
) -> None:
    source = traffic.by_device[device][0]
    with (
        Stream(source.namespace, str(PEER_HOST)) as peer,
        Stream(source.namespace, str(INTERNET_HOST)) as internet,
        Stream(source.namespace, VPC_HOST) as vpc,
    ):
        assert (peer.source, internet.source, vpc.source) == (NODE, NODE, source.address)
        request.getfixturevalue("excluded")
        assert probe(source.namespace, str(PEER_HOST)).source == source.address
        assert all(s.exchange("still here") for s in (peer, internet, vpc))


def test_connections_from_outside_to_a_pod_are_answered_by_its_own_eni(traffic: Traffic) -> None:
    """The VPC drops an answer that leaves by another ENI than the address belongs to."""
    names = traffic.cluster.lab.names
    for device in (0, 1, 2):
        one = traffic.by_device[device][0]
        with Receiver(one.namespace, 7001):
            for place in ("vpchost", "peer", "node2"):
                traffic.cluster.lab.ask("forget")
                seen = probe(names.namespace(place), one.address, 7001)
                assert seen.source, f"{place} to ENI {device}: {seen}"
                assert traffic.cluster.lab.drops() == []


def test_the_host_itself_reaches_everything_and_is_reached(traffic: Traffic) -> None:
    names = traffic.cluster.lab.names
    node = names.namespace("node1")
    for destination in DESTINATIONS:
        seen = probe(node, traffic.address(destination))
        assert seen.source == NODE, destination
    with Receiver(node, 7002):
        for device in (0, 1, 2):
            one = traffic.by_device[device][0]
            assert probe(one.namespace, NODE, 7002).source == one.address
        # The host answers on a secondary ENI's own address too, by that ENI.
        for eni in traffic.cluster.lab.enis("node1"):
            assert probe(names.namespace("vpchost"), eni["primary"], 7002).source == VPC_HOST
    assert traffic.cluster.lab.drops() == []


@pytest.fixture
def moved(traffic: Traffic) -> Iterator[str]:
    """An address of node1's subnet that a host of the same subnet has now; another had it."""
    cluster = traffic.cluster
    first = [cluster.lab.enis(name)[0]["id"] for name in ("node1", "vpchost")]
    shown = cluster.aws("describe_network_interfaces", NetworkInterfaceIds=first)
    here, there = sorted(
        shown["NetworkInterfaces"], key=lambda e: first.index(e["NetworkInterfaceId"])
    )
    instance = there["Attachment"]["InstanceId"]
    made = cluster.aws("create_network_interface", SubnetId=here["SubnetId"])["NetworkInterface"]
    own, address = made["NetworkInterfaceId"], made["PrivateIpAddress"]
    attached = cluster.aws(
        "attach_network_interface", NetworkInterfaceId=own, InstanceId=instance, DeviceIndex=1
    )
    for words in (
        f"address add {address}/32 dev eth1",
        "link set eth1 up",
        f"rule add from {address} lookup 77",
        "route add 10.0.1.1 dev eth1 table 77",
        "route add default via 10.0.1.1 dev eth1 table 77",
    ):
        cluster.ip(*words.split(), node="vpchost")
    # What is asked for in vain is soon known; what is reachable stays so, as if confirmed.
    neigh, before = Path("/proc/sys/net/ipv4/neigh/eth0"), dict[str, str]()
    with netns.inside(cluster.lab.names.namespace("node1")):
        for name, value in (("retrans_time_ms", 50), ("base_reachable_time_ms", 3_600_000)):
            before[name] = (neigh / name).read_text()
            (neigh / name).write_text(str(value))
    try:
        yield address
    finally:
        with netns.inside(cluster.lab.names.namespace("node1")):
            for name, earlier in before.items():
                (neigh / name).write_text(earlier)
        cluster.ip("neighbour", "flush", "to", address, "nud", "all")
        cluster.ip(*f"rule delete from {address} lookup 77".split(), node="vpchost")
        cluster.aws("detach_network_interface", AttachmentId=attached["AttachmentId"])
        cluster.aws("delete_network_interface", NetworkInterfaceId=own)


def test_who_sends_to_the_mac_that_an_address_had_elsewhere_is_put_right(
    traffic: Traffic, moved: str
) -> None:
    """Pods and the host alike: by the primary ENI they send to others of its subnet directly."""
    cluster, one = traffic.cluster, traffic.by_device[0][0]
    old = "02:00:00:00:00:99"
    words = f"neighbour replace {moved} lladdr {old} dev eth0 nud reachable"
    cluster.ip(*words.split())
    assert not probe(one.namespace, moved, timeout_s=0.3).source
    with netns.inside(cluster.lab.names.namespace("node1")):
        # As the daemon does within a minute; it is not waited for.
        node = LocalNode(StateDirectory(cluster.state()))
        NeighboursAgain(node.environment.netlink.learnt, node.known, time.monotonic).turn()

    def arrives() -> bool:
        return probe(one.namespace, moved, timeout_s=0.3).source == one.address

    until(arrives, "an answer", patience_s=10)
    assert old not in cluster.ip("neighbour", "show", moved)
    assert cluster.lab.drops() == []


def test_instance_metadata_answers_pods_and_knows_the_node(traffic: Traffic) -> None:
    """A pod on any ENI reaches 169.254.169.254, by the primary ENI's address."""
    for device in (0, 1, 2):
        assert probe_metadata(traffic.by_device[device][0].namespace) == 401


def probe_metadata(where: str) -> int:
    with netns.inside(where):
        connection = http.client.HTTPConnection("169.254.169.254", timeout=2)
        connection.connect()
    connection.request("GET", "/latest/meta-data/instance-id")
    with connection.getresponse() as response:
        status = response.status
    connection.close()
    return status
