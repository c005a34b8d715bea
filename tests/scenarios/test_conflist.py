"""The runtime's directories: empty before pods can be served, ours from then on."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from reconciler.domains.conflist import NAME
from schemas.cni import TYPE

pytestmark = pytest.mark.lab

DENIED = {"denied": ["DescribeNetworkInterfaces"]}
NO_ADDRESSES = [{"action": "AssignPrivateIpAddresses", "code": "InternalError", "count": 10_000}]


def conflist(cluster: Any, node: str = "node1") -> Path:
    path: Path = cluster.lab.names.configurations(node) / NAME
    return path


def content(cluster: Any) -> Any:
    return json.loads(conflist(cluster).read_text())


def test_it_is_there_once_pods_can_be_served_and_stays_when_the_daemon_goes(idle: Any) -> None:
    file = conflist(idle)
    executable = idle.lab.names.plugins("node1") / TYPE
    shipped = Path(idle.lab.environment("node1")["NODE_NETWORK_CNI_EXECUTABLE"])
    idle.config.write_text(idle.config.read_text().replace("24", "9") + "eni: {max: 1}\n")
    idle.least = 9
    # Every kernel object is in place, but EC2 gives no addresses: a pod would wait.
    idle.lab.ask("faults", set={"errors": NO_ADDRESSES})
    idle.launch()
    until(idle.answers, "an answer")
    until(lambda: {"NotConverged", "InternalError"} <= reasons(idle), idle.log)
    assert not file.exists()
    assert not executable.exists()
    shown = idle.diff().stdout
    assert "+ executable  install -D -m 0755 " in shown
    assert f"/dev/stdin {file} <<<" in shown

    idle.lab.ask("faults", clear=True)
    until(file.exists, idle.log, patience_s=60)
    assert executable.read_bytes() == shipped.read_bytes()
    until(idle.is_settled, idle.log, patience_s=60)
    assert idle.diff().stdout == ""
    log = (idle.state() / "log").read_text()
    assert log.count("action applied domain=conflist") == 1  # when it was, and not while it waited
    assert "drift repaired domain=conflist" not in log

    seen = file.stat()
    idle.stop()
    assert file.stat() == seen
    # A new release restarts the daemon while EC2 does not answer, after somebody's edit.
    file.write_text("{}")
    (idle.state() / "look.json").unlink()
    idle.lab.ask("faults", set=DENIED)
    idle.launch()
    until(idle.answers, "an answer")
    until(lambda: "NotReady" in reasons(idle), "conditions")
    assert file.read_text() == "{}"
    idle.lab.ask("faults", clear=True)
    until(lambda: file.read_text() != "{}", idle.log, patience_s=60)
    until(idle.is_settled, idle.log, patience_s=60)

    seen = file.stat()
    idle.stop(number=signal.SIGKILL)
    assert file.stat() == seen


def reasons(cluster: Any) -> set[str]:
    return {c["reason"] for c in cluster.status()["conditions"]}


def put(path: Path, text: str) -> None:
    """Write a file as careful people do: a reader sees the old one or the new one."""
    fresh = path.with_name("fresh")
    fresh.write_text(text)
    fresh.replace(path)


def test_somebody_elses_edit_is_drift_and_another_way_to_write_the_same_is_none(
    cluster: Any,
) -> None:
    file, before = conflist(cluster), content(cluster)
    drift = cluster.drift()
    put(file, json.dumps(dict(reversed(before.items()))))
    text = file.read_text()
    assert cluster.diff().stdout == ""
    file.with_name("99-other.conflist").write_text("{}")  # noticed, and no reason to write ours
    assert cluster.diff().stdout == ""
    assert file.read_text() == text
    file.with_name("99-other.conflist").unlink()

    edited = json.loads(text)
    edited["plugins"][0]["budgetSeconds"] = 1
    put(file, json.dumps(edited))
    until(lambda: content(cluster) == before, cluster.log)
    # A pass that still looks would put the next one right as part of the same repair.
    until(lambda: cluster.drift() == drift + 1, "the account of it")
    file.unlink()
    until(file.exists, cluster.log)
    until(lambda: cluster.drift() == drift + 2, "the account of it")
    until(lambda: "plugins[0].budgetSeconds 1 -> 60" in cluster.logged(), cluster.log)


def test_it_is_printed_for_those_who_install_it_themselves(cluster: Any) -> None:
    done = cluster.command("node1", "render", "-f", str(cluster.config), "--conflist")
    assert done.stdout == conflist(cluster).read_text()


def test_an_edit_of_the_document_rewrites_it(cluster: Any) -> None:
    document, before = cluster.config.read_text(), content(cluster)
    try:
        cluster.config.write_text(document + "cni: {chain: [], budget: 45s}\n")
        until(lambda: len(content(cluster)["plugins"]) == 1, cluster.log)
        assert content(cluster)["plugins"][0]["budgetSeconds"] == 45
        # What would let no pod start does not take its place.
        cluster.config.write_text(document + "cni: {chain: [{type: typo}]}\n")
        until(lambda: "PluginMissing" in reasons(cluster), cluster.log)
        assert len(content(cluster)["plugins"]) == 1
        with cluster.pods(1):
            pass
    finally:
        cluster.config.write_text(document)
    until(lambda: content(cluster) == before, cluster.log)
    until(cluster.is_settled, cluster.log)


def test_who_would_be_read_in_its_place_is_named(cluster: Any) -> None:
    other = conflist(cluster).with_name("10-aws.conflist")
    other.write_text('{"name": "aws-cni", "plugins": [{"type": "aws-cni"}]}')
    try:
        until(lambda: "OtherConflistFirst" in reasons(cluster), cluster.log)
        done = cluster.diff()
        assert (done.returncode, done.stdout) == (0, "")
        assert f"OtherConflistFirst: {other}" in done.stderr
    finally:
        other.unlink()
    until(cluster.is_settled, cluster.log)


def test_trouble_with_it_is_said_and_touches_no_pod(cluster: Any) -> None:
    file, before = conflist(cluster), content(cluster)
    with cluster.pods(1) as (one,):
        with cluster.still():  # it would put the file back before the directory is there
            file.unlink()
            file.mkdir()
        try:
            until(lambda: "Observe" in reasons(cluster), cluster.log)
            (said,) = {c["text"] for c in cluster.status()["conditions"]}
            assert f"{file}: it is a directory; remove it" in said
            assert cluster.diff().returncode == 2
            with cluster.pods(1):
                pass
        finally:
            file.rmdir()
        until(lambda: file.exists() and content(cluster) == before, cluster.log)
        assert cluster.holds(one)
    until(cluster.is_settled, cluster.log)
