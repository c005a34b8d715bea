"""What an operator and chance do to a running network: an edit, a rollout, a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import pytest
from e2e.disturbance import NODE, Disturbance, disturb
from e2e.document import edited, taken
from e2e.network import ROLLOUT, Network
from waiting import until

EXCLUDED = "198.51.100.0/24"

DOCUMENT = f"""\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool:
  addresses: {{warm: 4, minimum: 12}}
snat:
  mode: node
  excludeCIDRs: [{EXCLUDED}]
"""


def test_an_edit_of_the_configmap_is_in_force_on_all_nodes(network: Network) -> None:
    began = time.monotonic()
    with edited(network, DOCUMENT):
        taken(network, lambda: _in_force(network))
        took = time.monotonic() - began
        network.note(
            "an edit of the ConfigMap, kubelet told to look: in force on both nodes, s",
            f"{took:.1f}",
        )
    taken(network, lambda: not _in_force(network, any))


def _in_force(network: Network, of: Callable[[Iterable[bool]], bool] = all) -> bool:
    """Whether nodes have the excluded network in their ruleset."""
    return of(
        EXCLUDED in node.machine.run(["nft", "list", "ruleset"]).stdout
        for node in network.nodes.values()
    )


@pytest.fixture(scope="module")
def rollout(network: Network) -> Disturbance:
    """A rollout of all daemons."""

    def restart() -> None:
        network.cluster.kubectl(*ROLLOUT, "restart", "daemonset/node-network")
        network.rolled_out()

    return disturb(network, "rollout", restart)


def test_a_rollout_cuts_no_connection(rollout: Disturbance) -> None:
    assert rollout.cut == ()


def test_a_rollout_fails_no_add(rollout: Disturbance) -> None:
    assert rollout.failed == 0, rollout.reasons


@pytest.fixture(scope="module")
def kill(network: Network) -> Disturbance:
    """A kill -9 of one daemon."""

    def kill_and_wait() -> None:
        restarts = network.restarts(NODE)
        network.kill_daemon(NODE)
        until(lambda: network.restarts(NODE) > restarts and network.daemons_ready())

    return disturb(network, "kill -9 of a daemon", kill_and_wait)


def test_a_kill_of_the_daemon_cuts_no_connection(kill: Disturbance) -> None:
    assert kill.cut == ()


def test_a_kill_of_the_daemon_fails_no_add(kill: Disturbance) -> None:
    assert kill.failed == 0, kill.reasons
