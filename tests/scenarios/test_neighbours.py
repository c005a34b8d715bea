"""Other owners on the node, by packets: kube-proxy, portmap and Calico.

Every flow is judged by the source the receiver saw, by the answer, and by the fabric, which drops
what a VPC drops. Our ``diff`` stays empty meanwhile, and nothing of theirs changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import rulesets
import services
from rulesets import Ruleset
from scale_fixture import NODE, VPC_HOST, Town, inhabited
from services import Endpoint, HostPort, Service

from lab.topology import INTERNET_HOST, PEER_HOST
from lab.traffic import PORT

pytestmark = pytest.mark.lab

SERVICES = 300
"""Services beside those of the test: a cluster's usual size."""


@pytest.fixture(scope="module")
def town(cluster: Any) -> Iterator[Town]:
    with inhabited(cluster) as made:
        yield made


def known_services(town: Town) -> tuple[Service, ...]:
    """A service for each place an endpoint can be in."""
    ends = {f"server{d}": Endpoint(p.address, PORT, local=True) for d, p in town.server.items()}
    ends |= {f"client{d}": Endpoint(p.address, PORT, local=True) for d, p in town.client.items()}
    ends |= {
        "far": Endpoint(town.far.address, PORT),
        "internet": Endpoint(str(INTERNET_HOST), PORT),
        "vpchost": Endpoint(VPC_HOST, PORT),
    }
    cluster_wide = [
        Service(f"test/{name}:tcp", f"172.20.0.{10 + n}", 80, (end,), node_port=30000 + n)
        for n, (name, end) in enumerate(ends.items())
    ]
    here = [
        Service(
            f"test/local{d}:tcp",
            f"172.20.1.{d}",
            80,
            (ends[f"server{d}"], ends["far"]),
            node_port=31000 + d,
            local=True,
        )
        for d in (0, 1)
    ]
    return (*cluster_wide, *here, *services.padding(SERVICES, node_ports=20))


def everything(town: Town, style: str) -> tuple[Ruleset, ...]:
    """The rulesets of a style; what is loaded last stands first."""
    known = known_services(town)
    backend: rulesets.Backend = "legacy" if style == "iptables-legacy" else "nft"
    ports = [HostPort(8000 + d, p.address, PORT, f"c{d}") for d, p in town.server.items()]
    mode: services.Mode = "nftables" if style == "nftables" else "iptables"
    proxy = services.kube_proxy(mode, known, node=NODE, backend=backend)
    mapped = services.portmap(ports, backend=backend)
    if style != "calico":
        return (proxy, mapped)
    veths = [town.veth(p) for p in town.near if p is not town.stranger]
    return (proxy, mapped, rulesets.calico("nn", veths))


@pytest.fixture(scope="module", params=["nftables", "iptables-nft", "iptables-legacy", "calico"])
def style(request: pytest.FixtureRequest, town: Town) -> Iterator[str]:
    with rulesets.loaded(town.node, *everything(town, request.param)):
        before, drift = town.theirs(), town.cluster.drift()
        yield request.param
        assert town.theirs() == before, "nothing of theirs was changed"
        done = town.cluster.diff()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert town.cluster.drift() == drift, "nothing of ours was in anybody's way"


def service(town: Town, name: str) -> Service:
    return next(s for s in known_services(town) if s.name == f"test/{name}:tcp")


@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"from-eni{d}")
@pytest.mark.parametrize("target", ["server0", "server1", "far", "vpchost", "internet"])
def test_a_service_leads_to_its_endpoint(town: Town, style: str, device: int, target: str) -> None:
    client = town.client[device]
    seen = town.call(client.namespace, service(town, target).address, 80)
    assert seen.source == (NODE if target == "internet" else client.address), seen


@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"eni{d}")
def test_a_pod_reaches_itself_by_its_service(town: Town, style: str, device: int) -> None:
    client = town.client[device]
    seen = town.call(client.namespace, service(town, f"client{device}").address, 80)
    assert seen.source == NODE, seen


@pytest.mark.parametrize("target", ["server0", "server1", "far", "internet"])
def test_the_host_reaches_services(town: Town, style: str, target: str) -> None:
    assert town.call(town.node, service(town, target).address, 80).source == NODE


@pytest.mark.parametrize("place", ["vpchost", "peer", "node2"])
@pytest.mark.parametrize("target", ["server0", "server1", "far"])
def test_a_node_port_leads_to_its_endpoint_by_the_nodes_address(
    town: Town, style: str, place: str, target: str
) -> None:
    seen = town.call(town.place(place), NODE, service(town, target).node_port)
    assert seen.source == NODE, seen


SOURCES = {"vpchost": VPC_HOST, "peer": str(PEER_HOST), "node2": "10.0.2.10"}


@pytest.mark.parametrize("place", SOURCES)
@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"to-eni{d}")
def test_a_local_node_port_and_a_host_port_keep_the_source(
    town: Town, style: str, place: str, device: int
) -> None:
    """The pod's answer leaves by the primary ENI, whose address the client has used."""
    for port in (service(town, f"local{device}").node_port, 8000 + device):
        seen = town.call(town.place(place), NODE, port)
        assert seen.source == SOURCES[place], f"port {port}: {seen}"


@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"from-eni{d}")
def test_a_pod_reaches_node_and_host_ports_of_its_own_node(
    town: Town, style: str, device: int
) -> None:
    client = town.client[device]
    for target in ("server0", "server1"):
        seen = town.call(client.namespace, NODE, service(town, target).node_port)
        assert seen.source == NODE, seen
    for port in (8000, 8001):
        assert town.call(client.namespace, NODE, port).source == client.address


@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"from-eni{d}")
def test_what_needs_no_service_goes_its_way(town: Town, style: str, device: int) -> None:
    client = town.client[device]
    for address in (town.server[1 - device].address, town.far.address, VPC_HOST):
        assert town.call(client.namespace, address).source == client.address
    assert town.call(client.namespace, str(INTERNET_HOST)).source == NODE


def test_a_trace_follows_it_through_their_chains_and_finds_nothing_against_it(
    town: Town, style: str
) -> None:
    """Every way of these tests: what went through is what is said to go through."""
    one, server = town.client[1].address, town.server[0].address
    remote = service(town, "far")
    ways: list[tuple[str, str, dict[str, Any]]] = [
        (one, VPC_HOST, {}),
        (one, server, {}),
        (one, str(INTERNET_HOST), {"protocol": 6, "port": 443}),
        (one, NODE, {"protocol": 6, "port": 10250}),
        (one, remote.address, {"endpoint": town.far.address, "protocol": 6, "port": 80}),
        (server, VPC_HOST, {"inbound": True}),
        (server, VPC_HOST, {"inbound": True, "at": NODE, "protocol": 6, "port": 8000}),
        ("host", server, {"protocol": 6, "port": PORT}),
        ("host", remote.address, {"endpoint": town.far.address, "protocol": 6, "port": 80}),
    ]
    for pod, peer, more in ways:
        traced = town.cluster.trace(pod, peer, **more)
        assert (traced.obstacles, traced.differences) == ((), ()), (pod, peer, more)
    stopped = town.cluster.trace(town.stranger.address, VPC_HOST).obstacles
    assert bool(stopped) is (style == "calico")


def test_the_policy_engine_of_these_tests_bites(town: Town, style: str) -> None:
    """Calico drops what comes from a link that it knows no pod of."""
    seen = town.call(town.stranger.namespace, VPC_HOST)
    assert bool(seen.source) is (style != "calico")
