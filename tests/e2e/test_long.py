"""What takes minutes: many pods again and again, and everything else that dies and comes back.

Through all of it some connections stay open, a job runs on each node each minute, and the cluster
is told of the nodes. After each test the API server and the records name the same addresses.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from e2e.background import Through, agreed, background
from e2e.churn import Churn
from e2e.disturbance import NODE
from e2e.network import SPEC, Network, is_ready
from waiting import until

from lab.traffic import probe
from reconciler.errors import UnansweredError

pytestmark = pytest.mark.long

COUNT = 50
TIMES = 4

MIB = 1 << 20

SLACK = 2
"""Minutes without a job that has ended: the first, and the one that runs."""


@pytest.fixture(scope="module")
def through(told: Network) -> Iterator[Through]:
    """What lives through all tests of this file."""
    with background(told, "through") as made:
        yield made


@pytest.fixture(autouse=True)
def steady(network: Network, through: Through, request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test: no connection is cut, addresses agree, and no ADD has failed."""
    failed = network.failures()
    yield
    assert through.cut() == ()
    agreed(network)
    if not request.node.get_closest_marker("runtime_dies"):
        assert network.failures() == failed, network.reasons(failed)


def test_fifty_pods_come_and_go_four_times_without_a_failed_add(network: Network) -> None:
    restarts = [network.restarts(node) for node in network.nodes]
    for number in range(TIMES):
        began = time.monotonic()
        name = f"tide{number}"
        with network.deployment(name, COUNT):
            up = time.monotonic() - began
            assert network.addresses(f"app={name}") == network.recorded(name)
            agreed(network)
            began = time.monotonic()
        network.note(f"0 to {COUNT} pods to 0, s", f"{up:.1f}, {time.monotonic() - began:.1f}")
    assert [network.restarts(node) for node in network.nodes] == restarts


def test_a_rolling_update_of_fifty_fails_no_add(network: Network) -> None:
    name = "rolling"
    with network.deployment(name, COUNT):
        began = time.monotonic()
        network.cluster.kubectl("rollout", "restart", f"deployment/{name}")
        network.cluster.kubectl("rollout", "status", f"deployment/{name}", "--timeout=180s")
        network.note(f"rolling update of {COUNT} pods, s", f"{time.monotonic() - began:.1f}")
        # Ready is sooner than gone: those of the old version still end.
        until(lambda: len(network.pods(f"app={name}")) == COUNT, network.trouble, patience_s=120)
        until(lambda: network.addresses(f"app={name}") == network.recorded(name))


def test_pods_deleted_by_force_are_released_and_others_fail_no_add(network: Network) -> None:
    name = "forced"
    with network.deployment(name, 10) as pods:
        names = [p["metadata"]["name"] for p in pods]
        network.cluster.kubectl("delete", "pod", *names, "--force", "--grace-period=0")
        until(lambda: network.running(f"app={name}") == 10, network.trouble, patience_s=120)
        until(lambda: not set(names) & set(network.recorded(name)), network.trouble)


def test_a_namespace_with_jobs_that_is_deleted_leaves_no_record(network: Network) -> None:
    space = "brief"
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


def test_a_kill_of_all_daemons_fails_no_add(network: Network) -> None:
    until(network.daemons_ready, network.trouble)
    with Churn(network) as churn:
        until(lambda: churn.made > 10)
        restarts = {node: network.restarts(node) for node in network.nodes}
        for node in network.nodes:
            network.kill_daemon(node)
        until(lambda: all(network.restarts(n) > restarts[n] for n in network.nodes))
        until(network.daemons_ready, network.trouble)
        made = churn.made
        until(lambda: churn.made > made + 10)
    assert churn.failed() == 0, churn.reasons()


def test_a_kill_of_kubelet_fails_no_add(network: Network) -> None:
    node = network.nodes[NODE]
    with Churn(network) as churn:
        until(lambda: churn.made > 10)
        assert node.machine.kill("kubelet", signal.SIGKILL)
        node.start_kubelet()
        made = churn.made
        until(lambda: churn.made > made + 20)
    assert churn.failed() == 0, churn.reasons()


@pytest.mark.runtime_dies
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
        network.note(
            "kill -9 of containerd under a pod a second and node: ADDs that failed",
            f"{churn.failed()} of {churn.made}",
        )
        assert network.addresses("app=steady") == before == network.recorded("steady")
        assert network.probe(pods[0], pods[1]["status"]["podIP"]).source


def test_the_api_server_away_changes_nothing_for_pods(network: Network) -> None:
    """Nor does it that both reconcilers are killed meanwhile: kubelet starts them again."""
    control = network.cluster.control
    with network.deployment("unwatched", 4) as pods:
        one = next(p for p in pods if p["spec"]["nodeName"] == NODE)
        other = next(p for p in pods if p["spec"]["nodeName"] != NODE)
        where, far = network.namespace(one), other["status"]["podIP"]
        containers = {node: network.container(node) for node in network.nodes}
        with control.frozen("kube-apiserver"):
            for _ in range(20):
                assert probe(where, far).source == one["status"]["podIP"]
            starts = {node: started(network, node) for node in network.nodes}
            for node, container in containers.items():
                network.kill_container(node, container)
            until(lambda: all(started(network, n) > starts[n] for n in starts), "a new start")
            until(lambda: all(answers(network, n) for n in starts), "an answer")
            for _ in range(20):
                assert probe(where, far).source == one["status"]["podIP"]
            for node in network.nodes:
                reasons = {c["reason"] for c in network.status(node)["conditions"]}
                assert reasons <= {"ClusterUnreachable"}
        until(lambda: all(is_ready(p) for p in network.pods("app=unwatched")))


def started(network: Network, node: str) -> int:
    """Return how often kubelet has started a node's reconciler again, without the API server."""
    logs = network.nodes[node].machine.logs / "pods"
    pods = logs.glob("kube-system_node-network-*/reconciler")
    newest = max(pods, key=lambda path: path.stat().st_mtime)
    return max(int(path.stem) for path in newest.glob("*.log"))


def answers(network: Network, node: str) -> bool:
    """Whether a node's reconciler says how it is."""
    with suppress(UnansweredError):
        return bool(network.status(node))
    return False


def test_a_job_each_minute_has_ended_well_all_the_time(network: Network, through: Through) -> None:
    minutes = (time.monotonic() - through.began) / 60
    for node in network.nodes:
        jobs = [j for j in through.jobs() if j["metadata"]["name"].startswith(node)]
        done = sum(j["status"].get("succeeded", 0) for j in jobs)
        failed = sum(j["status"].get("failed", 0) for j in jobs)
        what = f"a CronJob each minute and node for {minutes:.0f} minutes: pods that ended well"
        network.note(what, str(done))
        assert failed == 0
        assert done >= minutes - SLACK


def test_the_memory_of_a_reconciler_stayed_within_half_of_its_limit(through: Through) -> None:
    """Through all of the above, with reports and the page cache; none was ended for the limit."""
    for node, most in through.peaks.items():
        text = f"{most.own / MIB:.0f}; {most.peak / MIB:.0f}; {most.limit / MIB:.0f}"
        what = "memory of the daemon's cgroup, MiB: most without page cache; most with; limit"
        through.network.note(what, f"{node} {text}")
    assert set(through.peaks) == set(through.network.nodes)
    for most in through.peaks.values():
        assert most.killed == 0
        assert most.peak * 2 <= most.limit


def test_no_reconciler_was_ended_for_its_memory(network: Network) -> None:
    """By kubelet's word, of the container before this one."""
    ends = [
        s["lastState"].get("terminated", {}).get("reason")
        for d in network.daemons()
        for s in d["status"]["containerStatuses"]
    ]
    assert "OOMKilled" not in ends
