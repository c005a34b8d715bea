"""Why things are as they are, as an operator asks on a node."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.pod import Pod
from lab.topology import PEER_HOST
from lab.traffic import PORT, Receiver
from reconciler.diagnostics.rights import NO_QUESTION

pytestmark = pytest.mark.lab

VPC_HOST = "10.0.9.10"

DROPPING = """
table ip strict {
  chain drops {
    type filter hook forward priority 0; policy accept;
    ip daddr 10.0.9.10 drop
  }
}
"""


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, make_cluster: Any) -> Iterator[tuple[Any, Pod]]:
    """A node with a pod; its reconciler runs."""
    with make_cluster(tmp_path_factory.mktemp("why"), "node1") as made:
        yield made, made.add()


def explain(cluster: Any, *words: str) -> str:
    done = cluster.command("node1", "explain", *words, "-f", str(cluster.config))
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


def test_a_pod_and_its_address_say_what_they_are_and_by_which_line(one: tuple[Any, Pod]) -> None:
    cluster, pod = one
    said = explain(cluster, "pod", pod.name)
    assert "state    ready: all of its objects were seen in place" in said
    assert f"address  {pod.address}: the first free one on eni-" in said
    assert "by warmPool.cooldown (line 3)" in said
    assert "since    20" in said
    listed = json.loads(explain(cluster, "pod", "-o", "json"))["explained"]
    assert [t["about"] for t in listed] == [f"default/{pod.name}"]
    assert listed[0]["text"].startswith(f"{pod.address} on eni-")
    said = explain(cluster, "address", pod.address)
    assert f"assigned: pod default/{pod.name} has it" in said
    assert f"{pod.address} sees the pod's own address, a CIDR of the VPC" in said


def test_the_pool_names_the_lines_that_its_size_comes_from(one: tuple[Any, Pod]) -> None:
    last = explain(one[0], "pool").splitlines()[-1]
    assert last.startswith("by: warmPool (line 3), eni.max (by default), ")


def test_what_is_explained_of_rules_routes_and_sets_is_what_the_kernel_has(
    one: tuple[Any, Pod],
) -> None:
    cluster, pod = one
    commands = [line for line in explain(cluster, "rule").splitlines() if line[0] != " "]
    there = [x for x in cluster.ip("rule").splitlines() if "proto 201" in x]
    assert len(commands) == len(there)
    assert {c.split("priority ")[1].split()[0] for c in commands} == {
        x.split(":")[0] for x in there
    }
    said = explain(cluster, "route", "512")
    assert said.count("\n") == 2
    assert f"{pod.address}/32" in said
    assert f"it leads to pod default/{pod.name}" in said
    assert "10.0.0.0/16 of the VPC" in explain(cluster, "set", "no_snat_ipv4")
    done = cluster.command("node1", "explain", "set", "nothing", "-f", str(cluster.config))
    assert (done.returncode, done.stdout) == (2, "")
    assert "no set is called 'nothing'; there are: " in done.stderr


def test_a_condition_that_holds_is_explained_with_its_age_and_without_a_name(
    one: tuple[Any, Pod],
) -> None:
    cluster, _ = one
    done = cluster.command("node1", "explain", "condition")
    assert done.stdout == "no condition: nothing is wrong that the reconciler knows of\n"
    done = cluster.command("node1", "explain", "condition", "SubnetExhausted")
    assert done.stdout.endswith("now       no condition of this reason\n")


def doctor(cluster: Any, *more: str) -> Any:
    return cluster.command("node1", "doctor", "-f", str(cluster.config), *more)


def test_a_doctor_finds_a_node_well_and_changes_nothing(one: tuple[Any, Pod]) -> None:
    cluster, _ = one
    before = cluster.status()["enis"]
    done = doctor(cluster)
    assert done.returncode in (0, 1), done.stdout + done.stderr  # a test's host has small limits
    said = done.stdout.splitlines()
    assert "ok    ec2:DeleteNetworkInterface: allowed (DryRun)" in said
    assert "ok    limits: m5.large serves 29 pods: 3 ENIs x 9 + 2 on the host's network" in said
    assert "ok    others: no agent, unit or ruleset that stands in the way" in said
    skipped = [line for line in said if line.startswith("skip")]
    assert {line.partition(": ")[2] for line in skipped} == {NO_QUESTION}
    assert [line for line in said if " mtu: " in line and not line.startswith("ok ")] == []
    assert "FAIL" not in done.stdout
    assert "Ipv6" not in done.stdout  # the document has none
    assert cluster.status()["enis"] == before


def test_a_trace_goes_on_where_the_node_ends(one: tuple[Any, Pod]) -> None:
    cluster, pod = one
    words = ["trace", pod.name, str(PEER_HOST), "--port", "443", "-f", str(cluster.config)]
    assert cluster.command("node1", *words).returncode == 0  # the node itself is well
    done = cluster.command("node1", *words, "--vpc")
    assert done.returncode == 1, done.stderr
    steps = done.stdout.partition("in the VPC\n")[2].splitlines()
    assert steps[0].startswith("  security groups  sg-")
    (stop,) = (line for line in steps if line.startswith("! "))
    assert f" has no route to {PEER_HOST}: the VPC drops it" in stop
    body = json.loads(cluster.command("node1", *words, "--vpc", "-o", "json").stdout)
    (traced,) = body["traces"]
    assert [s["about"] for s in traced["vpc"]["steps"] if s["stops"]] == ["route"]
    assert traced["vpc"]["notes"] == []


def test_a_sysdump_has_what_was_asked_for_its_owner_alone(
    one: tuple[Any, Pod], tmp_path: Path
) -> None:
    cluster, pod = one
    path = tmp_path / "dump.tar.gz"
    words = ["sysdump", "-f", str(cluster.config), str(path)]
    done = cluster.command("node1", *words)
    assert done.returncode == 0, done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        found = {m.name.removeprefix("node-network/"): m for m in archive.getmembers()}
        opened: dict[str, Any] = {name: archive.extractfile(m) for name, m in found.items()}
        texts = {name: file.read().decode() for name, file in opened.items()}
    assert "cni.log              not in it: cni.logFile names no file" in texts["INDEX.txt"]
    assert texts["INDEX.txt"].count("not in it") == 1, texts["INDEX.txt"]
    assert json.loads(texts["status.json"])["document"]["generation"] == 1
    assert json.loads(texts["diff.json"])["actions"] == []
    assert pod.address in texts["attachments.jsonl"]
    assert "ip rule add priority 512 lookup 512" in texts["kernel.txt"]
    assert "nft add table inet node_network" in texts["nftables.txt"]
    again = cluster.command("node1", *words)
    assert (again.returncode, again.stdout) == (2, "")
    assert f"{path} exists, and is not overwritten" in again.stderr
    sizes = dict(re.findall(r"^  (\S+) +(\d+) bytes", texts["INDEX.txt"], re.MULTILINE))
    kept = {n: str(m.size) for n, m in found.items() if n != "INDEX.txt"}
    assert sizes == kept, "the index is true"
    assert all(secret not in "".join(texts.values()) for secret in secrets(cluster))


def secrets(cluster: Any) -> list[str]:
    """What the node's processes call EC2 with."""
    done = cluster.lab.run("node1", ["env"])
    found = re.findall(r"^AWS_(?:SECRET|SESSION|ACCESS)\w*=(.{4,})$", done.stdout, re.MULTILINE)
    return [str(value) for value in found]


def test_packets_of_a_pod_are_sent_and_what_stops_them_is_named(one: tuple[Any, Pod]) -> None:
    cluster, pod = one
    with cluster.pods(1) as (other,), Receiver(cluster.lab.names.namespace("peer")):
        tried = [f"{PEER_HOST}:{PORT}", VPC_HOST, "dns:192.0.2.53"]
        words = ["connectivity", pod.name, *tried, "-f", str(cluster.config)]
        made = cluster.lab.run("node1", ["nft", "-f", "-"], input=DROPPING)
        assert made.returncode == 0, made.stderr
        try:
            done = cluster.command("node1", *words)
        finally:
            cluster.lab.run("node1", ["nft", "delete", "table", "ip", "strict"])
    assert done.returncode == 1, done.stderr
    said = done.stdout.splitlines()
    assert f"ok    {PEER_HOST}:{PORT} ({PEER_HOST} port {PORT}): connected" in said
    assert any(line.startswith("ok    this node (10.0.1.10 port 9): reached") for line in said)
    assert any(
        line.startswith(f"ok    another pod of this node ({other.address}") for line in said
    )
    assert any(line.startswith("ok    instance metadata (") for line in said)
    at = next(n for n, line in enumerate(said) if line.startswith(f"FAIL  {VPC_HOST} ("))
    assert "no answer" in said[at]
    assert any("strict" in line for line in said[at + 1 :]), done.stdout


def test_a_doctor_names_a_denied_action_and_who_deletes_rules_without_a_reconciler(
    one: tuple[Any, Pod],
) -> None:
    cluster, _ = one
    cluster.lab.ask("faults", set={"denied": ["CreateNetworkInterface"]})
    cluster.ip("rule", "add", "priority", "100", "lookup", "main")
    try:
        cluster.stop()
        done = doctor(cluster, "-o", "json")
    finally:
        cluster.lab.ask("faults", set={"denied": []})
        cluster.ip("rule", "delete", "priority", "100")
    body = json.loads(done.stdout)
    assert (done.returncode, body["status"], body["format"]) == (2, 2, 1)
    (failed,) = (c for c in body["checks"] if c["state"] == "fail")
    assert failed["name"] == "ec2:CreateNetworkInterface"
    assert failed["cure"].startswith("allow ec2:CreateNetworkInterface to the node's role")
    warned = {c["name"]: c["text"] for c in body["checks"] if c["state"] == "warn"}
    assert "is 'node-network run' running?" in warned["reconciler"]
    assert warned["others"].startswith("RuleBeforeOurs: ")
