"""The pool in the lab: what users of the stock plugin suffered from, one test each.

The numbers are those of the issues: amazon-vpc-cni-k8s unless another project is named.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml
from waiting import until

from lab import netns
from lab.traffic import Receiver, probe
from reconciler.ipam.cloud import CLUSTER_TAG, CREATED_TAG, INSTANCE_TAG

pytestmark = [pytest.mark.lab, pytest.mark.timeout(240)]

VPC_HOST = "10.0.9.10"
LOOKS = "DescribeNetworkInterfaces"


def configure(cluster: Any, pool: str, more: str = "") -> None:
    cluster.config.write_text(
        "apiVersion: node-network/v1alpha1\n"
        "kind: NodeNetwork\n"
        f"warmPool: {{{pool}, cooldown: 2s}}\n"
        "reconcile: {ec2Resync: 10s, resync: 2s}\n"
        f"{more}"
    )


def start(cluster: Any) -> None:
    cluster.launch()
    until(cluster.answers, "an answer")
    until(lambda: calm(cluster), lambda: f"calm\n{cluster.log()}", patience_s=60)


def calm(cluster: Any) -> bool:
    status = cluster.status()
    return bool(status["settled"] and status["enis"] and not status["conditions"])


def calls(cluster: Any, *, reset: bool = False) -> dict[str, int]:
    made: dict[str, int] = cluster.lab.ask("calls", reset=reset)["calls"]
    return made


def mutating(cluster: Any) -> dict[str, int]:
    return {k: v for k, v in calls(cluster).items() if not k.startswith("Describe")}


def looked_twice(cluster: Any) -> None:
    """Wait for two observes EC2."""
    before = calls(cluster).get(LOOKS, 0)
    until(lambda: calls(cluster).get(LOOKS, 0) >= before + 4, "two looks", patience_s=100)


def held(cluster: Any, node: str = "node1") -> set[str]:
    return {a for e in cluster.lab.enis(node) for a in e["addresses"][1:]}


def reasons(cluster: Any) -> set[str]:
    return {c["reason"] for c in cluster.status()["conditions"]}


@pytest.mark.parametrize("switch", [{"truncateEc2": 7}, {"truncateImds": 1}], ids=["EC2", "IMDS"])
def test_pain_2_a_short_list_gives_nothing_back(idle: Any, switch: dict[str, Any]) -> None:
    """#3824: a list that ended early was taken for all there is."""
    configure(idle, "addresses: {warm: 1, surplus: 0}")
    start(idle)
    pods = [idle.add() for _ in range(8)]
    until(lambda: len(held(idle)) >= 9, "growth")
    idle.lab.ask("faults", set=switch)
    looked_twice(idle)
    before = held(idle)
    for one in pods[1:]:
        idle.delete(one)
    until(lambda: not idle.records("cooling"), "the cooldown")
    looked_twice(idle)
    assert before <= held(idle)
    assert "UnassignPrivateIpAddresses" not in calls(idle)
    with Receiver(idle.lab.names.namespace("vpchost")):
        assert probe(pods[0].namespace, VPC_HOST).source == pods[0].address
    idle.lab.ask("faults", clear=True)
    # The doubt gone, what nobody needs goes.
    until(lambda: len(held(idle)) <= 3, "giving back", patience_s=90)
    assert pods[0].address in held(idle)


def test_pain_3_a_restart_forgets_no_pod_that_a_look_does_not_show(idle: Any) -> None:
    """#3876: what the first look did not show was presumed dead."""
    configure(idle, "addresses: {warm: 2, surplus: 0}")
    start(idle)
    pods = [idle.add() for _ in range(6)]
    idle.lab.ask("faults", set={"truncateEc2": 0})
    idle.stop()
    idle.launch()
    until(idle.answers, "an answer")
    looked_twice(idle)
    assert {a for r in idle.records("attachments") for a in r["addresses"]} == {
        p.address for p in pods
    }
    with Receiver(idle.lab.names.namespace("vpchost")):
        assert all(probe(p.namespace, VPC_HOST).source == p.address for p in pods)
    idle.lab.ask("faults", clear=True)
    assert idle.add().address not in {p.address for p in pods}


def test_pain_4_an_address_that_ec2_took_away_is_told_and_asked_for_again(idle: Any) -> None:
    """#3887, #2834: the pod stayed Ready and was never told."""
    configure(idle, "addresses: {warm: 2, surplus: 8}")
    start(idle)
    one = idle.add()
    idle.stop()  # what EC2 has answered to this process is trusted for a minute
    eni = next(e["id"] for e in idle.lab.enis("node1") if one.address in e["addresses"])
    taken = {"NetworkInterfaceId": eni, "PrivateIpAddresses": [one.address]}
    idle.aws("unassign_private_ip_addresses", **taken)
    idle.launch()
    until(idle.answers, "an answer")
    until(lambda: "AddressLost" in (idle.state() / "log").read_text(), "the loss", patience_s=90)
    until(lambda: one.address in held(idle), "the cure", patience_s=60)
    until(lambda: "AddressLost" not in reasons(idle), "its end", patience_s=60)
    with Receiver(idle.lab.names.namespace("vpchost")):
        assert probe(one.namespace, VPC_HOST).source == one.address


def test_pain_16_no_address_is_doubled_by_a_kill_in_the_middle(idle: Any) -> None:
    """#1091, #1127, #3019: after a restart two pods had one address."""
    configure(idle, "addresses: {warm: 6, surplus: 0}")
    start(idle)
    living = []
    for _ in range(3):
        living.append(idle.add())
        with ThreadPoolExecutor(4) as workers:
            known = len(idle.records("intents"))
            jobs = [workers.submit(idle.add, budget_s=5) for _ in range(4)]
            until(lambda known=known: len(idle.records("intents")) > known, "an intent")
            idle.stop(number=signal.SIGKILL)
            idle.launch()
            until(idle.answers, "an answer")
            for job in jobs:
                with suppress(Exception):
                    living.append(job.result())
    living.append(idle.add())
    until(lambda: idle.status()["settled"], "calm")
    addresses = [a for r in idle.records("attachments") for a in r["addresses"]]
    assert len(addresses) == len(set(addresses))
    assert len({p.address for p in living}) == len(living)


def test_pain_20_a_pod_that_died_without_a_del_gives_its_address_back(idle: Any) -> None:
    """#3109, #3113: one missed DEL was for ever."""
    configure(idle, "addresses: {warm: 2, surplus: 0}", more="")
    text = idle.config.read_text()
    idle.config.write_text(text.replace("resync: 2s", "resync: 1s"))
    start(idle)
    one, other = idle.add(), idle.add()
    netns.remove(one.namespace)
    until(lambda: not idle.holds(one), "the release", patience_s=40)
    assert idle.holds(other)
    assert one.address not in {a for r in idle.records("attachments") for a in r["addresses"]}


def test_pain_27_cooling_addresses_starve_nobody(idle: Any) -> None:
    """#2896: they counted as warm, so the pool never grew."""
    configure(idle, "addresses: {warm: 2, surplus: 0}")
    idle.config.write_text(idle.config.read_text().replace("cooldown: 2s", "cooldown: 10m"))
    start(idle)
    gone = [idle.add() for _ in range(6)]
    for one in gone:
        idle.delete(one)
    until(lambda: idle.status()["pool"]["cooling"] == 6, "the cooldowns")
    until(lambda: idle.status()["pool"]["allocatable"] >= 2, "growth", patience_s=40)
    assert idle.add().address not in {one.address for one in gone}  # they rest


def test_pain_36_enis_that_dead_nodes_left_are_found_and_deleted(idle: Any) -> None:
    """#69, #608: they blocked subnets and security groups until somebody deleted them by hand."""
    configure(idle, "addresses: {warm: 1}", more="cluster: prod\n")
    start(idle)
    mine = idle.lab.enis("node1")
    subnet = idle.aws("describe_subnets")["Subnets"][0]["SubnetId"]
    now = datetime.now(UTC)

    def leave(age: timedelta, cluster: str = "prod") -> str:
        tags = {
            INSTANCE_TAG: "i-dead",
            CLUSTER_TAG: cluster,
            CREATED_TAG: (now - age).isoformat(),
        }
        pairs = [{"Key": k, "Value": v} for k, v in tags.items()]
        made = idle.aws(
            "create_network_interface",
            SubnetId=subnet,
            TagSpecifications=[{"ResourceType": "network-interface", "Tags": pairs}],
        )
        return str(made["NetworkInterface"]["NetworkInterfaceId"])

    old, young = leave(timedelta(hours=1)), leave(timedelta(seconds=10))
    others = leave(timedelta(hours=1), cluster="staging")
    argv = ["gc", "-f", str(idle.config), "--apart", "0.1"]
    shown = idle.command("node1", *argv, "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert f"would delete {old}: 36" in shown.stdout
    assert f"keep {young}: " in shown.stdout
    assert others not in shown.stdout
    assert "DeleteNetworkInterface" not in calls(idle)
    done = idle.command("node1", *argv)
    assert f"delete {old}: " in done.stdout
    left = {e["id"] for e in idle.lab.ask("status")["enis"]}
    assert old not in left
    assert {young, others, *(e["id"] for e in mine)} <= left


def test_pain_39_a_constant_demand_reaches_a_fixed_point(idle: Any) -> None:
    """#1775, #1451: allocate, free, allocate."""
    configure(idle, "addresses: {warm: 3, surplus: 4}")
    start(idle)
    pods = [idle.add() for _ in range(7)]
    until(lambda: calm(idle), "calm", patience_s=60)
    calls(idle, reset=True)
    for _ in range(3):  # one pod replaced costs nothing either
        idle.delete(pods.pop())
        pods.append(idle.add())
        until(lambda: not idle.records("cooling"), "the cooldown")
    looked_twice(idle)
    assert mutating(idle) == {}


def test_a_pods_life_costs_no_call_of_any_kind_while_the_pool_has_room(idle: Any) -> None:
    """It has cost 10 DescribeNetworkInterfaces and 5 DescribeSubnets."""
    configure(idle, "addresses: {warm: 3, surplus: 4}")
    idle.config.write_text(idle.config.read_text().replace("ec2Resync: 10s, ", ""))
    start(idle)
    boot = {k: n for k, n in calls(idle).items() if k.startswith("Describe")}
    assert boot == {LOOKS: 1, "DescribeInstanceTypes": 1}
    calls(idle, reset=True)
    for _ in range(3):
        idle.delete(idle.add())
        until(lambda: not idle.records("cooling"), "the cooldown")
    until(lambda: idle.status()["settled"], "calm")
    assert calls(idle) == {}


def test_pain_40_what_never_works_is_not_tried_without_end(idle: Any) -> None:
    """cilium/cilium#15877: 2,500 ENIs in four days."""
    broken = {"action": "AttachNetworkInterface", "code": "InternalError", "count": 10_000}
    idle.lab.ask("faults", set={"errors": [broken]})
    configure(idle, "addresses: {warm: 12, surplus: 0}")
    idle.launch()
    until(idle.answers, "an answer")
    until(lambda: calls(idle).get("AttachNetworkInterface", 0) >= 3, "three tries", patience_s=90)
    assert calls(idle)["CreateNetworkInterface"] == 1
    idle.lab.ask("faults", clear=True)
    until(lambda: len(held(idle)) >= 12, "growth", patience_s=90)
    assert calls(idle)["CreateNetworkInterface"] == 1


@pytest.fixture
def large(tmp_path: Any, make_cluster: Any) -> Iterator[Any]:
    """A node of a type that holds 8 x 29 addresses."""
    with make_cluster(tmp_path, types={"node1": "m5.4xlarge"}) as made:
        yield made


@pytest.mark.parametrize(
    ("more", "most"), [("", 4), ("eni: {allocate: prefixes}\n", 1)], ids=["addresses", "prefixes"]
)
def test_48_addresses_cost_few_calls(large: Any, more: str, most: int) -> None:
    configure(large, "addresses: {warm: 48, surplus: 0}", more=more)
    start(large)
    assert large.status()["pool"]["allocatable"] >= 48
    assert sum(mutating(large).values()) <= most


def test_prefixes_and_single_addresses_change_places_under_running_pods(idle: Any) -> None:
    pool = "addresses: {warm: 4, surplus: 4}"
    configure(idle, pool)
    start(idle)
    pods = [idle.add() for _ in range(3)]
    used = {p.address for p in pods}
    with Receiver(idle.lab.names.namespace("vpchost")):
        configure(idle, pool, "eni: {allocate: prefixes}\n")
        until(lambda: prefixed(idle) and held(idle) == used, "the exchange", patience_s=90)
        assert all(probe(p.namespace, VPC_HOST).source == p.address for p in pods)
        guest = idle.add()
        assert guest.address not in held(idle)  # it is of a prefix, and keeps that prefix here
        configure(idle, pool)
        looked_twice(idle)
        assert prefixed(idle)
        assert all(probe(p.namespace, VPC_HOST).source == p.address for p in (*pods, guest))
        idle.delete(guest)
        looked_twice(idle)
        assert prefixed(idle)  # its addresses are as good as single ones
        configure(idle, "addresses: {warm: 0, surplus: 0}")
        until(lambda: not prefixed(idle), "the prefix to be given back", patience_s=90)
        assert all(probe(p.namespace, VPC_HOST).source == p.address for p in pods)


def prefixed(cluster: Any) -> bool:
    return any(e["prefixes"] for e in cluster.lab.enis("node1"))


def test_explain_pool_names_the_term_that_binds(idle: Any) -> None:
    configure(idle, "addresses: {warm: 2, minimum: 5, surplus: 0}")
    start(idle)
    shown = idle.command("node1", "explain", "pool", "-f", str(idle.config))
    assert shown.returncode == 0, shown.stderr
    assert "5  minimum   <- binds" in shown.stdout
    assert "held: 5 = allocatable 5 + assigned 0 + cooling 0" in shown.stdout
    assert "m5.large serves 29 pods: 3 ENIs x 9 + 2 on the host's network" in shown.stdout
    assert "so: 5 <= 5 <= 5: nothing to do" in shown.stdout


def test_max_pods_says_what_kubelet_should_take_before_a_reconciler_has_run(idle: Any) -> None:
    shown = idle.command("node1", "max-pods", "-f", str(idle.config))
    assert (shown.returncode, shown.stdout) == (0, "29\n"), shown.stderr
    assert "m5.large serves 29 pods: 3 ENIs x 9 + 2 on the host's network" in shown.stderr
    dropped_in = idle.command("node1", "max-pods", "--kubelet", "-f", str(idle.config))
    assert yaml.safe_load(dropped_in.stdout) == {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "maxPods": 29,
    }

    idle.lab.ask("faults", set={"denied": ["DescribeNetworkInterfaces"]})
    denied = idle.command("node1", "max-pods", "-f", str(idle.config))
    assert (denied.returncode, denied.stdout) == (2, "")
    assert "allow ec2:DescribeNetworkInterfaces" in denied.stderr
