"""Reconcilers that tell the API server of their nodes, and what it was told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from deploy.programs import program
from e2e.network import Network
from waiting import until

KEY = "node-network/agent-not-ready"
REPORT = {"report": True, "startupTaint": KEY}
EVENTS = "/api/v1/namespaces/default/events?fieldSelector=source%3Dnode-network"


def rendered(**document: Any) -> str:
    """Return the chart's manifests with reports and metrics, and more of a document."""
    values = {"document": {"kubernetes": REPORT} | document, "metrics": {"enabled": True}}
    text: str = program("render.py").render(values)
    return text


@contextmanager
def reporting(network: Network) -> Iterator[None]:
    """Have the reconcilers report, with the rights for it, and serve metrics; later neither."""
    cluster = network.cluster
    cluster.deploy(rendered=rendered())
    network.rolled_out()
    try:
        yield
    finally:
        cluster.deploy()
        for kind in ("clusterrolebinding", "clusterrole"):
            cluster.kubectl("delete", kind, "node-network")
        network.rolled_out()
        until(network.daemons_ready, network.trouble, patience_s=120)


def condition(network: Network, node: str) -> dict[str, Any]:
    """Return our condition of a Node; empty if it has none."""
    conditions = network.api.get(f"/api/v1/nodes/{node}")["status"]["conditions"]
    return next((c for c in conditions if c["type"] == "NodeNetworkReady"), {})


def events(network: Network, kind: str) -> list[dict[str, Any]]:
    """Return the Events that reconcilers have told of objects of a kind."""
    return [e for e in network.api.items(EVENTS) if e["involvedObject"]["kind"] == kind]
