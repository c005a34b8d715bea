"""The datapath, cell by cell: whose address the receiver saw, by which ENI, and what came back.

The expectations are written down here by hand and share nothing with the planner. Every cell is
also traced, and the trace must say what the packets did.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from typing import Any

import pytest
from traffic_matrix import (
    DEVICES,
    HOST_PORTS,
    HOSTS,
    NODE,
    NODE_PORTS,
    POLICIES,
    SERVICES,
    TrafficMatrix,
)
from traffic_matrix import traffic_matrix as make_traffic_matrix

from lab import netns
from lab.traffic import TIMEOUT_S, Seen, probe
from reconciler.node.views import Traced

pytestmark = pytest.mark.lab

IMDS = "169.254.169.254"


@pytest.fixture(scope="module")
def traffic_matrix(
    make_cluster: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[TrafficMatrix]:
    with (
        make_cluster(tmp_path_factory.mktemp("matrix")) as cluster,
        make_traffic_matrix(cluster) as made,
    ):
        yield made


@pytest.fixture(scope="module", params=POLICIES)
def policy(traffic_matrix: TrafficMatrix, request: pytest.FixtureRequest) -> TrafficMatrix:
    """The node under one SNAT policy."""
    traffic_matrix.switch(request.param)
    return traffic_matrix


def outgoing(traffic_matrix: TrafficMatrix, row: str, target: str) -> tuple[str, int | None]:
    """The source that must be seen, and the ENI that must be used; None if it stays."""
    own, device = traffic_matrix.own(row), DEVICES.get(row, 0)
    if target in ("near",):
        return own, None
    if target in traffic_matrix.translated or row == "host":
        return NODE, 0
    return own, device


def has_a_way(traffic_matrix: TrafficMatrix, row: str, target: str) -> bool:
    """The gateway has no public address for a pod's: without translation there is no way out."""
    return target != "internet" or outgoing(traffic_matrix, row, target)[0] == NODE


def patience_s(traffic_matrix: TrafficMatrix, row: str, target: str) -> float:
    """Seconds to wait for an answer: long only where one must come."""
    return TIMEOUT_S if has_a_way(traffic_matrix, row, target) else 0.5


def check_outgoing(
    traffic_matrix: TrafficMatrix,
    row: str,
    target: str,
    seen: Seen,
    destination: str,
    traced: Traced,
) -> None:
    """Compare packets and trace with what must be."""
    source, device = outgoing(traffic_matrix, row, target)
    works = has_a_way(traffic_matrix, row, target)
    assert seen.source == (source if works else ""), traffic_matrix.evidence(seen)
    assert bool(traffic_matrix.flows("drops", source, destination)) is not works
    assert not (works and traffic_matrix.lab.drops())
    left = traffic_matrix.flows("passed", source, destination)
    assert (set(left) or {None}) == {device}
    assert str(traced.planned.source) == source
    assert traced.planned.device == device
    assert traced.planned.troubles == ()
    assert traced.differences == ()
    assert bool(traced.planned.hints) is not works


ROWS = ["primary", "secondary", "host"]
TARGETS = ["near", "far", *HOSTS]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("row", ROWS)
def test_connection_from(policy: TrafficMatrix, row: str, target: str) -> None:
    policy.lab.ask("forget")
    address = policy.address(target)
    seen = probe(policy.where(row), address, timeout_s=patience_s(policy, row, target))
    check_outgoing(policy, row, target, seen, address, policy.trace(row, address))


@pytest.mark.parametrize("target", SERVICES)
@pytest.mark.parametrize("row", ROWS)
def test_service_address_from(policy: TrafficMatrix, row: str, target: str) -> None:
    """What counts is where the service leads, not its own address, which is beyond the VPC."""
    policy.lab.ask("forget")
    service, address = f"172.20.0.{SERVICES[target]}", policy.address(target)
    seen = probe(policy.where(row), service, 80, timeout_s=patience_s(policy, row, target))
    traced = policy.trace(row, service, endpoint=address)
    check_outgoing(policy, row, target, seen, address, traced)


@pytest.mark.parametrize("row", ROWS)
def test_instance_metadata_from(policy: TrafficMatrix, row: str) -> None:
    policy.lab.ask("forget")
    with netns.inside(policy.where(row)):
        connection = http.client.HTTPConnection(IMDS, timeout=2)
        connection.connect()
    connection.request("GET", "/latest/meta-data/instance-id")
    with connection.getresponse() as response:
        assert response.status == 401  # it wants a token: it answered
    connection.close()
    source, device = outgoing(policy, row, "imds")
    assert set(policy.flows("passed", source, IMDS)) == {device}
    assert policy.lab.drops() == []
    traced = policy.trace(row, IMDS)
    assert (str(traced.planned.source), traced.planned.device) == (source, device)
    assert traced.differences == traced.planned.troubles == ()


def check_incoming(
    traffic_matrix: TrafficMatrix,
    row: str,
    client: str,
    seen: Seen,
    answers: tuple[str, int],
    traced: Traced,
) -> None:
    """The pod saw the client, and the answer left by the ENI that the request came by."""
    source = HOSTS[client][1]
    assert seen.source == source, (seen, traffic_matrix.lab.drops())
    assert traffic_matrix.lab.drops() == []
    address, device = answers
    assert set(traffic_matrix.flows("passed", address, source)) == {device}
    assert traced.planned.device == device
    assert traced.differences == traced.planned.troubles == ()


@pytest.mark.parametrize("client", ["VPC host", "second CIDR", "peer"])
@pytest.mark.parametrize("row", DEVICES)
def test_connection_straight_to(policy: TrafficMatrix, row: str, client: str) -> None:
    policy.lab.ask("forget")
    place, source = HOSTS[client]
    seen = probe(policy.names.namespace(place), policy.own(row))
    traced = policy.trace(row, source, inbound=True)
    check_incoming(policy, row, client, seen, (policy.own(row), DEVICES[row]), traced)


ARRIVALS = [
    (client, arrival)
    for client in HOSTS
    for arrival in DEVICES
    if (client, arrival) != ("internet", "secondary")  # no public address there
]


@pytest.mark.parametrize(("client", "arrival"), ARRIVALS)
@pytest.mark.parametrize("row", DEVICES)
@pytest.mark.parametrize("ports", [NODE_PORTS, HOST_PORTS], ids=["NodePort", "hostPort"])
def test_connection_to_a_port_of_the_node_for(
    policy: TrafficMatrix, ports: dict[str, int], row: str, client: str, arrival: str
) -> None:
    """Whatever ENI the pod is on, it is answered by the ENI that the node was reached by."""
    policy.lab.ask("forget")
    place, source = HOSTS[client]
    entry = policy.entry(arrival)
    seen = probe(policy.names.namespace(place), entry, ports[row])
    traced = policy.trace(row, source, inbound=True, at=entry)
    check_incoming(policy, row, client, seen, (entry, DEVICES[arrival]), traced)


@pytest.mark.parametrize(("client", "arrival"), ARRIVALS)
def test_connection_to_a_node_port_whose_pod_is_elsewhere(
    policy: TrafficMatrix, client: str, arrival: str
) -> None:
    """It is sent on by the ENI it came by, with that ENI's address, and answered likewise."""
    policy.lab.ask("forget")
    place, source = HOSTS[client]
    entry = policy.entry(arrival)
    seen = probe(policy.names.namespace(place), entry, NODE_PORTS["far"])
    assert seen.source == entry, (seen, policy.lab.drops())
    assert policy.lab.drops() == []
    for destination in (policy.own("far"), source):
        assert set(policy.flows("passed", entry, destination)) == {DEVICES[arrival]}


@pytest.mark.parametrize("client", ["VPC host", "peer", "internet"])
def test_connection_to_the_host_itself(policy: TrafficMatrix, client: str) -> None:
    policy.lab.ask("forget")
    place, source = HOSTS[client]
    seen = probe(policy.names.namespace(place), NODE)
    traced = policy.trace("host", source, inbound=True)
    check_incoming(policy, "host", client, seen, (NODE, 0), traced)
