"""What a call leaves for people to read."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import pytest
from executable import REPLY, run, say

from cni import trail

pytestmark = pytest.mark.usefixtures("form")

POD = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u-1"
TRACE = "0af7651916cd43dd8448eb211c80319c"


def fields(line: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in line.split() if "=" in part)


def test_each_call_leaves_one_line_that_tells_whose_it_was(state: Path, serve: Any) -> None:
    serve(say(REPLY))
    log = state / "log" / "cni.log"  # its directory is made
    more = {"logFile": str(log)}
    parent = {"TRACEPARENT": f"00-{TRACE}-b7ad6b7169203331-01", "TRACESTATE": "vendor=x"}
    run(state, "ADD", more, CNI_ARGS=POD, **parent)
    run(state, "DEL", more, CNI_ARGS=POD)
    added, deleted = map(fields, log.read_text().splitlines())
    recorded = json.loads((state / "intents" / "pod1:eth0.json").read_text())
    assert (added["verb"], added["container"], added["ifname"]) == ("ADD", "pod1", "eth0")
    assert (added["pod"], added["uid"], added["trace"]) == ("default/web-0", "u-1", TRACE)
    assert (added["code"], deleted["code"]) == ("0", "0")
    assert added["attempt"] == deleted["attempt"] == recorded["attempt"]
    assert float(added["ms"]) > 0
    assert recorded["traceparent"] == parent["TRACEPARENT"]
    assert recorded["tracestate"] == "vendor=x"


def test_a_failure_is_told_with_its_code_and_reason(state: Path) -> None:
    log = state / "cni.log"
    run(state, "ADD", {"logFile": str(log), "logLevel": "error"})
    run(state, "DEL", {"logFile": str(log), "logLevel": "error"})
    (line,) = log.read_text().splitlines()
    assert " ERROR verb=ADD " in line
    assert "code=11 " in line
    assert "the reconciler is not running" in line


def test_without_a_log_file_and_for_a_status_that_is_well_nothing_is_left(
    state: Path, serve: Any
) -> None:
    serve(say({"ok": True}))
    log = state / "cni.log"
    run(state, "STATUS", {"cniVersion": "1.1.0", "logFile": str(log)})
    run(state, "DEL", {"logLevel": "debug"})
    run(state, "DEL", {"logFile": str(log), "logLevel": "none"})
    assert not log.exists()


def test_a_full_log_makes_way_for_a_new_one(state: Path) -> None:
    log = state / "cni.log"
    for _ in range(2):
        log.write_text("x" * trail.MAX_BYTES)
        run(state, "DEL", {"logFile": str(log)})
    assert not log.exists()
    assert (state / "cni.log.1").stat().st_size > trail.MAX_BYTES
    run(state, "DEL", {"logFile": str(log)})
    assert len(log.read_text().splitlines()) == 1
    assert sorted(p.name for p in state.glob("cni.log*")) == ["cni.log", "cni.log.1"]


@pytest.mark.parametrize(
    "target",
    ["relative.log", "/dev/full", "/proc/nothing", "", 3, None, "pipe", "link", "journal"],
)
def test_no_log_makes_a_call_fail_or_wait(state: Path, target: Any) -> None:
    (state / "kept").write_text("")
    os.mkfifo(state / "pipe")
    (state / "link").symlink_to("kept")
    where = str(state / target) if target in ("pipe", "link") else target
    began = time.monotonic()
    assert run(state, "DEL", {"logFile": where}) == (0, None)
    assert time.monotonic() - began < 10  # a pipe that nobody reads would have it wait for ever
    assert (state / "kept").read_text() == ""


def test_a_line_is_one_line_whatever_is_in_it(state: Path) -> None:
    log = state / "cni.log"
    args = 'K8S_POD_NAMESPACE=a;K8S_POD_NAME=b"\n code=0 \udcff'
    run(state, "ADD", {"logFile": str(log)}, CNI_ARGS=args, CNI_NETNS="/run/netns/none")
    (line,) = log.read_text().splitlines()
    assert 'pod="a/b\\"\\n code=0 \\udcff"' in line


def test_the_journal_is_told_in_its_own_words(state: Path, serve: Any) -> None:
    """In a mount namespace whose /run is another, so that no journal of this machine hears it."""
    serve(say(REPLY))
    (state / "journal").mkdir()
    mounts = (
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && "
        f'mount --bind {state}/journal /run/systemd/journal && exec "$@"'
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(state / "journal" / "socket"))
        journal.settimeout(5)
        run(
            state,
            "ADD",
            {"logFile": "journal"},
            within=["unshare", "--mount", "sh", "-c", mounts, "sh"],
            CNI_ARGS=POD,
        )
        told = dict(part.split("=", 1) for part in journal.recv(65536).decode().splitlines())
    assert told["SYSLOG_IDENTIFIER"] == "node-network-cni"
    assert told["PRIORITY"] == "6"
    assert (told["CNI_CONTAINER"], told["CNI_POD"]) == ("pod1", "default/web-0")
    assert "verb=ADD" in told["MESSAGE"]
