"""STATUS: what the daemon says when what all pods share cannot be put in place."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from builders import SUBNET, eni, node
from fake_cloud import FakeEc2, FakeImds
from fakes import FakeConntrack, FakeNetlink, FakeNft, FakeRemains, FakeSurroundings, FakeSysctl
from waiting import until

from cni import protocol
from reconciler.core.attachment import AttachmentKey
from reconciler.daemon import schedule
from reconciler.daemon import status as shown
from reconciler.daemon.agent import Agent
from reconciler.daemon.requests import MOST_HINTS
from reconciler.daemon.server import Server
from reconciler.engine.converge import Outcome
from reconciler.engine.plan import Change
from reconciler.errors import ApplyError, Issue, ObserveError
from reconciler.ipam.cloud import Limits
from reconciler.node.environment import Environment
from reconciler.targets.state.directory import StateDirectory

DOCUMENT = "apiVersion: node-network/v1alpha1\nkind: NodeNetwork\n"


class Refusing(FakeNft):
    """A kernel that takes no rules while ``refuses``."""

    refuses = False

    def apply(self, actions: Sequence[Change[Any]]) -> tuple[ApplyError, ...]:
        if self.refuses:
            return tuple(ApplyError(str(a), "EPERM", "not permitted") for a in actions)
        return super().apply(actions)


def test_hints_of_released_pods_have_a_bound_and_then_a_full_pass_is_asked_for(
    tmp_path: Path,
) -> None:
    agent = Agent(
        tmp_path / "node-network.yaml",
        StateDirectory(tmp_path / "run"),
        Environment(),
        events=False,
    )
    for number in range(MOST_HINTS):
        agent.parts.pods.release(AttachmentKey(f"c{number}", "eth0"))
    assert agent.parts.hints.wait(0) == {"intent"}
    for number in range(10):
        agent.parts.pods.release(AttachmentKey(f"more{number}", "eth0"))
    assert len(agent.parts.pods._released) == MOST_HINTS
    assert agent.parts.hints.wait(0) == {"pool"}


def test_an_add_is_not_told_of_conditions_that_cannot_be_its_cause(tmp_path: Path) -> None:
    """They came first by name, and an error of a runtime has room for 512 characters."""
    state = StateDirectory(tmp_path / "run")
    agent = Agent(tmp_path / "node-network.yaml", state, Environment(), events=False)
    key = AttachmentKey("c1", "eth0")
    docker = Issue("chain ip filter FORWARD", "ForwardingDropped", "its policy is drop")
    agent.parts.conditions.note("foreign", [docker])
    agent.parts.conditions.note("mount", [Issue("/etc/x", "DocumentNeverChanges", "by subPath")])
    told = agent.parts.requests.await_attachment(key, 0.0)
    assert isinstance(told, Issue)
    assert told.message == "its objects were not seen in place within the budget"
    broken = ObserveError("the host's routes", "no memory")
    agent.parts.conditions.report("route", Outcome(errors=(broken,)))
    told = agent.parts.requests.await_attachment(key, 0.0)
    assert isinstance(told, Issue)
    assert told.message.startswith("the host's routes: cannot read the host's routes: no memory")
    assert "its policy is drop" not in told.message
    agent.parts._note_stuck("for 12 s")  # type: ignore[arg-type]  # only its text is used
    told = agent.parts.requests.await_attachment(key, 0.0)
    assert isinstance(told, Issue)
    assert told.message.endswith("; the loop: for 12 s")


@pytest.fixture
def nft() -> Refusing:
    """Refuses from the daemon's first pass on."""
    made = Refusing()
    made.refuses = True
    return made


@pytest.fixture
def answers(tmp_path: Path, nft: Refusing, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return what asks the daemon, which has two tenths of a second of patience."""
    monkeypatch.setattr(shown, "PATIENCE_S", 0.2)
    monkeypatch.setattr(schedule, "RETRY_S", 0.05)
    state = StateDirectory(tmp_path / "run")
    state.prepare()
    state.lock()
    first = eni(0, 0, primary=SUBNET[10])
    ec2 = FakeEc2([first], Limits(3, 10), SUBNET, journal=state)
    netlink = FakeNetlink()
    netlink.plug(first.mac, "eth0")
    (tmp_path / "node-network.yaml").write_text(DOCUMENT)
    environment = Environment(
        imds=FakeImds(node(), ec2),
        make_ec2=lambda *_: ec2,
        netlink=netlink,
        nft=nft,
        sysctl=FakeSysctl({"net/ipv4/ip_forward": "1"}),
        conntrack=FakeConntrack(),
        surroundings=FakeSurroundings(),
        remains=FakeRemains(),
    )
    agent = Agent(tmp_path / "node-network.yaml", state, environment, events=False)
    interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
    thread = threading.Thread(target=agent.run)
    thread.start()
    server = Server(state.root / "node-network.sock", agent)
    server.start()
    try:
        yield partial(status, state.root)
    finally:
        server.stop()
        agent.stop()
        thread.join()
        sys.setswitchinterval(interval)
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def status(root: Path) -> dict[str, Any]:
    """Run the executable for STATUS; return its error, empty if there is none."""
    config = {"cniVersion": "1.1.0", "name": "n", "type": "node-network", "stateDir": str(root)}
    done = subprocess.run(
        [sys.executable, "-I", "-m", "cni"],
        input=json.dumps(config),
        env={"CNI_COMMAND": "STATUS", "CNI_PATH": "/opt/cni/bin"},
        text=True,
        check=False,
        capture_output=True,
    )
    error: dict[str, Any] = json.loads(done.stdout or "{}")
    return error


def test_rules_that_the_kernel_refuses_limit_the_node_after_a_while_and_until_it_takes_them(
    answers: Any, nft: Refusing
) -> None:
    error = until(lambda: e if (e := answers()).get("code") == protocol.LIMITED else None)
    assert error["msg"].startswith("Limited:")
    assert "not permitted" in error["msg"] + error["details"]
    nft.refuses = False
    until(lambda: answers() == {}, "the end of it")
