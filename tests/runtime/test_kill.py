"""SIGKILL in the middle of ADD and of DEL, at points that chance chooses.

Killed are the runtime, the executable or the reconciler. Then the runtime does what runtimes do:
DEL of what it is not sure of, or nothing if it has forgotten, and ADD of a new sandbox until one
succeeds. ``SEED`` repeats a run as far as the clock allows, ``KILLS`` makes it longer.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from runtime.chain import Chain, PluginError, Sandbox
from waiting import until

from lab import netns
from lab.traffic import Receiver, probe

pytestmark = [pytest.mark.lab, pytest.mark.runtime]

KILLS = int(os.environ.get("KILLS", "12"))
SEED = int(os.environ.get("SEED", "0")) or random.SystemRandom().randrange(1, 10**6)
LIVING = 5
VPC_HOST = "10.0.9.10"
PER_KILL_S = 10
"""Seconds; far more than a round takes."""


class Call:
    """One call in a runtime of its own, which can die before the executable does."""

    def __init__(self, chain: Chain, verb: str, sandbox: Sandbox) -> None:
        (plugin,) = chain.plugins
        self.began = time.monotonic()
        self._process = subprocess.Popen(
            # Not replaced by what it runs, because something comes after it.
            ["sh", "-c", '"$@"; exit $?', "runtime", *chain.command(plugin)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=chain.environment(verb, sandbox),
        )
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(chain.config(plugin, sandbox, None)).encode())
            self._process.stdin.close()
        self._process.stdin = None  # or communicate would flush it

    def kill(self, victim: str) -> None:
        """Kill the runtime or the executable; either may have come to its end."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        with suppress(ProcessLookupError, FileNotFoundError):
            if victim == "runtime":
                self._process.kill()
            else:
                for pid in children.read_text().split():
                    os.kill(int(pid), signal.SIGKILL)

    def finish(self, victim: str) -> dict[str, Any] | None:
        """Return the answer, None without one. A dead runtime's executable is not waited for."""
        if victim == "runtime":
            assert self._process.stdout
            self._process.stdout.close()
            self._process.wait()
            return None
        output, _ = self._process.communicate(timeout=60)
        if self._process.returncode != 0:
            return None
        return json.loads(output) if output else {}


class Kills:
    """The runtime of one node, and what it believes."""

    def __init__(self, cluster: Any, plugins: Path) -> None:
        self.cluster = cluster
        self.chance = random.Random(SEED)
        self.chain = Chain(cluster.lab, "node1", plugins, version="1.1.0")
        self.living: list[Sandbox] = []
        self.happened: list[str] = []
        self._number = 0
        self.durations_s = {"ADD": 0.0, "DEL": 0.0}

    def open(self) -> Sandbox:
        self._number += 1
        return self.chain.open(f"k{self._number}")

    def measure(self) -> None:
        """Learn how long calls take here, and begin with some pods."""
        for _ in range(LIVING):
            self.start_for_certain()
        one = self.living.pop()
        began = time.monotonic()
        self.chain.delete(one)
        self.durations_s["DEL"] = time.monotonic() - began
        one = self.open()
        began = time.monotonic()
        self.chain.add(one)
        self.durations_s["ADD"] = time.monotonic() - began
        self.living.append(one)

    def start_for_certain(self) -> None:
        """Start a pod as kubelet does: a new sandbox for every attempt."""

        def attempt() -> Sandbox | None:
            one = self.open()
            try:
                self.chain.add(one)
            except PluginError:
                self.chain.delete(one)
                until(self.cluster.answers, "the reconciler")
                return None
            return one

        self.living.append(until(attempt, self.cluster.log))

    def round(self) -> None:
        """One pod comes, one goes, somebody dies, and the runtime clears up."""
        victim = self.chance.choice(["runtime", "executable", "reconciler"])
        target = self.chance.choice(["ADD", "DEL"])
        delay_s = self.chance.uniform(0, self.durations_s[target] * 1.2)
        coming = self.open()
        going = self.living.pop(self.chance.randrange(len(self.living)))
        self.happened.append(
            f"{victim} in {target} after {delay_s * 1000:.1f} ms: {coming.name}, {going.name}"
        )
        calls = {"ADD": Call(self.chain, "ADD", coming), "DEL": Call(self.chain, "DEL", going)}
        time.sleep(max(calls[target].began + delay_s - time.monotonic(), 0))
        if victim == "reconciler":
            self.cluster.stop("node1", signal.SIGKILL)
            self.cluster.launch("node1")
        else:
            calls[target].kill(victim)
        answers = {v: c.finish(victim if v == target else "") for v, c in calls.items()}
        if answers["ADD"] is None:
            self.forget(coming)
            self.start_for_certain()
        else:
            coming.result = answers["ADD"]
            self.living.append(coming)
        if answers["DEL"] is None:
            self.forget(going)
        else:
            netns.remove(going.namespace)
        with Receiver(self.cluster.lab.names.namespace("vpchost")):
            newest = self.living[-1]
            seen = probe(newest.namespace, VPC_HOST)
            assert seen.source == newest.address, f"{newest.name}: {seen}"

    def lose(self) -> None:
        """Lose a pod that was well: no DEL, and nobody who could have noticed."""
        netns.remove(self.living.pop().namespace)

    def forget(self, sandbox: Sandbox) -> None:
        """Ask for DEL, as kubelet does; or never, as a runtime does that lost its record."""
        if self.chance.random() < 0.7:
            self.chain.delete(sandbox)
        else:
            self.happened[-1] += f"; {sandbox.name} was forgotten"
            netns.remove(sandbox.namespace)


@pytest.fixture(scope="module")
def cluster(cluster: Any) -> Any:
    """A node that often looks for what killed executables have left half-written."""
    with cluster.config.open("a") as config:
        config.write("reconcile: {ec2Resync: 10s}\n")
    until(lambda: cluster.status()["document"]["generation"] == 2, "the document")
    return cluster


@pytest.fixture
def kills(cluster: Any, plugins: Path) -> Iterator[Kills]:
    made = Kills(cluster, plugins)
    made.measure()
    print(f"SEED={SEED}")  # noqa: T201 - shown if the test fails
    yield made
    print("\n".join(made.happened))  # noqa: T201


@pytest.mark.timeout(60 + KILLS * PER_KILL_S)
def test_whoever_is_killed_the_living_work_and_the_dead_hold_nothing(kills: Kills) -> None:
    cluster = kills.cluster
    for _ in range(KILLS):
        kills.round()
    until(lambda: cluster.answers("node1"), "the reconciler")
    kills.lose()
    assert len({one.address for one in kills.living}) == LIVING - 1
    with Receiver(cluster.lab.names.namespace("vpchost")):
        for one in kills.living:
            assert probe(one.namespace, VPC_HOST).source == one.address
    living = {f"{cluster.lab.names.lab}-{one.name}" for one in kills.living}
    addresses = {one.address for one in kills.living}

    def strangers() -> dict[str, Any]:
        """What is held by others than the living, by kind."""
        records = {
            kind: {r["containerID"] for r in cluster.records(kind)} ^ living
            for kind in ("intents", "attachments")
        }
        links = json.loads(cluster.ip("-j", "link", "show", "type", "veth"))
        aliases = [x["ifalias"] for x in links if x.get("ifalias", "").startswith("node-network:")]
        held = {a.removeprefix("node-network:").removesuffix("/eth0") for a in aliases}
        routes = json.loads(cluster.ip("-j", "route", "show", "table", "512") or "[]")
        parts = [p.name for p in cluster.state().rglob("*.tmp")]
        found = {
            **records,
            "veths": held ^ living,
            "routes": {r["dst"] for r in routes} ^ addresses,
            "cooling": cluster.records("cooling"),
            "half-written": parts,
        }
        return {kind: what for kind, what in found.items() if what}

    for path in cluster.state().rglob(".*.tmp"):
        os.utime(path, (0, 0))  # or a slow writer might be at it yet
    # A pod that was forgotten is released after ten seconds without a namespace and a link.
    until(lambda: not strangers(), lambda: str(strangers()), patience_s=30)
    given = [a for r in cluster.records("attachments") for a in r["addresses"]]
    assert sorted(given) == sorted(addresses)
    ruleset = cluster.lab.run(
        "node1", ["nft", "list", "map", "inet", "node_network", "pod_eni_ipv4"]
    )
    assert ruleset.stdout.count("goto") == len(kills.living)
    # The reconciler that was started last may still give back what an earlier one was given.
    until(lambda: cluster.diff().stdout == "", lambda: str(cluster.diff().stdout))
    assert netns.names(cluster.lab.names.namespace("pod-")) == sorted(
        one.namespace for one in kills.living
    )
