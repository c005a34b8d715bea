"""The static executable needs nothing of the host: no Python, no library, no /proc, no root."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import namespace

from lab import netns
from lab.lifecycle import STATIC

NOBODY = 65534
CONFIG = {"cniVersion": "1.0.0", "name": "n", "type": "node-network", "stateDir": "/state"}
ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "pod1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/netns",
}
REPLY: dict[str, Any] = {
    "ok": True,
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:02", "mtu": 9001, "sandbox": "/netns"}],
    "ips": [{"address": "10.0.1.9/32", "gateway": "169.254.1.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0", "gw": "169.254.1.1"}],
    "dns": {},
}


@pytest.fixture
def root() -> Iterator[Path]:
    """A directory that holds the executable, a state directory, a namespace's file, no more."""
    with tempfile.TemporaryDirectory(prefix="nnt-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        shutil.copy(STATIC, root / "cni")
        (root / "state").mkdir()
        (root / "netns").touch()
        with namespace("static") as name:
            subprocess.run(["mount", "--bind", netns.path(name), root / "netns"], check=True)
            try:
                yield root
            finally:
                subprocess.run(["umount", "-l", root / "netns"], check=True)


def run(root: Path, *words: str, **environ: str) -> tuple[int, Any]:
    """Run it with ``root`` as its only file system."""
    done = subprocess.run(
        ["/usr/sbin/chroot", *words, str(root), "/cni"],
        input=json.dumps(CONFIG),
        env=ENVIRON | environ,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.stderr == ""
    return done.returncode, json.loads(done.stdout) if done.stdout else None


def test_it_is_linked_to_nothing() -> None:
    """A dynamic one would name its loader (ELF, program header PT_INTERP)."""
    body = STATIC.read_bytes()
    offset, size, count = (
        int.from_bytes(body[32:40], "little"),
        int.from_bytes(body[54:56], "little"),
        int.from_bytes(body[56:58], "little"),
    )
    headers = [body[offset + i * size : offset + (i + 1) * size] for i in range(count)]
    kinds = {int.from_bytes(header[:4], "little") for header in headers}
    assert body[:4] == b"\x7fELF"
    assert 1 in kinds
    assert not {2, 3} & kinds  # PT_DYNAMIC, PT_INTERP


def test_it_fits_into_eight_megabytes() -> None:
    assert STATIC.stat().st_size < 8 * 1024 * 1024


def test_an_add_and_a_del_in_an_empty_chroot(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(root / "state/node-network.sock"))
        s.listen()
        asked: list[Any] = []

        def serve() -> None:
            for reply in (REPLY, {"ok": True}):
                connection, _ = s.accept()
                # Whoever only left a hint is not there to hear the answer.
                gone = suppress(BrokenPipeError, ConnectionResetError)
                with gone, connection, connection.makefile("rwb") as stream:
                    asked.append(json.loads(stream.readline()))
                    stream.write(json.dumps(reply).encode() + b"\n")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        code, result = run(root)
        assert (code, result["ips"][0]["address"]) == (0, "10.0.1.9/32")
        (intent,) = (root / "state/intents").glob("*.json")
        assert json.loads(intent.read_text())["netnsInode"] == (root / "netns").stat().st_ino
        assert run(root, CNI_COMMAND="DEL") == (0, None)
        thread.join(timeout=10)
        assert [each["do"] for each in asked] == ["add", "del"]
        assert json.loads(intent.read_text())["state"] == "released"
    assert {p.name for p in root.iterdir()} == {"cni", "state", "netns"}


def test_without_anything_around_it_it_says_what_it_is(root: Path) -> None:
    (root / "state").rmdir()
    code, answer = run(root, CNI_COMMAND="VERSION")
    assert code == 0
    assert "1.1.0" in answer["supportedVersions"]


def test_a_user_without_privileges_gets_a_clear_error_and_writes_nothing(root: Path) -> None:
    (root / "state").chmod(0o755)
    code, error = run(root, f"--userspec={NOBODY}:{NOBODY}")
    assert code == 1
    assert error["code"] in (5, 11)
    assert "/state" in error["msg"] + error["details"]
    assert list((root / "state").iterdir()) == []


def test_variables_that_change_pythons_ways_change_nothing(root: Path) -> None:
    here = {"PYTHONPATH": "/state", "PYTHONHOME": "/state", "PYTHONVERBOSE": "1"}
    (root / "state/json.py").write_text("raise SystemExit(7)")
    code, answer = run(root, CNI_COMMAND="VERSION", PYTHONINSPECT="1", **here)
    assert (code, "supportedVersions" in answer) == (0, True)


def test_a_python_of_the_host_is_not_looked_at(root: Path) -> None:
    """CPython looks for one by PATH and around the working directory, and fails for such links."""
    where = root / "usr/bin"
    where.mkdir(parents=True)
    (where / "python3").touch(mode=0o755)
    for place in (root, where):
        for name in ("pyvenv.cfg", "python3._pth", "pybuilddir.txt"):
            (place / name).symlink_to(name)
    for path in ("", "/usr/bin"):
        code, answer = run(root, CNI_COMMAND="VERSION", PATH=path)
        assert (code, "supportedVersions" in answer) == (0, True)


def test_a_runtime_that_does_not_listen_any_more_is_no_signal(root: Path) -> None:
    """SIGPIPE would end it where it has something to take back."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        ["/usr/sbin/chroot", str(root), "/cni"],
        input=json.dumps(CONFIG).encode(),
        env=ENVIRON | {"CNI_COMMAND": "VERSION"},
        stdout=writer,
        stderr=subprocess.PIPE,
        timeout=20,
    )
    os.close(writer)
    assert done.returncode == 1
