"""What was logged about one pod of a lab: by the CNI executable, and by its node's reconciler."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

from cni.exchange import SOCKET
from lab.topology import NODES, Names

MOST_READ = 4 << 20
"""Bytes that are read of the end of each log."""

PEER = struct.Struct("3i")
"""``struct ucred``: process, user, group (unix(7), SO_PEERCRED)."""


def executables_log(names: Names, node: str) -> Path:
    """Return where calls of the CNI executable by ``lab pod`` are logged."""
    return names.node_state(node) / "cni.log"


def find_reconciler(names: Names, node: str) -> int | None:
    """Return the process that answers on a node's socket; None if none does."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(names.node_state(node) / SOCKET))
        except OSError:
            return None
        told = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size)
    return int(PEER.unpack(told)[0])


def reconcilers_log(process: int) -> Path | None:
    """Return what a reconciler's standard error is written to; None if that is no file."""
    path = Path(f"/proc/{process}/fd/2")
    try:
        return path if stat.S_ISREG(path.stat().st_mode) else None
    except OSError:
        return None


def story(container: str, pod: str, logs: dict[str, Path]) -> Iterator[str]:
    """Yield the lines about a pod in the order of their times, each with whose it is.

    Args:
        container: its container ID.
        pod: namespace/name.
        logs: by who writes them.
    """
    about = re.compile(rf"(?<![\w.-])({re.escape(container)}|{re.escape(pod)})(?![\w.-])")
    width = max(map(len, logs), default=0)
    found = [
        (_time_of(line), who, line)
        for who, path in logs.items()
        for line in _lines(path)
        if about.search(line)
    ]
    yield from (f"{who:<{width}}  {line}" for _, who, line in sorted(found, key=lambda f: f[0]))


def _lines(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as opened:
            opened.seek(max(os.fstat(opened.fileno()).st_size - MOST_READ, 0))
            content = opened.read(MOST_READ)
    except OSError:
        return
    yield from content.decode(errors="replace").splitlines()


def _time_of(line: str) -> str:
    """Return when a line was written, in a form that sorts."""
    if line.startswith("{"):
        try:
            return str(json.loads(line)["time"])
        except (ValueError, KeyError, TypeError):
            return ""
    return line.partition(" ")[0]


def logs_of(names: Names) -> tuple[dict[str, Path], list[str]]:
    """Return the logs of a lab's nodes by who writes them, and what cannot be read, and why."""
    logs, unread = {}, []
    for node in NODES:
        logs[f"cni on {node}"] = executables_log(names, node)
        process = find_reconciler(names, node)
        if process is None:
            continue
        if log := reconcilers_log(process):
            logs[f"reconciler of {node}"] = log
        else:
            unread.append(
                f"the reconciler of {node} (process {process}) writes its log to no file; start "
                "it with 2>FILE, and its lines are shown here"
            )
    return logs, unread
