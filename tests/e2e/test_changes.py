"""What an operator and chance do to a running network: an edit, a rollout, a kill, a reboot."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest
from e2e.churn import Churn
from e2e.network import Network, is_ready
from waiting import until

from lab.traffic import Stream
from reconciler.errors import UnansweredError

NODE = "node1"
ROLLOUT = ("rollout", "-n", "kube-system")
DAEMONSET = "daemonset/node-network"
EXCLUDED = "198.51.100.0/24"
GIVING_BACK = ("Detach", "Delete", "Unassign")
"""How the names of EC2's calls begin that give something back."""

POOL = re.compile(r"domain=eni|quarantine|AddressesExhausted|PoolLimitReached")
"""What is of the pool in a reconciler's log."""

BACK_S = 90.0
"""Seconds that pods have to come back after a reboot."""

DOCUMENT = f"""\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
warmPool:
  addresses: {{warm: 4, minimum: 12}}
snat:
  mode: node
  excludeCIDRs: [{EXCLUDED}]
"""


@dataclass(frozen=True)
class Disturbance:
    """What became of pods while something happened.

    Attributes:
        made: pods that were made meanwhile.
        failed: ADDs that failed.
        reasons: what was said of them.
        held: whether connections opened before live.
        took_s: until it was over, by its own measure.
    """

    made: int
    failed: int
    reasons: str
    held: bool
    took_s: float


@contextmanager
def connection(network: Network, name: str) -> Iterator[Stream]:
    """A connection from a pod of one node to one of the other."""
    with network.deployment(name, 4) as pods:
        one = next(p for p in pods if p["spec"]["nodeName"] == NODE)
        other = next(p for p in pods if p["spec"]["nodeName"] != NODE)
        with Stream(network.namespace(one), other["status"]["podIP"], timeout_s=10) as stream:
            yield stream


def test_an_edit_of_the_configmap_is_in_force_on_all_nodes(network: Network) -> None:
    path = "/api/v1/namespaces/kube-system/configmaps/node-network"
    before = network.api.get(path)["data"]
    began = time.monotonic()
    network.api.patch(path, {"data": {"node-network.yaml": DOCUMENT}})
    try:
        until(lambda: _sync(network) and _in_force(network), network.trouble, patience_s=120)
        network.say(f"edit in force on all nodes after {time.monotonic() - began:.1f} s")
    finally:
        network.api.patch(path, {"data": before})
    until(lambda: _sync(network) and not _in_force(network, any), network.trouble, patience_s=120)


def test_a_restart_with_a_refused_document_serves_pods_by_the_last_good_one(
    network: Network,
) -> None:
    path = "/api/v1/namespaces/kube-system/configmaps/node-network"
    before, failed = network.api.get(path)["data"], network.failures()
    network.api.patch(path, {"data": {"node-network.yaml": "warmPool: [none]\n"}})
    try:
        until(lambda: _sync(network) and _refuses(network), network.trouble, patience_s=120)
        restarts = network.restarts(NODE)
        network.kill_daemon(NODE)
        until(lambda: network.restarts(NODE) > restarts, network.trouble)
        until(lambda: _refuses(network), network.trouble)
        with network.deployment("steadfast", 4, NODE):
            assert network.failures() == failed, network.reasons(failed)
    finally:
        network.api.patch(path, {"data": before})
    until(lambda: _sync(network) and not _refuses(network, any), network.trouble, patience_s=120)


def _refuses(network: Network, of: Any = all) -> bool:
    """Whether reconcilers say that the document is refused; one that is starting says nothing."""
    with suppress(UnansweredError):
        return of(
            "DocumentRefused" in {c["reason"] for c in network.status(node)["conditions"]}
            for node in network.nodes
        )
    return of([False])


def _sync(network: Network) -> bool:
    """Have kubelet look at the daemons' pods now: it mounts a ConfigMap anew once a minute."""
    annotation = {"metadata": {"annotations": {"e2e/now": str(time.time())}}}
    for daemon in network.daemons():
        name = daemon["metadata"]["name"]
        network.api.patch(f"/api/v1/namespaces/kube-system/pods/{name}", annotation)
    time.sleep(1)
    return True


def _in_force(network: Network, of: Any = all) -> bool:
    """Whether nodes have the excluded network in their ruleset."""
    return of(EXCLUDED in n.machine.run(["nft", "list", "ruleset"]).stdout for n in nodes(network))


def nodes(network: Network) -> list[Any]:
    return list(network.nodes.values())


@pytest.fixture(scope="module")
def rollout(network: Network) -> Disturbance:
    """A rollout of all daemons while pods come and go, one a second and node."""
    until(network.daemons_ready, network.trouble)
    with connection(network, "talk-rollout") as stream:
        with Churn(network) as churn:
            until(lambda: churn.made > 10)
            began = time.monotonic()
            network.cluster.kubectl(*ROLLOUT, "restart", DAEMONSET)
            network.cluster.kubectl(*ROLLOUT, "status", DAEMONSET, "--timeout=180s")
            took, made = time.monotonic() - began, churn.made
            until(lambda: churn.made > made + 10)
        seen = Disturbance(
            churn.made, churn.failed(), churn.reasons(), stream.exchange("after"), took
        )
    network.say(f"rollout in {took:.1f} s: {seen.failed} of {seen.made} ADDs failed")
    if seen.failed:
        network.say(seen.reasons)
    return seen


def test_a_rollout_cuts_no_connection(rollout: Disturbance) -> None:
    assert rollout.held


def test_a_rollout_fails_no_add(rollout: Disturbance) -> None:
    assert rollout.failed == 0, rollout.reasons


@pytest.fixture(scope="module")
def kill(network: Network) -> Disturbance:
    """A kill -9 of one daemon while pods come and go."""
    until(network.daemons_ready, network.trouble)
    with connection(network, "talk-kill") as stream:
        with Churn(network) as churn:
            until(lambda: churn.made > 10)
            began = time.monotonic()
            restarts = network.restarts(NODE)
            network.kill_daemon(NODE)
            until(lambda: network.daemons_ready() and network.restarts(NODE) > restarts)
            took, made = time.monotonic() - began, churn.made
            until(lambda: churn.made > made + 10)
        seen = Disturbance(
            churn.made, churn.failed(), churn.reasons(), stream.exchange("after"), took
        )
    network.say(f"ready {took:.1f} s after kill -9: {seen.failed} of {seen.made} ADDs failed")
    if seen.failed:
        network.say(seen.reasons)
    return seen


def test_a_kill_of_the_daemon_cuts_no_connection(kill: Disturbance) -> None:
    assert kill.held


def test_a_kill_of_the_daemon_fails_no_add(kill: Disturbance) -> None:
    assert kill.failed == 0, kill.reasons


@dataclass(frozen=True)
class Reboot:
    """What became of a node's pods when it was rebooted.

    Attributes:
        pods: how many there were.
        took_s: from kubelet's start until all run again.
        failed: ADDs that failed.
        reasons: what was said of them.
        enis: its ENIs before and afterwards.
        calls: of EC2 by the node's reconciler since it has started, by name.
        addresses: its pods' addresses afterwards, by the API server's word and by our records.
    """

    pods: int
    took_s: float
    failed: int
    reasons: str
    enis: tuple[list[str], list[str]]
    calls: dict[str, int]
    addresses: tuple[dict[str, list[str]], dict[str, list[str]]]


@pytest.fixture(scope="module")
def reboot(network: Network) -> Reboot:
    """A reboot of a node with pods."""
    name, count = "survivor", 31
    node = network.nodes[NODE]
    with network.deployment(name, count, NODE):
        until(lambda: network.status(NODE)["settled"], network.trouble, patience_s=90)
        there = _on(network, name)
        before, failed = _enis(network), network.failures()
        started = {p["metadata"]["name"]: _started(p) for p in there}
        network.cluster.reboot(NODE)
        began = time.monotonic()

        def all_back() -> bool:
            pods = _on(network, name)
            return len(pods) == len(there) and all(
                is_ready(p) and _started(p) != started[p["metadata"]["name"]] for p in pods
            )

        with suppress(AssertionError):  # said by the test that asks for all of them
            until(all_back, patience_s=BACK_S)
        took = time.monotonic() - began
        network.say(f"{NODE}: {network.status(NODE)['pool']}\n{_pool_log(network)}")
        told = {
            p["metadata"]["name"]: [p["status"]["podIP"]]
            for p in _on(network, name)
            if is_ready(p)
        }
        recorded = {
            r["pod"].removeprefix("default/"): r["addresses"]
            for r in node.records("attachments")
            if r["pod"].startswith(f"default/{name}")
        }
        seen = Reboot(
            len(there),
            took,
            network.failures() - failed,
            network.reasons(failed),
            (before, _enis(network)),
            network.status(NODE)["ec2Calls"],
            (told, recorded),
        )
    back = len(seen.addresses[0])
    network.say(
        f"{back} of {seen.pods} pods back {took:.1f} s after kubelet's start, "
        f"{seen.failed} ADDs failed"
    )
    network.say(f"ENIs before and after: {seen.enis}; calls of EC2: {seen.calls}")
    if seen.failed:
        network.say(seen.reasons)
    return seen


def _pool_log(network: Network) -> str:
    """Return what the node's reconciler has logged of its pool since it was started last."""
    log = network.daemon_log(NODE).rpartition(" INFO started")[2]
    return "\n".join(x.partition(" F ")[2] for x in log.splitlines() if POOL.search(x))


def _on(network: Network, name: str) -> list[dict[str, Any]]:
    return [p for p in network.pods(f"app={name}") if p["spec"].get("nodeName") == NODE]


def _enis(network: Network) -> list[str]:
    return [e["id"] for e in network.cluster.lab.enis(NODE)]


def _started(pod: dict[str, Any]) -> str:
    (status,) = pod["status"]["containerStatuses"]
    return str(status.get("containerID"))


def test_after_a_reboot_all_pods_run_with_the_addresses_that_are_recorded(reboot: Reboot) -> None:
    told, recorded = reboot.addresses
    assert len(told) == reboot.pods
    assert told == recorded


def test_a_reboot_gives_back_no_eni_and_no_address(reboot: Reboot) -> None:
    before, after = reboot.enis
    assert set(before) <= set(after)
    given_back = {c: n for c, n in reboot.calls.items() if c.startswith(GIVING_BACK) and n}
    assert given_back == {}


def test_a_reboot_fails_no_add(reboot: Reboot) -> None:
    assert reboot.failed == 0, reboot.reasons
