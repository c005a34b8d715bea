"""One real cluster for the session. Collected only when this folder is named: it needs Go."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e.network import Network
from e2e.sysctls import changed, sysctls

from lab.kubernetes.cluster import Cluster, cluster


def say(text: str) -> None:
    """Print a line at once, whoever captures what tests print."""
    sys.stderr.write(f"\ne2e: {text}\n")
    sys.stderr.flush()


ORDER = ("test_start", "test_pods", "test_changes", "test_cluster", "test_helm", "test_long")
"""Files in the order of what an operator does: what goes wrong first is said first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A build, a start or a reboot may take minutes on a machine that is busy."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else -1)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def bare() -> Iterator[Cluster]:
    """Two nodes and a control plane, without a network. Node 1 has room for 4 ENIs of 14 pods."""
    before = sysctls()
    with cluster(say, types={"node1": "m5.xlarge"}) as made:
        yield made
    assert changed(before, sysctls()) == {}, "settings of this machine were changed"


@pytest.fixture(scope="session")
def network(bare: Cluster) -> Network:
    """The cluster with the shipped DaemonSet, and nodes that are Ready."""
    made = Network(bare, say)
    say(f"daemons run after {made.start.running_s:.1f} s, nodes Ready {made.start.ready_s:.1f} s")
    return made
