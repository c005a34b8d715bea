"""One real cluster for the session. Collected only when this folder is named: it needs Go."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e import figures
from e2e.left import watched
from e2e.network import Network
from e2e.reporting import reporting

from lab.kubernetes.cluster import Cluster


def say(text: str) -> None:
    """Print a line at once, whoever captures what tests print."""
    sys.stderr.write(f"\ne2e: {text}\n")
    sys.stderr.flush()


ORDER = (
    *("test_start", "test_pods", "test_changes", "test_upgrade", "test_reboot", "test_cluster"),
    *("test_long", "test_helm"),
)
"""Files in the order of what an operator does: what goes wrong first is said first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A build, a start or a reboot may take minutes on a machine that is busy."""
    items.sort(key=lambda item: ORDER.index(item.path.stem) if item.path.stem in ORDER else -1)
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(1800))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: int, config: pytest.Config
) -> None:
    """Print the run's figures; of one that has passed, write them where the environment says."""
    counts = {k: len(terminalreporter.stats.get(k, [])) for k in ("passed", "failed", "error")}
    form = "short" if "not long" in config.option.markexpr else "long"
    lines = figures.table(form, ", ".join(f"{n} {k}" for k, n in counts.items()))
    terminalreporter.write_line("\n".join(lines))
    if exitstatus == pytest.ExitCode.OK:
        figures.write(lines)


@pytest.fixture(scope="session")
def bare() -> Iterator[Cluster]:
    """Two nodes and a control plane, without a network. Node 1 has room for 4 ENIs of 14 pods."""
    with watched(say, types={"node1": "m5.xlarge"}) as made:
        yield made


@pytest.fixture(scope="session")
def network(bare: Cluster) -> Network:
    """The cluster with the shipped DaemonSet, and nodes that are Ready."""
    made = Network(bare, say)
    times = f"{made.start.running_s:.1f}; {made.start.ready_s:.1f}"
    made.note("manifest applied: daemons run, s; nodes Ready, s", times)
    return made


@pytest.fixture(scope="module")
def told(network: Network) -> Iterator[Network]:
    """The cluster with reconcilers that report to the API server."""
    with reporting(network):
        yield network
