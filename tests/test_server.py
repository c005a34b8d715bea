"""The socket, with an agent of which nothing is asked but its answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import attachment
from conftest import namespace

from lab import netns
from reconciler.client import ask
from reconciler.errors import UnansweredError
from reconciler.server import SPARE_THREADS, Server


class Agent:
    """Has done whatever it is asked for."""

    pod_mtu = 1500

    def was_answered(self, *_: Any) -> bool:
        return False

    def await_attachment(self, *_: Any) -> Any:
        return attachment(1)

    def claim(self, *_: Any) -> bool:
        return True

    def disclaim(self, *_: Any) -> None:
        pytest.fail("it was told")


def add(path: Path, inode: int) -> Any:
    who = {"containerID": "c", "ifname": "eth0", "attempt": "1"}
    return ask(path, {"do": "add", "netnsInode": inode, **who})


@pytest.mark.kernel
def test_a_pods_namespace_is_not_ours_while_the_kernel_loop_is_in_it(tmp_path: Path) -> None:
    """The loop's thread is the one by which ``/proc/self`` knows the process."""
    server = Server(tmp_path / "s", Agent())  # type: ignore[arg-type]
    server.start()
    try:
        with namespace("pod") as pod, netns.inside(pod):
            assert add(tmp_path / "s", netns.path(pod).stat().st_ino)["ok"]
        own = Path("/proc/thread-self/ns/net").stat().st_ino
        with pytest.raises(UnansweredError, match="the reconciler's own namespace"):
            add(tmp_path / "s", own)
    finally:
        server.stop()


def test_more_connections_than_spare_threads_are_all_answered(tmp_path: Path) -> None:
    server = Server(tmp_path / "s", Agent())  # type: ignore[arg-type]
    server.start()
    try:
        for _ in range(5 * SPARE_THREADS):
            assert add(tmp_path / "s", 1)["ok"]
    finally:
        server.stop()
