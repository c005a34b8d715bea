"""IPv6 and dual stack, in packets: the source seen, the ENI used, the answer, and no drops."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab import netns, pod
from lab.pod import Pod
from lab.topology import (
    INTERNET_HOST,
    INTERNET_IPV6_HOST,
    PEER_HOST,
    PEER_IPV6_HOST,
    VPC_IPV6_CIDR,
)
from lab.traffic import Receiver, Stream, probe
from reconciler.targets.imds import Imds

pytestmark = pytest.mark.lab

HEAD = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"
POOL = "warmPool: {addresses: {warm: 2, minimum: 24, surplus: 0}, cooldown: 2s}\n"
NODE, NODE_IPV6 = "10.0.1.10", "2001:db8:ec2:1::10"
VPC_HOST, VPC_HOST_IPV6 = "10.0.9.10", "2001:db8:ec2:9::10"
IPV4_PLACES = {"VPC host": VPC_HOST, "peered VPC": str(PEER_HOST), "internet": str(INTERNET_HOST)}
IPV6_PLACES = {
    "VPC host": VPC_HOST_IPV6,
    "peered VPC": str(PEER_IPV6_HOST),
    "internet": str(INTERNET_IPV6_HOST),
}
OUTSIDE = ("vpchost", "peer", "internet", "node2")


@dataclass
class Traffic:
    """Pods of node1 by the device of their ENI, one of node2, and receivers everywhere."""

    cluster: Any
    near: dict[int, list[Pod]]
    far: Pod

    def own(self, one: Pod, version: int) -> str:
        """Return a pod's address of a family."""
        (found,) = [a for a in one.addresses if ip_address(a).version == version]
        return found

    def measure(self, one: Pod, address: str) -> tuple[str, int | None]:
        """Return the source seen and the device it left by; None if it stayed on the node."""
        lab = self.cluster.lab
        lab.ask("forget")
        seen = probe(one.namespace, address)
        assert seen.source, f"{one.addresses} to {address}: {seen}; dropped: {lab.drops()}"
        assert lab.drops() == []
        devices = {e["id"]: e["device"] for e in lab.enis("node1")}
        flow = {"source": seen.source, "destination": address}
        flows = [f for f in lab.passed() if flow.items() <= f.items()]
        left = {devices[f["eni"]] for f in flows if f["eni"] in devices}
        assert len(left) <= 1, left
        device = left.pop() if left else None
        traced = self.cluster.trace(one.address, address)
        assert (str(traced.planned.source), traced.planned.device) == (seen.source, device)
        assert traced.differences == traced.planned.troubles == ()
        return seen.source, device

    def reach(self, one: Pod, address: str, port: int) -> None:
        """Connect to a pod from everywhere beyond its node."""
        lab = self.cluster.lab
        for place in OUTSIDE:
            lab.ask("forget")
            seen = probe(lab.names.namespace(place), address, port)
            assert seen.source, f"{place} to {address}: {seen}; dropped: {lab.drops()}"
            assert lab.drops() == []
            traced = self.cluster.trace(one.address, seen.source, inbound=True)
            assert traced.planned.device == one.device
            assert traced.differences == traced.planned.troubles == ()


@contextmanager
def running(
    make_cluster: Any, directory: Any, document: str, *, least: int, count: int
) -> Iterator[Traffic]:
    """Two nodes with a document, and pods on both."""
    with make_cluster(directory) as cluster:
        cluster.config.write_text(HEAD + document)
        cluster.least = least
        for node in ("node1", "node2"):
            cluster.start(node)
        with cluster.pods(count) as near, cluster.pods(1, "node2") as (far,):
            by_device: dict[int, list[Pod]] = {}
            for one in near:
                by_device.setdefault(one.device, []).append(one)
            names = cluster.lab.names
            places = [names.namespace(p) for p in ("vpchost", "peer", "internet")]
            places += [one.namespace for one in (*near, far)]
            receivers = [Receiver(place) for place in places]
            try:
                yield Traffic(cluster, by_device, far)
            finally:
                for receiver in receivers:
                    receiver.close()


def make_traffic(
    tmp_path_factory: pytest.TempPathFactory, make: Any, document: str, **more: Any
) -> Any:
    return running(make, tmp_path_factory.mktemp("ipv6"), document, **more)


@pytest.fixture(scope="module", params=["primary", "secondary"])
def alone(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, make_cluster: Any
) -> Iterator[Traffic]:
    """IPv6 alone, with IPv4 for egress; pods on the primary ENI, or on a secondary one."""
    use_primary = str(request.param == "primary").lower()
    document = (
        f"{POOL}families: [ipv6]\negressFamilies: [ipv4]\neni: {{usePrimary: {use_primary}}}\n"
    )
    with make_traffic(tmp_path_factory, make_cluster, document, least=0, count=3) as made:
        yield made


@pytest.fixture(scope="module")
def dual(tmp_path_factory: pytest.TempPathFactory, make_cluster: Any) -> Iterator[Traffic]:
    """Both families; pods on every ENI."""
    document = f"{POOL}families: [ipv4, ipv6]\n"
    with make_traffic(tmp_path_factory, make_cluster, document, least=24, count=20) as made:
        yield made


def diff_is_empty(cluster: Any) -> bool:
    """Whether every node is as its document says, by a process of its own."""
    done = [cluster.diff(node) for node in ("node1", "node2")]
    assert all(d.returncode == 0 for d in done), [d.stdout + d.stderr for d in done]
    return True


# -- IPv6 alone ---------------------------------------------------------------------------


def test_a_pod_of_ipv6_alone_is_seen_everywhere_by_its_own_address(alone: Traffic) -> None:
    ((device, (one, two, *_)),) = alone.near.items()
    own = one.address
    assert one.addresses == [own]
    assert ip_address(own) in VPC_IPV6_CIDR
    assert alone.measure(one, two.address) == (own, None)
    assert alone.measure(one, alone.far.address) == (own, device)
    for place, address in IPV6_PLACES.items():
        assert alone.measure(one, address) == (own, device), place


def test_a_pod_of_ipv6_alone_is_reached_from_everywhere(alone: Traffic) -> None:
    ((_, (one, *_)),) = alone.near.items()
    with Receiver(one.namespace, 7001):
        alone.reach(one, one.address, 7001)


def test_a_pod_of_ipv6_alone_reaches_ipv4_by_the_nodes_address(alone: Traffic) -> None:
    for one in next(iter(alone.near.values())):
        for place, address in IPV4_PLACES.items():
            assert alone.measure(one, address) == (NODE, 0), place


def test_clients_of_an_ipv6_pod_that_is_gone_are_refused_at_once(alone: Traffic) -> None:
    lab = alone.cluster.lab
    with alone.cluster.pods(1) as (one,):
        address = alone.own(one, 6)
    near = next(iter(alone.near.values()))[0].namespace
    lab.ask("forget")
    for client in (near, *map(lab.names.namespace, ("node1", "node2", "vpchost"))):
        assert "refused" in probe(client, address).failure, client
    assert lab.drops() == []


def test_the_host_and_its_pods_reach_each_other(alone: Traffic) -> None:
    ((_, (one, *_)),) = alone.near.items()
    node = alone.cluster.lab.names.namespace("node1")
    assert probe(node, one.address).source == NODE_IPV6
    with Receiver(node, 7002):
        assert probe(one.namespace, NODE_IPV6, 7002).source == one.address
        assert ip_address(probe(one.namespace, NODE, 7002).source) in ip_network(
            "169.254.172.0/22"
        )
    for place, address in IPV6_PLACES.items():
        assert probe(node, address).source == NODE_IPV6, place


def test_a_node_of_ipv6_alone_holds_one_prefix_and_no_ipv4_in_stock(alone: Traffic) -> None:
    ((device, _),) = alone.near.items()
    enis = alone.cluster.lab.enis("node1")
    assert len(enis) == device + 1
    assert [len(e["ipv6Prefixes"]) for e in enis] == [0] * device + [1]
    assert [e["addresses"] for e in enis] == [[e["primary"]] for e in enis]
    assert diff_is_empty(alone.cluster)


def test_a_restart_of_the_daemon_keeps_every_pod_and_connection(alone: Traffic) -> None:
    cluster = alone.cluster
    ((device, (one, *_)),) = alone.near.items()
    before = cluster.records("attachments")
    with (
        Stream(one.namespace, str(INTERNET_IPV6_HOST)) as six,
        Stream(one.namespace, str(INTERNET_HOST)) as four,
    ):
        cluster.stop("node1", signal.SIGKILL)
        assert six.exchange("nobody is there")
        cluster.start("node1")
        assert six.exchange("still here")
        assert four.exchange("still here")
    assert cluster.records("attachments") == before
    assert alone.measure(one, VPC_HOST_IPV6) == (one.address, device)
    assert diff_is_empty(cluster)


def test_lost_objects_of_ipv6_are_put_back(alone: Traffic) -> None:
    cluster = alone.cluster
    ((device, (one, *_)),) = alone.near.items()
    before = cluster.drift()
    with cluster.still():  # one repair
        cluster.ip("-6", "route", "flush", "table", "512")
        cluster.ip("-6", "rule", "flush")
        cluster.ip("-6", "rule", "add", "priority", "32766", "lookup", "main")
    until(lambda: cluster.drift() > before and cluster.is_settled(), cluster.log)
    assert "lookup 512" in cluster.ip("-6", "rule")
    assert one.address in cluster.ip("-6", "route", "show", "table", "512")
    assert alone.measure(one, VPC_HOST_IPV6) == (one.address, device)


def test_a_namespace_in_which_ipv6_is_switched_off_gets_it_on_its_own_links(
    alone: Traffic,
) -> None:
    cluster = alone.cluster
    namespace = cluster.lab.names.namespace("pod-off")
    netns.make(namespace)
    try:
        with netns.inside(namespace):
            for name in ("all", "default"):
                Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        result = pod.call(cluster.lab, "node1", "off", "ADD")
        made = Pod(cluster.lab, "node1", "off", namespace, result)
        assert probe(namespace, VPC_HOST_IPV6).source == made.address
        cluster.delete(made)
    finally:
        netns.remove(namespace)


def test_metadata_is_a_second_witness_of_the_prefix(alone: Traffic) -> None:
    lab = alone.cluster.lab
    with netns.inside(lab.names.namespace("node1")):
        held, node = Imds().interfaces(), Imds().node()
    shown = {(e["mac"], ip_network(p)) for e in lab.enis("node1") for p in e["ipv6Prefixes"]}
    assert held == shown
    assert shown
    assert VPC_IPV6_CIDR in node.vpc_cidrs


def test_a_lost_rule_alone_is_noticed_without_waiting_for_the_next_look(alone: Traffic) -> None:
    cluster = alone.cluster
    for _ in range(2):
        cluster.ip("-6", "rule", "delete", "priority", "512")
        until(lambda: "lookup 512" in cluster.ip("-6", "rule"), "the rule", patience_s=10)
    until(cluster.is_settled, "settled")


def test_the_kernels_default_route_by_advertisement_survives_forwarding(alone: Traffic) -> None:
    (default,) = json.loads(alone.cluster.ip("-6", "-j", "route", "show", "default"))
    assert (default["protocol"], default["dev"]) == ("ra", "eth0")


# -- both families ------------------------------------------------------------------------


@pytest.mark.parametrize("device", [0, 1, 2], ids=lambda d: f"eni{d}")
def test_both_families_of_a_pod_leave_by_the_same_eni(dual: Traffic, device: int) -> None:
    one = dual.near[device][0]
    four, six = dual.own(one, 4), dual.own(one, 6)
    assert one.addresses == [four, six]
    neighbour = dual.near[device][1]
    for version, own in ((4, four), (6, six)):
        assert dual.measure(one, dual.own(neighbour, version)) == (own, None)
        assert dual.measure(one, dual.own(dual.far, version)) == (own, device)
    for place, address in IPV6_PLACES.items():
        assert dual.measure(one, address) == (six, device), place
    assert dual.measure(one, VPC_HOST) == (four, device)
    for place in ("peered VPC", "internet"):
        assert dual.measure(one, IPV4_PLACES[place]) == (NODE, 0), place


@pytest.mark.parametrize("device", [0, 1, 2], ids=lambda d: f"eni{d}")
def test_a_dual_stack_pod_is_reached_from_everywhere(dual: Traffic, device: int) -> None:
    one = dual.near[device][0]
    with Receiver(one.namespace, 7001):
        dual.reach(one, dual.own(one, 6), 7001)
        for place in ("vpchost", "peer", "node2"):
            place = dual.cluster.lab.names.namespace(place)
            assert probe(place, dual.own(one, 4), 7001).source


NODE_PORT = """
table ip6 ports {
  chain prerouting {
    type nat hook prerouting priority dstnat; policy accept;
    tcp dport 30080 fib daddr type local dnat to [%s]:7001
  }
}
"""


@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"eni{d}")
def test_a_port_of_the_node_is_answered_by_the_eni_it_was_reached_by(
    dual: Traffic, device: int
) -> None:
    """IPv6 is never translated by us, but a NodePort's connection is bound like any other."""
    cluster, one = dual.cluster, dual.near[device][0]
    cluster.lab.run("node1", ["nft", "-f", "-"], input=NODE_PORT % dual.own(one, 6), check=True)
    try:
        with Receiver(one.namespace, 7001):
            for place, source in IPV6_PLACES.items():
                cluster.lab.ask("forget")
                where = {"VPC host": "vpchost", "peered VPC": "peer"}.get(place, place)
                seen = probe(cluster.lab.names.namespace(where), NODE_IPV6, 30080)
                assert seen.source == source, (place, seen, cluster.lab.drops())
                assert cluster.lab.drops() == []
                traced = cluster.trace(one.address, source, inbound=True, at=NODE_IPV6)
                assert traced.planned.device == 0
                assert traced.differences == traced.planned.troubles == ()
    finally:
        cluster.lab.run("node1", ["nft", "delete", "table", "ip6", "ports"], check=True)


def test_every_eni_of_a_dual_stack_node_has_one_prefix_and_nothing_is_left_to_do(
    dual: Traffic,
) -> None:
    enis = dual.cluster.lab.enis("node1")
    assert [len(e["ipv6Prefixes"]) for e in enis] == [1, 1, 1]
    assert diff_is_empty(dual.cluster)


def test_the_result_lists_both_families_and_their_routes(dual: Traffic) -> None:
    result = dual.near[0][0].result
    assert [i["gateway"] for i in result["ips"]] == ["169.254.1.1", "fe80::1"]
    assert [r["dst"] for r in result["routes"]] == ["0.0.0.0/0", "::/0"]
    assert result["ips"][1]["address"].endswith("/128")


# -- one node through changes -------------------------------------------------------------


def edit(cluster: Any, document: str) -> None:
    """Replace the document, and wait until it is in force everywhere."""
    generation = cluster.status()["document"]["generation"]
    fresh = cluster.config.with_name("fresh.yaml")
    fresh.write_text(HEAD + document)
    fresh.replace(cluster.config)

    def holds() -> bool:
        return cluster.status()["document"]["generation"] > generation and cluster.is_settled()

    until(holds, lambda: f"the edit in force\n{cluster.log()}", patience_s=60)
    assert cluster.diff().returncode == 0


def seen_by(cluster: Any, one: Pod, address: str) -> str:
    """Return the source an address sees, of which the fabric dropped nothing."""
    cluster.lab.ask("forget")
    source = probe(one.namespace, address).source
    assert cluster.lab.drops() == []
    return source


def test_families_change_under_running_pods_and_nothing_of_theirs_is_lost(
    tmp_path: Any, make_cluster: Any
) -> None:
    with make_cluster(tmp_path) as cluster:
        cluster.config.write_text(f"{HEAD}{POOL}families: [ipv4]\negressFamilies: [ipv6]\n")
        cluster.start()
        names = cluster.lab.names
        with Receiver(names.namespace("vpchost")), Receiver(names.namespace("internet")):
            story(cluster)


def story(cluster: Any) -> None:
    internet = str(INTERNET_IPV6_HOST)
    old = cluster.add()
    assert len(old.addresses) == 1
    # IPv6 for egress: by the node's address.
    assert seen_by(cluster, old, internet) == NODE_IPV6
    assert seen_by(cluster, old, VPC_HOST_IPV6) == NODE_IPV6

    told = cluster.config.with_name("told.yaml")
    told.write_text(f"{HEAD}{POOL}families: [ipv4, ipv6]\n")
    said = cluster.diff("node1", told)
    assert said.stdout.count("aws ec2 assign-ipv6-addresses") == 3
    assert "AssignIpv6Addresses" in said.stderr
    edit(cluster, f"{POOL}families: [ipv4, ipv6]\n")
    both = cluster.add()
    four, six = both.addresses
    assert (seen_by(cluster, both, internet), seen_by(cluster, both, VPC_HOST)) == (six, four)
    assert seen_by(cluster, old, internet) == NODE_IPV6
    assert seen_by(cluster, old, VPC_HOST) == old.address

    edit(cluster, f"{POOL}families: [ipv4]\n")
    assert (seen_by(cluster, both, internet), seen_by(cluster, both, VPC_HOST)) == (six, four)
    assert len(cluster.add().addresses) == 1

    # Lost records are rebuilt from the kernel with every address, the VPC's first.
    held = {tuple(r["addresses"]) for r in cluster.records("attachments")}
    cluster.stop("node1", signal.SIGKILL)
    for path in (cluster.state() / "attachments").glob("*.json"):
        path.unlink()
    cluster.start()
    until(lambda: {tuple(r["addresses"]) for r in cluster.records("attachments")} == held, "them")

    pod.delete(cluster.lab, both.node, both.name)
    until(lambda: {four, six} <= {r["address"] for r in cluster.records("cooling")}, "cooldowns")
    until(lambda: not cluster.holds(both), "the release")
    cluster.delete(old)
    until(lambda: "lookup 512" not in cluster.ip("-6", "rule"), "the end of IPv6")
    until(cluster.is_settled, "settled")
    assert six not in cluster.ip("-6", "route", "show", "table", "all")
    assert six not in cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout
    assert six not in cluster.ip("-6", "neighbour", "show", "nud", "permanent")
    until(lambda: not cluster.records("cooling"), "the end of every cooldown")
    assert cluster.diff().returncode == 0
