"""Real pods, while what the daemon knows of them is taken from the disk under it, or before it."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import until

from lab.pod import Pod, PodError
from lab.traffic import Receiver, Stream
from reconciler.targets.state import KINDS, LOOK

pytestmark = pytest.mark.lab

VPC_HOST = "10.0.9.10"


def ways(cluster: Any) -> list[str]:
    """Links, rules, routes and elements of ours on node1, of pods most of all."""
    lists = [
        cluster.ip("-o", "link"),
        cluster.ip("rule"),
        cluster.ip("route", "show", "table", "all", "proto", "201"),
        cluster.lab.run("node1", ["nft", "list", "table", "inet", "node_network"]).stdout,
    ]
    return [line for text in lists for line in text.splitlines()]


def bound(cluster: Any) -> set[str]:
    return {a for r in cluster.records("attachments") for a in r["addresses"]}


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    """A tmpfs in the place of a directory, with what was in there."""
    saved = path.with_name(f"{path.name}.saved")
    shutil.copytree(path, saved, ignore=shutil.ignore_patterns("*.sock"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "small", path], check=True)
    try:
        shutil.copytree(saved, path, dirs_exist_ok=True)
        yield path
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
        shutil.rmtree(saved)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as f:
        for size in (1 << 20, 4096, 1):
            try:
                while f.write(bytes(size)):
                    pass
            except OSError as error:
                assert error.errno == errno.ENOSPC


def test_no_running_pod_is_cut_whatever_becomes_of_the_state_directory(
    idle: Any, tmp_path: Path
) -> None:
    text = idle.config.read_text()
    idle.config.write_text(text + "reconcile: {resync: 1s}\n")
    idle.start()
    pods = [idle.add() for _ in range(6)]
    one = pods[0]
    with (
        Receiver(idle.lab.names.namespace("vpchost")),
        Stream(one.namespace, VPC_HOST) as stream,
    ):
        _removed_under_the_daemon(idle, pods, tmp_path)
        assert stream.exchange("still here")
        _of_a_later_schema_on_a_full_disk(idle, pods)
        assert stream.exchange("still here")


def _removed_under_the_daemon(idle: Any, pods: list[Pod], tmp_path: Path) -> None:
    before, addresses = ways(idle), {p.address for p in pods}
    assert bound(idle) == addresses
    # The directory itself, and what the runtime has in it, is the lab's.
    files = [
        idle.state() / name for name in (*KINDS, "unreadable", LOOK, "lock", idle.socket().name)
    ]
    subprocess.run(["rm", "-r", *files], check=True)
    until(lambda: idle.answers() and bound(idle) == addresses, "records that are written again")
    until(lambda: not idle.status()["conditions"], lambda: str(idle.status()["conditions"]))
    assert ways(idle) == before
    another = idle.add()
    assert another.address not in addresses
    idle.delete(another)
    other = ["run", "-f", str(idle.config), "--state-dir", str(tmp_path / "other")]
    done = idle.command("node1", *other, timeout=60)
    assert done.returncode == 2
    assert f"process {idle.process().pid} " in done.stdout + done.stderr
    assert ways(idle) == before


def _of_a_later_schema_on_a_full_disk(idle: Any, pods: list[Pod]) -> None:
    before, addresses = ways(idle), {p.address for p in pods}
    until(lambda: not idle.records("cooling"), "cooldown")
    idle.stop()
    with small_disk(idle.state()) as state:
        for path in state.glob("*/*.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
        fill(state / "filler")
        idle.launch()
        until(idle.answers, "an answer")
        until(lambda: idle.status()["attachments"], "the pods")
        for _ in range(3):
            with pytest.raises(PodError):
                idle.add(budget_s=1)  # its intent cannot be written
        assert ways(idle) == before
        assert {a for p in idle.status()["attachments"] for a in p["addresses"]} == addresses
        audit = idle.command("node1", "audit", "-f", str(idle.config), "--apart", "0.2")
        assert audit.returncode == 1
        assert "RecordLost" in audit.stdout
        assert "RecordUnreadable" in audit.stdout
        (state / "filler").unlink()
        until(lambda: bound(idle) == addresses, "records that are written again")
        another = idle.add()
        assert another.address not in addresses
        idle.delete(another)
        assert [line for line in ways(idle) if "nn" in line] == [x for x in before if "nn" in x]
        idle.stop()
