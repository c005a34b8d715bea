"""SIGKILL of the daemon at points that chance chooses, whatever it is at.

A sample of what tests/node/test_crash_points.py goes through effect by effect, with the real
kernel and EC2 over HTTP. tests/runtime/test_kill.py kills in the middle of one ADD and one DEL;
here the daemon dies while it starts, grows the pool, gives it back, flips a policy, or serves many
pods, and again while it recovers. ``SEED`` repeats a run as far as the clock allows, ``CRASHES``
makes it longer.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import pytest
from waiting import until

from lab.pod import Pod, PodError
from lab.traffic import Receiver, Stream, probe

CRASHES = int(os.environ.get("CRASHES", "2"))
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
PER_CRASH_S = 15
"""Seconds; far more than one takes."""

pytestmark = [pytest.mark.lab, pytest.mark.timeout(120 + CRASHES * PER_CRASH_S)]

VPC_HOST = "10.0.9.10"
MOST = 18
"""Pods with which no more come: an m5.large has 27 addresses for them, and some rest."""

ATTEMPTS, BUDGET_S = 5, 30
"""Of a pod to start, and seconds of each. An address that EC2 took back and has given again rests
for two minutes, so that pods may have to wait when the pool has just shrunk."""

START_S = 1.2
"""Seconds that a start takes at most, from the program to the end of the first passes."""

POOLS = ["warm: 1, surplus: 0", "warm: 12, surplus: 0", "minimum: 20, surplus: 0"]
POLICIES = ["", "excludeCIDRs: [198.18.0.0/15, 192.0.2.0/24]", "excludeCIDRs: [203.0.113.0/24]"]


class Crashes:
    """One node, what is asked of it, and who kills its daemon meanwhile."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.chance = random.Random(SEED)
        self.living: list[Pod] = []
        self.happened: list[str] = []
        self._pool, self._policy = POOLS[0], POLICIES[0]
        self._workers = ThreadPoolExecutor(4)
        self.write()

    def write(self) -> None:
        self.cluster.config.write_text(
            "apiVersion: node-network/v1alpha1\n"
            "kind: NodeNetwork\n"
            f"warmPool: {{addresses: {{{self._pool}}}, cooldown: 2s}}\n"
            f"snat: {{{self._policy}}}\n"
            "reconcile: {ec2Resync: 10s, resync: 5s}\n"
        )

    # -- what it may be at ---------------------------------------------------------------------

    def let_pods_come(self) -> list[Future[None]]:
        return [self._workers.submit(self._come) for _ in range(4)]

    def let_pods_go(self) -> list[Future[None]]:
        going = [self.living.pop() for _ in range(min(3, len(self.living)))]
        return [self._workers.submit(self.cluster.delete, one) for one in going]

    def let_the_pool_change(self) -> list[Future[None]]:
        self._pool = self.chance.choice([p for p in POOLS if p != self._pool])
        self.write()
        return []

    def let_the_policy_change(self) -> list[Future[None]]:
        self._policy = self.chance.choice([p for p in POLICIES if p != self._policy])
        self.write()
        return []

    def _come(self) -> None:
        """Start a pod as kubelet does: a new sandbox for every attempt."""
        for left in reversed(range(ATTEMPTS)):
            try:
                self.living.append(self.cluster.add(budget_s=BUDGET_S))
            except PodError:
                if not left:
                    raise
                until(self.cluster.answers, self.cluster.log)
            else:
                return

    # -- death -----------------------------------------------------------------------------

    def round(self) -> None:
        """Ask for something, kill the daemon somewhere in it, and sometimes its successor."""
        acts: list[Callable[[], list[Future[None]]]] = [
            self.let_pods_come if len(self.living) < MOST else self.let_pods_go,
            self.let_pods_go if self.living else self.let_pods_come,
            self.let_the_pool_change,
            self.let_the_policy_change,
        ]
        chosen = self.chance.sample(acts, self.chance.choice([1, 2]))
        work = [future for act in chosen for future in act()]
        delays_s = [self.chance.uniform(0, 0.6)]
        while self.chance.random() < 0.4:
            delays_s.append(self.chance.uniform(0, START_S))
        words = " and ".join(act.__name__ for act in chosen)
        self.happened.append(f"{words}: dies after {', '.join(f'{d:.3f}' for d in delays_s)} s")
        for delay_s in delays_s:
            time.sleep(delay_s)
            self.cluster.stop(number=signal.SIGKILL)
            self.cluster.launch()
        until(self.cluster.answers, self.cluster.log)
        _, late = wait(work, timeout=ATTEMPTS * BUDGET_S)
        assert not late, self.cluster.status()["conditions"]
        for future in work:
            future.result()

    def end(self) -> None:
        self._workers.shutdown()


@pytest.fixture
def crashes(idle: Any) -> Iterator[Crashes]:
    made = Crashes(idle)
    print(f"SEED={SEED}")  # noqa: T201 - shown if the test fails
    yield made
    made.end()
    print("\n".join(made.happened))  # noqa: T201


def test_whatever_the_daemon_was_at_nothing_is_lost_doubled_or_leaked(crashes: Crashes) -> None:
    cluster = crashes.cluster
    cluster.launch()
    time.sleep(crashes.chance.uniform(0, START_S))
    cluster.stop(number=signal.SIGKILL)  # in the middle of its very first start
    cluster.launch()
    anchor = until(lambda: started(cluster), cluster.log, patience_s=30)
    with (
        Receiver(cluster.lab.names.namespace("vpchost")),
        Stream(anchor.namespace, VPC_HOST) as stream,
    ):
        for _ in range(CRASHES):
            crashes.round()
            assert stream.exchange("still here"), crashes.happened[-1]
        living = [anchor, *crashes.living]
        for one in living:
            assert probe(one.namespace, VPC_HOST).source == one.address
    assert len({one.address for one in living}) == len(living)
    until(lambda: disagreement(cluster) == "", lambda: disagreement(cluster))
    bound = {a for r in cluster.records("attachments") for a in r["addresses"]}
    assert bound == {one.address for one in living}
    assert len(cluster.records("intents")) == len(living)
    assert [e for e in cluster.lab.ask("status")["enis"] if not e["instance"]] == []
    assert cluster.lab.drops() == []


def started(cluster: Any) -> Any:
    try:
        return cluster.add()
    except PodError:
        return None


def disagreement(cluster: Any) -> str:
    """What of document, records, kernel, nftables and EC2 does not agree, if anything."""
    done = cluster.command("node1", "audit", "-f", str(cluster.config), "--apart", "0.5")
    return str(done.stdout + done.stderr)
