"""Someone edits the document: a valid one is followed, an invalid one changes nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab import lifecycle, netns
from lab.traffic import Receiver, Stream

pytestmark = pytest.mark.lab


def excluded(cluster: Any, cidr: str) -> bool:
    return cidr in cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout


def write_in_place(path: Path, text: str) -> None:
    path.write_text(text)


def write_by_rename(path: Path, text: str) -> None:
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.replace(path)


def put_in_force(cluster: Any, text: str) -> None:
    """Edit the document, and wait until the node is as it says."""
    generation = cluster.status()["document"]["generation"]
    write_by_rename(cluster.config, text)

    def holds() -> bool:
        status = cluster.status()
        return bool(status["document"]["generation"] > generation and status["settled"])

    until(holds, cluster.log)


@pytest.mark.parametrize("save", [write_in_place, write_by_rename])
def test_an_edit_is_followed_however_it_was_saved(cluster: Any, save: Any) -> None:
    before = cluster.config.read_text()
    save(cluster.config, before.replace("excludeCIDRs: []", "excludeCIDRs: [192.0.2.0/24]"))
    until(lambda: excluded(cluster, "192.0.2.0/24"))
    save(cluster.config, before)
    until(lambda: not excluded(cluster, "192.0.2.0/24"))


def test_a_configmaps_swap_of_its_data_link_is_followed(idle: Any, tmp_path: Path) -> None:
    """Kubelet writes a new directory and renames the ``..data`` link over the old one."""
    mount = tmp_path / "mount"
    text = idle.config.read_text()

    def publish(version: str, content: str) -> None:
        (mount / version).mkdir(parents=True)
        (mount / version / "node-network.yaml").write_text(content)
        (mount / "..data_tmp").symlink_to(version)
        (mount / "..data_tmp").rename(mount / "..data")

    publish("..1", text)
    (mount / "node-network.yaml").symlink_to("..data/node-network.yaml")
    idle.config = mount / "node-network.yaml"
    idle.start()
    publish("..2", text.replace("excludeCIDRs: []", "excludeCIDRs: [192.0.2.0/24]"))
    until(lambda: excluded(idle, "192.0.2.0/24"))


def test_a_document_that_never_changes_because_it_is_a_mount_is_a_condition(
    idle: Any, tmp_path: Path
) -> None:
    """As subPath mounts it: the kubelet writes a new file, and this one stays what it was."""
    alone, outside = tmp_path / "alone.yaml", tmp_path / "outside.yaml"
    outside.write_text(idle.config.read_text())
    alone.touch()
    subprocess.run(["mount", "--bind", str(outside), str(alone)], check=True)
    try:
        idle.config = alone
        idle.launch()
        until(idle.answers, "an answer")
        (found,) = until(lambda: fixed(idle), idle.log)
        assert found["subject"] == str(alone)
        assert "subPath" in found["text"]
        assert "mount the whole ConfigMap as a directory" in found["text"]
        assert idle.command("node1", "status").returncode == 1
    finally:
        subprocess.run(["umount", "--lazy", str(alone)], check=True)
    alone.write_text(outside.read_text())
    until(lambda: not fixed(idle), "its end")


def fixed(cluster: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = cluster.status()["conditions"]
    return [c for c in found if c["reason"] == "DocumentNeverChanges"]


def test_an_invalid_edit_is_refused_shown_and_changes_nothing(cluster: Any) -> None:
    before = cluster.config.read_text()
    ruleset = cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout
    generation = cluster.status()["document"]["generation"]
    cluster.config.write_text(before.replace("mode: node", "mode: nobody"))
    where = f"{cluster.config}:5:9: snat.mode"
    until(lambda: where in (cluster.status()["document"]["refused"] or ""))
    assert cluster.status()["document"]["generation"] == generation
    shown = cluster.command("node1", "status").stdout
    assert "; the file has changed since and is refused)" in shown
    assert shown.count(where) == 1, "what is wrong with it is said once"
    until(lambda: where in cluster.logged(), "the line of the log")
    assert cluster.lab.run("node1", ["nft", "list", "ruleset"]).stdout == ruleset
    with cluster.pods(1):
        pass  # the last good document still serves pods
    assert cluster.logged().count(where) == 1, "and logged once"
    cluster.config.write_text(before)
    until(lambda: cluster.status()["document"]["refused"] is None)


def test_mtus_follow_the_document_into_running_pods_and_names_do_not(cluster: Any) -> None:
    """No connection notices; what a running pod keeps is said by ``diff``."""
    before = cluster.config.read_text()

    with (
        cluster.pods(1) as (one,),
        Receiver(cluster.lab.names.namespace("vpchost")),
        Stream(one.namespace, "10.0.9.10") as stream,
    ):
        try:
            text = before + "eni: {mtu: 8000}\npods: {mtu: 1500, vethPrefix: pod}\n"
            put_in_force(cluster, text)
            assert seen_mtu(one) == 1500, "the pod's MTU"
            assert "mtu 9001" not in cluster.ip("link"), "the host's"
            assert stream.exchange("smaller")
            done = cluster.diff()
            assert (done.returncode, done.stdout) == (0, "")
            (said,) = done.stderr.splitlines()
            assert said.startswith("! KeptUntilRestart: 1 pods: they keep the names")
            assert f"default/{one.name} (nn" in said
            with cluster.pods(1) as (other,):
                found = cluster.status()["attachments"]
                assert {a["veth"][:3] for a in found if a["pod"].endswith(other.name)} == {"pod"}
        finally:
            put_in_force(cluster, before)
        assert seen_mtu(one) == 9001, "the pod's MTU"
        assert stream.exchange("larger")
    until(cluster.is_settled, cluster.log)
    assert cluster.diff().stderr == ""


def seen_mtu(one: Any) -> int:
    """Read a pod's MTU as the pod sees it."""
    argv = ["nsenter", f"--net={netns.path(one.namespace)}", "ip", "-j", "link", "show", "eth0"]
    (link,) = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return int(link["mtu"])


@pytest.mark.parametrize(
    "body",
    ["x: " + "[" * 3000, "max: " + "9" * 5000, "reconcile: {resync: 999999999999h}"],
    ids=["nested", "digits", "years"],
)
def test_no_document_ends_the_daemon(cluster: Any, body: str) -> None:
    """And none looks like a difference to whoever reads exit codes."""
    before = cluster.config.read_text()
    write_in_place(cluster.config, before + body + "\n")
    try:
        until(lambda: cluster.status()["document"]["refused"], "the refusal")
        for verb in ("diff", "validate"):
            words = ["-f"] if verb == "diff" else []
            done = cluster.command("node1", verb, *words, str(cluster.config))
            assert done.returncode == 2
            assert f"{cluster.config}:" in done.stderr
            assert "Traceback" not in done.stderr
    finally:
        write_in_place(cluster.config, before)
    until(lambda: cluster.status()["document"]["refused"] is None, "the end of the refusal")


def test_a_refused_document_is_a_condition_until_it_is_taken_back(cluster: Any) -> None:
    before = cluster.config.read_text()
    write_in_place(cluster.config, before + "first: 1\nsecond: 2\n")
    try:
        (condition,) = until(lambda: cluster.status()["conditions"], "the condition")
        assert condition["reason"] == "DocumentRefused"
        assert "second: unknown key" in condition["text"]
        assert cluster.command("node1", "status").returncode == 1
    finally:
        write_in_place(cluster.config, before)
    until(lambda: not cluster.status()["conditions"], "its end")
    until(lambda: "INFO condition ended domain=document" in cluster.log(), cluster.log)
    log = cluster.log()
    assert "first: unknown key" in log
    assert "second: unknown key" in log


def test_problems_of_a_document_can_be_read_by_programs(cluster: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    text = cluster.config.read_text()
    broken.write_text(text + "x: 1\n")
    for argv in (["diff", "-f", str(broken)], ["validate", str(broken)]):
        done = cluster.command("node1", *argv, "-o", "json")
        (problem,) = json.loads(done.stdout)["errors"]
        assert done.returncode == 2
        line = len(text.splitlines()) + 1
        assert (problem["file"], problem["line"], problem["path"]) == (str(broken), line, "x")
    done = cluster.command("node1", "validate", str(cluster.config), "-o", "json")
    assert json.loads(done.stdout)["errors"] == []


def test_10000_cidrs_come_and_go_while_pods_do(cluster: Any) -> None:
    """Libnftables deletes so many in three minutes, and every action was a line of the log."""
    before = cluster.config.read_text()
    many = "\n".join(f"  - 172.{16 + (n >> 8)}.{n & 255}.0/25" for n in range(9_980))
    log = cluster.state() / "log"
    lines = len(log.read_text().splitlines())
    try:
        for text in (before.replace("excludeCIDRs: []", f"excludeCIDRs:\n{many}"), before):
            generation = cluster.status()["document"]["generation"]
            cluster.config.write_text(text)
            with cluster.pods(4):
                pass
            until(lambda g=generation: cluster.status()["document"]["generation"] > g)  # type: ignore[misc]
            until(cluster.is_settled, "the edit", patience_s=60)
    finally:
        cluster.config.write_text(before)
        until(cluster.is_settled)

    def said() -> list[str]:
        return [x for x in log.read_text().splitlines()[lines:] if "no_snat_ipv4" in x]

    until(lambda: len(said()) >= 2, "a line for each edit")
    assert len(said()) == 2, "one line for each edit"
    assert any("alike=9979" in x for x in said())


WRONG = "mode: nobody"


def kept(cluster: Any) -> dict[str, Any]:
    """What node1 has on its disk for the next start."""
    path = cluster.state() / "var/document.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"generation": 0}
    return found


def crash(cluster: Any) -> None:
    cluster.stop(number=signal.SIGKILL)


def reboot(cluster: Any) -> None:
    lifecycle.reboot(cluster.lab, "node1")
    cluster.stop()


@pytest.mark.parametrize("end", [crash, reboot])
def test_a_start_with_a_refused_document_serves_pods_by_the_last_good_one(
    idle: Any, end: Any
) -> None:
    idle.start()
    first = idle.config.read_text()
    idle.config.write_text(good := first.replace("CIDRs: []", "CIDRs: [192.0.2.0/24]"))
    until(lambda: kept(idle)["generation"] == 2, "the second document on the disk")
    assert kept(idle)["document"] == good
    idle.config.write_text(first.replace("mode: node", WRONG))
    until(lambda: idle.status()["document"]["refused"], "the refusal")
    end(idle)
    idle.launch()
    until(idle.answers, "an answer")
    with idle.pods(2):
        pass
    assert excluded(idle, "192.0.2.0/24")
    status = idle.status()
    assert status["document"]["generation"] == 2
    accepted = kept(idle)["accepted"]
    assert status["document"]["acceptedAt"] == accepted
    (told,) = (c for c in status["conditions"] if c["reason"] == "DocumentRefused")
    assert f"{idle.config}:5:9: snat.mode: " in told["text"]
    assert f"the last good one stays in force: generation 2, accepted {accepted}" in told["text"]
    assert "node_network_document_generation 2.0" in status["metrics"].splitlines()
    assert "node_network_document_refused 1.0" in status["metrics"].splitlines()
    shown = idle.command("node1", "status")
    assert shown.returncode == 1
    assert f"(generation 2, accepted {accepted}; the file has changed since" in shown.stdout
    log = (idle.state() / "log").read_text()
    assert "ERROR started by the last good document: the file is refused" in log
    idle.config.write_text(first)
    until(lambda: idle.status()["document"]["generation"] == 3, "the next valid one")
    until(idle.is_settled, idle.log)
    assert not excluded(idle, "192.0.2.0/24")
    until(lambda: kept(idle)["generation"] == 3, "the third one on the disk")


def test_a_first_start_with_a_refused_document_ends_and_says_what_is_wrong(idle: Any) -> None:
    idle.config.write_text(idle.config.read_text().replace("mode: node", WRONG))
    idle.launch()
    process = idle.process()
    assert process.wait(timeout=30) == 2
    assert f"\n{idle.config}:5:9: snat.mode: " in f"\n{idle.log()}"
    assert not (idle.state() / "var").exists(), "there is nothing to keep"
