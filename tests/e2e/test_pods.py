"""Pods as kubelet makes them: their addresses, and whom they reach."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from e2e.network import Network, ask_by_udp, connects
from waiting import until

from lab.topology import INTERNET_HOST
from lab.traffic import PORT, Receiver

COUNT = 30
NAME = "thirty"


@pytest.fixture(scope="module")
def thirty(network: Network) -> Iterator[list[dict[str, Any]]]:
    """Thirty pods, on both nodes."""
    began = time.monotonic()
    with network.deployment(NAME, COUNT) as pods:
        network.note(f"0 to {COUNT} pods, s", f"{time.monotonic() - began:.1f}")
        yield pods


@pytest.fixture(scope="module")
def pair(thirty: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two of them on different nodes."""
    first = thirty[0]
    node = first["spec"]["nodeName"]
    return first, next(p for p in thirty if p["spec"]["nodeName"] != node)


def test_thirty_pods_have_the_addresses_that_are_recorded(
    network: Network, thirty: list[dict[str, Any]]
) -> None:
    told = network.addresses(f"app={NAME}")
    assert len(told) == COUNT
    assert len({a for own in told.values() for a in own}) == COUNT
    assert told == network.recorded(NAME)
    assert {p["spec"]["nodeName"] for p in thirty} == set(network.nodes)


def test_no_add_has_failed(network: Network, thirty: list[dict[str, Any]]) -> None:
    assert network.failures() == 0, network.reasons(0)


def test_a_pod_reaches_one_on_the_other_node_with_its_own_address(
    network: Network, pair: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    for one, other in (pair, pair[::-1]):
        seen = network.probe(one, other["status"]["podIP"])
        assert seen.source == one["status"]["podIP"], seen


@pytest.fixture(scope="module")
def service(network: Network, thirty: list[dict[str, Any]]) -> Iterator[str]:
    """Address of a Service of all thirty, TCP and UDP, at port 80."""
    ports = [
        {"name": p.lower(), "protocol": p, "port": 80, "targetPort": PORT} for p in ("TCP", "UDP")
    ]
    body = {"metadata": {"name": NAME}, "spec": {"selector": {"app": NAME}, "ports": ports}}
    path = "/api/v1/namespaces/default/services"
    address = network.api.post(path, body)["spec"]["clusterIP"]
    yield str(address)
    network.api.delete(f"{path}/{NAME}")


def test_connections_and_datagrams_reach_a_service_with_the_pods_address(
    network: Network, pair: tuple[dict[str, Any], dict[str, Any]], service: str
) -> None:
    """One in thirty is answered by the pod that asks; kube-proxy masquerades it (hairpin)."""
    for pod in pair:
        where, own = network.namespace(pod), pod["status"]["podIP"]
        until(lambda pod=pod: network.probe(pod, service, 80).source, "kube-proxy's rules")
        for seen in (
            [network.probe(pod, service, 80).source for _ in range(10)],
            [ask_by_udp(where, service, 80) for _ in range(10)],
        ):
            assert "" not in seen
            assert own in seen


def test_a_pod_reaches_the_api_server_by_its_service(
    network: Network, pair: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    for pod in pair:
        assert connects(network.namespace(pod), "10.96.0.1", 443)


def test_the_internet_sees_the_node(
    network: Network, pair: tuple[dict[str, Any], dict[str, Any]]
) -> None:
    addresses = {
        n["metadata"]["name"]: n["status"]["addresses"][0]["address"]
        for n in network.api.items("/api/v1/nodes")
    }
    with Receiver(network.cluster.lab.names.namespace("internet")):
        for pod in pair:
            seen = network.probe(pod, str(INTERNET_HOST))
            assert seen.source == addresses[pod["spec"]["nodeName"]], seen
