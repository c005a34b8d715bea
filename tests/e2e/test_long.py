"""What takes minutes: many pods again and again, and everything else that dies and comes back."""

from __future__ import annotations

import signal
import time

import pytest
from e2e.churn import Churn
from e2e.network import SPEC, Network, is_ready
from waiting import until

from lab.traffic import probe

pytestmark = pytest.mark.long

COUNT = 50
TIMES = 4
NODE = "node1"


def test_fifty_pods_come_and_go_four_times_without_a_failed_add(network: Network) -> None:
    failed = network.failures()
    restarts = [network.restarts(node) for node in network.nodes]
    for number in range(TIMES):
        began = time.monotonic()
        name = f"tide{number}"
        with network.deployment(name, COUNT):
            network.say(f"0 to {COUNT} pods in {time.monotonic() - began:.1f} s")
            assert network.addresses(f"app={name}") == network.recorded(name)
            began = time.monotonic()
        network.say(f"{COUNT} to 0 pods in {time.monotonic() - began:.1f} s")
        for node in network.nodes:
            network.say(f"{node}: {network.memory(node)}")
    assert network.failures() == failed, network.reasons(failed)
    assert [network.restarts(node) for node in network.nodes] == restarts


def test_the_memory_of_a_reconciler_is_at_most_half_of_its_limit(network: Network) -> None:
    """After all that the other tests have done with it since it was started last."""
    for node in network.nodes:
        memory = network.memory(node)
        network.say(f"{node}: {memory}")
        assert memory.own * 2 <= memory.limit


def test_a_rolling_update_of_fifty_fails_no_add(network: Network) -> None:
    failed, name = network.failures(), "rolling"
    with network.deployment(name, COUNT):
        began = time.monotonic()
        network.cluster.kubectl("rollout", "restart", f"deployment/{name}")
        network.cluster.kubectl("rollout", "status", f"deployment/{name}", "--timeout=180s")
        network.say(f"rolling update of {COUNT} in {time.monotonic() - began:.1f} s")
        # Ready is sooner than gone: those of the old version still end.
        until(lambda: len(network.pods(f"app={name}")) == COUNT, network.trouble, patience_s=120)
        until(lambda: network.addresses(f"app={name}") == network.recorded(name))
    assert network.failures() == failed, network.reasons(failed)


def test_pods_deleted_by_force_are_released_and_others_fail_no_add(network: Network) -> None:
    failed, name = network.failures(), "forced"
    with network.deployment(name, 10) as pods:
        names = [p["metadata"]["name"] for p in pods]
        network.cluster.kubectl("delete", "pod", *names, "--force", "--grace-period=0")
        until(lambda: network.running(f"app={name}") == 10, network.trouble, patience_s=120)
        until(lambda: not set(names) & set(network.recorded(name)), network.trouble)
    assert network.failures() == failed, network.reasons(failed)


def test_a_namespace_with_jobs_that_is_deleted_leaves_no_record(network: Network) -> None:
    failed, space = network.failures(), "brief"
    network.cluster.kubectl("create", "namespace", space)
    path = f"/apis/batch/v1/namespaces/{space}/jobs"
    spec = {"parallelism": 5, "template": {"spec": SPEC | {"restartPolicy": "Never"}}}
    for number in range(2):
        network.api.post(path, {"metadata": {"name": f"job{number}"}, "spec": spec})

    def recorded() -> int:
        records = [r for node in network.nodes.values() for r in node.records("attachments")]
        return sum(r["pod"].startswith(f"{space}/") for r in records)

    until(lambda: recorded() == 10, network.trouble, patience_s=90)
    network.cluster.kubectl("delete", "namespace", space, "--timeout=120s")
    until(lambda: recorded() == 0, network.trouble, patience_s=90)
    assert network.failures() == failed, network.reasons(failed)


def test_a_kill_of_kubelet_fails_no_add(network: Network) -> None:
    node = network.nodes[NODE]
    with Churn(network) as churn:
        until(lambda: churn.made > 10)
        assert node.machine.kill("kubelet", signal.SIGKILL)
        node.start_kubelet()
        made = churn.made
        until(lambda: churn.made > made + 20)
    assert churn.failed() == 0, churn.reasons()


def test_a_kill_of_containerd_leaves_pods_and_records_alike(network: Network) -> None:
    node = network.nodes[NODE]
    with network.deployment("steady", 10, NODE) as pods:
        before = network.addresses("app=steady")
        with Churn(network) as churn:
            until(lambda: churn.made > 10)
            assert node.machine.kill("containerd", signal.SIGKILL)
            node.start_containerd()
            made = churn.made
            until(lambda: churn.made > made + 20)
        assert network.addresses("app=steady") == before == network.recorded("steady")
        assert network.probe(pods[0], pods[1]["status"]["podIP"]).source
    until(lambda: not node.records("attachments"), "the node releases its pods")


def test_the_api_server_away_changes_nothing_for_pods(network: Network) -> None:
    control = network.cluster.control
    with network.deployment("unwatched", 4) as pods:
        one = next(p for p in pods if p["spec"]["nodeName"] == NODE)
        other = next(p for p in pods if p["spec"]["nodeName"] != NODE)
        where, far = network.namespace(one), other["status"]["podIP"]
        with control.frozen("kube-apiserver"):
            for _ in range(20):
                assert probe(where, far).source == one["status"]["podIP"]
            assert network.status(NODE)["conditions"] == []
        until(lambda: all(is_ready(p) for p in network.pods("app=unwatched")))
