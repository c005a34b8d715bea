"""What a real API server is told: the Node's condition, the start-up taint, Events."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from e2e.disturbance import NODE
from e2e.document import edited, refused, taken
from e2e.network import PODS, ROLLOUT, SPEC, Network, connects
from e2e.reporting import KEY, condition, events, rendered
from waiting import until

from lab import netns
from lab.kubernetes.places import address
from lab.traffic import TIMEOUT_S

SMALL = "node2"
"""An m5.large: 3 ENIs of 9 pods."""

HOST = "kubernetes.io/hostname"

ADDRESSES, HOST_PODS = 27, 1

METRICS_PORT, PROBES_PORT = 61681, 61680

LASTS_S = 120.0
"""Seconds for an Event on a Node: a condition is told of when it has lasted a minute."""


@pytest.fixture(scope="module", autouse=True)
def tainted(network: Network) -> None:
    """Node 1 has the start-up taint before its reconciler reports."""
    network.cluster.kubectl("taint", "node", NODE, f"{KEY}=:NoSchedule")


def test_the_node_has_a_condition_and_loses_the_start_up_taint(told: Network) -> None:
    def is_told() -> bool:
        return condition(told, NODE).get("status") == "True"

    until(is_told, lambda: f"{condition(told, NODE)} {told.status(NODE)['conditions']}")
    assert "addresses in use" in condition(told, NODE)["message"]

    def taints() -> list[str]:
        node = told.api.get(f"/api/v1/nodes/{NODE}")
        return [t["key"] for t in node["spec"].get("taints", [])]

    until(lambda: KEY not in taints(), lambda: f"{taints()} {told.status(NODE)['conditions']}")
    # The kubelet's own conditions are there as before.
    node = told.api.get(f"/api/v1/nodes/{NODE}")
    assert "Ready" in {c["type"] for c in node["status"]["conditions"]}


def test_a_pod_of_another_node_scrapes_metrics_and_sees_nothing_else(told: Network) -> None:
    where = str(address(NODE))
    with told.deployment("prometheus", 1, SMALL) as (pod,):
        namespace = told.namespace(pod)
        status, text = fetch(namespace, where, METRICS_PORT, "/metrics")
        assert status == http.client.OK
        assert "node_network_document_generation" in text
        for path in ("/livez", "/readyz", "/"):
            status, _ = fetch(namespace, where, METRICS_PORT, path)
            assert status == http.client.NOT_FOUND, path
        assert not connects(namespace, where, PROBES_PORT), "probes are for the node alone"


def fetch(namespace: str, host: str, port: int, path: str) -> tuple[int, str]:
    """Ask by HTTP from a namespace; return the status and what was answered."""
    with netns.inside(namespace):
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    connection.connect((host, port))
    with closing(http.client.HTTPConnection(host, port)) as client:
        client.sock = connection
        client.request("GET", path)
        answer = client.getresponse()
        return answer.status, answer.read().decode()


@pytest.fixture(scope="module")
def by_the_last_good_one(told: Network) -> Iterator[Network]:
    """Both nodes have refused the ConfigMap's document, and node 1 was restarted since."""
    with edited(told, "warmPool: [none]\n"):
        taken(told, lambda: refused(told))
        restarts = told.restarts(NODE)
        told.kill_daemon(NODE)
        until(lambda: told.restarts(NODE) > restarts, told.trouble)
        until(lambda: refused(told), told.trouble)
        yield told
    taken(told, lambda: not refused(told, any))


def test_a_restart_with_a_refused_document_serves_pods_by_the_last_good_one(
    by_the_last_good_one: Network,
) -> None:
    network = by_the_last_good_one
    failed = network.failures()
    with network.deployment("steadfast", 4, NODE) as pods:
        assert len(pods) == 4
    assert network.failures() == failed, network.reasons(failed)


def test_condition_and_event_of_the_node_say_that_the_document_is_refused(
    by_the_last_good_one: Network,
) -> None:
    """Of both nodes: the one that was restarted reports by the last good document too."""
    network = by_the_last_good_one
    for node in network.nodes:

        def reason(node: str = node) -> bool:
            return condition(network, node).get("reason") == "DocumentRefused"

        until(reason, lambda node=node: str(condition(network, node)), patience_s=LASTS_S)
        found = condition(network, node)
        assert found["status"] == "True", "pods are served"
        assert "last good one" in found["message"]

        def own(node: str = node) -> list[dict[str, Any]]:
            return [
                e
                for e in events(network, "Node")
                if (e["involvedObject"]["name"], e["reason"]) == (node, "DocumentRefused")
            ]

        until(own, network.trouble, patience_s=LASTS_S)
        event = own()[0]
        uid = network.api.get(f"/api/v1/nodes/{node}")["metadata"]["uid"]
        assert event["involvedObject"]["uid"] == uid
        assert event["type"] == "Warning"
        assert "last good one" in event["message"]


@pytest.mark.long
def test_a_pod_that_gets_no_address_has_an_event_and_shows_it(told: Network) -> None:
    """Kubelet takes more pods than the instance has addresses: the last one is refused."""
    node = told.nodes[SMALL]

    def conflist() -> str:
        return str(node.machine.run(["cat", "/etc/cni/net.d/10-node-network.conflist"]).stdout)

    before = conflist()
    told.cluster.deploy(rendered=rendered(cni={"budget": "5s"}))
    taken(told, lambda: conflist() != before)
    names = [f"refused-{number}" for number in range(ADDRESSES + 1)]

    def waits() -> bool:
        return bool(condition(told, SMALL)["status"] == "False")

    with node.taking(ADDRESSES + HOST_PODS + 1):
        for name in names:
            body = {"metadata": {"name": name}, "spec": SPEC | {"nodeSelector": {HOST: SMALL}}}
            told.api.post(PODS, body)
        try:
            until(lambda: events(told, "Pod"), told.trouble, patience_s=180)
            event = events(told, "Pod")[0]
            assert event["involvedObject"]["name"] in names
            pod = told.api.get(f"{PODS}/{event['involvedObject']['name']}")
            assert event["involvedObject"]["uid"] == pod["metadata"]["uid"]
            until(waits, lambda: str(condition(told, SMALL)))
        finally:
            for name in names:
                told.api.delete(f"{PODS}/{name}", {"gracePeriodSeconds": 0})
            until(lambda: not told.recorded("refused-"), told.trouble)
    told.cluster.deploy(rendered=rendered())
    taken(told, lambda: conflist() == before)


@pytest.mark.long
def test_without_the_role_the_missing_right_is_named_and_pods_are_served(told: Network) -> None:
    told.cluster.kubectl("delete", "clusterrolebinding", "node-network")
    told.cluster.kubectl(*ROLLOUT, "restart", "daemonset/node-network")
    told.rolled_out()

    def texts() -> list[str]:
        conditions = told.status(NODE)["conditions"]
        return [c["text"] for c in conditions if c["reason"] == "ClusterDenied"]

    until(lambda: any("no right to get nodes" in t for t in texts()), told.trouble)
    with told.deployment("unreported", 2, NODE) as pods:
        assert len(pods) == 2
    told.cluster.deploy(rendered=rendered())
    until(lambda: not texts(), told.trouble, patience_s=120)
