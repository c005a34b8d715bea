"""What a workload does in its own namespace, while the daemon looks at it every second."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import hostility
import pytest
from waiting import until

from lab import netns
from lab.pod import Pod
from lab.traffic import Receiver, probe

pytestmark = pytest.mark.lab

VPC_HOST = "10.0.9.10"


def inside(one: Pod, *words: str) -> str:
    argv = ["nsenter", f"--net={netns.path(one.namespace)}", "--", *words]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def watched(make_cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with make_cluster(tmp_path_factory.mktemp("own")) as made:
        made.config.write_text(made.config.read_text() + "reconcile: {resync: 1s}\n")
        made.start()
        yield made


def conditions(cluster: Any) -> dict[str, str]:
    """Texts of conditions by subject and reason."""
    found = cluster.status()["conditions"]
    return {f"{c['subject']}/{c['reason']}": c["text"] for c in found}


def looks(cluster: Any) -> float:
    """Count looks into every pod so far, by the passes."""
    lines = cluster.status()["metrics"].splitlines()
    start = 'node_network_pass_seconds_count{pass="audit"}'
    return sum(float(x.rpartition(" ")[2]) for x in lines if x.startswith(start))


def wait_for_looks(cluster: Any, count: int) -> None:
    goal = looks(cluster) + count
    until(lambda: looks(cluster) >= goal, "more looks")


def test_a_sandbox_that_takes_the_address_off_its_link_keeps_it_off(watched: Any) -> None:
    """As gVisor does: its own stack answers, and the kernel must not. Nor after a restart."""
    with watched.pods(2) as (sandbox, other):
        inside(sandbox, "ip", "address", "flush", "dev", "eth0")
        until(lambda: "pods/ChangedByPod" in conditions(watched), lambda: str(watched.status()))
        assert sandbox.name in conditions(watched)["pods/ChangedByPod"]
        wait_for_looks(watched, 3)
        watched.stop("node1")
        watched.launch("node1")
        until(watched.answers, "an answer")
        until(lambda: "pods/ChangedByPod" in conditions(watched), lambda: str(watched.status()))
        wait_for_looks(watched, 2)
        assert "inet " not in inside(sandbox, "ip", "address", "show", "dev", "eth0")
        # The host's half of both is put back, and the node is as the document says.
        before = watched.drift()
        with watched.still():  # what goes while the first is put back is part of that repair
            for one in (sandbox, other):
                watched.ip("route", "delete", f"{one.address}/32", "table", "512")
        until(lambda: watched.drift() >= before + 2 and watched.status()["settled"], watched.log)
        assert watched.diff().stdout == ""
        with Receiver(watched.lab.names.namespace("vpchost")):
            assert probe(other.namespace, VPC_HOST).source == other.address
    until(lambda: conditions(watched) == {}, lambda: str(conditions(watched)))


@contextmanager
def without_end(one: Pod, how: str) -> Iterator[None]:
    match how:
        case "addresses":
            network = IPv4Network("192.0.2.0/26")
            with hostility.churning_addresses(one.namespace, "eth0", network):
                yield
        case "addresses in the place of its own":
            own = IPv4Network(f"{one.address}/32")
            with hostility.churning_addresses(one.namespace, "eth0", own):
                yield
        case "30000 routes, and none of ours":
            inside(one, "ip", "route", "flush", "table", "main")
            first = IPv4Address("172.16.0.0")
            with hostility.routes(one.namespace, "eth0", 30_000, first):
                yield


@pytest.mark.parametrize(
    "how", ["addresses", "addresses in the place of its own", "30000 routes, and none of ours"]
)
def test_the_host_is_repaired_and_pods_are_served_whatever_a_pod_does(
    watched: Any, how: str
) -> None:
    with watched.pods(1) as (one,), without_end(one, how):
        if "none of ours" in how:
            until(
                lambda: any(
                    one.name in subject and subject.endswith("/NamespaceUnreadable")
                    for subject in conditions(watched)
                ),
                lambda: str(conditions(watched)),
            )
        before = watched.drift()
        watched.ip("rule", "delete", "priority", "1024")
        until(lambda: watched.drift() > before, watched.log)
        with watched.pods(1) as (other,), Receiver(watched.lab.names.namespace("vpchost")):
            assert probe(other.namespace, VPC_HOST).source == other.address
        texts = conditions(watched)
        assert not {s for s in texts if not s.startswith(("pods/", "pod "))}, texts
    until(lambda: conditions(watched) == {}, lambda: str(conditions(watched)))


def test_an_address_that_somebody_puts_on_a_host_link_is_given_to_no_pod(watched: Any) -> None:
    """A pod that was given it would be dead: its packets would end at the host."""
    with watched.pods(1) as (one,):
        taken = one.address
        watched.ip("address", "add", f"{taken}/24", "dev", "eth0")
        try:
            subject = f"address {taken} (pod default/{one.name})/AddressOnHost"
            until(lambda: subject in conditions(watched), lambda: str(conditions(watched)))
            assert one.name in conditions(watched)[subject]
            watched.delete(one)
            until(lambda: not watched.records("cooling"), "cooldown")
            found = watched.command("node1", "audit", "-f", str(watched.config))
            assert taken in found.stdout
            assert taken in watched.diff().stdout
            with watched.pods(3) as others:
                assert taken not in [o.address for o in others]
        finally:
            watched.ip("address", "delete", f"{taken}/24", "dev", "eth0")
    until(lambda: conditions(watched) == {}, lambda: str(conditions(watched)))


def test_a_link_without_record_and_route_keeps_its_address(watched: Any) -> None:
    """Its records are wiped while no daemon runs, and its route as well; the pod runs on."""
    with watched.pods(1) as (one,):
        watched.stop("node1")
        for kind in ("attachments", "intents"):
            for path in (watched.state() / kind).glob("*.json"):
                path.unlink()
        watched.ip("route", "flush", "table", "512")
        veths = [w for w in watched.ip("-o", "link").split() if w.startswith("nn") and "@" in w]
        for veth in veths:
            watched.ip("neighbour", "flush", "dev", veth.partition("@")[0], "nud", "permanent")
        watched.launch("node1")
        until(watched.answers, "an answer")
        with watched.pods(3) as others, Receiver(watched.lab.names.namespace("vpchost")):
            assert one.address not in [o.address for o in others]
            assert probe(one.namespace, VPC_HOST).source == one.address
    until(lambda: conditions(watched) == {}, lambda: str(conditions(watched)))
