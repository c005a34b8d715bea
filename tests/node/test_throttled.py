"""EC2 that refuses reads: how often a node asks, and how many nodes come through at once."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from answers import MACS, Scripted, answers
from builders import SUBNET, document, eni, node
from fake_cloud import FakeEc2, FakeImds
from fakes import FakeConntrack, FakeNetlink, FakeNft, FakeRemains, FakeSurroundings, FakeSysctl

from reconciler.daemon.agent import Agent
from reconciler.daemon.document import Accepted
from reconciler.daemon.pool_loop import POOL_BACKOFF_S
from reconciler.ipam.budget import DESCRIBE_BUCKET
from reconciler.ipam.cloud import Limits
from reconciler.node.environment import Environment
from reconciler.targets.ec2.caller import Ec2CallError
from reconciler.targets.ec2.target import Ec2
from reconciler.targets.state.directory import StateDirectory

HOUR_S = 3600.0
NODES = 50
TENTHS = 10
"""The account's bucket is taken as a tenth, and so are its 500 nodes."""


class Throttling(Scripted):
    """EC2 that grants a read only if there is a token for it."""

    def __init__(self, grants: Callable[[], bool]) -> None:
        super().__init__(answers())
        self._grants = grants

    def __call__(self, operation: str, method: str, arguments: dict[str, Any]) -> Any:
        answer = super().__call__(operation, method, arguments)
        if self._grants():
            return answer
        raise Ec2CallError(operation, "RequestLimitExceeded", "test", refused=True)


def daemon(directory: Path, caller: Throttling) -> Agent:
    """A daemon that was never started: its passes over the pool are run by hand."""
    facts = node(primary_mac=MACS[0], subnet_cidrs=(SUBNET,))
    seen = FakeEc2([eni(0, 0, primary=SUBNET[10])], Limits(3, 10), SUBNET)
    environment = Environment(
        imds=FakeImds(facts, seen),
        make_ec2=lambda *given: Ec2(*given, caller=caller),
        netlink=FakeNetlink(),
        nft=FakeNft(),
        sysctl=FakeSysctl({}),
        conntrack=FakeConntrack(),
        surroundings=FakeSurroundings(),
        remains=FakeRemains(),
    )
    state = StateDirectory(directory)
    state.prepare()
    agent = Agent(directory / "node-network.yaml", state, environment, events=False)
    wanted = document(warmPool={"addresses": {"warm": 0, "surplus": 100}})
    agent.parts.document.accepted = Accepted(wanted)
    return agent


def test_a_node_whose_reads_are_throttled_for_an_hour_asks_some_twice_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", random.Random(7).uniform)
    caller = Throttling(lambda: False)
    agent = daemon(tmp_path / "run", caller)
    now, failures = 0.0, 0
    while now < HOUR_S:
        wait_s, failures = agent.pool.run_pass(failures)
        assert 0 <= wait_s <= POOL_BACKOFF_S[1]
        now += wait_s
    mean_s = POOL_BACKOFF_S[1] / 2
    assert HOUR_S / mean_s / 2 < sum(caller.asked.values()) < 1.5 * HOUR_S / mean_s


def test_500_nodes_that_start_at_once_come_through_within_some_minutes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks at once, and those that are refused spread by full jitter."""
    monkeypatch.setattr(random, "uniform", random.Random(7).uniform)
    now = 0.0
    capacity, refill = (figure / TENTHS for figure in DESCRIBE_BUCKET)
    tokens, at = capacity, 0.0

    def grants() -> bool:
        nonlocal tokens, at
        tokens, at = min(tokens + (now - at) * refill, capacity), now
        granted = tokens >= 1
        tokens -= granted
        return granted

    caller = Throttling(grants)
    agents = [daemon(tmp_path / str(number), caller) for number in range(NODES)]
    turns = [(0.0, number, 0) for number in range(NODES)]
    served_at = []
    while turns:
        now, number, failures = heapq.heappop(turns)
        wait_s, failures = agents[number].pool.run_pass(failures)
        if failures:
            heapq.heappush(turns, (now + wait_s, number, failures))
        else:
            served_at.append(now)
    reads = sum(caller.asked.values())
    assert max(served_at) < 240.0
    assert sorted(served_at)[NODES // 2] < 60.0
    assert reads < 8 * NODES, "as many refused as granted, three times over"
