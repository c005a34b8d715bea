"""The daemon's directory, lock and socket: what it does when others take them away."""

from __future__ import annotations

import gc
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, eni, key, node
from fake_cloud import FakeEc2, FakeImds
from fakes import FakeConntrack, FakeNetlink, FakeNft, FakeRemains, FakeSurroundings, FakeSysctl
from waiting import until

from reconciler.daemon.agent import Agent
from reconciler.daemon.client import ask
from reconciler.daemon.listener import Listener
from reconciler.daemon.server import Server
from reconciler.errors import Issue, LockedError, StateError, UnansweredError
from reconciler.ipam.cloud import Limits
from reconciler.node.environment import Environment
from reconciler.targets.state.directory import StateDirectory

DOCUMENT = """\
apiVersion: node-network/v1alpha1
kind: NodeNetwork
reconcile: {resync: 1s}
"""


class Daemon:
    """A daemon in this process, whose state directory is reached by a symbolic link."""

    def __init__(self, tmp_path: Path) -> None:
        self.place = tmp_path / "a"
        self.place.mkdir()
        (tmp_path / "run").symlink_to(self.place)
        self.state = StateDirectory(tmp_path / "run")
        self.state.prepare()
        self.state.lock()
        first = eni(0, 0, primary=SUBNET[10])
        ec2 = FakeEc2([first], Limits(3, 10), SUBNET, journal=self.state)
        netlink = FakeNetlink()
        netlink.plug(first.mac, "eth0")
        (tmp_path / "node-network.yaml").write_text(DOCUMENT)
        environment = Environment(
            imds=FakeImds(node(), ec2),
            make_ec2=lambda *_: ec2,
            netlink=netlink,
            nft=FakeNft(),
            sysctl=FakeSysctl({"net/ipv4/ip_forward": "1"}),
            conntrack=FakeConntrack(),
            surroundings=FakeSurroundings(),
            remains=FakeRemains(),
        )
        self.agent = Agent(tmp_path / "node-network.yaml", self.state, environment, events=False)
        self.ended: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.server = Server(self.state.socket, self.agent)
        self.agent.upkeep.properties.append(self.server)
        self.server.start()
        self.thread.start()

    def _run(self) -> None:
        try:
            self.agent.run()
        except LockedError as error:
            self.ended = error

    def answers(self) -> Any:
        with suppress(UnansweredError):
            return ask(self.state.socket, {"do": "status"})["status"]
        return None


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    made = Daemon(tmp_path)
    try:
        until(lambda: (s := made.answers()) and s["settled"], "a settled daemon")
        yield made
    finally:
        made.agent.stop()
        made.thread.join()
        made.server.stop()
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def conditions(daemon: Daemon) -> set[str]:
    return {c["reason"] for c in (daemon.answers() or {"conditions": ()})["conditions"]}


def test_a_directory_that_is_removed_is_made_again_with_its_lock_and_socket(
    daemon: Daemon,
) -> None:
    shutil.rmtree(daemon.place, ignore_errors=True)
    daemon.place.mkdir(exist_ok=True)
    seen: set[str] = set()

    def is_told() -> bool:
        seen.update(conditions(daemon))
        return seen >= {"DirectoryReplaced", "SocketReplaced"}

    until(is_told, lambda: f"both conditions, not only {seen}")
    until(lambda: not conditions(daemon), "their end")
    assert all((daemon.place / kind).is_dir() for kind in ("intents", "attachments", "cooling"))
    with pytest.raises(LockedError, match=str(os.getpid())):
        StateDirectory(daemon.state.root).lock()
    assert daemon.thread.is_alive()


def test_a_socket_of_which_only_the_path_is_gone_is_made_again(daemon: Daemon) -> None:
    daemon.state.socket.unlink()
    assert daemon.answers() is None
    until(daemon.answers, "an answer")


def test_a_socket_for_which_no_thread_can_be_started_is_made_again_later(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else the path would lead to a socket of its own to which nobody listens."""
    start = Listener.start
    failed: list[Listener] = []

    def fail_once(self: Listener) -> None:
        if not failed:
            failed.append(self)
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(Listener, "start", fail_once)
    daemon.state.socket.unlink()
    until(lambda: failed, "a failure")
    until(daemon.answers, "an answer")


def test_whoever_has_locked_the_directory_since_has_the_node_and_this_one_steps_back(
    daemon: Daemon, tmp_path: Path
) -> None:
    other = StateDirectory(tmp_path / "b")
    other.prepare()
    other.lock()
    other.socket.write_text("another daemon's")
    (tmp_path / "next").symlink_to(tmp_path / "b")
    (tmp_path / "next").replace(tmp_path / "run")
    daemon.thread.join(timeout=15)
    assert not daemon.thread.is_alive()
    assert isinstance(daemon.ended, LockedError)
    assert "has taken over" in str(daemon.ended)
    daemon.server.stop()
    assert other.socket.read_text() == "another daemon's", "its socket is not ours to remove"


class Refused:
    """Something of the daemon's that is gone, and that the disk does not take again."""

    is_own = False

    def reclaim(self) -> tuple[Issue, ...]:
        raise StateError("cannot make it: No space left on device")


def test_what_cannot_be_made_again_is_a_condition_until_it_can(daemon: Daemon) -> None:
    """Another thread looks whether it is there, which makes it no more so."""
    daemon.agent.upkeep.properties.append(Refused())
    until(lambda: "State" in conditions(daemon), "the condition")
    daemon.agent.stop()
    daemon.thread.join()
    daemon.agent._keep_watches()
    assert "State" in {c["reason"] for c in daemon.agent.parts.conditions.all()}


def test_who_waits_while_the_daemon_ends_is_not_told_that_its_budget_is_over(
    daemon: Daemon,
) -> None:
    daemon.agent.stop()
    daemon.thread.join()
    told = daemon.agent.parts.requests.await_attachment(key(1), 60.0)
    assert isinstance(told, Issue)
    assert "told to end" in told.message
