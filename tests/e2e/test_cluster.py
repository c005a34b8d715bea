"""What a real API server is told: the Node's condition, the start-up taint, Events."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from deploy.programs import program
from e2e.network import SPEC, Network
from waiting import until

NODE = "/api/v1/nodes/node1"
KEY = "node-network/agent-not-ready"
PODS = "/api/v1/namespaces/default/pods"
EVENTS = "/api/v1/namespaces/default/events?fieldSelector=source%3Dnode-network"
ROLLED_OUT = ("rollout", "-n", "kube-system", "status", "daemonset/node-network")
REPORT = {"report": True, "startupTaint": KEY}


def rendered(document: dict[str, Any]) -> str:
    """Return the chart's manifests."""
    text: str = program("render.py").render({"document": document})
    return text


@pytest.fixture(scope="module")
def told(network: Network) -> Iterator[Network]:
    """The cluster is told, and node 1 has the start-up taint before; afterwards neither."""
    cluster = network.cluster
    cluster.kubectl("taint", "node", "node1", f"{KEY}=:NoSchedule")
    cluster.deploy(rendered=rendered({"kubernetes": REPORT}))
    cluster.kubectl(*ROLLED_OUT, "--timeout=300s")
    try:
        yield network
    finally:
        cluster.deploy()
        for kind in ("clusterrolebinding", "clusterrole"):
            cluster.kubectl("delete", kind, "node-network")
        cluster.kubectl(*ROLLED_OUT, "--timeout=300s")
        until(network.daemons_ready, network.trouble, patience_s=120)


def condition(network: Network, node: str = NODE) -> dict[str, Any]:
    """Return our condition of a Node; empty if it has none."""
    conditions = network.api.get(node)["status"]["conditions"]
    return next((c for c in conditions if c["type"] == "NodeNetworkReady"), {})


def test_the_node_has_a_condition_and_loses_the_start_up_taint(told: Network) -> None:
    def is_told() -> bool:
        return condition(told).get("status") == "True"

    until(is_told, lambda: f"{condition(told)} {told.status('node1')['conditions']}")
    assert "addresses in use" in condition(told)["message"]

    def taints() -> list[str]:
        return [t["key"] for t in told.api.get(NODE)["spec"].get("taints", [])]

    until(lambda: KEY not in taints(), lambda: f"{taints()} {told.status('node1')['conditions']}")
    # The kubelet's own conditions are there as before.
    assert "Ready" in {c["type"] for c in told.api.get(NODE)["status"]["conditions"]}


@pytest.mark.long
def test_a_pod_that_gets_no_address_has_an_event_and_shows_it(told: Network) -> None:
    """More pods than the node's instance has addresses: the last ones are refused."""
    document = {"kubernetes": REPORT, "eni": {"max": 1}, "cni": {"budget": "5s"}}
    told.cluster.deploy(rendered=rendered(document))
    # A restart, because kubelet mounts a ConfigMap anew only once a minute.
    told.cluster.kubectl("rollout", "-n", "kube-system", "restart", "daemonset/node-network")
    told.cluster.kubectl(*ROLLED_OUT, "--timeout=300s")
    spec = SPEC | {"nodeName": "node1"}
    names = [f"refused-{number}" for number in range(18)]
    for name in names:
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        told.api.post(PODS, body)
    try:

        def told_of() -> list[dict[str, Any]]:
            found = told.api.items(EVENTS)
            return [e for e in found if e["involvedObject"]["kind"] == "Pod"]

        until(told_of, told.trouble, patience_s=180)
        event = told_of()[0]
        assert event["involvedObject"]["name"] in names
        uid = told.api.get(f"{PODS}/{event['involvedObject']['name']}")["metadata"]["uid"]
        assert event["involvedObject"]["uid"] == uid
        until(lambda: condition(told)["status"] == "False", lambda: str(condition(told)))
    finally:
        for name in names:
            told.api.delete(f"{PODS}/{name}", {"gracePeriodSeconds": 0})


@pytest.mark.long
def test_without_the_role_the_missing_right_is_named_and_pods_are_served(told: Network) -> None:
    told.cluster.kubectl("delete", "clusterrolebinding", "node-network")
    told.cluster.kubectl("rollout", "-n", "kube-system", "restart", "daemonset/node-network")
    told.cluster.kubectl(*ROLLED_OUT, "--timeout=300s")

    def texts() -> list[str]:
        conditions = told.status("node1")["conditions"]
        return [c["text"] for c in conditions if c["reason"] == "ClusterDenied"]

    until(lambda: any("no right to get nodes" in t for t in texts()), told.trouble)
    with told.deployment("unreported", 2, "node1") as pods:
        assert len(pods) == 2
    told.cluster.deploy(rendered=rendered({"kubernetes": REPORT}))
    until(lambda: not texts(), told.trouble, patience_s=120)
