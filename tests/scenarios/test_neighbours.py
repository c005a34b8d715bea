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
from scale_fixture import NODE, VPC_HOST, ScaleFixture, inhabited
from services import Endpoint, HostPort, Service

from lab.topology import INTERNET_HOST, PEER_HOST
from lab.traffic import PORT

pytestmark = pytest.mark.lab

SERVICES = 300
"""Services beside those of the test: a cluster's usual size."""


@pytest.fixture(scope="module")
def scale_fixture(cluster: Any) -> Iterator[ScaleFixture]:
    with inhabited(cluster) as made:
        yield made


def known_services(scale_fixture: ScaleFixture) -> tuple[Service, ...]:
    """A service for each place an endpoint can be in."""
    ends = {
        f"server{d}": Endpoint(p.address, PORT, local=True)
        for d, p in scale_fixture.server.items()
    }
    ends |= {
        f"client{d}": Endpoint(p.address, PORT, local=True)
        for d, p in scale_fixture.client.items()
    }
    ends |= {
        "far": Endpoint(scale_fixture.far.address, PORT),
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


def everything(scale_fixture: ScaleFixture, style: str) -> tuple[Ruleset, ...]:
    """The rulesets of a style; what is loaded last stands first."""
    known = known_services(scale_fixture)
    backend: rulesets.Backend = "legacy" if style == "iptables-legacy" else "nft"
    ports = [HostPort(8000 + d, p.address, PORT, f"c{d}") for d, p in scale_fixture.server.items()]
    mode: services.Mode = "nftables" if style == "nftables" else "iptables"
    proxy = services.kube_proxy(mode, known, node=NODE, backend=backend)
    mapped = services.portmap(ports, backend=backend)
    if style != "calico":
        return (proxy, mapped)
    veths = [scale_fixture.veth(p) for p in scale_fixture.near if p is not scale_fixture.stranger]
    return (proxy, mapped, rulesets.calico("nn", veths))


@pytest.fixture(scope="module", params=["nftables", "iptables-nft", "iptables-legacy", "calico"])
def style(request: pytest.FixtureRequest, scale_fixture: ScaleFixture) -> Iterator[str]:
    with rulesets.loaded(scale_fixture.node, *everything(scale_fixture, request.param)):
        before, drift = scale_fixture.theirs(), scale_fixture.cluster.drift()
        yield request.param
        assert scale_fixture.theirs() == before, "nothing of theirs was changed"
        done = scale_fixture.cluster.diff()
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert scale_fixture.cluster.drift() == drift, "nothing of ours was in anybody's way"


def service(scale_fixture: ScaleFixture, name: str) -> Service:
    return next(s for s in known_services(scale_fixture) if s.name == f"test/{name}:tcp")


@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"from-eni{d}")
@pytest.mark.parametrize("target", ["server0", "server1", "far", "vpchost", "internet"])
def test_a_service_leads_to_its_endpoint(
    scale_fixture: ScaleFixture, style: str, device: int, target: str
) -> None:
    client = scale_fixture.client[device]
    seen = scale_fixture.call(client.namespace, service(scale_fixture, target).address, 80)
    assert seen.source == (NODE if target == "internet" else client.address), seen


@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"eni{d}")
def test_a_pod_reaches_itself_by_its_service(
    scale_fixture: ScaleFixture, style: str, device: int
) -> None:
    client = scale_fixture.client[device]
    seen = scale_fixture.call(
        client.namespace, service(scale_fixture, f"client{device}").address, 80
    )
    assert seen.source == NODE, seen


@pytest.mark.parametrize("target", ["server0", "server1", "far", "internet"])
def test_the_host_reaches_services(scale_fixture: ScaleFixture, style: str, target: str) -> None:
    assert (
        scale_fixture.call(scale_fixture.node, service(scale_fixture, target).address, 80).source
        == NODE
    )


@pytest.mark.parametrize("place", ["vpchost", "peer", "node2"])
@pytest.mark.parametrize("target", ["server0", "server1", "far"])
def test_a_node_port_leads_to_its_endpoint_by_the_nodes_address(
    scale_fixture: ScaleFixture, style: str, place: str, target: str
) -> None:
    seen = scale_fixture.call(
        scale_fixture.place(place), NODE, service(scale_fixture, target).node_port
    )
    assert seen.source == NODE, seen


SOURCES = {"vpchost": VPC_HOST, "peer": str(PEER_HOST), "node2": "10.0.2.10"}


@pytest.mark.parametrize("place", SOURCES)
@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"to-eni{d}")
def test_a_local_node_port_and_a_host_port_keep_the_source(
    scale_fixture: ScaleFixture, style: str, place: str, device: int
) -> None:
    """The pod's answer leaves by the primary ENI, whose address the client has used."""
    for port in (service(scale_fixture, f"local{device}").node_port, 8000 + device):
        seen = scale_fixture.call(scale_fixture.place(place), NODE, port)
        assert seen.source == SOURCES[place], f"port {port}: {seen}"


@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"from-eni{d}")
def test_a_pod_reaches_node_and_host_ports_of_its_own_node(
    scale_fixture: ScaleFixture, style: str, device: int
) -> None:
    client = scale_fixture.client[device]
    for target in ("server0", "server1"):
        seen = scale_fixture.call(client.namespace, NODE, service(scale_fixture, target).node_port)
        assert seen.source == NODE, seen
    for port in (8000, 8001):
        assert scale_fixture.call(client.namespace, NODE, port).source == client.address


@pytest.mark.parametrize("device", [0, 1], ids=lambda d: f"from-eni{d}")
def test_what_needs_no_service_goes_its_way(
    scale_fixture: ScaleFixture, style: str, device: int
) -> None:
    client = scale_fixture.client[device]
    for address in (scale_fixture.server[1 - device].address, scale_fixture.far.address, VPC_HOST):
        assert scale_fixture.call(client.namespace, address).source == client.address
    assert scale_fixture.call(client.namespace, str(INTERNET_HOST)).source == NODE


def test_a_trace_follows_it_through_their_chains_and_finds_nothing_against_it(
    scale_fixture: ScaleFixture, style: str
) -> None:
    """Every way of these tests: what went through is what is said to go through."""
    one, server = scale_fixture.client[1].address, scale_fixture.server[0].address
    remote = service(scale_fixture, "far")
    ways: list[tuple[str, str, dict[str, Any]]] = [
        (one, VPC_HOST, {}),
        (one, server, {}),
        (one, str(INTERNET_HOST), {"protocol": 6, "port": 443}),
        (one, NODE, {"protocol": 6, "port": 10250}),
        (one, remote.address, {"endpoint": scale_fixture.far.address, "protocol": 6, "port": 80}),
        (server, VPC_HOST, {"inbound": True}),
        (server, VPC_HOST, {"inbound": True, "at": NODE, "protocol": 6, "port": 8000}),
        ("host", server, {"protocol": 6, "port": PORT}),
        (
            "host",
            remote.address,
            {"endpoint": scale_fixture.far.address, "protocol": 6, "port": 80},
        ),
    ]
    for pod, peer, more in ways:
        traced = scale_fixture.cluster.trace(pod, peer, **more)
        assert (traced.obstacles, traced.differences) == ((), ()), (pod, peer, more)
    stopped = scale_fixture.cluster.trace(scale_fixture.stranger.address, VPC_HOST).obstacles
    assert bool(stopped) is (style == "calico")


def test_the_policy_engine_of_these_tests_bites(scale_fixture: ScaleFixture, style: str) -> None:
    """Calico drops what comes from a link that it knows no pod of."""
    seen = scale_fixture.call(scale_fixture.stranger.namespace, VPC_HOST)
    assert bool(seen.source) is (style != "calico")
