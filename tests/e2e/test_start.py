"""The first start: from a cluster without a network to nodes that are Ready."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e.network import Network
from waiting import until

PLUGIN = Path(__file__).parents[2] / "deploy/kubectl-node_network"

READY_S = 60.0
"""Seconds; some 3 where the machine has nothing else to do."""


def test_nodes_are_ready_soon_after_the_manifest_was_applied(network: Network) -> None:
    assert network.nodes_ready()
    assert network.start.ready_s < READY_S


def test_daemons_become_ready_and_settled_without_a_condition(network: Network) -> None:
    until(network.daemons_ready, network.trouble)
    for node in network.nodes:
        until(
            lambda node=node: is_quiet(network.status(node)),
            lambda node=node: str(network.status(node)),
        )


def is_quiet(status: dict[str, Any]) -> bool:
    """Whether a reconciler is done, and nothing troubles it."""
    return status["settled"] and not status["conditions"]


def test_kubectl_can_look_into_a_reconciler(network: Network) -> None:
    (name, *_) = (d["metadata"]["name"] for d in network.daemons())
    words = ("exec", "-n", "kube-system", name, "--", "node-network", "--version")
    assert network.cluster.kubectl(*words).strip()
    assert network.cluster.kubectl("logs", "-n", "kube-system", name)


@pytest.mark.parametrize("words", [["validate"], ["status", "node1"], ["diff", "node1"]])
def test_the_plugin_asks_through_a_real_kubectl(network: Network, words: list[str]) -> None:
    *inside, kubectl, kubeconfig = network.cluster.kubectl_command()
    path = f"PATH={Path(kubectl).parent}:{os.environ['PATH']}"
    argv = [*inside, "env", path, str(PLUGIN), kubeconfig, *words]
    done = subprocess.run(
        argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
