"""Real pods, while what the daemon knows of them is taken from the disk under it, or before it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cgroup import V1, V2, remove
from waiting import until

from lab.pod import Pod, PodError
from lab.traffic import Receiver, Stream
from reconciler.targets.state.codec import KINDS
from reconciler.targets.state.directory import LOOK

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
        idle.state() / name
        for name in (*(k.directory for k in KINDS), "unreadable", LOOK, "lock", idle.socket().name)
    ]
    subprocess.run(["rm", "-r", *files], check=True)
    until(lambda: idle.answers() and bound(idle) == addresses, "records that are written again")
    until(lambda: not idle.status()["conditions"], lambda: str(idle.status()["conditions"]))
    assert ways(idle) == before
    another = idle.add()
    assert another.address not in addresses
    idle.delete(another)
    other = ["run", "-f", str(idle.config), "--state-dir", str(tmp_path / "other")]
    done = idle.command("node1", *other)
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


# -- the daemon's own means ----------------------------------------------------------------

PIDS = V2 if (V2 / "cgroup.controllers").exists() else V1.parent / "pids"


@contextmanager
def few_descriptors(pid: int) -> Iterator[None]:
    """The daemon may open three files more than it has."""
    _, hard = before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    highest = max(int(fd.name) for fd in Path(f"/proc/{pid}/fd").iterdir())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 4, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


@contextmanager
def no_more_tasks(pid: int) -> Iterator[None]:
    """The daemon can start no thread and no process: its cgroup has as many as it may."""
    group = PIDS / f"nnt-{secrets.token_hex(3)}"
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / "pids.max").write_text("1")
        yield
    finally:
        (PIDS / "cgroup.procs").write_text(str(pid))
        remove(group)


@contextmanager
def full(state: Path) -> Iterator[None]:
    fill(state / "filler")
    try:
        yield
    finally:
        (state / "filler").unlink()


@contextmanager
def read_only(state: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", state, state], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", state], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)


@contextmanager
def unread_log(cluster: Any) -> Iterator[None]:
    """A reconciler whose log is a pipe that is full, and that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(4096))
    argv = [sys.executable, "-m", "reconciler", "run", "-f", str(cluster.config)]
    cluster._running["node1"] = cluster.lab.start("node1", argv, stderr=writer)
    try:
        yield
        cluster.stop()
    finally:
        os.close(writer)
        os.close(reader)


def try_adds(cluster: Any, count: int) -> tuple[list[Pod], list[PodError]]:
    """Start pods at once; some may be refused."""
    made, refused = [], []

    def add(_: int) -> None:
        try:
            made.append(cluster.add(budget_s=2))
        except PodError as error:
            refused.append(error)

    with ThreadPoolExecutor(count) as workers:
        list(workers.map(add, range(count)))
    return made, refused


def has_rule(cluster: Any) -> bool:
    return "512:" in cluster.ip("rule")


def test_whatever_means_the_daemon_lacks_it_lives_cuts_no_pod_and_goes_on_when_it_has_them(
    idle: Any,
) -> None:
    """And all the while nobody reads its log."""
    idle.config.write_text(idle.config.read_text() + "reconcile: {resync: 1s}\n")
    with small_disk(idle.state()) as state, unread_log(idle):
        until(lambda: idle.answers() and idle.is_settled(), "settled")
        pods = [idle.add() for _ in range(2)]
        until(lambda: idle.is_settled(), "settled")
        pid = idle.process().pid
        for lack, code, why in (
            (few_descriptors(pid), 11, ""),
            (no_more_tasks(pid), 11, "can't start new thread"),
            (full(state), 5, "cannot record the intent"),
            (read_only(state), 5, "cannot record the intent"),
        ):
            before = ways(idle)
            with lack:
                made, refused = try_adds(idle, 5)
                # Without descriptors or threads it is up to what the daemon has in hand.
                assert refused or code == 11
                assert {e.error["code"] for e in refused} <= {code}
                assert all(why in str(e) for e in refused), refused
                for one in made:
                    idle.delete(one)
                assert {line for line in before if "nn" in line} <= set(ways(idle))
            idle.ip("rule", "delete", "priority", "512")
            until(lambda: has_rule(idle), "a repair")
            with idle.pods(2):
                assert bound(idle) >= {p.address for p in pods}
            assert sorted(ways(idle)) == sorted(before)
            assert idle.process().poll() is None
