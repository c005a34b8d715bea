"""A disk that takes nothing, a reconciler that does not listen, a user who may not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from executable import REPLY, at_once_s, intents, run, say

pytestmark = pytest.mark.usefixtures("form")

NAME = "pod1:eth0.json"


@pytest.fixture
def disk(state: Path) -> Iterator[Path]:
    """The state directory on a small disk of its own."""
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "nnt", str(state)], check=True
    )
    try:
        yield state
    finally:
        subprocess.run(["umount", "-l", str(state)], check=True)


@pytest.fixture
def serve_on(disk: Path, serve: Any) -> Any:
    """A reconciler on that disk, gone before the disk is."""
    return serve


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as f:
        try:
            while True:
                f.write(b"x" * 4096)
        except OSError:
            return


def leave(disk: Path) -> None:
    """Have nobody listen any more; what is unlinked but open keeps a disk from read-only."""
    (disk / "node-network.sock").rename(disk / "elsewhere.sock")


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


def test_an_add_on_a_full_disk_fails_clearly_and_leaves_nothing(disk: Path, serve_on: Any) -> None:
    reconciler = serve_on(say(REPLY))
    (disk / "intents").mkdir()
    fill(disk)
    code, error = run(disk)
    assert (code, error["code"]) == (1, 5)
    assert "ENOSPC" in error["details"]
    assert list((disk / "intents").iterdir()) == []
    assert reconciler.asked == []


def test_an_add_on_a_read_only_disk_fails_clearly(disk: Path, serve_on: Any) -> None:
    reconciler = serve_on(say(REPLY))
    (disk / "intents").mkdir()
    with read_only(disk):
        code, error = run(disk)
    assert (code, error["code"]) == (1, 5)
    assert "EROFS" in error["details"]
    assert reconciler.asked == []


def test_a_del_on_a_full_disk_is_recorded_in_the_place_of_the_add(
    disk: Path, serve_on: Any
) -> None:
    serve_on(say(REPLY))
    assert run(disk)[0] == 0
    before = json.loads((disk / "intents" / NAME).read_text())
    leave(disk)
    fill(disk)
    assert run(disk, "DEL") == (0, None)
    assert json.loads((disk / "intents" / NAME).read_text()) == before | {"state": "released"}
    assert intents(disk) == {NAME: "released"}


@pytest.mark.parametrize("how", ["read-only", "full"])
def test_a_del_that_nothing_takes_is_handed_to_the_reconciler(
    disk: Path, serve_on: Any, how: str
) -> None:
    reconciler = serve_on(say({"ok": True} | REPLY))
    assert run(disk)[0] == 0
    path = disk / "intents" / NAME
    recorded = json.loads(path.read_text())
    if how == "full":
        path.write_text(json.dumps(recorded, sort_keys=True))  # as the reconciler writes them
        fill(disk)
        assert run(disk, "DEL") == (0, None)
    else:
        with read_only(disk):
            assert run(disk, "DEL") == (0, None)
    handed = [q["intent"] for q in reconciler.asked if q["do"] == "release"]
    assert handed == [recorded | {"state": "released"}]


def test_a_del_that_nothing_and_nobody_takes_succeeds_for_the_namespace_will_tell(
    disk: Path, serve_on: Any
) -> None:
    serve_on(say(REPLY))
    assert run(disk)[0] == 0
    leave(disk)
    with read_only(disk):
        assert run(disk, "DEL") == (0, None)
    assert intents(disk) == {NAME: "wanted"}


def test_gc_on_a_full_disk_releases_too(disk: Path, serve_on: Any) -> None:
    serve_on(say(REPLY))
    assert run(disk)[0] == 0
    leave(disk)
    fill(disk)
    config = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}
    assert run(disk, "GC", config) == (0, None)
    assert intents(disk) == {NAME: "released"}


def test_a_del_waits_for_no_reconciler_that_does_not_accept(state: Path) -> None:
    """Its queue is full, so even to connect would take until it is back."""
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(state / "node-network.sock"))
        s.listen(0)
        crowd = []
        try:
            for _ in range(5):
                other = socket.socket(socket.AF_UNIX)
                other.setblocking(False)
                crowd.append(other)
                try:
                    other.connect(str(state / "node-network.sock"))
                except BlockingIOError:
                    break
            limit_s = at_once_s(state, 1.0)
            began = time.monotonic()
            assert run(state, "DEL") == (0, None)
            assert time.monotonic() - began < limit_s
            assert run(state, "STATUS", {"cniVersion": "1.1.0"})[1]["code"] == 50
        finally:
            for other in crowd:
                other.close()
    assert intents(state) == {NAME: "released"}


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "STATUS"])
def test_a_user_who_may_not_is_told_so(state: Path, serve: Any, verb: str) -> None:
    """Root without any capability, and a directory that is somebody else's."""
    serve(say(REPLY))
    os.chown(state, 65534, 65534)
    config = {"cniVersion": "1.1.0", "prevResult": {}}
    nobody = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    code, error = run(state, verb, config, within=nobody)
    assert (code, error["code"]) == (1, 5)
    assert "EACCES" in json.dumps(error)


def test_a_name_that_is_a_pipe_makes_nobody_wait(state: Path) -> None:
    (state / "intents").mkdir()
    os.mkfifo(state / "intents" / NAME)
    limit_s = at_once_s(state, 2.0)
    began = time.monotonic()
    assert run(state, "DEL") == (0, None)
    assert time.monotonic() - began < limit_s
    assert intents(state) == {NAME: "released"}
